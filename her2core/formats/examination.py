"""One examination, in whichever form its files are → three phases and the mask of its lesion on one grid.

Images: a folder with one DICOM series, or below it a folder for each phase, or a file with all; NIfTI, a file for
each phase, whose name ends in its number, or one with all.  Mask: a SEG, a NIfTI of 0 and 1, or a box.  What files
cannot say, a table or case.json tells: see `Told`."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from her2core.formats import nifti
from her2core.formats.dicom import read_dce
from her2core.formats.seg import read_seg
from her2core.formats.volume import PHASE_COLUMNS, Geometry, Phases, Source, nearest_phases

_NIFTI = (".nii", ".nii.gz", ".hdr")
_NAMES = ("pre", "early", "late")
_SAME_S = 60.0  # between a time that is told and that of the files: a phase lasts about a minute
_ENDS = r"(\.(dcm|ima|nii|gz|hdr|img)){0,2}"
# names that say nobody's, and what tells other names apart
_WORDS = "dce|mask|seg|lesion|phase|images?|img|im|i|mr|slice"
_HARMLESS = re.compile(rf"({_WORDS})?[-_]?\d{{0,6}}{_ENDS}", re.IGNORECASE)
_TAIL = re.compile(rf"(_(mask|aqc|acq|dce))?(_\d{{1,4}})?{_ENDS}$", re.IGNORECASE)


@dataclass(frozen=True)
class Told:
    """What is told of an examination beside its files, by case.json or a line of a table.

    pre, post_early, post_late: acquisition indices of the phases, from 0, or the numbers of NIfTI files; they
    choose the phases where times in the files are absent or wrong.  slice_thick, xy_spacing: mm, as in
    BreastDCEDL's table, for NIfTI with headers like its own.  early_s, late_s: seconds from pre to the other two,
    where the files do not say.
    box: first and last voxel (z, y, x, z, y, x) of the lesion, from 0, in place of a mask."""

    pre: int | None = None
    post_early: int | None = None
    post_late: int | None = None
    slice_thick: float | None = None
    xy_spacing: float | None = None
    early_s: float | None = None
    late_s: float | None = None
    box: tuple[int, ...] | None = None

    def __post_init__(self):
        named = [getattr(self, c) for c in PHASE_COLUMNS]
        if self.phases is None and named != [None] * 3:
            raise ValueError(f"phases {named}, expected {', '.join(PHASE_COLUMNS)}, or none of them")
        numbers = {name: getattr(self, name) for name in ("slice_thick", "xy_spacing", "early_s", "late_s")}
        if wrong := {name: n for name, n in numbers.items() if n is not None and (n is True or not 0 < n < np.inf)}:
            raise ValueError(f"{wrong}, expected positive numbers")
        if self.early_s and self.late_s and not self.early_s <= self.late_s:
            raise ValueError(f"early_s {self.early_s:g} and late_s {self.late_s:g}, expected early before late")
        if self.box is not None and (len(self.box) != 6 or not all(0 <= a <= b for a, b in self.corners)):
            raise ValueError(f"box {self.box}, expected first and last voxel: z, y, x, z, y, x, from 0")

    @classmethod
    def of(cls, row: Mapping) -> "Told":
        """What a line of a table tells, cells that are missing being None; its box is six numbers in one cell."""
        known = {f.name: row.get(f.name) for f in fields(cls)}
        types = dict.fromkeys(PHASE_COLUMNS, int) | {"box": lambda cell: tuple(map(int, cell.split()))}
        return cls(**{k: types.get(k, float)(cell) for k, cell in known.items() if not pd.isna(cell)})

    @property
    def corners(self) -> list[tuple[int, int]]:
        """First and last index of the box along each axis."""
        return list(zip(self.box[:3], self.box[3:], strict=True))

    @property
    def phases(self) -> Phases | None:
        """The three phases, None where they are left to the files' times."""
        return Phases.named(vars(self))


@dataclass(frozen=True)
class Examination:
    """name: the patient's, for messages.  phases: `(3, Z, Y, X)`, pre, early, late, in scanner units.  mask: bool
    `(Z, Y, X)`.  times_s: `(3,)` seconds after pre, NaN where unknown.  chosen: which phases they are.  count: how
    many there are.  source: whose images they are.  remarks: what the readers doubted.  All are turned as
    `nifti.upright` turns them."""

    name: str
    phases: np.ndarray
    mask: np.ndarray
    geometry: Geometry
    times_s: tuple[float, ...]
    chosen: Phases
    count: int = 3
    source: Source = Source()
    remarks: tuple[str, ...] = ()


def _remarked(read: Callable, *args: Any, **kwargs: Any) -> tuple[Any, tuple[str, ...]]:
    """What a reader returns, and its warnings as text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = read(*args, **kwargs)
    return found, tuple(str(w.message) for w in caught if "her2core" in w.filename)


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI, by its name."""
    return path.name.endswith(_NIFTI)


def anonymous(text: str, home: Path, places: Iterable[str]) -> str:
    """A message without the names of a patient's files and folders, which may be the patient's own; what tells
    files apart stays.  places: files and folders below home, with all that these hold."""
    names = {part for place in places for part in Path(place).parts}
    names |= {path.name for place in places for path in (home / place).rglob("*")}
    for name in sorted(names, key=len, reverse=True):
        if name in text and not _HARMLESS.fullmatch(name):
            known = rf"(?<![\w.-]){re.escape(name)}(?![\w-])"
            text = re.sub(known, f"…{_TAIL.search(name)[0]}", text)
    return text


def _inside(folder):
    """What a folder holds, without what is hidden and the sidecars of dcm2niix."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if not path.name.startswith(".") and path.suffix != ".json"]


def numbered(folder: Path) -> dict[int, Path]:
    """The NIfTI files of a folder by the last number in their names."""
    files = {}
    for path in _inside(folder):
        digits = re.findall(r"\d+", path.name.partition(".nii")[0])
        if not is_nifti(path) or not digits or int(digits[-1]) in files:
            expected = "nothing but NIfTI, a file for each phase, whose name ends in its number"
            raise ValueError(f"{folder}: holds {path.name!r}, expected {expected}")
        files[int(digits[-1])] = path
    return dict(sorted(files.items()))


def _series(images, name, told, pixels):
    """→ the series, the `ImageGrid` of its mask where it is NIfTI, the number of each of its phases, and how many
    phases there are."""
    if not isinstance(images, Mapping) and images.is_dir() and any(map(is_nifti, inside := _inside(images))):
        images = inside[0] if len(inside) == 1 else numbered(images)
    if isinstance(images, Mapping):
        files = nifti.wanted_files(images, told.phases, name)
        return *nifti.read_series(list(files.values()), name, vars(told), pixels), list(files), len(images)
    found = nifti.read_series([images], name, vars(told), pixels) if is_nifti(images) else None
    series, grid = found or (read_dce(images, pixels=pixels), None)
    return series, grid, list(range(len(series.array))), len(series.array)


def _choose(told, series, numbers, early_s, late_s):
    """Places of pre, early and late in a series: the phases told, of three these, else by time."""
    if told.phases:
        told.phases.check(max(numbers) + 1)
        return [numbers.index(k) for k in told.phases]
    if len(numbers) == 3:
        return [0, 1, 2]
    return list(nearest_phases(series.times_s, early_s, late_s))


def _time(name, told_s, found_s):
    """Seconds after pre that a phase has: what is told, which must not contradict the files."""
    if told_s and abs(told_s - found_s) > _SAME_S:
        both = f"{told_s:g} s as told, {found_s:g} s in the files"
        raise ValueError(f"{name}: a phase at {both}; leave early_s and late_s out")
    return told_s or found_s


def _twins(phases):
    """Which two of pre, early and late `(3, Z, Y, X)` are one image, in words; "" for none."""
    same = [
        f"{a} and {b}" for (a, x), (b, y) in combinations(zip(_NAMES, phases, strict=True), 2) if (x == y).all()
    ]
    return ", ".join(same)


def _mask(path, series, grid, told, meaning):
    """The lesion, from a file or from the box told, which has to lie inside the images."""
    shape = series.array.shape[1:]
    if path and is_nifti(path):
        return nifti.read_mask(path, grid) if grid else nifti.read_mask_of(path, shape, series.geometry)
    if path:
        return read_seg(path, series.geometry, shape, meaning=meaning, source=series.source)
    if any(last >= size for (_, last), size in zip(told.corners, shape, strict=True)):
        raise ValueError(f"box {told.box}, expected one inside images of shape (z, y, x) {shape}")
    mask = np.zeros(shape, bool)
    mask[tuple(slice(first, last + 1) for first, last in told.corners)] = True
    return mask


def read_examination(
    images: Path | Mapping[int, Path],
    mask: Path | None,
    told: Told,
    *,
    early_s: float,
    late_s: float,
    meaning: str = "segments",
    name: str = "",
    strict: bool = True,
    pixels: bool = True,
) -> Examination:
    """Images and mask, in any of the forms above → `Examination`.

    images: a folder or file, or NIfTI files by the number of their phase.  mask: None takes the box.  early_s,
    late_s: wanted times after the first phase, where `told` names no phases.  meaning: as in `read_seg`.  strict: a
    series that its reader doubts is an error, unless phases are told.  pixels: false reads headers alone, and
    intensities are zeros.  ValueError for what is incomplete, contradicts itself or cannot be read."""
    if (mask is None) == (told.box is None):
        raise ValueError(f"{name}: a mask and a box, or neither; expected one of them")
    (series, grid, numbers, count), doubts = _remarked(_series, images, name, told, pixels)
    if strict and doubts and told.phases is None:
        raise ValueError(f"doubtful series, export it again or name the phases to take ({doubts[0]})")
    places, waits = _remarked(_choose, told, series, numbers, early_s, late_s)
    found, remarks = _remarked(_mask, mask, series, grid, told, meaning)
    after_s = [series.times_s[k] - series.times_s[places[0]] for k in places[1:]]
    times_s = (0.0, *(_time(name, *both) for both in zip((told.early_s, told.late_s), after_s, strict=True)))
    if pixels and len(set(places)) == 3 and (twin := _twins(series.array[places])):
        raise ValueError(f"{name}: {twin} hold the same voxels, expected three phases; one is a copy")
    chosen, remarks = Phases(*(numbers[k] for k in places)), doubts + waits + remarks
    (phases, geometry), (found, _) = (nifti.upright(a, series.geometry) for a in (series.array[places], found))
    return Examination(name, phases, found, geometry, times_s, chosen, count, series.source, remarks)
