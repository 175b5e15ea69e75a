"""The earth mover's distance between the intensities of an image and those of another, such as its reconstruction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gan_uad.metrics._inputs import FloatArray, check_pair


def intensity_emd(a: NDArray[np.floating], b: NDArray[np.floating]) -> FloatArray:
    """Wasserstein-1 distance between the intensity distributions of `a` and `b`, each channel by itself, averaged over channels: `[N]`.

    Images `[N, C, H, W]` of any real values; the distance is in their units (at most 2 for images in [-1, 1]) and blind to where in
    the image a value lies. Two sets of equally many values are matched in sorted order (Peyré & Cuturi 2019, remark 2.28), so the
    distance is mean |sort(a) − sort(b)|, exactly. Raises `ValueError` for other shapes and values that are not finite.
    """
    check_pair(a, b)
    ranked = (np.sort(images.reshape(*images.shape[:2], -1), axis=2) for images in (a, b))
    return np.abs(np.subtract(*ranked)).mean((1, 2), dtype=np.float64)
