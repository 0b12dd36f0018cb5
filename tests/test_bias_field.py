"""N4 against a field that is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from her2core.bias_field import (
    N4Config,
    body_mask,
    correct,
    correct_patient,
    fidelity,
    grid_factors,
    log_bias_field,
)
from her2core.formats.nifti import min_crop
from her2core.formats.volume import Geometry
from her2core.phantom.patient import make_patient
from her2core.phantom.sites import SITES, draw_protocol

REAL = Path(__file__).resolve().parents[2] / "shared/real/BreastDCEDL_ISPY2_metadata.csv"
CONFIG = N4Config()
QUICK = N4Config(iterations=(20, 10, 5))
GEOMETRY = Geometry((2.5, 1.4, 1.4))


def drawn_patient(seed):
    return make_patient(seed, seed % 2, draw_protocol(list(SITES)[seed % 3], seed), bayes_auc=0.95)


@pytest.fixture(scope="module")
def patient():
    return drawn_patient(300)


@pytest.fixture(scope="module")
def phases(patient):
    return patient.series.array[:3]


@pytest.fixture(scope="module")
def geometry(patient):
    return patient.series.geometry


@pytest.fixture(scope="module")
def field(phases, geometry):
    return log_bias_field(phases[0], geometry, CONFIG)


@pytest.fixture(scope="module")
def patients(patient):
    """Two of each site at full resolution, none of those on which the settings were chosen."""
    return [patient, *map(drawn_patient, range(301, 306))]


@pytest.fixture(scope="module")
def fields(patients):
    return [log_bias_field(p.series.array[0], p.series.geometry, CONFIG) for p in patients]


def disc(rng, grey=500, spread=0.02):
    """A round body of one tissue in air: (16, 64, 64) and its mask."""
    _, y, x = np.indices((16, 64, 64)) - 31.5
    inside = np.hypot(y, x) < 24
    body = grey * np.exp(spread * rng.standard_normal(inside.shape))
    return np.where(inside, body, np.abs(5 * rng.standard_normal(inside.shape))).astype(np.uint16), inside


def cov(values):
    return values.std() / values.mean()


def enhancement(array, lesion):
    pre, early = (array[k][lesion].mean() for k in (0, 1))
    return early / pre - 1


@pytest.mark.slow
def test_the_estimated_fields_follow_the_true_ones(patients, fields):
    r, residual = [], []
    for patient, field in zip(patients, fields, strict=True):
        true, estimated = np.log(patient.bias_field[patient.body_mask]), field[patient.body_mask]
        r.append(np.corrcoef(true, estimated)[0, 1])
        residual.append(cov(np.exp(true - estimated)) / cov(np.exp(true)))
        assert fidelity(field, patient.bias_field, patient.body_mask) == pytest.approx((r[-1], residual[-1]))
    assert np.median(r) >= 0.85
    assert np.median(residual) <= 0.55


@pytest.mark.slow
def test_the_fields_of_thin_slabs_follow_the_true_ones_too(patients):
    """The lesion with two slices on either side: in some too thin for four voxels 10 mm apart."""
    found, slices = [], []
    for patient in patients:
        stack = np.stack([patient.series.array[0], patient.bias_field, patient.body_mask])
        (pre, true, body), *_ = min_crop(stack, patient.annotator_mask)
        field = log_bias_field(pre, patient.series.geometry, CONFIG)
        found.append(fidelity(field, true, body > 0)[0])
        slices.append(len(pre))
    assert min(slices) < 12
    assert np.median(found) >= 0.8


@pytest.mark.slow
def test_fibroglandular_tissue_becomes_more_even(patients, fields):
    lowered = []
    for patient, field in zip(patients, fields, strict=True):
        pre, gland = patient.series.array[:1], patient.fibroglandular > 0.95
        lowered.append(1 - cov(correct(pre, field)[0][gland]) / cov(pre[0][gland]))
    assert np.median(lowered) >= 0.25


@pytest.mark.slow
def test_one_field_for_all_phases_leaves_the_enhancement_of_lesions_alone(patients, fields):
    for patient, field in zip(patients, fields, strict=True):
        raw = patient.series.array[:2]
        corrected = enhancement(correct(raw, field), patient.lesion_mask)
        assert corrected == pytest.approx(enhancement(raw, patient.lesion_mask), rel=0.01)


def test_one_field_for_all_phases_leaves_ratios_alone_up_to_rounding(phases, field):
    corrected = correct(phases, field).astype(float)
    bright = (corrected > 50).all(0) & (corrected < 65535).all(0)
    before = phases[2][bright] / phases[0][bright].astype(float)
    after = corrected[2][bright] / corrected[0][bright]
    rounding = 0.5 / corrected[0][bright] + 0.5 / corrected[2][bright]
    assert bright.mean() > 0.2
    assert (np.abs(after / before - 1) <= 1.05 * rounding).all()


def test_a_patient_is_corrected_by_the_field_of_the_pre_phase(phases, geometry, field):
    np.testing.assert_array_equal(correct_patient(phases, geometry, CONFIG), correct(phases, field))


def test_a_field_per_phase_agrees_on_the_first_phase_only_and_shifts_enhancement(patient, phases, geometry):
    shared = correct_patient(phases, geometry, QUICK)
    own = correct_patient(phases, geometry, replace(QUICK, field="per_phase"))
    assert own.shape == phases.shape and own.dtype == np.uint16
    np.testing.assert_array_equal(own[0], shared[0])
    lesion = patient.lesion_mask
    raw = enhancement(phases, lesion)
    shift_own, shift_shared = (abs(enhancement(array, lesion) / raw - 1) for array in (own, shared))
    assert shift_own > 0.01 > 5 * shift_shared


@pytest.mark.parametrize("threads", [1, 2])
def test_the_field_is_the_same_to_the_bit_whatever_thread_count_was_set(threads, phases, geometry, field):
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    found = log_bias_field(phases[0], geometry, CONFIG)
    assert found.dtype == np.float32
    assert found.tobytes() == field.tobytes()


def test_the_field_is_zero_on_average_in_the_body(phases, field):
    assert abs(field[body_mask(phases[0])].mean()) < 1e-5


def test_a_body_of_one_tissue_without_shading_gets_a_flat_field(rng):
    body, inside = disc(rng)
    assert np.abs(log_bias_field(body, GEOMETRY, CONFIG)[inside]).max() < 0.05


@pytest.mark.parametrize("slices", [16, 5, 3])
def test_the_shading_of_a_body_of_one_tissue_is_found_even_in_three_slices(rng, slices):
    body, inside = (array[:slices] for array in disc(rng))
    true = np.broadcast_to(np.linspace(-0.3, 0.3, 64), body.shape)
    field = log_bias_field((body * np.exp(true)).astype(np.uint16), GEOMETRY, CONFIG)
    assert np.corrcoef(field[inside], true[inside])[0, 1] > 0.98


def test_the_body_is_what_is_brighter_than_air(rng):
    body, inside = disc(rng)
    np.testing.assert_array_equal(body_mask(body), inside)


def test_no_field_changes_nothing_and_grey_levels_do_not_wrap_around(phases):
    none = np.zeros(phases.shape[1:], np.float32)
    np.testing.assert_array_equal(correct(phases, none), phases)
    assert correct(np.full((1, 2, 2, 2), 60000, np.uint16), none[:2, :2, :2] - 1).max() == 65535


def test_an_image_without_a_body_is_refused():
    with pytest.raises(ValueError, match="N4 needs a body: only 0 of 2048 voxels"):
        log_bias_field(np.zeros((8, 16, 16), np.uint16), GEOMETRY, CONFIG)


def test_a_body_of_a_single_grey_level_is_refused(rng):
    body = disc(rng)[1].astype(np.uint16) * 500
    with pytest.raises(ValueError, match="N4 needs contrast: the body has 1 grey levels on the grid of 10.0 mm"):
        log_bias_field(body, GEOMETRY, CONFIG)


def picked(shape, spacing_mm):
    """Voxels (z, y, x) on the grid, by the rule of SimpleITK's Shrink, which the next test holds."""
    return [n // f for n, f in zip(shape, grid_factors(shape, spacing_mm, CONFIG.grid_mm), strict=True)]


@pytest.mark.parametrize("shape", [(5, 128, 128), (11, 130, 257), (31, 256, 256), (116, 512, 512)], ids=str)
def test_shrinking_leaves_as_many_voxels_as_the_factors_say(shape):
    spacing_mm = (1.2, 0.7, 0.7)
    factors = grid_factors(shape, spacing_mm, CONFIG.grid_mm)
    image = sitk.Image(*shape[::-1], sitk.sitkUInt8)
    assert list(sitk.Shrink(image, factors[::-1]).GetSize()[::-1]) == picked(shape, spacing_mm)


@pytest.mark.skipif(not REAL.is_file(), reason="the real table is not here")
def test_every_patient_of_i_spy2_keeps_five_voxels_per_axis_as_mincrop_leaves_it():
    table = pd.read_csv(REAL)
    first, last = (table["mask_start"] - 2).clip(lower=0), (table["mask_end"] + 2).clip(upper=table["n_z"] - 1)
    slices, pixels = (last - first + 1).astype(int), table["n_xy"].clip(upper=256)
    pixel_mm = table["xy_spacing"].fillna(table["xy_spacing"].median())  # two are unknown
    voxels, plain = [], []
    for n, m, z_mm, mm in zip(slices, pixels, table["slice_thick"], pixel_mm, strict=True):
        voxels.append(picked((n, m, m), (z_mm, mm, mm)))
        plain.append(n // max(1, round(CONFIG.grid_mm / z_mm)))
    assert len(voxels) == 982
    assert sum(n < 4 for n in plain) == 104  # those whom a grid that does not adapt would lose
    assert np.min(voxels) == 5


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "fewest"),
    [
        ((116, 512, 512), (1.6, 0.7, 0.7), 19),  # AMBL before cropping
        ((5, 256, 256), (1.6, 0.7, 0.7), 5),  # a lesion of one slice and two on either side
        ((9, 256, 256), (1.6, 0.7, 0.7), 9),
        ((12, 256, 256), (1.6, 0.7, 0.7), 6),
        ((60, 256, 256), (2.3, 0.78, 0.78), 15),  # I-SPY1, whole and cropped
        ((5, 256, 256), (2.3, 0.78, 0.78), 5),
        ((3, 256, 256), (2.3, 0.78, 0.78), 3),  # the same in the volume's first slice
    ],
    ids=str,
)
def test_the_grid_keeps_five_voxels_per_axis_or_every_slice_of_a_thin_slab(shape, spacing_mm, fewest):
    assert min(picked(shape, spacing_mm)) == fewest


@pytest.mark.parametrize("name", SITES)
def test_whole_phantoms_are_thick_enough_for_the_plain_grid(name):
    for seed in range(500):
        site = draw_protocol(name, seed)
        plain = tuple(round(CONFIG.grid_mm / s) for s in site.spacing_mm)
        assert grid_factors(site.shape, site.spacing_mm, CONFIG.grid_mm) == plain


@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 64, 64)])
def test_fewer_than_three_slices_are_refused(rng, shape):
    body = disc(rng)[0][: shape[0]]
    with pytest.raises(ValueError, match=rf"at least three voxels along each axis, found \({shape[0]}, 48, 48\)"):
        log_bias_field(body, GEOMETRY, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid_mm": 0.0}, "grid_mm must be positive, found 0.0"),
        ({"grid_mm": float("nan")}, "grid_mm must be positive, found nan"),
        ({"iterations": ()}, r"iterations must be positive, one number per level, found \(\)"),
        ({"iterations": (50, 0)}, r"iterations must be positive, one number per level, found \(50, 0\)"),
        ({"field": "both"}, "field='both': expected one of shared, per_phase"),
    ],
    ids=str,
)
def test_a_configuration_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
