"""Get or make the raw files:  python -m her2core.cohorts.acquire          (the cohort of params.yaml)
What that would mean, without network:  python -m her2core.cohorts.acquire --dry [cohort]

data/<cohort>/acquire/
    the patients' files (see `embedded` and `archive`), records/<patient>.json
    files.csv      one row per complete patient, with digests: what DVC tracks in place of the files
    metadata.csv   the patient table in BreastDCEDL's columns, with a reason where a patient could not be had
    truth.csv      what is known beside it: the phantom's truth; of the real cohort, voxels of mask and table
"""

import math
import sys

import pandas as pd

from her2core.cohorts import archive
from her2core.cohorts import phantom as embedded
from her2core.config import cohort, data_folder, params, steady_dependencies
from her2core.records import files_row, write_whole

SOURCES = {"phantom": embedded.EmbeddedConfig, "archive": archive.ArchiveConfig}
INTEGERS = ("test", "HER2", "HR", "n_times", "pre", "post_early", "post_late")  # with gaps, so not plain int


def acquire(config, folder):
    """Get all patients that are not there yet, then write the three tables; ValueError lists who is missing."""
    if isinstance(config, embedded.EmbeddedConfig):
        records, missing = embedded.make(config, folder), []
        truth = [{"patient": r["patient"]} | r["truth"] for r in records]
    else:
        records, missing = archive.get(config, folder)
        truth = [{"patient": r["patient"]} | masks_row(r["metadata"]) for r in records]
    metadata = pd.DataFrame([r["metadata"] for r in records] + missing)
    kinds = {c: "Int64" for c in INTEGERS if c in metadata}
    tables = {
        "files": pd.DataFrame([files_row(r) for r in records]),
        "metadata": metadata.astype(kinds),
        "truth": pd.DataFrame(truth),
    }
    for name, table in tables.items():
        write_whole(folder / f"{name}.csv", table.to_csv(index=False))
    failed = [f"{r['pid']}: {r['reason']}" for r in missing if r["reason"].startswith("not usable")]
    if failed and not config.allow_missing:
        raise ValueError(
            f"{len(failed)} patients could not be had; the others are complete.  Run again, or set allow_missing "
            "to go on without them:\n" + "\n".join(failed)
        )


def masks_row(metadata):
    """Tumour voxels in the archive's mask and in the table."""
    return {"mask_voxels": metadata.get("mask_voxels"), "mask_count": metadata.get("mask_count")}


def dry(name):
    """What acquiring a cohort would mean, in words."""
    config = params("acquire", SOURCES, name)
    if isinstance(config, embedded.EmbeddedConfig):
        sites = [embedded.site_of(row, config.coarse) for row in embedded.draw_cohort(config)]
        size = sum(2e-9 * math.prod(s.shape) * len(s.phase_times_s) for s in sites)  # 16 bits per voxel
        what = f"{len(sites):,} synthetic patients, made here"
        return f"{name}: {what}\nDownload: none; licence: MIT, as the code\nDisk: {size:.2g} GB"
    return f"{name}:\n{archive.describe(config)}"


def main(arguments):
    try:
        if arguments[:1] == ["--dry"] and len(arguments) <= 2:
            print(dry(arguments[1] if arguments[1:] else cohort()))
        elif arguments:
            sys.exit(__doc__)
        else:
            with steady_dependencies("her2core/cohorts/acquire.py"):
                acquire(params("acquire", SOURCES), data_folder("acquire"))
    except (ValueError, OSError) as error:
        sys.exit(f"\nacquire: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the patients that are complete are kept")


if __name__ == "__main__":
    main(sys.argv[1:])
