"""PGAN (Karras et al. 2018, *Progressive Growing of GANs for Improved Quality, Stability, and Variation*), 16 to 1024 px.

The networks of table 2: at 1024 px 23,079,115 parameters in G and 23,087,249 in D. `channel_base` counts as elsewhere here,
channels = channel_base / resolution: 16384 is the original's `fmap_base` 8192, which it divides by half the resolution.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.networks.fused import scale_act
from gan_uad.networks.layers import SQRT2, EqualConv2d, as_images, check_sizes, mixed_precision, pixel_norm, widths_of
from gan_uad.networks.progressive import MIN_LEVEL, Discriminator, GrowingGenerator, enlarge, up_conv
from gan_uad.registry import register


def normalised(x: Tensor) -> Tensor:
    """`pixel_norm`, whose squares and eps need float32 at least, of maps in any precision."""
    return pixel_norm(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)


class UpBlock(nn.Module):
    """Nearest-neighbour 2× up-sampling and two 3×3 convolutions, each with leaky ReLU and pixel norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualConv2d(in_channels, out_channels, gain=SQRT2, act_gain=1.0)
        self.conv1 = EqualConv2d(out_channels, out_channels, gain=SQRT2, act_gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, 2H, 2W]`."""
        up = self.conv0
        x = scale_act(up_conv(x, up.kernels(x.dtype)), None, up.bias, None)
        return normalised(self.conv1(normalised(x)))


class Generator(GrowingGenerator):
    """z `[N, z_dim]` of any length (only its direction counts) -> images `[N, 3, R, R]`, real ones being in [-1, 1]."""

    def __init__(
        self, resolution: int, z_dim: int, channel_base: int, channel_max: int, low_precision_levels: int
    ) -> None:
        widths = widths_of(resolution, channel_base, channel_max)
        super().__init__(resolution, widths, low_precision_levels)
        check_sizes(z_dim=z_dim)
        self.z_dim = z_dim
        self.dense = nn.Parameter(torch.randn(widths[0] * 16, z_dim))
        self.dense_bias = nn.Parameter(torch.zeros(widths[0]))
        self.conv = EqualConv2d(widths[0], widths[0], gain=SQRT2, act_gain=1.0)
        self.blocks = nn.ModuleList(UpBlock(a, b) for a, b in pairwise(widths))

    def synthesize_level(self, z: Tensor) -> Tensor:
        """Images of the present level's size, `[N, 3, 2^level, 2^level]`."""
        level, _ = self.stage
        with mixed_precision(z) as low:
            full = z.dtype
            # The gain √2/4 of the dense layer is the original's ("to match the Theano implementation").
            y = F.linear(pixel_norm(z), self.dense * (SQRT2 / 4 / self.z_dim**0.5)).view(len(z), -1, 4, 4)
            x = pixel_norm(scale_act(as_images(y), None, self.dense_bias, None))
            x = before = normalised(self.conv(x.to(self.precision(MIN_LEVEL, low, full))))
            for i in range(MIN_LEVEL + 1, level + 1):
                before, x = x, self.blocks[i - MIN_LEVEL - 1](x.to(self.precision(i, low, full)))
            return self.paint(before, x, full)

    def forward(self, z: Tensor, psi: float = 1.0) -> Tensor:
        """Images of `z` at full size, whatever the level. There is no w to truncate: raises `ValueError` unless `psi` is 1."""
        if psi != 1:
            raise ValueError(f"PGAN has no truncation: psi must be 1, got {psi}")
        return enlarge(self.synthesize_level(z), self.resolution)


@register("pgan")
class PGAN(nn.Module):
    """PGAN: progressively grown generator `G` with pixel norm and discriminator `D` with minibatch stddev.

    `low_precision_levels`: how many of the top resolutions follow bf16 or fp16.
    """

    def __init__(
        self,
        resolution: int = 64,
        z_dim: int = 512,
        channel_base: int = 16384,
        channel_max: int = 512,
        mbstd_group: int = 4,
        low_precision_levels: int = 4,
    ) -> None:
        super().__init__()
        self.G = Generator(resolution, z_dim, channel_base, channel_max, low_precision_levels)
        self.D = Discriminator(resolution, channel_base, channel_max, mbstd_group, low_precision_levels, blurred=False)
