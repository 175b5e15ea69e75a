"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

RAMP_UP = 0.05  # of the images seen: StyleGAN2-ADA's


class EMA:
    """Holds `net`, an averaged copy of a network: evaluation mode, no gradients.

    Old weights decay by 0.5^(images / half-life). The half-life grows with training up to its full value, so that early averages do not
    consist of initial weights. Floating-point buffers (batch-norm statistics, which belong to their weights) are averaged too unless
    `average_buffers` is false; others are copied. With `half_life_kimg` 0 the copy equals the network.
    """

    def __init__(self, source: nn.Module, half_life_kimg: float, average_buffers: bool = True) -> None:
        if half_life_kimg < 0:
            raise ValueError(f"ema_kimg must not be negative, got {half_life_kimg}")
        self.source, self.half_life, self.average_buffers = source, half_life_kimg * 1000, average_buffers
        self.net = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, images: int, nimg: int) -> None:
        """Update after a step on `images` images; `nimg`: images seen since the start."""
        half_life = min(self.half_life, RAMP_UP * nimg)
        keep = 0.5 ** (images / half_life) if half_life > 0 else 0.0
        pairs: list[tuple[Tensor, Tensor]] = list(zip(self.net.parameters(), self.source.parameters(), strict=True))
        buffers = list(zip(self.net.buffers(), self.source.buffers(), strict=True))
        averaged = [self.average_buffers and kept.is_floating_point() for kept, _ in buffers]
        pairs += [pair for pair, yes in zip(buffers, averaged, strict=True) if yes]
        copied = [pair for pair, yes in zip(buffers, averaged, strict=True) if not yes]
        # All tensors in one call each: a GPU starts few kernels for it.
        torch._foreach_lerp_([mine for mine, _ in pairs], [theirs for _, theirs in pairs], 1 - keep)
        if copied:
            torch._foreach_copy_([mine for mine, _ in copied], [theirs for _, theirs in copied])
