"""DICOM in: one folder with one dynamic series → `DceSeries`.

Arrays are `(T, Z, Y, X)`; slices ascend along the normal of the image plane, phases ascend in time.  File
names, file order and frame order mean nothing here: a slice's place comes from its geometry and its phase from
TemporalPositionIdentifier, else from a clock, else, with a remark, from InstanceNumber.
"""

import re
import warnings
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from her2core.formats.consistency import PLAUSIBLE_MM, facts, plausible_mm, refuse_contradictions
from her2core.formats.dicom_file import MULTI_FRAME, Image, file_header, frame_headers, image_of, read_dataset
from her2core.formats.volume import DceSeries, Geometry, Source

_POSITION_TOLERANCE_MM = 0.1  # scanners write positions with one to six decimals
_SPACING_TOLERANCE = 0.05  # of the slice spacing; a missing slice is off by 1.0
_STACK_TOLERANCE = 0.1  # pixels by which a slice may lie beside the others
_FARTHEST_MM = 10_000  # from the centre of the scanner
_DAY_S = 86400
_SAME_SCALE = 1.01  # ratio of factors that are rounded in the headers
# the better first; a trigger may also be a delay within each heartbeat, and ContentTime is that of post-processing
_CLOCKS = {
    "AcquisitionTime": ("FrameAcquisitionDateTime", "AcquisitionTime", "AcquisitionDateTime"),
    "TriggerTime": ("TriggerTime", "NominalCardiacTriggerDelayTime"),
}


@dataclass(frozen=True)
class _Slice:
    """One frame of one file.  facts: what all files have to agree on.  told: what tells it from other slices."""

    image: Image
    frame: int
    position_mm: tuple
    facts: dict[str, Any]
    told: dict[str, Any]

    @property
    def name(self):
        return self.image.path.name + (f" (frame {self.frame + 1})" if self.image.n_frames > 1 else "")


def _first(values):
    """The first that is not None, None where all are."""
    return next((value for value in values if value is not None), None)


def _slice(header, image, frame):
    trigger_ms = _first(map(header.number, _CLOCKS["TriggerTime"]))
    return _Slice(
        image=image,
        frame=frame,
        position_mm=header.numbers("ImagePositionPatient", 3),
        facts=facts(header),
        told={
            "phase": _first(map(header.number, ("TemporalPositionIndex", "TemporalPositionIdentifier"))),
            "AcquisitionTime": _first(map(header.clock_s, _CLOCKS["AcquisitionTime"])),
            "TriggerTime": None if trigger_ms is None else trigger_ms / 1000,
            "InstanceNumber": header.number("InstanceNumber"),
            "SOPInstanceUID": header.text("SOPInstanceUID"),
        },
    )


def _slices_in(path):
    """The slices of one file: one, or as many as an Enhanced MR has frames."""
    dataset = read_dataset(path, with_pixels=False)
    header = file_header(path, dataset)
    image = image_of(header, dataset)
    if header.text("SOPClassUID") not in MULTI_FRAME:
        return [_slice(header, image, 0)]
    headers = frame_headers(path, dataset)
    if len(headers) != image.n_frames:
        raise ValueError(f"{path}: functional groups of {len(headers)} frames, expected {image.n_frames}")
    return [_slice(header, image, frame) for frame, header in enumerate(headers)]


def _inside(folder):
    """All in a folder except what is hidden: files, or nothing but folders in the order of their numbers.  A file
    stands for itself."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder, expected one with the files of one DCE series")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder}: no files, expected those of one DCE series")
    odd = next((path.name for path in paths if not path.name.isprintable()), None)
    if odd:
        raise ValueError(f"{folder}: holds {odd!a}, expected file names of printable characters; rename it")
    folders = [path for path in paths if path.is_dir()]
    if 0 < len(folders) < len(paths):
        raise ValueError(f"{folder}: holds the folder {folders[0].name!r}, expected only files of one DCE series")
    return sorted(folders, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)]) or paths


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
        return slices[0].facts["thickness"] or 0.0
    steps = np.diff(heights_mm)
    typical = np.median(steps)
    worst = int(np.argmax(np.abs(steps - typical)))
    if abs(steps[worst] - typical) > _SPACING_TOLERANCE * typical:
        raise ValueError(
            f"{folder}: missing slice or uneven spacing: {steps[worst]:.4g} mm between slices {worst} and "
            f"{worst + 1} of {len(heights_mm)}, expected {typical:.4g} mm as elsewhere; of two stacks, one "
            "for each breast, take one"
        )
    return round((heights_mm[-1] - heights_mm[0]) / len(steps), 6)  # more decimals are rounding errors


def _stack(slices, folder):
    """→ index z of each slice `(N,)`, ascending along row direction × column direction, and the geometry."""
    row_mm, column_mm = slices[0].facts["pixel spacing"]
    axes = _axes(slices[0].facts["orientation"], slices[0].image.path)
    positions = np.array([s.position_mm for s in slices])  # (N, 3)
    if np.abs(positions).max() > _FARTHEST_MM:
        raise ValueError(f"{folder}: a slice at {np.abs(positions).max():g} mm, expected at most {_FARTHEST_MM}")
    heights = positions @ axes[:, 0]  # (N,)
    order = np.argsort(heights, kind="stable")
    new_slice = np.diff(heights[order], prepend=-np.inf) > _POSITION_TOLERANCE_MM
    z = np.empty(len(slices), int)
    z[order] = np.cumsum(new_slice) - 1
    spacing = _slice_spacing_mm(heights[order][new_slice], slices, folder)
    if not plausible_mm([spacing]):
        raise ValueError("{}: slice spacing {:g} mm, expected {} to {} mm".format(folder, spacing, *PLAUSIBLE_MM))
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


def _told(slices, keyword):
    """What each slice tells `(N,)`, None unless all do."""
    values = [s.told[keyword] for s in slices]
    return None if None in values else np.array(values)


def _clocks(slices):
    """Seconds from the first `(N,)` of each clock that every slice carries, by its keyword."""
    clocks = {keyword: times for keyword in _CLOCKS if (times := _told(slices, keyword)) is not None}
    for keyword, times_s in clocks.items():
        past_midnight = (keyword == "AcquisitionTime") * (times_s < times_s.max() - _DAY_S / 2)
        clocks[keyword] = times_s + _DAY_S * past_midnight - times_s[~past_midnight].min()
    return clocks


def _phases_by_time(times_s, z):
    """Rank in time at each place → phase of each slice `(N,)`; None unless a phase ends before the next begins."""
    count = len(z) // (z.max() + 1)
    phase = np.empty(len(z), int)
    phase[np.lexsort((times_s, z))] = np.tile(np.arange(count), z.max() + 1)
    begins, ends = ([pick(times_s[phase == t]) for t in range(count)] for pick in (np.min, np.max))
    return phase if np.all(np.less(ends[:-1], begins[1:])) else None


def _phases_by_number(slices, z):
    """Rank of InstanceNumber → phase of each slice `(N,)`; None unless phases, or places, follow each other."""
    if (numbers := _told(slices, "InstanceNumber")) is None:
        return None
    keys, rank = np.unique([numbers, [s.frame for s in slices]], axis=1, return_inverse=True)
    if keys.shape[1] < len(slices):
        return None
    if (phase := _phases_by_time(rank, z)) is not None:
        return phase
    by_place = z[np.argsort(rank)].reshape(z.max() + 1, -1)
    return rank % by_place.shape[1] if np.all(by_place == by_place[:, :1]) else None


def _phases(slices, z, folder):
    """Phase of each slice of a series `(N,)`: by TemporalPositionIdentifier, else by the first clock in which one
    phase ends before the next begins, else by InstanceNumber, with a remark.

    I-SPY2's volume series carry TemporalPositionIdentifier from 0 and a frozen AcquisitionTime, so a key that has
    one value for several slices at the same place is passed over, and so are numbers that tell other than
    NumberOfTemporalPositions.
    """
    positions, counts = _told(slices, "phase"), np.bincount(z)
    if positions is not None and len(set(positions)) > 1:
        return _phases_by_position_identifier(positions, folder)
    if len(set(counts)) > 1:
        few = int(np.argmin(counts))
        found = f"{counts[few]} slices at place {few}, {counts.max()} elsewhere"
        raise ValueError(f"{folder}: unequal slices per phase: {found}")
    if counts[0] == 1:
        return np.zeros(len(z), int)
    clocks = _clocks(slices)
    phase = _first(_phases_by_time(times_s, z) for times_s in clocks.values())
    if phase is not None:
        return phase
    phase, announced = _phases_by_number(slices, z), slices[0].facts["NumberOfTemporalPositions"]
    if phase is not None and "AcquisitionTime" in clocks:
        in_turn = clocks["AcquisitionTime"][np.lexsort((phase, z))].reshape(len(counts), -1)  # (Z, T)
        phase = phase if np.all(np.diff(in_turn) >= 0) else None
    if phase is None or announced not in (0, None, counts[0]):
        raise ValueError(
            f"{folder}: ambiguous phases: {len(z)} slices at {len(counts)} places, expected them told apart by "
            "TemporalPositionIdentifier, AcquisitionTime, TriggerTime or InstanceNumber; sort the files into one "
            "folder for each phase, numbered in their order, and name the phases in case.json"
        )
    warnings.warn(f"{folder}: only InstanceNumber tells the {counts[0]} phases apart", stacklevel=4)
    return phase


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


def _phases_of_all(parts, z, folders, home):
    """Phase of each slice `(N,)`: within a folder as `_phases`, one folder after the other by AcquisitionTime.

    Not by the other keys, which begin anew with every series; but with a remark as they are numbered in their
    home folder, None where they have none, if no clock tells.
    """
    where = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # (N,) folder of each slice
    phase, first = np.empty(len(z), int), 0
    for i, part in enumerate(parts):
        phase[where == i] = _phases(part, z[where == i], home or folders[i])
    found = [len(np.unique(phase[where == i])) for i in range(len(parts))]
    for part, folder, n in zip(parts, folders, found, strict=True):
        announced = part[0].facts["NumberOfTemporalPositions"]
        if announced and announced not in (n, sum(found)):  # its own, or those of all folders
            said = f"NumberOfTemporalPositions is {announced}; went on with the {n} phases found"
            warnings.warn(f"{home or folder}: {said}", stacklevel=3)
    if len(parts) == 1:
        return phase
    times_s = _clocks(list(chain(*parts))).get("AcquisitionTime")
    if home and (times_s is None or times_s.max() == 0):
        warnings.warn(f"{home}: only their names tell the order of its {len(parts)} folders", stacklevel=3)
        order = range(len(parts))
    elif times_s is None:
        raise ValueError(f"{folders[0]}: AcquisitionTime is missing, expected it to order {len(parts)} series")
    else:
        order = _order_of_series(times_s, where, folders)
    for i in order:
        phase[where == i] += first
        first = phase[where == i].max() + 1
    return phase


def _refuse_gaps(slices, phase, z, folder):
    """Every phase must hold every slice exactly once."""
    counts = np.zeros((phase.max() + 1, z.max() + 1), int)  # (T, Z)
    np.add.at(counts, (phase, z), 1)
    if counts.max() > 1:
        t, k = np.argwhere(counts > 1)[0]
        a, b = [s for s, *place in zip(slices, phase, z, strict=True) if place == [t, k]][:2]
        differ = ", ".join(key for key in a.told if a.told[key] != b.told[key]) or "nothing that tells slices apart"
        raise ValueError(
            f"{folder}: duplicate slice: {[a.name, b.name]} both hold phase {t}, slice {k}, and differ in {differ}"
        )
    if counts.min() < 1:
        found, expected = counts.sum(axis=1).tolist(), z.max() + 1
        raise ValueError(f"{folder}: unequal slices per phase: {found}, expected {expected} in each")


def _refuse_copies(slices, folder):
    """Every file must be an instance of its own."""
    known = {}
    for s in slices:
        other = known.setdefault(s.told["SOPInstanceUID"] or s.image.path, s)
        if other.image.path != s.image.path:
            raise ValueError(
                f"{folder}: {other.name} and {s.name} have one SOPInstanceUID, expected two; export them again"
            )


def _assemble(slices, phase, z, pixels):
    """→ `(T, Z, Y, X)`; stored integers where every rescale is the identity, else float32; zeros without pixels."""
    rescaled = any(s.facts["slope and intercept"] != (1.0, 0.0) for s in slices)
    images = dict.fromkeys(s.image for s in slices)  # each once, in the order of the slices
    dtype = np.float32 if rescaled else np.result_type(*{image.dtype for image in images}).newbyteorder("=")
    shape = phase.max() + 1, z.max() + 1, *slices[0].image.shape
    if not pixels:
        return np.broadcast_to(np.zeros((), dtype), shape)
    array = np.empty(shape, dtype)
    stored = chain.from_iterable(image.frames() for image in images)
    for s, pixels, t, k in zip(slices, stored, phase, z, strict=True):
        slope, intercept = s.facts["slope and intercept"]
        same = (slope, intercept) == (1.0, 0.0)
        array[t, k] = pixels if same else pixels * np.float32(slope) + np.float32(intercept)
    return array


def _times_s(clocks, phase, folder):
    """Seconds from the first phase `(T,)`; NaN where the clocks are absent or frozen."""
    for keyword, times_s in clocks.items():
        begins = np.array([times_s[phase == t].min() for t in range(phase.max() + 1)])
        if np.all(np.diff(begins) > 0):
            return tuple((begins - begins[0]).tolist())
        if np.any(np.diff(begins) < 0):
            warnings.warn(
                f"{folder}: {keyword} contradicts the order of the phases ({begins.tolist()} s) and is not used",
                stacklevel=3,
            )
    return (float("nan"),) * (phase.max() + 1)


def read_dce(folder: Path, *more: Path, pixels: bool = True) -> DceSeries:
    """One folder with the files of ONE dynamic series, in any order and under any names, or its only file →
    `DceSeries`.

    Files hold one slice each or, as Enhanced MR, many.  Phases as `_phases`, slices as `_stack`.  Values are
    rescaled by slope and intercept: the stored integer type where that changes nothing, else float32.  Hidden
    files are ignored; anything else that does not belong to the series is a `ValueError` that names it, and so
    are a series with holes and files that contradict each other as in `consistency`.

    more: further folders with one series each, where an examination is spread over several (pre and post
    contrast, or one series per phase, as in I-SPY1); all must lie on one grid.  A folder of such folders will do.
    pixels: false reads headers alone, and intensities are zeros.
    """
    inside = _inside(Path(folder))
    home = folder if not more and inside[0].is_dir() else None
    folders = inside if home else [folder, *more]
    parts = [[s for path in _inside(Path(f)) for s in _slices_in(path)] for f in folders]
    for part, f in zip(parts, folders, strict=True):
        refuse_contradictions(part, f, ["SeriesInstanceUID"])
    slices = list(chain(*parts))
    refuse_contradictions(slices, folder)
    scales = [s.facts["scale slope"] for s in slices if s.facts["scale slope"]]
    if scales and max(scales) > _SAME_SCALE * min(scales):
        said = f"{min(scales):g} to {max(scales):g} (Philips' Scale Slope)"
        warnings.warn(f"{folder}: phases or slices with scales of their own, {said}, do not compare", stacklevel=2)
    if lossy := _first(s.name for s in slices if s.facts["LossyImageCompression"] == "01"):
        warnings.warn(f"{folder}: {lossy} was once compressed with loss", stacklevel=2)
    z, geometry = _stack(slices, folder)
    phase = _phases_of_all(parts, z, folders, home)
    _refuse_gaps(slices, phase, z, folder)
    _refuse_copies(slices, folder)
    for t in range(phase.max() + 1):
        refuse_contradictions([slices[i] for i in np.flatnonzero(phase == t)], folder, ["slope and intercept"])
    clocks = {k: times_s for k, times_s in _clocks(slices).items() if len(parts) == 1 or k == "AcquisitionTime"}
    patient, study, frame, uids = (
        tuple(dict.fromkeys(s.facts[name] for s in slices if s.facts[name]))
        for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID")
    )
    source = Source(_first(patient), _first(study), _first(frame), uids)
    return DceSeries(_assemble(slices, phase, z, pixels), geometry, _times_s(clocks, phase, folder), source)
