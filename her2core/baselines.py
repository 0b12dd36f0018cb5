"""The networks THDA is compared with, behind the same call: `(N, P, H, W)` in [0, 1] → logits `(N,)`.

Same data, window, augmentation, budget, seeds and selection; only the network differs.  The phases enter as
the three colours of one image (early fusion), as these networks were built for.  A variant is THDA with some of
its open choices taken otherwise.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from her2core.formats.weights import Weights, fill, load
from her2core.model import IMAGENET_MEAN, IMAGENET_STD, AttentionResNet, ThdaConfig, ThdaResNet

MODELS = ("thda", "resnet34_rgb", "vit", "cvt")
_CVT_13 = ((7, 3, 3), (4, 2, 2), (64, 192, 384), (1, 3, 6), (1, 2, 10))
_VARIANT = re.compile(r"thda_[a-z0-9_]+")  # its changes stand under models.variants


@dataclass(frozen=True)
class VitConfig:
    """Vision Transformer: patch_px, width and depth; ViT-B/16 is (16, 768, 12, 12, 3072).

    pretrained: training starts from torchvision's ImageNet weights of ViT-B/16.
    """

    patch_px: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    dropout: float = 0.1
    pretrained: bool = False

    def __post_init__(self):
        size = (self.patch_px, self.dim, self.depth, self.heads, self.mlp_dim)
        if self.pretrained and size != (16, 768, 12, 12, 3072):
            raise ValueError(f"ImageNet weights exist for ViT-B/16 (16, 768, 12, 12, 3072), not {size}")


@dataclass(frozen=True)
class CvtConfig:
    """Convolutional vision transformer (Wu et al., ICCV 2021), three stages; CvT-13 is the default.

    patch_px, stride_px: of each stage's convolution into tokens.  dims, heads, depths: of each stage.  drop_path:
    rate of the last stage.  pretrained: training starts from the ImageNet weights of CvT-13.
    """

    patch_px: tuple[int, int, int] = (7, 3, 3)
    stride_px: tuple[int, int, int] = (4, 2, 2)
    dims: tuple[int, int, int] = (64, 192, 384)
    heads: tuple[int, int, int] = (1, 3, 6)
    depths: tuple[int, int, int] = (1, 2, 10)
    drop_path: float = 0.1
    pretrained: bool = False

    def __post_init__(self):
        size = (self.patch_px, self.stride_px, self.dims, self.heads, self.depths)
        if self.pretrained and size != _CVT_13:
            raise ValueError(f"ImageNet weights exist for CvT-13 {_CVT_13}, not {size}")
        if any(depth <= stage for stage, depth in enumerate(self.depths)):  # transformers indexes rates by stage
            raise ValueError(f"depths={self.depths}: expected at least (1, 2, 3)")


@dataclass(frozen=True)
class ModelConfig:
    """The networks of a study.

    variants: {name: {field of ThdaConfig: other value}}, run as `thda_<name>`.  weights: of the pretrained ones.
    """

    thda: ThdaConfig
    vit: VitConfig = field(default_factory=VitConfig)
    cvt: CvtConfig = field(default_factory=CvtConfig)
    variants: dict[str, dict] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)

    def thda_of(self, model: str) -> ThdaConfig:
        """THDA's configuration for `thda` or one of its variants."""
        if model == "thda":
            return self.thda
        name = model.removeprefix("thda_")
        if name not in self.variants:
            raise ValueError(f"model {model!r}: models.variants has {', '.join(self.variants) or 'none'}")
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in self.variants[name].items()}
        if strangers := set(changes) - {f.name for f in fields(ThdaConfig)}:
            raise ValueError(f"models.variants.{name}: THDA has no {', '.join(sorted(strangers))}")
        return replace(self.thda, **changes)


class _RgbNetwork(nn.Module):
    """ImageNet's colour statistics, a backbone to features, one linear layer to a logit."""

    def __init__(self, backbone, features, dropout=0.0):
        super().__init__()
        self.backbone, self.dropout, self.classifier = backbone, nn.Dropout(dropout), nn.Linear(features, 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, x):
        features = self.backbone((x - self.mean) / self.std)  # (N, C)
        return self.classifier(self.dropout(features)).squeeze(1)


class _Only(nn.Module):
    """A backbone of which `take` picks the features."""

    def __init__(self, backbone, take):
        super().__init__()
        self.backbone, self.take = backbone, take

    def forward(self, x):
        return self.take(self.backbone(x))


def _resnet34_rgb(config):
    """Plain ResNet-34 of THDA's width and start, without heads and without attention."""
    backbone = AttentionResNet(replace(config, attention="none", head_input="phase", share_weights=True))
    return _RgbNetwork(_Only(backbone, lambda out: out[0]), backbone.channels, config.dropout)


def _vit(config, image_px):
    """torchvision's Vision Transformer."""
    if image_px % config.patch_px:
        raise ValueError(f"patches of {config.patch_px} px do not tile an image of {image_px} px")
    backbone = VisionTransformer(
        image_px, config.patch_px, config.depth, config.heads, config.dim, config.mlp_dim, dropout=config.dropout
    )
    backbone.heads = nn.Identity()
    return _RgbNetwork(backbone, config.dim)


def _cvt(config):
    """transformers' CvT with PyTorch's own initial weights; its last class token goes to the classifier.

    The initial weights of its authors, all of a standard deviation of 0.02, are for wide layers: narrow ones shrink
    the image until only the biases are left, and nothing is learnt.
    """
    from transformers import CvtConfig as Shape  # seconds of import that only this network needs
    from transformers import CvtModel

    stages = {"patch_sizes": config.patch_px, "patch_stride": config.stride_px, "embed_dim": config.dims}
    stages |= {"patch_padding": [stride // 2 for stride in config.stride_px]}
    stages |= {"num_heads": config.heads, "depth": config.depths, "drop_path_rate": (0.0, 0.0, config.drop_path)}
    backbone = CvtModel(Shape(**{name: list(values) for name, values in stages.items()}))
    for layer in backbone.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.reset_parameters()
    return _RgbNetwork(_Only(backbone, lambda out: out.cls_token_value[:, 0]), config.dims[-1])


def is_model(name: str) -> bool:
    """Whether a run may name it."""
    return name in MODELS or bool(_VARIANT.fullmatch(name))


def _start(name, config):
    """The configuration of a model, and which file its pretrained weights are."""
    if not is_model(name):
        raise ValueError(f"model {name!r}: expected one of {', '.join(MODELS)} or thda_<variant>")
    if name in ("vit", "cvt"):
        return (config.vit, "vit_b_16") if name == "vit" else (config.cvt, "cvt_13")
    return (config.thda if name == "resnet34_rgb" else config.thda_of(name)), "resnet34"


def needed_weights(models: ModelConfig, names: Iterable[str]) -> list[str]:
    """Which of `weights.FILES` the training of models of these names starts from."""
    starts = [_start(name, models) for name in names]
    return sorted({file for config, file in starts if config.pretrained})


def build_model(name: str, config: ModelConfig, image_px: int, pretrained: bool = True) -> nn.Module:
    """One of MODELS or a variant `thda_<name>`, as a training starts: seed first.

    pretrained: False leaves all weights random, also of a model that starts from pretrained ones.
    """
    chosen, file = _start(name, config)
    if name == "resnet34_rgb":
        model = _resnet34_rgb(chosen)
    elif name == "vit":
        model = _vit(chosen, image_px)
    else:
        model = _cvt(chosen) if name == "cvt" else ThdaResNet(chosen)
    if pretrained and chosen.pretrained:
        _load_imagenet(model, load(file, config.weights), file, image_px)
    return model


def _load_imagenet(model, tensors, file, image_px):
    """Pretrained weights into the backbones of a model; position embeddings are interpolated to the image."""
    if file == "resnet34":
        for backbone in (part for part in model.modules() if isinstance(part, AttentionResNet)):
            backbone.load_imagenet(tensors)
    elif file == "vit_b_16":
        fill(model.backbone, interpolate_embeddings(image_px, 16, OrderedDict(tensors)), unused=("heads.",))
    else:
        tensors = {name.removeprefix("cvt."): tensor for name, tensor in tensors.items()}
        fill(model.backbone.backbone, tensors, unused=("layernorm.", "classifier."))
