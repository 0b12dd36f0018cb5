"""Time to bring one patient's phases to 8 bits: her2core beside MONAI and TorchIO, same arrays, same percentiles.

    pip install -e .[bench]
    python benchmarks/normalization.py

Window: each phase from its minimum to its 98 % quantile.  her2core counts integer intensities; the others sort or
partition in floating point.  The results are compared before they are timed: more than one grey level apart is an
error.  The three take turns, some calls each, and the best call counts.  On a busy machine the processor's time
is the fair one, with one thread; the clock's prefers what is short.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import time
from dataclasses import replace

import numpy as np
import torch
import torchio
from monai.transforms import ScaleIntensityRangePercentiles

from her2core.normalize import line, piecewise, statistics
from her2core.phantom.patient import make_patient
from her2core.phantom.sites import SITES

SHAPES = {(24, 128, 128): 5, (80, 256, 256): 2}  # voxels of a phase: turns
CALLS = 10  # of each package in a turn, the first with cold caches


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


def best_times_ms(phases, turns):
    """Best clock and processor time of each function: {name: (2,)}."""
    best = dict.fromkeys(FUNCTIONS, np.inf)
    for name in [name for _ in range(turns) for name in FUNCTIONS for _ in range(CALLS)]:
        start = time.perf_counter(), time.process_time()
        FUNCTIONS[name](phases)
        end = time.perf_counter(), time.process_time()
        best[name] = np.minimum(best[name], 1000 * np.subtract(end, start))
    return best


def main():
    default = torch.get_num_threads()
    print("| phases, uint16 | threads | package | clock, ms | processor, ms | × her2core | grey levels apart |")
    print("|---|---|---|---|---|---|---|")
    for shape, turns in SHAPES.items():
        phases = phantom_phases(shape)
        apart = grey_levels_apart(phases)
        for threads in sorted({1, default}):
            torch.set_num_threads(threads)
            best = best_times_ms(phases, turns)
            for name, (clock, processor) in best.items():
                ratio = " / ".join(f"{r:.1f}" for r in best[name] / best["her2core"])
                row = (phases.shape, threads, name, f"{clock:.1f}", f"{processor:.1f}", ratio, apart[name])
                print("|", " | ".join(map(str, row)), "|")


if __name__ == "__main__":
    main()
