"""Calibration of probabilities: of a classifier (reliability), of a normal-only detector (p-values)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.metrics._inputs import FloatArray, IntArray, check_labels, check_scores


class Reliability(NamedTuple):
    """Predicted and observed share per bin (arrays `[bins]`, NaN where the bin is empty), and ECE and Brier score over all images."""

    predicted: FloatArray
    observed: FloatArray
    counts: IntArray
    ece: float
    brier: float


class TailCalibration(NamedTuple):
    """`observed[i]`: share of the `n` test normals whose p-value is <= `levels[i]`; calibrated is observed <= level."""

    levels: FloatArray
    observed: FloatArray
    n: int


def _probabilities(values: ArrayLike, what: str) -> FloatArray:
    checked = check_scores(values, what)
    if checked.min() < 0 or checked.max() > 1:
        raise ValueError(f"{what}: expected values in [0, 1], got {checked.min():g} to {checked.max():g}")
    return checked


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> Reliability:
    """Reliability of `probabilities [N]` in [0, 1] that an image is anomalous, in `bins` bins of equal width.

    A bin holds its lower edge but not its upper one, the last holds both. ECE is the mean over images of
    |observed - predicted| of their bin (Guo et al. 2017, eq. 3, for the anomalous class); Brier is the mean squared
    error (Brier 1950). ValueError for values outside [0, 1] and for labels other than 0 and 1.
    """
    if bins < 1:
        raise ValueError(f"reliability: bins must be at least 1, got {bins}")
    values = _probabilities(probabilities, "probabilities")
    truth = check_labels(labels, len(values))
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], values, side="right")
    counts = np.bincount(index, minlength=bins)
    total = np.where(counts > 0, counts, np.nan)
    predicted = np.bincount(index, weights=values, minlength=bins) / total
    observed = np.bincount(index, weights=truth, minlength=bins) / total
    ece = float(np.nansum(counts * np.abs(observed - predicted)) / len(values))
    return Reliability(predicted, observed, counts, ece, float(np.mean((values - truth) ** 2)))


def tail_probability(calibration_scores: ArrayLike, scores: ArrayLike) -> FloatArray:
    """Conformal p-value of each of `scores [M]` against the scores `[n]` of held-out normals, in [1/(n+1), 1].

    (1 + #{calibration >= score}) / (n + 1): for a normal that is exchangeable with the calibration normals,
    P(p <= t) <= t. Source: Vovk et al. 2005; Bates et al. 2023, eq. 2. ValueError for NaN, infinite or no scores.
    """
    reference = np.sort(check_scores(calibration_scores, "calibration scores"))
    at_least = len(reference) - np.searchsorted(reference, check_scores(scores), side="left")
    return np.asarray((1 + at_least) / (len(reference) + 1))


def pvalue_calibration(labels: ArrayLike, p_values: ArrayLike) -> TailCalibration:
    """The observed share of test normals (label 0) with `p_values [N]` <= t, against t = 0, 0.01, ... 1.

    Above the diagonal, normals look more anomalous than the calibration normals did: more false alarms than promised.
    ValueError for p-values outside [0, 1] or no normals.
    """
    values = _probabilities(p_values, "p-values")
    normal = np.sort(values[check_labels(labels, len(values)) == 0])
    if normal.size == 0:
        raise ValueError("p-value calibration is a statement on normals (label 0), got none")
    levels = np.arange(101) / 100
    observed = np.searchsorted(normal, levels, side="right") / normal.size
    return TailCalibration(levels, observed, int(normal.size))
