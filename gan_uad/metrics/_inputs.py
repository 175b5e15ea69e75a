"""Checks of labels, scores, groups and pairs of images that several metrics share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def check_scores(scores: ArrayLike, what: str = "scores") -> FloatArray:
    """Scores `[N]` as float64, N >= 1. ValueError for another shape and for NaN or infinite values, naming how many."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{what}: expected a non-empty one-dimensional array, got shape {values.shape}")
    n_nan, n_inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    if n_nan or n_inf:
        raise ValueError(
            f"{what}: {n_nan} of {values.size} are NaN and {n_inf} are infinite; "
            "an image without a finite score cannot be ranked: leave it out, or fix the scorer"
        )
    return values


def check_labels(labels: ArrayLike, n: int, both_classes: bool = False) -> IntArray:
    """Labels `[n]` of 0 (normal) and 1 (anomalous) as int64. ValueError for anything else or a missing class."""
    values = np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(f"labels: expected {n}, one for each score, got shape {values.shape}")
    known = np.isin(values, (0, 1))
    if not known.all():
        raise ValueError(
            f"labels: {int((~known).sum())} of {n} are neither 0 (normal) nor 1 (anomalous); leave unknown ones out"
        )
    result = values.astype(np.int64)
    if both_classes:
        for label, name in ((0, "normal"), (1, "anomalous")):
            if not (result == label).any():
                raise ValueError(
                    f"no {name} image (label {label}) among {n}: this metric compares the classes and needs both"
                )
    return result


def group_codes(groups: Sequence[str] | None, n: int) -> tuple[IntArray, int]:
    """Group names `[n]` ('' unknown; None: all unknown) -> (codes `[n]` from 0 without gaps, number of unknown ones).

    An image of unknown group is a group of its own. ValueError where the length is not n.
    """
    if groups is None:
        return np.arange(n, dtype=np.int64), n
    if len(groups) != n:
        raise ValueError(f"groups: expected {n}, one for each score, got {len(groups)}")
    keys = [("known", name) if name else ("unknown", str(i)) for i, name in enumerate(groups)]
    numbers: dict[tuple[str, str], int] = {}
    codes = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    return codes, sum(kind == "unknown" for kind, _ in keys)


def check_pair(a: NDArray[Any], b: NDArray[Any]) -> None:
    """Raise `ValueError` unless both are floats `[N, C, H, W]` of one shape, not empty and finite."""
    if a.ndim != 4 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"two arrays [N, C, H, W] of one shape are compared, got {list(a.shape)} and {list(b.shape)}")
    for images in (a, b):
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"images must be floats, got {images.dtype}")
        if not np.isfinite(images).all():
            raise ValueError(f"{int((~np.isfinite(images)).sum())} values of the images are not finite")
