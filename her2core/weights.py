"""Pretrained weights: three published files, found or downloaded, read only after their digest was compared.

They are ImageNet's: torchvision's ResNet-34 and ViT-B/16, and CvT-13 as Microsoft put it on the Hugging Face hub.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from her2core.records import whole

_TORCHVISION = "https://download.pytorch.org/models"
_CVT_13, _CVT_REVISION = "microsoft/cvt-13", "84e365a5f6a5ca987486abb25f3d8e5265cdc44d"
FILES = {"resnet34": "resnet34-b627a593.pth", "vit_b_16": "vit_b_16-c867db91.pth", "cvt_13": "model.safetensors"}
_TIMEOUT_S = (4, 30)  # until a server answers, and between two pieces of what it sends


@dataclass(frozen=True)
class Weights:
    """Where the files lie, and their SHA-256 or its first digits, eight or more.

    folder: looked into first, relative to the compendium; "" stands for none.  Then come the caches of torch and
    of Hugging Face, into which a missing file is downloaded.  cvt_13 may be "": then the hub's revision alone says
    which file it is.
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


def places(name: str, weights: Weights) -> list[Path]:
    """Where a file, one of FILES, is looked for; the last is where it is downloaded to."""
    found = []
    if weights.folder:
        folder = Path(weights.folder).expanduser()
        if not folder.is_absolute():
            from her2core.config import root  # the networks themselves need no study

            folder = root() / folder
        found = [folder / FILES[name]]
    if name != "cvt_13":
        return [*found, Path(torch.hub.get_dir()) / "checkpoints" / FILES[name]]
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"models--{_CVT_13.replace('/', '--')}"
    return [*found, hub / "snapshots" / _CVT_REVISION / FILES[name]]


def fetch(name: str, weights: Weights) -> Path:
    """The file of that name, one of FILES, with the digest wanted; downloaded where it lies in no place.

    OSError where it cannot be had, within seconds where there is no network; ValueError where its digest differs.
    """
    looked = places(name, weights)
    path = next((p for p in looked if p.is_file()), None)
    if path is None:
        try:
            return _download(name, weights, looked[-1])
        except OSError as error:
            raise OSError(
                f"{FILES[name]} ({name}) is not in {' or '.join(str(p.parent) for p in looked)}, and the download "
                f"from {_url(name)} failed ({type(error).__name__}); put the file there, or name its folder under "
                "models.weights.folder, or set pretrained: false to train from scratch"
            ) from error
    with open(path, "rb") as file:
        _compare(hashlib.file_digest(file, "sha256").hexdigest(), name, weights, path, "delete or replace it")
    return path


def _compare(found, name, weights, where, remedy):
    expected = getattr(weights, name)
    if not found.startswith(expected):
        raise ValueError(
            f"{where}: SHA-256 is {found}, expected {expected} (models.weights.{name}): not the file published; "
            f"{remedy}"
        )


def _url(name):
    if name != "cvt_13":
        return f"{_TORCHVISION}/{FILES[name]}"
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{_CVT_13}/resolve/{_CVT_REVISION}/{FILES[name]}"


def _download(name, weights, path):
    """The file, whole and with its digest or not at all."""
    import requests
    from tqdm import tqdm

    sha, url = hashlib.sha256(), _url(name)
    with requests.get(url, stream=True, timeout=_TIMEOUT_S) as answer, whole(path, f"{os.getpid()}-") as part:
        answer.raise_for_status()
        size = int(answer.headers.get("content-length", 0)) or None
        with open(part, "wb") as file, tqdm(total=size, desc=FILES[name], unit="B", unit_scale=True) as bar:
            for piece in answer.iter_content(1 << 20):
                file.write(piece)
                sha.update(piece)
                bar.update(len(piece))
        _compare(sha.hexdigest(), name, weights, url, "something between here and there changed it; try again")
    return path


def load(name: str, weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors of a file, one of FILES, on the CPU; nothing in it is executed.

    Errors: as `fetch`, and ValueError where it holds anything but tensors by name.
    """
    path = fetch(name, weights)
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # nobody says what reading a broken pickle may raise; torch's own text misleads
        raise ValueError(f"{path}: no file of weights ({type(error).__name__})") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path}: no file of weights; expected tensors by name")
    return dict(tensors)  # without torch's remark on the version: then each layer takes the names of older ones too


def fill(
    network: nn.Module,
    tensors: dict[str, torch.Tensor],
    own: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
) -> None:
    """Put pretrained tensors into a network in place, each under its name.

    own: how the names begin of what the network keeps as it is.  unused: of tensors that it has no place for, such
    as ImageNet's classifier.  ValueError where anything else lacks, is left over or has another shape.
    """
    wanted = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    try:
        missing, unexpected = network.load_state_dict(wanted, strict=False)
    except RuntimeError as error:
        raise ValueError(f"pretrained weights do not fit: {' '.join(str(error).split())}") from error
    if strangers := [f"no {k}" for k in missing if not k.startswith(own)] + [f"{k} too many" for k in unexpected]:
        raise ValueError(f"pretrained weights do not fit: {', '.join(strangers[:5])} ({len(strangers)} in all)")
