"""Figures without an axis: the flow of patients and the architecture of the network.

Nothing in them is typed in: counts come from `cohort.flow`, shapes follow from the network's configuration.
"""

from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

from her2core.cohort import draw_flow
from her2core.figures import COLOURS, TWO_COLUMNS, cohort_name

HEADS = {
    "phase": "each head: its phase",
    "adjacent_slices": "each head: its phase in\nthe slice and its neighbours",
    "rgb_fused": "each head: all phases\nas R, G, B",
}
GREY, BLUE, ORANGE = "0.95", f"{COLOURS[0]}22", f"{COLOURS[4]}55"  # of plain parts, stages and attention
ARROW = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}


def cohort_flow(counts, cohort):
    """Flow of patients, a column per collection.  counts: what `cohort.flow` returned."""
    if not counts.get("collections"):
        raise ValueError(f"counts: no collections, found {', '.join(counts)}; expected those of cohort.flow")
    figure, axes = plt.subplots(figsize=(TWO_COLUMNS, 3.4))
    draw_flow(axes, counts)
    positives = sum(split["her2_positive"] for split in counts["splits"].values())
    title = f"{cohort_name(cohort)}, n = {counts['patients']}; {counts['included']} in use, {positives} HER2+"
    published = counts.get("of_published")
    short = (
        f"\n{published['missing']} of the {published['published']} published patients missing" if published else ""
    )
    figure.suptitle(title + short)
    return figure


def backbone_shapes(config, image_px):
    """What leaves the stem and each stage of one head: [(channels, pixels of an edge)], five of them.

    Stem, its pooling and all stages but the first halve an edge, rounded up.
    """
    if image_px < 1:
        raise ValueError(f"image_px: found {image_px}, expected at least 1")
    edge = -(-image_px // 4)
    shapes = [(config.width, edge)]
    for stage in range(4):
        edge = edge if stage == 0 else -(-edge // 2)
        shapes.append((config.width * 2**stage, edge))
    return shapes


def box(axes, x, y, width, height, text, colour="white", **style):
    """A box around (x, y), in inches; returns the middle of its left and right edge."""
    corner = (x - width / 2, y - height / 2)
    shape = "round,pad=0,rounding_size=0.04"
    axes.add_patch(FancyBboxPatch(corner, width, height, shape, facecolor=colour, edgecolor="0.3"))
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 6.5} | style)
    return (x - width / 2, y), (x + width / 2, y)


def arrow(axes, start, end):
    axes.annotate("", end, start, arrowprops=ARROW)


def draw_inputs(axes, config, image_px, y, target):
    """The three heads' inputs, and arrows to the backbone."""
    for k, phase in enumerate(("pre", "early", "late")):
        name = phase if config.head_input != "rgb_fused" else f"head {k + 1}"
        _, right = box(axes, 0.36, y + 0.34 * (1 - k), 0.62, 0.26, name, GREY)
        arrow(axes, right, (target, right[1]))
    channels = 1 if config.head_input == "phase" else 3
    axes.text(0.36, y - 0.54, f"{channels} × {image_px} × {image_px}", ha="center", va="top", fontsize=6.5)
    axes.text(0.05, y - 0.78, HEADS[config.head_input], ha="left", va="top", fontsize=6.5)


def draw_backbone(axes, config, image_px, y, left):
    """Stem and stages in one frame, attention where it stands; returns the frame's right edge."""
    frame = 4.36
    axes.add_patch(plt.Rectangle((left, y - 0.78), frame, 1.42, facecolor="white", edgecolor="0.3", linestyle="--"))
    depth = 2 * sum(config.blocks) + 2
    weights = "one, its weights shared by the three heads" if config.share_weights else "three, one per head"
    start = "ImageNet weights" if config.pretrained else "from scratch"
    title = f"ResNet-{depth} of width {config.width}: {weights}; {start}"
    axes.text(left + frame / 2, y + 0.54, title, ha="center", va="center", fontsize=6.5)
    x, shapes = left + 0.36, backbone_shapes(config, image_px)
    for stage, (channels, edge) in enumerate(shapes):
        text = f"stage {stage}\n{config.blocks[stage - 1]} blocks" if stage else "conv 7×7\nmax-pool"
        box(axes, x, y, 0.56, 0.6, text, BLUE if stage else GREY)
        shape = f"{channels} × {edge} × {edge}"
        axes.text(
            x + (0.1 if stage else 0), y - 0.42 - 0.14 * (stage % 2), shape, ha="center", fontsize=6.5, va="top"
        )
        end = x + 0.28
        if config.attention != "none" and stage in config.attention_stages:
            arrow(axes, (end, y), (end + 0.08, y))
            _, (end, _) = box(axes, end + 0.17, y, 0.18, 0.6, "attention", ORANGE, rotation=90)
        x += 0.66 if stage == 0 else 0.94
        if stage < 4:
            arrow(axes, (end, y), (x - 0.28, y))
    arrow(axes, (end, y), (left + frame + 0.1, y))
    return left + frame


def draw_head(axes, config, y, left):
    """Pooling, fusion and the logit."""
    channels = config.width * 8
    fused = 3 * channels if config.fusion == "concat" else channels
    fusion = "concat-\nenate" if config.fusion == "concat" else "weighted\nsum"
    parts = [("mean\nover\npixels", f"3 × {channels}"), (fusion, f"{fused}")]
    parts.append(("drop-\nout,\nlinear", "1 logit"))
    end = None
    for k, (text, shape) in enumerate(parts):
        x = left + 0.34 + 0.56 * k
        start, next_end = box(axes, x, y, 0.46, 0.6, text, GREY)
        axes.text(x, y - 0.42, shape, ha="center", va="top", fontsize=6.5)
        if end:
            arrow(axes, end, start)
        end = next_end


def attention_parts(config):
    """The boxes of dual attention, as far as they act: (text, colour)."""
    hidden = [max(config.width * 2**k // config.channel_reduction, 4) for k in range(4)]
    used = sorted({hidden[s - 1] for s in config.attention_stages})
    kernels = ", ".join(f"{k}×{k}" for k in config.spatial_kernels)
    channel = [
        "mean and max\nover pixels\n→ C, C",
        f"perceptron\nC → {' / '.join(map(str, used))} → C\neach, summed",
        "sigmoid\nC × 1 × 1,\ntimes x",
    ]
    spatial = [
        "mean and max\nover channels\n→ 2 × h × w",
        f"convolutions\n{kernels}\nside by side, summed",
        "sigmoid\n1 × h × w,\ntimes x",
    ]
    acting = {"both": ("channel", "spatial"), "none": ()}.get(config.attention, (config.attention,))
    return {name: parts for name, parts in (("channel", channel), ("spatial", spatial)) if name in acting}


def draw_attention(axes, config, y):
    """What an attention box holds: first which channels matter, then where."""
    parts, x, end = attention_parts(config), 0.3, None
    axes.text(0.05, y + 0.5, "attention after a stage, x: C × h × w" if parts else "no attention", fontsize=6.5)
    for name, texts in parts.items():
        for k, text in enumerate(texts):
            width = (0.82, 1.22, 0.66)[k]
            start, next_end = box(axes, x + width / 2, y, width, 0.5, text, ORANGE)
            if end or k == 0:
                arrow(axes, end or (x - 0.2, y), start)
            end, x = next_end, x + width + 0.12
        axes.text(x - 1.6, y - 0.36, f"{name} attention", ha="center", va="top", fontsize=6.5, weight="bold")
        x += 0.1
    if end:
        arrow(axes, end, (end[0] + 0.2, y))


def architecture(config, image_px, cohort):
    """The network as configured, with the shape of one slice's data (channels × height × width) after each part.

    config: `ThdaConfig`.  image_px: edge of a slice.
    """
    height = 3.2
    figure, axes = plt.subplots(figsize=(TWO_COLUMNS, height))
    axes.set(xlim=(0, TWO_COLUMNS), ylim=(0, height - 0.2), aspect="equal")
    axes.set_axis_off()
    draw_inputs(axes, config, image_px, 2.1, 0.9)
    right = draw_backbone(axes, config, image_px, 2.1, 0.9)
    draw_head(axes, config, 2.1, right)
    draw_attention(axes, config, 0.5)
    figure.suptitle(f"Triple-head dual-attention ResNet as trained on the {cohort_name(cohort)}")
    return figure
