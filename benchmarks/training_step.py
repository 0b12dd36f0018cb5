"""Where the time of a training step goes on the CPU: the embedded study's network, one thread, batches of 32.

    python benchmarks/training_step.py

Times are those of the processor, so that other work on the machine counts little; medians over steps.  The window
is applied once per run, not at each step; its row says what it would cost there.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import time
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from her2core.dataset import augment, draw_augmentation
from her2core.model import ThdaConfig, ThdaResNet
from her2core.normalize import line, piecewise
from her2core.train import TrainConfig, begin

STEPS, WARM_UP, BATCH, SLICES = 60, 5, 32, 5020
CONFIG = TrainConfig(batch_size=BATCH, device="cpu", threads=1)
PREPARATION = ("window", "draw", "augment")


def measure(step):
    """Median seconds of each part of `step`, which calls `done(name)` at the end of a part."""
    times, start = {}, 0.0

    def done(name):
        nonlocal start
        times.setdefault(name, []).append(time.thread_time() - start)
        start = time.thread_time()

    for _ in range(WARM_UP + STEPS):
        start = time.thread_time()
        step(done)
    return {name: float(np.median(values[WARM_UP:])) for name, values in times.items()}


def training_step(training, images, labels, done):
    rows = torch.randint(len(images), (BATCH,), generator=training.generator)
    raw = images[rows].numpy()
    done("rest")
    shown = torch.from_numpy(
        piecewise(raw, *line(np.zeros(raw.shape[:2], np.float32), np.full(raw.shape[:2], 1e3, np.float32)))
    )
    done("window")
    maps = draw_augmentation(BATCH, CONFIG.augment, training.generator)
    done("draw")
    moved = augment(shown, maps)
    done("augment")
    loss = functional.binary_cross_entropy_with_logits(training.network(moved), labels[rows])
    done("forward")
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    done("backward")
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), CONFIG.gradient_clip)
    done("clip")
    training.optimizer.step()
    done("AdamW")


def main():
    training = begin(partial(ThdaResNet, ThdaConfig(width=16, dropout=0.1)), torch.device("cpu"), CONFIG, seed=0)
    training.network.train()
    images = torch.randint(0, 1200, (SLICES, 3, 32, 32), dtype=torch.uint16, generator=training.generator)
    labels = (torch.rand(SLICES, generator=training.generator) < 0.4).float()
    times = measure(partial(training_step, training, images, labels))
    total = sum(times.values())
    for name, seconds in times.items():
        print(f"{name:10s} {1000 * seconds:7.2f} ms {100 * seconds / total:5.1f} %")
    share = sum(times[name] for name in PREPARATION) / total
    print(f"{'a step':10s} {1000 * total:7.2f} ms; window and augmentation {100 * share:.1f} %")


if __name__ == "__main__":
    main()
