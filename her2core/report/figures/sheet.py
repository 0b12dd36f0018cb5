"""One examination on one sheet: the whole breast, its kinetics, and what the networks answer and attend to."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from her2core.report.figures import require
from her2core.report.figures.images import show_row
from her2core.report.figures.style import COLOURS, GUIDE, PHASE_NAMES, TWO_COLUMNS, titled
from her2core.report.figures.words import endpoint_of


def case_sheet(
    volumes: np.ndarray,
    mask: np.ndarray,
    spacing_mm: tuple[float, float, float],
    curve: pd.DataFrame,
    crop: tuple[np.ndarray, np.ndarray, np.ndarray, float],
    scores: pd.DataFrame,
    answer: Mapping[str, float],
    name: str,
    cohort: str,
) -> Figure:
    """Early phase, subtraction and its maximum along slices; below kinetics, attention, and where the answer lies.

    volumes: `(3, Z, Y, X)`; mask: `(Z, Y, X)`.  curve: rows of phase, minutes (NaN where unknown), low,
    enhancement, high (%), chosen.  crop: image `(3, H, W)` uint8, gates `(3, H, W)`, lesion `(H, W)`, pixel_mm.
    scores: label and probability of the cohort's patients.  answer: lowest, mean, highest, threshold.
    """
    require.array("volumes", volumes, 3, None, None, None)
    require.array("mask", mask, *volumes.shape[1:])
    require.full_table("curve", curve, ("phase", "low", "enhancement", "high", "chosen"))
    require.full_table("scores", scores, ("label", "probability"))
    figure = plt.figure(figsize=(TWO_COLUMNS, 5.5))
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    _whole_breast(top.subplots(1, 3), volumes.astype(float), mask, spacing_mm[1:])
    left, middle, right = bottom.subplots(1, 3, width_ratios=(1, 1.15, 1))
    _kinetics(left, curve)
    _attended(middle, *(part[1] for part in crop[:2]), crop[2], crop[3], f"attention, {PHASE_NAMES[1]}")
    _among(right, scores, answer, cohort)
    spread = " (seeds {lowest:.2f}–{highest:.2f})" if answer["lowest"] < answer["highest"] else ""
    said = f"probability of {endpoint_of(cohort).positive} {{mean:.2f}}{spread}".format(**answer)
    return titled(figure, cohort, name, f"{said}; lines in images: lesion; research only, not for clinical use")


def _whole_breast(row, volumes, mask, pixel_mm):
    """White: the early phase's 99.8 % quantile; of uptake 120 % of the lesion's 98 % quantile."""
    z, uptake = int(mask.sum((1, 2)).argmax()), volumes[1] - volumes[0]
    white = max(1.2 * np.quantile(uptake[mask], 0.98), 1)
    views = {
        f"{PHASE_NAMES[1]}, slice {z + 1} of {len(mask)}": (volumes[1, z], np.quantile(volumes[1], 0.998), mask[z])
    }
    views |= {
        "early − pre": (uptake[z], white, mask[z]),
        "early − pre, maximum": (uptake.max(0), white, mask.any(0)),
    }
    for panel, (title, (view, bright, outline)) in zip(row, views.items(), strict=True):
        show_row([panel], [view], pixel_mm, bright, outline)
        panel.set(title=title, xlabel="mm")
    row[0].set_ylabel("mm")


def _kinetics(panel, curve):
    known = "minutes" in curve and curve["minutes"].notna().all()
    x = curve["minutes"] if known else curve["phase"]
    panel.fill_between(x, curve["low"], curve["high"], color=COLOURS[0], alpha=0.2, linewidth=0)
    panel.plot(x, curve["enhancement"], "o-", color=COLOURS[0])
    chosen = curve["chosen"].to_numpy(bool)
    panel.plot(
        x[chosen], curve["enhancement"][chosen], "o", color=COLOURS[1], markersize=6, label="networks' phases"
    )
    panel.set(
        xlabel="Time after the first phase (min)" if known else "Phase", ylabel="Enhancement of the lesion (%)"
    )
    panel.set(title="kinetics: mean, middle half of voxels", **({} if known else {"xticks": curve["phase"]}))
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24))


def _attended(panel: Axes, image, gate, mask, pixel_mm, title):
    """Spatial gates over one phase, with a scale of their own."""
    show_row([panel], [image], pixel_mm, mask=mask)
    style = {"cmap": "viridis", "alpha": 0.5, "interpolation": "bilinear", "extent": panel.images[0].get_extent()}
    shown = panel.imshow(gate, vmin=gate.min(), vmax=gate.max(), **style)
    panel.figure.colorbar(shown, ax=panel, label="Spatial gate (0 closed, 1 open)", shrink=0.75)
    panel.set(title=title, xlabel="mm")


def _among(panel, scores, answer, cohort):
    """The case's probability over those of the cohort's patients, by class."""
    endpoint, bins = endpoint_of(cohort), np.linspace(0, 1, 21)
    for label, colour, style in ((1, COLOURS[0], {"alpha": 0.35}), (0, COLOURS[1], {"fill": False})):
        found = scores.loc[scores["label"] == label, "probability"]
        style |= {"histtype": "stepfilled", "color": colour, "edgecolor": colour}
        panel.hist(found, bins, label=f"{endpoint.of(label)}, n = {len(found)}", **style)
    panel.axvspan(answer["lowest"], answer["highest"], color="0.3", alpha=0.25, linewidth=0)
    panel.axvline(answer["mean"], color="black", linewidth=1.6, label="this case, range of seeds")
    panel.axvline(answer["threshold"], **GUIDE | {"linestyle": "--", "zorder": 2}, label="threshold")
    panel.set(xlabel=f"Probability of {endpoint.positive}", ylabel="Patients of the study", xlim=(0, 1))
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), handlelength=1.2)


def explored(
    image: np.ndarray,
    gates: np.ndarray,
    mask: np.ndarray,
    pixel_mm: float,
    phase: int,
    answers: pd.DataFrame,
    shown: int,
    name: str,
    cohort: str,
) -> Figure:
    """One slice as the networks get it, where they attend, and what they answer, slice by slice.

    image: `(3, H, W)` uint8; gates: `(3, H, W)` in [0, 1]; mask: `(H, W)` bool.  phase: which of three is shown.
    answers: rows are slices, columns seeds; shown: the row of the slice that is shown.
    """
    require.array_8bit("image", image, 3, None, None)
    require.array("gates", gates, 3, *image.shape[1:])
    require.some("answers", answers, 40)
    figure, axes = plt.subplots(1, 4, figsize=(TWO_COLUMNS * 1.25, 2.7), width_ratios=(1, 1, 1.25, 1.1))
    show_row(axes[:2], (image[phase], image.transpose(1, 2, 0)), pixel_mm, mask=mask)
    for panel, title in zip(axes, (PHASE_NAMES[phase], "RGB fusion"), strict=False):
        panel.set(title=title, xlabel="mm")
    axes[0].set_ylabel("mm")
    _attended(axes[2], image[phase], gates[phase], mask, pixel_mm, "attention")
    number = np.arange(1, len(answers) + 1)
    for k, (seed, column) in enumerate(answers.items()):
        axes[3].plot(number, column, "o-", color=COLOURS[k % len(COLOURS)], label=f"seed {seed}")
    axes[3].axvline(shown + 1, **GUIDE)
    axes[3].axhline(0.5, **GUIDE | {"linestyle": "--"})
    axes[3].set(ylim=(0, 1), xticks=number, xlabel="Slice", ylabel=f"Probability of {endpoint_of(cohort).positive}")
    axes[3].legend(loc="lower right")
    figure.get_layout_engine().set(wspace=0.06)
    return titled(figure, cohort, name, "lines in images: lesion; solid grey: this slice; dashed: 0.5")
