"""StyleGAN2 (Karras et al. 2020, *Analyzing and Improving the Image Quality of StyleGAN*), 32 to 1024 px.

Generator with skip connections, residual discriminator: configuration E with `channel_base` 16384, F with 32768. At 64 px configuration E
has 23,819,544 parameters in G and 23,407,361 in D.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gan_uad.networks.fused import resample, scale_act
from gan_uad.networks.layers import (
    SQRT2,
    EqualConv2d,
    EqualLinear,
    MappingNetwork,
    ModulatedConv2d,
    StyleGenerator,
    as_images,
    check_sizes,
    minibatch_stddev,
    mixed_precision,
    noise_of_layers,
    widths_of,
)
from gan_uad.registry import register

TAPS = (1.0, 3.0, 3.0, 1.0)


class StyleLayer(nn.Module):
    """Modulated 3×3 convolution, noise of learned strength, bias, leaky ReLU; with `up`, at twice the resolution."""

    noise: Tensor

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, up: bool) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, w_dim, up=up)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, 1, resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | str) -> Tensor:
        """x `[N, I, H, W]`, w `[N, w_dim]`, noise `[N or 1, 1, H, W]` or a mode -> `[N, O, H, W]` or `[N, O, 2H, 2W]`."""
        y, factors = self.conv(x, w)
        maps = self.noise if noise == "const" else noise
        return scale_act(y, factors, self.bias, maps * self.noise_strength if isinstance(maps, Tensor) else None, SQRT2)


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to colours, without demodulation."""

    def __init__(self, in_channels: int, w_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, 3, w_dim, kernel=1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x `[N, I, H, W]`, w `[N, w_dim]` -> `[N, 3, H, W]`."""
        y, factors = self.conv(x, w)
        return scale_act(y, factors, self.bias, None, activate=False)


class Synthesis(nn.Module):
    """One w for each layer -> images: a learned 4×4 constant, two style layers a resolution, colours summed over resolutions."""

    def __init__(
        self, resolution: int, w_dim: int, channel_base: int, channel_max: int, low_precision_levels: int
    ) -> None:
        super().__init__()
        widths = widths_of(resolution, channel_base, channel_max)
        self.resolution, self.low_precision_levels = resolution, low_precision_levels
        self.levels = [4 << i for i in range(len(widths))]
        self.const = nn.Parameter(torch.randn(widths[0], 4, 4))
        self.layers = nn.ModuleList([StyleLayer(widths[0], widths[0], w_dim, 4, up=False)])
        for r, (before, width) in zip(self.levels[1:], pairwise(widths), strict=True):
            self.layers.append(StyleLayer(before, width, w_dim, r, up=True))
            self.layers.append(StyleLayer(width, width, w_dim, r, up=False))
        self.to_rgb = nn.ModuleList(ToRGB(width, w_dim) for width in widths)
        self.num_ws = len(self.layers) + 1

    @property
    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """Shape `(1, H, W)` of each layer's noise map, lowest resolution first."""
        return [(1, self.levels[(i + 1) // 2], self.levels[(i + 1) // 2]) for i in range(len(self.layers))]

    def forward(self, ws: Tensor, noise: str | Sequence[Tensor] = "const") -> Tensor:
        """ws `[N, num_ws, w_dim]` -> images `[N, 3, R, R]`.

        noise: "const" (each layer's own fixed map), "none", or one map `[N or 1, 1, H, W]` for each layer.
        """
        maps = noise_of_layers(noise, len(self.layers))
        with mixed_precision(ws) as low:
            w = ws.unbind(1)
            x = as_images(self.const.expand(len(ws), -1, -1, -1))
            image: Tensor | None = None
            for i, to_rgb in enumerate(self.to_rgb):
                # The 4 px layer needs float32: the gradients of all others meet in it.
                x = x.to(low if i >= max(1, len(self.levels) - self.low_precision_levels) else ws.dtype)
                for j in [0] if i == 0 else [2 * i - 1, 2 * i]:
                    x = self.layers[j](x, w[j], maps[j])
                colours = to_rgb(x, w[2 * i + 1]).to(ws.dtype)
                image = colours if image is None else resample(image, TAPS, 2, 1, (2, 1), gain=4.0) + colours
        assert image is not None
        return image


class DownBlock(nn.Module):
    """Residual block that halves the resolution: 3×3, 3×3 down, and a 1×1 shortcut; the sum has unit variance."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualConv2d(in_channels, in_channels, act_gain=SQRT2)
        self.conv1 = EqualConv2d(in_channels, out_channels, act_gain=1.0, down=True)  # √2 · √½
        self.skip = EqualConv2d(in_channels, out_channels, 1, bias=False, gain=0.5**0.5, down=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, H/2, W/2]`."""
        return self.conv1(self.conv0(x)) + self.skip(x)


class Trunk(nn.Module):
    """Residual blocks from full resolution down to 4 px; the top `low_precision_levels` resolutions follow autocast."""

    def __init__(self, resolution: int, channel_base: int, channel_max: int, low_precision_levels: int) -> None:
        super().__init__()
        self.resolution, self.low_precision_levels = resolution, low_precision_levels
        self.widths = widths_of(resolution, channel_base, channel_max)  # at 4, 8, ..., `resolution` px
        self.from_rgb = EqualConv2d(3, self.widths[-1], 1, act_gain=SQRT2)
        self.blocks = nn.ModuleList(DownBlock(a, b) for a, b in pairwise(self.widths[::-1]))

    def descend(self, x: Tensor, low: torch.dtype) -> Iterator[Tensor]:
        """Images `[N, 3, R, R]` -> the maps `[N, C, h, h]` of each resolution, largest first; `low`: what autocast asks for."""
        full = x.dtype
        x = self.from_rgb(as_images(x).to(low if self.low_precision_levels else full))
        yield x
        for i, block in enumerate(self.blocks):
            x = block(x.to(low if i < self.low_precision_levels else full))
            yield x


class Discriminator(Trunk):
    """Images -> logits `[N]`, higher = more like the real ones. The minibatch stddev comes last, so `features` do not mix images."""

    def __init__(
        self,
        resolution: int,
        channel_base: int,
        channel_max: int,
        mbstd_group: int,
        mbstd_channels: int,
        low_precision_levels: int,
    ) -> None:
        super().__init__(resolution, channel_base, channel_max, low_precision_levels)
        check_sizes(mbstd_group=mbstd_group)
        width = self.widths[0]
        if mbstd_channels < 0 or (mbstd_channels and width % mbstd_channels):
            raise ValueError(f"mbstd_channels must divide the {width} channels at 4 px, got {mbstd_channels}")
        self.mbstd_group, self.mbstd_channels = mbstd_group, mbstd_channels
        self.conv = EqualConv2d(width + mbstd_channels, width, act_gain=SQRT2)
        self.linear = EqualLinear(width * 16, width, activate=True)
        self.output = EqualLinear(width, 1)

    def features(self, x: Tensor) -> Tensor:
        """Flattened activations `[N, F]` of the last 4×4 maps before the minibatch stddev."""
        return self.maps(x).flatten(1)

    def maps(self, x: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` -> `[N, C, 4, 4]` in float32."""
        with mixed_precision(x) as low:
            return deque(self.descend(x, low), maxlen=1).pop().to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the images `x`; raises `ValueError` when their number is not a multiple of `mbstd_group`."""
        x = self.maps(x)
        with mixed_precision(x):
            if self.mbstd_channels:
                x = minibatch_stddev(x, self.mbstd_group, self.mbstd_channels)
            return self.output(self.linear(self.conv(x).flatten(1))).squeeze(1)


@register("stylegan2")
class StyleGAN2(nn.Module):
    """StyleGAN2: mapping network, generator `G` with skips, residual discriminator `D`; configuration E or F by `channel_base`.

    `low_precision_levels`: how many of the top resolutions follow bf16 or fp16; the others, and the mapping, stay in float32.
    """

    def __init__(
        self,
        resolution: int = 64,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping_layers: int = 8,
        channel_base: int = 16384,
        channel_max: int = 512,
        mbstd_group: int = 4,
        mbstd_channels: int = 1,
        low_precision_levels: int = 4,
    ) -> None:
        super().__init__()
        mapping = MappingNetwork(z_dim, w_dim, mapping_layers)
        self.G = StyleGenerator(mapping, Synthesis(resolution, w_dim, channel_base, channel_max, low_precision_levels))
        self.D = Discriminator(resolution, channel_base, channel_max, mbstd_group, mbstd_channels, low_precision_levels)
