"""Axis order and geometry, z, y, x in arrays and x, y, z in SimpleITK; and which phases of a series count."""

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from her2core.formats.volume import DceSeries, Geometry, Phases, nearest_phases, to_sitk

TILT = np.deg2rad(20)
OBLIQUE = ((0.0, -np.sin(TILT), np.cos(TILT)), (0.0, np.cos(TILT), np.sin(TILT)), (-1.0, 0.0, 0.0))
SAGITTAL = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
NAN = float("nan")


@pytest.mark.parametrize("direction", [Geometry((1, 1, 1)).direction, SAGITTAL, OBLIQUE])
def test_simpleitk_and_geometry_put_the_same_voxel_at_the_same_place(direction):
    geometry = Geometry((2.5, 0.7, 0.9), (-80.0, 12.5, 3.0), direction)
    image = to_sitk(np.zeros((3, 4, 5), np.uint16), geometry)
    assert image.GetSize() == (5, 4, 3)
    for z, y, x in ((0, 0, 0), (1, 2, 4)):
        found = image.TransformIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose(found, geometry.position_mm((z, y, x)), atol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32])
def test_simpleitk_gets_every_voxel_with_its_type_and_the_spacing_in_its_own_order(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    image = to_sitk(array, Geometry((2.0, 0.5, 0.25), (1.0, 2.0, 3.0), OBLIQUE))
    back = sitk.GetArrayFromImage(image)
    assert back.dtype == dtype and np.array_equal(back, array)
    assert (image.GetSpacing(), image.GetOrigin()) == ((0.25, 0.5, 2.0), (1.0, 2.0, 3.0))


def test_a_bool_mask_reaches_simpleitk_as_zeros_and_ones():
    mask = np.arange(8).reshape(2, 2, 2) > 3
    back = sitk.GetArrayFromImage(to_sitk(mask, Geometry((1, 1, 1))))
    assert back.dtype == np.uint8 and np.array_equal(back, mask)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1, NAN), (1, 1)])
def test_a_spacing_that_is_not_three_positive_numbers_is_refused(spacing):
    with pytest.raises(ValueError, match="three positive numbers"):
        Geometry(spacing)


def test_a_direction_that_is_not_orthonormal_is_refused():
    with pytest.raises(ValueError, match="orthonormal"):
        Geometry((1, 1, 1), direction=((0, 0, 1), (0, 1, 0), (0, 0, 1)))


@pytest.mark.parametrize("shape", [(2, 3, 3), (0, 2, 3, 3), (1, 1, 0, 3)])
def test_a_series_without_four_filled_axes_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(T, Z, Y, X\) and not empty"):
        DceSeries(np.zeros(shape), Geometry((1, 1, 1)), (0.0,) * shape[0])


@pytest.mark.parametrize("times", [(0.0, 0.0), (10.0, 0.0), (0.0, NAN)])
def test_phase_times_that_do_not_ascend_are_refused(times):
    with pytest.raises(ValueError, match="must ascend"):
        DceSeries(np.zeros((2, 1, 2, 2)), Geometry((1, 1, 1)), times)


def test_times_must_be_as_many_as_phases_and_may_all_be_unknown():
    with pytest.raises(ValueError, match="2 phases but 1 times"):
        DceSeries(np.zeros((2, 1, 2, 2)), Geometry((1, 1, 1)), (0.0,))
    DceSeries(np.zeros((2, 1, 2, 2)), Geometry((1, 1, 1)), (NAN, NAN))


@pytest.mark.parametrize("indices", [(0, 1, 2), (1, 2, 9), (0, 2, 2)], ids=str)
def test_phases_ascend_and_early_may_be_late(indices):
    phases = Phases(*indices)
    assert (phases.pre, phases.early, phases.late) == tuple(phases) == indices
    phases.check(indices[2] + 1)


@pytest.mark.parametrize("indices", [(0, 0, 2), (-1, 1, 2), (0, 2, 1), (2, 1, 3)], ids=str)
def test_phases_that_do_not_ascend_from_zero_are_refused(indices):
    with pytest.raises(ValueError, match=rf"phases \[{indices[0]}, .*\], expected pre < early ≤ late"):
        Phases(*indices)


def test_phases_must_lie_inside_the_series():
    with pytest.raises(ValueError, match=r"phases \[0, 2, 6\], counted from 0, .* among the 6 found"):
        Phases(0, 2, 6).check(6)


@pytest.mark.parametrize("table", [dict, pd.Series])
def test_phases_are_those_that_a_row_names_or_none(table):
    row = {"pre": 0.0, "post_early": 2, "post_late": 6.0, "late": 4}
    found = Phases.named(table(row))
    assert found == Phases(0, 2, 6) and all(type(k) is int for k in found)
    assert Phases.named(table(row), ("pre", "post_early", "late")) == Phases(0, 2, 4)
    for missing in (None, NAN, pd.NA):
        assert Phases.named(table(row | {"post_early": missing})) is None
    assert Phases.named(table({"pre": 0, "post_early": 2})) is None
    with pytest.raises(ValueError, match=r"phases \[0, 2, 1\]"):
        Phases.named(table(row | {"post_late": 1}))


def test_the_phases_nearest_in_time_must_be_three():
    assert nearest_phases((0.0, 72.0, 144.0, 216.0, 390.0), 150, 450) == Phases(0, 2, 4)
    with pytest.raises(ValueError, match="phases at 0, 300 s, expected one near 150 s and a later"):
        nearest_phases((0.0, 300.0), 150, 450)
    with pytest.raises(ValueError, match="phases at 0 s, expected"):
        nearest_phases((0.0,), 150, 450)
    with pytest.raises(ValueError, match="the files do not say when each phase was acquired"):
        nearest_phases((NAN, NAN, NAN), 150, 450)


@pytest.mark.parametrize(
    ("times_s", "chosen"),
    [
        ((0, 330, 420, 510, 600, 690), (0, 2, 5)),
        ((0, 540, 630, 720, 810), (0, 2, 4)),
        ((0, 584, 714, 844), (0, 1, 3)),
    ],
    ids=str,
)
def test_a_pause_before_the_injection_does_not_shift_the_phases(times_s, chosen):
    with pytest.warns(UserWarning, match=f"the second phase follows after {times_s[1]} s, the others every"):
        assert tuple(nearest_phases(times_s, 150, 450)) == chosen


@pytest.mark.parametrize("times_s", [(0, 60, 138, 462), (0, 72, 144, 216, 390), (0, 135, 225, 315, 405)], ids=str)
def test_an_interval_up_to_half_as_long_again_is_no_pause(times_s):
    after = np.abs(np.array(times_s) - 150).argmin(), np.abs(np.array(times_s) - 450).argmin()
    assert tuple(nearest_phases(times_s, 150, 450)) == (0, *after)


def test_phases_of_unknown_times_have_to_be_named():
    with pytest.raises(
        ValueError, match="do not say when each phase was acquired; name pre, post_early, post_late"
    ):
        nearest_phases((NAN,) * 5, 150, 450)
