"""Convolutions of small images on a processor, computed in the order that oneDNN is quick at.

Each equals PyTorch's own up to rounding, forwards and backwards; benchmarks/training_step.py has the times.
Shapes: N images, C channels, H W pixels.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input

_SMALL_PX = 4  # the edge up to which the swapped gradient pays: 1.8 times as fast at 3 pixels, slower at 6


def _swapped(x):
    """Images as channels and channels as images, channels last."""
    return x.transpose(0, 1).contiguous(memory_format=torch.channels_last)


class _SmallImages(torch.autograd.Function):
    """A 3 × 3 convolution with padding 1 whose weights' gradient is a convolution itself.

    dW[o, c] = Σₙ x[n, c] ⋆ g[n, o]: the input is the image and the output's gradient the kernel, summed over the
    batch as if it were channels.  oneDNN's own gradient takes two to three times as long as its forward pass here.
    """

    @staticmethod
    def forward(ctx, x, weight, stride):
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv2d(x, weight, stride=stride, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        of_input = conv2d_input(x.shape, weight, gradient, stride=ctx.stride, padding=1)
        of_weight = functional.conv2d(_swapped(x), _swapped(gradient), padding=1, dilation=ctx.stride)
        return of_input, of_weight[:, :, :3, :3].transpose(0, 1), None


class Conv3x3(nn.Conv2d):
    """3 × 3, padding 1, without bias."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `(N, C, H, W)` → `(N, outputs, H / stride, W / stride)`, rounded up."""
        if x.device.type == "cpu" and max(x.shape[2:]) <= _SMALL_PX and torch.is_grad_enabled():
            return _SmallImages.apply(x, self.weight, self.stride[0])
        return super().forward(x)


def stem_of_grey(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The 7 × 7 convolution of stride 2 and padding 3 of a grey image, x `(N, 1, H, W)`, weight `(C, 1, 7, 7)`.

    With the four neighbours of a 2 × 2 square as channels it is one of 4 × 4 and stride 1.
    """
    squares = functional.pixel_unshuffle(functional.pad(x, (4, 2 + x.shape[3] % 2, 4, 2 + x.shape[2] % 2)), 2)
    kernel = functional.pixel_unshuffle(functional.pad(weight, (1, 0, 1, 0)), 2)
    return functional.conv2d(squares.contiguous(memory_format=torch.channels_last), kernel)  # (N, C, H/2, W/2)
