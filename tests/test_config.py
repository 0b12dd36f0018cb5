"""Parameters: found, merged, typed, complete; dependencies steady."""

from dataclasses import dataclass

import pytest

from her2core import config
from her2core.config import Study, Unready


@dataclass(frozen=True)
class Inner:
    rate: float


@dataclass(frozen=True)
class Outer:
    count: int
    sizes: tuple[int, ...]
    inner: Inner


PARAMS = """
name: small
runs: [a, b]
acquire: {source: phantom, seed: 1}
prepare: {count: 3, sizes: [1, 2], inner: {rate: 1e-3}}
models: {}
train: {rate: 1}
evaluate: {}
"""
OWN = """
name: other
runs: [c]
acquire: {source: archive}
prepare: {sizes: [5], inner: {rate: 2}}
models: {}
train: {}
evaluate: {}
"""


@pytest.fixture
def compendium(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "studies/other").mkdir(parents=True)
    (tmp_path / "studies/other/params.yaml").write_text(OWN)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def test_the_root_is_found_from_a_folder_below_and_from_a_studys(compendium, monkeypatch):
    assert config.root() == compendium
    monkeypatch.chdir(compendium / "studies/other")
    assert config.root() == compendium


def test_outside_a_compendium_the_error_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unready, match="no params.yaml in .* start inside the compendium"):
        config.root()


def test_without_a_name_the_study_is_that_of_the_top_level(compendium):
    study = Study.open()
    assert study == Study.open("small") and (study.name, study.runs) == ("small", ("a", "b"))
    assert study.folder == compendium and study.results == compendium / "results/small"
    assert study.data("prepare") == compendium / "data/small/prepare"
    assert study.is_synthetic and study.title == "small synthetic cohort"


def test_another_study_takes_over_what_it_does_not_say_otherwise(compendium):
    study = Study.open("other")
    assert study.params("prepare", Outer) == Outer(3, (5,), Inner(2.0))
    assert study.params("train", Inner) == Inner(1.0)
    assert study.runs == ("c",) and study.folder == compendium / "studies/other"
    assert not study.is_synthetic and study.title == "other cohort"


def test_where_patients_come_from_is_never_mixed(compendium):
    assert Study.open("other").section("acquire") == {"source": "archive"}


def test_the_studies_do_not_change_each_other(compendium):
    Study.open("other")
    assert Study.open().params("prepare", Outer) == Outer(3, (1, 2), Inner(0.001))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: other", "name: others", "studies/other/params.yaml: name is 'others', expected 'other'"),
        ("train: {}\n", "", r"studies/other/params.yaml lacks train; where nothing differs write: train: \{\}"),
        ("runs: [c]\n", "", "studies/other/params.yaml lacks runs"),
    ],
)
def test_a_slip_in_a_studys_parameters_is_one_line_that_names_it(compendium, old, new, message):
    path = compendium / "studies/other/params.yaml"
    path.write_text(OWN.replace(old, new))
    with pytest.raises(Unready, match=message):
        Study.open("other")


def test_an_unknown_study_is_refused_with_those_that_there_are(compendium):
    with pytest.raises(Unready, match="no study 'ispi'; there are small, other.*her2 study ispi"):
        Study.open("ispi")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count: 3", "coutn: 3", r"small: prepare: .*coutn.*known: count, sizes, inner"),
        ("count: 3, ", "", r"small: prepare: .*count"),
        ("count: 3", "count: x", r"small: prepare: .*count"),
        ("rate: 1e-3", "rate: fast", r"small: prepare: .*rate"),
        ("prepare:", "prepaer:", "small has no section 'prepare'; it has name, runs, acquire, prepaer"),
    ],
)
def test_a_slip_in_params_yaml_is_one_error_that_names_it(compendium, old, new, message):
    (compendium / "params.yaml").write_text(PARAMS.replace(old, new))
    with pytest.raises(ValueError, match=message):
        Study.open().params("prepare", Outer)


def test_a_section_may_choose_its_class_by_its_source():
    assert config.of_source({"phantom": Inner, "archive": Outer}, {"source": "archive"}, "acquire") is Outer
    with pytest.raises(ValueError, match="acquire: source is 'disk', expected one of phantom, archive"):
        config.of_source({"phantom": Inner, "archive": Outer}, {"source": "disk"}, "acquire")


@pytest.mark.parametrize(
    ("name", "command"),
    [("small", "dvc repro prepare"), ("other", "dvc repro studies/other/dvc.yaml:prepare")],
)
def test_what_is_not_there_yet_is_one_line_that_says_what_to_run(compendium, name, command):
    (compendium / "studies/other/dvc.yaml").write_text("stages: {}\n")
    study = Study.open(name)
    with pytest.raises(Unready, match=f"data/{name}/prepare is not there yet; run first: {command}$") as raised:
        study.need("prepare", compendium, study.data("prepare"))
    assert raised.value._render_traceback_() == [str(raised.value)]  # all that Jupyter shows


@pytest.fixture
def stage(compendium):
    (compendium / "dvc.yaml").write_text(
        "stages:\n  s:\n    cmd: x\n    deps: [notebooks/n.ipynb, 'data/${name}/${item.run}']\n"
        "    params: [name, prepare]\n"
    )
    (compendium / "notebooks/n.ipynb").write_text("{}")
    (compendium / "data/small/a").mkdir(parents=True)
    (compendium / "data/small/a/x.npy").write_text("1")
    return compendium


def steady():
    return config.steady_dependencies("notebooks/n.ipynb", Study.open(), run="a")


def test_steady_dependencies_pass(stage):
    with steady():
        (stage / "data/small/a/x.npy").write_text("1")


@pytest.mark.parametrize("name", ["notebooks/n.ipynb", "data/small/a/x.npy"])
def test_a_dependency_edited_in_mid_run_is_an_error(stage, name):
    with pytest.raises(ValueError, match="changed while the stage ran.*" + name.split("/x")[0]), steady():
        (stage / name).write_text("edited")


def test_a_parameter_of_the_stage_edited_in_mid_run_is_an_error_and_another_is_none(stage):
    path = stage / "params.yaml"
    with steady():
        path.write_text(PARAMS.replace("{rate: 1}", "{rate: 2}"))
    with pytest.raises(ValueError, match="params.yaml: prepare"), steady():
        path.write_text(PARAMS.replace("count: 3", "count: 4"))


def test_a_studys_stage_tracks_its_own_parameters_and_those_of_the_top_level(stage):
    assert config.tracked({"params": ["train", {"studies/x/params.yaml": ["name", "train"]}]}) == {"name", "train"}
    (stage / "studies/other/dvc.yaml").write_text(
        "stages:\n  s:\n    cmd: x\n    deps: [notebooks/n.ipynb]\n"
        "    params: [prepare, {studies/other/params.yaml: [name, prepare]}]\n"
    )
    with (
        pytest.raises(ValueError, match="params.yaml: prepare"),
        config.steady_dependencies("notebooks/n.ipynb", Study.open("other")),
    ):
        (stage / "params.yaml").write_text(PARAMS.replace("count: 3", "count: 4"))
