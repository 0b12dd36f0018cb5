"""Figures carry their n, interval, units and cohort, and are the same file twice."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from her2core import figures
from her2core.evaluate import Estimate

matplotlib.use("Agg")


@pytest.fixture
def table():
    row = {"auc": 0.7, "low": 0.6, "high": 0.8, "lowest_seed": 0.65, "highest_seed": 0.75, "patients": 90}
    return pd.DataFrame([row | {"run": "a", "positives": 30}, row | {"run": "b", "positives": 30}])


def all_text(figure):
    return " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def draw(name, table, rng):
    images = rng.integers(0, 256, (2, 3, 16, 16)).astype(np.uint8)
    grid = np.linspace(0, 1, 5)
    curves = {"Internal": (grid, grid**0.5, grid, grid**0.3, Estimate(0.7, 0.6, 0.8, 90, 30))}
    history = pd.DataFrame({"run": "a", "seed": [0, 0], "epoch": [1, 2], "loss": [1, 0.5], "validation_auc": 0.5})
    return {
        "roc": lambda: figures.roc(curves, 0.95, "embedded"),
        "forest": lambda: figures.forest(table, "a", 0.95, "embedded", "Windows"),
        "learning_curves": lambda: figures.learning_curves(history, (600, 140), "embedded"),
        "phases": lambda: figures.phases(images, ["p", "q"], 2.0, "embedded"),
        "attention": lambda: figures.attention(
            images[0], rng.random((3, 4, 4)), "p", (0.1, 0.2, 0.3), 2.0, "embedded"
        ),
        "windows": lambda: figures.windows(images.ravel(), {"channel_q98": (0.0, 250.0)}, "embedded"),
    }[name]()


NAMES = {
    "roc": "0.70 (0.60–0.80)\nn = 90, 30 HER2+",
    "forest": "0.70 (0.60–0.80)",
    "learning_curves": "AUC, validation (n = 140)",
    "phases": "(mm)",
    "attention": "0.20 (seeds 0.10–0.30)",
    "windows": "saturated",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_its_numbers_and_that_the_cohort_is_synthetic(name, table, rng):
    text = all_text(draw(name, table, rng))
    assert NAMES[name] in text
    assert "embedded synthetic cohort" in text


def test_a_real_cohort_is_not_called_synthetic(table):
    assert "synthetic" not in all_text(figures.forest(table, "a", 0.95, "ispy", "Windows"))


@pytest.mark.parametrize("name", ["roc", "attention"])
def test_a_figure_is_the_same_file_twice(name, table, tmp_path):
    for folder in ("a", "b"):
        figures.save(draw(name, table, np.random.default_rng(0)), name, tmp_path / folder)
    for kind in ("png", "pdf"):
        first, second = ((tmp_path / d / f"{name}.{kind}").read_bytes() for d in "ab")
        assert first == second
