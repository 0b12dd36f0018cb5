"""One digital patient with a known answer: truth, anatomy, lesions and the examination.

Arrays are `(T, Z, Y, X)`; z grows to the head, y to posterior, x to the patient's left (LPS).
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from her2core.formats.volume import DceSeries, Geometry
from her2core.phantom.anatomy import make_anatomy, make_grid
from her2core.phantom.lesions import make_lesions
from her2core.phantom.scanner import scan
from her2core.phantom.sites import Site, find_site, random_stream
from her2core.phantom.truth import Truth, draw_truth

_ENHANCEMENT_THRESHOLD = 0.70  # percent enhancement / 100 of the functional tumour volume (Hylton 2016)


@dataclass(frozen=True)
class Patient:
    """One examination and everything that is known about it; masks and maps are (Z, Y, X).

    lesion_mask: geometric truth.  annotator_mask: ragged, percent enhancement of at least 70 % inside the box
    `voi`, as in functional tumour volume.  focus_labels: 1 for the main lesion, 2.. for satellites.  bias_field:
    the receive field.
    """

    series: DceSeries
    lesion_mask: np.ndarray
    annotator_mask: np.ndarray
    voi: tuple[slice, slice, slice]
    focus_labels: np.ndarray
    bias_field: np.ndarray
    body_mask: np.ndarray
    fibroglandular: np.ndarray
    truth: Truth


def _bounding_voi(mask, spacing_mm):
    """The box of the lesions with a margin of 5 mm."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    pads = [int(np.ceil(5.0 / step)) for step in spacing_mm]
    return tuple(slice(max(0, s.start - pad), s.stop + pad) for s, pad in zip(box, pads, strict=True))


def _annotate(array, site, voi):
    """Functional tumour volume: enhanced by 70 % or more and, before contrast, no darker than half of tissue.

    What enhances most in the box counts as tissue, not what is brightest: that may be unsuppressed fat.
    """
    pre, early = array[0][voi].astype(np.float32), array[site.early_index][voi].astype(np.float32)
    added = early - pre
    tissue = np.median(pre[added >= np.percentile(added, 75)])
    mask = np.zeros(array.shape[1:], bool)
    mask[voi] = (pre > 0.5 * tissue) & (added >= _ENHANCEMENT_THRESHOLD * pre)
    return mask


def _make_geometry(site, side):
    """LPS grid with the breast 85 mm beside the midline and the front edge 110 mm before the origin."""
    z, y, x = [(n - 1) * d for n, d in zip(site.shape, site.spacing_mm, strict=True)]
    centre = 85.0 if side == "left" else -85.0
    return Geometry(site.spacing_mm, (centre - x / 2, -110.0, -z / 2))


def make_patient(
    seed: int, her2: int, site: Site | str, *, bayes_auc: float = 0.8, loading: float = 1.0
) -> Patient:
    """One patient at a site, a `Site` or its name.  Equal arguments give equal bytes.

    The same seed with the other label is the counterfactual twin: they share all but the lesions.
    """
    site = find_site(site)
    truth = draw_truth(her2, random_stream(seed, "truth"), bayes_auc=bayes_auc, loading=loading)
    grid, rng = make_grid(site, truth.side), random_stream(seed, "anatomy")
    anatomy = make_anatomy(grid, truth, rng)
    lesions = make_lesions(grid, anatomy, truth, seed)
    array, coil = scan(site, grid, truth, anatomy, lesions, rng, random_stream(seed, "noise"))
    mask = lesions.labels > 0
    voi = _bounding_voi(mask, site.spacing_mm)
    volume_ml = float(mask.sum() * np.prod(site.spacing_mm) / 1000)
    return Patient(
        series=DceSeries(array, _make_geometry(site, truth.side), site.phase_times_s),
        lesion_mask=mask,
        annotator_mask=_annotate(array, site, voi),
        voi=voi,
        focus_labels=lesions.labels,
        bias_field=coil,
        body_mask=anatomy.body > 0.5,
        fibroglandular=anatomy.gland,
        truth=replace(truth, volume_ml=volume_ml, n_satellites=lesions.count - 1),
    )
