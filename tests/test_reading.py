"""One examination in every form that its files may have: the same phases, mask and times."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_samples import SEG, edit, files_at, geometry, lesions, put, series, write

from her2core.formats.dicom_write import write_seg
from her2core.formats.examination import Told, numbered, read_examination
from her2core.formats.volume import Geometry, Phases, to_sitk

SHAPE = (5, 5, 6, 8)
TIMES = (0.0, 72.0, 144.0, 216.0, 390.0)
WANTED = {"early_s": 150.0, "late_s": 450.0, "name": "x"}


@pytest.fixture
def home(tmp_path):
    """Five phases as DICOM, one folder; the lesions as a SEG."""
    write(tmp_path / "dce", series(shape=SHAPE, times_s=TIMES))
    write_seg(lesions(), geometry(), tmp_path / "seg.dcm", meaning="segments", **SEG)
    return tmp_path


def read(home, images="dce", mask="seg.dcm", told=None, **more):
    return read_examination(home / images, home / mask if mask else None, told or Told(), **WANTED | more)


def one_folder_per_phase(home):
    for t in range(SHAPE[0]):
        (home / f"phases/{t}").mkdir(parents=True)
        for path, _ in files_at(home / "dce", phase=t):
            path.rename(home / f"phases/{t}" / path.name)
    edit_all = put(TemporalPositionIdentifier=None)
    for t in range(SHAPE[0]):
        edit(home / f"phases/{t}", edit_all)
    return "phases"


def nifti_per_phase(home):
    (home / "n").mkdir()
    for t, phase in enumerate(series(shape=SHAPE, times_s=TIMES).array):
        sitk.WriteImage(to_sitk(phase, geometry()), str(home / f"n/phase_{t}.nii.gz"))
    (home / "n/phase_0.json").write_text("{}")  # as dcm2niix leaves it
    return "n"


def one_nifti(home):
    phases = [to_sitk(phase, geometry()) for phase in series(shape=SHAPE, times_s=TIMES).array]
    sitk.WriteImage(sitk.JoinSeries(phases), str(home / "all.nii.gz"))
    return "all.nii.gz"


@pytest.mark.parametrize("form", [lambda h: "dce", one_folder_per_phase, nifti_per_phase, one_nifti])
def test_every_form_of_the_images_gives_the_same(home, form):
    found = read(home, form(home), told=Told(0, 2, 4))
    assert np.array_equal(found.phases, series(shape=SHAPE, times_s=TIMES).array[[0, 2, 4]])
    assert np.array_equal(found.mask, lesions() > 0) and found.chosen == Phases(0, 2, 4)
    assert np.allclose(found.geometry.spacing_mm, geometry().spacing_mm, atol=1e-5)


@pytest.mark.parametrize("form", [lambda h: "dce", nifti_per_phase, one_nifti])
def test_headers_alone_give_all_but_the_intensities(home, form):
    images = form(home)
    whole, headers = (read(home, images, told=Told(0, 2, 4), pixels=pixels) for pixels in (True, False))
    assert headers.phases.shape == whole.phases.shape and not headers.phases.any()
    assert headers.geometry == whole.geometry and repr(headers.times_s) == repr(whole.times_s)
    assert np.array_equal(headers.mask, whole.mask)


def test_phases_told_win_over_times_and_times_told_over_those_of_the_files(home):
    assert read(home).chosen == Phases(0, 2, 4)
    found = read(home, told=Told(0, 1, 3, early_s=80.0))
    assert found.chosen == Phases(0, 1, 3) and found.times_s == (0.0, 80.0, 216.0)


def test_three_phases_are_pre_early_and_late_whatever_their_times(tmp_path):
    write(tmp_path / "dce", series())
    write_seg(lesions(), geometry(), tmp_path / "seg.dcm", meaning="segments", **SEG)
    assert read(tmp_path).times_s == (0.0, 92.5, 180.0)


def test_a_mask_of_nifti_lies_on_dicom_images_and_a_box_is_a_mask(home):
    sitk.WriteImage(to_sitk(lesions() > 0, geometry()), str(home / "mask.nii.gz"))
    assert np.array_equal(read(home, mask="mask.nii.gz").mask, lesions() > 0)
    box = read(home, mask=None, told=Told(box=(1, 2, 3, 2, 2, 5))).mask
    assert box.sum() == 6 and box[1:3, 2, 3:6].all()


@pytest.mark.parametrize(
    ("told", "mask", "message"),
    [
        (Told(box=(0, 0, 0, 1, 1, 1)), "seg.dcm", "x: a mask and a box, or neither"),
        (Told(), None, "x: a mask and a box, or neither"),
        (Told(box=(0, 0, 0, 1, 1, 8)), None, r"box \(0, 0, 0, 1, 1, 8\), expected one inside images of shape"),
        (Told(0, 2, 5), "seg.dcm", r"phases \[0, 2, 5\], counted from 0, expected all of them among the 5"),
    ],
)
def test_what_is_told_has_to_fit_the_files(home, told, mask, message):
    with pytest.raises(ValueError, match=message):
        read(home, mask=mask, told=told)


@pytest.mark.parametrize("box", [(0, 0, 0, 1, 1), (0, 0, 0, 1, 1, -1), (2, 0, 0, 1, 1, 1)])
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(ValueError, match=r"box \(.*expected first and last voxel"):
        Told(box=box)


def test_a_series_in_doubt_is_refused_unless_the_phases_are_told(home):
    edit(home / "dce", put(NumberOfTemporalPositions=6))
    with pytest.raises(ValueError, match="doubtful series.*NumberOfTemporalPositions is 6"):
        read(home)
    assert "NumberOfTemporalPositions is 6" in read(home, told=Told(0, 2, 4)).remarks[0]
    assert read(home, strict=False).remarks == read(home, told=Told(0, 2, 4)).remarks


@pytest.mark.parametrize("moved", [Geometry((2.5, 0.7, 0.9), (9.0, 9.0, 9.0)), Geometry((2.5, 0.7, 0.8))])
def test_a_mask_of_nifti_elsewhere_is_refused(home, moved):
    sitk.WriteImage(to_sitk(lesions() > 0, moved), str(home / "mask.nii.gz"))
    with pytest.raises(ValueError, match=r"mask.nii.gz: .*origin \[.*; expected .*origin \[.* as the images"):
        read(home, mask="mask.nii.gz")


@pytest.mark.parametrize("name", ["notes.txt", "phase.nii.gz", "other_2.nii.gz"])
def test_a_file_that_is_no_numbered_phase_is_named(home, name):
    folder = home / nifti_per_phase(home)
    (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match="expected nothing but NIfTI, a file for each phase"):
        numbered(folder)


def test_the_numbers_of_files_are_the_phases(home):
    folder = home / nifti_per_phase(home)
    for t in (4, 2, 0):
        (folder / f"phase_{t}.nii.gz").rename(folder / f"phase_{10 * t + 1}.nii.gz")
    (folder / "phase_1.nii.gz").exists()
    assert list(numbered(folder)) == sorted(numbered(folder))
    with pytest.raises(ValueError, match=r"x: missing phase file \[2\], found \[1, 3, 21, 41\]"):
        read(home, "n", told=Told(1, 2, 3))
