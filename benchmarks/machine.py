"""Whether this machine gives the committed bytes:  python benchmarks/machine.py [--check | --pins]

Small pieces of the study are computed and their digests compared with those of the machine that made the committed
results.  Takes seconds.  The exit status is 0; with --check it is 1 if a piece differs.  --pins prints what
belongs in the environment of what is not started from here, such as Dask's workers.
"""

from her2core import INSTRUCTIONS, PINS  # noqa: I001 - first: it pins the instructions of numpy and torch

import hashlib
import platform
import sys
import textwrap
from collections.abc import Callable
from dataclasses import astuple, replace
from importlib.metadata import version

import numpy as np

from her2core.bias_field import N4Config, log_bias_field
from her2core.formats.volume import Geometry
from her2core.phantom.patient import make_patient
from her2core.phantom.sites import SITES
from her2core.phantom.truth import draw_truth

PYTHON = "3.11"  # of the committed results; requirements.txt has other packages for later versions
_PACKAGES = ("numpy", "scipy", "scikit-learn", "SimpleITK", "torch")
EXPECTED: dict[str, str] = {  # made with pinned instructions and the packages of requirements.txt for PYTHON
    "drawn patients": "b9e5aadaf19637a782bed522b00079fdff9e5bb7d8b0ab78e13cbecdfcaa0f2b",
    "phantom image": "2ff4a87379127c7c6b1530d3ec09304a7c56e669c8d7efc2a3c09ae1f8bfd8c6",
    "N4 field": "9851efef7307633dba75fea4181cb7f48b36ee9a37b4291f2e047b1ec5c45cbb",
    "logistic regression": "60ad4ff3e8fbbf8e4110f573bf672bdc9ae2310df2fbe40f02060551de1cd481",
    "network: start": "f24bbef32008d0199961840faddc4b4fc79a83b2187ac2e27e5ed422f981fca0",
    "network: gradients": "7a625bcdd298ceb3d436b1cd3c2b91bd3e55947d0909e6acc9e6794d3eb1860d",
    "network: step": "acd6e761e4049956e2f350943b1e3069cdc32e178ddf88068f9b5e532c153679",
    "network: prediction": "6f7da35ad1ff7586c3c92e8ed5aa801006ba102358d7efb8b1b62c957a7775da",
}


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 over types, shapes and values."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()


def _truths():
    drawn = [draw_truth(seed % 2, np.random.default_rng(seed)) for seed in range(200)]
    return {"drawn patients": hashlib.sha256(repr([astuple(truth) for truth in drawn]).encode()).hexdigest()}


def _image():
    site = replace(SITES["spy2"], shape=(8, 48, 48), spacing_mm=(7.5, 3.7, 3.7))
    patient = make_patient(7, 1, site)
    return {"phantom image": digest(patient.series.array, patient.annotator_mask)}


def _n4():
    """A ball of two tissues under a smooth shading, of sums and products alone: these are the same everywhere."""
    z, y, x = np.ogrid[-1:1:16j, -1:1:40j, -1:1:40j]
    ball = (z * z + y * y + x * x < 0.8) * (400 + 60 * (x * y > 0)) * (1 + 0.3 * x - 0.2 * y * z)
    grey = ball + np.random.default_rng(0).integers(0, 20, ball.shape)
    geometry = Geometry((3.0, 3.0, 3.0))
    return {"N4 field": digest(log_bias_field(grey.astype(np.uint16), geometry, N4Config()))}


def _regression():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    features, label = rng.integers(-99, 99, (60, 5)) / 32, np.arange(60) % 2
    model = LogisticRegression(class_weight="balanced").fit(features, label)
    return {"logistic regression": digest(model.coef_, model.predict_proba(features))}


def step_digests(build: Callable) -> dict[str, str]:
    """One epoch of one step as the study trains: augmentation, forward, backward, AdamW.

    build: () → network for images of 48 × 48 pixels.
    """
    import torch

    from her2core.dataset import Slices
    from her2core.train import TrainConfig, begin, predict_slices, train_one_epoch

    training = begin(build, torch.device("cpu"), TrainConfig(device="cpu"), seed=0)
    start = [p.detach().numpy().copy() for p in training.model.parameters()]
    images = torch.randint(256, (8, 3, 48, 48), dtype=torch.uint8, generator=training.generator)
    names = np.array(list("abcdefgh"))
    train_one_epoch(training, Slices(images, names, names, np.arange(8) % 2), TrainConfig(device="cpu"))
    return {
        "start": digest(*start),
        "gradients": digest(*(p.grad.numpy() for p in training.model.parameters())),
        "step": digest(*(t.numpy() for t in training.model.state_dict().values())),
        "prediction": digest(predict_slices(training.model, images)),
    }


def _training():
    from her2core.model import ThdaConfig, ThdaResNet

    found = step_digests(lambda: ThdaResNet(ThdaConfig(width=16, dropout=0.1)))
    return {f"network: {name}": value for name, value in found.items()}


_PIECES: dict[Callable, str] = {  # what is computed with them
    _truths: "all of a phantom study",
    _image: "the phantom's images, and all that follows",
    _n4: "the runs with N4",
    _regression: "models without a network, calibration, shortcut probe",
    _training: "every trained network",
}


def piece_digests() -> dict[str, str]:
    """{piece: SHA-256} as computed here."""
    return {name: value for piece in _PIECES for name, value in piece().items()}


def _verdict(found: dict[str, str]) -> str:
    """One paragraph: whether this machine gives the committed bytes, and what follows if it does not."""
    other = [name for name, value in found.items() if value != EXPECTED.get(name)]
    python = ".".join(platform.python_version_tuple()[:2])
    if not other and python == PYTHON:
        return "This machine gives the committed bytes: all pieces are the same."
    if not other:
        return (
            f"All pieces are the same. But this is Python {python}, for which requirements.txt has other packages "
            f"than for the {PYTHON} of the committed results: last digits of a result may differ."
        )
    why = f"This is Python {python}, with other packages than {PYTHON} has. " if python != PYTHON else ""
    return (
        f"This machine does not give the committed bytes: {len(other)} of {len(found)} pieces differ. {why}Results "
        "computed here are as valid, but git will show changes: training magnifies a different last digit. Between "
        "two processors, each with its own instructions, a patient's probability moved by 0.09 on average, and the "
        "AUC of a run by up to 0.06."
    )


def main(arguments: list[str]) -> int:
    """Print the table and the verdict; returns the exit status."""
    if "--pins" in arguments:
        print(*(f"{name}={value}" for name, value in PINS.items()))
        return 0
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in _PACKAGES))
    print(f"{platform.system()} {platform.machine()}, instructions: {INSTRUCTIONS}\n")
    found = {}
    for piece, needed_by in _PIECES.items():
        for name, value in piece().items():
            found[name] = value
            same = "same   " if value == EXPECTED.get(name) else "DIFFERS"
            print(f"  {name:22s} {value[:12]}  {same}  {needed_by}", flush=True)
    print("\n" + textwrap.fill(_verdict(found), 116))
    return int("--check" in arguments and found != EXPECTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
