"""Figures with curves: learning, ROC, calibration and net benefit; and who the patients are."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from her2core.report.figures import require
from her2core.report.figures.style import COLOURS, GUIDE, ONE_COLUMN, TWO_COLUMNS, titled
from her2core.report.figures.words import endpoint_of, interval, patients_of


def age_by_status(table: pd.DataFrame, cohort: str) -> Figure:
    """Age of the positive and of the other patients, in steps of five years.

    table: the patients in use, with age (years) and label; who lacks an age is counted in the title.
    """
    require.table("age_by_status", table, ("age", "label"))
    figure, axes = plt.subplots(figsize=(ONE_COLUMN * 1.4, 2.4))
    known, endpoint = table[table["age"].notna()], endpoint_of(cohort)
    for positive, colour, style in ((1, COLOURS[0], {"alpha": 0.35}), (0, COLOURS[1], {"fill": False})):
        ages = known.loc[known["label"] == positive, "age"]
        style |= {"histtype": "stepfilled", "color": colour, "edgecolor": colour}
        axes.hist(ages, range(15, 105, 5), label=f"{endpoint.of(positive)}, n = {len(ages)}", **style)
    axes.set(xlabel="Age (years)", ylabel="Patients")
    axes.legend()
    without = f"{len(table) - len(known)} without an age"
    return titled(figure, cohort, f"Age by {endpoint.words}, n = {len(known)}, {without}")


def learning_curves(histories: pd.DataFrame, patients: tuple[int, int], cohort: str) -> Figure:
    """Loss and validation AUC of every run given; single seeds too, while there are few runs.

    histories: rows of run, seed, epoch, loss, validation_auc.  patients: in training and in validation.
    """
    require.full_table("histories", histories, ("run", "seed", "epoch", "loss", "validation_auc"))
    looks = list(product(("-", "--", ":"), COLOURS))
    require.some("runs", names := sorted(histories["run"].unique()), len(looks))
    figure, axes = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 2.5 + 0.14 * -(-len(names) // 3)))
    few = len(names) <= len(COLOURS)
    for (line, colour), run in zip(looks, names, strict=False):
        part = histories[histories["run"] == run]
        for panel, column in zip(axes, ("loss", "validation_auc"), strict=True):
            mean = part.groupby("epoch")[column].mean()
            panel.plot(mean.index, mean, color=colour, linestyle=line, label=run)
            for _, seed in part.groupby([c for c in ("seed", "fold") if c in part]) if few else ():
                panel.plot(seed["epoch"], seed[column], color=colour, linewidth=0.3, alpha=0.6)
    axes[0].set(xlabel="Epoch", ylabel=f"Weighted loss, training (n = {patients[0]})")
    axes[1].set(xlabel="Epoch", ylabel=f"AUC, validation (n = {patients[1]})")
    seeds = f"mean of {histories['seed'].nunique()} seeds"
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return titled(figure, cohort, f"Thick: {seeds}, thin: each seed" if few else seeds.capitalize())


def roc(curves: Mapping[str, tuple], confidence: float, cohort: str) -> Figure:
    """ROC curves.  curves: name → (false-positive rate, mean, low, high, `Estimate`), each `(points,)`."""
    require.some("curves", curves, len(COLOURS))
    apart = 0.3 * len(curves) if len(curves) > 3 else 0  # inches for a legend below
    figure, axes = plt.subplots(figsize=(ONE_COLUMN, ONE_COLUMN + apart))
    for k, (name, (grid, mean, low, high, estimate)) in enumerate(curves.items()):
        for what, values in (("mean", mean), ("low", low), ("high", high)):
            require.array(f"{name}, {what}", values, len(grid))
        colour, line = COLOURS[k], ("-", "--", ":", "-.")[k % 4]
        axes.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
        auc = interval(estimate.value, estimate.low, estimate.high)
        label = f"{name}: AUC {auc}\n{patients_of(name, [estimate], cohort)}"
        axes.plot(grid, mean, color=colour, linestyle=line, label=label)
    axes.plot([0, 1], [0, 1], **GUIDE)
    axes.set(xlabel="1 − specificity", ylabel="Sensitivity", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.set_title(f"{cohort}\nmean of seeds; bands and brackets: {confidence:.0%} over patients")
    if apart:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    else:
        axes.legend(loc="lower right")
    return figure


def _label_with(version, numbers):
    """The version's name, and a line for every number with its interval; NaN is one that no data could give."""
    lines = [f"{k} cannot be fitted" if np.isnan(v[0]) else f"{k} {interval(*v)}" for k, v in numbers.items()]
    return "\n".join([version, *lines])


def _panels(count, height, ratios=(1,), **shared):
    """A figure with `count` panels of so many inches, at most three beside each other, each of one or two axes
    above each other; returns it with the axes of each panel."""
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3)
    rows, width = -(-count // columns), ONE_COLUMN if count == 1 else TWO_COLUMNS
    grid = {"height_ratios": ratios * rows, "figsize": (width, min(height * rows, 9)), "squeeze": False}
    figure, axes = plt.subplots(len(ratios) * rows, columns, **grid, **shared)
    panels = axes.reshape(rows, len(ratios), columns).transpose(0, 2, 1).reshape(rows * columns, -1)
    for unused in panels[count:].flat:
        unused.set_axis_off()
    return figure, panels[:count]


def calibration_curve(panels: Mapping[str, Mapping[str, tuple]], confidence: float, cohort: str) -> Figure:
    """Observed share of positives against predicted probability, with the patients of each bin below.

    panels: population → {version: (table, numbers)}, two versions at most, such as "raw" and "recalibrated".
    table: `calibration.reliability` rows.  numbers: as `calibration.calibration` gives them.
    """
    require.some("panels", panels, len(COLOURS))
    positive = endpoint_of(cohort).positive
    figure, axes = _panels(len(panels), 4.6, (4, 1), sharex=True)
    for (top, bottom), (population, versions) in zip(axes, panels.items(), strict=True):
        require.some(population, versions, 2)
        for k, (version, (table, numbers)) in enumerate(versions.items()):
            require.full_table(
                f"{population}, {version}", table, ("predicted", "observed", "low", "high", "patients")
            )
            colour, marker = COLOURS[k], "os"[k]
            top.vlines(table["predicted"], table["low"], table["high"], color=colour, linewidth=0.8)
            label = _label_with(version, numbers)
            top.plot(table["predicted"], table["observed"], marker=marker, color=colour, label=label, clip_on=False)
            bottom.vlines(table["predicted"], 0, table["patients"], color=colour, linewidth=2)
        top.plot([0, 1], [0, 1], **GUIDE)
        top.set(xlim=(0, 1), ylim=(0, 1), title=f"{population}, n = {table['patients'].sum()}")
        most = max(table["patients"].max() for table, _ in versions.values())
        bottom.set(xlabel=f"Predicted probability of {positive}", ylim=(0, 1.1 * most), yticks=[0, most])
        bottom.legend(*top.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, -0.6))
    axes[0, 0].set_ylabel(f"Observed share of {positive}")
    axes[0, 1].set_ylabel("Patients\nper bin")
    return titled(figure, cohort, f"Lines and brackets: {confidence:.0%} intervals")


def decision_curve(panels: Mapping[str, tuple], confidence: float, cohort: str) -> Figure:
    """Net benefit of the model, of treating all and of treating nobody, over the threshold probability.

    panels: population → (table, `Estimate`).  table: `calibration.net_benefit_band` rows.
    """
    require.some("panels", panels, len(COLOURS))
    for population, (table, _) in panels.items():
        require.full_table(population, table, ("threshold", "model", "low", "high", "treat_all", "treat_none"))
    treat_all = f"treat all as {endpoint_of(cohort).positive}"
    figure, axes = _panels(len(panels), 2.9, sharey=True)
    most = max(table[["high", "treat_all"]].max(axis=None) for table, _ in panels.values())
    for panel, (population, (table, estimate)) in zip(axes[:, 0], panels.items(), strict=True):
        x = table["threshold"]
        panel.fill_between(x, table["low"], table["high"], color=COLOURS[0], alpha=0.15, linewidth=0)
        panel.plot(x, table["model"], color=COLOURS[0], label="model")
        panel.plot(x, table["treat_all"], color=COLOURS[1], linestyle="--", label=treat_all)
        panel.plot(x, table["treat_none"], color="0.3", linestyle=":", label="treat none")
        panel.set_title(f"{population}, {patients_of(population, [estimate], cohort)}")
        panel.set(xlabel="Threshold probability", xlim=(0, x.max()), ylim=(-0.25 * most, 1.1 * most))
    axes[0, 0].set_ylabel("Net benefit (true positives per patient)")
    axes[-1, 0].legend(loc="upper right")
    return titled(figure, cohort, f"Band: {confidence:.0%} interval over patients")


def real_lesions() -> pd.DataFrame:
    """Share of the lesion above quantiles of its own slice in four real slices of I-SPY1, one phase each.

    Measured on 8-bit images and masks of S. T. Arai's set (CC BY-NC 4.0, from BreastDCEDL), which this project does
    not contain: slice, lesion_px, above_q95, above_q98, above_q99."""
    return pd.read_csv(Path(__file__).with_name("real_lesions.csv"), dtype={"slice": str})


def clipping(table: pd.DataFrame, real: Mapping[str, Sequence[float]], confidence: float, cohort: str) -> Figure:
    """AUC against the share of the lesion that a window turns white.

    table: a row per window with window, white (a share), auc, low, high, patients, positives.  real: what to mark
    below, name → shares of single real lesions.
    """
    require.full_table("clipping", table, ("window", "white", "auc", "low", "high", "patients", "positives"))
    figure, axes = plt.subplots(figsize=(ONE_COLUMN * 1.6, 3.4))
    errors, look = np.abs(table[["low", "high"]].to_numpy().T - table["auc"].to_numpy()), {"linewidth": 0.8}
    axes.errorbar(100 * table["white"], table["auc"], errors, fmt="o", markersize=4, color=COLOURS[0], **look)
    for _, row in table.iterrows():
        place = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": "x-small"}
        axes.annotate(row["window"], (100 * row["white"], row["auc"]), **place)
    floor = float(table["low"].min()) - 0.03
    for k, (name, shares) in enumerate(real.items(), start=1):
        height = np.full(len(shares), floor - 0.02 * k)
        axes.plot(100 * np.asarray(shares), height, "|", markersize=9, color=COLOURS[k], label=name)
    axes.set(xlabel="Lesion that the window turns white, early phase (% of its pixels)", ylabel="AUC")
    figure.legend(loc="outside lower center")
    n = patients_of("clipping", table.itertuples(), cohort)
    return titled(figure, cohort, f"{n}; mean of seeds, {confidence:.0%} over patients")
