"""A stage says where it stands, what it took and what may be left."""

import json
import os

import pytest
from house import BARE, STAGES

from her2core.config import Study
from her2core.progress import needs, outlook, progress

PIPELINE = """stages:
  prepare: {cmd: x, deps: [data.txt], outs: ["data/${name}/prepare": {persist: true}]}
  train:
    matrix: {run: "${runs}"}
    cmd: x
    deps: ["data/${name}/prepare/index.csv"]
    outs: ["results/${name}/curves/${item.run}.csv"]
  tour: {cmd: x, deps: [data.txt], outs: [tour.png]}
  report: {cmd: x, deps: ["results/${name}/curves"], metrics: ["results/${name}/metrics.json"]}
  page: {cmd: x, deps: ["results/${name}/metrics.json", tour.png]}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(BARE.format("small").replace("runs: []", "runs: [vit, vit_b]"))
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return Study.open()


def said(study, stage, monkeypatch, capsys):
    monkeypatch.setenv("DVC_STAGE", stage)
    with progress(study):
        pass
    return capsys.readouterr().err.splitlines()


def test_a_stage_needs_all_that_lead_to_it_and_each_run_is_a_stage(study):
    trained = {"prepare", "train@vit", "train@vit_b"}
    assert needs(study) == {
        "prepare": set(),
        "train@vit": {"prepare"},
        "train@vit_b": {"prepare"},
        "tour": set(),
        "report": trained,
        "page": {*trained, "report", "tour"},
    }


def test_the_embedded_study_has_a_stage_for_each_run_and_its_page_needs_all_others():
    found = needs(Study.open("embedded"))
    assert len(found) == len(STAGES) - 1 + len(Study.open("embedded").runs)
    assert found["page"] == found.keys() - {"page"}


def test_the_stages_of_one_repro_are_counted_whatever_their_order(study, monkeypatch, capsys):
    first = [said(study, stage, monkeypatch, capsys) for stage in ("prepare", "train@vit_b", "tour", "train@vit")]
    assert [lines[0] for lines in first] == [
        "stage 1 of 6: prepare",
        "stage 2 of 6: train@vit_b",
        "stage 3 of 6: tour",
        "stage 4 of 6: train@vit",
    ]
    assert first[0][1] == "prepare: 0 s; stages left at most: 5"
    assert first[1][1] == "train@vit_b: 0 s; stages left at most: 4, of which 1 need about 0.0 min"
    monkeypatch.setattr(os, "getppid", lambda: -1)  # another repro, which found all but the last unchanged
    assert said(study, "studies/small/dvc.yaml:report", monkeypatch, capsys)[0] == "stage 4 of 6: report"


def test_without_dvc_nothing_is_said_and_a_damaged_note_is_none(study, monkeypatch, capsys):
    assert said(study, "", monkeypatch, capsys) == []
    (study.top / ".dvc/tmp/her2-progress.json").write_text("{")
    assert len(said(study, "tour", monkeypatch, capsys)) == 2
    assert set(json.loads((study.top / ".dvc/tmp/her2-progress.json").read_text())["seconds"]["small"]) == {"tour"}


def test_a_stage_that_fails_is_not_timed(study, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "tour")
    with pytest.raises(KeyError, match="a lesion"), progress(study):
        raise KeyError("a lesion")
    assert not (study.top / ".dvc/tmp/her2-progress.json").exists()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ({}, "stages left at most: 3"),
        ({"report": 120}, "stages left at most: 3, of which 1 need about 2.0 min"),
        ({"report": 60, "train@a": 60, "train@b": 180}, "stages left at most: 3, of which 2 need about 3.0 min"),
    ],
    ids=["none timed", "one timed", "a run like the others"],
)
def test_what_was_never_timed_is_left_out_but_for_a_run(seconds, words):
    assert outlook(["train@vit", "report", "page"], seconds) == words
