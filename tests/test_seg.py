"""SEGs on the grid of their series: masks and labels in any orientation and order; what is broken is refused."""

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from dicom_samples import (
    DIRECTIONS,
    SEG,
    SHAPE,
    analysis_mask,
    files_at,
    geometry,
    item,
    lesions,
    put,
    series,
    write,
)
from pydicom.uid import generate_uid

from her2core.formats.dicom import read_dce
from her2core.formats.dicom_write import write_seg
from her2core.formats.seg import read_seg, read_seg_labels
from her2core.formats.volume import Geometry, Source


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "dce")


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


def test_the_inverse_analysis_mask_read_naively_would_mark_all_but_the_tumour_and_is_refused(inverse):
    assert np.mean(lesions() != 1) == 222 / 240
    with pytest.raises(ValueError, match="mask.dcm: 92.5% of the volume is tumour, read as 'segments'"):
        read(inverse, "segments")


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
        (
            moved(direction=DIRECTIONS["sagittal"]),
            SHAPE[1:],
            r"another grid: \(8, 6\) rows and columns, expected \(6, 8\)",
        ),
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
    with pytest.raises(ValueError, match="5 frames at 4 places"):
        read(inverse, "tumour_is_zero")


def test_a_binary_seg_is_no_analysis_mask(roi):
    with pytest.raises(ValueError, match="BINARY with 4 frames"):
        read(roi, "tumour_is_zero")


def test_a_mask_without_tumour_is_refused(tmp_path):
    path = tmp_path / "mask.dcm"
    write_seg(np.full(SHAPE[1:], 33, np.uint8), geometry(), path, meaning="tumour_is_zero", **SEG)
    with pytest.raises(ValueError, match="empty mask"):
        read(path, "tumour_is_zero")


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


@pytest.mark.parametrize(
    "change, message",
    [
        (put(SegmentationType="SURFACE"), "SegmentationType is SURFACE"),
        (put(PerFrameFunctionalGroupsSequence=None), "4 frames with the positions of 0"),
        (put(SharedFunctionalGroupsSequence=None), "ImageOrientationPatient is missing"),
        (put(PixelData=b"\0" * 2), "PixelData cannot be decoded"),
        (put(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), "MR Image Storage, expected Segmentation Storage"),
        (put(Rows=None), "PixelData cannot be decoded: .*Rows"),
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


def highdicom_seg(highdicom, folder, pixels, kind):
    """A SEG of the given type for the series in a folder, two segments, as highdicom makes it."""
    concept = pydicom.sr.coding.Code("108369006", "SCT", "Neoplasm")
    describe = highdicom.seg.SegmentDescription
    return highdicom.seg.Segmentation(
        source_images=sorted((ds for _, ds in files_at(folder, phase=0)), key=lambda ds: ds.InstanceNumber),
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[
            describe(n, f"Lesion {n}", concept, concept, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
            for n in (1, 2)
        ],
        series_instance_uid=generate_uid(),
        series_number=500,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="her2core",
        manufacturer_model_name="test",
        software_versions="0",
        device_serial_number="0",
    )


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_a_seg_written_by_highdicom_for_our_series_is_read(tmp_path, kind):
    import highdicom

    folder = write(tmp_path / "dce", series("oblique"))
    frames = np.stack([lesions() == n for n in (1, 2)], axis=-1)
    pixels = frames.astype(np.uint8 if kind == "BINARY" else np.float32)
    highdicom_seg(highdicom, folder, pixels, kind).save_as(tmp_path / "seg.dcm")
    found = read_seg_labels(tmp_path / "seg.dcm", read_dce(folder).geometry, SHAPE[1:])
    assert np.array_equal(found, lesions())


def turned(transpose, flip_y, flip_x):
    """The geometry of an array whose rows and columns run otherwise over the voxels of the oblique grid."""
    grid, (_, rows, columns) = geometry("oblique"), SHAPE[1:]
    origin = grid.position_mm((0, (rows - 1) * flip_y, (columns - 1) * flip_x))
    z, y, x = np.array(grid.direction).T
    (dz, dy, dx), y, x = grid.spacing_mm, -y if flip_y else y, -x if flip_x else x
    axes, spacing = ((z, x, y), (dz, dx, dy)) if transpose else ((z, y, x), (dz, dy, dx))
    return Geometry(spacing, tuple(origin), tuple(map(tuple, np.stack(axes, axis=1))))


@pytest.mark.parametrize("meaning", ["segments", "tumour_is_zero"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
def test_a_mask_whose_rows_and_columns_run_otherwise_over_the_same_voxels_is_turned(
    tmp_path, meaning, transpose, flip_y, flip_x
):
    array = lesions() if meaning == "segments" else analysis_mask()
    stored = array[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]
    stored = np.ascontiguousarray(stored.swapaxes(1, 2) if transpose else stored)
    write_seg(stored, turned(transpose, flip_y, flip_x), tmp_path / "seg.dcm", meaning=meaning, **SEG)
    expected = lesions() > 0 if meaning == "segments" else lesions() == 1
    assert np.array_equal(read(tmp_path / "seg.dcm", meaning, geometry("oblique")), expected)
    with pytest.raises(ValueError, match="mask on another grid"):
        read(tmp_path / "seg.dcm", meaning, replace(geometry("oblique"), origin_mm=(-80.25, 12.5, 4.5)))


def label_map(tmp_path):
    """The lesions as highdicom writes a label map."""
    import highdicom

    folder = write(tmp_path / "dce")
    seg = highdicom_seg(highdicom, folder, lesions(), "LABELMAP")
    seg.save_as(tmp_path / "seg.dcm")
    return tmp_path / "seg.dcm"


def test_a_label_map_is_read_as_mask_and_as_labels(tmp_path):
    path = label_map(tmp_path)
    assert pydicom.dcmread(path).SegmentationType == "LABELMAP"
    assert np.array_equal(read(path), lesions() > 0)
    assert np.array_equal(read_seg_labels(path, geometry(), SHAPE[1:]), lesions())


def test_the_padding_value_of_a_label_map_is_background(tmp_path):
    path = label_map(tmp_path)
    ds = pydicom.dcmread(path)
    pixels = ds.pixel_array.copy()
    pixels[pixels == 0] = 77
    ds.PixelData, ds.PixelPaddingValue = pixels.tobytes(), 77
    ds.save_as(path)
    assert np.array_equal(read_seg_labels(path, geometry(), SHAPE[1:]), lesions())


# ------------------------------------------------------------------------------------ whose mask, and what it says

FRAME, SERIES = "1.2.3.4", ("1.2.3.5", "1.2.3.6")


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


SOURCE = Source(digest("P1"), "1.2.3.7", FRAME, SERIES)


def place(frame, study="1.2.3.7"):
    return put(FrameOfReferenceUID=frame, StudyInstanceUID=study)


def drawn_on(*uids):
    return put(ReferencedSeriesSequence=[item(SeriesInstanceUID=uid) for uid in uids])


def derived_from(uid):
    """Each frame says which image it was derived from."""

    def change(ds):
        for group in ds.PerFrameFunctionalGroupsSequence:
            image = item(ReferencedSOPInstanceUID="1.2.7", SeriesInstanceUID=uid)
            group.DerivationImageSequence = [item(SourceImageSequence=[image])]

    return change


def both_readers(path, source):
    """The mask, after the labels were read too."""
    read_seg_labels(path, geometry(), SHAPE[1:], source=source)
    return read_seg(path, geometry(), SHAPE[1:], meaning="segments", source=source)


def changed(path, *changes):
    ds = pydicom.dcmread(path)
    for change in changes:
        change(ds)
    ds.save_as(path)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        (place(FRAME),),
        (place(FRAME, study=None), drawn_on("1.2.3.6")),
        (place(FRAME), drawn_on("1.2.9", "1.2.3.5")),
        (place(FRAME), derived_from("1.2.3.5")),
        (place(None), drawn_on("1.2.3.5")),
        (place(FRAME), put(PatientID="")),
        (place(None), put(PatientID=None)),
    ],
)
def test_a_mask_of_the_same_patient_and_place_or_that_does_not_say_is_read(roi, changes):
    assert np.array_equal(both_readers(changed(roi, *changes), SOURCE), lesions() > 0)


def test_what_the_images_do_not_say_is_no_contradiction(roi):
    changed(roi, drawn_on("1.2.9"))
    for source in (None, Source(), Source(SOURCE.patient)):
        assert np.array_equal(both_readers(roi, source), lesions() > 0)


def told(study, frame, series):
    study, frame = (uid and f"{digest(uid)}…" for uid in (study, frame))
    return f"SHA-256 of study {study} and frame of reference {frame}, series {series}"


OF_THE_IMAGES = told("1.2.3.7", FRAME, "1.2.3.5, 1.2.3.6")


@pytest.mark.parametrize("patient", ["P2", "p1", "P1 P1"])
def test_a_mask_of_another_patient_is_refused_and_nobody_is_named(roi, patient):
    changed(roi, place(FRAME), put(PatientID=patient), drawn_on(*SERIES))
    with pytest.raises(
        ValueError, match=rf"roi.dcm: SHA-256 of PatientID is \w{{12}}…, expected {SOURCE.patient}…"
    ) as e:
        both_readers(roi, SOURCE)
    assert patient not in str(e.value).split("roi.dcm")[1]


@pytest.mark.parametrize(
    "changes, said",
    [
        ((place(FRAME), drawn_on("1.2.8", "1.2.9")), ["1.2.3.7", FRAME, "1.2.8, 1.2.9"]),
        ((place(FRAME), derived_from("1.2.8")), ["1.2.3.7", FRAME, "1.2.8"]),
        ((place("1.2.9"), drawn_on("1.2.3.6")), ["1.2.3.7", "1.2.9", "1.2.3.6"]),
        ((place("1.2.9"), derived_from("1.2.3.5")), ["1.2.3.7", "1.2.9", "1.2.3.5"]),
        ((place(FRAME, study="1.2.9"),), ["1.2.9", FRAME, "None"]),
    ],
)
def test_a_mask_that_agrees_in_series_or_in_place_alone_is_read_with_a_remark(roi, changes, said):
    changed(roi, *changes)
    with pytest.warns(UserWarning, match=f"roi.dcm: {told(*said)}, the images have {OF_THE_IMAGES}"):
        assert np.array_equal(both_readers(roi, SOURCE), lesions() > 0)


@pytest.mark.parametrize(
    "changes, said",
    [
        ((place("1.2.9"),), ["1.2.3.7", "1.2.9", "None"]),
        ((place("1.2.9"), drawn_on("1.2.8")), ["1.2.3.7", "1.2.9", "1.2.8"]),
        ((place(None), derived_from("1.2.8")), ["1.2.3.7", None, "1.2.8"]),
        ((place(None, study="1.2.9"),), ["1.2.9", None, "None"]),
    ],
)
def test_a_mask_that_agrees_in_nothing_is_refused_with_both(roi, changes, said):
    changed(roi, *changes)
    with pytest.raises(ValueError, match=f"roi.dcm: {told(*said)}, expected one of the images', {OF_THE_IMAGES}"):
        both_readers(roi, SOURCE)


def test_the_masks_that_we_write_are_of_the_patient_and_in_the_frame_of_reference_of_our_images(
    folder, roi, inverse
):
    image = files_at(folder)[0][1]
    source = Source(SOURCE.patient, image.StudyInstanceUID, image.FrameOfReferenceUID, (image.SeriesInstanceUID,))
    assert np.array_equal(both_readers(roi, source), lesions() > 0)
    assert read_seg(inverse, geometry(), SHAPE[1:], meaning="tumour_is_zero", source=source).any()


def fractions(path, kind, full, levels):
    """A FRACTIONAL SEG with the levels in the first voxels of each slice."""
    array = np.zeros(SHAPE[1:], np.uint8)
    array[:, 0, : len(levels)] = levels
    write_seg(array, geometry(), path, meaning="tumour_is_zero", **SEG)
    return changed(path, put(SegmentationFractionalType=kind, MaximumFractionalValue=full))


@pytest.mark.parametrize(
    "kind, full, expected",
    [
        ("PROBABILITY", 100, [0, 0, 0, 1, 1]),
        ("PROBABILITY", 101, [0, 0, 0, 0, 1]),
        ("PROBABILITY", 255, [0, 0, 0, 0, 0]),
        ("OCCUPANCY", 100, [0, 1, 1, 1, 1]),
        ("OCCUPANCY", 255, [0, 1, 1, 1, 1]),
    ],
)
def test_a_probability_counts_from_one_half_and_an_occupancy_from_any(tmp_path, kind, full, expected):
    path = fractions(tmp_path / "f.dcm", kind, full, [0, 1, 49, 50, 100])
    if not any(expected):
        with pytest.raises(ValueError, match="f.dcm: empty mask"):
            read(path)
        return
    assert read(path)[:, 0, :5].astype(int).tolist() == [expected] * SHAPE[1]
    labels = read_seg_labels(path, geometry(), SHAPE[1:])
    assert labels[:, 0, :5].tolist() == [expected] * SHAPE[1]


@pytest.mark.parametrize(
    "kind, full, found",
    [
        ("PROBABILITY", 99, "PROBABILITY, values up to 100, expected PROBABILITY or OCCUPANCY up to .*Value, 99"),
        ("OCCUPANCY", 1, "OCCUPANCY, values up to 100, .*Value, 1"),
        ("PROBABILITY", None, "PROBABILITY, values up to 100, .*Value, nan"),
        (None, 255, "None, values up to 100"),
        ("BAYES", 255, "BAYES, values up to 100"),
    ],
)
def test_fractions_without_a_measure_are_refused(tmp_path, kind, full, found):
    path = fractions(tmp_path / "f.dcm", kind, full, [0, 100])
    with pytest.raises(ValueError, match=f"f.dcm: SegmentationFractionalType {found}"):
        read(path)


@pytest.mark.parametrize("numbers", [[1], [1, 3], [7, 8]])
def test_a_frame_of_a_segment_that_is_not_described_is_refused_and_without_descriptions_any_is_read(roi, numbers):
    changed(roi, put(SegmentSequence=[item(SegmentNumber=n) for n in numbers]))
    with pytest.raises(ValueError, match=rf"roi.dcm: frames of segments \[1, 2\], described are \[{numbers[0]}"):
        read(roi)
    changed(roi, put(SegmentSequence=None))
    assert np.array_equal(read(roi), lesions() > 0)


def test_a_value_of_a_label_map_that_is_not_described_is_refused(tmp_path):
    path = changed(label_map(tmp_path), lambda ds: ds.SegmentSequence.pop())
    with pytest.raises(ValueError, match=r"seg.dcm: frames of segments \[1, 2\], described are \["):
        read(path)


@pytest.mark.parametrize("segment", [item(SegmentLabel="one"), item(SegmentNumber=[1, 2])])
def test_a_segment_without_its_number_is_an_error_that_names_the_file(roi, segment):
    changed(roi, put(SegmentSequence=[segment]))
    with pytest.raises(ValueError, match="roi.dcm: .*, expected sequences of segments and source images"):
        read(roi)


# --------------------------------------------------------------------------------------- segments beside the lesion


def named(path, *names):
    """The SEG with other names for its segments, beside which the codes say tissue."""
    ds = pydicom.dcmread(path)
    for segment, name in zip(ds.SegmentSequence, names, strict=True):
        segment.SegmentLabel = name
        segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning = "Tissue"
    ds.save_as(path)
    return path


def test_of_tissue_and_tumour_only_the_tumour_is_the_lesion_and_that_is_a_warning(roi):
    named(roi, "Breast", "Tumor")
    with pytest.warns(UserWarning, match="roi.dcm: of the segments Breast Tissue, Tumor Tissue only those called"):
        assert np.array_equal(read(roi), lesions() == 2)


def test_segments_of_other_tissues_are_no_lesion(roi):
    with pytest.raises(
        ValueError, match="roi.dcm: segments Breast Tissue, FGT Tissue, expected one segment, names"
    ):
        read(named(roi, "Breast", "FGT"))


@pytest.mark.parametrize("names", [("Segment_1", "Segment_2"), ("ROI", "ROI"), ("Tumour", "Satellite lesion")])
def test_segments_that_only_a_number_tells_apart_and_several_tumours_are_joined(roi, names):
    assert np.array_equal(read(named(roi, *names)), lesions() > 0)
