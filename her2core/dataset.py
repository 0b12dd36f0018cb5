"""Packed arrays → what a network is fed.

Slices stay 8-bit and in memory (on the device); an epoch shows every training patient the same number of
times, each time another of its slices.  Augmentation draws first and applies after, so that any augmented
image can be replayed from its draw.
"""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from her2core.formats.boundary import reading
from her2core.normalize import PHASES, SCOPES, Window, columns, maps, piecewise
from her2core.records import file_digest, read_digests

BIAS_FIELDS = ("raw", "n4")


@dataclass(frozen=True)
class Slices:
    """Slices under one window, those of a patient next to each other.

    images: `(N, P, H, W)` uint8.  patient, split: `(N,)` strings.  label: `(N,)` 0 or 1, what a network is to tell:
    the HER2 status, but for the shortcut probe."""

    images: torch.Tensor
    patient: np.ndarray
    split: np.ndarray
    label: np.ndarray

    def of_split(self, *names: str) -> "Slices":
        """The slices of one or more splits."""
        if missing := set(names) - set(self.split):
            found = ", ".join(sorted(set(self.split)))
            raise ValueError(f"no slices in split {', '.join(sorted(missing))}; splits here: {found}")
        return self.where(np.isin(self.split, names))

    def where(self, chosen: np.ndarray) -> "Slices":
        """The slices for which `chosen`, `(N,)`, is true."""
        rows = np.flatnonzero(chosen)
        return Slices(self.images[torch.from_numpy(rows)], self.patient[rows], self.split[rows], self.label[rows])

    def some_patients(self, count: int, seed: int | None = None) -> "Slices":
        """The slices of `count` patients drawn with a seed, or of those that None stands for; in their order."""
        names = self.patient[self.patients()[0]]
        if count > len(names):
            raise ValueError(f"{count} patients wanted, but there are {len(names)}")
        draw = np.random.default_rng([count, 0 if seed is None else seed + 1])
        return self.where(np.isin(self.patient, draw.choice(names, count, replace=False)))

    def patients(self) -> tuple[np.ndarray, np.ndarray]:
        """Row of each patient's first slice, and its number of slices."""
        first = np.flatnonzero(np.append(True, self.patient[1:] != self.patient[:-1]))
        if len(set(self.patient)) != first.size:
            raise ValueError("the slices of a patient must stand together")
        return first, np.diff(np.append(first, self.patient.size))


def seen_by(split: Iterable[str], fold: int | None = None, folds: int = 1) -> np.ndarray:
    """What patients of these splits are to a fold's network, one of so many: train, validation, test or external;
    without a fold all internal ones are train, as each trains some network."""
    after, found = None if fold is None else fold - fold % folds + (fold + 1) % folds, []
    for kind, *own in map(str.split, split):
        if fold is not None and kind not in ("folds", "external"):
            raise ValueError(f"split {kind!r}, expected folds as cohort.folds says; run: dvc repro")
        inside = "test" if str(fold) in own else "validation" if str(after) in own else "train"
        found.append(inside if kind == "folds" else kind)
    return np.array(found, str)


_digest_of = cache(lambda path, *state: file_digest(path))  # state: what changes when the file does


def read_prepared(folder: Path, name: str, read: Callable = np.load, **options) -> Any:
    """read(path, **options) of a file of the stage `prepare`; ValueError unless it is what was written."""
    path, again = Path(folder) / name, f"delete {folder} and run the stage prepare (dvc repro)"
    known = read_digests(path.with_name("digests.csv"), again)
    with reading(path, "what the stage prepare wrote", again):
        stat = path.stat()
        found = _digest_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if found != known.get(name):
            raise ValueError(f"its SHA-256 is {found[:12]}, in digests.csv {known.get(name, 'none')[:12]}")
        return read(path, **options)


@dataclass(frozen=True)
class Prepared:
    """What the stage `prepare` wrote of a cohort, opened: unnormalised slices and exact statistics.

    images: `(N, P, H, W)` uint16, memory-mapped.  quantiles: `(N, scopes, P, L)` uint16 at `levels` `(L,)`;
    moments: `(N, scopes, P, 2)`, mean and standard deviation.  patient, split, dataset: `(N,)` strings.
    label: `(N,)`, the HER2 status.  pixel_mm: `(N,)`."""

    folder: Path
    bias_field: str
    images: np.ndarray
    quantiles: np.ndarray
    moments: np.ndarray
    levels: np.ndarray
    patient: np.ndarray
    split: np.ndarray
    dataset: np.ndarray
    label: np.ndarray
    pixel_mm: np.ndarray

    @classmethod
    def open(cls, folder: Path, bias_field: str = "raw") -> "Prepared":
        """folder: of the stage `prepare`; bias_field: "raw" or "n4".  ValueError where a file is not as written."""
        folder = Path(folder)
        if bias_field not in BIAS_FIELDS:
            raise ValueError(f"bias_field={bias_field!r}: expected one of {', '.join(BIAS_FIELDS)}")
        rows = list(csv.DictReader(read_prepared(folder, "slices.csv", Path.read_text).splitlines()))
        kinds = ("images", "quantiles", "moments")
        arrays = {k: read_prepared(folder, f"{k}_{bias_field}.npy", mmap_mode="r") for k in kinds}
        if any(len(array) != len(rows) for array in arrays.values()):
            found = ", ".join(f"{len(array)} {name}" for name, array in arrays.items())
            raise ValueError(f"{folder}: {len(rows)} rows, {found}; run the stage prepare again")
        texts = {name: np.array([row[name] for row in rows]) for name in ("patient", "split", "dataset")}
        label, pixel_mm = np.array([int(r["label"]) for r in rows]), np.array([float(r["pixel_mm"]) for r in rows])
        levels = read_prepared(folder, "levels.npy")
        return cls(folder, bias_field, **arrays, levels=levels, **texts, label=label, pixel_mm=pixel_mm)

    @cached_property
    def masks(self) -> np.ndarray:
        """The lesion in each slice, bool `(N, H, W)`."""
        return read_prepared(self.folder, "masks.npy", mmap_mode="r")

    @cached_property
    def neighbours(self) -> np.ndarray:
        """The slices below and above each slice, `(N, 2, P, H, W)` uint16."""
        path = self.folder / f"neighbours_{self.bias_field}.npy"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; adjacent slices need prepare.neighbours: true")
        return read_prepared(self.folder, path.name, mmap_mode="r")

    def quantile(self, scope: str, phase: str, level: float) -> np.ndarray:
        """One stored quantile of every slice, `(N,)` uint16, such as ("channel", "early", 0.98)."""
        for name, known in ((scope, SCOPES), (phase, PHASES)):
            if name not in known:
                raise ValueError(f"no stored quantile of {name!r}: expected one of {', '.join(known)}")
        column = columns(self.levels, [level])[0]
        return self.quantiles[:, SCOPES.index(scope), PHASES.index(phase), column]

    def middle(self) -> np.ndarray:
        """Row of the middle slice of each patient, `(n,)`, in the table's order."""
        _, first, count = np.unique(self.patient, return_index=True, return_counts=True)
        return np.sort(first + count // 2)

    @property
    def training(self) -> tuple[np.ndarray, np.ndarray]:
        """What a window may learn from: quantiles `(n, scopes, P, L)` and names `(n,)` of the training patients."""
        train = np.flatnonzero(seen_by(self.split) == "train")
        names, first = np.unique(self.patient[train], return_index=True)  # a patient counts once
        return self.quantiles[train[first]], names

    def under(
        self,
        window: Window | str,
        device: str | torch.device = "cpu",
        neighbours: bool = False,
        rows: np.ndarray | None = None,
    ) -> Slices:
        """The slices under a window (or its name), 8-bit and on `device`; rows: of some only, by number.

        neighbours: images are `(N, 3·P, H, W)` instead, of each phase the slice below, the slice, the slice above;
        all three under the window of the slice."""
        rows = np.arange(len(self.images)) if rows is None else rows
        x, y = maps(window, self.quantiles[rows], self.levels, self.moments[rows], self.training)
        _, phases, height, width = self.images.shape
        shape = (len(rows), phases * (3 if neighbours else 1), height, width)
        out = torch.empty(shape, dtype=torch.uint8, device=device)
        for start in range(0, len(rows), 512):  # in pieces: beside the result, one of them is in memory
            part = slice(start, start + 512)
            block = self.images[rows[part]]
            if neighbours:
                block = with_neighbours(block, self.neighbours[rows[part]])
            shown = piecewise(block, x[part], y[part]).reshape(len(block), *shape[1:])
            out[part] = torch.from_numpy(shown)
        return Slices(out, self.patient[rows], self.split[rows], self.label[rows])


def with_neighbours(images: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Images `(n, P, H, W)` and those below and above `(n, 2, P, H, W)` → `(n, P, 3·H, W)`, stacked downwards."""
    stacked = np.stack([beside[:, 0], images, beside[:, 1]], 2)  # (n, P, 3, H, W)
    return stacked.reshape(*images.shape[:2], -1, images.shape[-1])


def epoch_batches(data: Slices, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Row numbers of one epoch's batches: every patient once, one of its slices drawn at random.

    Batches hold `batch_size` or a little more: a last batch of one patient would break batch normalisation."""
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


def draw_augmentation(n: int, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Inverse affine maps `(n, 2, 3)` in the units of `affine_grid`; drawn on the CPU, the same everywhere."""
    spread = torch.rand(n, 4, generator=generator) * 2 - 1
    angle = torch.deg2rad(spread[:, 0] * config.rotate_deg)
    zoom = 1 + spread[:, 1] * config.scale
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if config.flip else torch.ones(n)
    shift = spread[:, 2:] * 2 * config.shift  # the width is 2 in these units
    rows = (
        (zoom * angle.cos() * mirror, -zoom * angle.sin(), shift[:, 0]),
        (zoom * angle.sin() * mirror, zoom * angle.cos(), shift[:, 1]),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)  # (n, 2, 3)


def augment(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """images `(n, P, H, W)` uint8 and maps `(n, 2, 3)` → float in [0, 1], all phases moved alike."""
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    unit = images.float() / 255
    return functional.grid_sample(unit, grid, padding_mode="border", align_corners=False)
