"""DICOM folders and SEGs: what is written is read back; what is broken is refused with its name."""

import shutil
import subprocess
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from her2core import dicom
from her2core.dicom import Acquisition, read_dce, read_seg, read_seg_labels, write_dce, write_seg
from her2core.volume import DceSeries, Geometry, from_sitk

NAN = float("nan")
TIMES = (0.0, 92.5, 180.0)
SHAPE = (3, 5, 6, 8)  # (T, Z, Y, X)
ACQUISITION = Acquisition(
    series_description="ISPY2: VOLSER: uni-lateral cropped: original DCE",
    manufacturer="GE MEDICAL SYSTEMS",
    field_strength_T=1.5,
    tr_ms=5.3,
    te_ms=2.4,
    flip_deg=10,
)


def right_handed(along_row, down_column):
    """Direction columns (z, y, x) of a plane; z is the normal."""
    return tuple(map(tuple, np.stack([np.cross(along_row, down_column), down_column, along_row], axis=1)))


C, S = np.cos(0.4), np.sin(0.4)
DIRECTIONS = {
    "axial": right_handed((1, 0, 0), (0, 1, 0)),
    "axial prone": right_handed((-1, 0, 0), (0, -1, 0)),
    "sagittal": right_handed((0, 1, 0), (0, 0, -1)),
    "coronal": right_handed((1, 0, 0), (0, 0, -1)),
    "oblique": right_handed((C, S * S, S * C), (0, C, -S)),
}


def geometry(direction="axial"):
    return Geometry((2.5, 0.7, 0.9), (-80.25, 12.5, 3.125), DIRECTIONS[direction])


def series(direction="axial", dtype=np.uint16, shape=SHAPE, times_s=TIMES):
    array = np.random.default_rng(0).integers(0, 4096, shape).astype(dtype)
    return DceSeries(array, geometry(direction), times_s[: shape[0]])


def write(folder, data=None, **changes):
    data = series() if data is None else data
    write_dce(data, folder, patient_id="P1", acquisition=replace(ACQUISITION, **changes))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "dce")


def files_at(folder, *, phase=None, slice_=None):
    """(path, dataset) of the files of one phase or one slice, by what the headers say."""
    found = [(path, pydicom.dcmread(path)) for path in sorted(folder.iterdir())]
    heights = sorted({ds.ImagePositionPatient[2] for _, ds in found})
    return [
        (path, ds)
        for path, ds in found
        if (phase is None or ds.TemporalPositionIdentifier == phase)
        and (slice_ is None or ds.ImagePositionPatient[2] == heights[slice_])
    ]


def edit(folder, change, **where):
    """Apply `change(dataset)` to the files chosen."""
    for path, ds in files_at(folder, **where):
        change(ds)
        ds.save_as(path)


def put(**elements):
    """An edit that sets elements, or deletes those given as None."""

    def change(ds):
        for keyword, value in elements.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)

    return change


# ------------------------------------------------------------------------------------------- what can be read


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_written_series_is_read_back_voxel_exact_on_the_same_grid(tmp_path, direction):
    written = series(direction)
    found = read_dce(write(tmp_path / "dce", written))
    assert found.array.dtype == np.uint16 and np.array_equal(found.array, written.array)
    assert found.geometry.agrees_with(written.geometry, tolerance_mm=1e-6)
    assert found.times_s == TIMES


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_slices_written_against_the_normal_come_back_along_it_at_the_same_places(tmp_path, direction):
    axes = np.array(DIRECTIONS[direction]) * [-1, 1, 1]
    written = replace(series(), geometry=Geometry((2.5, 0.7, 0.9), (1, 2, 3), tuple(map(tuple, axes))))
    found = read_dce(write(tmp_path / "dce", written))
    assert np.array_equal(found.array, written.array[:, ::-1])
    np.testing.assert_allclose(
        found.geometry.position_mm((1, 2, 3)), written.geometry.position_mm((3, 2, 3)), atol=1e-6
    )


def test_file_names_their_order_and_instance_and_content_elements_mean_nothing(folder):
    rng = np.random.default_rng(1)
    paths = sorted(folder.iterdir())
    for path, number in zip(paths, rng.permutation(len(paths)), strict=True):
        ds = pydicom.dcmread(path)
        ds.InstanceNumber, ds.ContentTime = int(number), f"{number:06d}"
        path.unlink()
        ds.save_as(folder / f"MR{number}")
    (folder / ".DS_Store").write_text("hidden files are ignored")
    assert np.array_equal(read_dce(folder).array, series().array)


def test_written_file_names_are_not_in_the_order_of_the_slices(folder):
    numbers = [ds.InstanceNumber for _, ds in files_at(folder)]
    assert numbers != sorted(numbers)


@pytest.mark.parametrize("dtype, bits", [(np.uint16, 12), (np.uint16, 16), (np.int16, 16), (np.int16, 13)])
def test_integer_types_are_kept(tmp_path, dtype, bits):
    written = series(dtype=dtype)
    if dtype == np.int16:
        written = replace(written, array=written.array - np.int16(2000))
    found = read_dce(write(tmp_path / "dce", written, bits_stored=bits))
    assert found.array.dtype == dtype and np.array_equal(found.array, written.array)


def test_rescale_is_applied_file_by_file_and_gives_float32(folder):
    edit(folder, put(RescaleSlope="2.5", RescaleIntercept="-10"), phase=1)
    found = read_dce(folder).array
    assert found.dtype == np.float32
    assert np.array_equal(found[[0, 2]], series().array[[0, 2]])
    assert np.array_equal(found[1], series().array[1] * np.float32(2.5) - np.float32(10))


def test_a_rescale_that_changes_nothing_keeps_the_integers(folder):
    edit(folder, put(RescaleSlope="1.0", RescaleIntercept="0"))
    assert read_dce(folder).array.dtype == np.uint16


@pytest.mark.parametrize("shape", [(1, 5, 6, 8), (3, 1, 6, 8), (1, 1, 1, 1), (2, 2, 3, 5)])
def test_one_phase_one_slice_and_odd_sizes_are_series_too(tmp_path, shape):
    written = series(shape=shape)
    found = read_dce(write(tmp_path / "dce", written))
    assert np.array_equal(found.array, written.array) and found.times_s == TIMES[: shape[0]]
    assert found.geometry.agrees_with(written.geometry)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_other_transfer_syntaxes_give_the_same_voxels(folder, syntax):
    for path, ds in files_at(folder):
        if syntax.is_compressed:
            ds.compress(syntax)
        elif not syntax.is_little_endian:
            ds["PixelData"].value = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, ds, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    found = read_dce(folder)
    assert found.array.dtype == np.uint16 and np.array_equal(found.array, series().array)


def test_simpleitk_reads_one_phase_to_the_same_voxels_and_geometry(tmp_path):
    for direction in DIRECTIONS:
        folder = write(tmp_path / direction, series(direction))
        for path, _ in [*files_at(folder, phase=0), *files_at(folder, phase=2)]:
            path.unlink()
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        array, found = from_sitk(reader.Execute())
        assert np.array_equal(array, series().array[1])
        assert found.agrees_with(geometry(direction), tolerance_mm=1e-4)


# ----------------------------------------------------------------------------------------------------- phases


def test_temporal_position_may_count_from_one(tmp_path):
    found = read_dce(write(tmp_path / "dce", first_temporal_position=1))
    assert np.array_equal(found.array, series().array)


def test_temporal_position_goes_before_a_clock_that_says_otherwise(tmp_path):
    folder = write(tmp_path / "dce")
    edit(folder, put(AcquisitionTime="110000"), phase=2)
    with pytest.warns(UserWarning, match="AcquisitionTime contradicts the order of the phases"):
        found = read_dce(folder)
    assert np.array_equal(found.array, series().array) and np.isnan(found.times_s).all()


@pytest.mark.parametrize("keyword", ["TriggerTime", "AcquisitionTime"])
def test_without_temporal_position_the_phases_follow_the_clock(tmp_path, keyword):
    folder = write(tmp_path / "dce", time_keyword=keyword)
    edit(folder, put(TemporalPositionIdentifier=None))
    found = read_dce(folder)
    assert np.array_equal(found.array, series().array)
    assert found.times_s == TIMES


def test_a_temporal_position_that_never_changes_is_passed_over(folder):
    edit(folder, put(TemporalPositionIdentifier=1))
    assert np.array_equal(read_dce(folder).array, series().array)


def test_times_that_differ_between_the_slices_of_a_phase_still_order_the_phases(folder):
    for z in range(5):
        for t in range(3):
            edit(folder, put(AcquisitionTime=f"1200{10 * t + z:02d}.5"), phase=t, slice_=z)
    edit(folder, put(TemporalPositionIdentifier=None))
    found = read_dce(folder)
    assert np.array_equal(found.array, series().array) and found.times_s == (0.0, 10.0, 20.0)


def test_an_examination_may_pass_midnight(folder):
    for t, time in enumerate(("235900", "000030", "000200")):
        edit(folder, put(AcquisitionTime=time), phase=t)
    assert read_dce(folder).times_s == (0.0, 90.0, 180.0)
    edit(folder, put(TemporalPositionIdentifier=None))
    assert np.array_equal(read_dce(folder).array, series().array)


@pytest.mark.parametrize("times", [(NAN, NAN, NAN), TIMES])
def test_times_are_nan_where_the_clock_is_frozen_or_absent(tmp_path, times):
    folder = write(tmp_path / "dce", series(times_s=times))
    edit(folder, put(AcquisitionTime="120000" if np.isnan(times[0]) else None))
    assert np.isnan(read_dce(folder).times_s).all()


def test_phases_without_any_clock_are_ambiguous(folder):
    edit(folder, put(TemporalPositionIdentifier=None, AcquisitionTime="120000"))
    with pytest.raises(ValueError, match="dce: ambiguous phases: 15 files for 5 slices"):
        read_dce(folder)


def test_phases_whose_times_overlap_are_ambiguous(folder):
    edit(folder, put(AcquisitionTime="120300"), phase=1, slice_=0)
    edit(folder, put(TemporalPositionIdentifier=None))
    with pytest.raises(ValueError, match="ambiguous phases: by AcquisitionTime phase 1 ends at"):
        read_dce(folder)


def test_a_gap_in_the_temporal_positions_is_a_missing_phase(folder):
    for path, _ in files_at(folder, phase=1):
        path.unlink()
    with pytest.raises(ValueError, match=r"values \[0, 2\], expected consecutive"):
        read_dce(folder)


def test_fewer_phases_than_announced_are_read_with_a_warning(folder):
    for path, _ in files_at(folder, phase=2):
        path.unlink()
    with pytest.warns(UserWarning, match="NumberOfTemporalPositions is 3; went on with the 2 phases found"):
        assert np.array_equal(read_dce(folder).array, series().array[:2])


# -------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "change, message",
    [
        (put(SeriesInstanceUID=generate_uid()), "files of 2 series .*expected one"),
        (put(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "mixed orientation"),
        (put(PixelSpacing=[0.7, 0.8]), "mixed pixel spacing"),
        (put(Rows=4, PixelData=b"\0" * 64), "mixed matrix"),
        (put(ImagePositionPatient=[-80.25, 22.5, 3.125]), "mixed position: .* lies 10 mm beside the stack"),
        (put(PixelData=b"\0" * 90), "truncated, PixelData holds 90 bytes, expected 96"),
        (put(PixelData=None), "no PixelData"),
        (put(Rows=None), "Rows is missing"),
        (put(PixelSpacing=None), "PixelSpacing is missing, expected 2"),
        (put(ImagePositionPatient=[0, 0]), "ImagePositionPatient is .* expected 3"),
        (put(ImageOrientationPatient=None), "ImageOrientationPatient is missing"),
        (put(NumberOfFrames=2), "multi-frame .*2 frames.* not supported yet"),
        (put(SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1"), "multi-frame .*Enhanced MR Image Storage"),
        (put(SamplesPerPixel=3, PhotometricInterpretation="RGB"), r"a colour image \(RGB\)"),
    ],
)
def test_a_file_that_does_not_belong_is_refused(folder, change, message):
    edit(folder, change, phase=1, slice_=0)
    with pytest.raises(ValueError, match=message):
        read_dce(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (put(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "not two orthogonal unit vectors"),
        (put(PixelSpacing=[0, 0]), "PixelSpacing is .* expected positive"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(folder, change, message):
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        read_dce(folder)


def test_a_number_that_is_none_is_refused_with_the_file_name(folder):
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes().replace(b"-80.25", b"-8x.25"))
    with pytest.raises(ValueError, match=f"{path.name}: ImagePositionPatient"):
        read_dce(folder)


def test_a_slice_missing_from_all_phases_is_found_by_its_gap(folder):
    for path, _ in files_at(folder, slice_=2):
        path.unlink()
    with pytest.raises(ValueError, match="dce: missing slice .* 5 mm between slices 1 and 2 of 4, expected 2.5"):
        read_dce(folder)


def test_a_slice_missing_from_one_phase_is_found_by_counting(folder):
    files_at(folder, phase=1, slice_=4)[0][0].unlink()
    with pytest.raises(ValueError, match=r"unequal slices per phase: \[5, 4, 5\], expected 5"):
        read_dce(folder)


def test_a_slice_missing_from_one_phase_is_found_without_temporal_position(folder):
    files_at(folder, phase=1, slice_=4)[0][0].unlink()
    edit(folder, put(TemporalPositionIdentifier=None))
    with pytest.raises(ValueError, match="unequal slices per phase: 2 files at slice 4, 3 elsewhere"):
        read_dce(folder)


def test_a_copy_of_a_file_is_a_duplicate_slice(folder):
    path, _ = files_at(folder, phase=1, slice_=2)[0]
    shutil.copy(path, folder / "copy")
    with pytest.raises(ValueError, match=r"duplicate slice: \[.*\] both hold phase 1, slice 2"):
        read_dce(folder)


@pytest.mark.parametrize(
    "content, message",
    [(b"MIT License", "LICENSE: not a DICOM file"), (b"", "LICENSE: the file is empty")],
)
def test_a_stray_file_is_refused_by_name(folder, content, message):
    (folder / "LICENSE").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_dce(folder)


def test_a_folder_that_is_absent_empty_or_nested_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        read_dce(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no files, expected those of one DCE series"):
        read_dce(tmp_path)
    (tmp_path / "dce").mkdir()
    with pytest.raises(ValueError, match="holds the folder 'dce'"):
        read_dce(tmp_path)


@pytest.mark.parametrize("keep", [0.02, 0.2, 0.5, 0.8, 0.95, 0.999])
def test_a_file_cut_off_anywhere_is_refused_by_name(folder, keep):
    path = sorted(folder.iterdir())[3]
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=path.name):
        read_dce(folder)


BUNDLED = [
    *("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"),
    *("MR_small_padded.dcm", "MR_truncated.dcm", "ExplVR_BigEnd.dcm", "ExplVR_LitEndNoMeta.dcm", "JPEG-lossy.dcm"),
    *("JPEG2000.dcm", "SC_rgb_rle_2frame.dcm", "UN_sequence.dcm", "badVR.dcm", "DICOMDIR", "image_dfl.dcm"),
    *("liver_1frame.dcm", "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm", "no_meta.dcm", "reportsi.dcm"),
    *("rtdose.dcm", "rtdose_1frame.dcm", "rtplan.dcm", "rtplan_truncated.dcm", "rtstruct.dcm", "test-SR.dcm"),
    *("waveform_ecg.dcm", "examples_overlay.dcm", "examples_ybr_color.dcm", "SC_rgb_rle.dcm", "693_J2KI.dcm"),
]
WARNED = {"MR_small_padded.dcm": "excess padding", "badVR.dcm": "Invalid value for VR IS"}


@pytest.mark.parametrize("name", BUNDLED)
def test_pydicoms_own_files_give_a_volume_or_a_valueerror(tmp_path, name):
    source = get_testdata_file(name, download=False)
    if source is None:
        pytest.skip("not among the files that come with pydicom")
    shutil.copy(source, tmp_path)
    # pydicom says what it repaired, which the user is to see
    with pytest.warns(UserWarning, match=WARNED[name]) if name in WARNED else nullcontext():
        try:
            found = read_dce(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error)
            return
        stored = pydicom.dcmread(source)
        slope, intercept = float(stored.get("RescaleSlope", 1)), float(stored.get("RescaleIntercept", 0))
        assert np.array_equal(found.array[0, 0], stored.pixel_array * slope + intercept)


# ---------------------------------------------------------------------------------------------------- writing


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
        patch.setattr(dicom, "_file_bytes", fail)
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
        (np.float32, 16, "values are float32"),
        (np.uint16, 8, "expected 0 to 255 in 8 bits"),
        (np.int16, 12, "-2048"),
    ],
)
def test_values_that_do_not_fit_cannot_be_written(tmp_path, dtype, bits, message):
    with pytest.raises(ValueError, match=f"P1: .*{message}"):
        write(tmp_path / "dce", series(dtype=dtype), bits_stored=bits)


def test_an_unknown_time_keyword_is_refused():
    with pytest.raises(ValueError, match="time_keyword is 'ContentTime'"):
        replace(ACQUISITION, time_keyword="ContentTime")


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


# -------------------------------------------------------------------------------------------------------- SEG

SEG = dict(patient_id="P1", series_description="ROI")


def lesions():
    """Two lesions with empty slices around them."""
    labels = np.zeros(SHAPE[1:], np.uint8)
    labels[1:3, 1:4, 2:5] = 1
    labels[2:4, 4, 6] = 2
    return labels


def analysis_mask():
    """The inverse mask: 0 in the first lesion, reasons for exclusion elsewhere."""
    codes = np.full(SHAPE[1:], 32 + 16, np.uint8)
    codes[0], codes[1, 0, 0], codes[1, 0, 1], codes[4, 0] = 1, 2, 64, 17
    codes[lesions() == 1] = 0
    return codes


def read(path, meaning="segments", grid=None, shape=SHAPE[1:]):
    return read_seg(path, geometry() if grid is None else grid, shape, meaning=meaning)


@pytest.fixture
def roi(tmp_path):
    write_seg(lesions(), geometry(), tmp_path / "roi.dcm", meaning="segments", **SEG)
    return tmp_path / "roi.dcm"


@pytest.fixture
def inverse(tmp_path):
    write_seg(analysis_mask(), geometry(), tmp_path / "mask.dcm", meaning="tumour_is_zero", **SEG)
    return tmp_path / "mask.dcm"


def test_segments_are_joined_to_one_mask_or_kept_as_labels(roi):
    assert len(pydicom.dcmread(roi).PerFrameFunctionalGroupsSequence) == 4  # empty slices are left out
    assert np.array_equal(read(roi), lesions() > 0) and read(roi).dtype == bool
    labels = read_seg_labels(roi, geometry(), SHAPE[1:])
    assert labels.dtype == np.uint8 and np.array_equal(labels, lesions())


def test_the_inverse_analysis_mask_is_tumour_where_it_is_zero(inverse):
    ds = pydicom.dcmread(inverse)
    assert (ds.SegmentationType, ds.SegmentationFractionalType) == ("FRACTIONAL", "OCCUPANCY")
    assert ds.MaximumFractionalValue == 255 and np.array_equal(ds.pixel_array, analysis_mask())
    assert np.array_equal(read(inverse, "tumour_is_zero"), lesions() == 1)


def test_the_inverse_analysis_mask_read_naively_marks_all_but_the_tumour(inverse):
    assert np.array_equal(read(inverse, "segments"), lesions() != 1)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_mask_goes_where_its_frames_lie_in_any_orientation_and_order(tmp_path, direction):
    for sign in (1, -1):
        axes = np.array(DIRECTIONS[direction]) * [sign, 1, 1]
        grid = Geometry((2.5, 0.7, 0.9), (1, 2, 3), tuple(map(tuple, axes)))
        flipped = Geometry((2.5, 0.7, 0.9), grid.position_mm((4, 0, 0)), tuple(map(tuple, axes * [-1, 1, 1])))
        for meaning, array in (("segments", lesions()), ("tumour_is_zero", analysis_mask())):
            path = tmp_path / f"{meaning}{sign}.dcm"
            write_seg(array, grid, path, meaning=meaning, **SEG)
            expected = lesions() > 0 if meaning == "segments" else lesions() == 1
            assert np.array_equal(read(path, meaning, grid), expected)
            assert np.array_equal(read(path, meaning, flipped), expected[::-1])


def test_the_order_of_the_frames_means_nothing(inverse):
    ds = pydicom.dcmread(inverse)
    order = [3, 0, 4, 1, 2]
    ds.PerFrameFunctionalGroupsSequence = [ds.PerFrameFunctionalGroupsSequence[i] for i in order]
    ds.PixelData = analysis_mask()[order].tobytes()
    ds.save_as(inverse)
    assert np.array_equal(read(inverse, "tumour_is_zero"), lesions() == 1)


def test_a_mask_written_for_a_series_lies_on_the_series_read_back(tmp_path):
    axes = np.array(DIRECTIONS["sagittal"]) * [-1, 1, 1]
    data = replace(series(), geometry=Geometry((2.5, 0.7, 0.9), (1, 2, 3), tuple(map(tuple, axes))))
    found = read_dce(write(tmp_path / "dce", data))
    write_seg(lesions(), data.geometry, tmp_path / "roi.dcm", meaning="segments", **SEG)
    mask = read_seg(tmp_path / "roi.dcm", found.geometry, found.array.shape[1:], meaning="segments")
    assert np.array_equal(found.array[:, mask], data.array[:, ::-1][:, lesions()[::-1] > 0])


def moved(**changes):
    return replace(geometry(), **changes)


@pytest.mark.parametrize(
    "grid, shape, message",
    [
        (moved(origin_mm=(-80.25, 12.85, 3.125)), SHAPE[1:], "another grid: the corners of frame 0"),
        (moved(origin_mm=(-80.25, 12.5, 4.0)), SHAPE[1:], "another grid: the corners"),
        (moved(spacing_mm=(2.5, 0.72, 0.9)), SHAPE[1:], "another grid: the corners"),
        (moved(spacing_mm=(2.0, 0.7, 0.9)), SHAPE[1:], "another grid: the corners"),
        (moved(direction=DIRECTIONS["sagittal"]), SHAPE[1:], "another grid: the corners"),
        (geometry(), (5, 6, 9), r"another grid: \(6, 8\) rows and columns, expected \(6, 9\)"),
        (geometry(), (3, 6, 8), "another grid: its slices are 1 to 3, expected 0 to 2"),
        (moved(origin_mm=(-80.25, 12.5, 3.125 + 5)), SHAPE[1:], "another grid: its slices are -1 to 1"),
    ],
)
def test_a_mask_on_another_grid_is_refused(roi, grid, shape, message):
    with pytest.raises(ValueError, match=f"roi.dcm: mask on {message}"):
        read(roi, grid=grid, shape=shape)


def test_an_analysis_mask_with_a_missing_or_doubled_frame_is_refused(inverse):
    ds = pydicom.dcmread(inverse)
    kept = ds.PerFrameFunctionalGroupsSequence[:4]
    ds.PerFrameFunctionalGroupsSequence, ds.NumberOfFrames = kept, 4
    ds.PixelData = analysis_mask()[:4].tobytes()
    ds.save_as(inverse)
    with pytest.raises(ValueError, match="FRACTIONAL with 4 frames for 4 slices, .* each of 5 slices"):
        read(inverse, "tumour_is_zero")
    ds.PerFrameFunctionalGroupsSequence, ds.NumberOfFrames = [*kept, kept[0]], 5
    ds.PixelData = analysis_mask().tobytes()
    ds.save_as(inverse)
    with pytest.raises(ValueError, match="5 frames, 5 positions of which 4 differ"):
        read(inverse, "tumour_is_zero")


def test_a_binary_seg_is_no_analysis_mask(roi):
    with pytest.raises(ValueError, match="BINARY with 4 frames"):
        read(roi, "tumour_is_zero")


def test_a_mask_without_tumour_is_refused(tmp_path):
    path = tmp_path / "mask.dcm"
    write_seg(np.full(SHAPE[1:], 33, np.uint8), geometry(), path, meaning="tumour_is_zero", **SEG)
    with pytest.raises(ValueError, match="empty mask"):
        read(path, "tumour_is_zero")
    with pytest.raises(ValueError, match=r"P1: labels \[\], expected 1 to n"):
        write_seg(np.zeros(SHAPE[1:], np.uint8), geometry(), path, meaning="segments", **SEG)


def test_labels_with_a_gap_or_of_another_type_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"labels \[2\]"):
        write_seg(2 * (lesions() == 2).astype(np.uint8), geometry(), tmp_path / "x", meaning="segments", **SEG)
    with pytest.raises(ValueError, match="P1: bool of shape"):
        write_seg(lesions() > 0, geometry(), tmp_path / "x", meaning="segments", **SEG)
    assert not list(tmp_path.iterdir())


def test_overlapping_segments_have_a_union_but_no_labels(roi):
    ds = pydicom.dcmread(roi)
    ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence = ds.PerFrameFunctionalGroupsSequence[
        0
    ].PlanePositionSequence
    bits = ds.pixel_array
    bits[2] = bits[0]
    ds.PixelData = pydicom.pixels.pack_bits(bits)
    ds.save_as(roi)
    assert np.array_equal(read(roi)[1], lesions()[1] == 1)
    with pytest.raises(ValueError, match="segments 1 and 2 overlap in slice 1"):
        read_seg_labels(roi, geometry(), SHAPE[1:])


@pytest.mark.parametrize("meaning", ["inverse", None])
def test_an_unknown_meaning_is_refused(roi, meaning):
    with pytest.raises(ValueError, match="meaning is"):
        read(roi, meaning)
    with pytest.raises(ValueError, match="meaning is"):
        write_seg(lesions(), geometry(), roi, meaning=meaning, **SEG)


@pytest.mark.parametrize(
    "change, message",
    [
        (put(SegmentationType="LABELMAP"), "SegmentationType is LABELMAP"),
        (put(PerFrameFunctionalGroupsSequence=None), "0 frames"),
        (put(SharedFunctionalGroupsSequence=None), "PlaneOrientationSequence is missing"),
        (put(PixelData=b"\0" * 2), "PixelData cannot be decoded"),
        (put(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), "MR Image Storage, expected Segmentation Storage"),
        (put(Rows=None), "Rows is missing"),
    ],
)
def test_a_seg_that_lacks_something_is_refused(roi, change, message):
    ds = pydicom.dcmread(roi)
    change(ds)
    ds.save_as(roi)
    with pytest.raises(ValueError, match=f"roi.dcm: {message}"):
        read(roi)


def test_a_seg_in_the_folder_of_a_series_is_refused_by_name(folder, roi):
    shutil.move(roi, folder)
    with pytest.raises(ValueError, match="roi.dcm: multi-frame .*Segmentation Storage, 4 frames"):
        read_dce(folder)


def test_two_seg_writes_give_the_same_bytes(roi, tmp_path):
    write_seg(lesions(), geometry(), tmp_path / "again.dcm", meaning="segments", **SEG)
    assert (tmp_path / "again.dcm").read_bytes() == roi.read_bytes()


def test_highdicom_reads_what_we_write(roi):
    highdicom = pytest.importorskip("highdicom")
    seg = highdicom.seg.segread(roi)
    volume = seg.get_volume(combine_segments=True)
    first = int(np.flatnonzero(lesions().any(axis=(1, 2)))[0])
    array = np.asarray(volume.array)
    if volume.direction[:, 0] @ np.array(DIRECTIONS["axial"])[:, 0] < 0:
        array = array[::-1]
    assert np.array_equal(array, lesions()[first : first + len(array)])


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_a_seg_written_by_highdicom_for_our_series_is_read(tmp_path, kind):
    highdicom = pytest.importorskip("highdicom")
    folder = write(tmp_path / "dce", series("oblique"))
    sources = sorted((ds for _, ds in files_at(folder, phase=0)), key=lambda ds: ds.InstanceNumber)
    concept = pydicom.sr.coding.Code("108369006", "SCT", "Neoplasm")
    describe = highdicom.seg.SegmentDescription
    segments = [
        describe(n, f"Lesion {n}", concept, concept, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
        for n in (1, 2)
    ]
    frames = np.stack([lesions() == n for n in (1, 2)], axis=-1)
    seg = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=frames.astype(np.uint8 if kind == "BINARY" else np.float32),
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=500,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="her2core",
        manufacturer_model_name="test",
        software_versions="0",
        device_serial_number="0",
    )
    seg.save_as(tmp_path / "seg.dcm")
    found = read_seg_labels(tmp_path / "seg.dcm", read_dce(folder).geometry, SHAPE[1:])
    assert np.array_equal(found, lesions())
