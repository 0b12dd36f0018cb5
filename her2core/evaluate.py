"""The prediction table → tables of results.  Every statistic of the study starts from this one table.

It has one row per patient, run and seed: cohort, patient, split, label, run, model, window, bias_field, seed,
probability.  What is computed for a run stands in `auc` and `calibration`.

Under folds it has the column `fold`, whose network predicted, and each internal patient two rows: as a validation
patient of one network and as a test patient of another.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from her2core import auc as areas
from her2core import paired
from her2core.auc import EvaluateConfig
from her2core.calibration import youden_threshold
from her2core.formats.boundary import reading

COLUMNS = ("cohort", "patient", "split", "label", "run", "model", "window", "bias_field", "seed", "probability")
_AGAIN = "run the stage that wrote it again (dvc repro)"
# (positives, negatives) of the test sets that a study on I-SPY, AMBL and Duke can have
TEST_SETS = {"I-SPY test": (34, 98), "AMBL": (11, 32), "Duke": (161, 753), "I-SPY, out of fold": (296, 853)}
_FEWEST = 5  # patients of either class, below which a subgroup gets no AUC


def _read_table(path):
    """One prediction table, whose cells can all be true."""
    with reading(path, f"a table with columns {', '.join(COLUMNS)}", _AGAIN):
        table = pd.read_csv(path, dtype={"patient": str}, index_col=False)
        right = table["probability"].between(0, 1) & table["label"].isin([0, 1])
        needed = [*COLUMNS, *table.columns.intersection(["fold"])]
        if not (right.all() and table[needed].notna().all(axis=None) and path.read_bytes().endswith(b"\n")):
            raise ValueError("cut off, or with a value that is missing, outside [0, 1] or no label")
    return table


def read_predictions(
    paths: Iterable[Path],
    cohort: Iterable[tuple] | None = None,
    seeds: Mapping[str, Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Prediction tables joined and checked; ValueError unless every run and seed has the same patients, each once.

    cohort: (patient, split, label) of all patients, where it is at hand: then those of the splits predicted.
    seeds: of each run; without, every run has all."""
    if not (paths := sorted(paths)):
        raise ValueError("no prediction table: run the training stage first")
    table = pd.concat([_read_table(p) for p in paths], ignore_index=True)
    table["key"] = list(zip(table["patient"], table["split"], table["label"], strict=True))
    splits, known = set(table["split"]), set(table["key"]) if cohort is None else cohort
    twice = splits - {"external"} if "fold" in table else set()  # where every internal patient has a row
    expected = {(p, s, y) for p, of, y in known for s in splits if s == of or (s in twice and of != "external")}
    of = dict.fromkeys(table["run"], table["seed"].unique()) | dict(seeds or {})
    if stray := [(r, s) for r, s in table.groupby(["run", "seed"]).groups if s not in of[r]]:
        raise ValueError(f"{paths[0].parent}: {stray[0][0]}: seed {stray[0][1]} is not expected; {_AGAIN}")
    for run, seed in [(name, seed) for name in table["run"].unique() for seed in of[name]]:
        found = table.loc[(table["run"] == run) & (table["seed"] == seed), "key"]
        if (odd := expected ^ set(found)) or len(found) > len(expected):
            such = f"expected each patient once with its split and label, not so: {min(odd, default='doubles')}"
            raise ValueError(f"{paths[0].parent}: {run}, seed {seed}: {len(found)} rows, {such}; {_AGAIN}")
    return table.drop(columns="key")


def matrix(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """One run on one split → labels `(n,)` and probabilities `(seeds, n)`, patients in sorted order."""
    if table["run"].nunique() != 1:
        raise ValueError(f"expected one run, found {sorted(table['run'].unique())}")
    wide = table.pivot(index="seed", columns="patient", values="probability")
    if wide.isna().any(axis=None):
        raise ValueError(f"{table['run'].iloc[0]}: not every seed predicted every patient")
    labels = table.drop_duplicates("patient").set_index("patient")["label"].loc[wide.columns]
    return labels.to_numpy(), wide.to_numpy()


def folds_of(table: pd.DataFrame) -> np.ndarray | None:
    """The fold of each patient in each seed, `(seeds, n)` as of `matrix`; None where rows have none."""
    has_folds = "fold" in table and table["fold"].notna().any()
    return table.pivot(index="seed", columns="patient", values="fold").to_numpy(int) if has_folds else None


def seed_mean(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """One run on one split → labels `(n,)` and the probabilities averaged over seeds `(n,)`."""
    labels, probabilities = matrix(table)
    return labels, probabilities.mean(0)


def by_fold(table: pd.DataFrame) -> dict[int | None, pd.DataFrame]:
    """The rows of each fold, of all seeds that have it; without folds all rows, under None."""
    return {None: table} if folds_of(table) is None else dict(iter(table.groupby("fold")))


def applied(
    fit: Callable, apply: Callable, validation: pd.DataFrame, table: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """What is fitted on one run's validation patients, on others: labels `(n,)` and values `(n,)`.

    The values are `apply(probabilities, fit(labels, probabilities))`, of means over seeds.  Under folds a fit is
    for the test patients of its fold, and each for external ones; the values of a patient are averaged."""
    parts, found = by_fold(table), []
    for fold, rows in by_fold(validation).items():
        others = parts[None if None in parts else fold]
        values = apply(seed_mean(others)[1], fit(*seed_mean(rows)))
        found.append(pd.Series(values, np.unique(others["patient"])))
    return matrix(table)[0], pd.concat(found).groupby(level=0).mean().to_numpy()


def calls(validation: pd.DataFrame, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Whom each seed calls positive, at the threshold from its own validation patients (Youden): labels `(n,)` and
    bool `(seeds, n)`, patients in sorted order.  Both tables are of one run."""
    called = []
    for seed, part in table.groupby("seed", sort=True):
        own = validation[validation["seed"] == seed]
        called.append(applied(youden_threshold, np.subtract, own, part)[1] >= 0)
    return matrix(table)[0], np.array(called)


def expected_width(groups: dict[str, tuple[int, int]], auc: float, confidence: float = 0.95) -> pd.DataFrame:
    """The interval to expect around an AUC of `auc` from numbers of patients alone (Hanley and McNeil).

    groups: name → (positives, negatives).  Columns: group, patients, positives, auc, standard_error, half_width,
    low, high; these two stay in [0, 1].  A group that lacks a class has NaN."""
    if not 0 < auc < 1:
        raise ValueError(f"an AUC that leaves an interval lies between 0 and 1, found {auc}")
    rows = []
    for group, (positives, negatives) in groups.items():
        variance = areas.hanley_mcneil_variance(positives, negatives, auc) if positives and negatives else np.nan
        error = np.sqrt(variance)
        row = {"group": group, "patients": positives + negatives, "positives": positives, "auc": auc}
        rows.append(row | {"standard_error": error, "half_width": norm.ppf(0.5 + confidence / 2) * error})
    out = pd.DataFrame(rows)
    return out.assign(low=(auc - out["half_width"]).clip(lower=0), high=(auc + out["half_width"]).clip(upper=1))


def summary(table: pd.DataFrame, config: EvaluateConfig) -> pd.DataFrame:
    """One row per run: AUC with interval, and the spread of its seeds.  table: one split of one cohort.

    `seed_sd` is the standard deviation of the seeds' AUCs, NaN for a single seed; `collapsed_seeds` counts those
    that give all patients one probability, whose AUC of 0.5 says nothing else."""
    rows = []
    for _, part in table.groupby("run", sort=True):
        (labels, probabilities), folds = matrix(part), folds_of(part)
        estimate = areas.bootstrap_auc(labels, probabilities, config, folds)
        per_seed = pd.Series(areas.auc(labels, probabilities, folds))
        rows.append(
            part.iloc[0][["run", "model", "window", "bias_field"]].to_dict()
            | {"auc": estimate.value, "low": estimate.low, "high": estimate.high, "lowest_seed": per_seed.min()}
            | {"highest_seed": per_seed.max(), "seed_sd": per_seed.std(), "seeds": len(per_seed)}
            | {"patients": estimate.patients, "positives": estimate.positives}
            | {"collapsed_seeds": int((np.ptp(probabilities, axis=1) == 0).sum())}
        )
    return pd.DataFrame(rows)


def _check_paired(part, anchor):
    """Two runs can be compared only on the same patients, labels, seeds and folds."""
    keys = ["patient", "seed", "label", *part.columns.intersection(["fold"])]
    found, expected = ({tuple(row) for row in p[keys].itertuples(index=False)} for p in (part, anchor))
    if odd := found ^ expected:
        runs = f"{part['run'].iloc[0]} and {anchor['run'].iloc[0]}"
        raise ValueError(f"{runs} differ in {len(odd)} rows of patient, seed and label, such as {min(odd)}")


def _compare(part, anchor, config, alpha):
    """One row of `comparisons`, before the correction: on the seeds of the run that has fewer."""
    first, second = set(part["seed"]), set(anchor["seed"])
    if first < second or second < first:
        part, anchor = (rows[rows["seed"].isin(first & second)] for rows in (part, anchor))
    _check_paired(part, anchor)
    (labels, second), folds = matrix(anchor), folds_of(anchor)
    first = matrix(part)[1]
    found = paired.bootstrap_difference(labels, first, second, config, folds)
    return (
        {"run": part["run"].iloc[0], "reference": anchor["run"].iloc[0], "difference": found.value}
        | {"low": found.low, "high": found.high, "se": found.se, "freedom": found.freedom}
        | {"detectable": paired.detectable(found.se, found.freedom, alpha)}
        | {"p_delong": paired.delong_test(labels, first, second, folds)[1], "p": found.p}
        | {"of_patients": found.of_patients, "of_seeds": found.of_seeds}
        | {"patients": len(labels), "positives": int(labels.sum()), "seeds": len(first)}
    )


def comparisons(table: pd.DataFrame, reference: str, config: EvaluateConfig, alpha: float = 0.05) -> pd.DataFrame:
    """Every run against `reference` on the same patients, Holm-corrected, with a verdict in words.

    difference, low, high, se, p: `bootstrap_difference`, over patients and seeds.  p_delong: over patients alone.
    of_patients, of_seeds: the two parts of se².  p_holm: `p` corrected for all rows.  detectable: the smallest
    difference found with a power of 80 % at `alpha`, and detectable_holm at `alpha_holm`, Holm's strictest level.
    Raises ValueError where runs are not paired."""
    if reference not in set(table["run"]):
        raise ValueError(f"reference {reference!r} is not among the runs {sorted(table['run'].unique())}")
    anchor, others = table[table["run"] == reference], table[table["run"] != reference]
    out = pd.DataFrame([_compare(part, anchor, config, alpha) for _, part in others.groupby("run", sort=True)])
    return corrected(out, alpha) if len(out) else out


def corrected(rows: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Rows of `comparisons` with p_holm, alpha_holm, detectable_holm and verdict for all of them together."""
    p_holm, strictest = paired.holm(rows["p"]), alpha / len(rows)
    found = zip(rows["se"], rows["freedom"], strict=True)
    detectable = [paired.detectable(se, freedom, strictest) for se, freedom in found]
    verdicts = [paired.verdict(*row, alpha) for row in zip(rows["difference"], rows["p"], p_holm, strict=True)]
    return rows.assign(p_holm=p_holm, alpha_holm=strictest, detectable_holm=detectable, verdict=verdicts)


def decidable(
    pairs: pd.DataFrame, sets: Mapping[str, tuple[int, int]], seeds: Sequence[int], alpha: float = 0.05
) -> pd.DataFrame:
    """What comparisons like these could see elsewhere: a row per test set and number of seeds.

    pairs: rows of `comparisons`, whose spread of seeds and correlation are taken over.  sets: name → (positives,
    negatives).  detectable: of `paired.detectable_with` the median over the pairs; lowest, highest: over them."""
    rows = []
    for (name, (positives, negatives)), count in product(sets.items(), seeds):
        found = [paired.detectable_with(pair, positives, negatives, count, alpha) for _, pair in pairs.iterrows()]
        row = {"group": name, "patients": positives + negatives, "positives": positives, "seeds": count}
        rows.append(row | {"detectable": np.median(found), "lowest": min(found), "highest": max(found)})
    return pd.DataFrame(rows)


def patients_needed(pairs: pd.DataFrame, difference: float, share: float, seeds: int) -> int | None:
    """The fewest test patients, of whom this share is positive, with whom the median of `decidable` is at most
    `difference`; to the next hundred, None where 100,000 would not do, as seeds differ too much."""

    def enough(n):
        positives = max(round(share * n), 1)
        return decidable(pairs, {"": (positives, n - positives)}, [seeds])["detectable"].item() <= difference

    sizes = range(100, 100_001, 100)
    place = bisect_left(sizes, True, key=enough)
    return sizes[place] if place < len(sizes) else None


def subgroups(
    table: pd.DataFrame, groups: pd.Series, config: EvaluateConfig, classes: tuple[str, str] = ("HER2+", "HER2−")
) -> pd.DataFrame:
    """AUC in every group of one run's patients; groups: Series, patient → group, missing values being a group.

    One row per group: patients, positives, auc, low, high, note.  A group with fewer than five patients of either
    class, of k folds 5 k, has no AUC, and `note` says of which, by the names of the classes."""
    if unknown := set(table["patient"]) - set(groups.index):
        raise ValueError(f"{len(unknown)} patients stand in no group, such as {min(unknown)}")
    of_row = table["patient"].map(groups.astype(object).where(groups.notna(), "unknown"))
    rows, nothing = [], areas.Estimate(np.nan, np.nan, np.nan, 0, 0)
    for group, part in table.groupby(of_row, sort=True):
        (labels, probabilities), folds = matrix(part), folds_of(part)
        positives, fewest = int((labels == 1).sum()), _FEWEST * (1 if folds is None else len(set(folds[0])))
        row = {"group": group, "patients": labels.size, "positives": positives}
        counts = zip(classes, (positives, labels.size - positives), strict=True)
        few = [name for name, n in counts if n < fewest]
        found = nothing if few else areas.bootstrap_auc(labels, probabilities, config, folds)
        row |= {"auc": found.value, "low": found.low, "high": found.high}
        rows.append(row | {"note": f"fewer than {fewest} {' and '.join(few)}" if few else ""})
    return pd.DataFrame(rows)


def _rate_gap(labels, called, codes):
    """(largest − smallest sensitivity) + (largest − smallest false-positive rate) over groups, mean over seeds."""
    member = (codes == np.arange(codes.max() + 1)[:, None]).astype(float)  # (groups, n)
    rates = [(called & of) @ member.T / (member @ of) for of in (labels, ~labels)]  # (seeds, groups) each
    return sum(np.ptp(rate, axis=1) for rate in rates).mean()


def _dealt(codes, labels, rng):
    """The groups dealt out anew among positives and among negatives, so that each keeps its prevalence."""
    dealt = codes.copy()
    for of in (labels, ~labels):
        dealt[of] = rng.permutation(codes[of])
    return dealt


def rate_gaps(
    labels: np.ndarray, called: np.ndarray, groups: Mapping[str, pd.Series], config: EvaluateConfig
) -> pd.DataFrame:
    """How far groups of patients lie apart in sensitivity and false-positive rate (equalised odds), by variable.

    labels `(n,)` and called `(seeds, n)`: of `calls`.  groups: variable → group of each patient, in the same order;
    patients without one and groups with fewer than five of either class are left out.  gap: 0 where all groups have
    the same two rates, 2 at most, as the MAMA-MIA challenge defines it (arXiv 2603.01250; its score is 1 less the
    mean over variables, in [0, 1]).  A gap is above 0 by chance alone: chance, its median with the groups dealt out
    anew within each class, chance_95 its 95 % quantile, p the share of dealings with a gap as large."""
    rows, rng, labels = [], np.random.default_rng(config.seed), labels.astype(bool)
    for variable, group in groups.items():
        group = group.reset_index(drop=True)
        counts = [group[labels == positive].value_counts() for positive in (True, False)]
        large = [name for name in counts[0].index if min(c.get(name, 0) for c in counts) >= _FEWEST]
        if len(large) < 2:
            continue
        inside = group.isin(large).to_numpy()
        codes, parts = pd.factorize(group[inside], sort=True)[0], (labels[inside], called[:, inside])
        gap = _rate_gap(*parts, codes)
        dealings = (_dealt(codes, parts[0], rng) for _ in range(config.bootstrap // 2))
        chance = np.array([_rate_gap(*parts, dealt) for dealt in dealings])
        row = {"variable": variable, "groups": len(large), "patients": int(inside.sum()), "gap": gap}
        row |= {"chance": np.median(chance), "chance_95": np.quantile(chance, 0.95)}
        rows.append(row | {"p": (1 + (chance >= gap - 1e-12).sum()) / (1 + len(chance))})
    return pd.DataFrame(rows)
