"""Pretrained weights: three published files, read only after their digest was compared.

They are ImageNet's: torchvision's ResNet-34 and ViT-B/16, and CvT-13 as Microsoft put it on the Hugging Face hub.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten

import torch
from safetensors.torch import load_file
from torch import nn

from her2core.formats.boundary import reading

_TORCHVISION = "https://download.pytorch.org/models"
_CVT_13, _CVT_REVISION = "microsoft/cvt-13", "84e365a5f6a5ca987486abb25f3d8e5265cdc44d"
FILES = {"resnet34": "resnet34-b627a593.pth", "vit_b_16": "vit_b_16-c867db91.pth", "cvt_13": "model.safetensors"}


@dataclass(frozen=True)
class Weights:
    """Where the files lie, and their SHA-256 or its first digits, eight or more.

    folder: looked into first, relative to the compendium; "" stands for none.  Then come the caches of torch and
    of Hugging Face, into which `preflight` downloads a missing file.  cvt_13 may be "": then the hub's revision
    alone says which file it is.
    """

    folder: str = ""
    resnet34: str = "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f"
    vit_b_16: str = "c867db91d3e12c6cbadabb610d73c24a546bf82d8c03a9fea34f43a712ddb0e9"
    cvt_13: str = "71576c56ac8aaabc1db4e74d86d0316ba1fe7ecff397bbe81b33cf874df8eee2"

    def __post_init__(self):
        for name in FILES:
            digest = getattr(self, name)
            if not re.fullmatch("[0-9a-f]{8,64}", digest) and (name, digest) != ("cvt_13", ""):
                raise ValueError(f"weights.{name}={digest!r}: expected 8 to 64 digits (0-9, a-f) of a SHA-256")


def published(name: str) -> tuple[Path, str]:
    """Where a file, one of FILES, lies in its library's cache, and its address."""
    if name != "cvt_13":
        return Path(torch.hub.get_dir()) / "checkpoints" / FILES[name], f"{_TORCHVISION}/{FILES[name]}"
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"models--{_CVT_13.replace('/', '--')}"
    path = hub / "snapshots" / _CVT_REVISION / FILES[name]
    return path, f"{constants.ENDPOINT}/{_CVT_13}/resolve/{_CVT_REVISION}/{FILES[name]}"


def find(name: str, weights: Weights) -> Path:
    """The file of that name, one of FILES: in the folder of `weights`, or else in its library's cache.

    FileNotFoundError where it lies in neither; ValueError where its digest is another than wanted.
    """
    looked = [published(name)[0]]
    if weights.folder:
        from her2core.config import root  # the networks themselves need no study

        own = Path(weights.folder).expanduser()
        looked.insert(0, (own if own.is_absolute() else root() / own) / FILES[name])
    path = next((p for p in looked if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{FILES[name]} ({name}) is not in {' or '.join(str(p.parent) for p in looked)}; the stage preflight "
            "downloads it, or put it there, or name its folder under models.weights.folder, or set "
            "pretrained: false to train from scratch"
        )
    with open(path, "rb") as file:
        found, expected = hashlib.file_digest(file, "sha256").hexdigest(), getattr(weights, name)
    if not found.startswith(expected):
        expected = f"expected {expected} (models.weights.{name}): not the file published"
        raise ValueError(f"{path}: SHA-256 is {found}, {expected}; delete or replace it")
    return path


def load(name: str, weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors of a file, one of FILES, on the CPU; nothing in it is executed.

    Errors: as `find`, and ValueError where it holds anything but tensors by name.
    """
    path = find(name, weights)
    with reading(path, "a file of weights: tensors by name", "delete or replace it"):
        try:
            safe = path.suffix == ".safetensors"
            tensors = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:  # torch's own text says how to execute it all the same
            raise ValueError("a pickle that is broken or holds code") from error
        if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
            raise ValueError(f"a {type(tensors).__name__} of other things")
    return dict(tensors)  # without torch's remark on the version: then each layer takes the names of older ones too


def fill(
    network: nn.Module, tensors: dict[str, torch.Tensor], own: tuple[str, ...] = (), unused: tuple[str, ...] = ()
) -> None:
    """Put pretrained tensors into a network in place, each under its name.

    own: how the names begin of what the network keeps as it is.  unused: of tensors that it has no place for, such
    as ImageNet's classifier.  ValueError where anything else lacks, is left over or has another shape.
    """
    kept = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(own)}
    wanted = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    try:
        network.load_state_dict(kept | wanted)
    except RuntimeError as error:
        raise ValueError(f"pretrained weights do not fit: {shorten(str(error), 500)}") from error
