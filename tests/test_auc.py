"""AUCs, their intervals and differences against independent computations and constructed truths."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.special import logit
from sklearn.metrics import roc_auc_score, roc_curve

from her2core import auc, paired
from her2core.auc import EvaluateConfig

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
    assert auc.auc(labels, values) == pytest.approx(roc_auc_score(labels, values))


@pytest.mark.parametrize("ties", [False, True])
def test_delong_variance_is_the_brute_force_one(rng, ties):
    labels, values = scores(rng, ties=ties)
    expected = brute_variance(*brute_components(labels, values))
    assert auc.delong_variance(auc.comparison(labels, values)) == pytest.approx(expected)


def test_delong_test_of_several_seeds_is_the_brute_force_one(rng):
    labels, values = scores(rng)
    first, second = values + rng.standard_normal((3, 60)), values + rng.standard_normal((3, 60))
    mean = [
        [np.mean([brute_components(labels, row)[i] for row in run], axis=0) for i in (0, 1)]
        for run in (first, second)
    ]
    variance = brute_variance(mean[0][0] - mean[1][0], mean[0][1] - mean[1][1])
    difference, p = paired.delong_test(labels, first, second)
    assert difference == pytest.approx(
        np.mean([brute_auc(labels, a) - brute_auc(labels, b) for a, b in zip(first, second, strict=True)])
    )
    assert p == pytest.approx(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))


def test_delong_of_a_score_with_itself_finds_nothing(rng):
    labels, values = scores(rng)
    assert paired.delong_test(labels, values, values) == (0.0, 1.0)


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
        found = auc.auc(labels, values), np.sqrt(auc.delong_variance(auc.comparison(labels, values)))
        assert found == pytest.approx(published[name], abs=5e-5)
    assert paired.delong_test(labels, albumin, 10 - score) == pytest.approx((0.0108, 0.9102), abs=5e-5)
    assert paired.delong_test(labels, protein, 10 - score) == pytest.approx((-0.0780, 0.4561), abs=5e-5)


def test_intervals_of_delong_and_bootstrap_agree_on_many_patients(rng):
    labels, values = scores(rng, n=900)
    boot = auc.bootstrap_auc(labels, values, CONFIG)
    half = 1.96 * np.sqrt(auc.delong_variance(auc.comparison(labels, values)))
    assert (boot.patients, boot.positives) == (900, 300)
    assert (boot.low, boot.high) == pytest.approx((boot.value - half, boot.value + half), abs=0.01)


def test_bootstrap_resamples_patients_within_their_class(rng):
    labels, _ = scores(rng)
    index = auc.resample(labels, CONFIG)
    assert index.shape == (400, 60)
    assert (labels[index][:, :20] == 1).all() and (labels[index][:, 20:] == 0).all()


@pytest.mark.parametrize("ties", [False, True])
def test_a_weighted_resample_has_the_auc_and_variance_of_the_resampled_patients(rng, ties):
    labels, values = scores(rng, ties=ties)
    weights = auc.resample_weights(labels, CONFIG)
    mean, variance = auc.resampled_moments(auc.comparison(labels, values), weights)
    for row, index in enumerate(auc.resample(labels, CONFIG)[:20]):
        assert mean[row] == pytest.approx(roc_auc_score(labels[index], values[index]))
        assert variance[row] == pytest.approx(brute_variance(*brute_components(labels[index], values[index])))


def test_the_auc_of_several_seeds_is_their_mean(rng):
    labels, values = scores(rng)
    seeds = np.stack([values, values + rng.standard_normal(60)])
    expected = np.mean([roc_auc_score(labels, row) for row in seeds])
    assert auc.bootstrap_auc(labels, seeds, CONFIG).value == pytest.approx(expected)


def test_an_interval_is_mirrored_when_the_scores_are_turned_round(rng):
    labels, values = scores(rng)
    found, turned = (auc.bootstrap_auc(labels, v, CONFIG) for v in (values, -values))
    assert (turned.low, turned.high) == pytest.approx((1 - found.high, 1 - found.low))


@pytest.mark.parametrize("sign", [1, -1])
def test_perfect_separation_of_few_patients_is_not_certain(sign):
    labels = np.repeat([0, 1], [6, 5])
    found = auc.bootstrap_auc(labels, sign * np.arange(11.0), CONFIG)
    inner, outer = (found.low, found.high) if sign > 0 else (1 - found.high, 1 - found.low)
    assert (found.value, outer) == ((1 + sign) / 2, 1)
    assert 0.5 < inner < 0.8
    error = np.sqrt(auc.hanley_mcneil_variance(5, 6, inner))
    assert (1 - inner) / error == pytest.approx(stats.norm.ppf(0.975))


def test_one_patient_of_a_class_has_no_variance():
    with pytest.raises(ValueError, match="two patients of each class, found 1 of 4"):
        auc.bootstrap_auc([1, 0, 0, 0], [0.4, 0.1, 0.2, 0.5], CONFIG)


def test_a_paired_difference_is_zero_and_certain_for_equal_runs(rng):
    labels, values = scores(rng)
    found = paired.bootstrap_difference(labels, values, values, CONFIG)
    assert (found.value, found.low, found.high, found.se, found.p) == (0, 0, 0, 0, 1)


def test_a_real_difference_is_found_and_never_with_p_zero(rng):
    labels, values = scores(rng, n=300, shift=3)
    found = paired.bootstrap_difference(labels, values, rng.standard_normal(300), CONFIG)
    assert found.low > 0 and found.p == pytest.approx(1 / 401)
    perfect = paired.bootstrap_difference(labels, labels, 1 - labels, CONFIG)
    assert (perfect.value, perfect.p) == (1, pytest.approx(1 / 401))


def test_interval_and_p_value_of_a_difference_agree(rng):
    labels, values = scores(rng)
    first, second = values + rng.standard_normal((3, 60)), rng.standard_normal((3, 60))
    p = paired.bootstrap_difference(labels, first, second, CONFIG).p
    at_p = EvaluateConfig(CONFIG.bootstrap, 1 - p, CONFIG.seed)
    assert p > 1 / 401
    assert paired.bootstrap_difference(labels, first, second, at_p).low == pytest.approx(0, abs=1e-9)


def seeds_of(rng, labels, shifts, own):
    """Seeds that share the patients' noise, each with its own shift and a little noise of its own."""
    shared = rng.standard_normal(labels.size)
    return np.stack([shared + s * labels + own * rng.standard_normal(labels.size) for s in shifts])


def test_seeds_that_agree_add_nothing_to_the_patients(rng):
    labels, values = scores(rng, n=300)
    second = values + rng.standard_normal(300)
    single = paired.bootstrap_difference(labels, values, second, CONFIG)
    repeated = paired.bootstrap_difference(labels, np.stack([values] * 4), np.stack([second] * 4), CONFIG)
    assert repeated.se == pytest.approx(single.se) and repeated.p == pytest.approx(single.p)
    assert single.se == pytest.approx(
        np.sqrt(auc.delong_variance(auc.comparison(labels, values) - auc.comparison(labels, second))),
        rel=0.1,
    )


def test_seeds_that_differ_in_quality_widen_the_interval_to_what_seeds_alone_give(rng):
    labels = scores(rng, n=3000)[0]
    first = seeds_of(rng, labels, (0.2, 0.8, 1.4, 2.0), 0.01)
    second = np.stack([first[1]] * 4)
    gaps = [brute - roc_auc_score(labels, second[0]) for brute in (roc_auc_score(labels, row) for row in first)]
    found = paired.bootstrap_difference(labels, first, second, EvaluateConfig(100))
    low, high = stats.t.interval(0.95, 3, np.mean(gaps), stats.sem(gaps))
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.05)
    assert paired.delong_test(labels, first, second)[1] < 0.001 < 0.05 < found.p


def test_chance_that_differs_from_seed_to_seed_is_not_counted_twice(rng):
    """Equally good seeds, their own noise large: the variance is that of the patients, as DeLong finds it."""
    labels = scores(rng, n=600)[0]
    ratios = []
    for _ in range(12):
        first, second = (seeds_of(rng, labels, (1,) * 8, 1.5) for _ in range(2))
        compared = (auc.comparison(labels, first) - auc.comparison(labels, second)).mean(0)
        found = paired.bootstrap_difference(labels, first, second, EvaluateConfig(200))
        ratios.append(found.se / np.sqrt(auc.delong_variance(compared)))
    assert 0.97 < np.mean(ratios) < 1.1


def test_runs_of_other_seeds_are_not_paired(rng):
    labels, values = scores(rng)
    with pytest.raises(ValueError, match="same seeds and patients"):
        paired.bootstrap_difference(labels, np.stack([values] * 2), values, CONFIG)


@pytest.mark.parametrize("freedom", [3, 8, 60])
def test_the_detectable_difference_is_found_in_four_of_five_studies(rng, freedom):
    """Studies whose error is estimated with so many degrees of freedom, as the t-test assumes."""
    true, limit = paired.detectable(0.02, freedom), stats.t.ppf(0.975, freedom)
    errors = 0.02 * np.sqrt(rng.chisquare(freedom, 40_000) / freedom)
    found = np.abs(true + 0.02 * rng.standard_normal(40_000)) > limit * errors
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_with_many_degrees_of_freedom_the_detectable_difference_is_the_normal_one():
    assert paired.detectable(0.02, 1e6) == pytest.approx((1.959964 + 0.841621) * 0.02, rel=1e-4)
    assert paired.detectable(0.0, 50) == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((0.1, 0.001, 0.004), "higher than the reference"),
        ((-0.1, 0.001, 0.004), "lower than the reference"),
        ((-0.1, 0.01, 0.08), "not after correction"),
        ((0.1, 0.2, 0.2), "no difference detected"),
    ],
)
def test_a_verdict_says_whether_the_correction_took_the_difference_away(row, words):
    assert paired.verdict(*row) == words


def test_hanley_and_mcneils_error_is_theirs_and_that_of_exponential_scores(rng):
    assert np.sqrt(auc.hanley_mcneil_variance(51, 58, 0.893)) == pytest.approx(0.032, abs=6e-4)
    labels = np.repeat([1, 0], [40, 90])
    rates = np.where(labels, 0.8 / 0.2, 1)  # exponential scores with an AUC of 0.8
    drawn = auc.auc(labels, rates * rng.exponential(size=(4000, 130)))
    assert drawn.mean() == pytest.approx(0.8, abs=0.003)
    assert np.sqrt(auc.hanley_mcneil_variance(40, 90, 0.8)) == pytest.approx(drawn.std(), rel=0.05)


def test_without_a_difference_hanley_and_mcneils_error_has_its_closed_form():
    error = np.sqrt(auc.hanley_mcneil_variance(20, 30, 0.5))
    assert error == pytest.approx(np.sqrt((20 + 30 + 1) / (12 * 20 * 30)))


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


POWER = COVERAGE["power"]["power"]
OCCURRING = [row for row in POWER if row["seed_sd"] <= 0.035]


@pytest.mark.parametrize(
    "row", OCCURRING, ids=lambda row: f"{row['study']}, {row['seeds']} seeds, SD {row['seed_sd']}"
)
def test_what_is_called_detectable_is_found_in_four_of_five_studies(row):
    assert 0.77 <= row["power"] <= 0.83
    assert 0.93 <= row["difference"] <= 0.97
    assert 0.93 <= row["auc"] <= 0.97


def test_where_seeds_differ_more_than_in_the_two_studies_a_little_less_is_kept_of_what_is_promised():
    more = [row for row in POWER if row not in OCCURRING]
    assert {row["seed_sd"] for row in more} == {0.05, 0.06} and all(0.77 <= row["power"] <= 0.83 for row in more)
    assert all(0.92 <= row["difference"] <= 0.97 and 0.93 <= row["auc"] <= 0.97 for row in more)


# two networks, the second with scores ten times as high: pooled, every patient of the second fold is above
FOLD_LABELS = np.array([0, 0, 1, 1, 0, 0, 1, 1])
FOLDS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
FOLD_SCORES = np.array([0.01, 0.03, 0.02, 0.04, 0.3, 0.1, 0.2, 0.4])


def test_only_patients_of_one_fold_are_compared():
    assert auc.auc(FOLD_LABELS, FOLD_SCORES) == 10 / 16 and auc.auc(FOLD_LABELS, FOLD_SCORES, FOLDS) == 0.75
    uneven = np.array([0, 0, 0, 0, 0, 1, 0, 1])  # 4 × 3 pairs, of which 8 are right, and 1 × 1, right
    within = [brute_auc(FOLD_LABELS[uneven == f], FOLD_SCORES[uneven == f]) for f in (0, 1)]
    expected = (9 * within[0] + within[1]) / 10
    assert auc.auc(FOLD_LABELS, FOLD_SCORES, uneven) == pytest.approx(expected)


def test_folds_of_one_number_are_no_folds(rng):
    labels, values = scores(rng)
    one = np.zeros(60, int)
    np.testing.assert_allclose(auc.comparison(labels, values, one), auc.comparison(labels, values), atol=1e-12)
    bands = (auc.roc_band(labels, values, CONFIG, folds) for folds in (None, one[None]))
    np.testing.assert_array_equal(*map(np.array, bands))


def folded_scores(rng, seeds=2, n=90):
    """Labels, scores and folds `(seeds, n)`; each seed has folds of its own, each fold a scale of its own."""
    labels, values = scores(rng, n=n)
    folds = np.array([rng.permutation(n) % 3 + 3 * seed for seed in range(seeds)])
    return labels, (values + 0.5 * rng.standard_normal((seeds, n))) * (1 + folds) + 9 * folds, folds


def test_the_variance_under_folds_is_that_of_the_influence_curve(rng):
    labels, values, folds = (a[0] if a.ndim > 1 else a for a in folded_scores(rng))
    value, influence = auc.auc(labels, values, folds), np.zeros(90)
    pairs = [(i, j) for i in range(90) for j in range(90) if labels[i] > labels[j] and folds[i] == folds[j]]
    for i, j in pairs:
        gain = float(values[i] > values[j]) - value
        influence[[i, j]] += gain / len(pairs)
    expected = sum(v.size * v.var(ddof=1) for v in (influence[labels == 1], influence[labels == 0]))
    assert auc.delong_variance(auc.comparison(labels, values, folds)) == pytest.approx(expected)


def test_a_networks_scale_moves_neither_auc_nor_interval_nor_difference_nor_curve(rng):
    labels, values, folds = folded_scores(rng)
    moved = np.exp(values / 50) - 7 * (folds == 1)
    other = rng.standard_normal(values.shape)
    for function in (
        lambda v: auc.auc(labels, v, folds),
        lambda v: vars(auc.bootstrap_auc(labels, v, CONFIG, folds)),
        lambda v: vars(paired.bootstrap_difference(labels, v, other, CONFIG, folds)),
        lambda v: paired.delong_test(labels, v, other, folds),
        lambda v: np.array(auc.roc_band(labels, v, CONFIG, folds)).tolist(),
    ):
        assert np.array_equal(function(values), function(moved))


def test_the_area_under_the_curve_of_folds_is_the_auc_within_them(rng):
    labels, values, folds = folded_scores(rng, n=900)
    grid, mean, *_ = auc.roc_band(labels, values, CONFIG, folds)
    expected = auc.bootstrap_auc(labels, values, CONFIG, folds)
    assert np.trapezoid(mean, grid) == pytest.approx(expected.value, abs=0.005)
    assert expected.value == pytest.approx(auc.auc(labels, values, folds).mean())


def test_an_interval_under_folds_is_wider_by_their_correlation(rng, monkeypatch):
    labels, values, folds = folded_scores(rng)
    found = auc.bootstrap_auc(labels, values, CONFIG, folds)
    monkeypatch.setattr(auc, "FOLD_CORRELATION", 0)
    bare = auc.bootstrap_auc(labels, values, CONFIG, folds)
    widths = [np.diff(logit([e.low, e.value, e.high])) for e in (found, bare)]
    np.testing.assert_allclose(widths[0] / widths[1], np.sqrt(1 + 0.04 * 2))  # of three folds
    assert found.value == bare.value


def test_perfect_folds_are_not_certain_and_folds_without_a_pair_are_refused():
    perfect = auc.bootstrap_auc(FOLD_LABELS, FOLD_LABELS + 5 * FOLDS, CONFIG, FOLDS[None])
    assert (perfect.value, perfect.high) == (1, 1) and perfect.low < 0.9
    with pytest.raises(ValueError, match="no positive and negative lie in the same fold.*lower cohort.folds"):
        auc.auc(FOLD_LABELS, FOLD_SCORES, FOLD_LABELS)


@pytest.mark.parametrize("study", ["embedded test", "I-SPY"])
def test_intervals_under_five_folds_cover_what_they_promise(study):
    settings, rows = (COVERAGE["folds"][part] for part in ("settings", "coverage"))
    rows = [row for row in rows if row["study"] == study]
    assert settings["folds"] == 5 and [row["repeats"] for row in rows] == [1, 3, 1, 3]
    assert 0.93 <= np.mean([row["auc"] for row in rows]) <= 0.97
    chance = 2 * np.sqrt(0.95 * 0.05 / rows[0]["simulations"])  # of a single row
    assert all(0.93 - chance <= row["auc"] <= 0.97 + chance for row in rows)
    compared = [row for row in rows if row["compared"]]
    assert all(row["difference"] >= 0.93 and row["false_positives"] <= 0.07 for row in compared)
    assert (len(compared) == 4) is (study == "embedded test")


def test_holm_gives_the_textbook_values():
    np.testing.assert_allclose(paired.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert paired.holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_holm_errs_in_five_families_of_a_hundred_when_nothing_is_true(rng):
    families = [paired.holm(p).min() < 0.05 for p in rng.uniform(size=(4000, 6))]
    assert np.mean(families) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("ties", [False, True])
def test_roc_points_lie_on_scikit_learns_curve(rng, ties):
    labels, values = scores(rng, ties=ties)
    fpr, tpr, _ = roc_curve(labels, values, drop_intermediate=False)
    grid = np.linspace(0.013, 0.987, 51)
    np.testing.assert_allclose(auc.roc_points(labels, values, grid), np.interp(grid, fpr, tpr))


def test_the_roc_band_holds_its_mean(rng):
    labels, values = scores(rng)
    grid, mean, low, high = auc.roc_band(labels, values, CONFIG)
    assert grid.shape == mean.shape == low.shape == high.shape == (101,)
    assert (low <= high).all() and (low[1:-1] <= mean[1:-1] + 0.1).all()
    area = np.trapezoid(mean, grid)
    assert area == pytest.approx(roc_auc_score(labels, values), abs=0.02)


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [0, 2], [0, np.nan]])
def test_labels_without_both_classes_are_refused(labels):
    with pytest.raises(ValueError, match="labels 0 and 1, both present"):
        auc.auc(labels, [0.1, 0.2])


@pytest.mark.parametrize("wrong", [{"bootstrap": 1}, {"confidence": 1.0}])
def test_settings_that_give_no_interval_are_refused(wrong):
    with pytest.raises(ValueError, match="bootstrap >= 2 and 0 < confidence < 1"):
        EvaluateConfig(**wrong)
