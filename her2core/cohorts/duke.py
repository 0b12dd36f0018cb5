"""Whose cancer is HER2-positive in Duke-Breast-Cancer-MRI (10.7937/tcia.e3sv-re93): IDC's clinical table → frame.

IDC's table `duke_breast_cancer_mri_clinical` is the collection's own sheet, with its codes.  For a cancer of both
breasts it has columns "for the other side", which are never read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from her2core.cohorts import tables
from her2core.cohorts.collections import collections
from her2core.cohorts.labels import TABLE_RULES, known_only

DUKE_COLUMNS = tables.DECLARED["duke"]  # {ours: (IDC's column, {value: meaning, or None})}
_BIRTH = "demographics_date_of_birth_days"  # counted from the diagnosis, hence negative
_KEPT = ("menopause", "ER", "PR", "bilateral", "field_strength_T", "manufacturer", "scanner")
_PLACEHOLDERS = ("na", "n/a", "nan", "nc", "np")  # not available, not collected, not performed


def read_duke_clinical(path: Path, codes: Mapping[str, Mapping[Any, Any]], bilateral: str) -> pd.DataFrame:
    """IDC's clinical table of Duke, CSV or parquet → one row per patient in BreastDCEDL's columns.

    codes: {a key of DUKE_COLUMNS: {value: meaning}}, beside or instead of those there: {"HER2": {2: 0}} counts
    an equivocal HER2 as negative.  A value without a meaning is a ValueError that counts all values of its column.
    bilateral: "out" leaves cancers of both breasts out, because the masks show the tumours of either side and HER2
    is that of one; "in" keeps them, with the receptors of the side that was annotated.

    pid, dataset, HER2, HR (1 where ER or PR is positive, 0 where both are negative), age (years, at diagnosis),
    menopause (pre | post); besides, ER, PR, bilateral (1 yes), side (L | R), field_strength_T, manufacturer,
    scanner.  NA, NC, NP and blank are missing.  What only the images tell (n_times, spacing …) is NA.  `reason`
    says why a patient is out: HER2 unknown or equivocal, a bilateral cancer, or not stated whether it is one.
    """
    if bilateral not in ("in", "out"):
        raise ValueError(f"bilateral={bilateral!r}: expected in or out")
    if unknown := set(codes) - set(DUKE_COLUMNS):
        raise ValueError(f"duke_codes: found {sorted(unknown)}, expected some of {[*DUKE_COLUMNS]}")
    table = tables.by_patient(tables.read_idc_table(path), "dicom_patient_id", collections()["duke"].pattern, path)
    tables.need_columns(table, [_BIRTH, *(column for column, _ in DUKE_COLUMNS.values())], path)
    table = table.map(lambda cell: None if str(cell).lower() in _PLACEHOLDERS else cell)
    told = {name: _told(table, name, codes.get(name) or {}, path) for name in DUKE_COLUMNS}
    youngest, oldest = (-365.25 * years for years in TABLE_RULES["age"][:2])
    days = tables.numbers_within(table[_BIRTH], path, (oldest, youngest, False, True))
    found = known_only(table.index, "duke", HER2=told["HER2"], age=-days / 365.25)
    found["HR"] = (told["ER"].eq(1) | told["PR"].eq(1)).astype("Int64")  # unknown or positive is positive
    found["side"] = told["side_annotated"].fillna(told["tumor_location"])
    found = found.assign(**{name: told[name] for name in _KEPT})
    found["reason"] = _reasons(found, table[DUKE_COLUMNS["HER2"][0]].notna(), bilateral)
    return found.rename_axis("pid").reset_index()


def _told(table, name, own, path):
    """One of DUKE_COLUMNS: Int64, float or text, as its meanings are; a meaning also stands for itself."""
    column, usual = DUKE_COLUMNS[name]
    known = {meaning: meaning for meaning in usual.values() if meaning is not None} | usual
    meanings = tables.declared_meanings(known, usual.values(), name)
    meanings |= tables.declared_meanings(own, usual.values(), f"duke_codes: {name}")
    remedy = f"; look in the collection's legend and declare each under duke_codes: {name}"
    kind = {int: "Int64", float: float, str: object}[type(next(iter(usual.values())))]
    return tables.translated(table[column], meanings, path, remedy).astype(kind)


def _reasons(found, measured, bilateral):
    """Why each patient is out, "" for the others.  measured: whether the table has any HER2."""
    reasons = {"HER2 equivocal": found["HER2"].isna() & measured, "HER2 unknown": found["HER2"].isna()}
    if bilateral == "out":
        reasons["bilateral cancer"] = found["bilateral"].eq(1).fillna(False).astype(bool)
        reasons["bilateral cancer not stated"] = found["bilateral"].isna()
    return np.select([*reasons.values()], [*reasons], "")
