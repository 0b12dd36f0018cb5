"""The manifests: which series of the archive make the real cohort, pinned in manifests/.

`manifests/rebuild.py` finds them by rule in the archive's own index.  Every patient of a collection is either in
its manifest or a row with a reason in excluded.csv.  A `crdc_series_uuid` names one revision of a series, for good.
"""

from pathlib import Path

import pandas as pd

from her2core.cohorts.tables import read_texts
from her2core.records import PATIENT_ID

IDC_COLLECTIONS = ("ispy2", "acrin_6698", "ispy1", "advanced_mri_breast_lesions")
MANIFESTS = {"spy2": "ispy2", "spy1": "ispy1", "ambl": "ambl"}  # dataset: name of its CSV
MINCROP_LICENCE = "CC BY-NC 4.0"  # of BreastDCEDL's MinCrop release, which no manifest lists
BUCKET = "idc-open-data"  # of all four collections; bucket and crdc_series_uuid make the address
MANIFEST_COLUMNS = {  # of a manifest: its name in the index, what its text must match
    "patient": ("PatientID", PATIENT_ID),
    "role": ("role", "dce|seg"),
    "collection": ("collection_id", "|".join(IDC_COLLECTIONS)),
    "SeriesInstanceUID": ("SeriesInstanceUID", r"(?=[0-9.]{3,64}$)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+"),
    "crdc_series_uuid": ("crdc_series_uuid", "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "instances": ("instanceCount", "[1-9][0-9]{0,8}"),
    "size_MB": ("series_size_MB", r"(?=.*[1-9])[0-9]{1,9}\.[0-9]{6}"),  # 1e6 bytes: six decimals are exact
    "licence": ("license_short_name", "CC BY[A-Z0-9 .-]*"),
    "source_DOI": ("source_DOI", r"10\.[0-9]+/[A-Za-z0-9._/-]+"),
    "idc_version": ("idc_version", "[1-9][0-9]*"),
}


def read_manifest(path: Path) -> pd.DataFrame:
    """A manifest, one row per series; ValueError names the first row that cannot be true.

    Rows are counted as a spreadsheet shows them: the header is row 1.
    """
    table = read_texts(path)
    if list(table) != list(MANIFEST_COLUMNS) or table.empty:
        expected = f"columns {', '.join(MANIFEST_COLUMNS)} and rows"
        raise ValueError(f"{path}: expected {expected}; found {list(table)}, {len(table)} rows")
    for column, (_, pattern) in MANIFEST_COLUMNS.items():
        good = table[column].str.fullmatch(pattern, na=False)
        if not good.all():
            row = good.idxmin()
            found = table.loc[row, column] or ""
            raise ValueError(f"{path}, row {row + 2}: {column} cannot be {found!r}, expected {pattern}")
    for column in ("SeriesInstanceUID", "crdc_series_uuid"):
        if table[column].duplicated().any():
            row = table[column].duplicated().idxmax()
            raise ValueError(f"{path}, row {row + 2}: {column} {table.loc[row, column]} is listed twice")
    return table.astype({"instances": int, "size_MB": float, "idc_version": int})


def read_releases(path: Path) -> dict[str, tuple[str, str]]:
    """The files of BreastDCEDL's MinCrop release: dataset, or "table" → name, MD5."""
    table = pd.read_csv(path, dtype=str).set_index("dataset")
    return {name: (row["file"], row["md5"]) for name, row in table.iterrows()}


def totals(table: pd.DataFrame) -> dict:
    """What all series of a manifest come to: patients, series, files, GB, licences."""
    return {
        "patients": int(table["patient"].nunique()),
        "series": len(table),
        "instances": int(table["instances"].sum()),
        "GB": round(float(table["size_MB"].sum()) / 1000, 3),
        "licences": sorted(set(table["licence"])),
    }
