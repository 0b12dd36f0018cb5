"""Training on a GPU: THDA at full size on an array of I-SPY's size, beside the loop one would write first.

    python -m benchmarks.gpu            # on CUDA, minutes; writes benchmarks/gpu.json
    python -m benchmarks.gpu --smoke    # tiny sizes on any machine: does it run at all; writes nothing

A slice is three phases of 224 × 224 pixels.  `of_peak`: the operations of convolutions and matrix products, over
those of a large bfloat16 matrix product in the same time.  `busy`: time in which a kernel ran.  `same_bytes`: two
trainings of one seed, an epoch long, end with equal weights.
Needs torch, torchvision, numpy, scipy, scikit-learn and safetensors.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from her2core.dataset import Slices
from her2core.model import AttentionResNet, ThdaConfig, ThdaResNet
from her2core.train import TrainConfig, begin, choose_device, mixed_precision, train_one_epoch

EPOCHS = 3  # timed, after one to warm up
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Size:
    patients: int = 1149
    each: int = 5
    pixels: int = 224
    batches: tuple = (32, 128)
    matrix: int = 8192
    workers: int = os.cpu_count() or 1
    network: ThdaConfig = ThdaConfig()


SMOKE = Size(12, 2, 32, (6,), 128, 0, ThdaConfig(width=8, blocks=(1, 1, 1, 1)))


def made_up(size):
    """Slices of random pixels in main memory; a third of the patients are positive."""
    shape = (size.patients * size.each, 3, size.pixels, size.pixels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = np.repeat([f"p{k:04d}" for k in range(size.patients)], size.each)
    label = np.repeat(np.arange(size.patients) % 3 == 0, size.each).astype(int)
    return Slices(images, names, np.repeat("train", names.size), label)


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(function, device, repeats):
    """Median time of a call, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def matrix_rate(device, n):
    """Operations per second of a bfloat16 product of two random n × n matrices."""
    a, b = torch.randn(2, n, n, device=device).to(torch.bfloat16)
    return 2 * n**3 * 10 / seconds(lambda: [a @ b for _ in range(10)], device, 5)


def operations(training, data, config, slices=4):
    """Operations of a training step per slice: those of its convolutions and matrix products."""
    images = data.images[:slices].float() / 255
    training.model.train()
    with FlopCounterMode(display=False) as counter:
        with mixed_precision(training.device, config):
            logits = training.model(images)
        logits.float().sum().backward()
    training.optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops() / slices


def kernel_seconds(function):
    """Time in which the GPU ran a kernel or a copy during a call."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in ON_GPU)
    busy, end = 0.0, 0.0
    for first, last in spans:
        busy += max(last - max(first, end), 0.0)
        end = max(end, last)
    return busy / 1e6


def weights_after_an_epoch(data, size, config):
    training = begin(partial(ThdaResNet, size.network), data.images.device, config, seed=1)
    train_one_epoch(training, data, config)
    return list(training.model.state_dict().values())


def ours(data, size, config, peak):
    """Rates of her2core's loop."""
    device = data.images.device
    training = begin(partial(ThdaResNet, size.network), device, config, seed=0)
    per_slice = operations(training, data, config)
    epoch = partial(train_one_epoch, training, data, config)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    time_s = seconds(epoch, device, EPOCHS)
    rate = size.patients / time_s
    pairs = zip(*(weights_after_an_epoch(data, size, config) for _ in range(2)), strict=True)
    return {
        "slices_per_s": round(rate, 1),
        "of_peak": round(rate * per_slice / peak, 4),
        "gflop_per_slice": round(per_slice / 1e9, 2),
        "gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
        "busy": round(kernel_seconds(epoch) / time_s, 3) if on_gpu else None,
        "same_bytes": all(torch.equal(a, b) for a, b in pairs),
    }


class OneByOne(Dataset):
    """A random slice of each patient, augmented alone on the CPU."""

    def __init__(self, data, each):
        self.data, self.each = data, each
        self.move = v2.Compose(
            [
                v2.RandomAffine(180, (0.08, 0.08), (0.85, 1.15), interpolation=v2.InterpolationMode.BILINEAR),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self):
        return len(self.data.label) // self.each

    def __getitem__(self, patient):
        row = patient * self.each + int(torch.randint(self.each, ()))
        return self.move(self.data.images[row]), float(self.data.label[row])


class ThreeCalls(nn.Module):
    """THDA as it reads: the shared backbone called once per phase, on grey images repeated to three channels."""

    def __init__(self, config):
        super().__init__()
        self.backbone = AttentionResNet(config)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(3 * self.backbone.channels, 1))

    def forward(self, x):
        phases = [(x[:, k : k + 1].repeat(1, 3, 1, 1) - 0.45) / 0.23 for k in range(3)]
        return self.head(torch.cat([self.backbone(phase)[0] for phase in phases], 1)).squeeze(1)


def plain_epoch(model, loader, optimizer, device):
    for images, labels in loader:
        loss = functional.binary_cross_entropy_with_logits(model(images.to(device)), labels.float().to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if not np.isfinite(loss.item()):
            raise ValueError("loss is not finite")


def plain(data, size, batch, device):
    """Slices per second of the plain loop: float32, default memory format, augmentation in loader processes."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True  # PyTorch's defaults
    workers = {"num_workers": size.workers, "persistent_workers": size.workers > 0}
    loader = DataLoader(OneByOne(data, size.each), batch, shuffle=True, drop_last=True, **workers)
    model = ThreeCalls(size.network).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    epoch = partial(plain_epoch, model, loader, optimizer, device)
    return len(loader) * batch / seconds(epoch, device, 1)


def variants(batch, device):
    base = TrainConfig(batch_size=batch, lr=1e-4, device=device.type, epochs=100)
    yield "deterministic", base
    yield "fast", replace(base, deterministic=False)
    if device.type == "cuda":
        yield "compiled", replace(base, deterministic=False, compile=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    size, device = (SMOKE if smoke else Size()), choose_device("auto")
    if device.type != "cuda" and not smoke:
        raise SystemExit("no CUDA device here: --smoke runs the same code at tiny sizes")
    data = made_up(size)
    resident = replace(data, images=data.images.to(device))
    peak = matrix_rate(device, size.matrix)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    found = {"device": name, "torch": torch.__version__, "bf16_tflop_per_s": round(peak / 1e12, 3), "runs": []}
    print(found, flush=True)
    for batch in size.batches:
        base = plain(data, size, batch, device)
        print(f"batch {batch}: plain loop {base:.1f} slices/s, {size.workers} loader processes", flush=True)
        for label, config in variants(batch, device):
            row = {"batch": batch, "variant": label} | ours(resident, size, config, peak)
            row["times_plain"] = round(row["slices_per_s"] / base, 2)
            found["runs"].append(row)
            print(row, flush=True)
    if not smoke:
        Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
