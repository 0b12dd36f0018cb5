"""Figures with a row per run or group: AUCs and differences with their intervals."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from her2core.paired import POWER
from her2core.report.figures import require
from her2core.report.figures.style import BEST, COLOURS, GUIDE, TWO_COLUMNS, beside, titled
from her2core.report.figures.words import interval, patients_of, run_name


def _by_question(table, value):
    """The rows of a table, the highest value on top; where it has a column question, one question after the other,
    each below its name."""
    for question, part in table.groupby("question", sort=False) if "question" in table else [("", table)]:
        yield from [question] if question else []
        yield from part.sort_values(value, ascending=False, kind="stable").itertuples()


def _rows(rows, name, guide, explained, height=0.2):
    """Axes for rows, top to bottom, every other one shaded to lead the eye; a row that is a text is a heading.

    name: what a row is called.  explained: what x is."""
    figure, axes = plt.subplots(figsize=(TWO_COLUMNS, min(0.85 + height * len(rows), 10.5)))
    for y in range(0, len(rows), 2):
        axes.axhspan(y - 0.5, y + 0.5, color="0.96", linewidth=0, zorder=-1)
    axes.axvline(guide, **GUIDE)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=explained)
    axes.set_yticks(range(len(rows)), [row if isinstance(row, str) else name(row) for row in rows])
    axes.tick_params("y", length=0)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_weight("bold" if isinstance(row, str) else "normal")
    return figure, axes, [(y, row) for y, row in enumerate(rows) if not isinstance(row, str)]


def _run_of(row):
    return run_name(row.run)


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
    explained = f"AUC; line: {confidence:.0%} interval to expect around {auc:g} (Hanley and McNeil)"
    figure, axes, rows = _rows(
        list(width.itertuples()),
        lambda row: f"{row.group}, {patients_of('expected_widths', [row], cohort)}",
        0.5,
        explained,
    )
    for y, row in rows:
        if pd.isna(row.low):
            beside(axes, y, "patients of one class only")
        else:
            _draw(axes, y, row, auc, COLOURS[0])
    axes.set_xlim(0, 1)
    return titled(figure, cohort, "What so many patients can show")


def forest(
    table: pd.DataFrame, reference: str, confidence: float, cohort: str, title: str, best: float | None = None
) -> Figure:
    """AUC of each run with its interval and seeds, the highest on top.

    table: `evaluate.summary` rows; with a column question, one question after the other.  best: the AUC on these
    patients above which no model can be expected, where that is known.
    """
    columns = ("run", "auc", "low", "high", "lowest_seed", "highest_seed", "patients", "positives")
    require.full_table("forest", table, columns)
    explained = f"dot: mean of seeds; line: {confidence:.0%} interval over patients; band: seeds' range"
    explained += "" if best is None else f"\ndashed: the most that can be expected on these patients, {best:.2f}"
    figure, axes, rows = _rows(
        list(_by_question(table, "auc")),
        lambda row: run_name(row.run) + ("  (reference)" if row.run == reference else ""),
        0.5,
        f"AUC, internal test\n{explained}",
    )
    for y, row in rows:
        colour = COLOURS[1] if row.run == reference else COLOURS[0]
        _draw(axes, y, row, row.auc, colour, band=[row.lowest_seed, row.highest_seed])
    if best is not None:
        axes.axvline(best, **BEST)
    return titled(figure, cohort, f"{title}; {patients_of('forest', table.itertuples(), cohort)}")


def populations(table: pd.DataFrame, confidence: float, cohort: str) -> Figure:
    """AUC of each run on one population after another, the highest on the first on top.

    table: `evaluate.summary` rows with a column `test` that names the population, and perhaps one `question`; the
    rows of `truth_parameters`, above which no model can be expected, are lines through all others, too.
    """
    require.full_table("populations", table, ("test", "run", "auc", "low", "high", "patients", "positives"))
    tests = list(table["test"].unique())
    require.some("populations", tests, len(COLOURS))
    first = table.sort_values("test", key=lambda t: t.map(tests.index), kind="stable").drop_duplicates("run")
    explained = f"AUC, mean of seeds; line: {confidence:.0%} interval over patients"
    known = table["run"].str.startswith("truth_parameters")
    explained += "\ndashed: the most that can be expected on these patients" if known.any() else ""
    ordered = list(_by_question(first, "auc"))
    figure, axes, rows = _rows(ordered, _run_of, 0.5, explained, height=0.16 * max(len(tests), 2))
    places = {row.run: y for y, row in rows}
    moves = (np.arange(len(tests)) + 0.5) / len(tests) - 0.5
    for test, move, colour, marker in zip(tests, 0.8 * moves, COLOURS, "osD^v<>", strict=False):
        part = list(table[table["test"] == test].itertuples())
        label = f"{test}, {patients_of(test, part, cohort)}"
        for row in part:
            _draw(axes, places[row.run] + move, row, row.auc, colour, marker=marker, label=label)
            label = None
        for best in table.loc[known & (table["test"] == test), "auc"]:
            axes.axvline(best, **BEST | {"color": colour})
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return titled(figure, cohort, "The same weights, one population after another")


def by_subgroup(table: pd.DataFrame, confidence: float, cohort: str) -> Figure:
    """AUC of one run in groups of patients, population by population; dashed: all of its patients.

    table: `evaluate.subgroups` rows with `test`, the population, and `by`, what made the groups; top to bottom.  A
    group of all patients is left out: it would repeat the population's row."""
    columns = ("test", "by", "group", "patients", "positives", "auc", "low", "high", "note")
    require.table("by_subgroup", table, columns)
    everybody = table["test"].map(table[table["by"] == "all"].groupby("test")["patients"].max())
    shown = table[(table["by"] == "all") | (table["patients"] != everybody)]
    blocks = [row for test, part in shown.groupby("test", sort=False) for row in (test, *part.itertuples())]

    def name(row):
        who = "all patients" if row.by == row.group == "all" else f"{row.by}: {row.group}"
        return f"{who}, {patients_of('by_subgroup', [row], cohort)}"

    explained = f"AUC, mean of seeds; line: {confidence:.0%} interval over patients; dashed: all patients"
    figure, axes, rows = _rows(blocks, name, 0.5, explained)
    for y, row in rows:
        if pd.isna(row.auc):
            beside(axes, y, row.note)
            continue
        _draw(axes, y, row, row.auc, COLOURS[1] if row.by == "all" else COLOURS[0])
        if row.by == "all":
            axes.vlines(row.auc, y, y + (shown["test"] == row.test).sum() - 0.5, **BEST | {"color": COLOURS[1]})
    return titled(figure, cohort, "Groups of patients; exploratory: no test between them")


def differences(table: pd.DataFrame, confidence: float, cohort: str, title: str) -> Figure:
    """Paired differences from the reference, the highest on top, each beside what could have been detected.

    table: `evaluate.comparisons` rows; with a column question, one question after the other.  A dot is filled
    where the verdict is a difference.
    """
    columns = ["run", "reference", "difference", "low", "high", "p_holm", "verdict", "detectable", "patients"]
    require.full_table("differences", table, columns)
    found = table[["reference", "patients"]].drop_duplicates()
    if len(found) != 1:
        text = found.to_dict("list")
        raise ValueError(f"differences: one reference and number of patients expected, found {text}")
    reference, patients = found.iloc[0]
    explained = (
        f"Difference in AUC from {run_name(reference)}, internal test\n"
        f"line: {confidence:.0%} interval over patients and seeds; p: Holm-corrected, dot filled below 0.05\n"
        f"grey: too small to be found with a power of {POWER:.0%}, even before the correction"
    )
    figure, axes, rows = _rows(list(_by_question(table, "difference")), _run_of, 0, explained)
    for y, row in rows:
        axes.barh(y, 2 * row.detectable, left=-row.detectable, height=0.7, color="0.85", zorder=-0.5)
        fill = COLOURS[0] if row.verdict.endswith("than the reference") else "white"
        p = "   p < 0.001" if row.p_holm < 0.001 else f"   p = {row.p_holm:.3f}"
        _draw(axes, y, row, row.difference, COLOURS[0], sign="+", note=p, markerfacecolor=fill)
    return titled(figure, cohort, f"{title}; n = {patients}")
