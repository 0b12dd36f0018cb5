"""The embedded cohort on disk: real formats, complete or named, resumable."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from dicom_samples import same_grid

from her2core.auc import auc
from her2core.cohort import patient_table
from her2core.cohorts import phantom as e
from her2core.cohorts.acquire import get_all
from her2core.formats.dicom import read_dce
from her2core.formats.nifti import read_breastdcedl
from her2core.formats.seg import read_seg
from her2core.phantom.patient import make_patient
from her2core.phantom.sites import SITES, draw_protocol
from her2core.records import check_complete

CONFIG = e.EmbeddedConfig(
    source="phantom", seed=3, bayes_auc=0.95, prevalence=0.5, spy2=(2, 0, 2), spy1=(2, 2, 0), ambl=2,
    unknown_her2=1, coarse=2, jobs=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    get_all(CONFIG, folder)
    return folder


@pytest.fixture
def truth(raw):
    rows = {row["patient"]: row for row in e.draw_cohort(CONFIG)}

    def of(dataset):
        row = next(r for r in rows.values() if r["dataset"] == dataset)
        site = e.site_of(row, CONFIG.coarse)
        return row, site, make_patient(row["seed"], row["her2"], site, bayes_auc=CONFIG.bayes_auc)

    return of


def test_every_split_has_its_patients_and_its_share_of_positives():
    table = pd.DataFrame(e.draw_cohort(replace(CONFIG, spy2=(10, 4, 6), prevalence=0.4)))
    part = table[table["dataset"] == "spy2"]
    assert part.groupby("split", sort=False)["her2"].agg(["size", "sum"]).to_numpy().tolist() == [
        [10, 4],
        [6, 2],
        [4, 2],
    ]
    assert table["patient"].is_unique and table["seed"].is_unique
    assert (~table["her2_known"]).sum() == 1


def test_neither_site_nor_protocol_nor_order_nor_age_tells_the_label():
    config = replace(CONFIG, spy2=(1000, 0, 0), spy1=(600, 0, 0), ambl=400, prevalence=0.4)
    rows = e.draw_cohort(config)
    her2 = np.array([row["her2"] for row in rows])
    sites = [draw_protocol(row["dataset"], row["seed"]) for row in rows]
    features = {
        "order": np.arange(len(rows)),
        "dataset": [row["dataset"] == "spy2" for row in rows],
        "age": [row["age"] for row in rows],
        "gain": [s.gain / SITES[s.name].gain for s in sites],
        "field strength": [s.field_T for s in sites],
        "slices": [s.shape[0] for s in sites],
        "pixel": [s.spacing_mm[1] for s in sites],
        "bits": [s.bits for s in sites],
    }
    n1, n0 = her2.sum(), (1 - her2).sum()
    standard_error = np.sqrt((n1 + n0 + 1) / (12 * n1 * n0))  # of an AUC of 0.5
    for name, values in features.items():
        assert abs(auc(her2, np.asarray(values, float)) - 0.5) < 2 * standard_error, name


def test_the_metadata_pass_as_a_patient_table(raw):
    table = patient_table(pd.read_csv(raw / "metadata.csv"))
    assert len(table) == 11
    assert table["reason"].value_counts().to_dict() == {"": 10, "HER2 unknown": 1}


def test_spy2_reads_back_voxel_for_voxel_with_its_inverse_mask(raw, truth):
    row, _, patient = truth("spy2")
    home = raw / "spy2" / row["patient"]
    series = read_dce(home / "dce")
    np.testing.assert_array_equal(series.array, patient.series.array)
    assert same_grid(series.geometry, patient.series.geometry)
    mask = read_seg(home / "seg.dcm", series.geometry, series.array.shape[1:], meaning="tumour_is_zero")
    np.testing.assert_array_equal(mask, patient.annotator_mask)


def test_ambl_reads_back_voxel_for_voxel_with_its_segments(raw, truth):
    row, site, patient = truth("ambl")
    home = raw / "ambl" / row["patient"]
    series = read_dce(home / "dce")
    np.testing.assert_array_equal(series.array, patient.series.array)
    assert series.times_s == pytest.approx(site.phase_times_s)
    mask = read_seg(home / "seg.dcm", series.geometry, series.array.shape[1:], meaning="segments")
    np.testing.assert_array_equal(mask, patient.lesion_mask)


def test_spy1_reads_back_voxel_for_voxel_with_geometry_from_the_table(raw, truth):
    row, site, patient = truth("spy1")
    line = pd.read_csv(raw / "metadata.csv").set_index("pid").loc[row["patient"]]
    series, mask = read_breastdcedl(raw / "spy1", row["patient"], line)
    np.testing.assert_array_equal(series.array, patient.series.array)
    np.testing.assert_array_equal(mask, patient.annotator_mask)
    assert series.geometry.spacing_mm == pytest.approx(site.spacing_mm)


def snapshot(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_parameters_write_the_same_bytes(raw, tmp_path):
    get_all(replace(CONFIG, jobs=2), tmp_path)
    first, second = snapshot(raw), snapshot(tmp_path)
    assert first == second


@pytest.mark.parametrize("damage", ["truncated", "missing", "half a patient"])
def test_a_damaged_patient_is_named_and_made_again_and_the_others_are_left(raw, tmp_path, damage):
    get_all(CONFIG, tmp_path)
    whole = snapshot(tmp_path)
    name = e.draw_cohort(CONFIG)[0]["patient"]
    victim = sorted((tmp_path / "spy2" / name / "dce").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-7]) if damage == "truncated" else victim.unlink()
    if damage == "half a patient":
        (tmp_path / "records" / f"{name}.json").unlink()
    with pytest.raises(ValueError, match=f"{name}: .*(expected|not acquired).*python -m her2core.cohorts.acquire"):
        check_complete(name, tmp_path)
    other = next((tmp_path / "ambl").rglob("*.dcm"))
    before = other.stat().st_mtime_ns
    get_all(CONFIG, tmp_path)
    assert snapshot(tmp_path) == whole
    assert other.stat().st_mtime_ns == before


def test_other_parameters_leave_nothing_of_the_old_cohort(tmp_path):
    get_all(CONFIG, tmp_path)
    get_all(replace(CONFIG, seed=4, ambl=0), tmp_path)
    assert not (tmp_path / "ambl").exists()
    assert len(list((tmp_path / "records").glob("*.json"))) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"prevalence": 0.0}, "prevalence"), ({"prevalence": 1.0}, "prevalence")],
    ids=str,
)
def test_a_cohort_that_cannot_be_made_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_shading_is_a_multiple_of_the_sites():
    row = e.draw_cohort(CONFIG)[0]
    plain = e.site_of(row, CONFIG.coarse)
    assert e.site_of(row, CONFIG.coarse, 1.5) == replace(plain, bias=1.5 * plain.bias)
    assert make_patient(1, 1, replace(plain, bias=0.0)).bias_field.std() == 0


@pytest.mark.parametrize("shading", [-0.1, 3.1])
def test_shading_that_no_coil_has_is_refused(shading):
    with pytest.raises(ValueError, match=f"shading must lie between 0 and 3, found {shading}"):
        replace(CONFIG, shading=shading)
