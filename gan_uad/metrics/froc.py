"""Free-response ROC: the share of lesions found against the number of false alarms per slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gan_uad.metrics._inputs import FloatArray, IntArray
from gan_uad.metrics.bootstrap import (
    CELLS_PER_CHUNK,
    FEW_GROUPS,
    NO_SPREAD,
    Interval,
    check_settings,
    percentiles,
    resample_apart,
)

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # mean false alarms per slide at which CAMELYON16 reads the curve


@dataclass(frozen=True)
class Marks:
    """What was detected on one slide.

    `hits` `[lesions]`: the highest score of a detection inside each lesion, −inf where there is none. `alarms` `[m]`: the finite scores
    of the detections outside all lesions.
    """

    hits: FloatArray
    alarms: FloatArray

    @classmethod
    def of(cls, hits: ArrayLike, alarms: ArrayLike) -> Marks:
        """From any sequences. ValueError for NaN, for +inf, and for an alarm that is not finite."""
        found, false = np.asarray(hits, np.float64).ravel(), np.asarray(alarms, np.float64).ravel()
        if np.isnan(found).any() or (found == np.inf).any() or not np.isfinite(false).all():
            raise ValueError("FROC: scores must be finite (-inf for a lesion without a detection)")
        return cls(found, false)


class FrocCurve(NamedTuple):
    """For detections with score ≥ `thresholds[i]` (falling): `alarms[i]` false ones per slide, `sensitivity[i]` of the lesions found."""

    alarms: FloatArray
    sensitivity: FloatArray
    thresholds: FloatArray


def froc_curve(slides: Sequence[Marks]) -> FrocCurve:
    """The curve over all slides, from no detection (threshold inf) to all of them.

    A lesion counts once, however many detections lie in it; slides without lesions count for the rate of false alarms.
    Source: Bunch et al. 1978; as in CAMELYON16 (Bejnordi et al. 2017, JAMA 318:2199). ValueError without a slide or a lesion.
    """
    hits, alarms = _pooled(slides)
    levels = np.unique(np.concatenate([hits[np.isfinite(hits)], alarms]))[::-1]
    thresholds = np.concatenate([[np.inf], levels])
    return FrocCurve(_at_least(alarms, thresholds) / len(slides), _at_least(hits, thresholds) / len(hits), thresholds)


def sensitivity_at(slides: Sequence[Marks], rates: Sequence[float] = RATES) -> FloatArray:
    """Share of the lesions found `[rates]` at the lowest threshold with at most `rate` false alarms per slide.

    Nothing is interpolated: for a rate between two thresholds the higher one is used. (Interpolated values differ by at most the step
    between two detections.) ValueError as in `froc_curve`, and for a negative rate.
    """
    ones = np.ones((1, len(slides)))
    return _Pool(slides, rates).sensitivity(ones)[0]


def froc_score(slides: Sequence[Marks], rates: Sequence[float] = RATES) -> float:
    """Mean of `sensitivity_at`: CAMELYON16 ranked localisation by it."""
    return float(sensitivity_at(slides, rates).mean())


def froc_interval(
    slides: Sequence[Marks], rates: Sequence[float] = RATES, n: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """`froc_score` with its percentile bootstrap interval over slides; those with lesions and those without are resampled apart.

    NaNs with a note where fewer than two slides have lesions, or where all resamples agree. Errors as in `froc_curve`.
    """
    check_settings(n, confidence)
    pool = _Pool(slides, rates)
    value = float(pool.sensitivity(np.ones((1, len(slides)))).mean())
    holding = np.array([len(marks.hits) > 0 for marks in slides])
    count = int(holding.sum())
    if count < 2:
        note = "only one slide has lesions: no interval can be given"
        return Interval(value, np.nan, np.nan, confidence, 0, 0, "slide", len(slides), True, note)
    counts = resample_apart(np.stack([holding, ~holding]), n, np.random.default_rng(seed))
    low, high = percentiles(pool.sensitivity(counts.astype(np.float64)).mean(1), confidence)
    note = f"only {count} slides have lesions: the interval is rough, likely too narrow" if count < FEW_GROUPS else ""
    note = NO_SPREAD if np.isnan(low) else note
    return Interval(value, low, high, confidence, n, 0, "slide", len(slides), count < FEW_GROUPS, note)


def _pooled(slides: Sequence[Marks]) -> tuple[FloatArray, FloatArray]:
    if not slides:
        raise ValueError("FROC: no slide given")
    hits = np.concatenate([marks.hits for marks in slides])
    if not len(hits):
        raise ValueError("FROC: no slide has a lesion, so there is nothing to find")
    return hits, np.concatenate([marks.alarms for marks in slides])


def _at_least(scores: FloatArray, thresholds: FloatArray) -> IntArray:
    return np.asarray(len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left"), np.int64)


class _Pool:
    """All marks sorted once, for many weightings of the slides (integer weights are how often each was drawn)."""

    def __init__(self, slides: Sequence[Marks], rates: Sequence[float]) -> None:
        hits, alarms = _pooled(slides)
        if not len(rates) or min(rates) < 0:
            raise ValueError(f"FROC: rates must not be negative, got {list(rates)}")
        self.rates = np.asarray(rates, np.float64)
        slide = np.arange(len(slides))
        self.hits, self.slide_of_hit = hits, np.repeat(slide, [len(marks.hits) for marks in slides])
        order = np.argsort(-alarms, kind="stable")
        self.alarms = alarms[order]
        self.slide_of_alarm = np.repeat(slide, [len(marks.alarms) for marks in slides])[order]

    def sensitivity(self, counts: FloatArray) -> FloatArray:
        """Counts `[B, slides]` → `[B, rates]`; every row must hold a slide with a lesion."""
        rows = max(1, CELLS_PER_CHUNK // max(1, len(self.alarms) + len(self.hits)))
        found = [self._of_rows(counts[start : start + rows]) for start in range(0, len(counts), rows)]
        return np.concatenate(found)

    def _of_rows(self, counts: FloatArray) -> FloatArray:
        slides, lesions = counts.sum(1), counts[:, self.slide_of_hit]
        so_far = np.cumsum(counts[:, self.slide_of_alarm], axis=1)
        found: NDArray[np.float64] = np.empty((len(counts), len(self.rates)))
        for column, rate in enumerate(self.rates):
            # The first alarm beyond the rate: what scores no higher than it is not detected, nor is any equal to it.
            many = (so_far <= (rate * slides + 1e-9)[:, None]).sum(1)
            limit = np.append(self.alarms, -np.inf)[many]
            found[:, column] = (lesions * (self.hits > limit[:, None])).sum(1) / lesions.sum(1)
        return found
