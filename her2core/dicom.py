"""DICOM in and out: one folder with one dynamic series → `DceSeries`; one SEG → a mask on the same grid.

Arrays are `(T, Z, Y, X)`; slices ascend along the normal of the image plane, phases ascend in time.  File
names, file order and InstanceNumber mean nothing here: a file's place comes from its geometry and its phase
from TemporalPositionIdentifier.  The writers exist for the phantom and for the tests; what they write is
conformant and the same bytes every time.
"""

import os
import re
import shutil
import warnings
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import DataElement, Dataset, dcmread
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.pixels import pack_bits
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    SegmentationStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from her2core.volume import DceSeries, Geometry

POSITION_TOLERANCE_MM = 0.1  # scanners write positions with one to six decimals
SPACING_TOLERANCE = 0.05  # of the slice spacing; a missing slice is off by 1.0
GRID_TOLERANCE = 0.1  # voxels by which a mask may lie beside the grid it is drawn on
DAY_S = 86400


# ----------------------------------------------------------------------------------- one file of a DCE series


@dataclass(frozen=True)
class _Slice:
    """What one file says: pixels `(Y, X)`, where they lie in space and, as far as known, in time."""

    path: Path
    series_uid: str
    plane: tuple  # orientation (6 cosines), PixelSpacing (row, column) in mm, (Y, X)
    position_mm: tuple
    thickness_mm: float | None
    temporal_position: float | None
    n_temporal_positions: float | None
    trigger_s: float | None
    clock_s: float | None
    rescale: tuple  # slope, intercept
    pixels: np.ndarray


def _dataset(path):
    """The DICOM file, read in one go; `ValueError` naming it where it is none."""
    content = Path(path).read_bytes()
    if not content:
        raise ValueError(f"{path}: the file is empty (0 bytes), expected DICOM")
    try:
        return dcmread(BytesIO(content))
    except InvalidDicomError as error:
        raise ValueError(f"{path}: not a DICOM file, expected only DICOM here") from error
    except Exception as error:  # pydicom lets errors of many kinds through on a damaged file
        raise ValueError(f"{path}: not a readable DICOM file ({error})") from error


@lru_cache(maxsize=1024)
def _converted(raw):
    """The value that an encoded element stands for; a series repeats most of them in every file."""
    return convert_raw_data_element(raw).value


def _value(dataset, keyword, path):
    """The value of a keyword, None where absent or empty, `ValueError` where malformed."""
    try:
        element = dataset.get_item(keyword)
        short = isinstance(element, RawDataElement) and element.length < 1024  # not a sequence of all frames
        value = _converted(element._replace(value_tell=0)) if short else dataset.get(keyword)
    except Exception as error:  # conversion happens here, and its errors name no file
        raise ValueError(f"{path}: {keyword} is malformed ({error})") from error
    return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value


def _numbers(dataset, keyword, path, count):
    """Exactly `count` finite numbers of a keyword, as a tuple of floats."""
    value = _value(dataset, keyword, path)
    if value is None:
        raise ValueError(f"{path}: {keyword} is missing, expected {count} number(s)")
    several = hasattr(value, "__len__") and not isinstance(value, (str, bytes))
    try:
        numbers = tuple(float(v) for v in (value if several else [value]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {keyword} is {value!r}, expected {count} number(s)") from error
    if len(numbers) != count or not np.all(np.isfinite(numbers)):
        raise ValueError(f"{path}: {keyword} is {numbers}, expected {count} finite number(s)")
    return numbers


def _number(dataset, keyword, path, absent=None):
    return absent if _value(dataset, keyword, path) is None else _numbers(dataset, keyword, path, 1)[0]


def _clock_s(text):
    """DICOM time `HHMMSS.ffffff` → seconds since midnight; None where it cannot be read."""
    parts = re.fullmatch(r"(\d\d):?(\d\d):?(\d\d(?:\.\d*)?)", str(text or "").strip())
    return None if parts is None else 3600 * int(parts[1]) + 60 * int(parts[2]) + float(parts[3])


def _sop_class(dataset, path):
    return getattr(_value(dataset, "SOPClassUID", path), "name", "of no SOP class")


def _refuse_other_than_one_grey_slice(dataset, path):
    frames = int(_number(dataset, "NumberOfFrames", path, absent=1))
    if frames > 1 or _value(dataset, "SOPClassUID", path) == EnhancedMRImageStorage:
        raise ValueError(
            f"{path}: multi-frame ({_sop_class(dataset, path)}, {frames} frames) is not supported yet, "
            "expected one slice per file"
        )
    if "PixelData" not in dataset:
        raise ValueError(
            f"{path}: no PixelData ({_sop_class(dataset, path)}), expected a complete image, not cut off before it"
        )
    if _number(dataset, "SamplesPerPixel", path, absent=1) != 1:
        found = _value(dataset, "PhotometricInterpretation", path)
        raise ValueError(f"{path}: a colour image ({found}), expected one grey value per pixel")


def _decoded(dataset, path):
    """Pixels by way of pydicom's decoders."""
    try:
        return dataset.pixel_array
    except Exception as error:  # each decoder has its own errors
        raise ValueError(f"{path}: PixelData cannot be decoded ({str(error).splitlines()[0]})") from error


def _pixels(dataset, path):
    """Stored values `(Y, X)`, in the integer type that the header declares."""
    rows, columns, bits, signed = (
        int(_numbers(dataset, keyword, path, 1)[0])
        for keyword in ("Rows", "Columns", "BitsAllocated", "PixelRepresentation")
    )
    native = dataset.file_meta.get("TransferSyntaxUID") in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    if native and bits in (8, 16, 32):
        data, expected = dataset.get_item("PixelData").value, rows * columns * bits // 8
        if len(data or b"") < expected:
            raise ValueError(f"{path}: truncated, PixelData holds {len(data or b'')} bytes, expected {expected}")
        if len(data) <= expected + expected % 2:
            dtype = np.dtype(f"<{'i' if signed else 'u'}{bits // 8}")
            return np.frombuffer(data, dtype, rows * columns).reshape(rows, columns)
    return _decoded(dataset, path)


def _read_slice(path):
    dataset = _dataset(path)
    _refuse_other_than_one_grey_slice(dataset, path)
    pixels = _pixels(dataset, path)
    trigger_ms = _number(dataset, "TriggerTime", path)
    return _Slice(
        path=path,
        series_uid=str(_value(dataset, "SeriesInstanceUID", path)),
        plane=(
            _numbers(dataset, "ImageOrientationPatient", path, 6),
            _numbers(dataset, "PixelSpacing", path, 2),
            pixels.shape,
        ),
        position_mm=_numbers(dataset, "ImagePositionPatient", path, 3),
        thickness_mm=_number(dataset, "SpacingBetweenSlices", path) or _number(dataset, "SliceThickness", path),
        temporal_position=_number(dataset, "TemporalPositionIdentifier", path),
        n_temporal_positions=_number(dataset, "NumberOfTemporalPositions", path),
        trigger_s=None if trigger_ms is None else trigger_ms / 1000,
        clock_s=_clock_s(_value(dataset, "AcquisitionTime", path)),
        rescale=(_number(dataset, "RescaleSlope", path, 1.0), _number(dataset, "RescaleIntercept", path, 0.0)),
        pixels=pixels,
    )


# -------------------------------------------------------------------------------------------- slices → series


def _files(folder):
    """Every file of the folder except hidden ones; nothing else may lie there."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder, expected one with the files of one DCE series")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder}: no files, expected those of one DCE series")
    folders = [path.name for path in paths if path.is_dir()]
    if folders:
        raise ValueError(f"{folder}: holds the folder {folders[0]!r}, expected only the files of one DCE series")
    return paths


def _refuse_mixture(slices, folder):
    """All files must be of one series and share orientation, pixel spacing and matrix."""
    first = slices[0]
    for other in slices[1:]:
        if other.series_uid != first.series_uid:
            n = len({s.series_uid for s in slices})
            raise ValueError(
                f"{folder}: files of {n} series ({first.path.name}: {first.series_uid}, "
                f"{other.path.name}: {other.series_uid}), expected one"
            )
        names = ("orientation", "pixel spacing (mm)", "matrix (rows, columns)")
        for name, a, b, tolerance in zip(names, first.plane, other.plane, (1e-3, 1e-3, 0), strict=True):
            if a != b and not np.allclose(a, b, rtol=0, atol=tolerance):
                raise ValueError(
                    f"{folder}: mixed {name}: {first.path.name} has {a}, {other.path.name} has {b}, expected one"
                )


def _axes(orientation, path):
    """Six direction cosines → 3×3 with columns (normal, down the column, along the row) = axes (z, y, x)."""
    along_row, down_column = np.reshape(orientation, (2, 3))
    axes = np.stack([np.cross(along_row, down_column), down_column, along_row], axis=1)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise ValueError(f"{path}: ImageOrientationPatient {orientation} is not two orthogonal unit vectors")
    return axes


def _slice_spacing_mm(heights_mm, slices, folder):
    """Distance between the sorted slice heights, which must be even."""
    if len(heights_mm) == 1:
        spacing = slices[0].thickness_mm
        if not spacing or spacing < 0:
            raise ValueError(f"{folder}: one slice of thickness {spacing}, expected positive millimetres")
        return spacing
    steps = np.diff(heights_mm)
    typical = np.median(steps)
    worst = int(np.argmax(np.abs(steps - typical)))
    if abs(steps[worst] - typical) > SPACING_TOLERANCE * typical:
        raise ValueError(
            f"{folder}: missing slice or uneven spacing: {steps[worst]:.4g} mm between slices {worst} and "
            f"{worst + 1} of {len(heights_mm)}, expected {typical:.4g} mm as elsewhere"
        )
    return round((heights_mm[-1] - heights_mm[0]) / len(steps), 6)  # more decimals are rounding errors


def _stack(slices, folder):
    """→ slice index z of each file `(N,)` and the geometry of the volume.

    Slices ascend along the normal (row direction × column direction), whichever way the scanner numbered them.
    """
    orientation, (row_mm, column_mm), _ = slices[0].plane
    axes = _axes(orientation, slices[0].path)
    if min(row_mm, column_mm) <= 0:
        raise ValueError(f"{folder}: PixelSpacing is {(row_mm, column_mm)}, expected positive millimetres")
    positions = np.array([s.position_mm for s in slices])  # (N, 3)
    heights = positions @ axes[:, 0]  # (N,)
    order = np.argsort(heights, kind="stable")
    new_slice = np.diff(heights[order], prepend=-np.inf) > POSITION_TOLERANCE_MM
    z = np.empty(len(slices), int)
    z[order] = np.cumsum(new_slice) - 1
    spacing = _slice_spacing_mm(heights[order][new_slice], slices, folder)
    origin = positions[order[0]]
    beside = np.abs((positions - origin) @ axes[:, 1:]).max(axis=1)  # (N,)
    worst = int(np.argmax(beside))
    if beside[worst] > max(POSITION_TOLERANCE_MM, GRID_TOLERANCE * min(row_mm, column_mm)):
        raise ValueError(
            f"{folder}: mixed position: {slices[worst].path.name} lies {beside[worst]:.4g} mm beside the "
            "stack, expected slices stacked along their normal"
        )
    return z, Geometry(
        spacing_mm=(float(spacing), row_mm, column_mm),
        origin_mm=tuple(float(v) for v in origin),
        direction=tuple(tuple(float(v) for v in row) for row in axes),
    )


def _phases_by_position_identifier(values, folder):
    """TemporalPositionIdentifier, from 0 or from 1 and without gap → phase of each file `(N,)`."""
    found = np.unique(values)
    if found[0] not in (0, 1) or not np.array_equal(found, np.arange(found[0], found[0] + len(found))):
        raise ValueError(
            f"{folder}: TemporalPositionIdentifier takes the values {found.astype(int).tolist()}, expected "
            "consecutive numbers from 0 or 1 (a phase is missing)"
        )
    return (values - found[0]).astype(int)


def _clocks(slices):
    """Each clock that every file carries, the better first → list of (keyword, seconds `(N,)`)."""
    clocks = []
    if all(s.trigger_s is not None for s in slices):
        clocks.append(("TriggerTime", np.array([s.trigger_s for s in slices])))
    if all(s.clock_s is not None for s in slices):
        times_s = np.array([s.clock_s for s in slices])
        past_midnight = times_s < times_s.max() - DAY_S / 2
        clocks.append(("AcquisitionTime", times_s + DAY_S * past_midnight))
    return clocks


def _phases_by_time(keyword, times_s, z, folder):
    """Rank in time at each slice → phase of each file `(N,)`; a phase must end before the next begins."""
    counts = np.bincount(z)  # (Z,)
    if len(set(counts)) > 1:
        few = int(np.argmin(counts))
        raise ValueError(
            f"{folder}: unequal slices per phase: {counts[few]} files at slice {few}, {counts.max()} elsewhere"
        )
    phase = np.empty(len(z), int)
    phase[np.lexsort((times_s, z))] = np.tile(np.arange(counts[0]), len(counts))
    begins, ends = (np.array([pick(times_s[phase == t]) for t in range(counts[0])]) for pick in (np.min, np.max))
    overlap = np.flatnonzero(ends[:-1] >= begins[1:])
    if len(overlap):
        t = overlap[0]
        raise ValueError(
            f"{folder}: ambiguous phases: by {keyword} phase {t} ends at {ends[t]:g} s and phase {t + 1} begins "
            f"at {begins[t + 1]:g} s, expected one after the other"
        )
    return phase


def _phases(slices, z, folder):
    """Phase of each file `(N,)`: TemporalPositionIdentifier, else TriggerTime, else AcquisitionTime.

    Not InstanceNumber (numbered by slice or by phase, as the exporter liked) and not ContentTime (the time of
    post-processing).  I-SPY2's volume series carry TemporalPositionIdentifier from 0 and a frozen
    AcquisitionTime, so a key that has one value for several files of the same slice is passed over.
    """
    one_file_per_slice = len(slices) == z.max() + 1
    positions = [s.temporal_position for s in slices]
    if None not in positions and (one_file_per_slice or len(set(positions)) > 1):
        return _phases_by_position_identifier(np.array(positions), folder)
    if one_file_per_slice:
        return np.zeros(len(slices), int)
    for keyword, times_s in _clocks(slices):
        if np.ptp(times_s) > 0:
            return _phases_by_time(keyword, times_s, z, folder)
    raise ValueError(
        f"{folder}: ambiguous phases: {len(slices)} files for {z.max() + 1} slices, expected one of "
        "TemporalPositionIdentifier, TriggerTime or AcquisitionTime in every file and not the same in all"
    )


def _refuse_gaps(slices, phase, z, folder):
    """Every phase must hold every slice exactly once."""
    counts = np.zeros((phase.max() + 1, z.max() + 1), int)  # (T, Z)
    np.add.at(counts, (phase, z), 1)
    if counts.max() > 1:
        t, k = np.argwhere(counts > 1)[0]
        names = [s.path.name for s, a, b in zip(slices, phase, z, strict=True) if (a, b) == (t, k)]
        raise ValueError(f"{folder}: duplicate slice: {names[:2]} both hold phase {t}, slice {k}")
    if counts.min() < 1:
        raise ValueError(
            f"{folder}: unequal slices per phase: {counts.sum(axis=1).tolist()}, expected {z.max() + 1} in each"
        )
    announced = slices[0].n_temporal_positions
    if announced and announced != len(counts):
        warnings.warn(
            f"{folder}: NumberOfTemporalPositions is {announced:g}; went on with the {len(counts)} phases found",
            stacklevel=3,
        )


def _assemble(slices, phase, z):
    """→ `(T, Z, Y, X)`; the stored integers where every rescale is the identity, else float32."""
    rescaled = any(s.rescale != (1.0, 0.0) for s in slices)
    dtype = np.float32 if rescaled else np.result_type(*{s.pixels.dtype for s in slices}).newbyteorder("=")
    array = np.empty((phase.max() + 1, z.max() + 1, *slices[0].pixels.shape), dtype)
    for s, t, k in zip(slices, phase, z, strict=True):
        array[t, k] = s.pixels
        if s.rescale != (1.0, 0.0):
            array[t, k] = array[t, k] * np.float32(s.rescale[0]) + np.float32(s.rescale[1])
    return array


def _times_s(slices, phase, folder):
    """Seconds from the first phase `(T,)`; NaN where the clocks are absent or frozen."""
    for keyword, times_s in _clocks(slices):
        begins = np.array([times_s[phase == t].min() for t in range(phase.max() + 1)])
        if np.all(np.diff(begins) > 0):
            return tuple((begins - begins[0]).tolist())
        if np.any(np.diff(begins) < 0):
            warnings.warn(
                f"{folder}: {keyword} contradicts the order of the phases ({begins.tolist()} s) and is not used",
                stacklevel=3,
            )
    return (float("nan"),) * (phase.max() + 1)


def read_dce(folder) -> DceSeries:
    """One folder with the files of ONE dynamic series, in any order and under any names → `DceSeries`.

    Phases as `_phases`, slices as `_stack`.  Values are rescaled by slope and intercept: the stored integer
    type where that changes nothing, else float32.  Hidden files are ignored; anything else that is not one
    slice of the series is a `ValueError` that names it, and so is a series with holes.
    """
    slices = [_read_slice(path) for path in _files(folder)]
    _refuse_mixture(slices, folder)
    z, geometry = _stack(slices, folder)
    phase = _phases(slices, z, folder)
    _refuse_gaps(slices, phase, z, folder)
    return DceSeries(_assemble(slices, phase, z), geometry, _times_s(slices, phase, folder))


# ------------------------------------------------------------------------------------------------- SEG → mask


def _functional_groups(dataset, path):
    """Per frame: position `(F, 3)`, orientation `(F, 6)`, spacing `(F, 2)` and segment number `(F,)`."""
    frames = _value(dataset, "PerFrameFunctionalGroupsSequence", path) or []
    shared = _value(dataset, "SharedFunctionalGroupsSequence", path) or []

    def of(frame, group, keyword):
        for place in (frame, *shared):
            if group in place:
                return _value(place[group].value[0], keyword, path)
        raise ValueError(f"{path}: {group} is missing, expected it for each frame or for all")

    position, orientation, spacing, segment = (
        np.array([of(frame, group, keyword) for frame in frames], float)
        for group, keyword in (
            ("PlanePositionSequence", "ImagePositionPatient"),
            ("PlaneOrientationSequence", "ImageOrientationPatient"),
            ("PixelMeasuresSequence", "PixelSpacing"),
            ("SegmentIdentificationSequence", "ReferencedSegmentNumber"),
        )
    )
    shapes = [a.shape[1:] for a in (position, orientation, spacing, segment)]
    if shapes != [(3,), (6,), (2,), ()]:
        raise ValueError(f"{path}: {len(frames)} frames whose positions and spacings have the shapes {shapes}")
    return position, orientation, spacing, segment.astype(int)


def _frame_slices(position, orientation, spacing, geometry, shape, path):
    """Slice index of each frame `(F,)`, after checking that three corners of it fall on those of the grid."""
    depth, rows, columns = shape
    across = orientation[:, :3] * spacing[:, 1:] * (columns - 1)  # PixelSpacing is (between rows, between columns)
    down = orientation[:, 3:] * spacing[:, :1] * (rows - 1)
    corners = np.stack([position, position + down, position + across], axis=1)  # (F, 3 corners, xyz)
    index = (corners - geometry.origin_mm) @ np.array(geometry.direction) / geometry.spacing_mm  # (F, 3, zyx)
    z = np.rint(index[:, 0, 0]).astype(int)
    expected = np.zeros_like(index)
    expected[:, :, 0] = z[:, None]
    expected[:, 1, 1], expected[:, 2, 2] = rows - 1, columns - 1
    worst = int(np.argmax(np.abs(index - expected).max(axis=(1, 2))))
    if np.abs(index[worst] - expected[worst]).max() > GRID_TOLERANCE:
        raise ValueError(
            f"{path}: mask on another grid: the corners of frame {worst} have the indices (z, y, x) "
            f"{np.round(index[worst], 2).tolist()}, expected {expected[worst].tolist()}"
        )
    if z.min() < 0 or z.max() >= depth:
        raise ValueError(
            f"{path}: mask on another grid: its slices are {z.min()} to {z.max()}, expected 0 to {depth - 1}"
        )
    return z


def _seg_frames(path, geometry, shape):
    """→ frames `(F, Y, X)`, slice index `(F,)`, segment number `(F,)` and SegmentationType."""
    dataset = _dataset(path)
    if _value(dataset, "SOPClassUID", path) != SegmentationStorage:
        raise ValueError(f"{path}: {_sop_class(dataset, path)}, expected Segmentation Storage (SEG)")
    kind = _value(dataset, "SegmentationType", path)
    if kind not in ("BINARY", "FRACTIONAL"):
        raise ValueError(f"{path}: SegmentationType is {kind}, expected BINARY or FRACTIONAL")
    matrix = tuple(int(_numbers(dataset, keyword, path, 1)[0]) for keyword in ("Rows", "Columns"))
    if matrix != tuple(shape[1:]):
        raise ValueError(f"{path}: mask on another grid: {matrix} rows and columns, expected {tuple(shape[1:])}")
    *plane, segment = _functional_groups(dataset, path)
    z = _frame_slices(*plane, geometry, shape, path)
    frames = _decoded(dataset, path).reshape(-1, *matrix)
    places = set(zip(z.tolist(), segment.tolist(), strict=True))
    if not len(frames) == len(z) == len(places):
        raise ValueError(f"{path}: {len(frames)} frames, {len(z)} positions of which {len(places)} differ")
    return frames, z, segment, kind


MEANINGS = ("segments", "tumour_is_zero")


def read_seg(path, geometry, shape, *, meaning) -> np.ndarray:
    """DICOM SEG → bool `(Z, Y, X)` tumour mask on the grid of the DCE series (`geometry`, `shape`).

    meaning: "segments": the union of all segments, frames that are absent being background (the `ROI` of
    Advanced-MRI-Breast-Lesions).  "tumour_is_zero": the `Analysis Mask` of I-SPY2 and ACRIN-6698, an INVERSE
    bit mask that says FRACTIONAL but whose value 0 is tumour and whose bits say why a voxel is none: 1 below the
    enhancement threshold, 2 too few neighbours, 8 or 16 background, 32 outside the box drawn by hand, 64 omitted
    by hand (Analysis-mask-files-description.v20211020).  Taken as `> 0` it would mark 99.7 % of the volume.
    Frames are placed by position, never by order.  `ValueError` for a mask on another grid or without tumour.
    """
    if meaning not in MEANINGS:
        raise ValueError(f"meaning is {meaning!r}, expected one of {MEANINGS}")
    frames, z, _, kind = _seg_frames(path, geometry, shape)
    mask = np.zeros(shape, bool)
    if meaning == "segments":
        np.logical_or.at(mask, z, frames > 0)
    elif kind == "FRACTIONAL" and np.array_equal(np.sort(z), np.arange(shape[0])):
        mask[z] = frames == 0
    else:
        raise ValueError(
            f"{path}: {kind} with {len(z)} frames for {len(set(z.tolist()))} slices, expected a FRACTIONAL "
            f"analysis mask with one frame for each of {shape[0]} slices"
        )
    if not mask.any():
        raise ValueError(f"{path}: empty mask, expected at least one tumour voxel")
    return mask


def read_seg_labels(path, geometry, shape) -> np.ndarray:
    """DICOM SEG with segments → uint8 `(Z, Y, X)`: 0 background, else the segment's number; none may overlap."""
    frames, z, segment, _ = _seg_frames(path, geometry, shape)
    if segment.max() > 255:
        raise ValueError(f"{path}: segment number {segment.max()}, expected at most 255")
    labels = np.zeros(shape, np.uint8)
    for frame, k, number in zip(frames > 0, z, segment, strict=True):
        if labels[k][frame].any():
            raise ValueError(f"{path}: segments {labels[k][frame].max()} and {number} overlap in slice {k}")
        labels[k][frame] = number
    return labels


# ---------------------------------------------------------------------------------------------------- writing

FIXED_DATE, NOON = "20000101", 12 * 3600  # a fixed clock, so that equal input gives equal bytes


@dataclass(frozen=True)
class Acquisition:
    """How a series was made, as far as its headers shall say; the same for all its files."""

    series_description: str
    manufacturer: str
    field_strength_T: float
    tr_ms: float
    te_ms: float
    flip_deg: float
    bits_stored: int = 16
    study_description: str = "ISPY2_MRI_T0"
    body_part: str = "BREAST"
    patient_position: str = "HFP"  # head first, prone, as for any breast coil
    contrast_agent: str = "gadolinium"
    first_temporal_position: int = 0  # I-SPY2 counts phases from 0, the standard from 1
    time_keyword: str = "AcquisitionTime"  # or TriggerTime, common though the standard keeps it for gated scans

    def __post_init__(self):
        if self.time_keyword not in ("AcquisitionTime", "TriggerTime"):
            raise ValueError(f"time_keyword is {self.time_keyword!r}, expected AcquisitionTime or TriggerTime")


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


def _encoded(element):
    """One element as bytes, Explicit VR Little Endian."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_data_element(buffer, element, ["utf8"])
    return buffer.getvalue()


def _file_bytes(sop_class_uid, sop_instance_uid, elements):
    """A DICOM file from its encoded elements, a dict tag → bytes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class_uid, sop_instance_uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = DicomBytesIO()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, meta)
    return buffer.getvalue() + b"".join(elements[tag] for tag in sorted(elements))


def _common(patient_id, modality, series_description, study_description, manufacturer, study_uid, series_uid):
    """Patient, study, series, frame of reference and equipment: what a DCE series and its SEG share."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = f"{patient_id}^", patient_id  # the caret: a family name only
    dataset.PatientBirthDate, dataset.PatientSex = "", "F"
    dataset.StudyInstanceUID = study_uid or _uid(patient_id, "study")
    dataset.SeriesInstanceUID = series_uid or _uid(patient_id, "series", modality, series_description)
    dataset.FrameOfReferenceUID = _uid(patient_id, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = FIXED_DATE
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = _tm(NOON)
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
    dataset.StudyDescription, dataset.SeriesDescription = study_description, series_description
    dataset.Modality, dataset.Manufacturer = modality, manufacturer
    return dataset


def _describe_image(dataset, array, bits_allocated, bits_stored):
    """Matrix and pixel type."""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = array.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits_allocated, bits_stored, bits_stored - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    dataset.LossyImageCompression = "00"


def _template(series, patient_id, acquisition, study_uid, series_uid):
    """The elements that all files of a DCE series share."""
    a, geometry, axes = acquisition, series.geometry, np.array(series.geometry.direction)
    dataset = _common(
        patient_id, "MR", a.series_description, a.study_description, a.manufacturer, study_uid, series_uid
    )
    dataset.SOPClassUID = MRImageStorage
    dataset.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    dataset.SeriesNumber, dataset.AcquisitionNumber = 1, 1
    dataset.BodyPartExamined, dataset.Laterality = a.body_part, ""
    dataset.PatientPosition, dataset.ContrastBolusAgent = a.patient_position, a.contrast_agent
    dataset.AcquisitionDate, dataset.AcquisitionTime = FIXED_DATE, _tm(NOON)
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "SP", ""
    dataset.MRAcquisitionType, dataset.EchoTrainLength = "3D", 1
    dataset.MagneticFieldStrength, dataset.FlipAngle = _ds([a.field_strength_T, a.flip_deg])
    dataset.RepetitionTime, dataset.EchoTime = _ds([a.tr_ms, a.te_ms])
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _ds(geometry.spacing_mm)[0]
    dataset.PixelSpacing = _ds(geometry.spacing_mm[1:])
    dataset.ImageOrientationPatient = _ds([*axes[:, 2], *axes[:, 1]])
    dataset.NumberOfTemporalPositions = len(series.times_s)
    _describe_image(dataset, series.array, 16, a.bits_stored)
    return dataset


def _own_elements(series, t, z, acquisition, series_uid):
    """The elements in which the files of a series differ."""
    dataset = Dataset()
    dataset.SOPInstanceUID = _uid(series_uid, t, z)
    dataset.InstanceNumber = t * series.array.shape[1] + z + 1
    dataset.TemporalPositionIdentifier = acquisition.first_temporal_position + t
    if acquisition.time_keyword == "TriggerTime" and not np.isnan(series.times_s[t]):
        dataset.TriggerTime = _ds([1000 * series.times_s[t]])[0]
    elif not np.isnan(series.times_s[t]):
        dataset.AcquisitionTime = _tm(NOON + series.times_s[t])
    dataset.ImagePositionPatient = _ds(series.geometry.position_mm((z, 0, 0)))
    pixels = series.array[t, z].astype(series.array.dtype.newbyteorder("<")).tobytes()
    dataset.add(DataElement("PixelData", "OW", pixels))
    return dataset


def _refuse_unstorable(array, bits_stored, patient_id):
    """Stored values must be 16-bit integers that fit in `bits_stored` bits."""
    if array.dtype not in (np.uint16, np.int16):
        raise ValueError(f"{patient_id}: values are {array.dtype}, expected uint16 or int16")
    half = 1 << (bits_stored - 1)
    low, high = (-half, half - 1) if array.dtype == np.int16 else (0, 2 * half - 1)
    if array.min() < low or array.max() > high:
        raise ValueError(
            f"{patient_id}: values from {array.min()} to {array.max()}, expected {low} to {high} "
            f"in {bits_stored} bits"
        )


def write_dce(series, folder, *, patient_id, acquisition, study_uid=None, series_uid=None):
    """Write all phases as one series of single-frame MR images; the folder appears only when complete.

    File names follow from UIDs, so their order is not that of slices or phases, as in real collections.  UIDs
    follow from the patient id and the series description unless given.  Times that are NaN are left out.  Read
    back, slices ascend along the plane's normal, whichever way they did before.
    """
    _refuse_unstorable(series.array, acquisition.bits_stored, patient_id)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: not empty, expected a new folder for {patient_id}")
    template = _template(series, patient_id, acquisition, study_uid, series_uid)
    shared = {element.tag: _encoded(element) for element in template}
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for t, z in np.ndindex(series.array.shape[:2]):
        own = _own_elements(series, t, z, acquisition, template.SeriesInstanceUID)
        elements = shared | {element.tag: _encoded(element) for element in own}
        name = own.SOPInstanceUID.rsplit(".", 1)[1][-16:]
        (partial / f"{name}.dcm").write_bytes(_file_bytes(MRImageStorage, own.SOPInstanceUID, elements))
    os.replace(partial, folder)


def _item(**elements):
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def _code(value, scheme, meaning):
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _segment(number):
    return _item(
        SegmentNumber=number,
        SegmentLabel=f"Lesion {number}",
        SegmentAlgorithmType="MANUAL",
        SegmentedPropertyCategoryCodeSequence=[_code("49755003", "SCT", "Morphologically Altered Structure")],
        SegmentedPropertyTypeCodeSequence=[_code("108369006", "SCT", "Neoplasm")],
    )


def _shared_group(geometry):
    """Functional groups that hold for all frames: spacing and orientation."""
    axes, spacing = np.array(geometry.direction), _ds(geometry.spacing_mm)
    measures = _item(SliceThickness=spacing[0], SpacingBetweenSlices=spacing[0], PixelSpacing=spacing[1:])
    orientation = _item(ImageOrientationPatient=_ds([*axes[:, 2], *axes[:, 1]]))
    return _item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])


def _frame_group(segment, z, geometry):
    """Functional groups of one frame: its place and its segment."""
    return _item(
        FrameContentSequence=[_item(DimensionIndexValues=[segment, z + 1])],
        PlanePositionSequence=[_item(ImagePositionPatient=_ds(geometry.position_mm((z, 0, 0))))],
        SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=segment)],
    )


def _add_frames(dataset, frames, geometry):
    """Describe the frames, a list of (segment number, z); they are indexed by segment and position."""
    uid = _uid(dataset.SeriesInstanceUID, "dimensions")
    dataset.NumberOfFrames = len(frames)
    dataset.SegmentSequence = [_segment(number) for number in sorted({number for number, _ in frames})]
    dataset.SharedFunctionalGroupsSequence = [_shared_group(geometry)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame_group(number, z, geometry) for number, z in frames]
    dataset.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=uid)]
    dataset.DimensionIndexSequence = [
        _item(DimensionOrganizationUID=uid, DimensionIndexPointer=pointer, FunctionalGroupPointer=group)
        for pointer, group in ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113))
    ]


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
    array,
    geometry,
    path,
    *,
    meaning,
    patient_id,
    series_description,
    study_description="ISPY2_MRI_T0",
    manufacturer="her2core",
    study_uid=None,
    series_uid=None,
):
    """Write a uint8 `(Z, Y, X)` array as a DICOM SEG; `meaning` as in `read_seg`.

    "segments": 0 is background, 1 … n are lesions: as many BINARY segments with their non-empty slices.
    "tumour_is_zero": the inverse bit mask of I-SPY2, stored as it stands in one FRACTIONAL segment.
    """
    if array.ndim != 3 or array.dtype != np.uint8:
        raise ValueError(f"{patient_id}: {array.dtype} of shape {array.shape}, expected uint8 (Z, Y, X)")
    if meaning not in MEANINGS:
        raise ValueError(f"meaning is {meaning!r}, expected one of {MEANINGS}")
    dataset = _common(patient_id, "SEG", series_description, study_description, manufacturer, study_uid, series_uid)
    frames = (_add_segments if meaning == "segments" else _add_analysis_mask)(dataset, array)
    _add_frames(dataset, frames, geometry)
    dataset.SOPClassUID = SegmentationStorage
    dataset.SOPInstanceUID = _uid(dataset.SeriesInstanceUID, "SEG")
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SeriesNumber, dataset.InstanceNumber = 500, 1
    dataset.ContentLabel, dataset.ContentDescription, dataset.ContentCreatorName = "TUMOUR", "Tumour mask", ""
    dataset.ManufacturerModelName = dataset.SoftwareVersions = "her2core"
    dataset.DeviceSerialNumber = "0"
    elements = {element.tag: _encoded(element) for element in dataset}
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(_file_bytes(SegmentationStorage, dataset.SOPInstanceUID, elements))
    os.replace(partial, path)
