"""Get or make the raw files of a study:  python -m her2core.cohorts.acquire COHORT

data/<cohort>/acquire/
    the patients' files (see `phantom` and `archive`), records/<patient>.json
    files.csv      one row per complete patient, with digests: what DVC tracks in place of the files
    metadata.csv   the patient table in BreastDCEDL's columns, with a reason where a patient could not be obtained
    truth.csv      what else is known: the phantom's truth; of the real cohort, tumour voxels of mask and table
    sources.json   what the data are, an entry per collection and version, with licence and citation
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from her2core.cohorts.archive import ArchiveConfig
from her2core.cohorts.own import FolderConfig
from her2core.cohorts.phantom import EmbeddedConfig
from her2core.config import Study, steady_dependencies
from her2core.records import files_row, whole


class _PatientSource(Protocol):
    """Where patients come from: the section `acquire`, and what it can do.  Adding one is a module and a line
    below."""

    def get(self, folder: Path) -> tuple[list[dict], list[dict]]:
        """Get all patients that are not in `folder` yet → records of the complete ones, rows of the others.

        A record has `metadata`, the patient's row, and perhaps `truth`.  A row has a `reason`, and `failed` where
        the patient was expected."""

    def describe(self) -> pd.DataFrame:
        """What will be acquired, without network: a row per collection with its name, from, patients, kept_GB and
        under_way_GB, and where it is downloaded series, files, download_GB and licences."""

    def sources(self) -> Iterator[dict]:
        """What the data are: an entry per collection and version, with licence and citation."""

    def checks(self, folder: Path, network: bool) -> Iterator[Callable]:
        """What raises ValueError or OSError where something is wanting: files, tables, servers."""


SOURCES: dict[str, Any] = {"phantom": EmbeddedConfig, "archive": ArchiveConfig, "folder": FolderConfig}
_INTEGERS = ("HER2", "HR", "pCR", "n_times", "pre", "post_early", "post_late")  # with gaps, so not plain int


def get_all(config: _PatientSource, folder: Path) -> None:
    """Get all patients that are not there yet, then write the three tables; ValueError lists who is missing, unless
    that is allowed and somebody of each collection is left."""
    records, missing = config.get(folder)
    counts = ("mask_voxels", "mask_count")  # tumour voxels in the mask and in the table
    truth = [r.get("truth") or {c: r["metadata"].get(c) for c in counts} for r in records]
    truth = [{"patient": r["patient"]} | known for r, known in zip(records, truth, strict=True)]
    failed = {row["pid"]: row["reason"] for row in missing if row.pop("failed", False)}
    gone = {row["dataset"] for row in missing if row["pid"] in failed} - {r["metadata"]["dataset"] for r in records}
    metadata = pd.DataFrame([r["metadata"] for r in records] + missing)
    tables = {
        "files": pd.DataFrame([files_row(r) for r in records]),
        "metadata": metadata.astype({c: "Int64" for c in _INTEGERS if c in metadata}),
        "truth": pd.DataFrame(truth),
    }
    for name, table in tables.items():
        with whole(folder / f"{name}.csv") as part:
            table.to_csv(part, index=False)
    with whole(folder / "sources.json") as part:
        part.write_text(json.dumps([*config.sources()], indent=1) + "\n", "utf-8")
    if failed:
        said = f"{len(failed)} patients cannot be used; all others are complete.  metadata.csv says why"
        listed = "\n".join([":", *(f"{pid}: {reason}" for pid, reason in failed.items())])
        if gone:
            raise ValueError(f"{said}; nobody is left of {', '.join(sorted(gone))}{listed}")
        if not config.allow_missing:
            raise ValueError(f"{said}; acquire.allow_missing: true goes on without them{listed}")
        print(said, file=sys.stderr)


def main(arguments: list[str]) -> None:
    """The stage `acquire`."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.exit(__doc__)
    try:
        study = Study.open(arguments[0])
        config = study.params("acquire", SOURCES)
        with steady_dependencies("her2core/cohorts/acquire.py", study):
            get_all(config, study.data("acquire"))
    except (ValueError, OSError) as error:
        sys.exit(f"\nacquire: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the patients that are complete are kept")


if __name__ == "__main__":
    main(sys.argv[1:])
