"""Confidence intervals by bootstrap over groups (patients or slides): patches of one slide are not independent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.metrics._inputs import FloatArray, IntArray, check_labels, check_scores, group_codes
from gan_uad.metrics.ranking import WeightedRanking, auprc, auroc

Metric = Callable[[ArrayLike, ArrayLike], float]
FEW_GROUPS = 10  # with fewer, cluster bootstraps are too narrow: Cameron, Gelbach & Miller 2008 (5 to 30 clusters)
CELLS_PER_CHUNK = 4_000_000
NO_SPREAD = "all resamples give the same value, so the bootstrap cannot tell how uncertain it is"


@dataclass(frozen=True)
class Interval:
    """A metric and its confidence interval.

    `low` and `high` are NaN where no interval can be given; `note` then says why. `unit` is what was resampled, "group"
    or "image", and `n_units` how many there were. `optimistic` means that the true interval is likely wider.
    `n_redrawn` counts resamples without one of the classes, which were drawn again.
    """

    value: float
    low: float
    high: float
    confidence: float
    n_resamples: int
    n_redrawn: int
    unit: str
    n_units: int
    optimistic: bool
    note: str


def bootstrap_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str] | None = None,
    metric: Metric = auroc,
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `metric(labels, scores)`, resampling groups with replacement.

    `labels [N]` of 0 and 1, both present; `scores [N]` finite; `groups [N]` names of patients or slides, '' unknown.
    Where no group holds both classes (slides that are all normal or all tumour), the groups of each class are resampled
    apart, so that the number of groups of each class stays as designed (Efron & Tibshirani 1993, ch. 8, two samples; Carpenter &
    Bithell 2000). Where some group holds both, all groups are resampled together and resamples that lack a class are
    drawn again (clustered ROC data: Rutter 2000, Acad Radiol 7:413). If no group is known, images are resampled and
    the interval is marked optimistic. No interval (NaN, with a note) is given where a class has fewer than two groups
    or where all resamples agree, as they do for a perfect separation: a width of zero would be false certainty.
    Deterministic in `seed`. ValueError for bad input; `auroc` and `auprc` are fast, any other metric is called n times.
    """
    values = check_scores(scores)
    classes = check_labels(labels, len(values), both_classes=True)

    def resampled(counts: IntArray, codes: IntArray) -> FloatArray:
        return np.concatenate(list(_metrics(metric, classes, values, counts, codes)))

    return _interval(classes, groups, float(metric(classes, values)), resampled, n, confidence, seed)


def paired_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    others: ArrayLike,
    groups: Sequence[str] | None = None,
    metric: Metric = auroc,
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `metric(labels, scores) - metric(labels, others)`: two scores of the same images.

    `others [N]`: the other method's scores of the same N images, in the same order. Every resample of groups is one draw for both, so that
    what makes a patient hard for both cancels (Efron & Tibshirani 1993, ch. 10; clustered ROC data: Rutter 2000). All else, and errors, as
    in `bootstrap_interval`.
    """
    pair = [check_scores(scores), check_scores(others, "the other scores")]
    classes = check_labels(labels, len(pair[0]), both_classes=True)
    if len(pair[1]) != len(pair[0]):
        raise ValueError(f"the other scores: expected {len(pair[0])}, of the same images, got {len(pair[1])}")

    def resampled(counts: IntArray, codes: IntArray) -> FloatArray:
        own, other = (np.concatenate(list(_metrics(metric, classes, values, counts, codes))) for values in pair)
        return np.asarray((own - other).round(12))  # equal areas differ in their last digits by the order of sums

    own, other = (float(metric(classes, values)) for values in pair)
    return _interval(classes, groups, round(own - other, 12), resampled, n, confidence, seed)


def _interval(
    classes: IntArray,
    groups: Sequence[str] | None,
    value: float,
    resampled: Callable[[IntArray, IntArray], FloatArray],
    n: int,
    confidence: float,
    seed: int,
) -> Interval:
    """The interval of `value`; `resampled(counts [n, G], codes [N])` -> its value in every resample `[n]`."""
    check_settings(n, confidence)
    codes, n_unknown = group_codes(groups, len(classes))
    n_units = int(codes.max()) + 1
    holds = np.stack([np.bincount(codes[classes == c], minlength=n_units) > 0 for c in (0, 1)])
    per_class = holds.sum(axis=1)
    low = high = float("nan")
    n_redrawn = 0
    notes = group_notes(n_unknown, len(classes), per_class)
    if per_class.min() >= 2:
        counts, n_redrawn = _draw(holds, n, np.random.default_rng(seed))
        low, high = percentiles(resampled(counts, codes), confidence)
        if np.isnan(low):
            notes.append(NO_SPREAD)
    return Interval(
        value=value,
        low=low,
        high=high,
        confidence=confidence,
        n_resamples=n if per_class.min() >= 2 else 0,
        n_redrawn=n_redrawn,
        unit="image" if n_unknown == len(classes) else "group",
        n_units=n_units,
        optimistic=n_unknown > 0 or bool(per_class.min() < FEW_GROUPS),
        note="; ".join(notes),
    )


def check_settings(n: int, confidence: float) -> None:
    """Raise `ValueError` for settings without meaning."""
    if n < 2 or not 0 < confidence < 1:
        raise ValueError(f"bootstrap: n must be at least 2 and confidence in (0, 1), got {n} and {confidence}")


def percentiles(values: FloatArray, confidence: float) -> tuple[float, float]:
    """(low, high) of the values of resamples; NaNs where all are equal."""
    low, high = (float(q) for q in np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2]))
    return (low, high) if low != high else (float("nan"), float("nan"))


def group_notes(n_unknown: int, n: int, per_class: IntArray) -> list[str]:
    """What limits an interval over groups: `n_unknown` of `n` images have none, `per_class [2]` hold normal and anomalous images."""
    notes = []
    unit = "group"
    if n_unknown == n:
        unit = "image"
        notes.append("slides or patients unknown: interval over images, likely too narrow")
    elif n_unknown:
        notes.append(f"{n_unknown} of {n} images have no group and count as groups of their own: likely too narrow")
    for name, count in zip(("normal", "anomalous"), per_class, strict=True):
        if count < 2:
            notes.append(f"only one {unit} holds {name} images: no interval can be given")
        elif count < FEW_GROUPS:
            notes.append(f"only {count} {unit}s hold {name} images: the interval is rough, likely too narrow")
    return notes


def _draw(holds: np.ndarray, n: int, rng: np.random.Generator) -> tuple[IntArray, int]:
    """How often each group is drawn: counts `[n, G]` for `holds [2, G]` (the group has normal, anomalous images)."""
    n_units = holds.shape[1]
    if not holds.all(axis=0).any():
        return resample_apart(holds, n, rng), 0
    counts = _resample(n, n_units, rng)
    n_redrawn = 0
    # This ends: a draw that holds a group of both classes is valid, and 1 - (1 - 1/G)^G > 63 % of draws hold one.
    while (lacking := np.flatnonzero((counts @ holds.T == 0).any(axis=1))).size:
        counts[lacking] = _resample(lacking.size, n_units, rng)
        n_redrawn += int(lacking.size)
    return counts, n_redrawn


def resample_apart(holds: np.ndarray, n: int, rng: np.random.Generator) -> IntArray:
    """Counts `[n, G]` as in `_draw`, the members of each row of `holds [K, G]` (bool, no member in two rows) resampled apart."""
    counts = np.zeros((n, holds.shape[1]), dtype=np.int64)
    for members in map(np.flatnonzero, holds):
        if len(members):
            counts[:, members] = _resample(n, len(members), rng)
    return counts


def _resample(n: int, size: int, rng: np.random.Generator) -> IntArray:
    drawn = rng.integers(0, size, (n, size)) + size * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size)


def _metrics(
    metric: Metric, labels: IntArray, scores: FloatArray, counts: IntArray, codes: IntArray
) -> Iterator[FloatArray]:
    """The metric of every resample, in chunks that keep memory small."""
    if metric not in (auroc, auprc):
        for row in counts:
            chosen = np.repeat(np.arange(len(codes)), row[codes])
            yield np.array([metric(labels[chosen], scores[chosen])], dtype=np.float64)
        return
    ranking = WeightedRanking(labels, scores)
    weighted = ranking.auroc if metric is auroc else ranking.auprc
    rows = max(1, CELLS_PER_CHUNK // len(codes))
    for start in range(0, len(counts), rows):
        yield weighted(counts[start : start + rows, codes].astype(np.float64))
