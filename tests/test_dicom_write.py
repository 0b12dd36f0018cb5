"""What the writers write is conformant, the same every time, and complete or absent."""

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_samples import (
    ACQUISITION,
    DIRECTIONS,
    SEG,
    SHAPE,
    analysis_mask,
    files_at,
    geometry,
    lesions,
    series,
    write,
)

from her2core.formats import dicom_write
from her2core.formats.dicom_write import write_dce, write_seg
from her2core.formats.volume import to_sitk


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "dce")


def test_two_writes_give_the_same_bytes_and_another_patient_other_uids(folder, tmp_path):
    write(tmp_path / "again")
    write_dce(series(), tmp_path / "other", patient_id="P2", acquisition=ACQUISITION)
    contents = [{p.name: p.read_bytes() for p in f.iterdir()} for f in (folder, tmp_path / "again")]
    assert contents[0] == contents[1]
    assert not contents[0].keys() & {p.name for p in (tmp_path / "other").iterdir()}


def test_a_folder_appears_only_when_complete_and_is_never_written_into(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(dicom_write, "_file_bytes", fail)
        with pytest.raises(OSError, match="disk full"):
            write(tmp_path / "dce")
    assert not (tmp_path / "dce").exists()
    write(tmp_path / "dce")
    assert [p.name for p in tmp_path.iterdir()] == ["dce"]
    with pytest.raises(FileExistsError, match="dce: not empty"):
        write(tmp_path / "dce")


@pytest.mark.parametrize(
    "dtype, bits, message",
    [
        (np.float32, 16, "float32 values"),
        (np.uint16, 8, "from 0 to 255 in 8 bits"),
        (np.int16, 12, "-2048"),
    ],
)
def test_values_that_do_not_fit_cannot_be_written(tmp_path, dtype, bits, message):
    with pytest.raises(ValueError, match=f"P1: .*{message}"):
        write(tmp_path / "dce", series(dtype=dtype), bits_stored=bits)


def test_the_headers_say_how_the_series_was_made(folder):
    for _, ds in files_at(folder):
        assert (ds.PatientID, ds.Manufacturer, ds.SeriesDescription) == (
            "P1",
            ACQUISITION.manufacturer,
            ACQUISITION.series_description,
        )
        assert (ds.MagneticFieldStrength, ds.RepetitionTime, ds.EchoTime, ds.FlipAngle) == (1.5, 5.3, 2.4, 10)
        assert (ds.NumberOfTemporalPositions, ds.BitsStored, ds.HighBit) == (3, 16, 15)
    assert len({ds.SOPInstanceUID for _, ds in files_at(folder)}) == 15


def written_files(folder):
    """One MR file and both kinds of SEG."""
    write_seg(lesions(), geometry(), folder / "roi.dcm", meaning="segments", **SEG)
    write_seg(analysis_mask(), geometry(), folder / "mask.dcm", meaning="tumour_is_zero", **SEG)
    write(folder / "dce")
    return [folder / "roi.dcm", folder / "mask.dcm", sorted((folder / "dce").iterdir())[0]]


def test_every_element_written_is_valid_by_pydicom(tmp_path, monkeypatch):
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    for path in written_files(tmp_path):
        for element in pydicom.dcmread(path).iterall():
            assert element.value is not None or element.VM == 0, element


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_every_file_written_conforms_by_dciodvfy(tmp_path):
    for path in written_files(tmp_path):
        report = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True).stderr
        assert "Error" not in report, report


def test_labels_with_a_gap_or_of_another_type_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"labels \[2\]"):
        write_seg(2 * (lesions() == 2).astype(np.uint8), geometry(), tmp_path / "x", meaning="segments", **SEG)
    with pytest.raises(ValueError, match="P1: bool of shape"):
        write_seg(lesions() > 0, geometry(), tmp_path / "x", meaning="segments", **SEG)
    with pytest.raises(ValueError, match=r"P1: labels \[\], expected 1 to n"):
        write_seg(np.zeros(SHAPE[1:], np.uint8), geometry(), tmp_path / "x", meaning="segments", **SEG)
    with pytest.raises(ValueError, match="meaning is 'inverse'"):
        write_seg(lesions(), geometry(), tmp_path / "x", meaning="inverse", **SEG)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def roi(tmp_path):
    write_seg(lesions(), geometry(), tmp_path / "roi.dcm", meaning="segments", **SEG)
    return tmp_path / "roi.dcm"


def test_two_seg_writes_give_the_same_bytes(roi, tmp_path):
    write_seg(lesions(), geometry(), tmp_path / "again.dcm", meaning="segments", **SEG)
    assert (tmp_path / "again.dcm").read_bytes() == roi.read_bytes()


def test_highdicom_reads_what_we_write(roi):
    import highdicom

    seg = highdicom.seg.segread(roi)
    volume = seg.get_volume(combine_segments=True)
    first = int(np.flatnonzero(lesions().any(axis=(1, 2)))[0])
    array = np.asarray(volume.array)
    if volume.direction[:, 0] @ np.array(DIRECTIONS["axial"])[:, 0] < 0:
        array = array[::-1]
    assert np.array_equal(array, lesions()[first : first + len(array)])


def test_simpleitk_reads_one_phase_to_the_same_voxels_and_geometry(tmp_path):
    for direction in DIRECTIONS:
        folder = write(tmp_path / direction, series(direction))
        for path, _ in [*files_at(folder, phase=0), *files_at(folder, phase=2)]:
            path.unlink()
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        found, expected = reader.Execute(), to_sitk(series().array[1], geometry(direction))
        assert np.array_equal(sitk.GetArrayFromImage(found), series().array[1])
        for place in ("GetOrigin", "GetSpacing", "GetDirection"):
            assert getattr(found, place)() == pytest.approx(getattr(expected, place)(), abs=1e-4)


def test_written_file_names_are_not_in_the_order_of_the_slices(folder):
    numbers = [ds.InstanceNumber for _, ds in files_at(folder)]
    assert numbers != sorted(numbers)
