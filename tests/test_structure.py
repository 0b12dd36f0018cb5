"""The compendium agrees with itself: imports, names, notebooks, stages, parameters, documents."""

import ast
import json
import re
import statistics
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import MISSING, fields, is_dataclass
from typing import get_type_hints

import first_try
import pytest
import verification
from house import (
    HEART,
    MAKERS,
    NOTEBOOKS,
    ORDER,
    PACKAGE,
    PARAMS,
    PUBLISHED_STUDIES,
    STAGES,
    TOP,
    cells_of,
    closure,
    code_of,
    file_of,
    files_of,
    imports_of,
    modules_in,
    outs_of,
    stage_of,
)
from ruamel.yaml import YAML

from her2core.baselines import ModelConfig
from her2core.cohorts.acquire import SOURCES
from her2core.config import MERGED, OWN, Study, tracked
from her2core.evaluate import EvaluateConfig
from her2core.preprocess import PrepareConfig
from her2core.runs import parse_run
from her2core.study import pipeline
from her2core.train import TrainConfig

SECTIONS = {
    "acquire": SOURCES,
    "prepare": PrepareConfig,
    "models": ModelConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}
COMMITTED = sorted(PUBLISHED_STUDIES - {"sample", "templates"})
STAGED = [n for n in NOTEBOOKS if stage_of(n)]
COMPUTED = [n for n in STAGED if n.stem not in MAKERS]  # whose answers are sentences computed from tables
SHOWING = [n for n in NOTEBOOKS if n.stem not in MAKERS]


def by_stem(path):
    return path.stem


# --- modules ------------------------------------------------------------------------------------------------


def test_every_module_stands_in_the_reading_order():
    paths = [p for p in PACKAGE.rglob("*.py") if p.read_text().strip() and p != PACKAGE / "__init__.py"]
    assert sorted(file_of(module) for module in ORDER) == sorted(paths)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_modules_above_it(module):
    parent = {module.rpartition(".")[0]} - {""}
    assert imports_of(module) - parent <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", [m for m in HEART if m != "study"])  # a command calls whatever it needs
def test_the_heart_of_the_package_needs_no_report_and_no_phantom(module):
    assert not [m for m in closure({module}) if m.startswith(("report", "phantom", "cohorts"))]


def test_the_package_stays_small():
    everything = [path.read_text() for path in PACKAGE.rglob("*.py")]
    lines = {m: len(file_of(m).read_text().splitlines()) for m in ORDER}
    assert sum(len(text.splitlines()) for text in everything) <= 15650
    assert sum(lines[m] for m in HEART) <= 5700
    assert {m: n for m, n in lines.items() if n > 395 and m != "formats.dicom"} == {}


def functions_in(tree):
    """Every function of a module, its methods included, with its class."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield None, node
        if isinstance(node, ast.ClassDef):
            yield from ((node, method) for method in node.body if isinstance(method, ast.FunctionDef))


def public(name):
    return not name.startswith("_")


@pytest.mark.parametrize("module", ORDER)
def test_functions_are_short_and_public_ones_have_hints_and_a_docstring(module):
    tree = ast.parse(file_of(module).read_text())
    for owner, function in functions_in(tree):
        assert function.end_lineno - function.lineno < 40, f"{function.name} is too long"
        if not public(function.name) or (owner and not public(owner.name)):
            continue
        given = [a for a in function.args.args + function.args.kwonlyargs if a.arg not in ("self", "cls")]
        assert [a.arg for a in given if a.annotation is None] == [], f"{function.name} lacks hints"
        assert function.returns is not None, f"{function.name} has no hint of what it returns"
        simple = any(ast.unparse(d) in ("property", "cached_property") for d in function.decorator_list)
        assert simple or ast.get_docstring(function), f"{function.name} has no docstring"


def top_level_names(module):
    """What a module defines at its top level: functions, classes, constants."""
    for node in ast.parse(file_of(module).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id


def test_no_public_name_has_two_meanings():
    modules = {m.rpartition(".")[2]: m for m in ORDER}
    places = defaultdict(set)
    for module in ORDER:
        for name in set(top_level_names(module)) - {"main"}:
            places[name].add(module)
    assert {n: m for n, m in places.items() if public(n) and len(m) > 1} == {}
    assert {n: m for n, m in places.items() if m - {modules.get(n)} and n in modules} == {}


def test_what_is_public_is_used_outside_its_module():
    sources = {m: file_of(m).read_text() for m in ORDER}
    others = [p.read_text() for folder in ("tests", "benchmarks") for p in (TOP / folder).glob("*.py")]
    others += [code_of(n) for n in NOTEBOOKS] + [(TOP / "pyproject.toml").read_text()]
    words = {m: set(re.findall(r"\w+", text)) for m, text in sources.items()}
    elsewhere = set(re.findall(r"\w+", "\n".join(others)))
    lonely = [
        f"{module}.{name}"
        for module in ORDER
        for name in top_level_names(module)
        if public(name) and name not in elsewhere and not any(name in words[m] for m in ORDER if m != module)
    ]
    assert lonely == []


def test_networks_and_training_import_without_imaging_or_pipeline_packages():
    absent = ("pydicom", "SimpleITK", "papermill", "dvc", "pandas", "matplotlib", "tqdm", "joblib.externals.none")
    code = f"""
import sys
for name in {absent!r}:
    sys.modules[name] = None
import her2core.model, her2core.train, her2core.baselines, her2core.dataset, her2core.normalize
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_every_module_imports_without_what_only_posix_has():
    code = f"""
import importlib, os, signal, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for module, names in ((os, ("fork", "getuid", "killpg", "sched_getaffinity")), (signal, ("SIGKILL", "SIGALRM"))):
    for name in names:
        delattr(module, name)
for name in {ORDER!r}:
    importlib.import_module("her2core." + name)
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


# --- notebooks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", [n for n in NOTEBOOKS if n.stem in MAKERS], ids=by_stem)
def test_what_makes_results_draws_nothing(notebook):
    code = code_of(notebook)
    assert not [m for m in closure(modules_in(code)) if m.startswith("report")] and "matplotlib" not in code


@pytest.mark.parametrize("notebook", SHOWING, ids=by_stem)
def test_every_plot_is_a_function_of_the_figures(notebook):
    assert not re.search(r"subplots|\.plot\(|imshow|\.hist\(|errorbar|scatter", code_of(notebook))


def test_the_phantom_is_a_dependency_of_making_it_and_of_its_tour_alone():
    users = {n for n, s in STAGES.items() if any(d.startswith("her2core/phantom/") for d in s["deps"])}
    assert users == {"preflight", "acquire", "phantom"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=by_stem)
def test_notebooks_are_stripped_and_have_stable_ids_and_one_kernel(notebook):
    nb = json.loads(notebook.read_text())
    assert nb["metadata"] == {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    }
    ids = [c["id"] for c in nb["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in nb["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert set(cell["metadata"]) <= {"tags"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=by_stem)
def test_notebooks_are_short_cells_between_prose(notebook):
    cells = cells_of(notebook)
    code = [c for c in cells if c["cell_type"] == "code"]
    lines = [sum(1 for line in c["source"] if line.strip()) for c in code]
    assert 12 <= len(cells) <= 45
    assert 0.35 <= 1 - len(code) / len(cells) <= 0.65
    assert max(lines) <= 15 and statistics.median(lines) <= 5
    assert "class " not in code_of(notebook) and code_of(notebook).count("def ") <= 1


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=by_stem)
def test_notebooks_open_with_the_question_and_close_with_the_answer(notebook):
    cells = cells_of(notebook)
    opening, closing = ("".join(c["source"]) for c in (cells[0], cells[-1]))
    assert all(word in opening for word in ("# ", "**Question.**", "**In:**", "**Out:**"))
    answered = re.fullmatch(r'Markdown\((findings\.of_\w+\(.+\)|texts\["summary.md"\])\)', closing)
    assert answered if notebook in COMPUTED else "**Answer.**" in closing


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=by_stem)
def test_parameters_are_one_cell_typed_and_explained_and_the_study_is_the_first(notebook):
    tagged = [c for c in cells_of(notebook) if c["metadata"].get("tags") == ["parameters"]]
    assert len(tagged) == 1
    lines = [line for line in "".join(tagged[0]["source"]).splitlines() if line.strip()]
    assert lines[0].startswith('cohort: str = "embedded"  # ')
    assert all(re.fullmatch(r'\w+: str = ".*"  # .{10,}', line) for line in lines)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=by_stem)
def test_the_package_is_imported_before_numpy_whoever_starts_the_kernel(notebook):
    code = [c for c in cells_of(notebook) if c["cell_type"] == "code"]
    first = "".join(code[1]["source"]).splitlines()
    assert first[0].startswith("from her2core.config import Study") and first[-1] == "study = Study.open(cohort)"
    assert "import" not in "".join(code[0]["source"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=by_stem)
def test_notebooks_read_no_array_by_file_name(notebook):
    assert not re.search(r"np\.load|\.npy|\.npz", code_of(notebook))


# --- stages -------------------------------------------------------------------------------------------------

# all others run a notebook
MODULE_STAGES = {"preflight": "cohorts.preflight", "acquire": "cohorts.acquire", "page": "report.page"}


def test_every_other_stage_runs_the_notebook_it_depends_on():
    for name, stage in STAGES.items():
        notebooks = [d for d in stage["deps"] if d.startswith("notebooks/")]
        if name in MODULE_STAGES:
            assert stage["cmd"] == f"python -m her2core.{MODULE_STAGES[name]} ${{name}}" and not notebooks
        else:
            start = f"python -m her2core.run {notebooks[0][10:-6]} cohort=${{name}}"
            assert stage["cmd"] == start + (" run=${item.run}" if "matrix" in stage else "")


def declared(stage):
    return {d for d in stage["deps"] if d.startswith("her2core/")}


@pytest.mark.parametrize("notebook", STAGED, ids=by_stem)
def test_a_stage_depends_on_exactly_the_files_its_notebook_uses(notebook):
    assert declared(stage_of(notebook)) == files_of(modules_in(code_of(notebook)))


@pytest.mark.parametrize("stage", MODULE_STAGES)
def test_a_stage_without_a_notebook_depends_on_exactly_the_files_it_uses(stage):
    assert declared(STAGES[stage]) == files_of({MODULE_STAGES[stage]})


def test_no_stage_deletes_what_it_wrote_before_it_has_written_anew():
    for name, stage in STAGES.items():
        for path, flags in outs_of(stage).items():
            kept_in_git = path.startswith(("results/", "figures/"))
            assert flags == ({"cache": False} if kept_in_git else {}) | {"persist": True}, f"{name}: {path}"


def test_what_dvc_plots_is_written_by_a_stage_and_a_curve_has_the_columns_that_its_plot_asks_for():
    plots = YAML(typ="safe").load(TOP / "dvc.yaml")["plots"]
    *figures, curves = [path if isinstance(path, str) else next(iter(path.items())) for path in plots]
    outs = {out for stage in STAGES.values() for out in outs_of(stage)}
    assert set(figures) <= outs and f"{curves[0]}/${{item.run}}.csv" in outs
    template = (TOP / f".dvc/plots/{curves[1]['template']}.json").read_text()
    columns = {curves[1]["x"], curves[1]["y"], json.loads(template)["encoding"]["color"]["field"]}
    header = next((TOP / "results/embedded/curves").iterdir()).read_text().splitlines()[0]
    assert columns == {"epoch", "validation_auc", "seed"} <= set(header.split(","))


def test_no_path_leads_from_external_results_to_anything_fitted():
    later = {n for n, s in STAGES.items() if any(d in outs_of(STAGES["external"]) for d in s["deps"])}
    assert later == {"report"}
    assert not any(o.startswith("models/") for n in ("external", "report", "page") for o in outs_of(STAGES[n]))
    for name in ("02_training", "06_normalization_study", "07_model_comparison"):
        assert "external" not in code_of(TOP / "notebooks" / f"{name}.ipynb")


def read_by(code):
    """The sections that a piece of code reads of a study, itself or by handing the study to a module it imports."""
    handed = [file_of(module).read_text() for module in modules_in(code) - {"config"}]
    everything = "\n".join([code, *(text for text in handed if "study: Study" in text)])
    sections = set(re.findall(r'\.(?:params|section)\(\s*"(\w+)"', everything))
    titled = re.search(r"study\.(title|endpoint)", everything)  # a title says what is predicted
    return sections | {"name"} | ({"runs"} if "study.runs" in code else set()) | ({"cohort"} if titled else set())


@pytest.mark.parametrize("notebook", STAGED, ids=by_stem)
def test_a_stage_tracks_exactly_the_parameters_its_notebook_reads(notebook):
    code = code_of(notebook)
    synthetic = {"acquire"} if "is_synthetic" in code or "study.title" in code else set()
    assert read_by(code) <= set(stage_of(notebook)["params"]) <= read_by(code) | synthetic


def test_the_stage_acquire_tracks_the_parameters_it_reads():
    assert set(STAGES["acquire"]["params"]) == read_by(file_of("cohorts.acquire").read_text())


# --- studies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMITTED)
def test_the_pipeline_of_a_study_is_the_top_levels(name):
    assert (TOP / f"studies/{name}/dvc.yaml").read_text() == pipeline(name, TOP), f"run: her2 study {name}"


def test_only_published_studies_are_in_git():
    tracked_files = subprocess.run(
        ["git", "ls-files", "studies"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {path.split("/")[1] for path in tracked_files} <= PUBLISHED_STUDIES


@pytest.mark.parametrize("study", ["embedded", *COMMITTED])
def test_every_run_has_a_name_that_can_be_run_and_the_reference_is_one_of_them(study, monkeypatch):
    monkeypatch.chdir(TOP)
    study = Study.open(study)
    config = study.params("train", TrainConfig)
    parts = [parse_run(name, config.window) for name in study.runs]
    assert len(set(parts)) == len(parts) and config.reference in study.runs


def missing_keys(cls, values, where):
    for field in fields(cls):
        if field.name not in values:
            yield f"{where}.{field.name}"
        elif is_dataclass(inner := get_type_hints(cls)[field.name]):
            yield from missing_keys(inner, values[field.name], f"{where}.{field.name}")


@pytest.mark.parametrize("study", ["embedded", *COMMITTED])
@pytest.mark.parametrize("section", SECTIONS)
def test_every_study_has_every_section_complete(study, section, monkeypatch):
    monkeypatch.chdir(TOP)
    study, cls = Study.open(study), SECTIONS[section]
    values = study.section(section)
    cls = cls[values["source"]] if isinstance(cls, dict) else cls
    study.params(section, SECTIONS[section])
    assert list(missing_keys(cls, values, section)) == [] and MISSING not in values.values()
    assert set(study.values) == {*OWN, *MERGED}


@pytest.mark.parametrize("name", COMMITTED)
def test_a_study_repeats_nothing_that_the_top_level_says(name):
    own = YAML(typ="safe").load(TOP / f"studies/{name}/params.yaml")

    def repeated(mine, common, where):
        if isinstance(mine, dict) and isinstance(common, dict):
            return [r for k, v in mine.items() for r in repeated(v, common.get(k), f"{where}.{k}")]
        return [where] if mine == common else []

    assert [r for section in MERGED for r in repeated(own[section], PARAMS[section], section)] == []


def test_the_parameters_of_a_stage_are_those_of_its_study_and_what_they_are_merged_with():
    stages = YAML(typ="safe").load(TOP / "studies/ispy/dvc.yaml")["stages"]
    assert stages.keys() == STAGES.keys() - {"phantom"}
    for name, stage in stages.items():
        assert stage["wdir"] == "../.." and tracked(stage) == tracked(STAGES[name])
        *common, own = stage["params"]
        assert set(common) == tracked(stage) & set(MERGED)  # never what stands whole in every study
        assert set(own["studies/ispy/params.yaml"]) == tracked(stage)


def test_a_study_waits_for_nothing_that_only_the_phantoms_tour_makes():
    stages, made = YAML(typ="safe").load(TOP / "studies/ispy/dvc.yaml")["stages"], outs_of(STAGES["phantom"])
    assert any(d in made for d in STAGES["report"]["deps"])
    assert [name for name, stage in stages.items() if made.keys() & {*stage["deps"]}] == []


# --- documents ----------------------------------------------------------------------------------------------


def test_the_lock_file_of_packages_answers_pyproject():
    text = (TOP / "requirements.txt").read_text()
    pinned = {re.split(r"[=\[]", line)[0].lower().replace(".", "-") for line in text.splitlines() if "==" in line}
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    names = project["dependencies"] + project["optional-dependencies"]["dev"]
    wanted = {re.split(r"[<>=\[]", name)[0].lower().replace(".", "-") for name in names}
    assert wanted <= pinned


def test_nothing_tracked_is_large():
    tracked_files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    present = [name for name in tracked_files if name and (TOP / name).is_file()]
    assert [name for name in present if (TOP / name).stat().st_size > 8e6] == []


def test_conda_users_get_the_same_pins_and_ci_runs_the_readmes_test_command():
    environment = YAML(typ="safe").load(TOP / "environment.yml")
    assert environment["dependencies"][-1] == {"pip": ["-r requirements.txt", "-e ."]}
    assert "make test" in (TOP / ".ci/run").read_text() and "make test" in (TOP / "README.md").read_text()
    targets = set(re.findall(r"^([\w-]+):", (TOP / "Makefile").read_text(), flags=re.M))
    assert {"repro", "check", "test", "lab", "figures", "lock", "clean", "clean-all"} <= targets


def test_the_readme_maps_every_module_notebook_and_stage():
    readme = (TOP / "README.md").read_text()
    assert [m for m in ORDER if f"`{m.rpartition('.')[2]}`" not in readme] == []
    assert [n.stem for n in NOTEBOOKS if f"`{n.stem}`" not in readme] == []
    assert [s for s in STAGES if f"`{s}" not in readme] == []


@pytest.mark.parametrize(
    ("target", "folder", "module"),
    [("try", first_try.FOLDER, "first_try"), ("verify", verification.FOLDER, "verification $(STUDY)")],
)
def test_what_make_runs_in_a_folder_of_its_own_is_ignored_by_git_and_dvc(target, folder, module):
    ignored = subprocess.run(["git", "check-ignore", "-q", f"{folder.name}/x"], cwd=TOP)
    assert ignored.returncode == 0 and folder == TOP / f".{target}"
    assert folder.name in (TOP / ".dvcignore").read_text().split()
    recipe = re.search(rf"^{target}: .venv/ok.*\n\t(.*)", (TOP / "Makefile").read_text(), flags=re.M)
    assert recipe[1] == f"PYTHONPATH=tests python -m {module}"
