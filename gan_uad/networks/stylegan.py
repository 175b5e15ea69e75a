"""StyleGAN (Karras et al. 2019, *A Style-Based Generator Architecture for Generative Adversarial Networks*), 16 to 1024 px.

At 1024 px 26,219,627 parameters in G (2,101,248 of them in the mapping network) and 23,087,249 in D, as the original prints them.
`channel_base` counts as in pgan.py. The mapping network is the one of StyleGAN2: its activations carry the gain √2 that here belongs
to the weights, so that it is the same function of biases √2 smaller. Truncation pulls every layer, not the first eight only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gan_uad.networks.fused import scale_act
from gan_uad.networks.layers import (
    SQRT2,
    EqualLinear,
    MappingNetwork,
    StyleGenerator,
    as_images,
    mixed_precision,
    noise_of_layers,
    widths_of,
)
from gan_uad.networks.progressive import MIN_LEVEL, Discriminator, GrowingGenerator, blur, enlarge, up_conv
from gan_uad.networks.second_order import conv2d
from gan_uad.registry import register


def adain(x: Tensor, style: Tensor, eps: float = 1e-8) -> Tensor:
    """Adaptive instance normalisation: each map to mean 0 and variance 1, then · (1 + scale) + offset (section 2, equation 1).

    x `[N, C, H, W]`, style `[N, 2C]`: the scales, then the offsets.
    """
    scale, offset = (part[:, :, None, None] for part in style.chunk(2, 1))
    var, mean = torch.var_mean(x.to(style.dtype), (2, 3), correction=0, keepdim=True)
    slope = (1 + scale) * (var + eps).rsqrt()
    return torch.addcmul(offset.to(x.dtype), x - mean.to(x.dtype), slope.to(x.dtype))


class StyleLayer(nn.Module):
    """3×3 convolution, noise with a learned strength for each channel, bias, leaky ReLU, AdaIN.

    With `up`, at twice the resolution, blurred; with `in_channels` 0 without the convolution (of the learned constant).
    """

    noise: Tensor

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, up: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3)) if in_channels else None
        self.scale = SQRT2 / (9 * in_channels) ** 0.5 if in_channels else 1.0
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(out_channels))
        self.affine = EqualLinear(w_dim, 2 * out_channels)
        self.up = up
        self.register_buffer("noise", torch.randn(1, 1, resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | str) -> Tensor:
        """x `[N, I, H, W]`, w `[N, w_dim]`, noise `[N or 1, 1, H', W']` or a mode -> `[N, O, H', W']`."""
        if self.weight is not None:
            weight = (self.weight * self.scale).to(x.dtype)
            x = blur(up_conv(x, weight)) if self.up else conv2d(x, weight, None, 1, 1)
        if isinstance(noise, Tensor) or noise == "const":
            maps = noise if isinstance(noise, Tensor) else self.noise
            strength = self.noise_strength.view(-1, 1, 1)
            x = torch.addcmul(x, maps.to(x.dtype), strength.to(x.dtype))
        return adain(scale_act(x, None, self.bias, None), self.affine(w))


class Synthesis(GrowingGenerator):
    """One w for each layer -> images: a learned 4×4 constant and two style layers a resolution."""

    def __init__(
        self, resolution: int, w_dim: int, channel_base: int, channel_max: int, low_precision_levels: int
    ) -> None:
        widths = widths_of(resolution, channel_base, channel_max)
        super().__init__(resolution, widths, low_precision_levels)
        self.const = nn.Parameter(torch.ones(widths[0], 4, 4))
        self.layers = nn.ModuleList([StyleLayer(0, widths[0], w_dim, 4, False)])
        self.layers.append(StyleLayer(widths[0], widths[0], w_dim, 4, False))
        for i, (before, width) in enumerate(pairwise(widths)):
            self.layers.append(StyleLayer(before, width, w_dim, 8 << i, True))
            self.layers.append(StyleLayer(width, width, w_dim, 8 << i, False))
        self.num_ws = len(self.layers)

    @property
    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """Shape `(1, H, W)` of each layer's noise map, lowest resolution first."""
        return [(1, 4 << i // 2, 4 << i // 2) for i in range(self.num_ws)]

    @property
    def layers_in_use(self) -> int:
        """How many of the layers, from the first on, the present level uses."""
        return 2 * (self.stage[0] - MIN_LEVEL + 1)

    def synthesize_level(self, ws: Tensor, noise: str | Sequence[Tensor] = "const") -> Tensor:
        """ws `[N, ≥ layers in use, w_dim]` -> images of the present level's size, `[N, 3, 2^level, 2^level]`.

        noise: "const" (each layer's own fixed map), "none", or one map `[N or 1, 1, H, W]` for each layer (that is in use).
        """
        level, _ = self.stage
        maps = noise_of_layers(noise, len(self.layers))
        with mixed_precision(ws) as low:
            full = ws.dtype if ws.dtype == torch.float64 else torch.float32
            ws = ws.to(full)
            w = ws.unbind(1)
            x = before = as_images(self.const.expand(len(ws), -1, -1, -1))
            for i in range(MIN_LEVEL, level + 1):
                before, x = x, x.to(self.precision(i, low, full))
                for j in (2 * (i - MIN_LEVEL), 2 * (i - MIN_LEVEL) + 1):
                    x = self.layers[j](x, w[j], maps[j])
            return self.paint(before, x, full)

    def forward(self, ws: Tensor, noise: str | Sequence[Tensor] = "const") -> Tensor:
        """ws `[N, num_ws, w_dim]` -> images `[N, 3, R, R]`, whatever the level. noise: see `synthesize_level`."""
        return enlarge(self.synthesize_level(ws, noise), self.resolution)


class Generator(StyleGenerator):
    """StyleGAN's: it grows."""

    def grow(self, level: int, alpha: float = 1.0) -> None:
        """Make images of 2^`level` px: see `Growing.grow`."""
        self.synthesis.grow(level, alpha)

    @property
    def stage(self) -> tuple[int, float]:
        """Present level and alpha."""
        stage: tuple[int, float] = self.synthesis.stage
        return stage


@register("stylegan")
class StyleGAN(nn.Module):
    """StyleGAN: mapping network, progressively grown generator `G` with AdaIN and noise, discriminator `D` with blur.

    `low_precision_levels`: how many of the top resolutions follow bf16 or fp16.
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
        low_precision_levels: int = 4,
    ) -> None:
        super().__init__()
        mapping = MappingNetwork(z_dim, w_dim, mapping_layers)
        self.G = Generator(mapping, Synthesis(resolution, w_dim, channel_base, channel_max, low_precision_levels))
        self.D = Discriminator(resolution, channel_base, channel_max, mbstd_group, low_precision_levels, blurred=True)
