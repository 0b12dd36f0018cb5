"""DICOM folders: what is written is read back; what is broken is refused with its name."""

import re
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_samples import (
    DIRECTIONS,
    SEG,
    SHAPE,
    TIMES,
    analysis_mask,
    edit,
    files_at,
    geometry,
    lesions,
    put,
    same_grid,
    series,
    write,
    write_enhanced,
)
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from her2core.formats.dicom import read_dce
from her2core.formats.dicom_write import write_seg
from her2core.formats.seg import read_seg
from her2core.formats.volume import DceSeries, Geometry

NAN = float("nan")


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "dce")


# ------------------------------------------------------------------------------------------- what can be read


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_written_series_is_read_back_voxel_exact_on_the_same_grid(tmp_path, direction):
    written = series(direction)
    found = read_dce(write(tmp_path / "dce", written))
    assert found.array.dtype == np.uint16 and np.array_equal(found.array, written.array)
    assert same_grid(found.geometry, written.geometry, tolerance_mm=1e-6)
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
    assert same_grid(found.geometry, written.geometry)


def test_bits_above_those_stored_are_ignored_as_simpleitk_ignores_them(tmp_path):
    for dtype in (np.uint16, np.int16):
        written = series(dtype=dtype, shape=(1, 5, 6, 8))
        written = replace(written, array=written.array - dtype(0 if dtype == np.uint16 else 2048))
        folder = write(tmp_path / dtype.__name__, written)

        def fill(ds):
            ds.BitsStored, ds.HighBit = 12, 11
            ds.PixelData = (np.frombuffer(ds.PixelData, "<u2") & 0xFFF | 0xA000).tobytes()

        edit(folder, fill)
        found = read_dce(folder).array
        assert found.dtype == dtype and np.array_equal(found, written.array)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        assert np.array_equal(sitk.GetArrayFromImage(reader.Execute()), found[0])


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
    folder = write(tmp_path / "dce", trigger=keyword == "TriggerTime")
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


UNTOLD = put(TemporalPositionIdentifier=None, AcquisitionTime="120000")
BY_NUMBER = pytest.warns(UserWarning, match="dce: only InstanceNumber tells the 3 phases apart")


def renumber(folder, number):
    """Sets InstanceNumber from phase and slice."""
    for t, z in np.ndindex(SHAPE[:2]):
        edit(folder, put(InstanceNumber=number(t, z)), phase=t, slice_=z)


@pytest.mark.parametrize(
    "number",
    [
        lambda t, z: 5 * t + z + 1,
        lambda t, z: 100 * t + 50 - z,
        lambda t, z: 3 * z + t,
        lambda t, z: 20 - 4 * z + t,
    ],
    ids=["phase by phase", "with gaps, from the top", "slice by slice", "slice by slice, from the top"],
)
def test_without_a_clock_phases_are_blocks_of_instance_numbers_with_a_remark(folder, number):
    renumber(folder, number)
    edit(folder, UNTOLD)
    with BY_NUMBER:
        found = read_dce(folder)
    assert np.array_equal(found.array, series().array) and np.isnan(found.times_s).all()


@pytest.mark.parametrize(
    "number",
    [
        lambda t, z: 1,
        lambda t, z: (8, 3, 14, 1, 12, 5, 10, 0, 7, 13, 2, 9, 4, 11, 6)[5 * t + z],
        lambda t, z: 5 * t + z + (t == z == 1) * 5,
    ],
    ids=["all the same", "in no order", "one slice in the next block"],
)
def test_phases_that_nothing_tells_apart_are_ambiguous_and_the_message_says_how_to_go_on(folder, number):
    renumber(folder, number)
    edit(folder, UNTOLD)
    with pytest.raises(
        ValueError, match="dce: ambiguous phases: 15 slices at 5 places, .*one folder for .*case.json"
    ):
        read_dce(folder)


def test_instance_numbers_of_more_phases_than_announced_tell_nothing(folder):
    edit(folder, UNTOLD)
    edit(folder, put(NumberOfTemporalPositions=4))
    with pytest.raises(ValueError, match="dce: ambiguous phases: 15 slices at 5 places"):
        read_dce(folder)
    edit(folder, put(NumberOfTemporalPositions=3))
    with BY_NUMBER:
        assert np.array_equal(read_dce(folder).array, series().array)


def test_instance_numbers_that_run_against_the_clock_tell_nothing(folder):
    edit(folder, put(AcquisitionTime="120300"), phase=1, slice_=0)
    edit(folder, put(TemporalPositionIdentifier=1))
    with BY_NUMBER:
        assert np.array_equal(read_dce(folder).array, series().array)
    edit(folder, put(AcquisitionTime="120301"), slice_=0)
    edit(folder, put(AcquisitionTime="120259"), slice_=1)
    for path, ds in files_at(folder, slice_=0)[:2]:
        put(AcquisitionTime=f"1204{ds.InstanceNumber:02d}", InstanceNumber=17 - ds.InstanceNumber)(ds)
        ds.save_as(path)
    with pytest.raises(ValueError, match="ambiguous phases"):
        read_dce(folder)


@pytest.mark.parametrize("delays_ms", [(0, 0, 0), (12, 7, 30)], ids=["repeated", "with jitter"])
def test_a_trigger_time_that_is_a_delay_within_a_phase_is_passed_over(folder, delays_ms):
    for t, z in np.ndindex(SHAPE[:2]):
        edit(folder, put(TriggerTime=100 * z + delays_ms[t]), phase=t, slice_=z)
    edit(folder, put(TemporalPositionIdentifier=None))
    found = read_dce(folder)
    assert np.array_equal(found.array, series().array) and found.times_s == TIMES


def test_where_the_time_of_day_is_ambiguous_the_trigger_tells(tmp_path):
    folder = write(tmp_path / "dce", trigger=True)
    for z in range(5):
        edit(folder, put(AcquisitionTime=f"12000{z}", TemporalPositionIdentifier=None), slice_=z)
    found = read_dce(folder)
    assert np.array_equal(found.array, series().array) and found.times_s == TIMES


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
        (put(SeriesInstanceUID=generate_uid()), "mixed SeriesInstanceUID: .* has .*, .* has .*, expected one"),
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
        (put(NumberOfFrames=2), "multi-frame .*2 frames.*expected Enhanced MR or one slice per file"),
        (put(SOPClassUID=EnhancedMRImageStorage), "functional groups of 0 frames, expected 1"),
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
        (put(PixelSpacing=[0, 0]), "pixel spacing: .* expected one, 0.01 to 100 mm"),
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
    with pytest.raises(ValueError, match="unequal slices per phase: 2 slices at place 4, 3 elsewhere"):
        read_dce(folder)


@pytest.mark.parametrize(
    "change, differ",
    [
        (put(), "nothing that tells slices apart"),
        (put(InstanceNumber=77), "InstanceNumber"),
        (put(SOPInstanceUID="1.2.3", AcquisitionTime="120500"), "AcquisitionTime, SOPInstanceUID"),
    ],
)
def test_a_duplicate_slice_is_refused_with_what_the_two_differ_in(folder, change, differ):
    path, ds = files_at(folder, phase=1, slice_=2)[0]
    change(ds)
    ds.save_as(folder / "copy")
    with pytest.raises(
        ValueError, match=rf"duplicate slice: \[.*\] both hold phase 1, slice 2, and differ in {differ}$"
    ):
        read_dce(folder)


@pytest.mark.parametrize("uid", ["1.2.3", "1.2.840.10008.7"])
def test_every_file_is_an_instance_of_its_own(folder, uid):
    edit(folder, put(SOPInstanceUID=uid), phase=1)
    with pytest.raises(ValueError, match="dce: .*dcm and .*dcm have one SOPInstanceUID, expected two"):
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
    with pytest.raises(ValueError, match="dce: no files, expected those of one DCE series"):
        read_dce(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds the folder 'dce'"):
        read_dce(tmp_path)


@pytest.mark.parametrize("keep", [0.02, 0.2, 0.5, 0.8, 0.95, 0.999])
def test_a_file_cut_off_anywhere_is_refused_by_name(folder, keep):
    path = sorted(folder.iterdir())[3]
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=path.name):
        read_dce(folder)


# ------------------------------------------------------------------------------------------------- Enhanced MR

TIMINGS = ("TemporalPositionIndex", "FrameAcquisitionDateTime", "NominalCardiacTriggerDelayTime")


def shuffled_frames(seed=0):
    frames = list(np.ndindex(SHAPE[:2]))
    return [frames[i] for i in np.random.default_rng(seed).permutation(len(frames))]


@pytest.fixture
def enhanced(tmp_path):
    """Makes a folder with the frames of the sample series in one Enhanced MR."""

    def make(frames=None, name="a.dcm", **settings):
        (tmp_path / "emr").mkdir(exist_ok=True)
        write_enhanced(tmp_path / "emr" / name, series(), frames or shuffled_frames(), **settings)
        return tmp_path / "emr"

    return make


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_enhanced_mr_with_shuffled_frames_gives_the_same_series(tmp_path, direction, timing):
    (tmp_path / "emr").mkdir()
    write_enhanced(tmp_path / "emr" / "a.dcm", series(direction), shuffled_frames(), timing)
    found = read_dce(tmp_path / "emr")
    assert found.array.dtype == np.uint16 and np.array_equal(found.array, series().array)
    assert same_grid(found.geometry, geometry(direction), tolerance_mm=1e-6)
    assert np.array_equal(found.times_s, (NAN,) * 3 if timing == TIMINGS[0] else TIMES, equal_nan=True)


@pytest.mark.parametrize("timing", TIMINGS)
def test_the_phases_of_a_series_may_lie_in_several_enhanced_files(enhanced, timing):
    for t in (2, 0, 1):
        folder = enhanced([(t, z) for z in (3, 1, 0, 4, 2)], name=f"{9 - t}.dcm", timing=timing)
    assert np.array_equal(read_dce(folder).array, series().array)


def test_a_series_may_be_cut_into_enhanced_files_anywhere(enhanced):
    frames = shuffled_frames()
    folder = enhanced(frames[:7])
    write_enhanced(folder / "rest", series(), frames[7:])
    assert np.array_equal(read_dce(folder).array, series().array)


def test_each_frame_is_rescaled_by_its_own_transformation(enhanced):
    found = read_dce(enhanced(rescale=((1, 0), (2, -5), (0.5, 3)))).array
    assert found.dtype == np.float32
    for t, (slope, intercept) in enumerate(((1, 0), (2, -5), (0.5, 3))):
        assert np.array_equal(found[t], series().array[t] * np.float32(slope) + np.float32(intercept))


def test_a_compressed_enhanced_mr_gives_the_same_voxels(enhanced):
    folder = enhanced()
    ds = pydicom.dcmread(folder / "a.dcm")
    ds.compress(RLELossless)
    ds.save_as(folder / "a.dcm")
    assert np.array_equal(read_dce(folder).array, series().array)


def test_a_series_that_highdicom_converted_to_enhanced_mr_is_the_same(tmp_path, folder):
    import highdicom

    (tmp_path / "converted").mkdir()
    converted = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        [ds for _, ds in files_at(folder)], generate_uid(), 2, generate_uid(), 1
    )
    converted.save_as(tmp_path / "converted" / "enhanced.dcm")
    found = read_dce(tmp_path / "converted")
    assert np.array_equal(found.array, series().array) and found.times_s == TIMES
    assert same_grid(found.geometry, geometry(), tolerance_mm=1e-6)


@pytest.mark.parametrize(
    "frames, message",
    [
        ([f for f in np.ndindex(3, 5) if f != (1, 2)], r"unequal slices per phase: \[5, 4, 5\]"),
        ([*np.ndindex(3, 5), (1, 2)], r"duplicate slice: \['a.dcm \(frame 8\)', 'a.dcm \(frame 16\)'\]"),
        ([f for f in np.ndindex(3, 5) if f[1] != 2], "missing slice or uneven spacing"),
        ([f for f in np.ndindex(3, 5) if f[0] != 1], r"values \[1, 3\], expected consecutive"),
    ],
)
def test_an_enhanced_mr_with_holes_is_refused(enhanced, frames, message):
    with pytest.raises(ValueError, match=message):
        read_dce(enhanced(frames))


# --------------------------------------------------------------------------------------------- several series


@pytest.fixture
def three_series(tmp_path):
    """One series for each phase; its own TemporalPositionIdentifier begins with 0, as everywhere."""
    folders = []
    for t, seconds in enumerate(TIMES):
        phase = DceSeries(series().array[[t]], geometry(), (seconds,))
        folders.append(write(tmp_path / f"{9 - t}", phase, series_description=f"Ph{t}"))
    return folders


def test_phases_in_several_series_are_joined_by_time_whatever_the_order_of_the_folders(three_series):
    for order in ((0, 1, 2), (2, 0, 1)):
        found = read_dce(*(three_series[i] for i in order))
        assert np.array_equal(found.array, series().array) and found.times_s == TIMES
        assert same_grid(found.geometry, geometry(), tolerance_mm=1e-6)


def test_one_series_before_and_one_with_all_phases_after_contrast_are_joined(tmp_path, three_series):
    after = DceSeries(series().array[1:], geometry(), TIMES[1:])
    write(tmp_path / "post", after, series_description="POS")
    found = read_dce(tmp_path / "post", three_series[0])
    assert np.array_equal(found.array, series().array) and found.times_s == TIMES


def test_a_series_whose_clock_stands_still_is_joined_but_has_no_times(tmp_path, three_series):
    after = DceSeries(series().array[1:], geometry(), TIMES[1:])
    write(tmp_path / "post", after, series_description="POS")
    edit(tmp_path / "post", put(AcquisitionTime="120500"))
    found = read_dce(three_series[0], tmp_path / "post")
    assert np.array_equal(found.array, series().array) and np.isnan(found.times_s).all()


def test_a_trigger_time_that_begins_anew_with_every_series_says_nothing_between_them(three_series):
    for t, milliseconds in enumerate((500, 0, 100)):
        edit(three_series[t], put(TriggerTime=milliseconds))
    found = read_dce(*three_series)
    assert np.array_equal(found.array, series().array) and found.times_s == TIMES


def test_a_folder_of_folders_is_read_as_if_each_were_named(tmp_path, three_series):
    found, named = read_dce(tmp_path), read_dce(*three_series)
    assert np.array_equal(found.array, named.array) and found.times_s == named.times_s == TIMES
    assert found.source.patient == named.source.patient
    assert set(found.source.series) == set(named.source.series) and len(found.source.series) == 3


@pytest.mark.parametrize("time", ["120000", None])
def test_where_no_clock_tells_the_order_of_folders_their_numbers_do_with_a_remark(tmp_path, three_series, time):
    for t, folder in enumerate(three_series):
        edit(folder, put(AcquisitionTime=time))
        folder.rename(tmp_path / f"phase {8 + t}")  # 8, 9, 10
    with pytest.warns(UserWarning, match="only their names tell the order of its 3 folders"):
        found = read_dce(tmp_path)
    assert np.array_equal(found.array, series().array) and np.isnan(found.times_s).all()


def test_remarks_name_the_folder_that_was_asked_for(tmp_path, three_series):
    edit(three_series[1], put(NumberOfTemporalPositions=4))
    with pytest.warns(
        UserWarning, match=f"^{re.escape(str(tmp_path))}: NumberOfTemporalPositions is 4; went on with"
    ):
        read_dce(tmp_path)


@pytest.mark.parametrize("announced", [1, 3])
def test_folders_of_a_phase_each_may_announce_their_own_or_all_phases(three_series, announced):
    for folder in three_series:
        edit(folder, put(NumberOfTemporalPositions=announced))
    assert np.array_equal(read_dce(*three_series).array, series().array)


def test_one_phase_may_have_any_temporal_position(three_series):
    for folder, position in zip(three_series, (1, 2, 3), strict=True):
        edit(folder, put(TemporalPositionIdentifier=position))
    assert np.array_equal(read_dce(*three_series).array, series().array)


def test_series_that_overlap_in_time_or_have_no_time_cannot_be_joined(three_series):
    with pytest.raises(ValueError, match="ambiguous phases: by AcquisitionTime .*9 begins 0 s before .*9 ends"):
        read_dce(three_series[0], three_series[0])
    edit(three_series[1], put(AcquisitionTime=None))
    with pytest.raises(ValueError, match="9: AcquisitionTime is missing, expected it to order 3 series"):
        read_dce(*three_series)


def test_series_on_different_grids_or_with_missing_slices_cannot_be_joined(three_series):
    edit(three_series[1], put(PixelSpacing=[0.7, 0.8]))
    with pytest.raises(ValueError, match="mixed pixel spacing"):
        read_dce(*three_series)
    files_at(three_series[2], slice_=4)[0][0].unlink()
    with pytest.raises(ValueError, match=r"unequal slices per phase: \[5, 4\]"):
        read_dce(three_series[0], three_series[2])


def test_each_folder_must_hold_one_series_only(three_series):
    for path in three_series[1].iterdir():
        path.rename(three_series[0] / path.name)
    with pytest.raises(ValueError, match="9: mixed SeriesInstanceUID"):
        read_dce(three_series[0], three_series[2])


# ------------------------------------------------------------------------------------------------- there and back


def shuffle_files(folder, rng):
    paths = sorted(folder.iterdir())
    for path, number in zip(paths, rng.permutation(len(paths)), strict=True):
        ds = pydicom.dcmread(path)
        ds.InstanceNumber = int(number) + 1
        path.unlink()
        ds.save_as(folder / f"IM{number:04d}")


def shuffle_frames(path, rng):
    ds = pydicom.dcmread(path)
    order = rng.permutation(len(ds.PerFrameFunctionalGroupsSequence))
    frames = np.array([ds.pixel_array[i] for i in order])
    ds.PerFrameFunctionalGroupsSequence = [ds.PerFrameFunctionalGroupsSequence[i] for i in order]
    ds.PixelData = pydicom.pixels.pack_bits(frames) if ds.SegmentationType == "BINARY" else frames.tobytes()
    ds.save_as(path)


COLLECTIONS = {
    "I-SPY2": dict(meaning="tumour_is_zero", headers=dict(first_temporal_position=0)),
    "AMBL": dict(meaning="segments", headers=dict(first_temporal_position=1, trigger=True)),
}


@pytest.mark.parametrize("direction", ["axial", "sagittal", "oblique"])
@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("collection", COLLECTIONS)
def test_a_patient_comes_back_voxel_for_voxel_from_shuffled_files(tmp_path, rng, collection, ascending, direction):
    meaning, headers = COLLECTIONS[collection].values()
    step = 1 if ascending else -1
    axes = np.array(DIRECTIONS[direction]) * [step, 1, 1]
    grid = replace(geometry(), direction=tuple(map(tuple, axes)))
    array = lesions() if meaning == "segments" else analysis_mask()
    write(tmp_path / "dce", replace(series(), geometry=grid), **headers)
    write_seg(array, grid, tmp_path / "seg.dcm", meaning=meaning, **SEG)
    if collection == "I-SPY2":
        edit(tmp_path / "dce", put(AcquisitionTime="120000"))  # frozen, as there
    shuffle_files(tmp_path / "dce", rng)
    shuffle_frames(tmp_path / "seg.dcm", rng)
    found = read_dce(tmp_path / "dce")
    mask = read_seg(tmp_path / "seg.dcm", found.geometry, SHAPE[1:], meaning=meaning)
    expected = lesions() > 0 if meaning == "segments" else lesions() == 1
    assert np.array_equal(found.array, series().array[:, ::step])
    assert np.array_equal(mask, expected[::step])
    assert np.array_equal(found.times_s, (NAN,) * 3 if collection == "I-SPY2" else TIMES, equal_nan=True)
