"""Statistics against independent computations and constructed truths."""

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score, roc_curve

from her2core import evaluate
from her2core.evaluate import EvaluateConfig, Recalibration

CONFIG = EvaluateConfig(bootstrap=400, confidence=0.95, seed=1)


def scores(rng, n=60, shift=1.0, ties=False):
    labels = np.arange(n) % 3 == 0
    values = rng.standard_normal(n) + shift * labels
    return labels.astype(int), np.round(values) if ties else values


def brute_auc(labels, values):
    wins = [(p > n) + 0.5 * (p == n) for p in values[labels == 1] for n in values[labels == 0]]
    return sum(wins) / len(wins)


def brute_components(labels, values):
    """DeLong's structural components, pair by pair."""
    positive, negative = values[labels == 1], values[labels == 0]
    v10 = [sum((p > n) + 0.5 * (p == n) for n in negative) / len(negative) for p in positive]
    v01 = [sum((p > n) + 0.5 * (p == n) for p in positive) / len(positive) for n in negative]
    return np.array(v10), np.array(v01)


def brute_variance(v10, v01):
    return v10.var(ddof=1) / v10.size + v01.var(ddof=1) / v01.size


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_scikit_learns(rng, ties):
    labels, values = scores(rng, ties=ties)
    assert evaluate.auc(labels, values) == pytest.approx(roc_auc_score(labels, values))


@pytest.mark.parametrize("ties", [False, True])
def test_delong_variance_is_the_brute_force_one(rng, ties):
    labels, values = scores(rng, ties=ties)
    expected = brute_variance(*brute_components(labels, values))
    assert evaluate.delong_variance(labels, values) == pytest.approx(expected)


def test_delong_test_of_several_seeds_is_the_brute_force_one(rng):
    labels, values = scores(rng)
    first, second = values + rng.standard_normal((3, 60)), values + rng.standard_normal((3, 60))
    mean = [
        [np.mean([brute_components(labels, row)[i] for row in run], axis=0) for i in (0, 1)]
        for run in (first, second)
    ]
    variance = brute_variance(mean[0][0] - mean[1][0], mean[0][1] - mean[1][1])
    difference, p = evaluate.delong_test(labels, first, second)
    assert difference == pytest.approx(
        np.mean([brute_auc(labels, a) - brute_auc(labels, b) for a, b in zip(first, second, strict=True)])
    )
    assert p == pytest.approx(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))


def test_delong_of_a_score_with_itself_finds_nothing(rng):
    labels, values = scores(rng)
    assert evaluate.delong_test(labels, values, values) == (0.0, 1.0)


# Ovarian cancer with obstruction: albumin, total protein, K-G score, benefit from surgery.  Data of DeLong
# et al., Biometrics 1988;44:837, as printed in SAS/STAT User's Guide, PROC LOGISTIC, Comparing ROC Curves.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def test_delong_gives_the_published_example():
    albumin, protein, score, labels = np.array(OVARIAN.split(), float).reshape(-1, 4).T
    published = {"albumin": (0.7366, 0.0927), "protein": (0.6478, 0.1000), "score": (0.7258, 0.1028)}
    for name, values in (("albumin", albumin), ("protein", protein), ("score", 10 - score)):
        found = evaluate.auc(labels, values), np.sqrt(evaluate.delong_variance(labels, values))
        assert found == pytest.approx(published[name], abs=5e-5)
    assert evaluate.delong_test(labels, albumin, 10 - score) == pytest.approx((0.0108, 0.9102), abs=5e-5)
    assert evaluate.delong_test(labels, protein, 10 - score) == pytest.approx((-0.0780, 0.4561), abs=5e-5)


def test_intervals_of_delong_and_bootstrap_agree_on_many_patients(rng):
    labels, values = scores(rng, n=900)
    boot = evaluate.bootstrap_auc(labels, values, CONFIG)
    half = 1.96 * np.sqrt(evaluate.delong_variance(labels, values))
    assert (boot.patients, boot.positives) == (900, 300)
    assert (boot.low, boot.high) == pytest.approx((boot.value - half, boot.value + half), abs=0.01)


def test_bootstrap_resamples_patients_within_their_class(rng):
    labels, _ = scores(rng)
    index = evaluate.resample(labels, CONFIG)
    assert index.shape == (400, 60)
    assert (labels[index][:, :20] == 1).all() and (labels[index][:, 20:] == 0).all()


@pytest.mark.parametrize("ties", [False, True])
def test_a_weighted_resample_has_the_auc_and_variance_of_the_resampled_patients(rng, ties):
    labels, values = scores(rng, ties=ties)
    weights = evaluate.resample_weights(labels, CONFIG)
    mean, variance = evaluate.resampled_moments(evaluate.comparison(labels, values), weights)
    for row, index in enumerate(evaluate.resample(labels, CONFIG)[:20]):
        assert mean[row] == pytest.approx(roc_auc_score(labels[index], values[index]))
        assert variance[row] == pytest.approx(brute_variance(*brute_components(labels[index], values[index])))


def test_the_auc_of_several_seeds_is_their_mean(rng):
    labels, values = scores(rng)
    seeds = np.stack([values, values + rng.standard_normal(60)])
    expected = np.mean([roc_auc_score(labels, row) for row in seeds])
    assert evaluate.bootstrap_auc(labels, seeds, CONFIG).value == pytest.approx(expected)


def test_an_interval_is_mirrored_when_the_scores_are_turned_round(rng):
    labels, values = scores(rng)
    found, turned = (evaluate.bootstrap_auc(labels, v, CONFIG) for v in (values, -values))
    assert (turned.low, turned.high) == pytest.approx((1 - found.high, 1 - found.low))


@pytest.mark.parametrize("sign", [1, -1])
def test_perfect_separation_of_few_patients_is_not_certain(sign):
    labels = np.repeat([0, 1], [6, 5])
    found = evaluate.bootstrap_auc(labels, sign * np.arange(11.0), CONFIG)
    inner, outer = (found.low, found.high) if sign > 0 else (1 - found.high, 1 - found.low)
    assert (found.value, outer) == ((1 + sign) / 2, 1)
    assert 0.5 < inner < 0.8
    error = np.sqrt(evaluate.hanley_mcneil_variance(5, 6, inner))
    assert (1 - inner) / error == pytest.approx(stats.norm.ppf(0.975))


def test_one_patient_of_a_class_has_no_variance():
    with pytest.raises(ValueError, match="two patients of each class, found 1 of 4"):
        evaluate.bootstrap_auc([1, 0, 0, 0], [0.4, 0.1, 0.2, 0.5], CONFIG)


def test_a_paired_difference_is_zero_and_certain_for_equal_runs(rng):
    labels, values = scores(rng)
    found = evaluate.bootstrap_difference(labels, values, values, CONFIG)
    assert (found.value, found.low, found.high, found.se, found.p) == (0, 0, 0, 0, 1)


def test_a_real_difference_is_found_and_never_with_p_zero(rng):
    labels, values = scores(rng, n=300, shift=3)
    found = evaluate.bootstrap_difference(labels, values, rng.standard_normal(300), CONFIG)
    assert found.low > 0 and found.p == pytest.approx(1 / 401)
    perfect = evaluate.bootstrap_difference(labels, labels, 1 - labels, CONFIG)
    assert (perfect.value, perfect.p) == (1, pytest.approx(1 / 401))


def test_interval_and_p_value_of_a_difference_agree(rng):
    labels, values = scores(rng)
    first, second = values + rng.standard_normal((3, 60)), rng.standard_normal((3, 60))
    p = evaluate.bootstrap_difference(labels, first, second, CONFIG).p
    at_p = EvaluateConfig(CONFIG.bootstrap, 1 - p, CONFIG.seed)
    assert p > 1 / 401
    assert evaluate.bootstrap_difference(labels, first, second, at_p).low == pytest.approx(0, abs=1e-9)


def seeds_of(rng, labels, shifts, own):
    """Seeds that share the patients' noise, each with its own shift and a little noise of its own."""
    shared = rng.standard_normal(labels.size)
    return np.stack([shared + s * labels + own * rng.standard_normal(labels.size) for s in shifts])


def test_seeds_that_agree_add_nothing_to_the_patients(rng):
    labels, values = scores(rng, n=300)
    second = values + rng.standard_normal(300)
    single = evaluate.bootstrap_difference(labels, values, second, CONFIG)
    repeated = evaluate.bootstrap_difference(labels, np.stack([values] * 4), np.stack([second] * 4), CONFIG)
    assert repeated.se == pytest.approx(single.se) and repeated.p == pytest.approx(single.p)
    assert single.se == pytest.approx(
        np.sqrt(
            evaluate.placement_variance(evaluate.comparison(labels, values) - evaluate.comparison(labels, second))
        ),
        rel=0.1,
    )


def test_seeds_that_differ_in_quality_widen_the_interval_to_what_seeds_alone_give(rng):
    labels = scores(rng, n=3000)[0]
    first = seeds_of(rng, labels, (0.2, 0.8, 1.4, 2.0), 0.01)
    second = np.stack([first[1]] * 4)
    gaps = [brute - roc_auc_score(labels, second[0]) for brute in (roc_auc_score(labels, row) for row in first)]
    found = evaluate.bootstrap_difference(labels, first, second, EvaluateConfig(100))
    low, high = stats.t.interval(0.95, 3, np.mean(gaps), stats.sem(gaps))
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.05)
    assert evaluate.delong_test(labels, first, second)[1] < 0.001 < 0.05 < found.p


def test_chance_that_differs_from_seed_to_seed_is_not_counted_twice(rng):
    """Equally good seeds, their own noise large: the variance is that of the patients, as DeLong finds it."""
    labels = scores(rng, n=600)[0]
    ratios = []
    for _ in range(12):
        first, second = (seeds_of(rng, labels, (1,) * 8, 1.5) for _ in range(2))
        compared = (evaluate.comparison(labels, first) - evaluate.comparison(labels, second)).mean(0)
        found = evaluate.bootstrap_difference(labels, first, second, EvaluateConfig(200))
        ratios.append(found.se / np.sqrt(evaluate.placement_variance(compared)))
    assert 0.97 < np.mean(ratios) < 1.1


def test_runs_of_other_seeds_are_not_paired(rng):
    labels, values = scores(rng)
    with pytest.raises(ValueError, match="same seeds and patients"):
        evaluate.bootstrap_difference(labels, np.stack([values] * 2), values, CONFIG)


def test_the_detectable_difference_is_found_in_four_of_five_studies(rng):
    true = evaluate.detectable(0.02)
    assert true == pytest.approx((1.959964 + 0.841621) * 0.02)
    found = np.abs(true + 0.02 * rng.standard_normal(20_000)) > 1.959964 * 0.02
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_hanley_and_mcneils_error_is_theirs_and_that_of_exponential_scores(rng):
    assert np.sqrt(evaluate.hanley_mcneil_variance(51, 58, 0.893)) == pytest.approx(0.032, abs=6e-4)
    labels = np.repeat([1, 0], [40, 90])
    rates = np.where(labels, 0.8 / 0.2, 1)  # exponential scores with an AUC of 0.8
    drawn = evaluate.auc(labels, rates * rng.exponential(size=(4000, 130)))
    assert drawn.mean() == pytest.approx(0.8, abs=0.003)
    assert np.sqrt(evaluate.hanley_mcneil_variance(40, 90, 0.8)) == pytest.approx(drawn.std(), rel=0.05)


def test_without_a_difference_hanley_and_mcneils_error_has_its_closed_form():
    error = np.sqrt(evaluate.hanley_mcneil_variance(20, 30, 0.5))
    assert error == pytest.approx(np.sqrt((20 + 30 + 1) / (12 * 20 * 30)))


def test_the_expected_width_is_that_of_the_interval(rng):
    labels = scores(rng, n=900)[0]
    found = evaluate.bootstrap_auc(labels, (1 + 3 * labels) * rng.exponential(size=900), CONFIG)
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


COVERAGE = json.loads((Path(__file__).parents[1] / "benchmarks/coverage.json").read_text())
STUDIED = [row for row in COVERAGE["coverage"] if row["study"] != "smallest subgroup"]


def test_coverage_was_measured_with_the_codes_defaults_at_the_sizes_of_the_study():
    defaults, settings = EvaluateConfig(), COVERAGE["settings"]
    assert (settings["bootstrap"], settings["confidence"]) == (defaults.bootstrap, defaults.confidence)
    assert settings["simulations"] == 1000
    assert {(row["patients"], row["positives"]) for row in STUDIED} == {(180, 72), (132, 34), (43, 11)}


@pytest.mark.parametrize("row", STUDIED, ids=lambda row: f"{row['study']}, AUC {row['true_auc']}")
def test_intervals_cover_what_they_promise_and_tests_err_as_seldom_as_they_say(row):
    assert 0.93 <= row["auc"] <= 0.97
    assert 0.93 <= row["difference"] <= 0.97
    assert 0.03 <= row["false_positives"] <= 0.07


def test_holm_gives_the_textbook_values():
    np.testing.assert_allclose(evaluate.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert evaluate.holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_holm_errs_in_five_families_of_a_hundred_when_nothing_is_true(rng):
    families = [evaluate.holm(p).min() < 0.05 for p in rng.uniform(size=(4000, 6))]
    assert np.mean(families) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("ties", [False, True])
def test_roc_points_lie_on_scikit_learns_curve(rng, ties):
    labels, values = scores(rng, ties=ties)
    fpr, tpr, _ = roc_curve(labels, values, drop_intermediate=False)
    grid = np.linspace(0.013, 0.987, 51)
    np.testing.assert_allclose(evaluate.roc_points(labels, values, grid), np.interp(grid, fpr, tpr))


def test_the_roc_band_holds_its_mean(rng):
    labels, values = scores(rng)
    grid, mean, low, high = evaluate.roc_band(labels, values, CONFIG)
    assert grid.shape == mean.shape == low.shape == high.shape == (101,)
    assert (low <= high).all() and (low[1:-1] <= mean[1:-1] + 0.1).all()
    area = np.trapezoid(mean, grid)
    assert area == pytest.approx(roc_auc_score(labels, values), abs=0.02)


def test_youdens_threshold_beats_every_other_on_its_patients(rng):
    labels, values = scores(rng)
    best = evaluate.youden_threshold(labels, values)
    balanced = evaluate.at_threshold(labels, values, best)["balanced_accuracy"]
    assert all(evaluate.at_threshold(labels, values, t)["balanced_accuracy"] <= balanced for t in values)


def test_a_threshold_gives_the_rates_counted_by_hand():
    found = evaluate.at_threshold([1, 1, 0, 0, 0], [0.9, 0.2, 0.8, 0.1, 0.1], 0.5)
    assert found == pytest.approx(
        {"accuracy": 0.6, "balanced_accuracy": (1 / 2 + 2 / 3) / 2, "sensitivity": 1 / 2, "specificity": 2 / 3}
    )


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [0, 2], [0, np.nan]])
def test_labels_without_both_classes_are_refused(labels):
    with pytest.raises(ValueError, match="labels 0 and 1, both present"):
        evaluate.auc(labels, [0.1, 0.2])


def predictions(rng, runs=("a-w-raw", "b-w-raw"), seeds=2, n=40):
    labels = np.arange(n) % 2
    rows = [
        {"cohort": "c", "patient": f"p{k:02d}", "split": "test", "her2": labels[k], "run": run, "model": run[0]}
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
    areas = [roc_auc_score(p["her2"], p["probability"]) for _, p in table[table["model"] == "b"].groupby("seed")]
    spread = found.loc["b-w-raw", ["lowest_seed", "highest_seed", "seed_sd"]].astype(float)
    assert spread.tolist() == pytest.approx([min(areas), max(areas), np.std(areas, ddof=1)])


def test_a_single_seed_has_no_spread(rng):
    assert evaluate.summary(predictions(rng, seeds=1), CONFIG)["seed_sd"].isna().all()


def test_comparisons_name_a_difference_where_there_is_one_and_none_where_there_is_none(rng):
    table = predictions(rng, ("a-w-raw", "b-w-raw", "c-w-raw"), seeds=4)
    found = evaluate.comparisons(table, "c-w-raw", CONFIG)
    assert found["verdict"].tolist() == ["higher than the reference", "no difference detected"]
    assert (found["p_holm"] >= found["p"]).all() and (found["seeds"] == 4).all()
    np.testing.assert_allclose(found["p_holm"], evaluate.holm(found["p"]))
    np.testing.assert_allclose(found["detectable"], 2.801585 * found["se"], rtol=1e-6)
    np.testing.assert_allclose(found["detectable_holm"], (2.241403 + 0.841621) * found["se"], rtol=1e-6)
    assert (found["alpha_holm"] == 0.025).all()


def test_a_worse_run_is_called_lower(rng):
    found = evaluate.comparisons(predictions(rng), "a-w-raw", CONFIG)
    assert found["verdict"].tolist() == ["lower than the reference"] and found["high"][0] < 0


def test_the_columns_of_a_comparison_are_those_of_its_parts(rng):
    table = predictions(rng)
    row = evaluate.comparisons(table, "b-w-raw", CONFIG).iloc[0]
    labels, first = evaluate.matrix(table[table["run"] == "a-w-raw"])
    second = evaluate.matrix(table[table["run"] == "b-w-raw"])[1]
    found = evaluate.bootstrap_difference(labels, first, second, CONFIG)
    assert tuple(row[["difference", "low", "high", "se", "p"]]) == (
        found.value,
        found.low,
        found.high,
        found.se,
        found.p,
    )
    assert row["p_delong"] == evaluate.delong_test(labels, first, second)[1]


@pytest.mark.parametrize("column", ["patient", "seed", "her2"])
def test_runs_with_other_patients_seeds_or_labels_are_not_compared(rng, column):
    table = predictions(rng)
    other = {"patient": "p99", "seed": 7, "her2": 0}[column]
    table.loc[
        (table["run"] == "a-w-raw") & (table[column] == {"patient": "p01", "seed": 1, "her2": 1}[column]), column
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
    alone = evaluate.bootstrap_auc(*evaluate.matrix(table[table["patient"].isin(patients[:20])]), CONFIG)
    assert tuple(found.loc["large", ["auc", "low", "high"]]) == (alone.value, alone.low, alone.high)


def test_a_subgroup_of_one_class_is_too_few_and_a_patient_in_no_group_an_error(rng):
    table = predictions(rng, runs=("a-w-raw",))
    groups = table.drop_duplicates("patient").set_index("patient")["her2"]
    found = evaluate.subgroups(table, groups, CONFIG)
    assert found["note"].tolist() == ["fewer than 5 HER2+", "fewer than 5 HER2−"]
    assert found["patients"].tolist() == [20, 20] and found["auc"].isna().all()
    with pytest.raises(ValueError, match="1 patients stand in no group, such as p07"):
        evaluate.subgroups(table, groups.drop("p07"), CONFIG)


def test_a_reference_that_was_not_run_is_refused(rng):
    with pytest.raises(ValueError, match="reference 'x' is not among the runs"):
        evaluate.comparisons(predictions(rng), "x", CONFIG)


def broken(table, how):
    table = table.copy()
    if how == "no column":
        return table.drop(columns="seed")
    if how == "nan":
        table.loc[3, "probability"] = np.nan
    if how == "above one":
        table.loc[3, "probability"] = 1.2
    if how == "twice":
        table = pd.concat([table, table.iloc[:1]])
    return table


@pytest.mark.parametrize(
    ("how", "message"),
    [("no column", "lack seed"), ("nan", "or missing"), ("above one", "outside"), ("twice", "predicted twice")],
)
def test_a_broken_prediction_table_is_refused(how, message, tmp_path, rng):
    broken(predictions(rng), how).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=message):
        evaluate.read_predictions([tmp_path / "a.csv"])


def test_no_prediction_table_is_an_error_that_says_what_to_run():
    with pytest.raises(ValueError, match="run the training stage"):
        evaluate.read_predictions([])


def probabilities_of(rng, n=400, intercept=0.0, slope=1.0):
    """Labels drawn from known chances, and probabilities whose logits are off by a known intercept and slope."""
    logits = 1.5 * rng.standard_normal(n) - 0.5
    labels = (rng.uniform(size=n) < expit(intercept + slope * logits)).astype(int)
    return labels, expit(logits)


def test_calibration_is_that_of_statsmodels(rng):
    labels, probabilities = probabilities_of(rng, intercept=-0.4, slope=0.6)
    logits = logit(probabilities)
    joint = sm.Logit(labels, sm.add_constant(logits)).fit(disp=0)
    offset = sm.GLM(labels, np.ones((400, 1)), sm.families.Binomial(), offset=logits).fit()
    found = evaluate.calibration(labels, probabilities, confidence=0.9)
    for line, number, part in ((offset, 0, "intercept"), (joint, 1, "slope")):
        expected = (line.params[number], *line.conf_int(alpha=0.1)[number])
        assert found[part] == pytest.approx(expected, rel=1e-4), part
    fitted = evaluate.fit_recalibration(labels, probabilities)
    assert (fitted.intercept, fitted.slope) == pytest.approx(tuple(joint.params), rel=1e-5)
    np.testing.assert_allclose(evaluate.recalibrate(probabilities, fitted), joint.predict(), rtol=1e-5)


def test_recalibration_on_one_half_mends_the_other(rng):
    labels, probabilities = probabilities_of(rng, n=40_000, intercept=0.7, slope=0.5)
    raw = evaluate.calibration(labels[20_000:], probabilities[20_000:])
    assert raw["slope"][0] == pytest.approx(0.5, abs=0.03) and raw["intercept"][1] > 0.3
    fitted = evaluate.fit_recalibration(labels[:20_000], probabilities[:20_000])
    mended = evaluate.calibration(labels[20_000:], evaluate.recalibrate(probabilities[20_000:], fitted))
    assert (mended["intercept"][0], mended["slope"][0]) == pytest.approx((0, 1), abs=0.06)


def test_the_intervals_of_calibration_cover_what_they_promise(rng):
    inside = []
    for _ in range(400):
        line = evaluate.calibration(*probabilities_of(rng, n=180))
        inside.append(
            [low < truth < high for truth, (_, low, high) in ((0, line["intercept"]), (1, line["slope"]))]
        )
    assert np.mean(inside, axis=0) == pytest.approx([0.95, 0.95], abs=0.03)


def test_recalibration_keeps_shape_and_order_and_bears_rounded_probabilities():
    probabilities = np.array([[0, 0.2, 0.5], [0.6, 0.9, 1]])
    found = evaluate.recalibrate(probabilities, Recalibration(0, 1))
    np.testing.assert_allclose(found, probabilities, atol=1e-5)
    assert (np.diff(evaluate.recalibrate(probabilities, Recalibration(-2, 0.3)).ravel()) > 0).all()


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1], [0.5] * 4, [0.1, 0.4, 0.4, 0.6]])
def test_separated_or_constant_probabilities_have_no_slope(values):
    with pytest.raises(ValueError, match="4 patients separate the classes or are all alike"):
        evaluate.fit_recalibration([0, 0, 1, 1], values)


def test_average_precision_and_brier_are_those_counted_by_hand():
    found = evaluate.precision_and_error([1, 0, 1, 0, 0], [0.9, 0.8, 0.7, 0.2, 0.1])
    brier = (0.1**2 + 0.8**2 + 0.3**2 + 0.2**2 + 0.1**2) / 5
    assert found == pytest.approx({"auprc": (1 + 2 / 3) / 2, "prevalence": 0.4, "brier": brier})


def test_reliability_is_scikit_learns_curve_with_counts(rng):
    labels, probabilities = probabilities_of(rng)
    found = evaluate.reliability(labels, probabilities, bins=5)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=5, strategy="quantile")
    np.testing.assert_allclose(found["observed"], observed)
    np.testing.assert_allclose(found["predicted"], predicted)
    assert found["patients"].tolist() == [80] * 5
    wilson = sm.stats.proportion_confint(found["observed"] * 80, 80, method="wilson")
    np.testing.assert_allclose(found[["low", "high"]].T, wilson)


def test_patients_with_one_probability_share_a_bin():
    found = evaluate.reliability([0, 1, 0, 1, 1, 1], [0.2, 0.2, 0.2, 0.2, 0.9, 0.9], bins=6)
    assert found["patients"].tolist() == [4, 2] and found["observed"].tolist() == [0.5, 1.0]


def test_net_benefit_is_that_counted_by_hand():
    found = evaluate.net_benefit([1, 1, 0, 0, 0], [0.9, 0.3, 0.6, 0.2, 0.1], [0.25, 0.5])
    assert found["model"].tolist() == pytest.approx([2 / 5 - 1 / 5 / 3, 1 / 5 - 1 / 5])
    assert found["treat_all"].tolist() == pytest.approx([2 / 5 - 3 / 5 / 3, 2 / 5 - 3 / 5])
    assert found["treat_none"].tolist() == [0, 0]


def test_below_every_probability_the_model_is_to_treat_all(rng):
    labels, probabilities = probabilities_of(rng)
    found = evaluate.net_benefit(labels, probabilities, [probabilities.min()])
    assert found["model"][0] == pytest.approx(found["treat_all"][0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        evaluate.net_benefit(labels, probabilities, [0.5, 1.0])


@pytest.mark.parametrize("wrong", [{"bootstrap": 1}, {"confidence": 1.0}])
def test_settings_that_give_no_interval_are_refused(wrong):
    with pytest.raises(ValueError, match="bootstrap >= 2 and 0 < confidence < 1"):
        EvaluateConfig(**wrong)


def test_the_band_of_a_decision_curve_holds_the_curve_and_narrows_with_patients(rng):
    widths = []
    for n in (60, 600):
        labels = np.arange(n) % 2
        probabilities = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.15, n), 0.01, 0.99)
        band = evaluate.net_benefit_band(labels, probabilities, [0.3, 0.5], EvaluateConfig(bootstrap=200))
        assert ((band["low"] <= band["model"]) & (band["model"] <= band["high"])).all()
        widths.append((band["high"] - band["low"]).mean())
    assert widths[1] < 0.6 * widths[0]


def test_a_calibration_row_has_numbers_where_they_exist_and_nan_where_nothing_can_be_fitted():
    labels = np.array([0, 0, 1, 1])
    row = evaluate.calibration_row(labels, np.array([0.2, 0.3, 0.7, 0.8]))
    assert np.isnan([row["slope"], row["slope_low"], row["slope_high"]]).all()
    assert row["intercept"] == pytest.approx(0, abs=1e-9) and row["auprc"] == 1.0 and row["patients"] == 4
    assert evaluate.fit_recalibration_or_none(labels, np.array([0.2, 0.3, 0.7, 0.8])) is None
    row = evaluate.calibration_row(labels, np.array([0.2, 0.7, 0.3, 0.8]))
    assert row["slope_low"] < 0 < row["slope"] < row["slope_high"]
    narrow = evaluate.calibration_row(labels, np.array([0.2, 0.7, 0.3, 0.8]), confidence=0.5)
    assert row["slope_low"] < narrow["slope_low"] and narrow["intercept_high"] < row["intercept_high"]
