"""Time to bring one patient's phases to 8 bits: her2core beside MONAI and TorchIO, same arrays, same percentiles.

    pip install -e .[bench]
    python benchmarks/normalization.py        # a minute; writes benchmarks/normalization.json

Window: each phase from its minimum to its 98 % quantile.  her2core counts integer intensities; the others sort or
partition in floating point.  The results are compared before they are timed: more than one grey level apart is an
error.  The three take turns, so that none finds its data in the cache that the others do not, on one thread;
medians of processor seconds count.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torchio
from monai.transforms import ScaleIntensityRangePercentiles

from her2core.normalize import line, piecewise, statistics
from her2core.phantom.patient import make_patient
from her2core.phantom.sites import SITES
from timing import in_turns, machine, spread, times_of, write

SHAPES = {(24, 128, 128): 41, (80, 256, 256): 15}  # voxels of a phase: rounds


def ours(phases):
    limits = np.array([statistics(phase, (0.0, 0.98))[0] for phase in phases], np.float32)  # (P, 2)
    lo, hi = (np.broadcast_to(v, (phases.shape[1], len(phases))) for v in limits.T)
    return piecewise(phases.swapaxes(0, 1), *line(lo, hi)).swapaxes(0, 1)


def monai(phases):
    scale = ScaleIntensityRangePercentiles(0, 98, 0, 255, clip=True, channel_wise=True)
    return np.rint(np.asarray(scale(torch.from_numpy(phases.astype(np.float32))))).astype(np.uint8)


def torchio_(phases):
    scale = torchio.RescaleIntensity((0, 255), percentiles=(0, 98))
    scaled = [scale(torch.from_numpy(p[None].astype(np.float32))) for p in phases]
    return torch.cat(scaled).round().to(torch.uint8).numpy()


FUNCTIONS = {"her2core": ours, "MONAI": monai, "TorchIO": torchio_}


def phantom_phases(shape):
    """Pre, early and late phase of a phantom patient on a grid of `shape`: `(3, *shape)` uint16."""
    site = SITES["spy1"]
    spacing_mm = np.multiply(site.spacing_mm, site.shape) / shape
    site = replace(site, shape=shape, spacing_mm=tuple(spacing_mm.tolist()))
    return make_patient(1, 1, site).series.array[[0, site.early_index, site.late_index]]


def grey_levels_apart(phases):
    """Largest difference of each function's result from her2core's."""
    reference = ours(phases).astype(int)
    apart = {name: int(np.abs(function(phases) - reference).max()) for name, function in FUNCTIONS.items()}
    if max(apart.values()) > 1:
        raise ValueError(f"results differ: grey levels apart {apart}, expected 1 at most")
    return apart


def one_shape(shape, rounds):
    """A row for each package: times, and how many times as long as her2core's it takes."""
    phases = phantom_phases(shape)
    apart = grey_levels_apart(phases)
    times = in_turns({name: partial(function, phases) for name, function in FUNCTIONS.items()}, rounds)
    return [
        {"phases": phases.shape, "package": name, "seconds": spread(seconds, 5)}
        | {"times_her2core": times_of(times, name, "her2core"), "grey_levels_apart": apart[name]}
        for name, seconds in times.items()
    ]


def main():
    about = machine("numpy", "torch", "monai", "torchio")
    torch.set_num_threads(1)
    rows = [row for shape, rounds in SHAPES.items() for row in one_shape(shape, rounds)]
    print("| phases, uint16 | package | ms (lowest to highest) | × her2core | grey levels apart |")
    print("|---|---|---|---|---|")
    for row in rows:
        ms = "{median:.1f} ({lowest:.1f} to {highest:.1f})".format(
            **{k: 1000 * v for k, v in row["seconds"].items()}
        )
        cells = (row["phases"], row["package"], ms, f"{row['times_her2core']['median']:.1f}")
        print("|", " | ".join(map(str, (*cells, row["grey_levels_apart"]))), "|")
    write(__file__, {"machine": about, "rows": rows})


if __name__ == "__main__":
    main()
