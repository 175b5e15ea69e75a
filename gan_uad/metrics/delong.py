"""DeLong's comparison of two AUROCs of the same, independent images: without resampling, with a p-value."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.metrics._inputs import FloatArray, check_labels, check_scores


class DeLong(NamedTuple):
    """AUROC of the scores less that of the others, its standard error, interval and two-sided p-value (NaN where undefined)."""

    value: float
    error: float
    low: float
    high: float
    p: float


def delong(labels: ArrayLike, scores: ArrayLike, others: ArrayLike, confidence: float = 0.95) -> DeLong:
    """Compare two scores `[N]` of the same images by AUROC. Valid where images are independent: one per patient.

    `labels [N]` of 0 and 1. The covariance of the two areas is that of their structural components: for each anomalous image the share of
    normal ones below it, for each normal image the share of anomalous ones above it, ties half (DeLong, DeLong & Clarke-Pearson 1988,
    Biometrics 44:837), computed from midranks in O(N log N) (Sun & Xu 2014, IEEE Signal Process Lett 21:1389). The interval is normal, cut
    to [-1, 1]. Interval and p are NaN where a class has fewer than two images, or where both scores rank alike, so that the error is 0.
    ValueError for bad input or a single class.
    """
    pair = [check_scores(scores), check_scores(others, "the other scores")]
    classes = check_labels(labels, len(pair[0]), both_classes=True)
    if len(pair[1]) != len(pair[0]):
        raise ValueError(f"the other scores: expected {len(pair[0])}, of the same images, got {len(pair[1])}")
    if not 0 < confidence < 1:
        raise ValueError(f"delong: confidence must be in (0, 1), got {confidence}")
    # The difference of components has the variance of the difference of areas.
    (own_1, own_0), (other_1, other_0) = (structural_components(values, classes == 1) for values in pair)
    value = round(float(own_1.mean() - other_1.mean()), 12)
    parts = [(own_1 - other_1).round(12), (own_0 - other_0).round(12)]  # equal ranks differ by rounding alone
    nan = float("nan")
    if min(map(len, parts)) < 2:
        return DeLong(value, nan, nan, nan, nan)
    error = math.sqrt(sum(float(part.var(ddof=1)) / len(part) for part in parts))
    if error == 0:
        return DeLong(value, 0.0, nan, nan, nan)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return DeLong(
        value, error, max(-1.0, value - reach), min(1.0, value + reach), math.erfc(abs(value) / error / math.sqrt(2))
    )


def structural_components(scores: FloatArray, anomalous: np.ndarray) -> tuple[FloatArray, FloatArray]:
    """Of each anomalous image the share of normal ones that it exceeds, of each normal one the share that exceeds it; ties half."""
    from scipy.stats import rankdata

    high, low = scores[anomalous], scores[~anomalous]
    ranks = rankdata(np.concatenate([high, low]))
    below = (ranks[: len(high)] - rankdata(high)) / len(low)
    above = 1 - (ranks[len(high) :] - rankdata(low)) / len(high)
    return np.asarray(below), np.asarray(above)
