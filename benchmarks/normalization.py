"""Time to bring one patient's phases to 8 bits: her2core beside MONAI and TorchIO, same arrays, same percentiles.

    pip install -e .[bench]
    python benchmarks/normalization.py

Window: each phase from its minimum to its 98 % quantile, one thread.  her2core counts intensities and shifts
them once; the others sort or partition in floating point.  The results are compared before they are timed.
"""

import time

import numpy as np
import torch
import torchio
from monai.transforms import ScaleIntensityRangePercentiles

from her2core.normalize import exact_quantiles, to_8bit
from her2core.phantom import SITES, make_patient

REPEATS = 7


def ours(phases):
    limits = np.array([exact_quantiles(p, (0.0, 0.98)) for p in phases], np.float32)[None]  # (1, P, 2)
    flat = phases.reshape(1, len(phases), -1, phases.shape[-1])  # (1, P, Z·Y, X)
    return to_8bit(flat, limits[..., 0], limits[..., 1]).reshape(phases.shape)


def monai(phases):
    scale = ScaleIntensityRangePercentiles(0, 98, 0, 255, clip=True, channel_wise=True)
    return np.rint(np.asarray(scale(torch.from_numpy(phases.astype(np.float32))))).astype(np.uint8)


def torchio_(phases):
    scale = torchio.RescaleIntensity((0, 255), percentiles=(0, 98))
    scaled = [scale(torch.from_numpy(p[None].astype(np.float32))) for p in phases]
    return torch.cat(scaled).round().to(torch.uint8).numpy()


def best_time_s(function, phases):
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function(phases)
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    torch.set_num_threads(1)
    site = SITES["spy1"]
    phases = make_patient(1, 1, site).series.array
    print(f"one patient, {phases.shape}, uint16; best of {REPEATS}")
    reference, base = ours(phases), best_time_s(ours, phases)
    for name, function in {"her2core": ours, "MONAI": monai, "TorchIO": torchio_}.items():
        difference = np.abs(function(phases).astype(int) - reference).max()
        seconds = best_time_s(function, phases)
        print(f"{name:9s} {1000 * seconds:7.1f} ms {seconds / base:5.1f} ×, at most {difference} grey levels apart")


if __name__ == "__main__":
    main()
