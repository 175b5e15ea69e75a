"""Regularisation of the noise maps of a style-based generator in a search (Karras et al. 2020, appendix D)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SIDE = 8  # px: the coarsest octave


def autocorrelation(maps: Sequence[Tensor]) -> Tensor:
    """How far noise maps are from white noise, one number `[N]` for each image.

    maps: one `[N, 1, S, S]` for each layer, S a power of two. The sum over maps, and over their octaves down to 8 px, of the squared means
    of the products with the map shifted by one pixel to the right and by one down (around the edges). An octave is the mean of 2×2
    pixels; as in the original programs, and unlike the paper's text, it is not multiplied by 2.
    """
    # All maps of one size are treated at once: a few large operations instead of many small ones.
    by_side: dict[int, list[Tensor]] = {}
    for noise in maps:
        by_side.setdefault(noise.shape[-1], []).append(noise)
    total = maps[0].new_zeros(len(maps[0]))
    side = max(by_side)
    while by_side:
        if side in by_side:
            noise = torch.cat(by_side.pop(side), 1)
            for axis in (2, 3):
                total = total + (noise * noise.roll(1, axis)).mean((2, 3)).square().sum(1)
            if side > MIN_SIDE:
                by_side.setdefault(side // 2, []).append(F.avg_pool2d(noise, 2))
        side //= 2
    return total


@torch.no_grad()
def renormalise_(maps: Sequence[Tensor]) -> None:
    """Give each map of each image `[N, 1, S, S]` mean 0 and mean square 1, in place."""
    for noise in maps:
        noise.sub_(noise.mean((1, 2, 3), keepdim=True))
        noise.mul_(noise.square().mean((1, 2, 3), keepdim=True).rsqrt())
