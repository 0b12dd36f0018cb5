"""BreastDCEDL's NIfTI layout: slice axis first, identity affine, spacing from the table."""

import csv
import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from her2core.formats.nifti import phase_files, read_breastdcedl, read_mask, write_breastdcedl
from her2core.formats.volume import DceSeries, Geometry

REAL = Path(__file__).parents[1].parent / "shared" / "real"
ROW = {"slice_thick": 2.0, "xy_spacing": 0.7, "pre": 0.0, "post_early": 2.0, "post_late": float("nan")}
PATIENT = "ISPY2-100899"
DCE, MASK = f"dce/{PATIENT}_spy2_vis1_dce_aqc_", f"mask/{PATIENT}_spy2_vis1_mask.nii.gz"


def series(dtype=np.uint16, n_phases=3):
    array = np.random.default_rng(0).integers(0, 4000, (n_phases, 4, 6, 7)).astype(dtype)
    return DceSeries(array, Geometry((2.0, 0.7, 0.7)), (float("nan"),) * n_phases)


def tumour():
    mask = np.zeros((4, 6, 7), bool)
    mask[1:3, 2:5, 3] = True
    return mask


@pytest.fixture
def folder(tmp_path):
    write_breastdcedl(series(), tumour(), tmp_path, patient_id=PATIENT, phases=(0, 2, 10))
    return tmp_path


def store(array, path):
    """Write a `(Z, Y, X)` array in the order of the real files."""
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0))), str(path))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32])
def test_a_patient_written_is_read_back_voxel_exact_with_spacing_from_the_table(tmp_path, dtype):
    written = series(dtype)
    write_breastdcedl(written, tumour(), tmp_path, patient_id=PATIENT)
    found, mask = read_breastdcedl(tmp_path, PATIENT, ROW)
    assert found.array.dtype == dtype and np.array_equal(found.array, written.array)
    assert found.geometry == written.geometry and np.isnan(found.times_s).all()
    assert mask.dtype == bool and np.array_equal(mask, tumour())


def test_float64_intensities_become_float32_without_loss(folder):
    for k in (0, 2, 10):
        store(series().array[0].astype(np.float64), folder / f"{DCE}{k}.nii.gz")
    found, _ = read_breastdcedl(folder, PATIENT, ROW)
    assert found.array.dtype == np.float32 and np.array_equal(found.array[2], series().array[0])


def test_phases_are_ordered_by_number_and_not_by_name(folder):
    assert list(phase_files(folder, PATIENT)) == [0, 2, 10]
    found, _ = read_breastdcedl(folder, PATIENT, ROW)
    assert np.array_equal(found.array, series().array)


def test_chosen_phases_are_read_alone(folder):
    found, _ = read_breastdcedl(folder, PATIENT, ROW, phases=(2, 10))
    assert np.array_equal(found.array, series().array[1:])


def test_the_names_of_the_full_ispy1_release_are_understood(tmp_path):
    for name in ("spt1_dce", "spy1_mask"):
        (tmp_path / name).mkdir()
    for k in range(2):
        store(series().array[k], tmp_path / f"spt1_dce/ISPY1_1001_spy1_vis1_acq{k}.nii.gz")
    store(series().array[0], tmp_path / "spt1_dce/ISPY1_10012_spy1_vis1_acq7.nii.gz")
    store(tumour().astype(np.int32), tmp_path / "spy1_mask/ISPY1_1001_spy1_vis1_mask.nii")
    found, mask = read_breastdcedl(tmp_path, "ISPY1_1001", {"slice_thick": 2.0, "xy_spacing": 0.7})
    assert np.array_equal(found.array, series().array[:2]) and np.array_equal(mask, tumour())


def test_two_writes_give_the_same_bytes(folder, tmp_path):
    again = tmp_path / "again"
    write_breastdcedl(series(), tumour(), again, patient_id=PATIENT, phases=(0, 2, 10))
    names = sorted(p.relative_to(again) for p in again.rglob("*.gz"))
    assert len(names) == 4
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_written_headers_have_lost_the_geometry_like_the_real_ones(folder):
    image = sitk.ReadImage(str(folder / MASK))
    assert image.GetSize() == (4, 6, 7) and image.GetPixelID() == sitk.sitkInt32
    assert image.GetSpacing() == (1, 1, 1) and image.GetOrigin() == (0, 0, 0)
    assert image.GetDirection() == (-1, 0, 0, 0, -1, 0, 0, 0, 1)


def test_a_missing_phase_file_is_named(folder):
    (folder / f"{DCE}2.nii.gz").unlink()
    with pytest.raises(ValueError, match=rf"{PATIENT}: missing phase file \[2\], found phases \[0, 10\]"):
        read_breastdcedl(folder, PATIENT, ROW)
    with pytest.raises(ValueError, match=r"missing phase file \[5\]"):
        read_breastdcedl(folder, PATIENT, ROW, phases=(0, 5))


def test_a_patient_without_files_or_with_two_of_one_phase_is_refused(folder):
    with pytest.raises(ValueError, match="ISPY2-1: no phase files"):
        read_breastdcedl(folder, "ISPY2-1", ROW)
    store(series().array[0], folder / f"{DCE}2.nii")
    with pytest.raises(ValueError, match="two files of phase 2"):
        read_breastdcedl(folder, PATIENT, ROW)


def test_a_missing_mask_is_refused(folder):
    (folder / MASK).unlink()
    with pytest.raises(ValueError, match=f"{PATIENT}: 0 mask files"):
        read_breastdcedl(folder, PATIENT, ROW)


@pytest.mark.parametrize("column", ["slice_thick", "xy_spacing"])
def test_a_spacing_missing_from_the_table_is_refused(folder, column):
    with pytest.raises(ValueError, match=f"{PATIENT}: .*{column} nan"):
        read_breastdcedl(folder, PATIENT, ROW | {column: float("nan")})


@pytest.mark.parametrize(
    "mask, message",
    [
        (
            tumour()[:, :, :-1].astype(np.int32),
            r"mask of shape \(4, 6, 6\), expected that of the series, \(4, 6, 7\)",
        ),
        (tumour() * np.int32(255), r"holds the values \[0, 255\], expected 0 and 1"),
        (tumour() * np.float32(0.5), r"holds the values \[0.0, 0.5\]"),
        (np.zeros((4, 6, 7), np.int32), "empty mask"),
    ],
)
def test_a_mask_of_other_shape_or_values_is_refused(folder, mask, message):
    store(mask, folder / MASK)
    with pytest.raises(ValueError, match=message):
        read_breastdcedl(folder, PATIENT, ROW)


def test_phases_of_different_shape_are_refused(folder):
    store(series().array[0, :-1], folder / f"{DCE}2.nii.gz")
    with pytest.raises(ValueError, match=r"aqc_2.nii.gz: shape \(3, 6, 7\), expected \(4, 6, 7\)"):
        read_breastdcedl(folder, PATIENT, ROW)


@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_a_truncated_file_is_refused_though_simpleitk_reads_it(folder, keep):
    path = folder / f"{DCE}0.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="aqc_0.nii.gz: truncated"):
        read_breastdcedl(folder, PATIENT, ROW)


def test_an_uncompressed_file_is_read_and_a_truncated_one_refused(folder):
    path = folder / f"{DCE}0.nii"
    path.write_bytes(gzip.decompress(path.with_suffix(".nii.gz").read_bytes()))
    path.with_suffix(".nii.gz").unlink()
    assert np.array_equal(read_breastdcedl(folder, PATIENT, ROW)[0].array, series().array)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="aqc_0.nii: truncated"):
        read_breastdcedl(folder, PATIENT, ROW)


def test_gzip_in_several_members_is_no_truncation(folder):
    path = folder / f"{DCE}0.nii.gz"
    path.write_bytes(path.read_bytes() + gzip.compress(b""))
    assert np.array_equal(read_breastdcedl(folder, PATIENT, ROW)[0].array, series().array)


@pytest.mark.parametrize("content", [b"", b"MIT License"])
def test_a_file_that_is_no_nifti_is_refused(folder, content):
    (folder / f"{DCE}0.nii.gz").write_bytes(content)
    with pytest.raises(ValueError, match="aqc_0.nii.gz: not a readable NIfTI file"):
        read_breastdcedl(folder, PATIENT, ROW)


def test_a_file_with_a_time_axis_is_refused(folder):
    images = [sitk.GetImageFromArray(np.zeros((7, 6, 4), np.int16))] * 2
    sitk.WriteImage(sitk.JoinSeries(images), str(folder / f"{DCE}0.nii.gz"))
    with pytest.raises(ValueError, match="expected one three-dimensional volume"):
        read_breastdcedl(folder, PATIENT, ROW)


def test_what_the_layout_cannot_hold_is_refused_before_writing(tmp_path):
    odd = DceSeries(series().array, Geometry((2.0, 0.7, 0.8)), (float("nan"),) * 3)
    with pytest.raises(ValueError, match=f"{PATIENT}: .*expected square"):
        write_breastdcedl(odd, tumour(), tmp_path, patient_id=PATIENT)
    with pytest.raises(ValueError, match=f"{PATIENT}: mask of shape"):
        write_breastdcedl(series(), tumour()[1:], tmp_path, patient_id=PATIENT)
    with pytest.raises(ValueError, match=f"{PATIENT}: 3 phases with the indices"):
        write_breastdcedl(series(), tumour(), tmp_path, patient_id=PATIENT, phases=(0, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not REAL.is_dir(), reason="the real masks are not here")
@pytest.mark.parametrize("patient, voxels", [("ACRIN-6698-102212", 42423), ("ACRIN-6698-104268", 36332)])
def test_real_masks_agree_with_the_authors_table(patient, voxels):
    with open(REAL / "BreastDCEDL_ISPY2_metadata.csv", newline="") as file:
        row = {r["pid"]: r for r in csv.DictReader(file)}[patient]
    mask = read_mask(REAL / f"{patient}_spy2_vis1_mask.nii.gz")
    area = mask.sum(axis=(1, 2))
    slices = np.flatnonzero(area)
    assert mask.shape == (int(row["n_z"]), int(row["n_xy"]), int(row["n_xy"]))
    assert area.sum() == voxels == float(row["mask_count"])
    assert (slices[0], slices[-1]) == (float(row["mask_start"]), float(row["mask_end"]))  # both inclusive
    assert area.argmax() == float(row["mask_max"])


@pytest.mark.skipif(not REAL.is_dir(), reason="the real masks are not here")
def test_the_tumour_volume_of_a_real_mask_is_that_of_the_table():
    mask = read_mask(REAL / "ACRIN-6698-102212_spy2_vis1_mask.nii.gz")
    assert mask.sum() * 2.0 * 0.6055**2 == pytest.approx(31107.1, abs=0.05)  # tum_vol is in mm³
    rows, columns = (np.flatnonzero(mask.any(axis=axes))[[0, -1]].tolist() for axes in ((0, 2), (0, 1)))
    assert (rows, columns) == ([104, 199], [155, 216])


def test_a_file_that_a_full_disk_cuts_off_is_no_file(tmp_path):
    code = f"""
import resource, numpy as np
from pathlib import Path
from her2core.formats.nifti import _write_voxels
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
noise = np.random.default_rng(0).integers(0, 60000, (9, 32, 32)).astype(np.uint16)
_write_voxels(noise, Path({str(tmp_path)!r}) / "x.nii.gz")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "x.nii.gz: could not be written whole; is the disk full?" in done.stderr
    assert not list(tmp_path.iterdir())
