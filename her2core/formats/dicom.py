"""DICOM in: one folder with one dynamic series → `DceSeries`.

Arrays are `(T, Z, Y, X)`; slices ascend along the normal of the image plane, phases ascend in time.  File
names, file order, frame order and InstanceNumber mean nothing here: a slice's place comes from its geometry and
its phase from TemporalPositionIdentifier, or from the clock where that is missing.
"""

import warnings
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from her2core.formats.dicom_file import MULTI_FRAME, Header, Image, frame_headers, image_of, read_dataset
from her2core.formats.volume import DceSeries, Geometry

_POSITION_TOLERANCE_MM = 0.1  # scanners write positions with one to six decimals
_SPACING_TOLERANCE = 0.05  # of the slice spacing; a missing slice is off by 1.0
_STACK_TOLERANCE = 0.1  # pixels by which a slice may lie beside the others
_DAY_S = 86400


@dataclass(frozen=True)
class _Slice:
    """One frame of one file: where it lies in space and, as far as known, in time."""

    image: Image
    frame: int
    series_uid: str
    plane: tuple  # orientation (6 cosines), PixelSpacing (row, column) in mm, (Y, X)
    position_mm: tuple
    thickness_mm: float | None
    temporal_position: float | None
    n_temporal_positions: float | None
    trigger_s: float | None
    clock_s: float | None
    rescale: tuple  # slope, intercept

    @property
    def name(self):
        return self.image.path.name + (f" (frame {self.frame + 1})" if self.image.n_frames > 1 else "")


def _first(values):
    """The first that is not None, None where all are."""
    return next((value for value in values if value is not None), None)


def _slice(header, image, frame):
    trigger_ms = _first(map(header.number, ("TriggerTime", "NominalCardiacTriggerDelayTime")))
    return _Slice(
        image=image,
        frame=frame,
        series_uid=header.text("SeriesInstanceUID"),
        plane=(header.numbers("ImageOrientationPatient", 6), header.numbers("PixelSpacing", 2), image.shape),
        position_mm=header.numbers("ImagePositionPatient", 3),
        thickness_mm=header.number("SpacingBetweenSlices") or header.number("SliceThickness"),
        temporal_position=_first(map(header.number, ("TemporalPositionIndex", "TemporalPositionIdentifier"))),
        n_temporal_positions=header.number("NumberOfTemporalPositions"),
        trigger_s=None if trigger_ms is None else trigger_ms / 1000,
        clock_s=_first(map(header.clock_s, ("FrameAcquisitionDateTime", "AcquisitionTime", "AcquisitionDateTime"))),
        rescale=(header.number("RescaleSlope", 1.0), header.number("RescaleIntercept", 0.0)),
    )


def _slices_in(path):
    """The slices of one file: one, or as many as an Enhanced MR has frames."""
    dataset = read_dataset(path, with_pixels=False)
    header = Header(path, dataset)
    image = image_of(header, dataset)
    if header.text("SOPClassUID") not in MULTI_FRAME:
        return [_slice(header, image, 0)]
    headers = frame_headers(path, dataset)
    if len(headers) != image.n_frames:
        raise ValueError(f"{path}: functional groups of {len(headers)} frames, expected {image.n_frames}")
    return [_slice(header, image, frame) for frame, header in enumerate(headers)]


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


def series_uid(folder: Path) -> str:
    """SeriesInstanceUID of one file of the folder."""
    path = _files(folder)[0]
    uid = Header(path, read_dataset(path, with_pixels=False)).text("SeriesInstanceUID")
    if uid is None:
        raise ValueError(f"{path}: SeriesInstanceUID is missing")
    return uid


def _slices_of_one_series(folder):
    """The slices of all files of a folder."""
    slices = [s for path in _files(folder) for s in _slices_in(path)]
    first = slices[0]
    for other in slices[1:]:
        if other.series_uid != first.series_uid:
            n = len({s.series_uid for s in slices})
            raise ValueError(
                f"{folder}: files of {n} series ({first.name}: {first.series_uid}, {other.name}: "
                f"{other.series_uid}), expected one"
            )
    return slices


def _refuse_mixed_planes(slices, folder):
    """All slices must share orientation, pixel spacing and matrix."""
    one, names = slices[0], ("orientation", "pixel spacing (mm)", "matrix (rows, columns)")
    for other in slices[1:]:
        for name, a, b in zip(names, one.plane, other.plane, strict=True):
            if a != b and not np.allclose(a, b, rtol=0, atol=1e-3):
                raise ValueError(f"{folder}: mixed {name}: {one.name} has {a}, {other.name} has {b}, expected one")


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
    if abs(steps[worst] - typical) > _SPACING_TOLERANCE * typical:
        raise ValueError(
            f"{folder}: missing slice or uneven spacing: {steps[worst]:.4g} mm between slices {worst} and "
            f"{worst + 1} of {len(heights_mm)}, expected {typical:.4g} mm as elsewhere"
        )
    return round((heights_mm[-1] - heights_mm[0]) / len(steps), 6)  # more decimals are rounding errors


def _stack(slices, folder):
    """→ index z of each slice `(N,)` and the geometry of the volume.

    Slices ascend along the normal (row direction × column direction), whichever way the scanner numbered them.
    """
    orientation, (row_mm, column_mm), _ = slices[0].plane
    axes = _axes(orientation, slices[0].image.path)
    if min(row_mm, column_mm) <= 0:
        raise ValueError(f"{folder}: PixelSpacing is {(row_mm, column_mm)}, expected positive millimetres")
    positions = np.array([s.position_mm for s in slices])  # (N, 3)
    heights = positions @ axes[:, 0]  # (N,)
    order = np.argsort(heights, kind="stable")
    new_slice = np.diff(heights[order], prepend=-np.inf) > _POSITION_TOLERANCE_MM
    z = np.empty(len(slices), int)
    z[order] = np.cumsum(new_slice) - 1
    spacing = _slice_spacing_mm(heights[order][new_slice], slices, folder)
    origin = positions[order[0]]
    beside = np.abs((positions - origin) @ axes[:, 1:]).max(axis=1)  # (N,)
    worst = int(np.argmax(beside))
    if beside[worst] > max(_POSITION_TOLERANCE_MM, _STACK_TOLERANCE * min(row_mm, column_mm)):
        raise ValueError(
            f"{folder}: mixed position: {slices[worst].name} lies {beside[worst]:.4g} mm beside the "
            "stack, expected slices stacked along their normal"
        )
    direction = tuple(map(tuple, axes.tolist()))
    return z, Geometry((float(spacing), row_mm, column_mm), tuple(origin.tolist()), direction)


def _phases_by_position_identifier(values, folder):
    """TemporalPositionIdentifier, from 0 or from 1 and without gap → phase of each slice `(N,)`."""
    found = np.unique(values)
    if found[0] not in (0, 1) or not np.array_equal(found, np.arange(found[0], found[0] + len(found))):
        raise ValueError(
            f"{folder}: TemporalPositionIdentifier takes the values {found.astype(int).tolist()}, expected "
            "consecutive numbers from 0 or 1 (a phase is missing)"
        )
    return (values - found[0]).astype(int)


def _clocks(slices):
    """Each clock that every slice carries, the better first → list of (keyword, seconds from the first `(N,)`)."""
    clocks = []
    if all(s.trigger_s is not None for s in slices):
        clocks.append(("TriggerTime", np.array([s.trigger_s for s in slices])))
    if all(s.clock_s is not None for s in slices):
        times_s = np.array([s.clock_s for s in slices])
        past_midnight = times_s < times_s.max() - _DAY_S / 2
        clocks.append(("AcquisitionTime", times_s + _DAY_S * past_midnight))
    return [(keyword, times_s - times_s.min()) for keyword, times_s in clocks]


def _phases_by_time(keyword, times_s, z, folder):
    """Rank in time at each slice → phase of each slice `(N,)`; a phase must end before the next begins."""
    counts = np.bincount(z)  # (Z,)
    if len(set(counts)) > 1:
        few = int(np.argmin(counts))
        raise ValueError(
            f"{folder}: unequal slices per phase: {counts[few]} slices at place {few}, {counts.max()} elsewhere"
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
    """Phase of each slice of a series `(N,)`: TemporalPositionIdentifier, else TriggerTime, else AcquisitionTime.

    Not InstanceNumber (numbered by slice or by phase, as the exporter liked) and not ContentTime (the time of
    post-processing).  I-SPY2's volume series carry TemporalPositionIdentifier from 0 and a frozen
    AcquisitionTime, so a key that has one value for several slices at the same place is passed over.
    """
    one_slice_per_place = len(slices) == z.max() + 1
    positions = [s.temporal_position for s in slices]
    if None not in positions and (one_slice_per_place or len(set(positions)) > 1):
        return _phases_by_position_identifier(np.array(positions), folder)
    if one_slice_per_place:
        return np.zeros(len(slices), int)
    for keyword, times_s in _clocks(slices):
        if times_s.max() > 0:
            return _phases_by_time(keyword, times_s, z, folder)
    raise ValueError(
        f"{folder}: ambiguous phases: {len(slices)} slices at {z.max() + 1} places, expected one of "
        "TemporalPositionIdentifier, TriggerTime or AcquisitionTime in every file and not the same in all"
    )


def _order_of_series(times_s, where, folders):
    """Numbers of the folders in the order of their times; one must end before the next begins."""
    begins, ends = ([pick(times_s[where == i]) for i in range(len(folders))] for pick in (np.min, np.max))
    order = np.argsort(begins, kind="stable")
    for a, b in pairwise(order):
        if ends[a] >= begins[b]:
            raise ValueError(
                f"ambiguous phases: by AcquisitionTime {folders[b]} begins {ends[a] - begins[b]:g} s before "
                f"{folders[a]} ends, expected one after the other"
            )
    return order


def _phases_of_all(parts, z, folders):
    """Phase of each slice `(N,)`: within a folder as `_phases`, one folder after the other by AcquisitionTime.

    Not by the other keys, which begin anew with every series.
    """
    where = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # (N,) folder of each slice
    phase, first = np.empty(len(z), int), 0
    for i, part in enumerate(parts):
        phase[where == i] = _phases(part, z[where == i], folders[i])
        announced, found = part[0].n_temporal_positions, len(np.unique(phase[where == i]))
        if announced and announced != found:
            said = f"{folders[i]}: NumberOfTemporalPositions is {announced:g}"
            warnings.warn(f"{said}; went on with the {found} phases found", stacklevel=3)
    if len(parts) == 1:
        return phase
    times_s = dict(_clocks(list(chain(*parts)))).get("AcquisitionTime")
    if times_s is None:
        raise ValueError(f"{folders[0]}: AcquisitionTime is missing, expected it to order {len(parts)} series")
    for i in _order_of_series(times_s, where, folders):
        phase[where == i] += first
        first = phase[where == i].max() + 1
    return phase


def _refuse_gaps(slices, phase, z, folder):
    """Every phase must hold every slice exactly once."""
    counts = np.zeros((phase.max() + 1, z.max() + 1), int)  # (T, Z)
    np.add.at(counts, (phase, z), 1)
    if counts.max() > 1:
        t, k = np.argwhere(counts > 1)[0]
        names = [s.name for s, a, b in zip(slices, phase, z, strict=True) if (a, b) == (t, k)]
        raise ValueError(f"{folder}: duplicate slice: {names[:2]} both hold phase {t}, slice {k}")
    if counts.min() < 1:
        raise ValueError(
            f"{folder}: unequal slices per phase: {counts.sum(axis=1).tolist()}, expected {z.max() + 1} in each"
        )


def _assemble(slices, phase, z):
    """→ `(T, Z, Y, X)`; the stored integers where every rescale is the identity, else float32."""
    rescaled = any(s.rescale != (1.0, 0.0) for s in slices)
    images = dict.fromkeys(s.image for s in slices)  # each once, in the order of the slices
    dtype = np.float32 if rescaled else np.result_type(*{image.dtype for image in images}).newbyteorder("=")
    array = np.empty((phase.max() + 1, z.max() + 1, *slices[0].image.shape), dtype)
    stored = chain.from_iterable(image.frames() for image in images)
    for s, pixels, t, k in zip(slices, stored, phase, z, strict=True):
        slope, intercept = s.rescale
        array[t, k] = pixels if s.rescale == (1.0, 0.0) else pixels * np.float32(slope) + np.float32(intercept)
    return array


def _times_s(clocks, phase, folder):
    """Seconds from the first phase `(T,)`; NaN where the clocks are absent or frozen."""
    for keyword, times_s in clocks:
        begins = np.array([times_s[phase == t].min() for t in range(phase.max() + 1)])
        if np.all(np.diff(begins) > 0):
            return tuple((begins - begins[0]).tolist())
        if np.any(np.diff(begins) < 0):
            warnings.warn(
                f"{folder}: {keyword} contradicts the order of the phases ({begins.tolist()} s) and is not used",
                stacklevel=3,
            )
    return (float("nan"),) * (phase.max() + 1)


def read_dce(folder: Path, *more: Path) -> DceSeries:
    """One folder with the files of ONE dynamic series, in any order and under any names → `DceSeries`.

    Files hold one slice each or, as Enhanced MR, many.  Phases as `_phases`, slices as `_stack`.  Values are
    rescaled by slope and intercept: the stored integer type where that changes nothing, else float32.  Hidden
    files are ignored; anything else that does not belong to the series is a `ValueError` that names it, and so
    is a series with holes.

    more: further folders with one series each, where an examination is spread over several (pre and post
    contrast, or one series per phase, as in I-SPY1); all must lie on one grid.
    """
    folders = (folder, *more)
    parts = [_slices_of_one_series(f) for f in folders]
    slices = list(chain(*parts))
    _refuse_mixed_planes(slices, folder)
    z, geometry = _stack(slices, folder)
    phase = _phases_of_all(parts, z, folders)
    _refuse_gaps(slices, phase, z, folder)
    clocks = [clock for clock in _clocks(slices) if not more or clock[0] == "AcquisitionTime"]
    return DceSeries(_assemble(slices, phase, z), geometry, _times_s(clocks, phase, folder))
