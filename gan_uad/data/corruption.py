"""Corruptions of test images: does a detector report another stain, lens or compression as an anomaly?

Unlike the augmentation of training (`hed.py`), these are fixed: an image is changed in the same way in every batch and call.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from gan_uad.config import CorruptionConfig
from gan_uad.data.hed import hed_jitter
from gan_uad.data.images import Pixels


def corrupt(images: Pixels, settings: CorruptionConfig) -> Pixels:
    """uint8 [N, H, W, 3], each image corrupted by `settings`: first the stains are changed, then it is blurred, then stored as JPEG."""
    if settings.haematoxylin or settings.eosin:
        change = np.array([settings.haematoxylin, settings.eosin, 0, 0, 0, 0], np.float64)
        images = hed_jitter(images, np.repeat(change[None], len(images), 0))
    if settings.blur:
        images = blurred(images, settings.blur)
    return images if settings.jpeg is None else through_jpeg(images, settings.jpeg)


def blurred(images: Pixels, sigma: float) -> Pixels:
    """uint8 [N, H, W, 3] under a Gaussian of `sigma` px, truncated at 4 sigma; beyond its edges an image is mirrored."""
    soft = gaussian_filter(images.astype(np.float32), sigma=(0, sigma, sigma, 0), mode="reflect", truncate=4)
    return np.asarray(np.clip(np.rint(soft), 0, 255), np.uint8)


def through_jpeg(images: Pixels, quality: int) -> Pixels:
    """uint8 [N, H, W, 3] after compression as JPEG of that quality (Pillow's encoder, colour at half resolution)."""
    coded = np.empty_like(images)
    for image, into in zip(images, coded, strict=True):
        Image.fromarray(image).save(buffer := io.BytesIO(), format="jpeg", quality=quality)
        into[:] = np.asarray(Image.open(buffer))
    return coded
