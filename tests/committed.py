"""A study's committed tables and predictions, and what other libraries make of the predictions."""

import json
from dataclasses import asdict
from functools import cache, cached_property

import numpy as np
import pandas as pd
from house import TOP
from scipy import stats
from scipy.special import expit, logit
from sklearn import metrics as sk
from statsmodels.stats.power import TTestPower

from her2core.cohorts.phantom import EmbeddedConfig, draw_cohort, site_of
from her2core.config import read_yaml
from her2core.phantom.sites import random_stream
from her2core.phantom.truth import draw_truth, posterior

STUDIES = ("embedded", "instrument")
RESAMPLES, SEED = 2000, 2025  # evaluate.bootstrap and evaluate.seed of params.yaml


class Committed:
    """results/<name>: each file is read, and each run computed, once."""

    def __init__(self, name):
        self.name, self.results = name, TOP / "results" / name
        self.metrics = json.loads((self.results / "metrics.json").read_text())
        self.reference = self.metrics["reference"]

    @cache  # noqa: B019  (two studies, as long as the tests run)
    def table(self, name):
        return pd.read_csv(self.results / f"{name}.csv")

    @cached_property
    def predictions(self):
        """{(run, split): rows} of all models, of internal and external patients."""
        paths = [*self.results.glob("predictions/*.csv"), *self.results.glob("external/*.csv")]
        tables = [pd.read_csv(path) for path in (*paths, self.results / "predictions_simple.csv")]
        return dict(iter(pd.concat(tables, ignore_index=True).groupby(["run", "split"])))

    @cache  # noqa: B019
    def wide(self, run, split):
        """Probabilities, a row per seed, a column per (patient, label) in the order of patients."""
        rows = self.predictions[run, split]
        return rows.pivot(index="seed", columns=["patient", "label"], values="probability").sort_index(axis=1)

    def scores(self, run, split="test"):
        """Labels `(n,)` and probabilities `(seeds, n)`."""
        wide = self.wide(run, split)
        return wide.columns.get_level_values("label").to_numpy(), wide.to_numpy()

    @cache  # noqa: B019
    def aucs(self, run, split="test"):
        labels, scores = self.scores(run, split)
        return np.array([sk.roc_auc_score(labels, seed) for seed in scores])

    @cache  # noqa: B019
    def resampled(self, run, split="test"):
        """The interval of a run's AUC, and the AUC of each seed in each resample `(seeds, resamples)`."""
        return bootstrap_t(*self.scores(run, split))

    @cached_property
    def thresholds(self):
        """Youden's threshold of each of the reference's seeds, on validation, and of their mean."""
        labels, scores = self.scores(self.reference, "validation")
        return np.array([youden(labels, seed) for seed in scores]), youden(labels, scores.mean(0))

    @cache  # noqa: B019
    def difference(self, run, reference):
        """Of each seed `(seeds,)`, DeLong's error of their mean, and its variance by patients and by seeds.

        Patients: the resamples.  Seeds: what is left of their variance without their interaction with patients."""
        each = np.subtract(*self.pair(run, reference, self.aucs))
        pairs = (self.pair(run, reference, lambda r, k=k: placements(*self.scores(r))[k]) for k in (0, 1))
        error = delong_error(*(np.subtract(*pair).mean(0) for pair in pairs))
        drawn = np.subtract(*self.pair(run, reference, lambda r: self.resampled(r)[1]))
        together = (drawn - drawn.mean(0)).var(axis=1, ddof=1).sum() / (len(each) - 1)
        of_seeds = max(each.var(ddof=1) - together, 0) / len(each)
        return each, error, drawn.mean(0).var(ddof=1), of_seeds

    @cached_property
    def pairs_of_networks(self):
        """(row, variance by patients, variance by seeds) of each comparison of two networks."""
        pairs = pd.concat([self.table("model_pairs"), self.table("ablation")])
        trained = {path.stem for path in self.results.glob("predictions/*.csv")}
        rows = [row for _, row in pairs.iterrows() if row["run"] in trained]
        return [(row, *self.difference(row["run"], row["reference"])[2:]) for row in rows]

    def detectable(self, positives, patients, seeds):
        """What each comparison of two networks would find on so many patients with so many seeds."""
        return [detectable_elsewhere(*pair, positives, patients, seeds) for pair in self.pairs_of_networks]

    def interval(self, labels, scores):
        return bootstrap_t(labels, scores)[0]

    @cached_property
    def phantom(self):
        """How the cohort is drawn."""
        folder = TOP if self.name == "embedded" else TOP / "studies" / self.name
        return EmbeddedConfig(**read_yaml(folder / "params.yaml")["acquire"])

    @cached_property
    def drawn(self):
        """What the phantom draws of each patient in use before it makes a picture, in the order of patients."""
        rows = pd.DataFrame(row for row in draw_cohort(self.phantom) if row["her2_known"])
        rows = rows.sort_values("patient", ignore_index=True)
        sites = [site_of(row, self.phantom.coarse) for row in rows.to_dict("records")]
        truth = pd.DataFrame(self._truth(row) for row in rows.itertuples())
        rows = rows.join(truth["u"]).join(posterior(truth, self.phantom.prevalence)["p_parameters"])
        return rows.assign(
            field_T=[site.field_T for site in sites],
            slice_mm=[site.spacing_mm[0] for site in sites],
            pixel_native_mm=[site.spacing_mm[1] for site in sites],
            early_s=[site.phase_times_s[site.early_index] for site in sites],
            late_s=[site.phase_times_s[site.late_index] for site in sites],
        )

    def _truth(self, row):
        return asdict(draw_truth(row.her2, random_stream(row.seed, "truth"), bayes_auc=self.phantom.bayes_auc))

    def groups(self, split):
        """Who of a split's patients belongs to which group, by what the groups are of; in the order of patients."""
        rows = self.drawn[self.drawn["split"] == split]
        names = {"spy1": "I-SPY1", "spy2": "I-SPY2", "ambl": "AMBL"}
        old = rows["age"] >= 50
        return {
            "all": pd.Series("all", rows.index),
            "HR status": rows["hr"].map({0: "HR−", 1: "HR+"}),
            "age": old.map({True: "50 years and above", False: "below 50 years"}),
            "site": rows["dataset"].map(names),
            "field strength": rows["field_T"].map("{:g} T".format),
        }

    def pair(self, run, reference, of):
        """`of(run)` and `of(reference)`, whose rows are seeds, on the seeds that both have."""
        seeds = [self.wide(name, "test").index for name in (run, reference)]
        both = seeds[0].intersection(seeds[1])
        return [of(name)[index.get_indexer(both)] for name, index in zip((run, reference), seeds, strict=True)]


committed = cache(Committed)


def youden(labels, scores):
    """The lowest threshold with the highest sensitivity + specificity."""
    false, true, cut = sk.roc_curve(labels, scores, drop_intermediate=False)
    return cut[np.isclose(true - false, (true - false).max(), atol=1e-12)].min()


def placements(labels, scores):
    """DeLong's placement values of each seed from mid-ranks (Sun and Xu 2014): positives' and negatives'."""
    positive = labels == 1
    m, n = positive.sum(), (~positive).sum()
    inside = [stats.rankdata(scores[:, one], axis=1) for one in (positive, ~positive)]
    ranks = stats.rankdata(scores, axis=1)
    return (ranks[:, positive] - inside[0]) / n, 1 - (ranks[:, ~positive] - inside[1]) / m


def delong_error(*parts):
    """Standard error of a mean placement."""
    return np.sqrt(sum(np.var(part, ddof=1) / len(part) for part in parts))


@cache
def counts(k, m):
    """How often each positive `(k, resamples)` and each negative `(m, resamples)` is drawn."""
    rng = np.random.default_rng(SEED)
    drawn = [rng.choice(n, (RESAMPLES, n)) for n in (k, m)]
    return [np.array([np.bincount(row, minlength=row.size) for row in rows], np.float32).T for rows in drawn]


def share_below(own, others, drawn):
    """Which share of the others, each drawn so often `(m, resamples)`, lies below each of one's own; ties half."""
    order = np.argsort(others)
    below = np.vstack([np.zeros_like(drawn[:1]), np.cumsum(drawn[order], axis=0)])
    ends = [below[np.searchsorted(others[order], own, side)] for side in ("left", "right")]
    return (ends[0] + ends[1]) / (2 * len(others))


def mean_placement(of, drawn):
    """The mean in each resample `(resamples,)` of values `(n, resamples)`, each drawn so often."""
    return np.einsum("nb,nb->b", of, drawn).astype(float) / len(of)


def bootstrap_t(labels, scores):
    """(low, high) of the mean AUC, symmetric bootstrap-t on the logit scale, and the seeds' AUCs in each resample
    `(seeds, resamples)`.  Only the draws are those of her2core: here each resample is counted along its ranks."""
    drawn = counts((labels == 1).sum(), (labels == 0).sum())
    distinct, of_seed, often = np.unique(scores, axis=0, return_inverse=True, return_counts=True)
    each, means = [], [0, 0]
    for seed, weight in zip(distinct, np.float32(often / len(scores)), strict=True):
        positive, negative = seed[labels == 1], seed[labels == 0]
        values = share_below(positive, negative, drawn[1]), share_below(-negative, -positive, drawn[0])
        each.append(mean_placement(values[0], drawn[0]))
        means = [mean + weight * value for mean, value in zip(means, values, strict=True)]
    mean, parts = mean_placement(means[0], drawn[0]), zip(means, drawn, strict=True)
    variance = sum(mean_placement((v - np.float32(mean)) ** 2, w) / (len(v) - 1) for v, w in parts)
    return student_interval(labels, scores, mean, variance), np.array(each)[of_seed.ravel()]


def student_interval(labels, scores, mean, variance):
    """mean, variance: of the AUC in each resample `(resamples,)`, which falls short of 0 and 1 by half a pair."""
    value = np.mean([sk.roc_auc_score(labels, seed) for seed in scores])
    edge = 0.5 / np.prod([(labels == y).sum() for y in (0, 1)])
    mean, spread = np.clip(mean, edge, 1 - edge), np.sqrt(np.maximum(variance, edge**2))
    error = delong_error(*(part.mean(0) for part in placements(labels, scores))) / (value * (1 - value))
    t = np.abs(logit(mean) - logit(value)) / (spread / (mean * (1 - mean)))
    half = error * np.quantile(t, 0.95)
    return expit(logit(value) - half), expit(logit(value) + half)


def satterthwaite(of_patients, of_seeds, patients, seeds):
    """Degrees of freedom of the sum of two variances."""
    return (of_patients + of_seeds) ** 2 / (of_patients**2 / (patients - 2) + of_seeds**2 / (seeds - 1))


def detectable(se, freedom, alpha=0.05):
    """What a one-sample t-test with as many degrees of freedom finds with a power of 80 %."""
    effect = TTestPower().solve_power(nobs=freedom + 1, alpha=alpha, power=0.8)  # of either sign
    return abs(np.squeeze(effect)) * np.sqrt(freedom + 1) * se


def detectable_elsewhere(pair, of_patients, of_seeds, positives, patients, seeds):
    """What such a comparison finds with other numbers: the variance of patients falls with the harmonic mean of
    both classes, that of seeds with their number."""
    before, after = (1 / k + 1 / (n - k) for k, n in ((pair["positives"], pair["patients"]), (positives, patients)))
    parts = of_patients * after / before, of_seeds * pair["seeds"] / seeds
    return detectable(np.sqrt(sum(parts)), satterthwaite(*parts, patients, seeds))
