"""Packed arrays → what a network is fed.

Slices stay 8-bit and in memory (on the device); an epoch shows every training patient the same number of
times, each time another of its slices.  Augmentation draws first and applies after, so that any augmented
image can be replayed from its draw.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from her2core.normalize import Window, knots, learn_standard, piecewise

BIAS_FIELDS = ("raw", "n4")
PREPARED = ("images", "quantiles", "moments")


@dataclass(frozen=True)
class Slices:
    """Slices under one window, those of a patient next to each other.

    images: `(N, P, H, W)` uint8.  patient, split: `(N,)` strings; her2: `(N,)` 0 or 1.
    """

    images: torch.Tensor
    patient: np.ndarray
    split: np.ndarray
    her2: np.ndarray

    def of_split(self, *names):
        """The slices of one or more splits."""
        if missing := set(names) - set(self.split):
            found = ", ".join(sorted(set(self.split)))
            raise ValueError(f"no slices in split {', '.join(sorted(missing))}; splits here: {found}")
        rows = np.flatnonzero(np.isin(self.split, names))
        return Slices(self.images[torch.from_numpy(rows)], self.patient[rows], self.split[rows], self.her2[rows])

    def patients(self):
        """Row of each patient's first slice, and its number of slices."""
        first = np.flatnonzero(np.append(True, self.patient[1:] != self.patient[:-1]))
        if len(set(self.patient)) != first.size:
            raise ValueError("the slices of a patient must stand together")
        return first, np.diff(np.append(first, self.patient.size))


def read_prepared(folder, bias_field):
    """What the stage `prepare` wrote for every slice: images, quantiles and moments (memory-mapped), the
    quantiles' levels, and the labels of `Slices`.
    """
    if bias_field not in BIAS_FIELDS:
        raise ValueError(f"bias_field={bias_field!r}: expected one of {', '.join(BIAS_FIELDS)}")
    arrays = {name: np.load(folder / f"{name}_{bias_field}.npy", mmap_mode="r") for name in PREPARED}
    with open(folder / "slices.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    if any(len(array) != len(rows) for array in arrays.values()):
        found = ", ".join(f"{len(array)} {name}" for name, array in arrays.items())
        raise ValueError(f"{folder}: {len(rows)} rows, {found}")
    patient, split = (np.array([row[c] for row in rows]) for c in ("patient", "split"))
    labels = patient, split, np.array([int(row["her2"]) for row in rows])
    return *arrays.values(), np.load(folder / "levels.npy"), labels


def load_standard(folder, window, bias_field="raw"):
    """What a window has learnt on a cohort's training patients: Nyúl's standard, None for any other method.

    A case outside the cohort needs it for its own `knots`.
    """
    if window.method != "nyul":
        return None
    _, quantiles, _, levels, (patient, split, _) = read_prepared(Path(folder), bias_field)
    train = np.flatnonzero(split == "train")
    names, first = np.unique(patient[train], return_index=True)  # a patient counts once, however many its slices
    return learn_standard(window, quantiles[train[first]], levels, names)


def load_slices(folder, window, bias_field="raw", device="cpu", neighbours=False):
    """Prepared arrays of a cohort, brought to 8 bits.

    folder: what the stage `prepare` wrote; window: a `Window` or its name; bias_field: "raw" or "n4".
    neighbours: images are `(N, 3·P, H, W)` instead, of each phase the slice below, the slice, the slice above;
    all three under the window of the slice.
    """
    window = Window.parse(window) if isinstance(window, str) else window
    images, quantiles, moments, levels, labels = read_prepared(Path(folder), bias_field)
    x, y = knots(window, quantiles, levels, moments, load_standard(folder, window, bias_field))
    beside = load_neighbours(Path(folder), bias_field) if neighbours else None
    n, phases, height, width = images.shape
    shape = (n, phases * (3 if neighbours else 1), height, width)
    out = torch.empty(shape, dtype=torch.uint8, device=device)
    for start in range(0, n, 512):  # in pieces: beside the result, one of them is in memory
        part = slice(start, start + 512)
        block = images[part] if beside is None else with_neighbours(images[part], beside[part])
        shown = piecewise(block, x[part], y[part]).reshape(len(block), *shape[1:])
        out[part] = torch.from_numpy(shown)
    return Slices(out, *labels)


def load_neighbours(folder, bias_field):
    path = folder / f"neighbours_{bias_field}.npy"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; adjacent slices need prepare.neighbours: true")
    return np.load(path, mmap_mode="r")


def with_neighbours(images, beside):
    """Images `(n, P, H, W)` and those below and above `(n, 2, P, H, W)` → `(n, P, 3·H, W)`, stacked downwards."""
    stacked = np.stack([beside[:, 0], images, beside[:, 1]], 2)  # (n, P, 3, H, W)
    return stacked.reshape(*images.shape[:2], -1, images.shape[-1])


def epoch_batches(data, batch_size, generator):
    """Row numbers of one epoch's batches: every patient once, one of its slices drawn at random.

    Batches hold `batch_size` or a little more, so that none is a lonely rest on which batch normalisation
    fails.
    """
    first, count = (torch.from_numpy(v) for v in data.patients())
    if len(first) < 2:
        raise ValueError(f"an epoch needs two patients or more, found {len(first)}")
    order = torch.randperm(len(first), generator=generator)
    pick = torch.rand(len(first), generator=generator)
    rows = (first + (pick * count).long())[order]
    return rows.tensor_split(max(len(first) // batch_size, 1))


@dataclass(frozen=True)
class AugmentConfig:
    """rotate_deg, scale, shift: half-ranges (degrees, fraction, fraction of the width); flip: mirror both axes."""

    rotate_deg: float = 180.0
    scale: float = 0.15
    shift: float = 0.08
    flip: bool = True


def draw_augmentation(n, config, generator):
    """Inverse affine maps `(n, 2, 3)` in the units of `affine_grid`; drawn on the CPU, the same everywhere."""
    spread = torch.rand(n, 4, generator=generator) * 2 - 1
    angle = torch.deg2rad(spread[:, 0] * config.rotate_deg)
    zoom = 1 + spread[:, 1] * config.scale
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if config.flip else torch.ones(n)
    shift = spread[:, 2:] * 2 * config.shift  # the width is 2 in these units
    rows = (
        (zoom * angle.cos() * mirror, -zoom * angle.sin(), shift[:, 0]),
        (
            zoom * angle.sin() * mirror,
            zoom * angle.cos(),
            shift[:, 1],
        ),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)  # (n, 2, 3)


def augment(images, maps):
    """images `(n, P, H, W)` uint8 and maps `(n, 2, 3)` → float in [0, 1], all phases moved alike."""
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    unit = images.float() / 255
    return functional.grid_sample(unit, grid, padding_mode="border", align_corners=False)
