"""Statistics against independent computations and constructed truths."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from her2core import evaluate
from her2core.evaluate import EvaluateConfig

CONFIG = EvaluateConfig(bootstrap=400, confidence=0.95, seed=1)


def scores(rng, n=60, shift=1.0, ties=False):
    labels = np.arange(n) % 3 == 0
    values = rng.standard_normal(n) + shift * labels
    return labels.astype(int), np.round(values) if ties else values


def brute_placements(labels, values):
    positive, negative = values[labels == 1], values[labels == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return wins.mean(1), wins.mean(0)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_scikit_learns(rng, ties):
    labels, values = scores(rng, ties=ties)
    assert evaluate.auc(labels, values) == pytest.approx(roc_auc_score(labels, values))


@pytest.mark.parametrize("ties", [False, True])
def test_delong_variance_is_the_brute_force_one(rng, ties):
    labels, values = scores(rng, ties=ties)
    v10, v01 = brute_placements(labels, values)
    expected = v10.var(ddof=1) / v10.size + v01.var(ddof=1) / v01.size
    assert evaluate.delong_variance(labels, values) == pytest.approx(expected)


def test_delong_test_is_the_brute_force_one(rng):
    labels, first = scores(rng)
    second = first + rng.standard_normal(first.size)
    parts = zip(brute_placements(labels, first), brute_placements(labels, second), strict=True)
    variance = sum((a - b).var(ddof=1) / a.size for a, b in parts)
    difference, p = evaluate.delong_test(labels, first, second)
    assert difference == pytest.approx(roc_auc_score(labels, first) - roc_auc_score(labels, second))
    assert p == pytest.approx(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))


def test_delong_of_a_score_with_itself_finds_nothing(rng):
    labels, values = scores(rng)
    assert evaluate.delong_test(labels, values, values) == (0.0, 1.0)


def test_intervals_of_delong_and_bootstrap_agree_on_many_patients(rng):
    labels, values = scores(rng, n=900)
    delong = evaluate.delong_interval(labels, values)
    boot = evaluate.bootstrap_auc(labels, values, CONFIG)
    assert (delong.patients, delong.positives) == (900, 300)
    assert boot.low == pytest.approx(delong.low, abs=0.01) and boot.high == pytest.approx(delong.high, abs=0.01)


def test_bootstrap_resamples_patients_within_their_class(rng):
    labels, _ = scores(rng)
    index = evaluate.resample(labels, CONFIG)
    assert index.shape == (400, 60)
    assert (labels[index][:, :20] == 1).all() and (labels[index][:, 20:] == 0).all()


def test_the_auc_of_several_seeds_is_their_mean(rng):
    labels, values = scores(rng)
    seeds = np.stack([values, values + rng.standard_normal(60)])
    expected = np.mean([roc_auc_score(labels, row) for row in seeds])
    assert evaluate.bootstrap_auc(labels, seeds, CONFIG).value == pytest.approx(expected)


def test_a_paired_difference_is_zero_and_certain_for_equal_runs(rng):
    labels, values = scores(rng)
    estimate, p = evaluate.bootstrap_difference(labels, values, values, CONFIG)
    assert (estimate.value, estimate.low, estimate.high, p) == (0, 0, 0, 1)


def test_a_real_difference_is_found_and_never_with_p_zero(rng):
    labels, values = scores(rng, n=300, shift=3)
    estimate, p = evaluate.bootstrap_difference(labels, values, rng.standard_normal(300), CONFIG)
    assert estimate.low > 0 and p == pytest.approx(2 / 401)


def test_holm_gives_the_textbook_values():
    np.testing.assert_allclose(evaluate.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert evaluate.holm([0.9, 0.8]).tolist() == [1.0, 1.0]


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
    found = evaluate.summary(predictions(rng), CONFIG).set_index("run")
    assert found["auc"]["a-w-raw"] > 0.8 > found["high"]["b-w-raw"]
    assert (found["patients"] == 40).all() and (found["positives"] == 20).all() and (found["seeds"] == 2).all()
    assert (found["low"] <= found["auc"]).all() and (found["auc"] <= found["high"]).all()


def test_comparisons_name_a_difference_where_there_is_one_and_none_where_there_is_none(rng):
    found = evaluate.comparisons(predictions(rng, ("a-w-raw", "b-w-raw", "c-w-raw")), "c-w-raw", CONFIG)
    assert found["verdict"].tolist() == ["higher than the reference", "no difference detected"]
    assert (found["p_holm"] >= found["p"]).all()


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
