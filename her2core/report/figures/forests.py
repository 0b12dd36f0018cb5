"""Figures with a row per run or group: AUCs and differences with their intervals."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from her2core.auc import POWER
from her2core.report.figures.style import (
    COLOURS,
    GUIDE,
    TWO_COLUMNS,
    beside,
    headline,
    interval,
    patients_of,
    require_columns,
    require_some,
    require_values,
)


def _rows_of_forest(count, height=0.2):
    """Axes for `count` labelled rows, top to bottom, every other one shaded to lead the eye."""
    figure, axes = plt.subplots(figsize=(TWO_COLUMNS, 0.85 + height * count))
    for y in range(0, count, 2):
        axes.axhspan(y - 0.5, y + 0.5, color="0.96", linewidth=0, zorder=-1)
    axes.set_ylim(count - 0.5, -0.5)
    axes.tick_params("y", length=0)
    return figure, axes


def expected_widths(width: pd.DataFrame, auc: float, cohort: str, confidence: float = 0.95) -> Figure:
    """The interval to expect around a true AUC of `auc`, group by group, from numbers of patients alone.

    width: `evaluate.expected_width` rows, drawn top to bottom; a group that lacks a class has no interval.
    """
    require_columns("expected_widths", width, ("group", "patients", "positives", "low", "high"))
    figure, axes = _rows_of_forest(len(width))
    for y, (_, row) in enumerate(width.iterrows()):
        if pd.isna(row["low"]):
            beside(axes, y, "patients of one class only")
            continue
        axes.plot([row["low"], row["high"]], [y, y], color=COLOURS[0])
        axes.plot(auc, y, "o", color=COLOURS[0])
        beside(axes, y, interval(auc, row["low"], row["high"]))
    axes.axvline(0.5, **GUIDE)
    names = [f"{row['group']}, {patients_of('expected_widths', [row])}" for _, row in width.iterrows()]
    axes.set_yticks(range(len(width)), names)
    explained = f"line: {confidence:.0%} interval to expect around {auc:g} (Hanley and McNeil)"
    axes.set(xlim=(0, 1), xlabel=f"AUC; {explained}")
    headline(figure, cohort, "What so many patients can show")
    return figure


def forest(table: pd.DataFrame, reference: str, confidence: float, cohort: str, title: str) -> Figure:
    """AUC of each run with its interval and seeds.  table: `evaluate.summary` rows, drawn top to bottom."""
    columns = ("run", "auc", "low", "high", "lowest_seed", "highest_seed", "patients", "positives")
    require_values("forest", table, columns)
    figure, axes = _rows_of_forest(len(table))
    for y, (_, row) in enumerate(table.iterrows()):
        colour = COLOURS[1] if row["run"] == reference else COLOURS[0]
        axes.plot([row["low"], row["high"]], [y, y], color=colour)
        axes.plot([row["lowest_seed"], row["highest_seed"]], [y, y], color=colour, linewidth=4, alpha=0.3)
        axes.plot(row["auc"], y, "o", color=colour)
        beside(axes, y, interval(row["auc"], row["low"], row["high"]))
    axes.axvline(0.5, **GUIDE)
    marks = [f"{r}  (reference)" if r == reference else r for r in table["run"]]
    axes.set_yticks(range(len(table)), marks)
    explained = f"dot: mean of seeds; line: {confidence:.0%} interval over patients; band: seeds' range"
    axes.set_xlabel(f"AUC, internal test\n{explained}")
    headline(figure, cohort, f"{title}; {patients_of('forest', table.itertuples())}")
    return figure


def two_populations(table: pd.DataFrame, confidence: float, cohort: str) -> Figure:
    """AUC of each run on two populations, one above the other.

    table: `evaluate.summary` rows with a column `test` that names the population, drawn top to bottom.
    """
    require_values("two_populations", table, ("test", "run", "auc", "low", "high", "patients", "positives"))
    runs, tests = list(table["run"].unique()), list(table["test"].unique())
    require_some("populations", tests, 2)
    figure, axes = _rows_of_forest(len(runs), height=0.32)
    for test, move, colour, marker in zip(tests, (-0.2, 0.2), COLOURS, "os", strict=False):
        part = table[table["test"] == test]
        label = f"{test}, {patients_of(test, part.itertuples())}"
        for _, row in part.iterrows():
            y = runs.index(row["run"]) + move
            axes.plot([row["low"], row["high"]], [y, y], color=colour)
            axes.plot(row["auc"], y, marker, color=colour, label=label)
            beside(axes, y, interval(row["auc"], row["low"], row["high"]))
            label = None
    axes.axvline(0.5, **GUIDE)
    axes.set_yticks(range(len(runs)), runs)
    axes.set_xlabel(f"AUC, mean of seeds; line: {confidence:.0%} interval over patients")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    headline(figure, cohort, "The same weights on two populations")
    return figure


def differences(table: pd.DataFrame, confidence: float, cohort: str, title: str) -> Figure:
    """Paired differences from the reference, each beside what could have been detected.

    table: `evaluate.comparisons` rows, drawn top to bottom; a dot is filled where the verdict is a difference.
    """
    columns = ["run", "reference", "difference", "low", "high", "p_holm", "verdict", "detectable", "patients"]
    require_values("differences", table, columns)
    names = table[["reference", "patients"]].drop_duplicates()
    if len(names) != 1:
        raise ValueError(
            f"differences: one reference and number of patients expected, found {names.to_dict('list')}"
        )
    figure, axes = _rows_of_forest(len(table))
    for y, (_, row) in enumerate(table.iterrows()):
        axes.barh(y, 2 * row["detectable"], left=-row["detectable"], height=0.7, color="0.85", zorder=-0.5)
        found = row["verdict"] != "no difference detected"
        axes.plot([row["low"], row["high"]], [y, y], color=COLOURS[0])
        axes.plot(row["difference"], y, "o", color=COLOURS[0], markerfacecolor=COLOURS[0] if found else "white")
        p = "p < 0.001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}"
        beside(axes, y, f"{interval(row['difference'], row['low'], row['high'], '+')}   {p}")
    axes.axvline(0, **GUIDE)
    axes.set_yticks(range(len(table)), table["run"])
    reference, patients = names.iloc[0]
    axes.set_xlabel(
        f"Difference in AUC from {reference}, internal test\n"
        f"line: {confidence:.0%} interval over patients and seeds; filled dot: difference by Holm-corrected p\n"
        f"grey: too small to be found with a power of {POWER:.0%}, even before the correction"
    )
    headline(figure, cohort, f"{title}; n = {patients}")
    return figure
