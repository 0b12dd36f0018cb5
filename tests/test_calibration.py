"""Calibration, thresholds and net benefit against independent computations and constructed truths."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from statsmodels.stats.proportion import proportion_confint

from her2core import calibration
from her2core.auc import EvaluateConfig
from her2core.calibration import Recalibration


def probabilities_of(rng, n=400, intercept=0.0, slope=1.0):
    """Labels drawn from known chances, and probabilities whose logits are off by a known intercept and slope."""
    logits = 1.5 * rng.standard_normal(n) - 0.5
    labels = (rng.uniform(size=n) < expit(intercept + slope * logits)).astype(int)
    return labels, expit(logits)


def test_youdens_threshold_beats_every_other_on_its_patients(rng):
    labels, values = probabilities_of(rng)
    best = calibration.youden_threshold(labels, values)
    found = [calibration.rates(labels, values >= cut)["balanced_accuracy"] for cut in (best, *values)]
    assert max(found) == found[0] > 0.5


def test_of_thresholds_that_are_worth_the_same_the_lowest_is_taken_though_floats_differ_in_the_last_digit():
    labels, values = np.array([1, 1, 0, 1, 1, 1, 0, 1]), np.arange(8) / 10
    assert 4 / 6 - 1 / 2 < 1 / 6  # sensitivity minus 1 − specificity, at 0.3 and at 0.7
    assert calibration.youden_threshold(labels, values) == 0.3


def test_rates_are_those_counted_by_hand():
    found = calibration.rates([1, 1, 0, 0, 0], np.array([0.9, 0.2, 0.8, 0.1, 0.1]) >= 0.5)
    values = {k: v for k, v in found.items() if not k.endswith(("_low", "_high"))}
    by_hand = {"accuracy": 0.6, "sensitivity": 1 / 2, "specificity": 2 / 3, "ppv": 1 / 2, "npv": 2 / 3}
    assert values == pytest.approx(by_hand | {"balanced_accuracy": (1 / 2 + 2 / 3) / 2})


def test_rates_are_the_mean_over_seeds_and_predictive_values_of_all_their_calls():
    labels, called = np.array([1, 1, 0, 0, 0]), np.array([[1, 0, 1, 0, 0], [1, 1, 1, 0, 0]], bool)
    found = calibration.rates(labels, called)
    assert (found["sensitivity"], found["accuracy"]) == pytest.approx((0.75, 0.7))
    assert (found["ppv"], found["npv"]) == pytest.approx((3 / 5, 4 / 5))


def test_the_interval_of_a_rate_is_wilsons(rng):
    labels, values = probabilities_of(rng)
    called = values >= 0.5
    found = calibration.rates(labels, called, confidence=0.9)
    counts = {"accuracy": (called == labels, 400), "sensitivity": (called[labels == 1], (labels == 1).sum())}
    counts |= {"specificity": (~called[labels == 0], (labels == 0).sum()), "ppv": (labels[called], called.sum())}
    counts |= {"npv": (1 - labels[~called], (~called).sum())}
    for name, (right, n) in counts.items():
        expected = proportion_confint(right.sum(), n, alpha=0.1, method="wilson")
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(expected), name


def test_where_nobody_is_called_positive_there_is_no_predictive_value():
    found = calibration.rates([1, 0, 0], np.zeros(3, bool))
    assert np.isnan([found["ppv"], found["ppv_low"], found["ppv_high"]]).all() and found["npv"] == 2 / 3


def test_the_performance_names_the_threshold_and_averages_the_seeds():
    labels, seeds = np.array([1, 0, 1, 0]), np.array([[0.9, 0.2, 0.4, 0.6], [0.8, 0.1, 0.7, 0.3]])
    found = calibration.performance(labels, seeds, {"0.5": seeds >= 0.5, "t": seeds >= 0.35})
    assert found["sensitivity_at_0.5"] == 0.75 and found["sensitivity_at_t"] == 1
    assert found["specificity_at_t_low"] < found["specificity_at_t"] == 0.75 < found["specificity_at_t_high"]
    briers = [np.mean((row - labels) ** 2) for row in seeds]
    assert found["brier"] == pytest.approx(np.mean(briers))


def test_calibration_is_that_of_statsmodels(rng):
    labels, probabilities = probabilities_of(rng, intercept=-0.4, slope=0.6)
    logits = logit(probabilities)
    joint = sm.Logit(labels, sm.add_constant(logits)).fit(disp=0)
    offset = sm.GLM(labels, np.ones((400, 1)), sm.families.Binomial(), offset=logits).fit()
    found = calibration.calibration(labels, probabilities, confidence=0.9)
    for line, number, part in ((offset, 0, "intercept"), (joint, 1, "slope")):
        expected = (line.params[number], *line.conf_int(alpha=0.1)[number])
        assert found[part] == pytest.approx(expected, rel=1e-4), part
    fitted = calibration.fit_recalibration_or_none(labels, probabilities)
    assert (fitted.intercept, fitted.slope) == pytest.approx(tuple(joint.params), rel=1e-5)
    np.testing.assert_allclose(calibration.recalibrate(probabilities, fitted), joint.predict(), rtol=1e-5)
    assert calibration.recalibrate(probabilities, None) is probabilities


def test_recalibration_on_one_half_mends_the_other(rng):
    labels, probabilities = probabilities_of(rng, n=40_000, intercept=0.7, slope=0.5)
    raw = calibration.calibration(labels[20_000:], probabilities[20_000:])
    assert raw["slope"][0] == pytest.approx(0.5, abs=0.03) and raw["intercept"][1] > 0.3
    fitted = calibration.fit_recalibration_or_none(labels[:20_000], probabilities[:20_000])
    mended = calibration.calibration(labels[20_000:], calibration.recalibrate(probabilities[20_000:], fitted))
    assert (mended["intercept"][0], mended["slope"][0]) == pytest.approx((0, 1), abs=0.06)


def test_the_intervals_of_calibration_cover_what_they_promise(rng):
    inside = []
    for _ in range(400):
        line = calibration.calibration(*probabilities_of(rng, n=180))
        inside.append(
            [low < truth < high for truth, (_, low, high) in ((0, line["intercept"]), (1, line["slope"]))]
        )
    assert np.mean(inside, axis=0) == pytest.approx([0.95, 0.95], abs=0.03)


def test_recalibration_keeps_shape_and_order_and_bears_rounded_probabilities():
    probabilities = np.array([[0, 0.2, 0.5], [0.6, 0.9, 1]])
    found = calibration.recalibrate(probabilities, Recalibration(0, 1))
    np.testing.assert_allclose(found, probabilities, atol=1e-5)
    assert (np.diff(calibration.recalibrate(probabilities, Recalibration(-2, 0.3)).ravel()) > 0).all()


@pytest.mark.parametrize("values", [[0.1, 0.2, 0.8, 0.9], [0.9, 0.8, 0.2, 0.1], [0.5] * 4, [0.1, 0.4, 0.4, 0.6]])
def test_separated_or_constant_probabilities_have_no_slope(values):
    assert calibration.fit_recalibration_or_none([0, 0, 1, 1], values) is None


def test_average_precision_and_brier_are_those_counted_by_hand():
    found = calibration.precision_and_error([1, 0, 1, 0, 0], [0.9, 0.8, 0.7, 0.2, 0.1])
    brier = (0.1**2 + 0.8**2 + 0.3**2 + 0.2**2 + 0.1**2) / 5
    assert found == pytest.approx({"auprc": (1 + 2 / 3) / 2, "prevalence": 0.4, "brier": brier})


def test_reliability_is_scikit_learns_curve_with_counts(rng):
    labels, probabilities = probabilities_of(rng)
    found = calibration.reliability(labels, probabilities, bins=5)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=5, strategy="quantile")
    np.testing.assert_allclose(found["observed"], observed)
    np.testing.assert_allclose(found["predicted"], predicted)
    assert found["patients"].tolist() == [80] * 5
    wilson = sm.stats.proportion_confint(found["observed"] * 80, 80, method="wilson")
    np.testing.assert_allclose(found[["low", "high"]].T, wilson)


def test_patients_with_one_probability_share_a_bin():
    found = calibration.reliability([0, 1, 0, 1, 1, 1], [0.2, 0.2, 0.2, 0.2, 0.9, 0.9], bins=6)
    assert found["patients"].tolist() == [4, 2] and found["observed"].tolist() == [0.5, 1.0]


def test_net_benefit_is_that_counted_by_hand():
    found = calibration.net_benefit([1, 1, 0, 0, 0], [0.9, 0.3, 0.6, 0.2, 0.1], [0.25, 0.5])
    assert found["model"].tolist() == pytest.approx([2 / 5 - 1 / 5 / 3, 1 / 5 - 1 / 5])
    assert found["treat_all"].tolist() == pytest.approx([2 / 5 - 3 / 5 / 3, 2 / 5 - 3 / 5])
    assert found["treat_none"].tolist() == [0, 0]


def test_below_every_probability_the_model_is_to_treat_all(rng):
    labels, probabilities = probabilities_of(rng)
    found = calibration.net_benefit(labels, probabilities, [probabilities.min()])
    assert found["model"][0] == pytest.approx(found["treat_all"][0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration.net_benefit(labels, probabilities, [0.5, 1.0])


def test_the_band_of_a_decision_curve_holds_the_curve_and_narrows_with_patients(rng):
    widths = []
    for n in (60, 600):
        labels = np.arange(n) % 2
        probabilities = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.15, n), 0.01, 0.99)
        band = calibration.net_benefit_band(labels, probabilities, [0.3, 0.5], EvaluateConfig(bootstrap=200))
        assert ((band["low"] <= band["model"]) & (band["model"] <= band["high"])).all()
        widths.append((band["high"] - band["low"]).mean())
    assert widths[1] < 0.6 * widths[0]


def test_a_calibration_row_has_numbers_where_they_exist_and_nan_where_nothing_can_be_fitted():
    labels = np.array([0, 0, 1, 1])
    row = calibration.calibration_row(labels, np.array([0.2, 0.3, 0.7, 0.8]))
    assert np.isnan([row["slope"], row["slope_low"], row["slope_high"]]).all()
    assert row["intercept"] == pytest.approx(0, abs=1e-9) and row["auprc"] == 1.0 and row["patients"] == 4
    assert calibration.fit_recalibration_or_none(labels, np.array([0.2, 0.3, 0.7, 0.8])) is None
    row = calibration.calibration_row(labels, np.array([0.2, 0.7, 0.3, 0.8]))
    assert row["slope_low"] < 0 < row["slope"] < row["slope_high"]
    narrow = calibration.calibration_row(labels, np.array([0.2, 0.7, 0.3, 0.8]), confidence=0.5)
    assert row["slope_low"] < narrow["slope_low"] and narrow["intercept_high"] < row["intercept_high"]
