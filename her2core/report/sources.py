"""What a cohort's data are: collections, versions, licences, and what lies on disk of them."""

import json

import pandas as pd

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
