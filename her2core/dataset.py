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

from her2core.normalize import limits, to_8bit_torch

BIAS_FIELDS = ("raw", "n4")


@dataclass(frozen=True)
class Slices:
    """Slices under one window, those of a patient next to each other.

    images: `(N, P, H, W)` uint8.  patient, split: `(N,)` strings; her2: `(N,)` 0 or 1.
    """

    images: torch.Tensor
    patient: np.ndarray
    split: np.ndarray
    her2: np.ndarray

    def of_split(self, name):
        """The slices of one split."""
        rows = np.flatnonzero(self.split == name)
        if rows.size == 0:
            raise ValueError(f"no slices in split {name!r}; splits here: {', '.join(sorted(set(self.split)))}")
        return Slices(self.images[torch.from_numpy(rows)], self.patient[rows], self.split[rows], self.her2[rows])

    def patients(self):
        """Row of each patient's first slice, and its number of slices."""
        first = np.flatnonzero(np.append(True, self.patient[1:] != self.patient[:-1]))
        if len(set(self.patient)) != first.size:
            raise ValueError("the slices of a patient must stand together")
        return first, np.diff(np.append(first, self.patient.size))


def load_slices(folder, window, bias_field="raw", device="cpu"):
    """Prepared arrays of a cohort, windowed to 8 bits.

    folder: what the stage `prepare` wrote; bias_field: "raw" or "n4".
    """
    folder = Path(folder)
    if bias_field not in BIAS_FIELDS:
        raise ValueError(f"bias_field={bias_field!r}: expected one of {', '.join(BIAS_FIELDS)}")
    images = np.load(folder / f"images_{bias_field}.npy", mmap_mode="r")
    quantiles, levels = np.load(folder / f"quantiles_{bias_field}.npy"), np.load(folder / "levels.npy")
    with open(folder / "slices.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    if not len(rows) == len(images) == len(quantiles):
        raise ValueError(f"{folder}: {len(rows)} rows, {len(images)} images, {len(quantiles)} quantiles")
    lo, hi = (torch.from_numpy(v).to(device) for v in limits(window, quantiles, levels))
    out = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), 512):  # in pieces: a whole I-SPY in float32 would be 5 GB
        part = slice(start, start + 512)
        raw = torch.from_numpy(images[part].astype(np.float32)).to(device)
        out[part] = to_8bit_torch(raw, lo[part], hi[part])
    patient, split = (np.array([row[c] for row in rows]) for c in ("patient", "split"))
    return Slices(out, patient, split, np.array([int(row["her2"]) for row in rows]))


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
