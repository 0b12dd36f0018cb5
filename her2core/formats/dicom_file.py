"""One DICOM file: the elements that may be read of it, and its pixels.

Only the elements that dicom_file.yaml names are ever read, so nothing else that a file says about a patient can
leave this module, in a value or in an error message; of a patient's name and id only a digest does.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
from pydicom import Dataset, filereader, uid
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import UID

from her2core.config import read_yaml
from her2core.formats.boundary import reading

_ALLOWED = read_yaml(Path(__file__).with_suffix(".yaml"))  # what is read, by keyword
_PHILIPS = {name: int(Tag(text)) for name, text in _ALLOWED.pop("philips").items()}
_TAGS = {keyword: int(Tag(keyword)) for keywords in _ALLOWED.values() for keyword in keywords}
_READ = [*_TAGS.values(), *_PHILIPS.values()]
_GROUP_TAGS = {_TAGS[keyword] for keyword in _ALLOWED["functional_groups"]}
_SHARED_TAGS = [*(_TAGS[keyword] for keyword in (*_ALLOWED["patient"], *_ALLOWED["series"])), *_PHILIPS.values()]
MULTI_FRAME = (uid.EnhancedMRImageStorage, uid.LegacyConvertedEnhancedMRImageStorage)
_DEFERRED_BYTES = 1 << 16  # longer elements, which are pixels, are left in the file until their place is known
_MOST_DECODED, _MOST_INFLATED = 1 << 31, 1 << 26  # bytes; few in a file can claim to be many
_LARGEST_MATRIX = 4096  # rows or columns; breast MRI has up to 1024
_NATIVE = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
_LOSSY = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless)
_BINARY = ("US", "SS", "UL", "SL", "FL", "FD")
_AFTER_PIXELS = {b"\xfa\xff", b"\xfc\xff", b"\xe1\x7f"}  # groups: digital signatures, padding, makers' own
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of JPEG, and of JPEG-LS
_DECODERS = "install python-gdcm (HTJ2K: pylibjpeg-openjpeg) where a plugin is missing, else export it uncompressed"
_CLOCK = re.compile(r"(?:\d{8})?([01]\d|2[0-3]):?([0-5]\d):?([0-5]\d(?:\.\d*)?)(?:[+-]\d{4})?")


def _inflated(packed):
    """A deflated file, open, and what stops at a tag that does not ascend: few bytes could become GB, or millions
    of empty elements."""
    content, last = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _MOST_INFLATED), -1
    if len(content) == _MOST_INFLATED:
        raise ValueError(f"deflated, and longer than {_MOST_INFLATED >> 20} MiB when inflated")

    def check(tag, vr, length):
        nonlocal last
        if tag <= last:
            raise ValueError(f"element {tag} after {last}, expected ascending ones")
        last = tag

    return BytesIO(content), check


def _parsed(file, deferred_bytes):
    """The dataset of an open file as of `dcmread`, which takes twice as long and inflates without limit."""
    filereader.read_preamble(file, False)
    meta = filereader.read_dataset(file, False, True, None, lambda tag, *_: tag >> 16 != 2, _DEFERRED_BYTES)
    syntax, check = meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian), None
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        deferred_bytes, (file, check) = None, _inflated(file.read())
    implicit, little = syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian
    dataset = filereader.read_dataset(file, implicit, little, None, check, deferred_bytes, specific_tags=_READ)
    vars(dataset).update(file_meta=meta)
    return dataset


def read_dataset(path: Path, with_pixels: bool = True) -> Dataset:
    """The allowed elements of a file, else ValueError; without pixels, long ones stay there until asked for."""
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file, or a pipe, device or broken link"
        raise ValueError(f"{path}: {kind}, expected a DICOM file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes), expected DICOM")
    with reading(path, "a readable DICOM file"):
        try:
            with path.open("rb") as file:
                head = BytesIO(file.read(_DEFERRED_BYTES))  # reading element by element is faster from memory
                dataset = None if with_pixels else _parsed(head, _DEFERRED_BYTES)
                if dataset is None or _TAGS["PixelData"] not in dataset:
                    file.seek(0)  # from memory also, as a wrong length in a file would be allocated
                    file = BytesIO(file.read()) if with_pixels else file
                    dataset = _parsed(file, None if with_pixels else _DEFERRED_BYTES)
        except InvalidDicomError as error:
            raise ValueError("not a DICOM file") from error
        vars(dataset).update(fileobj_type=open, filename=str(path), timestamp=None)  # where the deferred ones lie
        return dataset


@lru_cache(maxsize=4096)  # a series repeats most of its elements in every file
def _text(raw):
    """An encoded element as text; None where blank."""
    value = convert_raw_data_element(raw).value
    return None if value is None else str(value).strip() or None


@lru_cache(maxsize=4096)
def _floats(raw):
    """An encoded element as a tuple of finite floats; None where blank."""
    if raw.VR in _BINARY and dictionary_VR(raw.tag) in ("DS", "IS"):
        raise ValueError(f"stored as {raw.VR}, expected {dictionary_VR(raw.tag)}")
    value = convert_raw_data_element(raw).value
    if value is None or value == "":
        return None
    values = value if isinstance(value, MultiValue) else [value]
    numbers = tuple(map(float, values))
    if not all(map(math.isfinite, numbers)) or "_" in "".join(map(str, values)):  # Python's 1_0
        raise ValueError(f"{tuple(map(str, values))}, expected finite number(s)")
    return numbers


def digest(text: str) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of what may say who somebody is, or when they came."""
    return sha256(text.encode()).hexdigest()[:12]


class Header:
    """The elements of one slice: those of its frame's functional groups, then those of its file.

    Two are equal where all that they say is, but for what tells the slices of a series apart: place, time, number.
    """

    def __init__(self, path: Path, *places: Dataset):
        self.path = path  # places are searched in this order; pydicom's own tags are slow keys
        self.places = [{int(tag): element for tag, element in place.items()} for place in places]

    @cached_property
    def _shared(self):
        found = [place.get(tag) for place in self.places for tag in _SHARED_TAGS]
        return tuple([(*e[:4], e.is_little_endian) if type(e) is RawDataElement else repr(e) for e in found])

    def __eq__(self, other):
        return self._shared == other._shared

    def __hash__(self):
        return hash(self._shared)

    def _find(self, keyword, convert):
        """The value of a keyword, None where absent or blank; `ValueError` where malformed."""
        tag = _TAGS[keyword]
        for place in self.places:
            element = place.get(tag)
            if element is None or element.value is None and not element.length:
                continue
            try:
                value = convert(element._replace(value_tell=0))  # equal wherever it stands
            except Exception as error:  # conversion happens here, and its errors name no file
                raise ValueError(f"{self.path}: {keyword} is malformed ({error})") from error
            if value is not None:
                return value
        return None

    def text(self, keyword: str) -> str | None:
        """The value as text; None where absent or blank."""
        if keyword in _ALLOWED["patient"]:
            raise KeyError(keyword)
        return self._find(keyword, _text)

    def patient(self, keyword: str = "PatientID") -> str | None:
        """`digest` of PatientID or PatientName; None where blank."""
        text = self._find(keyword, _text)
        return text and digest(text)

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

    def whole(self, keyword: str, absent: int | None = None) -> int:
        """One whole number; `absent` where the element is absent or blank, `ValueError` where that is None."""
        number = self.numbers(keyword, 1)[0] if absent is None else self.number(keyword, absent)
        if number % 1:
            raise ValueError(f"{self.path}: {keyword} is {number:g}, expected a whole number")
        return int(number)

    def clock_s(self, keyword: str) -> float | None:
        """Time of day in seconds, of a DICOM time `HHMMSS.f` or date and time; None where it cannot be read."""
        parts = _CLOCK.fullmatch(self.text(keyword) or "")
        return None if parts is None else 3600 * int(parts[1]) + 60 * int(parts[2]) + float(parts[3])

    def scale_slope(self) -> float | None:
        """Philips' private factor from floating-point to stored values; None where the file has none."""
        found = [self.places[-1].get(_PHILIPS[name]) for name in ("creator", "scale_slope")]
        creator, scale = (element and element.value for element in found)
        if not (isinstance(creator, bytes) and creator.startswith(b"Philips MR Imaging DD 001")):
            return None
        if not (isinstance(scale, bytes) and len(scale) == 4):
            return None
        (value,) = struct.unpack("<f", scale)
        return value if math.isfinite(value) and value > 0 else None

    def sop_class(self) -> str:
        """The name of the kind of file, for messages."""
        return UID(self.text("SOPClassUID") or "").name or "of no SOP class"


def _items(dataset, keyword, path):
    """The items of a sequence, none where it is absent."""
    with reading(path, f"{keyword} that can be parsed"):  # which happens when it is asked for
        return list(dataset.get(keyword) or [])


def _groups(place, path):
    """The functional groups that one frame, or all frames together, have; a direction stands inside its group."""
    found = list(chain.from_iterable(_items(place, name, path)[:1] for name in _ALLOWED["functional_groups"]))
    nested = (_items(group, "DiffusionGradientDirectionSequence", path)[:1] for group in found)
    return found + list(chain.from_iterable(nested))


def file_header(path: Path, dataset: Dataset) -> Header:
    """The header of a file of one slice, whose groups, where it has some, come last."""
    header = Header(path, dataset)  # first, as pydicom converts other elements when it parses a sequence
    if not _GROUP_TAGS.isdisjoint(header.places[0]):
        header.places += Header(path, *_groups(dataset, path)).places
    return header


def frame_headers(path: Path, dataset: Dataset) -> list[Header]:
    """The header of each frame of a multi-frame file: its own functional groups come before those of all frames."""
    shared = _items(dataset, "SharedFunctionalGroupsSequence", path)[:1]
    shared = [group for item in shared for group in _groups(item, path)]
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


def _coded_shape(stream):
    """(rows, columns) as a stream of JPEG, JPEG-LS or JPEG 2000 says; None where it does not."""
    at = stream.find(b"\xff\x4f\xff\x51", 0, 1024)  # of JPEG 2000
    if at >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", stream, at + 8)
        return bottom - top, right - left
    at = 2
    while len(stream) >= at + 9 and stream[at + 1] not in _FRAME_HEADERS:
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return struct.unpack_from(">2H", stream, at + 5) if len(stream) >= at + 9 else None


def _refuse_other_shapes(dataset, n_frames):
    """A decoder believes the stream, whatever the header says, and may take all memory or end the process."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and syntax != uid.RLELossless:
        for stream in generate_frames(dataset.PixelData, number_of_frames=n_frames):
            if (found := _coded_shape(stream)) != (dataset.Rows, dataset.Columns):
                raise ValueError(f"a compressed frame of {found} rows and columns")


def decoded(path: Path, n_frames: int) -> np.ndarray:
    """The frames of a file `(F, Y, X)` by way of pydicom's decoders."""
    dataset = read_dataset(path)
    pixels = dataset.get_item(_TAGS["PixelData"], keep_deferred=True) if _TAGS["PixelData"] in dataset else None
    if dataset.file_meta.get("TransferSyntaxUID") in _NATIVE and type(pixels) is RawDataElement:
        _refuse_rest(pixels, path)
    with reading(f"{path}: PixelData cannot be decoded", "pixels as the header describes them", _DECODERS):
        _refuse_other_shapes(dataset, n_frames)
        pixels = dataset.pixel_array
    frames = pixels.reshape(-1, *pixels.shape[-2:])
    if len(frames) != n_frames:
        raise ValueError(f"{path}: {len(frames)} frames in PixelData, expected {n_frames}")
    return frames


@lru_cache(maxsize=256)  # of a series all are equal
def _pixel_format(header):
    """→ data type, matrix, number of frames and unused bits, where this module can read such pixels."""
    path, n_frames = header.path, header.whole("NumberOfFrames", absent=1)
    kind = header.text("PhotometricInterpretation") or "no PhotometricInterpretation"
    if n_frames > 1 and header.text("SOPClassUID") not in MULTI_FRAME:
        found = f"multi-frame ({header.sop_class()}, {n_frames} frames)"
        raise ValueError(f"{path}: {found}, expected Enhanced MR or one slice per file")
    if header.whole("SamplesPerPixel", absent=1) != 1 or not kind.startswith("MONOCHROME"):
        raise ValueError(f"{path}: a colour image ({kind}), expected MONOCHROME2, one grey value per pixel")
    rows, columns, bits, signed = map(header.whole, ("Rows", "Columns", "BitsAllocated", "PixelRepresentation"))
    stored = header.whole("BitsStored", absent=bits)
    high = header.whole("HighBit", absent=stored - 1)
    if bits not in (8, 16, 32) or not 0 < stored <= bits or high != stored - 1 or signed not in (0, 1):
        found = f"{stored} of {bits} bits stored, HighBit {high}, PixelRepresentation {signed}"
        expected = "8, 16 or 32 bits, HighBit one less than those stored, and 0 or 1; export it again"
        raise ValueError(f"{path}: {found}, expected {expected}")
    if min(rows, columns, n_frames) < 1 or max(rows, columns) > _LARGEST_MATRIX:
        expected = f"at least one of each, and at most {_LARGEST_MATRIX} rows and columns"
        raise ValueError(f"{path}: {n_frames} frame(s) of {rows} × {columns} pixels, expected {expected}")
    return np.dtype(f"<{'i' if signed else 'u'}{bits // 8}"), (rows, columns), n_frames, bits - stored


def _refuse_rest(pixels, path):
    """Where bytes were inserted into native pixels, or lost, their end is not the element's."""
    end, size = pixels.value_tell + pixels.length, path.stat().st_size
    if end > size:
        raise ValueError(f"{path}: truncated, PixelData lacks {end - size} bytes")
    if end < size:
        with path.open("rb") as file:
            file.seek(end)
            if (group := file.read(2)) not in _AFTER_PIXELS:
                raise ValueError(f"{path}: bytes {group.hex()} … after PixelData, expected the end of the file")


def _offset(dataset, path, expected, frame):
    """Where native pixels begin in the file, which must hold `expected` bytes of them; None for other syntaxes."""
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    if syntax in _LOSSY:
        raise ValueError(f"{path}: {syntax.name}, expected intensities as measured; export it without loss")
    if syntax not in _NATIVE:
        if expected > _MOST_DECODED:
            raise ValueError(f"{path}: {expected} bytes when decoded, expected at most {_MOST_DECODED} in a file")
        return None
    pixels = dataset.get_item(_TAGS["PixelData"], keep_deferred=True)
    found = min(pixels.length, path.stat().st_size - pixels.value_tell)
    if found < expected:
        raise ValueError(f"{path}: truncated, PixelData holds {found} bytes, expected {expected}")
    if found >= expected + frame:  # anything shorter than a frame is padding
        raise ValueError(f"{path}: too long, PixelData holds {found} bytes, expected {expected}")
    _refuse_rest(pixels, path)
    return pixels.value_tell


def image_of(header: Header, dataset: Dataset) -> Image:
    """Matrix, pixel type and place of the pixels of a file, after checking that they are all there."""
    if _TAGS["PixelData"] not in header.places[0]:
        raise ValueError(f"{header.path}: no PixelData ({header.sop_class()}), expected a complete image")
    image = Image(header.path, *_pixel_format(header), None)
    frame = math.prod(image.shape) * image.dtype.itemsize
    return replace(image, offset=_offset(dataset, image.path, image.n_frames * frame, frame))
