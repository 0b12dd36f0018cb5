"""One function per figure: arrays in, `Figure` out.  Nothing is read, computed or saved in them.

Every figure has axis labels with units and the cohort's name, which says where the cohort is synthetic; one that
shows a statistic also carries its n and interval.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

plt.style.use(Path(__file__).with_name("her2.mplstyle"))

COLOURS = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2  # inches
PHASE_NAMES = ("pre-contrast", "early post-contrast", "late post-contrast")
SYNTHETIC = {"embedded": "embedded synthetic cohort", "tiny": "tiny synthetic cohort"}


def save(figure, name, folder):
    """folder/name.png at 300 dpi and folder/name.pdf; the same bytes for the same figure."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    plt.close(figure)


def cohort_name(cohort):
    return SYNTHETIC.get(cohort, cohort)


def roc(curves, confidence, cohort):
    """ROC curves.  curves: name → (false-positive rate, mean, low, high, `Estimate`), each `(points,)`."""
    figure, axes = plt.subplots(figsize=(ONE_COLUMN, ONE_COLUMN))
    for number, (name, (grid, mean, low, high, estimate)) in enumerate(curves.items()):
        colour, line = COLOURS[number], ("-", "--", ":")[number % 3]
        axes.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
        label = f"{name}: AUC {estimate.value:.2f} ({estimate.low:.2f}–{estimate.high:.2f})"
        counts = f"\nn = {estimate.patients}, {estimate.positives} HER2+"
        axes.plot(grid, mean, color=colour, linestyle=line, label=label + counts)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axes.set(xlabel="1 − specificity", ylabel="Sensitivity", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.set_title(f"{cohort_name(cohort)}\nmean of seeds; bands and brackets: {confidence:.0%} over patients")
    axes.legend(loc="lower right")
    return figure


def forest(table, reference, confidence, cohort, title):
    """AUC of each run with its interval and seeds.  table: `evaluate.summary` rows, drawn top to bottom."""
    figure, axes = plt.subplots(figsize=(TWO_COLUMNS * 0.75, 0.8 + 0.3 * len(table)))
    for y, (_, row) in enumerate(table.iterrows()):
        colour = COLOURS[1] if row["run"] == reference else COLOURS[0]
        axes.plot([row["low"], row["high"]], [y, y], color=colour)
        axes.plot([row["lowest_seed"], row["highest_seed"]], [y, y], color=colour, linewidth=4, alpha=0.3)
        axes.plot(row["auc"], y, "o", color=colour)
        text = f"{row['auc']:.2f} ({row['low']:.2f}–{row['high']:.2f})"
        axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=7)
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    marks = [f"{r}  (reference)" if r == reference else r for r in table["run"]]
    axes.set_yticks(range(len(table)), marks)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlabel(
        f"AUC, internal test\ndot: mean of seeds; line: {confidence:.0%} interval over patients; band: seeds' range"
    )
    first = table.iloc[0]
    axes.set_title(f"{title}; {cohort_name(cohort)}, n = {first['patients']}, {first['positives']} HER2+")
    return figure


def learning_curves(histories, patients, cohort):
    """Loss and validation AUC of every seed.

    histories: rows of run, seed, epoch, loss, validation_auc.  patients: in training and in validation.
    """
    figure, axes = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 2.4))
    for number, (run, part) in enumerate(histories.groupby("run", sort=True)):
        colour, line = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
        for panel, column in zip(axes, ("loss", "validation_auc"), strict=True):
            mean = part.groupby("epoch")[column].mean()
            panel.plot(mean.index, mean, color=colour, linestyle=line, label=run)
            for _, seed in part.groupby("seed"):
                panel.plot(seed["epoch"], seed[column], color=colour, linewidth=0.3, alpha=0.6)
    axes[0].set(xlabel="Epoch", ylabel=f"Weighted loss, training (n = {patients[0]})")
    axes[1].set(xlabel="Epoch", ylabel=f"AUC, validation (n = {patients[1]})")
    seeds = histories["seed"].nunique()
    figure.suptitle(f"{cohort_name(cohort)}; thick: mean of {seeds} seeds, thin: each seed", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def phases(images, names, pixel_mm, cohort):
    """Three phases and their RGB fusion, a row per patient.  images: `(patients, 3, H, W)` uint8."""
    rows = len(images)
    figure, axes = plt.subplots(rows, 4, figsize=(TWO_COLUMNS, 1.85 * rows), squeeze=False)
    extent = field_of_view(images, pixel_mm)
    for row, image, name in zip(axes, images, names, strict=True):
        for panel, phase in zip(row, image, strict=False):
            panel.imshow(phase, vmin=0, vmax=255, extent=extent)
        row[3].imshow(image.transpose(1, 2, 0), extent=extent)
        row[0].set_ylabel(f"{name}\n(mm)", fontsize=6)
    for panel, title in zip(axes[0], (*PHASE_NAMES, "RGB fusion"), strict=True):
        panel.set_title(title)
    for panel in axes.flat:
        panel.set(xticks=[-20, 0, 20], yticks=[-20, 0, 20])
    figure.suptitle(f"{cohort_name(cohort)}; what the network sees, one 8-bit window per row", fontsize=8)
    return figure


def field_of_view(images, pixel_mm):
    half_y, half_x = (n * pixel_mm / 2 for n in images.shape[-2:])
    return (-half_x, half_x, half_y, -half_y)  # y grows to posterior, downwards


def attention(image, gates, name, probability, pixel_mm, cohort):
    """One patient's three phases, and over each the spatial gate of its head.

    image: `(3, H, W)` uint8.  gates: `(3, h, w)` in [0, 1].  probability: (lowest, mean, highest) over seeds.
    """
    figure, axes = plt.subplots(2, 3, figsize=(TWO_COLUMNS * 0.8, 3.6))
    extent = field_of_view(image, pixel_mm)
    for top, bottom, phase, gate, title in zip(*axes, image, gates, PHASE_NAMES, strict=True):
        top.imshow(phase, vmin=0, vmax=255, extent=extent)
        top.set_title(title)
        bottom.imshow(phase, vmin=0, vmax=255, extent=extent)
        shown = bottom.imshow(
            gate, cmap="viridis", alpha=0.55, extent=extent, interpolation="bilinear",
            vmin=gates.min(), vmax=gates.max(),
        )  # fmt: skip
    for panel in axes.flat:
        panel.set(xticks=[-20, 0, 20], yticks=[-20, 0, 20])
    axes[0, 0].set_ylabel("mm")
    axes[1, 0].set_ylabel("mm")
    figure.colorbar(shown, ax=axes[1], label="Spatial gate (0 closed, 1 open)", shrink=0.8)
    low, mean, high = probability
    figure.suptitle(
        f"{name}: probability of HER2+ {mean:.2f} (seeds {low:.2f}–{high:.2f}); {cohort_name(cohort)}", fontsize=8
    )
    return figure


def windows(values, limits, cohort):
    """What each window does to one patient's early phase.

    values: `(n,)` intensities.  limits: window name → (lo, hi).  The share above `hi` is lost to white.
    """
    figure, axes = plt.subplots(figsize=(TWO_COLUMNS, 2.6))
    top = max(hi for _, hi in limits.values())
    axes.hist(values, bins=np.linspace(0, top * 1.02, 120), color="0.75", log=True)
    for number, (name, (_, hi)) in enumerate(limits.items()):
        lost = (values > hi).mean()
        style = ("-", "--", ":", "-.")[number % 4]
        label = f"{name}: white from {hi:.0f},\n{100 * lost:.1f} % saturated"
        axes.axvline(hi, color=COLOURS[number % len(COLOURS)], linestyle=style, label=label)
    axes.set(xlabel="Intensity, early post-contrast phase (scanner units)", ylabel="Voxels of the crops")
    axes.set_title(f"Upper limits of the windows for one patient; {cohort_name(cohort)}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
