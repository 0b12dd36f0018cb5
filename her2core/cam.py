"""Class-activation maps: where the features of THDA's heads speak for the positive class.

Grad-CAM (Selvaraju et al., ICCV 2017) behind the attention of a stage: its channels, weighted by the mean of the
logit's gradient over positions, summed, and what speaks against the class cut off.
"""

import torch
from torch.nn.functional import interpolate

from her2core.model import ThdaResNet
from her2core.normalize import PHASES

_EDGE = 6  # positions: a coarser map says no more than left or right
_BATCH = 16  # slices whose activations are in memory at once


def grad_cam(networks: list[ThdaResNet], images: torch.Tensor) -> torch.Tensor:
    """Images `(N, P, H, W)` uint8 → `(N, P, H, W)` from 0 up, a map for each head, mean of the networks.

    Of the last stage that has at least 6 positions along an edge: the fourth on 224 pixels, the second on 48."""
    edge = images.shape[-1]
    stage = max((s for s in (1, 2, 3, 4) if -(-edge // 2 ** (s + 1)) >= _EDGE), default=1)
    maps = [torch.cat([_of_stage(net, part, stage) for part in images.split(_BATCH)]) for net in networks]
    return interpolate(torch.stack(maps).mean(0), size=images.shape[-2:], mode="bilinear")


def _of_stage(network, images, stage):
    """One network's maps as coarse as the stage: `(N, P, h, w)`."""
    features, key = [], f"stage{stage}"

    def keep(part, given, out):
        features.append(out[0] if isinstance(out, tuple) else out)  # attention returns its gates, too

    parts = [b.attention[key] if key in b.attention else getattr(b, f"layer{stage}") for b in network.backbones]
    hooks = [part.register_forward_hook(keep) for part in parts]
    try:
        with torch.enable_grad():
            logits = network(images.float() / 255)
            slopes = torch.autograd.grad(logits.sum(), features)
    finally:
        for hook in hooks:
            hook.remove()
    x, slope = torch.cat(features).detach(), torch.cat(slopes)  # (P·N, C, h, w), head by head
    found = (slope.mean((2, 3), keepdim=True) * x).sum(1).relu()
    return found.unflatten(0, (len(PHASES), -1)).transpose(0, 1)
