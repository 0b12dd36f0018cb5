"""One DICOM file: the elements that may be read of it, and its pixels.

Only the elements of `_ATTRIBUTES` are ever read, so nothing else that a file says about a patient can leave this
module, in a value or in an error message.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataelem import convert_raw_data_element
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedMRImageStorage,
)

_FUNCTIONAL_GROUPS = (  # of the frames of a multi-frame file: where their elements may stand
    *("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "FrameContentSequence"),
    *("PixelValueTransformationSequence", "CardiacSynchronizationSequence", "SegmentIdentificationSequence"),
    *("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence"),
)
_ATTRIBUTES = (  # all that is ever read of a file, beside the transfer syntax and the character set
    *("SOPClassUID", "SeriesInstanceUID", "SegmentationType"),
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "RescaleSlope", "RescaleIntercept"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness"),
    *("SpacingBetweenSlices", "TemporalPositionIdentifier", "TemporalPositionIndex", "NumberOfTemporalPositions"),
    *("TriggerTime", "NominalCardiacTriggerDelayTime"),
    *("AcquisitionTime", "AcquisitionDateTime", "FrameAcquisitionDateTime"),  # the time of day only
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", *_FUNCTIONAL_GROUPS),
    "ReferencedSegmentNumber",
)
MULTI_FRAME = (EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
_DEFERRED_BYTES = 1 << 16  # longer elements, which are pixels, are left in the file until their place is known
_TAGS = {keyword: Tag(keyword) for keyword in _ATTRIBUTES}


def read_dataset(path: Path, with_pixels: bool = True) -> Dataset:
    """The allowed elements of a file, else ValueError; without pixels, long ones stay there until asked for."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected DICOM")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes), expected DICOM")
    try:
        return dcmread(path, None if with_pixels else _DEFERRED_BYTES, specific_tags=list(_TAGS.values()))
    except InvalidDicomError as error:
        raise ValueError(f"{path}: not a DICOM file, expected only DICOM here") from error
    except Exception as error:  # pydicom lets errors of many kinds through on a damaged file
        raise ValueError(f"{path}: not a readable DICOM file ({error})") from error


@lru_cache(maxsize=4096)  # a series repeats most of its elements in every file
def _text(raw):
    """An encoded element as text; None where blank."""
    value = convert_raw_data_element(raw).value
    return None if value is None else str(value).strip() or None


@lru_cache(maxsize=4096)
def _floats(raw):
    """An encoded element as a tuple of finite floats; None where blank."""
    value = convert_raw_data_element(raw).value
    if value is None or value == "":
        return None
    numbers = tuple(map(float, value if isinstance(value, MultiValue) else [value]))
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{numbers}, expected finite number(s)")
    return numbers


class Header:
    """The elements of one slice: those of its frame's functional groups, then those of its file."""

    def __init__(self, path: Path, *places: Dataset):
        self.path, self.places = path, places  # datasets, searched in this order

    def _find(self, keyword, convert):
        """The value of a keyword, None where absent or blank; `ValueError` where malformed."""
        tag = _TAGS[keyword]
        for place in self.places:
            try:
                element = place.get_item(tag, keep_deferred=True)
                blank = element is None or element.value is None
                value = None if blank else convert(element._replace(value_tell=0))  # equal wherever it stands
            except Exception as error:  # conversion happens here, and its errors name no file
                raise ValueError(f"{self.path}: {keyword} is malformed ({error})") from error
            if value is not None:
                return value
        return None

    def text(self, keyword: str) -> str | None:
        """The value as text; None where absent or blank."""
        return self._find(keyword, _text)

    def numbers(self, keyword: str, count: int) -> tuple[float, ...]:
        """Exactly `count` finite numbers; `ValueError` where there are others or none."""
        numbers = self._find(keyword, _floats)
        if numbers is None or len(numbers) != count:
            found = "missing" if numbers is None else f"{numbers}"
            raise ValueError(f"{self.path}: {keyword} is {found}, expected {count} finite number(s)")
        return numbers

    def number(self, keyword: str, absent: float | None = None) -> float | None:
        """One finite number; `absent` where the element is absent or blank."""
        return absent if self._find(keyword, _floats) is None else self.numbers(keyword, 1)[0]

    def clock_s(self, keyword: str) -> float | None:
        """Time of day in seconds, of a DICOM time `HHMMSS.f` or date and time; None where it cannot be read."""
        parts = re.fullmatch(r"(?:\d{8})?(\d\d):?(\d\d):?(\d\d(?:\.\d*)?)(?:[+-]\d{4})?", self.text(keyword) or "")
        return None if parts is None else 3600 * int(parts[1]) + 60 * int(parts[2]) + float(parts[3])

    def sop_class(self) -> str:
        """The name of the kind of file, for messages."""
        return UID(self.text("SOPClassUID") or "").name or "of no SOP class"


def _items(dataset, keyword, path):
    """The items of a sequence, none where it is absent."""
    try:
        return list(dataset.get(keyword) or [])
    except Exception as error:  # a sequence is parsed when it is asked for
        raise ValueError(f"{path}: {keyword} is malformed ({error})") from error


def _groups(frame, path):
    """The functional groups that one frame, or all frames together, have."""
    found = (_items(frame, name, path) for name in _FUNCTIONAL_GROUPS)
    return [items[0] for items in found if items]


def frame_headers(path: Path, dataset: Dataset) -> list[Header]:
    """The header of each frame of a multi-frame file: its own functional groups come before those of all frames."""
    shared = _items(dataset, "SharedFunctionalGroupsSequence", path)[:1]
    shared = list(chain.from_iterable(_groups(item, path) for item in shared))
    frames = _items(dataset, "PerFrameFunctionalGroupsSequence", path)
    return [Header(path, *_groups(frame, path), *shared, dataset) for frame in frames]


@dataclass(frozen=True)
class Image:
    """Where a file holds its pixels; they are read once their place in the volume is known."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, int]  # (Y, X)
    n_frames: int
    unused_bits: int  # above BitsStored, which old files fill with overlays
    offset: int | None  # bytes before the first pixel; None where pydicom must decode them

    def frames(self) -> Iterator[np.ndarray]:
        """Yields the stored values of each frame `(Y, X)`."""
        for pixels in self._native() if self.offset is not None else decoded(self.path, self.n_frames):
            pixels = pixels.astype(self.dtype, copy=False)
            yield (pixels << self.unused_bits) >> self.unused_bits if self.unused_bits else pixels

    def _native(self):
        count = math.prod(self.shape)
        for i in range(self.n_frames):
            offset = self.offset + i * count * self.dtype.itemsize
            yield np.fromfile(self.path, self.dtype, count, offset=offset).reshape(self.shape)


def decoded(path: Path, n_frames: int) -> np.ndarray:
    """The frames of a file `(F, Y, X)` by way of pydicom's decoders."""
    try:
        pixels = read_dataset(path).pixel_array
    except Exception as error:  # each decoder has its own errors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: PixelData cannot be decoded ({reason})") from error
    frames = pixels.reshape(-1, *pixels.shape[-2:])
    if len(frames) != n_frames:
        raise ValueError(f"{path}: {len(frames)} frames in PixelData, expected {n_frames}")
    return frames


def _refuse_other_than_grey_slices(header, dataset, n_frames):
    path = header.path
    if n_frames > 1 and header.text("SOPClassUID") not in MULTI_FRAME:
        raise ValueError(
            f"{path}: multi-frame ({header.sop_class()}, {n_frames} frames), expected Enhanced MR or one slice "
            "per file"
        )
    if "PixelData" not in dataset:
        raise ValueError(
            f"{path}: no PixelData ({header.sop_class()}), expected a complete image, not cut off before it"
        )
    kind = header.text("PhotometricInterpretation") or "MONOCHROME2"
    if header.number("SamplesPerPixel", absent=1) != 1 or not kind.startswith("MONOCHROME"):
        raise ValueError(f"{path}: a colour image ({kind}), expected one grey value per pixel")


def _offset(dataset, path, expected, frame):
    """Where native pixels begin in the file, which must hold `expected` bytes of them; None for other syntaxes."""
    if dataset.file_meta.get("TransferSyntaxUID") not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        return None
    pixels = dataset.get_item(_TAGS["PixelData"], keep_deferred=True)
    found = min(pixels.length, path.stat().st_size - pixels.value_tell)
    if found < expected:
        raise ValueError(f"{path}: truncated, PixelData holds {found} bytes, expected {expected}")
    if found >= expected + frame:  # anything shorter than a frame is padding
        raise ValueError(f"{path}: too long, PixelData holds {found} bytes, expected {expected}")
    return pixels.value_tell


def image_of(header: Header, dataset: Dataset) -> Image:
    """Matrix, pixel type and place of the pixels of a file, after checking that they are all there."""
    path, n_frames = header.path, int(header.number("NumberOfFrames", absent=1))
    _refuse_other_than_grey_slices(header, dataset, n_frames)
    keywords = ("Rows", "Columns", "BitsAllocated", "PixelRepresentation")
    rows, columns, bits, signed = (int(header.numbers(keyword, 1)[0]) for keyword in keywords)
    stored = int(header.number("BitsStored", absent=bits))
    if bits not in (8, 16, 32) or not 0 < stored <= bits or min(rows, columns, n_frames) < 1:
        raise ValueError(
            f"{path}: {n_frames} frame(s) of {rows} × {columns} pixels with {stored} of {bits} bits stored, "
            "expected at least one of each, and 8, 16 or 32 bits"
        )
    dtype = np.dtype(f"<{'i' if signed else 'u'}{bits // 8}")
    frame = rows * columns * dtype.itemsize
    offset = _offset(dataset, path, n_frames * frame, frame)
    return Image(path, dtype, (rows, columns), n_frames, bits - stored, offset)
