"""N4 bias-field correction: one field per patient, from the pre-contrast phase, for all phases.

Correcting each phase by its own field shifts lesion enhancement by up to 17 %: contrast agent brightens the
lesion, and N4 takes part of that for coil shading.  A shared field leaves ratios between phases alone.
Tustison et al., IEEE Trans Med Imaging 2010;29:1310.
"""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from her2core.volume import to_sitk


@dataclass(frozen=True)
class N4Config:
    """grid_mm: the field is fitted on voxels of about this size.  iterations: at most so many per level; the
    number of levels is the length (three; with four, anatomy goes into the field).  convergence: stop below.
    """

    grid_mm: float = 8.0
    iterations: tuple[int, ...] = (50, 50, 30)
    convergence: float = 1e-3


def body_mask(phase):
    """Voxels of tissue `(Z, Y, X)`: above Otsu's threshold of the logarithm, which air and noise stay below."""
    log = np.log1p(phase.astype(np.float32))
    return sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(log), 0, 1)).astype(bool)


def log_bias_field(phase, geometry, config):
    """Logarithm of the multiplicative field of one phase `(Z, Y, X)`, float32, zero on average in the body.

    The result of ITK's N4 depends on the global thread count, not on the filter's own: it is set to 1 here,
    and patients run in parallel instead.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    mask = body_mask(phase)
    if mask.mean() < 0.01:
        raise ValueError(f"N4 needs a body: only {mask.sum()} of {mask.size} voxels are above the background")
    image = to_sitk(np.maximum(phase.astype(np.float32), 1), geometry)  # N4 takes logarithms
    body = to_sitk(mask.astype(np.uint8), geometry)
    shrink = [max(1, round(config.grid_mm / s)) for s in geometry.spacing_mm[::-1]]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(list(config.iterations))
    n4.SetConvergenceThreshold(config.convergence)
    n4.Execute(sitk.Shrink(image, shrink), sitk.Shrink(body, shrink))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    return field - field[mask].mean()


def correct(array, log_field):
    """All phases `(T, Z, Y, X)` uint16 divided by the same field; uint16."""
    corrected = array / np.exp(log_field)[None]
    return np.clip(np.rint(corrected), 0, np.iinfo(np.uint16).max).astype(np.uint16)
