"""What a study needs is checked before the first byte, and all that is wanting is said at once."""

import hashlib
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from stand_in import serve

from her2core.cohorts import archive
from her2core.cohorts import preflight as p
from her2core.cohorts.transfer import Patience, TransportFault
from her2core.config import Study
from her2core.formats.weights import FILES, Weights, load
from her2core.preprocess import PrepareConfig
from her2core.runs import Run

TOP = Path(__file__).resolve().parents[1]


@pytest.fixture
def compendium(tmp_path, monkeypatch):
    """A compendium with both committed studies; parameters of the tests' own are written over theirs."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(TOP / name, tmp_path)
    shutil.copytree(TOP / "studies", tmp_path / "studies")
    (tmp_path / "manifests").symlink_to(TOP / "manifests")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_embedded_study_lacks_nothing_and_its_plan_is_its_patients(compendium):
    p.main(["embedded"])
    plan = pd.read_csv(compendium / "data/embedded/preflight/plan.csv")
    assert plan.set_index("collection")["patients"].to_dict() == {"spy2": 540, "spy1": 384, "ambl": 100}


def test_the_plan_of_the_real_study_says_nothing_of_later_stages(compendium):
    before = p.plan(Study.open("ispy"))
    edit(compendium / "studies/ispy/params.yaml", "epochs: 30", "epochs: 31")
    edit(compendium / "params.yaml", "slices: 5", "slices: 6")
    pd.testing.assert_frame_equal(p.plan(Study.open("ispy")), before)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  - thda_plain ", "  - thda_plane ", "thda_plane.*models.variants has"),
        ("  - vit\n", "  - vit-channel_q97\n", "no stored quantile .0.97.*prepare.quantiles"),
        ("  - vit\n", "  - vit-chanel_q98\n", "window 'chanel_q98': expected scope_limits such as channel_q98"),
        ("  - thda_plain ", "  - thda_adjacent ", "thda_adjacent needs prepare.neighbours: true"),
        ("bias_fields: [raw, n4]", "bias_fields: [raw]", "thda-n4 needs n4 in prepare.bias_fields"),
        ("patch_px: 6 #", "patch_px: 5 #", "patches of 5 px do not tile an image of 48 px"),
        ("  seeds: [0, 1, 2]", "  seeds: []", "training needs a seed"),
        ("  bootstrap: 2000", "  bootstrap: 1", "bootstrap >= 2"),
        ("  lr: 0.004", "  lrr: 0.004", "lrr"),
        ("  lr: 0.004", "  lr: -0.004", "expected lr, gradient_clip > 0"),
        ("    vit: { lr: 0.002 }", "    vitt: { lr: 0.002 }", "train.of: no model is called vitt"),
        ("  seeds: [0, 1, 2]", "  seeds: [0, 1, 0]", r"seeds=.0, 1, 0.: expected each once"),
        ("  threads: 1", "  threads: 0", "training needs a seed, .* and a thread"),
        ("  device: cpu", "  device: gpu", "device='gpu': expected auto, cpu, cuda or mps"),
        ("  device: cpu", "  device: mps", "train: .*MPS.*; device: auto takes what is there"),
        ("0.99, 1.0]", "0.99, 1.5]", r"quantiles must lie in \[0, 1\]"),
        ("  jobs: 3", "  jobs: 0", "train.jobs is 0"),
        ("  - vit\n", "  - vit\n  - vit\n", "runs has vit twice"),
        ("last: { attention_stages", "last: { stages", 'models.variants.last: can not match "stages"'),
        ("separate: { share_weights: false", "separate: { width: '8'", "models.variants.separate: .*width"),
        ("  - thda-global_minmax-raw", "  - thda-global_q98-raw", "runs lack thda-global_minmax-raw"),
    ],
    ids=lambda value: value.strip()[:30],
)
def test_a_parameter_of_a_later_stage_that_cannot_be_is_found_before_anything_is_made(
    compendium, old, new, message
):
    edit(compendium / "params.yaml", old, new)
    with pytest.raises(SystemExit, match=f"(?s)preflight: .*{message}"):
        p.main(["embedded"])
    assert not (compendium / "data").exists()


@pytest.mark.parametrize("name", ["embedded", "instrument", "ispy"])
def test_every_published_study_stores_what_its_own_runs_see(compendium, name):
    """The rehearsal replaces the real study's runs, so it cannot say this of them."""
    study = Study.open(name)
    stored = study.params("prepare", PrepareConfig)
    for run in (Run.of(study, one) for one in study.runs):
        assert run.bias_field in stored.bias_fields and (stored.neighbours or not run.sees_neighbours), run.name


def test_all_that_is_wrong_is_said_at_once_and_each_thing_once(compendium):
    edit(compendium / "params.yaml", "  lr: 0.004", "  lrr: 0.004")
    edit(compendium / "params.yaml", "  bootstrap: 2000", "  bootstrap: 1")
    with pytest.raises(ValueError) as stop:
        p.check_study(Study.open("embedded"))
    found = str(stop.value).split("; ")
    assert len(found) == 2 and "lrr" in found[0] and "bootstrap >= 2" in found[1]


@pytest.mark.parametrize("runs", ["null", "vit"])
def test_runs_that_are_no_list_are_told(compendium, runs):
    text = (compendium / "params.yaml").read_text()
    (compendium / "params.yaml").write_text(re.sub(r"(?s)runs:.*?\n\n", f"runs: {runs}\n\n", text, count=1))
    with pytest.raises(SystemExit, match='^\npreflight: params.yaml: wrong value type for field "runs".*$'):
        p.main(["embedded"])


def test_a_study_with_nothing_to_compare_is_told(compendium):
    study = Study.open("embedded")
    study.values["runs"] = ["thda-global_minmax-raw", "vit"]
    with pytest.raises(ValueError, match="^runs need another thda-… to compare with thda-global_minmax-raw$"):
        p.check_study(study)


def test_a_disk_that_is_too_small_for_the_whole_study_is_told(compendium, monkeypatch):
    usage = shutil.disk_usage(compendium)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(1e9)))
    with pytest.raises(SystemExit, match=r"preflight: .* GB needed, 1 GB free"):
        p.main(["embedded"])


def test_without_network_the_real_study_stops_in_seconds_and_says_all_that_is_wanting(compendium):
    own = compendium / "studies/ispy/params.yaml"
    edit(own, "https://s3.amazonaws.com", "http://127.0.0.1:9")
    edit(own, "https://zenodo.org", "http://127.0.0.1:8")
    environment = {"HTTPS_PROXY": "http://127.0.0.1:7", "HOME": str(compendium), "TORCH_HOME": str(compendium)}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "her2core.cohorts.preflight", "ispy"],
        env={"PYTHONPATH": str(TOP), "PATH": "/usr/bin"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for wanting in (":9", ":8", "resnet34", "no spreadsheet|clinical"):
        assert re.search(wanting, done.stderr), wanting
    assert len(done.stderr.strip().splitlines()) == 1
    assert time.monotonic() - start < 60  # 10 on a machine that does nothing else


def test_what_is_no_fault_of_the_study_is_not_hidden(compendium, monkeypatch):
    monkeypatch.setattr(p, "_check_disk", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        p.check_study(Study.open("embedded"))


def test_patients_that_are_here_need_no_server(compendium, monkeypatch):
    study = Study.open("ispy")
    asked = []
    monkeypatch.setattr(archive, "check_reachable", asked.append)
    monkeypatch.setattr(archive, "_read_ispy", lambda config, folder: None)
    monkeypatch.setitem(archive.LABELS, "ambl", lambda config, folder: None)
    p._patients(study, network=True)
    assert sorted(asked) == ["https://s3.amazonaws.com", "https://zenodo.org"]
    study.data("acquire").mkdir(parents=True)
    (study.data("acquire") / "metadata.csv").write_text("pid,dataset\nA,spy1\nB,spy2\nC,ambl\n")
    (study.data("acquire") / "BreastDCEDL_metadata_min_crop.csv").touch()
    p._patients(study, network=True)
    assert len(asked) == 2


def test_a_server_that_does_not_answer_is_wanting(compendium, monkeypatch):
    def silent(url):
        raise TransportFault(f"{url} is silent")

    monkeypatch.setattr(archive, "check_reachable", silent)
    monkeypatch.setattr(p, "_pretrained", lambda *_, **__: None)
    words = "https://s3.amazonaws.com is silent; https://zenodo.org is silent; .*no spreadsheet"
    with pytest.raises(ValueError, match=words):
        p.check_study(Study.open("ispy"))


@pytest.fixture
def torchvision(tmp_path, monkeypatch):
    """A server with a file of one tensor that is called ResNet-34's, its digest, and torch's empty cache."""
    (tmp_path / "served").mkdir()
    torch.save({"a": torch.arange(3)}, path := tmp_path / "served" / FILES["resnet34"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("her2core.cohorts.transfer.PATIENCE", Patience(tries=2, pause_s=0.01))
    with serve(tmp_path / "served") as server:
        monkeypatch.setattr("her2core.formats.weights._TORCHVISION", server.url)
        yield server, Weights(resnet34=hashlib.sha256(path.read_bytes()).hexdigest()[:8])


def test_weights_that_lie_nowhere_are_downloaded_once(torchvision, tmp_path):
    server, weights = torchvision
    p._fetch_weights("resnet34", weights)
    assert (tmp_path / "torch/hub/checkpoints" / FILES["resnet34"]).is_file()
    server.faults = {404: ""}
    p._fetch_weights("resnet34", weights)
    assert torch.equal(load("resnet34", weights)["a"], torch.arange(3))


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"flipped": ""}, "SHA256 [0-9a-f]{64}, expected [0-9a-f]{8}, in each of 2 downloads; deleted"),
        ({"truncated": ""}, "IncompleteRead"),
        ({404: ""}, "not available; the server answers HTTP 404"),
    ],
    ids=str,
)
def test_a_download_of_weights_that_fails_is_told_with_the_other_ways(torchvision, tmp_path, faults, message):
    server, weights = torchvision
    server.faults = faults
    ways = "resnet34.* is not in .*, or set pretrained: false to train from scratch; its download failed: "
    with pytest.raises(ValueError, match=ways + f"http.*{message}"):
        p._fetch_weights("resnet34", weights)
    assert not list((tmp_path / "torch").rglob("[!.]*.pth"))


def test_a_dry_run_of_the_real_study_says_what_it_takes_and_lacks_and_needs_no_network(
    compendium, capsys, monkeypatch
):
    monkeypatch.setattr(p, "check_reachable", None)
    p.main(["--dry", "ispy"])
    text = capsys.readouterr().out
    for words in (
        "Patients: 1,253; HER2 status known in BreastDCEDL: 982 \\+ 167 = 1,149",
        "CC BY 4.0", "CC BY-NC 4.0", "at 100 Mbit/s", r"Disk: \d+\.\d GB in all", "DVC's cache: ",
        "Pretrained weights: .*resnet34.*", "85 trainings: about .* h on an H100",
        "(?s)Wanting here:\n- .*no spreadsheet has AMBL's columns",
    ):  # fmt: skip
        assert re.search(words, text), words


def test_a_dry_run_of_the_embedded_study_downloads_nothing(compendium, capsys):
    p.main(["--dry", "embedded"])
    text = capsys.readouterr().out
    assert text.endswith("Wanting here: nothing\n")
    assert "Patients: 1,024\n" in text and "Download" not in text and "Pretrained weights: none" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dry", "ipsy"), "preflight: no study 'ipsy'; there are embedded,"),
        (("--dyr", "ispy"), "Before the first byte"),
        ((), "Before the first byte"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused(compendium, arguments, message):
    with pytest.raises(SystemExit, match=message):
        p.main([*arguments])
