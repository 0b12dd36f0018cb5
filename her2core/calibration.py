"""Probabilities: do they mean what they say, and what would a decision by them be worth?

Thresholds, recalibration, calibration and net benefit of one run's probabilities, averaged over its seeds.
Labels `(n,)` are 0 and 1, both present (else ValueError); probabilities are `(n,)`.

Sources: Van Calster et al., BMC Med 2019;17:230 (calibration); Vickers and Elkin, Med Decis Making 2006;26:565
(net benefit).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss

from her2core.auc import EvaluateConfig, band, check_labels


def youden_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold that maximises sensitivity + specificity, positive being `probability >= threshold`; the lowest
    of several that do."""
    labels = check_labels(labels)
    candidates = np.unique(probabilities)
    called = np.asarray(probabilities)[None] >= candidates[:, None]  # (candidates, n)
    # times positives and negatives both are whole numbers, so that ties are exact
    gained = called[:, labels].sum(1) * (~labels).sum() - called[:, ~labels].sum(1) * labels.sum()
    return float(candidates[np.argmax(gained)])


def _wilson(share, patients, confidence):
    """Wilson's interval of a share of patients, which need not be a whole number of them."""
    z = norm.ppf(0.5 + confidence / 2)
    centre, weight = share + z**2 / (2 * patients), 1 + z**2 / patients
    half = z * np.sqrt(share * (1 - share) / patients + z**2 / (4 * patients**2))
    return float((centre - half) / weight), float((centre + half) / weight)


def rates(labels: np.ndarray, called: np.ndarray, confidence: float = 0.95) -> dict[str, float]:
    """What calls of positive are worth, in the mean over seeds; called: bool `(seeds, n)`, or `(n,)` for one.

    accuracy, sensitivity, specificity, and the predictive values ppv and npv, these of all seeds' calls together
    and NaN where nobody is called so; each also with `_low` and `_high`: Wilson's interval over patients.  And
    balanced_accuracy.  A patient whom half of the seeds call counts half, so the interval is no narrower than that
    of a single seed."""
    labels, share = check_labels(labels), np.atleast_2d(called).mean(0)  # of the seeds, of each patient
    right = np.where(labels, share, 1 - share)
    weights = {"accuracy": np.ones(labels.size), "sensitivity": labels, "specificity": ~labels}
    weights |= {"ppv": share, "npv": 1 - share}
    values = {"ppv": labels, "npv": ~labels}
    found = {}
    for name, weight in weights.items():
        patients = float(weight.sum())
        value = float((weight * values.get(name, right)).sum() / patients) if patients else np.nan
        low, high = _wilson(value, patients, confidence) if patients else (np.nan, np.nan)
        found |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return found | {"balanced_accuracy": (found["sensitivity"] + found["specificity"]) / 2}


def precision_and_error(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """AUPRC (average precision, beside the prevalence that chance gives) and Brier score."""
    labels = check_labels(labels)
    return {
        "auprc": float(average_precision_score(labels, probabilities)),
        "prevalence": float(labels.mean()),
        "brier": float(brier_score_loss(labels, probabilities)),
    }


def performance(
    labels: np.ndarray, probabilities: np.ndarray, called: Mapping[str, np.ndarray], confidence: float = 0.95
) -> dict[str, float]:
    """The mean over seeds of `rates` and `precision_and_error`; probabilities, and called of each threshold by its
    name, `(seeds, n)`.  The keys of rates carry the name: sensitivity_at_<name>, sensitivity_at_<name>_low, …"""
    found = {}
    for name, calls in called.items():
        for rate, value in rates(labels, calls, confidence).items():
            stem, end = re.fullmatch("(.*?)(_low|_high)?", rate).groups("")
            found[f"{stem}_at_{name}{end}"] = value
    by_seed = [precision_and_error(labels, seed) for seed in np.atleast_2d(probabilities)]
    return found | {name: float(np.mean([seed[name] for seed in by_seed])) for name in by_seed[0]}


def _to_logits(probabilities):
    """Logits; a probability that was rounded to 0 or 1 is taken as a millionth from it."""
    return logit(np.clip(np.asarray(probabilities, float), 1e-6, 1 - 1e-6))


@dataclass(frozen=True)
class Recalibration:
    """New logit = intercept + slope · logit."""

    intercept: float
    slope: float


def fit_recalibration_or_none(labels: np.ndarray, probabilities: np.ndarray) -> Recalibration | None:
    """Logistic regression of the labels on the logits; fit on validation, apply elsewhere with `recalibrate`.

    None where the probabilities separate the classes, or are all alike: no slope fits best.
    """
    labels, logits = check_labels(labels), _to_logits(probabilities)
    if logits[labels].min() >= logits[~labels].max() or logits[labels].max() <= logits[~labels].min():
        return None
    fit = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(logits[:, None], labels)
    return Recalibration(float(fit.intercept_[0]), float(fit.coef_[0, 0]))


def recalibrate(probabilities: np.ndarray, recalibration: Recalibration | None) -> np.ndarray:
    """Probabilities after a `Recalibration`, or as they are where there is none; the shape is kept."""
    if recalibration is None:
        return probabilities
    return expit(recalibration.intercept + recalibration.slope * _to_logits(probabilities))


def _wald(value, information, confidence):
    """(value, low, high) of a maximum-likelihood estimate with this Fisher information."""
    half = norm.ppf(0.5 + confidence / 2) / np.sqrt(information)
    return float(value), float(value - half), float(value + half)


def calibration(
    labels: np.ndarray, probabilities: np.ndarray, confidence: float = 0.95
) -> dict[str, tuple[float, float, float]]:
    """Calibration intercept, at slope 1, and slope, each (value, low, high): 0 and 1 where probabilities are right.

    An intercept above 0 says that they are too low, a slope below 1 that they are too extreme.  The intervals are
    Wald's, over patients.  The slope is NaN where none fits best, see `fit_recalibration_or_none`.
    """
    logits, rate = _to_logits(probabilities), check_labels(labels).mean()
    intercept = brentq(lambda a: expit(a + logits).mean() - rate, -50, 50)
    moved = expit(intercept + logits)
    found = {"intercept": _wald(intercept, (moved * (1 - moved)).sum(), confidence)}
    if (line := fit_recalibration_or_none(labels, probabilities)) is None:
        return found | {"slope": (np.nan, np.nan, np.nan)}
    chance = recalibrate(probabilities, line)
    weight = chance * (1 - chance)
    information = (weight * (logits - np.average(logits, weights=weight)) ** 2).sum()  # the intercept is fitted too
    return found | {"slope": _wald(line.slope, information, confidence)}


def calibration_row(labels: np.ndarray, probabilities: np.ndarray, confidence: float = 0.95) -> dict[str, float]:
    """`calibration` in columns such as slope, slope_low, slope_high; AUPRC, prevalence, Brier score, patients."""
    line = {}
    for name, values in calibration(labels, probabilities, confidence).items():
        line |= {name + end: v for end, v in zip(("", "_low", "_high"), values, strict=True)}
    return line | precision_and_error(labels, probabilities) | {"patients": len(labels)}


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 5, confidence: float = 0.95
) -> pd.DataFrame:
    """Predicted mean and observed share of positives in bins of about as many patients; ties share a bin.

    Rows of predicted, observed, low, high, patients; the interval is Wilson's.  Empty bins are left out.
    """
    labels, probabilities = check_labels(labels), np.asarray(probabilities, float)
    number = ((rankdata(probabilities) - 0.5) / labels.size * bins).astype(int)
    rows = []
    for one in np.unique(number):
        inside = number == one
        low, high = _wilson(labels[inside].mean(), inside.sum(), confidence)
        rows.append(
            {"predicted": probabilities[inside].mean(), "observed": labels[inside].mean()}
            | {"low": low, "high": high, "patients": int(inside.sum())}
        )
    return pd.DataFrame(rows)


def net_benefit(labels: np.ndarray, probabilities: np.ndarray, thresholds: Sequence[float]) -> pd.DataFrame:
    """Decision curve: true positives per patient less false ones, weighed by the odds of the threshold.

    Rows of threshold, model, treat_all, treat_none; called positive is `probability >= threshold`.
    """
    labels, thresholds = check_labels(labels), np.asarray(thresholds, float)
    if not ((thresholds > 0) & (thresholds < 1)).all():
        raise ValueError(f"thresholds of a decision curve lie between 0 and 1, found {thresholds}")
    called = np.asarray(probabilities)[None] >= thresholds[:, None]  # (thresholds, n)
    odds = thresholds / (1 - thresholds)
    model = (called & labels).mean(1) - (called & ~labels).mean(1) * odds
    treat_all = labels.mean() - (~labels).mean() * odds
    return pd.DataFrame({"threshold": thresholds, "model": model, "treat_all": treat_all, "treat_none": 0.0})


def net_benefit_band(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: Sequence[float], config: EvaluateConfig
) -> pd.DataFrame:
    """`net_benefit` with the model's pointwise patient-bootstrap band: further columns low and high."""
    labels, probabilities = check_labels(labels), np.asarray(probabilities, float)
    low, high = band(lambda i: net_benefit(labels[i], probabilities[i], thresholds)["model"], labels, config)
    return net_benefit(labels, probabilities, thresholds).assign(low=low, high=high)
