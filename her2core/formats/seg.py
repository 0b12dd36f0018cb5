"""DICOM in: one SEG → a mask or labels on the grid of its series."""

import math
import re
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
from pydicom.uid import SegmentationStorage

from her2core.formats.boundary import reading
from her2core.formats.dicom_file import Header, decoded, digest, frame_headers, read_dataset
from her2core.formats.volume import Geometry, Source, refuse_odd_mask

MEANINGS = ("segments", "tumour", "tumour_is_zero")  # what the values of a SEG say, see `read_seg`
_TUMOUR = re.compile("tumou?r|neoplasm|carcinoma|cancer|lesion|malignan", re.IGNORECASE)  # in a segment's name
_LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
_GRID_TOLERANCE = 0.1  # voxels by which a mask may lie beside the grid it is drawn on


def _placed(frames, headers, geometry, shape, path):
    """Frames `(F, Y, X)` as they lie on the grid, and the slice index of each `(F,)`.

    Frames whose rows and columns run along the other axis of the grid, or against it, are turned like the grid.
    """
    position, orientation, spacing = (
        np.array([header.numbers(keyword, count) for header in headers])
        for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    to_grid = np.array(geometry.direction)  # LPS → (z, y, x)
    down, across = orientation[:, 3:] * spacing[:, :1], orientation[:, :3] * spacing[:, 1:]
    ends = position + down * (frames.shape[1] - 1), position + across * (frames.shape[2] - 1)
    if abs(down[0] @ to_grid[:, 2]) > abs(down[0] @ to_grid[:, 1]):
        frames, ends = frames.swapaxes(1, 2), ends[::-1]
    other = f"{path}: mask on another grid:"
    if frames.shape[1:] != tuple(shape[1:]):
        raise ValueError(f"{other} {frames.shape[1:]} rows and columns, expected {tuple(shape[1:])}")
    corners = np.stack([position, *ends], axis=1)  # (F, 3, xyz)
    index = (corners - geometry.origin_mm) @ to_grid / geometry.spacing_mm
    last = np.subtract(shape[1:], 1)
    against = index[0, 0, 1:] > last / 2  # the first voxel lies at the end of this axis
    expected = np.rint(index[:, :1]).repeat(3, axis=1)
    expected[:, :, 1:] = last * (against ^ np.array([[0, 0], [1, 0], [0, 1]], bool))
    worst = int(np.argmax(np.abs(index - expected).max(axis=(1, 2))))
    if not np.abs(index[worst] - expected[worst]).max() <= _GRID_TOLERANCE:  # so that NaN is none of it
        raise ValueError(
            f"{other} the corners of frame {worst} have the indices (z, y, x) "
            f"{np.round(index[worst], 2).tolist()}, expected {expected[worst].tolist()}"
        )
    z = expected[:, 0, 0].astype(int)
    if z.min() < 0 or z.max() >= shape[0]:
        raise ValueError(f"{other} its slices are {z.min()} to {z.max()}, expected 0 to {shape[0] - 1}")
    return np.flip(frames, tuple(1 + np.flatnonzero(against))), z


def _referenced(dataset):
    """SeriesInstanceUID of each series that a SEG says it was drawn on."""
    groups = [*(dataset.get(f"{which}FunctionalGroupsSequence") or [] for which in ("Shared", "PerFrame"))]
    drawn = [d for group in chain(*groups) for d in group.get("DerivationImageSequence") or []]
    images = [image for d in drawn for image in d.get("SourceImageSequence") or []]
    named = chain(dataset.get("ReferencedSeriesSequence") or [], images)
    return {str(item.SeriesInstanceUID) for item in named if item.get("SeriesInstanceUID")}


def _said(study, frame, series):
    """Where a mask or its images belong, for messages."""
    study, frame = (uid and f"{digest(uid)}…" for uid in (study, frame))
    return (
        f"SHA-256 of study {study} and frame of reference {frame}, series {', '.join(sorted(series)[:3]) or None}"
    )


def _refuse_strange(header, referenced, source):
    """A mask must be of the images' patient, and drawn on them or in their frame of reference, where both say."""
    path, patient, study = header.path, header.patient(), header.text("StudyInstanceUID")
    frame = header.text("FrameOfReferenceUID")
    if patient and source.patient and patient != source.patient:
        raise ValueError(f"{path}: SHA-256 of PatientID is {patient}…, expected {source.patient}… as in the images")
    agree = [mine == theirs for mine, theirs in [(frame, source.frame_of_reference)] if mine and theirs]
    agree += [bool(referenced & set(source.series))] if referenced and source.series else []
    same_study = not (study and source.study) or study == source.study
    if not all([*agree, same_study]):
        found = _said(study, frame, referenced)
        images = _said(source.study, source.frame_of_reference, source.series)
        if not any(agree):
            raise ValueError(
                f"{path}: {found}, expected one of the images', {images}; take the mask of these images"
            )
        warnings.warn(f"{path}: {found}, the images have {images}", stacklevel=4)


def _fractions(frames, header):
    """Frames of a FRACTIONAL SEG, 0 where its segment is not: a probability counts from one half."""
    kind, full = header.text("SegmentationFractionalType"), header.number("MaximumFractionalValue", math.nan)
    if kind not in ("PROBABILITY", "OCCUPANCY") or not frames.max() <= full:
        expected = f"PROBABILITY or OCCUPANCY up to MaximumFractionalValue, {full:g}"
        found = f"SegmentationFractionalType {kind}, values up to {frames.max()}"
        raise ValueError(f"{header.path}: {found}, expected {expected}")
    return np.where(frames >= full / 2, frames, 0) if kind == "PROBABILITY" else frames


def _name(segment):
    """What a segment is called: its label, and the meaning of its code."""
    codes = segment.get("SegmentedPropertyTypeCodeSequence") or []
    return " ".join([segment.get("SegmentLabel", ""), *(code.get("CodeMeaning", "") for code in codes)])


def _seg_frames(path, geometry, shape, source, meaning):
    """→ SegmentationType, frames `(F, Y, X)`, slice index `(F,)`, segment number `(F,)`, 0 in a LABELMAP, and
    {segment number: its name}."""
    path = Path(path)
    dataset = read_dataset(path)
    header = Header(path, dataset)
    kind = header.text("SegmentationType")
    if header.text("SOPClassUID") not in (SegmentationStorage, _LABEL_MAP_STORAGE):
        raise ValueError(f"{path}: {header.sop_class()}, expected Segmentation Storage (SEG)")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise ValueError(f"{path}: SegmentationType is {kind}, expected BINARY, FRACTIONAL or LABELMAP")
    with reading(path, "sequences of segments and source images"):
        described = {int(item.SegmentNumber): _name(item) for item in dataset.get("SegmentSequence") or []}
        referenced = _referenced(dataset)
    _refuse_strange(header, referenced, source or Source())
    headers = frame_headers(path, dataset)
    n_frames = int(header.number("NumberOfFrames", absent=1))
    if not len(headers) == n_frames >= 1:
        raise ValueError(f"{path}: {n_frames} frames with the positions of {len(headers)}, expected one of each")
    frames, z = _placed(decoded(path, n_frames), headers, geometry, shape, path)
    segment = [0 if kind == "LABELMAP" else int(h.numbers("ReferencedSegmentNumber", 1)[0]) for h in headers]
    places = set(zip(z.tolist(), segment, strict=True))
    if len(places) < n_frames:
        raise ValueError(f"{path}: {n_frames} frames at {len(places)} places, expected one frame at each")
    if kind == "LABELMAP" and (background := header.number("PixelPaddingValue")):
        frames = np.where(frames == background, 0, frames)
    if kind == "FRACTIONAL" and meaning != "tumour_is_zero":
        frames = _fractions(frames, header)
    found = set(np.unique(frames).tolist()) - {0} if kind == "LABELMAP" else set(segment)
    if described and not found <= set(described):
        raise ValueError(f"{path}: frames of segments {sorted(found)[:8]}, described are {sorted(described)[:8]}")
    return kind, frames, z, np.array(segment), described


def _of_tumour(kind, frames, segment, described, path):
    """Frames `(F, Y, X)`, true in the segments that are called tumour, beside those of healthy tissue."""
    wanted = [number for number, name in described.items() if _TUMOUR.search(name)]
    if not wanted:
        raise ValueError(f"{path}: segments {described}, expected one that is called tumour, lesion or cancer")
    if kind == "LABELMAP":
        return np.isin(frames, wanted)
    return (frames > 0) & np.isin(segment, wanted)[:, None, None]


def _of_lesion(kind, frames, segment, described, path):
    """Frames `(F, Y, X)`, true in all segments, unless their names say that some are no tumour."""
    drawn = set(np.unique(frames if kind == "LABELMAP" else segment).tolist()) - {0}
    names = [name.strip() for number, name in described.items() if number in drawn]
    is_tumour = {bool(_TUMOUR.search(name)) for name in names}
    if is_tumour == {True, False}:
        said = ", ".join(names)
        warnings.warn(f"{path}: of the segments {said} only those called tumour, lesion or cancer", stacklevel=3)
        return _of_tumour(kind, frames, segment, described, path)
    if is_tumour == {False} and len({re.sub(r"[\W\d_]+", "", name) for name in names}) > 1:
        expected = "one segment, names that differ in a number, or some that are called tumour, lesion or cancer"
        raise ValueError(f"{path}: segments {', '.join(names)}, expected {expected}")
    return frames > 0


def read_seg(
    path: Path, geometry: Geometry, shape: tuple[int, int, int], *, meaning: str, source: Source | None = None
) -> np.ndarray:
    """DICOM SEG → bool `(Z, Y, X)` tumour mask on the grid of the DCE series (`geometry`, `shape`).

    meaning: "segments": the union of all segments, frames that are absent being background (the `ROI` of
    Advanced-MRI-Breast-Lesions), or, with a warning, of those called tumour, lesion or cancer where others are not;
    a probability counts from one half.  "tumour": only the segments that are called so (the AI segmentations of
    Duke, beside breast and fibroglandular tissue).  "tumour_is_zero": the
    `Analysis Mask` of I-SPY2 and ACRIN-6698, an INVERSE bit mask that says FRACTIONAL but whose value 0 is tumour
    and whose bits say why a voxel is none: 1 below the enhancement threshold, 2 too few neighbours, 8 or 16
    background, 32 outside the box drawn by hand, 64 omitted by hand (Analysis-mask-files-description.v20211020).
    Taken as `> 0` it would mark 99.7 % of the volume.
    Frames are placed by position and orientation.  `ValueError` for a mask on another grid, without tumour, with
    more of it than a breast can hold, or of another patient or examination than `source`, whose images it is for; a
    warning where it was drawn on other images in the same frame of reference.
    """
    if meaning not in MEANINGS:
        raise ValueError(f"meaning is {meaning!r}, expected one of {MEANINGS}")
    kind, frames, z, segment, described = _seg_frames(path, geometry, shape, source, meaning)
    mask = np.zeros(shape, bool)
    if meaning != "tumour_is_zero":
        select = _of_lesion if meaning == "segments" else _of_tumour
        np.logical_or.at(mask, z, select(kind, frames, segment, described, path))
    elif kind == "FRACTIONAL" and np.array_equal(np.sort(z), np.arange(shape[0])):
        mask[z] = frames == 0
    else:
        raise ValueError(
            f"{path}: {kind} with {len(z)} frames for {len(set(z.tolist()))} slices, expected a FRACTIONAL "
            f"analysis mask with one frame for each of {shape[0]} slices"
        )
    refuse_odd_mask(mask, path, f", read as {meaning!r}")
    return mask


def read_seg_labels(
    path: Path, geometry: Geometry, shape: tuple[int, int, int], *, source: Source | None = None
) -> np.ndarray:
    """DICOM SEG with segments → uint8 `(Z, Y, X)`: 0 background, else the segment's number; none may overlap."""
    kind, frames, z, segment, _ = _seg_frames(path, geometry, shape, source, "segments")
    largest = int(frames.max() if kind == "LABELMAP" else segment.max())
    if largest > 255:
        raise ValueError(f"{path}: segment number {largest}, expected at most 255")
    labels = np.zeros(shape, np.uint8)
    for frame, k, number in zip(frames, z, segment, strict=True):
        drawn = frame > 0
        if labels[k][drawn].any():
            raise ValueError(f"{path}: segments {labels[k][drawn].max()} and {number} overlap in slice {k}")
        labels[k][drawn] = frame[drawn] if kind == "LABELMAP" else number
    return labels
