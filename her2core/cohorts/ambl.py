"""Which lesions of AMBL (Advanced-MRI-Breast-Lesions) are HER2-positive: its clinical sheet → frames.

The sheet at The Cancer Imaging Archive (TCIA) is the only source.
"""

import json
import re
import zipfile
from collections.abc import Sequence
from io import BytesIO
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd

from her2core.cohorts import tables
from her2core.cohorts.collections import collections
from her2core.cohorts.labels import known_only
from her2core.formats.boundary import reading

# Limits of a workbook, before it takes memory: AMBL has 632 patients, and its sheet fewer than 200 columns
_MOST_BYTES = 20_000_000  # unpacked
_MOST_SHEETS, _MOST_ROWS, _MOST_COLUMNS = 50, 5_000, 500
_EXCELS_ROWS = 2**20  # blank ones do not count, as some programs format all of them
_UNSAVED = re.compile(rb'<c(?![^<>]*t="str")[^<>]*><f\b(?:[^<>]*/>|[^<]*</f>)(?:<v ?/>|<v></v>)?</c>')  # a formula
_LESIONS, _LESIONS_WITH_RECEPTORS = range(1, 7), range(1, 4)
_AMBL_COLUMNS = {"Patient ID": "patientid", "tumor/benign1": "tumor/benign1", "HER2 [SII]": r"her2?\[sii\][1-3]?"}
_INVASIVE, _HIGH_RISK, _BENIGN = tables.DECLARED["ambl"].values()
_PATHOLOGY = _INVASIVE | _HIGH_RISK | dict.fromkeys(_BENIGN, "benign")  # {code: what it is}
_NO_HER2 = "no malignant lesion with HER2 known"
_DISCORDANT = "two malignant lesions with different HER2"


def workbook(path: Path) -> dict[str, list[tuple]]:
    """{sheet: its rows that are not blank} of a workbook, of formulas the values; to be called within `reading`."""
    with open(path, "rb") as file:
        content = BytesIO(file.read(_MOST_BYTES))  # in memory, as a wrong place in it is no failure of the disk
    parts, sheets = zipfile.ZipFile(content), {}
    if (size := sum(part.file_size for part in parts.infolist())) > _MOST_BYTES:
        raise ValueError(f"{size:,} bytes unpacked, more than {_MOST_BYTES:,}")
    if any(_UNSAVED.search(parts.read(part)) for part in parts.infolist()):
        raise ValueError("a formula without its value, as programs save it that do not compute")
    for sheet in openpyxl.load_workbook(content, read_only=True, data_only=True).worksheets[: _MOST_SHEETS + 1]:
        sheet.reset_dimensions()  # what the file says of them need not be true
        rows = sheets[sheet.title] = []
        for row in islice(sheet.iter_rows(values_only=True), _EXCELS_ROWS):
            rows += [row] if any(cell is not None for cell in row) else []
            if len(sheets) > _MOST_SHEETS or len(rows) > _MOST_ROWS or len(row) > _MOST_COLUMNS:
                raise ValueError(f"more than {_MOST_SHEETS} sheets, {_MOST_ROWS} rows or {_MOST_COLUMNS} columns")
    return sheets


def _sheets(path):
    """Each sheet of a workbook: its name, its table of text, and what it lacks to be AMBL's.

    Headings, wherever they begin, without case, blanks and the `ID#` that some have.
    """
    try:
        with reading(path, "an .xlsx spreadsheet", "save it again, without a password"):
            sheets = workbook(path)
    except ValueError as error:
        yield None, None, str(error).removeprefix(f"{path}: ")
        return
    is_ambl = re.compile(collections()["ambl"].pattern).fullmatch
    for name, rows in sheets.items():
        cells = pd.DataFrame(zip(*zip_longest(*rows), strict=True), dtype=object)  # all rows as long as the longest
        texts = cells.map(lambda cell: "".join(str(cell).lower().split()).replace("id#", ""))
        hits = texts.map(re.compile("|".join(_AMBL_COLUMNS.values())).fullmatch).notna().sum(axis=1)
        first = int(hits.to_numpy().argmax()) if rows else 0
        headings = texts.iloc[first].tolist() if rows else []
        table = cells.iloc[first + 1 :].map(tables.plain_text).dropna(how="all").set_axis(headings, axis=1)
        lacks = [c for c, pattern in _AMBL_COLUMNS.items() if not any(re.fullmatch(pattern, h) for h in headings)]
        patients = table.loc[:, table.columns == "patientid"].astype(str).to_numpy().ravel()
        lacks += ["patients like AMBL-001"] * (not any(map(is_ambl, patients)))
        yield name, table, f"sheet {name} lacks {', '.join(lacks)}" if lacks else ""


def find_ambl_sheet(place: Path) -> tuple[Path, pd.DataFrame]:
    """AMBL's clinical sheet, in the workbook `place` or in that folder, known by its columns → its file, its table.

    ValueError where there is none, with what each file lacks, or more than one.
    """
    found, looked = [], []
    for path in [place] if place.is_file() else sorted(p for p in place.glob("[!.~]*") if p.is_file()):
        sheets = [*_sheets(path)]
        found += [(path, table, f"{path.name} ({name})") for name, table, lacks in sheets if not lacks]
        looked.append(f"{path.name}: {'; '.join(lacks for *_, lacks in sheets)}")
    if len(found) == 1:
        return found[0][:2]
    if found:
        names = ", ".join(name for *_, name in found)
        raise ValueError(f"{place}: {len(found)} sheets have the columns of AMBL's: {names}; keep one of them")
    looked = looked or ["no file in it" if place.is_dir() else "no such file or folder"]
    raise ValueError(
        f"{place}: no spreadsheet has AMBL's columns.  Download it from Advanced-MRI-Breast-Lesions at TCIA "
        "(10.7937/c7x1-yn57) into labels/.  Looked at: " + "; ".join(looked)
    )


def read_ambl_clinical(
    place: Path, her2: dict[str | int | float, Any], pathology_out: Sequence[int]
) -> pd.DataFrame:
    """AMBL's clinical sheet, where `find_ambl_sheet` finds it → one row per lesion.

    her2: what each value of the columns HER2 [SII] means, {value: 1 positive, 0 negative, None equivocal}.  It has
    no default: the column mixes staining intensities and words, public projects read it in opposite ways, and only
    the sheet's legend can tell.  A value without a meaning is a ValueError that counts all values and gives a block
    for params.yaml; so is a HER2-positive lesion that isTN calls triple-negative, a sign of swapped meanings.
    pathology_out: codes of `pathology` that are no invasive cancer; [] does without those columns.  A code that is
    not known or contradicts `tumor/benign` is a ValueError; a malignant lesion without a code counts as invasive.

    patient, lesion (1 to 6), laterality (L | R), slice_coord (mm, the slice's DICOM SliceLocation), malignant
    (1 yes, 0 benign), pathology, HER2, triple_negative ("1"), invasive (malignant and not out).  Receptors are
    given for lesions 1 to 3 only.  Blank and -1 are missing.  A lesion without any of these has no row, except the
    first, so that every patient has one.
    """
    path, table = find_ambl_sheet(place)
    table = tables.by_patient(table.replace("-1", None), "patientid", collections()["ambl"].pattern, path)
    used = {c for c in table if re.fullmatch("(pos|pathology)[1-6]", c)}
    tables.need_columns(table, sorted(used | {"pathology1"} if pathology_out else used), path)
    lesions = pd.concat([_lesion(table, number, path) for number in _LESIONS])
    known = lesions.drop(columns=["patient", "lesion"]).notna().any(axis=1)
    lesions = lesions[known | (lesions["lesion"] == 1)].sort_values(["patient", "lesion"])
    lesions.index = lesions["patient"] + " lesion " + lesions["lesion"].astype(str)
    lesions["invasive"] = _is_invasive(lesions, pathology_out, path)
    lesions["HER2"] = _her2_status(lesions, her2, path)
    return lesions.reset_index(drop=True)


def _lesion(table, number, path):
    """Lesion `number` of every patient, HER2 and pathology still as the sheet spells them."""
    spellings = f"her2[sii]{number}", f"her[sii]{number}"  # both would be no column
    her2 = " or ".join(c for c in spellings if c in table) or spellings[1]
    columns = {"malignant": f"tumor/benign{number}"}
    if number in _LESIONS_WITH_RECEPTORS:  # spelt HER2 [SII] 2 but HER [SII] 3
        columns |= {"HER2": her2, "triple_negative": f"istn{number}"}
    tables.need_columns(table, columns.values(), path)
    found = _place(table, number, path)
    found[[*columns]] = table[[*columns.values()]]
    found["malignant"] = tables.numbers_within(table[columns["malignant"]], path, (0, 1, True, True))
    found["pathology"] = table.get(f"pathology{number}")
    return found.assign(lesion=number).reset_index(names="patient")


def _place(table, number, path):
    """Laterality and slice of lesion `number`: from one column `pos1` ("R12.34"), or from two."""
    name, pair = f"pos{number}", [f"lateralitylesion{number}", f"slicecoordlesion{number}"]
    if name in table:
        texts = table[name]
    else:
        tables.need_columns(table, pair, path)
        name, texts = (
            ", ".join(pair),
            table[pair[0]].astype("str").str[:1] + table[pair[1]].astype("str").fillna(""),
        )
    pattern = r"^(?P<laterality>[LR])(?P<slice_coord>[+-]?[0-9]+(?:\.[0-9]+)?)?$"
    found = texts.str.replace(" ", "").str.upper().str.extract(pattern)
    unread = found["laterality"].isna() & texts.notna()
    tables.refuse(unread, texts, name, "a side and a coordinate like R12.34", path)
    return found.astype({"slice_coord": float})


def _is_invasive(lesions, out, path):
    """Malignant lesions, without those whose pathology is one of `out`; `pathology` becomes a whole number."""
    if wrong := [code for code in out if code not in _PATHOLOGY]:
        raise ValueError(f"ambl_pathology_out has {wrong}, expected codes among {sorted(_PATHOLOGY)}")
    texts = lesions["pathology"].astype(object)
    codes = pd.to_numeric(texts, errors="coerce")
    tables.refuse(texts.notna() & ~codes.isin(_PATHOLOGY), texts, "pathology", f"one of {sorted(_PATHOLOGY)}", path)
    lesions["pathology"] = codes.astype("Int64")
    malignant = lesions["malignant"].eq(1).fillna(False).astype(bool)
    contradicts = (malignant & codes.isin(_BENIGN)) | (lesions["malignant"].eq(0) & codes.isin(_INVASIVE))
    shown = lesions["malignant"].astype(str) + ", " + texts.astype(str) + " (" + codes.map(_PATHOLOGY) + ")"
    expected = "both malignant or both not; ask the collection's authors, or correct the wrong cell"
    tables.refuse(contradicts, shown, "tumor/benign, pathology", expected, path)
    return malignant & ~codes.isin(out)


def _her2_status(lesions, her2, path):
    """What the sheet's values of HER2 [SII] mean by the caller's codes."""
    codes = tables.declared_meanings(her2, (1, 0), "ambl_her2")
    values = lesions["HER2"].str.lower()
    if (values.notna() & ~values.isin(list(codes))).any():
        raise ValueError(_question(lesions, values, codes, path))
    status = values.map(codes).astype("Int64")
    wrong = status.eq(1) & lesions["triple_negative"].eq("1")
    tables.refuse(wrong, lesions["HER2"], "HER2 [SII]", "a value that means negative, as isTN is 1", path)
    return status


def _question(lesions, values, codes, path):
    """A message that asks what the values of HER2 [SII] mean: a block to fill in, with how often each occurs."""
    counted = {"malignant": lesions["invasive"], "isTN": lesions["triple_negative"].eq("1"), "all": True}
    counts = pd.DataFrame(counted, index=lesions.index).astype(int).groupby(values).sum()
    unlisted = [value for value in counts.index if value not in codes]
    text = (
        f"{path}: ambl_her2 gives these values of HER2 [SII] no meaning: {unlisted}.  Public projects read them in "
        "opposite ways: look in the sheet's legend; isTN 1 means negative.  In studies/<name>/params.yaml, under "
        'acquire, with 1 (positive), 0 (negative) or null (equivocal) for each "?":\n  ambl_her2:'
    )
    for value, n in counts.iterrows():
        entry = f"{json.dumps(value, ensure_ascii=False)}: {json.dumps(codes.get(value, '?'))}"
        text += f"\n    {entry:18} # {n['malignant']} malignant lesions, {n['all']} in all, {n['isTN']} with isTN 1"
    return text


def index_lesion(lesions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AMBL's lesions → (the invasive ones with HER2 known, the patients in BreastDCEDL's columns).

    A patient counts once, with the HER2 on which all invasive lesions of known HER2 agree; otherwise HER2 is NA
    and `reason` says why.  What only the images tell (n_times, spacing …) is NA, and so are HR, age, menopause.
    """
    known = lesions[lesions["invasive"] & lesions["HER2"].notna()]
    patients, status = pd.Index(lesions["patient"].unique(), name="pid"), known.groupby("patient")["HER2"]
    different = status.nunique().reindex(patients, fill_value=0)
    table = known_only(patients, "ambl", menopause=None, HER2=status.first().where(different == 1))
    table["reason"] = different.map({0: _NO_HER2, 1: "", 2: _DISCORDANT})
    for patient, part in lesions[lesions["malignant"].eq(1)].groupby("patient"):
        if not part["invasive"].any():
            codes = ", ".join(f"{code} ({_PATHOLOGY[code]})" for code in sorted(set(part["pathology"])))
            table.loc[patient, "reason"] = f"no invasive cancer: pathology {codes}"
    return known.reset_index(drop=True), table.reset_index()
