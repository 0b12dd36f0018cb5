"""What lies on disk of each patient: a record, written last, says which files make the patient complete.

Raw files are many and large, so DVC tracks only a table of their digests; whether they are all there and are what
was written is checked against the record before every use.

<folder>/records/<patient>.json   files with their sizes, digest, row of the patient table, and what else belongs
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from her2core.formats.boundary import reading

PATIENT_ID = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}"  # what an identifier must match: it becomes a folder's name
_AGAIN = "run: python -m her2core.cohorts.acquire COHORT"


def alias(patient: str) -> str:
    """What figures and the report call a patient: enough of the identifier's SHA-256 to tell patients apart."""
    return f"patient {hashlib.sha256(patient.encode()).hexdigest()[:8]}"


@contextmanager
def whole(path: Path, mark: str = "") -> Iterator[Path]:
    """A path beside `path` to write a file or folder to; it takes the name `path` when the block ends.

    So that name only ever stands for the whole of it, safe on the disk: a block that fails, or finds the disk full,
    leaves what was there before.  An older folder is put aside first, as a folder cannot be replaced at once; the
    next writer brings it back if a kill came between.  mark: tells two writers of the same path apart.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, aside = (path.with_name(f".partial-{kind}{path.name}") for kind in (mark, "former-"))
    if aside.exists() and not path.exists():
        aside.rename(path)
    _remove(part)
    try:
        yield part
        with ThreadPoolExecutor(16) as pool:  # together ten times as fast as one by one
            list(pool.map(_flush, [p for p in (part, *part.rglob("*")) if not p.is_dir()]))
        if part.is_dir() and path.exists():
            _remove(aside)
            path.rename(aside)
        part.replace(path)
        _remove(aside)
    finally:
        _remove(part)


def _flush(path):
    with open(path, "rb+" if os.name == "nt" else "rb") as file:  # Windows syncs only what may be written
        os.fsync(file.fileno())


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


def _sealed(text):
    """A record's text behind its own SHA-256, so that a damaged one is none."""
    return b'{"seal": "%s", %s' % (hashlib.sha256(text).hexdigest().encode(), text)


def write_record(folder: Path, patient: str, paths: Iterable[Path], **more) -> dict:
    """Record that `paths` make the patient whole; returns the record.  Written after all of them."""
    folder, paths = Path(folder), sorted(paths)
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in paths}
    record = {"patient": patient, "files": sizes, "sha256": _digest(paths)} | more
    with whole(record_path(folder, patient)) as part:
        part.write_bytes(_sealed(json.dumps(record)[1:].encode()))
    return record


def read_record(folder: Path, patient: str) -> dict | None:
    """The record of a patient whose files are those that were acquired; None where a file or the record is not."""
    try:
        return check_complete(patient, folder)
    except Incomplete:
        return None


def check_complete(patient: str, folder: Path) -> dict:
    """A patient's record; `Incomplete` with what is missing, cut off or changed.  Called before each use."""
    path = record_path(folder, patient)
    if not path.is_file():
        raise Incomplete(f"{patient}: not acquired; {_AGAIN}")
    text = path.read_bytes()
    record = json.loads(text) if text == _sealed(text.partition(b", ")[2]) else {}
    if record.get("patient") != patient:
        raise Incomplete(f"{patient}: {path.name} is damaged or another patient's; {_AGAIN}")
    for name, size in record["files"].items():
        path = Path(folder, name)
        found = path.stat().st_size if path.is_file() else "no file"
        if found != size:
            raise Incomplete(f"{patient}: {name}: expected {size} bytes, found {found}; {_AGAIN}")
    if _digest(Path(folder, name) for name in record["files"]) != record["sha256"]:
        raise Incomplete(f"{patient}: not the files that were acquired (SHA-256); {_AGAIN}")
    return record


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


def write_digests(table: Path, paths: Iterable[Path]) -> None:
    """A CSV of files: columns file, bytes, sha256."""
    rows = [(p.name, p.stat().st_size, file_digest(p)) for p in paths]
    with whole(table) as part, open(part, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "bytes", "sha256"), *rows])


def read_digests(table: Path, remedy: str) -> dict[str, str]:
    """{file: SHA-256} of what `write_digests` wrote; ValueError, which ends with `remedy`, where it is damaged."""
    with reading(table, "columns file, bytes, sha256", remedy), open(table, newline="", encoding="utf-8") as file:
        return {row["file"]: row["sha256"] for row in csv.DictReader(file)}


def file_digest(path: Path, kind: str = "sha256") -> str:
    """Digest of a file's content, however large."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
