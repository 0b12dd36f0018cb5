"""Predictions → numbers.  Every statistic of the study is computed here, from the one prediction table.

A prediction table has one row per patient, run and seed:
cohort, patient, split, her2, run, model, window, bias_field, seed, probability.

Patients are resampled, never slices; positives and negatives apart, so that every resample has both.  A run's
AUC is the mean over its seeds, each seed scored on the same patients.  Sources: DeLong, DeLong and
Clarke-Pearson, Biometrics 1988;44:837; Sun and Xu, IEEE Signal Process Lett 2014;21:1389; Holm, Scand J Stat
1979;6:65.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata

COLUMNS = ("cohort", "patient", "split", "her2", "run", "model", "window", "bias_field", "seed", "probability")


@dataclass(frozen=True)
class EvaluateConfig:
    """bootstrap: resamples of patients.  confidence: of every interval.  seed: of the resampling."""

    bootstrap: int = 2000
    confidence: float = 0.95
    seed: int = 2025

    def __post_init__(self):
        if self.bootstrap < 1 or not 0 < self.confidence < 1:
            raise ValueError(f"evaluation needs bootstrap >= 1 and 0 < confidence < 1, found {self}")


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and the patients it rests on."""

    value: float
    low: float
    high: float
    patients: int
    positives: int


def read_predictions(paths):
    """Prediction tables joined and checked; raises ValueError on a missing column, a NaN or a double row."""
    paths = sorted(paths)
    if not paths:
        raise ValueError("no prediction table: run the training stage first")
    table = pd.concat([pd.read_csv(p, dtype={"patient": str}) for p in paths], ignore_index=True)
    if missing := set(COLUMNS) - set(table.columns):
        raise ValueError(f"{paths[0].parent}: predictions lack {', '.join(sorted(missing))}")
    if not table["probability"].between(0, 1).all():  # NaN is not between either
        raise ValueError(f"{paths[0].parent}: probabilities outside [0, 1] or missing")
    double = table.duplicated(["cohort", "patient", "run", "seed"])
    if double.any():
        raise ValueError(f"a patient is predicted twice by one run and seed: {table[double].iloc[0].to_dict()}")
    return table


def matrix(table):
    """One run on one split → labels `(n,)` and probabilities `(seeds, n)`, patients in sorted order."""
    if table["run"].nunique() != 1:
        raise ValueError(f"expected one run, found {sorted(table['run'].unique())}")
    wide = table.pivot(index="seed", columns="patient", values="probability")
    if wide.isna().any(axis=None):
        raise ValueError(f"{table['run'].iloc[0]}: not every seed predicted every patient")
    labels = table.drop_duplicates("patient").set_index("patient")["her2"].loc[wide.columns]
    return labels.to_numpy(), wide.to_numpy()


def seed_mean(table):
    """One run on one split → labels `(n,)` and the probabilities averaged over seeds `(n,)`."""
    labels, probabilities = matrix(table)
    return labels, probabilities.mean(0)


def check_labels(labels):
    labels = np.asarray(labels)
    positives = int((labels == 1).sum())
    if not np.isin(labels, (0, 1)).all() or positives in (0, labels.size):
        raise ValueError(f"AUC needs labels 0 and 1, both present; found {positives} ones of {labels.size}")
    return labels.astype(bool)


def auc(labels, scores):
    """Area under the ROC curve, ties counted half; scores `(…, n)` → `(…)`."""
    labels = check_labels(labels)
    positives, negatives = labels.sum(), (~labels).sum()
    ranks = rankdata(scores, axis=-1)[..., labels].sum(-1)
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def placements(labels, scores):
    """DeLong's structural components: for each positive the share of negatives below it, and the reverse."""
    labels = check_labels(labels)
    scores = np.asarray(scores, float)
    positive, negative = scores[labels], scores[~labels]
    rank = rankdata(scores)
    v10 = (rank[labels] - rankdata(positive)) / negative.size  # (positives,)
    v01 = 1 - (rank[~labels] - rankdata(negative)) / positive.size  # (negatives,)
    return v10, v01


def delong_variance(labels, scores):
    """Variance of one AUC."""
    v10, v01 = placements(labels, scores)
    return v10.var(ddof=1) / v10.size + v01.var(ddof=1) / v01.size


def delong_interval(labels, scores, confidence=0.95):
    """AUC with its normal interval, clipped to [0, 1]."""
    value, half = float(auc(labels, scores)), norm.ppf(0.5 + confidence / 2)
    half *= np.sqrt(delong_variance(labels, scores))
    labels = check_labels(labels)
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), labels.size, int(labels.sum()))


def delong_test(labels, first, second):
    """AUC(first) − AUC(second) on the same patients, and its two-sided p-value."""
    a, b = placements(labels, first), placements(labels, second)
    variance = sum((u - v).var(ddof=1) / u.size for u, v in zip(a, b, strict=True))
    difference = float(auc(labels, first) - auc(labels, second))
    if variance == 0:
        return difference, 1.0 if difference == 0 else 0.0
    return difference, float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def resample(labels, config):
    """Indices `(bootstrap, n)` of patients drawn with replacement, positives and negatives apart."""
    labels = check_labels(labels)
    rng = np.random.default_rng(config.seed)
    groups = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    return np.concatenate([rng.choice(g, (config.bootstrap, g.size)) for g in groups], axis=1)


def resampled_aucs(labels, probabilities, config):
    """Mean AUC over seeds in every resample: probabilities `(seeds, n)` → `(bootstrap,)`."""
    index = resample(labels, config)
    ordered = np.sort(check_labels(labels))[::-1]  # each resample holds the positives first
    return np.mean([auc(ordered, row[index]) for row in np.atleast_2d(probabilities)], axis=0)


def percentile_interval(samples, confidence):
    tail = (1 - confidence) / 2
    return tuple(float(v) for v in np.quantile(samples, (tail, 1 - tail)))


def bootstrap_auc(labels, probabilities, config):
    """Mean AUC over seeds with a patient-bootstrap interval."""
    low, high = percentile_interval(resampled_aucs(labels, probabilities, config), config.confidence)
    value = float(np.mean(auc(labels, np.atleast_2d(probabilities))))
    labels = check_labels(labels)
    return Estimate(value, low, high, labels.size, int(labels.sum()))


def bootstrap_difference(labels, first, second, config):
    """Mean AUC of first − second on the same resampled patients: Estimate and two-sided p-value.

    first, second: `(seeds, n)`.  The p-value is twice the smaller share of resamples on one side of zero,
    with one added to both counts, so that it is never 0.
    """
    samples = resampled_aucs(labels, first, config) - resampled_aucs(labels, second, config)
    low, high = percentile_interval(samples, config.confidence)
    value = float(np.mean(auc(labels, np.atleast_2d(first))) - np.mean(auc(labels, np.atleast_2d(second))))
    below, above = (samples <= 0).sum() + 1, (samples >= 0).sum() + 1
    p_value = min(1.0, 2 * min(below, above) / (samples.size + 1))
    labels = check_labels(labels)
    return Estimate(value, low, high, labels.size, int(labels.sum())), float(p_value)


def holm(p_values):
    """Holm's step-down correction; returns adjusted p-values in the order given."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(p_values.size, 0, -1))
    out = np.empty_like(p_values)
    out[order] = np.minimum(adjusted, 1)
    return out


def summary(table, config):
    """One row per run: AUC with interval, and the spread of its seeds.  table: one split of one cohort."""
    rows = []
    for run, part in table.groupby("run", sort=True):
        labels, probabilities = matrix(part)
        estimate = bootstrap_auc(labels, probabilities, config)
        per_seed = auc(labels, probabilities)
        first = part.iloc[0]
        rows.append(
            {"run": run, "model": first["model"], "window": first["window"], "bias_field": first["bias_field"]}
            | {"auc": estimate.value, "low": estimate.low, "high": estimate.high}
            | {"lowest_seed": per_seed.min(), "highest_seed": per_seed.max(), "seeds": len(per_seed)}
            | {"patients": estimate.patients, "positives": estimate.positives}
        )
    return pd.DataFrame(rows)


def comparisons(table, reference, config, alpha=0.05):
    """Every run against `reference` on the same patients, Holm-corrected, with a verdict in words."""
    if reference not in set(table["run"]):
        raise ValueError(f"reference {reference!r} is not among the runs {sorted(table['run'].unique())}")
    labels, anchor = matrix(table[table["run"] == reference])
    rows = []
    for run, part in table[table["run"] != reference].groupby("run", sort=True):
        estimate, p_value = bootstrap_difference(labels, matrix(part)[1], anchor, config)
        rows.append(
            {"run": run, "reference": reference, "difference": estimate.value, "low": estimate.low}
            | {"high": estimate.high, "p": p_value, "patients": estimate.patients}
        )
    out = pd.DataFrame(rows)
    if len(out):
        out["p_holm"] = holm(out["p"])
        words = np.where(out["difference"] > 0, "higher than the reference", "lower than the reference")
        out["verdict"] = np.where(out["p_holm"] < alpha, words, "no difference detected")
    return out


def youden_threshold(labels, probabilities):
    """The threshold that maximises sensitivity + specificity, positive being `probability >= threshold`."""
    labels = check_labels(labels)
    candidates = np.unique(probabilities)
    called = np.asarray(probabilities)[None] >= candidates[:, None]  # (candidates, n)
    youden = called[:, labels].mean(1) - called[:, ~labels].mean(1)
    return float(candidates[np.argmax(youden)])


def at_threshold(labels, probabilities, threshold):
    """Accuracy, balanced accuracy, sensitivity and specificity of `probability >= threshold`."""
    labels = check_labels(labels)
    called = np.asarray(probabilities) >= threshold
    sensitivity, specificity = called[labels].mean(), (~called[~labels]).mean()
    return {
        "accuracy": float((called == labels).mean()),
        "balanced_accuracy": float((sensitivity + specificity) / 2),
        "sensitivity": float(sensitivity),
        "specificity": float(specificity),
    }


def roc_points(labels, scores, grid):
    """True-positive rate at every false-positive rate of `grid`, linear between the curve's corners."""
    labels = check_labels(labels)
    order = np.argsort(-np.asarray(scores), kind="stable")
    last_of_tie = np.append(np.diff(np.asarray(scores)[order]) != 0, True)
    tpr = np.append(0, (np.cumsum(labels[order]) / labels.sum())[last_of_tie])
    fpr = np.append(0, (np.cumsum(~labels[order]) / (~labels).sum())[last_of_tie])
    return np.interp(grid, fpr, tpr)


def roc_band(labels, probabilities, config, grid=None):
    """ROC averaged over seeds, with its pointwise patient-bootstrap band: grid, mean, low, high."""
    grid = np.linspace(0, 1, 101) if grid is None else grid
    seeds = np.atleast_2d(probabilities)
    mean = np.mean([roc_points(labels, row, grid) for row in seeds], axis=0)
    ordered = np.sort(check_labels(labels))[::-1]
    index = resample(labels, config)[: min(config.bootstrap, 500)]  # a band needs fewer draws than a p-value
    curves = [np.mean([roc_points(ordered, row[i], grid) for row in seeds], axis=0) for i in index]
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(curves, (tail, 1 - tail), axis=0)
    return grid, mean, low, high
