"""Structural similarity of images (Wang, Bovik, Sheikh & Simoncelli 2004)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gan_uad.metrics._inputs import FloatArray, check_pair

WINDOW, SIGMA = 11, 1.5  # px, section III.B
K1, K2 = 0.01, 0.03
# Values of the images worked on at once: more than fit a cache would be slower.
AT_ONCE = 1 << 18
STRIP = 32  # rows of a blurred image that are computed together, from no more of the image than they need


def ssim(a: NDArray[np.floating], b: NDArray[np.floating], data_range: float = 2.0) -> tuple[FloatArray, FloatArray]:
    """SSIM `[N]` in [-1, 1] (1: equal) of images `[N, C, H, W]`, and its map `[N, H, W]`, both averaged over channels.

    Gaussian window of 11 px and σ 1.5, C1 = (0.01·L)², C2 = (0.03·L)², L the `data_range` (2 for images in [-1, 1]); population
    variances. SSIM is the mean over the places where the window lies inside the image, as in the paper; the map reaches the edges, where
    the images are mirrored. In float64: the variances are small differences. Raises `ValueError` for images of fewer than 11 px,
    other shapes, and values that are not finite.
    """
    check_pair(a, b)
    n, channels, height, width = a.shape
    if min(height, width) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} px, got {height}x{width}")
    if not data_range > 0:
        raise ValueError(f"the data range must be positive, got {data_range}")
    rows, columns = _blur(height), _blur(width)
    maps = np.empty((n, height, width))
    step = max(1, AT_ONCE // (channels * height * width))
    for start in range(0, n, step):
        block = slice(start, start + step)
        maps[block] = _of_channels(a[block].astype(np.float64), b[block].astype(np.float64), rows, columns, data_range)
    edge = WINDOW // 2
    return maps[:, edge : height - edge, edge : width - edge].mean((1, 2)), maps


def _of_channels(a: FloatArray, b: FloatArray, rows: FloatArray, columns: FloatArray, data_range: float) -> FloatArray:
    """The map `[N, H, W]`, equation 13 of the paper averaged over channels."""
    mean_a, mean_b, square_a, square_b, product = (_blurred(x, rows, columns) for x in (a, b, a * a, b * b, a * b))
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a**2 + square_b - mean_b**2
    means = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    of_channels: FloatArray = means * (2 * covariance + c2) / (variances + c2)
    return of_channels.mean(1)


def _blurred(x: FloatArray, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """rows · x · columnsᵀ of bands `rows` and `columns`, as `_blur` makes them."""
    down, across = np.empty_like(x), np.empty_like(x)
    for into, near in _strips(len(rows)):
        down[:, :, into] = rows[into, near] @ x[:, :, near]
    for into, near in _strips(len(columns)):
        across[:, :, :, into] = down[:, :, :, near] @ columns[into, near].T
    return across


def _strips(size: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of `STRIP` places, and those that a window at them reaches."""
    for start in range(0, size, STRIP):
        end = min(start + STRIP, size)
        yield slice(start, end), slice(max(start - WINDOW // 2, 0), min(end + WINDOW // 2, size))


def _blur(size: int) -> FloatArray:
    """The Gaussian window as a matrix `[size, size]`, mirrored at the edges (d c b a | a b c d): products with it are fast."""
    taps = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / SIGMA**2)
    places = np.arange(size)[:, None] + np.arange(WINDOW) - WINDOW // 2
    places = np.where(places < 0, -1 - places, places)
    places = np.where(places >= size, 2 * size - 1 - places, places)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], places), taps / taps.sum())
    return matrix
