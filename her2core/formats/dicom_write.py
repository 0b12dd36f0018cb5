"""DICOM out: a `DceSeries` → a folder of single-frame MR images; a mask → one SEG.

For the phantom and for the tests.  What is written is conformant and the same bytes every time.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.pixels import pack_bits
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from her2core.config import read_yaml
from her2core.formats.seg import MEANINGS
from her2core.formats.volume import DceSeries, Geometry
from her2core.records import whole

_CONSTANT = read_yaml(Path(__file__).with_suffix(".yaml"))
_NOON = 12 * 3600


@dataclass(frozen=True)
class Acquisition:
    """How a series was made, as its headers say; the same for all its files."""

    series_description: str
    manufacturer: str
    field_strength_T: float
    tr_ms: float
    te_ms: float
    flip_deg: float
    bits_stored: int = 16
    study_description: str = "ISPY2_MRI_T0"
    first_temporal_position: int = 0  # I-SPY2 counts phases from 0, the standard from 1


def _uid(*parts):
    """The same UID for the same parts."""
    return generate_uid(entropy_srcs=["\n".join(map(str, ("her2core", *parts)))])


def _ds(numbers):
    """Numbers as DICOM decimal strings, at most 16 characters each."""
    return [format_number_as_ds(float(n)) for n in numbers]


def _tm(seconds):
    """Seconds since midnight as a DICOM time."""
    minutes, seconds = divmod(round(float(seconds), 6), 60)
    return f"{int(minutes // 60):02d}{int(minutes % 60):02d}{seconds:09.6f}"


def _encoded(dataset):
    """{tag: bytes} of each element, Explicit VR Little Endian."""
    encoded = {}
    for element in dataset:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_data_element(buffer, element, ["utf8"])
        encoded[element.tag] = buffer.getvalue()
    return encoded


def _file_bytes(sop_class_uid, sop_instance_uid, elements):
    """A DICOM file from its encoded elements, a dict tag → bytes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class_uid, sop_instance_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = DicomBytesIO()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, meta)
    return buffer.getvalue() + b"".join(elements[tag] for tag in sorted(elements))


def _item(**elements):
    """A dataset from its elements by keyword; a list of dictionaries is a sequence."""
    dataset = Dataset()
    for keyword, value in elements.items():
        if dictionary_VR(keyword) == "SQ":
            value = [_item(**item) for item in value]
        setattr(dataset, keyword, value)
    return dataset


def _common(modality, patient_id, series_description, study_description):
    """What all files of a DCE series, or its SEG, say but for their images."""
    return _item(
        **_CONSTANT["both"],
        **_CONSTANT[modality],
        Modality=modality,
        PatientName=f"{patient_id}^",  # the caret: a family name only
        PatientID=patient_id,
        StudyInstanceUID=_uid(patient_id, "study"),
        SeriesInstanceUID=_uid(patient_id, "series", modality, series_description),
        FrameOfReferenceUID=_uid(patient_id, "frame of reference"),
        StudyDescription=study_description,
        SeriesDescription=series_description,
    )


def _describe_image(dataset, array, bits_allocated, bits_stored):
    """Matrix and pixel type."""
    dataset.Rows, dataset.Columns = array.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits_allocated, bits_stored, bits_stored - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")


def _measures(geometry):
    """Spacing of voxels."""
    slice_mm, *pixel_mm = _ds(geometry.spacing_mm)
    return {"SliceThickness": slice_mm, "SpacingBetweenSlices": slice_mm, "PixelSpacing": pixel_mm}


def _orientation(geometry):
    """Along the row, then down the column."""
    axes = np.array(geometry.direction)
    return {"ImageOrientationPatient": _ds([*axes[:, 2], *axes[:, 1]])}


def _position(geometry, z):
    """Of the first voxel of a slice."""
    return {"ImagePositionPatient": _ds(geometry.position_mm((z, 0, 0)))}


def _template(series, patient_id, acquisition):
    """The elements that all files of a DCE series share."""
    a = acquisition
    dataset = _common("MR", patient_id, a.series_description, a.study_description)
    dataset.update(_item(**_measures(series.geometry), **_orientation(series.geometry)))
    dataset.SOPClassUID, dataset.Manufacturer = MRImageStorage, a.manufacturer
    dataset.MagneticFieldStrength, dataset.FlipAngle = _ds([a.field_strength_T, a.flip_deg])
    dataset.RepetitionTime, dataset.EchoTime = _ds([a.tr_ms, a.te_ms])
    dataset.NumberOfTemporalPositions = len(series.times_s)
    _describe_image(dataset, series.array, 16, a.bits_stored)
    return dataset


def _own_elements(series, t, z, acquisition, series_uid):
    """The elements in which the files of a series differ."""
    dataset = _item(**_position(series.geometry, z), SOPInstanceUID=_uid(series_uid, t, z))
    dataset.InstanceNumber = t * series.array.shape[1] + z + 1
    dataset.TemporalPositionIdentifier = acquisition.first_temporal_position + t
    if not np.isnan(series.times_s[t]):
        dataset.AcquisitionTime = _tm(_NOON + series.times_s[t])
    pixels = series.array[t, z].astype(series.array.dtype.newbyteorder("<")).tobytes()
    dataset.add(DataElement("PixelData", "OW", pixels))
    return dataset


def _refuse_unstorable(array, bits_stored, patient_id):
    """Stored values must be 16-bit integers that fit in `bits_stored` bits."""
    low = -(1 << (bits_stored - 1)) if array.dtype == np.int16 else 0
    high, least, most = low + (1 << bits_stored) - 1, array.min(), array.max()
    if array.dtype not in (np.uint16, np.int16) or least < low or most > high:
        found = f"{array.dtype} values from {least} to {most}, expected uint16 or int16"
        raise ValueError(f"{patient_id}: {found} from {low} to {high} in {bits_stored} bits")


def write_dce(series: DceSeries, folder: Path, *, patient_id: str, acquisition: Acquisition) -> None:
    """Write all phases as one series of single-frame MR images; the folder appears only when complete.

    File names follow from UIDs, so their order is not that of slices or phases, as in real collections; UIDs
    follow from the patient id and the series description.  Times that are NaN are left out.  ValueError for values
    that 16-bit integers of `bits_stored` bits cannot hold, FileExistsError for a folder that is not empty.
    """
    _refuse_unstorable(series.array, acquisition.bits_stored, patient_id)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: not empty, expected a new folder for {patient_id}")
    template = _template(series, patient_id, acquisition)
    shared = _encoded(template)
    with whole(folder) as part:
        part.mkdir()
        for t, z in np.ndindex(series.array.shape[:2]):
            own = _own_elements(series, t, z, acquisition, template.SeriesInstanceUID)
            content = _file_bytes(MRImageStorage, own.SOPInstanceUID, shared | _encoded(own))
            name = own.SOPInstanceUID.rsplit(".", 1)[1][-16:]
            (part / f"{name}.dcm").write_bytes(content)


def _frame_group(segment, z, geometry):
    """Functional groups of one frame: its place and its segment."""
    return {
        "FrameContentSequence": [{"DimensionIndexValues": [segment, z + 1]}],
        "PlanePositionSequence": [_position(geometry, z)],
        "SegmentIdentificationSequence": [{"ReferencedSegmentNumber": segment}],
    }


def _described(frames, geometry, series_uid):
    """Elements that describe the frames, a list of (segment number, z), indexed by segment and position."""
    uid = _uid(series_uid, "dimensions")
    shared = {
        "PixelMeasuresSequence": [_measures(geometry)],
        "PlaneOrientationSequence": [_orientation(geometry)],
    }
    return _item(
        NumberOfFrames=len(frames),
        SegmentSequence=[
            {"SegmentNumber": number, "SegmentLabel": f"Lesion {number}", **_CONSTANT["segment"]}
            for number in sorted({number for number, _ in frames})
        ],
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[_frame_group(number, z, geometry) for number, z in frames],
        DimensionOrganizationSequence=[{"DimensionOrganizationUID": uid}],
        DimensionIndexSequence=[
            {"DimensionOrganizationUID": uid, "DimensionIndexPointer": pointer, "FunctionalGroupPointer": group}
            for pointer, group in ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113))
        ],
    )


def _add_segments(dataset, labels):
    """One BINARY segment per label, with its non-empty slices → frames, a list of (segment number, z)."""
    numbers = [int(n) for n in np.unique(labels) if n]
    frames = [(n, int(z)) for n in numbers for z in np.flatnonzero((labels == n).any(axis=(1, 2)))]
    if numbers != list(range(1, len(numbers) + 1)) or not numbers:
        raise ValueError(f"{dataset.PatientID}: labels {numbers}, expected 1 to n without gap, at least 1")
    _describe_image(dataset, labels, 1, 1)
    dataset.SegmentationType = "BINARY"
    bits = np.concatenate([(labels[z] == n).ravel() for n, z in frames])
    dataset.add(DataElement("PixelData", "OB", pack_bits(bits.astype(np.uint8))))
    return frames


def _add_analysis_mask(dataset, codes):
    """The inverse bit mask as it stands → frames, a list of (segment number, z)."""
    _describe_image(dataset, codes, 8, 8)
    dataset.SegmentationType, dataset.SegmentationFractionalType = "FRACTIONAL", "OCCUPANCY"
    dataset.MaximumFractionalValue = 255
    dataset.add(DataElement("PixelData", "OB", codes.tobytes() + b"\0" * (codes.size % 2)))
    return [(1, z) for z in range(len(codes))]


def write_seg(
    array: np.ndarray,
    geometry: Geometry,
    path: Path,
    *,
    meaning: str,
    patient_id: str,
    series_description: str,
    study_description: str = "ISPY2_MRI_T0",
) -> None:
    """Write a uint8 `(Z, Y, X)` array as a DICOM SEG; `meaning` as in `read_seg`.

    "segments": 0 is background, 1 … n are lesions: as many BINARY segments with their non-empty slices.
    "tumour_is_zero": the inverse bit mask of I-SPY2, stored as it stands in one FRACTIONAL segment.
    """
    if array.ndim != 3 or array.dtype != np.uint8:
        raise ValueError(f"{patient_id}: {array.dtype} of shape {array.shape}, expected uint8 (Z, Y, X)")
    if meaning not in MEANINGS:
        raise ValueError(f"meaning is {meaning!r}, expected one of {MEANINGS}")
    dataset = _common("SEG", patient_id, series_description, study_description)
    frames = (_add_segments if meaning == "segments" else _add_analysis_mask)(dataset, array)
    dataset.update(_described(frames, geometry, dataset.SeriesInstanceUID))
    dataset.SOPClassUID = SegmentationStorage
    dataset.SOPInstanceUID = _uid(dataset.SeriesInstanceUID, "SEG")
    with whole(path) as part:
        part.write_bytes(_file_bytes(SegmentationStorage, dataset.SOPInstanceUID, _encoded(dataset)))
