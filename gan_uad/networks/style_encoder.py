"""An encoder of images into the latents of a style-based generator: w for each layer, and the noise maps that place small details.

The trunk is StyleGAN2's residual discriminator without the minibatch stddev, so that images never mix. The offsets from the mean w
are read from its 4×4 maps and, for the finer layers, from the spatial means of all larger ones; the noise maps are read on a U-Net's
way back up.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.networks.fused import resample
from gan_uad.networks.layers import SQRT2, EqualConv2d, EqualLinear, check_sizes, mixed_precision
from gan_uad.networks.stylegan2 import TAPS, Trunk
from gan_uad.registry import register


class Code(NamedTuple):
    """What an encoder found for N images: ws `[N, num_ws, w_dim]`, and noise maps `[N, 1, h, w]` of each layer, or None."""

    ws: Tensor
    noise: list[Tensor] | None


class NoiseDecoder(nn.Module):
    """The way back up of a U-Net: the trunk's maps -> noise maps, each of zero mean and unit variance in each image."""

    def __init__(self, sides: list[int], widths: list[int], num_noise: int) -> None:
        """`sides` and `widths` of the trunk's maps, smallest first; the last `num_noise` layers of two to a side have a map."""
        super().__init__()
        counts = [min(2, max(0, num_noise - 2 * above)) for above in reversed(range(len(sides)))]
        self.sides = [side for side, count in zip(sides, counts, strict=True) for _ in range(count)]
        self.laterals = nn.ModuleList(EqualConv2d(width, width, 1) for width in widths)
        self.ups = nn.ModuleList(EqualConv2d(a, b, 1, bias=False) for a, b in pairwise(widths))
        self.convs = nn.ModuleList(EqualConv2d(width, width, act_gain=SQRT2) for width in widths)
        self.outputs = nn.ModuleList(
            EqualConv2d(width, count, 1) if count else nn.Identity()
            for width, count in zip(widths, counts, strict=True)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps `[N, C, h, w]` of each side -> `[N, 1, h, w]` of each layer, lowest resolution first."""
        noise: list[Tensor] = []
        x: Tensor | None = None
        for i, found in enumerate(maps):
            y = self.laterals[i](found)
            if x is not None:
                y = (y + resample(self.ups[i - 1](x.to(y.dtype)), TAPS, 2, 1, (2, 1), gain=4.0)) * 0.5**0.5
            x = self.convs[i](y)
            if isinstance(self.outputs[i], EqualConv2d):
                noise += _normalised(self.outputs[i](x)).split(1, 1)
        return noise


@register("style_encoder")
class StyleEncoder(Trunk):
    """Images -> ws of a StyleGAN or StyleGAN2 as the mean w plus offsets, and with `predict_noise` its noise maps too.

    space: "w" gives all layers one offset, "w_plus" each its own. A fresh encoder gives the mean w. `w_dim`, `num_ws`
    (layers with a w) and `num_noise` (layers with noise; two at each resolution from the top down) are the generator's: training fills
    them in, their defaults are those of StyleGAN2.
    `low_precision_levels`: how many of the top resolutions follow bf16 or fp16.
    """

    w_avg: Tensor
    w_std: Tensor

    def __init__(
        self,
        resolution: int = 64,
        w_dim: int = 512,
        num_ws: int | None = None,
        num_noise: int | None = None,
        space: Literal["w", "w_plus"] = "w_plus",
        predict_noise: bool = True,
        channel_base: int = 16384,
        channel_max: int = 512,
        low_precision_levels: int = 4,
    ) -> None:
        super().__init__(resolution, channel_base, channel_max, low_precision_levels)
        widths = self.widths
        sides = [4 << i for i in range(len(widths))]
        num_ws = 2 * len(sides) if num_ws is None else num_ws
        num_noise = 2 * len(sides) - 1 if num_noise is None else num_noise
        check_sizes(w_dim=w_dim, num_ws=num_ws)
        if predict_noise and not 1 <= num_noise <= 2 * len(sides):
            raise ValueError(f"num_noise must be in [1, {2 * len(sides)}] at {resolution} px, got {num_noise}")
        self.w_dim, self.num_ws, self.space = w_dim, num_ws, space
        self.conv = EqualConv2d(widths[0], widths[0], act_gain=SQRT2)
        self.linear = EqualLinear(widths[0] * 16, widths[0], activate=True)
        self.offsets = EqualLinear(widths[0] + sum(widths[1:]), (num_ws if space == "w_plus" else 1) * w_dim)
        nn.init.zeros_(self.offsets.weight)
        self.noise = NoiseDecoder(sides, widths, num_noise) if predict_noise else None
        self.register_buffer("w_avg", torch.zeros(w_dim))
        self.register_buffer("w_std", torch.ones(()))

    @property
    def noise_shapes(self) -> list[tuple[int, int, int]] | None:
        """Shape `(1, H, W)` of each noise map, lowest resolution first; None where none are predicted."""
        return None if self.noise is None else [(1, side, side) for side in self.noise.sides]

    @torch.no_grad()
    def centre(self, w_avg: Tensor, w_std: float) -> None:
        """Let offsets be counted from `w_avg` `[w_dim]`, in units of `w_std` / √w_dim; `w_std`: root mean square of ‖w − w_avg‖."""
        self.w_avg.copy_(w_avg)
        self.w_std.fill_(w_std)

    def forward(self, x: Tensor) -> Code:
        """Images `[N, 3, R, R]` in [-1, 1] -> their `Code`, in float32."""
        with mixed_precision(x) as low:
            maps = [*self.descend(x, low)][::-1]  # smallest first
            top = self.linear(self.conv(maps[0].to(x.dtype)).flatten(1))
            means = [found.to(x.dtype).mean((2, 3)) for found in maps[1:]]
            offsets = self.offsets(torch.cat([top, *means], 1)).unflatten(1, (-1, self.w_dim))
            ws = (self.w_avg + self.w_std / self.w_dim**0.5 * offsets).expand(-1, self.num_ws, -1)
            return Code(ws, None if self.noise is None else [maps.to(x.dtype) for maps in self.noise(maps)])


def _normalised(maps: Tensor) -> Tensor:
    """Zero mean and unit variance of each map of each image, in float32 (or float64); a constant map becomes 0."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return F.instance_norm(maps, eps=1e-8)
