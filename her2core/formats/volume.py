"""A dynamic series as one array with its geometry; the only place where axis order is reversed.

Arrays are `(T, Z, Y, X)` or `(Z, Y, X)` and spacings follow the array, `(z, y, x)`.  SimpleITK and DICOM
speak x, y, z; every conversion between the two orders happens here.  Positions and directions in space are
those of DICOM: millimetres, LPS (x to the patient's left, y to posterior, z to the head).
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

_LARGEST_MASK = 0.5  # of the volume; an inverse mask read the wrong way round marks nearly all of it
PHASE_COLUMNS = ("pre", "post_early", "post_late")  # of a table that names the phases, as BreastDCEDL's does
_MOST_UNDERSHOOT = 0.001  # of voxels, below zero by interpolation at sharp edges; more mean a difference of phases
_PAUSE = 1.5  # usual intervals between phases; a longer one after the first phase is a wait for the injection


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a `(Z, Y, X)` array lie.

    spacing_mm: distance between voxel centres along (z, y, x).
    origin_mm: LPS position (x, y, z) of the centre of voxel (0, 0, 0).
    direction: 3×3; column k is the LPS unit vector along which array axis k (z, y, x) grows.
    """

    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))

    def __post_init__(self):
        if len(self.spacing_mm) != 3 or not all(s > 0 and np.isfinite(s) for s in self.spacing_mm):
            raise ValueError(f"spacing_mm must be three positive numbers (z, y, x), found {self.spacing_mm}")
        axes = np.asarray(self.direction, float)
        if axes.shape != (3, 3) or not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
            raise ValueError(f"direction must have orthonormal columns, found {self.direction}")

    def position_mm(self, index: Sequence[int]) -> np.ndarray:
        """LPS position (x, y, z) of voxel `index` (z, y, x)."""
        return np.asarray(self.origin_mm) + np.asarray(self.direction) @ (np.asarray(index) * self.spacing_mm)


@dataclass(frozen=True)
class Source:
    """Whose images they are and where they lie: what a mask of them has to agree with.  None where unknown.

    patient: digits of the SHA-256 of PatientID, as no identifier leaves a reader.  study, frame_of_reference: their
    UIDs.  series: SeriesInstanceUID of each series.
    """

    patient: str | None = None
    study: str | None = None
    frame_of_reference: str | None = None
    series: tuple[str, ...] = ()


@dataclass(frozen=True)
class DceSeries:
    """All phases of one examination on one grid.

    array: `(T, Z, Y, X)`, scanner units.  times_s: `(T,)` seconds from the first phase, ascending; NaN where
    the source does not say.
    """

    array: np.ndarray
    geometry: Geometry
    times_s: tuple[float, ...]
    source: Source = Source()

    def __post_init__(self):
        if self.array.ndim != 4 or 0 in self.array.shape:
            raise ValueError(f"a dynamic series is (T, Z, Y, X) and not empty, found shape {self.array.shape}")
        if len(self.times_s) != self.array.shape[0]:
            raise ValueError(f"{self.array.shape[0]} phases but {len(self.times_s)} times")
        if not np.all(np.isnan(self.times_s)) and not np.all(np.diff(self.times_s) > 0):
            raise ValueError(f"phase times must ascend, found {self.times_s} s")


@dataclass(frozen=True)
class Phases:
    """The pre-contrast, the early and the late phase: their acquisition indices in a series, counted from 0.

    Early may be late: of a patient of I-SPY1 only two phases were published.
    """

    pre: int
    early: int
    late: int

    def __post_init__(self):
        if not 0 <= self.pre < self.early <= self.late:
            raise ValueError(f"phases {list(self)}, expected pre < early ≤ late, counted from 0")

    def __iter__(self) -> Iterator[int]:
        return iter(astuple(self))

    def check(self, count: int) -> None:
        """ValueError unless a series of `count` phases has all three."""
        if self.late >= count:
            raise ValueError(f"phases {list(self)}, counted from 0, expected all of them among the {count} found")

    @classmethod
    def named(cls, row: Mapping, columns: tuple[str, str, str] = PHASE_COLUMNS) -> "Phases | None":
        """The phases that a row of a table names in `columns`; None where one is missing or NaN."""
        found = [row.get(column) for column in columns]
        return None if any(map(pd.isna, found)) else cls(*map(int, found))


def _without_pause(times_s):
    """Times from the first phase; after a wait for the injection, as if the second had followed at once."""
    steps = np.diff(times_s)
    if len(steps) < 3 or steps[0] <= _PAUSE * (usual := np.median(steps[1:])):
        return np.cumsum(steps)
    said = f"the second phase follows after {steps[0]:g} s, the others every {usual:g} s"
    warnings.warn(f"{said}: early and late count from {usual:g} s before the second", stacklevel=3)
    return np.cumsum([usual, *steps[1:]])


def nearest_phases(times_s: Sequence[float], early_s: float, late_s: float) -> Phases:
    """The first phase, and those whose times are nearest to `early_s` and `late_s` seconds after it.

    Where the examination paused before the injection, that pause is left out of these times, with a warning.
    ValueError where the times are unknown or too few to tell three phases apart.
    """
    if np.isnan(times_s).any():
        raise ValueError(f"the files do not say when each phase was acquired; name {', '.join(PHASE_COLUMNS)}")
    after = _without_pause(times_s)
    chosen = [0] + [1 + int(np.argmin(np.abs(after - t))) for t in (early_s, late_s)] if len(after) else [0]
    if len(set(chosen)) < 3:
        found = ", ".join(f"{t:g}" for t in times_s)
        raise ValueError(f"phases at {found} s, expected one near {early_s:g} s and a later near {late_s:g} s")
    return Phases(*chosen)


def to_sitk(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    """`(Z, Y, X)` array and its geometry → SimpleITK image; bool, which SimpleITK lacks, becomes uint8."""
    image = sitk.GetImageFromArray(array.astype(np.uint8) if array.dtype == bool else array)
    image.SetSpacing([float(s) for s in geometry.spacing_mm[::-1]])
    image.SetOrigin([float(p) for p in geometry.origin_mm])
    image.SetDirection(np.asarray(geometry.direction, float)[:, ::-1].ravel().tolist())
    return image


def refuse_odd_mask(mask: np.ndarray, path: Path, how: str = "") -> None:
    """ValueError for a mask without tumour, or with more of it than a breast can hold.  how: it was read."""
    if not mask.any():
        raise ValueError(f"{path}: empty mask, expected at least one tumour voxel")
    if mask.mean() > _LARGEST_MASK:
        found = f"{mask.mean():.1%} of the volume is tumour{how}"
        raise ValueError(f"{path}: {found}, expected at most {_LARGEST_MASK:.0%} (an inverse mask?)")


def window(centre: float, size: int, length: int) -> slice:
    """`size` voxels around an index, shifted inside an axis of `length`; all of it where that is shorter."""
    start = int(np.clip(np.ceil(centre - size / 2), 0, max(length - size, 0)))
    return slice(start, start + size)


def native_crop(image: np.ndarray, centre_px: Sequence[float], size_px: int) -> np.ndarray:
    """`size_px` square of `(P, Y, X)` around `centre_px`, a `window`; a smaller image is padded evenly."""
    y, x = (window(centre, size_px, n) for centre, n in zip(centre_px, image.shape[1:], strict=True))
    image = image[:, y, x]
    lacking = [size_px - n for n in image.shape[1:]]
    return np.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in lacking)], mode="edge")


def as_uint16(phases: np.ndarray, patient: str) -> tuple[np.ndarray, float]:
    """Intensities as uint16, rounded, and the power of two they were multiplied by, so that rounding keeps levels.

    It is 1 for whole numbers that fit, and for others that reach 2048; else the maximum becomes 32768 to 65535.
    Undershoot below zero becomes 0.  ValueError where they are not finite, or one voxel in a thousand is negative.
    """
    if phases.dtype == np.uint16:
        return phases, 1.0
    low, high = phases.min(), phases.max()
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{patient}: intensities from {low} to {high}, expected finite numbers")
    rounded, factor = np.rint(phases), 1.0
    if high > 65535 or 0 < high < 2048 and not np.array_equal(phases, rounded):
        factor = float(2.0 ** np.floor(np.log2(65535 / float(high))))
        rounded = np.rint(phases * np.float64(factor))
    if (negative := np.mean(rounded < 0)) >= _MOST_UNDERSHOOT:
        raise ValueError(
            f"{patient}: intensities from {low} to {high}, {100 * negative:.2g} % of them below zero; "
            f"expected less than {100 * _MOST_UNDERSHOOT:g} %, which interpolation may leave"
        )
    return np.maximum(rounded, 0).astype(np.uint16), factor
