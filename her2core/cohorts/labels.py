"""Who of I-SPY is HER2-positive: BreastDCEDL's tables and IDC's clinical tables → frames in one form.

BreastDCEDL (Sci Data 13, 264, 2026) publishes one table of all cohorts; its repository has an older one of I-SPY2.
The Imaging Data Commons (IDC) has clinical tables of its own.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from her2core.cohorts import tables
from her2core.cohorts.collections import collections
from her2core.formats.volume import PHASE_COLUMNS
from her2core.records import PATIENT_ID

TABLE_RULES = tables.DECLARED["breastdcedl"]  # of each column: smallest, largest, whole number?, may be missing?
_OPTIONAL = ("pCR", "menopause", "mask_count", "tum_vol")  # one of the published forms lacks the column
_PHASES = list(PHASE_COLUMNS)
_IDC_IDS = ("dicom_patient_id", "tcia_patient_id", "patient_id", "subjectid")
_IDC_COLUMNS = {"HR": ("hr", "hr_pos"), "HER2": ("her2", "her2mostpos")}  # as I-SPY2's table has it, or I-SPY1's
_STATUS = tables.DECLARED["status"]
_UNKNOWN = [text for text, known in _STATUS.items() if known is None]
_SIGN = r"\s*(\+|-|\?|pos|positive|neg|negative|unknown)\s*"


def _datasets(table, path):
    """The collection by identifier; a column `dataset` must agree (in one public copy it does not)."""
    patients, known = table.index.to_series(), collections()
    found = pd.Series(None, table.index, dtype=object)
    for name, collection in known.items():
        found[patients.str.fullmatch(collection.pattern)] = name
    tables.refuse(found.isna(), patients, "pid", f"one like {', '.join(c.pattern for c in known.values())}", path)
    if "dataset" in table:
        named = table["dataset"]
        tables.refuse(named.ne(found) | named.isna(), named, "dataset", "the one of the identifier", path)
    return found


def _check_phases(table, path):
    """All three phases are named or none is; pre < early ≤ late, all within the series."""
    named, columns = table[_PHASES].notna(), ", ".join(_PHASES)
    shown = table[_PHASES].apply(lambda row: ", ".join(map(str, row)), axis=1)
    tables.refuse(named.any(axis=1) & ~named.all(axis=1), shown, columns, "three phases or none", path)
    early, late = table["post_early"], table["post_late"]
    wrong = (table["pre"] >= early) | (early > late) | (late >= table["n_times"])
    tables.refuse(wrong, shown, columns, "pre < early ≤ late < n_times", path)


def read_breastdcedl_table(path: Path) -> pd.DataFrame:
    """BreastDCEDL's table → the I-SPY patients: pid, dataset (spy1 | spy2) and the columns of `TABLE_RULES`.

    Either the release's `BreastDCEDL_metadata*.csv` (all cohorts; Duke's rows are dropped) or the repository's
    table of I-SPY2, which spells HER2 as HER2pos, has no split for 5 patients and no phases for 45; its MP is
    MammaPrint's risk, not menopause.  The two do not have the same split: a study has to keep to one of them.

    test: 0 train, 1 test, 2 validation.  HER2, HR: 1 positive.  menopause: pre | post.  Phases are acquisition
    indices from 0; ISPY1_1139's early phase is also its late one.  slice_thick, xy_spacing: mm; mask_start and
    mask_end: first and last slice with tumour; mask_count: voxels; tum_vol: mm³.  In the MinCrop table n_xy,
    mask_start and mask_end belong to the cropped files, and n_z counts only slices with tumour.
    """
    table = tables.read_texts(path)
    theirs = {c: c for c in TABLE_RULES} | {"HER2": "HER2" if "HER2" in table else "HER2pos"}
    tables.need_columns(table, [spelling for ours, spelling in theirs.items() if ours not in _OPTIONAL], path)
    table = tables.by_patient(table, "pid", PATIENT_ID, path)
    dataset = _datasets(table, path)
    own = dataset.map(lambda name: collections()[name].labels == "breastdcedl")
    table = table[own].reindex(columns=list(theirs.values()))
    if table.empty:
        raise ValueError(f"{path}: expected patients of I-SPY, found only {', '.join(set(dataset))}")
    columns = {c: tables.numbers_within(table[theirs[c]], path, rule) for c, rule in TABLE_RULES.items()}
    table, first = pd.DataFrame(columns), columns["mask_start"]
    _check_phases(table, path)
    tables.refuse(first > table["mask_end"], first, "mask_start", "at most mask_end", path)
    table["menopause"] = table["menopause"].astype(object).map({0: "pre", 1: "post"})
    table.insert(0, "dataset", dataset[table.index])
    return table.reset_index(names="pid")


def known_only(patients: pd.Index, dataset: str, **known: Any) -> pd.DataFrame:
    """Patients of a collection of which only some of BreastDCEDL's columns are known, in all of them."""
    table = pd.DataFrame(index=patients, columns=["dataset", *TABLE_RULES])
    types = {c: "Int64" if whole else float for c, (_, _, whole, _) in TABLE_RULES.items()}
    return table.astype(types).assign(dataset=dataset, **known)


def breastdcedl_phases(n_times: int) -> tuple[int, int, int]:
    """(pre, early, late) as acquisition indices by the data paper's rule for I-SPY: 0, 2, the last but at most 6.

    The tables do not quite follow it (Sci Data 13, 264, 2026, as others quote it).  Of the 937 I-SPY2 patients
    whose phases the repository's table names, the rule gives the same three for 617 (66 %) and the same first
    two for 935; 315 of the 320 others have phase 5 as late.  ValueError below 4, where early would be late:
    the release names 0, 1, 2 for most I-SPY1 patients with three phases.
    """
    if n_times < 4:
        raise ValueError(f"n_times is {n_times}, expected at least 4: early and late would be the same phase")
    return 0, 2, min(n_times - 1, 6)


def read_idc_clinical(path: Path) -> pd.DataFrame:
    """A clinical table of I-SPY from IDC, CSV or parquet → pid, HR, HER2 (1 positive, 0 negative).

    Either `hrher4g` with texts like "HR + / HER2 -", as ACRIN-6698's, or a column each, as I-SPY2's `hr`, `her2`.
    Six digits alone become ISPY2-<digits>, although they may be ACRIN-6698's; four become ISPY1_<digits>.
    """
    table = tables.read_idc_table(path)
    column = next((c for c in _IDC_IDS if c in table), _IDC_IDS[0])
    digits = {r"^([0-9]{6})$": r"ISPY2-\1", r"^([0-9]{4})$": r"ISPY1_\1"}
    table = table.replace({column: digits}, regex=True)
    pattern = "|".join(collections()[name].pattern for name in ("spy2", "spy1"))
    table = tables.by_patient(table, column, pattern, path)
    if "hrher4g" in table:
        texts = table["hrher4g"].str.lower().str.replace("[−–]", "-", regex=True)
        parts = texts.str.extract(rf"^hr{_SIGN}[/,]?\s*her2{_SIGN}(?:\(tn\))?$").set_axis([*_IDC_COLUMNS], axis=1)
        unread = parts["HR"].isna() & texts.notna() & ~texts.isin(_UNKNOWN)
        tables.refuse(unread, table["hrher4g"], "hrher4g", "a text like HR + / HER2 -", path)
    else:
        names = [next((c for c in theirs if c in table), theirs[0]) for theirs in _IDC_COLUMNS.values()]
        tables.need_columns(table, names, path)
        parts = table[names].set_axis([*_IDC_COLUMNS], axis=1)
    found = parts.apply(tables.translated, meanings=_STATUS, path=path).astype("Int64")
    return found.rename_axis("pid").reset_index()


def check_against(table: pd.DataFrame, clinical: pd.DataFrame) -> dict[str, str]:
    """Patients of BreastDCEDL's table whose HER2, or else HR, is another in IDC's → {pid: what differs}."""
    # by number alone: ACRIN-6698 is a part of I-SPY2, with its numbers of six digits; those of I-SPY1 have four
    number = {"number": lambda frame: frame["pid"].str.extract("([0-9]+)$")[0]}
    both = table.assign(**number).merge(clinical.assign(**number), on="number", suffixes=("", "_idc"))
    found = {}
    for column in ("HR", "HER2"):
        differ = both[both[column] != both[f"{column}_idc"]]
        for pid, ours, idc in differ[["pid", column, f"{column}_idc"]].itertuples(index=False):
            found[pid] = f"{column} differs between tables: BreastDCEDL {ours}, IDC {idc}"
    return found
