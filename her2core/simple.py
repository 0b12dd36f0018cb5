"""What a network has to beat: regressions on numbers that anybody can take from the images, or knows without them.

First-order and shape numbers: per phase the mean, spread and percentiles of grey inside the lesion, and three
numbers of its outline; and, where nobody has drawn the lesion, the same of the whole crop.  All are taken from the
8-bit images under a run's window, slice by slice, and averaged over a patient's slices: a network sees no less.

The first-order features are those of IBSI (Zwanenburg et al., Radiology 2020;295:328), without binning.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from her2core.dataset import Prepared, read_prepared
from her2core.kinetics import FEATURES, clinical, simple_predictions
from her2core.normalize import PHASES
from her2core.runs import Run

_LEVELS = {"p10": 0.1, "median": 0.5, "p90": 0.9}
_SHAPE = ("log_area", "compactness", "elongation")
LESION = tuple(f"lesion_{phase}_{n}" for phase in PHASES for n in ("mean", "sd", "p10", "p90")) + _SHAPE
CROP = tuple(f"crop_{phase}_{n}" for phase in PHASES for n in ("mean", "sd", *_LEVELS))


def _greys(values):
    """{name: number} of the grey levels of one phase."""
    quantiles = np.quantile(values, [*_LEVELS.values()])
    return {"mean": values.mean(), "sd": values.std()} | dict(zip(_LEVELS, quantiles, strict=True))


def _outline(mask):
    """Log of the area in pixels; perimeter² over 4π area, 1 for a disc; axis ratio of its ellipse of inertia."""
    area, padded = mask.sum(), np.pad(mask, 1)
    edges = sum((padded != np.roll(padded, 1, axis)).sum() for axis in (0, 1))
    perimeter = edges * np.pi / 4  # a smooth outline in any direction has 4/π as many pixel edges as length
    spread = np.linalg.eigvalsh(np.cov(np.argwhere(mask).T, bias=True) + np.eye(2) / 12)  # a pixel has an extent
    return np.log(area), perimeter**2 / (4 * np.pi * area), np.sqrt(spread[1] / spread[0])


def first_order_of_slice(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Image `(3, H, W)` (pre, early, late), lesion `(H, W)` → {name: number}, of LESION and CROP.

    ValueError for a slice without lesion."""
    if not mask.any():
        raise ValueError("empty mask, expected at least one pixel of the lesion")
    found = dict(zip(_SHAPE, map(float, _outline(mask)), strict=True))
    for phase, grey in zip(PHASES, image.astype(float), strict=True):
        for where, values in (("lesion", grey[mask]), ("crop", grey.ravel())):
            found |= {f"{where}_{phase}_{name}": float(n) for name, n in _greys(values).items()}
    return {name: found[name] for name in (*LESION, *CROP)}


def clipped(prepared: Prepared, windows: Sequence[str], patients: Sequence[str]) -> pd.DataFrame:
    """How much of the lesion each window turns white before anything is learnt: a row per window.

    white: share of the lesion's pixels at 255 in the early phase, mean over these patients; q1, median, q3: its
    quartiles; patients: how many."""
    rows = np.flatnonzero(np.isin(prepared.patient, patients))
    masks, found = prepared.masks[rows], []
    for window in windows:
        early = prepared.under(window, rows=rows).images[:, PHASES.index("early")].numpy()
        inside = {"white": (masks & (early == 255)).sum((1, 2)), "lesion": masks.sum((1, 2))}
        pixels = pd.DataFrame(inside).groupby(prepared.patient[rows]).sum()
        share = pixels["white"] / pixels["lesion"]
        quartiles = dict(zip(("q1", "median", "q3"), share.quantile([0.25, 0.5, 0.75]), strict=True))
        found.append({"window": window, "patients": len(share), "white": share.mean()} | quartiles)
    return pd.DataFrame(found)


def first_order(prepared: Prepared, window: str) -> pd.DataFrame:
    """The features of every patient under a window, indexed by patient: the mean of its slices."""
    images = prepared.under(window).images.numpy()
    rows = [first_order_of_slice(*slice_) for slice_ in zip(images, prepared.masks, strict=True)]
    return pd.DataFrame(rows).groupby(np.asarray(prepared.patient), sort=True).mean().rename_axis("patient")


def worksheet(run: Run, patients_csv: Path, endpoint: str) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """kinetics.csv with all that the simple models read, a row per patient; and the columns of each model by its
    name, the one that knows most of the patient without the image's greys last.

    The clinical columns are those of `clinical`, where the table has any."""
    known = clinical(pd.read_csv(patients_csv, dtype={"patient": str}), endpoint)
    sheet = read_prepared(run.prepared, "kinetics.csv", pd.read_csv, dtype={"patient": str})
    models = {"lesion_first_order": LESION, "crop_first_order": CROP, "kinetics": FEATURES}
    if len(known.columns):
        models |= {"clinical": tuple(known), "clinical_kinetics": (*known, *FEATURES)}
    return sheet.join(first_order(run.opened, run.window), on="patient").join(known, on="patient"), models


def simple_table(run: Run, sheet: pd.DataFrame, models: Mapping[str, Sequence[str]], *splits: str) -> pd.DataFrame:
    """The prediction table of `worksheet`'s models on some splits, with the seeds of a run, and its folds."""
    parts = []
    for fold, seeds, seen in run.views(sheet):
        found = simple_predictions(seen, run.cohort, splits, seeds, models)
        inside = found["split"] != "external"
        parts.append(found if fold is None else found.assign(fold=pd.Series(fold, found.index).where(inside)))
    table = pd.concat(parts, ignore_index=True)
    same = [*table.columns.drop("probability")]  # of an external patient every fold of a seed: its mean counts
    return table.groupby(same, sort=False, dropna=False, as_index=False)["probability"].mean().round(6)
