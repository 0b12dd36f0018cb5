"""Parameters: found, merged, typed, complete; dependencies steady."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from house import TOP

from her2core import config, run
from her2core import study as s
from her2core.cohort import CohortConfig
from her2core.cohorts import acquire, preflight
from her2core.cohorts.preflight import _CLASSES
from her2core.config import Study, Unready
from her2core.report import page


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
cohort: {endpoint: her2}
prepare: {count: 3, sizes: [1, 2], inner: {rate: 1e-3}}
models: {}
train: {rate: 1}
evaluate: {}
"""
OWN = """
name: other
runs: [c]
acquire: {source: archive}
cohort: {}
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
        ("train: {}\n", "", 'studies/other/params.yaml: missing value for field "train"'),
        ("runs: [c]\n", "", 'studies/other/params.yaml: missing value for field "runs"'),
        ("train: {}\n", "train:\n", 'studies/other/params.yaml: wrong value type for field "train"'),
        ("train: {}\n", "train: {}\ntests: {}\n", 'studies/other/params.yaml: can not match "tests"'),
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
        ("count: 3", "coutn: 3", r"params.yaml: prepare: .*coutn.*expected: count, sizes, inner"),
        ("count: 3, ", "", 'params.yaml: prepare: missing value for field "count"'),
        ("count: 3", "count: x", 'params.yaml: prepare: .*"count"'),
        ("count: 3", "count: true", 'params.yaml: prepare: .*"count" - should be "int"'),
        ("count: 3", "count: 3.5", 'params.yaml: prepare: .*"count" - should be "int"'),
        ("sizes: [1, 2]", "sizes: 12", 'params.yaml: prepare: .*"sizes"'),
        ("sizes: [1, 2]", "sizes: raw", 'params.yaml: prepare: .*"sizes" - should be "tuple"'),
        ("rate: 1e-3", "rate: fast", 'params.yaml: prepare: .*"inner.rate"'),
        ("rate: 1e-3", "rate: .nan", "params.yaml: prepare: inner: rate: nan is no finite number"),
        ("rate: 1e-3", "rate: 1e999", "params.yaml: prepare: inner: rate: inf is no finite number"),
        ("rate: 1e-3", "", 'params.yaml: prepare: missing value for field "inner.rate"'),
        ("rate: 1e-3", "2026-01-01: 1e-3", "params.yaml: prepare: inner: 2026-01-01 is no name"),
        (
            "rate: 1e-3",
            "rate: 2026-01-01",
            "params.yaml: prepare: inner: rate: 2026-01-01 is a date, expected a number, or",
        ),
        ("{rate: 1e-3}", "null", 'params.yaml: prepare: .*"inner"'),
        ("prepare:", "prepaer:", 'params.yaml: can not match "prepaer" .*runs, acquire, cohort, prepare'),
        ("runs: [a, b]", "runs: a", 'params.yaml: wrong value type for field "runs"'),
        ("runs: [a, b]", "runs: [a, 2]", 'params.yaml: wrong value type for field "runs"'),
        ("name: small", "name: 5", 'params.yaml: wrong value type for field "name"'),
        ("models: {}", "models: [thda]", 'params.yaml: wrong value type for field "models"'),
    ],
)
def test_a_slip_in_params_yaml_is_one_line_that_names_it(compendium, old, new, message):
    assert old in PARAMS
    (compendium / "params.yaml").write_text(PARAMS.replace(old, new))
    with pytest.raises(Unready, match=f"^{message}"):
        Study.open().params("prepare", Outer)


@dataclass(frozen=True)
class Defaults:
    rate: float = 0.5
    seeds: tuple[int, ...] = (0,)
    patience: int | None = None


@dataclass(frozen=True)
class Nested:
    defaults: Defaults = Defaults()
    flip: bool = True


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({}, "defaults, flip"),
        ({"flip": False, "defaults": {"rate": 1, "seeds": []}}, "defaults.patience"),
        ({"defaults": {"patience": None}}, "defaults.rate, defaults.seeds, flip"),
    ],
)
def test_no_default_of_the_code_stands_for_a_key_that_is_missing(values, missing):
    with pytest.raises(ValueError, match=rf"^here: missing {missing} \(expected: defaults, flip\)$"):
        config.build(Nested, values, "here")
    whole = {"defaults": {"rate": 2, "seeds": [1], "patience": None}, "flip": False}
    assert config.build(Nested, whole, "here") == Nested(Defaults(2.0, (1,)), False)


def test_a_file_beside_the_parameters_may_leave_keys_out_where_its_reader_says_so():
    assert config.build(Nested, {"defaults": {"rate": 3}}, "here", optional=True) == Nested(Defaults(3.0))
    with pytest.raises(ValueError, match="^here: a list, not keys with their values"):
        config.build(Nested, [1], "here", optional=True)


@pytest.mark.parametrize("section", ["acquire", "prepare", "models", "train", "evaluate"])
def test_each_key_of_the_published_parameters_is_needed(section, monkeypatch):
    monkeypatch.chdir(TOP)
    for name in ("embedded", "ispy"):
        study = Study.open(name)
        study.params(section, _CLASSES[section])
        for holder, key, place in keys_of(study.values[section]):
            value = holder.pop(key)
            with pytest.raises(Unready, match=rf"params.yaml: {section}: .*\b{place}\b"):
                study.params(section, _CLASSES[section])
            holder[key] = value


FREE = {"variants", "of", "collections", "ambl_her2"}  # whose keys are names or values, not fields


def keys_of(values, above=""):
    """Each key of nested parameters: the dictionary it stands in, itself, its dotted name."""
    for key in [*values]:
        if key != "source":  # which chooses the class
            yield values, key, f"{above}{key}"
        if isinstance(values[key], dict) and key not in FREE:
            yield from keys_of(values[key], f"{above}{key}.")


LAUGHS = "a: &a [1, 1]\n" + "".join(f"{x}: &{x} [*{y}, *{y}, *{y}]\n" for y, x in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "nothing in it"),
        (b"# only a remark\n", "nothing in it"),
        (b"- name: small\n", "a list"),
        (b"small\n", "a str"),
        (b"name: [small\nruns: }\n", "line 2: .*expected"),
        (b"name: small\n\ttrain: {}\n", r"line 2: found character '\\t'"),
        (b"name: 'small\n", "line 2: found unexpected end of stream"),
        (PARAMS.encode() + b"train: {rate: 2}\n", 'line 10: found duplicate key "train"'),
        (b"name: {a: 1, a: 2}\n", 'line 1: found duplicate key "a"'),
        (PARAMS.encode() + b"---\n" + PARAMS.encode(), "line 10: but found another document"),
        (b"name: !!python/object:os.system x\n", "line 1: could not determine a constructor"),
        (b"name: small\x00\n", "unacceptable character #x0000"),
        ("# größer\n".encode("latin-1") + PARAMS.encode(), "'utf-8' codec can't decode byte 0xf6"),
        (PARAMS.encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
        (PARAMS.encode("utf-16-le"), "unacceptable character #x0000"),
        (LAUGHS.encode(), "line 1: anchor or alias 'a'"),
        (b"a: 1\nb: *none\n", "line 2: anchor or alias 'none'"),
        (b"name: &n small\n", "line 1: anchor or alias 'n'"),
        (b"a: {x: 1}\nb:\n  <<: *a\n", "line 3: anchor or alias 'a'"),
        (b"- " * 90_000, "line 1: too many levels"),
        (b"[" * 90_000, "line 1: too many levels"),
        (b"a: {" * 90, "line 1: too many levels|line 1: mapping values"),
        (b"#" * 200_001, "200,001 characters, more than 200,000"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("file", ["params.yaml", "studies/other/params.yaml"])
def test_what_is_no_yaml_of_ours_is_refused_by_file_and_line_in_one_line(compendium, file, content, message):
    (compendium / file).write_bytes(content)
    expected = "expected keys with their values, as YAML without aliases, in UTF-8"
    with pytest.raises(Unready, match=f"^{compendium / file}: {message}.*, {expected}$"):
        Study.open("other")


COMMANDS = {
    "acquire": acquire.main,
    "preflight": preflight.main,
    "preflight --dry": lambda names: preflight.main(["--dry", *names]),
    "report": page.main,
    "her2 study": lambda names: s.main(["study", "mine"]),
    "": lambda names: run.main(["00_cohort", *(f"cohort={name}" for name in names)]),
}


@pytest.mark.parametrize("content", [b"", b"name: [\n", b"- name\n", b"name: \xe4\n", b"a: &a [*a]\n"])
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_says_in_one_line_what_is_wrong_with_the_parameters(compendium, command, content):
    (compendium / "params.yaml").write_bytes(content)
    said = command.removesuffix(" --dry").removesuffix(" study")
    with pytest.raises(SystemExit, match=f"^\n?{said}(: )?{compendium}/params.yaml: .*, expected .*$") as stop:
        COMMANDS[command](["small"])
    assert len(str(stop.value).strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["non\udce4", "../small", "x" * 50, "a b"])
@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"her2 study", ""}))
def test_a_name_that_no_study_has_is_one_line_whatever_its_letters(compendium, command, name):
    with pytest.raises(SystemExit, match="no study .*; there are small, other") as stop:
        COMMANDS[command]([name])
    assert len(str(stop.value).strip().splitlines()) == 1


def test_a_mark_before_utf_8_is_no_fault(compendium):
    (compendium / "params.yaml").write_bytes(b"\xef\xbb\xbf" + PARAMS.encode())
    assert Study.open().name == "small"


@pytest.mark.parametrize("text", ["[]", "stages: [1, 2]\n", "stages: {s: x}\n", "stage: {}\n", "\x00"])
def test_a_pipeline_that_is_none_is_one_error(compendium, text):
    (compendium / "dvc.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"^{compendium / 'dvc.yaml'}: .*, expected "):
        config.stages_of(compendium / "dvc.yaml")


@dataclass(frozen=True)
class Phantom:
    source: str
    seed: int


def test_a_section_may_choose_its_class_by_its_source(compendium):
    classes = {"phantom": Phantom, "archive": Outer}
    assert Study.open().params("acquire", classes) == Phantom("phantom", 1)
    for source in ("disk", "[phantom]", "null"):
        text = PARAMS.replace("source: phantom", f"source: {source}")
        (compendium / "params.yaml").write_text(text)
        with pytest.raises(Unready, match="^params.yaml: acquire: source is .*, expected one of phantom, archive$"):
            Study.open().params("acquire", classes)


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
        "stages:\n  s:\n    cmd: python -m her2core.run n cohort=x\n"
        "    deps: [notebooks/n.ipynb, 'data/${name}/${item.run}']\n"
        "    params: [name, prepare]\n"
    )
    (compendium / "notebooks/n.ipynb").write_text("{}")
    (compendium / "data/small/a").mkdir(parents=True)
    (compendium / "data/small/a/x.npy").write_text("1")
    return compendium


@pytest.mark.parametrize("stage", ["preflight", "acquire"])
def test_a_stage_that_is_a_module_is_found_by_its_command_not_by_who_depends_on_it(stage):
    found = config._stage_of(f"her2core/cohorts/{stage}.py", TOP / "dvc.yaml")
    assert found["cmd"] == f"python -m her2core.cohorts.{stage} ${{name}}"


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
        "stages:\n  s:\n    cmd: python -m her2core.run n cohort=x\n    deps: [notebooks/n.ipynb]\n"
        "    params: [prepare, {studies/other/params.yaml: [name, prepare]}]\n"
    )
    with (
        pytest.raises(ValueError, match="params.yaml: prepare"),
        config.steady_dependencies("notebooks/n.ipynb", Study.open("other")),
    ):
        (stage / "params.yaml").write_text(PARAMS.replace("count: 3", "count: 4"))


def test_wrong_folds_are_refused_by_the_place_where_they_stand(compendium):
    (compendium / "params.yaml").write_text(PARAMS.replace("{endpoint: her2}", "{endpoint: her2, folds: 2}"))
    with pytest.raises(Unready, match="^params.yaml: cohort: expected folds >= 3 or null, .*folds=2"):
        Study.open().params("cohort", CohortConfig)
