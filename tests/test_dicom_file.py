"""One file: only what is allowed is read, values are converted, pixels stay in the file until they are wanted."""

import struct
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_samples import edit, files_at, item, put, series, write
from pydicom.filereader import read_dataset as parse

from her2core.formats.dicom_file import _ALLOWED, _TAGS, Header, image_of, read_dataset


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "dce")


def encoded(**elements):
    """A dataset as it comes from a file."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, item(**elements), implicit_vr=True, little_endian=True)
    buffer.seek(0)
    return parse(buffer, True, True)


def header(**elements):
    return Header(Path("a.dcm"), encoded(**elements))


def as_written(keyword, text):
    """A header with one element as its bytes."""
    tag = pydicom.tag.Tag(keyword)
    content = struct.pack("<HHL", tag.group, tag.element, len(text)) + text
    return Header(Path("a.dcm"), parse(BytesIO(content), True, True))


def test_no_element_is_read_but_those_allowed(folder):
    edit(folder, put(InstitutionName="Saint Elsewhere", OperatorsName="Hyde^Edward"))
    path, whole = files_at(folder)[0]
    found = {element.keyword for element in read_dataset(path)}
    assert found <= {*_TAGS, "SpecificCharacterSet"}
    assert {"InstitutionName", "OperatorsName", "StudyDate"} <= set(whole.dir()) - found
    for keyword in ("PatientName", "PatientID", "InstitutionName"):
        with pytest.raises(KeyError, match=keyword):
            Header(path, whole).text(keyword)


def test_nothing_that_says_who_or_on_which_day_is_allowed():
    assert _ALLOWED["patient"] == ["PatientID", "PatientName"]
    for keyword in _TAGS.keys() - _ALLOWED["patient"]:
        vr = pydicom.datadict.dictionary_VR(keyword)
        assert vr not in ("PN", "DA", "AS", "LO", "ST", "LT", "UT"), keyword


def test_pixels_stay_in_the_file_until_they_are_wanted(tmp_path):
    data = series(shape=(1, 1, 200, 300))
    path = next(write(tmp_path / "dce", data).iterdir())
    dataset = read_dataset(path, with_pixels=False)
    image = image_of(Header(path, dataset), dataset)
    assert dataset.get_item("PixelData", keep_deferred=True).value is None
    assert np.array_equal(next(image.frames()), data.array[0, 0])


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("120000", 43200.0),
        ("235959.250000", 86399.25),
        ("12:30:00", 45000.0),
        ("1200", None),
        ("240000", None),
        ("126000", None),
        ("120060", None),
        ("noon", None),
        ("", None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR TM")
def test_times_are_seconds_of_the_day(text, seconds):
    assert header(AcquisitionTime=text).clock_s("AcquisitionTime") == seconds


@pytest.mark.parametrize("text", ["20110405010203.5", "20110405010203.500000+0100", "20110405010203.5-0500"])
def test_of_a_date_with_time_only_the_time_of_day_is_taken(text):
    assert header(FrameAcquisitionDateTime=text).clock_s("FrameAcquisitionDateTime") == 3723.5


def test_numbers_come_in_the_number_expected_or_not_at_all():
    found = header(PixelSpacing=[0.5, 0.75], Rows=7, RescaleSlope=None)
    assert found.numbers("PixelSpacing", 2) == (0.5, 0.75)
    assert (found.number("Rows"), found.number("RescaleSlope", 1.0), found.number("TriggerTime")) == (7, 1, None)
    with pytest.raises(ValueError, match=r"a.dcm: PixelSpacing is \(0.5, 0.75\), expected 3 finite"):
        found.numbers("PixelSpacing", 3)
    with pytest.raises(ValueError, match="a.dcm: RescaleSlope is missing, expected 1 finite"):
        found.numbers("RescaleSlope", 1)


def test_the_nearest_place_that_has_a_value_is_taken():
    places = (encoded(RescaleSlope=2, RescaleIntercept=None), encoded(RescaleSlope=3, RescaleIntercept=4))
    found = Header(Path("a.dcm"), *places)
    assert (found.number("RescaleSlope"), found.number("RescaleIntercept")) == (2, 4)


def test_of_the_patients_id_and_name_only_a_digest_comes_out():
    assert header(PatientID="MRN-4711 ").patient() == sha256(b"MRN-4711").hexdigest()[:12]
    assert header(PatientName="Doe^Jane").patient("PatientName") == sha256(b"Doe^Jane").hexdigest()[:12]
    assert header(PatientID="").patient() is None and header().patient() is None


@pytest.mark.parametrize("keyword, text", [("NumberOfFrames", b"9.009 "), ("InstanceNumber", b"2.5 ")])
def test_what_counts_is_a_whole_number(keyword, text):
    with pytest.raises(ValueError, match=f"a.dcm: {keyword} is"):
        as_written(keyword, text).whole(keyword)


@pytest.mark.parametrize("text", [b"1_0 ", b"1_5.5 ", b"nan ", b"inf "])
def test_what_only_python_takes_for_a_number_is_none(text):
    for keyword in ("EchoTime", "NumberOfFrames"):
        with pytest.raises(ValueError, match=f"a.dcm: {keyword} is malformed"):
            as_written(keyword, text).number(keyword)


def test_a_number_written_as_text_may_not_be_stored_as_bytes():
    element = parse(BytesIO(struct.pack("<HH", 0x28, 0x1052) + b"SS\2\0-3"), False, True)
    with pytest.raises(ValueError, match="a.dcm: RescaleIntercept is malformed .stored as SS, expected DS"):
        Header(Path("a.dcm"), element).number("RescaleIntercept")


def test_headers_are_equal_where_they_differ_only_in_place_time_and_number():
    same = dict(Rows=7, RescaleSlope=2, PatientID="P1")
    one, other = (
        header(InstanceNumber=n, ImagePositionPatient=[0, 0, n], AcquisitionTime="12000" + n, **same) for n in "12"
    )
    assert one == other and hash(one) == hash(other)
    for change in (dict(Rows=8), dict(RescaleSlope=3), dict(PatientID="P2"), dict(EchoTime=2)):
        assert header(**same | change) != header(**same)
