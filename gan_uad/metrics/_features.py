"""Checks of feature arrays that all metrics of generated images share, and reading them in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Features = NDArray[Any]  # float [n, d], in memory or memory-mapped

ROWS = 2048  # rows of a block of an array that may be memory-mapped


def blocks(features: Features, rows: int = ROWS) -> Iterator[tuple[int, Features]]:
    """Consecutive rows with the number of the first; a memory-mapped array is never read at once."""
    for start in range(0, len(features), rows):
        yield start, np.asarray(features[start : start + rows])


def check_features(features: Any, what: str, least: int = 1, dim: int | None = None, first: int = 0) -> Features:
    """Return float features `[n, d]` without a copy. `first`: number of the first row in messages.

    ValueError for another shape, fewer than `least` rows, another number of features than `dim`, and rows that are not finite.
    """
    if not hasattr(features, "dtype") or features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        kind = f"{features.dtype} {list(features.shape)}" if hasattr(features, "dtype") else type(features).__name__
        raise ValueError(f"{what}: expected a float array [images, features], got {kind}")
    n, d = features.shape
    if n < least:
        raise ValueError(f"{what}: {n} images, but this metric needs at least {least}")
    if d == 0 or (dim is not None and d != dim):
        raise ValueError(f"{what}: {d} features an image, expected {'at least 1' if dim is None else dim}")
    bad = [first + start + row for start, block in blocks(features) for row in _not_finite(block)]
    if bad:
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise ValueError(
            f"{what}: {len(bad)} of {n} images have features that are NaN or infinite (rows {shown}, counted from 0); "
            "the images or the feature network are broken there"
        )
    return np.asanyarray(features)


def _not_finite(block: Features) -> list[int]:
    return [int(row) for row in np.flatnonzero(~np.isfinite(block).all(axis=1))]
