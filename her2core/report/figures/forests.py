"""Figures with a row per run or group: AUCs and differences with their intervals."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from her2core.paired import POWER
from her2core.report.figures import require
from her2core.report.figures.style import COLOURS, GUIDE, TWO_COLUMNS, beside, titled
from her2core.report.figures.words import interval, patients_of


def _rows(names, guide, explained, height=0.2):
    """Axes for named rows, top to bottom, every other one shaded to lead the eye; explained: what x is."""
    figure, axes = plt.subplots(figsize=(TWO_COLUMNS, 0.85 + height * len(names)))
    for y in range(0, len(names), 2):
        axes.axhspan(y - 0.5, y + 0.5, color="0.96", linewidth=0, zorder=-1)
    axes.axvline(guide, **GUIDE)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel=explained)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params("y", length=0)
    return figure, axes


def _draw(axes, y, row, value, colour, band=(), marker="o", sign="", note="", **dot):
    """One row's interval as a line, its band, if any, and its value as a dot; value and interval in words."""
    axes.plot([row.low, row.high], [y, y], color=colour)
    if band:
        axes.plot(band, [y, y], color=colour, linewidth=4, alpha=0.3)
    axes.plot(value, y, marker, color=colour, **dot)
    beside(axes, y, interval(value, row.low, row.high, sign) + note)


def expected_widths(width: pd.DataFrame, auc: float, cohort: str, confidence: float = 0.95) -> Figure:
    """The interval to expect around a true AUC of `auc`, group by group, from numbers of patients alone.

    width: `evaluate.expected_width` rows, drawn top to bottom; a group that lacks a class has no interval.
    """
    require.table("expected_widths", width, ("group", "patients", "positives", "low", "high"))
    rows = list(width.itertuples())
    names = [f"{row.group}, {patients_of('expected_widths', [row], cohort)}" for row in rows]
    explained = f"AUC; line: {confidence:.0%} interval to expect around {auc:g} (Hanley and McNeil)"
    figure, axes = _rows(names, 0.5, explained)
    for y, row in enumerate(rows):
        if pd.isna(row.low):
            beside(axes, y, "patients of one class only")
        else:
            _draw(axes, y, row, auc, COLOURS[0])
    axes.set_xlim(0, 1)
    return titled(figure, cohort, "What so many patients can show")


def forest(table: pd.DataFrame, reference: str, confidence: float, cohort: str, title: str) -> Figure:
    """AUC of each run with its interval and seeds.  table: `evaluate.summary` rows, drawn top to bottom."""
    columns = ("run", "auc", "low", "high", "lowest_seed", "highest_seed", "patients", "positives")
    require.full_table("forest", table, columns)
    names = [f"{r}  (reference)" if r == reference else r for r in table["run"]]
    explained = f"dot: mean of seeds; line: {confidence:.0%} interval over patients; band: seeds' range"
    figure, axes = _rows(names, 0.5, f"AUC, internal test\n{explained}")
    for y, row in enumerate(table.itertuples()):
        colour = COLOURS[1] if row.run == reference else COLOURS[0]
        _draw(axes, y, row, row.auc, colour, band=[row.lowest_seed, row.highest_seed])
    return titled(figure, cohort, f"{title}; {patients_of('forest', table.itertuples(), cohort)}")


def populations(table: pd.DataFrame, confidence: float, cohort: str) -> Figure:
    """AUC of each run on one population after another.

    table: `evaluate.summary` rows with a column `test` that names the population, drawn top to bottom.
    """
    require.full_table("populations", table, ("test", "run", "auc", "low", "high", "patients", "positives"))
    runs, tests = list(table["run"].unique()), list(table["test"].unique())
    require.some("populations", tests, len(COLOURS))
    explained = f"AUC, mean of seeds; line: {confidence:.0%} interval over patients"
    figure, axes = _rows(runs, 0.5, explained, height=0.16 * max(len(tests), 2))
    moves = (np.arange(len(tests)) + 0.5) / len(tests) - 0.5
    for test, move, colour, marker in zip(tests, 0.8 * moves, COLOURS, "osD^v<>", strict=False):
        rows = list(table[table["test"] == test].itertuples())
        label = f"{test}, {patients_of(test, rows, cohort)}"
        for row in rows:
            _draw(axes, runs.index(row.run) + move, row, row.auc, colour, marker=marker, label=label)
            label = None
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return titled(figure, cohort, "The same weights, one population after another")


def by_subgroup(table: pd.DataFrame, confidence: float, cohort: str) -> Figure:
    """AUC of one run in groups of patients.

    table: `evaluate.subgroups` rows with `test`, the population, and `by`, what made the groups; top to bottom."""
    columns = ("test", "by", "group", "patients", "positives", "auc", "low", "high", "note")
    require.table("by_subgroup", table, columns)
    rows = list(table.itertuples())
    names = [f"{r.test}, {r.by}: {r.group}, {patients_of('by_subgroup', [r], cohort)}" for r in rows]
    figure, axes = _rows(names, 0.5, f"AUC, mean of seeds; line: {confidence:.0%} interval over patients")
    for y, row in enumerate(rows):
        if pd.isna(row.auc):
            beside(axes, y, row.note)
        else:
            _draw(axes, y, row, row.auc, COLOURS[1] if row.by == "all" else COLOURS[0])
    axes.set_xlim(0, 1)
    return titled(figure, cohort, "Groups of patients; exploratory: no test between them")


def differences(table: pd.DataFrame, confidence: float, cohort: str, title: str) -> Figure:
    """Paired differences from the reference, each beside what could have been detected.

    table: `evaluate.comparisons` rows, drawn top to bottom; a dot is filled where the verdict is a difference.
    """
    columns = ["run", "reference", "difference", "low", "high", "p_holm", "verdict", "detectable", "patients"]
    require.full_table("differences", table, columns)
    found = table[["reference", "patients"]].drop_duplicates()
    if len(found) != 1:
        text = found.to_dict("list")
        raise ValueError(f"differences: one reference and number of patients expected, found {text}")
    reference, patients = found.iloc[0]
    explained = (
        f"Difference in AUC from {reference}, internal test\n"
        f"line: {confidence:.0%} interval over patients and seeds; filled dot: difference by Holm-corrected p\n"
        f"grey: too small to be found with a power of {POWER:.0%}, even before the correction"
    )
    figure, axes = _rows(table["run"], 0, explained)
    for y, row in enumerate(table.itertuples()):
        axes.barh(y, 2 * row.detectable, left=-row.detectable, height=0.7, color="0.85", zorder=-0.5)
        fill = COLOURS[0] if row.verdict.endswith("than the reference") else "white"
        p = "   p < 0.001" if row.p_holm < 0.001 else f"   p = {row.p_holm:.3f}"
        _draw(axes, y, row, row.difference, COLOURS[0], sign="+", note=p, markerfacecolor=fill)
    return titled(figure, cohort, f"{title}; n = {patients}")
