"""Figures without an axis: the flow of patients and the architecture of the network.

Nothing in them is typed in: counts come from `cohort.flow`, shapes follow from the network's configuration.
"""

from pathlib import Path
from textwrap import fill

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from her2core.config import read_yaml
from her2core.model import ThdaConfig
from her2core.report.figures.style import COLOURS, TWO_COLUMNS, titled
from her2core.report.figures.words import endpoint_of

_TEXTS = read_yaml(Path(__file__).with_name("diagrams.yaml"))  # of the architecture's heads and attention
_GREY, _BLUE, _ORANGE = "0.95", f"{COLOURS[0]}22", f"{COLOURS[4]}55"  # of plain parts, stages and attention
_SMALL = 6.5  # points
_LEFT, _RIGHT = 0.9, 5.44  # inches: the backbone's frame


def cohort_flow(counts: dict, sites: dict[str, str], cohort: str) -> Figure:
    """Flow of patients, a column per site.  counts: what `cohort.flow` returned.  sites: dataset → its name."""
    if not counts.get("collections"):
        raise ValueError(f"counts: no collections, found {', '.join(counts)}; expected those of cohort.flow")
    figure, axes = plt.subplots(figsize=(TWO_COLUMNS, 3.4))
    endpoint = endpoint_of(cohort)
    _draw_flow(axes, counts, sites, endpoint)
    positives = sum(split["positives"] for split in counts["splits"].values())
    found = f"{counts['included']} in use, {positives} {endpoint.positive}"
    lines = [f"Flow of patients, n = {counts['patients']}; {found}"]
    if published := counts.get("of_published"):
        lines.append(f"{published['missing']} of the {published['published']} published patients missing")
    return titled(figure, cohort, *lines)


def _draw_flow(axes, counts, sites, endpoint):
    """Flow diagram into empty axes: a column per site, those out to the right."""
    axes.set(xlim=(0, len(counts["collections"])), ylim=(0, 1))
    axes.set_axis_off()
    frame = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": "0.3"}
    style = {"ha": "center", "va": "center", "fontsize": 7, "multialignment": "left", "bbox": frame}
    down = {"arrowprops": {"arrowstyle": "<|-", "color": "0.3"}}  # head at the text, tail under the box drawn later
    aside = {"ha": "left", "arrowprops": down["arrowprops"] | {"relpos": (0, 0.5)}}
    for left, dataset in enumerate(sites):
        here, x = counts["collections"][dataset], left + 0.28
        out = [f"out: {here['patients'] - here['included']}"]
        out += [fill(f"{n} {why}", 18, subsequent_indent="   ") for why, n in here["excluded"].items()]
        kinds = ("train", "validation", "test", "folds", "external")
        found = ((split, here["splits"].get(split)) for split in kinds)
        splits = [f"{split}: {n['patients']} ({n['positives']} {endpoint.positive})" for split, n in found if n]
        axes.annotate("\n".join(splits) or "nobody", (x, 0.37), (x, 0.10), **style | down)
        axes.annotate(f"in use\nn = {here['included']}", (x, 0.92), (x, 0.37), **style | down)
        axes.annotate("\n".join(out), (x, 0.64), (left + 0.48, 0.64), **style | aside)
        axes.text(x, 0.92, f"{sites[dataset]}\nn = {here['patients']}", **style)


def _backbone_shapes(config, image_px):
    """What leaves the stem and each stage of one head: [(channels, pixels of an edge)], five of them.

    Stem, its pooling and all stages but the first halve an edge, rounded up.
    """
    if image_px < 1:
        raise ValueError(f"image_px: found {image_px}, expected at least 1")
    stages = [(config.width * 2**halved, -(-image_px // (4 * 2**halved))) for halved in range(4)]
    return [stages[0], *stages]


def _write(axes, x, y, text, **style):
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": _SMALL} | style)


def _box(axes, x, y, width, text, colour, height=0.6, **style):
    """A box with text around (x, y), in inches; returns the middle of its left and of its right edge."""
    corner = (x - width / 2, y - height / 2)
    shape = "round,pad=0,rounding_size=0.04"
    axes.add_patch(FancyBboxPatch(corner, width, height, shape, facecolor=colour, edgecolor="0.3"))
    _write(axes, x, y, text, **style)
    return (x - width / 2, y), (x + width / 2, y)


def _arrow(axes, start, end):
    style = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
    axes.annotate("", end, start, arrowprops=style)


def _draw_inputs(axes, config, image_px, y):
    """What the three heads receive; the arrows end at the backbone."""
    for k, phase in enumerate(("pre", "early", "late")):
        name = f"head {k + 1}" if config.head_input == "rgb_fused" else phase
        _, right = _box(axes, 0.4, y + 0.34 * (1 - k), 0.62, name, _GREY, height=0.26)
        _arrow(axes, right, (_LEFT, right[1]))
    channels = 1 if config.head_input == "phase" else 3
    _write(axes, 0.4, y - 0.52, f"{channels} × {image_px} × {image_px}", va="top")
    _write(axes, 0.4, y - 0.68, _TEXTS["heads"][config.head_input], va="top")


def _draw_backbone(axes, config, image_px, y):
    """Stem and stages in one frame, attention where it stands, shapes below; the last arrow leaves the frame."""
    frame = {"fill": False, "edgecolor": "0.3", "linestyle": "--"}
    axes.add_patch(plt.Rectangle((_LEFT, y - 0.66), _RIGHT - _LEFT, 1.4, **frame))
    name = f"ResNet-{2 * sum(config.blocks) + 2}, {config.width} channels wide"
    weights = "one for the three heads" if config.share_weights else "one for each head"
    start = "pretrained on ImageNet" if config.pretrained else "trained from scratch"
    _write(axes, (_LEFT + _RIGHT) / 2, y + 0.54, f"{name}: {weights}, {start}")
    x = _LEFT + 0.36
    for stage, (channels, edge) in enumerate(_backbone_shapes(config, image_px)):
        text = f"stage {stage}\n{config.blocks[stage - 1]} blocks" if stage else "conv 7×7\nmax-pool"
        _, end = _box(axes, x, y, 0.56, text, _BLUE if stage else _GREY)
        _write(axes, x + (0.13 if stage else 0), y - 0.42, f"{channels} × {edge} × {edge}", va="top")
        if config.attention != "none" and stage in config.attention_stages:
            _arrow(axes, end, (end[0] + 0.08, y))
            _, end = _box(axes, end[0] + 0.17, y, 0.18, "attention", _ORANGE, rotation=90)
        x += 0.94 if stage else 0.68
        _arrow(axes, end, (x - 0.28 if stage < 4 else _RIGHT + 0.1, y))


def _draw_head(axes, config, y):
    """From the features of the three heads to one logit."""
    channels = config.width * 8
    concat = config.fusion == "concat"
    fusion = ("concat-\nenate", 3 * channels) if concat else ("sum,\nsoftmax\nweights", channels)
    parts = ("mean\nover\npixels", f"3 × {channels}"), fusion, (f"dropout\n{config.dropout:g},\nlinear", "1 logit")
    end = None
    for k, (text, shape) in enumerate(parts):
        x = _RIGHT + 0.33 + 0.55 * k
        start, right = _box(axes, x, y, 0.46, text, _GREY)
        _write(axes, x, y - 0.42, str(shape), va="top")
        if end:
            _arrow(axes, end, start)
        end = right


def _attention_parts(config):
    """The steps of dual attention, as far as they act: {"channel": three texts, "spatial": three texts}."""
    hidden = {max(config.width * 2 ** (s - 1) // config.channel_reduction, 4) for s in config.attention_stages}
    numbers = {"hidden": " / ".join(map(str, sorted(hidden)))}
    numbers["kernels"] = ", ".join(f"{k}×{k}" for k in config.spatial_kernels)
    acting = {name: texts for name, texts in _TEXTS["attention"].items() if config.attention in ("both", name)}
    return {name: [text.format(**numbers) for text in texts] for name, texts in acting.items()}


def _draw_attention(axes, parts, y):
    """What every attention box holds."""
    x, end = 0.3, (0.1, y)
    for name, texts in parts.items():
        _write(axes, x, y + 0.38, f"{name} attention of x, C × h × w", ha="left", weight="bold")
        for text, width in zip(texts, (0.86, 1.28, 0.66), strict=True):
            start, right = _box(axes, x + width / 2, y, width, text, _ORANGE, height=0.5)
            _arrow(axes, end, start)
            x, end = right[0] + 0.15, right
        x += 0.15
    _arrow(axes, end, (end[0] + 0.2, y))


def architecture(config: ThdaConfig, image_px: int, cohort: str) -> Figure:
    """The network as configured, with the shape of one slice's data, channels × height × width, after each part.

    image_px: edge of a slice.
    """
    parts = _attention_parts(config) if config.attention_stages else {}
    height = 3.0 if parts else 2.2
    figure, axes = plt.subplots(figsize=(TWO_COLUMNS, height))
    axes.set(xlim=(0, TWO_COLUMNS), ylim=(0, height - 0.3), aspect="equal")
    axes.set_axis_off()
    _draw_inputs(axes, config, image_px, height - 1.1)
    _draw_backbone(axes, config, image_px, height - 1.1)
    _draw_head(axes, config, height - 1.1)
    if parts:
        _draw_attention(axes, parts, 0.3)
    return titled(figure, cohort, "Triple-head dual-attention ResNet; numbers: channels × height × width")
