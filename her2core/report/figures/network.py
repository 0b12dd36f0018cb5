"""Figures of what the network's attention lets through, over slices and over channels."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from her2core.report.figures import require
from her2core.report.figures.images import label_mm, show_row
from her2core.report.figures.style import COLOURS, PHASE_NAMES, TWO_COLUMNS, titled
from her2core.report.figures.words import endpoint_of

_Stages = Mapping[str, Mapping[str, np.ndarray]]  # as `runs.gates` gives them


_GATE = "Spatial gate\n(0 closed, 1 open)"


def _overlay(image, scales, mask, pixel_mm, height=1.75, alpha=0.55, interpolation="bilinear"):
    """Three phases in the first row, below a row for each map, `(3, h, w)`: {what a scale shows: {name: map}}; maps
    that are compared share a scale."""
    require.array_8bit("image", image, 3, None, None)
    if mask is not None:
        require.array("mask", mask, *image.shape[1:])
    for name, found in (item for maps in scales.values() for item in maps.items()):
        require.array(name, found, 3, None, None)
    rows = 1 + sum(map(len, scales.values()))
    figure, axes = plt.subplots(rows, 3, figsize=(TWO_COLUMNS * 0.8, 0.3 + height * rows))
    label_mm(axes, PHASE_NAMES)
    for row in axes:
        show_row(row, image, pixel_mm, mask=mask)
    below = iter(axes[1:])
    for label, maps in scales.items():
        style = {"vmin": min(m.min() for m in maps.values()), "vmax": max(m.max() for m in maps.values())}
        style |= {"cmap": "viridis", "alpha": alpha, "interpolation": interpolation}
        own = [next(below) for _ in maps]
        for row, (name, found) in zip(own, maps.items(), strict=True):
            shown = [p.imshow(m, extent=p.images[0].get_extent(), **style) for p, m in zip(row, found, strict=True)]
            row[0].set_ylabel(f"{name}\n(mm)")
        figure.colorbar(shown[-1], ax=np.array(own), label=label, shrink=0.9 if len(own) == 1 else 0.5)
    for panel in axes[:-1].flat:
        panel.tick_params(labelbottom=False)
    return figure


def attention_check(
    image: np.ndarray,
    mask: np.ndarray,
    maps: Mapping[str, np.ndarray],
    shares: pd.DataFrame,
    confidence: float,
    name: str,
    pixel_mm: float,
    cohort: str,
) -> Figure:
    """Does attention depend on what was learnt?  The gates of trained networks above those of random ones, in one
    scale, and below them a class-activation map of the trained.

    image: `(3, H, W)` uint8.  mask: `(H, W)` bool, the lesion.  maps: "trained", "randomised" and "Grad-CAM", each
    `(3, h, w)`.  shares: inside_lesion, low and high, the share inside the lesion with its interval, in rows named
    as the maps, and "chance", the lesion's part of the image.
    """
    if missing := {"trained", "randomised", "Grad-CAM", "chance"} - set(shares.index):
        raise ValueError(f"shares: lacks {', '.join(sorted(missing))}")
    require.full_table("shares", shares, ("inside_lesion", "low", "high"))
    percent = {row.Index: f"{row.inside_lesion:.1%} ({row.low:.1%}–{row.high:.1%})" for row in shares.itertuples()}
    said = {"randomised": "untrained"}
    named = {which: {f"{said.get(which, which)}\n{percent[which]}": found} for which, found in maps.items()}
    speaks = f"Grad-CAM: speaks for\n{endpoint_of(cohort).positive} (arbitrary unit)"
    scales = {_GATE: named["trained"] | named["randomised"], speaks: named["Grad-CAM"]}
    chance = shares.loc["chance", "inside_lesion"]
    share = f"percentages: share inside the lesion (line), {confidence:.0%} interval; by chance {chance:.1%}"
    return titled(_overlay(image, scales, mask, pixel_mm), cohort, name, share)


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
    figure = _overlay(image, {_GATE: gates}, mask, pixel_mm, height=1.6, alpha=1, interpolation="nearest")
    lesion = "" if mask is None else "; line: lesion"
    return titled(figure, cohort, f"{name}: spatial gates{lesion}")


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
