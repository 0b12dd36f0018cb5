"""Predictions → numbers.  Every statistic of the study is computed here, from the one prediction table.

A prediction table has one row per patient, run and seed:
cohort, patient, split, her2, run, model, window, bias_field, seed, probability.

A run's AUC is the mean over its seeds, each seed scored on the same patients.  Patients are resampled, never
slices; positives and negatives apart, so that every resample has both.  The interval of one run is over patients,
given its seeds; that of a difference is over patients and seeds.  Coverage was measured, and the alternatives
with it: `benchmarks/coverage.json`.

Sources: DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837; Hanley and McNeil, Radiology 1982;143:29;
Hall, J R Stat Soc B 1988;50:35 (symmetric bootstrap-t); Qin and Hotilovac, Stat Methods Med Res 2008;17:207 (AUC
on the logit scale); Newcombe, Stat Med 2006;25:559 (perfect separation); Obuchowski and Rockette, Commun Stat
Simul Comput 1995;24:285 and Hillis, Stat Med 2007;26:596 (several readers, here seeds, on the same patients);
Holm, Scand J Stat 1979;6:65; Van Calster et al., BMC Med 2019;17:230 (calibration); Vickers and Elkin, Med Decis
Making 2006;26:565 (net benefit).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, rankdata, t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss

COLUMNS = ("cohort", "patient", "split", "her2", "run", "model", "window", "bias_field", "seed", "probability")
POWER = 0.8  # of the smallest detectable difference
FEWEST = 5  # patients of either class, below which a subgroup gets no AUC


@dataclass(frozen=True)
class EvaluateConfig:
    """bootstrap: resamples of patients.  confidence: of every interval.  seed: of the resampling."""

    bootstrap: int = 2000
    confidence: float = 0.95
    seed: int = 2025

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


@dataclass(frozen=True)
class Difference:
    """AUC of a first run − AUC of a second: standard error, interval and p-value over patients and seeds."""

    value: float
    low: float
    high: float
    se: float
    p: float


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


def comparison(labels, scores):
    """Every positive beside every negative: 1 above, 0.5 tied, 0 below.  `(…, n)` → `(…, positives, negatives)`.

    Its mean is the AUC, its row and column means are DeLong's structural components, and the AUC of a resample
    is a product with the resample's weights: nothing is ranked twice.
    """
    labels, scores = check_labels(labels), np.asarray(scores, float)
    if min(labels.sum(), (~labels).sum()) < 2:
        raise ValueError(f"a variance needs two patients of each class, found {labels.sum()} of {labels.size}")
    positive, negative = scores[..., labels][..., :, None], scores[..., ~labels][..., None, :]
    return (positive > negative) + 0.5 * (positive == negative)


def placement_variance(compared):
    """DeLong's variance of the mean of `compared`, `(positives, negatives)`."""
    return sum(v.var(ddof=1) / v.size for v in (compared.mean(1), compared.mean(0)))


def mean_over_seeds(labels, scores):
    return comparison(labels, np.atleast_2d(scores)).mean(0)


def delong_variance(labels, scores):
    """Variance over patients of the mean AUC over seeds; scores `(seeds, n)`, or `(n,)` for one."""
    return placement_variance(mean_over_seeds(labels, scores))


def delong_test(labels, first, second):
    """Mean AUC of first − second on the same patients, given the seeds, and its two-sided p-value."""
    compared = mean_over_seeds(labels, first) - mean_over_seeds(labels, second)
    difference, variance = float(compared.mean()), placement_variance(compared)
    if variance == 0:
        return difference, 1.0 if difference == 0 else 0.0
    return difference, float(2 * norm.sf(abs(difference) / np.sqrt(variance)))


def hanley_mcneil_variance(n_positive, n_negative, auc):
    """Variance of an AUC that is expected, before any patient is seen."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (n_positive - 1) * (q1 - auc**2) + (n_negative - 1) * (q2 - auc**2)
    return spread / (n_positive * n_negative)


def expected_width(groups, auc, confidence=0.95):
    """The interval to expect around an AUC of `auc` from numbers of patients alone (Hanley and McNeil).

    groups: name → (positives, negatives).  Columns: group, patients, positives, auc, standard_error, half_width,
    low, high; these two stay in [0, 1].  A group that lacks a class has NaN.
    """
    if not 0 < auc < 1:
        raise ValueError(f"an AUC that leaves an interval lies between 0 and 1, found {auc}")
    rows = []
    for group, (positives, negatives) in groups.items():
        known = min(positives, negatives) > 0
        error = np.sqrt(hanley_mcneil_variance(positives, negatives, auc)) if known else np.nan
        row = {"group": group, "patients": positives + negatives, "positives": positives, "auc": auc}
        rows.append(row | {"standard_error": error, "half_width": norm.ppf(0.5 + confidence / 2) * error})
    out = pd.DataFrame(rows)
    return out.assign(low=(auc - out["half_width"]).clip(lower=0), high=(auc + out["half_width"]).clip(upper=1))


def resample(labels, config):
    """Indices `(bootstrap, n)` of patients drawn with replacement, positives and negatives apart."""
    labels = check_labels(labels)
    rng = np.random.default_rng(config.seed)
    groups = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    return np.concatenate([rng.choice(g, (config.bootstrap, g.size)) for g in groups], axis=1)


def resample_weights(labels, config):
    """How often each resample holds each positive `(bootstrap, positives)` and each negative."""
    labels, index = check_labels(labels), resample(labels, config)
    rows = np.arange(config.bootstrap)[:, None] * labels.size
    counts = np.bincount((rows + index).ravel(), minlength=index.size).reshape(index.shape).astype(float)
    return counts[:, labels], counts[:, ~labels]


def resampled_moments(compared, weights):
    """Mean of `compared` in every resample and DeLong's variance of it there, each `(bootstrap,)`."""
    (positive, negative), (k, m) = weights, compared.shape
    v10, v01 = negative @ compared.T / m, positive @ compared / k  # (bootstrap, k), (bootstrap, m)
    mean = (v01 * negative).sum(1) / m
    squares = [
        ((w * v**2).sum(1) - n * mean**2) / n / (n - 1) for w, v, n in ((positive, v10, k), (negative, v01, m))
    ]
    return mean, np.maximum(sum(squares), 0)


def perfect_limit(n_positive, n_negative, confidence):
    """The lowest AUC that still agrees with a perfect separation of so many patients (score interval)."""
    z = norm.ppf(0.5 + confidence / 2)
    return brentq(lambda a: 1 - a - z * np.sqrt(hanley_mcneil_variance(n_positive, n_negative, a)), 0, 1 - 1e-9)


def studentised_interval(compared, weights, confidence):
    """Symmetric bootstrap-t interval on the logit scale of the mean of `compared`, `(positives, negatives)`.

    Each resample is studentised by its own DeLong error.  Half a pair is the least that can be short of 0 or 1:
    a resample that separates perfectly is taken to miss by that, a sample that does gets `perfect_limit`.
    """
    edge, value = 0.5 / compared.size, compared.mean()
    if not edge < value < 1 - edge:
        limit = perfect_limit(*compared.shape, confidence)
        return (limit, 1.0) if value > 0.5 else (0.0, 1 - limit)

    def on_logit_scale(mean, variance):
        mean = np.clip(mean, edge, 1 - edge)
        return logit(mean), np.sqrt(np.maximum(variance, edge**2)) / (mean * (1 - mean))

    centre, error = on_logit_scale(value, placement_variance(compared))
    centres, errors = on_logit_scale(*resampled_moments(compared, weights))
    half = error * np.quantile(np.abs(centres - centre) / errors, confidence)
    return float(expit(centre - half)), float(expit(centre + half))


def bootstrap_auc(labels, probabilities, config):
    """Mean AUC over seeds with its interval over patients, given these seeds; probabilities `(seeds, n)`."""
    compared = mean_over_seeds(labels, probabilities)
    low, high = studentised_interval(compared, resample_weights(labels, config), config.confidence)
    return Estimate(float(compared.mean()), low, high, sum(compared.shape), compared.shape[0])


def difference_variance(compared, weights):
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


def bootstrap_difference(labels, first, second, config):
    """Mean AUC of first − second on the same resampled patients, over patients and seeds.

    first, second: `(seeds, n)`; row s of both is the same seed, so a seed is paired as a patient is.  A seed is
    what a reader is to Obuchowski and Rockette: t-distributed, with Satterthwaite's degrees of freedom.  Seeds
    are not redrawn: four give too few distinct draws, and redrawing both counts their interaction three times.
    The p-value is never below what so many resamples can show.
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    if first.shape != second.shape:
        raise ValueError(f"a paired difference needs the same seeds and patients: {first.shape}, {second.shape}")
    compared = comparison(labels, first) - comparison(labels, second)
    patients, seeds = difference_variance(compared, resample_weights(labels, config))
    value, se = float(compared.mean()), float(np.sqrt(patients + seeds))
    if se == 0:
        return Difference(value, value, value, 0.0, 1.0 if value == 0 else 1 / (config.bootstrap + 1))
    freedom = (patients + seeds) ** 2 / (patients**2 / (len(labels) - 2) + seeds**2 / max(len(first) - 1, 1))
    half = float(t.ppf(0.5 + config.confidence / 2, freedom)) * se
    p_value = max(2 * float(t.sf(abs(value) / se, freedom)), 1 / (config.bootstrap + 1))
    return Difference(value, value - half, value + half, se, p_value)


def detectable(se, alpha=0.05):
    """The smallest true difference that a two-sided test at `alpha` finds with a power of 80 %."""
    return (norm.ppf(1 - alpha / 2) + norm.ppf(POWER)) * se


def holm(p_values):
    """Holm's step-down correction; returns adjusted p-values in the order given."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(p_values.size, 0, -1))
    out = np.empty_like(p_values)
    out[order] = np.minimum(adjusted, 1)
    return out


def summary(table, config):
    """One row per run: AUC with interval, and the spread of its seeds.  table: one split of one cohort.

    `seed_sd` is the standard deviation of the seeds' AUCs, NaN for a single seed.
    """
    rows = []
    for run, part in table.groupby("run", sort=True):
        labels, probabilities = matrix(part)
        estimate = bootstrap_auc(labels, probabilities, config)
        per_seed = pd.Series(auc(labels, probabilities))
        first = part.iloc[0]
        rows.append(
            {"run": run, "model": first["model"], "window": first["window"], "bias_field": first["bias_field"]}
            | {"auc": estimate.value, "low": estimate.low, "high": estimate.high, "lowest_seed": per_seed.min()}
            | {"highest_seed": per_seed.max(), "seed_sd": per_seed.std(), "seeds": len(per_seed)}
            | {"patients": estimate.patients, "positives": estimate.positives}
        )
    return pd.DataFrame(rows)


def check_paired(part, anchor):
    """Two runs can be compared only on the same patients, labels and seeds."""
    keys = ["patient", "seed", "her2"]
    found, expected = ({tuple(row) for row in p[keys].itertuples(index=False)} for p in (part, anchor))
    if odd := found ^ expected:
        runs = f"{part['run'].iloc[0]} and {anchor['run'].iloc[0]}"
        raise ValueError(f"{runs} differ in {len(odd)} rows of patient, seed and label, such as {min(odd)}")


def compare(part, anchor, config, alpha):
    """One row of `comparisons`, before the correction."""
    check_paired(part, anchor)
    labels, second = matrix(anchor)
    first = matrix(part)[1]
    found = bootstrap_difference(labels, first, second, config)
    return (
        {"run": part["run"].iloc[0], "reference": anchor["run"].iloc[0], "difference": found.value}
        | {"low": found.low, "high": found.high, "se": found.se, "detectable": detectable(found.se, alpha)}
        | {"p_delong": delong_test(labels, first, second)[1], "p": found.p}
        | {"patients": len(labels), "seeds": len(first)}
    )


def comparisons(table, reference, config, alpha=0.05):
    """Every run against `reference` on the same patients, Holm-corrected, with a verdict in words.

    difference, low, high, se, p: `bootstrap_difference`, over patients and seeds.  p_delong: over patients alone.
    p_holm: `p` corrected for all rows.  detectable: smallest difference found with 80 % power at `alpha`, and
    detectable_holm at `alpha_holm`, Holm's strictest level.  Raises ValueError where runs are not paired.
    """
    if reference not in set(table["run"]):
        raise ValueError(f"reference {reference!r} is not among the runs {sorted(table['run'].unique())}")
    anchor, others = table[table["run"] == reference], table[table["run"] != reference]
    out = pd.DataFrame([compare(part, anchor, config, alpha) for _, part in others.groupby("run", sort=True)])
    if len(out):
        out["p_holm"] = holm(out["p"])
        out["alpha_holm"] = alpha / len(out)
        out["detectable_holm"] = detectable(out["se"], alpha / len(out))
        words = np.where(out["difference"] > 0, "higher than the reference", "lower than the reference")
        out["verdict"] = np.where(out["p_holm"] < alpha, words, "no difference detected")
    return out


def subgroups(table, groups, config):
    """AUC in every group of one run's patients; groups: Series, patient → group, missing values being a group.

    One row per group: patients, positives, auc, low, high, note.  A group with fewer than five patients of either
    class has no AUC, and `note` says of which.
    """
    if unknown := set(table["patient"]) - set(groups.index):
        raise ValueError(f"{len(unknown)} patients stand in no group, such as {min(unknown)}")
    of_row = table["patient"].map(groups.astype(object).where(groups.notna(), "unknown"))
    rows = []
    for group, part in table.groupby(of_row, sort=True):
        labels, probabilities = matrix(part)
        positives = int((labels == 1).sum())
        row = {"group": group, "patients": labels.size, "positives": positives}
        counts = {"HER2+": positives, "HER2−": labels.size - positives}
        if few := [name for name, n in counts.items() if n < FEWEST]:
            note = f"fewer than {FEWEST} {' and '.join(few)}"
            rows.append(row | {"auc": np.nan, "low": np.nan, "high": np.nan, "note": note})
            continue
        found = bootstrap_auc(labels, probabilities, config)
        rows.append(row | {"auc": found.value, "low": found.low, "high": found.high, "note": ""})
    return pd.DataFrame(rows)


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


def to_logits(probabilities):
    """Logits; a probability that was rounded to 0 or 1 is taken as a millionth from it."""
    return logit(np.clip(np.asarray(probabilities, float), 1e-6, 1 - 1e-6))


@dataclass(frozen=True)
class Recalibration:
    """New logit = intercept + slope · logit."""

    intercept: float
    slope: float


def fit_recalibration(labels, probabilities):
    """Logistic regression of the labels on the logits; fit on validation, apply elsewhere with `recalibrate`.

    Raises ValueError where the probabilities separate the classes, or are all alike: no slope fits best.
    """
    labels, logits = check_labels(labels), to_logits(probabilities)
    if logits[labels].min() >= logits[~labels].max() or logits[labels].max() <= logits[~labels].min():
        raise ValueError(f"the probabilities of {labels.size} patients separate the classes or are all alike")
    fit = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(logits[:, None], labels)
    return Recalibration(float(fit.intercept_[0]), float(fit.coef_[0, 0]))


def recalibrate(probabilities, recalibration):
    """Probabilities after a `Recalibration`; the shape is kept."""
    return expit(recalibration.intercept + recalibration.slope * to_logits(probabilities))


def fit_recalibration_or_none(labels, probabilities):
    """`fit_recalibration`, or None where so few patients are separated that there is nothing to fit."""
    try:
        return fit_recalibration(labels, probabilities)
    except ValueError:
        return None


def wald(value, information, confidence):
    """(value, low, high) of a maximum-likelihood estimate with this Fisher information."""
    half = norm.ppf(0.5 + confidence / 2) / np.sqrt(information)
    return float(value), float(value - half), float(value + half)


def calibration(labels, probabilities, confidence=0.95):
    """Calibration intercept, at slope 1, and slope, each (value, low, high): 0 and 1 where probabilities are right.

    An intercept above 0 says that they are too low, a slope below 1 that they are too extreme.  The intervals are
    Wald's, over patients.  The slope is NaN where none fits best, see `fit_recalibration`.
    """
    logits, rate = to_logits(probabilities), check_labels(labels).mean()
    intercept = brentq(lambda a: expit(a + logits).mean() - rate, -50, 50)
    moved = expit(intercept + logits)
    found = {"intercept": wald(intercept, (moved * (1 - moved)).sum(), confidence)}
    if (line := fit_recalibration_or_none(labels, probabilities)) is None:
        return found | {"slope": (np.nan, np.nan, np.nan)}
    chance = recalibrate(probabilities, line)
    weight = chance * (1 - chance)
    information = (weight * (logits - np.average(logits, weights=weight)) ** 2).sum()  # the intercept is fitted too
    return found | {"slope": wald(line.slope, information, confidence)}


def calibration_row(labels, probabilities, confidence=0.95):
    """`calibration` in columns such as slope, slope_low, slope_high; AUPRC, prevalence, Brier score, patients."""
    line = {}
    for name, values in calibration(labels, probabilities, confidence).items():
        line |= {name + end: v for end, v in zip(("", "_low", "_high"), values, strict=True)}
    return line | precision_and_error(labels, probabilities) | {"patients": len(labels)}


def precision_and_error(labels, probabilities):
    """AUPRC (average precision, beside the prevalence that chance gives) and Brier score."""
    labels = check_labels(labels)
    return {
        "auprc": float(average_precision_score(labels, probabilities)),
        "prevalence": float(labels.mean()),
        "brier": float(brier_score_loss(labels, probabilities)),
    }


def reliability(labels, probabilities, bins=5, confidence=0.95):
    """Predicted mean and observed share of positives in bins of about as many patients; ties share a bin.

    Rows of predicted, observed, low, high, patients; the interval is Wilson's.  Empty bins are left out.
    """
    labels, probabilities = check_labels(labels), np.asarray(probabilities, float)
    number = ((rankdata(probabilities) - 0.5) / labels.size * bins).astype(int)
    rows = []
    for one in np.unique(number):
        inside = number == one
        interval = binomtest(int(labels[inside].sum()), int(inside.sum())).proportion_ci(confidence, "wilson")
        rows.append(
            {"predicted": probabilities[inside].mean(), "observed": labels[inside].mean()}
            | {"low": interval.low, "high": interval.high, "patients": int(inside.sum())}
        )
    return pd.DataFrame(rows)


def net_benefit(labels, probabilities, thresholds):
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


def net_benefit_band(labels, probabilities, thresholds, config):
    """`net_benefit` with the model's pointwise patient-bootstrap band: further columns low and high."""
    labels, probabilities = check_labels(labels), np.asarray(probabilities, float)
    index = resample(labels, config)[: min(config.bootstrap, 500)]  # a band needs fewer draws than a p-value
    curves = [net_benefit(labels[i], probabilities[i], thresholds)["model"] for i in index]
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(curves, (tail, 1 - tail), axis=0)
    return net_benefit(labels, probabilities, thresholds).assign(low=low, high=high)
