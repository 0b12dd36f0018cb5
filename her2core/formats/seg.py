"""DICOM in: one SEG → a mask or labels on the grid of its series."""

from pathlib import Path

import numpy as np
from pydicom.uid import SegmentationStorage

from her2core.formats.dicom_file import Header, decoded, frame_headers, read_dataset
from her2core.formats.volume import Geometry

MEANINGS = ("segments", "tumour_is_zero")  # what the values of a SEG say, see `read_seg`
_LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
_GRID_TOLERANCE = 0.1  # voxels by which a mask may lie beside the grid it is drawn on
_LARGEST_MASK = 0.5  # of the volume; an inverse mask read the wrong way round marks nearly all of it


def _upright(frames, position, orientation, spacing, geometry, path):
    """Turns frames whose rows and columns run along the other axis of the grid, or against it, like the grid.

    → frames `(F, Y, X)`, mm of their first voxels `(F, 3)`, from row to row and from column to column `(F, 3)`.
    """
    down, across = orientation[:, 3:] * spacing[:, :1], orientation[:, :3] * spacing[:, 1:]
    cosines = np.array(geometry.direction).T @ np.stack([orientation[0, 3:], orientation[0, :3]], axis=1)
    turn = np.rint(cosines)[1:]  # (y or x, down or across)
    if not any(np.array_equal(np.abs(turn), known) for known in (np.eye(2), np.eye(2)[::-1])):
        raise ValueError(
            f"{path}: mask on another grid: down its columns and along its rows are the (z, y, x) directions "
            f"{np.round(cosines.T, 3).tolist()}, expected those of y and x"
        )
    if turn[0, 0] == 0:
        frames, down, across = frames.swapaxes(1, 2), across, down
    if turn[0].sum() < 0:
        frames, position, down = frames[:, ::-1], position + down * (frames.shape[1] - 1), -down
    if turn[1].sum() < 0:
        frames, position, across = frames[:, :, ::-1], position + across * (frames.shape[2] - 1), -across
    return frames, position, down, across


def _frame_slices(frames, position, down, across, geometry, path):
    """Slice index of each frame `(F,)`, after checking that three corners of it fall on those of the grid."""
    _, rows, columns = frames.shape
    corners = np.stack([position, position + down * (rows - 1), position + across * (columns - 1)], axis=1)
    index = (corners - geometry.origin_mm) @ np.array(geometry.direction) / geometry.spacing_mm  # (F, 3, zyx)
    z = np.rint(index[:, 0, 0]).astype(int)
    expected = np.zeros_like(index)
    expected[:, :, 0] = z[:, None]
    expected[:, 1, 1], expected[:, 2, 2] = rows - 1, columns - 1
    worst = int(np.argmax(np.abs(index - expected).max(axis=(1, 2))))
    if np.abs(index[worst] - expected[worst]).max() > _GRID_TOLERANCE:
        raise ValueError(
            f"{path}: mask on another grid: the corners of frame {worst} have the indices (z, y, x) "
            f"{np.round(index[worst], 2).tolist()}, expected {expected[worst].tolist()}"
        )
    return z


def _placed(frames, headers, geometry, shape, path):
    """Frames `(F, Y, X)` as they lie on the grid, and the slice index of each `(F,)`."""
    position, orientation, spacing = (
        np.array([header.numbers(keyword, count) for header in headers])
        for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    frames, *place = _upright(frames, position, orientation, spacing, geometry, path)
    if frames.shape[1:] != tuple(shape[1:]):
        raise ValueError(
            f"{path}: mask on another grid: {frames.shape[1:]} rows and columns, expected {tuple(shape[1:])}"
        )
    z = _frame_slices(frames, *place, geometry, path)
    if z.min() < 0 or z.max() >= shape[0]:
        raise ValueError(
            f"{path}: mask on another grid: its slices are {z.min()} to {z.max()}, expected 0 to {shape[0] - 1}"
        )
    return frames, z


def _seg_frames(path, geometry, shape):
    """→ SegmentationType, frames `(F, Y, X)`, slice index `(F,)` and segment number `(F,)`, 0 in a LABELMAP."""
    path = Path(path)
    dataset = read_dataset(path)
    header = Header(path, dataset)
    kind = header.text("SegmentationType")
    if header.text("SOPClassUID") not in (SegmentationStorage, _LABEL_MAP_STORAGE):
        raise ValueError(f"{path}: {header.sop_class()}, expected Segmentation Storage (SEG)")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise ValueError(f"{path}: SegmentationType is {kind}, expected BINARY, FRACTIONAL or LABELMAP")
    headers = frame_headers(path, dataset)
    n_frames = int(header.number("NumberOfFrames", absent=1))
    if not len(headers) == n_frames >= 1:
        raise ValueError(
            f"{path}: {n_frames} frames with the positions of {len(headers)}, expected as many of both"
        )
    frames, z = _placed(decoded(path, n_frames), headers, geometry, shape, path)
    segment = [0 if kind == "LABELMAP" else int(h.numbers("ReferencedSegmentNumber", 1)[0]) for h in headers]
    places = set(zip(z.tolist(), segment, strict=True))
    if len(places) < n_frames:
        raise ValueError(f"{path}: {n_frames} frames at {len(places)} places, expected one frame at each")
    if kind == "LABELMAP" and (background := header.number("PixelPaddingValue")):
        frames = np.where(frames == background, 0, frames)
    return kind, frames, z, np.array(segment)


def read_seg(path: Path, geometry: Geometry, shape: tuple[int, int, int], *, meaning: str) -> np.ndarray:
    """DICOM SEG → bool `(Z, Y, X)` tumour mask on the grid of the DCE series (`geometry`, `shape`).

    meaning: "segments": the union of all segments, frames that are absent being background (the `ROI` of
    Advanced-MRI-Breast-Lesions).  "tumour_is_zero": the `Analysis Mask` of I-SPY2 and ACRIN-6698, an INVERSE
    bit mask that says FRACTIONAL but whose value 0 is tumour and whose bits say why a voxel is none: 1 below the
    enhancement threshold, 2 too few neighbours, 8 or 16 background, 32 outside the box drawn by hand, 64 omitted
    by hand (Analysis-mask-files-description.v20211020).  Taken as `> 0` it would mark 99.7 % of the volume.
    Frames are placed by position and orientation, never by order.  `ValueError` for a mask on another grid,
    without tumour, or with more tumour than a breast can hold.
    """
    if meaning not in MEANINGS:
        raise ValueError(f"meaning is {meaning!r}, expected one of {MEANINGS}")
    kind, frames, z, _ = _seg_frames(path, geometry, shape)
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
    if mask.mean() > _LARGEST_MASK:
        raise ValueError(
            f"{path}: {mask.mean():.1%} of the volume is tumour, read as {meaning!r}, expected at most "
            f"{_LARGEST_MASK:.0%} (an inverse mask?)"
        )
    return mask


def read_seg_labels(path: Path, geometry: Geometry, shape: tuple[int, int, int]) -> np.ndarray:
    """DICOM SEG with segments → uint8 `(Z, Y, X)`: 0 background, else the segment's number; none may overlap."""
    kind, frames, z, segment = _seg_frames(path, geometry, shape)
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
