"""From volumes to packed arrays."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from house import PARAMS

from her2core import preprocess as p
from her2core.bias_field import N4Config
from her2core.cohort import included, patient_table
from her2core.cohorts.acquire import get_all
from her2core.cohorts.phantom import EmbeddedConfig
from her2core.config import build
from her2core.formats.nifti import write_breastdcedl
from her2core.formats.volume import DceSeries, Geometry, Phases
from her2core.kinetics import lesion_features
from her2core.normalize import SCOPES
from her2core.records import file_digest, read_digests

TOP = Path(__file__).resolve().parents[1]
CONFIG = p.PrepareConfig(
    crop_mm=64.0, crop_px=32, slices=3, quantiles=(0.0, 0.98, 1.0), early_s=150.0, late_s=450.0,
    bias_fields=("raw", "n4"), neighbours=True, allow_missing=False, jobs=1, n4=N4Config(iterations=(5, 5)),
)  # fmt: skip
COHORT = EmbeddedConfig(
    source="phantom", seed=5, bayes_auc=0.95, prevalence=0.5, spy2=(1, 1, 0), spy1=(1, 1, 0), ambl=2,
    unknown_her2=0, coarse=2, jobs=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    get_all(COHORT, folder)
    return folder


@pytest.fixture(scope="module")
def patients(raw):
    return included(patient_table(pd.read_csv(raw / "metadata.csv")))


@pytest.fixture(scope="module")
def prepared(raw, patients, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "prepare"
    return out, p.prepare(patients, raw, out, CONFIG)[0]


def test_the_packed_arrays_have_the_shapes_that_are_written_down(prepared, patients):
    out, table = prepared
    n = len(table)
    assert table["patient"].nunique() == len(patients) == 6
    for name in ("raw", "n4"):
        assert np.load(out / f"images_{name}.npy").shape == (n, 3, 32, 32)
        assert np.load(out / f"quantiles_{name}.npy").shape == (n, len(SCOPES), 3, 3)
        assert np.load(out / f"moments_{name}.npy").shape == (n, len(SCOPES), 3, 2)
        kinds = [np.load(out / f"{kind}_{name}.npy").dtype for kind in ("images", "quantiles", "moments")]
        assert kinds == [np.uint16, np.uint16, np.float32]
        assert np.load(out / f"neighbours_{name}.npy").shape == (n, 2, 3, 32, 32)
    assert np.load(out / "masks.npy").dtype == bool
    assert np.load(out / "levels.npy").tolist() == [0.0, 0.98, 1.0]
    assert (table["tumour_mm2"] > 0).all() and (table["pixel_mm"] == 2.0).all()
    pd.testing.assert_frame_equal(pd.read_csv(out / "slices.csv"), table)
    assert [f.name for f in out.parent.iterdir()] == ["prepare"]


def test_stored_statistics_are_those_of_the_volume_and_of_the_slice(prepared, raw, patients):
    out, table = prepared
    moments = np.load(out / "moments_raw.npy")
    quantiles, images = np.load(out / "quantiles_raw.npy"), np.load(out / "images_raw.npy")
    row = patients[patients["dataset"] == "spy1"].iloc[0]
    phases = p.read_patient(row, raw, CONFIG).phases
    first = int(np.flatnonzero(table["patient"] == row["patient"])[0])
    by = {"axis": None, "method": "inverted_cdf"}
    for phase in range(3):
        expected = np.quantile(phases[phase], CONFIG.quantiles, **by)
        np.testing.assert_array_equal(quantiles[first, SCOPES.index("channel"), phase], expected)
    everything = np.quantile(phases, CONFIG.quantiles, **by)
    np.testing.assert_array_equal(quantiles[first, SCOPES.index("global"), 2], everything)
    own = np.quantile(images[first], CONFIG.quantiles, **by)
    np.testing.assert_array_equal(quantiles[first, SCOPES.index("slice"), 1], own)
    for scope, phase, values in (("slice", 1, images[first]), ("channel", 2, phases[2]), ("global", 0, phases)):
        expected = [values.mean(), values.std()]
        np.testing.assert_allclose(moments[first, SCOPES.index(scope), phase], expected, rtol=1e-6)


def same_bytes(folder, other):
    names = sorted(f.name for f in folder.iterdir())
    assert names == sorted(f.name for f in other.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_the_worksheet_has_each_patients_lesion_and_the_files_times(prepared, raw, patients):
    out, _ = prepared
    sheet = pd.read_csv(out / "kinetics.csv").set_index("patient")
    assert sheet.index.tolist() == patients["patient"].tolist()
    row = patients[patients["dataset"] == "ambl"].iloc[0]
    found = p.read_patient(row, raw, CONFIG)
    phases, mask, geometry, times_s = found.phases, found.mask, found.geometry, found.times_s
    expected = lesion_features(phases, mask, geometry.spacing_mm)
    assert sheet.loc[row["patient"], list(expected)].astype(float).to_dict() == pytest.approx(expected, abs=1e-6)
    assert sheet.loc[row["patient"], "early_s"] == pytest.approx(times_s[1])
    of_nifti = patients.loc[patients["dataset"] == "spy1", "patient"]
    assert sheet.loc[of_nifti, ["early_s", "late_s"]].isna().all(axis=None)


def test_masks_lie_where_the_lesion_is_in_the_images(prepared, raw, patients):
    out, table = prepared
    masks, images = np.load(out / "masks.npy"), np.load(out / "images_raw.npy")
    assert masks.any((1, 2)).all()
    area = masks.sum((1, 2)) * table["pixel_mm"] ** 2
    fits = table["tumour_mm2"] < 0.5 * CONFIG.crop_mm**2
    assert np.median(np.abs(area / table["tumour_mm2"] - 1)[fits]) < 0.2
    uptake = images[:, 1].astype(float) - images[:, 0]
    assert all(u[m].mean() > u[~m].mean() for u, m in zip(uptake, masks, strict=True))


def test_neighbours_are_the_slices_below_and_above(prepared):
    out, table = prepared
    images, neighbours = np.load(out / "images_raw.npy"), np.load(out / "neighbours_raw.npy")
    adjacent = np.flatnonzero((table["z"].diff() == 1) & (table["patient"] == table["patient"].shift()))
    assert len(adjacent)
    for row in adjacent:
        np.testing.assert_array_equal(neighbours[row, 0], images[row - 1])
        np.testing.assert_array_equal(neighbours[row - 1, 1], images[row])


def test_an_early_phase_that_is_also_the_late_one_is_read_twice(tmp_path, rng):
    array = rng.integers(0, 900, (2, 6, 20, 20)).astype(np.uint16)
    mask = np.zeros((6, 20, 20), bool)
    mask[2:4, 8:12, 8:12] = True
    series = DceSeries(array, Geometry((2.0, 1.0, 1.0)), (float("nan"),) * 2)
    write_breastdcedl(series, mask, tmp_path / "spy1", patient_id="ISPY1_1139", cohort="spy1", phases=[0, 2])
    row = {
        "patient": "ISPY1_1139",
        "layout": "breastdcedl",
        "dataset": "spy1",
        "slice_thick": 2.0,
        "xy_spacing": 1.0,
    }
    phases = p.read_patient(row | {"pre": 0, "post_early": 2, "post_late": 2}, tmp_path, CONFIG).phases
    np.testing.assert_array_equal(phases, array[[0, 1, 1]])


@pytest.mark.slow
def test_preparing_twice_gives_the_same_bytes_on_one_process_and_on_two(prepared, raw, patients, tmp_path):
    p.prepare(patients, raw, tmp_path / "out", replace(CONFIG, jobs=2))
    same_bytes(prepared[0], tmp_path / "out")


@pytest.fixture
def computed(monkeypatch):
    """The patients that are really prepared, in this process."""
    names, prepare_patient = [], p.prepare_patient

    def noted(row, *arguments):
        names.append(row["patient"])
        return prepare_patient(row, *arguments)

    monkeypatch.setattr(p, "prepare_patient", noted)
    return names


@pytest.mark.parametrize("dataset", ["spy2", "spy1", "ambl"])
def test_a_damaged_file_ends_in_an_error_that_names_it_and_the_finished_patients_are_kept(
    raw, patients, dataset, tmp_path, computed, prepared
):
    name = patients.loc[patients["dataset"] == dataset, "patient"].iloc[0]
    lenient = replace(CONFIG, allow_missing=True)  # a damaged file is no reason to go on without the patient
    victim = sorted(f for f in (raw / dataset).rglob("*") if f.is_file() and name in str(f))[0]
    whole = victim.read_bytes()
    try:
        victim.write_bytes(whole[:-200])
        with pytest.raises(ValueError, match=f"(?s)1 of 6 patients, 1 because of files.*{name}.*{victim.name}"):
            p.prepare(patients, raw, tmp_path / "out", lenient)
        victim.write_bytes(bytes(len(whole)))  # right size, wrong content
        with pytest.raises(ValueError, match=f"(?s)1 of 6 patients, 1 because of files.*{name}: not the files"):
            p.prepare(patients, raw, tmp_path / "out", lenient)
    finally:
        victim.write_bytes(whole)
    assert not (tmp_path / "out").exists()
    p.prepare(patients, raw, tmp_path / "out", CONFIG)
    assert sorted(computed) == sorted([*patients["patient"], name, name])  # the damaged one three times
    same_bytes(prepared[0], tmp_path / "out")


def test_a_patient_that_cannot_be_prepared_is_a_row_with_a_reason_where_that_is_allowed(
    raw, patients, tmp_path, monkeypatch, prepared
):
    name = patients.loc[1, "patient"]

    def refuse(row, *arguments, prepare_patient=p.prepare_patient):
        if row["patient"] == name:
            raise ValueError(f"{name}: no body")
        return prepare_patient(row, *arguments)

    monkeypatch.setattr(p, "prepare_patient", refuse)
    with pytest.raises(
        ValueError, match=f"(?s)1 of 6 patients cannot be prepared; .*allow_missing.*\n{name}: no body"
    ):
        p.prepare(patients, raw, tmp_path / "out", CONFIG)
    slices, unprepared = p.prepare(patients, raw, tmp_path / "out", replace(CONFIG, allow_missing=True))
    assert unprepared.to_dict("records") == [
        {"patient": name, "dataset": patients.loc[1, "dataset"], "split": patients.loc[1, "split"]}
        | {"label": patients.loc[1, "label"], "reason": "cannot be prepared: no body"}
    ]
    assert set(slices["patient"]) == set(patients["patient"]) - {name}
    written = pd.read_csv(tmp_path / "out/slices.csv")
    wanted = pd.read_csv(prepared[0] / "slices.csv")
    pd.testing.assert_frame_equal(written, wanted[wanted["patient"] != name].reset_index(drop=True))


def test_a_disk_that_fails_is_no_reason_against_a_patient(raw, patients, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(p.Part, "save", full)
    with pytest.raises(ValueError, match="(?s)6 of 6 patients, 6 because of files.*No space left"):
        p.prepare(patients, raw, tmp_path / "out", replace(CONFIG, allow_missing=True))
    assert not (tmp_path / "out").exists()


def test_where_nobody_can_be_prepared_the_study_does_not_go_on(raw, patients, tmp_path, monkeypatch):
    monkeypatch.setattr(p, "as_uint16", lambda phases, patient: (Phases(2, 1, 0), 1.0))
    with pytest.raises(ValueError, match="6 of 6 patients cannot be prepared"):
        p.prepare(patients, raw, tmp_path / "out", replace(CONFIG, allow_missing=True))


def test_the_reason_for_what_simpleitk_refuses_is_one_line_and_the_same_on_every_machine(tmp_path, monkeypatch):
    def refuse(row, raw, config):
        raise RuntimeError(f"thrown in N4:\n/src/N4.cxx:9:\nITK ERROR: N4(0x55d0c7a1): {raw}/a.nii.gz is flat")

    monkeypatch.setattr(p, "prepare_patient", refuse)
    found = p._make_part(({"patient": "A", "layout": "dicom_roi"}, tmp_path / "part"), tmp_path, CONFIG)
    assert found == ("ITK ERROR: N4: a.nii.gz is flat", False)


SCRIPT = """
import sys
import pandas as pd
from pathlib import Path
from her2core import preprocess
sys.path.insert(0, {tests!r})
from test_preprocess import CONFIG
preprocess.prepare(pd.read_csv({table!r}), {raw!r}, {out!r}, CONFIG)
"""


def test_a_run_killed_in_the_middle_goes_on_where_it_stopped(raw, patients, prepared, tmp_path, computed):
    table, out = tmp_path / "patients.csv", tmp_path / "out"
    patients.to_csv(table, index=False)
    patients = pd.read_csv(table)  # as the stage reads it
    names = {"tests": str(TOP / "tests"), "table": str(table), "raw": str(raw), "out": str(out)}
    script = SCRIPT.format(**names)
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(TOP)}, cwd=TOP)
    deadline = time.monotonic() + 120
    try:
        while len(list(tmp_path.glob(".out-parts/[!.]*.npz"))) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    finished = {f.name.split(".")[0] for f in tmp_path.glob(".out-parts/[!.]*.npz")}
    assert 2 <= len(finished) < 6 and not out.exists()
    (tmp_path / ".out-parts" / ".partial-0123x.npz").write_bytes(b"half a par")
    p.prepare(patients, raw, out, CONFIG)
    assert set(computed) == set(patients["patient"]) - finished
    same_bytes(prepared[0], out)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["out", "patients.csv"]


def test_a_part_counts_only_for_the_same_parameters_row_record_and_sources(raw, patients, monkeypatch):
    row = patients.iloc[0].to_dict()
    key = p._part_key(row, raw, CONFIG)
    assert p._part_key(dict(row), raw, replace(CONFIG, jobs=2)) == key
    others = [p._part_key(row, raw, replace(CONFIG, crop_px=33)), p._part_key(row | {"split": "test"}, raw, CONFIG)]
    others += [p._part_key(row, raw / "elsewhere", CONFIG)]
    monkeypatch.setattr(p, "CODE_DIGEST", "edited")
    assert len({key, *others, p._part_key(row, raw, CONFIG)}) == 5


def test_a_damaged_part_is_made_again(raw, patients, tmp_path):
    job = patients.iloc[0].to_dict(), tmp_path / "part.npz"
    assert p._make_part(job, raw, CONFIG) == ("", False)
    whole = job[1].read_bytes()
    for damaged in (b"", whole[: len(whole) // 2]):
        job[1].write_bytes(damaged)
        assert p._make_part(job, raw, CONFIG) == ("", False)
        assert job[1].read_bytes() == whole


def test_the_table_of_digests_names_every_other_file(prepared):
    found = read_digests(prepared[0] / "digests.csv", "")
    assert found == {f.name: file_digest(f) for f in prepared[0].iterdir() if f.name != "digests.csv"}


@pytest.mark.parametrize("at", [0.3, 0.9])
def test_a_part_that_changed_before_all_were_together_is_named(raw, patients, tmp_path, monkeypatch, at):
    real = p.each

    def then_changed(*arguments):
        answers = real(*arguments)
        part = next(tmp_path.glob(".out-parts/*.npz"))
        content = bytearray(part.read_bytes())
        content[int(len(content) * at)] ^= 1
        part.write_bytes(content)
        return answers

    monkeypatch.setattr(p, "each", then_changed)
    with pytest.raises(ValueError, match=r"\.npz: .*, expected a prepared patient; delete it and run again"):
        p.prepare(patients[:1], raw, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


SHORT = [MemoryError("Unable to allocate 3.0 GiB"), RuntimeError("ITK ERROR: Failed to allocate memory for image.")]


@pytest.mark.parametrize("error", [*SHORT, MemoryError()], ids=["numpy", "SimpleITK", "Python"])
def test_want_of_memory_is_no_reason_against_a_patient_and_names_it_and_the_remedy(
    tmp_path, patients, raw, monkeypatch, error
):
    def short(row, *_):
        raise error

    monkeypatch.setattr(p, "prepare_patient", short)
    name = patients["patient"][0]
    with pytest.raises(
        ValueError, match=f"(?s)1 of 1 patients, 1 because .*{name}: out of memory .*lower prepare.jobs"
    ):
        p.prepare(patients[:1], raw, tmp_path / "out", replace(CONFIG, allow_missing=True))


def test_who_is_at_work_is_noted_until_it_ends(tmp_path, monkeypatch):
    noted = []
    monkeypatch.setattr(p, "prepare_patient", lambda *_: noted.extend(f.name for f in tmp_path.iterdir()))
    job = {"patient": "A"}, tmp_path / "A.key.npz"
    with pytest.raises(AttributeError):
        p._make_part(job, tmp_path, CONFIG)
    assert noted == ["A.key.begun"] and list(tmp_path.iterdir()) == []


def killed(job, raw, config):
    job[1].with_suffix(".begun").touch()
    os.kill(os.getpid(), 9)


def test_a_process_that_is_killed_is_told_with_the_patient_it_was_at(tmp_path, patients, raw, monkeypatch):
    monkeypatch.setattr(p, "_make_part", killed)
    name = patients["patient"][1]
    with pytest.raises(ValueError, match=f"^{name}: .*; if memory is short, lower prepare.jobs"):
        p.prepare(patients[1:2], raw, tmp_path / "out", replace(CONFIG, jobs=2))
    assert not (tmp_path / "out").exists()


def test_a_part_survives_the_disk(raw, patients, tmp_path):
    part = p.prepare_patient(patients.iloc[0].to_dict(), raw, CONFIG)
    part.save(tmp_path / "part.npz")
    found = p.Part.load(tmp_path / "part.npz")
    for name in ("z", "tumour_mm2", "pixel_mm"):
        np.testing.assert_array_equal(getattr(found, name), getattr(part, name))
    kinds = ("images", "quantiles", "moments", "neighbours")
    assert set(part.arrays) == {"masks", *(f"{kind}_{field}" for kind in kinds for field in ("raw", "n4"))}
    for name, values in part.arrays.items():
        assert found.arrays[name].dtype == values.dtype and len(values) == len(part.z)
        np.testing.assert_array_equal(found.arrays[name], values)
    assert found.kinetics == pytest.approx(part.kinetics, nan_ok=True, rel=0, abs=0)
    assert [f.name for f in tmp_path.iterdir()] == ["part.npz"]


def test_a_part_that_cannot_be_written_whole_leaves_the_former_one(tmp_path):
    z = np.arange(2)
    p.Part(z, z * 1.0, z + 2.0, {"masks": np.ones((2, 4, 4), bool)}, {"ser": 1.5}).save(tmp_path / "x.npz")
    former = (tmp_path / "x.npz").read_bytes()

    class Unreadable:
        def __array__(self, *_, **__):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        p.Part(z, z * 1.0, z + 2.0, {"masks": Unreadable()}, {}).save(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == former and len(list(tmp_path.iterdir())) == 1
    assert p.Part.load(tmp_path / "x.npz").kinetics == {"ser": 1.5}


def test_nothing_of_an_earlier_preparation_stays(raw, patients, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "images_n4.npy").write_bytes(b"of other parameters")
    p.prepare(patients[:1], raw, out, replace(CONFIG, bias_fields=("raw",)))
    arrays = ["images_raw", "levels", "masks", "moments_raw", "neighbours_raw", "quantiles_raw"]
    names = sorted([*(f"{name}.npy" for name in arrays), "digests.csv", "kinetics.csv", "slices.csv"])
    assert sorted(f.name for f in out.iterdir()) == names


def test_parts_that_do_not_arrive_here_are_an_error(raw, patients, tmp_path, monkeypatch):
    monkeypatch.setattr(p, "each", lambda function, items, jobs, label: [("", False) for _ in items])
    with pytest.raises(ValueError, match=r"6 of 6 patients were prepared, but .*\.npz is not here"):
        p.prepare(patients, raw, tmp_path / "out", CONFIG)


def test_no_patients_are_refused(raw, patients, tmp_path):
    with pytest.raises(ValueError, match="no patients to prepare"):
        p.prepare(patients[:0], raw, tmp_path / "out", CONFIG)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ((0, 2, 6), r"x: missing phase file \[6\], found \[0, 1, 2, 3\], expected \[0, 2, 6\]"),
        ((0, 2, 1), r"x: the table's phases \[0, 2, 1\], expected pre < early ≤ late"),
        ((None, 2, 3), r"x: the table's phases \[None, 2, 3\], expected pre, post_early, post_late, or none"),
    ],
)
def test_phases_that_cannot_be_are_refused(tmp_path, named, message):
    row = four_phases(tmp_path) | dict(zip(("pre", "post_early", "post_late"), named, strict=True))
    with pytest.raises(ValueError, match=message):
        p.read_patient(row, tmp_path, CONFIG)


def four_phases(home):
    """A patient of BreastDCEDL with four phases, and the row of the table."""
    series = DceSeries(np.ones((4, 2, 8, 8), np.uint16), Geometry((2.0, 1.0, 1.0)), (0.0, 1.0, 2.0, 3.0))
    write_breastdcedl(series, np.ones((2, 8, 8), bool), home / "spy1", patient_id="x", cohort="spy1")
    return {"patient": "x", "dataset": "spy1", "layout": "breastdcedl", "slice_thick": 2.0, "xy_spacing": 1.0}


def test_files_of_more_phases_than_the_table_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the files do not say when each phase was acquired"):
        p.read_patient(four_phases(tmp_path), tmp_path, CONFIG)


def test_slices_split_the_lesions_volume_evenly():
    mask = np.zeros((20, 4, 4), bool)
    mask[5:15] = True
    assert p._choose_slices(mask, 5).tolist() == [5, 7, 9, 11, 13]
    assert p._choose_slices(mask[:6], 5).tolist() == [5]


def test_a_crop_is_centred_on_the_lesion_in_mm():
    volume = np.zeros((3, 2, 64, 64), np.uint16)
    volume[:, 1, 20, 40] = 1000
    config = replace(CONFIG, crop_mm=32.0, crop_px=33)
    image = p._crop(volume, 1, (20.0, 40.0), (2.0, 1.0, 1.0), config)
    assert np.unravel_index(image[0].argmax(), (33, 33)) == (16, 16)


def test_a_crop_beyond_the_edge_repeats_the_edge():
    volume = np.full((3, 1, 10, 10), 7, np.uint16)
    assert (p._crop(volume, 0, (0.0, 0.0), (1.0, 1.0, 1.0), CONFIG) == 7).all()


NATIVE = replace(CONFIG, crop_mm=None, crop_px=4)


def test_without_crop_mm_the_crop_is_whole_pixels_inside_the_image():
    volume = np.arange(3 * 2 * 10 * 12).reshape(3, 2, 10, 12).astype(np.uint16)
    for centre, rows, columns in (((4.5, 5.5), 3, 4), ((5.0, 6.0), 3, 4), ((0.0, 11.0), 0, 8)):
        expected = volume[:, 1, rows : rows + 4, columns : columns + 4]
        np.testing.assert_array_equal(p._crop(volume, 1, centre, (2.0, 1.0, 1.0), NATIVE), expected)


def test_without_crop_mm_a_smaller_image_is_padded_by_its_edge():
    volume = np.arange(1, 7, dtype=np.uint16).reshape(1, 1, 1, 6).repeat(2, axis=2)
    image = p._crop(volume, 0, (0.5, 3.0), (2.0, 1.0, 1.0), replace(NATIVE, crop_px=9))
    assert image.shape == (1, 9, 9) and image.dtype == np.uint16
    np.testing.assert_array_equal(image[0], [[1, 1, 2, 3, 4, 5, 6, 6, 6]] * 9)


def test_a_pixel_is_that_of_the_crop_or_without_crop_mm_that_of_the_image():
    geometry = Geometry((2.0, 0.7, 0.7))
    assert p.pixel_mm(geometry, CONFIG) == 2.0
    assert p.pixel_mm(geometry, NATIVE) == 0.7
    with pytest.raises(ValueError, match=r"pixels of 0.7 × 0.9 mm, expected squares"):
        p.pixel_mm(Geometry((2.0, 0.7, 0.9)), NATIVE)


def test_parameters_may_leave_crop_mm_open():
    values = {"crop_mm": None, "crop_px": 256, "slices": 5, "quantiles": [0.0, 1.0], "early_s": 150}
    values |= {"late_s": 450, "bias_fields": ["raw"], "neighbours": False, "allow_missing": False, "jobs": -1}
    values |= {name: PARAMS["prepare"][name] for name in ("audit", "n4")}
    assert build(p.PrepareConfig, values, "here").crop_mm is None
    assert build(p.PrepareConfig, values | {"crop_mm": 64}, "here").crop_mm == 64.0


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_undershoot_below_zero_becomes_zero_and_more_is_refused(dtype):
    phases = np.full((3, 10, 10, 10), 1200, dtype)
    phases[0, 0, 0, :2] = -3
    found, factor = p.as_uint16(phases, "x")
    assert found.dtype == np.uint16 and factor == 1
    assert found[0, 0, 0, :3].tolist() == [0, 0, 1200] and found.sum() == 1200 * 2998
    phases[0, 0, 0, :3] = -3  # 0.1 %
    with pytest.raises(ValueError, match=r"x: intensities from -3(.0)? to 1200(.0)?, 0.1 % of them below zero"):
        p.as_uint16(phases, "x")


def test_intensities_that_fit_are_kept_and_what_is_not_finite_is_refused():
    found, factor = p.as_uint16(np.array([-0.4, 0.4, 1200.0, 65535.0]), "x")
    assert found.tolist() == [0, 0, 1200, 65535] and factor == 1
    for bad in ([np.nan, 1], [np.inf, 1], [-np.inf, 1]):
        with pytest.raises(ValueError, match="x: intensities from .* expected finite numbers"):
            p.as_uint16(np.array(bad, float), "x")


@pytest.mark.parametrize(
    "phases, factor",
    [
        (np.arange(4096, dtype=np.float32) / 4096, 2.0**16),  # 0 to 1
        (np.arange(4096) * 0.000244, 2.0**16),  # a slope of a scanner
        (np.arange(1000, dtype=np.float32) + 0.5, 2.0**6),
        (np.array([0, 0.5, 2047.5]), 2.0**5),
        (np.array([0, 1e-30, 7e-30]), 2.0**112),
        (np.array([0, 3, 65536], np.int32), 0.5),
        (np.array([0, 3, 65536.0]), 0.5),
        (np.array([0, 8, 2**31 - 1], np.int64), 2.0**-16),
    ],
    ids=str,
)
def test_what_rounding_would_flatten_or_uint16_cannot_hold_is_multiplied_by_one_power_of_two(phases, factor):
    found, used = p.as_uint16(phases, "x")
    assert used == factor and found.dtype == np.uint16 and 32768 <= found.max() <= 65535
    np.testing.assert_array_equal(found, np.rint(phases.astype(np.float64) * factor))
    if factor > 1:
        assert len(np.unique(found)) == len(phases)


@pytest.mark.parametrize(
    "phases",
    [
        np.array([0, 5, 200], np.int16),
        np.array([0, 5, 200], np.float32),
        np.array([0.25, 5, 2048]),
        np.array([0.25, 5, 65535]),
        np.array([0, 1], np.uint8),
        np.zeros(3),
        np.array([-0.25, 0]),
    ],
    ids=str,
)
def test_whole_numbers_and_those_with_levels_enough_are_not_multiplied(phases):
    found, factor = p.as_uint16(np.tile(phases, 1000), "x")
    assert factor == 1 and found[: len(phases)].tolist() == np.maximum(np.rint(phases), 0).tolist()


def test_undershoot_counts_after_the_multiplication():
    phases = np.full(10000, 0.75, np.float32)
    phases[:9] = -0.01
    found, factor = p.as_uint16(phases, "x")
    assert factor == 65536 and found[:10].tolist() == [0] * 9 + [49152]
    phases[:10] = -0.01
    with pytest.raises(ValueError, match="x: intensities from -0.0.* to 0.75, 0.1 % of them below zero"):
        p.as_uint16(phases, "x")


def test_the_factor_of_a_patients_intensities_stands_in_the_worksheet(prepared, tmp_path, rng, monkeypatch):
    assert (pd.read_csv(prepared[0] / "kinetics.csv")["intensity_factor"] == 1).all()
    array = rng.integers(1, 4096, (3, 6, 20, 20))
    mask = np.zeros((6, 20, 20), bool)
    mask[2:4, 8:12, 8:12] = True
    series = DceSeries((array / 4096).astype(np.float32), Geometry((2.0, 1.0, 1.0)), (np.nan,) * 3)
    write_breastdcedl(series, mask, tmp_path / "spy1", patient_id="x", cohort="spy1")
    row = {"patient": "x", "dataset": "spy1", "layout": "breastdcedl", "slice_thick": 2.0, "xy_spacing": 1.0}
    monkeypatch.setattr(p, "check_complete", lambda *_: None)
    part = p.prepare_patient(row, tmp_path, CONFIG)
    assert part.kinetics["intensity_factor"] == 2**16
    expected = lesion_features(array, mask, (2.0, 1.0, 1.0))
    assert {k: part.kinetics[k] for k in expected} == pytest.approx(expected)


def test_a_pack_has_raw_and_corrected_crops_of_the_same_slices(rng):
    phases = (rng.random((3, 8, 32, 32)) * 200 + 800).astype(np.uint16)
    phases[..., :8] = rng.integers(0, 20, phases[..., :8].shape)
    mask = np.zeros((8, 32, 32), bool)
    mask[2:6, 10:20, 12:22] = True
    chosen, _, packed = p.pack(phases, mask, Geometry((4.0, 2.0, 2.0)), CONFIG)
    assert len(chosen) == 3 and set(packed) == {"raw", "n4"}
    assert packed["raw"]["images"].shape == packed["n4"]["images"].shape == (3, 3, 32, 32)
    assert (packed["raw"]["images"] != packed["n4"]["images"]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"crop_mm": 0.0}, "positive"), ({"crop_px": 0}, "positive"), ({"bias_fields": ("n5",)}, "n5 unknown")],
    ids=str,
)
def test_a_preparation_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_a_lesion_that_an_image_does_not_show_is_a_reason(raw, patients, monkeypatch):
    row = patients.to_dict("records")[0]
    whole = p.pack

    def nothing_in_the_first(*arguments):
        chosen, masks, packed = whole(*arguments)
        masks[0] = False
        return chosen, masks, packed

    monkeypatch.setattr(p, "pack", nothing_in_the_first)
    with pytest.raises(ValueError, match=r"lesion not seen in the images of slices \[\d+\]: outline one focus, or"):
        p.prepare_patient(row, raw, CONFIG)


def test_of_foci_too_far_apart_for_one_crop_the_largest_is_in_the_middle():
    mask, geometry = np.zeros((3, 64, 64), bool), Geometry((3.0, 2.0, 2.0))
    mask[:, 4:11, 4:11] = mask[:, 50:58, 50:58] = True  # about 130 mm apart
    shown, remark = p.largest_part(mask, geometry, CONFIG)
    assert shown.sum() == 192 and not shown[:, :32].any() and "the largest, 57% of the lesion" in remark
    assert p.largest_part(shown, geometry, CONFIG) == (shown, "")
    near = np.zeros_like(mask)
    near[1, 20:24, 20:24] = near[1, 30:34, 30:34] = True
    assert p.largest_part(near, geometry, CONFIG)[1] == ""
