"""Tail probabilities: how far out among normals a value lies, on one scale for any unit, and how several of them are combined."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gan_uad.metrics._inputs import FloatArray, check_scores

MIN_NORMALS = 10  # with fewer values, the three of the tail would be a third of them or more
TAIL_SHARE = 0.1  # share of the values that make the tail
MIN_TAIL = 3
WINDOWS = 512  # at most so many windows fit between the start of the tail and the middle of the values
COMBINATIONS = ("fisher", "max")
VERSION = 2  # raise it when the same values come to give other probabilities; half-done scorings are then begun again


@dataclass(frozen=True)
class Tail:
    """The probability that a normal has a value at least as large, from n values of validation normals.

    Up to `start`, which is about their 90 % quantile (at least three lie beyond), it is the conformal p-value
    (1 + #{values ≥ v}) / (n + 1) (Vovk et al. 2005), averaged over the `window` below v. The average is never below the p-value
    itself, and it is continuous: a rounding error of v changes it by a rounding error, not by a step of 1 / (n + 1). It is
    piecewise linear, so it is kept as its corners: `knots`, and the averaged count at each, `at_least`.

    Beyond `start`, where counting soon ends at 1 / (n + 1) for everything, it falls from there as exp(−(v − start) / `scale`), `scale`
    being the mean excess over `start`: peaks over a threshold with a generalised Pareto distribution of shape 0, whose likelihood the
    mean excess maximises (Pickands 1975; Davison & Smith 1990). It is continuous at `start` and falls strictly, so two
    very anomalous images do not tie. Far beyond all values it is a score from a model of the tail, not a frequency.

    Where the values of the tail are all the same, `scale` is how far they lie above the mean. Where all values are the same, it is
    their size (1 for 0), so that a rounding error changes little.
    """

    values: FloatArray
    start: float
    scale: float
    window: float
    knots: FloatArray
    at_least: FloatArray

    @classmethod
    def fit(cls, values: ArrayLike, window: float | None = None) -> Tail:
        """Fit to values `[n]` of normals, n ≥ 10, in any order. ValueError for fewer, and for NaN or infinite ones.

        `window`: the one of a larger sample that holds these values; by default it follows from the values.
        """
        known = np.sort(check_scores(values, "values of normals"))
        if len(known) < MIN_NORMALS:
            raise ValueError(f"values of normals: at least {MIN_NORMALS} are needed for a tail, got {len(known)}")
        beyond = _beyond(len(known))
        start = known[-beyond - 1]
        scale = _scale(known[-beyond:].mean() - start, known[-1], known.mean())
        width = _window(known, float(start)) if window is None else window
        return cls(known, float(start), float(scale), width, *_averaged_counts(known, width))

    def log_p(self, values: ArrayLike) -> FloatArray:
        """Natural logarithm of the probability, for values of any shape; ≤ 0. ValueError for NaN or infinite ones."""
        given = np.asarray(values, dtype=np.float64)
        if not given.size:
            return np.zeros(given.shape)
        checked = check_scores(given.ravel()).reshape(given.shape)
        inside = np.minimum(checked, self.start)
        return np.log((1 + self._count(inside)) / (len(self.values) + 1)) - (checked - inside) / self.scale

    def left_out_log_p(self, values: ArrayLike) -> FloatArray:
        """Leave-one-out `log_p` of values `[m]` among the fitted ones: each by the tail of all others.

        A threshold set on scores of the images that the tails were fitted on would be too low. The window stays that of all values.
        ValueError for values that are not among the fitted ones.
        """
        given = check_scores(values)
        known, n = self.values, len(self.values)
        first = np.searchsorted(known, given, side="left")  # of equal values it does not matter which is left out
        if (first == n).any() or (known[np.minimum(first, n - 1)] != given).any():
            raise ValueError("values: some are not among those that the tail was fitted on")
        last = n - 2 - _beyond(n - 1)  # where the tail starts, among the n − 1 others
        below = first > last
        start = np.where(below, known[last], known[last + 1])
        excess = (known[last + 1 :].sum() - np.where(below, given, known[last + 1])) / _beyond(n - 1) - start
        highest = np.where(first == n - 1, known[-2], known[-1])
        scale = _scale(excess, highest, (known.sum() - given) / (n - 1))
        inside = np.minimum(given, start)
        # The value itself is counted at each place of the window below it: it takes the place of the 1.
        return np.log(self._count(inside) / n) - (given - inside) / scale

    def _count(self, values: FloatArray) -> FloatArray:
        found: FloatArray = np.interp(values, self.knots, self.at_least)
        return found


def _window(known: FloatArray, start: float) -> float:
    """Width over which counts are averaged: that of a few neighbouring values, and wider than the rounding of float32 kernels.

    The mean distance from `start` of the values below the tail, divided by n (by 512 at most). Distances are cut at 4 times their 75 %
    quantile.
    """
    below = start - known[: len(known) - _beyond(len(known))]
    typical = np.minimum(below, 4 * np.quantile(below, 0.75)).mean() / min(len(known), WINDOWS)
    return float(max(typical, 1e-5 * np.abs(known[[0, -1]]).max()))


def _averaged_counts(known: FloatArray, window: float) -> tuple[FloatArray, FloatArray]:
    """The corners of the mean of #{known ≥ u} over u in [v − window, v], as v `[K]` and mean `[K]`; known is sorted.

    Each known value x counts 1 up to v = x, 0 from v = x + window, and a share between.
    """
    if window == 0:  # all values are 0
        return known[:1], np.array([float(len(known))])
    knots = np.unique(np.concatenate([known, known + window]))
    low, high = (np.searchsorted(known, edge, side="left") for edge in (knots - window, knots))
    centred = known - known[0]
    sums = np.concatenate([[0.0], np.cumsum(centred)])
    shares = (sums[high] - sums[low] - (high - low) * (knots - window - known[0])) / window
    at_least = len(known) - high + np.clip(shares, 0, high - low)
    return knots, np.minimum.accumulate(at_least)


def combine(log_p: ArrayLike, how: str) -> FloatArray:
    """Combine logarithms of tail probabilities `[components, N]` into one score `[N]` ≥ 0, higher = further out.

    `fisher`: −2 Σ log p (Fisher 1925). Components of one image depend on each other, so this is a score and not χ²: set thresholds on
    the scores of validation normals. `max`: the largest −log p, for anomalies that only one component shows. ValueError for another
    name or shape, and for NaN.
    """
    values = np.asarray(log_p, dtype=np.float64)
    if how not in COMBINATIONS:
        raise ValueError(f"components are combined by {' or '.join(COMBINATIONS)}, not {how!r}")
    if values.ndim != 2 or not values.size or not (values <= 0).all():
        raise ValueError(
            f"log_p: expected a non-empty [components, N] of numbers up to 0, got shape {list(values.shape)}"
        )
    found: FloatArray = -2 * values.sum(0) if how == "fisher" else -values.min(0)
    return found


def _beyond(n: int) -> int:
    """How many of n values make the tail."""
    return max(MIN_TAIL, math.ceil(TAIL_SHARE * n))


def _scale(
    excess: NDArray[np.float64] | float, highest: NDArray[np.float64] | float, mean: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """The mean excess, or its replacement where the values of the tail are equal but for the rounding of float32."""
    size = np.maximum(np.abs(highest), np.abs(mean))
    rounding = 1e-7 * size
    above = np.asarray(highest - mean)
    constant = np.where(size > 0, size, 1.0)
    return np.where(excess > rounding, excess, np.where(above > rounding, above, constant))
