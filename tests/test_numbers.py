"""The committed numbers, computed anew from the committed predictions by other libraries."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

RESULTS = Path(__file__).resolve().parents[1] / "results/embedded"
METRICS = json.loads((RESULTS / "metrics.json").read_text())
REFERENCE = METRICS["reference"]
PAIRS = {"normalization_pairs": "test", "model_pairs": "test", "ablation": "test", "increment": "test"}


@cache
def table_of(name):
    return pd.read_csv(RESULTS / f"{name}.csv")


@cache
def predictions():
    """All predictions of internal and external patients, the simple models' too."""
    paths = [*(RESULTS / "predictions").glob("*.csv"), *(RESULTS / "external").glob("*.csv")]
    tables = [pd.read_csv(path) for path in (*paths, RESULTS / "predictions_simple.csv")]
    return pd.concat(tables, ignore_index=True).drop_duplicates(["run", "seed", "patient"])


@cache
def scores_of(run, split):
    """Labels `(n,)` and probabilities `(seeds, n)` of a run, and the seeds."""
    rows = predictions()
    wide = rows[(rows["run"] == run) & (rows["split"] == split)].pivot_table(
        index="seed", columns=["patient", "label"], values="probability"
    )
    return wide.columns.get_level_values("label").to_numpy(), wide.to_numpy(), wide.index.to_numpy()


def aucs_of(run, split="test"):
    labels, scores, _ = scores_of(run, split)
    return np.array([sk.roc_auc_score(labels, seed) for seed in scores])


def placements(run, split="test"):
    """DeLong's placement values of each seed from mid-ranks (Sun and Xu 2014): positives', negatives'."""
    labels, scores, _ = scores_of(run, split)
    positive, found = labels == 1, []
    for seed in scores:
        ranks, (m, n) = stats.rankdata(seed), (positive.sum(), (~positive).sum())
        inside = stats.rankdata(seed[positive]), stats.rankdata(seed[~positive])
        found.append(((ranks[positive] - inside[0]) / n, 1 - (ranks[~positive] - inside[1]) / m))
    return [np.mean(part, axis=0) for part in zip(*found, strict=True)]


def delong_error(*parts):
    """Standard error of a mean placement."""
    return np.sqrt(sum(np.var(part, ddof=1) / len(part) for part in parts))


def rows_of_runs():
    for name in ("normalization_study", "model_comparison"):
        yield from ((name, "test", row) for _, row in table_of(name).iterrows())
    ladder = table_of("external_validation")
    for _, row in ladder[~ladder["model"].str.startswith("truth_")].iterrows():
        yield "external_validation", "test" if row["test"] == "internal" else "external", row


def test_every_auc_is_scikit_learns_and_its_spread_that_of_the_seeds():
    for _, split, row in rows_of_runs():
        found = aucs_of(row["run"], split)
        assert row["auc"] == pytest.approx(found.mean(), abs=2e-6), row["run"]
        assert row["lowest_seed"] == pytest.approx(found.min(), abs=2e-6)
        assert row["highest_seed"] == pytest.approx(found.max(), abs=2e-6)
        assert row["seed_sd"] == pytest.approx(found.std(ddof=1), abs=2e-6)
        labels = scores_of(row["run"], split)[0]
        assert (row["patients"], row["positives"], row["seeds"]) == (len(labels), labels.sum(), len(found))


def test_every_interval_of_an_auc_is_near_delongs_on_the_logit_scale():
    """The bootstrap is studentised and is not DeLong's interval, but no end of it may lie far from that."""
    for _, split, row in rows_of_runs():
        if row["low"] == row["high"]:  # all scores tied
            continue
        error = delong_error(*placements(row["run"], split)) / (row["auc"] * (1 - row["auc"]))
        ends = 1 / (1 + np.exp(-(np.log(row["auc"] / (1 - row["auc"])) + np.array([-1.96, 1.96]) * error)))
        assert row[["low", "high"]].to_numpy(float) == pytest.approx(ends, abs=0.03), row["run"]


@pytest.mark.parametrize("name", PAIRS)
def test_every_difference_its_error_and_its_p_values_follow_from_the_predictions(name):
    for _, row in table_of(name).iterrows():
        if row["run"].startswith("aggregate_"):  # their predictions are not kept
            continue
        compared = [a - b for a, b in zip(placements(row["run"]), placements(row["reference"]), strict=True)]
        assert row["difference"] == pytest.approx(compared[0].mean(), abs=2e-6)
        if row["se"] == 0:
            continue
        normal = 2 * stats.norm.sf(abs(row["difference"]) / delong_error(*compared))
        assert row["p_delong"] == pytest.approx(normal, abs=1e-4)
        assert np.sqrt(row["of_patients"]) == pytest.approx(delong_error(*compared), rel=0.1)
        assert row["se"] ** 2 == pytest.approx(row["of_patients"] + row["of_seeds"], abs=1e-6)
        each = aucs_of(row["run"]) - aucs_of(row["reference"])
        assert row["of_seeds"] <= each.var(ddof=1) / len(each) + 1e-6


@pytest.mark.parametrize("name", PAIRS)
def test_every_interval_p_value_and_detectable_difference_is_students(name):
    table = table_of(name)
    for _, row in table[table["se"] > 0].iterrows():
        student = stats.t(row["freedom"])
        half = student.ppf(0.975) * row["se"]
        assert row["low"] == pytest.approx(row["difference"] - half, abs=2e-5)
        assert row["high"] == pytest.approx(row["difference"] + half, abs=2e-5)
        assert row["p"] == pytest.approx(
            max(2 * student.sf(abs(row["difference"]) / row["se"]), 1 / 2001), abs=2e-3
        )
        n = row["freedom"] + 1  # a one-sample t-test with as many degrees of freedom
        effect = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
        assert row["detectable"] == pytest.approx(effect * np.sqrt(n) * row["se"], rel=2e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_the_corrected_p_values_and_verdicts_are_holms(name):
    table = table_of(name)
    corrected = multipletests(table["p"], method="holm")[1]
    assert table["p_holm"].to_numpy() == pytest.approx(corrected, abs=1e-5)
    for (_, row), p in zip(table.iterrows(), corrected, strict=True):
        word = "higher" if row["difference"] > 0 else "lower"
        sure = f"{word} than the reference" if p < 0.05 else "not after correction"
        assert row["verdict"] == (sure if row["p"] < 0.05 else "no difference detected")


def thresholds():
    """Youden's threshold of each seed of the reference: the highest J over the seed's own validation scores."""
    labels, scores, _ = scores_of(REFERENCE, "validation")
    found = []
    for seed in scores:
        false, true, cut = sk.roc_curve(labels, seed, drop_intermediate=False)
        best = np.flatnonzero(np.isclose(true - false, (true - false).max()))
        found.append(cut[best[-1]])  # of equals the lowest
    return np.array(found)


def test_the_threshold_is_the_mean_of_youdens():
    assert METRICS["threshold"] == pytest.approx(thresholds().mean(), abs=1e-4)


@pytest.mark.parametrize(("place", "split"), [("internal", "test"), ("AMBL", "external")])
def test_the_rates_are_the_means_of_scikit_learns_over_seeds_and_their_intervals_statsmodels(place, split):
    told = METRICS["internal"] if place == "internal" else METRICS["external"][place]
    labels, scores, _ = scores_of(REFERENCE, split)
    for name, cuts in (("0.5", np.full(len(scores), 0.5)), ("threshold", thresholds())):
        called = scores >= cuts[:, None]
        each = {
            "accuracy": (sk.accuracy_score, labels.size),
            "sensitivity": (sk.recall_score, labels.sum()),
            "specificity": (lambda y, c: sk.recall_score(1 - y, 1 - c), (1 - labels).sum()),
            "balanced_accuracy": (sk.balanced_accuracy_score, None),
        }
        for rate, (score, patients) in each.items():
            value = np.mean([score(labels, one.astype(int)) for one in called])
            assert told[f"{rate}_at_{name}"] == pytest.approx(value, abs=1e-4)
            if patients is not None:
                ends = proportion_confint(value * patients, patients, method="wilson")
                assert [told[f"{rate}_at_{name}_{end}"] for end in ("low", "high")] == pytest.approx(ends, abs=1e-4)
        both = np.tile(labels, len(scores)), called.ravel().astype(int)
        assert told[f"ppv_at_{name}"] == pytest.approx(sk.precision_score(*both), abs=1e-4)
        assert told[f"npv_at_{name}"] == pytest.approx(sk.precision_score(*(1 - b for b in both)), abs=1e-4)


@pytest.mark.parametrize(("place", "split"), [("internal", "test"), ("AMBL", "external")])
def test_the_probability_scores_are_scikit_learns(place, split):
    told = METRICS["internal"] if place == "internal" else METRICS["external"][place]
    labels, scores, _ = scores_of(REFERENCE, split)
    assert told["auc"] == pytest.approx(aucs_of(REFERENCE, split).mean(), abs=1e-4)
    assert told["brier"] == pytest.approx(np.mean([sk.brier_score_loss(labels, s) for s in scores]), abs=1e-4)
    precision = [sk.average_precision_score(labels, s) for s in scores]
    assert told["auprc"] == pytest.approx(np.mean(precision), abs=1e-4)
    mean, own = scores.mean(0), told["ensemble"]
    assert own["auc"] == pytest.approx(sk.roc_auc_score(labels, mean), abs=1e-4)
    assert own["brier"] == pytest.approx(sk.brier_score_loss(labels, mean), abs=1e-4)
    assert own["accuracy_at_0.5"] == pytest.approx(sk.accuracy_score(labels, mean >= 0.5), abs=1e-4)


def test_every_calibration_line_is_statsmodels():
    table = table_of("calibration")
    for _, row in table[table["probabilities"] == "raw"].dropna(subset="slope").iterrows():
        labels, scores, _ = scores_of(row["run"], "test" if row["test"] == "internal" else "external")
        mean = np.clip(scores.mean(0), 1e-6, 1 - 1e-6)
        logits = np.log(mean / (1 - mean))
        slope = GLM(labels, np.column_stack([np.ones_like(logits), logits]), family=Binomial()).fit()
        moved = GLM(labels, np.ones_like(logits), family=Binomial(), offset=logits).fit()
        assert row["slope"] == pytest.approx(slope.params[1], abs=1e-4), row["run"]
        ends = slope.conf_int()[1]
        assert row[["slope_low", "slope_high"]].to_numpy(float) == pytest.approx(ends, abs=1e-3)
        assert row["intercept"] == pytest.approx(moved.params[0], abs=1e-4)
        assert row["brier"] == pytest.approx(sk.brier_score_loss(labels, mean), abs=1e-5)


def test_what_a_window_clips_and_its_auc_are_told_once():
    clipping, study = table_of("clipping"), table_of("normalization_study")
    raw = study[study["bias_field"] == "raw"].set_index("window")
    for _, row in clipping.iterrows():
        assert row["auc"] == raw.loc[row["window"], "auc"] and 0 <= row["q1"] <= row["q3"] <= 1
    assert set(clipping["window"]) == set(raw.index)


def test_the_readme_says_of_the_instrument_what_its_tables_say():
    results = RESULTS.parent / "instrument"
    names = ("model_pairs", "ablation", "normalization_pairs")
    pairs = pd.concat([pd.read_csv(results / f"{name}.csv") for name in names]).set_index("run")
    readme = (
        (RESULTS.parents[1] / "README.md").read_text().partition("| on the instrument |")[2].partition("\n\n")[0]
    )
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in readme.splitlines()[2:]]
    assert len(told) >= 15
    for name, _, difference, verdict, detectable in told:
        row = pairs.loc[name.strip("`")]
        said = "{difference:+.3f} ({low:+.3f} to {high:+.3f})".format(**row).replace("-", "−")
        assert (difference, verdict, detectable) == (said, row["verdict"], f"{row['detectable']:.3f}"), name
