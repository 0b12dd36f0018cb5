"""N4 bias-field correction: one field per patient, from the pre-contrast phase, for all phases.

A shared field leaves the ratios between phases alone.  A field per phase does not: contrast agent brightens some
tissues more than others, and N4 takes part of that for coil shading: such fields change the enhancement of the
lesion, a shared one does not (benchmarks/n4.py).  Tustison et al., IEEE Trans Med Imaging 2010;29:1310.
"""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from her2core.formats.volume import Geometry, to_sitk

_FIELDS = ("shared", "per_phase")
# grid voxels across a thin slab; with four, single fields are further from the true one
_FEWEST = 5


@dataclass(frozen=True)
class N4Config:
    """grid_mm: the field is fitted on voxels about this far apart, closer where a slab is thin (see
    `grid_factors`); picked, not averaged, which would mix tissues.

    iterations: of each fitting level; all of them run.  Most belong to the first and smoothest level, since fat
    whose suppression failed enters the field at the finer one.
    field: "shared" fits the pre phase and corrects all by it; "per_phase" fits and corrects each on its own.
    """

    grid_mm: float = 10.0
    iterations: tuple[int, ...] = (100, 20)
    field: str = "shared"

    def __post_init__(self):
        if not (np.isfinite(self.grid_mm) and self.grid_mm > 0):
            raise ValueError(f"grid_mm must be positive, found {self.grid_mm}")
        if not self.iterations or min(self.iterations) < 1:
            raise ValueError(f"iterations must be positive, one number per level, found {self.iterations}")
        if self.field not in _FIELDS:
            raise ValueError(f"field={self.field!r}: expected one of {', '.join(_FIELDS)}")


def body_mask(phase: np.ndarray) -> np.ndarray:
    """Voxels of tissue, bool `(Z, Y, X)`: above Otsu's threshold of the logarithm; air and noise stay below it."""
    log = np.log1p(phase.astype(np.float32))
    return sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(log), 0, 1)).astype(bool)


def grid_factors(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], grid_mm: float
) -> tuple[int, int, int]:
    """Every how many voxels (z, y, x) N4's grid takes one: about `grid_mm` apart, or closer, so that a thin slab
    keeps five across it, or all of its slices.  MinCrop leaves two slices on either side of the lesion: 10 mm
    apart, 104 of I-SPY2's 982 patients would have fewer than four."""
    return tuple(max(1, min(round(grid_mm / s), n // _FEWEST)) for n, s in zip(shape, spacing_mm, strict=True))


def _pick_voxels(phase, mask, geometry, grid_mm):
    """Phase and mask on a grid of about `grid_mm`, as SimpleITK images; refused where they determine no field."""
    if min(phase.shape) < 3:  # the least that MinCrop leaves: a lesion in the first or last slice alone
        raise ValueError(f"N4 needs at least three voxels along each axis, found {phase.shape} (z, y, x)")
    factors = grid_factors(phase.shape, geometry.spacing_mm, grid_mm)[::-1]
    image = sitk.Shrink(to_sitk(np.maximum(phase, 1).astype(np.float32), geometry), factors)  # N4 takes logarithms
    body = sitk.Shrink(to_sitk(mask, geometry), factors)
    levels = np.unique(sitk.GetArrayViewFromImage(image)[sitk.GetArrayViewFromImage(body) > 0])
    if len(levels) < 2:
        raise ValueError(f"N4 needs contrast: the body has {len(levels)} grey levels on the grid of {grid_mm} mm")
    return image, body


def log_bias_field(phase: np.ndarray, geometry: Geometry, config: N4Config) -> np.ndarray:
    """Logarithm of the multiplicative field of one phase `(Z, Y, X)`, float32, zero on average in the body.

    ValueError where less than 1 % of the voxels are tissue, the picked ones are all equal, or an axis has fewer
    than three voxels.
    The result of ITK's N4 depends on the global thread count, not on the filter's own: it is set to 1 here,
    and patients run in parallel instead.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    mask = body_mask(phase)
    if mask.mean() < 0.01:
        raise ValueError(f"N4 needs a body: only {mask.sum()} of {mask.size} voxels are above the background")
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(list(config.iterations))
    n4.SetConvergenceThreshold(0)  # the field grows in small steps, and ITK's 0.001 stops it half-way
    box, beyond = _body_box(mask)
    n4.Execute(*_pick_voxels(phase[box], mask[box], geometry, config.grid_mm))
    fitted = n4.GetLogBiasFieldAsImage(to_sitk(phase[box].astype(np.float32), geometry))
    field = np.pad(sitk.GetArrayFromImage(fitted), beyond, mode="edge")
    return field - field[mask].mean()


def _body_box(mask):
    """The rows and columns that the body spans, in all slices, and how many lie beyond it on each side.

    The spline's nodes spread over what is fitted: in the body alone they follow the field more closely.
    """
    box, beyond = [slice(None)], [(0, 0)]
    for axis, size in ((1, mask.shape[1]), (2, mask.shape[2])):
        found = np.flatnonzero(mask.any((0, 3 - axis)))
        box.append(slice(found[0], found[-1] + 1))
        beyond.append((found[0], size - 1 - found[-1]))
    return tuple(box), beyond


def correct(array: np.ndarray, log_field: np.ndarray) -> np.ndarray:
    """All phases `(P, Z, Y, X)` uint16 divided by the same field `(Z, Y, X)`; uint16."""
    corrected = array / np.exp(log_field)[None]
    return np.clip(np.rint(corrected), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def fidelity(log_field: np.ndarray, true_field: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """How well an estimated log field `(Z, Y, X)` follows the true field (not its logarithm) in the mask.

    Returns Pearson's r of the logarithms, and the coefficient of variation of the shading that is left after the
    correction relative to that of the true field: 1 if nothing was gained.
    """
    true = np.log(true_field[mask])
    left, before = np.exp(true - log_field[mask]), true_field[mask]
    return np.corrcoef(true, log_field[mask])[0, 1], (left.std() / left.mean()) / (before.std() / before.mean())


def correct_patient(phases: np.ndarray, geometry: Geometry, config: N4Config) -> np.ndarray:
    """Phases `(P, Z, Y, X)` uint16 of one patient, the pre-contrast phase first → corrected, uint16."""
    if config.field == "shared":
        return correct(phases, log_bias_field(phases[0], geometry, config))
    return np.concatenate([correct(p[None], log_bias_field(p, geometry, config)) for p in phases])
