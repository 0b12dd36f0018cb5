"""Class-activation maps are what the network's own last layers make of a place."""

import numpy as np
import pytest
import torch

from her2core.cam import grad_cam
from her2core.model import ThdaConfig, ThdaResNet

SMALL = {"width": 4, "blocks": (1, 1, 1, 1), "pretrained": False, "dropout": 0.0}
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (17, 3, 48, 48)).astype(np.uint8))


def network(**options):
    torch.manual_seed(0)
    return ThdaResNet(ThdaConfig(**SMALL | options)).eval()


@pytest.mark.parametrize(
    "options", [{}, {"share_weights": False}, {"attention": "none"}, {"attention_stages": (4,)}]
)
def test_every_head_has_a_map_of_the_image_that_says_where_it_speaks_for_the_class(options):
    maps = grad_cam([network(**options)], IMAGES)
    assert maps.shape == (17, 3, 48, 48) and maps.min() >= 0 and maps.max() > 0


def test_a_map_is_the_features_weighted_by_the_mean_slope_of_the_logit():
    model, features = network(), []
    model.backbones[0].attention["stage2"].register_forward_hook(lambda _, given, out: features.append(out[0]))
    slope = torch.autograd.grad(model(IMAGES[:1].float() / 255).sum(), features[0])[0].mean((2, 3))  # (P, C)
    expected = torch.einsum("pc,pchw->phw", slope, features[0]).relu()
    found = grad_cam([model], IMAGES[:1])[0]
    whole = torch.nn.functional.interpolate(expected[None], size=(48, 48), mode="bilinear")[0]
    assert expected.shape == (3, 6, 6) and torch.allclose(found, whole.detach(), atol=1e-7)


def test_a_slice_has_its_map_whatever_stands_beside_it_and_networks_are_averaged():
    one, other = network(), network(gate_bias=1.0)
    both = grad_cam([one, other], IMAGES)
    assert torch.allclose(both[16:], grad_cam([one, other], IMAGES[16:]), atol=1e-7)
    assert torch.allclose(both, (grad_cam([one], IMAGES) + grad_cam([other], IMAGES)) / 2, atol=1e-7)


def test_a_network_is_left_without_hooks_and_without_gradients():
    model = network()
    grad_cam([model], IMAGES[:1])
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_that_fails_keeps_no_hook():
    model = network()
    with pytest.raises(ValueError, match="expected slices of shape"):
        grad_cam([model], IMAGES[:, :2])
    assert not any(part._forward_hooks for part in model.modules())
