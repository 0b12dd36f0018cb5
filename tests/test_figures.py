"""Figures carry their n, interval, units and cohort, nothing in them overlaps, and they are the same file twice."""

from functools import cache, partial

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Text
from PIL import Image

from her2core.auc import Estimate
from her2core.evaluate import expected_width
from her2core.formats.volume import Geometry
from her2core.report import figures
from her2core.report.figures import style, trends, words

matplotlib.use("Agg")
COHORT = "embedded synthetic cohort"
RUNS = [f"thda_separate{k:02d}-channel_q98-raw" for k in range(20)]
ESTIMATE = Estimate(0.7, 0.6, 0.8, 90, 30)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def summary(count):
    row = {"auc": 0.7, "low": 0.6, "high": 0.8, "lowest_seed": 0.65, "highest_seed": 0.75}
    return pd.DataFrame([{"run": r, "patients": 90, "positives": 30} | row for r in RUNS[:count]])


def comparisons(count):
    row = {"difference": -0.05, "low": -0.09, "high": -0.01, "p_holm": 0.0004, "detectable": 0.08, "patients": 90}
    words = ["lower than the reference", "no difference detected", "not after correction"] * 7
    rows = [{"run": r, "reference": "a", "verdict": w} | row for r, w in zip(RUNS, words, strict=False)]
    return pd.DataFrame(rows[:count])


def histories(count, seeds=(0, 1)):
    rows = [{"run": r, "seed": s, "epoch": e, "loss": 1 / e} for r in RUNS[:count] for s in seeds for e in (1, 2)]
    return pd.DataFrame(rows).assign(validation_auc=0.5)


def reliability():
    rows = {"predicted": [0.2, 0.6], "observed": [0.3, 0.5], "low": [0.2, 0.4], "high": [0.4, 0.6]}
    return pd.DataFrame(rows | {"patients": [45, 44]})


def versions(numbers):
    return {"raw": (reliability(), numbers), "recalibrated": (reliability(), numbers)}


def by_strength(count):
    """Rows of `count` series at three values of x, which rise above 0 from below."""
    rows = [
        {"series": words.run_name(r), "x": x, "value": x / 9, "low": x / 9 - 0.1}
        for r in RUNS[:count]
        for x in (0, 1, 2)
    ]
    return pd.DataFrame(rows).assign(high=lambda table: table["value"] + 0.1)


def net_benefit():
    table = {"threshold": [0.1, 0.5], "model": [0.3, 0.2], "low": [0.2, 0.1], "high": [0.4, 0.3]}
    return pd.DataFrame(table | {"treat_all": [0.26, -0.33], "treat_none": [0.0, 0.0]})


def wrong(count):
    row = {"label": 0, "lowest": 0.8, "probability": 0.9, "highest": 1.0}
    return pd.DataFrame([row | {"patient": f"PHANTOM-SPY2-000{k}"} for k in range(count)])


def arrays():
    rng = np.random.default_rng(0)
    mask = np.zeros((16, 16), bool)
    mask[4:10, 6:11] = True
    return rng.integers(0, 256, (6, 3, 16, 16)).astype(np.uint8), rng.random((3, 4, 4)), mask


IMAGES, GATES, MASK = arrays()
FIELD = np.linspace(0.8, 1.2, 256).reshape(16, 16)
SLOPE = {"intercept": (-0.2, -0.4, 0.1), "slope": (0.8, 0.5, 1.1)}
GRID = np.linspace(0, 1, 5)
CURVES = {name: (GRID, GRID**0.5, GRID, GRID**0.3, ESTIMATE) for name in ("Internal test", "External")}
NAMES = ("PHANTOM-SPY2-0001\nHER2+", "AMBL-001")
LIMITS = {"channel_q98": (0.0, 250.0), "channel_zscore": (-12.5, 300.0)}
WINDOWED = {f"channel_q9{k}": IMAGES[k % 6] for k in range(9)}
VOLUMES = {  # phases, mask and geometry of slices twice as wide as high
    name: (np.stack([IMAGES[:, k, :8] for k in range(3)]), np.stack([MASK[:8]] * 6), Geometry((4.0, 2.0, 2.0)))
    for name in ("HER2+", "HER2−")
}
STAGES = {
    f"stage{k}": {"channel": np.linspace(0, 1, 3 * c).reshape(3, c), "spatial": np.full((3, e, e), 0.9)}
    for k, c, e in ((1, 16, 12), (2, 32, 6), (3, 64, 3), (4, 128, 1))
}
GALLERY = {
    site: [(IMAGES[k, 1], 250.0, 11.5, f"1.5 T, HER2+, {k} ml") for k in range(4)]
    for site in ("spy2", "spy1", "ambl")
}
AGES = pd.DataFrame({"age": [31, 47, 95, np.nan], "label": [1, 0, 0, 1]})
WIDTHS = expected_width({"test": (72, 108), "external": (0, 40)}, 0.74)
BOTH = pd.concat({"internal": summary(20), "external": summary(20).assign(auc=0.65)}, names=["test"]).reset_index(
    "test"
)
MAPS = {"trained": GATES, "randomised": GATES / 2, "Grad-CAM": 3 * GATES}
SHARES = pd.DataFrame(
    {"inside_lesion": [0.312, 0.121, 0.2, 0.118], "low": [0.3, 0.1, 0.1, 0.11], "high": [0.33, 0.15, 0.3, 0.12]},
    index=["trained", "randomised", "Grad-CAM", "chance"],
)
LABELS = np.array([1, 1, 1, 0, 0])
SCORED = LABELS, np.array([0.9, 0.52, 0.3, 0.5, 0.1]), np.full(5, 0.5)
KINETICS = pd.DataFrame(
    {"site": "AMBL", "label": [1, 1, 1, 0], "early_s": [120, 150, 180, 150.0], "late_s": 420.0}
    | {"pe_early": [1.0, 2.0, 4.0, 0.5], "pe_late": [0.5, 1.0, 2.0, 0.6]}
)
UNTIMED = pd.concat([KINETICS.assign(site="I-SPY1", early_s=np.nan), KINETICS])
GROUPS = summary(1).drop(columns="run").assign(note="", by="HR status", group="HR+", test="external")
GROUPS = pd.concat([GROUPS.assign(by="all", group="all", patients=180), *[GROUPS] * 11], ignore_index=True)
FEW = {"auc": np.nan, "low": np.nan, "high": np.nan, "note": "fewer than 5 HER2+", "group": "unknown"}
GROUPS = pd.concat([GROUPS, GROUPS[1:2].assign(**FEW)], ignore_index=True)
WHERE = "external patients, at the threshold 0.58"
DRAW = {  # all but the cohort; several cases for those that grow
    "phases": partial(figures.phases, IMAGES[:2], NAMES, [2.0, 1.4]),
    "windows": partial(figures.windows, IMAGES.ravel(), LIMITS),
    "windowed": partial(figures.windowed, WINDOWED, "PHANTOM-SPY2-0001", 2.0),
    "bias_field": partial(figures.bias_correction, IMAGES[0, 0], FIELD, FIELD**2, IMAGES[0, 1], 2.0),
    "bias_field without truth": partial(figures.bias_correction, IMAGES[0, 0], FIELD, None, IMAGES[0, 1], 2.0),
    "attention_check": partial(
        figures.attention_check, IMAGES[0], MASK, MAPS, SHARES, 0.95, "PHANTOM-SPY2-0001", 2.0
    ),
    "failures": partial(figures.failures, IMAGES, wrong(6), (47, 180), WHERE, 2.0),
    "one failure": partial(figures.failures, IMAGES[:1], wrong(1), (1, 180), WHERE, 2.0),
    "learning_curves": partial(figures.learning_curves, histories(20), RUNS[0], 140),
    "few learning_curves": partial(figures.learning_curves, histories(4), RUNS[0], 140),
    "one learning_curve": partial(figures.learning_curves, histories(1), RUNS[0], 140),
    "scores": partial(figures.scores, {"internal": SCORED, "AMBL": SCORED}),
    "one population's scores": partial(figures.scores, {"internal": SCORED}),
    "kinetics_by_class": partial(figures.kinetics_by_class, UNTIMED),
    "kinetics of one site": partial(figures.kinetics_by_class, KINETICS),
    "roc": partial(figures.roc, CURVES, 0.95),
    "forest": partial(figures.forest, summary(20), RUNS[3], 0.95, title="THDA under each window"),
    "forest with a ceiling": partial(figures.forest, summary(4), RUNS[3], 0.95, title="Models", best=0.92),
    "small forest": partial(figures.forest, summary(1), RUNS[0], 0.95, title="Models"),
    "differences": partial(figures.differences, comparisons(20), 0.95, title="THDA under each window"),
    "calibration": partial(
        figures.calibration_curve, {"Internal test": versions(SLOPE), "External": versions({})}, 0.95
    ),
    "calibration of four": partial(
        figures.calibration_curve, {name: versions(SLOPE) for name in ("internal", "AMBL", "Duke", "NACT")}, 0.95
    ),
    "decision curves of four": partial(
        figures.decision_curve, {t: (net_benefit(), ESTIMATE) for t in ("internal", "AMBL", "Duke", "NACT")}, 0.95
    ),
    "four populations": partial(
        figures.populations,
        pd.concat([summary(6).assign(test=t) for t in ("internal", "AMBL", "Duke", "NACT")]),
        0.95,
    ),
    "roc of four": partial(
        figures.roc, {t: (GRID, GRID, GRID, GRID, ESTIMATE) for t in ("internal", "AMBL", "Duke", "NACT")}, 0.95
    ),
    "one calibration": partial(figures.calibration_curve, {"External": versions({"slope": (np.nan,) * 3})}, 0.95),
    "decision_curve": partial(
        figures.decision_curve, {name: (net_benefit(), ESTIMATE) for name in ("Internal test", "External")}, 0.95
    ),
    "trends": partial(
        trends.trends, {"AUC": by_strength(6), "Gain in AUC": by_strength(2)}, "Shading (times)", 0.95
    ),
    "doubled trends": partial(
        trends.trends, {"AUC": by_strength(1).assign(x=[75, 150, 300])}, "Training patients", 0.95, doubling=True
    ),
    "by_subgroup": partial(figures.by_subgroup, GROUPS, 0.95),
    "whole_breast": partial(figures.whole_breast, VOLUMES),
    "age_by_status": partial(figures.age_by_status, AGES),
    "expected_widths": partial(figures.expected_widths, WIDTHS, 0.74),
    "populations": partial(figures.populations, BOTH, 0.95),
    "through_the_network": partial(
        figures.through_the_network, IMAGES[0], STAGES, "PHANTOM-SPY2-0001, HER2+", 2.0, mask=MASK
    ),
    "channel_gates": partial(figures.channel_gates, STAGES, "PHANTOM-SPY2-0001, HER2+"),
    "phantom_gallery": lambda cohort: figures.phantom_gallery(GALLERY),
    "twins": lambda cohort: figures.twins(VOLUMES),
    "kinetic_curves": lambda cohort: figures.kinetic_curves((0, 2, 7), {"HER2+": ((1, 2, 2), (1, 2.1, 1.9))}),
}
OF_NO_COHORT = ("phantom_gallery", "twins", "kinetic_curves")
SAYS = {
    "phases": ("early post-contrast", "RGB fusion", "mm", "AMBL-001"),
    "windows": ("Voxels (n = 4608)", "z-score per phase", "(scanner units)", "white from 250: 2."),
    "windowed": ("98 % per phase", "Grey level", "Pixels (%)", "32 mm", "one slice of 256 pixels"),
    "bias_field": ("Estimated field", "True field", "Field − 1 (%)", "mm"),
    "attention_check": ("trained\n31.2% (30.0%–33.0%)", "Grad-CAM\n20.0%", "95% interval", "by chance 11.8%"),
    "failures": (
        "6 most confident of 47 wrong among n = 180 external patients, at the threshold 0.58",
        "HER2−, predicted\n0.90 (0.80–1.00)",
    ),
    "learning_curves": ("each of 2 networks", "AUC, validation (n = 140)", "THDA,\nseparate19, 98 %"),
    "scores": ("HER2+, n = 3", "2 (67%)", "1 (50%)", "called HER2−", "threshold chosen on validation"),
    "kinetics_by_class": ("AMBL", "Phase, at unknown times", "after the first phase (min)", "HER2+, n = 3", "(%)"),
    "roc": ("0.70 (0.60–0.80)\nn = 90, 30 HER2+", "95% over patients", "1 − specificity"),
    "forest": (
        "0.70 (0.60–0.80)",
        "n = 90, 30 HER2+",
        "95% interval",
        "THDA, separate03, 98 % per phase  (reference)",
    ),
    "forest with a ceiling": ("dashed: the most that can be expected on these patients, 0.92",),
    "differences": ("−0.05 (−0.09 to −0.01)   p < 0.001", "n = 90", "power of 80%", "95% interval"),
    "calibration": ("raw\nintercept −0.20 (−0.40 to 0.10)\nslope 0.80 (0.50–1.10)", "Internal test, n = 89", "95%"),
    "one calibration": ("recalibrated\nslope cannot be fitted",),
    "whole_breast": (
        "HER2−\nslice 1 of",
        "99.8 % quantile of the early phase",
        "early − pre, MIP",
        "line: mask",
        "10 mm",
    ),
    "age_by_status": ("Age (years)", "HER2+, n = 1", "HER2−, n = 2", "n = 3, 1 without an age"),
    "expected_widths": (
        "test, n = 180, 72 HER2+",
        "0.74 (0.66–0.82)",
        "patients of one class only",
        "95% interval",
    ),
    "populations": ("internal, n = 90, 30 HER2+", "0.65 (0.60–0.80)", "95% interval over patients", "separate19"),
    "through_the_network": ("stage 1, 12 × 12\n(mm)", "stage 4, 1 × 1", "line: lesion", "HER2+: spatial gates"),
    "channel_gates": ("stage 4, 128 channels", "Channel gate (0 closed, 1 open)", "mean of the phases"),
    "phantom_gallery": ("1.5 T, HER2+, 3 ml", "spy1", "184 mm"),
    "trends": ("Shading (times)", "Gain in AUC", "95% intervals", "THDA, separate01, 98 % per phase"),
    "doubled trends": ("Training patients", "75", "150", "300"),
    "twins": ("HER2−\nslice 1 of", "early − pre, MIP", "120 % of the brightest lesion's 98 % quantile"),
    "kinetic_curves": ("Time after the first phase (min)", "Enhancement of the lesion (%)", "lines: its kinetics"),
    "decision_curve": ("Threshold probability", "External, n = 90, 30 HER2+", "treat none", "95% interval"),
}


def texts(figure):
    """Every text that is drawn, of the ticks those in view; the figure is settled."""
    ticks = {t for a in figure.axes for axis in (a.xaxis, a.yaxis) for t in axis.get_ticklabels(which="both")}
    shown = [t for t in figure.findobj(Text) if t not in ticks and t.get_visible() and t.get_text().strip()]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if tick.label1.get_visible() and tick.label1.get_text() and low <= tick.get_loc() <= high:
                    shown.append(tick.label1)
    off = {t for a in figure.axes if not a.axison for t in (a.xaxis.label, a.yaxis.label)}
    return [t for t in shown if t not in off]


def extents(figure):
    """Text → its box in pixels; of a text with arrow or frame the words alone."""
    return {t: Text.get_window_extent(t) for t in texts(figure)}


@cache
def drawn(name):
    """A figure as it is saved."""
    figure = DRAW[name](cohort=COHORT)
    style.settle(figure)
    return figure


def all_text(figure):
    return "\n".join(t.get_text() for t in texts(figure))


@pytest.mark.parametrize("name", SAYS)
def test_every_figure_says_its_numbers_and_units_and_that_the_cohort_is_synthetic(name):
    text, what = all_text(drawn(name)), "phantom, no patients" if name in OF_NO_COHORT else COHORT
    assert [t for t in (*SAYS[name], what) if t not in text] == []


def test_a_figure_says_of_its_cohort_what_it_is_told_and_nothing_else():
    text = all_text(DRAW["forest"](cohort="ispy cohort"))
    assert "synthetic" not in text and "ispy cohort" in text


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_has_print_size_and_no_text_leaves_it_or_lies_on_another(name):
    figure = drawn(name)
    boxes = extents(figure)
    width = figure.get_figwidth()
    assert style.ONE_COLUMN <= width <= style.TWO_COLUMNS and figure.get_figheight() <= 9
    page = figure.bbox.padded(0.5)
    assert [t.get_text() for t, box in boxes.items() if not page.contains(box.x0, box.y0)] == []
    assert [t.get_text() for t, box in boxes.items() if not page.contains(box.x1, box.y1)] == []
    found = list(boxes.items())
    pairs = [(a, b) for k, a in enumerate(found) for b in found[:k] if a[1].padded(-1).overlaps(b[1].padded(-1))]
    assert [(a.get_text(), b.get_text()) for (a, _), (b, _) in pairs] == []
    assert min(t.get_fontsize() for t in boxes) >= 6


def pixels(figure):
    figure.set_layout_engine("none")  # slow, and part of what is compared below
    figure.canvas.draw()
    return bytes(figure.canvas.buffer_rgba())


@pytest.mark.parametrize("name", [n for n in DRAW if " " not in n])
def test_a_figure_drawn_twice_has_the_same_pixels(name):
    assert pixels(DRAW[name](cohort=COHORT)) == pixels(DRAW[name](cohort=COHORT))


@pytest.mark.parametrize("name", ["roc", "attention_check"])
def test_a_figure_saved_twice_is_the_same_two_files(name, tmp_path):
    for folder in ("a", "b"):
        figures.save(DRAW[name](cohort=COHORT), name, tmp_path / folder)
    for kind in ("png", "pdf"):
        first, second = ((tmp_path / d / f"{name}.{kind}").read_bytes() for d in "ab")
        assert first == second


def test_save_writes_both_kinds_for_print_and_nothing_else(tmp_path):
    figures.save(DRAW["roc"](cohort=COHORT), "roc", tmp_path)
    assert plt.get_fignums() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["roc.pdf", "roc.png"]
    with Image.open(tmp_path / "roc.png") as image:
        assert image.size == (1050, 1050) and round(image.info["dpi"][0]) == 300


def test_a_figure_that_fails_half_way_leaves_the_one_before(tmp_path):
    figures.save(DRAW["roc"](cohort=COHORT), "roc", tmp_path)
    before = (tmp_path / "roc.png").read_bytes()
    broken = DRAW["roc"](cohort="ispy")
    broken.axes[0].set_title("$\\nonsense$")
    with pytest.raises(ValueError, match="nonsense"):
        figures.save(broken, "roc", tmp_path)
    assert (tmp_path / "roc.png").read_bytes() == before


@pytest.mark.parametrize(
    ("value", "low", "high", "sign", "expected"),
    [
        (0.72, 0.65, 0.79, "", "0.72 (0.65–0.79)"),
        (0.1, -0.2, 0.4, "", "0.10 (−0.20 to 0.40)"),
        (-0.05, -0.09, -0.014, "+", "−0.05 (−0.09 to −0.01)"),
        (-0.001, -0.2, 0.2, "+", "−0.00 (−0.20 to +0.20)"),
        (-0.008, -0.013, -0.0025, "+", "−0.01 (−0.01 to −0.00)"),
        (-0.001, -0.004, 0.2, "", "0.00 (0.00 to 0.20)"),
        (0.5, 0.5, 0.5, "", "0.50, all scores tied"),
    ],
)
def test_an_interval_sets_no_dash_before_a_minus_and_a_difference_keeps_the_sign_it_had_before_rounding(
    value, low, high, sign, expected
):
    assert words.interval(value, low, high, sign) == expected


def test_every_patient_has_the_field_of_view_of_their_own_pixels():
    axes = DRAW["phases"](cohort=COHORT).axes
    assert axes[0].images[0].get_extent() == [-16, 16, 16, -16]
    assert axes[4].images[0].get_extent() == pytest.approx([-11.2, 11.2, 11.2, -11.2])
    assert list(axes[0].get_xticks()) == [-10, 0, 10] and list(axes[4].get_xticks()) == [-5, 0, 5]


def test_the_fusion_shows_the_phases_as_red_green_and_blue():
    fusion = DRAW["phases"](cohort=COHORT).axes[3].images[0].get_array()
    assert [fusion[2, 5, k] for k in range(3)] == list(IMAGES[0, :, 2, 5])


def test_a_window_is_drawn_from_its_black_to_its_white_and_counts_what_it_saturates():
    values = np.arange(1, 101)
    figure = figures.windows(values, {"a": (0.0, 100.0), "b": (-50.0, 50.0)}, "embedded")
    text = all_text(figure)
    assert "white from 100: 1.0 % of voxels" in text and "white from 50: 51.0 % of voxels" in text
    shown = figure.axes[1].images[1]
    left, right = shown.get_extent()[:2]
    assert left == -50 and right == pytest.approx(103)
    grey = np.interp([-50, 0, 50, 100], np.linspace(left, right, 1024), shown.get_array()[0])
    assert grey == pytest.approx([0, 0.5, 1, 1], abs=1e-3)  # of 1024 points


def test_a_slice_under_a_window_says_how_much_of_its_early_phase_is_white():
    image = np.zeros((3, 4, 4), np.uint8)
    image[1, 0], image[2] = 255, 255
    text = all_text(figures.windowed({"a": image, "b": image // 2}, "p", 1.0, "embedded"))
    assert "a\n25.0 % white" in text and "b\n0.0 % white" in text


def test_the_field_is_centred_on_no_change_and_air_has_none():
    estimated = FIELD.copy()
    estimated[0] = np.nan
    figure = figures.bias_correction(IMAGES[0, 0], estimated, None, IMAGES[0, 1], 1.0, "ispy")
    before, field, after = (axes.images[0] for axes in figure.axes[:3])
    assert field.get_clim() == pytest.approx((-20, 20)) and field.get_array().mask[0].all()
    assert before.get_clim() == after.get_clim()


def test_the_lesion_is_outlined_along_the_edges_of_its_pixels():
    figure = DRAW["attention_check"](cohort=COHORT)
    for axes in figure.axes[:12]:
        lines = [c for c in axes.collections if isinstance(c, matplotlib.contour.ContourSet)]
        assert len(lines) == 2
        box = lines[1].get_paths()[0].get_extents()
        assert [box.x0, box.x1, box.y0, box.y1] == pytest.approx([-4, 6, -8, 4], abs=0.3)  # of 2 mm pixels


def test_a_dot_is_filled_only_where_the_verdict_is_a_difference_and_grey_spans_what_is_detectable():
    axes = figures.differences(comparisons(3), 0.95, "embedded", "Windows").axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        f"THDA, separate0{k}, 98 % per phase" for k in range(3)
    ]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [d.get_markerfacecolor() for d in dots] == [style.COLOURS[0], "white", "white"]
    bars = [p for p in axes.patches if p.get_height() == pytest.approx(0.7)]
    assert [(b.get_x(), b.get_width()) for b in bars] == [(-0.08, 0.16)] * 3


def test_a_group_of_too_few_patients_is_named_with_its_number_and_the_reason_instead_of_an_interval():
    figure = DRAW["by_subgroup"](cohort=COHORT)
    assert "HR status: unknown, n = 90, 30 HER2+" in all_text(figure)
    assert "fewer than 5 HER2+" in all_text(figure) and "nan" not in all_text(figure)


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("thda-channel_q98-n4", "THDA, 98 % per phase, N4"),
        ("thda-global_q02_q995-raw", "THDA, 2 to 99.5 % over phases"),
        ("thda-slice_minmax-raw", "THDA, min–max per slice"),
        ("thda-global_nyul-raw", "THDA, Nyúl over phases"),
        ("vit-n4", "ViT, N4"),
        ("clinical_kinetics+thda-none-raw", "THDA with size, kinetics and clinical data"),
        ("thda_of_my_own-channel_zscore-raw", "THDA, of my own, z-score per phase"),
    ],
)
def test_a_run_has_a_name_that_a_reader_understands(run, name):
    assert figures.run_name(run) == name


def test_a_group_of_all_patients_is_left_out_and_populations_head_their_groups():
    same = GROUPS[1:2].assign(patients=180, group="only")
    axes = figures.by_subgroup(pd.concat([GROUPS[:3], same]), 0.95, "x").axes[0]
    assert [t.get_text().split(",")[0] for t in axes.get_yticklabels()] == ["external", "all patients"] + 2 * [
        "HR status: HR+"
    ]


def test_rows_stand_by_question_and_in_each_by_value_the_highest_on_top():
    table = summary(4).assign(auc=[0.61, 0.7, 0.62, 0.8], question=["b", "a", "b", "a"])
    axes = figures.forest(table, RUNS[2], 0.95, "x", "Models", best=0.9).axes[0]
    labels = [t.get_text().removeprefix("THDA, separate")[:2] for t in axes.get_yticklabels()]
    assert labels == ["b", "02", "00", "a", "03", "01"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [float(d.get_xdata()[0]) for d in dots] == [0.62, 0.61, 0.8, 0.7]
    assert [float(d.get_ydata()[0]) for d in dots] == [1, 2, 4, 5]
    assert 0.9 in [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]


def test_the_ceiling_of_each_population_is_a_line_in_its_colour():
    best = [summary(1).assign(run="truth_parameters-none-raw", test=t, auc=a) for t, a in (("a", 0.7), ("b", 0.75))]
    axes = figures.populations(pd.concat([summary(2).assign(test="a"), *best]), 0.95, "x").axes[0]
    lines = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [(line.get_xdata()[0], line.get_color()) for line in lines] == list(
        zip((0.7, 0.75), style.COLOURS[:2], strict=True)
    )


def test_every_run_has_a_panel_with_a_line_for_each_seed_the_best_first():
    table = histories(26 // 2, range(10))
    table = pd.concat([table, table.assign(run=table["run"].str.replace("separate", "mine"))], ignore_index=True)
    table.loc[table["run"] == RUNS[7], "validation_auc"] += 0.1 * table["epoch"]
    figure = figures.learning_curves(table, RUNS[7], 4, "tiny")
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == 26 and {len(axes.lines) for axes in panels} == {10 + 2}
    assert panels[0].get_title().replace("\n", " ") == "THDA, separate07, 98 % per phase"
    assert panels[0].lines[-1].get_ydata() == pytest.approx([0.6, 0.7])
    assert {tuple(axes.lines[0].get_ydata()) for axes in panels} == {tuple(panels[0].lines[-1].get_ydata())}


def test_a_mean_ends_with_the_first_seed_that_ends():
    table = histories(1).drop(3)  # the second epoch of the second seed
    lines = figures.learning_curves(table, RUNS[0], 4, "tiny").axes[0].lines
    assert list(lines[-1].get_xdata()) == [1]


def test_scores_are_counted_by_class_and_by_the_threshold_of_each_patient():
    labels, probabilities, _ = SCORED
    axes = figures.scores({"internal": (labels, probabilities, np.array([0.5, 0.6, 0.2, 0.6, 0.2]))}, "x").axes
    assert [t.get_text() for t in axes[1].texts] == ["2 (67%)", "1 (33%)", "0 (0%)", "2 (100%)"]
    assert axes[1].images[0].get_array().tolist() == [[2 / 3, 1 / 3], [0, 1]]
    dashed = [line.get_xdata()[0] for line in axes[0].lines]
    assert dashed == [0.2, 0.5, 0.6]


def test_kinetics_are_medians_and_quartiles_of_each_class_at_the_median_times():
    axes = figures.kinetics_by_class(KINETICS, "x").axes[0]
    positive, negative = axes.lines
    assert list(positive.get_xdata()) == [0, 2.5, 7] and list(positive.get_ydata()) == [0, 200, 100]
    assert list(negative.get_ydata()) == pytest.approx([0, 50, 60])
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(v) for v in band} >= {(2.5, 150), (2.5, 300), (7, 75), (7, 150)}
    untimed = figures.kinetics_by_class(UNTIMED, "x").axes[0]
    assert list(untimed.lines[0].get_xdata()) == [0, 1, 2]


def test_a_slice_of_oblong_voxels_keeps_its_shape_in_mm_and_the_one_with_most_tumour_is_shown():
    phases, mask, _ = VOLUMES["HER2+"]
    mask = mask.copy()
    mask[3] = True
    figure = figures.whole_breast({"a": (phases, mask, Geometry((4.0, 3.0, 1.5)))}, "x")
    shown = [axes.images[0] for axes in figure.axes]
    assert shown[1].get_extent() == [-12, 12, 12, -12]
    assert (shown[1].get_array() == phases[1, 3]).all() and "slice 4 of 6" in all_text(figure)
    uptake = phases[1].astype(float) - phases[0]
    assert (shown[3].get_array() == uptake[3]).all() and (shown[4].get_array() == uptake.max(0)).all()
    bar = figure.axes[0].lines[0].get_xdata()
    assert bar[1] - bar[0] == 10 and "10 mm" in all_text(figure)
    assert shown[3].get_clim() == shown[4].get_clim() == (0, pytest.approx(np.quantile(uptake[mask], 0.998)))


def test_the_mask_is_outlined_on_the_phases_and_leaves_the_subtraction_to_be_seen():
    axes = DRAW["whole_breast"](cohort=COHORT).axes
    assert [len(panel.collections) for panel in axes[:5]] == [2, 2, 2, 0, 0]


def test_twins_share_one_grey_scale():
    phases, mask, geometry = VOLUMES["HER2+"]
    figure = figures.twins({"a": (phases, mask, geometry), "b": (phases // 2, mask, geometry)})
    assert {axes.images[0].get_clim() for axes in figure.axes} == {(0, 1.2 * np.quantile(phases[1][mask], 0.98))}


def test_gates_are_drawn_at_their_own_resolution_in_one_scale_for_all_stages():
    stages = {
        "stage1": {"spatial": np.linspace(0.2, 0.8, 12).reshape(3, 2, 2)},
        "stage2": {"channel": np.ones((3, 8))},
        "stage3": {"spatial": np.full((3, 1, 1), 0.9)},
    }
    figure = figures.through_the_network(IMAGES[0], stages, "p", 2.0, "x")
    shown = [axes.images[1] for axes in figure.axes[3:9]]
    assert [gate.get_array().shape for gate in shown] == [(2, 2)] * 3 + [(1, 1)] * 3 and len(figure.axes) == 10
    assert {gate.get_clim() for gate in shown} == {(0.2, 0.9)} and {gate.get_interpolation() for gate in shown} == {
        "nearest"
    }
    assert [axes.get_title() for axes in figures.channel_gates(stages, "p", "x").axes] == ["stage 2, 8 channels"]


def test_gates_of_trained_and_random_weights_share_a_scale_and_the_activation_map_has_its_own():
    axes = DRAW["attention_check"](cohort=COHORT).axes
    limits = [panel.images[1].get_clim() for panel in axes[3:12]]
    assert limits == [(GATES.min() / 2, GATES.max())] * 6 + [(3 * GATES.min(), 3 * GATES.max())] * 3


def test_channels_are_sorted_by_the_mean_of_the_phases():
    gates = np.array([[0.9, 0.1, 0.5], [0.9, 0.3, 0.2], [0.9, 0.2, 0.2]])
    lines = figures.channel_gates({"stage1": {"channel": gates}}, "p", "x").axes[0].lines
    assert lines[0].get_ydata().tolist() == [0.1, 0.5, 0.9] and lines[1].get_ydata().tolist() == [0.3, 0.2, 0.9]


def test_populations_stand_by_their_value_on_the_first_from_top_to_bottom():
    first = dict(zip(RUNS, np.linspace(0.6, 0.7, 20), strict=True))
    table = BOTH.assign(auc=BOTH["run"].map(first).where(BOTH["test"] == "external", 0.9))
    axes = figures.populations(table.iloc[::-1], 0.95, "x").axes[0]
    names = [figures.run_name(run) for run in RUNS[::-1]]
    assert [t.get_text() for t in axes.get_yticklabels()] == names and axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [t.get_text().split(",")[0] for t in axes.figure.legends[0].texts] == ["external", "internal"]


def without(table, column):
    return table.drop(columns=column)


BAD = {
    "phases: two phases": (partial(figures.phases, IMAGES[:, :2], NAMES, 2.0), r"images: shape \(6, 2, 16, 16\)"),
    "phases: not 8-bit": (partial(figures.phases, IMAGES[:2] / 255, NAMES, 2.0), "found float64, expected uint8"),
    "phases: a name short": (partial(figures.phases, IMAGES[:3], NAMES, 2.0), "zip"),
    "phases: nobody": (partial(figures.phases, IMAGES[:0], [], 2.0), "expected"),
    "windows: white is black": (partial(figures.windows, IMAGES.ravel(), {"a": (5.0, 5.0)}), "not for a"),
    "windows: no values": (partial(figures.windows, np.empty(0), LIMITS), r"values: shape \(0,\)"),
    "windows: no windows": (partial(figures.windows, IMAGES.ravel(), {}), "limits: found 0, expected 1 to 20"),
    "windowed: a volume": (partial(figures.windowed, {"a": IMAGES}, "p", 2.0), r"a: shape \(6, 3, 16, 16\)"),
    "bias_field: other field": (
        partial(figures.bias_correction, IMAGES[0, 0], FIELD[:8], None, IMAGES[0, 1], 2.0),
        r"Estimated field: shape \(8, 16\), expected \(16, 16\)",
    ),
    "attention_check: no chance": (
        partial(figures.attention_check, IMAGES[0], MASK, MAPS, SHARES.drop("chance"), 0.95, "p", 2.0),
        "shares: lacks chance",
    ),
    "whole_breast: a flat mask": (
        partial(figures.whole_breast, {"a": (VOLUMES["HER2+"][0], MASK, Geometry((4.0, 2.0, 2.0)))}),
        r"a, mask: shape \(16, 16\), expected \(6, 8, 16\)",
    ),
    "age_by_status: no ages": (partial(figures.age_by_status, without(AGES, "age")), "age_by_status: lacks age"),
    "expected_widths: no limits": (
        partial(figures.expected_widths, without(WIDTHS, ["low", "high"]), 0.74),
        "expected_widths: lacks low, high",
    ),
    "populations: eight": (
        partial(figures.populations, pd.concat([summary(1).assign(test=t) for t in "abcdefgh"]), 0.95),
        "populations: found 8, expected 1 to 7",
    ),
    "through_the_network: channels only": (
        partial(figures.through_the_network, IMAGES[0], {"stage1": {"channel": GATES[0]}}, "p", 2.0),
        "stages with spatial attention: found 0",
    ),
    "channel_gates: one phase": (
        partial(figures.channel_gates, {"stage1": {"channel": GATES[0, :1]}}, "p"),
        r"stage 1: shape \(1, 4\), expected \(3, any\)",
    ),
    "failures: seven": (
        partial(figures.failures, IMAGES, wrong(7), (7, 9), WHERE, 2.0),
        "failures: found 7, expected 1 to 6",
    ),
    "failures: an image short": (
        partial(figures.failures, IMAGES[:2], wrong(3), (7, 9), WHERE, 2.0),
        "images: shape",
    ),
    "learning_curves: no seed": (
        partial(figures.learning_curves, without(histories(2), "seed"), RUNS[0], 4),
        "histories: lacks seed",
    ),
    "learning_curves: no reference": (
        partial(figures.learning_curves, histories(2), "vit", 4),
        f"no run vit; there are {RUNS[0]}, {RUNS[1]}",
    ),
    "learning_curves: too many": (
        partial(figures.learning_curves, pd.concat(histories(1).assign(run=f"{k}") for k in range(49)), "0", 4),
        "runs: found 49, expected 1 to 48",
    ),
    "scores: a threshold short": (
        partial(figures.scores, {"a": (*SCORED[:2], SCORED[2][1:])}),
        r"a, thresholds: shape \(4,\), expected \(5\)",
    ),
    "scores: nobody": (partial(figures.scores, {}), "panels: found 0, expected 1 to 7"),
    "kinetics_by_class: no times": (
        partial(figures.kinetics_by_class, without(KINETICS, "late_s")),
        "kinetics_by_class: lacks late_s",
    ),
    "kinetics_by_class: no site": (
        partial(figures.kinetics_by_class, KINETICS.assign(site=None)),
        "kinetics_by_class: 4 rows, expected at least one and no missing value",
    ),
    "roc: a point short": (
        partial(figures.roc, {"a": (GRID, GRID[1:], GRID, GRID, ESTIMATE)}, 0.95),
        r"a, mean: shape \(4,\), expected \(5\)",
    ),
    "forest: no interval": (
        partial(figures.forest, without(summary(2), "low"), "a", 0.95, title="x"),
        "forest: lacks low",
    ),
    "forest: other patients": (
        partial(figures.forest, summary(2).assign(patients=[90, 91]), "a", 0.95, title="x"),
        r"differ from row to row: \[\(90, 30\), \(91, 30\)\]",
    ),
    "forest: empty": (partial(figures.forest, summary(2)[:0], "a", 0.95, title="x"), "forest: 0 rows"),
    "differences: NaN": (
        partial(figures.differences, comparisons(2).assign(low=np.nan), 0.95, title="x"),
        "no missing value",
    ),
    "differences: two references": (
        partial(figures.differences, comparisons(2).assign(reference=["a", "b"]), 0.95, title="x"),
        "one reference",
    ),
    "calibration: eight": (
        partial(figures.calibration_curve, dict.fromkeys("abcdefgh", versions({})), 0.95),
        "panels: found 8, expected 1 to 7",
    ),
    "calibration: no counts": (
        partial(figures.calibration_curve, {"a": {"raw": (without(reliability(), "patients"), {})}}, 0.95),
        "a, raw: lacks patients",
    ),
    "decision_curve: no interval": (
        partial(figures.decision_curve, {"a": (without(net_benefit(), ["low", "high"]), ESTIMATE)}, 0.95),
        "a: lacks low, high",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_input_of_another_shape_is_refused_and_named(name):
    draw, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        draw(cohort=COHORT)


def test_clipping_has_a_point_for_each_window_and_a_mark_for_each_real_lesion_below_them():
    table = pd.DataFrame({"window": ["channel_q98", "global_minmax"], "white": [0.18, 0.0], "auc": [0.7, 0.8]})
    table = table.assign(low=table["auc"] - 0.1, high=table["auc"] + 0.1, patients=180, positives=72)
    real = figures.real_lesions()
    axes = figures.clipping(table, {"real": real["above_q98"]}, 0.95, "a cohort").axes[0]
    marks = next(line for line in axes.lines if line.get_label() == "real")
    assert list(marks.get_xdata()) == pytest.approx([1.9, 25.9, 4.2, 4.7])
    assert max(marks.get_ydata()) < table["low"].min()
    said = [text.get_text() for text in axes.figure.legends[0].texts]
    assert said == ["min–max over phases: 0.80 (0.70–0.90)", "98 % per phase: 0.70 (0.60–0.80)", "real"]
    assert [line.get_xdata()[1] for line in axes.lines[:2]] == pytest.approx([0, 18])
    with pytest.raises(ValueError, match="clipping: lacks white"):
        figures.clipping(table.drop(columns="white"), {}, 0.95, "a cohort")
