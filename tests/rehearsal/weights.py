"""Pretrained networks as their publishers' files are, keys, shapes and names; the values are random."""

import hashlib
from pathlib import Path

FILES = {"resnet34": "resnet34-b627a593.pth", "vit_b_16": "vit_b_16-c867db91.pth", "cvt_13": "model.safetensors"}


def make_weights(folder: Path) -> None:
    """Write the three files into `folder`."""
    import torch  # seconds of import, which those who write images can do without
    from safetensors.torch import save_file
    from torchvision.models import resnet34, vit_b_16
    from transformers import CvtConfig, CvtForImageClassification  # its defaults are CvT-13

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(13)
    torch.save(resnet34().state_dict(), folder / FILES["resnet34"])
    torch.save(vit_b_16().state_dict(), folder / FILES["vit_b_16"])
    cvt = {name: value.contiguous() for name, value in CvtForImageClassification(CvtConfig()).state_dict().items()}
    save_file(cvt, folder / FILES["cvt_13"], metadata={"format": "pt"})


def digests(folder: Path) -> dict[str, str]:
    """{name: SHA-256} of the files that are in `folder`."""
    paths = {name: folder / file for name, file in FILES.items()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if path.is_file()}
