"""From 8-bit pixels to the input of a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
