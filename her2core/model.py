"""THDA-ResNet: three heads that share one ResNet-34, dual attention, one logit.

After "Dual-attention ResNet outperforms transformers in HER2 prediction on DCE-MRI" (arXiv 2510.13897).  The
abstract and summaries give the parts (weight-shared ResNet-34 per phase, multi-scale spatial attention, three
phases); no code was published.  Whatever they leave open is a field of `ThdaConfig`, with our default.

Shapes: N slices, P = 3 phases, C channels, H W pixels.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from her2core.convolution import Conv3x3, stem_of_grey
from her2core.formats.weights import fill
from her2core.normalize import PHASES

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ATTENTION = ("both", "channel", "spatial", "none")
_FUSION = ("concat", "attention")
_HEAD_INPUT = ("phase", "adjacent_slices", "rgb_fused")


def _require(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(str, allowed))}")


@dataclass(frozen=True)
class ThdaConfig:
    """Everything the paper does not publish about the network.

    head_input: "phase": head k sees phase k, repeated to three channels; "adjacent_slices": phase k in the slice
        and its two neighbours (the images then have 3·P channels); "rgb_fused": every head sees the three phases
        as R, G, B (then only separate heads make sense).
    share_weights: one backbone for the three heads, called once; or one backbone each.
    width: channels of the first stage.  64 is torchvision's ResNet-34, the only one with ImageNet weights.
    blocks: residual blocks per stage; (3, 4, 6, 3) is ResNet-34.
    pretrained: training starts from torchvision's ImageNet weights: see `baselines.build_model`.
    attention: which of the two halves of dual attention act.
    attention_stages: after which stages (1 to 4) attention stands.
    channel_reduction: bottleneck of the channel attention's perceptron.
    spatial_kernels: parallel kernel sizes of the multi-scale spatial attention.
    gate_bias: initial bias of every gate; sigmoid(2) = 0.88, so that training starts from a nearly plain
        ResNet and pretrained features survive the first step.
    fusion: "concat": the three heads' features side by side; "attention": their softmax-weighted sum.
    dropout: before the last linear layer.
    """

    head_input: str = "phase"
    share_weights: bool = True
    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    pretrained: bool = False
    attention: str = "both"
    attention_stages: tuple[int, ...] = (1, 2, 3, 4)
    channel_reduction: int = 16
    spatial_kernels: tuple[int, ...] = (3, 5, 7)
    gate_bias: float = 2.0
    fusion: str = "concat"
    dropout: float = 0.5

    def __post_init__(self):
        _require("attention", self.attention, _ATTENTION)
        _require("fusion", self.fusion, _FUSION)
        _require("head_input", self.head_input, _HEAD_INPUT)
        for stage in self.attention_stages:
            _require("attention_stages", stage, (1, 2, 3, 4))
        if len(self.blocks) != 4 or min(self.blocks) < 1:
            raise ValueError(f"blocks={self.blocks}: expected four stages of at least one block")
        if self.pretrained and (self.width, tuple(self.blocks)) != (64, (3, 4, 6, 3)):
            raise ValueError(f"ImageNet weights exist for width 64 and blocks (3, 4, 6, 3), not {self}")
        if self.share_weights and self.head_input == "rgb_fused":
            raise ValueError("three heads with shared weights and the same rgb_fused input would be identical")


class ChannelAttention(nn.Module):
    """Which channels matter: one perceptron over mean- and max-pooled channels (Woo et al., CBAM, 2018)."""

    def __init__(self, channels: int, reduction: int, gate_bias: float) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.perceptron = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        nn.init.constant_(self.perceptron[2].bias, gate_bias / 2)  # the gate adds two of these

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `(N, C, H, W)` → gate `(N, C, 1, 1)` in [0, 1]."""
        gate = self.perceptron(x.mean((2, 3))) + self.perceptron(x.amax((2, 3)))  # (N, C)
        return gate.sigmoid()[:, :, None, None]


class MultiScaleSpatialAttention(nn.Module):
    """Where to look: parallel convolutions of several sizes on the mean and max over channels, added up."""

    def __init__(self, kernels: tuple[int, ...], gate_bias: float) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.Conv2d(2, 1, k, padding=k // 2, bias=False) for k in kernels)
        self.bias = nn.Parameter(torch.tensor(float(gate_bias)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `(N, C, H, W)` → gate `(N, 1, H, W)` in [0, 1]."""
        summary = torch.stack((x.mean(1), x.amax(1)), 1)  # (N, 2, H, W)
        return (functional.conv2d(summary, *self.kernel()) + self.bias).sigmoid()

    def kernel(self) -> tuple[torch.Tensor, None, int, int]:
        """The parallel kernels as one, which has the same result: weight, no bias, stride and padding of conv2d."""
        reach = max(scale.padding[0] for scale in self.scales)
        rim = [(reach - scale.padding[0],) * 4 for scale in self.scales]
        padded = [functional.pad(scale.weight, by) for scale, by in zip(self.scales, rim, strict=True)]
        return sum(padded), None, 1, reach


class DualAttention(nn.Module):
    """Channel attention, then multi-scale spatial attention on what it let through."""

    def __init__(self, channels: int, config: ThdaConfig) -> None:
        super().__init__()
        self.channel = self.spatial = None
        if config.attention in ("both", "channel"):
            self.channel = ChannelAttention(channels, config.channel_reduction, config.gate_bias)
        if config.attention in ("both", "spatial"):
            self.spatial = MultiScaleSpatialAttention(config.spatial_kernels, config.gate_bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """x `(N, C, H, W)` → gated x, and the gates that acted, by name."""
        gates = {}
        if self.channel is not None:
            gates["channel"] = self.channel(x)
            x = x * gates["channel"]
        if self.spatial is not None:
            gates["spatial"] = self.spatial(x)
            x = x * gates["spatial"]
        return x, gates


class AttentionResNet(nn.Module):
    """ResNet of basic blocks with dual attention after stages; the names of its parts are torchvision's."""

    def __init__(self, config: ThdaConfig) -> None:
        super().__init__()
        width, acts = config.width, config.attention != "none"
        self.channels = width * 8
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage, blocks in enumerate(config.blocks, start=1):
            out = width * 2 ** (stage - 1)
            setattr(self, f"layer{stage}", _make_stage(width if stage == 1 else out // 2, out, blocks, stage))
        stages = config.attention_stages if acts else ()
        self.attention = nn.ModuleDict({f"stage{s}": DualAttention(width * 2 ** (s - 1), config) for s in stages})
        self.init_convolutions()

    def init_convolutions(self) -> None:
        """He's initial weights (ICCV 2015), but for the attention modules."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and "attention" not in name:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock):  # residual branches start at zero: the net starts shallow
                nn.init.zeros_(module.bn2.weight)

    def load_imagenet(self, tensors: dict[str, torch.Tensor]) -> None:
        """Start from torchvision's ResNet-34; only the attention modules keep their own start."""
        fill(self, tensors, own=("attention.",), unused=("fc.",))

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """x `(N, 3, H, W)`, or `(N, 1, H, W)`: a grey image, which stands for three equal channels."""
        if x.shape[1] == 1:  # the kernels summed over their channels give the same result at a third of the cost
            return stem_of_grey(x, self.conv1.weight.sum(1, keepdim=True))
        return self.conv1(x)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
        """x `(N, 1 or 3, H, W)` → features `(N, C)` and the gates of each stage."""
        x = self.relu(self.maxpool(self.bn1(self.stem(x))))  # (N, width, H/4, W/4); less work in this order
        gates = {}
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
            if f"stage{stage}" in self.attention:
                x, gates[f"stage{stage}"] = self.attention[f"stage{stage}"](x)
        return x.mean((2, 3)), gates  # (N, C)


def _make_stage(inputs, outputs, blocks, stage):
    """Basic blocks of one stage; all stages but the first halve the resolution."""
    stride, shortcut = (1, None) if stage == 1 else (2, None)
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    first = _Block(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(_Block(outputs, outputs) for _ in range(blocks - 1)))


class _Block(BasicBlock):
    """torchvision's basic block with our convolutions."""

    def __init__(self, inputs, outputs, stride=1, shortcut=None):
        super().__init__(inputs, outputs, stride, shortcut)
        self.conv1, self.conv2 = Conv3x3(inputs, outputs, stride), Conv3x3(outputs, outputs)


class ThdaResNet(nn.Module):
    """Triple-head dual-attention ResNet."""

    def __init__(self, config: ThdaConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ThdaConfig()
        heads = 1 if config.share_weights else len(PHASES)
        self.backbones = nn.ModuleList(AttentionResNet(config) for _ in range(heads))
        channels = self.backbones[0].channels
        concat = config.fusion == "concat"
        self.phase_score = None if concat else nn.Linear(channels, 1, bias=False)  # it would cancel in the softmax
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(channels * len(PHASES) if concat else channels, 1)
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        if config.head_input == "phase":  # a grey image: one mean and one spread for its three equal channels
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """x `(N, P, H, W)` → what each head receives, `(P·N, channels, H, W)`, head by head."""
        if self.config.head_input == "rgb_fused":
            return x.repeat(len(PHASES), 1, 1, 1)  # (P·N, 3, H, W)
        each = x.unflatten(1, (len(PHASES), -1))  # (N, P, 1 or 3, H, W)
        return each.transpose(0, 1).flatten(0, 1)  # (P·N, 1 or 3, H, W)

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """features `(N, P, C)` → `(N, P·C)` or, weighted over the phases, `(N, C)`."""
        if self.phase_score is None:
            return features.flatten(1)
        weights = self.phase_score(features).softmax(1)  # (N, P, 1)
        return (weights * features).sum(1)

    def forward(self, x: torch.Tensor, return_attention: bool = False) -> torch.Tensor | tuple[torch.Tensor, dict]:
        """x `(N, P, H, W)`, 8-bit values as floats in [0, 1] → logits `(N,)`.

        With adjacent slices x is `(N, 3·P, H, W)`: below, the slice, above, phase by phase.
        With `return_attention` also {"stage1": {"channel": (N, P, C), "spatial": (N, P, h, w)}, …}.
        """
        channels = len(PHASES) * (3 if self.config.head_input == "adjacent_slices" else 1)
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"expected slices of shape (N, {channels}, H, W), found {tuple(x.shape)}")
        n = x.shape[0]
        heads = (self.heads(x) - self.mean) / self.std
        if self.config.share_weights:
            features, gates = self.backbones[0](heads)  # one call for the three heads
        else:
            each = [net(part) for net, part in zip(self.backbones, heads.split(n), strict=True)]
            features = torch.cat([f for f, _ in each])  # (P·N, C)
            gates = _joined([g for _, g in each])
        features = features.unflatten(0, (len(PHASES), n)).transpose(0, 1)  # (N, P, C)
        logits = self.classifier(self.dropout(self.fuse(features))).squeeze(1)  # (N,)
        return (logits, _per_phase(gates, n)) if return_attention else logits


def _joined(each):
    """The gates of separate heads, one dictionary a head, as one folded batch `(P·N, …)`."""
    return {
        stage: {kind: torch.cat([gates[stage][kind] for gates in each]) for kind in kinds}
        for stage, kinds in each[0].items()
    }


def _per_phase(gates, n):
    """Gates of the folded batch, `(P·N, …)` → `(N, P, C)` for channels and `(N, P, h, w)` for positions."""

    def unfolded(gate, kind):
        gate = gate.flatten(1) if kind == "channel" else gate.squeeze(1)
        return gate.unflatten(0, (len(PHASES), n)).transpose(0, 1)

    return {stage: {kind: unfolded(gate, kind) for kind, gate in kinds.items()} for stage, kinds in gates.items()}
