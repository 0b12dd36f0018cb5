"""Get or make the raw files of a study:        python -m her2core.cohorts.acquire COHORT
Say what that would take, without network:     python -m her2core.cohorts.acquire --dry COHORT

data/<cohort>/acquire/
    the patients' files (see `phantom` and `archive`), records/<patient>.json
    files.csv      one row per complete patient, with digests: what DVC tracks in place of the files
    metadata.csv   the patient table in BreastDCEDL's columns, with a reason where a patient could not be obtained
    truth.csv      what else is known: the phantom's truth; of the real cohort, tumour voxels of mask and table
"""

import math
import sys
from pathlib import Path

import pandas as pd

from her2core.cohorts import archive
from her2core.cohorts import phantom as embedded
from her2core.config import Study, steady_dependencies
from her2core.records import files_row, whole

SOURCES = {"phantom": embedded.EmbeddedConfig, "archive": archive.ArchiveConfig}
_INTEGERS = ("test", "HER2", "HR", "n_times", "pre", "post_early", "post_late")  # with gaps, so not plain int


def get_all(config: embedded.EmbeddedConfig | archive.ArchiveConfig, folder: Path) -> None:
    """Get all patients that are not there yet, then write the three tables; ValueError lists who is missing."""
    if isinstance(config, embedded.EmbeddedConfig):
        records, missing = embedded.make(config, folder), []
        truth = [{"patient": r["patient"]} | r["truth"] for r in records]
    else:
        records, missing = archive.get(config, folder)
        counts = ("mask_voxels", "mask_count")  # tumour voxels in the archive's mask and in the table
        truth = [{"patient": r["patient"]} | {c: r["metadata"].get(c) for c in counts} for r in records]
    metadata = pd.DataFrame([r["metadata"] for r in records] + missing)
    tables = {
        "files": pd.DataFrame([files_row(r) for r in records]),
        "metadata": metadata.astype({c: "Int64" for c in _INTEGERS if c in metadata}),
        "truth": pd.DataFrame(truth),
    }
    for name, table in tables.items():
        with whole(folder / f"{name}.csv") as part:
            table.to_csv(part, index=False)
    failed = [f"{r['pid']}: {r['reason']}" for r in missing if r["reason"].startswith("not usable")]
    if failed and not config.allow_missing:
        raise ValueError(
            f"{len(failed)} patients could not be obtained; the others are complete.  Run again, or set "
            "allow_missing to go on without them:\n" + "\n".join(failed)
        )


def _describe(name, config):
    """What acquiring a cohort would take, in words."""
    if not isinstance(config, embedded.EmbeddedConfig):
        return f"{name}:\n{archive.describe(config)}"
    sites = [embedded.site_of(row, config.coarse) for row in embedded.draw_cohort(config)]
    size = sum(2e-9 * math.prod(s.shape) * len(s.phase_times_s) for s in sites)  # 16 bits per voxel
    what = f"{name}: {len(sites):,} synthetic patients, made here"
    return f"{what}\nDownload: none; licence: MIT, as the code\nDisk: {size:.2g} GB"


def main(arguments: list[str]) -> None:
    """The stage `acquire`, or its dry run."""
    is_dry = arguments[:1] == ["--dry"]
    if len(arguments) != 1 + is_dry or arguments[-1].startswith("-"):
        sys.exit(__doc__)
    try:
        study = Study.open(arguments[-1])
        config = study.params("acquire", SOURCES)
        if is_dry:
            print(_describe(study.name, config))
            return
        with steady_dependencies("her2core/cohorts/acquire.py", study):
            get_all(config, study.data("acquire"))
    except (ValueError, OSError) as error:
        sys.exit(f"\nacquire: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the patients that are complete are kept")


if __name__ == "__main__":
    main(sys.argv[1:])
