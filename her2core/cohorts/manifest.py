"""The manifests: which series of the archive make the real cohort, pinned in manifests/.

`manifests/rebuild.py` finds them by rule in the archive's own index.  Every patient of a collection is either in
its manifest or a row with a reason in excluded.csv.  A `crdc_series_uuid` names one revision of a series, for good:
no table of idc-index-data 25.0.5 has a digest of content, so files' MD5s are those of the bucket's listing.
"""

from pathlib import Path

import pandas as pd

from her2core.cohorts.tables import read_texts
from her2core.records import PATIENT_ID

IDC_COLLECTIONS = ("ispy2", "acrin_6698", "ispy1", "advanced_mri_breast_lesions", "duke_breast_cancer_mri")
MANIFESTS = {"spy2": "ispy2", "spy1": "ispy1", "ambl": "ambl"}  # dataset: name of its CSV
MINCROP_LICENCE = "CC BY-NC 4.0"  # of BreastDCEDL's MinCrop release, which no manifest lists
_PINNED = "restore it from git"
MANIFEST_COLUMNS = {  # of a manifest: its name in the index, what its text must match
    "patient": ("PatientID", PATIENT_ID),
    "role": ("role", "dce|seg"),
    "collection": ("collection_id", "|".join(IDC_COLLECTIONS)),
    "SeriesInstanceUID": ("SeriesInstanceUID", r"(?=[0-9.]{3,64}$)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+"),
    "crdc_series_uuid": ("crdc_series_uuid", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "bucket": ("aws_bucket", "idc-open-data|idc-open-data-cr"),  # it and crdc_series_uuid make the address
    "instances": ("instanceCount", "[1-9][0-9]{0,8}"),
    "size_MB": ("series_size_MB", r"(?=.*[1-9])[0-9]{1,9}\.[0-9]{6}"),  # 1e6 bytes: six decimals are exact
    "licence": ("license_short_name", "CC BY[A-Z0-9 .-]*"),
    "source_DOI": ("source_DOI", r"10\.[0-9]+/[A-Za-z0-9._/-]+"),
    "idc_version": ("idc_version", "[1-9][0-9]{0,3}"),
}


def _read_pinned(path, patterns, *unique):
    """A CSV with these columns, each cell as its pattern says, none twice in `unique`; the header is row 1."""
    table = read_texts(path)
    if list(table) != list(patterns):
        raise ValueError(f"{path}: found columns {', '.join(table)}, expected {', '.join(patterns)}; {_PINNED}")
    for column, pattern in patterns.items():
        twice = table[column].duplicated() & (column in unique)
        good = table[column].str.fullmatch(pattern, na=False) & ~twice
        if not good.all():
            row = good.idxmin()
            found = f"{column} cannot be {table.loc[row, column] or ''!r}{' twice' * bool(twice[row])}"
            raise ValueError(f"{path}, row {row + 2}: {found}, expected {pattern}; {_PINNED}")
    return table


def read_manifest(path: Path) -> pd.DataFrame:
    """A manifest, one row per series; ValueError names the first row that cannot be true."""
    patterns = {column: pattern for column, (_, pattern) in MANIFEST_COLUMNS.items()}
    table = _read_pinned(path, patterns, "SeriesInstanceUID", "crdc_series_uuid")
    if table.empty:
        raise ValueError(f"{path}: found no rows, expected one per series; {_PINNED}")
    return table.astype({"instances": int, "size_MB": float, "idc_version": int})


def read_excluded(path: Path) -> dict[str, str]:
    """{patient: why it is in no manifest}."""
    table = _read_pinned(path, {"patient": PATIENT_ID, "collection": ".+", "reason": ".+"}, "patient")
    return dict(zip(table["patient"], table["reason"], strict=True))


def read_releases(path: Path) -> dict[str, tuple[str, str]]:
    """The files of BreastDCEDL's MinCrop release: dataset, or "table" → name, MD5."""
    patterns = {"dataset": "spy1|spy2|table", "file": r"\w[\w.-]*", "md5": "[0-9a-f]{32}"}
    table = _read_pinned(path, patterns, "dataset", "file")
    return {name: (file, md5) for name, file, md5 in table.itertuples(index=False)}


def totals(table: pd.DataFrame) -> dict:
    """What all series of a manifest come to: patients, series, files, GB, licences."""
    return {
        "patients": int(table["patient"].nunique()),
        "series": len(table),
        "instances": int(table["instances"].sum()),
        "GB": round(float(table["size_MB"].sum()) / 1000, 3),
        "licences": sorted(set(table["licence"])),
    }
