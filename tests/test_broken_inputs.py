"""Broken DICOM, SEG and NIfTI: each is refused by name, says nothing about the patient, and is left as it was."""

import gzip
import os
import shutil
import struct
import warnings
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_samples import (
    SEG,
    SHAPE,
    analysis_mask,
    edit,
    files_at,
    geometry,
    lesions,
    put,
    series,
    write,
    write_enhanced,
)
from pydicom.uid import (
    HTJ2KLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from her2core.formats.dicom import read_dce
from her2core.formats.dicom_write import write_seg
from her2core.formats.nifti import read_breastdcedl, write_breastdcedl
from her2core.formats.seg import read_seg

SECRETS = ("Doe", "Jane", "MRN-4711", "19610203", "20110405", "110405", "Elsewhere", "Hyde")
ROW = {"slice_thick": 2.5, "xy_spacing": 0.8, "pre": 0, "post_early": 1, "post_late": 2}
NAN = float("nan")


# ------------------------------------------------------------------------------------------- what is not broken


def identify(ds):
    """Say who the patient is wherever a header can."""
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Doe^Jane", "MRN-4711", "19610203"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = "20110405"
    ds.AcquisitionDateTime, ds.ContentTime, ds.StudyTime = "20110405113000", "110405", "110405"
    ds.InstitutionName, ds.OperatorsName, ds.ImageComments = "Saint Elsewhere", "Hyde^Edward", "Jane Doe, 20110405"
    ds.add_new(0x00091010, "LO", "Doe^Jane")
    request = pydicom.Dataset()
    request.RequestedProcedureDescription, request.PatientID = "Doe^Jane 20110405", "MRN-4711"
    ds.RequestAttributesSequence = [request]


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A patient's folder with dce/, roi.dcm, mask.dcm and, as NIfTI, nifti/."""
    home = tmp_path_factory.mktemp("intact")
    write(home / "dce")
    edit(home / "dce", identify)
    write_seg(lesions(), geometry(), home / "roi.dcm", meaning="segments", **SEG)
    write_seg(analysis_mask(), geometry(), home / "mask.dcm", meaning="tumour_is_zero", **SEG)
    for name in ("roi.dcm", "mask.dcm"):
        ds = pydicom.dcmread(home / name)
        identify(ds)
        ds.save_as(home / name)
    square = replace(series(), geometry=replace(geometry(), spacing_mm=(2.5, 0.8, 0.8)))
    write_breastdcedl(square, lesions() > 0, home / "nifti", patient_id="P1")
    return home


@pytest.fixture
def home(intact, tmp_path):
    shutil.copytree(intact, tmp_path / "P1")
    return tmp_path / "P1"


def dce(home):
    return read_dce(home / "dce")


def roi(home):
    return read_seg(home / "roi.dcm", geometry(), SHAPE[1:], meaning="segments")


def mask(home):
    return read_seg(home / "mask.dcm", geometry(), SHAPE[1:], meaning="tumour_is_zero")


def nifti(home):
    return read_breastdcedl(home / "nifti", "P1", ROW)


def table(**row):
    """Reads the NIfTI with another line of the metadata table."""
    return lambda home: read_breastdcedl(home / "nifti", "P1", ROW | row)


def test_the_intact_patient_can_be_read_and_the_readers_return_nothing_else_of_the_headers(home):
    found = dce(home)
    assert np.array_equal(found.array, series().array) and set(vars(found)) == {
        "array",
        "geometry",
        "times_s",
        "source",
    }
    assert np.array_equal(roi(home), lesions() > 0) and np.array_equal(mask(home), lesions() == 1)
    assert np.array_equal(nifti(home)[1], lesions() > 0)
    assert not [secret for secret in SECRETS if secret in repr(found)]


# -------------------------------------------------------------------------------------------------- how it breaks


def one(home):
    """The file of phase 1, slice 2."""
    return files_at(home / "dce", phase=1, slice_=2)[0][0]


def each_file(change):
    return lambda home: edit(home / "dce", change)


def one_file(change):
    return lambda home: edit(home / "dce", change, phase=1, slice_=2)


def of(name, change):
    """Breaks one file of the patient's folder by an edit of its elements."""

    def broken(home):
        ds = pydicom.dcmread(home / name)
        change(ds)
        ds.save_as(home / name)

    return broken


def cut(path_of, keep):
    """Keeps that share of a file."""

    def broken(home):
        path = path_of(home)
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return broken


def overwrite(path_of, content):
    return lambda home: path_of(home).write_bytes(content)


def remove(path_of):
    return lambda home: path_of(home).unlink()


def compress(home):
    for path, ds in files_at(home / "dce"):
        ds.compress(RLELossless)
        ds.save_as(path)


def corrupt_compressed(home):
    compress(home)
    path = one(home)
    content = bytearray(path.read_bytes())
    start = content.index(b"\xe0\x7f\x10\x00OB")
    content[start + 12 + 8 + 8 : start + 12 + 8 + 8 + 12] = b"\xff" * 12  # the header of the RLE segments
    path.write_bytes(content)


def cut_compressed(home):
    compress(home)
    cut(one, 0.97)(home)


def inserted(path_of):
    """Five bytes within the pixels, so that the last five lie behind them."""

    def broken(home):
        path = path_of(home)
        path.write_bytes(path.read_bytes()[:-40] + b"\x05\x00\x06\x00\x07" + path.read_bytes()[-40:])

    return broken


def meta_of_gigabytes(home):
    """The file's meta information claims more bytes than there are, and its pixels lie far behind."""
    path, ds = files_at(home / "dce", phase=1, slice_=2)[0]
    ds.add_new(0x00091001, "UN", bytes(1 << 17))
    ds.save_as(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"\x02\x00\x01\x00OB")
    content[at + 8 : at + 12] = b"\xf0\xff\xff\xff"
    path.write_bytes(content)


def unknown_vr(path_of):
    def broken(home):
        path = path_of(home)
        path.write_bytes(path.read_bytes().replace(b"\xe0\x7f\x10\x00O", b"\xe0\x7f\x10\x00@"))

    return broken


def text_as_number(home):
    path = one(home)
    path.write_bytes(path.read_bytes().replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x10\x00US"))


def other_syntax(uid):
    def broken(home):
        path, ds = files_at(home / "dce", phase=1, slice_=2)[0]
        ds.file_meta.TransferSyntaxUID = uid
        ds["PixelData"].VR = "OB"
        ds.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(path)

    return broken


def enhanced(change):
    """Turns the series into one Enhanced MR and breaks that."""

    def broken(home):
        shutil.rmtree(home / "dce")
        (home / "dce").mkdir()
        write_enhanced(home / "dce" / "e.dcm", series(), list(np.ndindex(SHAPE[:2])))
        of("dce/e.dcm", change)(home)

    return broken


def drop_frame(ds):
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:-1]


def forget_position(ds):
    del ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence


def move_frame(ds):
    ds.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = [-80.25, 12.5, "nan"]


def forget_segment(ds):
    del ds.PerFrameFunctionalGroupsSequence[1].SegmentIdentificationSequence


def repeat_frame(ds):
    ds.PerFrameFunctionalGroupsSequence[1] = ds.PerFrameFunctionalGroupsSequence[0]


def all_ones(ds):
    ds.PixelData = b"\xff" * len(ds.PixelData)


def all_zeros(ds):
    ds.PixelData = b"\0" * len(ds.PixelData)


def image(name, change):
    """Rewrites one NIfTI file after a change of its array `(z, row, column)`."""

    def broken(home):
        path = next((home / "nifti").glob(f"*/{name}"))
        array = change(np.asarray(nib.load(path).dataobj))
        nib.Nifti1Image(array, np.eye(4), dtype=array.dtype).to_filename(path)

    return broken


def nifti_file(name):
    return lambda home: next((home / "nifti").glob(f"*/{name}"))


PHASE, MASK = "P1_spy2_vis1_dce_aqc_1.nii.gz", "P1_spy2_vis1_mask.nii.gz"
Case = namedtuple("Case", "what break_ read message error", defaults=(ValueError,))


def nothing(home):
    pass


CASES = [
    # files of a DCE series
    Case("zero bytes", overwrite(one, b""), dce, r"dcm: the file is empty \(0 bytes\)"),
    Case("not DICOM", overwrite(one, b"MIT License\n" * 50), dce, "dcm: not a DICOM file"),
    Case("only a preamble", overwrite(one, b"\0" * 128 + b"DICM"), dce, "dcm: no PixelData"),
    Case("cut off in the meta information", cut(one, 0.1), dce, "dcm: no PixelData|a readable DICOM file"),
    Case("cut off in the header", cut(one, 0.5), dce, "dcm: no PixelData"),
    Case("cut off in the pixels", cut(one, 0.98), dce, "dcm: truncated, PixelData holds .* expected 96"),
    Case("no pixel data", one_file(put(PixelData=None)), dce, "dcm: no PixelData .MR Image Storage"),
    Case("empty pixel data", one_file(put(PixelData=b"")), dce, "dcm: truncated, PixelData holds 0 bytes"),
    Case("two frames, one announced", one_file(put(PixelData=b"\0" * 192)), dce, "too long, .* 192 bytes"),
    Case("two frames announced", one_file(put(NumberOfFrames=2)), dce, "dcm: multi-frame .MR Image .*2 frames"),
    Case("no frame announced", one_file(put(NumberOfFrames=0)), dce, "dcm: 0 frame.s. of 6 × 8 pixels"),
    Case("no rows", one_file(put(Rows=None)), dce, "dcm: Rows is missing"),
    Case("zero columns", one_file(put(Columns=0)), dce, r"dcm: 1 frame\(s\) of 6 × 0 pixels"),
    Case("one bit per pixel", one_file(put(BitsAllocated=1, BitsStored=1)), dce, "dcm: 1 of 1 bits stored"),
    Case("colour", one_file(put(SamplesPerPixel=3, PhotometricInterpretation="RGB")), dce, "a colour image .RGB"),
    Case(
        "grey or colour", one_file(put(PhotometricInterpretation="")), dce, "image .no PhotometricInt.*MONOCHROME2"
    ),
    Case("bytes inserted", inserted(one), dce, "dcm: bytes .{4} … after PixelData, expected the end of the file"),
    Case("a VR that there is not", unknown_vr(one), dce, "dcm: "),
    Case("meta information of gigabytes", meta_of_gigabytes, dce, "dcm: "),
    Case("a syntax that is no text", text_as_number, dce, "dcm: PixelData cannot be decoded"),
    Case("palette", one_file(put(PhotometricInterpretation="PALETTE COLOR")), dce, "a colour image .PALETTE"),
    Case("slope NaN", one_file(put(RescaleSlope="nan")), dce, "dcm: RescaleSlope is malformed"),
    Case("unknown transfer syntax", other_syntax("1.2.3.4.5"), dce, "dcm: PixelData cannot be decoded"),
    Case(
        "a syntax without decoder",
        other_syntax(HTJ2KLossless),
        dce,
        "dcm: PixelData cannot be decoded",
    ),
    Case("corrupt compressed frame", corrupt_compressed, dce, "dcm: PixelData cannot be decoded"),
    Case("cut off compressed frame", cut_compressed, dce, "dcm: PixelData cannot be decoded|a readable DICOM"),
    Case("no orientation", one_file(put(ImageOrientationPatient=None)), dce, "ImageOrientationPatient is missing"),
    Case("orientation NaN", one_file(put(ImageOrientationPatient=["nan"] * 6)), dce, "Orientation.* is malformed"),
    Case("no position", one_file(put(ImagePositionPatient=None)), dce, "dcm: ImagePositionPatient is missing"),
    Case("position NaN", one_file(put(ImagePositionPatient=[0, 0, "nan"])), dce, "Position.* is malformed .*nan"),
    Case("position of two numbers", one_file(put(ImagePositionPatient=[0, 0])), dce, "expected 3 finite number"),
    Case("no pixel spacing", one_file(put(PixelSpacing=None)), dce, "dcm: PixelSpacing is missing"),
    Case(
        "secondary capture",
        one_file(put(SOPClassUID=SecondaryCaptureImageStorage, ImageOrientationPatient=None)),
        dce,
        "dcm: ImageOrientationPatient is missing",
    ),
    # the files together
    Case("negative spacing", each_file(put(PixelSpacing=[-1, 1])), dce, "dce: pixel spacing: .* 0.01 to 100"),
    Case("skewed axes", each_file(put(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0])), dce, "not two orthogonal"),
    Case("mixed matrix", one_file(put(Rows=4, PixelData=b"\0" * 64)), dce, "dce: mixed matrix"),
    Case("mixed spacing", one_file(put(PixelSpacing=[0.7, 0.8])), dce, "dce: mixed pixel spacing"),
    Case("mixed planes", one_file(put(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])), dce, "dce: mixed orientation"),
    Case("a slice beside", one_file(put(ImagePositionPatient=[0, 0, 8.125])), dce, "dce: mixed position"),
    Case("two series", one_file(put(SeriesInstanceUID=generate_uid())), dce, "dce: mixed SeriesInst"),
    Case("copied slice", lambda home: shutil.copy(one(home), home / "dce" / "x"), dce, "dce: duplicate slice"),
    Case("lost slice", remove(one), dce, r"dce: unequal slices per phase: \[5, 4, 5\]"),
    Case(
        "lost slice in all phases",
        lambda home: [path.unlink() for path, _ in files_at(home / "dce", slice_=2)],
        dce,
        "dce: missing slice or uneven spacing: 5 mm",
    ),
    Case(
        "lost phase",
        lambda home: [path.unlink() for path, _ in files_at(home / "dce", phase=1)],
        dce,
        r"dce: TemporalPositionIdentifier takes the values \[0, 2\]",
    ),
    Case(
        "no order of the phases",
        each_file(put(TemporalPositionIdentifier=None, AcquisitionTime=None, InstanceNumber=1)),
        dce,
        "dce: ambiguous phases",
    ),
    Case("a folder inside", lambda home: (home / "dce" / "old").mkdir(), dce, "dce: holds the folder 'old'"),
    Case("empty folder", lambda home: [p.unlink() for p in (home / "dce").iterdir()], dce, "dce: no files"),
    Case("no folder", lambda home: shutil.rmtree(home / "dce"), dce, "dce: no such folder"),
    Case("no DICOM for a folder", nothing, lambda home: read_dce(home / "note.txt"), "note.txt: no such folder"),
    Case("a SEG among the slices", lambda home: shutil.copy(home / "roi.dcm", home / "dce"), dce, "Segmentation"),
    # Enhanced MR
    Case("enhanced: frame without groups", enhanced(drop_frame), dce, "groups of 14 frames, expected 15"),
    Case("enhanced: frame without position", enhanced(forget_position), dce, "ImagePositionPatient is missing"),
    Case("enhanced: position NaN", enhanced(move_frame), dce, "e.dcm: ImagePositionPatient is malformed"),
    Case("enhanced: twice the same frame", enhanced(repeat_frame), dce, r"duplicate slice: .*frame 1.*frame 2"),
    Case("enhanced: pixels cut off", enhanced(put(PixelData=b"\0" * 960)), dce, "e.dcm: truncated.* expected 1440"),
    # SEG
    Case("SEG: no file", remove(lambda home: home / "roi.dcm"), roi, "roi.dcm: no such file"),
    Case("SEG: zero bytes", overwrite(lambda home: home / "roi.dcm", b""), roi, "roi.dcm: the file is empty"),
    Case("SEG: not DICOM", overwrite(lambda home: home / "roi.dcm", b"PK" * 99), roi, "roi.dcm: not a DICOM"),
    Case("SEG: header cut off", cut(lambda home: home / "roi.dcm", 0.4), roi, "roi.dcm: "),
    Case(
        "SEG: pixels cut off",
        cut(lambda home: home / "mask.dcm", 0.98),
        mask,
        "mask.dcm: truncated, PixelData lacks",
    ),
    Case(
        "SEG: bytes inserted", inserted(lambda home: home / "mask.dcm"), mask, "mask.dcm: bytes .* after PixelData"
    ),
    Case("SEG: a VR that there is not", unknown_vr(lambda h: h / "mask.dcm"), mask, "mask.dcm: "),
    Case("SEG: an MR image", lambda home: shutil.copy(one(home), home / "roi.dcm"), roi, "MR Image .*expected Seg"),
    Case("SEG: posing as MR", of("roi.dcm", put(SOPClassUID=MRImageStorage)), roi, "expected Segmentation Storage"),
    Case("SEG: a surface", of("roi.dcm", put(SegmentationType="SURFACE")), roi, "SegmentationType is SURFACE"),
    Case("SEG: frames lost", of("roi.dcm", drop_frame), roi, "roi.dcm: 4 frames with the positions of 3"),
    Case("SEG: position lost", of("roi.dcm", forget_position), roi, "roi.dcm: ImagePositionPatient is missing"),
    Case("SEG: position NaN", of("roi.dcm", move_frame), roi, "roi.dcm: ImagePositionPatient is malformed"),
    Case("SEG: segment lost", of("roi.dcm", forget_segment), roi, "ReferencedSegmentNumber is missing"),
    Case("SEG: twice the same frame", of("roi.dcm", repeat_frame), roi, "roi.dcm: 4 frames at 3 places"),
    Case("SEG: empty mask", of("roi.dcm", all_zeros), roi, "roi.dcm: empty mask"),
    Case("SEG: no zero in an inverse mask", of("mask.dcm", all_ones), mask, "mask.dcm: empty mask"),
    Case("SEG: all tumour", of("mask.dcm", all_zeros), mask, "mask.dcm: 100.0% of the volume is tumour"),
    Case(
        "SEG: read the wrong way round",
        nothing,
        lambda home: read_seg(home / "mask.dcm", geometry(), SHAPE[1:], meaning="segments"),
        "mask.dcm: 92.5% of the volume is tumour",
    ),
    Case(
        "SEG: another grid",
        nothing,
        lambda home: read_seg(home / "roi.dcm", geometry("oblique"), SHAPE[1:], meaning="segments"),
        "roi.dcm: mask on another grid",
    ),
    Case(
        "SEG: another matrix",
        nothing,
        lambda home: read_seg(home / "roi.dcm", geometry(), (5, 6, 9), meaning="segments"),
        "roi.dcm: mask on another grid",
    ),
    # BreastDCEDL's NIfTI
    Case("NIfTI: zero bytes", overwrite(nifti_file(PHASE), b""), nifti, f"{PHASE}: "),
    Case("NIfTI: not NIfTI", overwrite(nifti_file(PHASE), b"MIT License\n" * 50), nifti, f"{PHASE}: Not a gzip"),
    Case("NIfTI: gzip of something", overwrite(nifti_file(PHASE), gzip.compress(b"x" * 999)), nifti, f"{PHASE}: "),
    Case("NIfTI: cut off", cut(nifti_file(PHASE), 0.6), nifti, f"{PHASE}: "),
    Case("NIfTI: mask cut off", cut(nifti_file(MASK), 0.6), nifti, f"{MASK}: "),
    Case("NIfTI: spacing NaN in the table", nothing, table(slice_thick=NAN), "P1: slice_thick nan"),
    Case("NIfTI: spacing 0 in the table", nothing, table(xy_spacing=0), "P1: .* xy_spacing 0"),
    Case("NIfTI: phase missing", remove(nifti_file(PHASE)), nifti, r"P1: missing phase file \[1\]"),
    Case("NIfTI: no phase at all", lambda home: shutil.rmtree(home / "nifti/dce"), nifti, "P1: no phase files"),
    Case("NIfTI: mask missing", remove(nifti_file(MASK)), nifti, "P1: 0 mask files"),
    Case("NIfTI: phase of another size", image(PHASE, lambda a: a[1:]), nifti, f"{PHASE}: shape"),
    Case("NIfTI: four dimensions", image(PHASE, lambda a: np.stack([a, a], -1)), nifti, f"{PHASE}: a header"),
    Case("NIfTI: mask on another grid", image(MASK, lambda a: a[1:]), nifti, f"{MASK}: shape"),
    Case("NIfTI: mask with other values", image(MASK, lambda a: a * 2), nifti, f"{MASK}: mask holds the values"),
    Case("NIfTI: empty mask", image(MASK, lambda a: a * 0), nifti, f"{MASK}: empty mask"),
]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")  # pydicom's, on writing and on reading NaN
@pytest.mark.filterwarnings("ignore:The value length .* for VR UI")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_broken_input_is_refused_with_its_name_and_without_the_patients(home, case):
    case.break_(home)
    before = contents(home)
    with pytest.raises(case.error, match=case.message) as refusal:
        case.read(home)
    told = str(refusal.value).replace(str(home), "")
    assert not [secret for secret in SECRETS if secret in told]
    assert contents(home) == before


def test_a_file_damaged_anywhere_is_read_or_refused_by_name(home):
    rng, path = np.random.default_rng(0), one(home)
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        start = rng.integers(128, len(whole) - 100)
        damaged[start : start + 4] = rng.integers(0, 256, 4).astype(np.uint8).tobytes()
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pydicom")  # it says what it repaired, or tried to
            try:
                assert read_dce(home / "dce").array.shape == SHAPE
            except ValueError as error:
                assert str(home / "dce") in str(error)


# ------------------------------------------------------------------------------------ files that others broke

BUNDLED = Path(pydicom.__file__).parent / "data"
FILES = [p for name in ("test_files", "charset_files") for p in sorted((BUNDLED / name).rglob("*")) if p.is_file()]


@pytest.mark.parametrize("source", FILES, ids=lambda path: str(path.relative_to(BUNDLED)))
def test_every_file_that_comes_with_pydicom_is_read_or_refused_by_name(tmp_path, source):
    path = Path(shutil.copy(source, tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")  # it says what it repaired
        warnings.filterwarnings("ignore", message=".* was once compressed with loss")
        with pytest.raises(ValueError, match="expected"):
            read_seg(path, geometry(), SHAPE[1:], meaning="segments")
        try:
            found = read_dce(tmp_path).array[0, 0]
        except ValueError as error:
            assert str(tmp_path) in str(error)
            return
        stored = pydicom.dcmread(source)
        slope, intercept = float(stored.get("RescaleSlope", 1)), float(stored.get("RescaleIntercept", 0))
        assert np.array_equal(found, stored.pixel_array * slope + intercept)


def test_the_files_that_come_with_pydicom_were_found():
    assert len(FILES) > 150


# ------------------------------------------------------------------------------------- what is no file of a series


def pipe(home):
    os.mkfifo(home / "dce" / "x")


def loop(home):
    (home / "dce" / "x").symlink_to(home / "dce" / "x")


def dangling(home):
    (home / "dce" / "x").symlink_to("nowhere")


def device(home):
    (home / "dce" / "x").symlink_to("/dev/zero")


def unprintable(name):
    return lambda home: shutil.copy(one(home), os.fsencode(home / "dce") + b"/" + name)


def sparse(home):
    with open(home / "dce" / "x", "wb") as file:
        file.truncate(1 << 40)


def undefined_lengths(home):
    path = one(home)
    content = path.read_bytes()
    deep = b"\x00\x52\x30\x92SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000
    path.write_bytes(content[:-108] + deep + content[-108:])


@pytest.mark.parametrize(
    "break_, message",
    [
        (pipe, "x: no such file, or a pipe"),
        (loop, "x: no such file, or a pipe, device or broken link"),
        (dangling, "x: no such file, or a pipe, device or broken link"),
        (device, "x: no such file, or a pipe, device"),
        (unprintable(b"\xff\xfe.dcm"), r"dce: holds '\\udcff\\udcfe.dcm', expected file names of printable"),
        (unprintable(b"a\nb"), r"dce: holds 'a\\nb', expected file names of printable"),
        (sparse, "x: not a DICOM file"),
        (undefined_lengths, "dcm: .*recursion.*, expected a readable DICOM file"),
    ],
)
def test_what_is_no_file_of_a_series_is_refused_by_name(home, break_, message):
    break_(home)
    with pytest.raises(ValueError, match=message):
        dce(home)


def test_a_group_nested_thousands_deep_is_refused_or_never_looked_at(tmp_path):
    write_enhanced(tmp_path / "e.dcm", series(), list(np.ndindex(SHAPE[:2])))
    deep = b""
    for _ in range(2000):
        item_ = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(deep)) + deep
        deep = b"\x18\x00\x17\x91SQ\0\0" + struct.pack("<I", len(item_)) + item_
    content = (tmp_path / "e.dcm").read_bytes()
    at = content.index(b"\x00\x52\x29\x92")
    (tmp_path / "e.dcm").write_bytes(content[:at] + deep + content[at:])
    assert np.array_equal(read_dce(tmp_path).array, series().array)
