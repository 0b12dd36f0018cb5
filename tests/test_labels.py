"""Readers of labels: BreastDCEDL's real table of I-SPY2, and small stand-ins for what was not reachable.

The archives' spreadsheets and BreastDCEDL's release were not; the stand-ins have their published columns.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from her2core.cohort import SPLIT_OF_CODE, flow, patient_table
from her2core.cohorts.ambl import _DISCORDANT, _NO_HER2, find_ambl_sheet, index_lesion, read_ambl_clinical
from her2core.cohorts.collections import collections
from her2core.cohorts.labels import breastdcedl_phases, check_against, read_breastdcedl_table, read_idc_clinical

TABLE = Path(__file__).resolve().parents[2] / "shared" / "real" / "BreastDCEDL_ISPY2_metadata.csv"
real = pytest.mark.skipif(not TABLE.is_file(), reason="BreastDCEDL's table is not here")
PHASES = ["pre", "post_early", "post_late"]
BOTH_FORMS = "pid n_xy n_z n_times pre post_early post_late slice_thick xy_spacing mask_start mask_end age HR test"
RELEASE = f"{BOTH_FORMS} pCR sraw eraw scol ecol tum_vol menopause race_white race_black HER2 HR_HER2_STATUS"
RELEASE = f"{RELEASE} TripleNeg HER2pos HRposHER2neg dataset".split()
REPOSITORY = f"{BOTH_FORMS} pix_type slice_space r_white r_black mask_count mask_max pCR MP HRposHER2neg HER2pos"
REPOSITORY = f"{REPOSITORY} TripleNeg".split()


def row(columns, **values):
    """A patient's row as the tables write it, every number a float; what is not given or usual is empty."""
    usual = {"n_xy": 256.0, "n_z": 80.0, "n_times": 8.0, "pre": 0.0, "post_early": 2.0, "post_late": 6.0}
    usual |= {"slice_thick": 2.0, "xy_spacing": 0.6, "mask_start": 15.0, "mask_end": 52.0, "age": 48.5}
    usual |= {"HR": 1.0, "test": 0.0, "HER2": 0.0, "HER2pos": 0.0, "dataset": "spy2", "tum_vol": 311.5, "MP": 1}
    return {c: (usual | values).get(c) for c in columns}


def release(tmp_path, *rows):
    path = tmp_path / "BreastDCEDL_metadata.csv"
    pd.DataFrame([row(RELEASE, **r) for r in rows]).to_csv(path, index=False)
    return path


def release_rows():
    return [
        {"pid": "ACRIN-6698-102212", "HER2": 1.0, "menopause": 0.0, "test": 1.0},
        {"pid": "ISPY2-550421", "menopause": 1.0, "HR": None, "age": None, "test": None},
        {"pid": "ISPY1_1001", "dataset": "spy1", "HER2": None, "test": 2.0, "n_times": 3.0, "post_late": 2.0}
        | {"post_early": 1.0},
        {"pid": "Breast_MRI_001", "dataset": "duke", "HER2": 1.0, "n_z": None, "mask_start": None},
    ]


def patients_of(table):
    """The patient table, with the sites and splits that the archive's source adds to what the readers give."""
    known = [collections()[dataset] for dataset in table["dataset"]]
    splits = ["external" if c.external else SPLIT_OF_CODE.get(n) for c, n in zip(known, table["test"], strict=True)]
    return patient_table(table.assign(layout="breastdcedl", site=[c.site for c in known], split=splits))


# BreastDCEDL


@real
def test_the_real_table_has_the_published_patients_splits_and_positives():
    table = read_breastdcedl_table(TABLE)
    assert len(table) == table["pid"].nunique() == 982
    assert table["pid"].str.extract("^(ISPY2|ACRIN-6698)-")[0].value_counts().to_dict() == {
        "ISPY2": 717,
        "ACRIN-6698": 265,
    }
    assert table["HER2"].value_counts().to_dict() == {0: 740, 1: 242}
    assert table["test"].value_counts().to_dict() == {0: 781, 1: 98, 2: 98}
    assert table.groupby("test")["HER2"].sum().to_dict() == {0: 197, 1: 19, 2: 25}
    assert table["test"].isna().sum() == 5 and set(table["dataset"]) == {"spy2"}
    assert table["HR"].sum() == 536  # the repository's page says 537


@real
def test_the_real_table_keeps_its_gaps_and_its_mammaprint_is_not_menopause():
    table = read_breastdcedl_table(TABLE)
    assert table[PHASES].isna().sum().tolist() == [45, 45, 45]
    assert table["age"].isna().sum() == 3 and table["xy_spacing"].isna().sum() == 2
    assert table[["menopause", "tum_vol"]].isna().all(axis=None)
    assert table["mask_count"].agg(["min", "median", "max"]).tolist() == [185, 17942, 805224]
    integers = ["test", "HER2", "HR", "n_xy", "n_z", "n_times", *PHASES, "mask_start", "mask_end", "mask_count"]
    assert {str(t) for t in table[integers].dtypes} == {"Int64"}


@real
def test_the_papers_rule_for_phases_gives_what_the_table_names_for_two_thirds():
    named = read_breastdcedl_table(TABLE).dropna(subset=PHASES)
    ruled = named["n_times"].map(breastdcedl_phases)
    same = pd.Series([*named[PHASES].itertuples(index=False, name=None)], index=named.index) == ruled
    assert (same.sum(), len(named)) == (617, 937)
    assert ((named["pre"] == 0) & (named["post_early"] == 2)).sum() == 935
    assert named.loc[~same, "post_late"].value_counts()[5] == 315


@real
def test_the_real_table_becomes_the_patient_table():
    found = flow(patients_of(read_breastdcedl_table(TABLE)))
    assert (found["patients"], found["excluded"]) == (982, {"no split published": 5})
    assert found["splits"]["test"] == {"patients": 98, "positives": 19}


@real
def test_the_response_of_the_real_table_is_an_endpoint():
    table = patient_table(
        read_breastdcedl_table(TABLE).assign(site="I-SPY2", layout="breastdcedl", split="train"), endpoint="pcr"
    )
    assert (table["label"].notna().sum(), table["label"].sum()) == (982, 316)


def test_the_release_gives_both_trials_and_leaves_duke_out(tmp_path):
    table = read_breastdcedl_table(release(tmp_path, *release_rows())).set_index("pid")
    assert table["dataset"].to_dict() == {"ACRIN-6698-102212": "spy2", "ISPY2-550421": "spy2", "ISPY1_1001": "spy1"}
    assert table["HER2"].tolist() == [1, 0, pd.NA] and table["test"].tolist() == [1, pd.NA, 2]
    assert table.loc["ISPY1_1001", PHASES].tolist() == [0, 1, 2]
    assert table["menopause"].fillna("?").tolist() == ["pre", "post", "?"]
    assert table["tum_vol"].tolist() == [311.5] * 3 and table["mask_count"].isna().all()
    assert table["HR"].isna().tolist() == table["age"].isna().tolist() == [False, True, False]


def test_a_patient_whose_early_phase_is_also_the_late_one_is_kept_as_published(tmp_path):
    phases = {"n_times": 3.0, "post_early": 2.0, "post_late": 2.0}
    table = read_breastdcedl_table(release(tmp_path, {"pid": "ISPY1_1139", "dataset": "spy1"} | phases))
    assert table[PHASES].values.tolist() == [[0, 2, 2]]


def test_the_repositorys_form_takes_her2_from_her2pos_and_the_dataset_from_the_identifier(tmp_path):
    path = tmp_path / "table.csv"
    rows = [row(REPOSITORY, pid="ISPY2-550421", HER2pos=1), row(REPOSITORY, pid="ISPY1_1001", mask_count=9.0)]
    pd.DataFrame(rows).to_csv(path, index=False)
    table = read_breastdcedl_table(path)
    assert table["HER2"].tolist() == [1, 0] and table["dataset"].tolist() == ["spy2", "spy1"]
    assert table["mask_count"].tolist() == [pd.NA, 9]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"HER2": 2.0}, r"metadata\.csv: ISPY2-550421: HER2 is '2.0', expected a whole number from 0 to 1; 1 such"),
        ({"HER2": "positive"}, "ISPY2-550421: HER2 is 'positive', expected a whole number"),
        ({"HER2": 0.5}, "ISPY2-550421: HER2 is '0.5'"),
        ({"test": 3.0}, "ISPY2-550421: test is '3.0', expected a whole number from 0 to 2"),
        ({"HR": -1.0}, "ISPY2-550421: HR is '-1.0'"),
        ({"age": 550421.0}, "ISPY2-550421: age is '550421.0', expected a number from 18 to 110"),
        ({"menopause": "post"}, "ISPY2-550421: menopause is 'post'"),
        ({"n_times": None}, "ISPY2-550421: n_times is missing, expected a whole number from 1"),
        ({"n_times": "seven"}, "ISPY2-550421: n_times is 'seven'"),
        ({"slice_thick": 0.0}, "ISPY2-550421: slice_thick is '0.0', expected a number from 0.1"),
        ({"xy_spacing": "inf"}, "ISPY2-550421: xy_spacing is 'inf'"),
        ({"post_early": None}, "ISPY2-550421: pre, post_early, post_late is '0, <NA>, 6', expected three"),
        ({"post_late": 8.0}, "is '0, 2, 8', expected pre < early ≤ late < n_times"),
        ({"post_early": 7.0}, "is '0, 7, 6', expected pre < early ≤ late"),
        ({"pre": 2.0}, "is '2, 2, 6', expected pre < early"),
        ({"mask_start": 53.0}, "ISPY2-550421: mask_start is '53', expected at most mask_end"),
        ({"pid": "ACRIN-6698-102212"}, "ACRIN-6698-102212: expected one row, found 2"),
        ({"pid": "../ISPY2-550421"}, r"pid cannot be '../ISPY2-550421', expected \[A-Za-z0-9_\]"),
        ({"pid": None}, "pid cannot be missing"),
        ({"pid": "AMBL-001"}, "AMBL-001: dataset is 'spy2', expected the one of the identifier"),
        ({"pid": "AMBL-0001"}, r"AMBL-0001: pid is 'AMBL-0001', expected one like \(ISPY2-\|ACRIN-6698-\)\[0-9\]"),
        ({"dataset": "duke"}, "ISPY2-550421: dataset is 'duke', expected the one of the identifier"),
        ({"dataset": None}, "ISPY2-550421: dataset is missing"),
    ],
)
def test_a_row_that_cannot_be_true_is_refused(tmp_path, change, message):
    first, second, *others = release_rows()
    path = release(tmp_path, first, second | change, *others)
    with pytest.raises(ValueError, match=message):
        read_breastdcedl_table(path)


@pytest.mark.parametrize("column", ["pid", "HER2pos", "test", "n_times", "post_late"])
def test_a_missing_column_is_named(tmp_path, column):
    path = tmp_path / "table.csv"
    pd.DataFrame([row(REPOSITORY, pid="ISPY2-550421")]).drop(columns=column).to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"table\.csv: expected one column each of {column}; found"):
        read_breastdcedl_table(path)


def test_a_table_that_was_cut_off_or_is_empty_is_refused(tmp_path):
    path = release(tmp_path, *release_rows())
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"row 5: expected 29 values, found [0-9]+"):
        read_breastdcedl_table(path)
    path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="no rows"):
        read_breastdcedl_table(path)
    path.write_text("")
    with pytest.raises(ValueError, match="expected one column each of pid|expected one column each of test"):
        read_breastdcedl_table(path)


TABLE_OF_ONE = "patient_id,hr,her2,notes\r\n102212,1,0,none\r\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TABLE_OF_ONE.encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
        (TABLE_OF_ONE.replace("none", "größer").encode("cp1252"), "'utf-8' codec can't decode byte 0xf6"),
        (TABLE_OF_ONE.replace("none", "ﾃｽﾄ").encode("shift-jis"), "'utf-8' codec can't decode byte 0xc4"),
        (TABLE_OF_ONE.encode("utf-16-le"), "one column each of dicom_patient_id|NUL|row 2: "),
        (TABLE_OF_ONE.replace("none", "no\0ne").encode(), r"row 2: expected text without .*, found 'no\\x00ne'"),
        (TABLE_OF_ONE.replace("none", "\x1b[2J").encode(), r"row 2: expected text without .*, found '\\x1b\[2J'"),
        (TABLE_OF_ONE.replace("none", '"none').encode(), "unexpected end of data, expected a CSV table"),
        (TABLE_OF_ONE.replace("none", '"no"ne').encode(), "',' expected after '\"', expected a CSV table"),
        (
            TABLE_OF_ONE.replace("none", '"none').encode() + b'550421,1,1,none"\r\n',
            r"row 2: expected text without line breaks, found 'none\\r\\n550421,1,1,none'",
        ),
        (TABLE_OF_ONE.replace("none", "x" * 140_000).encode(), "field larger than field limit"),
        (TABLE_OF_ONE.replace("notes", "her2").encode(), "a heading twice in patient_id, hr, her2, her2"),
        (TABLE_OF_ONE.replace("hr", "").replace("notes", "").encode(), "a heading twice in patient_id, , her2,"),
        (TABLE_OF_ONE.encode()[:-5], "found no line break after the last row: is it cut off"),
        (TABLE_OF_ONE.encode()[:-2], "found no line break after the last row: is it cut off"),
        (TABLE_OF_ONE.encode()[:-8], "row 2: expected 4 values, found 3"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_text_that_is_no_whole_table_in_utf_8_is_refused_by_file_and_row(tmp_path, content, message):
    path = tmp_path / "clinical.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}(: |, )({message})"):
        read_idc_clinical(path)


@pytest.mark.parametrize("ends", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_any_line_end_and_a_mark_before_utf_8_make_no_difference(tmp_path, ends, mark):
    path = tmp_path / "clinical.csv"
    path.write_bytes(mark + TABLE_OF_ONE.replace("none", '"größer, dichter"').replace("\r\n", ends).encode())
    assert as_lists(read_idc_clinical(path)) == [["ISPY2-102212", 1, 0]]


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "#N/A", "=1", "None", "<NA>", "1e999", "true"])
@pytest.mark.parametrize("column", ["HER2", "age", "n_times"])
def test_a_text_that_looks_like_missing_or_endless_is_no_missing_value(tmp_path, column, text):
    path = release(tmp_path, {"pid": "ISPY2-550421", column: text})
    with pytest.raises(ValueError, match=f"ISPY2-550421: {column} is '{text}', expected a"):
        read_breastdcedl_table(path)


def test_a_table_of_duke_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected patients of I-SPY, found only duke"):
        read_breastdcedl_table(release(tmp_path, release_rows()[3]))


@pytest.mark.parametrize(("n_times", "phases"), [(4, (0, 2, 3)), (6, (0, 2, 5)), (7, (0, 2, 6)), (11, (0, 2, 6))])
def test_the_papers_phases_are_first_third_and_last_but_at_most_the_seventh(n_times, phases):
    assert breastdcedl_phases(n_times) == phases


def test_three_phases_are_too_few_for_the_papers_rule():
    with pytest.raises(ValueError, match="n_times is 3, expected at least 4"):
        breastdcedl_phases(3)


# AMBL's clinical sheet


CODES = {"neg": 0, "pos": 1, 0: 0, 3: 1, "pos (2+)": None}
OUT = [6, 7, 8, 9, 25]


def ambl_row(patient, *lesions):
    """A row of AMBL's sheet; a lesion is (place, malignant, HER2, isTN, pathology), and what it lacks is -1."""
    found = {"Patient ID": patient, "BIRADS": 4}
    for i in range(1, 7):
        place, malignant, her2, triple_negative, *code = lesions[i - 1] if i <= len(lesions) else (None, -1, -1, -1)
        found |= {f"Pos{i}": place, f"tumor/benign{i}": malignant}
        found[f"pathology{i}"] = code[0] if code else {1: 3, 0: 11}.get(malignant, -1)
        if i <= 3:
            her, blanks = ("HER2", "") if i == 1 else ("HER2" if i == 2 else "HER", " ")
            found |= {f"GRADE{i}": "2 to 3", f"ER [SII] {i}": "strong", f"PR [SII] {i}": -1}
            found |= {f"{her} [SII] {i}": her2, f"isTN{i}": triple_negative, f"PR {blanks}[%] {i}": 90}
    return found


def ambl_sheet(tmp_path, *rows, name="AMBL-Clinical.xlsx", header_row=2, sheet="MRI BREASTS with Delay"):
    """A workbook: a sheet with notes, then the clinical one, whose headings stand in `header_row` below a title."""
    with pd.ExcelWriter(tmp_path / name) as book:
        pd.DataFrame([["Legend", "-1"], [None, "missing"]]).to_excel(book, sheet_name="Notes", index=False)
        pd.DataFrame(rows).to_excel(book, sheet_name=sheet, index=False, startrow=header_row - 1)
        if header_row > 1:
            book.sheets[sheet]["B1"] = "Lesions"
    return tmp_path / name


def ambl_rows():
    return [
        ambl_row("AMBL-002", ("R12.34", 1, "pos", 0), ("L-5", 0, -1, -1), ("L7.5", 1, 3, 0)),
        ambl_row("AMBL-001", ("L0.5", 1, "Neg ", 1)),
        ambl_row("AMBL-003", ("L0.5", 1, 0, 0), ("R1", 1, "pos", 0)),
        ambl_row("AMBL-004", ("L0.5", 1, "pos (2+)", 0)),
        ambl_row("AMBL-005", ("L0.5", 0, "pos", 0)),
        ambl_row("AMBL-006"),
        ambl_row("AMBL-007", ("R1", 1, -1, -1), ("R2", 1, "neg", 0), ("R3", 0, -1, -1), ("R4", 1, -1, -1)),
    ]


def read_rows(tmp_path, *rows, her2=CODES, out=OUT):
    return read_ambl_clinical(ambl_sheet(tmp_path, *rows), her2, out)


def test_the_ambl_sheet_gives_one_row_per_lesion_whatever_her2_is_spelt(tmp_path):
    found = read_rows(tmp_path, *ambl_rows())
    counts = {"001": 1, "002": 3, "003": 2, "004": 1, "005": 1, "006": 1, "007": 4}
    assert found.groupby("patient").size().to_dict() == {f"AMBL-{n}": count for n, count in counts.items()}
    second = found[found["patient"] == "AMBL-002"]
    assert second["lesion"].tolist() == [1, 2, 3] and second["malignant"].tolist() == [1, 0, 1]
    assert second["pathology"].tolist() == [3, 11, 3] and second["invasive"].tolist() == [True, False, True]
    assert second["laterality"].tolist() == ["R", "L", "L"] and second["slice_coord"].tolist() == [12.34, -5, 7.5]
    assert second["HER2"].tolist() == [1, pd.NA, 1]
    assert (found["HER2"][0], found["triple_negative"][0]) == (0, "1")
    assert pd.isna(found.set_index("patient").loc["AMBL-004", "HER2"])


@pytest.mark.parametrize(
    ("name", "header_row"), [("a.xlsx", 1), ("Sep 2024 (1).xlsx", 2), ("b.XLSX", 3), ("c.xlsm", 7)]
)
def test_the_ambl_sheet_is_found_by_its_columns_wherever_they_stand(tmp_path, name, header_row):
    ambl_sheet(tmp_path, *ambl_rows(), name=name.lower(), header_row=header_row, sheet="Sheet7")
    path = (tmp_path / name.lower()).rename(tmp_path / name)
    (tmp_path / "README.md").write_text("Where the sheet is from.")
    (tmp_path / f"~${name}").write_bytes(b"a lock of Excel's")
    pd.DataFrame({"Patient ID": ["P1"], "HER2": [1]}).to_excel(tmp_path / "Duke.xlsx", index=False)
    assert find_ambl_sheet(tmp_path)[0] == find_ambl_sheet(path)[0] == path
    expected = read_rows(tmp_path, *ambl_rows())
    pd.testing.assert_frame_equal(read_ambl_clinical(path, CODES, OUT), expected)


def test_headings_are_the_same_in_any_case_with_any_blanks_and_with_id(tmp_path):
    table = pd.DataFrame(ambl_rows())
    table.columns = [c.upper().replace(" ", "\u00a0 ").replace("POS", "ID# pos") for c in table.columns]
    table.to_excel(tmp_path / "ambl.xlsx", index=False)
    found = read_ambl_clinical(tmp_path, CODES, OUT)
    pd.testing.assert_frame_equal(found, read_rows(tmp_path, *ambl_rows()))


def test_what_is_not_the_ambl_sheet_is_told_file_by_file_with_what_it_lacks(tmp_path):
    source = r"no spreadsheet has AMBL's columns.  Download it .*at TCIA \(10.7937/c7x1-yn57\) into labels/"
    with pytest.raises(ValueError, match=rf"labels: {source}.*Looked at: no such file or folder$"):
        find_ambl_sheet(tmp_path / "labels")
    with pytest.raises(ValueError, match=rf"{source}.*Looked at: no file in it$"):
        find_ambl_sheet(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    pd.DataFrame().to_excel(tmp_path / "empty.xlsx")
    pd.DataFrame({"Patient ID": ["P1"], "HER2": [1]}).to_excel(tmp_path / "duke.xlsx", sheet_name="Data")
    ambl_sheet(tmp_path, ambl_row("ISPY2-100001"), name="other.xlsx", sheet="S")
    with pytest.raises(ValueError, match=source) as stop:
        find_ambl_sheet(tmp_path)
    assert str(stop.value).partition("Looked at: ")[2] == (
        "duke.xlsx: sheet Data lacks tumor/benign1, HER2 [SII], patients like AMBL-001; "
        "empty.xlsx: sheet Sheet1 lacks Patient ID, tumor/benign1, HER2 [SII], patients like AMBL-001; "
        "notes.txt: File is not a zip file, expected an .xlsx spreadsheet; save it again, without a password; "
        "other.xlsx: sheet Notes lacks Patient ID, tumor/benign1, HER2 [SII], patients like AMBL-001; "
        "sheet S lacks patients like AMBL-001"
    )


def test_two_files_or_two_sheets_with_the_columns_of_ambl_are_refused(tmp_path):
    for name in ("Jan112024.xlsx", "Sep2024.xlsx"):
        path = ambl_sheet(tmp_path, *ambl_rows(), name=name)
    names = r"Jan112024.xlsx \(MRI BREASTS with Delay\), Sep2024.xlsx \(MRI BREASTS with Delay\)"
    with pytest.raises(ValueError, match=f"2 sheets have the columns of AMBL's: {names}; keep one of them"):
        find_ambl_sheet(tmp_path)
    with pd.ExcelWriter(path) as book:
        for sheet in ("old", "new"):
            pd.DataFrame(ambl_rows()).to_excel(book, sheet_name=sheet, index=False)
    with pytest.raises(ValueError, match=r"2 sheets .*: Sep2024.xlsx \(old\), Sep2024.xlsx \(new\); keep one"):
        read_ambl_clinical(path, CODES, OUT)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="Sep2024.xlsx: File is not a zip file, expected an .xlsx spreadsheet"):
        read_ambl_clinical(path, CODES, OUT)


def rewritten(path, *, change=None, **parts):
    """The workbook with its first AMBL sheet's XML changed, or with parts of it replaced or added."""
    with zipfile.ZipFile(path) as book:
        content = {name: book.read(name) for name in book.namelist()}
    if change:
        content["xl/worksheets/sheet2.xml"] = change(content["xl/worksheets/sheet2.xml"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for name, data in (content | {name.replace("__", "/"): data for name, data in parts.items()}).items():
            book.writestr(name, data)
    return path


def cell(place, inside):
    """Adds a row with one cell to a sheet's XML."""
    row = re.search("[0-9]+", place)[0]
    added = f'<row r="{row}"><c r="{place}" {inside}</c></row></sheetData>'.encode()
    return lambda xml: xml.replace(b"</sheetData>", added)


LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
LAUGHS = f'<!DOCTYPE l [<!ENTITY a0 "{"ha" * 50}">{LAUGHS}]>'.encode()


def laughing(xml):
    return LAUGHS + cell("A9999", 't="inlineStr"><is><t>&a9;</t></is>')(xml[xml.index(b"<worksheet") :])


FORMULA = "a formula without its value, as programs save it that do not compute"
LIMITS = "more than 50 sheets, 5000 rows or 500 columns"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cell("A1048576", 't="inlineStr"><is><t>x</t></is>'), None),  # not beyond a limit: one row more
        (cell("XFD3000", "><v>1</v>"), LIMITS),
        (cell("SG2000", "><v>1</v>"), LIMITS),
        (lambda xml: xml.replace(b"</sheetData>", b"<row><c><v>1</v></c></row>" * 5_000 + b"</sheetData>"), LIMITS),
        (lambda xml: xml + b" " * 20_000_000, r"20,[0-9,]+ bytes unpacked, more than 20,000,000"),
        (cell("A9999", "><f>1+1</f><v></v>"), FORMULA),
        (cell("B9999", "><f>SUM(A1:A2)</f><v/>"), FORMULA),
        (cell("B9999", '><f t="shared" si="0"/>'), FORMULA),
        (cell("B9999", '><f>A1&amp;""</f>'), FORMULA),
        (cell("A9999", "><v>nan</v>"), "invalid literal for int|could not convert"),
        (lambda xml: xml[:-200], "no element found|unclosed token"),
        (lambda xml: xml.replace(b"sheetData", b"sheetDat\xff"), "not well-formed"),
        (laughing, "Unable to read workbook: .*invalid XML"),
    ],
    ids=["last row", "wide", "501 columns", "rows", "bytes", *["formula"] * 4, "nan", "cut", "bytes", "laughs"],
)
def test_a_workbook_that_is_broken_or_beyond_the_limits_is_refused_by_file(tmp_path, change, message):
    path = rewritten(ambl_sheet(tmp_path, *ambl_rows()), change=change)
    if message is None:
        with pytest.raises(ValueError, match=f"^{path}: patientid cannot be 'x'"):
            read_ambl_clinical(path, CODES, OUT)
        return
    with pytest.raises(
        ValueError, match=f"Looked at: {path.name}: ({message}).*, expected an .xlsx spreadsheet; save"
    ):
        read_ambl_clinical(path, CODES, OUT)


def damaged(how):
    """A workbook's bytes, one of them changed in each of its members' headers."""

    def change(content):
        offset, value = {"encrypted": (6, 1), "compression": (8, 97)}[how]
        local, central = b"PK\x03\x04", b"PK\x01\x02"
        content = bytearray(content)
        for mark, further in ((local, 0), (central, 2)):
            at = content.find(mark)
            while at >= 0:
                content[at + offset + further] = value
                at = content.find(mark, at + 4)
        return bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged("encrypted"), "is encrypted, password required"),
        (damaged("compression"), "compression method is not supported"),
        (lambda content: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "File is not a zip file"),
        (lambda content: b"", "File is not a zip file"),
        (lambda content: content[:100] + b"\xff" * 20 + content[120:], "Bad CRC|decompress|invalid|Error -3"),
    ],
    ids=["encrypted", "compression", "an older format, or a password", "empty", "a flipped part"],
)
def test_a_workbook_that_zip_cannot_read_is_refused_by_file(tmp_path, change, message):
    path = ambl_sheet(tmp_path, *ambl_rows())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"Looked at: {path.name}: .*({message}).*, expected an .xlsx spreadsheet"):
        read_ambl_clinical(path, CODES, OUT)


def test_a_zip_of_something_else_is_no_workbook(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as other:
        other.writestr("patients.txt", "AMBL-001")
    with pytest.raises(ValueError, match=r"a.xlsx: .*\[Content_Types\].xml.*, expected an .xlsx spreadsheet"):
        find_ambl_sheet(tmp_path)


def test_a_value_that_was_saved_with_a_formula_counts_and_so_does_an_empty_one(tmp_path):
    path = ambl_sheet(tmp_path, *ambl_rows())
    expected = read_ambl_clinical(path, CODES, OUT)
    pos = re.compile(rb'<c r="([A-Z]+3)" t="[a-zA-Z]+"><v>[0-9]+</v></c>')  # AMBL-002's identifier

    def computed(xml):
        xml = pos.sub(rb'<c r="\1" t="str"><f>"AMBL-"&amp;"002"</f><v>AMBL-002</v></c>', xml, count=1)
        return cell("B9999", 't="str"><f>""</f><v></v>')(xml)

    pd.testing.assert_frame_equal(read_ambl_clinical(rewritten(path, change=computed), CODES, OUT), expected)


@pytest.mark.parametrize("dimension", [b"A1", b"A1:XFD1048576"])
def test_what_a_sheet_says_of_its_own_size_does_not_matter(tmp_path, dimension):
    path = ambl_sheet(tmp_path, *ambl_rows())
    expected = read_ambl_clinical(path, CODES, OUT)
    path = rewritten(
        path, change=lambda xml: re.sub(rb'dimension ref="[^"]*"', b'dimension ref="%s"' % dimension, xml)
    )
    pd.testing.assert_frame_equal(read_ambl_clinical(path, CODES, OUT), expected)


@pytest.mark.parametrize("text", ["nan", "NA", "#N/A", "inf", "None"])
def test_a_cell_of_the_ambl_sheet_that_looks_like_missing_is_none(tmp_path, text):
    with pytest.raises(ValueError, match=f"gives these values of HER2 .SII. no meaning: .'{text.lower()}'"):
        read_rows(tmp_path, ambl_row("AMBL-001", ("R1", 1, text, 0)))
    with pytest.raises(ValueError, match=f"AMBL-001: tumor/benign1 is '{text}', expected a whole number"):
        read_rows(tmp_path, ambl_row("AMBL-001", ("R1", text, "pos", 0)))


@pytest.mark.parametrize("heading", ["Pos2", "pathology3", "tumor/benign1", "isTN2", "Patient ID", "HER2 [SII] 3"])
def test_a_column_of_the_ambl_sheet_that_is_there_twice_is_named(tmp_path, heading):
    table = pd.DataFrame(ambl_rows())
    table.insert(5, f"{heading} ", table.get(heading, 1))
    table.to_excel(tmp_path / "ambl.xlsx", index=False)
    name = re.escape("her2[sii]3 or her[sii]3" if heading == "HER2 [SII] 3" else heading.lower().replace(" ", ""))
    with pytest.raises(ValueError, match=f"^{tmp_path}/ambl.xlsx: expected one column each of {name}; found"):
        read_ambl_clinical(tmp_path, CODES, OUT)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the limit of memory is Linux's")
@pytest.mark.parametrize("guard", ["True", "False"], ids=["defusedxml", "expat alone"])
def test_entities_that_expand_to_gigabytes_are_refused_in_bounded_memory(tmp_path, guard):
    path = rewritten(ambl_sheet(tmp_path, *ambl_rows()), change=laughing)
    script = (
        "import resource, sys; from pathlib import Path; from her2core.cohorts.ambl import find_ambl_sheet\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 2**28,) * 2)\n"
        "find_ambl_sheet(Path(sys.argv[1]))"
    )
    environment = os.environ | {"OPENPYXL_DEFUSEDXML": guard}
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, env=environment)
    last = done.stderr.splitlines()[-1]
    assert re.search("AMBL-Clinical.xlsx: .*(invalid XML|limit on input amplification).*, expected an .xlsx", last)


def test_the_ambl_sheet_may_give_side_and_slice_in_two_columns(tmp_path):
    source = pd.DataFrame([ambl_row("AMBL-001", ("x", 1, "neg", 0))]).filter(regex="^(?!Pos)")
    for i in range(1, 7):
        source[[f"laterality lesion{i}", f"slice coord lesion{i}"]] = [["Right", 12.34] if i == 1 else [None, -1]]
    path = tmp_path / "ambl.xlsx"
    source.to_excel(path, index=False, startrow=1)
    found = read_ambl_clinical(path, CODES, OUT)
    assert found[["laterality", "slice_coord"]].values.tolist() == [["R", 12.34]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [ambl_row("AMBL-001", ("R1", 0, -1, -1), ("R1", 1, "pos", 1))],
            r"AMBL-001 lesion 2: HER2 \[SII\] is 'pos', expected a value that means negative, as isTN is 1",
        ),
        (
            [ambl_row("AMBL-001", ("R1", 0, -1, -1), ("R1", 1, "pos", 0, 15))],
            r"lesion 2: tumor/benign, pathology is '1, 15 \(benign\)', expected both malignant or both not; ask",
        ),
        (
            [ambl_row("AMBL-001", *[("R1", 1, 3, 0)] * 5, ("R1", 0, -1, -1, 3))],
            r"AMBL-001 lesion 6: tumor/benign, pathology is '0, 3 \(IDC \+ DCIS\)', expected both malignant",
        ),
        (
            [ambl_row("AMBL-001", ("R1", 1, "pos", 0, 26))],
            r"AMBL-001 lesion 1: pathology is '26', expected one of \[1, 2, 3, .*, 24, 25\]; 1 such",
        ),
        (
            [ambl_row("AMBL-001", ("R1", 1, "pos", 0, "3, 6"))],
            "AMBL-001 lesion 1: pathology is '3, 6', expected one of",
        ),
        ([ambl_row("AMBL-001", ("R1", 2, "neg", 0))], "AMBL-001: tumor/benign1 is '2', expected a whole number"),
        ([ambl_row("AMBL-001", ("R1", "tumor", "neg", 0))], "AMBL-001: tumor/benign1 is 'tumor'"),
        ([ambl_row("AMBL-001", ("12.3", 1, "neg", 0))], "AMBL-001: pos1 is '12.3', expected a side and"),
        ([ambl_row("AMBL-001"), ambl_row("AMBL-001")], "AMBL-001: expected one row, found 2"),
        (
            [ambl_row("AMBL-001"), ambl_row("../AMBL-001")],
            r"patientid cannot be '../AMBL-001', expected AMBL-\[0-9\]",
        ),
        ([ambl_row("AMBL-001"), ambl_row(None)], "patientid cannot be missing"),
        ([{k: v for k, v in ambl_row("AMBL-001").items() if k != "HER [SII] 3"}], r"each of her\[sii\]3; found"),
        ([{k: v for k, v in ambl_row("AMBL-001").items() if k != "pathology1"}], "each of pathology1; found"),
        ([{k: v for k, v in ambl_row("AMBL-001").items() if k != "Pos4"}], "each of lateralitylesion4, slice"),
    ],
)
def test_an_ambl_sheet_that_cannot_be_true_is_refused(tmp_path, rows, message):
    path = ambl_sheet(tmp_path, *rows)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_ambl_clinical(path, CODES, OUT)


def test_values_of_her2_without_a_meaning_are_counted_in_a_block_to_paste(tmp_path):
    rows = [
        ambl_row("AMBL-001", ("R1", 1, "Weak", 0), ("R2", 0, 2, 0), ("R3", 1, 2, 0, 6)),
        ambl_row("AMBL-002", ("R1", 1, 2, 1), ("L1", 1, 'pos "++"', 0), ("L1", 1, "pos", -1)),
    ]
    with pytest.raises(
        ValueError, match=r"ambl_her2 gives .* no meaning: \['2', 'pos', 'pos \"\+\+\"', 'weak'\]."
    ) as stop:
        read_rows(tmp_path, *rows, her2={})
    text, *block = str(stop.value).splitlines()
    assert text.endswith('with 1 (positive), 0 (negative) or null (equivocal) for each "?":')
    assert block == [
        "  ambl_her2:",
        '    "2": "?"           # 1 malignant lesions, 3 in all, 1 with isTN 1',
        '    "pos": "?"         # 1 malignant lesions, 1 in all, 0 with isTN 1',
        r'    "pos \"++\"": "?"  # 1 malignant lesions, 1 in all, 0 with isTN 1',
        '    "weak": "?"        # 1 malignant lesions, 1 in all, 0 with isTN 1',
    ]
    pasted = YAML(typ="safe").load("\n".join(["acquire:", *block]))["acquire"]["ambl_her2"]
    with pytest.raises(ValueError, match=r"ambl_her2: .*one of \[1, 0, None\], found {'2': '\?', 'pos': '\?'"):
        read_rows(tmp_path, *rows, her2=pasted)
    with pytest.raises(
        ValueError, match=r"no meaning: \['weak'\].*\n.*\n.*2\": 0  .*\n.*pos\": 1  .*\n.*null .*\n.*weak\": \"\?\""
    ):
        read_rows(tmp_path, *rows, her2={2: 0, "pos": 1, 'POS "++"': None})
    found = read_rows(tmp_path, *rows, her2=pasted | {"2": 0, "pos": 1, 'pos "++"': 1, "weak": None})
    assert found["HER2"].tolist() == [pd.NA, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("her2", "message"),
    [
        (
            {"pos": "positive"},
            r"ambl_her2: expected each value once, with one of \[1, 0, None\], found {'pos': 'positive'}",
        ),
        ({"pos": 2}, "found {'pos': 2}"),
        ({"pos": True}, "found {'pos': True}"),
        ({"pos": [1]}, r"found {'pos': \[1\]}"),
        ({0: 0, "0": 1}, "ambl_her2: expected each value once, .*, found {0: 0, '0': 1}"),
    ],
)
def test_her2_codes_that_are_no_status_are_refused(tmp_path, her2, message):
    with pytest.raises(ValueError, match=message):
        read_rows(tmp_path, *ambl_rows(), her2=her2)


def test_a_code_to_leave_out_that_no_lesion_can_have_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"ambl_pathology_out has \[26, 'DCIS'\], expected codes among \[1, 2, .*, 25\]"
    ):
        read_rows(tmp_path, *ambl_rows(), out=[6, 26, "DCIS"])


def test_a_sheet_without_her2_or_pathology_values_gives_no_label_and_no_error(tmp_path):
    found = read_rows(tmp_path, ambl_row("AMBL-001", ("R1", 1, -1, -1, -1)), her2={})
    assert found["invasive"].tolist() == [True] and found["HER2"].isna().all() and found["pathology"].isna().all()
    rows = [{k: v for k, v in row.items() if "pathology" not in k} for row in ambl_rows()]
    assert read_rows(tmp_path, *rows, out=[])["invasive"].sum() == 9


def test_a_patient_counts_once_and_one_without_a_label_has_a_reason(tmp_path):
    known, patients = index_lesion(read_rows(tmp_path, *ambl_rows()))
    columns = ["patient", "lesion", "laterality", "slice_coord", "HER2"]
    assert known[columns].values.tolist() == [
        ["AMBL-001", 1, "L", 0.5, 0],
        ["AMBL-002", 1, "R", 12.34, 1],
        ["AMBL-002", 3, "L", 7.5, 1],
        ["AMBL-003", 1, "L", 0.5, 0],
        ["AMBL-003", 2, "R", 1, 1],
        ["AMBL-007", 2, "R", 2, 0],
    ]
    found = patients.set_index("pid")
    assert found["HER2"].tolist() == [0, 1, pd.NA, pd.NA, pd.NA, pd.NA, 0]
    none = "no malignant lesion with HER2 known"
    different = "two malignant lesions with different HER2"
    assert found["reason"].tolist() == ["", "", different, none, none, none, ""]
    assert found["test"].isna().all() and set(found["dataset"]) == {"ambl"}


def test_in_situ_and_high_risk_lesions_are_no_invasive_cancer(tmp_path):
    rows = [
        ambl_row("AMBL-001", ("R1", 1, "pos", 0, 6)),
        ambl_row(
            "AMBL-002", ("R1", 1, "pos", 0, 25), ("R2", 1, -1, -1, 6), ("R3", 1, -1, -1, 6), ("R4", 0, -1, -1)
        ),
        ambl_row("AMBL-003", ("R1", 1, "pos", 0, 6), ("R2", 1, "neg", 0, 2)),
        ambl_row("AMBL-004", ("R1", 1, "pos", 0, 9), ("R2", 1, "pos (2+)", 0, 1)),
        ambl_row("AMBL-005", ("R1", 1, "pos", 0, -1)),
        ambl_row("AMBL-006", ("R1", 0, "pos", 0, 8)),
    ]
    known, patients = index_lesion(read_rows(tmp_path, *rows))
    assert known[["patient", "lesion", "HER2"]].values.tolist() == [["AMBL-003", 2, 0], ["AMBL-005", 1, 1]]
    dcis, both = (
        "no invasive cancer: pathology 6 (DCIS)",
        "no invasive cancer: pathology 6 (DCIS), 25 (radial scar)",
    )
    assert patients["reason"].tolist() == [dcis, both, "", _NO_HER2, "", _NO_HER2]
    found = flow(patients_of(patients.assign(n_times=5)))
    assert found["excluded"] == {"no invasive cancer": 2, _NO_HER2: 2}
    _, patients = index_lesion(read_rows(tmp_path, *rows, out=[]))
    assert patients["reason"].tolist() == ["", "", _DISCORDANT, "", "", _NO_HER2]


@real
def test_ispy_and_ambl_together_make_one_patient_table(tmp_path):
    _, ambl = index_lesion(read_rows(tmp_path, *ambl_rows()))
    ispy = read_breastdcedl_table(TABLE)
    assert ambl.drop(columns="reason").columns.tolist() == ispy.columns.tolist()
    both = pd.concat([ispy, ambl.assign(n_times=5)], ignore_index=True)
    found = flow(patients_of(both))
    assert found["splits"]["external"] == {"patients": 3, "positives": 1}
    assert found["included"] == 977 + 3 and found["excluded"] == {
        "no split published": 5,
        _NO_HER2: 3,
        _DISCORDANT: 1,
    }


# IDC's clinical tables


def idc_table(tmp_path, columns, name="clinical.csv"):
    pd.DataFrame(columns).to_csv(tmp_path / name, index=False)
    return tmp_path / name


def as_lists(found):
    assert [str(t) for t in found.dtypes[["HR", "HER2"]]] == ["Int64", "Int64"]
    return found.astype(object).where(found.notna(), None).values.tolist()


def test_hrher4g_tells_hr_and_her2_of_each_patient(tmp_path):
    texts = [
        "HR + / HER2 +",
        "HR + / HER2 -",
        "HR - / HER2 +",
        "HR - / HER2 - (TN)",
        None,
        "NA",
        "HR neg/HER2 positive",
    ]
    texts += ["HR\u2212, HER2 unknown"]
    ids = [f"ACRIN-6698-10221{n}" for n in range(len(texts))]
    other = {"i_spy_2_research_id": range(len(texts)), "tcia_patient_id": [*reversed(ids)]}
    found = read_idc_clinical(idc_table(tmp_path, {"dicom_patient_id": ids, "hrher4g": texts} | other))
    statuses = [(1, 1), (1, 0), (0, 1), (0, 0), (None, None), (None, None), (0, 1), (0, None)]
    assert as_lists(found) == [[pid, *status] for pid, status in zip(ids, statuses, strict=True)]
    found = read_idc_clinical(idc_table(tmp_path, {"hrHer4G": texts} | other))
    assert found["pid"].tolist() == ids[::-1]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"patient_id": [102212, 550421], "hr": [1.0, None], "her2": [0, 1]},
            [["ISPY2-102212", 1, 0], ["ISPY2-550421", None, 1]],
        ),
        (
            {"dicom_patient_id": ["ISPY2-102212"], "patient_id": [7], "HR": ["Positive"], "HER2": ["neg"]},
            [["ISPY2-102212", 1, 0]],
        ),
        (
            {"subjectid": [1001, 1002], "hr_pos": [0, 2], "her2mostpos": [None, 1]},
            [["ISPY1_1001", 0, None], ["ISPY1_1002", None, 1]],
        ),
        ({"dicom_patient_id": ["ISPY1_1001"], "hr": [None], "her2": [None]}, [["ISPY1_1001", None, None]]),
    ],
)
def test_hr_and_her2_may_have_a_column_each_and_identifiers_their_digits_alone(tmp_path, columns, expected):
    assert as_lists(read_idc_clinical(idc_table(tmp_path, columns))) == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"hr": [1], "her2": [1]}, "one column each of dicom_patient_id; found hr, her2"),
        (
            {"dicom_patient_id": ["ISPY2-102212"], "pcr": [1]},
            "one column each of hr, her2; found pcr",
        ),
        (
            {"dicom_patient_id": ["ISPY2-102212"], "hrher4g": ["4"]},
            "ISPY2-102212: hrher4g is '4', expected a text like",
        ),
        (
            {"dicom_patient_id": ["ISPY2-102212"], "hr": [1], "her2": ["2+"]},
            r"HER2 has values without a meaning: 2\+ \(all: {'2\+': 1}\), expected 1, \+, pos",
        ),
        ({"patient_id": [12], "hr": [1], "her2": [1]}, "patient_id cannot be '12', expected "),
        ({"patient_id": [102212, "ISPY2-102212"], "hr": 1, "her2": 1}, "ISPY2-102212: expected one row, found 2"),
    ],
)
def test_a_clinical_table_of_idc_that_cannot_be_read_is_refused(tmp_path, columns, message):
    path = idc_table(tmp_path, columns)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_idc_clinical(path)


def test_parquet_needs_pyarrow_and_then_reads_as_csv_does(tmp_path, monkeypatch):
    path, table = tmp_path / "ispy2.parquet", {"patient_id": [102212], "hr": [1], "her2": [0]}
    with monkeypatch.context() as patch:
        for name in ("pyarrow", "fastparquet"):
            patch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=r"ispy2\.parquet: .*; parquet needs pyarrow; pip install pyarrow"):
            read_idc_clinical(path)
    monkeypatch.setattr(pd, "read_parquet", {path: pd.DataFrame(table)}.get)
    assert as_lists(read_idc_clinical(path)) == [["ISPY2-102212", 1, 0]]


def test_patients_whose_status_differs_between_the_tables_are_told_with_both_values():
    pids = ["ISPY2-100001", "ISPY2-100002", "ACRIN-6698-100003", "ISPY1_1001", "ISPY2-100005", "ISPY2-100006"]
    ours = pd.DataFrame({"pid": pids, "HR": [1, 1, 0, None, 1, 1], "HER2": [1, 1, 1, 1, 1, None]})
    idc = pd.DataFrame({"pid": ["ISPY2-100003", *pids[1::-1], "ISPY2-200000", *pids[3:]], "HR": 1, "HER2": 1})
    idc.loc[2, "HER2"] = idc.loc[5, "HR"] = idc.loc[0, "HER2"] = 0
    idc.loc[1, "HER2"] = None
    types = {"HR": "Int64", "HER2": "Int64"}
    assert check_against(ours.astype(types), idc.astype(types)) == {
        "ISPY2-100001": "HER2 differs between tables: BreastDCEDL 1, IDC 0",
        "ACRIN-6698-100003": "HER2 differs between tables: BreastDCEDL 1, IDC 0",
        "ISPY2-100005": "HR differs between tables: BreastDCEDL 1, IDC 0",
    }


@real
def test_the_real_table_agrees_with_itself_under_the_numbers_of_the_trial(tmp_path):
    table = read_breastdcedl_table(TABLE)
    digits = table["pid"].str[-6:]
    clinical = read_idc_clinical(
        idc_table(tmp_path, {"patient_id": digits, "hr": table["HR"], "her2": table["HER2"]})
    )
    assert check_against(table, clinical) == {}
    clinical["HER2"] = 1 - clinical["HER2"]
    assert len(check_against(table, clinical)) == 982
