"""Our orders of computation give what PyTorch's own give, forwards and backwards."""

import pytest
import torch
from torch.nn import functional

from her2core.convolution import Conv3x3, stem_of_grey

DOUBLE = {"dtype": torch.float64}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (4, 3), (4, 4), (5, 5), (6, 2)])
def test_a_convolution_and_both_its_gradients_are_those_of_pytorch(shape, stride):
    torch.manual_seed(0)
    x = torch.randn(5, 6, *shape, **DOUBLE, requires_grad=True)
    ours = Conv3x3(6, 7, stride).to(torch.float64)
    found, expected = ours(x), functional.conv2d(x, ours.weight, stride=stride, padding=1)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(y, (x, ours.weight), upstream) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_small_images_take_the_swapped_gradient_in_training_and_nowhere_else():
    ours, small, large = Conv3x3(2, 3), torch.rand(1, 2, 4, 4), torch.rand(1, 2, 5, 4)
    assert "SmallImages" in type(ours(small).grad_fn).__name__
    assert "SmallImages" not in type(ours(large).grad_fn).__name__
    with torch.inference_mode():
        assert ours(small).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("shape", [(32, 32), (48, 48), (33, 31), (8, 9), (7, 7)])
def test_the_stem_of_a_grey_image_is_the_seven_by_seven_convolution(shape):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 1, *shape, **DOUBLE), torch.randn(3, 1, 7, 7, **DOUBLE)
    torch.testing.assert_close(stem_of_grey(x, weight), functional.conv2d(x, weight, stride=2, padding=3))
