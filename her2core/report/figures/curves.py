"""Figures with curves: learning, ROC, calibration and net benefit; and who the patients are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from her2core.report.figures import require
from her2core.report.figures.style import BEST, COLOURS, GUIDE, ONE_COLUMN, TWO_COLUMNS, titled
from her2core.report.figures.words import endpoint_of, interval, patients_of, run_name, window_name


def age_by_status(table: pd.DataFrame, cohort: str) -> Figure:
    """Age of the positive and of the other patients, in steps of five years.

    table: the patients in use, with age (years) and label; who lacks an age is counted in the title.
    """
    require.table("age_by_status", table, ("age", "label"))
    figure, axes = plt.subplots(figsize=(ONE_COLUMN * 1.4, 2.4))
    known, endpoint = table[table["age"].notna()], endpoint_of(cohort)
    _histograms(axes, known["age"], known["label"], range(15, 105, 5), endpoint)
    axes.set(xlabel="Age (years)", ylabel="Patients")
    axes.legend()
    without = f"{len(table) - len(known)} without an age"
    return titled(figure, cohort, f"Age by {endpoint.words}, n = {len(known)}, {without}")


def _histograms(axes, values, labels, bins, endpoint):
    """A filled histogram of the positive patients, and the outline of one of the others."""
    for positive, colour, style in ((1, COLOURS[0], {"alpha": 0.35}), (0, COLOURS[1], {"fill": False})):
        of_class = values[labels == positive]
        style |= {"histtype": "stepfilled", "color": colour, "edgecolor": colour}
        axes.hist(of_class, bins, label=f"{endpoint.of(positive)}, n = {len(of_class)}", **style)


def scores(panels: Mapping[str, tuple], cohort: str) -> Figure:
    """Predicted probabilities by class with the threshold, and below them the confusion matrix that it gives.

    panels: population → labels, probabilities and the threshold that holds for each patient, `(n,)` each.
    """
    require.some("panels", panels, len(COLOURS))
    endpoint = endpoint_of(cohort)
    classes = endpoint.positive, endpoint.negative
    figure, axes = _panels(len(panels), 3.8, (2, 1))
    for (top, bottom), (population, (labels, probabilities, thresholds)) in zip(axes, panels.items(), strict=True):
        require.array(f"{population}, probabilities", probabilities, len(labels))
        require.array(f"{population}, thresholds", thresholds, len(labels))
        _histograms(top, probabilities, labels, np.linspace(0, 1, 21), endpoint)
        for threshold in np.unique(np.round(thresholds, 3)):
            top.axvline(threshold, ymax=0.75, **BEST)
        most = 1.35 * top.get_ylim()[1]  # the legend stands above the bars
        chosen = " to ".join(f"{t:.2f}" for t in sorted({thresholds.min(), thresholds.max()}))
        top.set(
            title=f"{population}; threshold {chosen}",
            xlim=(0, 1),
            ylim=(0, most),
            xlabel=f"Probability of {endpoint.positive}",
        )
        top.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        top.legend(loc="upper right")
        called = probabilities >= thresholds
        counts = np.array([[((labels == y) & (called == y_hat)).sum() for y_hat in (1, 0)] for y in (1, 0)])
        of_class = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        bottom.imshow(of_class, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (y, x), share in np.ndenumerate(of_class):
            style = {"ha": "center", "va": "center", "color": "white" if share > 0.6 else "black"}
            bottom.text(x, y, f"{counts[y, x]} ({share:.0%})", **style)
        bottom.set_xticks((0, 1), [f"called {name}" for name in classes])
        bottom.set_yticks((0, 1), classes)
    axes[0, 0].set_ylabel("Patients")
    below = "below: who is called what, and which share of the class that is"
    return titled(figure, cohort, "Mean of seeds; dashed: threshold chosen on validation", below)


def kinetics_by_class(table: pd.DataFrame, cohort: str) -> Figure:
    """Enhancement of the lesions over time, a panel per site: median of each class, and a band between its
    quartiles.

    table: a row per patient with site, label, pe_early and pe_late (relative to pre-contrast), early_s and late_s;
    at a site where any time is unknown, x is the phase.
    """
    require.table("kinetics_by_class", table, ("early_s", "late_s"))
    require.full_table("kinetics_by_class", table, ("site", "label", "pe_early", "pe_late"))
    sites, endpoint = dict(iter(table.groupby("site", sort=False))), endpoint_of(cohort)
    require.some("sites", sites, len(COLOURS))
    figure, axes = _panels(len(sites), 2.6, sharey=True)
    for panel, (site, part) in zip(axes[:, 0], sites.items(), strict=True):
        x = [0, *part[["early_s", "late_s"]].median(skipna=False) / 60]
        if np.isnan(x).any():
            x = [0, 1, 2]
            panel.set_xticks(x, ("pre", "early", "late"))
        for label, colour, marker in ((1, COLOURS[0], "o"), (0, COLOURS[1], "s")):
            of_class = part[part["label"] == label]
            low, middle, high = 100 * of_class[["pe_early", "pe_late"]].quantile([0.25, 0.5, 0.75]).to_numpy()
            panel.fill_between(x, [0, *low], [0, *high], color=colour, alpha=0.15, linewidth=0)
            name = f"{endpoint.of(label)}, n = {len(of_class)}"
            panel.plot(x, [0, *middle], marker=marker, color=colour, label=name)
        panel.set_xlabel("Phase, at unknown times" if x == [0, 1, 2] else "Time after the first phase (min)")
        panel.set_title(site)
        panel.legend(loc="lower right")
    axes[0, 0].set_ylabel("Enhancement of the lesion (%)")
    return titled(figure, cohort, "Mean signal of each lesion; lines: median, bands: quartiles over patients")


def learning_curves(histories: pd.DataFrame, reference: str, patients: int, cohort: str) -> Figure:
    """AUC on the validation patients of every run, a panel each, the highest mean first.

    histories: rows of run, seed, perhaps fold, epoch, validation_auc.  reference: the run whose mean stands grey in
    every panel.  patients: in validation.
    """
    require.full_table("histories", histories, ("run", "seed", "epoch", "validation_auc"))
    member = [c for c in ("seed", "fold") if c in histories]
    runs = {run: p.pivot(index="epoch", columns=member)["validation_auc"] for run, p in histories.groupby("run")}
    require.some("runs", runs, 48)
    if reference not in runs:
        raise ValueError(f"learning_curves: no run {reference}; there are {', '.join(runs)}")
    means = {run: each.dropna().mean(axis=1) for run, each in runs.items()}  # of epochs that all networks reached
    names = sorted(runs, key=lambda run: -means[run].max())
    columns = None if len(names) <= 4 else 4 if len(names) <= 12 else 6
    figure, axes = _panels(len(names), 2 if columns is None else 1.4, columns=columns, sharex=True, sharey=True)
    for panel, run in zip(axes[:, 0], names, strict=True):
        colour = COLOURS[1] if run == reference else COLOURS[0]
        panel.plot(means[reference], color="0.6", linewidth=0.8)
        panel.plot(runs[run], color=colour, linewidth=0.4, alpha=0.7)
        panel.plot(means[run], color=colour)
        panel.set_title(fill(run_name(run), 96 // (columns or 2)), fontsize=6.5)
        panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
        panel.tick_params(labelbottom=True)
    figure.supxlabel("Epoch", fontsize=8)
    figure.supylabel(f"AUC, validation (n = {patients})", fontsize=8)
    sizes = sorted({each.shape[1] for each in runs.values()})
    lines = f"thin: each of {' or '.join(map(str, sizes))} networks, thick: their mean"
    return titled(figure, cohort, f"Learning; {lines}; grey: {run_name(reference)}")


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


def _panels(count, height, ratios=(1,), columns=None, **shared):
    """A figure with `count` panels of so many inches, at most three beside each other unless told otherwise, each
    of one or two axes above each other; returns it with the axes of each panel."""
    columns = columns or {1: 1, 2: 2, 4: 2}.get(count, 3)
    rows, width = -(-count // columns), ONE_COLUMN if count == 1 else TWO_COLUMNS
    grid = {"height_ratios": ratios * rows, "figsize": (width, min(height * rows, 9)), "squeeze": False}
    figure, axes = plt.subplots(len(ratios) * rows, columns, **grid, **shared)
    panels = axes.reshape(rows, len(ratios), columns).transpose(0, 2, 1).reshape(rows * columns, -1)
    for unused in panels[count:].flat:
        unused.set_axis_off()
    return figure, panels[:count]


def calibration_curve(panels: Mapping[str, Mapping[str, tuple]], confidence: float, cohort: str) -> Figure:
    """Observed share of positives against predicted probability.

    panels: population → {version: (table, numbers)}, two versions at most, such as "raw" and "recalibrated".
    table: `calibration.reliability` rows.  numbers: as `calibration.calibration` gives them.
    """
    require.some("panels", panels, len(COLOURS))
    positive = endpoint_of(cohort).positive
    figure, axes = _panels(len(panels), 4.2)
    for panel, (population, versions) in zip(axes[:, 0], panels.items(), strict=True):
        require.some(population, versions, 2)
        for k, (version, (table, numbers)) in enumerate(versions.items()):
            columns = ("predicted", "observed", "low", "high", "patients")
            require.full_table(f"{population}, {version}", table, columns)
            look = {"marker": "os"[k], "color": COLOURS[k], "label": _label_with(version, numbers)}
            panel.vlines(table["predicted"], table["low"], table["high"], color=COLOURS[k], linewidth=0.8)
            panel.plot(table["predicted"], table["observed"], clip_on=False, **look)
        panel.plot([0, 1], [0, 1], **GUIDE)
        dots = " or ".join(str(n) for n in sorted(set(table["patients"])))
        panel.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"Predicted probability of {positive}")
        panel.set_title(f"{population}, n = {table['patients'].sum()}, {dots} at each point")
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes[0, 0].set_ylabel(f"Observed share of {positive}")
    return titled(figure, cohort, f"Seeds' probabilities averaged; lines and brackets: {confidence:.0%} intervals")


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
    return titled(figure, cohort, f"Seeds' probabilities averaged; band: {confidence:.0%} interval over patients")


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
    figure, axes = plt.subplots(figsize=(ONE_COLUMN * 1.6, 3.8))
    for k, row in enumerate(table.sort_values("auc", ascending=False).itertuples()):
        label = f"{window_name(row.window)}: {interval(row.auc, row.low, row.high)}"
        look = {"color": COLOURS[k % len(COLOURS)], "marker": "osD^v<>"[(k + k // 7) % 7], "linewidth": 0.8}
        axes.plot([100 * row.white] * 3, [row.low, row.auc, row.high], markevery=[1], label=label, **look)
    floor = float(table["low"].min()) - 0.03
    for k, (name, shares) in enumerate(real.items(), start=1):
        height = np.full(len(shares), floor - 0.02 * k)
        axes.plot(100 * np.asarray(shares), height, "|", markersize=9, color=str(0.25 * k), label=name)
    axes.set(xlabel="Lesion that the window turns white, early phase (% of its pixels)", ylabel="AUC")
    figure.legend(loc="outside lower center", ncols=2)
    n = patients_of("clipping", table.itertuples(), cohort)
    return titled(figure, cohort, f"{n}; mean of seeds, {confidence:.0%} over patients")
