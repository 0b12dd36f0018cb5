"""Who is HER2-positive: BreastDCEDL's tables and the archives' clinical sheets → frames in the study's columns.

BreastDCEDL (Sci Data 13, 264, 2026) publishes one table of all cohorts; its repository has an older one of
I-SPY2.  The clinical sheets of The Cancer Imaging Archive (TCIA) say the same again, so that a mismatch can be
found, and are the only source for AMBL (Advanced-MRI-Breast-Lesions).  Nothing is mended: a value that cannot
be is a ValueError with file, patient, column, what was found and what was expected.  Unknown is NA.

Every sheet's frame has `suffix`, the digits that end a patient's identifier: I-SPY2's sheet has no more.
"""

import csv
import re
import zipfile
from pathlib import Path

import pandas as pd

from her2core.cohorts import manifest

PATIENT = manifest.COLUMNS["patient"][1]  # an identifier becomes a folder's name
DATASETS = {"ISPY2-": "spy2", "ACRIN-6698-": "spy2", "ISPY1_": "spy1", "Breast_MRI_": "duke"}  # by identifier
UNUSED = "duke"
SUFFIX = r"([0-9]+)$"
NUMBERS = {  # smallest, largest, whole number?, may be missing?
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
OPTIONAL = ("menopause", "mask_count", "tum_vol")  # one of the published forms lacks the column
PHASES = ["pre", "post_early", "post_late"]
MENOPAUSE = {0: "pre", 1: "post"}
ISPY1_SHEET = "TCIA Patient Clinical Subset"
HRHER4G = {  # of the IDC's clinical table: HR, HER2
    "HR + / HER2 +": (1, 1),
    "HR + / HER2 -": (1, 0),
    "HR - / HER2 +": (0, 1),
    "HR - / HER2 - (TN)": (0, 0),
}
AMBL_PATIENT = "AMBL-[0-9]{3}"
LESIONS, LESIONS_WITH_RECEPTORS = range(1, 7), range(1, 4)
LESION_TEXTS = {"ER": "er[sii]", "PR": "pr[sii]", "grade": "grade", "triple_negative": "istn"}
POSITION = r"(?P<laterality>[LR])(?P<slice_coord>[+-]?[0-9]+(?:\.[0-9]+)?)"
NO_HER2 = "no malignant lesion with HER2 known"
DISCORDANT = "two malignant lesions with different HER2"


def read_csv(path):
    """A CSV as text, empty cells as missing; every row must have all cells, so that a cut-off file is noticed."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {number}: expected {len(header)} values, found {len(row)}")
    return pd.DataFrame(rows, columns=header, dtype=object).replace("", None)


def read_sheet(path, sheet=0, header=0):
    """A sheet of an .xlsx file as text, without its blank rows; header: row of the headings, from 0."""
    try:
        with pd.ExcelFile(path, engine="openpyxl") as book:
            if isinstance(sheet, str) and sheet not in book.sheet_names:
                raise ValueError(f"{path}: expected a sheet {sheet!r}, found {book.sheet_names}")
            table = pd.read_excel(book, sheet_name=sheet, header=header, dtype=object)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path}: expected an .xlsx spreadsheet, found something else ({error})") from error
    table = table.dropna(how="all")
    return table.map(plain_text).set_axis([str(c) for c in table.columns], axis=1)


def plain_text(cell):
    """A cell as text: 1.0 and "1 " are "1"; missing stays missing."""
    if pd.isna(cell):
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip() or None


def need(table, columns, path):
    """Raise ValueError unless the table has rows and every column exactly once."""
    found = list(table.columns)
    if missing := [c for c in columns if found.count(c) != 1]:
        raise ValueError(f"{path}: expected one column each of {', '.join(missing)}; found {', '.join(found)}")
    if table.empty:
        raise ValueError(f"{path}: no rows")


def by_patient(table, column, pattern, path):
    """The table with its identifiers as index; each must match `pattern` and stand there once."""
    need(table, [column], path)
    good = table[column].map(lambda text: isinstance(text, str) and bool(re.fullmatch(pattern, text)))
    if not good.all():
        found = quoted(table.loc[~good, column].iloc[0])
        raise ValueError(f"{path}: {column} cannot be {found}, expected {pattern}")
    if table[column].duplicated().any():
        patient = table.loc[table[column].duplicated(), column].iloc[0]
        raise ValueError(f"{path}: {patient}: expected one row, found {(table[column] == patient).sum()}")
    return table.set_index(column)


def quoted(value):
    return "missing" if pd.isna(value) else repr(str(value))


def refuse(bad, found, column, expected, path):
    """Raise ValueError for the first patient of whom `bad` is true, if there is one."""
    if bad.any():
        patient = bad.index[bad][0]
        value = quoted(found[patient])
        raise ValueError(f"{path}: {patient}: {column} is {value}, expected {expected}; {bad.sum()} such")


def numbers(texts, path, rule):
    """A column of text, indexed by patient → Int64 or float, each value within its rule of NUMBERS."""
    low, high, whole, gaps = rule
    found = pd.to_numeric(texts, errors="coerce").astype(float)
    right = found.between(low, high) & (found.mod(1).eq(0) | (not whole))
    expected = f"{'a whole number' if whole else 'a number'} from {low} to {high}"
    refuse(~right & ~(texts.isna() & gaps), texts, texts.name, expected, path)
    return found.astype("Int64") if whole else found


def datasets(table, path):
    """spy1, spy2 or duke by identifier; a column `dataset` must say the same (one public copy's does not)."""
    prefixes = table.index.to_series().str.extract(f"^({'|'.join(DATASETS)})")[0]
    refuse(prefixes.isna(), table.index.to_series(), "pid", f"one that begins with {list(DATASETS)}", path)
    found = prefixes.map(DATASETS)
    if "dataset" in table:
        named = table["dataset"]
        refuse(named.ne(found) | named.isna(), named, "dataset", "the one of the identifier", path)
    return found


def check_phases(table, path):
    """All three phases are named or none; pre before early, late not before early, all within the series."""
    named = table[PHASES].notna()
    some = named.any(axis=1) & ~named.all(axis=1)
    shown = table[PHASES].apply(lambda row: ", ".join(map(str, row)), axis=1)
    refuse(some, shown, "pre, post_early, post_late", "three phases or none", path)
    early, late = table["post_early"], table["post_late"]
    wrong = (table["pre"] >= early) | (early > late) | (late >= table["n_times"])
    expected = "pre < early ≤ late < n_times"
    refuse(wrong.fillna(False).astype(bool), shown, "pre, post_early, post_late", expected, path)


def read_breastdcedl(path):
    """BreastDCEDL's table → the I-SPY patients: pid, dataset (spy1 | spy2) and the columns of NUMBERS.

    Either the release's `BreastDCEDL_metadata*.csv` (all cohorts; Duke's rows are dropped) or the repository's
    table of I-SPY2, which spells HER2 as HER2pos, has no split for 5 patients and no phases for 45; its MP is
    MammaPrint's risk, not menopause.  The two do not hold the same split: pin the file.

    test: 0 train, 1 test, 2 validation.  HER2, HR: 1 positive.  menopause: pre | post.  Phases are acquisition
    indices from 0; ISPY1_1139's early phase is also its late one.  slice_thick, xy_spacing: mm; mask_start and
    mask_end: first and last slice with tumour; mask_count: voxels; tum_vol: mm³.  In the MinCrop table n_xy,
    mask_start and mask_end belong to the cropped files, and n_z counts only slices with tumour.
    """
    table = read_csv(path)
    theirs = {c: c for c in NUMBERS} | {"HER2": "HER2" if "HER2" in table else "HER2pos"}
    need(table, [spelling for ours, spelling in theirs.items() if ours not in OPTIONAL], path)
    table = by_patient(table, "pid", PATIENT, path)
    dataset = datasets(table, path)
    table = table[dataset != UNUSED].reindex(columns=list(theirs.values()))
    if table.empty:
        raise ValueError(f"{path}: expected patients of I-SPY, found only {UNUSED}")
    table = pd.DataFrame({c: numbers(table[theirs[c]], path, rule) for c, rule in NUMBERS.items()})
    check_phases(table, path)
    refuse(table["mask_start"] > table["mask_end"], table["mask_start"], "mask_start", "at most mask_end", path)
    table["menopause"] = table["menopause"].astype(object).map(MENOPAUSE)
    table.insert(0, "dataset", dataset[table.index])
    return table.reset_index(names="pid")


def breastdcedl_phases(n_times):
    """(pre, early, late) as acquisition indices by the data paper's rule for I-SPY: 0, 2, the last but at most 6.

    The tables do not quite follow it (Sci Data 13, 264, 2026, as others quote it).  Of the 937 I-SPY2 patients
    whose phases the repository's table names, the rule gives the same three for 617 (66 %) and the same first
    two for 935; 315 of the 320 others have phase 5 as late.  ValueError below 4, where early would be late:
    the release names 0, 1, 2 for most I-SPY1 patients with three phases.
    """
    if n_times < 4:
        raise ValueError(f"n_times is {n_times}, expected at least 4: early and late would be the same phase")
    return 0, 2, min(n_times - 1, 6)


def labels(table, columns, path):
    """{our column: the sheet's} → frame of suffix and these columns, checked."""
    need(table, columns.values(), path)
    found = {ours: numbers(table[theirs], path, NUMBERS[ours]) for ours, theirs in columns.items()}
    return pd.DataFrame(found).reset_index(names="suffix")


def read_ispy2_clinical(path):
    """TCIA's `ISPY2-Imaging-Cohort-1-Clinical-Data.xlsx` (I-SPY2 and ACRIN-6698) → suffix, HER2, HR, age."""
    table = by_patient(read_sheet(path), "Patient_ID", "[0-9]{6}", path)
    return labels(table, {"HER2": "HER2", "HR": "HR", "age": "Age_at_Screening"}, path)


def read_ispy1_clinical(path):
    """TCIA's `I-SPY-1-All-Patient-Clinical-and-Outcome-Data.xlsx` → suffix, HER2, HR, age.

    Her2MostPos and HR Pos are 0 negative, 1 positive; every other number means unknown.
    """
    columns = {"HER2": "Her2MostPos", "HR": "HR Pos"}
    table = by_patient(read_sheet(path, ISPY1_SHEET), "SUBJECTID", "[0-9]{4}", path)
    need(table, columns.values(), path)
    for column in columns.values():
        code = numbers(table[column], path, (-999, 999, True, True))
        table[column] = table[column].where(code.isin((0, 1)))
    return labels(table, columns | {"age": "age"}, path)


def read_ispy2_idc(path):
    """The IDC's clinical table of I-SPY2 or ACRIN-6698, .csv or .parquet → suffix, HER2, HR from `hrher4g`."""
    pattern = "|".join(f"{prefix}[0-9]{{6}}" for prefix, name in DATASETS.items() if name == "spy2")
    table = by_patient(read_idc(Path(path)), "dicom_patient_id", pattern, path)
    need(table, ["hrher4g"], path)
    status = table["hrher4g"]
    refuse(status.notna() & ~status.isin(list(HRHER4G)), status, "hrher4g", f"one of {list(HRHER4G)}", path)
    hr, her2 = ({text: both[i] for text, both in HRHER4G.items()} for i in (0, 1))
    found = {"suffix": suffixes(table.index), "HER2": status.map(her2), "HR": status.map(hr)}
    return pd.DataFrame(found).astype({"HER2": "Int64", "HR": "Int64"}).reset_index(drop=True)


def read_idc(path):
    """A clinical table as text.  Parquet needs pyarrow; pickles are not read."""
    if path.suffix == ".csv":
        return read_csv(path).replace("NA", None)
    if path.suffix != ".parquet":
        raise ValueError(f"{path}: expected .csv or .parquet")
    try:
        return pd.read_parquet(path, engine="pyarrow").map(plain_text).replace("NA", None)
    except ImportError as error:
        raise ValueError(f"{path}: reading parquet needs the package pyarrow; a .csv does not") from error


def suffixes(identifiers):
    """The digits that end each identifier."""
    return pd.Series(identifiers, dtype=object).str.extract(SUFFIX)[0].to_numpy()


def heading(text):
    """A heading of AMBL's sheet without case, blanks and the `ID#` that some have."""
    return "".join(text.lower().split()).replace("id#", "")


def read_ambl_clinical(path, her2):
    """TCIA's `Advanced-MRI-Breast-Lesions-DA-Clinical-*.xlsx` → one row per lesion.

    her2: what each value of the columns HER2 [SII] means, {value: 1 positive, 0 negative, None equivocal}, such
    as {"neg": 0, "pos": 1}; case does not count.  It has no default: the column mixes staining intensities and
    words, public projects read it in opposite ways, and only the sheet's legend can say.  A value that is not
    in it is a ValueError that quotes all such; so is a HER2-positive lesion that isTN calls triple-negative,
    the sign of codes the wrong way round.

    patient, lesion (1 to 6), laterality (L | R), slice_coord (mm, the slice's DICOM SliceLocation), malignant
    (1 yes, 0 benign), HER2; ER, PR, grade, triple_negative as the sheet spells them.  Receptors stand there
    for lesions 1 to 3 only.  Blank and -1 are missing.  A lesion without any of these has no row, except the
    first, so that every patient is there.

    Headings are compared without case and blanks: the sheet has `HER2 [SII] 2` but `HER [SII] 3`, `PR  [%] 2`.
    A lesion's place is one column `pos1` ("R12.34"), or `laterality lesion1` and `slice coord lesion1`.
    """
    table = read_sheet(path, header=1)
    table = table.set_axis([heading(c) for c in table.columns], axis=1).replace("-1", None)
    table = by_patient(table, "patientid", AMBL_PATIENT, path)
    lesions = pd.concat([lesion(table, number, path) for number in LESIONS], ignore_index=True)
    lesions["HER2"] = her2_status(lesions, her2, path)
    known = lesions.drop(columns=["patient", "lesion"]).notna().any(axis=1)
    return lesions[known | (lesions["lesion"] == 1)].sort_values(["patient", "lesion"], ignore_index=True)


def lesion(table, number, path):
    """Lesion `number` of every patient, HER2 still as the sheet spells it."""
    receptors = number in LESIONS_WITH_RECEPTORS
    spelling = f"her2[sii]{number}" if f"her2[sii]{number}" in table else f"her[sii]{number}"
    texts = {"HER2": spelling} | {ours: f"{theirs}{number}" for ours, theirs in LESION_TEXTS.items()}
    need(table, [f"tumor/benign{number}", *(texts.values() if receptors else ())], path)
    found = place(table, number, path)
    found["malignant"] = numbers(table[f"tumor/benign{number}"], path, (0, 1, True, True))
    for ours, theirs in texts.items():
        found[ours] = table[theirs] if receptors else None
    found.insert(0, "lesion", number)
    return found.reset_index(names="patient")


def place(table, number, path):
    """Laterality and slice of lesion `number`, from whichever of the two spellings the sheet has."""
    position, side, slice_coord = f"pos{number}", f"lateralitylesion{number}", f"slicecoordlesion{number}"
    if position in table:
        texts = table[position].str.replace(" ", "").str.upper()
        found = texts.str.extract(f"^{POSITION}$")
        wrong = found["laterality"].isna() & texts.notna()
        refuse(wrong, table[position], position, "a side and a coordinate like R12.34", path)
        return found.astype({"slice_coord": float})
    need(table, [side, slice_coord], path)
    sides = table[side].str.upper().str[:1]
    refuse(table[side].notna() & ~sides.isin(("L", "R")), table[side], side, "left or right", path)
    coordinates = numbers(table[slice_coord], path, (-1000, 1000, False, True))
    return pd.DataFrame({"laterality": sides, "slice_coord": coordinates})


def her2_status(lesions, her2, path):
    """What the sheet's values of HER2 [SII] mean by the caller's codes."""
    codes = {plain_text(value).lower(): status for value, status in her2.items()}
    if wrong := {s for s in codes.values() if s not in (0, 1, None)}:
        raise ValueError(f"her2 must map to 1, 0 or None, found {wrong}")
    values = lesions["HER2"].str.lower()
    if unmapped := values[~values.isin(list(codes)) & values.notna()].value_counts().sort_index().to_dict():
        raise ValueError(f"{path}: HER2 [SII] has values (and counts) {unmapped}, expected one of {sorted(codes)}")
    status = values.map(codes).astype("Int64")
    wrong = status.eq(1).fillna(False).astype(bool) & lesions["triple_negative"].eq("1")
    names = lesions["patient"] + " lesion " + lesions["lesion"].astype(str)
    shown = lesions["HER2"].set_axis(names)
    expected = "a value that means negative, for isTN is 1"
    refuse(wrong.set_axis(names), shown, "HER2 [SII]", expected, path)
    return status


def index_lesion(lesions):
    """AMBL's lesions → (the malignant ones with HER2 known, the patients in BreastDCEDL's columns).

    A patient counts once, with the HER2 on which all their malignant lesions of known HER2 agree; else HER2 is
    NA and `reason` says why.  What only the images tell (n_times, spacing …) is NA, so are HR, age, menopause.
    """
    known = lesions[lesions["malignant"].eq(1).fillna(False).astype(bool) & lesions["HER2"].notna()]
    patients = pd.Index(lesions["patient"].unique(), name="pid")
    spread = known.groupby("patient")["HER2"].agg(["min", "max"]).reindex(patients)
    discordant = (spread["min"] != spread["max"]).fillna(False).astype(bool)
    table = pd.DataFrame(index=patients, columns=["dataset", *NUMBERS])
    table = table.astype({c: "Int64" if whole else float for c, (_, _, whole, _) in NUMBERS.items()})
    table = table.assign(dataset="ambl", menopause=None, HER2=spread["min"].mask(discordant), reason="")
    table.loc[spread["min"].isna(), "reason"] = NO_HER2
    table.loc[discordant, "reason"] = DISCORDANT
    return known.reset_index(drop=True), table.reset_index()


def agreement(table, clinical):
    """Patients whose HER2 differs between BreastDCEDL's table and a clinical sheet: pid, HER2, HER2_clinical.

    Empty where all that both know agree.  ValueError if they have no patient in common: then nothing was
    compared.
    """
    ours = table[["pid", "HER2"]].assign(suffix=suffixes(table["pid"]))
    both = ours.merge(clinical[["suffix", "HER2"]], on="suffix", suffixes=("", "_clinical"), validate="1:1")
    if both.empty:
        raise ValueError(f"no patient in common: {ours['suffix'].iloc[0]} … and {clinical['suffix'].iloc[0]} …")
    differs = (both["HER2"] != both["HER2_clinical"]).fillna(False).astype(bool)
    return both.loc[differs, ["pid", "HER2", "HER2_clinical"]].reset_index(drop=True)
