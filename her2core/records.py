"""What lies on disk of each patient: a record, written last, says which files make the patient complete.

Raw files are many and large, so DVC tracks only a table of their digests; whether they are all there and have
the right size is checked against the record before every use.

<folder>/records/<patient>.json   files with their sizes, digest, row of the patient table, and what else belongs
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENT_ID = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}"  # what an identifier must match: it becomes a folder's name
_AGAIN = "run: python -m her2core.cohorts.acquire COHORT"


@contextmanager
def whole(path: Path, mark: str = "") -> Iterator[Path]:
    """A path beside `path` to write a file or folder to; it takes the name `path` when the block ends.

    So that name only ever stands for the whole of it: a block that fails leaves what was there before.  An older
    folder is put aside first, as a folder cannot be replaced at once; the next writer brings it back if a kill came
    between.  mark: tells two writers of the same path apart.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, aside = (path.with_name(f".partial-{kind}{path.name}") for kind in (mark, "former-"))
    if aside.exists() and not path.exists():
        aside.rename(path)
    _remove(part)
    try:
        yield part
        if part.is_dir() and path.exists():
            _remove(aside)
            path.rename(aside)
        part.replace(path)
        _remove(aside)
    finally:
        _remove(part)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Incomplete(ValueError):
    """Files of a patient are missing or damaged: to be acquired again, and no reason against the patient."""


def record_path(folder: Path, patient: str) -> Path:
    """Where a patient's record lies."""
    return Path(folder) / "records" / f"{patient}.json"


def _digest(paths):
    """SHA-256 over the contents, whatever the names: the same files under another patient's name are found."""
    each = sorted(hashlib.sha256(path.read_bytes()).digest() for path in paths)
    return hashlib.sha256(b"".join(each)).hexdigest()


def write_record(folder: Path, patient: str, paths: Iterable[Path], **more) -> dict:
    """Record that `paths` make the patient whole; returns the record.  Written after all of them."""
    folder, paths = Path(folder), sorted(paths)
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in paths}
    record = {"patient": patient, "files": sizes, "sha256": _digest(paths)} | more
    with whole(record_path(folder, patient)) as part:
        part.write_text(json.dumps(record))
    return record


def read_record(folder: Path, patient: str) -> dict | None:
    """The record of a patient whose files are all there in full size; None where a file or the record lacks."""
    try:
        return _record(Path(folder), patient)
    except Incomplete:
        return None


def _record(folder, patient):
    """A patient's record; `Incomplete` unless all its files are there in full size."""
    path = record_path(folder, patient)
    if not path.is_file():
        raise Incomplete(f"{patient}: not acquired; {_AGAIN}")
    record = json.loads(path.read_text())
    for name, size in record["files"].items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else "no file"
        if found != size:
            raise Incomplete(f"{patient}: {name}: expected {size} bytes, found {found}; {_AGAIN}")
    return record


def check_complete(patient: str, folder: Path) -> None:
    """Raise `Incomplete` with what is missing, cut off or changed; called before each use of a patient's files."""
    record = _record(Path(folder), patient)
    if _digest(Path(folder) / name for name in record["files"]) != record["sha256"]:
        found = f"not the files that were acquired (SHA-256); delete {patient}.json"
        raise Incomplete(f"{patient}: {found} and {_AGAIN}")


def files_row(record: dict) -> dict:
    """One patient's row of files.csv, which stands for the raw files in DVC's record."""
    return {
        "patient": record["patient"],
        "dataset": record["metadata"]["dataset"],
        "series_uid": record["series_uid"],
        "files": len(record["files"]),
        "bytes": sum(record["files"].values()),
        "sha256": record["sha256"],
    }
