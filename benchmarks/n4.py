"""N4 on the phantom, whose field is known: fidelity and time of her2core beside finer and default settings.

    python benchmarks/n4.py

Field: Pearson r of the logarithms in the body, and the coefficient of variation (CoV) of true over estimated
field relative to that of the true one.  Gland: how much the CoV of pure fibroglandular tissue before contrast
falls.  Enhancement: relative change in the lesion, early phase, median and largest.  Time: processor seconds of
one thread for three phases.  The rest are medians over patients; the slow arms see only the first few, one per
site, and ours is repeated on just those.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import time
from dataclasses import replace

import numpy as np
import SimpleITK as sitk

from her2core.bias_field import N4Config, correct, fidelity, log_bias_field
from her2core.formats.volume import to_sitk
from her2core.phantom.patient import make_patient
from her2core.phantom.sites import SITES, draw_protocol

SEEDS = range(300, 324)  # not those on which the settings were chosen
SLOW = 3
OURS = N4Config()


def draw_patient(seed):
    """A phantom patient and its pre, early and late phase `(P, Z, Y, X)`."""
    site = draw_protocol(list(SITES)[seed % len(SITES)], seed)
    patient = make_patient(seed, seed % 2, site, bayes_auc=0.95)
    return patient, patient.series.array[[0, site.early_index, site.late_index]]


def ours(phases, geometry, config=OURS):
    return [log_bias_field(phases[0], geometry, config)] * len(phases)


def shrink_1(phases, geometry):
    return ours(phases, geometry, replace(OURS, grid_mm=1e-3))


def per_phase(phases, geometry):
    return [log_bias_field(phase, geometry, OURS) for phase in phases]


def simpleitk_defaults(phases, geometry):
    """Every voxel, no mask, at most 50 iterations on each of four levels."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = to_sitk(np.maximum(phases[0], 1).astype(np.float32), geometry)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(image)
    return [sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))] * len(phases)


def cov(values):
    return values.std() / values.mean()


def measure(method, patient, phases):
    """Pearson r, residual CoV ratio, fall of the gland's CoV, change of enhancement, seconds."""
    start = time.process_time()
    fields = method(phases, patient.series.geometry)
    corrected = np.concatenate([correct(p[None], f) for p, f in zip(phases, fields, strict=True)])
    seconds = time.process_time() - start
    body, gland = patient.body_mask, patient.fibroglandular > 0.95
    pre, early = (np.array([stack[k][patient.lesion_mask].mean() for stack in (phases, corrected)]) for k in (0, 1))
    raw, changed = early / pre - 1
    return (
        *fidelity(fields[0], patient.bias_field, body),
        1 - cov(corrected[0][gland]) / cov(phases[0][gland]),
        abs(changed / raw - 1),
        seconds,
    )


def report(name, method, patients):
    rows = np.array([measure(method, *patient) for patient in patients])
    (r, residual, gland, enhancement, seconds), worst = np.median(rows, 0), rows.max(0)
    print(
        f"{name:26s} {len(rows):2d} {r:6.3f} {residual:6.3f} {gland:7.1%} {enhancement:7.2%} {worst[3]:7.2%}"
        f" {seconds:7.2f} s",
        flush=True,
    )


def main():
    patients = [draw_patient(seed) for seed in SEEDS]
    print(f"{'':27s}n      r   left   gland   enhancement        time")
    report("her2core", ours, patients)
    report("field per phase", per_phase, patients)
    few = patients[:SLOW]
    report("her2core, few patients", ours, few)
    report("shrink factor 1", shrink_1, few)
    report("SimpleITK's defaults", simpleitk_defaults, few)


if __name__ == "__main__":
    main()
