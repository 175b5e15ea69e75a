"""What the progressively grown families share: the state of growth, the cross-fade, and the discriminator.

A net holds the layers of all its levels from the start. Level L makes or takes images of 2^L px; `alpha` below 1 blends the newest
level with the one before it (Karras et al. 2018, section 2 and figure 2).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.networks.fused import resample
from gan_uad.networks.layers import (
    SQRT2,
    EqualConv2d,
    EqualLinear,
    as_images,
    channels_at,
    check_sizes,
    minibatch_stddev,
    mixed_precision,
    widths_of,
)
from gan_uad.networks.second_order import conv_transpose2d

MIN_LEVEL = 2  # 4 px


def shrink(x: Tensor, side: int) -> Tensor:
    """Average square images `[N, C, H, H]` down to `side` px."""
    return x if x.shape[-1] == side else F.avg_pool2d(x, x.shape[-1] // side)


def enlarge(x: Tensor, side: int) -> Tensor:
    """Repeat the pixels of square images `[N, C, H, H]` up to `side` px."""
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode="nearest")


def blur(x: Tensor) -> Tensor:
    """Low-pass filter by [1, 2, 1] in both directions, zeros outside (Karras et al. 2019, appendix C)."""
    return resample(x, (1.0, 2.0, 1.0), 1, 1, (1, 1))


def up_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Nearest-neighbour 2× up-sampling and a 3×3 convolution by `weight` `[O, I, 3, 3]`: `[N, I, H, W]` -> `[N, O, 2H, 2W]`.

    Pixels are set apart by zeros, convolved and then repeated, which is the same and takes a quarter of the multiplications.
    """
    y = conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), stride=2, padding=0)
    return resample(y, (1.0, 1.0), 1, 1, (0, 0), gain=4.0)


class Growing(nn.Module):
    """A net with a present level and fade, kept in buffers so that they are part of its state; fully grown when made.

    The top `low_precision_levels` levels above 4 px follow autocast; the others stay in float32.
    """

    level: Tensor
    alpha: Tensor
    _seen: tuple[Any, tuple[int, float]]  # the buffers as they were read last, and their values

    def __init__(self, resolution: int, low_precision_levels: int) -> None:
        super().__init__()
        self.resolution, self.top = resolution, resolution.bit_length() - 1
        self.low_precision_levels = low_precision_levels
        self.register_buffer("level", torch.tensor(self.top))
        self.register_buffer("alpha", torch.ones(()))
        self._seen = (None, (self.top, 1.0))

    def grow(self, level: int, alpha: float = 1.0) -> None:
        """Work at 2^`level` px, the newest level's share being `alpha` in [0, 1] (1 = faded in; without meaning at 4 px)."""
        if not MIN_LEVEL <= level <= self.top or not 0 <= alpha <= 1:
            raise ValueError(
                f"level must be in {MIN_LEVEL}..{self.top} and alpha in [0, 1], got level {level} and alpha {alpha}"
            )
        if self.stage != (level, alpha):
            self.level.fill_(level)
            self.alpha.fill_(alpha)
            self._seen = (self._state_of_buffers(), (level, alpha))

    @property
    def stage(self) -> tuple[int, float]:
        """Present level and alpha. They are read from the device, which waits for it, only after something has written them."""
        state = self._state_of_buffers()
        if self._seen[0] != state:
            self._seen = (state, (int(self.level), float(self.alpha)))
        return self._seen[1]

    def _state_of_buffers(self) -> tuple[int, ...]:
        """Another one after every write to the buffers: `grow`, a loaded state, an average."""
        return tuple(part for buffer in (self.level, self.alpha) for part in (id(buffer), buffer._version))

    def precision(self, level: int, low: torch.dtype, full: torch.dtype) -> torch.dtype:
        """What a level computes in, where autocast asks for `low`."""
        return low if level > max(MIN_LEVEL, self.top - self.low_precision_levels) else full


class GrowingGenerator(Growing):
    """The end of a generator: linear 1×1 convolutions to colours, one a level, and their fade."""

    def __init__(self, resolution: int, widths: list[int], low_precision_levels: int) -> None:
        super().__init__(resolution, low_precision_levels)
        self.to_rgb = nn.ModuleList(EqualConv2d(width, 3, 1) for width in widths)

    def paint(self, before: Tensor, x: Tensor, full: torch.dtype) -> Tensor:
        """Images `[N, 3, 2^level, 2^level]` of the maps of the level before (used while fading) and of the present one."""
        level, alpha = self.stage
        image: Tensor = self.to_rgb[level - MIN_LEVEL](x).to(full)
        if level > MIN_LEVEL and alpha < 1:
            old = self.to_rgb[level - MIN_LEVEL - 1](before).to(full)
            image = enlarge(old, image.shape[-1]).lerp(image, alpha)
        return image


class DownBlock(nn.Module):
    """3×3 convolution, then one that halves the resolution (3×3 and 2×2 mean, computed as one), blurred before it or not."""

    def __init__(self, in_channels: int, out_channels: int, blurred: bool) -> None:
        super().__init__()
        self.conv0 = EqualConv2d(in_channels, in_channels, gain=SQRT2, act_gain=1.0)
        # A 2×2 mean before a stride-2 convolution is the 2×2 mean after the convolution.
        self.conv1 = EqualConv2d(in_channels, out_channels, gain=SQRT2, act_gain=1.0, down=True, taps=(1, 1))
        self.blurred = blurred

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, H/2, W/2]`."""
        x = self.conv0(x)
        return self.conv1(blur(x) if self.blurred else x)


class Discriminator(Growing):
    """Images -> scores `[N]`, higher = more like the real ones. PGAN's, and with `blurred` StyleGAN's.

    Takes images of its level's size and of full size, which are averaged down. The minibatch stddev comes last, so `features` do not
    mix images.
    """

    def __init__(
        self,
        resolution: int,
        channel_base: int,
        channel_max: int,
        mbstd_group: int,
        low_precision_levels: int,
        blurred: bool,
    ) -> None:
        super().__init__(resolution, low_precision_levels)
        check_sizes(mbstd_group=mbstd_group)
        self.mbstd_group = mbstd_group
        widths = widths_of(resolution, channel_base, channel_max)
        hidden = channels_at(2, channel_base, channel_max)
        self.from_rgb = nn.ModuleList(EqualConv2d(3, width, 1, gain=SQRT2, act_gain=1.0) for width in widths)
        self.blocks = nn.ModuleList(DownBlock(b, a, blurred) for a, b in pairwise(widths))
        self.conv = EqualConv2d(widths[0] + 1, widths[0], gain=SQRT2, act_gain=1.0)
        self.linear = EqualLinear(widths[0] * 16, hidden, gain=SQRT2)
        self.output = EqualLinear(hidden, 1)

    def features(self, x: Tensor) -> Tensor:
        """Flattened activations `[N, F]` of the 4×4 maps before the minibatch stddev."""
        return self.maps(x).flatten(1)

    def maps(self, x: Tensor) -> Tensor:
        """Images -> `[N, C, 4, 4]` in the precision of `x`; raises `ValueError` for a size that is neither the level's nor the full."""
        level, alpha = self.stage
        side, full = 1 << level, x.dtype
        if tuple(x.shape[2:]) not in {(side, side), (self.resolution, self.resolution)}:
            raise ValueError(
                f"this discriminator takes {side} px (its level) or {self.resolution} px, got images of {list(x.shape)}"
            )
        with mixed_precision(x) as low:
            x = as_images(shrink(x, side))
            maps = self._read(x, level, low)
            for i in range(level, MIN_LEVEL, -1):
                maps = self.blocks[i - MIN_LEVEL - 1](maps.to(self.precision(i, low, full)))
                if i == level and alpha < 1:
                    maps = self._read(shrink(x, side // 2), level - 1, low).to(maps.dtype).lerp(maps, alpha)
            return maps.to(full)

    def _read(self, x: Tensor, level: int, low: torch.dtype) -> Tensor:
        maps: Tensor = self.from_rgb[level - MIN_LEVEL](x.to(self.precision(level, low, x.dtype)))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the images `x`; raises `ValueError` when their number is not a multiple of `mbstd_group`."""
        x = self.maps(x)
        with mixed_precision(x):
            x = self.conv(minibatch_stddev(x, self.mbstd_group))
            return self.output(F.leaky_relu(self.linear(x.flatten(1)), 0.2)).squeeze(1)
