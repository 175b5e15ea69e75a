"""From 8-bit pixels to the input of a network; and pixels themselves as features, a baseline without a network."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.registry import register

SIDE = 16  # px of the features `pixels`


def as_float(images: Tensor) -> Tensor:
    """uint8 `[N, 3, H, W]` as float32 0 to 255; raises `ValueError` for anything else."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")
    return images.to(torch.float32, memory_format=torch.channels_last)


def resized(x: Tensor, side: int) -> Tensor:
    """Images `[N, C, H, W]` at `side` × `side`: bilinear with pixel centres kept, antialiased where they shrink."""
    if x.shape[2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=True)


@register("pixels", kind="features")
class Pixels(FeatureNet):
    """The pixels of an image, averaged down to 16 × 16 (pixels@8: to 8 × 8; pixels@1: its mean colour); no weights."""

    weights = "none"

    def __init__(self, weights: Path | None = None, side: int | None = None) -> None:
        """`side` in px. Raises `UserError` for `weights`: there are none."""
        super().__init__()
        if weights is not None:
            raise UserError(f"the features pixels have no weights: leave {weights} out")
        self.side = SIDE if side is None else side
        if self.side < 1:
            raise ValueError(f"images must be averaged to at least 1 px, not {side}")
        self.dim = 3 * self.side**2
        self.metric = f"FD-Pixels{self.side}"
        self.preprocessing = f"RGB in [0, 1], averaged over the areas of {self.side} x {self.side} px"

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 `[N, 3, H, W]` -> float32 `[N, 3 · side²]` in [0, 1]: averages over areas, nearest pixels where images are smaller."""
        return F.adaptive_avg_pool2d(as_float(images) / 255, self.side).flatten(1)
