"""What the tests of the structure know of the compendium: modules, what they import, notebooks, stages."""

import ast
import json
import os
import shutil
import sys
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

TOP = Path(__file__).resolve().parents[1]
PACKAGE = TOP / "her2core"
# the reading order; a module imports only from those above it
ORDER = """
formats.boundary config records parallel
formats.volume formats.dicom_file formats.consistency formats.dicom formats.seg
formats.dicom_write formats.nifti formats.examination formats.weights
cohort kinetics bias_field normalize audit preprocess
dataset convolution model baselines train runs cam tuning simple probe case
auc paired calibration evaluate deviations
phantom.physics phantom.sites phantom.truth phantom.anatomy phantom.lesions phantom.scanner phantom.patient
cohorts.tables cohorts.collections cohorts.manifest cohorts.labels cohorts.ambl cohorts.duke cohorts.transfer
cohorts.phantom cohorts.own cohorts.mamamia cohorts.examination cohorts.archive cohorts.acquire cohorts.preflight
cohorts.sample
report.figures.style report.figures.require report.figures.words
report.figures.images report.figures.network report.figures.phantom
report.figures.curves report.figures.forests report.figures.trends report.figures.sheet report.figures
report.findings report.diagrams report.assumptions report.documents report.checklists report.machine_readable
report.sources report.page
report.standalone report.frozen report.export report.one_case report.explore report.verify report.questions
progress run study
""".split()
HEART = [module for module in ORDER if "." not in module]
NOTEBOOKS = sorted((TOP / "notebooks").glob("*.ipynb"))
MAKERS = ("01_data_preparation", "02_training")
STAGES = YAML(typ="safe").load(TOP / "dvc.yaml")["stages"]
PARAMS = YAML(typ="safe").load(TOP / "params.yaml")
# a params.yaml of any name in which every section is there, and nothing in most
BARE = (
    "name: {}\nruns: []\nacquire: {{source: phantom}}\ncohort: {{endpoint: her2}}\nprepare: {{}}\nmodels: {{}}\n"
    "train: {{}}\nevaluate: {{}}\n"
)
# each answers one question of notebook 14, and is computed as far as the predictions
QUESTIONS = {"many_patients", "px_32", "px_64", "shading_none", "shading_once", "shading_twice", "weak_label"}
PUBLISHED_STUDIES = {"instrument", "ispy", "sample", "templates", *QUESTIONS}  # the folders of studies/ in git
_OF_A_COMPENDIUM = (".dvcignore", ".gitignore", "CITATION.cff", "dvc.yaml", "params.yaml")
_OF_A_COMPENDIUM += (
    "her2core",
    "notebooks",
    "manifests",
    *(f"studies/{study}" for study in PUBLISHED_STUDIES if study != "sample"),
)


def copy_compendium(folder):
    """Into `folder` what a stage needs of the compendium: code, notebooks, parameters, published studies."""
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_*", "*.part.ipynb")
    for name in _OF_A_COMPENDIUM:
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, folder / name, ignore=ignore)
        else:
            shutil.copy(TOP / name, folder / name)


def environment_in(folder, *programs):
    """For commands in such a copy: its code, and `programs`, folders that come before this Python's own."""
    path = os.pathsep.join([*map(str, programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    who = {f"GIT_{role}_{what}": "x@y" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return os.environ | who | {"PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1", "PATH": path}


def file_of(module):
    """The file of a module or package of her2core by its dotted name, None where there is none."""
    base = PACKAGE.joinpath(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def modules_in(source):
    """her2core modules that a piece of code imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "her2core":
            base = node.module.partition(".")[2]
            names = {f"{base}.{alias.name}".strip(".") for alias in node.names}
            modules = {name for name in names if file_of(name)}
            found |= modules | ({base} if modules != names else set())
    return found - {""}


@cache
def imports_of(module):
    """What a module imports, and the package it lies in where that has code of its own."""
    parents = {module.rpartition(".")[0]} - {""}
    code = {p for p in parents if file_of(p).read_text().strip()}
    return frozenset(modules_in(file_of(module).read_text()) | code)


def closure(modules):
    """The modules, and all that they import in turn."""
    found, todo = set(), set(modules)
    while todo:
        module = todo.pop()
        found.add(module)
        todo |= imports_of(module) - found
    return found


def files_of(modules):
    """Files of the package, relative to the root, that code with these imports uses: templates and styles too."""
    paths = {PACKAGE / "__init__.py"} | {file_of(module) for module in closure(modules)}
    for path in list(paths):
        data = (p for p in path.parent.iterdir() if p.suffix in (".mplstyle", ".csv", ".jinja", ".yaml"))
        text = path.read_text()
        paths |= {p for p in data if p.name in text or p.stem == path.stem and f'with_suffix("{p.suffix}")' in text}
    return {path.relative_to(TOP).as_posix() for path in paths}


def cells_of(notebook):
    return json.loads(notebook.read_text())["cells"]


def code_of(notebook):
    return "\n".join("".join(c["source"]) for c in cells_of(notebook) if c["cell_type"] == "code")


def stage_of(notebook):
    return next((s for s in STAGES.values() if f"notebooks/{notebook.name}" in s["deps"]), None)


def outs_of(stage):
    """{path: its flags} of a stage's outputs and metrics."""
    entries = [*stage["outs"], *stage.get("metrics", [])]
    return {k: v for entry in entries for k, v in (entry if isinstance(entry, dict) else {entry: {}}).items()}
