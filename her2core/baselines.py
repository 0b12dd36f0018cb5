"""The networks THDA is compared with, behind the same call: `(N, P, H, W)` in [0, 1] → logits `(N,)`.

Same data, window, augmentation, budget, seeds and selection; only the network differs.  The phases enter as
the three colours of one image (early fusion), as these networks were built for.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torchvision.models import VisionTransformer

from her2core.model import IMAGENET_MEAN, IMAGENET_STD, AttentionResNet, ThdaConfig, ThdaResNet


@dataclass(frozen=True)
class VitConfig:
    """Vision Transformer: patch_px, width and depth; ViT-B/16 is (16, 768, 12, 12, 3072)."""

    patch_px: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    dropout: float = 0.1


class RgbNetwork(nn.Module):
    """ImageNet's colour statistics, a backbone to features, one linear layer to a logit."""

    def __init__(self, backbone, features, dropout=0.0):
        super().__init__()
        self.backbone, self.dropout, self.classifier = backbone, nn.Dropout(dropout), nn.Linear(features, 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, x):
        features = self.backbone((x - self.mean) / self.std)  # (N, C)
        return self.classifier(self.dropout(features)).squeeze(1)


def resnet34_rgb(config):
    """Plain ResNet-34 of THDA's width and start, without heads and without attention."""
    plain = replace(config, attention="none", head_input="phase", share_weights=True)
    backbone = AttentionResNet(plain)
    return RgbNetwork(FeaturesOnly(backbone), backbone.channels, config.dropout)


class FeaturesOnly(nn.Module):
    """A backbone without the gates it also returns."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)[0]


def vit(config, image_px):
    """torchvision's Vision Transformer from scratch."""
    if image_px % config.patch_px:
        raise ValueError(f"patches of {config.patch_px} px do not tile an image of {image_px} px")
    backbone = VisionTransformer(
        image_px, config.patch_px, config.depth, config.heads, config.dim, config.mlp_dim, dropout=config.dropout
    )
    backbone.heads = nn.Identity()
    return RgbNetwork(backbone, config.dim)


MODELS = ("thda", "resnet34_rgb", "vit")


@dataclass(frozen=True)
class ModelConfig:
    """The networks of a study: THDA and what stands beside it."""

    thda: ThdaConfig
    vit: VitConfig


def build_model(name, config, image_px):
    """One of MODELS, fresh weights; seed first."""
    if name == "thda":
        return ThdaResNet(config.thda)
    if name == "resnet34_rgb":
        return resnet34_rgb(config.thda)
    if name == "vit":
        return vit(config.vit, image_px)
    raise ValueError(f"model {name!r}: expected one of {', '.join(MODELS)}")
