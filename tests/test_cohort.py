"""Who is in, who is out and why, and which split."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from her2core import cohort as c
from her2core.dataset import seen_by

REAL = Path(__file__).resolve().parents[2] / "shared/real/BreastDCEDL_ISPY2_metadata.csv"
ROW = {
    "HR": 1, "age": 50.0, "menopause": "pre", "n_times": 4, "pre": 0, "post_early": 2, "post_late": 3,
    "layout": "dicom_analysis_mask", "site": "a hospital",
}  # fmt: skip


@pytest.fixture
def metadata():
    rows = [
        {"pid": "b", "dataset": "spy2", "split": "train", "HER2": 1},
        {"pid": "a", "dataset": "spy2", "split": "test", "HER2": 0},
        {"pid": "c", "dataset": "spy1", "split": "validation", "HER2": 0, "layout": "breastdcedl"},
        {"pid": "d", "dataset": "spy1", "split": "train", "HER2": None},
        {"pid": "e", "dataset": "spy1", "split": "train", "HER2": 0, "n_times": 2},
        {"pid": "f", "dataset": "spy2", "split": None, "HER2": 0},
        {"pid": "g", "dataset": "spy2", "split": "train", "HER2": 0, "n_times": None},
        {"pid": "x", "dataset": "ambl", "split": "external", "HER2": 1, "layout": "dicom_roi"},
    ]
    return pd.DataFrame([ROW | r for r in rows]).astype({"HER2": "Int64"})


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
        ("spy2", "ISPY2-1{:05d}", {"train": 784, "validation": 99, "test": 99}, 242),
        ("spy1", "ISPY1_{:04d}", {"train": 101, "validation": 33, "test": 33}, 54),
    ):
        codes = [code for code, count in splits.items() for _ in range(count)]
        for n, code in enumerate(codes):
            rows.append({"pid": prefix.format(n), "dataset": dataset, "split": code, "HER2": int(n < positives)})
    rows += [{"pid": f"ISPY1_9{n:03d}", "dataset": "spy1", "split": "train", "HER2": None} for n in range(5)]
    rows += [{"pid": "ACRIN-6698-200000", "dataset": "spy2", "split": "train", "HER2": 0}]
    rows.remove(next(r for r in rows if r["pid"] == "ISPY2-100300"))
    return pd.DataFrame([ROW | r for r in rows])


# --- the table ----------------------------------------------------------------------------------------------


def test_the_split_is_that_of_the_metadata(metadata):
    table = c.included(c.patient_table(metadata)).set_index("patient")
    assert table["split"].to_dict() == {"a": "test", "b": "train", "c": "validation", "x": "external"}
    assert table["label"].dtype == int


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
    gone = {"pid": "h", "dataset": "spy1", "site": "I-SPY1", "HER2": None, "reason": "not usable: h: no file"}
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
        (lambda t: t.assign(split="fold"), "b: split is fold, expected one of"),
        (lambda t: t.assign(dataset="ambl"), "b: ambl is external, found split train; a site is one or none"),
        (lambda t: t.assign(dataset=None), "b: dataset or site is missing"),
        (lambda t: t.assign(site=None), "b: dataset or site is missing"),
        (lambda t: t.assign(layout="nrrd"), "b: layout is nrrd"),
        (lambda t: pd.concat([t, t.iloc[:1]]), r"repeated: \['b', 'b'\]"),
        (lambda t: pd.concat([t, t.iloc[:1].assign(split="test")]), r"repeated: \['b', 'b'\]"),
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
    published.loc[published["split"].eq("validation").idxmax(), "split"] = "test"
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
    split = real["test"].map(c.SPLIT_OF_CODE)  # 1 is test, 2 is not
    table = c.patient_table(real.assign(dataset="spy2", site="I-SPY2", layout="breastdcedl", split=split))
    found = c.flow(table)["collections"]["spy2"]
    assert found["patients"] == 982 and found["excluded"] == {"no split published": 5}
    assert found["splits"] == {
        "test": {"patients": 98, "positives": 19},
        "train": {"patients": 781, "positives": 197},
        "validation": {"patients": 98, "positives": 25},
    }
    assert c.is_real(table) and not c.is_complete(table)
    assert all(re.fullmatch(c._REAL["spy2"], p) for p in table["patient"])


# --- endpoints ----------------------------------------------------------------------------------------------


def test_the_label_is_the_endpoints(metadata):
    receptors = [(1, 0), (0, 1), (0, 0), (0, None), (None, 1), (1, None), (None, 0), (1, 1)]  # HER2, HR
    metadata = metadata.assign(**dict(zip(("HER2", "HR"), zip(*receptors, strict=True), strict=True)))
    metadata = metadata.assign(n_times=4, split="train", pCR=[1, 0, None, 1, 0, 0, 0, 0], pid=list("abcdefgh"))
    found = {e: c.patient_table(metadata, e)["label"].tolist() for e in ("her2", "hr", "triple_negative", "pcr")}
    nan = float("nan")
    assert repr(found) == repr(
        {
            "her2": [1.0, 0.0, 0.0, 0.0, nan, 1.0, nan, 1.0],
            "hr": [0.0, 1.0, 0.0, nan, 1.0, nan, 0.0, 1.0],
            "triple_negative": [0.0, 0.0, 1.0, nan, 0.0, 0.0, nan, 0.0],
            "pcr": [1.0, 0.0, nan, 1.0, 0.0, 0.0, 0.0, 0.0],
        }
    )
    out = c.patient_table(metadata, "triple_negative").set_index("patient")["reason"]
    assert out[out != ""].to_dict() == dict.fromkeys("dg", "triple-negative unknown")
    assert set(c.flow(c.patient_table(metadata, "pcr"), "pcr")["splits"]["train"]) == {"patients", "positives"}
    assert "hr_positive" in c.table_one(c.patient_table(metadata, "hr"), "hr")


def test_a_tables_own_label_counts_where_it_has_one(metadata):
    table = c.patient_table(metadata.assign(label=[0, 1, 1, 0, 0, 0, 0, 0])).set_index("patient")
    assert table["label"][["a", "b", "c"]].tolist() == [1, 0, 1]


def test_an_unknown_endpoint_is_refused():
    with pytest.raises(ValueError, match="endpoint 'her3', expected one of her2, hr, triple_negative, pcr"):
        c.CohortConfig("her3")


# --- folds --------------------------------------------------------------------------------------------------


FOLDED = c.CohortConfig("her2", folds=5, repeats=2)


@pytest.fixture
def folded(published):
    """The published cohort in two partitions of five folds, with an external patient and those who are out."""
    other = ROW | {"pid": "x", "dataset": "ambl", "split": "external", "HER2": 1, "site": "another"}
    published = published.assign(site=published["dataset"])
    return c.draw_folds(c.patient_table(pd.concat([published, pd.DataFrame([other])])), FOLDED)


def test_without_folds_the_table_is_as_it_was(metadata):
    table = c.patient_table(metadata)
    assert c.draw_folds(table, c.CohortConfig("her2")) is table


def test_each_internal_patient_is_once_test_and_once_validation_in_every_partition(folded):
    use = c.included(folded)
    assert set(c.kind_of(use["split"])) == {"folds", "external"} and folded["split"].isna().sum() == 5
    for first in (0, 5):
        roles = pd.DataFrame({fold: seen_by(use["split"], fold, 5) for fold in range(first, first + 5)})
        inside = roles[use["patient"] != "x"]
        counts = inside.apply(pd.Series.value_counts, axis=1)
        assert (counts == {"test": 1, "train": 3, "validation": 1}).all(axis=None)
        assert (roles[use["patient"] == "x"] == "external").all(axis=None)
        for fold in range(first, first + 5):  # the next fold of the same partition
            after = first + (fold + 1 - first) % 5
            assert (inside[fold] == "validation").equals(inside[after] == "test")


def test_folds_have_as_many_of_every_label_and_site(folded):
    use = c.included(folded)
    for fold in range(10):
        part = use[seen_by(use["split"], fold, 5) == "test"]
        assert len(part) in (229, 230) and part["label"].sum() in (59, 60)
        assert abs((part["dataset"] == "spy1").sum() - 167 / 5) < 2


def test_folds_depend_on_patients_and_seed_and_partitions_differ(published, folded):
    published = published.assign(site=published["dataset"])
    shuffled = c.draw_folds(c.patient_table(published.sample(frac=1, random_state=0)), FOLDED)
    assert shuffled["split"].equals(folded.loc[folded["patient"] != "x", "split"].reset_index(drop=True))
    other = c.draw_folds(c.patient_table(published), c.CohortConfig("her2", 5, 2, seed=1))
    assert (shuffled["split"] != other["split"]).mean() > 0.9
    first, second = (seen_by(c.included(shuffled)["split"], fold, 5) for fold in (0, 5))
    assert 0.1 < (second[first == "test"] == "test").mean() < 0.3


def test_a_class_too_small_for_all_folds_is_refused(metadata):
    with pytest.raises(
        ValueError, match="^1 patients of a class, expected 3 or more for 3 folds; lower cohort.folds"
    ):
        c.draw_folds(c.patient_table(metadata), c.CohortConfig("her2", folds=3))


@pytest.mark.parametrize("wrong", [{"folds": 2}, {"folds": 0}, {"repeats": 0}, {"seed": -1}])
def test_settings_that_give_no_folds_are_refused(wrong):
    with pytest.raises(ValueError, match="expected folds >= 3 or null, repeats >= 1 and seed >= 0"):
        c.CohortConfig("her2", **wrong)


def test_under_folds_flow_and_table_one_count_all_internal_patients_as_one_split(folded):
    assert c.flow(folded)["splits"]["folds"] == {"patients": 1149, "positives": 296}
    assert c.table_one(folded)[["split", "patients"]].values.tolist() == [
        ["external", 1],
        ["folds", 167],
        ["folds", 982],
    ]


def test_who_trains_is_the_training_split_or_everybody_under_folds():
    found = seen_by(["train", "validation", "test", "external", "folds 3 8"]) == "train"
    assert found.tolist() == [True, False, False, False, True] and (seen_by([]) == "train").shape == (0,)
    assert seen_by(["folds 2 8", "external"], 3, 5).tolist() == ["train", "external"]
    with pytest.raises(ValueError, match="split 'train', expected folds as cohort.folds says; run: dvc repro"):
        seen_by(["folds 3 8", "train"], 3, 5)


# --- flow and Table 1 ---------------------------------------------------------------------------------------


def test_the_flow_adds_up_over_collections_reasons_and_splits(metadata):
    found = c.flow(c.patient_table(metadata))
    assert found["patients"] == 8 and found["included"] == 4
    assert found["excluded"] == REASONS
    assert found["splits"]["train"] == {"patients": 1, "positives": 1}
    assert list(found["collections"]) == ["ambl", "spy1", "spy2"]
    parts = found["collections"].values()
    assert found["patients"] == sum(p["patients"] for p in parts)
    assert all(p["patients"] == p["included"] + sum(p["excluded"].values()) for p in parts)
    assert found["collections"]["spy1"] == {
        "patients": 3,
        "included": 1,
        "excluded": {"HER2 unknown": 1, "fewer than three phases": 1},
        "splits": {"validation": {"patients": 1, "positives": 0}},
    }
    assert json.loads(json.dumps(found)) == found


def test_table_one_counts_per_split_and_site_with_what_is_missing(metadata):
    more = [
        ROW
        | {
            "pid": f"n{k}",
            "dataset": "spy2",
            "split": "train",
            "HER2": 0,
            "HR": hr,
            "age": age,
            "menopause": menopause,
        }
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


@pytest.mark.parametrize(
    "names",
    [
        ("ACRIN-6698-100899", "ISPY2-100899", "ISPY2_100899", "ispy2_100899"),
        ("Breast_MRI_001", "DUKE_001", "duke_001"),
        ("ISPY1_1001", "ispy1_1001"),
    ],
)
def test_one_person_has_one_text_however_a_collection_spells_the_identifier(names):
    assert len({c.person(name) for name in names}) == 1


def test_two_people_of_ones_own_stay_two():
    assert len({c.person(name) for name in ("A-1", "A_1", "ISPY2X_1", "duke1", "ISPY1_1001", "ISPY1_1002")}) == 6


@pytest.mark.parametrize(("split", "positives"), [("train", 1), ("validation", 0), ("test", 5)])
def test_a_split_with_fewer_than_two_of_a_class_is_refused_before_anything_is_trained(split, positives):
    """A lone external positive is the affair of the external site."""
    rows = [(s, n, label) for s in ("train", "validation", "test") for label in (0, 1) for n in range(3)]
    table = pd.DataFrame(rows + [("external", 0, 1)], columns=["split", "number", "label"])
    c.check_classes(table)
    table.loc[table["split"] == split, "label"] = [1] * positives + [0] * (6 - positives)
    with pytest.raises(ValueError, match=f"split {split}: {positives} of 6 patients are positive, expected two"):
        c.check_classes(table)
