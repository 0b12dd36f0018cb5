"""Who is HER2-positive: BreastDCEDL's tables and AMBL's clinical sheet → frames in the study's columns.

BreastDCEDL (Sci Data 13, 264, 2026) publishes one table of all cohorts; its repository has an older one of I-SPY2.
For AMBL (Advanced-MRI-Breast-Lesions) the sheet at The Cancer Imaging Archive (TCIA) is the only source.  Nothing
is corrected: an impossible value is a ValueError with file, patient, column, what was found and what was expected.
Unknown is NA.
"""

import csv
import re
import zipfile
from pathlib import Path

import pandas as pd

from her2core.formats.volume import PHASE_COLUMNS
from her2core.records import PATIENT_ID

_DATASETS = {"ISPY2-": "spy2", "ACRIN-6698-": "spy2", "ISPY1_": "spy1", "Breast_MRI_": "duke"}  # by identifier
_UNUSED = "duke"
_NUMBERS = {  # smallest, largest, whole number?, may be missing?
    "test": (0, 2, True, True),
    "HER2": (0, 1, True, True),
    "HR": (0, 1, True, True),
    "age": (18, 110, False, True),  # years; both trials were of adults
    "menopause": (0, 1, True, True),
    "n_xy": (1, 4096, True, False),
    "n_z": (1, 4096, True, False),
    "n_times": (1, 100, True, False),
    "pre": (0, 99, True, True),
    "post_early": (0, 99, True, True),
    "post_late": (0, 99, True, True),
    "slice_thick": (0.1, 20, False, False),  # mm
    "xy_spacing": (0.1, 20, False, True),  # mm
    "mask_start": (0, 4095, True, False),
    "mask_end": (0, 4095, True, False),
    "mask_count": (0, 4096**3, True, True),  # voxels
    "tum_vol": (0, 1e8, False, True),  # mm³
}
_OPTIONAL = ("menopause", "mask_count", "tum_vol")  # one of the published forms lacks the column
_PHASES = list(PHASE_COLUMNS)
_LESIONS, _LESIONS_WITH_RECEPTORS = range(1, 7), range(1, 4)
_LESION_TEXTS = {"ER": "er[sii]", "PR": "pr[sii]", "grade": "grade", "triple_negative": "istn"}
_NO_HER2 = "no malignant lesion with HER2 known"
_DISCORDANT = "two malignant lesions with different HER2"


def _read_csv(path):
    """A CSV as text, empty cells as missing; every row must have all cells, so that a cut-off file is noticed."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {number}: expected {len(header)} values, found {len(row)}")
    return pd.DataFrame(rows, columns=header, dtype=object).replace("", None)


def _read_sheet(path):
    """AMBL's sheet as text without blank rows; headings without case, blanks and the `ID#` that some have."""
    try:
        table = pd.read_excel(path, header=1, dtype=object, engine="openpyxl").dropna(how="all")
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path}: expected an .xlsx spreadsheet, found something else ({error})") from error
    headings = ["".join(str(c).lower().split()).replace("id#", "") for c in table.columns]
    return table.map(_plain_text).set_axis(headings, axis=1)


def _plain_text(cell):
    """A cell as text: 1.0 and "1 " are "1"; missing stays missing."""
    if pd.isna(cell):
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip() or None


def _need(table, columns, path):
    """Raise ValueError unless the table has rows and every column exactly once."""
    found = list(table.columns)
    if missing := [c for c in columns if found.count(c) != 1]:
        raise ValueError(f"{path}: expected one column each of {', '.join(missing)}; found {', '.join(found)}")
    if table.empty:
        raise ValueError(f"{path}: found no rows, expected one per patient")


def _by_patient(table, column, pattern, path):
    """The table with its identifiers as index; each must match `pattern` and occur once."""
    _need(table, [column], path)
    good = table[column].map(lambda text: isinstance(text, str) and bool(re.fullmatch(pattern, text)))
    if not good.all():
        found = _quoted(table.loc[~good, column].iloc[0])
        raise ValueError(f"{path}: {column} cannot be {found}, expected {pattern}")
    if table[column].duplicated().any():
        patient = table.loc[table[column].duplicated(), column].iloc[0]
        raise ValueError(f"{path}: {patient}: expected one row, found {(table[column] == patient).sum()}")
    return table.set_index(column)


def _quoted(value):
    return "missing" if pd.isna(value) else repr(str(value))


def _refuse(bad, found, column, expected, path):
    """Raise ValueError for the first patient for whom `bad` is true, if there is one."""
    if bad.any():
        patient = bad.index[bad][0]
        value = _quoted(found[patient])
        raise ValueError(f"{path}: {patient}: {column} is {value}, expected {expected}; {bad.sum()} such")


def _numbers(texts, path, rule):
    """A column of text, indexed by patient → Int64 or float, each value within its rule of `_NUMBERS`."""
    low, high, whole, gaps = rule
    found = pd.to_numeric(texts, errors="coerce").astype(float)
    right = found.between(low, high) & (found.mod(1).eq(0) | (not whole))
    expected = f"{'a whole number' if whole else 'a number'} from {low} to {high}"
    _refuse(~right & ~(texts.isna() & gaps), texts, texts.name, expected, path)
    return found.astype("Int64") if whole else found


def _datasets(table, path):
    """spy1, spy2 or duke by identifier; a column `dataset` must agree (in one public copy it does not)."""
    prefixes = table.index.to_series().str.extract(f"^({'|'.join(_DATASETS)})")[0]
    _refuse(prefixes.isna(), table.index.to_series(), "pid", f"one that begins with {list(_DATASETS)}", path)
    found = prefixes.map(_DATASETS)
    if "dataset" in table:
        named = table["dataset"]
        _refuse(named.ne(found) | named.isna(), named, "dataset", "the one of the identifier", path)
    return found


def _check_phases(table, path):
    """All three phases are named or none is; pre < early ≤ late, all within the series."""
    named = table[_PHASES].notna()
    some = named.any(axis=1) & ~named.all(axis=1)
    shown = table[_PHASES].apply(lambda row: ", ".join(map(str, row)), axis=1)
    _refuse(some, shown, "pre, post_early, post_late", "three phases or none", path)
    early, late = table["post_early"], table["post_late"]
    wrong = (table["pre"] >= early) | (early > late) | (late >= table["n_times"])
    expected = "pre < early ≤ late < n_times"
    _refuse(wrong.fillna(False).astype(bool), shown, "pre, post_early, post_late", expected, path)


def read_breastdcedl_table(path: Path) -> pd.DataFrame:
    """BreastDCEDL's table → the I-SPY patients: pid, dataset (spy1 | spy2) and the columns of `_NUMBERS`.

    Either the release's `BreastDCEDL_metadata*.csv` (all cohorts; Duke's rows are dropped) or the repository's
    table of I-SPY2, which spells HER2 as HER2pos, has no split for 5 patients and no phases for 45; its MP is
    MammaPrint's risk, not menopause.  The two do not have the same split: a study has to keep to one of them.

    test: 0 train, 1 test, 2 validation.  HER2, HR: 1 positive.  menopause: pre | post.  Phases are acquisition
    indices from 0; ISPY1_1139's early phase is also its late one.  slice_thick, xy_spacing: mm; mask_start and
    mask_end: first and last slice with tumour; mask_count: voxels; tum_vol: mm³.  In the MinCrop table n_xy,
    mask_start and mask_end belong to the cropped files, and n_z counts only slices with tumour.
    """
    table = _read_csv(path)
    theirs = {c: c for c in _NUMBERS} | {"HER2": "HER2" if "HER2" in table else "HER2pos"}
    _need(table, [spelling for ours, spelling in theirs.items() if ours not in _OPTIONAL], path)
    table = _by_patient(table, "pid", PATIENT_ID, path)
    dataset = _datasets(table, path)
    table = table[dataset != _UNUSED].reindex(columns=list(theirs.values()))
    if table.empty:
        raise ValueError(f"{path}: expected patients of I-SPY, found only {_UNUSED}")
    table = pd.DataFrame({c: _numbers(table[theirs[c]], path, rule) for c, rule in _NUMBERS.items()})
    _check_phases(table, path)
    _refuse(table["mask_start"] > table["mask_end"], table["mask_start"], "mask_start", "at most mask_end", path)
    table["menopause"] = table["menopause"].astype(object).map({0: "pre", 1: "post"})
    table.insert(0, "dataset", dataset[table.index])
    return table.reset_index(names="pid")


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


def read_ambl_clinical(path: Path, her2: dict[str, int | None]) -> pd.DataFrame:
    """TCIA's `Advanced-MRI-Breast-Lesions-DA-Clinical-*.xlsx` → one row per lesion.

    her2: what each value of the columns HER2 [SII] means, {value: 1 positive, 0 negative, None equivocal}, such
    as {"neg": 0, "pos": 1}; case does not count.  It has no default: the column mixes staining intensities and
    words, public projects read it in opposite ways, and only the sheet's legend can tell.  A value that has no
    meaning here is a ValueError that lists all such values; so is a HER2-positive lesion that isTN calls
    triple-negative, a sign that the meanings are swapped.

    patient, lesion (1 to 6), laterality (L | R), slice_coord (mm, the slice's DICOM SliceLocation), malignant
    (1 yes, 0 benign), HER2; ER, PR, grade, triple_negative as the sheet spells them.  Receptors are given for
    lesions 1 to 3 only.  Blank and -1 are missing.  A lesion without any of these has no row, except the first,
    so that every patient has one.

    Headings are compared without case and blanks: the sheet has `HER2 [SII] 2` but `HER [SII] 3`, `PR  [%] 2`.
    A lesion's place is one column `pos1` ("R12.34"), or `laterality lesion1` and `slice coord lesion1`.
    """
    table = _by_patient(_read_sheet(path).replace("-1", None), "patientid", "AMBL-[0-9]{3}", path)
    lesions = pd.concat([_lesion(table, number, path) for number in _LESIONS], ignore_index=True)
    lesions["HER2"] = _her2_status(lesions, her2, path)
    known = lesions.drop(columns=["patient", "lesion"]).notna().any(axis=1)
    return lesions[known | (lesions["lesion"] == 1)].sort_values(["patient", "lesion"], ignore_index=True)


def _lesion(table, number, path):
    """Lesion `number` of every patient, HER2 still as the sheet spells it."""
    receptors = number in _LESIONS_WITH_RECEPTORS
    spelling = f"her2[sii]{number}" if f"her2[sii]{number}" in table else f"her[sii]{number}"
    texts = {"HER2": spelling} | {ours: f"{theirs}{number}" for ours, theirs in _LESION_TEXTS.items()}
    _need(table, [f"tumor/benign{number}", *(texts.values() if receptors else ())], path)
    found = _place(table, number, path)
    found["malignant"] = _numbers(table[f"tumor/benign{number}"], path, (0, 1, True, True))
    for ours, theirs in texts.items():
        found[ours] = table[theirs] if receptors else None
    found.insert(0, "lesion", number)
    return found.reset_index(names="patient")


def _place(table, number, path):
    """Laterality and slice of lesion `number`, from whichever of the two spellings the sheet has."""
    position, side, slice_coord = f"pos{number}", f"lateralitylesion{number}", f"slicecoordlesion{number}"
    if position in table:
        texts = table[position].str.replace(" ", "").str.upper()
        found = texts.str.extract(r"^(?P<laterality>[LR])(?P<slice_coord>[+-]?[0-9]+(?:\.[0-9]+)?)$")
        wrong = found["laterality"].isna() & texts.notna()
        _refuse(wrong, table[position], position, "a side and a coordinate like R12.34", path)
        return found.astype({"slice_coord": float})
    _need(table, [side, slice_coord], path)
    sides = table[side].str.upper().str[:1]
    _refuse(table[side].notna() & ~sides.isin(("L", "R")), table[side], side, "left or right", path)
    coordinates = _numbers(table[slice_coord], path, (-1000, 1000, False, True))
    return pd.DataFrame({"laterality": sides, "slice_coord": coordinates})


def _her2_status(lesions, her2, path):
    """What the sheet's values of HER2 [SII] mean by the caller's codes."""
    codes = {_plain_text(value).lower(): status for value, status in her2.items()}
    if wrong := {s for s in codes.values() if s not in (0, 1, None)}:
        raise ValueError(f"her2 must map to 1, 0 or None, found {wrong}")
    values = lesions["HER2"].str.lower()
    if unmapped := values[~values.isin(list(codes)) & values.notna()].value_counts().sort_index().to_dict():
        raise ValueError(f"{path}: HER2 [SII] has values (and counts) {unmapped}, expected one of {sorted(codes)}")
    status = values.map(codes).astype("Int64")
    wrong = status.eq(1).fillna(False).astype(bool) & lesions["triple_negative"].eq("1")
    names = lesions["patient"] + " lesion " + lesions["lesion"].astype(str)
    expected = "a value that means negative, as isTN is 1"
    _refuse(wrong.set_axis(names), lesions["HER2"].set_axis(names), "HER2 [SII]", expected, path)
    return status


def index_lesion(lesions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AMBL's lesions → (the malignant ones with HER2 known, the patients in BreastDCEDL's columns).

    A patient counts once, with the HER2 on which all malignant lesions of known HER2 agree; otherwise HER2 is NA
    and `reason` says why.  What only the images tell (n_times, spacing …) is NA, and so are HR, age, menopause.
    """
    known = lesions[lesions["malignant"].eq(1).fillna(False).astype(bool) & lesions["HER2"].notna()]
    patients = pd.Index(lesions["patient"].unique(), name="pid")
    spread = known.groupby("patient")["HER2"].agg(["min", "max"]).reindex(patients)
    discordant = (spread["min"] != spread["max"]).fillna(False).astype(bool)
    table = pd.DataFrame(index=patients, columns=["dataset", *_NUMBERS])
    table = table.astype({c: "Int64" if whole else float for c, (_, _, whole, _) in _NUMBERS.items()})
    table = table.assign(dataset="ambl", menopause=None, HER2=spread["min"].mask(discordant), reason="")
    table.loc[spread["min"].isna(), "reason"] = _NO_HER2
    table.loc[discordant, "reason"] = _DISCORDANT
    return known.reset_index(drop=True), table.reset_index()
