"""A question put to several studies of phantoms that differ in one parameter: notebook 14, run by hand."""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from her2core import paired
from her2core.auc import EvaluateConfig
from her2core.config import Study
from her2core.evaluate import comparisons, read_predictions, summary
from her2core.report.figures.words import counted, difference_of, run_name

_Arm = tuple[str, str]  # a study's name and one of its runs


def on_test(studies: Sequence[Study]) -> pd.DataFrame:
    """Predictions of all runs of the studies on their internal test, in one table; `cohort` tells them apart."""
    parts = []
    for study in studies:
        paths = [study.results / "predictions" / f"{run}.csv" for run in study.runs]
        study.need("train", *paths)
        table = read_predictions(paths)
        parts.append(table[table["split"] == "test"])
    return pd.concat(parts, ignore_index=True)


def aucs(table: pd.DataFrame, config: EvaluateConfig) -> pd.DataFrame:
    """`evaluate.summary` of every study, with its name in the column `study`."""
    parts = [summary(part, config).assign(study=name) for name, part in table.groupby("cohort", sort=False)]
    return pd.concat(parts, ignore_index=True)


def effects(
    table: pd.DataFrame, pairs: Sequence[tuple[_Arm, _Arm]], config: EvaluateConfig, alpha: float = 0.05
) -> pd.DataFrame:
    """Each first arm less its second, on the same patients; verdicts are corrected for all pairs together (Holm).

    Columns: study, run, against (its study, a space, its run), and those of `evaluate.comparisons`.  ValueError
    where an arm has no rows, or two arms differ in patients or seeds."""
    rows = []
    for first, second in pairs:
        both = [_rows_of(table, *arm) for arm in (first, second)]
        anchor = both[1]["run"].iloc[0]
        (row,) = comparisons(pd.concat(both), anchor, config, alpha).to_dict("records")
        rows.append(row | {"study": first[0], "run": first[1], "against": anchor})
    out = pd.DataFrame(rows).drop(columns="reference")
    out["p_holm"], out["alpha_holm"] = paired.holm(out["p"]), alpha / len(out)
    out["verdict"] = [
        paired.verdict(*row, alpha) for row in zip(out["difference"], out["p"], out["p_holm"], strict=True)
    ]
    strictest = zip(out["se"], out["freedom"], strict=True)
    out["detectable_holm"] = [paired.detectable(*row, alpha / len(out)) for row in strictest]
    return out


def _rows_of(table, study, run):
    """The rows of one arm, whose run is then called by its study, too."""
    rows = table[(table["cohort"] == study) & (table["run"] == run)]
    if rows.empty:
        raise ValueError(f"{study} has no run {run}; the table has {', '.join(sorted(set(table['run'])))}")
    return rows.assign(run=f"{study} {run}")


def points(rows: pd.DataFrame, value: str, by: str, x: Mapping[str, float]) -> pd.DataFrame:
    """Rows of `aucs` or `effects` as `figures.trends` draws them, a series for each run.

    value: the column to be drawn.  x: of each study, or of each run, as the column `by` says."""
    series = rows["run"].map(run_name) if by == "study" else "THDA"
    return rows.assign(series=series, x=rows[by].map(x), value=rows[value])


def in_words(table: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Rows of `effects` as lines of Markdown.  names: of the studies, in words."""
    lines = []
    for row in table.to_dict("records"):
        study, run = row["against"].split(" ", 1)
        first, second = _named(row["study"], row["run"], names), _named(study, run, names)
        n = f"{counted(row['patients'], 'patient')}, {counted(row['seeds'], 'seed')}"
        lines.append(f"- {first} against {second}: {difference_of(row)}, {row['verdict']} ({n}).")
    return "\n".join(lines)


def _named(study, run, names):
    """A run that has a number of training patients in its name, as `thda_of150`, is said to be on so many."""
    name = re.sub(r"of([0-9]+)", r"on \1 patients", run_name(run))
    return f"{name}, {names[study]}"
