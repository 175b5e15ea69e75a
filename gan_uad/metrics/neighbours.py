"""Nearest neighbours between sets of features: their distances, improved precision and recall, and memorisation.

Distances are Euclidean, in float64, tile by tile: memory does not grow with the product of the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gan_uad.metrics._features import Features, FloatArray, blocks, check_features

TILE = 2048  # rows and columns of distances at a time: 32 MiB
ROWS_AT_ONCE = 256  # queries whose differences to their neighbours are held at a time
# Of the squared lengths: below it a squared distance is rounding, and float32 features that far apart are alike.
ALIKE = 1e-13
# Share of a squared radius added for rounding: an image lies on the sphere wherever images repeat.
ON_SPHERE = 1e-9


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]: share of generated images among the real ones, share of real images among the generated ones."""

    precision: float
    recall: float


def precision_recall(real: Features, fake: Features, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of features `[n, d]` and `[m, d]`, n, m > k; both values depend on the sizes.

    An image is among a set when its distance to some image of the set is at most that one's distance to its own k-th nearest
    neighbour within the set, itself not counted. ValueError for too few images, other shapes, and features that are not finite.
    Source: Kynkäänniemi et al. 2019, eq. 1 and 2.
    """
    if k < 1:
        raise ValueError(f"precision and recall need at least the first neighbour, got k = {k}")
    real = check_features(real, "real features", k + 1)
    fake = check_features(fake, "generated features", k + 1, real.shape[1])
    center = _mean(real)
    real_radius, fake_radius = _radii(real, k, center), _radii(fake, k, center)
    precise, recalled = np.zeros(len(fake), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows, columns, squared in _tiles(fake, real, center):
        precise[rows] |= (squared <= real_radius[columns]).any(axis=1)
        recalled[columns] |= (squared <= fake_radius[rows, None]).any(axis=0)
    return PrecisionRecall(float(precise.mean()), float(recalled.mean()))


class Pair(NamedTuple):
    """A generated image and its nearest training image, by their numbers, and how far apart they are."""

    fake: int
    train: int
    distance: float


@dataclass(frozen=True)
class Memorisation:
    """Distances of generated and of held-out real images to their nearest training images.

    `fake_index`: the number in the training set of a generated image's nearest one (lowest of equals).

    `nearer`: probability that a generated image is nearer to the training set than a held-out real image is, ties counted half:
    0.5 as new images of the same distribution would be, 1 for copies, below 0.5 where the generator misses the distribution.
    `c_t`: the same as a z-score of the Mann-Whitney statistic in the sign of Meehan et al. (below −3: copies), which takes images as
    independent of each other: patches of one slide are not.
    `copies` and `held_out_copies`: how many are at distance 0 of a training image. Held-out copies mean that the sets overlap.
    """

    fake_distance: FloatArray
    fake_index: NDArray[np.int64]
    held_out_distance: FloatArray
    nearer: float
    c_t: float
    copies: int
    held_out_copies: int

    def closest(self, count: int) -> list[Pair]:
        """The closest pairs, nearest first, at most one per training image, so that a repeated image fills one place."""
        order = np.argsort(self.fake_distance, kind="stable")
        _, firsts = np.unique(self.fake_index[order], return_index=True)
        chosen = order[np.sort(firsts)[:count]]
        return [Pair(int(i), int(self.fake_index[i]), float(self.fake_distance[i])) for i in chosen]


def memorisation(train: Features, fake: Features, held_out: Features) -> Memorisation:
    """Compare the distances of generated and of held-out real images to the training images.

    Features `[n, d]`, `[m, d]` and `[h, d]` of the training images, of generated ones, and of real ones that the generator never saw
    (other groups, as in every split here). Sizes may differ: both distances are to the same training set. ValueError for other shapes
    and for features that are not finite. Source: Meehan et al. 2020 (data-copying test, section 3.2, one cell).
    """
    train = check_features(train, "training features")
    fake = check_features(fake, "generated features", 1, train.shape[1])
    held_out = check_features(held_out, "held-out features", 1, train.shape[1])
    center = _mean(train)
    fake_distance, fake_index = _nearest(fake, train, center)
    real_distance, _ = _nearest(held_out, train, center)
    m, h = len(fake), len(held_out)
    nearer = _nearer(fake_distance, real_distance)
    return Memorisation(
        fake_distance,
        fake_index,
        real_distance,
        nearer,
        (0.5 - nearer) / np.sqrt((m + h + 1) / (12 * m * h)),
        int((fake_distance == 0).sum()),
        int((real_distance == 0).sum()),
    )


def nearest(queries: Features, targets: Features, k: int, metric: str = "euclidean") -> FloatArray:
    """Distances `[n, k]` of features `[n, d]` to the k nearest of `[m, d]`, ascending, 1 ≤ k ≤ m; ValueError for other numbers and shapes.

    `metric` "cosine" is 1 − cos: half the squared distance of the vectors at length 1 (a vector of zeros stays one, ½ from all others).
    """
    targets = check_features(targets, "features", max(k, 1))
    queries = check_features(queries, "queries", 1, targets.shape[1])
    if k < 1:
        raise ValueError(f"there is no {k}-th nearest neighbour")
    prepared = _unit if metric == "cosine" else np.asarray
    center = _mean(targets) if metric == "euclidean" else np.zeros(targets.shape[1])
    least, index = np.full((len(queries), k), np.inf), np.zeros((len(queries), k), dtype=np.int64)
    for rows, columns, squared in _tiles(queries, targets, center, prepared):
        known = np.hstack([least[rows], squared])
        numbers = np.hstack([index[rows], np.broadcast_to(np.arange(columns.start, columns.stop), squared.shape)])
        chosen = np.argpartition(known, k - 1, axis=1)[:, :k] if known.shape[1] > k else np.arange(k)[None]
        least[rows], index[rows] = (np.take_along_axis(values, chosen, axis=1) for values in (known, numbers))
    # Lengths that cancel have left rounding in `least`; the differences themselves have none.
    found = np.empty_like(least)
    for start, block in blocks(queries, ROWS_AT_ONCE):
        away = prepared(block.astype(np.float64))[:, None] - prepared(
            np.asarray(targets[index[start : start + len(block)]], dtype=np.float64)
        )
        found[start : start + len(block)] = np.einsum("nkd,nkd->nk", away, away)
    found.sort(axis=1)
    return found / 2 if metric == "cosine" else np.sqrt(found)


def _unit(values: FloatArray) -> FloatArray:
    """Vectors at length 1; zeros stay zeros."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.where(length > 0, length, 1))


def _nearer(fake: FloatArray, real: FloatArray) -> float:
    """P(fake < real) + P(fake = real) / 2 over all pairs: the Mann-Whitney statistic by its count."""
    ordered = np.sort(real)
    above = len(real) - np.searchsorted(ordered, fake, side="right")
    equal = len(real) - np.searchsorted(ordered, fake, side="left") - above
    return float((above + equal / 2).mean() / len(real))


def _nearest(queries: Features, targets: Features, center: FloatArray) -> tuple[FloatArray, NDArray[np.int64]]:
    """Distance `[n]` of every query to its nearest target, and that target's number."""
    best, index = np.full(len(queries), np.inf), np.zeros(len(queries), dtype=np.int64)
    for rows, columns, squared in _tiles(queries, targets, center):
        here = squared.argmin(axis=1)
        value = squared[np.arange(len(here)), here]
        better = value < best[rows]
        best[rows] = np.where(better, value, best[rows])
        index[rows] = np.where(better, columns.start + here, index[rows])
    return np.sqrt(best), index


def _radii(features: Features, k: int, center: FloatArray) -> FloatArray:
    """Squared distance `[n]` of every row to its k-th nearest other row, and a little more for rounding."""
    nearest = np.full((len(features), k), np.inf)
    for rows, columns, squared in _tiles(features, features, center):
        if rows == columns:
            np.fill_diagonal(squared, np.inf)
        least = np.partition(squared, k, axis=1)[:, :k] if squared.shape[1] > k else squared
        nearest[rows] = np.partition(np.hstack([nearest[rows], least]), k - 1, axis=1)[:, :k]
    return np.asarray(nearest.max(axis=1) * (1 + ON_SPHERE))


def _tiles(
    a: Features, b: Features, center: FloatArray, prepared: Callable[[FloatArray], FloatArray] = np.asarray
) -> Iterator[tuple[slice, slice, FloatArray]]:
    """Squared distances of rows of `a` to rows of `b`, a tile at a time, with the two ranges; those that are rounding are 0.

    Both are `prepared` and moved to `center`, which leaves distances as they are and makes the lengths that cancel short.
    """
    for start, rows in blocks(a, TILE):
        x = prepared(rows.astype(np.float64)) - center
        x_length = np.einsum("nd,nd->n", x, x)
        for column, columns in blocks(b, TILE):
            y = prepared(columns.astype(np.float64)) - center
            lengths = x_length[:, None] + np.einsum("nd,nd->n", y, y)
            squared: Any = x @ y.T
            squared *= -2
            squared += lengths
            squared[squared < ALIKE * lengths] = 0
            yield slice(start, start + len(x)), slice(column, column + len(y)), squared


def _mean(features: Features) -> FloatArray:
    total = np.zeros(features.shape[1])
    for _, block in blocks(features):
        total += block.sum(axis=0, dtype=np.float64)
    return np.asarray(total / len(features))
