"""N4 on the phantom, whose field is known: fidelity and time beside SimpleITK's N4 and LapGM, and on slabs.

    pip install -e .[bench]
    python benchmarks/n4.py        # half an hour; writes benchmarks/n4.json
    python benchmarks/n4.py many   # minutes; only how often our field is far from the true one

her2core: as params.yaml sets it.  SimpleITK: its defaults (at most 50 iterations on each of four levels) inside
Otsu's mask, with the shrink factor 4 of its own example and with 1, every voxel.  LapGM (Vinas et al.,
arXiv:2209.13619): one field for all three phases, its settings the best of those tried on other phantoms, once by r
and once by what is left.  All see the same phantoms in turns, on one thread; shrink factor 1 only the first, one
per site.

r: Pearson's of the logarithms of true and estimated field in the body, as in notebook 3.  Left: coefficient of
variation (CoV) of true over estimated field relative to that of the true one.  Gland: how much the CoV of pure
fibroglandular tissue before contrast falls.  Enhancement: relative change in the lesion, early phase.  Seconds: the
processor's, to correct three phases.

Slabs: what MinCrop keeps (the lesion with two slices on either side), and what it keeps of the 53 thinnest of the
982 patients in I-SPY2's table, those with fewer than four voxels 9 mm apart: 11 mm at least, quartiles 28, 31 and
34 mm, in slices of 1.2 mm in the median.  Three slices are the least that it leaves of any patient.  Fitted before
cropping: the field of the whole volume, judged in the slab.

Many: ours alone on 200 further phantoms, as the lowest r of 24 says little of how often a field is wrong.  No
times are among it, so the machine that the file names is that of the rest.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from her2core.bias_field import body_mask, correct, fidelity, log_bias_field
from her2core.config import Study
from her2core.formats.nifti import min_crop
from her2core.formats.volume import to_sitk
from her2core.parallel import each
from her2core.phantom.patient import Patient, make_patient
from her2core.phantom.sites import SITES, draw_protocol
from her2core.preprocess import PrepareConfig
from timing import machine, spread, write

SEEDS = range(300, 324)  # settings, N4's and LapGM's, were chosen on others; notebook 3 has the first twelve
FEW = 3
MANY, WRONG_BELOW = range(1000, 1200), 0.5  # r of a field that cannot be used
OURS = Study.open("embedded").params("prepare", PrepareConfig).n4
TUNING_SEEDS = range(200, 206)
CLASSES, TAUS = (4, 6, 8), (5e-6, 5e-5, 5e-4, 2e-3)  # around those of LapGM's own example, 6 and 5e-5
SLABS_MM = (11, 28, 31, 34)
THIN_SLICE_MM = 1.2
LEAST = 3
MEASURES = ("slices", "r", "left", "gland", "enhancement", "seconds")


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


def ours(examination):
    phases = examination.phases[:, examination.slab]
    return [log_bias_field(phases[0], examination.geometry, OURS)] * len(phases)


def before_cropping(examination):
    return [field[examination.slab] for field in ours(replace(examination, slab=slice(None)))]


def per_phase(examination):
    return [log_bias_field(phase, examination.geometry, OURS) for phase in examination.phases[:, examination.slab]]


def simpleitk(examination, shrink):
    """As SimpleITK's own example of N4 does it."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = to_sitk(np.maximum(examination.phases[0], 1).astype(np.float32), examination.geometry)
    mask = sitk.OtsuThreshold(image, 0, 1, 200)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(*(sitk.Shrink(volume, [shrink] * 3) for volume in (image, mask)))
    return [sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))] * len(examination.phases)


def lapgm_(examination, downscale_factor, masked, **settings):
    """One field for all phases; masked: air is 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a GPU
        import lapgm
    phases = np.maximum(examination.phases, 1) * (body_mask(examination.phases[0]) if masked else 1)
    model = lapgm.LapGM(downscale_factor=downscale_factor)
    model.set_hyperparameters(**settings, log_initialize=False)  # as in its own example
    return [model.estimate_parameters(lapgm.to_sequence_array([*phases])).B] * len(phases)


ARMS = {
    "her2core": ours,
    "SimpleITK, shrink 4": partial(simpleitk, shrink=4),
    "her2core, a field per phase": per_phase,
}
SLOW = {"SimpleITK, shrink 1": partial(simpleitk, shrink=1)}


def cov(values):
    return values.std() / values.mean()


def measure(method: Callable, examination: Examination) -> tuple[float, ...]:
    """`MEASURES` of one method on one patient."""
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


def summed(name, rows):
    """{measure: spread} over patients; printed as a line."""
    found = {key: spread(column) for key, column in zip(MEASURES, zip(*rows, strict=True), strict=True)}
    m = {key: value["median"] for key, value in found.items()}
    print(
        f"{name:30s} {len(rows):2d} {m['slices']:6.0f} {m['r']:6.2f} (lowest {found['r']['lowest']:5.2f})"
        f" {m['left']:6.2f} {m['gland']:7.1%} {m['enhancement']:7.2%} {m['seconds']:8.2f} s",
        flush=True,
    )
    return found


def tried(settings, examinations):
    """What LapGM gives with these settings, {**settings, "r": …, "left": …}; None for both where it fails."""
    try:
        rows = [
            measure(partial(lapgm_, **settings), e) for e in tqdm(examinations, desc=str(settings), leave=False)
        ]
    except ValueError as error:  # LinAlgError is one
        print(settings, error)
        return settings | {"r": None, "left": None}
    found = np.median(rows, 0)[[MEASURES.index("r"), MEASURES.index("left")]].round(4)
    r, left = found.tolist() if np.isfinite(found).all() else (None, None)
    print(settings, r, left, flush=True)
    return settings | {"r": r, "left": left}


def tune_lapgm():
    """All settings tried, and the best two: {arm: settings}.  Finer grids only with the best of the coarser one."""
    examinations = [examine(seed) for seed in TUNING_SEEDS]
    keys = ("downscale_factor", "masked", "n_classes", "tau")
    grid = [dict(zip(keys, (4, *rest), strict=True)) for rest in product((False, True), CLASSES, TAUS)]
    found = [tried(settings, examinations) for settings in grid]
    for factor, taus in ((2, TAUS), (1, (None,))):
        best = max((one for one in found if one["r"]), key=lambda one: one["r"])
        fine = {key: best[key] for key in keys} | {"downscale_factor": factor}
        found += [tried(fine | {"tau": tau or best["tau"]}, examinations) for tau in taus]
    worked = [one for one in found if one["r"]]
    chosen = {"LapGM": max(worked, key=lambda one: one["r"])}
    chosen["LapGM, least left"] = min(worked, key=lambda one: one["left"])
    return found, {arm: {key: one[key] for key in keys} for arm, one in chosen.items()}


def side_by_side(whole, arms):
    """All arms on each patient in turn; {arm: {measure: spread}}, and of the first few by themselves."""
    rows = {name: [] for name in (*arms, *SLOW)}
    for number, examination in enumerate(tqdm(whole, desc="arms", disable=None)):
        its = arms | (SLOW if number < FEW else {})
        for name, method in list(its.items())[:: -1 if number % 2 else 1]:
            rows[name].append(measure(method, examination))
    few = {name: summed(f"{name}, first {FEW}", found[:FEW]) for name, found in rows.items()}
    return {name: summed(name, rows[name]) for name in arms}, few


def on_slabs(whole):
    """{what is kept: {measure: spread}} of our arm, for slices of the sites and for thin ones."""
    cropped = [crop(e) for e in whole]
    kept = {"lesion ± 2 slices": (ours, cropped), "fitted before cropping": (before_cropping, cropped)}
    kept["three slices"] = ours, [thin(e) for e in whole]
    kept |= {f"slab of {mm} mm": (ours, [thin(e, mm) for e in whole]) for mm in SLABS_MM}
    fine = [examine(seed, THIN_SLICE_MM) for seed in SEEDS]
    kept[f"whole, slices of {THIN_SLICE_MM} mm"] = ours, fine
    kept |= {f"slab of {mm} mm, thin slices": (ours, [thin(e, mm) for e in fine]) for mm in SLABS_MM}
    return {name: summed(name, [measure(method, e) for e in those]) for name, (method, those) in kept.items()}


def of_many(seed):
    """r and left of our field on one phantom."""
    found = dict(zip(MEASURES, measure(ours, examine(seed)), strict=True))
    return found["r"], found["left"]


def on_many():
    """{measure: spread} of ours, and how many of the fields are wrong."""
    r, left = zip(*each(of_many, MANY, -1, "many", "phantom"), strict=True)
    return {
        "r": spread(r),
        "left": spread(left),
        "wrong_below": WRONG_BELOW,
        "wrong": int(np.sum(np.less(r, WRONG_BELOW))),
    }


def only_many():
    """Put what `on_many` finds into the file; the rest stays."""
    found = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    write(__file__, found | {"many": on_many()})


def main():
    about = machine("numpy", "scipy", "scikit-learn", "SimpleITK", "lapgm")
    print(f"{'':31s}n slices      r                  left   gland enhancement  seconds")
    with threadpool_limits(1):
        found, chosen = tune_lapgm()
        whole = [examine(seed) for seed in SEEDS]
        arms, few = side_by_side(whole, ARMS | {arm: partial(lapgm_, **its) for arm, its in chosen.items()})
        slabs = on_slabs(whole)
    settings = {"her2core": vars(OURS)} | chosen
    result = {"settings": settings, "lapgm_tried": found, "arms": arms, "few": few, "slabs": slabs}
    result["many"] = on_many()
    write(__file__, {"machine": about} | result)


if __name__ == "__main__":
    only_many() if sys.argv[1:] == ["many"] else main()
