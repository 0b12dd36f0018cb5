"""A person's phantom, coarse or with the matrix of a real examination, and what the tables say of it."""

from dataclasses import replace

import numpy as np

from her2core.cohorts.phantom import site_of
from her2core.formats.nifti import min_crop
from her2core.formats.volume import DceSeries, Phases
from her2core.phantom.patient import Patient, make_patient
from her2core.phantom.sites import Site
from rehearsal.patients import Person

_NOISE = 9  # of the finer grid, in grey levels, so that no two voxels of a phantom's are copies


def site_for(person: Person) -> Site:
    """The scanner.  A real size is drawn on a coarser grid with its number of phases, and then refined."""
    row = {"dataset": "ambl" if person.dataset == "duke" else person.dataset, "seed": person.seed}
    if person.shape is None:
        return site_of(row, 2)
    site, phases = site_of(row, 1), person.shape[0]
    times = tuple(85.0 * k for k in range(phases)) if person.dataset == "spy2" else site.phase_times_s
    slices = person.shape[1] // 4
    spacing_mm = (site.spacing_mm[0] * site.shape[0] / slices, *site.spacing_mm[1:])  # over the same field of view
    return replace(site, phase_times_s=times, shape=(slices, *site.shape[1:]), spacing_mm=spacing_mm)


def make(person: Person) -> Patient:
    """The phantom as it is scanned; one of I-SPY1 as MinCrop would have cropped it."""
    patient = make_patient(person.seed, person.her2, site_for(person), bayes_auc=0.95)
    if person.dataset == "ambl":
        patient = _both_breasts(patient, person.shape is not None)
    mask = patient.annotator_mask
    if person.odd == "empty mask":
        patient = replace(patient, annotator_mask=np.zeros_like(mask))
    if person.odd == "negative intensities":
        array = patient.series.array.astype(np.int16) - 200
        patient = replace(patient, series=replace(patient.series, array=array))
    low, high = np.zeros(3, int), np.array(mask.shape)
    if person.dataset == "spy1":
        z = np.flatnonzero(mask.any((1, 2)))
        low[0], high[0] = max(z[0] - 2, 0), min(z[-1] + 3, len(mask))
    if person.shape is None and person.dataset != "spy1":
        return patient
    return _regridded(patient, low, high, person.shape[1:] if person.shape else tuple(high - low), person.seed)


def _both_breasts(patient, square):
    """AMBL's field of view: the other breast, without lesion or contrast, beside the patient's own.

    square: as many rows as columns; the last row is repeated behind.
    """
    array, is_left = patient.series.array, patient.truth.side == "left"
    rows = array.shape[3] * 2 - array.shape[2] if square else 0

    def widened(volume, other):
        pair = (other[..., ::-1], volume) if is_left else (volume, other[..., ::-1])  # x grows to the left
        behind = [(0, 0)] * (volume.ndim - 2) + [(0, rows), (0, 0)]
        return np.pad(np.concatenate(pair, axis=-1), behind, mode="edge")

    maps = {n: getattr(patient, n) for n in ("annotator_mask", "focus_labels")}
    maps = {n: widened(v, np.zeros_like(v)) for n, v in maps.items()}
    body, geometry = patient.body_mask, patient.series.geometry
    first = geometry.position_mm((0, 0, -array.shape[3] if is_left else 0))
    geometry = replace(geometry, origin_mm=tuple(map(float, first)))
    series = DceSeries(widened(array, array[:1].repeat(len(array), 0)), geometry, patient.series.times_s)
    return replace(patient, series=series, body_mask=widened(body, body), **maps)


def _regridded(patient, low, high, shape, seed):
    """The voxels from `low` to `high` (z, y, x) as `shape` voxels over the same space, the nearest one each."""
    index = [a + ((np.arange(n) + 0.5) * (b - a) / n).astype(int) for a, b, n in zip(low, high, shape, strict=True)]
    factor = np.divide(shape, high - low)
    array = patient.series.array[:, *np.ix_(*index)]
    if (factor > 1).any():
        array = _with_noise(array, np.random.default_rng(seed))
    geometry, spacing_mm = patient.series.geometry, np.array(patient.series.geometry.spacing_mm) / factor
    first = geometry.position_mm(low + 0.5 / factor - 0.5)
    geometry = replace(geometry, spacing_mm=tuple(map(float, spacing_mm)), origin_mm=tuple(map(float, first)))
    maps = {n: getattr(patient, n)[np.ix_(*index)] for n in ("annotator_mask", "focus_labels", "body_mask")}
    edges = (
        [max(int((e - a) * f), 0) for e in (s.start, s.stop)]
        for s, a, f in zip(patient.voi, low, factor, strict=True)
    )
    series = DceSeries(array, geometry, patient.series.times_s)
    return replace(patient, series=series, voi=tuple(slice(*pair) for pair in edges), **maps)


def _with_noise(array, rng):
    low, high = _NOISE, array.max() - _NOISE  # what may not wrap around
    for volume in array:
        noise = rng.integers(-_NOISE, _NOISE, volume.shape, dtype=np.int16, endpoint=True)
        volume[:] = np.clip(volume, low, high) + noise
    return array


def phases_of(person: Person) -> Phases:
    """Pre, early and late as BreastDCEDL names them: the last one it takes is number 6."""
    site = site_for(person)
    return Phases(0, site.early_index, min(site.late_index, 6))


def release_row(person: Person, patient: Patient) -> dict:
    """The row of BreastDCEDL's MinCrop table, in the release's columns: shape and box are those of the crop."""
    mask = patient.annotator_mask
    row = {"pid": person.patient, "pCR": 0, "n_times": len(patient.series.array), "dataset": person.dataset}
    row |= dict(zip(("pre", "post_early", "post_late"), phases_of(person), strict=True))
    row |= _shape_of(min_crop(mask[None], mask)[1] if mask.any() else mask, patient.series.geometry.spacing_mm)
    if person.odd == "another volume in the table":
        row["tum_vol"] *= 3
    her2 = None if person.odd == "HER2 unknown" else person.her2
    subtype = "HER2pos" if her2 else "HRposHER2neg" if person.hr else "TripleNeg"
    row |= {"age": person.age, "menopause": int(person.menopause == "post"), "race_white": 1, "race_black": 0}
    row |= {"HR": person.hr, "HER2": her2, "HR_HER2_STATUS": None if her2 is None else subtype, "test": person.test}
    return row | {name: int(subtype == name) for name in ("TripleNeg", "HER2pos", "HRposHER2neg")}


def _shape_of(mask, spacing_mm):
    """What the table says of the crop's shape, with its quirks: `n_z` counts the slices with tumour, `eraw` is
    the first row after it, `ecol` the last column in it."""
    box = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    z, rows, columns = ((int(b[0]), int(b[-1])) if b.size else (0, 0) for b in box)
    return {
        "n_xy": mask.shape[1],
        "n_z": max(box[0].size, 1),
        "slice_thick": spacing_mm[0],
        "xy_spacing": spacing_mm[1],
        **dict(zip(("mask_start", "mask_end"), z, strict=True)),
        **{"sraw": rows[0], "eraw": rows[1] + 1, "scol": columns[0], "ecol": columns[1]},
        "tum_vol": float(mask.sum() * np.prod(spacing_mm)),
    }


def lesions_of(person: Person, patient: Patient) -> dict:
    """The row of AMBL's sheet: lesion 1 is malignant, its satellites are benign, receptors are given for three."""
    row, labels = {"Patient ID": person.patient}, patient.focus_labels
    for k in range(1, 7):
        z = np.flatnonzero((labels == k).any((1, 2)))
        there, malignant = z.size > 0, k == 1 and person.odd != "benign"
        place = patient.series.geometry.position_mm((np.median(z), 0, 0))[2] if there else -1
        side = {"left": "L", "right": "R"}[patient.truth.side]
        code = (7 if person.odd == "in situ" else 1) if malignant else 12
        row |= {f"laterality lesion{k}": side if there else -1, f"slice coord lesion{k}": round(float(place), 2)}
        row |= {f"tumor/benign{k}": int(malignant) if there else -1, f"pathology{k}": code if there else -1}
        if k <= 3:
            row |= _receptors(k, person if malignant and there else None)
    return row


def _receptors(number, person):
    """The receptors of one lesion as the sheet spells them: HER2 of the first, HER of the others; -1 is missing."""
    her2 = "HER2" if number == 1 else "HER"
    columns = [f"GRADE{number}", f"isTN{number}", f"KI67[%] {number}"]
    columns += [f"{name} [{unit}] {number}" for name in ("ER", "PR", her2) for unit in ("SII", "%")]
    row = dict.fromkeys(columns, -1)
    if person is None:
        return row
    negative = not (person.her2 or person.hr)
    row |= {f"{her2} [SII] {number}": person.her2, f"isTN{number}": int(negative), f"GRADE{number}": 2}
    return row | {f"ER [SII] {number}": person.hr, f"PR [SII] {number}": person.hr}
