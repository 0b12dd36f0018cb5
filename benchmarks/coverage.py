"""Do the intervals hold what they promise?  Share of simulated studies whose 95 % interval covers the truth.

    python benchmarks/coverage.py        # minutes; writes benchmarks/coverage.json

Two runs of four seeds score the same patients, at the sizes of the study: 180 test patients of the embedded cohort,
132 of I-SPY and 43 external lesions; and at that of the smallest subgroup that gets an AUC.  Scores are Gaussian:
half of their variance is the patient's, 30 % the run's and 20 % the seed's own.  Seeds are better or worse with a
standard deviation of 0.025 in true AUC.

`auc` and `difference` are the intervals of `her2core.auc`; `false_positives` is the share of its p-values
below 0.05 for two equally good runs.  Beside them what was not chosen: the percentile bootstrap and DeLong's normal
interval of one AUC; for the difference DeLong's test, which knows of patients only, and the percentile bootstrap
that redraws patients and seeds, three seeds in a draw, as redrawing all four would lose a quarter of the variance.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import json
from pathlib import Path

import numpy as np
from scipy.stats import norm
from tqdm import tqdm

from her2core.auc import (
    EvaluateConfig,
    bootstrap_auc,
    bootstrap_difference,
    comparison,
    delong_test,
    delong_variance,
    resample_weights,
    resampled_moments,
)

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


def simulate(patients, positives, true_auc, rng):
    """Labels `(patients,)`, scores `(2, seeds, patients)`, true AUCs `(2, seeds)`; both runs equally good."""
    labels, seeds = np.arange(patients) < positives, SETTINGS["seeds"]
    probit = norm.ppf(true_auc)
    probits = probit + SETTINGS["seed_sd"] / norm.pdf(probit) * rng.standard_normal((2, seeds, 1))
    parts = [rng.standard_normal(shape + (patients,)) for shape in ((1, 1), (2, 1), (2, seeds))]
    noise = sum(np.sqrt(share) * part for share, part in zip((0.5, 0.3, 0.2), parts, strict=True))
    return labels.astype(int), noise + np.sqrt(2) * probits * labels, norm.cdf(probits[..., 0])


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


def coverage(name, true_auc):
    patients, positives = STUDIES[name]
    rng = np.random.default_rng([patients, positives, round(100 * true_auc)])
    title = f"{name}, AUC {true_auc}"
    rows = [
        one_study(*simulate(patients, positives, true_auc, rng), rng)
        for _ in tqdm(range(SETTINGS["simulations"]), desc=title)
    ]
    shares = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
    return {"study": name, "patients": patients, "positives": positives, "true_auc": true_auc} | shares


def main():
    found = [coverage(name, true_auc) for name in STUDIES for true_auc in TRUE_AUCS]
    text = json.dumps({"settings": SETTINGS, "coverage": found}, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
