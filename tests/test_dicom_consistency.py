"""Files that contradict each other, or are of another kind than volumes of a dynamic series."""

import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_samples import NAN, TIMES, edit, files_at, geometry, item, put, series, write, write_enhanced

from her2core.formats.consistency import facts
from her2core.formats.dicom import read_dce
from her2core.formats.dicom_file import _SHARED_TAGS, _TAGS, Header, read_dataset
from her2core.formats.volume import DceSeries, Source

REAL = Path(__file__).resolve().parents[2] / "shared" / "real" / "files"
KIND = ["ORIGINAL", "PRIMARY", "M", "ND"]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "dce")


def refused(folder, message):
    with pytest.raises(ValueError, match=message):
        read_dce(folder)


# ------------------------------------------------------------------------------------------------- kinds of image


@pytest.mark.parametrize(
    "kind",
    [
        "DERIVED\\SECONDARY\\SUBTRACT",
        "DERIVED\\PRIMARY\\M\\SUB\\DIS2D",
        "ORIGINAL\\PRIMARY\\PHASE MAP\\P\\FFE",
        "ORIGINAL\\PRIMARY\\P\\ND",
        "ORIGINAL\\PRIMARY\\R_FFE\\R\\FFE",
        "ORIGINAL\\PRIMARY\\I\\NONE",
        "ORIGINAL\\PRIMARY\\FMRI\\NONE\\ND\\MOSAIC",
        "DERIVED\\SECONDARY\\PROJECTION IMAGE",
        "DERIVED\\SECONDARY\\REFORMATTED\\MIP",
        "DERIVED\\SECONDARY\\MPR\\CSA MPR\\\\CSAPARALLEL\\M\\ND",
        "DERIVED\\PRIMARY\\T1\\MAX_IP",
        "DERIVED\\PRIMARY\\DIFFUSION\\ADC\\ND",
        "ORIGINAL\\PRIMARY\\DIFFUSION\\NONE",
        "ORIGINAL\\PRIMARY\\ASL\\NONE",
        "DERIVED\\SECONDARY\\T1 MAP",
        "ORIGINAL\\PRIMARY\\LOCALIZER",
    ],
)
@pytest.mark.parametrize("where", [{}, {"phase": 2}], ids=["everywhere", "one phase"])
def test_images_that_are_no_measured_volume_are_refused_by_their_name(folder, kind, where):
    edit(folder, put(ImageType=KIND))
    edit(folder, put(ImageType=kind.split("\\")), **where)
    found = rf"{re.escape(kind)}, \w+.dcm has ORIGINAL\\PRIMARY\\M\\ND," if where else re.escape(kind)
    refused(folder, rf"dce: (mixed )?ImageType: \w+.dcm has {found}")


@pytest.mark.parametrize(
    "kind",
    [
        "DERIVED\\PRIMARY\\OTHER",
        "DERIVED\\SECONDARY\\OTHER",
        "DERIVED\\SECONDARY\\VOLSER\\REGISTERED",
        "ORIGINAL\\PRIMARY\\M\\NORM\\DIS2D\\FIL\\FILTERED",
        "ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE",
        "DERIVED\\PRIMARY\\DIXON\\WATER\\IN_PHASE",
        "DERIVED\\PRIMARY\\OPP_PHASE\\RESAMPLED",
    ],
)
def test_volumes_that_were_all_processed_alike_are_read(folder, kind):
    edit(folder, put(ImageType=kind.split("\\")))
    assert np.array_equal(read_dce(folder).array, series().array)


def test_without_an_image_type_a_series_is_read(folder):
    edit(folder, put(ImageType=None))
    assert np.array_equal(read_dce(folder).array, series().array)


DIRECTION = item(DiffusionGradientOrientation=[0.0, 0.0, 1.0])
CONTRADICTIONS = {
    "derived among originals": (dict(ImageType=KIND), dict(ImageType=["DERIVED", *KIND[1:]]), "ImageType"),
    "water and fat": (dict(ImageType=[*KIND, "WATER"]), dict(ImageType=[*KIND, "FAT"]), "ImageType"),
    "a second echo": (dict(EchoTime=2.4), dict(EchoTime=4.8), r"EchoTime \(ms\)"),
    "a second echo, by number": (dict(EchoNumbers=1), dict(EchoNumbers=2), "EchoNumbers"),
    "a second echo among unnumbered": ({}, dict(EchoNumbers=2), "EchoNumbers"),
    "sequence": (dict(ScanningSequence="GR"), dict(ScanningSequence=["EP", "GR"]), "ScanningSequence"),
    "name": ({}, dict(PatientName="Other^"), "PatientName"),
    "modality": (dict(Modality="MR"), dict(Modality="CT"), "Modality"),
    "inverted": ({}, dict(PhotometricInterpretation="MONOCHROME1"), "PhotometricInterpretation"),
    "real part": ({}, dict(ComplexImageComponent="REAL"), "ComplexImageComponent"),
    "diffusion weighted": (dict(DiffusionBValue=0.0), dict(DiffusionBValue=800.0), "DiffusionBValue"),
    "diffusion, nested": (
        dict(MRDiffusionSequence=[item(DiffusionBValue=0.0)]),
        dict(MRDiffusionSequence=[item(DiffusionBValue=50.0)]),
        "DiffusionBValue",
    ),
    "a direction": (
        {},
        dict(MRDiffusionSequence=[item(DiffusionGradientDirectionSequence=[DIRECTION])]),
        "DiffusionGradientOrientation",
    ),
    "directional": ({}, dict(DiffusionDirectionality="DIRECTIONAL"), "DiffusionDirectionality"),
    "labelled": ({}, dict(MRArterialSpinLabelingSequence=[item(ASLContext="LABEL")]), "ASLContext"),
    "control": ({}, dict(MRArterialSpinLabelingSequence=[item(ASLContext="CONTROL")]), "ASLContext"),
    "patient": ({}, dict(PatientID="P2"), "PatientID"),
    "study": ({}, dict(StudyInstanceUID="1.2.3"), "StudyInstanceUID"),
    "frame of reference": ({}, dict(FrameOfReferenceUID="1.2.3"), "FrameOfReferenceUID"),
    "slope": ({}, dict(RescaleSlope="2", RescaleIntercept="0"), "slope and intercept"),
    "intercept": ({}, dict(RescaleSlope="1", RescaleIntercept="-5"), "slope and intercept"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_one_file_that_contradicts_the_others_is_refused(folder, what):
    rest, odd, name = CONTRADICTIONS[what]
    edit(folder, put(**rest))
    edit(folder, put(**odd), phase=1, slice_=2)
    path = files_at(folder, phase=1, slice_=2)[0][0].name
    refused(folder, rf"dce: (mixed )?{name}: .*{path} has ")


def test_two_values_are_named_with_their_files(folder):
    edit(folder, put(EchoTime=4.8), phase=1, slice_=2)
    odd, first = files_at(folder, phase=1, slice_=2)[0][0].name, sorted(folder.iterdir())[0].name
    refused(folder, rf"mixed EchoTime \(ms\): {first} has 2.4, {odd} has 4.8, expected one; leave only the dynamic")


@pytest.mark.parametrize("where", [{"phase": 1}, {"slice_": 0}])
def test_an_echo_time_that_is_only_rounded_is_the_same(folder, where):
    edit(folder, put(EchoTime="2.38"), **where)
    assert np.array_equal(read_dce(folder).array, series().array)


@pytest.mark.parametrize(
    "absent", ["PatientID", "FrameOfReferenceUID", "EchoTime", "Modality", "ImageType", "SOPInstanceUID", "HighBit"]
)
def test_what_vendors_leave_out_contradicts_nothing(folder, absent):
    edit(folder, put(**{absent: None}), phase=1)
    assert np.array_equal(read_dce(folder).array, series().array)


def test_identifiers_are_compared_but_only_digests_are_told(folder):
    edit(folder, put(PatientID="MRN-4711", StudyInstanceUID="1.2.20110405"))
    edit(folder, put(PatientID="MRN-4712"), phase=1)
    with pytest.raises(ValueError) as patient:
        read_dce(folder)
    edit(folder, put(PatientID="MRN-4711", StudyInstanceUID="1.2.20110406"), phase=1)
    with pytest.raises(ValueError) as study:
        read_dce(folder)
    for secrets, told in ((("MRN-4711", "MRN-4712"), patient), (("1.2.20110405", "1.2.20110406"), study)):
        assert all(secret not in str(told.value) for secret in secrets)
        assert all(sha256(secret.encode()).hexdigest()[:12] in str(told.value) for secret in secrets)


def test_the_source_says_whose_series_it_is(folder):
    ds = files_at(folder)[0][1]
    patient = sha256(b"P1").hexdigest()[:12]
    assert read_dce(folder).source == Source(
        patient, ds.StudyInstanceUID, ds.FrameOfReferenceUID, (ds.SeriesInstanceUID,)
    )
    edit(folder, put(PatientID="", StudyInstanceUID=None, FrameOfReferenceUID=None))
    assert read_dce(folder).source == Source(None, None, None, (ds.SeriesInstanceUID,))


@pytest.mark.parametrize("change", [dict(PatientID="P2"), dict(StudyInstanceUID="1.2.3")])
def test_two_patients_or_studies_are_no_examination(tmp_path, change):
    for t in (0, 1):
        write(
            tmp_path / str(t),
            DceSeries(series().array[[t]], geometry(), TIMES[t : t + 1]),
            series_description=f"{t}",
        )
    assert len(read_dce(tmp_path).array) == 2
    edit(tmp_path / "1", put(**change))
    refused(tmp_path, rf"mixed {list(change)[0]}: 0/\w+.dcm has .*, 1/\w+.dcm has ")


def test_facts_are_read_of_nothing_by_which_equal_headers_may_differ(folder, monkeypatch):
    """As the facts of one are taken for those of all that are equal."""
    asked, find = set(), Header._find
    monkeypatch.setattr(Header, "_find", lambda self, keyword, how: asked.add(keyword) or find(self, keyword, how))
    path = next(folder.iterdir())
    facts.__wrapped__(Header(path, read_dataset(path, with_pixels=False)))
    assert len(asked) > 20 and {_TAGS[keyword] for keyword in asked} <= set(_SHARED_TAGS)


# ---------------------------------------------------------------------------------------- values that cannot be


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(BitsStored=12, HighBit=15), "12 of 16 bits stored, HighBit 15"),
        (dict(BitsStored=16, HighBit=11), "16 of 16 bits stored, HighBit 11"),
        (dict(BitsStored=17, HighBit=16), "17 of 16 bits stored"),
        (dict(PixelRepresentation=2), "PixelRepresentation 2"),
        (dict(BitsAllocated=12), "of 12 bits stored"),
        (dict(Rows=5000, Columns=6), "5000 × 6 pixels, .* at most 4096"),
        (dict(RescaleSlope=0, RescaleIntercept=0), r"slope and intercept: .* has \(0.0, 0.0\)"),
        (dict(RescaleSlope=2), r"slope and intercept: .* has \(2.0, None\)"),
        (dict(RescaleSlope="", RescaleIntercept=-3), r"slope and intercept: .* has \(None, -3.0\)"),
        (dict(RescaleSlope=-1, RescaleIntercept=0), r"has \(-1.0, 0.0\)"),
        (dict(RescaleSlope="1e39", RescaleIntercept=0), r"has \(1e\+39, 0.0\)"),
        (dict(RescaleSlope="1e-20", RescaleIntercept=0), r"has \(1e-20, 0.0\)"),
        (dict(RescaleSlope=1, RescaleIntercept="1e308"), r"has \(1.0, 1e\+308\)"),
        (dict(PixelSpacing=["1e-300", "1e-300"]), r"pixel spacing: .* has \(1e-300, 1e-300\)"),
        (dict(PixelSpacing=[0.8, 101]), r"pixel spacing: .* has \(0.8, 101.0\), expected one, 0.01 to 100 mm"),
        (dict(PhotometricInterpretation="MONOCHROME1"), "PhotometricInterpretation: .* has MONOCHROME1"),
        (dict(Modality="PT"), "Modality: .* has PT, expected MR"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_values_that_no_series_has_are_refused_even_where_all_files_agree(folder, change, message):
    edit(folder, put(**change))
    refused(folder, message)


@pytest.mark.parametrize("spacing_mm", [0.004, 150.0])
def test_slices_lie_apart_as_those_of_a_body_do(folder, spacing_mm):
    for z in range(5):
        edit(folder, put(ImagePositionPatient=[0, 0, z]), slice_=z)
    for path, ds in files_at(folder):
        ds.ImagePositionPatient = [0, 0, spacing_mm * ds.ImagePositionPatient[2] + 0.2 * (spacing_mm < 1)]
        ds.save_as(path)
    refused(folder, "slice spacing|duplicate slice|unequal slices")


@pytest.mark.parametrize("x_mm", ["1e308", "-10001"])
def test_slices_lie_within_reach_of_the_scanner(folder, x_mm):
    edit(folder, put(ImagePositionPatient=[x_mm, "0", "0"]), phase=1)
    refused(folder, "a slice at .* mm, expected at most 10000")


def test_signed_and_unsigned_files_of_one_series_keep_their_values(folder):
    edit(folder, put(PixelRepresentation=1), phase=1)
    assert np.array_equal(read_dce(folder).array, series().array)


def test_each_phase_may_have_its_own_slope(folder):
    for t, slope in enumerate((1, 2, 0.5)):
        edit(folder, put(RescaleSlope=slope, RescaleIntercept=t), phase=t)
    expected = series().array * np.reshape([1, 2, 0.5], (3, 1, 1, 1)) + np.reshape([0, 1, 2], (3, 1, 1, 1))
    assert np.array_equal(read_dce(folder).array, expected)


# ---------------------------------------------------------------------------------------------------- Enhanced MR


@pytest.mark.parametrize(
    "group, message",
    [
        (dict(MRImageFrameTypeSequence=[item(FrameType=["DERIVED", "PRIMARY", "T1", "SUBTRACTION"])]), "ImageType"),
        (dict(MRImageFrameTypeSequence=[item(ComplexImageComponent="PHASE")]), "ComplexImageComponent"),
        (dict(MREchoSequence=[item(EffectiveEchoTime=4.8)]), "mixed EchoTime"),
        (dict(MRDiffusionSequence=[item(DiffusionBValue=1000.0)]), "DiffusionBValue"),
        (dict(MRArterialSpinLabelingSequence=[item(ASLContext="LABEL")]), "ASLContext"),
    ],
)
def test_a_frame_of_another_kind_is_refused_by_its_number(tmp_path, group, message):
    write_enhanced(tmp_path / "e.dcm", series(), list(np.ndindex(3, 5)))
    ds = pydicom.dcmread(tmp_path / "e.dcm")
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.MRImageFrameTypeSequence = [item(FrameType=KIND, ComplexImageComponent="MAGNITUDE")]
        frame.MREchoSequence = [item(EffectiveEchoTime=2.4)]
    ds.save_as(tmp_path / "e.dcm")
    assert np.array_equal(read_dce(tmp_path).array, series().array)
    put(**group)(ds.PerFrameFunctionalGroupsSequence[7])
    ds.save_as(tmp_path / "e.dcm")
    refused(tmp_path, rf"{message}.*e.dcm \(frame 8\) has ")


# ------------------------------------------------------------------------------------------------- files of others

real = pytest.mark.skipif(not REAL.is_dir(), reason="the real files are not here")


@real
@pytest.mark.parametrize(
    "name, shape, times_s",
    [("philips_enhanced", (4, 8, 64, 64), (NAN,) * 4), ("siemens_xa10", (2, 6, 64, 64), (0.0, 0.5))],
)
def test_real_enhanced_files_are_read(name, shape, times_s):
    found = read_dce(REAL / name)
    assert found.array.shape == shape and np.array_equal(found.times_s, times_s, equal_nan=True)


@real
def test_real_phases_that_only_the_instance_number_tells_apart_come_with_a_remark():
    with pytest.warns(UserWarning, match="ge_fmri: only InstanceNumber tells the 2 phases apart"):
        found = read_dce(REAL / "ge_fmri")
    paths = sorted((REAL / "ge_fmri").iterdir())  # in the order of InstanceNumber, ascending slices
    stored = np.array([pydicom.dcmread(path).pixel_array for path in paths])
    assert found.array.shape == (2, 4, 64, 64) and np.array_equal(found.array.reshape(8, 64, 64), stored)


@real
def test_a_real_mosaic_is_refused_by_name():
    refused(REAL / "mosaic", r"ImageType: .*dcm has ORIGINAL\\PRIMARY\\M\\ND\\ECHO_00\\MOSAIC")


def scaled(folder, *factors):
    """Phases that Philips scaled by these."""
    for t, factor in enumerate(factors):
        for path, *_ in files_at(folder, phase=t):
            dataset = pydicom.dcmread(path)
            block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
            block.add_new(0x0E, "FL", factor)
            dataset.save_as(path)


def test_phases_that_philips_scaled_one_by_one_are_a_remark_and_rounding_is_none(tmp_path):
    write(tmp_path / "dce")
    scaled(tmp_path / "dce", 19.0, 19.01, 19.0)
    read_dce(tmp_path / "dce")
    scaled(tmp_path / "dce", 19.0, 9.1, 10.4)
    with pytest.warns(
        UserWarning, match="phases or slices with scales of their own, 9.1 to 19 .Philips' Scale Slope"
    ):
        read_dce(tmp_path / "dce")
