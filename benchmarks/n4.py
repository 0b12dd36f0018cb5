"""N4 on the phantom, whose field is known: fidelity and time of her2core beside finer and default settings, on
whole volumes and on the slabs that MinCrop leaves of them.

    python benchmarks/n4.py

Field: Pearson r of the logarithms in the body, median and quartiles, and the coefficient of variation (CoV) of
true over estimated field relative to that of the true one.  Gland: how much the CoV of pure fibroglandular tissue
before contrast falls.  Enhancement: relative change in the lesion, early phase, median and largest.  Time:
processor seconds of one thread for three phases.  The rest are medians over patients; the slow arms see only the
first few, one per site, and ours is repeated on just those.

Slabs: what MinCrop keeps (the lesion with two slices on either side), and what it keeps of the 53 thinnest of the
982 patients in I-SPY2's table, those with fewer than four voxels 9 mm apart: 11 mm at least, quartiles 28, 31 and
34 mm, in slices of 1.2 mm in the median.  Three slices are the least that it leaves of any patient.  Fitted before
cropping: the field of the whole volume, judged in the slab.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import time
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from her2core.bias_field import N4Config, correct, fidelity, log_bias_field
from her2core.formats.nifti import min_crop
from her2core.formats.volume import to_sitk
from her2core.phantom.patient import Patient, make_patient
from her2core.phantom.sites import SITES, draw_protocol

SEEDS = range(300, 324)  # not those on which the settings were chosen
SLOW = 3
OURS = N4Config()
SLABS_MM = (11, 28, 31, 34)
THIN_SLICE_MM = 1.2
LEAST = 3


@dataclass(frozen=True)
class Examination:
    """A phantom patient, its pre, early and late phase `(P, Z, Y, X)`, and the slices that a crop keeps."""

    patient: Patient
    phases: np.ndarray
    slab: slice

    @property
    def geometry(self):
        return self.patient.series.geometry


def examine(seed, slice_mm=None):
    """One patient, if wanted with thinner slices over the same slab."""
    site = draw_protocol(list(SITES)[seed % len(SITES)], seed)
    if slice_mm:
        thickness, *pixel = site.spacing_mm
        count, *matrix = site.shape
        site = replace(site, spacing_mm=(slice_mm, *pixel), shape=(round(count * thickness / slice_mm), *matrix))
    patient = make_patient(seed, seed % 2, site, bayes_auc=0.95)
    return Examination(patient, patient.series.array[[0, site.early_index, site.late_index]], slice(None))


def crop(examination):
    """The slices that MinCrop keeps; it keeps the phantom's 112 to 144 pixels whole."""
    _, kept, (first, *_) = min_crop(examination.phases, examination.patient.annotator_mask)
    return replace(examination, slab=slice(first, first + len(kept)))


def thin(examination, mm=0):
    """As many slices around the middle of the lesion as `mm` hold, three at least."""
    count = max(LEAST, round(mm / examination.geometry.spacing_mm[0]))
    inside = np.flatnonzero(examination.patient.annotator_mask.any((1, 2)))
    last_start = examination.phases.shape[1] - count
    first = int(np.clip((inside[0] + inside[-1] + 1 - count) // 2, 0, last_start))
    return replace(examination, slab=slice(first, first + count))


def ours(examination, config=OURS):
    phases = examination.phases[:, examination.slab]
    return [log_bias_field(phases[0], examination.geometry, config)] * len(phases)


def before_cropping(examination):
    return [field[examination.slab] for field in ours(replace(examination, slab=slice(None)))]


def shrink_1(examination):
    return ours(examination, replace(OURS, grid_mm=1e-3))


def per_phase(examination):
    return [log_bias_field(phase, examination.geometry, OURS) for phase in examination.phases[:, examination.slab]]


def simpleitk_defaults(examination):
    """Every voxel, no mask, at most 50 iterations on each of four levels."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = to_sitk(np.maximum(examination.phases[0], 1).astype(np.float32), examination.geometry)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(image)
    return [sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))] * len(examination.phases)


def cov(values):
    return values.std() / values.mean()


def measure(method, examination):
    """Slices, Pearson r, residual CoV ratio, fall of the gland's CoV, change of enhancement, seconds."""
    patient, slab = examination.patient, examination.slab
    phases = examination.phases[:, slab]
    start = time.process_time()
    fields = method(examination)
    corrected = np.concatenate([correct(p[None], f) for p, f in zip(phases, fields, strict=True)])
    seconds = time.process_time() - start
    gland, lesion = patient.fibroglandular[slab] > 0.95, patient.lesion_mask[slab]
    pre, early = (np.array([stack[k][lesion].mean() for stack in (phases, corrected)]) for k in (0, 1))
    raw, changed = early / pre - 1
    return (
        phases.shape[1],
        *fidelity(fields[0], patient.bias_field[slab], patient.body_mask[slab]),
        1 - cov(corrected[0][gland]) / cov(phases[0][gland]),
        abs(changed / raw - 1),
        seconds,
    )


def report(name, method, examinations):
    rows = np.array([measure(method, examination) for examination in examinations])
    (slices, r, left, gland, enhancement, seconds), worst = np.median(rows, 0), rows.max(0)
    low, high = np.quantile(rows[:, 1], (0.25, 0.75))
    print(
        f"{name:30s} {len(rows):2d} {slices:6.0f} {r:6.2f} ({low:.2f} to {high:.2f}) {left:6.2f} {gland:7.1%}"
        f" {enhancement:7.2%} {worst[4]:7.2%} {seconds:7.2f} s",
        flush=True,
    )


def main():
    print(f"{'':31s}n slices      r (quartiles)      left   gland   enhancement        time")
    whole = [examine(seed) for seed in SEEDS]
    report("whole volumes", ours, whole)
    report("field per phase", per_phase, whole)
    few = whole[:SLOW]
    report("whole volumes, few patients", ours, few)
    report("shrink factor 1", shrink_1, few)
    report("SimpleITK's defaults", simpleitk_defaults, few)
    cropped = [crop(e) for e in whole]
    report("lesion ± 2 slices", ours, cropped)
    report("  fitted before cropping", before_cropping, cropped)
    report("three slices", ours, [thin(e) for e in whole])
    for mm in SLABS_MM:
        report(f"slab of {mm} mm", ours, [thin(e, mm) for e in whole])
    whole = [examine(seed, THIN_SLICE_MM) for seed in SEEDS]
    report(f"whole, slices of {THIN_SLICE_MM} mm", ours, whole)
    for mm in SLABS_MM:
        report(f"  slab of {mm} mm", ours, [thin(e, mm) for e in whole])


if __name__ == "__main__":
    main()
