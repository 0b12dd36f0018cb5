"""The rehearsal in small: the real study, from the archives to report.html, on stand-ins and tiny networks."""

import json
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from rehearsal import compendium, stages
from rehearsal.archive import TAR, check_reasons, make_archive
from rehearsal.patients import REDUCED
from rehearsal.servers import Zenodo
from stand_in import serve

from her2core.config import Study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """(people, folder) of the stand-in archive."""
    folder = tmp_path_factory.mktemp("archive")
    return make_archive(REDUCED, folder, with_weights=False), folder


@pytest.fixture(scope="module")
def rehearsed(archive, tmp_path_factory):
    """(people, the copy of the compendium in which all stages ran, but for two that only show).

    The tar is cut off the first time, and this Zenodo sends all of it again, whatever part was asked for.
    """
    people, folder = archive
    zenodo = Zenodo(folder / "served", ranges=False, cut=(TAR,))
    with serve(folder / "served") as idc:
        top = compendium.make_compendium(tmp_path_factory.mktemp("copy"), folder, idc.url, zenodo.url, tiny=True)
        stages.without_dvc(top, left_out=("preparation", "network"))
    zenodo.stop()
    assert zenodo.asked.count((TAR, None)) == 2
    return people, top


def flat(values, where=()):
    """{dotted key: value} of nested values; a mapping without keys is a value."""
    if not isinstance(values, dict) or not values:
        return {".".join(where): values}
    return {k: v for key, part in values.items() for k, v in flat(part, (*where, key)).items()}


def test_the_rehearsal_differs_from_the_real_study_in_the_listed_keys_alone(monkeypatch):
    monkeypatch.chdir(compendium.TOP)
    real = Study.open("ispy").values
    found = flat(compendium.overridden(real, dict.fromkeys(compendium.DIFFERENT, "other")))
    assert {key for key, value in found.items() if flat(real).get(key) != value} == compendium.DIFFERENT
    assert compendium.DIFFERENT >= compendium.changes_for(compendium.TOP, "", "", tiny=False).keys()
    assert compendium.DIFFERENT == {
        "name", "runs", "acquire.manifests", "acquire.collections.duke", "acquire.duke_clinical",
        "acquire.ambl_her2",
        "acquire.allow_missing", "acquire.idc", "acquire.zenodo", "prepare.allow_missing", "prepare.crop_px",
        "prepare.slices", "models.weights.folder",
        "models.weights.resnet34", "models.weights.vit_b_16", "models.weights.cvt_13", "train.seeds",
        "train.epochs", "train.device", "train.threads", "evaluate.bootstrap",
    }  # fmt: skip


def test_the_real_study_ends_with_its_report_and_every_notebook_ran_to_its_end(rehearsed):
    _, top = rehearsed
    results = top / "results/rehearsal"
    assert "rehearsal cohort" in (results / "report.html").read_text()
    for path in (results / "executed").glob("*.ipynb"):
        code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert not [o for c in code for o in c.outputs if o.output_type == "error"], path.name


def test_who_cannot_be_used_has_a_reason_of_the_right_kind_and_all_others_are_in(rehearsed):
    people, top = rehearsed
    check_reasons(people, stages.reasons(top))
    flow = json.loads((top / "results/rehearsal/flow.json").read_text())
    unprepared = pd.read_csv(top / "results/rehearsal/unprepared.csv")["patient"].tolist()
    sound = [p for p in people if not p.odd or p.patient in unprepared]
    assert unprepared == [p.patient for p in people if p.odd == "negative intensities"]
    assert flow["included"] == len(sound) and flow["excluded"]["mask unusable"] == 1
    patients = pd.read_csv(top / "data/rehearsal/cohort/patients.csv").dropna(subset="split").set_index("patient")
    assert patients["label"].to_dict() == {p.patient: p.her2 for p in sound}


def test_a_stage_is_killed_once_half_way_and_then_runs_to_its_end(tmp_path):
    log, kills, command = tmp_path / "log", tmp_path / "kills", ["-c", "import time; time.sleep(0.6)"]
    kills.write_text(json.dumps({" ".join(command): 0.2}))
    shim = [sys.executable, "-S", "-E", str(compendium.TOP / "tests/rehearsal/shim.py"), str(log), str(kills)]
    assert [subprocess.run(shim + command).returncode for _ in range(2)] == [137, 0]
    assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == [137, 0]


def test_what_each_stage_took_is_noted(rehearsed):
    _, top = rehearsed
    table = stages.stage_table(compendium.noted(top)).set_index("stage")
    assert {"acquire", "01_data_preparation", "02_training@thda-n4", "page", "in all"} <= set(table.index)
    assert (table["killed"] == 0).all() and (table["peak_GB"] > 0.02).all()
