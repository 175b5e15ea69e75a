"""Features of a stream of images, one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from gan_uad.features.base import FeatureNet

MICRO_BATCH = 32


def extract(
    net: FeatureNet, batches: Iterable[NDArray[np.uint8]], device: torch.device | str, micro_batch: int = MICRO_BATCH
) -> Iterator[NDArray[np.float32]]:
    """Batches of uint8 `[n, H, W, 3]` -> as many float32 `[n, dim]`, of any n; nothing is kept.

    The network always sees `micro_batch` images; the last ones are padded with black ones. The size of a batch changes the last digits
    of a convolution, and an image's features must not depend on the other images. Raises `ValueError` for another type or shape.
    """
    for images in batches:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"expected uint8 [n, H, W, 3], got {images.dtype} {list(images.shape)}")
        found = np.empty((len(images), net.dim), np.float32)
        for start in range(0, len(images), micro_batch):
            part = images[start : start + micro_batch]
            padded = np.zeros((micro_batch, *images.shape[1:]), np.uint8)
            padded[: len(part)] = part
            features = net(torch.from_numpy(padded).to(device).permute(0, 3, 1, 2))
            found[start : start + len(part)] = features[: len(part)].float().cpu().numpy()
        yield found
