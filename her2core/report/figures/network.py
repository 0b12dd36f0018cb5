"""Figures of what the network's attention lets through, over slices and over channels."""

from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from her2core.report.figures import require
from her2core.report.figures.images import label_mm, show_row
from her2core.report.figures.style import COLOURS, PHASE_NAMES, TWO_COLUMNS, titled
from her2core.report.figures.words import endpoint_of

_Stages = Mapping[str, Mapping[str, np.ndarray]]  # as `runs.gates` gives them


def _overlay(image, gates, mask, pixel_mm, height=1.75, alpha=0.55, interpolation="bilinear"):
    """Three phases in the first row, below a row for each of `gates` in a scale of its own: name → `(3, h, w)`."""
    require.array_8bit("image", image, 3, None, None)
    if mask is not None:
        require.array("mask", mask, *image.shape[1:])
    for gate in gates.values():
        require.array("gates", gate, 3, None, None)
    rows = 1 + len(gates)
    figure, axes = plt.subplots(rows, 3, figsize=(TWO_COLUMNS * 0.8, 0.3 + height * rows))
    label_mm(axes, PHASE_NAMES)
    for row in axes:
        show_row(row, image, pixel_mm, mask=mask)
    for row, (name, gate) in zip(axes[1:], gates.items(), strict=True):
        style = {"cmap": "viridis", "vmin": gate.min(), "vmax": gate.max()}
        style |= {"alpha": alpha, "interpolation": interpolation, "extent": row[0].images[0].get_extent()}
        shown = [panel.imshow(values, **style) for panel, values in zip(row, gate, strict=True)]
        figure.colorbar(shown[-1], ax=row, label="Spatial gate\n(0 closed, 1 open)", shrink=0.9)
        row[0].set_ylabel(f"{name}\n(mm)")
    for panel in axes[:-1].flat:
        panel.tick_params(labelbottom=False)
    return figure


def attention(
    image: np.ndarray,
    gates: np.ndarray,
    name: str,
    probability: tuple[float, float, float],
    pixel_mm: float,
    cohort: str,
    mask: np.ndarray | None = None,
) -> Figure:
    """One patient's three phases, and over each the spatial gate of its head.

    image: `(3, H, W)` uint8.  gates: `(3, h, w)` in [0, 1].  probability: (lowest, mean, highest) over seeds.
    mask: `(H, W)` bool, the lesion to be outlined, where known.
    """
    figure = _overlay(image, {"attention": gates}, mask, pixel_mm)
    low, mean, high = probability
    lesion = "" if mask is None else "; line: lesion"
    predicted = f"probability of {endpoint_of(cohort).positive} {mean:.2f} (seeds {low:.2f}–{high:.2f})"
    return titled(figure, cohort, name, predicted + lesion)


def attention_check(
    image: np.ndarray,
    mask: np.ndarray,
    trained: np.ndarray,
    randomised: np.ndarray,
    shares: Mapping[str, float],
    name: str,
    pixel_mm: float,
    cohort: str,
) -> Figure:
    """Does attention depend on what was learnt?  The gates of the trained network above those of a random one.

    image: `(3, H, W)` uint8.  mask: `(H, W)` bool, the lesion.  trained, randomised: `(3, h, w)` in [0, 1].
    shares: "trained" and "randomised", attention inside the lesion, and "chance", the lesion's part of the image.
    """
    if missing := {"trained", "randomised", "chance"} - set(shares):
        raise ValueError(f"shares: lacks {', '.join(sorted(missing))}")
    gates = {f"trained: {shares['trained']:.1%}": trained, f"randomised: {shares['randomised']:.1%}": randomised}
    figure = _overlay(image, gates, mask, pixel_mm)
    share = f"percentages: share of attention inside the lesion (line), by chance {shares['chance']:.1%}"
    return titled(figure, cohort, name, share)


def _of_stages(stages, kind):
    """One kind of gate, "spatial" or "channel", of every stage that has it: "stage 1" → array."""
    found = {stage.replace("stage", "stage "): np.asarray(g[kind]) for stage, g in stages.items() if kind in g}
    require.some(f"stages with {kind} attention", found, 4)
    return found


def through_the_network(
    image: np.ndarray, stages: _Stages, name: str, pixel_mm: float, cohort: str, mask: np.ndarray | None = None
) -> Figure:
    """One slice's three phases, and below the spatial gates of each stage as they are, a square per position.

    image: `(3, H, W)` uint8.  stages: as `runs.gates` gives them, of one slice: {"stage1": {"spatial": `(3, h, w)`,
    "channel": …}, …}; a stage without spatial attention is left out.  mask: `(H, W)` bool, the lesion, where known.
    """
    gates = {f"{s}, {g.shape[-2]} × {g.shape[-1]}": g for s, g in _of_stages(stages, "spatial").items()}
    figure = _overlay(image, gates, mask, pixel_mm, height=1.6, alpha=1, interpolation="nearest")
    lesion = "" if mask is None else "; line: lesion"
    return titled(figure, cohort, f"{name}: spatial gates, a scale per stage{lesion}")


def channel_gates(stages: _Stages, name: str, cohort: str) -> Figure:
    """The channel gates of one slice, a panel per stage: its channels in the order of their mean over phases.

    stages: as in `through_the_network`, with "channel": `(3, C)`; a stage without channel attention is left out.
    """
    found = _of_stages(stages, "channel")
    for stage, gates in found.items():
        require.array(stage, gates, 3, None)
    figure, axes = plt.subplots(1, len(found), figsize=(TWO_COLUMNS, 2.4), sharey=True, squeeze=False)
    for panel, (stage, gates) in zip(axes[0], found.items(), strict=True):
        rank = np.arange(1, gates.shape[1] + 1)
        order = gates.mean(0).argsort(kind="stable")
        for gate, colour, marker, phase in zip(gates, COLOURS, "o^s", PHASE_NAMES, strict=False):
            panel.plot(rank, gate[order], marker, color=colour, markersize=2, label=phase)
        panel.plot(rank, gates.mean(0)[order], color="0.3", linewidth=0.8, label="mean of the phases")
        panel.set(title=f"{stage}, {len(rank)} channels", ylim=(0, 1), xlabel="Channels, sorted by mean")
    axes[0, 0].set_ylabel("Channel gate (0 closed, 1 open)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return titled(figure, cohort, f"{name}: channel gates of one slice")
