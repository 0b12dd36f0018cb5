"""The results in git are those of the code in git."""

import hashlib
import json
import re
import subprocess

import pandas as pd
import pytest
from house import QUESTIONS, TOP
from ruamel.yaml import YAML

from her2core.config import Study
from her2core.report.machine_readable import top_level_files

PIPELINES = {"embedded": TOP} | {study: TOP / f"studies/{study}" for study in ("instrument", *sorted(QUESTIONS))}
MADE = {"preflight", "acquire", "cohort", "prepare"}  # stages of a question's study, and its trainings


BY_HAND = re.compile(
    r"results/sample/.*|results/(embedded|instrument)/((tuning|deviations\w*|question_\w+)\.csv|executed/1[134]_\w+\.ipynb)"
    r"|figures/instrument/question_\w+\.(png|pdf)"
)  # what notebooks 11, 13 and 14 and `make sample` wrote


def read(path):
    return YAML(typ="safe").load(path)


LOCKS = {study: read(folder / "dvc.lock")["stages"] for study, folder in PIPELINES.items()}


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("study", LOCKS)
def test_the_lock_is_fresh_for_code_parameters_and_results_in_git(study):
    runs = read(PIPELINES[study] / "params.yaml")["runs"]
    stages = read(PIPELINES[study] / "dvc.yaml")["stages"]
    names = MADE if study in QUESTIONS else {n for n in stages if "matrix" not in stages[n]}
    assert set(LOCKS[study]) == names | {f"train@{r}" for r in runs}
    for name, stage in LOCKS[study].items():
        for entry in stage["deps"] + stage["outs"]:
            path = TOP / entry["path"]
            if path.is_file():  # data and models are not in a fresh clone
                assert entry["md5"] == md5(path), f"{name}: {entry['path']} is not what the lock says: dvc repro"
        for file, params in stage.get("params", {}).items():
            now = read(TOP / file)
            for key, value in params.items():
                assert value == now[key], f"{name}: {key} is not what the lock says: dvc repro"


def test_every_result_in_git_was_written_by_a_stage():
    outs = [o["path"] for lock in LOCKS.values() for stage in lock.values() for o in stage["outs"]]
    tracked = subprocess.run(
        ["git", "ls-files", "results", "figures"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout.split()
    others = [path for path in tracked if not BY_HAND.fullmatch(path)]
    assert [p for p in others if not any(p == o or p.startswith(o + "/") for o in outs)] == []


def test_what_machines_read_at_the_top_is_of_this_lock_and_this_version(monkeypatch):
    monkeypatch.chdir(TOP)
    for name, text in top_level_files(Study.open()).items():
        remedy = f"{name} is not of this dvc.lock: python -m her2core.report.machine_readable"
        assert (TOP / name).read_text("utf-8") == text, remedy


def test_the_numbers_of_the_readme_are_those_of_the_metrics():
    metrics = json.loads((TOP / "results/embedded/metrics.json").read_text())
    readme = (TOP / "README.md").read_text()
    rates = [f"{rate}_at_{cut}" for rate in ("accuracy", "balanced_accuracy") for cut in ("0.5", "threshold")]
    assert f"accuracy at 0.5 | at {metrics['threshold']:.3f} | balanced accuracy at 0.5 |" in readme
    for m, title in ((metrics["internal"], "internal test"), (metrics["external"]["AMBL"], "external site")):
        auc = f"{m['auc']:.2f} ({m['low']:.2f}–{m['high']:.2f})"
        cells = [title, m["patients"], m["positives"], auc, *(f"{m[rate]:.2f}" for rate in rates)]
        assert f"| {' | '.join(map(str, cells))} |" in readme


def test_the_ladder_of_the_readme_is_that_of_the_results():
    table = pd.read_csv(TOP / "results/embedded/external_validation.csv")
    cells = table["run"].map(lambda run: f"`{run}`"), table[["auc", "low", "high"]].to_numpy()
    rows = {}
    for name, (auc, low, high) in zip(*cells, strict=True):
        rows.setdefault(name, []).append(f"{auc:.2f} ({low:.2f}–{high:.2f})")
    readme = (TOP / "README.md").read_text().partition("| AUC on the phantom |")[2].partition("\n\n")[0]
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in readme.splitlines()[2:]]
    assert len(told) >= 8 and {name: values for name, _, *values in told} == {name: rows[name] for name, *_ in told}
    areas = [float(values[0][:4]) for _, _, *values in told]
    assert areas == sorted(areas, reverse=True)  # what beats the reference stands above it
