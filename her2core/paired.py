"""The difference of two AUCs on the same patients, and how sure of it so many patients and seeds can be.

The interval is over patients and seeds: it holds for other test patients, and other seeds on the same training
patients.  `auc` has what is said of one run.  Coverage was measured: `benchmarks/coverage.json`.

Sources: DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837; Obuchowski and Rockette, Commun Stat Simul
Comput 1995;24:285 and Hillis, Stat Med 2007;26:596 (several readers, here seeds, on the same patients); Holm,
Scand J Stat 1979;6:65.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, norm, t

from her2core.auc import (
    EvaluateConfig,
    Folds,
    comparison,
    delong_variance,
    mean_over_seeds,
    resample_weights,
    resampled_moments,
)

POWER = 0.8  # of the smallest detectable difference


@dataclass(frozen=True)
class Difference:
    """AUC of a first run − AUC of a second: standard error with its degrees of freedom, interval and p-value, over
    patients and seeds.  of_patients, of_seeds: the two parts of se²."""

    value: float
    low: float
    high: float
    se: float
    p: float
    freedom: float
    of_patients: float
    of_seeds: float


def delong_test(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, folds: Folds = None
) -> tuple[float, float]:
    """Mean AUC of first − second on the same patients, given the seeds, and its two-sided p-value."""
    compared = mean_over_seeds(labels, first, folds) - mean_over_seeds(labels, second, folds)
    difference, variance = float(compared.mean()), delong_variance(compared)
    if variance == 0:
        return difference, 1.0 if difference == 0 else 0.0
    return difference, float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def _difference_variance(compared, weights):
    """Variance of a mean difference over patients, and what seeds add to it.  compared: `(seeds, positives, …)`.

    Patients come from the bootstrap.  The variance between seeds on these patients also holds how patients differ
    from seed to seed, which the bootstrap has counted already: it is taken off.  One seed says nothing of others.
    """
    samples = np.stack([resampled_moments(one, weights)[0] for one in compared])  # (seeds, bootstrap)
    patients, seeds = samples.mean(0).var(ddof=1), len(compared)
    if seeds == 1:
        return patients, 0.0
    interaction = (samples - samples.mean(0)).var(1, ddof=1).sum() / (seeds - 1)
    between = compared.mean((1, 2)).var(ddof=1) - interaction
    return patients, max(between, 0) / seeds


def bootstrap_difference(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, config: EvaluateConfig, folds: Folds = None
) -> Difference:
    """Mean AUC of first − second on the same resampled patients, over patients and seeds.

    first, second, folds: `(seeds, n)`; row s is the same seed in all, so a seed is paired as a patient is.  It is
    what a reader is to Obuchowski and Rockette: t-distributed, with Satterthwaite's degrees of freedom.  Seeds
    are not redrawn: four give too few distinct draws, and redrawing both counts their interaction three times.
    The p-value is never below what so many resamples can show."""
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    if first.shape != second.shape:
        raise ValueError(f"a paired difference needs the same seeds and patients: {first.shape}, {second.shape}")
    compared = comparison(labels, first, folds) - comparison(labels, second, folds)
    return over_patients_and_seeds(labels, compared, config)


def over_patients_and_seeds(labels: np.ndarray, compared: np.ndarray, config: EvaluateConfig) -> Difference:
    """The mean of `compared`, `(seeds, positives, negatives)`, for other patients and seeds.

    compared: of two runs the difference of what `auc.comparison` returns, or one such difference less another."""
    patients, seeds = _difference_variance(compared, resample_weights(labels, config))
    value, se = float(compared.mean()), float(np.sqrt(patients + seeds))
    if se == 0:
        p_value = 1.0 if value == 0 else 1 / (config.bootstrap + 1)
        return Difference(value, value, value, 0.0, p_value, len(labels) - 2, 0.0, 0.0)
    freedom = _satterthwaite(patients, seeds, len(labels), len(compared))
    half = float(t.ppf(0.5 + config.confidence / 2, freedom)) * se
    p_value = max(2 * float(t.sf(abs(value) / se, freedom)), 1 / (config.bootstrap + 1))
    return Difference(value, value - half, value + half, se, p_value, freedom, float(patients), float(seeds))


def _satterthwaite(of_patients, of_seeds, patients, seeds):
    """Degrees of freedom of the sum of two variances, of so many patients (two classes) and seeds."""
    return (of_patients + of_seeds) ** 2 / (of_patients**2 / (patients - 2) + of_seeds**2 / max(seeds - 1, 1))


def detectable(se: float, freedom: float, alpha: float = 0.05) -> float:
    """The smallest true difference that the two-sided t-test at `alpha` finds with a power of 80 %."""
    limit = t.ppf(1 - alpha / 2, freedom)

    # that the other sign is found instead has no chance worth counting at such a power
    return se * float(brentq(lambda shift: nct.sf(limit, freedom, shift) - POWER, limit / 2, 2 * limit + 2))


def detectable_with(
    measured: Mapping[str, float], positives: int, negatives: int, seeds: int, alpha: float = 0.05
) -> float:
    """What such a comparison would find with other numbers of patients and seeds.

    measured: of_patients, of_seeds, patients, positives and seeds of a row of `evaluate.comparisons`.  The
    patients' part of the variance falls with the harmonic mean of the two classes, the seeds' with their number."""
    before = 1 / measured["positives"] + 1 / (measured["patients"] - measured["positives"])
    of_patients = measured["of_patients"] * (1 / positives + 1 / negatives) / before
    of_seeds = measured["of_seeds"] * measured["seeds"] / seeds
    freedom = _satterthwaite(of_patients, of_seeds, positives + negatives, seeds)
    return detectable(float(np.sqrt(of_patients + of_seeds)), freedom, alpha)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction; returns adjusted p-values in the order given."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(p_values.size, 0, -1))
    return np.minimum(adjusted, 1)[np.argsort(order)]


def verdict(difference: float, p: float, p_corrected: float, alpha: float = 0.05) -> str:
    """What a comparison says: higher or lower, not after correction, or no difference detected."""
    if p >= alpha:
        return "no difference detected"
    if p_corrected >= alpha:
        return "not after correction"
    return f"{'higher' if difference > 0 else 'lower'} than the reference"
