"""Whose cancer is HER2-positive in Duke-Breast-Cancer-MRI (10.7937/tcia.e3sv-re93): IDC's clinical table → frame.

IDC's table `duke_breast_cancer_mri_clinical` is the collection's own sheet, with its codes.  For a cancer of both
breasts it has columns "for the other side", which are never read.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from her2core.cohorts.labels import TABLE_RULES
from her2core.cohorts.tables import by_patient, need_columns, numbers_within, plain_text, read_idc_table

_DUKE_ID = "Breast_MRI_[0-9]{3}"
_TUMOUR, _SCAN = "tumor_characteristics_", "mri_technical_information_"
_BIRTH = "demographics_date_of_birth_days"  # counted from the diagnosis, hence negative
_STATUS = {0: 0, 1: 1, 2: None}  # negative, positive, equivocal
_SIDE = {"L": "L", "R": "R"}
_SCANNERS = "Avanto, Optima MR450w, SIGNA EXCITE, SIGNA HDx, SIGNA HDxt, Skyra, Trio, TrioTim".split(", ")
DUKE_COLUMNS = {  # IDC's column, and by the sheet's legend, as public projects quote it, {value: meaning, or None}
    "ER": (f"{_TUMOUR}er", _STATUS),
    "PR": (f"{_TUMOUR}pr", _STATUS),
    "HER2": (f"{_TUMOUR}her2", _STATUS),
    "menopause": ("demographics_menopause_at_diagnosis", {0: "pre", 1: "post", 2: None}),
    "bilateral": (f"{_TUMOUR}bilateral_information_bilateral_breast_cancer", {0: 0, 1: 1}),
    "side_annotated": (f"{_TUMOUR}side_annotated", _SIDE),
    "tumor_location": (f"{_TUMOUR}tumor_location", _SIDE),
    "field_strength_T": (f"{_SCAN}field_strength_tesla", {0: 1.494, 1: 1.5, 2: 2.8936, 3: 3.0}),
    "manufacturer": (f"{_SCAN}manufacturer", {0: "GE MEDICAL SYSTEMS", 1: "MPTronic software", 2: "SIEMENS"}),
    "scanner": (f"{_SCAN}manufacturer_model_name", dict(enumerate(_SCANNERS))),
}
_KEPT = ("menopause", "ER", "PR", "bilateral", "field_strength_T", "manufacturer", "scanner")
_PLACEHOLDERS = ("na", "n/a", "nan", "nc", "np")  # not available, not collected, not performed


def read_duke_clinical(
    path: Path, codes: Mapping[str, Mapping[Any, Any]] = MappingProxyType({}), bilateral: str = "out"
) -> pd.DataFrame:
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
    meanings = _meanings(codes)
    table = by_patient(read_idc_table(path), "dicom_patient_id", _DUKE_ID, path)
    need_columns(table, [_BIRTH, *(column for column, _ in DUKE_COLUMNS.values())], path)
    table = table.map(lambda cell: None if str(cell).lower() in _PLACEHOLDERS else cell)
    told = {c: _decoded(table[column], c, meanings[c], path) for c, (column, _) in DUKE_COLUMNS.items()}
    found = pd.DataFrame(index=table.index, columns=["dataset", *TABLE_RULES])
    found = found.astype({c: "Int64" if whole else float for c, (_, _, whole, _) in TABLE_RULES.items()})
    found = found.assign(dataset="duke", HER2=told["HER2"], age=_age(table[_BIRTH], path))
    found["HR"] = (told["ER"].eq(1) | told["PR"].eq(1)).astype("Int64")  # unknown or positive is positive
    found["side"] = told["side_annotated"].fillna(told["tumor_location"])
    found = found.assign(**{name: told[name] for name in _KEPT})
    found["reason"] = _reasons(found, table[DUKE_COLUMNS["HER2"][0]].notna(), bilateral)
    return found.rename_axis("pid").reset_index()


def _key(value):
    """A value as the table may spell it: 1, 1.0 and "1" are one."""
    return str(plain_text(value)).lower()


def _meanings(codes):
    """{column: {value: meaning}} of all columns, with the caller's; a meaning also stands for itself."""
    if unknown := set(codes) - set(DUKE_COLUMNS):
        raise ValueError(f"duke_codes: found {sorted(unknown)}, expected some of {[*DUKE_COLUMNS]}")
    found = {}
    for name, (_, usual) in DUKE_COLUMNS.items():
        own, allowed = codes.get(name) or {}, [*dict.fromkeys([*usual.values(), None])]
        wrong = [m for m in own.values() if isinstance(m, bool) or m not in allowed]
        if wrong or len({_key(value) for value in own}) < len(own):
            expected = f"each value once, with one of {allowed}"
            raise ValueError(f"duke_codes: {name}: expected {expected}, found {dict(own)}")
        pairs = [(m, m) for m in allowed if m is not None] + [*usual.items(), *own.items()]
        found[name] = {_key(value): meaning for value, meaning in pairs}
    return found


def _decoded(texts, name, meanings, path):
    """A column of text as what its values mean: Int64, float or text, as they are."""
    keys = texts.astype(object).str.lower()
    if unlisted := sorted(set(keys.dropna()) - set(meanings)):
        found = f"values without a meaning: {', '.join(unlisted)} (all: {texts.value_counts().to_dict()})"
        how = f"look in the collection's legend and declare each under duke_codes: {name}"
        raise ValueError(f"{path}: {texts.name} has {found}, expected {', '.join(meanings)}; {how}")
    kind = type(next(iter(DUKE_COLUMNS[name][1].values())))
    return keys.map(meanings).astype({int: "Int64", float: float, str: object}[kind])


def _age(days, path):
    """Years at diagnosis, from the days between diagnosis and birth."""
    youngest, oldest, *_ = TABLE_RULES["age"]
    return -numbers_within(days, path, (-365.25 * oldest, -365.25 * youngest, False, True)) / 365.25


def _reasons(found, measured, bilateral):
    """Why each patient is out, "" for the others.  measured: whether the table has any HER2."""
    reasons = {"HER2 equivocal": found["HER2"].isna() & measured, "HER2 unknown": found["HER2"].isna()}
    if bilateral == "out":
        reasons["bilateral cancer"] = found["bilateral"].eq(1).fillna(False).astype(bool)
        reasons["bilateral cancer not stated"] = found["bilateral"].isna()
    return np.select([*reasons.values()], [*reasons], "")
