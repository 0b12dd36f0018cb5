"""A question put to several studies of phantoms that differ in one parameter: notebook 14, run by hand."""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from her2core import paired
from her2core.auc import EvaluateConfig, comparison
from her2core.config import Study
from her2core.evaluate import comparisons, corrected, matrix, read_predictions, summary
from her2core.report.figures.words import counted, difference_of, run_name

_Arm = tuple[str, str]  # a study's name and one of its runs
_Pair = tuple[_Arm, _Arm]


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
    table: pd.DataFrame, pairs: Sequence[_Pair | tuple[_Pair, _Pair]], config: EvaluateConfig, alpha: float = 0.05
) -> pd.DataFrame:
    """Each first arm less its second, on the same patients; verdicts are corrected for all rows together (Holm).

    pairs: two arms, or two pairs of arms: then it is the first pair's difference less the second's.  Columns: study
    and run of the first arm, against (study, a space, run, of the others, separated by "; "), and those of
    `evaluate.comparisons`, whose p_delong is of two arms only.  ValueError where an arm has no rows, or two arms
    differ in patients or seeds."""
    rows = pd.DataFrame([_effect(table, pair, config, alpha) for pair in pairs])
    return corrected(rows, alpha)


def _effect(table, pair, config, alpha):
    """One row of `effects`, before the correction."""
    arms = pair if isinstance(pair[0][0], str) else [arm for two in pair for arm in two]
    parts = [_rows_of(table, *arm) for arm in arms]
    names = [part["run"].iloc[0] for part in parts]
    row = comparisons(pd.concat(parts[:2]), names[1], config, alpha).iloc[0].drop("reference").to_dict()
    row |= {"study": arms[0][0], "run": arms[0][1], "against": "; ".join(names[1:])}
    if len(arms) == 2:
        return row
    comparisons(pd.concat(parts), names[0], config, alpha)  # refuses arms of other patients
    if len({frozenset(part["seed"]) for part in parts}) > 1:
        raise ValueError(f"{', '.join(names)}: expected the same seeds in all four")
    (labels, _), scores = matrix(parts[0]), [matrix(part)[1] for part in parts]
    first, second, third, fourth = (comparison(labels, each) for each in scores)
    found = dict(vars(paired.over_patients_and_seeds(labels, first - second - (third - fourth), config)))
    told = {"difference": found.pop("value"), "detectable": paired.detectable(found["se"], found["freedom"], alpha)}
    return row | found | told | {"p_delong": None}


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
        arms = [(row["study"], row["run"]), *(name.split(" ", 1) for name in row["against"].split("; "))]
        said, verdict = " against ".join(_named(*arm, names) for arm in arms[:2]), row["verdict"]
        if less := arms[2:]:
            same = [run for _, run in less] == [run for _, run in arms[:2]]
            other = ["the same " + names[less[0][0]]] if same else [_named(*arm, names) for arm in less]
            said, verdict = f"{said}, less {' against '.join(other)}", verdict.removesuffix(" than the reference")
        n = f"{counted(row['patients'], 'patient')}, {counted(row['seeds'], 'seed')}"
        lines.append(f"- {said}: {difference_of(row)}, {verdict} ({n}).")
    return "\n".join(lines)


def _named(study, run, names):
    """A run that has a number of training patients in its name, as `thda_of150`, is said to be on so many."""
    name = re.sub(r"of([0-9]+)", r"on \1 patients", run_name(run))
    return f"{name}, {names[study]}"
