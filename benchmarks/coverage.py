"""Do the intervals hold what they promise?  Share of simulated studies whose 95 % interval covers the truth.

    python benchmarks/coverage.py        # writes benchmarks/coverage.json

Scores are Gaussian with a known AUC, at the sizes of the study: 180 test patients of the embedded cohort, 132 of
I-SPY and the 43 external lesions.  A difference is that of two equally good runs on the same patients, so its
truth is 0, and `false_positives` is the share of p-values below 0.05.
"""

import json
from pathlib import Path

import numpy as np
from scipy.stats import norm
from tqdm import tqdm

from her2core.evaluate import EvaluateConfig, bootstrap_auc, bootstrap_difference, delong_interval

SIMULATIONS = 1000
CONFIG = EvaluateConfig(bootstrap=500, confidence=0.95, seed=0)
STUDIES = {"embedded test": (180, 72), "I-SPY test": (132, 34), "external": (43, 11)}  # patients, positives
TRUE_AUC = 0.74


def simulate(patients, positives, rng):
    """Labels and two equally good, correlated scores `(2, patients)`."""
    labels = (np.arange(patients) < positives).astype(int)
    shared, own = rng.standard_normal(patients), rng.standard_normal((2, patients))
    return labels, np.sqrt(0.5) * shared + np.sqrt(0.5) * own + np.sqrt(2) * norm.ppf(TRUE_AUC) * labels


def covers(estimate, truth):
    return estimate.low <= truth <= estimate.high


def study(patients, positives):
    rng = np.random.default_rng([patients, positives])
    rows = []
    for _ in tqdm(range(SIMULATIONS), desc=f"n = {patients}"):
        labels, scores = simulate(patients, positives, rng)
        difference, p = bootstrap_difference(labels, scores[0], scores[1], CONFIG)
        rows.append(
            {
                "delong": covers(delong_interval(labels, scores[0]), TRUE_AUC),
                "bootstrap": covers(bootstrap_auc(labels, scores[0], CONFIG), TRUE_AUC),
                "difference": covers(difference, 0),
                "false_positives": p < 0.05,
            }
        )
    return {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}


def main():
    found = {name: {"patients": n, "positives": k} | study(n, k) for name, (n, k) in STUDIES.items()}
    text = json.dumps({"simulations": SIMULATIONS, "true_auc": TRUE_AUC} | found, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
