"""From the name of a study to the three tables; the dry run."""

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
from her2core.config import Study
from her2core.records import read_record

TOP = Path(__file__).resolve().parents[1]
CONFIG = EmbeddedConfig(
    source="phantom", seed=3, bayes_auc=0.95, prevalence=0.5, spy2=(1, 0, 0), spy1=(1, 0, 0), ambl=1,
    unknown_her2=0, coarse=2, jobs=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    a.get_all(CONFIG, folder)
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


def test_a_dry_run_of_the_embedded_cohort_says_that_nothing_is_downloaded(monkeypatch, capsys):
    monkeypatch.chdir(TOP)
    monkeypatch.setattr(a, "get_all", None)
    a.main(["--dry", "embedded"])
    count = 360 + 80 + 100 + 240 + 60 + 80 + 100 + 4
    assert capsys.readouterr().out.startswith(f"embedded: {count:,} synthetic patients, made here\nDownload: none")


def test_the_disk_that_a_dry_run_of_the_embedded_cohort_announces_is_what_the_files_take(raw):
    announced = float(re.search(r"Disk: ([\d.]+) GB", a._describe("small", CONFIG))[1])
    assert announced == pytest.approx(pd.read_csv(raw / "files.csv")["bytes"].sum() / 1e9, rel=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dry", "ipsy"), "acquire: no study 'ipsy'; there are embedded,"),
        (("--dyr", "ispy"), "Get or make the raw files"),
        (("--dry",), "Get or make the raw files"),
        ((), "Get or make the raw files"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused(monkeypatch, arguments, message):
    monkeypatch.chdir(TOP)
    with pytest.raises(SystemExit, match=message):
        a.main([*arguments])


def test_the_real_run_without_its_clinical_sheet_or_network_is_one_clear_line(tmp_path):
    shutil.copy(TOP / "params.yaml", tmp_path)
    shutil.copytree(TOP / "studies/ispy", tmp_path / "studies/ispy")
    (tmp_path / "manifests").symlink_to(TOP / "manifests")
    done = command("ispy", cwd=tmp_path)
    assert done.returncode != 0 and "no such file; download the clinical spreadsheet" in done.stderr
    own = tmp_path / "studies/ispy/params.yaml"
    own.write_text(own.read_text().replace(", ambl: idc}", "}").replace("https://zenodo.org", "http://127.0.0.1:9"))
    done = command("ispy", cwd=tmp_path)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "what is complete is kept, run again" in done.stderr


@pytest.mark.parametrize("cohort", ["embedded", "ispy"])
def test_every_cohort_has_a_source(monkeypatch, cohort):
    monkeypatch.chdir(TOP)
    config = Study.open(cohort).params("acquire", a.SOURCES)
    assert isinstance(config, a.SOURCES[config.source])
    with pytest.raises(ValueError, match="source='nowhere': expected"):
        replace(config, source="nowhere")
