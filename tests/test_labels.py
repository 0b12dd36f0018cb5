"""Readers of labels: BreastDCEDL's real table of I-SPY2, and small stand-ins for what was not reachable.

The archives' spreadsheets and BreastDCEDL's release were not; the stand-ins have their published columns.
"""

import re
from pathlib import Path

import pandas as pd
import pytest

from her2core.cohort import flow, patient_table
from her2core.cohorts.labels import (
    _DISCORDANT,
    _NO_HER2,
    breastdcedl_phases,
    index_lesion,
    read_ambl_clinical,
    read_breastdcedl_table,
)

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
    found = flow(patient_table(read_breastdcedl_table(TABLE).assign(layout="breastdcedl")))
    assert (found["patients"], found["excluded"]) == (982, {"no split published": 5})
    assert found["splits"]["test"] == {"patients": 98, "her2_positive": 19}


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
        ({"pid": "AMBL-001"}, r"AMBL-001: pid is 'AMBL-001', expected one that begins with \['ISPY2-'"),
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


def test_a_table_of_duke_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected patients of I-SPY, found only duke"):
        read_breastdcedl_table(release(tmp_path, release_rows()[3]))


@pytest.mark.parametrize(("n_times", "phases"), [(4, (0, 2, 3)), (6, (0, 2, 5)), (7, (0, 2, 6)), (11, (0, 2, 6))])
def test_the_papers_phases_are_first_third_and_last_but_at_most_the_seventh(n_times, phases):
    assert breastdcedl_phases(n_times) == phases


def test_three_phases_are_too_few_for_the_papers_rule():
    with pytest.raises(ValueError, match="n_times is 3, expected at least 4"):
        breastdcedl_phases(3)


# The clinical sheets of I-SPY


CODES = {"neg": 0, "pos": 1, 0: 0, 3: 1, "pos (2+)": None}


def ambl_row(patient, *lesions):
    """A row of AMBL's sheet; a lesion is (place, malignant, HER2, isTN), and what a lesion lacks is -1."""
    found = {"Patient ID": patient, "BIRADS": 4}
    for i in range(1, 7):
        there = i <= len(lesions)
        place, malignant, her2, triple_negative = lesions[i - 1] if there else (None, -1, -1, -1)
        found |= {f"Pos{i}": place, f"tumor/benign{i}": malignant, f"pathology{i}": 1 if there else -1}
        if i <= 3:
            her = "HER2" if i < 3 else "HER"
            found |= {f"GRADE{i}": "2 to 3" if there else -1, f"ER [SII] {i}": "strong" if there else -1}
            found |= {f"PR [SII] {i}": -1, f"{her} [SII] {i}": her2, f"isTN{i}": triple_negative}
    return found


def ambl_sheet(tmp_path, *rows):
    """The headings stand in the second row, below a title."""
    path = tmp_path / "Advanced-MRI-Breast-Lesions-DA-Clinical-Jan112024.xlsx"
    pd.DataFrame(rows).to_excel(path, index=False, startrow=1)
    return path


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


def test_the_ambl_sheet_gives_one_row_per_lesion_whatever_her2_is_spelt(tmp_path):
    found = read_ambl_clinical(ambl_sheet(tmp_path, *ambl_rows()), CODES)
    assert found.groupby("patient").size().to_dict() == {
        "AMBL-001": 1,
        "AMBL-002": 3,
        "AMBL-003": 2,
        "AMBL-004": 1,
        "AMBL-005": 1,
        "AMBL-006": 1,
        "AMBL-007": 4,
    }
    second = found[found["patient"] == "AMBL-002"]
    assert second["lesion"].tolist() == [1, 2, 3] and second["malignant"].tolist() == [1, 0, 1]
    assert second["laterality"].tolist() == ["R", "L", "L"] and second["slice_coord"].tolist() == [12.34, -5, 7.5]
    assert second["HER2"].tolist() == [1, pd.NA, 1]
    first = found.iloc[0]
    assert (first["HER2"], first["ER"], first["grade"], first["triple_negative"]) == (0, "strong", "2 to 3", "1")
    assert pd.isna(first["PR"]) and pd.isna(found.set_index("patient").loc["AMBL-004", "HER2"])


def test_the_ambl_sheet_may_give_side_and_slice_in_two_columns(tmp_path):
    source = pd.DataFrame([ambl_row("AMBL-001", ("x", 1, "neg", 0))]).filter(regex="^(?!Pos)")
    for i in range(1, 7):
        source[[f"laterality lesion{i}", f"slice coord lesion{i}"]] = [["Right", 12.34] if i == 1 else [None, -1]]
    path = tmp_path / "ambl.xlsx"
    source.to_excel(path, index=False, startrow=1)
    found = read_ambl_clinical(path, CODES)
    assert found[["laterality", "slice_coord"]].values.tolist() == [["R", 12.34]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [ambl_row("AMBL-001", ("R1", 1, "weak", 0), ("R2", 0, 2, 0)), ambl_row("AMBL-002", ("R1", 1, 2, 0))],
            r"HER2 \[SII\] has values \(and counts\) {'2': 2, 'weak': 1}, expected one of \['0', '3', 'neg'",
        ),
        (
            [ambl_row("AMBL-001", ("R1", 0, -1, -1), ("R1", 1, "pos", 1))],
            r"AMBL-001 lesion 2: HER2 \[SII\] is 'pos', expected a value that means negative, as isTN is 1",
        ),
        ([ambl_row("AMBL-001", ("R1", 2, "neg", 0))], "AMBL-001: tumor/benign1 is '2', expected a whole number"),
        ([ambl_row("AMBL-001", ("R1", "tumor", "neg", 0))], "AMBL-001: tumor/benign1 is 'tumor'"),
        ([ambl_row("AMBL-001", ("12.3", 1, "neg", 0))], "AMBL-001: pos1 is '12.3', expected a side and"),
        ([ambl_row("AMBL-001"), ambl_row("AMBL-001")], "AMBL-001: expected one row, found 2"),
        ([ambl_row("../AMBL-001")], r"patientid cannot be '../AMBL-001', expected AMBL-\[0-9\]"),
        ([ambl_row(None)], "patientid cannot be missing"),
        ([{k: v for k, v in ambl_row("AMBL-001").items() if k != "HER [SII] 3"}], r"each of her\[sii\]3; found"),
        ([{k: v for k, v in ambl_row("AMBL-001").items() if k != "Pos4"}], "each of lateralitylesion4, slice"),
    ],
)
def test_an_ambl_sheet_that_cannot_be_true_is_refused(tmp_path, rows, message):
    path = ambl_sheet(tmp_path, *rows)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_ambl_clinical(path, CODES)


def test_her2_codes_that_are_no_status_are_refused(tmp_path):
    with pytest.raises(ValueError, match="her2 must map to 1, 0 or None, found {'positive'}"):
        read_ambl_clinical(ambl_sheet(tmp_path, *ambl_rows()), {"pos": "positive"})


def test_a_patient_counts_once_and_one_without_a_label_has_a_reason(tmp_path):
    known, patients = index_lesion(read_ambl_clinical(ambl_sheet(tmp_path, *ambl_rows()), CODES))
    assert [*zip(known["patient"], known["lesion"], known["HER2"], strict=True)] == [
        ("AMBL-001", 1, 0),
        ("AMBL-002", 1, 1),
        ("AMBL-002", 3, 1),
        ("AMBL-003", 1, 0),
        ("AMBL-003", 2, 1),
        ("AMBL-007", 2, 0),
    ]
    found = patients.set_index("pid")
    assert found["HER2"].tolist() == [0, 1, pd.NA, pd.NA, pd.NA, pd.NA, 0]
    none = "no malignant lesion with HER2 known"
    different = "two malignant lesions with different HER2"
    assert found["reason"].tolist() == ["", "", different, none, none, none, ""]
    assert found["test"].isna().all() and set(found["dataset"]) == {"ambl"}


@real
def test_ispy_and_ambl_together_make_one_patient_table(tmp_path):
    _, ambl = index_lesion(read_ambl_clinical(ambl_sheet(tmp_path, *ambl_rows()), CODES))
    ispy = read_breastdcedl_table(TABLE)
    assert ambl.drop(columns="reason").columns.tolist() == ispy.columns.tolist()
    both = pd.concat([ispy, ambl.assign(n_times=5)], ignore_index=True).assign(layout="breastdcedl")
    found = flow(patient_table(both))
    assert found["splits"]["external"] == {"patients": 3, "her2_positive": 1}
    assert found["included"] == 977 + 3 and found["excluded"] == {
        "no split published": 5,
        _NO_HER2: 3,
        _DISCORDANT: 1,
    }


# Agreement
