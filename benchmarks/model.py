"""Cost of one THDA forward pass beside plain ResNet-34 on as many images, and folded beside three calls; then the
time per patient of every network of the study.

    python benchmarks/model.py        # minutes; writes benchmarks/model.json

THDA passes the three phases of N slices through one backbone call of 3·N grey images.  Compared with torchvision's
ResNet-34 on the same 3·N images, repeated to three channels as it needs them, and with three calls of N images of
THDA's own backbone.  A patient's slices and the networks are those of two studies, with random weights.  One
thread, no gradients; the calls take turns, medians of processor seconds count.
"""

import her2core  # noqa: F401, I001 - first: it pins the instructions of numpy and torch
from functools import partial

import torch
from torchvision.models import resnet34

from her2core.baselines import MODELS, ModelConfig, build_model
from her2core.config import Study
from her2core.model import ThdaConfig, ThdaResNet
from her2core.preprocess import PrepareConfig
from timing import in_turns, machine, spread, times_of, write

ROUNDS, SIZES = 11, ((4, 224), (32, 64))  # slices, pixels
STUDIES = ("embedded", "ispy")


def cases(n, px):
    """{name: call} on the same slices."""
    torch.manual_seed(0)
    x = torch.rand(n, 3, px, px).contiguous(memory_format=torch.channels_last)
    thda, plain = ThdaResNet(ThdaConfig(width=64)).eval(), resnet34().eval()
    thda, plain = (net.to(memory_format=torch.channels_last) for net in (thda, plain))
    folded = x.transpose(0, 1).reshape(-1, 1, px, px)  # (3·N, 1, H, W)
    colour = folded.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)
    grey = (folded - thda.mean) / thda.std
    return {
        "THDA": lambda: thda(x),
        "torchvision ResNet-34, 3N images": lambda: plain(colour),
        "THDA's backbone, one call of 3N": lambda: thda.backbones[0](grey),
        "THDA's backbone, three calls of N": lambda: [thda.backbones[0](part) for part in grey.split(n)],
    }


def networks(study):
    """{network: call} on the slices of one patient."""
    models, prepare = study.params("models", ModelConfig), study.params("prepare", PrepareConfig)
    x = torch.rand(prepare.slices, 3, prepare.crop_px, prepare.crop_px)
    built = {name: build_model(name, models, prepare.crop_px, pretrained=False) for name in MODELS}
    return {name: partial(model.eval(), x) for name, model in built.items()}


def compared(about, calls, anchors):
    """Seconds of each call, and how many times those of each anchor; printed beside the first anchor."""
    times = in_turns(calls, ROUNDS)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    arms = {}
    for name, seconds in times.items():
        arms[name] = {"seconds": spread(seconds)} | {f"times {to}": times_of(times, name, to) for to in anchors}
        ratio = arms[name][f"times {anchors[0]}"]["median"]
        print(f"  {name:36s} {1000 * arms[name]['seconds']['median']:8.1f} ms   {ratio:5.2f} × {anchors[0]}")
    return about | {"arms": arms}


@torch.inference_mode()
def main():
    torch.set_num_threads(1)
    about = machine("torch", "torchvision", "transformers")
    against = ["torchvision ResNet-34, 3N images", "THDA's backbone, one call of 3N"]
    passes = [compared({"slices": n, "pixels": px}, cases(n, px), against) for n, px in SIZES]
    patients = [compared({"study": name}, networks(Study.open(name)), ["resnet34_rgb"]) for name in STUDIES]
    write(__file__, {"machine": about, "passes": passes, "patients": patients})


if __name__ == "__main__":
    main()
