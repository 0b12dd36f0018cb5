"""Tables: what is read is checked, and what comes out is that of the statistics it is made of."""

import itertools
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.power import TTestPower

from her2core import auc, evaluate, paired
from her2core.auc import EvaluateConfig
from her2core.calibration import youden_threshold

CONFIG = EvaluateConfig(bootstrap=400, confidence=0.95, seed=1)


def test_the_expected_width_is_that_of_the_interval(rng):
    labels = (np.arange(900) % 3 == 0).astype(int)
    found = auc.bootstrap_auc(labels, (1 + 3 * labels) * rng.exponential(size=900), CONFIG)
    (row,) = evaluate.expected_width({"all": (300, 600)}, found.value, CONFIG.confidence).to_dict("records")
    assert 2 * row["half_width"] == pytest.approx(found.high - found.low, rel=0.1)
    assert (row["group"], row["patients"], row["positives"], row["auc"]) == ("all", 900, 300, found.value)


def test_the_papers_test_set_can_carry_a_tenth_of_auc_and_its_external_site_twice_that():
    test, site = (
        evaluate.expected_width({"n": counts}, auc).round(3).iloc[0]
        for counts, auc in (((30, 102), 0.744), ((9, 34), 0.66))
    )
    assert test[["standard_error", "half_width", "low", "high"]].tolist() == [0.056, 0.109, 0.635, 0.853]
    assert site[["standard_error", "half_width", "low", "high"]].tolist() == [0.109, 0.213, 0.447, 0.873]


def test_a_width_needs_both_classes_stays_within_zero_and_one_and_grows_with_confidence():
    groups = {"one class": (0, 9), "two patients": (1, 1), "many": (40, 60)}
    found = evaluate.expected_width(groups, 0.74).set_index("group")
    assert found.loc["one class", ["standard_error", "half_width", "low", "high"]].isna().all()
    assert found.loc["two patients", ["low", "high"]].tolist() == [0.0, 1.0]
    wide = evaluate.expected_width(groups, 0.74, confidence=0.99).set_index("group")["half_width"]
    assert wide["many"] / found.loc["many", "half_width"] == pytest.approx(stats.norm.ppf(0.995) / 1.959964)


@pytest.mark.parametrize("auc", [0, 1, -0.2, float("nan")])
def test_an_auc_that_leaves_no_width_is_refused(auc):
    with pytest.raises(ValueError, match=f"lies between 0 and 1, found {auc}"):
        evaluate.expected_width({"all": (10, 10)}, auc)


def predictions(rng, runs=("a-w-raw", "b-w-raw"), seeds=2, n=40):
    labels = np.arange(n) % 2
    rows = [
        {"cohort": "c", "patient": f"p{k:02d}", "split": "test", "label": labels[k], "run": run, "model": run[0]}
        | {"window": "w", "bias_field": "raw", "seed": seed, "probability": p}
        for run, seed in itertools.product(runs, range(seeds))
        for k, p in enumerate(1 / (1 + np.exp(-(rng.standard_normal(n) + 2 * labels * (run[0] == "a")))))
    ]
    return pd.DataFrame(rows)


def test_a_run_becomes_a_matrix_of_seeds_by_patients(rng):
    table = predictions(rng, runs=("a-w-raw",))
    labels, probabilities = evaluate.matrix(table.sample(frac=1, random_state=0))
    assert probabilities.shape == (2, 40)
    assert labels.tolist() == [0, 1] * 20
    np.testing.assert_array_equal(probabilities[1], table[table["seed"] == 1]["probability"])


def test_a_seed_that_missed_a_patient_is_an_error(rng):
    with pytest.raises(ValueError, match="not every seed predicted every patient"):
        evaluate.matrix(predictions(rng, runs=("a-w-raw",)).iloc[1:])


def test_the_summary_has_a_row_per_run_with_interval_and_seeds(rng):
    table = predictions(rng, seeds=3)
    found = evaluate.summary(table, CONFIG).set_index("run")
    assert found["auc"]["a-w-raw"] > 0.8 > found["high"]["b-w-raw"]
    assert (found["patients"] == 40).all() and (found["positives"] == 20).all() and (found["seeds"] == 3).all()
    assert (found["low"] < found["auc"]).all() and (found["auc"] < found["high"]).all()
    areas = [roc_auc_score(p["label"], p["probability"]) for _, p in table[table["model"] == "b"].groupby("seed")]
    spread = found.loc["b-w-raw", ["lowest_seed", "highest_seed", "seed_sd"]].astype(float)
    assert spread.tolist() == pytest.approx([min(areas), max(areas), np.std(areas, ddof=1)])


def test_a_seed_that_gives_all_patients_one_probability_is_counted(rng):
    table = predictions(rng, ("a-w-raw",), seeds=3)
    table.loc[table["seed"] == 1, "probability"] = 0.4
    assert evaluate.summary(table, CONFIG)["collapsed_seeds"].tolist() == [1]


def test_a_single_seed_has_no_spread(rng):
    assert evaluate.summary(predictions(rng, seeds=1), CONFIG)["seed_sd"].isna().all()


def sm_power(se, freedom, difference, alpha):
    """Power of the two-sided t-test by statsmodels, whose samples have one patient more than degrees of freedom."""
    n = freedom + 1
    return TTestPower().power(difference / se / np.sqrt(n), n, alpha, df=freedom)


def test_comparisons_name_a_difference_where_there_is_one_and_none_where_there_is_none(rng):
    table = predictions(rng, ("a-w-raw", "b-w-raw", "c-w-raw"), seeds=4)
    found = evaluate.comparisons(table, "c-w-raw", CONFIG)
    assert found["verdict"].tolist() == ["higher than the reference", "no difference detected"]
    assert (found["p_holm"] >= found["p"]).all() and (found["seeds"] == 4).all()
    np.testing.assert_allclose(found["p_holm"], paired.holm(found["p"]))
    for column, alpha in (("detectable", 0.05), ("detectable_holm", 0.025)):
        power = [sm_power(row.se, row.freedom, getattr(row, column), alpha) for row in found.itertuples()]
        assert power == pytest.approx([0.8, 0.8], abs=1e-6)
    assert (found["alpha_holm"] == 0.025).all()


def test_a_worse_run_is_called_lower(rng):
    found = evaluate.comparisons(predictions(rng), "a-w-raw", CONFIG)
    assert found["verdict"].tolist() == ["lower than the reference"] and found["high"][0] < 0


def test_the_columns_of_a_comparison_are_those_of_its_parts(rng):
    table = predictions(rng)
    row = evaluate.comparisons(table, "b-w-raw", CONFIG).iloc[0]
    labels, first = evaluate.matrix(table[table["run"] == "a-w-raw"])
    second = evaluate.matrix(table[table["run"] == "b-w-raw"])[1]
    found = paired.bootstrap_difference(labels, first, second, CONFIG)
    assert tuple(row[["difference", "low", "high", "se", "p"]]) == (
        found.value,
        found.low,
        found.high,
        found.se,
        found.p,
    )
    assert row["p_delong"] == paired.delong_test(labels, first, second)[1]


@pytest.mark.parametrize("column", ["patient", "seed", "label"])
def test_runs_with_other_patients_seeds_or_labels_are_not_compared(rng, column):
    table = predictions(rng)
    other = {"patient": "p99", "seed": 7, "label": 0}[column]
    table.loc[
        (table["run"] == "a-w-raw") & (table[column] == {"patient": "p01", "seed": 1, "label": 1}[column]), column
    ] = other
    with pytest.raises(ValueError, match="a-w-raw and b-w-raw differ in"):
        evaluate.comparisons(table, "b-w-raw", CONFIG)


def test_twelve_runs_of_four_seeds_are_compared_within_seconds(rng):
    table = predictions(rng, [f"{letter}-w-raw" for letter in "abcdefghijkl"], seeds=4, n=180)
    start = time.process_time()
    assert len(evaluate.comparisons(table, "b-w-raw", EvaluateConfig())) == 11
    assert time.process_time() - start < 10


def test_subgroups_have_their_own_interval_or_are_too_few(rng):
    table = predictions(rng, runs=("a-w-raw",))
    patients = table["patient"].unique()
    groups = pd.Series(["large"] * 20 + ["small"] * 12 + ["rare"] * 7 + [None], index=patients)
    found = evaluate.subgroups(table, groups, CONFIG).set_index("group")
    assert found["patients"].to_dict() == {"large": 20, "small": 12, "rare": 7, "unknown": 1}
    assert found["positives"].to_dict() == {"large": 10, "small": 6, "rare": 3, "unknown": 1}
    assert found["note"].to_dict() == {
        "large": "",
        "small": "",
        "rare": "fewer than 5 HER2+ and HER2−",
        "unknown": "fewer than 5 HER2+ and HER2−",
    }
    assert found.loc[["rare", "unknown"], ["auc", "low", "high"]].isna().all(axis=None)
    alone = auc.bootstrap_auc(*evaluate.matrix(table[table["patient"].isin(patients[:20])]), CONFIG)
    assert tuple(found.loc["large", ["auc", "low", "high"]]) == (alone.value, alone.low, alone.high)


def test_a_subgroup_of_one_class_is_too_few_and_a_patient_in_no_group_an_error(rng):
    table = predictions(rng, runs=("a-w-raw",))
    groups = table.drop_duplicates("patient").set_index("patient")["label"]
    found = evaluate.subgroups(table, groups, CONFIG)
    assert found["note"].tolist() == ["fewer than 5 HER2+", "fewer than 5 HER2−"]
    assert found["patients"].tolist() == [20, 20] and found["auc"].isna().all()
    with pytest.raises(ValueError, match="1 patients stand in no group, such as p07"):
        evaluate.subgroups(table, groups.drop("p07"), CONFIG)


def test_a_reference_that_was_not_run_is_refused(rng):
    with pytest.raises(ValueError, match="reference 'x' is not among the runs"):
        evaluate.comparisons(predictions(rng), "x", CONFIG)


def without(table, **values):
    return table[~np.logical_and.reduce([table[k] == v for k, v in values.items()])]


def where(table, column, new, **values):
    table = table.copy()
    table.loc[np.logical_and.reduce([table[k] == v for k, v in values.items()]), column] = new
    return table


BROKEN = {  # of two runs of three seeds
    "no column": (
        lambda t: t.drop(columns="seed"),
        "seed.* not in index.*, expected a table with columns cohort, patient",
    ),
    "nan": (
        lambda t: where(t, "probability", np.nan, patient="p03", seed=1),
        "a.csv: cut off, or with a value that is missing",
    ),
    "no split": (lambda t: where(t, "split", None, patient="p03"), "a.csv: cut off, or"),
    "above one": (lambda t: where(t, "probability", 1.2, patient="p03"), "outside .0, 1."),
    "a word": (
        lambda t: t.astype({"probability": object}).pipe(where, "probability", "high", patient="p03"),
        "a.csv: ",
    ),
    "label 2": (lambda t: where(t, "label", 2, patient="p03"), "or no label"),
    "twice": (
        lambda t: pd.concat([t, t[:1]]),
        "a-w-raw, seed 0: 41 rows, expected each patient once.*doubles; run the stage",
    ),
    "a patient of one seed lacks": (
        lambda t: without(t, patient="p03", run="a-w-raw", seed=1),
        "a-w-raw, seed 1: 39 rows, .*p03",
    ),
    "a patient of one run lacks": (
        lambda t: without(t, patient="p03", run="b-w-raw"),
        "b-w-raw, seed 0: 39 rows, .*p03",
    ),
    "a seed of one run lacks": (lambda t: without(t, run="b-w-raw", seed=2), "b-w-raw, seed 2: 0 rows"),
    "another label": (
        lambda t: where(t, "label", 1, patient="p00", seed=1),
        "seed 0: 40 rows, .*once with its split and label.*p00",
    ),
    "another split": (lambda t: where(t, "split", "validation", patient="p00", seed=1), "seed 0: 40 rows, .*p00"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_prediction_table_is_refused(how, tmp_path, rng):
    change, message = BROKEN[how]
    change(predictions(rng, seeds=3)).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=message):
        evaluate.read_predictions([tmp_path / "a.csv"])


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b[:-30], lambda b: b"", lambda b: b[:-2] + b"\xff\n", lambda b: b"\xff\xfe" + b],
    ids=["a byte lacks", "30 bytes lack", "empty", "another encoding at the end", "UTF-16"],
)
def test_a_damaged_prediction_table_is_refused_by_name(damage, tmp_path, rng):
    predictions(rng).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.csv").write_bytes(damage((tmp_path / "a.csv").read_bytes()))
    with pytest.raises(
        ValueError, match="(?s)a.csv: .*, expected a table with columns cohort, .*; run the stage that"
    ):
        evaluate.read_predictions([tmp_path / "a.csv"])


def test_predictions_of_several_tables_are_held_against_each_other_and_the_cohort(tmp_path, rng):
    table = predictions(rng)
    for run, part in table.groupby("run"):
        part.to_csv(tmp_path / f"{run}.csv", index=False)
    paths = list(tmp_path.iterdir())
    found = evaluate.read_predictions(paths)
    pd.testing.assert_frame_equal(found, table.sort_values("run", kind="stable", ignore_index=True))
    cohort = set(zip(table["patient"], table["split"], table["label"], strict=True))
    assert found.equals(evaluate.read_predictions(paths, [*cohort, ("other", "train", 1)]))
    for other in (cohort | {("p99", "test", 0)}, cohort - {min(cohort)}):
        with pytest.raises(
            ValueError, match="seed 0: 40 rows, expected each patient once with its split and label"
        ):
            evaluate.read_predictions(paths, other)
    with pytest.raises(ValueError, match="a-w-raw: seed 1 is not expected; run the stage that wrote it again"):
        evaluate.read_predictions(paths, seeds={"a-w-raw": (0,)})
    without(table, run="b-w-raw", patient="p05").pipe(lambda t: t[t["run"] == "b-w-raw"]).to_csv(
        paths[0].with_name("b-w-raw.csv"), index=False
    )
    with pytest.raises(ValueError, match="b-w-raw, seed 0: 39 rows, .*'p05'"):
        evaluate.read_predictions(paths)


def folded(rng, runs=("a-w-raw", "b-w-raw"), seeds=2, n=60):
    """As `predictions` under three folds: each patient is test in one and validation in the one before."""
    table = predictions(rng, runs, seeds, n)
    fold = table["patient"].str[1:].astype(int) // 2 % 3  # of both classes alike
    parts = []
    for split, of in (("test", fold), ("validation", (fold - 1) % 3)):
        part = table.assign(split=split, fold=of, probability=(table["probability"] + of) / 3)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_under_folds_summary_and_comparisons_compare_within_them(rng):
    table = folded(rng)
    test = table[table["split"] == "test"]
    labels, probabilities = evaluate.matrix(test[test["run"] == "a-w-raw"])
    folds = evaluate.folds_of(test[test["run"] == "a-w-raw"])
    assert folds.shape == probabilities.shape and folds[0, :8].tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    found = evaluate.summary(test, CONFIG).set_index("run")
    within = [
        roc_auc_score(p["label"], p["probability"]) for _, p in test[test["model"] == "a"].groupby(["seed", "fold"])
    ]
    assert found.loc["a-w-raw", "auc"] == pytest.approx(np.mean(within))  # 10 × 10 pairs in each
    assert found.loc["a-w-raw", "seed_sd"] == pytest.approx(
        pd.Series(within).groupby([0] * 3 + [1] * 3).mean().std()
    )
    assert roc_auc_score(labels, probabilities[0]) < np.mean(within) - 0.1
    row = evaluate.comparisons(test, "b-w-raw", CONFIG).iloc[0]
    second = evaluate.matrix(test[test["run"] == "b-w-raw"])[1]
    expected = paired.bootstrap_difference(labels, probabilities, second, CONFIG, folds)
    assert (row["difference"], row["se"], row["p"]) == (expected.value, expected.se, expected.p)
    test.loc[test["patient"].eq("p03") & test["model"].eq("a"), "fold"] = 2
    with pytest.raises(ValueError, match="a-w-raw and b-w-raw differ in 4 rows"):
        evaluate.comparisons(test, "b-w-raw", CONFIG)


def test_a_subgroup_under_folds_needs_five_of_a_class_for_every_fold(rng):
    table = folded(rng, runs=("a-w-raw",)).query("split == 'test'")
    groups = pd.Series(["large"] * 32 + ["small"] * 28, index=sorted(table["patient"].unique()))
    found = evaluate.subgroups(table, groups, CONFIG)
    assert found["note"].tolist() == ["", "fewer than 15 HER2+ and HER2−"] and found["auc"].isna().tolist() == [
        False,
        True,
    ]


def test_what_is_fitted_on_validation_patients_is_for_the_test_patients_of_their_fold(rng):
    table = folded(rng, runs=("a-w-raw",))
    validation, test = (table[table["split"] == split] for split in ("validation", "test"))
    labels, values = evaluate.applied(lambda y, p: p.mean(), lambda p, mean: p - mean, validation, test)
    mean, fold = evaluate.seed_mean(test)[1], np.arange(60) // 2 % 3
    of_fold = validation.groupby("fold")["probability"].mean().to_numpy()
    np.testing.assert_allclose(values, mean - of_fold[fold])
    assert labels.tolist() == [0, 1] * 30 and abs(values).max() < 0.5
    outside = test.drop(columns="fold").assign(split="external")
    np.testing.assert_allclose(
        evaluate.applied(lambda y, p: p.mean(), lambda p, mean: p - mean, validation, outside)[1],
        mean - of_fold.mean(),
    )


def test_seeds_of_other_partitions_have_fits_of_their_own(rng):
    table = folded(rng, runs=("a-w-raw",))
    table["fold"] += 3 * table["seed"]
    validation, test = (table[table["split"] == split] for split in ("validation", "test"))
    assert list(evaluate.by_fold(test)) == [0, 1, 2, 3, 4, 5]
    values = evaluate.applied(lambda y, p: p.mean(), lambda p, mean: p - mean, validation, test)[1]
    by_seed = [part.set_index("patient").sort_index() for _, part in test.groupby("seed")]
    means = validation.groupby("fold")["probability"].mean()
    expected = np.mean([p["probability"] - means.loc[p["fold"]].to_numpy() for p in by_seed], axis=0)
    np.testing.assert_allclose(values, expected)


def test_without_folds_what_is_fitted_is_for_all_and_to_the_bit(rng):
    validation, test = predictions(rng, ("a-w-raw",)), predictions(rng, ("a-w-raw",))
    labels, margin = evaluate.applied(youden_threshold, np.subtract, validation, test)
    threshold, mean = youden_threshold(*evaluate.seed_mean(validation)), evaluate.seed_mean(test)[1]
    assert np.array_equal(margin, mean - threshold) and evaluate.folds_of(test) is None


def test_each_seed_calls_at_the_threshold_of_its_own_validation_patients(rng):
    validation, test = predictions(rng, ("a-w-raw",)), predictions(rng, ("a-w-raw",))
    test.loc[test["seed"] == 1, "probability"] /= 4
    validation.loc[validation["seed"] == 1, "probability"] /= 4  # a scale of its own
    labels, called = evaluate.calls(validation, test)
    for seed, row in enumerate(called):
        cut = youden_threshold(*evaluate.seed_mean(validation[validation["seed"] == seed]))
        probabilities = evaluate.matrix(test[test["seed"] == seed])[1][0]
        assert row.tolist() == (probabilities >= cut).tolist()
    assert called.shape == (2, 40) and labels.shape == (40,)


MISSING = {
    "a fold's test patient": {"patient": "p03", "split": "test", "seed": 1},
    "a fold's validation patient": {"patient": "p03", "split": "validation"},
    "a patient": {"patient": "p03", "seed": 0},
}


@pytest.mark.parametrize("what", MISSING)
def test_under_folds_every_internal_patient_needs_both_rows_of_every_seed(what, tmp_path, rng):
    table = folded(rng)
    table.to_csv(tmp_path / "a.csv", index=False)
    cohort = {(p, f"folds {int(p[1:]) // 2 % 3}", int(p[1:]) % 2) for p in table["patient"]}
    assert len(evaluate.read_predictions([tmp_path / "a.csv"], cohort | {("x", "external", 1)})) == 480
    without(table, **MISSING[what]).to_csv(tmp_path / "a.csv", index=False)
    for known in (None, cohort):
        with pytest.raises(ValueError, match="seed [01]: 11[89] rows, expected each patient once .*p03"):
            evaluate.read_predictions([tmp_path / "a.csv"], known)


def test_a_row_without_its_fold_is_refused(tmp_path, rng):
    where(folded(rng), "fold", np.nan, patient="p03").to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match="a.csv: cut off, or with a value that is missing"):
        evaluate.read_predictions([tmp_path / "a.csv"])


def test_no_prediction_table_is_an_error_that_says_what_to_run():
    with pytest.raises(ValueError, match="run the training stage"):
        evaluate.read_predictions([])


def test_a_run_with_fewer_seeds_is_compared_on_those(rng):
    table = predictions(rng, ["a-w-raw", "b-w-raw"], seeds=4)
    few = table[(table["run"] == "b-w-raw") | (table["seed"] < 2)]
    found, expected = (evaluate.comparisons(t, "b-w-raw", CONFIG) for t in (few, table[table["seed"] < 2]))
    pd.testing.assert_frame_equal(found, expected)
    assert found.loc[0, "seeds"] == 2


def test_what_another_test_set_could_see_follows_from_the_parts_of_the_variance(rng):
    pair = evaluate.comparisons(predictions(rng, seeds=3), "b-w-raw", CONFIG)
    row = pair.iloc[0]
    assert row["se"] ** 2 == pytest.approx(row["of_patients"] + row["of_seeds"])
    found = evaluate.decidable(pair, {"same": (20, 20), "ten times": (200, 200)}, [3, 300])
    assert found.loc[0, "detectable"] == pytest.approx(row["detectable"])
    se = np.sqrt(row["of_patients"] / 10 + row["of_seeds"] / 100)
    assert found.loc[3, "detectable"] == pytest.approx((1.96 + 0.8416) * se, rel=0.02)
    assert list(found["seeds"]) == [3, 300, 3, 300] and list(found["patients"]) == [40, 40, 400, 400]


def test_the_patients_that_it_takes_are_enough_and_a_hundred_fewer_are_not(rng):
    pair = evaluate.comparisons(predictions(rng, seeds=3), "b-w-raw", CONFIG).assign(of_seeds=0.0)
    n = evaluate.patients_needed(pair, 0.05, 0.25, 3)
    for count, enough in ((n, True), (n - 100, False)):
        sets = {"": (round(count / 4), count - round(count / 4))}
        assert (evaluate.decidable(pair, sets, [3])["detectable"].item() <= 0.05) == enough


def test_no_number_of_patients_makes_up_for_seeds_that_differ(rng):
    pair = evaluate.comparisons(predictions(rng, seeds=3), "b-w-raw", CONFIG).assign(of_seeds=0.01)
    assert evaluate.patients_needed(pair, 0.05, 0.25, 3) is None


def test_the_gap_between_groups_is_that_of_both_their_rates(rng):
    """Group a: 8 of 10 positives and 1 of 10 negatives are called; group b: 5 and 4."""
    labels = np.tile(np.repeat([1, 0], 10), 2)
    called = np.concatenate([np.arange(10) < n for n in (8, 1, 5, 4)])[None]
    group = pd.Series(["a"] * 20 + ["b"] * 20)
    found = evaluate.rate_gaps(labels, called, {"by": group, "one": pd.Series("all", range(40))}, CONFIG)
    assert len(found) == 1 and found.loc[0, "gap"] == pytest.approx(0.3 + 0.3)
    assert 0.05 < found.loc[0, "chance"] <= 0.4 <= found.loc[0, "chance_95"] < 0.61 and found.loc[0, "p"] < 0.2


def test_small_groups_and_patients_without_one_are_left_out(rng):
    labels = np.tile([1, 0], 30)
    called = rng.random((2, 60)) < 0.5
    group = pd.Series(["a"] * 20 + ["b"] * 20 + ["small"] * 8 + [None] * 12)
    found, without = (evaluate.rate_gaps(labels[:n], called[:, :n], {"by": group[:n]}, CONFIG) for n in (60, 40))
    assert found.loc[0, "patients"] == 40 and found.loc[0, "gap"] == without.loc[0, "gap"]


def test_without_a_difference_the_p_value_of_a_gap_is_small_as_often_as_it_says(rng):
    config, small = EvaluateConfig(bootstrap=200), 0
    for _ in range(200):
        labels, called = np.tile([1, 0], 40), rng.random((1, 80)) < 0.5
        group = pd.Series(rng.permutation(np.arange(80) % 3))
        small += evaluate.rate_gaps(labels, called, {"by": group}, config).loc[0, "p"] < 0.1
    assert 8 <= small <= 34


def test_groups_of_another_prevalence_are_no_gap(rng):
    """32 of 40 positives and 5 of 60 negatives are in group a: dealt regardless, a fifth had p < 0.05."""
    config, small = EvaluateConfig(bootstrap=200), 0
    labels = np.repeat([1, 0], [40, 60])
    group = pd.Series(np.repeat(list("abab"), [32, 8, 5, 55]))
    for _ in range(200):
        called = rng.random((1, 100)) < np.where(labels, 0.7, 0.2)
        row = evaluate.rate_gaps(labels, called, {"by": group}, config).loc[0]
        assert 0 < row["chance"] < row["chance_95"]
        small += row["p"] < 0.05
    assert small <= 18
