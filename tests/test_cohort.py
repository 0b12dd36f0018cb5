"""Who is in, who is out and why, and which split."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from her2core import cohort as c

REAL = Path(__file__).resolve().parents[2] / "shared/real/BreastDCEDL_ISPY2_metadata.csv"
ROW = {
    "HR": 1, "age": 50.0, "menopause": "pre", "n_times": 4, "pre": 0, "post_early": 2, "post_late": 3,
    "layout": "dicom_analysis_mask",
}  # fmt: skip


@pytest.fixture
def metadata():
    rows = [
        {"pid": "b", "dataset": "spy2", "test": 0, "HER2": 1},
        {"pid": "a", "dataset": "spy2", "test": 1, "HER2": 0},
        {"pid": "c", "dataset": "spy1", "test": 2, "HER2": 0, "layout": "breastdcedl"},
        {"pid": "d", "dataset": "spy1", "test": 0, "HER2": None},
        {"pid": "e", "dataset": "spy1", "test": 0, "HER2": 0, "n_times": 2},
        {"pid": "f", "dataset": "spy2", "test": None, "HER2": 0},
        {"pid": "g", "dataset": "spy2", "test": 0, "HER2": 0, "n_times": None},
        {"pid": "x", "dataset": "ambl", "test": None, "HER2": 1, "layout": "dicom_roi"},
    ]
    return pd.DataFrame([ROW | r for r in rows]).astype({"test": "Int64", "HER2": "Int64"})


REASONS = {
    "HER2 unknown": 1,
    "fewer than three phases": 1,
    "no split published": 1,
    "number of phases unknown": 1,
}


@pytest.fixture
def published():
    """A table with the published numbers: 982 + 172 patients, five of I-SPY1 without HER2 status."""
    rows = []
    for dataset, prefix, splits, positives in (
        ("spy2", "ISPY2-1{:05d}", {0: 784, 2: 99, 1: 99}, 242),
        ("spy1", "ISPY1_{:04d}", {0: 101, 2: 33, 1: 33}, 54),
    ):
        codes = [code for code, count in splits.items() for _ in range(count)]
        for n, code in enumerate(codes):
            rows.append({"pid": prefix.format(n), "dataset": dataset, "test": code, "HER2": int(n < positives)})
    rows += [{"pid": f"ISPY1_9{n:03d}", "dataset": "spy1", "test": 0, "HER2": None} for n in range(5)]
    rows += [{"pid": "ACRIN-6698-200000", "dataset": "spy2", "test": 0, "HER2": 0}]
    rows.remove(next(r for r in rows if r["pid"] == "ISPY2-100300"))
    return pd.DataFrame([ROW | r for r in rows])


# --- the table ----------------------------------------------------------------------------------------------


def test_codes_become_splits_and_one_is_test_not_two(metadata):
    table = c.included(c.patient_table(metadata)).set_index("patient")
    assert table["split"].to_dict() == {"a": "test", "b": "train", "c": "validation", "x": "external"}
    assert table["her2"].dtype == int


def test_the_layout_is_that_of_the_metadata(metadata):
    table = c.patient_table(metadata).set_index("patient")
    assert table["layout"][["a", "c", "x"]].tolist() == ["dicom_analysis_mask", "breastdcedl", "dicom_roi"]


def test_who_is_out_keeps_a_row_with_the_reason(metadata):
    table = c.patient_table(metadata).set_index("patient")
    assert len(table) == len(metadata)
    assert table.loc[table["reason"] != "", "reason"].to_dict() == {
        "d": "HER2 unknown",
        "e": "fewer than three phases",
        "f": "no split published",
        "g": "number of phases unknown",
    }
    assert table["split"][["d", "e", "f", "g"]].isna().all()


def test_a_reason_of_the_metadata_stands_first_and_excuses_what_lacks(metadata):
    gone = {"pid": "h", "dataset": "spy1", "HER2": None, "reason": "not usable: h: no file"}
    table = c.patient_table(pd.concat([metadata, pd.DataFrame([gone])])).set_index("patient")
    assert table.loc["h", "reason"] == "not usable: h: no file" and pd.isna(table.loc["h", "split"])
    assert (table["reason"] != "").sum() == 5
    with pytest.raises(ValueError, match="h: layout is nan, expected one of"):
        c.patient_table(pd.concat([metadata, pd.DataFrame([gone])]).drop(columns="reason"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="HER2"), "lacks HER2"),
        (lambda t: t.drop(columns="layout"), "lacks layout"),
        (lambda t: t.assign(HER2=2), "b: HER2 is 2, expected one of"),
        (lambda t: t.assign(HR=-1), "b: HR is -1, expected one of"),
        (lambda t: t.assign(test=3), "b: test is 3, expected one of"),
        (lambda t: t.assign(test=1), "x: an external patient is in no published split, found test 1"),
        (lambda t: t.assign(dataset="duke"), "b: dataset is duke"),
        (lambda t: t.assign(dataset=None), "b: dataset is None"),
        (lambda t: t.assign(layout="nrrd"), "b: layout is nrrd"),
        (lambda t: pd.concat([t, t.iloc[:1]]), r"repeated: \['b', 'b'\]"),
        (lambda t: pd.concat([t, t.iloc[:1].assign(test=1)]), r"repeated: \['b', 'b'\]"),
        (lambda t: pd.concat([t, t.iloc[:1].assign(pid="B")]), r"repeated: \['b', 'B'\]"),
        (
            lambda t: t.replace({"a": "ISPY2-102212", "b": "ACRIN-6698-102212"}),
            r"repeated: \['ACRIN-6698-102212', 'ISPY2-102212'\]",
        ),
    ],
)
def test_a_table_that_cannot_be_true_is_refused(metadata, change, message):
    with pytest.raises(ValueError, match=message):
        c.patient_table(change(metadata))


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "x/y", "x\\y", "", ".x", "-x", "x\n", "x\0", "x y", "x.y", "ü", "x" * 65, float("nan"), None, 7],
    ids=repr,
)
def test_an_identifier_that_cannot_be_a_folder_is_refused(metadata, name):
    metadata["pid"] = metadata["pid"].astype(object)
    metadata.loc[0, "pid"] = name
    with pytest.raises(ValueError, match=f"patient identifier cannot be {re.escape(repr(name))}: expected 1 to 64"):
        c.patient_table(metadata)


# --- the published cohort -----------------------------------------------------------------------------------


def test_the_published_numbers_are_recognised(published):
    table = c.patient_table(published)
    assert len(table) == 1154 and c.is_real(table) and c.is_complete(table)
    c.check_published_counts(table)
    assert c.flow(table)["of_published"] == {"published": 1149, "missing": 0, "reasons": {}}


def test_one_patient_fewer_is_not_the_published_cohort(published):
    table = c.patient_table(published[published["pid"] != "ISPY2-100000"])
    assert c.is_complete(table)
    expected = (
        "patients: expected 1149, found 1148; HER2-positive: expected 296, found 295; spy2: expected 982, found"
    )
    with pytest.raises(ValueError, match=f"{expected} 981; train: expected 885, found 884$"):
        c.check_published_counts(table)


def test_validation_and_test_swapped_for_one_patient_is_not_the_published_cohort(published):
    published.loc[published["test"].eq(2).idxmax(), "test"] = 1
    with pytest.raises(ValueError, match="validation: expected 132, found 131; test: expected 132, found 133$"):
        c.check_published_counts(c.patient_table(published))


def test_a_partial_real_cohort_says_how_many_are_missing_and_why(published):
    published["reason"] = ""
    published.loc[:2, "reason"] = "not usable: mask is empty"
    published.loc[3, "reason"] = "no series in the archive"
    published.loc[published["HER2"].isna(), "reason"] = "not usable: never looked at"
    table = c.patient_table(published.drop(index=[10, 11]))
    assert not c.is_complete(table)
    assert c.flow(table)["of_published"] == {
        "published": 1149,
        "missing": 6,
        "reasons": {"no series in the archive": 1, "not usable": 3, "not in the table": 2},
    }


def test_a_collection_left_out_is_missing_not_wrong(published):
    table = c.patient_table(published[published["dataset"] == "spy2"])
    assert not c.is_complete(table)
    assert c.flow(table)["of_published"]["reasons"] == {"not in the table": 167}


def test_more_patients_than_were_published_are_refused(published):
    more = published.iloc[[0]].assign(pid="ISPY2-999999")
    with pytest.raises(ValueError, match="at most 1149 patients with HER2 status, found 1 more"):
        c.flow(c.patient_table(pd.concat([published, more])))


def test_a_synthetic_cohort_is_not_measured_by_the_published_one(metadata):
    table = c.patient_table(metadata)
    assert not c.is_real(table) and not c.is_complete(table)
    assert "of_published" not in c.flow(table)


@pytest.mark.skipif(not REAL.is_file(), reason="the real table is not here")
def test_the_authors_own_table_of_i_spy2_has_the_published_patients_but_for_five_splits():
    real = pd.read_csv(REAL).rename(columns={"HER2pos": "HER2", "MP": "menopause"})  # it has no menopause
    table = c.patient_table(real.assign(dataset="spy2", layout="breastdcedl"))
    found = c.flow(table)["collections"]["spy2"]
    assert found["patients"] == 982 and found["excluded"] == {"no split published": 5}
    assert found["splits"] == {
        "test": {"patients": 98, "her2_positive": 19},
        "train": {"patients": 781, "her2_positive": 197},
        "validation": {"patients": 98, "her2_positive": 25},
    }
    assert c.is_real(table) and not c.is_complete(table)
    assert all(re.fullmatch(c._REAL["spy2"], p) for p in table["patient"])


# --- flow and Table 1 ---------------------------------------------------------------------------------------


def test_the_flow_adds_up_over_collections_reasons_and_splits(metadata):
    found = c.flow(c.patient_table(metadata))
    assert found["patients"] == 8 and found["included"] == 4
    assert found["excluded"] == REASONS
    assert found["splits"]["train"] == {"patients": 1, "her2_positive": 1}
    assert list(found["collections"]) == ["ambl", "spy1", "spy2"]
    parts = found["collections"].values()
    assert found["patients"] == sum(p["patients"] for p in parts)
    assert all(p["patients"] == p["included"] + sum(p["excluded"].values()) for p in parts)
    assert found["collections"]["spy1"] == {
        "patients": 3,
        "included": 1,
        "excluded": {"HER2 unknown": 1, "fewer than three phases": 1},
        "splits": {"validation": {"patients": 1, "her2_positive": 0}},
    }
    assert json.loads(json.dumps(found)) == found


def test_table_one_counts_per_split_and_site_with_what_is_missing(metadata):
    more = [
        ROW
        | {"pid": f"n{k}", "dataset": "spy2", "test": 0, "HER2": 0, "HR": hr, "age": age, "menopause": menopause}
        for k, (hr, age, menopause) in enumerate([(0, 40.0, "post"), (None, 60.0, "pre"), (1, None, None)])
    ]
    table = c.patient_table(pd.concat([metadata, pd.DataFrame(more)]))
    found = c.table_one(table).set_index(["split", "dataset"])
    assert len(found) == 4
    assert found.loc[("train", "spy2")].to_dict() == {
        "patients": 4,
        "her2_positive": 1,
        "hr_positive": 2,
        "hr_missing": 1,
        "age_median": 50.0,
        "age_q1": 45.0,
        "age_q3": 55.0,
        "age_missing": 1,
        "menopause": "post 1; pre 2",
        "menopause_missing": 1,
    }
