"""The sample in git: made from a finished study, and enough to see all that shows without computing anything."""

import hashlib
import json
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from house import TOP, copy_compendium
from small_study import CHANGED, compute, write_parameters

from her2core.cohorts import sample
from her2core.config import Study, read_yaml
from her2core.dataset import Prepared
from her2core.evaluate import read_predictions
from her2core.report import explore, one_case
from her2core.run import run
from her2core.runs import Run

PARTS = ("data/sample", "models/sample", "results/sample/weights", "results/sample/predictions", "studies/sample")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A computed study and its sample."""
    top = tmp_path_factory.mktemp("compendium")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        study = compute(top)
        sample.make_sample(study)
        yield study


@pytest.fixture
def inside(made, monkeypatch):
    monkeypatch.chdir(made.top)
    explore._opened.cache_clear()
    yield made
    explore._opened.cache_clear()


def everything(top):
    return {
        path.relative_to(top).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in PARTS
        for path in (top / part).rglob("*")
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------ made from a study


def test_the_sample_is_a_study_with_the_reference_and_its_first_seed(inside):
    study = Study.open("sample")
    own = read_yaml(inside.top / "studies/sample/params.yaml")
    assert study.runs == ("thda-channel_q98-raw",) == (Run.of(study).name,)
    assert own["train"] == {"seeds": [0]} and own["acquire"] == dict(inside.section("acquire"))
    assert Run.of(study).members == [(0, None)] and study.is_synthetic


@pytest.mark.parametrize("bias_field", ["raw", "n4"])
def test_its_arrays_are_rows_of_the_studys_and_of_each_kind_of_patient_there_is_one(inside, bias_field):
    whole = Prepared.open(inside.data("prepare"), bias_field)
    found = Prepared.open(Study.open("sample").data("prepare"), bias_field)
    rows = sample.chosen_rows(whole)
    for name in ("images", "quantiles", "moments", "patient", "split", "label", "masks"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[rows])
    np.testing.assert_array_equal(found.levels, whole.levels)
    kinds = {(*key,) for key in zip(whole.dataset, whole.split, whole.label, strict=True)}
    assert {(*key,) for key in zip(found.dataset, found.split, found.label, strict=True)} == kinds


def test_of_further_training_patients_it_has_the_middle_slice_and_of_others_nobody():
    names = [f"{split}{k}" for split, count in (("train", 12), ("test", 3)) for k in range(count)]
    patient = np.repeat(names, 3)
    fixed = {"dataset": np.full(45, "spy2"), "split": np.char.rstrip(patient, "0123456789"), "label": np.zeros(45)}
    made_up = Prepared(None, "raw", *[None] * 4, patient=patient, pixel_mm=None, **fixed)
    expected = [0, 1, 2, *(3 * k + 1 for k in range(1, 10)), 36, 37, 38]  # of ten, and the first test patient
    assert sample.chosen_rows(made_up) == expected


def test_its_networks_give_the_probabilities_that_the_study_has_of_these_patients(inside):
    study = Study.open("sample")
    run_, stored = Run.of(study), read_predictions([study.results / "predictions/thda-channel_q98-raw.csv"])
    assert set(stored["seed"]) == {0} and set(stored["split"]) == {"validation", "test"}
    found = run_.predict("validation", "test").merge(stored, on=["patient", "split", "label", "seed"])
    assert len(found) == 8 and (found["probability_x"] == found["probability_y"]).all()


@pytest.mark.parametrize(("kind", "phases"), [("ambl", 5), ("spy1", 3)])
def test_both_of_its_examinations_are_cases_and_are_answered_like_the_patients_they_are(inside, kind, phases):
    study = Study.open("sample")
    (folder,) = (study.data("acquire") / kind).iterdir()
    found = one_case.examine(study, folder)
    table = Run.of(inside).predict("test", "external")
    expected = table[(table["patient"] == folder.name) & (table["seed"] == 0)]["probability"].item()
    assert found.answer["mean"] == pytest.approx(expected, abs=1e-6) and len(found.curve) == phases


def test_the_same_study_gives_the_same_bytes(inside):
    before = everything(inside.top)
    sample.main([])
    assert everything(inside.top) == before and len(before) > 80


def test_real_patients_and_what_is_not_computed_are_refused(inside, tmp_path, monkeypatch):
    (tmp_path / "studies").mkdir()
    write_parameters(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit, match="data/embedded/acquire/metadata.csv is not there yet; run first: dvc repro a"
    ):
        sample.main([])
    write_parameters(tmp_path, CHANGED | {"acquire": {"source": "archive"}})
    refused = "embedded: its patients are no phantoms; expected arrays that may go into git"
    with pytest.raises(SystemExit, match=refused):
        sample.main([])


# ------------------------------------------------------------------------------------------------- the explorer


def test_the_studies_that_can_be_explored_are_those_whose_arrays_and_weights_are_here(inside):
    assert explore.ready(inside.top) == ["embedded", "sample"]
    weights = inside.models / "thda-channel_q98-raw"
    weights.rename(weights.with_name("aside"))
    try:
        assert explore.ready(inside.top) == ["sample"]
    finally:
        weights.with_name("aside").rename(weights)


def test_the_answers_of_the_slices_are_those_that_the_prediction_is_made_of(inside):
    patient = Run.of(inside).opened.patient[0]
    found = explore.answers("embedded", patient, "channel_q98", "raw")
    table = Run.of(inside).predict("external").query("patient == @patient").sort_values("seed")
    assert list(found.columns) == [0, 1]
    np.testing.assert_allclose(found.median(), table["probability"], atol=1e-6)


def test_a_view_says_whose_slice_it_is_under_which_window_and_what_the_networks_answer(inside):
    patient = Run.of(inside).opened.patient[0]
    mean = explore.answers("embedded", patient, "channel_q95", "n4").median().mean()
    figure = explore.view("embedded", patient, 2, 2, "channel_q95", "n4")
    title = figure.get_suptitle().replace("\n", " ")
    assert (
        f"slice 2 of 3, channel_q95, N4; probability of HER2+ {mean:.2f} (median of slices, mean of seeds)" in title
    )
    assert "embedded synthetic cohort" in title and patient not in title
    assert [axes.get_title() for axes in figure.axes[:3]] == ["late post-contrast", "RGB fusion", "attention"]
    first = explore.view("embedded", patient, 1, 0, "channel_q98", "raw")
    image = Run.of(inside).slices(np.array([0])).images[0, 0].numpy()
    np.testing.assert_array_equal(first.axes[0].images[0].get_array(), image)


def test_a_patient_who_is_not_there_is_named(inside):
    with pytest.raises(
        ValueError, match="no patient 'nobody' among the prepared ones; expected one such as PHANTOM-"
    ):
        explore.view("sample", "nobody", 1, 0, "channel_q98", "raw")


def test_the_sliders_follow_the_study_and_the_patient(inside):
    *controls, shown = explore.sliders("embedded").children
    cohort, patient, number, phase, window, bias_field = controls
    assert cohort.options == ("embedded", "sample") and window.value == "channel_q98" and number.max == 3
    assert window.options == ("channel_q98",) and bias_field.options == (("raw", "raw"), ("N4", "n4"))
    assert [label for label, _ in phase.options][1] == "early post-contrast"
    assert len(patient.options) == 16 and all("PHANTOM" not in label for label, _ in patient.options)
    cohort.value = "sample"
    stored = Prepared.open(Study.open("sample").data("prepare"))
    single = next(name for name in stored.patient if (stored.patient == name).sum() == 1)
    patient.value = single
    assert number.max == 1 and number.value == 1


# ------------------------------------------------------------------------------------------- the sample in git


def test_the_sample_in_git_is_small_and_of_the_results_in_git(monkeypatch):
    monkeypatch.chdir(TOP)
    files = {part: [p for p in (TOP / part).rglob("*") if p.is_file()] for part in PARTS}
    assert all(files.values()), "run: make sample"
    assert sum(path.stat().st_size for paths in files.values() for path in paths) < 20e6
    study, reference = Study.open("sample"), Run.of(Study.open())
    run_ = Run.of(study)
    assert run_.name == reference.name and len(run_.networks()) == 1  # their digest is that of the table
    frozen = [pd.read_csv(path).set_index("file")["sha256"] for path in (run_.frozen, reference.frozen)]
    assert frozen[0]["seed0.safetensors"] == frozen[1]["seed0.safetensors"], "run: make sample"
    external = pd.read_csv(TOP / f"results/embedded/external/{run_.name}.csv")
    found = run_.predict("external").merge(external, on=["patient", "seed"])
    assert len(found) >= 2 and (found["probability_x"] - found["probability_y"]).abs().max() < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["05_network", "10_predict_case", "12_explore"])
def test_the_notebooks_that_show_open_on_the_sample_where_nothing_was_computed(made, tmp_path, monkeypatch, name):
    copy_compendium(tmp_path)
    for part in PARTS:
        shutil.copytree(made.top / part, tmp_path / part)
    shutil.copyfile(made.top / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    out = run(name, {} if name == "12_explore" else {"cohort": "sample"})
    notebook = nbformat.read(out, 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds and not any("widget" in kind for kind in kinds)
    assert "widgets" not in notebook.metadata and "error" not in {output.output_type for output in outputs}
    assert "embedded" not in json.dumps([o for o in outputs if o.output_type == "stream"]) or name == "12_explore"
