"""HED jitter: images as if their stains were a little stronger, weaker or different."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gan_uad.data.images import Pixels

# Optical density of R, G, B (columns) per unit of haematoxylin, eosin and DAB (rows), Ruifrok & Johnston 2001.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # natural logarithm; white has none


def hed_jitter(images: Pixels, changes: NDArray[np.float64]) -> Pixels:
    """Each image with its stains s changed to α·s + β (Tellez et al. 2018), stain by stain.

    images: uint8 [N, H, W, 3]. changes: [N, 6], α − 1 of haematoxylin, eosin and DAB, then their β in units of natural optical density;
    zeros leave an image as it is. β changes the background too, as a tinted light does. Returns uint8 [N, H, W, 3].
    """
    apart = np.linalg.inv(STAINS)
    found = np.empty_like(images)
    for image, into, change in zip(images, found, changes, strict=True):
        matrix = apart @ np.diag(1 + change[:3]) @ STAINS
        density = DENSITY[image] @ matrix.astype(np.float32) + (change[3:] @ STAINS).astype(np.float32)
        into[:] = np.clip(256 * np.exp(-density) - 0.5, 0, 255)  # −1 of `DENSITY`, and 0.5 to round
    return found
