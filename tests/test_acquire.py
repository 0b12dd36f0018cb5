"""From the word in params.yaml to the three tables; the dry run."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from her2core.cohorts import acquire as a
from her2core.cohorts.phantom import EmbeddedConfig
from her2core.config import params
from her2core.records import read_record

TOP = Path(__file__).resolve().parents[1]
CONFIG = EmbeddedConfig(
    source="phantom", seed=3, bayes_auc=0.95, prevalence=0.5, spy2=(1, 0, 0), spy1=(1, 0, 0), ambl=1,
    unknown_her2=0, coarse=2, jobs=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    a.acquire(CONFIG, folder)
    return folder


def test_files_are_listed_with_sizes_series_and_digests(raw):
    files = pd.read_csv(raw / "files.csv").set_index("patient")
    for patient, row in files.iterrows():
        record = read_record(raw, patient)
        assert row["bytes"] == sum((raw / n).stat().st_size for n in record["files"])
        assert row["files"] == len(record["files"]) and row["sha256"] == record["sha256"]
    assert files["series_uid"].isna().to_dict() == {p: "SPY1" in p for p in files.index}  # NIfTI has none


def test_the_truth_is_beside_the_table_and_not_in_it(raw):
    truth, metadata = pd.read_csv(raw / "truth.csv"), pd.read_csv(raw / "metadata.csv")
    assert truth["patient"].tolist() == metadata["pid"].tolist()
    assert not set(truth) & set(metadata) - {"patient"}


def command(*arguments, cwd=TOP):
    env = os.environ | {"PYTHONPATH": str(TOP)}
    return subprocess.run(
        [sys.executable, "-m", "her2core.cohorts.acquire", *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
    )


def test_a_dry_run_of_the_real_cohort_says_what_it_would_take():
    done = command("--dry", "ispy")
    assert done.returncode == 0, done.stderr
    for words in ("1,253", "1,149", "CC BY 4.0", "CC BY-NC 4.0", "982", "at 1 Gbit/s", r"Disk: up to \d+ GB"):
        assert re.search(words, done.stdout), words


def test_a_dry_run_of_the_embedded_cohort_says_that_nothing_is_downloaded(monkeypatch):
    monkeypatch.chdir(TOP)
    assert a.dry("tiny").startswith(
        f"tiny: {6 + 4 + 4 + 6 + 4 + 4 + 6 + 1} synthetic patients, made here\nDownload: none"
    )


def test_the_disk_that_a_dry_run_of_the_embedded_cohort_announces_is_what_the_files_take(raw, monkeypatch):
    monkeypatch.setattr(a, "params", lambda *_: CONFIG)
    announced = float(re.search(r"Disk: ([\d.]+) GB", a.dry("small"))[1])
    assert announced == pytest.approx(pd.read_csv(raw / "files.csv")["bytes"].sum() / 1e9, rel=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dry", "ipsy"), "acquire: params.yaml: ipsy has no section 'acquire'; no such cohort"),
        (("--dyr",), "Get or make the raw files"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused(arguments, message):
    done = command(*arguments)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_the_real_run_without_its_clinical_sheet_or_network_is_one_clear_line(tmp_path):
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(TOP / name, tmp_path)
    for name in ("her2core", "manifests"):
        (tmp_path / name).symlink_to(TOP / name)
    text = (tmp_path / "params.yaml").read_text().replace("cohort: embedded", "cohort: ispy", 1)
    (tmp_path / "params.yaml").write_text(text)
    done = command(cwd=tmp_path)
    assert done.returncode != 0 and "no such file; download the clinical spreadsheet" in done.stderr
    text = text.replace(", ambl: idc}", "}").replace("https://zenodo.org", "http://127.0.0.1:9")
    (tmp_path / "params.yaml").write_text(text)
    done = command(cwd=tmp_path)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "what is complete is kept, run again" in done.stderr


@pytest.mark.parametrize("cohort", ["embedded", "tiny", "ispy"])
def test_every_cohort_has_a_source(monkeypatch, cohort):
    monkeypatch.chdir(TOP)
    config = params("acquire", a.SOURCES, cohort)
    assert isinstance(config, a.SOURCES[config.source])
    with pytest.raises(ValueError, match="source='nowhere': expected"):
        replace(config, source="nowhere")
