"""Figures that show slices: of patients, under windows, before and after N4, read from files, misjudged."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from her2core.records import alias
from her2core.report.figures import require
from her2core.report.figures.style import ONE_COLUMN, PHASE_NAMES, TWO_COLUMNS, beside, titled
from her2core.report.figures.words import endpoint_of, window_name

_MOST_FAILURES = 6
_VIEWS = (*PHASE_NAMES, "early − pre", "early − pre, MIP")


def _show_mm(panel, image, pixel_mm, **style):
    """An image with axes in mm from its centre; y grows downwards.  pixel_mm: of both axes, or (y, x)."""
    half_y, half_x = np.multiply(image.shape[:2], pixel_mm) / 2
    step = max((s for s in (1, 2, 5, 10, 20, 50, 100) if s < 0.8 * min(half_x, half_y)), default=0)
    panel.set(xticks=[-step, 0, step], yticks=[-step, 0, step])
    return panel.imshow(image, extent=(-half_x, half_x, half_y, -half_y), **style)


def show_small(panel: Axes, image: np.ndarray, pixel_mm: float, **style) -> None:
    """An image too small for ticks: its width stands below."""
    panel.imshow(image, **style)
    panel.set(xticks=[], yticks=[], xlabel=f"{image.shape[1] * pixel_mm:.0f} mm")


def show_row(
    row: Sequence[Axes],
    views: Iterable[np.ndarray],
    pixel_mm: float | tuple[float, float],
    white: float = 255,
    mask: np.ndarray | None = None,
) -> None:
    """Views of one slice beside each other, axes in mm, black at 0, with the edge of the lesion's mask."""
    for panel, view in zip(row, views, strict=True):
        _outline(mask, _show_mm(panel, view, pixel_mm, vmin=0, vmax=white))


def _outline(mask, shown):
    """The lesion's edge over an image, white on black; shown: what imshow returned."""
    if mask is not None and mask.any() and not mask.all():
        fine = mask.astype(float).repeat(4, 0).repeat(4, 1)  # so that the line follows the pixels' edges
        for colour, width in (("black", 1.6), ("white", 0.8)):
            style = {"extent": shown.get_extent(), "origin": "upper", "colors": colour, "linewidths": width}
            shown.axes.contour(fine, levels=[0.5], **style)


def label_mm(axes: np.ndarray, titles: Iterable[str]) -> None:
    """A title per column of panels; the unit is named once per row and column, numbers stand once per row."""
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title)
    for panel in axes[:, 1:].flat:
        panel.tick_params(labelleft=False)
    plt.setp(axes[:, 0], ylabel="mm")
    plt.setp(axes[-1], xlabel="mm")


def whole_breast(examples: dict[str, tuple], cohort: str) -> Figure:
    """One patient of each site as read, in the views of `show_breasts`.

    examples: site → (phases `(3, Z, Y, X)`, mask `(Z, Y, X)`, `Geometry`)."""
    require.some("examples", examples, 4)
    grey = "white: the 99.8 % quantile of the early phase, of early − pre that of the lesion"
    what = "A patient of each site, slice with most tumour; line: mask"
    return titled(show_breasts(examples), cohort, what, grey)


def show_breasts(examples: dict[str, tuple], white: float | None = None) -> Figure:
    """A row per volume, as high as its slices are: the slice with most tumour in three phases, early − pre, and its
    maximum intensity projection (MIP); on the phases the mask's edge, on the first a scale bar.

    examples: as in `whole_breast`.  white: that of all views; without it each row has its own, the 99.8 % quantile
    of the early phase, and of early − pre in the lesion.  Black is 0."""
    for name, (volumes, mask, _) in examples.items():
        require.array(f"{name}, phases", volumes, 3, None, None, None)
        require.array(f"{name}, mask", mask, *volumes.shape[1:])
    ratios = [np.divide(*np.multiply(mask.shape[1:], at.spacing_mm[1:])) for _, mask, at in examples.values()]
    size = (TWO_COLUMNS, 0.6 + (TWO_COLUMNS - 0.3) / len(_VIEWS) * sum(ratios))
    figure, axes = plt.subplots(len(examples), len(_VIEWS), figsize=size, height_ratios=ratios, squeeze=False)
    for row, (name, (volumes, mask, geometry)) in zip(axes, examples.items(), strict=True):
        volumes, z = np.asarray(volumes, np.float32), int(mask.sum((1, 2)).argmax())
        uptake = volumes[1] - volumes[0]
        whites = [white or np.quantile(volumes[1], 0.998)] * 3 + [white or np.quantile(uptake[mask], 0.998)] * 2
        views, edges = (*volumes[:, z], uptake[z], uptake.max(0)), [mask[z]] * 3 + [None] * 2
        for panel, view, edge, most in zip(row, views, edges, whites, strict=True):
            _outline(edge, _show_mm(panel, view, geometry.spacing_mm[1:], vmin=0, vmax=most))
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{name}\nslice {z + 1} of {len(mask)}")
        _scale_bar(row[0])
    for panel, title in zip(axes[0], _VIEWS, strict=True):
        panel.set_title(title)
    return figure


def _scale_bar(panel):
    """A bar of a round length in the lower left corner of an image with axes in mm, and its length."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    length = next((mm for mm in (50, 20, 10, 5, 2, 1) if mm < 0.5 * (right - left)), 0.5)
    x, y = left + 0.06 * (right - left), bottom - 0.06 * (bottom - top)
    style = {"color": "white", "path_effects": [withStroke(linewidth=2.4, foreground="black")]}
    panel.plot([x, x + length], [y, y], linewidth=1.6, **style)
    panel.text(x, y - 0.03 * (bottom - top), f"{length:g} mm", fontsize=6, va="bottom", **style)


def phases(images: np.ndarray, names: list[str], pixel_mm: float | np.ndarray, cohort: str) -> Figure:
    """Three phases and their RGB fusion, a row per patient.

    images: `(patients, 3, H, W)` uint8.  names: what stands beside each row.  pixel_mm: one for all or one each.
    """
    require.array_8bit("images", images, None, 3, None, None)
    rows = len(images)
    figure, axes = plt.subplots(rows, 4, figsize=(TWO_COLUMNS, 0.3 + 1.85 * rows), squeeze=False)
    label_mm(axes, (*PHASE_NAMES, "RGB fusion"))
    for row, image, name, mm in zip(axes, images, names, np.broadcast_to(pixel_mm, rows), strict=True):
        show_row(row, (*image, image.transpose(1, 2, 0)), mm)
        row[0].set_ylabel(f"{name}\n(mm)", fontsize=7)
    fusion = "RGB fusion: pre-contrast red, early green, late blue"
    return titled(figure, cohort, "What the network sees, one 8-bit window per row", fusion)


def windows(values: np.ndarray, limits: dict[str, tuple[float, float]], cohort: str) -> Figure:
    """What windows make of one patient's early phase: its histogram, and below the grey that each intensity gets.

    values: `(voxels,)` intensities.  limits: window name → (black, white), both in the values' unit; a window
    that is no straight line between two limits has no place here.
    """
    require.array("values", values, None)
    require.some("limits", limits, 20)
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
        beside(bottom, y, f"white from {hi:.0f}: {100 * (values >= hi).mean():.1f} % of voxels")
    bottom.set(xlim=(start, end), ylim=(len(limits) - 0.5, -0.5))
    bottom.set_yticks(range(len(limits)), map(window_name, limits))
    bottom.set_xlabel("Intensity, early post-contrast phase (scanner units)")
    top.set_ylabel(f"Voxels (n = {values.size})")
    return titled(figure, cohort, "Windows on one patient's crops")


def windowed(images: dict[str, np.ndarray], name: str, pixel_mm: float, cohort: str) -> Figure:
    """One slice under every window: its RGB fusion, and below the histogram of its 8-bit early phase.

    images: window name → `(3, H, W)` uint8.  name: of the patient.
    """
    require.some("images", images, 20)
    for window, image in images.items():
        require.array_8bit(window, image, 3, None, None)
    columns = min(len(images), 5)
    rows = -(-len(images) // columns)
    size, ratios = (TWO_COLUMNS, 0.3 + 2.75 * rows), (1.5, 0.8) * rows
    figure, axes = plt.subplots(2 * rows, columns, figsize=size, height_ratios=ratios, squeeze=False)
    for k, (window, image) in enumerate(images.items()):
        row, column = divmod(k, columns)
        picture, histogram = axes[2 * row : 2 * row + 2, column]
        show_small(picture, image.transpose(1, 2, 0), pixel_mm)  # phases as red, green and blue
        picture.set_title(f"{window_name(window)}\n{100 * (image[1] == 255).mean():.1f} % white")
        share = np.full(image[1].size, 100 / image[1].size)
        histogram.hist(image[1].ravel(), bins=np.linspace(0, 256, 33), weights=share, color="0.5", log=True)
        histogram.set(xlim=(0, 256), ylim=(0.05, 100), xticks=[0, 128, 255], xlabel="Grey level")
        histogram.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"] if column == 0 else [])
    plt.setp(axes[1::2, 0], ylabel="Pixels (%)")
    for panel in axes.flat:
        if not panel.has_data():
            panel.set_axis_off()
    pixels = next(iter(images.values()))[1].size
    return titled(figure, cohort, f"{name}, one slice of {pixels} pixels; white and histograms: early phase")


def bias_correction(
    before: np.ndarray,
    estimated: np.ndarray,
    truth: np.ndarray | None,
    after: np.ndarray,
    pixel_mm: float,
    cohort: str,
) -> Figure:
    """N4 on one slice: before and after in the same grey window, and between them the coil's field.

    before, after: `(Y, X)` intensities.  estimated, truth: `(Y, X)` factors around 1, NaN where there is no body;
    truth is None for a patient, whose true field nobody knows.
    """
    fields = {"Estimated field": estimated} | ({} if truth is None else {"True field": truth})
    require.array("before", before, None, None)
    for name, array in {"before": before, "after": after, **fields}.items():
        require.array(name, array, *before.shape)
    percent = [100 * (field - 1) for field in fields.values()]
    most = np.nanmax(np.abs(percent))
    white = np.quantile([before, after], 0.995)
    figure, axes = plt.subplots(1, 2 + len(fields), figsize=(TWO_COLUMNS, 3.9 - 0.5 * len(fields)))
    show_row(axes[[0, -1]], (before, after), pixel_mm, white)
    for panel, field in zip(axes[1:-1], percent, strict=True):
        shown = _show_mm(panel, field, pixel_mm, cmap="PuOr_r", vmin=-most, vmax=most)
    figure.colorbar(shown, ax=axes, location="bottom", label="Field − 1 (%)", shrink=0.5, aspect=30)
    label_mm(axes[None], ("Before N4", *fields, "After N4"))
    return titled(figure, cohort, f"One slice, pre-contrast, black 0, white {white:.0f} scanner units")


def failures(
    images: np.ndarray,
    table: pd.DataFrame,
    wrong: tuple[int, int],
    where: str,
    pixel_mm: float | np.ndarray,
    cohort: str,
) -> Figure:
    """The most confident wrong patients: early phase, RGB fusion, label and probability with its seeds' range.

    images: `(n, 3, H, W)` uint8, n up to 6.  table: n rows of patient, label, lowest, probability, highest.
    wrong: (wrong patients, all patients).  where: whose, at which threshold.  pixel_mm: one for all or one each.
    """
    require.some("failures", table, _MOST_FAILURES)
    require.full_table("failures", table, ("patient", "label", "lowest", "probability", "highest"))
    require.array_8bit("images", images, len(table), 3, None, None)
    width = max(ONE_COLUMN, TWO_COLUMNS * len(table) / _MOST_FAILURES)
    figure, axes = plt.subplots(2, len(table), figsize=(width, 3.4), squeeze=False)
    sizes, endpoint = np.broadcast_to(pixel_mm, len(images)), endpoint_of(cohort)
    for column, image, mm, (_, row) in zip(axes.T, images, sizes, table.iterrows(), strict=True):
        column[0].imshow(image[1], vmin=0, vmax=255)
        column[0].set(xticks=[], yticks=[])
        show_small(column[1], image.transpose(1, 2, 0), mm)
        seeds = f"{row['probability']:.2f} ({row['lowest']:.2f}–{row['highest']:.2f})"
        label = f"{endpoint.of(row['label'])}, predicted"
        column[0].set_title(f"{alias(row['patient'])}\n{label}\n{seeds}", fontsize=6.5)
    axes[0, 0].set_ylabel(PHASE_NAMES[1])
    axes[1, 0].set_ylabel("RGB fusion")
    title = f"The {len(table)} most confident of {wrong[0]} wrong among n = {wrong[1]} {where}"
    return titled(figure, cohort, title, f"predicted: probability of {endpoint.positive}, mean (range) of seeds")
