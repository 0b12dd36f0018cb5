"""Who is in, who is out and why."""

import pandas as pd
import pytest

from her2core.cohort import flow, included, patient_table, table_one


@pytest.fixture
def metadata():
    row = {"HR": 1, "age": 50.0, "menopause": "pre", "n_times": 4, "pre": 0, "post_early": 2, "post_late": 3}
    rows = [
        {"pid": "b", "dataset": "spy2", "test": 0, "HER2": 1},
        {"pid": "a", "dataset": "spy2", "test": 1, "HER2": 0},
        {"pid": "c", "dataset": "spy1", "test": 2, "HER2": 0},
        {"pid": "d", "dataset": "spy1", "test": 0, "HER2": None},
        {"pid": "e", "dataset": "spy1", "test": 0, "HER2": 0, "n_times": 2},
        {"pid": "f", "dataset": "spy2", "test": None, "HER2": 0},
        {"pid": "x", "dataset": "ambl", "test": None, "HER2": 1},
    ]
    return pd.DataFrame([row | r for r in rows]).astype({"test": "Int64", "HER2": "Int64"})


def test_codes_become_splits_and_one_is_test_not_two(metadata):
    table = included(patient_table(metadata)).set_index("patient")
    assert table["split"].to_dict() == {"a": "test", "b": "train", "c": "validation", "x": "external"}
    assert table["her2"].dtype == int


def test_who_is_out_keeps_a_row_with_the_reason(metadata):
    table = patient_table(metadata).set_index("patient")
    assert len(table) == len(metadata)
    assert table["reason"][["d", "e", "f"]].tolist() == [
        "HER2 unknown",
        "fewer than three phases",
        "no split published",
    ]
    assert table["split"][["d", "e", "f"]].isna().all()


def test_the_flow_adds_up(metadata):
    found = flow(patient_table(metadata))
    assert found["patients"] == 7 and found["included"] == 4
    assert found["excluded"] == {"HER2 unknown": 1, "fewer than three phases": 1, "no split published": 1}
    assert found["splits"]["train"] == {"patients": 1, "her2_positive": 1}


def test_table_one_counts_per_split_and_site(metadata):
    metadata.loc[0, "age"] = float("nan")
    found = table_one(patient_table(metadata)).set_index(["split", "dataset"])
    assert found.loc[("train", "spy2"), ["patients", "her2_positive", "age_missing"]].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="HER2"), "lacks HER2"),
        (lambda t: t.assign(HER2=2), "b: HER2 is 2, expected one of"),
        (lambda t: t.assign(test=3), "b: test is 3, expected one of"),
        (lambda t: t.assign(dataset="duke"), "b: dataset is duke"),
        (lambda t: pd.concat([t, t.iloc[:1]]), r"repeated: \['b'\]"),
    ],
)
def test_a_table_that_cannot_be_true_is_refused(metadata, change, message):
    with pytest.raises(ValueError, match=message):
        patient_table(change(metadata))
