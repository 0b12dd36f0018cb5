"""What changes with a parameter of the studies: lines with intervals, a panel for each quantity."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from her2core.report.figures import require
from her2core.report.figures.style import COLOURS, GUIDE, TWO_COLUMNS, titled

_MARKERS = "osD^v<>"


def trends(
    panels: Mapping[str, pd.DataFrame], x_label: str, confidence: float, cohort: str, doubling: bool = False
) -> Figure:
    """Values against a number that studies differ in, a line for each series.

    panels: what the values are → rows of series, x, value, low, high.  A panel whose values reach below 0 shows
    differences and has a line at 0.  doubling: each doubling of x is as wide as any other.
    """
    require.some("panels", panels, 3)
    figure, axes = plt.subplots(1, len(panels), figsize=(TWO_COLUMNS, 3.2), squeeze=False)
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows["series"]))
    require.some("series", names, len(COLOURS))
    for panel, (label, rows) in zip(axes[0], panels.items(), strict=True):
        require.full_table(label, rows, ("series", "x", "value", "low", "high"))
        _draw(panel, rows, names, doubling)
        panel.set(xlabel=x_label, ylabel=label)
        if rows["low"].min() < 0:
            panel.axhline(0, **GUIDE)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=1 + (rows["series"].nunique() > 4))
    differ = any(rows["low"].min() < 0 for rows in panels.values())
    over = "over patients" + "; of differences over patients and seeds" * differ
    return titled(figure, cohort, f"Mean of seeds; bars: {confidence:.0%} intervals {over}")


def _draw(panel, rows, names: Sequence[str], doubling):
    """The series beside each other at every x, so that no bar hides another; each looks the same in all panels."""
    if doubling:
        panel.set_xscale("log", base=2)
    marks = sorted(rows["x"].unique())
    here = [name for name in names if name in set(rows["series"])]
    for k, name in enumerate(here):
        part = rows[rows["series"] == name].sort_values("x")
        aside = (k - (len(here) - 1) / 2) * 0.02
        x = part["x"] * 2**aside if doubling else part["x"] + aside * (marks[-1] - marks[0])
        ends = [part["value"] - part["low"], part["high"] - part["value"]]
        look = {"color": COLOURS[names.index(name)], "marker": _MARKERS[names.index(name)], "linewidth": 1}
        panel.errorbar(x, part["value"], ends, label=name, **look)
    panel.set_xticks(marks, [f"{mark:g}" for mark in marks])
    panel.xaxis.set_minor_locator(NullLocator())
