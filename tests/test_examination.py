"""Images against the table, sides against the sheet, and the kinds of reasons."""

import numpy as np
import pytest

from her2core.cohorts import examination as e
from her2core.formats.volume import Geometry

MASK = np.zeros((9, 20, 20), bool)
MASK[2:7, 5:15, 5:15] = True  # 500 voxels in 5 slices
SPACING_MM = (2.0, 0.5, 0.5)
ROW = {
    "n_times": 8,
    "n_xy": 20,
    "n_z": 5,
    "mask_count": 500,
    "tum_vol": 250.0,
    "slice_thick": 2.0,
    "xy_spacing": 0.5,
}


def test_images_that_agree_with_the_table_contradict_nothing():
    assert e.contradictions(ROW, MASK, SPACING_MM, 8) == []


def test_what_the_table_leaves_open_is_not_compared():
    assert e.contradictions(dict.fromkeys(ROW), MASK, SPACING_MM, 8) == []
    assert e.contradictions({"n_times": 8, "slice_thick": 9.0}, MASK) == []  # files that do not say


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask_count": 25169}, "mask_count 500, the table says 25169"),
        ({"mask_count": 489}, "mask_count 500, the table says 489"),
        ({"n_times": 7}, "n_times 8, the table says 7"),
        ({"n_xy": 256}, "n_xy 20, the table says 256"),
        ({"n_z": 6}, "n_z 5, the table says 6"),
        ({"slice_thick": 4.0}, "slice_thick 2, the table says 4"),
        ({"xy_spacing": 1.25}, "xy_spacing 0.5, the table says 1.25"),
        ({"tum_vol": 500.0}, "tum_vol 250, the table says 500"),
        ({"tum_vol": 125.0}, "tum_vol 250, the table says 125"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_contradiction_has_both_numbers(changes, said):
    assert e.contradictions(ROW | changes, MASK, SPACING_MM, 8) == [said]


@pytest.mark.parametrize(
    "changes",
    [{"mask_count": 495}, {"slice_thick": 2.1}, {"xy_spacing": 0.4883}, {"n_z": 9}, {"tum_vol": 245.0}],
    ids=str,
)
def test_rounded_numbers_and_either_way_of_counting_slices_agree(changes):
    assert e.contradictions(ROW | changes, MASK, SPACING_MM, 8) == []


def test_slices_that_overlap_agree_as_those_of_ispy2_427321_do():
    assert e.contradictions(ROW | {"slice_thick": 3.0, "tum_vol": 375.0}, MASK, SPACING_MM, 8) == []


def test_the_repositorys_table_which_has_the_uncropped_matrix_agrees():
    row = ROW | {"n_xy": 384, "n_z": 160}
    assert e.contradictions(row, MASK, SPACING_MM, 8, whole=(160, 384, 384)) == []
    assert len(e.contradictions(row, MASK, SPACING_MM, 8, whole=(159, 256, 256))) == 2


def test_slices_without_tumour_between_others_may_be_counted_or_not():
    gap = MASK.copy()
    gap[4] = False
    for count in (4, 5):
        assert e.contradictions({"n_z": count}, gap) == []


def lesion(column):
    mask = np.zeros((5, 40, 40), bool)
    mask[2, 10:14, column : column + 4] = True
    return mask


GEOMETRY = Geometry((3.0, 2.0, 2.0), (-40.0, -40.0, 0.0))  # x grows to the patient's left


@pytest.mark.parametrize(("column", "side"), [(4, "R"), (32, "L"), (18, "L"), (18, "R"), (4, None)])
def test_a_lesion_on_the_side_of_the_sheet_or_near_the_middle_passes(tmp_path, column, side):
    e._check_side(tmp_path / "seg.dcm", lesion(column), 1, side, GEOMETRY)


@pytest.mark.parametrize(
    ("column", "side", "found"), [(4, "L", "28 mm to the right"), (32, "R", "28 mm to the left")]
)
def test_a_lesion_in_the_other_breast_is_refused(tmp_path, column, side, found):
    with pytest.raises(ValueError, match=f"seg.dcm: segment 3 lies {found} of the middle, the sheet says {side}"):
        e._check_side(tmp_path / "seg.dcm", lesion(column), 3, side, GEOMETRY)


def test_a_malignant_lesion_without_a_voxel_is_refused(tmp_path):
    with pytest.raises(ValueError, match="segment 2, a malignant lesion, is empty"):
        e._check_side(tmp_path / "seg.dcm", np.zeros((2, 3, 3), bool), 2, "L", GEOMETRY)


def test_bad_data_get_the_kind_of_reason_and_a_failing_disk_gets_none():
    with pytest.raises(e.Unusable, match="^mask unusable: seg.dcm: empty$"), e.because("mask unusable"):
        raise ValueError("seg.dcm: empty")
    with pytest.raises(OSError, match="No space left"), e.because("mask unusable"):
        raise OSError(28, "No space left on device")
