"""Checks of images that all metrics of pairs of images share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_pair(a: NDArray[Any], b: NDArray[Any]) -> None:
    """Raise `ValueError` unless both are floats `[N, C, H, W]` of one shape, not empty and finite."""
    if a.ndim != 4 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"two arrays [N, C, H, W] of one shape are compared, got {list(a.shape)} and {list(b.shape)}")
    for images in (a, b):
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"images must be floats, got {images.dtype}")
        if not np.isfinite(images).all():
            raise ValueError(f"{int((~np.isfinite(images)).sum())} values of the images are not finite")
