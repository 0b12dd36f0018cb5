"""From the name of a study to the three tables; the dry run."""

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ipsy",), "acquire: no study 'ipsy'; there are embedded,"),
        (("--dry", "ispy"), "Get or make the raw files"),
        (("--dry",), "Get or make the raw files"),
        ((), "Get or make the raw files"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused(monkeypatch, arguments, message):
    monkeypatch.chdir(TOP)
    with pytest.raises(SystemExit, match=message):
        a.main([*arguments])


@pytest.mark.parametrize("cohort", ["embedded", "ispy"])
def test_every_cohort_has_a_source(monkeypatch, cohort):
    monkeypatch.chdir(TOP)
    study = Study.open(cohort)
    config = study.params("acquire", a.SOURCES)
    assert isinstance(config, a.SOURCES[config.source])
    study.values["acquire"]["source"] = "nowhere"
    with pytest.raises(ValueError, match="source is 'nowhere', expected one of phantom, archive, folder"):
        study.params("acquire", a.SOURCES)
