"""The whole study on the tiny cohort, through DVC, in a copy of the compendium."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

TOP = Path(__file__).resolve().parents[1]
RUNS = ["thda-channel_q98-raw", "thda-n4", "thda-channel_nyul-raw", "thda_adjacent"]


def copy_of_the_compendium(folder):
    for name in ("her2core", "notebooks"):
        shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_*"))
    shutil.copytree(TOP / "manifests", folder / "manifests")
    for name in ("dvc.yaml", ".dvcignore", "CITATION.cff"):
        shutil.copy(TOP / name, folder / name)
    text = (TOP / "params.yaml").read_text().replace("cohort: embedded", "cohort: tiny", 1)
    start, end = text.index("runs:"), text.index("\nembedded:")
    (folder / "params.yaml").write_text(text[:start] + f"runs: [{', '.join(RUNS)}]\n" + text[end:])
    shell(folder, "dvc", "init", "--no-scm", "-q")
    return folder


def shell(folder, *arguments, timeout=400):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1", "PATH": path}
    return subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    top = copy_of_the_compendium(tmp_path_factory.mktemp("study"))
    done = shell(top, "dvc", "repro")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return top


def test_the_study_ends_with_numbers_that_carry_n_and_interval(study):
    metrics = json.loads((study / "results/tiny/metrics.json").read_text())
    assert metrics["synthetic"] is True and metrics["reference"] == RUNS[0]
    for population, patients in (("internal", 8), ("external", 6)):
        found = metrics[population]
        assert found["patients"] == patients and 0 <= found["low"] <= found["auc"] <= found["high"] <= 1


def test_every_figure_is_there_as_png_and_pdf(study):
    stems = {p.stem for p in (study / "figures/tiny").iterdir()}
    names = (
        "flow architecture phases windowed windows bias_field learning_curves normalization_forest model_forest "
        "differences roc calibration decision_curve attention_check failures"
    ).split()
    assert stems == set(names)
    for name in names:
        assert all((study / f"figures/tiny/{name}.{kind}").stat().st_size > 5000 for kind in ("png", "pdf"))


def test_every_executed_notebook_ran_to_its_end_without_an_error(study):
    executed = sorted((study / "results/tiny/executed").glob("*.ipynb"))
    assert len(executed) == 6 + len(RUNS)
    for path in executed:
        code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert not [o for c in code for o in c.outputs if o.output_type == "error"]


def test_test_patients_are_predicted_by_every_run_and_external_ones_only_in_the_external_stage(study):
    results = study / "results/tiny"
    for run in RUNS:
        assert set(pd.read_csv(results / f"predictions/{run}.csv")["split"]) == {"validation", "test"}
    assert {p.stem for p in (results / "external").iterdir()} == {r for r in RUNS if r.startswith("thda-")}


def test_a_leak_free_cohort_and_its_documents_are_written(study):
    results = study / "results/tiny"
    leakage = json.loads((results / "leakage.json").read_text())
    assert all(check["leaks"] == [] for check in leakage["checks"].values())
    for name in ("MODEL_CARD.md", "checklist.md", "reported_vs_reproduced.md", "assumptions.md", "report.html"):
        assert (results / name).stat().st_size > 1000
    assert "synthetic cohort" in (results / "report.html").read_text()


def test_a_deleted_result_comes_back_byte_for_byte(study):
    for name in ("metrics.json", "ablation.csv", "report.html"):
        path = study / "results/tiny" / name
        before = path.read_bytes()
        path.unlink()
        assert shell(study, "dvc", "repro").returncode == 0
        assert path.read_bytes() == before, name


def test_a_second_repro_runs_nothing(study):
    start = time.monotonic()
    done = shell(study, "dvc", "repro")
    assert "Running stage" not in done.stdout and done.returncode == 0
    assert time.monotonic() - start < 20  # the README's figure is measured; this only catches a rerun


LATE = {"compare", "external", "report"}  # they read the training's parameters too


def changed_stages(study):
    return set(json.loads(shell(study, "dvc", "status", "--json").stdout))


@pytest.mark.parametrize(
    ("path", "old", "new", "stages"),
    [
        ("params.yaml", "lr: 0.004", "lr: 0.005", {f"train@{r}" for r in RUNS} | LATE | {"study"}),
        (
            "her2core/report/figures.py",
            "ONE_COLUMN, TWO_COLUMNS = 3.5",
            "ONE_COLUMN, TWO_COLUMNS = 3.6",
            {"report"},
        ),
        ("params.yaml", "bootstrap: 200 ", "bootstrap: 201 ", set()),
        ("params.yaml", "bootstrap: 200\n", "bootstrap: 201\n", LATE | {"study"}),
    ],
    ids=["learning rate", "a figure's size", "nothing", "bootstrap"],
)
def test_a_change_makes_only_its_own_stages_stale(study, path, old, new, stages):
    file = study / path
    text = file.read_text()
    try:
        file.write_text(text.replace(old, new))
        assert changed_stages(study) == stages
    finally:
        file.write_text(text)


def test_the_case_notebook_predicts_of_an_examination_what_the_external_stage_predicted(study):
    case = next((study / "data/tiny/acquire/ambl").iterdir()).relative_to(study)
    done = shell(study, "python", "-m", "her2core.run", "07_predict_case", f"case={case}")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(study / f"results/tiny/external/{RUNS[0]}.csv", dtype={"patient": str})
    found = table.loc[table["patient"] == case.name, "probability"]
    expected = f"HER2-positive {found.mean():.2f}; seeds from {found.min():.2f} to {found.max():.2f}"
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("02_training", "rnu=x"), "has no parameter rnu; it has run"),
        (("02_training", "run=thda-channel_q98-n5"), "run 'thda-channel_q98-n5': expected model"),
    ],
)
def test_an_unknown_parameter_or_run_is_named(study, command, message):
    done = shell(study, "python", "-m", "her2core.run", *command)
    assert done.returncode != 0 and message in done.stderr


def test_a_deleted_section_is_named_and_nothing_is_lost(study):
    file = study / "params.yaml"
    text = file.read_text()
    start = text.index("  evaluate:", text.index("\ntiny:"))
    try:
        file.write_text(text[:start])
        done = shell(study, "python", "-m", "her2core.run", "03_normalization_study")
        assert done.returncode != 0 and "tiny has no section 'evaluate'" in done.stderr
        done = shell(study, "dvc", "repro", "study")
        assert done.returncode != 0 and "tiny.evaluate" in done.stderr
    finally:
        file.write_text(text)
        shell(study, "dvc", "checkout", "-f")
        shell(study, "dvc", "repro")
    assert changed_stages(study) == set()


def test_a_corrupt_dicom_file_is_named_with_its_patient(study):
    victim = sorted((study / "data/tiny/acquire/spy2").rglob("*.dcm"))[5]
    whole = victim.read_bytes()
    try:
        victim.write_bytes(b"\0" * len(whole))
        done = shell(study, "dvc", "repro", "-s", "-f", "prepare")
        patient = victim.relative_to(study / "data/tiny/acquire/spy2").parts[0]
        assert done.returncode != 0
        assert patient in done.stderr and victim.name in done.stderr
    finally:
        victim.write_bytes(whole)
    done = shell(study, "dvc", "repro")
    assert done.returncode == 0 and changed_stages(study) == set()
