"""The area under the ROC curve of one run, and how sure of it so many patients can be.

A run's AUC is the mean over its seeds, each seed scored on the same patients.  Patients are resampled, never
slices; positives and negatives apart, so that every resample has both.  The interval is over patients, given the
seeds.  Coverage was measured, and the alternatives with it: `benchmarks/coverage.json`.

Under folds `(seeds, n)` each has a network with a scale of its own, so only patients of one fold are compared.
The networks learn from each other's test patients, so the AUCs of folds correlate, which no unbiased estimate tells
(Bengio and Grandvalet, J Mach Learn Res 2004;5:1089): the interval of one run is wider by what was measured.

Labels `(n,)` are 0 and 1; where one class is missing, ValueError is raised.

Sources: DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837; Hanley and McNeil, Radiology 1982;143:29;
Hall, J R Stat Soc B 1988;50:35 (symmetric bootstrap-t); Qin and Hotilovac, Stat Methods Med Res 2008;17:207 (AUC
on the logit scale); Newcombe, Stat Med 2006;25:559 (perfect separation); LeDell, Petersen and van der Laan,
Electron J Stat 2015;9:1583 (cross-validated AUC, its influence curve).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

Folds = np.ndarray | None  # the fold of each score, None without folds
FOLD_CORRELATION = 0.04  # of the AUCs of two folds; between 0.01 and 0.06 in simulations, `benchmarks/coverage.py`


@dataclass(frozen=True)
class EvaluateConfig:
    """bootstrap: resamples of patients.  confidence: of every interval.  seed: of the resampling.
    leave_sites_out: whether the stage `external` also trains the reference without each internal site in turn."""

    bootstrap: int = 2000
    confidence: float = 0.95
    seed: int = 2025
    leave_sites_out: bool = False

    def __post_init__(self):
        if self.bootstrap < 2 or not 0 < self.confidence < 1:
            raise ValueError(f"evaluation needs bootstrap >= 2 and 0 < confidence < 1, found {self}")


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and the patients it rests on."""

    value: float
    low: float
    high: float
    patients: int
    positives: int


def check_labels(labels: np.ndarray) -> np.ndarray:
    """Labels as bool; ValueError unless they are 0 and 1 and both occur."""
    labels = np.asarray(labels)
    positives = int((labels == 1).sum())
    if not np.isin(labels, (0, 1)).all() or positives in (0, labels.size):
        raise ValueError(f"AUC needs labels 0 and 1, both present; found {positives} ones of {labels.size}")
    return labels.astype(bool)


def auc(labels: np.ndarray, scores: np.ndarray, folds: Folds = None) -> np.ndarray | float:
    """Area under the ROC curve, ties counted half; scores, folds `(…, n)` → `(…)`."""
    if folds is not None:
        return comparison(labels, scores, folds).mean((-2, -1))
    labels = check_labels(labels)
    positives, negatives = labels.sum(), (~labels).sum()
    ranks = rankdata(scores, axis=-1)[..., labels].sum(-1)
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def comparison(labels: np.ndarray, scores: np.ndarray, folds: Folds = None) -> np.ndarray:
    """Every positive beside every negative: 1 above, 0.5 tied, 0 below.  `(…, n)` → `(…, positives, negatives)`.

    Its mean is the AUC, its row and column means are DeLong's structural components, and the AUC of a resample
    is a product with the resample's weights: nothing is ranked twice.  Under folds all that holds as well, with
    LeDell's influence curve: pairs of two folds stand at the AUC, the others as much further from it."""
    labels, scores = check_labels(labels), np.asarray(scores, float)
    if min(labels.sum(), (~labels).sum()) < 2:
        raise ValueError(f"a variance needs two patients of each class, found {labels.sum()} of {labels.size}")
    positive, negative = scores[..., labels][..., :, None], scores[..., ~labels][..., None, :]
    compared = (positive > negative) + 0.5 * (positive == negative)
    if folds is None:
        return compared
    together = folds[..., labels][..., :, None] == folds[..., ~labels][..., None, :]
    share = together.mean((-2, -1), keepdims=True)
    if not share.all():
        raise ValueError("no positive and negative lie in the same fold, expected some; lower cohort.folds")
    within = (compared * together).mean((-2, -1), keepdims=True) / share
    return within + (compared - within) * together / share


def delong_variance(compared: np.ndarray) -> float:
    """DeLong's variance over patients of the mean of `compared`, `(positives, negatives)`."""
    return sum(v.var(ddof=1) / v.size for v in (compared.mean(1), compared.mean(0)))


def mean_over_seeds(labels: np.ndarray, scores: np.ndarray, folds: Folds = None) -> np.ndarray:
    """`comparison` averaged over seeds, `(positives, negatives)`; scores, folds `(seeds, n)` or `(n,)`."""
    return comparison(labels, np.atleast_2d(scores), folds).mean(0)


def hanley_mcneil_variance(n_positive: int, n_negative: int, auc: float) -> float:
    """Variance of an AUC that is expected, before any patient is seen."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (n_positive - 1) * (q1 - auc**2) + (n_negative - 1) * (q2 - auc**2)
    return spread / (n_positive * n_negative)


def resample(labels: np.ndarray, config: EvaluateConfig) -> np.ndarray:
    """Indices `(bootstrap, n)` of patients drawn with replacement, positives and negatives apart."""
    labels = check_labels(labels)
    rng = np.random.default_rng(config.seed)
    groups = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    return np.concatenate([rng.choice(g, (config.bootstrap, g.size)) for g in groups], axis=1)


def resample_weights(labels: np.ndarray, config: EvaluateConfig) -> tuple[np.ndarray, np.ndarray]:
    """How often each resample holds each positive `(bootstrap, positives)` and each negative."""
    labels, index = check_labels(labels), resample(labels, config)
    counts = np.array([np.bincount(row, minlength=labels.size) for row in index], float)
    return counts[:, labels], counts[:, ~labels]


def resampled_moments(
    compared: np.ndarray, weights: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of `compared`, `(positives, negatives)`, in every resample and DeLong's variance of it there, each
    `(bootstrap,)`.  weights: from `resample_weights`."""
    (positive, negative), (k, m) = weights, compared.shape
    v10, v01 = negative @ compared.T / m, positive @ compared / k  # (bootstrap, k), (bootstrap, m)
    mean = (v01 * negative).sum(1) / m
    squares = [
        ((w * v**2).sum(1) - n * mean**2) / n / (n - 1) for w, v, n in ((positive, v10, k), (negative, v01, m))
    ]
    return mean, np.maximum(sum(squares), 0)


def _perfect_limit(n_positive, n_negative, confidence):
    """The lowest AUC that still agrees with a perfect separation of so many patients (score interval)."""
    z = norm.ppf(0.5 + confidence / 2)
    return brentq(lambda a: 1 - a - z * np.sqrt(hanley_mcneil_variance(n_positive, n_negative, a)), 0, 1 - 1e-9)


def _studentised_interval(compared, weights, confidence, wider):
    """Symmetric bootstrap-t interval on the logit scale of the mean of `compared`, `(positives, negatives)`.

    Each resample is studentised by its own DeLong error.  Half a pair is the least that can be short of 0 or 1:
    a resample that separates perfectly is taken to miss by that, a sample that does gets `_perfect_limit`.
    wider: factor of the error."""
    edge, value = 0.5 / compared.size, compared.mean()
    if not edge < value < 1 - edge:
        limit = _perfect_limit(*compared.shape, confidence)
        return (limit, 1.0) if value > 0.5 else (0.0, 1 - limit)

    def on_logit_scale(mean, variance):
        mean = np.clip(mean, edge, 1 - edge)
        return logit(mean), np.sqrt(np.maximum(variance, edge**2)) / (mean * (1 - mean))

    centre, error = on_logit_scale(value, delong_variance(compared))
    centres, errors = on_logit_scale(*resampled_moments(compared, weights))
    half = error * np.quantile(np.abs(centres - centre) / errors, confidence) * wider
    return float(expit(centre - half)), float(expit(centre + half))


def bootstrap_auc(
    labels: np.ndarray, probabilities: np.ndarray, config: EvaluateConfig, folds: Folds = None
) -> Estimate:
    """Mean AUC over seeds with its interval over patients, given these seeds; probabilities, folds `(seeds, n)`."""
    compared = mean_over_seeds(labels, probabilities, folds)
    wider = 1 if folds is None else np.sqrt(1 + FOLD_CORRELATION * (len(set(folds[0])) - 1))
    low, high = _studentised_interval(compared, resample_weights(labels, config), config.confidence, wider)
    return Estimate(float(compared.mean()), low, high, sum(compared.shape), compared.shape[0])


def roc_points(labels: np.ndarray, scores: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """True-positive rate at every false-positive rate of `grid`, linear between the curve's corners."""
    labels = check_labels(labels)
    thresholds = np.append(np.inf, np.unique(scores)[::-1])
    called = np.asarray(scores) >= thresholds[:, None]  # (corners, n)
    return np.interp(grid, called[:, ~labels].mean(1), called[:, labels].mean(1))


def _roc_within(labels, scores, folds, grid):
    """`roc_points` of each of the folds `(n,)`, averaged by their numbers of pairs: the area stays the AUC."""
    inside = [folds == fold for fold in np.unique(folds)]
    pairs = np.array([labels[one].sum() * (~labels[one]).sum() for one in inside])
    curves = [roc_points(labels[one], scores[one], grid) for one, n in zip(inside, pairs, strict=True) if n]
    return np.average(curves, axis=0, weights=pairs[pairs > 0] / pairs.sum())


def roc_band(
    labels: np.ndarray, probabilities: np.ndarray, config: EvaluateConfig, folds: Folds = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """ROC averaged over seeds, with its pointwise patient-bootstrap band: grid, mean, low, high, each `(101,)`.

    probabilities, folds: `(seeds, n)`.  The grid holds false-positive rates."""
    grid, labels, seeds = np.linspace(0, 1, 101), check_labels(labels), np.atleast_2d(probabilities)
    parts = np.zeros(seeds.shape) if folds is None else folds

    def curve(i):  # of these patients
        both = zip(seeds, parts, strict=True)
        return np.mean([_roc_within(labels[i], row[i], fold[i], grid) for row, fold in both], axis=0)

    return grid, curve(np.arange(labels.size)), *band(curve, labels, config)


def band(curve: Callable, labels: np.ndarray, config: EvaluateConfig) -> np.ndarray:
    """Pointwise lower and upper limit `(2, points)` of `curve(index of patients)`, `(points,)`, over resamples.

    500 of them: a band needs fewer than a p-value."""
    tail = (1 - config.confidence) / 2
    return np.quantile([curve(index) for index in resample(labels, config)[:500]], (tail, 1 - tail), axis=0)
