"""From volumes to packed arrays."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from her2core import preprocess as p
from her2core.acquire import AcquireConfig, acquire
from her2core.bias_field import N4Config
from her2core.cohort import included, patient_table
from her2core.normalize import SCOPES
from her2core.volume import Geometry

CONFIG = p.PrepareConfig(
    crop_mm=64.0, crop_px=32, slices=3, quantiles=(0.0, 0.98, 1.0), early_s=150.0, late_s=450.0,
    bias_fields=("raw", "n4"), jobs=1, n4=N4Config(iterations=(5, 5)),
)  # fmt: skip
COHORT = AcquireConfig(
    source="phantom", seed=5, bayes_auc=0.95, prevalence=0.5, spy2=(1, 1, 0), spy1=(1, 1, 0), ambl=2,
    unknown_her2=0, coarse=2, jobs=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    acquire(COHORT, folder)
    return folder


@pytest.fixture(scope="module")
def patients(raw):
    return included(patient_table(pd.read_csv(raw / "metadata.csv")))


@pytest.fixture(scope="module")
def prepared(raw, patients, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, p.prepare(patients, raw, out, CONFIG)


def test_the_packed_arrays_have_the_shapes_that_are_written_down(prepared, patients):
    out, table = prepared
    n = len(table)
    assert table["patient"].nunique() == len(patients) == 6
    for name in ("raw", "n4"):
        assert np.load(out / f"images_{name}.npy").shape == (n, 3, 32, 32)
        assert np.load(out / f"quantiles_{name}.npy").shape == (n, len(SCOPES), 3, 3)
        assert np.load(out / f"images_{name}.npy").dtype == np.uint16
    assert np.load(out / "levels.npy").tolist() == [0.0, 0.98, 1.0]
    assert (table["tumour_mm2"] > 0).all()


def test_stored_quantiles_are_those_of_the_volume_and_of_the_slice(prepared, raw, patients):
    out, table = prepared
    quantiles, images = np.load(out / "quantiles_raw.npy"), np.load(out / "images_raw.npy")
    row = patients[patients["dataset"] == "spy1"].iloc[0]
    phases, _, _ = p.read_patient(row, raw, CONFIG)
    first = int(np.flatnonzero(table["patient"] == row["patient"])[0])
    by = {"axis": None, "method": "inverted_cdf"}
    for phase in range(3):
        expected = np.quantile(phases[phase], CONFIG.quantiles, **by)
        np.testing.assert_array_equal(quantiles[first, SCOPES.index("channel"), phase], expected)
    everything = np.quantile(phases, CONFIG.quantiles, **by)
    np.testing.assert_array_equal(quantiles[first, SCOPES.index("global"), 2], everything)
    own = np.quantile(images[first], CONFIG.quantiles, **by)
    np.testing.assert_array_equal(quantiles[first, SCOPES.index("slice"), 1], own)


def test_preparing_twice_gives_the_same_bytes_on_one_process_and_on_two(prepared, raw, patients, tmp_path):
    p.prepare(patients, raw, tmp_path, replace(CONFIG, jobs=2))
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names == sorted(f.name for f in prepared[0].iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (prepared[0] / name).read_bytes()


@pytest.mark.parametrize("dataset", ["spy2", "spy1", "ambl"])
def test_a_damaged_file_ends_in_an_error_that_names_patient_and_file(raw, patients, dataset, tmp_path):
    name = patients.loc[patients["dataset"] == dataset, "patient"].iloc[0]
    victim = sorted(f for f in (raw / dataset).rglob("*") if f.is_file() and name in str(f))[0]
    whole = victim.read_bytes()
    try:
        victim.write_bytes(whole[:-200])
        with pytest.raises(ValueError, match=f"(?s)1 of 6 patients.*{name}.*{victim.name}"):
            p.prepare(patients, raw, tmp_path / "out", CONFIG)
        victim.write_bytes(bytes(len(whole)))  # right size, wrong content
        with pytest.raises(ValueError, match=f"(?s)1 of 6 patients.*{victim.name}"):
            p.prepare(patients, raw, tmp_path / "out", CONFIG)
    finally:
        victim.write_bytes(whole)
    assert not (tmp_path / "out").exists()


def test_phases_named_by_the_table_win_over_times():
    row = {"patient": "x", "pre": 0, "post_early": 2, "post_late": 3}
    assert p.choose_phases(row, np.array([0, 60, 138, 462.0]), CONFIG) == [0, 2, 3]


def test_without_names_the_phases_nearest_in_time_are_taken():
    row = {"patient": "x", "pre": None, "post_early": None, "post_late": np.nan}
    assert p.choose_phases(row, np.array([0, 72, 144, 216, 390.0]), CONFIG) == [0, 2, 4]


@pytest.mark.parametrize(
    ("named", "times", "message"),
    [
        ((None,) * 3, [np.nan] * 4, "neither the table nor the files say"),
        ((None,) * 3, [0.0, 150.0, 160.0], None),
        ((None,) * 3, [0.0, 300.0], r"phases \[0, 1, 1\] of 2 are not pre < early < late"),
        ((0, 2, 6), [0.0, 1.0, 2.0], r"phases \[0, 2, 6\] of 3"),
        ((0, 2, 1), [0.0, 1.0, 2.0], "not pre < early < late"),
    ],
)
def test_phases_out_of_order_are_refused(named, times, message):
    row = dict(zip(("pre", "post_early", "post_late"), named, strict=True)) | {"patient": "x"}
    if message is None:
        assert p.choose_phases(row, np.array(times), CONFIG) == [0, 1, 2]
        return
    with pytest.raises(ValueError, match=message):
        p.choose_phases(row, np.array(times), CONFIG)


def test_slices_split_the_lesions_volume_evenly():
    mask = np.zeros((20, 4, 4), bool)
    mask[5:15] = True
    assert p.choose_slices(mask, 5).tolist() == [5, 7, 9, 11, 13]
    assert p.choose_slices(mask[:6], 5).tolist() == [5]


def test_a_crop_is_centred_on_the_lesion_in_mm():
    volume = np.zeros((3, 2, 64, 64), np.uint16)
    volume[:, 1, 20, 40] = 1000
    config = replace(CONFIG, crop_mm=32.0, crop_px=33)
    image = p.crop(volume, 1, (20.0, 40.0), (2.0, 1.0, 1.0), config)
    assert np.unravel_index(image[0].argmax(), (33, 33)) == (16, 16)


def test_a_crop_beyond_the_edge_repeats_the_edge():
    volume = np.full((3, 1, 10, 10), 7, np.uint16)
    assert (p.crop(volume, 0, (0.0, 0.0), (1.0, 1.0, 1.0), CONFIG) == 7).all()


def test_intensities_that_fit_are_kept_and_others_refused():
    np.testing.assert_array_equal(p.as_uint16(np.array([0.4, 1200.0]), "x"), [0, 1200])
    for bad in ([-1, 5], [0, 70_000], [np.nan, 1]):
        with pytest.raises(ValueError, match="x: intensities from"):
            p.as_uint16(np.array(bad, float), "x")


def test_a_pack_has_raw_and_corrected_crops_of_the_same_slices(rng):
    phases = (rng.random((3, 8, 32, 32)) * 200 + 800).astype(np.uint16)
    phases[..., :8] = rng.integers(0, 20, phases[..., :8].shape)
    mask = np.zeros((8, 32, 32), bool)
    mask[2:6, 10:20, 12:22] = True
    chosen, packed = p.pack(phases, mask, Geometry((4.0, 2.0, 2.0)), CONFIG)
    assert len(chosen) == 3 and set(packed) == {"raw", "n4"}
    assert packed["raw"][0].shape == packed["n4"][0].shape == (3, 3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "message"), [({"crop_mm": 0.0}, "positive"), ({"bias_fields": ("n5",)}, "n5 unknown")], ids=str
)
def test_a_preparation_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
