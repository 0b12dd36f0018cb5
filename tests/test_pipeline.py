"""The whole study on the tiny cohort, through DVC, in a git clone of the compendium's files."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from house import NOTEBOOKS, STAGES, copy_compendium, environment_in

pytestmark = pytest.mark.slow
RUNS = ["thda-channel_q98-raw", "thda-n4", "thda-channel_nyul-raw", "thda_adjacent"]
PIPELINE = "studies/tiny/dvc.yaml"


def copy_of_the_compendium(folder):
    copy_compendium(folder)
    for command in (
        "git init -q",
        "dvc init -q",
        "git add -A",
        "git commit -qm all",
        "python -m her2core.study study tiny",
    ):
        done = shell(folder, *command.split())
        assert done.returncode == 0, f"{command}: {done.stderr}"
    params = folder / "studies/tiny/params.yaml"
    lines = [f"runs: [{', '.join(RUNS)}]" if x.startswith("runs:") else x for x in params.read_text().splitlines()]
    lines = [x.replace("slices: 3,", "slices: 3, neighbours: true,") for x in lines]  # for thda_adjacent
    params.write_text("\n".join(lines) + "\n")
    return folder


def shell(folder, *arguments, timeout=900):
    return subprocess.run(
        arguments, cwd=folder, env=environment_in(folder), capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    top = copy_of_the_compendium(tmp_path_factory.mktemp("study"))
    done = shell(top, "dvc", "repro", PIPELINE)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return top


def test_the_study_ends_with_numbers_that_carry_n_and_interval(study):
    metrics = json.loads((study / "results/tiny/metrics.json").read_text())
    assert metrics["synthetic"] is True and metrics["reference"] == RUNS[0]
    assert list(metrics["external"]) == ["AMBL"]
    for found, patients in ((metrics["internal"], 8), (metrics["external"]["AMBL"], 6)):
        assert found["patients"] == patients and 0 <= found["low"] <= found["auc"] <= found["high"] <= 1
        assert {"accuracy_at_0.5", "accuracy_at_threshold"} <= found.keys() and 0 < metrics["threshold"] < 1


def test_every_figure_of_the_pipeline_is_there_as_png_and_pdf(study):
    outs = {next(iter(out)) for name, stage in STAGES.items() if name != "phantom" for out in stage["outs"]}
    figures = {Path(out).name for out in outs if out.startswith("figures/")}
    assert {p.name for p in (study / "figures/tiny").iterdir()} == figures
    assert all((study / f"figures/tiny/{name}").stat().st_size > 5000 for name in figures)


def test_every_executed_notebook_ran_to_its_end_without_an_error(study):
    executed = sorted((study / "results/tiny/executed").glob("*.ipynb"))
    apart = (
        "02_training",
        "03_phantom",
        "10_predict_case",
        "11_tuning",
        "12_explore",
        "13_deviations",
        "14_questions",
    )
    once = [n.stem for n in NOTEBOOKS if n.stem not in apart]
    assert [p.stem for p in executed] == sorted([*once, *(f"02_training-{run}" for run in RUNS)])
    for path in executed:
        code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert not [o for c in code for o in c.outputs if o.output_type == "error"]


def test_test_patients_are_predicted_by_every_run_and_external_ones_only_in_the_external_stage(study):
    results = study / "results/tiny"
    for run in RUNS:
        assert set(pd.read_csv(results / f"predictions/{run}.csv")["split"]) == {"validation", "test"}
    simple = {"majority", "lesion_first_order", "crop_first_order", "kinetics", "clinical", "clinical_kinetics"}
    expected = {*RUNS, *(f"{name}-none-raw" for name in simple)}
    assert {p.stem for p in (results / "external").iterdir()} == expected
    ladder = pd.read_csv(results / "external_validation.csv")
    assert set(ladder["run"]) == {*expected, "truth_latent-none-raw", "truth_parameters-none-raw"}
    assert (ladder.loc[ladder["model"] == "truth_parameters", "share_of_best"] == 1).all()


def test_a_leak_free_cohort_and_its_documents_are_written(study):
    results = study / "results/tiny"
    leakage = json.loads((results / "leakage.json").read_text())
    assert all(check["leaks"] == [] for check in leakage["checks"].values())
    for name in (
        "MODEL_CARD.md",
        "checklist.md",
        "croissant.json",
        "reported_vs_reproduced.md",
        "assumptions.md",
        "report.html",
    ):
        assert (results / name).stat().st_size > 1000
    assert "synthetic cohort" in (results / "report.html").read_text()


def test_a_deleted_result_comes_back_byte_for_byte(study):
    before = {}
    for name in ("metrics.json", "ablation.csv", "report.html"):
        path = study / "results/tiny" / name
        before[path] = path.read_bytes()
        path.unlink()
    assert shell(study, "dvc", "repro", PIPELINE).returncode == 0
    assert {path: path.read_bytes() for path in before} == before


def test_a_second_repro_runs_nothing(study):
    start = time.monotonic()
    done = shell(study, "dvc", "repro", PIPELINE)
    assert "Running stage" not in done.stdout and done.returncode == 0
    assert time.monotonic() - start < 60  # the README's figure is measured; this only catches a rerun


def test_one_study_leaves_the_others_and_what_git_tracks_alone(study):
    others = ("dvc.yaml", "studies/ispy/dvc.yaml")
    before = [shell(study, "dvc", "status", "--json", name).stdout for name in others]
    assert shell(study, "git", "status", "--porcelain").stdout == "?? studies/tiny/\n"
    aside = study.parent / "tiny"
    shutil.move(study / "studies/tiny", aside)
    try:
        assert shell(study, "git", "status", "--porcelain").stdout == ""
        assert [shell(study, "dvc", "status", "--json", name).stdout for name in others] == before
    finally:
        shutil.move(aside, study / "studies/tiny")


SHOWING = {"cohort", "preparation", "network", "study", "compare", "external", "report"}
TRAINED = {f"train@{run}" for run in RUNS}
CHECKED = {"preflight"}  # seconds: checked anew whatever changes, and what it writes is the same


def changed_stages(study, pipeline=PIPELINE):
    status = json.loads(shell(study, "dvc", "status", "--json", pipeline).stdout)
    return {name.rpartition(":")[2] for name in status}


@pytest.mark.parametrize(
    ("path", "old", "new", "stages"),
    [
        ("params.yaml", "lr: 0.004", "lr: 0.005", TRAINED | CHECKED | SHOWING - {"cohort"}),
        ("studies/tiny/params.yaml", "epochs: 2", "epochs: 3", TRAINED | CHECKED | SHOWING - {"cohort"}),
        ("her2core/report/figures/style.py", "\n", "\n# a colour\n", SHOWING),
        ("her2core/phantom/anatomy.py", "\n", "\n# another breast\n", {"acquire"} | CHECKED),
        ("her2core/cohorts/manifest.py", "\n", "\n# another reader\n", {"acquire"} | CHECKED),
        ("manifests/rebuild.py", "\n", "\n# another rule\n", set()),
        ("studies/tiny/params.yaml", "bootstrap: 200", "bootstrap: 200 ", set()),
        (
            "studies/tiny/params.yaml",
            "bootstrap: 200",
            "bootstrap: 201",
            {"study", "compare", "external", "report"} | CHECKED,
        ),
        ("studies/ispy/params.yaml", "epochs: 30", "epochs: 31", set()),
    ],
    ids=[
        "top level",
        "own",
        "a colour",
        "the phantom",
        "the manifests' reader",
        "their rules",
        "nothing",
        "bootstrap",
        "other study",
    ],
)
def test_a_change_makes_only_its_own_stages_stale(study, path, old, new, stages):
    file = study / path
    text = file.read_text()
    assert old in text
    try:
        file.write_text(text.replace(old, new, 1))
        assert changed_stages(study) == stages
    finally:
        file.write_text(text)


def test_another_breast_of_the_phantom_is_no_reason_to_prepare_or_train_real_patients(study):
    file = study / "her2core/phantom/anatomy.py"
    text, before = file.read_text(), changed_stages(study, "studies/ispy/dvc.yaml")
    status = json.loads(shell(study, "dvc", "status", "--json", "studies/ispy/dvc.yaml").stdout)
    try:
        file.write_text(text + "# another breast\n")
        now = json.loads(shell(study, "dvc", "status", "--json", "studies/ispy/dvc.yaml").stdout)
    finally:
        file.write_text(text)
    assert {name.rpartition(":")[2] for name in now} == before
    assert [n for n in now if now[n] != status[n] and "acquire" not in n] == []


def test_the_case_notebook_predicts_of_an_examination_what_the_external_stage_predicted(study):
    case = next((study / "data/tiny/acquire/ambl").iterdir()).relative_to(study)
    done = shell(study, "python", "-m", "her2core.run", "10_predict_case", "cohort=tiny", f"case={case}")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(study / f"results/tiny/external/{RUNS[0]}.csv", dtype={"patient": str})
    found = table.loc[table["patient"] == case.name, "probability"]
    expected = f"probability of HER2+ {found.mean():.2f}; seeds from {found.min():.2f} to {found.max():.2f}"
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("02_training", "cohort=tiny", "rnu=x"), "has no parameter rnu; it has cohort, run"),
        (("02_training", "cohort=tiny", "run=thda-channel_q98-n5"), "run 'thda-channel_q98-n5': expected model"),
        (("02_training", "cohort=tinny", "run=vit"), "no study 'tinny'; there are embedded, instrument, ispy"),
    ],
)
def test_an_unknown_parameter_run_or_study_is_named(study, command, message):
    done = shell(study, "python", "-m", "her2core.run", *command)
    assert done.returncode != 0 and message in done.stderr


@pytest.mark.parametrize("notebook", [n.stem for n in NOTEBOOKS])
def test_a_notebook_that_is_opened_first_runs_or_says_in_one_line_what_to_run(study, notebook):
    """Of the embedded study nothing has been computed in this clone."""
    done = shell(study, "python", "-m", "her2core.run", notebook)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        assert "is not there yet; run first: dvc repro " in lines[0] and "Unready" in lines[0]
    page = study / "results/embedded/executed" / f"{notebook}.part.ipynb"
    for cell in nbformat.read(page, 4).cells if page.is_file() else []:
        for output in cell.get("outputs", []):
            assert output.output_type != "error" or len(output.traceback) == 1


# --- nothing is lost ----------------------------------------------------------------------------------------


def everything(study):
    """Digest of every result, figure, weight and prepared array."""
    folders = ("results/tiny", "figures/tiny", "models/tiny", "data/tiny/prepare", "data/tiny/cohort")
    paths = [
        p for f in folders for p in (study / f).rglob("*") if p.is_file() and not p.name.endswith(".part.ipynb")
    ]
    return {p.relative_to(study).as_posix(): hashlib.md5(p.read_bytes()).hexdigest() for p in paths}


def name_of(stage):
    return f"{PIPELINE}:train@{RUNS[0]}" if stage == "train" else f"{PIPELINE}:{stage}"


NOTEBOOK_OF = {n: Path(s["deps"][0]).name for n, s in STAGES.items() if s["deps"][0].startswith("notebooks/")}
RUNNING = [stage for stage in NOTEBOOK_OF if stage != "phantom"]


@pytest.mark.parametrize("stage", RUNNING)
def test_an_exception_in_a_notebook_leaves_every_result_in_place(study, stage):
    path = study / "notebooks" / NOTEBOOK_OF[stage]
    text, before = path.read_text(), everything(study)
    notebook = nbformat.reads(text, 4)
    notebook.cells.insert(-1, nbformat.v4.new_code_cell("raise RuntimeError('broken on purpose')"))
    early = next(k for k, c in enumerate(notebook.cells) if c.cell_type == "code" and "study = " in c.source)
    notebook.cells.insert(early + 1, notebook.cells.pop(-2))
    try:
        path.write_text(nbformat.writes(notebook))
        done = shell(study, "dvc", "repro", "--single-item", "--force", name_of(stage))
        assert done.returncode != 0 and "broken on purpose" in done.stderr
    finally:
        path.write_text(text)
    assert everything(study) == before


@pytest.mark.parametrize(
    ("stage", "missing"),
    [
        ("cohort", "data/tiny/acquire/metadata.csv"),
        ("prepare", "data/tiny/cohort/patients.csv"),
        ("train", "data/tiny/prepare"),
        ("network", "models/tiny"),
        ("study", "results/tiny/predictions"),
        ("external", "data/tiny/prepare"),
        ("report", "results/tiny/external"),
        ("page", "results/tiny/executed"),
    ],
)
def test_a_missing_input_leaves_every_result_in_place(study, stage, missing):
    aside = study.parent / "aside"
    shutil.move(study / missing, aside)
    try:
        before = everything(study)
        done = shell(study, "dvc", "repro", "--single-item", "--force", name_of(stage))
        assert done.returncode != 0
        assert everything(study) == before
    finally:
        shutil.move(aside, study / missing)


@pytest.mark.parametrize("stage", ["prepare", "train", "study", "report"])
def test_a_typo_in_the_parameters_leaves_every_result_in_place_and_is_named(study, stage):
    section = {"prepare": "prepare", "train": "train", "study": "evaluate", "report": "evaluate"}[stage]
    path, before = study / "studies/tiny/params.yaml", everything(study)
    text = path.read_text()
    for typo, message in (
        (text.replace(f"{section}: {{", f"{section}: {{ sedes: 1,"), "sedes"),
        (text.replace(f"{section}:", f"{section}s:"), section),
    ):
        try:
            path.write_text(typo)
            done = shell(study, "dvc", "repro", "--single-item", "--force", name_of(stage))
            assert done.returncode != 0 and message in done.stderr
        finally:
            path.write_text(text)
        assert everything(study) == before


@pytest.mark.parametrize("stage", ["prepare", "train", "compare", "external", "report"])
def test_a_kill_leaves_every_result_in_place(study, stage):
    before = everything(study)
    repro = subprocess.Popen(
        ["dvc", "repro", "--single-item", "--force", name_of(stage)], cwd=study, env=environment_in(study),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    part = study / "results/tiny/executed" / NOTEBOOK_OF[stage].replace(".ipynb", "")
    part = Path(f"{part}-{RUNS[0]}.part.ipynb" if stage == "train" else f"{part}.part.ipynb")
    part.unlink(missing_ok=True)
    deadline = time.monotonic() + 300
    while not part.is_file():  # the notebook has begun
        assert repro.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1.0)
    os.killpg(repro.pid, signal.SIGKILL)
    repro.wait()
    assert everything(study) == before


def test_after_all_that_a_repro_makes_the_same_bytes_again(study):
    before = everything(study)
    done = shell(study, "dvc", "repro", PIPELINE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert everything(study) == before and changed_stages(study) == set()


def test_the_patient_of_a_corrupt_file_is_named(study):
    victim = sorted((study / "data/tiny/acquire/spy2").rglob("*.dcm"))[5]
    whole = victim.read_bytes()
    try:
        victim.write_bytes(b"\0" * len(whole))
        done = shell(study, "dvc", "repro", "-s", "-f", f"{PIPELINE}:prepare")
        patient = victim.relative_to(study / "data/tiny/acquire/spy2").parts[0]
        assert done.returncode != 0
        assert f"{patient}: not the files that were acquired" in done.stderr
    finally:
        victim.write_bytes(whole)
    done = shell(study, "dvc", "repro", PIPELINE)
    assert done.returncode == 0 and changed_stages(study) == set()
