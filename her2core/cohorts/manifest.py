"""The manifests: which series of the archive make the real cohort, pinned in manifests/.

`manifests/rebuild.py` finds them by rule in the archive's own index.  Every patient of a collection is either in
its manifest or a row with a reason in excluded.csv.  A `crdc_series_uuid` names one revision of a series, for good:
no table of idc-index-data 25.0.5 has a digest of content, so files' MD5s are those of the bucket's listing.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from her2core.cohorts.collections import collections
from her2core.cohorts.tables import DECLARED, read_texts
from her2core.records import PATIENT_ID, file_digest

MINCROP_LICENCE = "CC BY-NC 4.0"  # of BreastDCEDL's MinCrop release, which no manifest lists
_PINNED = "restore it from git"
MANIFEST_COLUMNS = {"patient": ("PatientID", PATIENT_ID)} | DECLARED["manifest"]
IDC_COLLECTIONS = MANIFEST_COLUMNS["collection"][1].split("|")


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


def series_with_seg(dataset: str, folder: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """A collection's manifest → series of the patients with images and SEG; {patient: why not} for the others."""
    table = read_manifest(folder / f"{collections()[dataset].manifest}.csv")
    out = read_excluded(folder / "excluded.csv")
    out |= dict.fromkeys(set(table["patient"]) - set(table.loc[table["role"] == "seg", "patient"]), "no tumour SEG")
    return table[~table["patient"].isin(list(out))], out


def totals(table: pd.DataFrame) -> dict:
    """What all series of a manifest come to: patients, series, files, GB, licences."""
    return {
        "patients": int(table["patient"].nunique()),
        "series": len(table),
        "instances": int(table["instances"].sum()),
        "GB": round(float(table["size_MB"].sum()) / 1000, 3),
        "licences": sorted(set(table["licence"])),
    }


def pinned_sources(dataset: str, folder: Path) -> Iterator[dict]:
    """What a manifest's data are: an entry per collection and DOI, with licence and version."""
    path = folder / f"{collections()[dataset].manifest}.csv"
    for (collection, doi), part in read_manifest(path).groupby(["collection", "source_DOI"], sort=True):
        found = totals(part)
        yield {
            "dataset": dataset,
            "source": "NCI Imaging Data Commons",
            "collection": collection,
            "doi": doi,
            "licence": ", ".join(found["licences"]),
            "version": "IDC v" + ", v".join(map(str, sorted(set(part["idc_version"])))),
            **{counted: found[counted] for counted in ("patients", "series", "instances")},
            "bytes": int((part["size_MB"] * 1e6).round().sum()),
            "manifest": f"{folder.name}/{path.name}",
            "manifest_md5": file_digest(path, "md5"),
        }
