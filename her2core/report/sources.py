"""What a cohort's data are: collections, versions, licences, what lies on disk of them; who is in each split."""

import hashlib
import json
from collections.abc import Iterable

import pandas as pd

from her2core.cohort import included, kind_of, person
from her2core.config import Study
from her2core.formats.boundary import reading
from her2core.records import file_digest


def data_sources(study: Study) -> dict:
    """What a study's data are and which version, for JSON; read from the raw files as they are here."""
    files, sources = (study.data("acquire") / name for name in ("files.csv", "sources.json"))
    with reading(files, "the table that acquire writes", "run it again"):
        table = pd.read_csv(files, dtype={"patient": str, "series_uid": str}).assign(patients=1)
        table["series"] = table["series_uid"].fillna("").str.split().str.len()  # NIfTI has none
        on_disk = table.groupby("dataset")[["patients", "series", "files", "bytes"]].sum()
    return {
        "cohort": study.name,
        "synthetic": study.is_synthetic,
        "sources": json.loads(sources.read_text("utf-8")),
        "on_disk": on_disk.to_dict("index"),
        "files_md5": file_digest(files, "md5"),
    }


def identifiers_digest(patients: Iterable[str]) -> str:
    """SHA-256 of a set of patients, whatever their order and the spelling of `cohort.person`: a line for each."""
    return hashlib.sha256("\n".join(sorted({person(p) for p in patients})).encode()).hexdigest()


def split_digests(table: pd.DataFrame) -> dict[str, dict]:
    """{split: patients, positives, sha256} of a patient table, for JSON; an external site is a split by its name.

    So anybody can tell whether a set of patients is a split, and nobody learns from it who is in."""
    use = included(table)
    names = pd.Series(kind_of(use["split"]), use.index).mask(use["split"] == "external", use["site"])
    return {
        str(name): {"patients": len(part), "positives": int(part["label"].sum())}
        | {"sha256": identifiers_digest(part["patient"])}
        for name, part in use.groupby(names, sort=True)
    }
