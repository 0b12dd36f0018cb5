"""One function per figure: arrays in, `Figure` out.  Nothing is computed, saved or, but for `cohort_name`, read.

Every figure has axis labels with units and the cohort's name, which says where the cohort is synthetic; one that
shows a statistic also carries its n and interval.  Input of another shape, or a table that lacks a column or a
value, raises ValueError.
"""

from itertools import product
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from her2core.config import setting
from her2core.evaluate import POWER
from her2core.report.documents import is_synthetic

plt.style.use(Path(__file__).with_name("her2.mplstyle"))

COLOURS = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2  # inches
PHASE_NAMES = ("pre-contrast", "early post-contrast", "late post-contrast")
GUIDE = {"color": "0.6", "linewidth": 0.8, "zorder": 0}  # chance, no difference, perfect calibration
MOST_FAILURES = 6


def settle(figure):
    """Lay the figure out; panels of a fixed aspect leave room for their titles only in the second pass."""
    for _ in range(2):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def save(figure, name, folder):
    """folder/name.png at 300 dpi and folder/name.pdf; the same bytes for the same figure."""
    folder.mkdir(parents=True, exist_ok=True)
    settle(figure)
    part = folder / f".{name}.partial"
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        figure.savefig(part, format=kind, metadata=metadata)
        part.replace(folder / f"{name}.{kind}")
    plt.close(figure)


def cohort_name(cohort):
    """A cohort in words; params.yaml knows which are synthetic, so that no caller can forget to say it."""
    return f"{cohort} synthetic cohort" if is_synthetic(setting(cohort)) else cohort


def headline(figure, cohort, first, *others):
    """The cohort's name and what else is to be known, above all panels, wrapped to the figure's width."""
    width, name = int(15 * figure.get_figwidth()), cohort_name(cohort)  # characters of 8 points
    lines = [f"{first}; {name}"] if len(first + name) < width - 2 else [f"{first};", name]
    figure.suptitle("\n".join(fill(line, width) for line in (*lines, *others)))


def require_shape(name, array, *shape):
    """None stands for any size but 0."""
    found = np.shape(array)
    if len(found) != len(shape) or any(n != (s or max(n, 1)) for n, s in zip(found, shape, strict=True)):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"{name}: shape {found}, expected ({wanted})")


def require_8bit(name, array, *shape):
    require_shape(name, array, *shape)
    if array.dtype != np.uint8:
        raise ValueError(f"{name}: found {array.dtype}, expected uint8")


def require_values(name, table, columns):
    """A table with rows, and a number or a word in each of these columns."""
    if missing := [c for c in columns if c not in table]:
        raise ValueError(f"{name}: lacks {', '.join(missing)}; it has {', '.join(map(str, table))}")
    if table.empty or table[list(columns)].isna().any(axis=None):
        raise ValueError(f"{name}: {len(table)} rows, expected at least one and no missing value")


def require_some(name, items, most):
    if not 0 < len(items) <= most:
        raise ValueError(f"{name}: found {len(items)}, expected 1 to {most}")


def patients_of(name, estimates):
    """ "n = 180, 72 HER2+"; all must rest on the same patients, or one n would not do."""
    found = sorted({(int(e.patients), int(e.positives)) for e in estimates})
    if len(found) != 1:
        raise ValueError(f"{name}: patients and positives differ from row to row: {found}")
    return f"n = {found[0][0]}, {found[0][1]} HER2+"


def number(value, sign=""):
    return f"{round(value, 2) + 0.0:{sign}.2f}".replace("-", "−")  # adding 0 turns −0 into 0


def interval(value, low, high, sign=""):
    """0.72 (0.65–0.79); where a dash could be a minus, −0.05 (−0.09 to −0.01)."""
    dash = " to " if sign or low < 0 else "–"
    return f"{number(value, sign)} ({number(low, sign)}{dash}{number(high, sign)})"


# --- images -------------------------------------------------------------------------------------------------


def show_mm(panel, image, pixel_mm, **style):
    """An image with axes in mm from its centre; y grows downwards."""
    half_y, half_x = (n * pixel_mm / 2 for n in image.shape[:2])
    step = max((s for s in (1, 2, 5, 10, 20, 50, 100) if s < 0.8 * min(half_x, half_y)), default=0)
    panel.set(xticks=[-step, 0, step], yticks=[-step, 0, step])
    return panel.imshow(image, extent=(-half_x, half_x, half_y, -half_y), **style)


def show_small(panel, image, pixel_mm, **style):
    """An image too small for ticks: its width stands below."""
    panel.imshow(image, **style)
    panel.set(xticks=[], yticks=[], xlabel=f"{image.shape[1] * pixel_mm:.0f} mm")


def outline(panel, mask, shown):
    """The lesion's edge over an image, white on black; shown: what imshow returned."""
    if mask is not None and mask.any() and not mask.all():
        fine = mask.astype(float).repeat(4, 0).repeat(4, 1)  # so that the line follows the pixels' edges
        for colour, width in (("black", 1.6), ("white", 0.8)):
            style = {"extent": shown.get_extent(), "origin": "upper", "colors": colour, "linewidths": width}
            panel.contour(fine, levels=[0.5], **style)


def label_mm(axes):
    """Name the unit once per row and column, numbers once per row."""
    for panel in axes[:, 1:].flat:
        panel.tick_params(labelleft=False)
    for panel in axes[:, 0]:
        panel.set_ylabel("mm")
    for panel in axes[-1]:
        panel.set_xlabel("mm")


def in_rgb(image):
    """Phases `(3, H, W)` as the red, green and blue of one picture."""
    return image.transpose(1, 2, 0)


def phases(images, names, pixel_mm, cohort):
    """Three phases and their RGB fusion, a row per patient.

    images: `(patients, 3, H, W)` uint8.  names: what stands beside each row.  pixel_mm: one for all or one each.
    """
    require_8bit("images", images, None, 3, None, None)
    rows = len(images)
    figure, axes = plt.subplots(rows, 4, figsize=(TWO_COLUMNS, 0.3 + 1.85 * rows), squeeze=False)
    for row, image, mm in zip(axes, images, np.broadcast_to(pixel_mm, rows), strict=True):
        for panel, phase in zip(row, image, strict=False):
            show_mm(panel, phase, mm, vmin=0, vmax=255)
        show_mm(row[3], in_rgb(image), mm)
    for panel, title in zip(axes[0], (*PHASE_NAMES, "RGB fusion"), strict=True):
        panel.set_title(title)
    label_mm(axes)
    for panel, name in zip(axes[:, 0], names, strict=True):
        panel.set_ylabel(f"{name}\n(mm)", fontsize=7)
    headline(figure, cohort, "What the network sees, one 8-bit window per row")
    return figure


def windows(values, limits, cohort):
    """What windows make of one patient's early phase: its histogram, and below the grey that each intensity gets.

    values: `(voxels,)` intensities.  limits: window name → (black, white), both in the values' unit; a window
    that is no straight line between two limits has no place here.
    """
    require_shape("values", values, None)
    require_some("limits", limits, 20)
    if bad := [name for name, (lo, hi) in limits.items() if not lo < hi]:
        raise ValueError(f"limits: white must lie above black, which it does not for {', '.join(bad)}")
    start = min(0, *(lo for lo, _ in limits.values()))
    end = 1.03 * max(values.max(), *(hi for _, hi in limits.values()))
    size = (TWO_COLUMNS, 2.2 + 0.2 * len(limits))
    figure, (top, bottom) = plt.subplots(2, figsize=size, sharex=True, height_ratios=(1.5, 0.2 * len(limits)))
    top.hist(values, bins=np.linspace(start, end, 120), color="0.6", log=True)
    grid = np.linspace(start, end, 1024)
    for y, (lo, hi) in enumerate(limits.values()):
        grey, box = np.clip((grid - lo) / (hi - lo), 0, 1)[None], (start, end, y + 0.36, y - 0.36)
        bottom.imshow(grey, vmin=0, vmax=1, extent=box, aspect="auto", interpolation="bilinear")
        bottom.add_patch(plt.Rectangle((start, y - 0.36), end - start, 0.72, fill=False, edgecolor="0.5"))
        text = f"white from {hi:.0f}: {100 * (values >= hi).mean():.1f} % of voxels"
        beside(bottom, y, text)
    bottom.set(xlim=(start, end), ylim=(len(limits) - 0.5, -0.5))
    bottom.set_yticks(range(len(limits)), limits)
    bottom.set_xlabel("Intensity, early post-contrast phase (scanner units)")
    top.set_ylabel(f"Voxels (n = {values.size})")
    headline(figure, cohort, "Windows on one patient's crops")
    return figure


def windowed(images, name, pixel_mm, cohort):
    """One slice under every window: its RGB fusion, and below the histogram of its 8-bit early phase.

    images: window name → `(3, H, W)` uint8.  name: of the patient.
    """
    require_some("images", images, 20)
    for window, image in images.items():
        require_8bit(window, image, 3, None, None)
    columns = min(len(images), 5)
    rows = -(-len(images) // columns)
    size, ratios = (TWO_COLUMNS, 0.3 + 2.75 * rows), (1.5, 0.8) * rows
    figure, axes = plt.subplots(2 * rows, columns, figsize=size, height_ratios=ratios, squeeze=False)
    for k, (window, image) in enumerate(images.items()):
        row, column = divmod(k, columns)
        picture, histogram = axes[2 * row : 2 * row + 2, column]
        show_small(picture, in_rgb(image), pixel_mm)
        picture.set_title(f"{window}\n{100 * (image[1] == 255).mean():.1f} % white")
        share = np.full(image[1].size, 100 / image[1].size)
        histogram.hist(image[1].ravel(), bins=np.linspace(0, 256, 33), weights=share, color="0.5", log=True)
        histogram.set(xlim=(0, 256), ylim=(0.05, 100), xticks=[0, 128, 255], xlabel="Grey level")
        histogram.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"] if column == 0 else [])
    for panel in axes[1::2, 0]:
        panel.set_ylabel("Pixels (%)")
    for panel in axes.flat[:0:-1]:
        if not panel.has_data():
            panel.set_axis_off()
    pixels = next(iter(images.values()))[1].size
    headline(figure, cohort, f"{name}, one slice of {pixels} pixels; white and histograms: early phase")
    return figure


def bias_field(before, estimated, truth, after, pixel_mm, cohort):
    """N4 on one slice: before and after in the same grey window, and between them the coil's field.

    before, after: `(Y, X)` intensities.  estimated, truth: `(Y, X)` factors around 1, NaN where there is no body;
    truth is None for a patient, whose true field nobody knows.
    """
    fields = {"Estimated field": estimated} | ({} if truth is None else {"True field": truth})
    require_shape("before", before, None, None)
    for name, array in {"before": before, "after": after, **fields}.items():
        require_shape(name, array, *before.shape)
    percent = {name: 100 * (field - 1) for name, field in fields.items()}
    most = max(np.nanmax(np.abs(p)) for p in percent.values())
    white = np.quantile([before, after], 0.995)
    figure, axes = plt.subplots(1, 2 + len(fields), figsize=(TWO_COLUMNS, 3.9 - 0.5 * len(fields)))
    for panel, image, title in ((axes[0], before, "Before N4"), (axes[-1], after, "After N4")):
        show_mm(panel, image, pixel_mm, vmin=0, vmax=white)
        panel.set_title(title)
    for panel, (title, field) in zip(axes[1:], percent.items(), strict=False):
        shown = show_mm(panel, field, pixel_mm, cmap="PuOr_r", vmin=-most, vmax=most)
        panel.set_title(title)
    figure.colorbar(shown, ax=axes, location="bottom", label="Field − 1 (%)", shrink=0.5, aspect=30)
    label_mm(axes[None])
    headline(figure, cohort, f"One slice, pre-contrast, black 0, white {white:.0f} scanner units")
    return figure


def show_gates(figure, row, image, gates, mask, pixel_mm):
    """Gates `(3, h, w)` over the three phases of one patient, with their own colour scale."""
    for panel, phase, gate in zip(row, image, gates, strict=True):
        under = show_mm(panel, phase, pixel_mm, vmin=0, vmax=255)
        style = {"cmap": "viridis", "alpha": 0.55, "interpolation": "bilinear", "extent": under.get_extent()}
        shown = panel.imshow(gate, vmin=gates.min(), vmax=gates.max(), **style)
        outline(panel, mask, under)
    figure.colorbar(shown, ax=row, label="Spatial gate\n(0 closed, 1 open)", shrink=0.9)


def overlay(image, gates, mask, pixel_mm):
    """Three phases in the first row, below a row for each of `gates`: row's name → `(3, h, w)`."""
    require_8bit("image", image, 3, None, None)
    if mask is not None:
        require_shape("mask", mask, *image.shape[1:])
    for gate in gates.values():
        require_shape("gates", gate, 3, None, None)
    rows = 1 + len(gates)
    figure, axes = plt.subplots(rows, 3, figsize=(TWO_COLUMNS * 0.8, 0.3 + 1.75 * rows))
    for panel, phase, title in zip(axes[0], image, PHASE_NAMES, strict=True):
        outline(panel, mask, show_mm(panel, phase, pixel_mm, vmin=0, vmax=255))
        panel.set_title(title)
    label_mm(axes)
    for row, (name, gate) in zip(axes[1:], gates.items(), strict=True):
        show_gates(figure, row, image, gate, mask, pixel_mm)
        row[0].set_ylabel(f"{name}\n(mm)")
    for panel in axes[:-1].flat:
        panel.tick_params(labelbottom=False)
    return figure


def attention(image, gates, name, probability, pixel_mm, cohort, mask=None):
    """One patient's three phases, and over each the spatial gate of its head.

    image: `(3, H, W)` uint8.  gates: `(3, h, w)` in [0, 1].  probability: (lowest, mean, highest) over seeds.
    mask: `(H, W)` bool, the lesion to be outlined, where known.
    """
    figure = overlay(image, {"attention": gates}, mask, pixel_mm)
    low, mean, high = probability
    lesion = "" if mask is None else "; line: lesion"
    headline(figure, cohort, name, f"probability of HER2+ {mean:.2f} (seeds {low:.2f}–{high:.2f}){lesion}")
    return figure


def attention_check(image, mask, trained, randomised, shares, name, pixel_mm, cohort):
    """Does attention depend on what was learnt?  The gates of the trained network above those of a random one.

    image: `(3, H, W)` uint8.  mask: `(H, W)` bool, the lesion.  trained, randomised: `(3, h, w)` in [0, 1].
    shares: "trained" and "randomised", attention inside the lesion, and "chance", the lesion's part of the image.
    """
    if missing := {"trained", "randomised", "chance"} - set(shares):
        raise ValueError(f"shares: lacks {', '.join(sorted(missing))}")
    gates = {f"trained: {shares['trained']:.1%}": trained, f"randomised: {shares['randomised']:.1%}": randomised}
    figure = overlay(image, gates, mask, pixel_mm)
    share = f"percentages: share of attention inside the lesion (line), by chance {shares['chance']:.1%}"
    headline(figure, cohort, name, share)
    return figure


def failures(images, table, wrong, pixel_mm, cohort):
    """The most confident wrong patients: early phase, RGB fusion, label and probability with its seeds' range.

    images: `(n, 3, H, W)` uint8, n up to 6.  table: n rows of patient, her2, lowest, probability, highest.
    wrong: (wrong patients, all patients).  pixel_mm: one for all or one each.
    """
    require_some("failures", table, MOST_FAILURES)
    require_values("failures", table, ("patient", "her2", "lowest", "probability", "highest"))
    require_8bit("images", images, len(table), 3, None, None)
    width = max(ONE_COLUMN, TWO_COLUMNS * len(table) / MOST_FAILURES)
    figure, axes = plt.subplots(2, len(table), figsize=(width, 3.4), squeeze=False)
    sizes = np.broadcast_to(pixel_mm, len(images))
    for column, image, mm, (_, row) in zip(axes.T, images, sizes, table.iterrows(), strict=True):
        column[0].imshow(image[1], vmin=0, vmax=255)
        column[0].set(xticks=[], yticks=[])
        show_small(column[1], in_rgb(image), mm)
        seeds = f"{row['probability']:.2f} ({row['lowest']:.2f}–{row['highest']:.2f})"
        label = f"HER2{'+' if row['her2'] else '−'}, predicted"
        column[0].set_title(f"{fill(row['patient'], 17)}\n{label}\n{seeds}", fontsize=6.5)
    axes[0, 0].set_ylabel(PHASE_NAMES[1])
    axes[1, 0].set_ylabel("RGB fusion")
    title = f"The {len(table)} most confident of {wrong[0]} wrong among n = {wrong[1]} patients"
    headline(figure, cohort, title, "predicted: probability of HER2+, mean (range) of seeds")
    return figure


# --- statistics ---------------------------------------------------------------------------------------------


def learning_curves(histories, patients, cohort):
    """Loss and validation AUC of every run given; single seeds too, while there are few runs.

    histories: rows of run, seed, epoch, loss, validation_auc.  patients: in training and in validation.
    """
    require_values("histories", histories, ("run", "seed", "epoch", "loss", "validation_auc"))
    looks = list(product(("-", "--", ":"), COLOURS))
    require_some("runs", names := sorted(histories["run"].unique()), len(looks))
    figure, axes = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 2.5 + 0.14 * -(-len(names) // 3)))
    few = len(names) <= len(COLOURS)
    for (line, colour), run in zip(looks, names, strict=False):
        part = histories[histories["run"] == run]
        for panel, column in zip(axes, ("loss", "validation_auc"), strict=True):
            mean = part.groupby("epoch")[column].mean()
            panel.plot(mean.index, mean, color=colour, linestyle=line, label=run)
            for _, seed in part.groupby("seed") if few else ():
                panel.plot(seed["epoch"], seed[column], color=colour, linewidth=0.3, alpha=0.6)
    axes[0].set(xlabel="Epoch", ylabel=f"Weighted loss, training (n = {patients[0]})")
    axes[1].set(xlabel="Epoch", ylabel=f"AUC, validation (n = {patients[1]})")
    seeds = f"mean of {histories['seed'].nunique()} seeds"
    headline(figure, cohort, f"Thick: {seeds}, thin: each seed" if few else seeds.capitalize())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def roc(curves, confidence, cohort):
    """ROC curves.  curves: name → (false-positive rate, mean, low, high, `Estimate`), each `(points,)`."""
    require_some("curves", curves, 3)
    figure, axes = plt.subplots(figsize=(ONE_COLUMN, ONE_COLUMN))
    for k, (name, (grid, mean, low, high, estimate)) in enumerate(curves.items()):
        for what, values in (("mean", mean), ("low", low), ("high", high)):
            require_shape(f"{name}, {what}", values, len(grid))
        colour, line = COLOURS[k], ("-", "--", ":")[k]
        axes.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
        label = f"{name}: AUC {interval(estimate.value, estimate.low, estimate.high)}"
        label += f"\n{patients_of(name, [estimate])}"
        axes.plot(grid, mean, color=colour, linestyle=line, label=label)
    axes.plot([0, 1], [0, 1], **GUIDE)
    axes.set(xlabel="1 − specificity", ylabel="Sensitivity", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.set_title(f"{cohort_name(cohort)}\nmean of seeds; bands and brackets: {confidence:.0%} over patients")
    axes.legend(loc="lower right")
    return figure


def rows_of_forest(count):
    """Axes for `count` labelled rows, top to bottom, every other one shaded to lead the eye."""
    figure, axes = plt.subplots(figsize=(TWO_COLUMNS, 0.85 + 0.2 * count))
    for y in range(0, count, 2):
        axes.axhspan(y - 0.5, y + 0.5, color="0.96", linewidth=0, zorder=-1)
    axes.set_ylim(count - 0.5, -0.5)
    axes.tick_params("y", length=0)
    return figure, axes


def beside(axes, y, text):
    axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=7)


def forest(table, reference, confidence, cohort, title):
    """AUC of each run with its interval and seeds.  table: `evaluate.summary` rows, drawn top to bottom."""
    columns = ("run", "auc", "low", "high", "lowest_seed", "highest_seed", "patients", "positives")
    require_values("forest", table, columns)
    figure, axes = rows_of_forest(len(table))
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


def differences(table, confidence, cohort, title):
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
    figure, axes = rows_of_forest(len(table))
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


def label_with(version, numbers):
    """The version's name, and a line for every number with its interval; NaN is one that no data could give."""
    lines = [f"{k} cannot be fitted" if np.isnan(v[0]) else f"{k} {interval(*v)}" for k, v in numbers.items()]
    return "\n".join([version, *lines])


def calibration(panels, confidence, cohort):
    """Observed share of positives against predicted probability, with the patients of each bin below.

    panels: population → {version: (table, numbers)}, two at most of either; versions such as "raw" and
    "recalibrated".  table: `evaluate.reliability` rows.  numbers: as `evaluate.calibration` gives them.
    """
    require_some("panels", panels, 2)
    size = (TWO_COLUMNS if len(panels) == 2 else ONE_COLUMN, 4.6)
    figure, axes = plt.subplots(2, len(panels), figsize=size, sharex=True, height_ratios=(4, 1), squeeze=False)
    for (top, bottom), (population, versions) in zip(axes.T, panels.items(), strict=True):
        require_some(population, versions, 2)
        for k, (version, (table, numbers)) in enumerate(versions.items()):
            require_values(f"{population}, {version}", table, ("predicted", "observed", "low", "high", "patients"))
            colour, marker = COLOURS[k], "os"[k]
            top.vlines(table["predicted"], table["low"], table["high"], color=colour, linewidth=0.8)
            label = label_with(version, numbers)
            top.plot(table["predicted"], table["observed"], marker=marker, color=colour, label=label, clip_on=False)
            bottom.vlines(table["predicted"], 0, table["patients"], color=colour, linewidth=2)
        top.plot([0, 1], [0, 1], **GUIDE)
        top.set(xlim=(0, 1), ylim=(0, 1), title=f"{population}, n = {table['patients'].sum()}")
        most = max(table["patients"].max() for table, _ in versions.values())
        bottom.set(xlabel="Predicted probability of HER2+", ylim=(0, 1.1 * most), yticks=[0, most])
        bottom.legend(*top.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, -0.6))
    axes[0, 0].set_ylabel("Observed share of HER2+")
    axes[1, 0].set_ylabel("Patients\nper bin")
    headline(figure, cohort, f"Lines and brackets: {confidence:.0%} intervals")
    return figure


def decision_curve(panels, confidence, cohort):
    """Net benefit of the model, of treating all and of treating nobody, over the threshold probability.

    panels: population → (table, `Estimate`), two at most.  table: `evaluate.net_benefit` rows, and `low` and `high`
    of the model.
    """
    require_some("panels", panels, 2)
    tables = {population: table for population, (table, _) in panels.items()}
    for population, table in tables.items():
        require_values(population, table, ("threshold", "model", "low", "high", "treat_all", "treat_none"))
    width = TWO_COLUMNS if len(panels) == 2 else ONE_COLUMN
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 2.9), sharey=True, squeeze=False)
    most = max(table[["high", "treat_all"]].max(axis=None) for table in tables.values())
    for panel, (population, (table, estimate)) in zip(axes[0], panels.items(), strict=True):
        x = table["threshold"]
        panel.fill_between(x, table["low"], table["high"], color=COLOURS[0], alpha=0.15, linewidth=0)
        panel.plot(x, table["model"], color=COLOURS[0], label="model")
        panel.plot(x, table["treat_all"], color=COLOURS[1], linestyle="--", label="treat all as HER2+")
        panel.plot(x, table["treat_none"], color="0.3", linestyle=":", label="treat none")
        panel.set_title(f"{population}, {patients_of(population, [estimate])}")
        panel.set(xlabel="Threshold probability", xlim=(0, x.max()), ylim=(-0.25 * most, 1.1 * most))
    axes[0, 0].set_ylabel("Net benefit (true positives per patient)")
    axes[0, -1].legend(loc="upper right")
    headline(figure, cohort, f"Band: {confidence:.0%} interval over patients")
    return figure
