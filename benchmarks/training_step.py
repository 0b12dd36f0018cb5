"""A training step of the embedded study's network on one core, beside plain PyTorch, and where its time goes.

    python benchmarks/training_step.py        # minutes; writes benchmarks/training_step.json

Plain: the same network, recipe and optimiser, written with torchvision's and PyTorch's own layers: each phase
repeated to three channels, parallel attention kernels one by one.  It is tried channels last and first, and all
at two batch sizes.  The rivals take turns, a few steps each; times are those of the processor, medians over the
steps, and first of all the losses have to agree.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
import time
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from her2core.config import Study
from her2core.baselines import ModelConfig
from her2core.convolution import Conv3x3
from her2core.dataset import AugmentConfig, augment, draw_augmentation
from her2core.model import AttentionResNet, MultiScaleSpatialAttention, ThdaResNet
from her2core.preprocess import PrepareConfig
from her2core.train import TrainConfig, begin
from timing import machine, write

ROUNDS, STEPS, BATCHES = 12, 5, (32, 64)
STUDY = Study.open("embedded")
PX, CONFIG = STUDY.params("prepare", PrepareConfig).crop_px, STUDY.params("models", ModelConfig).thda
AUGMENT = AugmentConfig()


class PlainAttention(MultiScaleSpatialAttention):
    def forward(self, x):
        summary = torch.stack((x.mean(1), x.amax(1)), 1)
        return (sum(scale(summary) for scale in self.scales) + self.bias).sigmoid()


class PlainThda(ThdaResNet):
    """THDA with stock layers; the same parameters under the same names."""

    def __init__(self):
        super().__init__(CONFIG)
        for module in self.modules():
            if isinstance(module, MultiScaleSpatialAttention):
                module.__class__ = PlainAttention
            if isinstance(module, Conv3x3):
                module.__class__ = nn.Conv2d
            if isinstance(module, AttentionResNet):
                module.relu, module.maxpool = nn.Identity(), nn.Sequential(nn.ReLU(inplace=True), module.maxpool)

    def heads(self, x):
        return super().heads(x).expand(-1, 3, -1, -1)


def prepare(build, batch, memory_format):
    """A training of this network: () → its next step, which returns the loss and the seconds of its parts."""
    config = TrainConfig(batch_size=batch, device="cpu", threads=1)
    training = begin(build, torch.device("cpu"), config, seed=0)
    training.network.to(memory_format=memory_format).train()
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (1000, 3, PX, PX), dtype=torch.uint8, generator=draw)
    labels = (torch.rand(1000, generator=draw) < 0.4).float()

    def step():
        clock = [time.thread_time()]
        rows = torch.randint(len(images), (batch,), generator=draw)
        moved = augment(images[rows], draw_augmentation(batch, AUGMENT, draw))
        clock.append(time.thread_time())
        loss = functional.binary_cross_entropy_with_logits(training.network(moved), labels[rows])
        clock.append(time.thread_time())
        training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clock.append(time.thread_time())
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), config.gradient_clip)
        training.optimizer.step()
        clock.append(time.thread_time())
        return loss.item(), np.diff(clock)

    return step


def main():
    about, ours = machine("numpy", "torch", "torchvision"), partial(ThdaResNet, CONFIG)
    forms = {"plain, channels last": (PlainThda, torch.channels_last)}
    forms |= {"plain, channels first": (PlainThda, torch.contiguous_format)}
    forms |= {"her2core": (ours, torch.channels_last)}
    rivals = {f"{name}, batch {n}": (prepare(f[0], n, f[1]), n) for n in BATCHES for name, f in forms.items()}
    times = {name: [] for name in rivals}
    for number in range(ROUNDS):
        losses = {}
        for name, (step, batch) in rivals.items():
            torch.manual_seed(number)  # the same dropout
            each = [step() for _ in range(STEPS)]
            losses.setdefault(batch, []).append(each[0][0])
            times[name] += [parts for _, parts in each[1:]]  # after a step in which its data come into the cache
        if number == 0:
            assert all(np.allclose(of, of[0], rtol=1e-3) for of in losses.values()), losses
    table = {}
    for name, (_, batch) in rivals.items():
        parts = np.array(times[name])
        share = np.median(parts, 0) / np.median(parts, 0).sum()
        said = dict(zip(("augment", "forward", "backward", "optimiser"), share.round(3).tolist(), strict=True))
        table[name] = {"slices_per_s": round(batch / float(np.median(parts.sum(1))), 1), "share": said}
        print(f"{name:32s} {table[name]['slices_per_s']:7.1f} slices/s ", said, flush=True)
    plain, own = (max(v["slices_per_s"] for k, v in table.items() if k.startswith(s)) for s in ("plain", "her2"))
    result = {
        "machine": about,
        "pixels": PX,
        "steps": ROUNDS * (STEPS - 1),
        "forms": table,
        "gain": round(own / plain, 2),
    }
    print(f"{result['gain']} × the fastest plain form")
    write(__file__, result)


if __name__ == "__main__":
    main()
