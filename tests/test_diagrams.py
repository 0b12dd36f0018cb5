"""The flow adds up as `cohort.flow` counted it, and the architecture drawn is the network that runs."""

import matplotlib
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from her2core.config import ENDPOINTS
from her2core.model import ThdaConfig, ThdaResNet
from her2core.report import diagrams, figures
from her2core.report.figures import style

matplotlib.use("Agg")
CONFIGS = {
    "embedded": (ThdaConfig(width=16, dropout=0.1), 32),
    "full": (ThdaConfig(width=64), 256),
    "separate": (
        ThdaConfig(
            width=8, share_weights=False, head_input="rgb_fused", attention="channel", attention_stages=(2, 4),
            fusion="attention",
        ),
        33,
    ),
    "plain": (ThdaConfig(width=8, blocks=(2, 2, 2, 2), head_input="adjacent_slices", attention="none"), 24),
}  # fmt: skip


SITES = {"spy1": "I-SPY1", "spy2": "I-SPY2", "ambl": "AMBL"}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def count(patients, excluded, splits):
    named = {name: {"patients": n, "positives": k} for name, (n, k) in splits.items()}
    included = patients - sum(excluded.values())
    return {"patients": patients, "included": included, "excluded": excluded, "splits": named}


@pytest.fixture
def counts():
    out = {"HER2 unknown": 4, "fewer than three phases": 2}
    collections = {
        "spy1": count(48, out, {"train": (30, 9), "validation": (6, 2), "test": (6, 2)}),
        "spy2": count(90, {}, {"train": (70, 20), "validation": (10, 3), "test": (10, 3)}),
        "ambl": count(25, {"HER2 unknown": 5}, {"external": (20, 6)}),
    }
    splits = {"train": (100, 29), "validation": (16, 5), "test": (16, 5), "external": (20, 6)}
    return count(163, {"HER2 unknown": 9, "fewer than three phases": 2}, splits) | {"collections": collections}


def texts(figure):
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def all_text(figure):
    return "\n".join(t.get_text() for t in texts(figure))


def check_page(figure):
    """No word leaves the page or lies on another, and all can be read in print."""
    style.settle(figure)
    shown = [t for t in texts(figure) if any(t in (*axes.texts, figure._suptitle) for axes in figure.axes)]
    boxes = [(t, Text.get_window_extent(t)) for t in shown]
    page = figure.bbox.padded(0.5)
    assert [t.get_text() for t, b in boxes if not (page.contains(b.x0, b.y0) and page.contains(b.x1, b.y1))] == []
    pairs = [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a[1].padded(-1).overlaps(b[1].padded(-1))]
    assert [(a.get_text(), b.get_text()) for (a, _), (b, _) in pairs] == []
    assert min(t.get_fontsize() for t in shown) >= 6 and figure.get_figwidth() == style.TWO_COLUMNS


def test_the_flow_says_who_is_in_and_out_and_that_the_cohort_is_synthetic(counts):
    figure = diagrams.cohort_flow(counts, SITES, "embedded synthetic cohort")
    check_page(figure)
    text = all_text(figure)
    assert "Flow of patients, n = 163; 152 in use, 45 HER2+; embedded synthetic cohort" in text
    assert "out: 6\n4 HER2 unknown\n2 fewer than three\n   phases" in text and "external: 20 (6 HER2+)" in text


def test_the_flow_diagram_shows_every_count():
    out = {"HER2 unknown": 1, "fewer than three phases": 1}
    collections = {
        "ambl": count(1, {}, {"external": (1, 1)}),
        "spy1": count(3, out, {"validation": (1, 0)}),
        "spy2": count(4, {"no split published": 1}, {"train": (2, 1), "test": (1, 0)}),
    }
    axes = Figure().add_subplot()
    diagrams._draw_flow(axes, {"collections": collections}, SITES, ENDPOINTS["her2"])
    shown = [t.get_text() for t in axes.texts]
    assert len(shown) == 3 * 4
    assert shown[:4] == [
        "validation: 1 (0 HER2+)",
        "in use\nn = 1",
        "out: 2\n1 HER2 unknown\n1 fewer than three\n   phases",
        "I-SPY1\nn = 3",
    ]
    assert shown[4] == "train: 2 (1 HER2+)\ntest: 1 (0 HER2+)"
    assert [s.split("\n")[0] for s in shown[3::4]] == ["I-SPY1", "I-SPY2", "AMBL"]


def test_the_flow_of_a_real_cohort_says_what_it_lacks_of_the_published_one(counts):
    published = {"published": 1149, "missing": 1017, "reasons": {}}
    text = all_text(diagrams.cohort_flow(counts | {"of_published": published}, SITES, "ispy"))
    assert "45 HER2+; ispy\n1017 of the 1149 published patients missing" in text
    assert "synthetic" not in text


def test_counts_without_collections_are_refused(counts):
    with pytest.raises(ValueError, match="counts: no collections, found patients, included, excluded, splits"):
        diagrams.cohort_flow({k: v for k, v in counts.items() if k != "collections"}, SITES, "tiny")


def shapes_of(config, image_px):
    """What really leaves the stem and the stages."""
    network, found = ThdaResNet(config).eval(), []

    def keep(module, inputs, output):
        found.append((output.shape[1], output.shape[2]))

    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        getattr(network.backbones[0], name).register_forward_hook(keep)
    channels = 9 if config.head_input == "adjacent_slices" else 3
    with torch.inference_mode():
        network(torch.zeros(1, channels, image_px, image_px))
    return found[:5], network


@pytest.mark.parametrize("name", ["embedded", "separate", "plain"])
def test_the_shapes_drawn_are_those_of_the_network(name):
    config, image_px = CONFIGS[name]
    expected, network = shapes_of(config, image_px)
    assert diagrams._backbone_shapes(config, image_px) == expected
    text = all_text(diagrams.architecture(config, image_px, "tiny"))
    assert [s for s in expected if f"{s[0]} × {s[1]} × {s[1]}" not in text] == []
    assert f"3 × {network.backbones[0].channels}\n" in text
    assert f"\n{network.classifier.in_features}\n" in text
    assert (
        f"{network.backbones[0].conv1.in_channels if name != 'embedded' else 1} × {image_px} × {image_px}" in text
    )


def test_every_size_of_an_image_gives_the_shapes_of_the_network():
    for image_px in range(17, 49):
        config = ThdaConfig(width=8, blocks=(1, 1, 1, 1))
        assert diagrams._backbone_shapes(config, image_px) == shapes_of(config, image_px)[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_no_word_of_the_architecture_leaves_the_page_or_lies_on_another(name):
    figure = diagrams.architecture(*CONFIGS[name], "embedded synthetic cohort")
    check_page(figure)
    assert "embedded synthetic cohort" in all_text(figure)


def test_attention_is_drawn_where_it_stands_and_as_it_acts():
    both, channel, none = (
        all_text(diagrams.architecture(*CONFIGS[name], "tiny")) for name in ("embedded", "separate", "plain")
    )
    assert [t.split("\n").count("attention") for t in (both, channel, none)] == [4, 2, 0]
    assert "3×3, 5×5, 7×7" in both and "spatial attention" in both and "C → 4 / 8 → C" in both
    assert "channel attention" in channel and "spatial attention" not in channel
    assert "channel attention" not in none


def test_the_bottleneck_drawn_is_the_perceptrons():
    config = ThdaConfig(width=64)
    hidden = [a.channel.perceptron[0].out_features for a in ThdaResNet(config).backbones[0].attention.values()]
    assert f"C → {' / '.join(map(str, hidden))} → C" in all_text(diagrams.architecture(config, 256, "tiny"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "embedded",
            ("ResNet-34, 16 channels wide: one for the three heads", "from scratch", "concat-", "its phase"),
        ),
        ("separate", ("one for each head", "softmax", "head 3", "R, G, B")),
        ("plain", ("ResNet-18", "below, at, above", "dropout\n0.5,")),
    ],
)
def test_open_choices_are_drawn_as_they_were_taken(name, words):
    text = all_text(diagrams.architecture(*CONFIGS[name], "tiny"))
    assert [w for w in words if w not in text] == []


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="image_px: found 0, expected at least 1"):
        diagrams.architecture(ThdaConfig(), 0, "tiny")


def test_diagrams_are_the_same_files_twice(counts, tmp_path):
    for folder in ("a", "b"):
        figures.save(diagrams.cohort_flow(counts, SITES, "tiny"), "cohort_flow", tmp_path / folder)
        figures.save(diagrams.architecture(*CONFIGS["embedded"], "tiny"), "architecture", tmp_path / folder)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert len(list((tmp_path / "b").iterdir())) == 4
