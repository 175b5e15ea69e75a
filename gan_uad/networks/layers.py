"""Layers that several families share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.networks.second_order import conv2d, layer_norm


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps at a resolution: `channel_base / resolution`, at most `channel_max`, at least 1."""
    return max(1, min(channel_base // resolution, channel_max))


def check_resolution(resolution: int, least: int = 16) -> None:
    """Raise `ValueError` unless `resolution` is a power of two, at least `least`."""
    if resolution < least or resolution & (resolution - 1):
        raise ValueError(f"resolution must be a power of two of at least {least} px, got {resolution}")


def check_sizes(**sizes: int) -> None:
    """Raise `ValueError` unless every given size is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def spread(weight: Tensor) -> Tensor:
    """Convolve 3×3 kernels `[O, I, 3, 3]` with a 2×2 box of ones: kernels `[O, I, 4, 4]`."""
    wide = F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))
    return F.pad(wide, (0, 0, 0, 1)) + F.pad(wide, (0, 0, 1, 0))


class UpConv3x3(nn.Conv2d):
    """Nearest-neighbour 2× up-sampling, then a 3×3 convolution.

    Both are linear, so they are computed as one stride-2 transposed convolution with a 4×4 kernel: the same function to
    rounding, at 4/9 of the multiplications.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, 2H, 2W]`."""
        kernel = spread(self.weight).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class DownConv3x3(nn.Conv2d):
    """A 3×3 convolution, then 2×2 mean pooling.

    Computed as one stride-2 convolution with a 4×4 kernel: the same function to rounding, at 4/9 of the multiplications.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, H/2, W/2]`; H and W even."""
        return conv2d(x, spread(self.weight) / 4, self.bias, stride=2, padding=1)


class LayerNorm2d(nn.GroupNorm):
    """Layer normalisation over channels and pixels of each image, with one scale and offset per channel (`GroupNorm(1, C)`)."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> the same shape."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` (square, of one stride, no groups) for nets that a gradient penalty differentiates twice."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, H', W']`."""
        return conv2d(x, self.weight, self.bias, self.stride[0], int(self.padding[0]))


def he_init(module: nn.Conv2d | nn.Linear, relu: bool) -> None:
    """Uniform fan-in initialisation of Improved WGAN's residual nets: He's gain before a ReLU, LeCun's elsewhere; zero biases.

    The fan is that of the layer as written (3×3), not of its 4×4 form.
    """
    bound = (3 * (2 if relu else 1) / module.weight[0].numel()) ** 0.5
    nn.init.uniform_(module.weight, -bound, bound)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def as_images(x: Tensor) -> Tensor:
    """Put `[N, C, H, W]` into channels-last memory, in which CPU and GPU convolutions are fastest."""
    return x.contiguous(memory_format=torch.channels_last)
