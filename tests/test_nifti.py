"""NIfTI: BreastDCEDL's headers say nothing and the table counts; any other header counts itself."""

import csv
import gzip
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_samples import DIRECTIONS, SHAPE, lesions, same_grid
from dicom_samples import series as dicom_series
from dicom_samples import write as write_dicom
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from her2core.formats.dicom import read_dce
from her2core.formats.nifti import (
    min_crop,
    phase_files,
    read_breastdcedl,
    read_mask,
    read_mask_of,
    read_volumes,
    upright,
    write_breastdcedl,
)
from her2core.formats.volume import DceSeries, Geometry, to_sitk

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
    """Write a `(Z, Y, X)` array as the real files were written."""
    nib.Nifti1Image(array, np.eye(4), dtype=array.dtype).to_filename(path)


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
    header = nib.Nifti1Header(gzip.decompress((folder / MASK).read_bytes())[:348])
    assert np.array_equal(header.get_best_affine(), np.eye(4)) and header["xyzt_units"] == 0
    assert (header["sform_code"], header["qform_code"], header["scl_slope"], header["vox_offset"]) == (2, 0, 1, 352)


def test_a_missing_phase_file_is_named(folder):
    (folder / f"{DCE}2.nii.gz").unlink()
    with pytest.raises(ValueError, match=rf"{PATIENT}: missing phase file \[2\], found \[0, 10\]"):
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
            r"mask.nii.gz: shape \(4, 6, 6\); expected shape \(4, 6, 7\) as .*aqc_0.nii.gz",
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
    with pytest.raises(
        ValueError, match=r"aqc_2.nii.gz: shape \(3, 6, 7\); expected shape \(4, 6, 7\) as .*_0.nii.gz"
    ):
        read_breastdcedl(folder, PATIENT, ROW)


@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_a_truncated_stream_is_refused_though_simpleitk_reads_it(folder, keep):
    path = folder / f"{DCE}0.nii.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match="aqc_0.nii.gz: Compressed file ended before"):
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


@pytest.mark.parametrize(
    "content, found",
    [
        (b"", "not a readable NIfTI file"),
        (gzip.compress(b"MIT License", mtime=0), "not a readable NIfTI file"),
        (b"MIT License", "Not a gzipped file"),
    ],
)
def test_a_file_that_is_no_nifti_is_refused(folder, content, found):
    (folder / f"{DCE}0.nii.gz").write_bytes(content)
    with pytest.raises(
        ValueError, match=f"aqc_0.nii.gz: {found}.*, expected one three-dimensional volume as NIfTI-1"
    ):
        read_breastdcedl(folder, PATIENT, ROW)


def test_a_file_with_a_time_axis_is_refused(folder):
    images = [sitk.GetImageFromArray(np.zeros((7, 6, 4), np.int16))] * 2
    sitk.WriteImage(sitk.JoinSeries(images), str(folder / f"{DCE}0.nii.gz"))
    expected = "expected one three-dimensional volume as NIfTI-1; export each phase as one .nii.gz"
    with pytest.raises(
        ValueError, match=rf"aqc_0.nii.gz: a header with dim \[4, 4, 6, 7, 2, 1, 1, 1\], {expected}"
    ):
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


def test_a_file_that_a_full_disk_cuts_off_is_no_file_and_no_bad_data(tmp_path):
    code = f"""
import resource, numpy as np
from pathlib import Path
from her2core.formats.nifti import _write_voxels
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
noise = np.random.default_rng(0).integers(0, 60000, (9, 32, 32)).astype(np.uint16)
_write_voxels(noise, Path({str(tmp_path)!r}) / "x.nii.gz")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "OSError: [Errno 27] File too large" in done.stderr
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------- headers of other exporters

TRUE = {"pre": 0, "post_early": 1, "post_late": 2}  # a row that leaves geometry to the files
NAMES = [*(f"{DCE}{k}.nii.gz" for k in range(3)), MASK]


def like_simpleitk(volume, geometry, path):
    sitk.WriteImage(to_sitk(volume, geometry), str(path))


def as_nibabel(volume, geometry):
    """x, y, z with an affine in RAS mm."""
    affine = np.eye(4)
    affine[:3, :3] = (np.array(geometry.direction) * geometry.spacing_mm)[:, ::-1]
    affine[:3, 3] = geometry.origin_mm
    volume = volume.astype(np.uint8) if volume.dtype == bool else volume
    return nib.Nifti1Image(volume.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine, dtype=volume.dtype)


def like_dcm2niix(volume, geometry, path):
    """Rows from the last to the first; sform and qform, millimetres."""
    image = as_nibabel(volume, geometry)
    image = image.as_reoriented(np.array([[0, 1], [1, -1], [2, 1]]))
    image.set_sform(image.affine, 1), image.set_qform(image.affine, 1), image.header.set_xyzt_units("mm")
    image.to_filename(path)


def like_dicom2nifti(volume, geometry, path):
    """Axes turned to left, anterior, superior, whatever the plane; no unit."""
    image = as_nibabel(volume, geometry)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("LAS"))
    image.as_reoriented(turn).to_filename(path)


def export(folder, data, how, mask=None):
    """Write a patient as `how` would; the mask of lesions by default."""
    for part in ("dce", "mask"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    mask = lesions() > 0 if mask is None else mask
    for name, volume in zip(NAMES, [*data.array, mask], strict=True):
        how(volume, data.geometry, folder / name)
    return folder


EXPORTERS = [like_simpleitk, like_dcm2niix, like_dicom2nifti]


@pytest.mark.parametrize("how", EXPORTERS)
@pytest.mark.parametrize("direction", ["axial", "sagittal", "coronal", "oblique"])
def test_an_examination_is_the_same_from_dicom_and_from_any_exporters_nifti(tmp_path, direction, how):
    data = dicom_series(direction)
    expected = read_dce(write_dicom(tmp_path / "dicom", data))
    found, mask = read_breastdcedl(export(tmp_path / "nifti", data, how), PATIENT, TRUE)
    assert np.array_equal(found.array, expected.array) and found.array.dtype == np.uint16
    assert same_grid(found.geometry, expected.geometry, 1e-4) and np.isnan(found.times_s).all()
    assert np.array_equal(mask, lesions() > 0)


@pytest.mark.parametrize("how", EXPORTERS)
def test_a_prone_examination_comes_as_its_plane_has_it_by_default(tmp_path, how):
    data = dicom_series("axial prone")
    found, mask = read_breastdcedl(export(tmp_path, data, how), PATIENT, TRUE)
    assert np.array_equal(found.array, data.array[..., ::-1, ::-1])
    assert np.array_equal(mask, (lesions() > 0)[..., ::-1, ::-1])
    assert np.allclose(found.geometry.direction, DIRECTIONS["axial"], atol=1e-6)
    last = data.geometry.position_mm((0, SHAPE[2] - 1, SHAPE[3] - 1))
    assert np.allclose(found.geometry.origin_mm, last, atol=1e-4)


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
def test_the_coarsest_axis_is_that_of_the_slices_and_of_cubes_the_one_nearest_to_head_and_feet(tmp_path, plane):
    for z_mm, slices in ((1.05, "axial"), (1.2, plane)):
        grid = Geometry((z_mm, 1.0, 1.0), (4.0, 5.0, 6.0), DIRECTIONS[plane])
        folder = export(tmp_path / f"{z_mm}", replace(dicom_series(), geometry=grid), like_dcm2niix)
        found = read_breastdcedl(folder, PATIENT, TRUE)[0].geometry
        assert np.allclose(found.direction, DIRECTIONS[slices], atol=1e-6)


def test_what_a_tilted_header_says_of_directions_is_kept(tmp_path):
    data = dicom_series("oblique")
    found, _ = read_breastdcedl(export(tmp_path, data, like_dicom2nifti), PATIENT, TRUE)
    corner = tuple(n - 1 for n in SHAPE[1:])
    assert np.allclose(found.geometry.position_mm(corner), data.geometry.position_mm(corner), atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("how", EXPORTERS)
def test_a_mask_whose_header_runs_an_axis_backwards_lands_where_it_was_drawn(tmp_path, axis, how):
    data = dicom_series("oblique")
    folder = export(tmp_path, data, how)
    origin = data.geometry.position_mm(np.eye(3)[axis] * (SHAPE[1 + axis] - 1))
    backwards = np.array(data.geometry.direction) * np.where(np.arange(3) == axis, -1, 1)
    grid = Geometry(data.geometry.spacing_mm, tuple(origin), tuple(map(tuple, backwards)))
    like_simpleitk(np.flip(lesions() > 0, axis), grid, folder / MASK)
    assert np.array_equal(read_breastdcedl(folder, PATIENT, TRUE)[1], lesions() > 0)


def other(**changes):
    return lambda data: as_nibabel(lesions().astype(np.uint8) // 2, replace(data.geometry, **changes))


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        (other(origin_mm=(-80.25, 12.5, 5.625)), r"origin \[.*5.625\]; expected origin \[.*3.125\]"),
        (other(origin_mm=(-79.9, 12.5, 3.125)), r"origin \[-79.9, .*; expected origin \[-80.25, "),
        (other(spacing_mm=(2.5, 0.7, 0.95)), r"spacing \[.*0.95\]; expected spacing \[.*0.9\]"),
        (other(direction=DIRECTIONS["oblique"]), r"direction \[.*; expected direction \["),
        (
            lambda data: as_nibabel(lesions()[1:] // 2, data.geometry),
            r"shape \(4, 6, 8\); expected shape \(5, 6, 8\)",
        ),
        (
            lambda data: nib.Nifti1Image(lesions().transpose(2, 1, 0) // 2, np.eye(4)),
            r"shape \(8, 6, 5\), spacing unknown .*; expected shape \(5, 6, 8\), spacing \[2.5, 0.7, 0.9\], or",
        ),
        (
            lambda data: nib.Nifti1Image(lesions() // 2, np.eye(4)),
            r"spacing unknown \(identity affine without unit\); expected spacing \[2.5, 0.7, 0.9\], origin \[",
        ),
    ],
    ids=["a slice higher", "half a voxel aside", "other pixels", "tilted", "a slice less", "x, y, z", "no place"],
)
@pytest.mark.parametrize("name", [MASK, NAMES[1]])
def test_a_file_on_another_grid_is_refused_with_both_files_and_what_differs(tmp_path, change, apart, name):
    data = dicom_series()
    folder = export(tmp_path, data, like_dcm2niix)
    change(data).to_filename(folder / name)
    with pytest.raises(ValueError, match=f"{name.split('/')[1]}: {apart}.* as .*aqc_0.nii.gz"):
        read_breastdcedl(folder, PATIENT, TRUE)


def test_an_identity_affine_with_a_unit_is_no_signature(folder):
    image = nib.load(folder / MASK)
    image = nib.Nifti1Image(np.asarray(image.dataobj), np.eye(4))
    image.header.set_xyzt_units("mm")
    image.to_filename(folder / MASK)
    with pytest.raises(ValueError, match=r"mask.nii.gz: .*spacing \[1.0, 1.0, 1.0\].*identity affine without unit"):
        read_breastdcedl(folder, PATIENT, ROW)
    for k in (0, 2, 10):
        image = nib.Nifti1Image(series().array[0], np.eye(4))
        image.header.set_xyzt_units("micron" if k else "mm")
        image.to_filename(folder / f"{DCE}{k}.nii.gz")
    with pytest.raises(ValueError, match=r"aqc_2.nii.gz: .*spacing \[0.001, 0.001, 0.001\]"):
        read_breastdcedl(folder, PATIENT, ROW)


def test_one_millimetre_cubes_are_refused_where_the_table_says_otherwise(tmp_path):
    data = replace(dicom_series(), geometry=Geometry((1.0, 1.0, 1.0)))
    folder = export(tmp_path, data, like_simpleitk)
    with pytest.raises(
        ValueError, match=rf"{PATIENT}: spacing \(1.0, 1.0, 1.0\) mm in the files, \[2.0, 0.7, 0.7\]"
    ):
        read_breastdcedl(folder, PATIENT, ROW | TRUE)
    assert np.array_equal(read_breastdcedl(folder, PATIENT, TRUE)[0].array, data.array)


@pytest.mark.parametrize(
    "row", [{"slice_thick": 2.0}, {"xy_spacing": 0.7}, {"slice_thick": 2.6, "xy_spacing": 0.8}]
)
def test_a_table_that_contradicts_the_headers_is_an_error_and_rounding_is_none(tmp_path, row):
    data = replace(dicom_series(), geometry=replace(dicom_series().geometry, spacing_mm=(2.5, 0.802, 0.802)))
    folder = export(tmp_path, data, like_dcm2niix)
    rounded = {"slice_thick": 2.51, "xy_spacing": 0.8}
    assert read_breastdcedl(folder, PATIENT, TRUE | rounded)[0].geometry.spacing_mm == pytest.approx(
        (2.5, 0.802, 0.802)
    )
    with pytest.raises(ValueError, match=r"spacing \(2.5, 0.802, 0.802\) mm in the files, \[.*\] mm in the table"):
        read_breastdcedl(folder, PATIENT, TRUE | row)


# -------------------------------------------------------------------------------------------------- broken headers

FIELDS = nib.Nifti1Header.template_dtype


def patched(path, order="<", **fields):
    """Set fields of a header in a stored file."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    head = np.frombuffer(data, FIELDS.newbyteorder(order), 1)[0]
    head = np.array(head)
    for key, value in fields.items():
        head[key] = value
    path.write_bytes(gzip.compress(head.tobytes() + bytes(data[348:]), mtime=0))


@pytest.mark.parametrize(
    "fields",
    [
        {"sizeof_hdr": 347},
        {"dim": [3, 0, 8, 6, 1, 1, 1, 1]},
        {"dim": [3, -4, 6, 7, 1, 1, 1, 1]},
        {"dim": [2, 4, 42, 1, 1, 1, 1, 1]},
        {"dim": [5, 2, 6, 7, 1, 2, 1, 1]},
        {"datatype": 128, "bitpix": 24},
        {"datatype": 1536, "bitpix": 128},
        {"bitpix": 8},
        {"vox_offset": 0},
        {"vox_offset": 351},
        {"vox_offset": 352.5},
        {"vox_offset": np.nan},
        {"scl_slope": -1},
        {"scl_slope": np.nan},
        {"scl_slope": np.inf},
        {"scl_slope": 1e-30},
        {"scl_slope": 1e13},
        {"scl_inter": np.nan},
        {"xyzt_units": 5},
    ],
    ids=str,
)
def test_a_header_that_contradicts_itself_is_refused_by_the_name_of_its_field(folder, fields):
    patched(folder / f"{DCE}2.nii.gz", **fields)
    with pytest.raises(
        ValueError, match=f"aqc_2.nii.gz: a header with .*{next(iter(fields))} .*, expected one three"
    ):
        read_breastdcedl(folder, PATIENT, ROW)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"datatype": 77}, "data code 77 not recognized|77"),
        ({"sform_code": 0}, "neither sform nor qform"),
        ({"sform_code": -1}, "neither sform nor qform"),
        (
            {"pixdim": [1, 2.5, 1, 1, 1, 1, 1, 1]},
            r"pixdim \[2.5, 1.0, 1.0\] mm and an affine with the spacing \(1.0, 1",
        ),
        ({"pixdim": [1, 1, 1, 0, 1, 1, 1, 1]}, r"pixdim \[1.0, 1.0, 0.0\]"),
        ({"srow_x": [0, 0, 0, 0]}, "spacing_mm must be three positive numbers"),
        ({"srow_x": [1, 0.2, 0, 0]}, "direction must have orthonormal columns"),
        ({"srow_y": [0, 1, 0, np.nan]}, "sform .*nan"),
        ({"srow_z": [0, np.inf, 1, 0]}, ""),
        ({"qform_code": 1, "qoffset_x": 7}, r"sform Geometry.* and qform .*origin_mm=\(-7.0, 0.0, 0.0\)"),
        ({"qform_code": 1, "quatern_d": 1}, "sform Geometry.* and qform"),
        ({"qform_code": 1, "quatern_b": 0.9, "quatern_c": 0.9}, "w2 should be positive"),
        ({"dim": [3, 1000, 1000, 1000, 1, 1, 1, 1]}, "truncated, or too large: .* bytes, of 2000000352 announced"),
        ({"dim": [3, 4, 6, 8, 1, 1, 1, 1]}, "Expected 384 bytes, got 336"),
        ({"dim": [3, 4, 6, 6, 1, 1, 1, 1]}, "longer than the 640 bytes that its header announces"),
        ({"vox_offset": 368}, "Expected 336 bytes, got 320"),
        ({"datatype": 256, "bitpix": 8}, "longer than the 520 bytes"),
    ],
    ids=str,
)
def test_a_header_that_contradicts_its_file_is_refused(folder, fields, message):
    patched(folder / f"{DCE}2.nii.gz", **fields)
    with pytest.raises(ValueError, match=f"aqc_2.nii.gz: .*{message}"):
        read_breastdcedl(folder, PATIENT, ROW)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_voxel_that_is_no_finite_number_is_refused(folder, value):
    array = series().array[0].astype(np.float32)
    array[1, 2, 3] = value
    store(array, folder / f"{DCE}2.nii.gz")
    with pytest.raises(ValueError, match="aqc_2.nii.gz: voxels that are not finite numbers, expected"):
        read_breastdcedl(folder, PATIENT, ROW)


def test_a_qform_alone_counts_and_metres_and_micrometres_are_scaled(tmp_path):
    data = dicom_series("oblique")
    folder = export(tmp_path, data, like_dcm2niix)
    for name, unit in zip(NAMES, (1, 3, 2, 3), strict=True):
        scale = {1: 1e-3, 2: 1.0, 3: 1e3}[unit]
        image = as_nibabel(np.asarray(nib.load(folder / name).dataobj)[:, ::-1].transpose(2, 1, 0), data.geometry)
        affine = np.diag([scale] * 3 + [1]) @ image.affine
        image = nib.Nifti1Image(np.asarray(image.dataobj), affine)
        image.set_sform(None, 0), image.set_qform(affine, 1)
        image.header["xyzt_units"] = unit
        image.to_filename(folder / name)
    found, mask = read_breastdcedl(folder, PATIENT, TRUE)
    assert np.array_equal(found.array, data.array) and same_grid(found.geometry, data.geometry, 1e-3)
    assert np.array_equal(mask, lesions() > 0)


@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
def test_both_byte_orders_read_equal(folder, ext):
    for k in (0, 2, 10):
        path = folder / f"{DCE}{k}.nii.gz"
        image = nib.load(path)
        big = nib.Nifti1Image(
            np.asarray(image.dataobj), np.eye(4), nib.Nifti1Header(endianness=">"), dtype=np.uint16
        )
        path.unlink()
        big.to_filename(folder / f"{DCE}{k}{ext}")
    found, _ = read_breastdcedl(folder, PATIENT, ROW)
    assert (
        found.array.dtype == np.uint16
        and found.array.dtype.isnative
        and np.array_equal(found.array, series().array)
    )


def test_a_slope_makes_real_numbers_and_none_or_one_keeps_integers(folder):
    patched(folder / f"{DCE}0.nii.gz", scl_slope=0.5, scl_inter=-3)
    patched(folder / f"{DCE}2.nii.gz", scl_slope=0, scl_inter=9)
    assert read_volumes(folder / f"{DCE}2.nii.gz", most=1)[0][0].dtype == np.uint16
    found, _ = read_breastdcedl(folder, PATIENT, ROW)
    expected = np.stack([series().array[0] * 0.5 - 3, *series().array[1:]])
    assert found.array.dtype == np.float32 and np.array_equal(found.array, expected)


def test_an_extension_before_the_voxels_is_passed_over(folder):
    image = nib.load(folder / f"{DCE}2.nii.gz")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"who knows" * 9))
    image.to_filename(folder / f"{DCE}2.nii.gz")
    assert np.array_equal(read_breastdcedl(folder, PATIENT, ROW)[0].array, series().array)


def test_nifti_2_and_pairs_are_refused_by_name(folder):
    path = folder / f"{DCE}2.nii.gz"
    array = np.asarray(nib.load(path).dataobj)
    nib.Nifti2Image(array, np.eye(4)).to_filename(path)
    with pytest.raises(ValueError, match="aqc_2.nii.gz: NIfTI-2, expected .* as NIfTI-1; export each phase as one"):
        read_breastdcedl(folder, PATIENT, ROW)
    path.unlink()
    nib.Nifti1Pair(array, np.eye(4)).to_filename(folder / f"{DCE}2.hdr")
    with pytest.raises(ValueError, match="aqc_2.hdr: half of a pair of .hdr and .img, expected"):
        read_breastdcedl(folder, PATIENT, ROW)


def peak_bytes(read):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as refusal:
            read()
        return tracemalloc.get_traced_memory()[1], str(refusal.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ext", [".nii", ".nii.gz"])
def test_a_small_file_that_announces_gigabytes_is_refused_before_memory_is_taken(tmp_path, ext):
    header = nib.Nifti1Header()
    header.set_data_shape((2000, 1000, 1000))
    header.set_data_dtype(np.int32)
    header.set_sform(np.diag([0.8, 0.8, 2.5, 1]), 1)
    header["vox_offset"] = 352
    path, content = tmp_path / f"x{ext}", header.binaryblock + bytes(4)
    path.write_bytes(gzip.compress(content) if ext == ".nii.gz" else content)
    peak, said = peak_bytes(lambda: read_mask(path))
    assert peak < 2 << 20 and re.search(r"x.nii(.gz)?: truncated, or too large: \d+ bytes, of 8000000352 ann", said)


def test_zeros_behind_the_volume_are_never_unpacked(folder):
    path = folder / f"{DCE}2.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(64 << 20), 1))
    peak, said = peak_bytes(lambda: read_breastdcedl(folder, PATIENT, ROW))
    assert peak < 2 << 20 and "aqc_2.nii.gz: longer than the 688 bytes that its header announces" in said


def test_the_checksum_of_the_stream_is_verified(folder):
    path = folder / f"{DCE}2.nii.gz"
    stored = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    stored[-60] ^= 4  # a voxel; the stream stays readable
    path.write_bytes(stored)
    with pytest.raises(ValueError, match="aqc_2.nii.gz: CRC check failed"):
        read_breastdcedl(folder, PATIENT, ROW)
    stored[-60] ^= 4
    stored[-2] ^= 1  # the length at the end
    path.write_bytes(stored)
    with pytest.raises(ValueError, match="aqc_2.nii.gz: Incorrect length of data"):
        read_breastdcedl(folder, PATIENT, ROW)


def test_voxels_in_a_second_member_of_the_stream_are_read_and_what_is_no_member_is_refused(folder):
    path = folder / f"{DCE}2.nii.gz"
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:500]) + gzip.compress(data[500:]))
    assert np.array_equal(read_breastdcedl(folder, PATIENT, ROW)[0].array, series().array)
    path.write_bytes(gzip.compress(data) + b"something else")
    with pytest.raises(ValueError, match="aqc_2.nii.gz: Not a gzipped file"):
        read_breastdcedl(folder, PATIENT, ROW)


# -------------------------------------------------------------------------------------------- images in DICOM order

AXES = [np.eye(3)[list(order)] for order in permutations(range(3))]
AXES = [axes * signs for axes in AXES for signs in product((1, -1), repeat=3)]


def placed(axes, spacing_mm):
    """Geometry whose array axes (z, y, x) run along these rows of LPS."""
    return Geometry(spacing_mm, (5.0, -7.0, 11.0), tuple(map(tuple, np.array(axes).T.tolist())))


@pytest.mark.parametrize("spacing_mm", [(2.0, 0.8, 0.7), (1.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("axes", AXES, ids=lambda axes: str(axes.astype(int).tolist()))
def test_a_mask_in_nifti_lies_on_dicom_images_of_any_order_of_axes_and_both_turn_upright(
    tmp_path, axes, spacing_mm
):
    geometry, mask = placed(axes, spacing_mm), np.zeros((5, 6, 7), bool)
    mask[1, 2:5, 3], mask[3, 1, 1] = True, True
    sitk.WriteImage(to_sitk(mask, geometry), str(tmp_path / "mask.nii.gz"))
    found = read_mask_of(tmp_path / "mask.nii.gz", mask.shape, geometry)
    assert np.array_equal(found, mask)
    turned, place = upright(np.stack([mask, ~mask]), geometry)
    (whole,), same = read_volumes(tmp_path / "mask.nii.gz")
    assert np.array_equal(turned[0], whole) and np.array_equal(turned[1], whole == 0)
    assert place.spacing_mm == pytest.approx(same.spacing_mm) and place.origin_mm == pytest.approx(same.origin_mm)
    np.testing.assert_allclose(place.direction, same.direction, atol=1e-6)


def test_what_lies_upright_stays_the_very_same():
    geometry, array = Geometry((2.0, 0.7, 0.7)), np.zeros((3, 4, 5))
    assert upright(array, geometry) == (array, geometry)


def test_a_mask_in_nifti_beside_dicom_images_elsewhere_is_refused(tmp_path):
    mask, prone = np.zeros((3, 4, 5), bool), placed([[0, 0, 1], [0, -1, 0], [-1, 0, 0]], (2.0, 0.8, 0.7))
    mask[2] = True
    sitk.WriteImage(to_sitk(mask, prone), str(tmp_path / "mask.nii.gz"))
    with pytest.raises(ValueError, match=r"mask.nii.gz: origin \[.*; expected origin \[.* as the images"):
        read_mask_of(tmp_path / "mask.nii.gz", mask.shape, replace(prone, origin_mm=(0.0, 0.0, 0.0)))


def test_a_mask_of_nearly_all_voxels_is_refused_in_nifti_too(tmp_path):
    mask = np.ones((3, 4, 5), bool)
    mask[0, 0, 0] = False
    sitk.WriteImage(to_sitk(mask, Geometry((2.0, 0.7, 0.7))), str(tmp_path / "mask.nii.gz"))
    with pytest.raises(ValueError, match=r"mask.nii.gz: 98.3% of the volume is tumour, expected at most 50%"):
        read_mask(tmp_path / "mask.nii.gz")


def test_a_crop_that_would_leave_a_focus_out_is_refused():
    mask = np.zeros((3, 10, 60), bool)
    mask[1, 4:6, 2:8] = mask[1, 4:6, 50:56] = True
    with pytest.raises(
        ValueError, match="tumour in parts far apart: 0 of 24 tumour voxels lie in the 16 × 16 pixels"
    ):
        min_crop(mask[None], mask, 1, 16)
    assert min_crop(mask[None], mask, 1, 54)[1].sum() == 24
