"""Which lesions of AMBL (Advanced-MRI-Breast-Lesions) are HER2-positive: its clinical sheet → frames.

The sheet at The Cancer Imaging Archive (TCIA) is the only source.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from her2core.cohorts.labels import TABLE_RULES
from her2core.cohorts.tables import by_patient, need_columns, numbers_within, plain_text, refuse

_LESIONS, _LESIONS_WITH_RECEPTORS = range(1, 7), range(1, 4)
_AMBL_ID = "AMBL-[0-9]{3}"
_AMBL_COLUMNS = {"Patient ID": "patientid", "tumor/benign1": "tumor/benign1", "HER2 [SII]": r"her2?\[sii\][1-3]?"}
_INVASIVE = {1: "IDC", 2: "ILC", 3: "IDC + DCIS", 4: "ILC + LCIS", 5: "carcinoma, type unspecified"}
_INVASIVE |= {10: "metaplastic carcinoma", 24: "liposarcoma"}
_HIGH_RISK = {6: "DCIS", 7: "LCIS", 8: "ADH or ALH", 9: "intraductal papillary lesion", 25: "radial scar"}
_PATHOLOGY = _INVASIVE | _HIGH_RISK | dict.fromkeys(range(11, 24), "benign")  # the sheet's codes
_NO_HER2 = "no malignant lesion with HER2 known"
_DISCORDANT = "two malignant lesions with different HER2"


def _ambl_tables(path):
    """A workbook's sheets that are AMBL's as {sheet: table of text}, and what each other sheet lacks to be it.

    Headings, wherever they begin, without case, blanks and the `ID#` that some have.
    """
    try:
        sheets = pd.read_excel(path, sheet_name=None, header=None, dtype=object, engine="openpyxl")
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, SyntaxError, EOFError) as error:
        return {}, [f"expected an .xlsx spreadsheet, found something else ({error})"]
    found, lacking = {}, []
    for name, cells in sheets.items():
        texts = cells.map(lambda cell: "".join(str(cell).lower().split()).replace("id#", ""))
        hits = texts.map(lambda text: any(re.fullmatch(p, text) for p in _AMBL_COLUMNS.values())).sum(axis=1)
        first = int(hits.to_numpy().argmax()) if len(hits) else 0
        headings = texts.iloc[first : first + 1].to_numpy().ravel().tolist()
        table = cells.iloc[first + 1 :].map(plain_text).dropna(how="all").set_axis(headings, axis=1)
        lacks = [c for c, pattern in _AMBL_COLUMNS.items() if not any(re.fullmatch(pattern, h) for h in headings)]
        patients = table.iloc[:, headings.index("patientid")] if "patientid" in headings else []
        lacks += [] if any(re.fullmatch(_AMBL_ID, str(p)) for p in patients) else ["patients like AMBL-001"]
        if lacks:
            lacking.append(f"sheet {name} lacks {', '.join(lacks)}")
        else:
            found[name] = table
    return found, lacking


def find_ambl_sheet(place: Path) -> Path:
    """AMBL's clinical spreadsheet: `place` itself or the one in that folder, known by its columns, not its name.

    ValueError where there is none, with what each file lacks, or more than one.
    """
    files = [place] if place.is_file() else sorted(p for p in place.glob("[!.~]*") if p.is_file())
    looked = {path: _ambl_tables(path) for path in files}
    found = [path for path, (tables, _) in looked.items() if tables]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{place}: {len(found)} files have the columns of AMBL's sheet: {names}; keep one of them")
    seen = [f"{path.name}: {'; '.join(lacking)}" for path, (_, lacking) in looked.items()]
    seen = seen or ["no file in it" if place.is_dir() else "no such file or folder"]
    raise ValueError(
        f"{place}: no spreadsheet has AMBL's columns.  Download it from Advanced-MRI-Breast-Lesions at TCIA "
        "(10.7937/c7x1-yn57) into labels/, or remove ambl from `collections`.  Looked at: " + "; ".join(seen)
    )


def read_ambl_clinical(path: Path, her2: dict[str, int | None], pathology_out: Sequence[int]) -> pd.DataFrame:
    """AMBL's clinical spreadsheet → one row per lesion.

    her2: what each value of the columns HER2 [SII] means, {value: 1 positive, 0 negative, None equivocal}, such
    as {"neg": 0, "pos": 1}; case does not count.  It has no default: the column mixes staining intensities and
    words, public projects read it in opposite ways, and only the sheet's legend can tell.  A value without a
    meaning is a ValueError that counts all values and gives a block for params.yaml; so is a HER2-positive lesion
    that isTN calls triple-negative, a sign that the meanings are swapped.
    pathology_out: codes of `pathology` that are no invasive cancer; [] does without those columns.  A code that is
    not known or contradicts `tumor/benign` is a ValueError; a malignant lesion without a code counts as invasive.

    patient, lesion (1 to 6), laterality (L | R), slice_coord (mm, the slice's DICOM SliceLocation), malignant
    (1 yes, 0 benign), pathology, HER2, triple_negative ("1"), invasive (malignant and not out).  Receptors are
    given for lesions 1 to 3 only.  Blank and -1 are missing.  A lesion without any of these has no row, except the
    first, so that every patient has one.

    Headings are compared without case and blanks: the sheet has `HER2 [SII] 2` but `HER [SII] 3`, `PR  [%] 2`.
    A lesion's place is one column `pos1` ("R12.34"), or `laterality lesion1` and `slice coord lesion1`.
    """
    tables, lacking = _ambl_tables(path)
    if len(tables) != 1:
        wrong = "; ".join(lacking) if not tables else f"sheets {', '.join(tables)} have AMBL's columns"
        raise ValueError(f"{path}: {wrong}; expected one sheet with AMBL's columns and patients")
    table = by_patient(next(iter(tables.values())).replace("-1", None), "patientid", _AMBL_ID, path)
    if pathology_out:
        need_columns(table, ["pathology1"], path)
    lesions = pd.concat([_lesion(table, number, path) for number in _LESIONS])
    known = lesions.drop(columns=["patient", "lesion"]).notna().any(axis=1)
    lesions = lesions[known | (lesions["lesion"] == 1)].sort_values(["patient", "lesion"])
    lesions.index = lesions["patient"] + " lesion " + lesions["lesion"].astype(str)
    lesions["invasive"] = _is_invasive(lesions, pathology_out, path)
    lesions["HER2"] = _her2_status(lesions, her2, path)
    return lesions.reset_index(drop=True)


def _lesion(table, number, path):
    """Lesion `number` of every patient, HER2 and pathology still as the sheet spells them."""
    her2 = f"her2[sii]{number}" if f"her2[sii]{number}" in table else f"her[sii]{number}"
    receptors = {"HER2": her2, "triple_negative": f"istn{number}"} if number in _LESIONS_WITH_RECEPTORS else {}
    need_columns(table, [f"tumor/benign{number}", *receptors.values()], path)
    found = _place(table, number, path)
    found["malignant"] = numbers_within(table[f"tumor/benign{number}"], path, (0, 1, True, True))
    found["pathology"] = table.get(f"pathology{number}")
    for ours in ("HER2", "triple_negative"):
        found[ours] = table[receptors[ours]] if receptors else None
    found.insert(0, "lesion", number)
    return found.reset_index(names="patient")


def _place(table, number, path):
    """Laterality and slice of lesion `number`, from whichever of the two spellings the sheet has."""
    position, side, slice_coord = f"pos{number}", f"lateralitylesion{number}", f"slicecoordlesion{number}"
    if position in table:
        texts = table[position].str.replace(" ", "").str.upper()
        found = texts.str.extract(r"^(?P<laterality>[LR])(?P<slice_coord>[+-]?[0-9]+(?:\.[0-9]+)?)$")
        wrong = found["laterality"].isna() & texts.notna()
        refuse(wrong, table[position], position, "a side and a coordinate like R12.34", path)
        return found.astype({"slice_coord": float})
    need_columns(table, [side, slice_coord], path)
    sides = table[side].str.upper().str[:1]
    refuse(table[side].notna() & ~sides.isin(("L", "R")), table[side], side, "left or right", path)
    coordinates = numbers_within(table[slice_coord], path, (-1000, 1000, False, True))
    return pd.DataFrame({"laterality": sides, "slice_coord": coordinates})


def _is_invasive(lesions, out, path):
    """Malignant lesions, without those whose pathology is one of `out`; `pathology` becomes a whole number."""
    if wrong := [code for code in out if code not in _PATHOLOGY]:
        raise ValueError(f"ambl_pathology_out has {wrong}, expected codes among {sorted(_PATHOLOGY)}")
    texts = lesions["pathology"].astype(object)
    codes = pd.to_numeric(texts, errors="coerce")
    refuse(texts.notna() & ~codes.isin(_PATHOLOGY), texts, "pathology", f"one of {sorted(_PATHOLOGY)}", path)
    lesions["pathology"] = codes.astype("Int64")
    malignant, benign = (lesions["malignant"].eq(status).fillna(False).astype(bool) for status in (1, 0))
    contradicts = (malignant & codes.between(11, 23)) | (benign & codes.isin(_INVASIVE))
    shown = lesions["malignant"].astype(str) + ", " + texts.astype(str) + " (" + codes.map(_PATHOLOGY) + ")"
    expected = "both malignant or both not; ask the collection's authors, or correct the wrong cell"
    refuse(contradicts, shown, "tumor/benign, pathology", expected, path)
    return malignant & ~codes.isin(out)


def _her2_status(lesions, her2, path):
    """What the sheet's values of HER2 [SII] mean by the caller's codes."""
    codes = {str(plain_text(value)).lower(): status for value, status in her2.items()}
    if wrong := {v: s for v, s in her2.items() if s is not None and (isinstance(s, bool) or s not in (0, 1))}:
        raise ValueError(f"ambl_her2: each value must map to 1, 0 or null, found {wrong}")
    if len(codes) < len(her2):
        raise ValueError(f"ambl_her2: a value is listed twice in {list(her2)}")
    values = lesions["HER2"].str.lower()
    if (values.notna() & ~values.isin(list(codes))).any():
        raise ValueError(_question(lesions, values, codes, path))
    status = values.map(codes).astype("Int64")
    wrong = status.eq(1).fillna(False).astype(bool) & lesions["triple_negative"].eq("1")
    refuse(wrong, lesions["HER2"], "HER2 [SII]", "a value that means negative, as isTN is 1", path)
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
    patients = pd.Index(lesions["patient"].unique(), name="pid")
    spread = known.groupby("patient")["HER2"].agg(["min", "max"]).reindex(patients)
    discordant = (spread["min"] != spread["max"]).fillna(False).astype(bool)
    table = pd.DataFrame(index=patients, columns=["dataset", *TABLE_RULES])
    table = table.astype({c: "Int64" if whole else float for c, (_, _, whole, _) in TABLE_RULES.items()})
    table = table.assign(dataset="ambl", menopause=None, HER2=spread["min"].mask(discordant), reason="")
    table.loc[spread["min"].isna(), "reason"] = _NO_HER2
    table.loc[discordant, "reason"] = _DISCORDANT
    for patient, part in lesions[lesions["malignant"].eq(1).fillna(False)].groupby("patient"):
        if not part["invasive"].any():
            codes = ", ".join(f"{code} ({_PATHOLOGY[code]})" for code in sorted(set(part["pathology"])))
            table.loc[patient, "reason"] = f"no invasive cancer: pathology {codes}"
    return known.reset_index(drop=True), table.reset_index()
