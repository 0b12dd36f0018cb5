"""Parameters: found, typed, complete; dependencies steady."""

from dataclasses import dataclass

import pytest

from her2core import config


@dataclass(frozen=True)
class Inner:
    rate: float


@dataclass(frozen=True)
class Outer:
    count: int
    sizes: tuple[int, ...]
    inner: Inner


PARAMS = """
cohort: small
runs: [a, b]
small:
  outer: {count: 3, sizes: [1, 2], inner: {rate: 1e-3}}
  loose: {rate: 1}
"""


@pytest.fixture
def compendium(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_the_root_is_found_from_a_folder_below(compendium):
    assert config.root() == compendium
    assert config.results_folder() == compendium / "results" / "small"


def test_outside_a_compendium_the_error_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no params.yaml"):
        config.root()


def test_a_section_becomes_a_frozen_dataclass_with_tuples_and_floats(compendium):
    assert config.params("outer", Outer) == Outer(3, (1, 2), Inner(0.001))
    assert config.params("loose", Inner) == Inner(1.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count: 3", "coutn: 3", r"small.outer: .*coutn.*known: count, sizes, inner"),
        ("count: 3, ", "", r"small.outer: .*count"),
        ("count: 3", "count: x", r"small.outer: .*count"),
        ("rate: 1e-3", "rate: fast", r"small.outer: .*rate"),
        ("  outer:", "  otuer:", "small has no section 'outer'; it has otuer, loose"),
        ("cohort: small", "cohort: ispy", "cohort is 'ispy'; it has sections for small"),
    ],
)
def test_a_slip_in_params_yaml_is_one_error_that_names_it(compendium, old, new, message):
    text = (compendium / "params.yaml").read_text()
    (compendium / "params.yaml").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        config.params("outer", Outer)


def test_a_shared_setting_is_read_and_an_unknown_one_refused(compendium):
    assert config.setting("runs") == ["a", "b"]
    with pytest.raises(ValueError, match="params.yaml has no 'rnus'; it has cohort, runs, small"):
        config.setting("rnus")


@pytest.fixture
def stage(compendium):
    (compendium / "dvc.yaml").write_text(
        "stages:\n  s:\n    cmd: x\n    deps: [notebooks/n.ipynb, 'data/${cohort}/${item.run}']\n"
        "    params: [cohort, '${cohort}.outer']\n"
    )
    (compendium / "notebooks/n.ipynb").write_text("{}")
    (compendium / "data/small/a").mkdir(parents=True)
    (compendium / "data/small/a/x.npy").write_text("1")
    return compendium


def test_steady_dependencies_pass(stage):
    with config.steady_dependencies("notebooks/n.ipynb", run="a"):
        (stage / "data/small/a/x.npy").write_text("1")


@pytest.mark.parametrize("name", ["notebooks/n.ipynb", "data/small/a/x.npy"])
def test_a_dependency_edited_in_mid_run_is_an_error(stage, name):
    with (
        pytest.raises(ValueError, match="changed while the stage ran.*" + name.split("/x")[0]),
        config.steady_dependencies("notebooks/n.ipynb", run="a"),
    ):
        (stage / name).write_text("edited")


def test_a_parameter_of_the_stage_edited_in_mid_run_is_an_error_and_another_is_none(stage):
    path = stage / "params.yaml"
    with config.steady_dependencies("notebooks/n.ipynb", run="a"):
        path.write_text(PARAMS.replace("rate: 1}", "rate: 2}"))
    with (
        pytest.raises(ValueError, match="params.yaml: small.outer"),
        config.steady_dependencies("notebooks/n.ipynb", run="a"),
    ):
        path.write_text(PARAMS.replace("count: 3", "count: 4"))
