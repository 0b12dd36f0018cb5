"""The compendium agrees with itself: imports, notebooks, stages, parameters, lock."""

import ast
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest
from ruamel.yaml import YAML

from her2core.baselines import ModelConfig
from her2core.cohorts.acquire import SOURCES
from her2core.config import build, of_source
from her2core.evaluate import EvaluateConfig
from her2core.preprocess import PrepareConfig
from her2core.runs import Run
from her2core.train import TrainConfig

TOP = Path(__file__).resolve().parents[1]
ORDER = (
    "config manifest labels records volume dicom_file dicom dicom_write nifti physics phantom parallel transfer "
    "embedded archive acquire cohort kinetics bias_field normalize audit preprocess dataset model baselines train "
    "runs probe case evaluate assumptions documents figures diagrams html_report run"
).split()
NOTEBOOKS = sorted((TOP / "notebooks").glob("*.ipynb"))
STAGES = YAML(typ="safe").load(TOP / "dvc.yaml")["stages"]
PARAMS = YAML(typ="safe").load(TOP / "params.yaml")
COHORTS = [k for k, v in PARAMS.items() if isinstance(v, dict)]
SECTIONS = {
    "acquire": SOURCES,
    "prepare": PrepareConfig,
    "models": ModelConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}


def modules_in(source):
    """her2core modules that a piece of code imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "her2core":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("her2core."):
            found.add(node.module.split(".")[1])
    return found


@cache
def imports_of(module):
    return modules_in((TOP / "her2core" / f"{module}.py").read_text())


def closure(modules):
    """The modules, and all that they import in turn."""
    found, todo = set(), set(modules)
    while todo:
        module = todo.pop()
        found.add(module)
        todo |= imports_of(module) - found
    return found


def cells_of(notebook):
    return json.loads(notebook.read_text())["cells"]


def code_of(notebook):
    return "\n".join("".join(c["source"]) for c in cells_of(notebook) if c["cell_type"] == "code")


def stage_of(notebook):
    return next((s for s in STAGES.values() if f"notebooks/{notebook.name}" in s["deps"]), None)


STAGED = [n for n in NOTEBOOKS if stage_of(n)]


def by_stem(path):
    return path.stem


def test_every_module_stands_in_the_reading_order():
    assert sorted(ORDER) == sorted(p.stem for p in (TOP / "her2core").glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_modules_above_it(module):
    above = set(ORDER[: ORDER.index(module)])
    assert imports_of(module) <= above


@pytest.mark.parametrize("notebook", [n for n in NOTEBOOKS if n.stem[:2] < "06"], ids=by_stem)
def test_only_the_report_and_the_case_import_figures(notebook):
    assert "figures" not in closure(modules_in(code_of(notebook)))


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
    most, typical = (45, 8) if notebook.stem == "06_report" else (35, 5)  # the report draws every figure
    assert 15 <= len(cells) <= most
    assert 0.4 <= 1 - len(code) / len(cells) <= 0.65
    assert max(lines) <= 15 and statistics.median(lines) <= typical
    assert "class " not in code_of(notebook) and code_of(notebook).count("def ") <= 1


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=by_stem)
def test_notebooks_open_with_the_question_and_close_with_the_answer(notebook):
    cells = cells_of(notebook)
    opening, closing = ("".join(c["source"]) for c in (cells[0], cells[-1]))
    assert all(word in opening for word in ("# ", "**Question.**", "**In:**", "**Out:**"))
    assert closing.startswith("**Answer.**")
    assert [c["metadata"].get("tags") for c in cells].count(["parameters"]) == 1


MODULE_STAGES = {"acquire": "acquire", "page": "html_report"}  # all others run a notebook


def test_every_other_stage_runs_the_notebook_it_depends_on():
    for name, stage in STAGES.items():
        notebooks = [d for d in stage["deps"] if d.startswith("notebooks/")]
        if name in MODULE_STAGES:
            assert stage["cmd"] == f"python -m her2core.{MODULE_STAGES[name]}" and not notebooks
        else:
            assert stage["cmd"].split()[:4] == ["python", "-m", "her2core.run", Path(notebooks[0]).stem]


def declared_modules(stage):
    return {Path(d).stem for d in stage["deps"] if d.startswith("her2core/") and d.endswith(".py")}


@pytest.mark.parametrize("notebook", STAGED, ids=by_stem)
def test_a_stage_depends_on_exactly_the_modules_its_notebook_imports(notebook):
    assert declared_modules(stage_of(notebook)) == closure(modules_in(code_of(notebook)))


@pytest.mark.parametrize("stage", MODULE_STAGES)
def test_a_stage_without_a_notebook_depends_on_exactly_the_modules_it_imports(stage):
    assert declared_modules(STAGES[stage]) == closure({MODULE_STAGES[stage]})


def test_no_path_leads_from_external_results_to_anything_fitted():
    outs = {next(iter(o)) if isinstance(o, dict) else o for o in STAGES["external"]["outs"]}
    later = {n for n, s in STAGES.items() if any(d.startswith(tuple(outs)) for d in s["deps"])}
    assert later == {"report"}
    assert not any(
        o.startswith("models/") for n in ("external", "report", "page") for o in map(str, STAGES[n]["outs"])
    )
    for name in ("02_training", "03_normalization_study", "04_model_comparison"):
        assert "external" not in code_of(TOP / "notebooks" / f"{name}.ipynb")


def read_by(code):
    sections = {f"${{cohort}}.{s}" for s in re.findall(r'(?:params|section)\(\s*"(\w+)"', code)}
    return sections | set(re.findall(r'setting\("(\w+)"', code)) | {"cohort"}


@pytest.mark.parametrize("notebook", STAGED, ids=by_stem)
def test_a_stage_tracks_exactly_the_parameters_its_notebook_reads(notebook):
    assert set(stage_of(notebook)["params"]) == read_by(code_of(notebook))


def test_acquire_tracks_exactly_the_parameters_it_reads():
    source = (TOP / "her2core/cohorts/acquire.py").read_text()
    assert set(STAGES["acquire"]["params"]) == read_by(source)


def test_every_run_has_a_name_that_can_be_run_and_the_reference_is_one_of_them():
    for cohort in COHORTS:
        config = build(TrainConfig, PARAMS[cohort]["train"], cohort)
        runs = [Run.parse(name, config.window) for name in PARAMS["runs"]]
        assert len({(run.model, run.window, run.bias_field) for run in runs}) == len(runs)
        assert config.reference in PARAMS["runs"]


def missing_keys(cls, values, where):
    for field in fields(cls):
        if field.name not in values:
            yield f"{where}.{field.name}"
        elif is_dataclass(inner := get_type_hints(cls)[field.name]):
            yield from missing_keys(inner, values[field.name], f"{where}.{field.name}")


@pytest.mark.parametrize("cohort", COHORTS)
@pytest.mark.parametrize("section", SECTIONS)
def test_every_cohort_has_every_section_complete(cohort, section):
    values, cls = PARAMS[cohort][section], SECTIONS[section]
    cls = of_source(cls, values, section) if isinstance(cls, dict) else cls
    build(cls, values, f"{cohort}.{section}")
    assert list(missing_keys(cls, values, f"{cohort}.{section}")) == []
    assert set(PARAMS[cohort]) == set(SECTIONS)
    assert MISSING not in values.values()


LOCK = TOP / "dvc.lock"


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.skipif(PARAMS["cohort"] != "embedded", reason="the committed lock is that of the embedded cohort")
def test_the_lock_is_fresh_for_code_parameters_and_results_in_git():
    stages = YAML(typ="safe").load(LOCK)["stages"]
    names = {n for n in STAGES if "matrix" not in STAGES[n]} | {f"train@{r}" for r in PARAMS["runs"]}
    assert set(stages) == names
    for name, stage in stages.items():
        for entry in stage["deps"] + stage["outs"]:
            path = TOP / entry["path"]
            if path.is_file():  # data and models are not in a fresh clone
                assert entry["md5"] == md5(path), f"{name}: {entry['path']} is not what the lock says: dvc repro"
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            now = PARAMS
            for part in key.split("."):
                now = now[part]
            assert value == now, f"{name}: {key} is not what the lock says: dvc repro"


@pytest.mark.skipif(PARAMS["cohort"] != "embedded", reason="the committed results are those of the embedded cohort")
def test_every_result_in_git_was_written_by_a_stage():
    outs = [o["path"] for s in YAML(typ="safe").load(LOCK)["stages"].values() for o in s["outs"]]
    tracked = subprocess.run(
        ["git", "ls-files", "results", "figures"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout.split()
    strangers = [t for t in tracked if not any(t == o or t.startswith(o + "/") for o in outs)]
    assert strangers == []


def test_the_lock_file_of_packages_answers_pyproject():
    text = (TOP / "requirements.txt").read_text()
    pinned = {re.split(r"[=\[]", line)[0].lower().replace(".", "-") for line in text.splitlines() if "==" in line}
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    names = project["dependencies"] + project["optional-dependencies"]["dev"]
    wanted = {re.split(r"[<>=\[]", name)[0].lower().replace(".", "-") for name in names}
    assert wanted <= pinned


def test_nothing_tracked_is_large():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True, check=True).stdout
    large = [name for name in tracked.split("\0") if name and (TOP / name).is_file()]
    assert [name for name in large if (TOP / name).stat().st_size > 5e6] == []


def test_the_numbers_of_the_readme_are_those_of_the_metrics():
    metrics = json.loads((TOP / "results/embedded/metrics.json").read_text())
    readme = (TOP / "README.md").read_text()
    for name, title in (("internal", "internal test"), ("external", "external site")):
        m = metrics[name]
        auc = f"{m['auc']:.2f} ({m['low']:.2f}–{m['high']:.2f})"
        assert f"| {title} | {m['patients']} | {m['positives']} | {auc} | {m['balanced_accuracy']:.2f} |" in readme


def test_conda_users_get_the_same_pins_and_ci_runs_the_readmes_test_command():
    environment = YAML(typ="safe").load(TOP / "environment.yml")
    assert environment["dependencies"][-1] == {"pip": ["-r requirements.txt", "-e ."]}
    assert "make test" in (TOP / ".ci/run").read_text() and "make test" in (TOP / "README.md").read_text()
    targets = set(re.findall(r"^(\w+):", (TOP / "Makefile").read_text(), flags=re.M))
    assert {"repro", "test", "lab", "figures", "lock", "clean"} <= targets


def test_the_readme_maps_every_module_and_every_stage():
    readme = (TOP / "README.md").read_text()
    assert [m for m in ORDER if f"`{m}`" not in readme] == []
    assert [s for s in STAGES if f"`{s}" not in readme] == []
