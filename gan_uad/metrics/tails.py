"""How far out among normals a value lies, on one scale for figures of any unit, and how several such figures become one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gan_uad.metrics._inputs import FloatArray, check_scores

LEAST = 10  # values: below, three of them would be most of what is called the tail
BEYOND = 0.1  # share of the values that make the tail
LEAST_BEYOND = 3
WINDOWS = 512  # at most so many windows fit between the start of the tail and the middle of the values
COMBINATIONS = ("fisher", "max")


@dataclass(frozen=True)
class Tail:
    """The probability that a normal has a value at least as large, from n values of validation normals.

    Up to `start`, which is about their 90 % quantile (at least three lie beyond), it is the conformal p-value
    (1 + #{values ≥ v}) / (n + 1) (Vovk et al. 2005), averaged over the `window` below v. The average is never below the p-value
    itself, and it is continuous: a rounding error of v changes it by a rounding error, not by a whole step of 1 / (n + 1). It is
    piecewise linear, so it is kept as its corners: `knots`, and the averaged count at each, `at_least`.

    Beyond `start`, where counting soon ends at 1 / (n + 1) for everything, it falls from there as exp(−(v − start) / `scale`), `scale`
    being the mean excess over `start`: peaks over a threshold with a generalised Pareto distribution of shape 0, whose likelihood the
    mean excess maximises (Pickands 1975; Davison & Smith 1990). Continuous there and strictly falling, so two very anomalous images are
    not tied; a model of the tail, so far beyond all values a score, not a frequency.

    Where the values at the end are all the same, `scale` is how far they lie above the mean, and where all values are, their size
    (1 for 0): nothing tells what a departure means, and a rounding error shall not mean much.
    """

    values: FloatArray
    start: float
    scale: float
    window: float
    knots: FloatArray
    at_least: FloatArray

    @classmethod
    def fit(cls, values: ArrayLike, window: float | None = None) -> Tail:
        """From values `[n]` of normals, n ≥ 10, in any order. ValueError for fewer, and for NaN or infinite ones.

        `window`: that of a larger sample of which the values are a part; by default it follows from the values.
        """
        known = np.sort(check_scores(values, "values of normals"))
        if len(known) < LEAST:
            raise ValueError(f"values of normals: at least {LEAST} are needed for a tail, got {len(known)}")
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
        """`log_p` of values `[m]` that are among the fitted ones, each by the tail of all others: as of images not seen in fitting.

        The window stays that of all values. A threshold set on the scores of the very images that the tails were fitted on would be too
        low. ValueError for values that are not among the fitted ones.
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
    """How wide the counts are averaged: as wide as a few known values lie apart, and wider than the rounding of float32 kernels.

    The mean distance from `start` of the values that are not of the tail, divided by n (by 512 at most). Far ones count as no more than
    4 times as far as the 75 % quantile.
    """
    below = start - known[: len(known) - _beyond(len(known))]
    typical = np.minimum(below, 4 * np.quantile(below, 0.75)).mean() / min(len(known), WINDOWS)
    return float(max(typical, 1e-5 * np.abs(known[[0, -1]]).max()))


def _averaged_counts(known: FloatArray, window: float) -> tuple[FloatArray, FloatArray]:
    """The corners of the mean of #{known ≥ u} over u in [v − window, v], as v `[K]` and mean `[K]`; known is sorted.

    Each known value x counts wholly up to v = x, not at all from v = x + window, and in part between.
    """
    if window == 0:  # all values are 0
        return known[:1], np.array([float(len(known))])
    knots = np.unique(np.concatenate([known, known + window]))
    low, high = (np.searchsorted(known, edge, side="left") for edge in (knots - window, knots))
    centred = known - known[0]
    sums = np.concatenate([[0.0], np.cumsum(centred)])
    part = (sums[high] - sums[low] - (high - low) * (knots - window - known[0])) / window
    at_least = len(known) - high + np.clip(part, 0, high - low)
    return knots, np.minimum.accumulate(at_least)


def combine(log_p: ArrayLike, how: str) -> FloatArray:
    """Logarithms of tail probabilities `[parts, N]` as one score `[N]` ≥ 0, higher = further out.

    `fisher`: −2 Σ log p (Fisher 1925). Parts of one image depend on each other, so this is a score, and not χ² of 2 · parts degrees
    of freedom: how often normals exceed it is to be told from the scores of validation normals. `max`: the largest −log p, for
    anomalies that only one part sees. ValueError for another name or shape, and for NaN.
    """
    values = np.asarray(log_p, dtype=np.float64)
    if how not in COMBINATIONS:
        raise ValueError(f"parts are combined by {' or '.join(COMBINATIONS)}, not {how!r}")
    if values.ndim != 2 or not values.size or not (values <= 0).all():
        raise ValueError(f"log_p: expected a non-empty [parts, N] of numbers up to 0, got shape {list(values.shape)}")
    found: FloatArray = -2 * values.sum(0) if how == "fisher" else -values.min(0)
    return found


def _beyond(n: int) -> int:
    """How many of n values make the tail."""
    return max(LEAST_BEYOND, math.ceil(BEYOND * n))


def _scale(
    excess: NDArray[np.float64] | float, highest: NDArray[np.float64] | float, mean: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """The mean excess, or what stands for it where there is none: equal values, but for the rounding of float32."""
    size = np.maximum(np.abs(highest), np.abs(mean))
    rounding = 1e-7 * size
    above = np.asarray(highest - mean)
    constant = np.where(size > 0, size, 1.0)
    return np.where(excess > rounding, excess, np.where(above > rounding, above, constant))
