"""Every open choice stands in the table with its value and, where measured, its effect."""

from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from her2core.config import lookup
from her2core.report.assumptions import assumptions, markdown

PARAMS = YAML(typ="safe").load(Path(__file__).resolve().parents[1] / "params.yaml")
PAIRS = pd.DataFrame(
    {"difference": [-0.0312], "low": [-0.08], "high": [0.021], "verdict": ["no difference detected"]},
    index=["thda_plain"],
)


def test_every_open_choice_is_a_parameter_or_says_what_the_code_takes():
    held = {a["parameter"]: lookup(PARAMS, a["parameter"]) is not None for a in assumptions()}
    said = {a["parameter"]: bool(a["taken"]) for a in assumptions()}
    assert [name for name in held if held[name] == said[name]] == []


def test_what_was_measured_stands_there_with_its_interval_and_the_rest_says_that_it_was_not():
    text = markdown(PARAMS, PAIRS, "embedded", "Synthetic.")
    assert "| | | | none | -0.031 (-0.080 to +0.021): no difference detected |" in text
    assert "a backbone per phase | not measured |" in text and "Synthetic." in text
    assert all(f"| {a['parameter']} |" in text.replace("`", "") for a in assumptions())
    assert "(third party); its weights are not | binary cross-entropy of each slice |" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {6}


def test_every_measured_alternative_is_a_variant_or_an_aggregation():
    runs = {a["model"] for a in assumptions() if a["model"]}
    variants = {f"thda_{v}" for v in PARAMS["models"]["variants"]}
    assert runs - variants == {"aggregate_mean", "aggregate_max"}


def test_a_choice_that_the_parameters_lack_is_named():
    with pytest.raises(ValueError, match=r"params.yaml: x has no models.thda.head_input"):
        markdown({"models": {}}, PAIRS, "x", "")
