"""Do the intervals hold what they promise?  Share of simulated studies whose 95 % interval covers the truth.

    python benchmarks/coverage.py            # writes benchmarks/coverage.json
    python benchmarks/coverage.py intervals  # minutes; only what it says of intervals; so folds and power

Two runs of four seeds score the same patients, at the sizes of the study: 180 test patients of the embedded cohort,
132 of I-SPY and 43 external lesions; and at that of the smallest subgroup that gets an AUC.  Scores are Gaussian:
half of their variance is the patient's, 30 % the run's and 20 % the seed's own.  Seeds are better or worse with a
standard deviation of 0.025 in true AUC; their probits are normal, of the mean and spread that give the AUCs theirs.

`auc` and `difference` are the intervals of `her2core.auc`; `false_positives` is the share of its p-values
below 0.05 for two equally good runs.  Beside them what was not chosen: the percentile bootstrap and DeLong's normal
interval of one AUC; for the difference DeLong's test, which knows of patients only, and the percentile bootstrap
that redraws patients and seeds, three seeds in a draw, as redrawing all four would lose a quarter of the variance.

Folds: two runs of three seeds, each seed a linear discriminant of 12 of 16 Gaussian features, drawn anew, which is
trained in each of five folds, as `cohort` deals them out.  `auc` is how often the interval holds the mean AUC, over
infinitely many patients, of the discriminants that were trained in that very study; `auc_independent` that of the
interval that takes the folds for independent; `auc_of_method` how often it holds what such studies give on average.
`correlation` is that of two folds: the variance of the estimate around its truth is 1 + 4 × that times DeLong's.
That and differences, of fewer simulations, only where patients are few: there training depends on each the most.

Power, at the sizes of the studies on phantoms and of I-SPY's test: `detectable` is what the t-test says that it
would find in four of five studies, `power` the share of studies in which it does, at the numbers and spreads of
seeds that occur; `difference` and `auc` are coverage, as above.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit, owens_t
from scipy.stats import norm

from her2core.auc import (
    FOLD_CORRELATION,
    EvaluateConfig,
    bootstrap_auc,
    comparison,
    delong_variance,
    resample_weights,
    resampled_moments,
)
from her2core.cohort import CohortConfig, draw_folds
from her2core.dataset import seen_by
from her2core.paired import bootstrap_difference, delong_test, detectable
from her2core.parallel import each

CONFIG = EvaluateConfig()
SETTINGS = {"simulations": 1000, "bootstrap": CONFIG.bootstrap, "confidence": CONFIG.confidence} | {
    "seeds": 4,
    "seed_sd": 0.025,
}
STUDIES = {  # patients, positives
    "embedded test": (180, 72),
    "I-SPY test": (132, 34),
    "external": (43, 11),
    "smallest subgroup": (10, 5),
}
TRUE_AUCS = (0.74, 0.88)


def simulate(patients, positives, true_auc, rng, gap=0.0, seeds=SETTINGS["seeds"], seed_sd=SETTINGS["seed_sd"]):
    """Labels `(patients,)`, scores `(2, seeds, patients)`, true AUCs `(2, seeds)`.

    gap: by how much the first run is better, about `true_auc`."""
    labels = np.arange(patients) < positives
    means, spreads = np.transpose([probits_of(true_auc + side * gap / 2, seed_sd) for side in (1, -1)])
    probits = means[:, None, None] + spreads[:, None, None] * rng.standard_normal((2, seeds, 1))
    parts = [rng.standard_normal(shape + (patients,)) for shape in ((1, 1), (2, 1), (2, seeds))]
    noise = sum(np.sqrt(share) * part for share, part in zip((0.5, 0.3, 0.2), parts, strict=True))
    return labels.astype(int), noise + np.sqrt(2) * probits * labels, norm.cdf(probits[..., 0])


def probits_of(mean, sd):
    """Mean and standard deviation of the normal probits of AUCs that have this mean and standard deviation.

    Near 1 the probit is far from straight: AUCs drawn along its tangent would have another mean."""
    alone = norm.ppf(mean)

    def excess(spread):  # of the variance of Φ(normal), Owen's T (Ann Math Stat 1956;27:1075)
        return norm.cdf(alone) - 2 * owens_t(alone, (1 + 2 * spread**2) ** -0.5) - mean**2 - sd**2

    spread = brentq(excess, 0, 10)
    return alone * np.hypot(1, spread), spread


def covers(interval, truth):
    return interval[0] <= truth <= interval[1]


def percentiles(samples):
    tail = (1 - CONFIG.confidence) / 2
    return np.quantile(samples, (tail, 1 - tail))


def resampled(labels, scores):
    """AUC of every seed in every resample, `(seeds, bootstrap)`."""
    weights = resample_weights(labels, CONFIG)
    return np.stack([resampled_moments(c, weights)[0] for c in comparison(labels, scores)])


def one_study(labels, scores, truths, rng):
    truth, found = truths[0].mean(), bootstrap_auc(labels, scores[0], CONFIG)
    samples = [resampled(labels, run) for run in scores]
    half = norm.ppf(0.5 + CONFIG.confidence / 2) * np.sqrt(delong_variance(comparison(labels, scores[0]).mean(0)))
    difference = bootstrap_difference(labels, scores[0], scores[1], CONFIG)
    seeds = SETTINGS["seeds"]
    drawn = rng.integers(0, seeds, (seeds - 1, CONFIG.bootstrap))
    crossed = np.take_along_axis(samples[0] - samples[1], drawn, 0).mean(0)
    return {
        "auc": covers((found.low, found.high), truth),
        "auc_percentile": covers(percentiles(samples[0].mean(0)), truth),
        "auc_delong": covers((found.value - half, found.value + half), truth),
        "difference": covers((difference.low, difference.high), 0),
        "difference_crossed": covers(percentiles(crossed), 0),
        "false_positives": difference.p < 0.05,
        "false_positives_delong": delong_test(labels, *scores)[1] < 0.05,
    }


def coverage(cell):
    name, true_auc = cell
    patients, positives = STUDIES[name]
    rng = np.random.default_rng([patients, positives, round(100 * true_auc)])
    rows = [one_study(*simulate(patients, positives, true_auc, rng), rng) for _ in range(SETTINGS["simulations"])]
    shares = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
    return {"study": name, "patients": patients, "positives": positives, "true_auc": true_auc} | shares


POWER = {"bootstrap": 500, "confidence": 0.95, "true_auc": 0.8}
# patients, positives, simulations; seeds, and the standard deviations of their true AUCs: those of the embedded
# study's and the instrument's comparisons reach 0.032, those of the questions' 0.06, by the differences between two
# runs, which have √2 times as much
_FEW_SEEDS, _TEN_SEEDS = {3: (0.025, 0.035, 0.05)}, {10: (0.025, 0.035)}
POWER_STUDIES = {
    **{name: (*STUDIES[name], 2000, _FEW_SEEDS | _TEN_SEEDS) for name in ("embedded test", "I-SPY test")},
    "test of a question": (400, 160, 1000, dict.fromkeys((5, 10), (0.025, 0.035, 0.06))),
    "instrument test": (1000, 400, 1000, _TEN_SEEDS),
}


def power(cell):
    """How often the t-test finds the difference that it says it can detect in four of five studies."""
    name, seeds, seed_sd = cell
    (patients, positives, simulations, _), of_seeds = POWER_STUDIES[name], {"seeds": seeds, "seed_sd": seed_sd}
    rng = np.random.default_rng([patients, seeds, round(1000 * seed_sd)])
    config = EvaluateConfig(POWER["bootstrap"], POWER["confidence"])

    def studies(gap):
        for _ in range(simulations):
            labels, scores, truths = simulate(patients, positives, POWER["true_auc"], rng, gap, **of_seeds)
            yield bootstrap_difference(labels, *scores, config), bootstrap_auc(labels, scores[0], config), truths

    told = [detectable(difference.se, difference.freedom) for difference, *_ in studies(0)]
    gap = float(np.sqrt(np.mean(np.square(told))))  # errors add up as squares
    found = [*studies(gap)]
    shares = {"detectable": gap, "power": np.mean([difference.p < 0.05 for difference, *_ in found])}
    shares["difference"] = np.mean([covers((difference.low, difference.high), gap) for difference, *_ in found])
    shares["auc"] = np.mean([covers((e.low, e.high), truths[0].mean()) for _, e, truths in found])
    about = {"study": name, "patients": patients, "positives": positives, "simulations": simulations} | of_seeds
    return about | {key: round(float(value), 3) for key, value in shares.items()}


FOLDS = {"folds": 5, "bootstrap": 500, "confidence": 0.95, "seeds": 3, "features": 16, "used": 12}
# patients, positives, simulations, and in how many of these differences are looked at
FOLD_STUDIES = {"embedded test": (180, 72, 1000, 300), "I-SPY": (1149, 296, 300, 0)}
BAYES_AUCS = (0.8, 0.92)


def folds_of(labels, repeats, seed):
    """The role of each patient to the discriminant of each seed and fold: {(seed, fold): `(n,)`}."""
    table = pd.DataFrame({"label": labels, "site": "one", "external": False, "split": "train"})
    split = draw_folds(table, CohortConfig("her2", FOLDS["folds"], repeats, seed))["split"].tolist()
    firsts = [s % repeats * FOLDS["folds"] for s in range(FOLDS["seeds"])]
    folds = {(s, first + f) for s, first in enumerate(firsts) for f in range(FOLDS["folds"])}
    return {(s, fold): seen_by(split, fold, FOLDS["folds"]) for s, fold in sorted(folds)}


def discriminant(x, labels):
    """Weights of Fisher's linear discriminant; x `(n, features)`."""
    means = [x[labels == one].mean(0) for one in (0, 1)]
    spread = x - np.stack(means)[labels]
    return np.linalg.solve(spread.T @ spread / (len(x) - 2), means[1] - means[0])


def one_run(x, labels, shift, roles, rng):
    """Scores and folds `(seeds, n)`, and the mean true AUC of all its discriminants."""
    scores, folds, truths = np.empty((FOLDS["seeds"], len(x))), np.empty((FOLDS["seeds"], len(x)), int), []
    used = [rng.permutation(FOLDS["features"])[: FOLDS["used"]] for _ in range(FOLDS["seeds"])]
    for (seed, fold), role in roles.items():
        seen, train, test = x[:, used[seed]], role == "train", role == "test"
        weights = discriminant(seen[train], labels[train])
        scores[seed, test], folds[seed, test] = seen[test] @ weights, fold
        truths.append(norm.cdf(shift * weights.sum() / np.sqrt(2 * weights @ weights)))
    return scores, folds, np.mean(truths)


def folded_study(labels, bayes_auc, repeats, config, rng, compare):
    shift = np.sqrt(2 / FOLDS["features"]) * norm.ppf(bayes_auc)  # of every feature
    x = rng.standard_normal((len(labels), FOLDS["features"])) + shift * labels[:, None]
    roles = folds_of(labels, repeats, int(rng.integers(1 << 30)))
    scores, folds, truth = one_run(x, labels, shift, roles, rng)
    found = bootstrap_auc(labels, scores, config, folds)
    row = {"low": found.low, "high": found.high, "value": found.value, "truth": truth}
    row |= {"variance": delong_variance(comparison(labels, scores, folds).mean(0)) if compare else np.nan}
    if not compare:
        return row
    others = one_run(x, labels, shift, roles, rng)[0]
    difference = bootstrap_difference(labels, scores, others, config, folds)
    p_delong = delong_test(labels, scores, others, folds)[1]
    row |= {"difference": covers((difference.low, difference.high), 0)}
    return row | {"false_positives": difference.p < 0.05, "false_positives_delong": p_delong < 0.05}


def coverage_of_folds(cell):
    name, bayes_auc, repeats = cell
    patients, positives, simulations, compared = FOLD_STUDIES[name]
    labels, config = (np.arange(patients) < positives).astype(int), EvaluateConfig(FOLDS["bootstrap"])
    rng = np.random.default_rng([patients, repeats, round(100 * bayes_auc)])
    t = pd.DataFrame(
        [folded_study(labels, bayes_auc, repeats, config, rng, n < compared) for n in range(simulations)]
    )
    half = (logit(t["high"]) - logit(t["value"])) / np.sqrt(1 + FOLD_CORRELATION * (FOLDS["folds"] - 1))
    bare = expit(logit(t["value"]) - half), expit(logit(t["value"]) + half)
    average, variance = t["truth"].mean(), (t["value"] - t["truth"]).var()
    found = {
        "auc": t["truth"].between(t["low"], t["high"]).mean(),
        "auc_independent": t["truth"].between(*bare).mean(),
        "auc_of_method": ((t["low"] <= average) & (average <= t["high"])).mean(),
    }
    if compared:
        found["correlation"] = (variance / t["variance"].mean() - 1) / (FOLDS["folds"] - 1)
        found |= t.filter(regex="^(difference|false)").astype(float).mean().to_dict()
    about = {"study": name, "patients": patients, "positives": positives, "simulations": simulations} | {
        "compared": compared
    }
    about |= {"bayes_auc": bayes_auc, "mean_auc": round(float(average), 3), "repeats": repeats}
    return about | {key: round(float(value), 3) for key, value in found.items()}


def main(only):
    path = Path(__file__).with_suffix(".json")
    written = json.loads(path.read_text()) if only else {}
    if only in ("", "intervals"):
        cells = [(name, true_auc) for name in STUDIES for true_auc in TRUE_AUCS]
        written |= {"settings": SETTINGS, "coverage": each(coverage, cells, -1, "intervals", "cell")}
    if only in ("", "folds"):
        cells = [(name, bayes, repeats) for name in FOLD_STUDIES for bayes in BAYES_AUCS for repeats in (1, 3)]
        written["folds"] = {"settings": FOLDS, "coverage": each(coverage_of_folds, cells, -1, "folds", "cell")}
    if only in ("", "power"):
        sizes = {name: seeds for name, (*_, seeds) in POWER_STUDIES.items()}
        cells = [(name, n, sd) for name, seeds in sizes.items() for n, sds in seeds.items() for sd in sds]
        written["power"] = {"settings": POWER, "power": each(power, cells, -1, "power", "cell")}
    path.write_text(json.dumps(written, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main("".join(sys.argv[1:2]))
