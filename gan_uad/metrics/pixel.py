"""Pixel-level metrics: anomaly maps `[N, H, W]` (float, higher = more anomalous) against masks `[N, H, W]` (bool)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


def _check_maps(maps: ArrayLike) -> NDArray[np.floating]:
    values = np.asarray(maps)
    if values.ndim != 3 or values.size == 0:
        raise ValueError(f"maps: expected a non-empty [N, H, W] array, got shape {values.shape}")
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise ValueError(f"maps: {bad} of {values.size} pixels are NaN or infinite and cannot be ranked")
    return values


def _check_masks(masks: ArrayLike, shape: tuple[int, ...]) -> BoolArray:
    values = np.asarray(masks)
    if values.shape != shape:
        raise ValueError(f"masks of shape {values.shape} do not fit maps of shape {shape}: one mask for each map")
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise ValueError("masks: expected booleans (True: anomalous pixel); binarise grey masks first")
    result = values.astype(bool)
    if not result.any():
        raise ValueError(f"masks: no anomalous pixel in {len(result)} masks, the metric is undefined")
    return result


def _check(masks: ArrayLike, maps: ArrayLike) -> tuple[BoolArray, NDArray[np.floating]]:
    values = _check_maps(maps)
    truth = _check_masks(masks, values.shape)
    if truth.all():
        raise ValueError("masks: no normal pixel, the false-positive rate is undefined")
    return truth, values


def _regions(mask: BoolArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Connected regions (8 neighbours) of one `[H, W]` mask: numbers `[H, W]` from 1, 0 outside; pixels of each."""
    from scipy.ndimage import label

    numbers, count = label(mask, structure=EIGHT_NEIGHBOURS)
    return numbers, np.bincount(numbers.ravel(), minlength=count + 1)


def pixel_auroc(masks: ArrayLike, maps: ArrayLike) -> float:
    """AUROC in [0, 1] over all pixels of all images, ties counting half; exact.

    Large regions outweigh small ones: report `aupro` beside it. Computed as Mann-Whitney U from two sorts, so that 1e7
    pixels take seconds. ValueError for shapes that differ, NaN, or masks without both kinds of pixels.
    """
    truth, values = _check(masks, maps)
    normal, anomalous = np.sort(values[~truth]), np.sort(values[truth])
    below = np.searchsorted(normal, anomalous, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(normal, anomalous, side="right").sum(dtype=np.int64)
    return float((int(below) + int(not_above)) / (2 * len(normal) * len(anomalous)))


def pro_curve(masks: ArrayLike, maps: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """(fpr, pro), both rising from 0 to 1, with a point at every distinct map value; exact.

    fpr: share of all normal pixels at or above the value. pro: share of each connected anomalous region (8 neighbours,
    region by region and image by image) at or above it, averaged over the regions of all images. Source: Bergmann et
    al. 2021 (MVTec AD, IJCV 129), section 5.3. Errors as in `pixel_auroc`.
    """
    truth, values = _check(masks, maps)
    overlap = np.zeros(values.shape)
    n_regions = 0
    for share, mask in zip(overlap, truth, strict=True):
        numbers, sizes = _regions(mask)
        share[mask] = 1 / sizes[numbers[mask]]
        n_regions += len(sizes) - 1
    order = np.argsort(values, axis=None)[::-1]
    ranked = values.ravel()[order]
    last_of_level = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), ranked.size - 1)
    fpr = np.cumsum(~truth.ravel()[order])[last_of_level] / np.count_nonzero(~truth)
    pro = np.cumsum(overlap.ravel()[order])[last_of_level] / n_regions
    return np.concatenate(([0.0], fpr)), np.concatenate(([0.0], np.minimum(pro, 1.0)))


def aupro(masks: ArrayLike, maps: ArrayLike, max_fpr: float = 0.3) -> float:
    """Area under `pro_curve` up to false-positive rate `max_fpr`, divided by it: in [0, 1], 1 is perfect.

    A score without information gives max_fpr / 2, not 0.5. Trapezoids, the last one cut at max_fpr. Source: Bergmann et
    al. 2021, section 5.3 (limit 0.3). ValueError as in `pixel_auroc`, or for max_fpr outside (0, 1].
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"aupro: max_fpr must lie in (0, 1], got {max_fpr}")
    fpr, pro = pro_curve(masks, maps)
    inside = int(np.searchsorted(fpr, max_fpr, side="right"))
    x, y = fpr[:inside], pro[:inside]
    if x[-1] < max_fpr:
        x, y = np.append(x, max_fpr), np.append(y, np.interp(max_fpr, fpr, pro))
    return float(np.trapezoid(y, x) / max_fpr)


def segment(maps: ArrayLike, threshold: float) -> BoolArray:
    """Bool masks `[N, H, W]`: pixels with value > threshold. ValueError for NaN maps or threshold."""
    if np.isnan(threshold):
        raise ValueError("segment: the threshold is NaN")
    return np.asarray(_check_maps(maps) > threshold)


def _overlap(masks: ArrayLike, segments: ArrayLike) -> tuple[int, int, int]:
    found = np.asarray(segments)
    if found.dtype != bool:
        raise ValueError(f"segments: expected booleans, got {found.dtype}; use `segment` to threshold maps first")
    truth = _check_masks(masks, found.shape)
    return int((truth & found).sum()), int(truth.sum()), int(found.sum())


def dice(masks: ArrayLike, segments: ArrayLike) -> float:
    """Dice coefficient 2 |A and B| / (|A| + |B|) in [0, 1] over all pixels of all images together (pixel F1).

    `segments [N, H, W]` bool, from `segment` at a threshold set without these masks. Normal images count through their
    false alarms. Source: Dice 1945. ValueError for shapes that differ, segments not bool, or no anomalous pixel.
    """
    both, true, found = _overlap(masks, segments)
    return 2 * both / (true + found)


def iou(masks: ArrayLike, segments: ArrayLike) -> float:
    """Intersection over union (Jaccard 1912) in [0, 1] over all pixels of all images; as `dice` otherwise."""
    both, true, found = _overlap(masks, segments)
    return both / (true + found - both)
