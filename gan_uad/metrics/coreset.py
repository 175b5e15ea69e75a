"""A bounded choice of many vectors: a fair sample of a stream, and the few of it that leave none far away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gan_uad.metrics._features import Features, check_features

OVERHEAD = 32  # bytes a vector that `Reservoir` and `k_center` take beside the vectors themselves
# Of the squared lengths: below it a squared distance of float32 vectors is rounding.
ALIKE = 1e-6


class Reservoir:
    """A uniform sample without replacement of a stream of vectors, in memory of `size` of them, however long the stream.

    Each vector draws a random key; those of the smallest keys are kept (Efraimidis & Spirakis 2006, with equal weights). Which they
    are does not depend on how the stream is cut.
    """

    def __init__(self, size: int, dim: int, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"a sample holds at least 1 vector, not {size}")
        self.seen, self.held = 0, 0
        self._vectors = np.empty((size, dim), np.float32)
        self._keys = np.full(size, np.inf)
        self._random = np.random.default_rng(seed)

    def update(self, vectors: Features) -> None:
        """Take in vectors `[n, dim]`, n ≥ 0. ValueError for another shape and for values that are not finite."""
        vectors = check_features(vectors, "vectors", 0, self._vectors.shape[1], self.seen)
        keys = self._random.random(len(vectors))
        self.seen += len(vectors)
        size = len(self._keys)
        room = min(size - self.held, len(keys))
        into = slice(self.held, self.held + room)
        self._vectors[into], self._keys[into] = vectors[:room], keys[:room]
        self.held += room
        vectors, keys = vectors[room:], keys[room:]
        if len(keys):
            limit = np.partition(np.concatenate([self._keys, keys]), size - 1)[size - 1]
            out = np.flatnonzero(self._keys > limit)
            new = np.flatnonzero(keys <= limit)[: len(out)]
            self._vectors[out], self._keys[out] = vectors[new], keys[new]

    @property
    def sample(self) -> NDArray[np.float32]:
        """The vectors held, `[held, dim]`, in no order; not a copy."""
        return self._vectors[: self.held]

    @property
    def first(self) -> int:
        """The number in `sample` of a random one: that of the smallest key."""
        return int(self._keys[: max(self.held, 1)].argmin())


def k_center(vectors: NDArray[np.float32], count: int, first: int = 0) -> NDArray[np.int64]:
    """Numbers of `count` vectors of `[n, d]`: `first`, then always the one that is farthest from all chosen before.

    Every vector is then at most twice as far from a chosen one as with the best choice of so many. Fewer are returned where all
    others repeat a chosen one (closer than 1e-3 of their lengths). Time grows with n · count · d. ValueError for numbers that cannot be.
    Source: Gonzalez 1985; as a coreset of patches, Roth et al. 2022, algorithm 1, without its random projection.
    """
    if not (count >= 1 and 0 <= first < len(vectors)):
        raise ValueError(f"cannot choose {count} of {len(vectors)} vectors, the first being number {first}")
    lengths = np.einsum("nd,nd->n", vectors, vectors)
    nearest = np.full(len(vectors), np.inf, np.float32)
    chosen = [first]
    while len(chosen) < count:
        last = chosen[-1]
        away = vectors @ vectors[last]
        away *= -2
        away += lengths
        away += lengths[last]
        np.minimum(nearest, away, out=nearest)
        nearest[last] = 0
        farthest = int(nearest.argmax())
        if nearest[farthest] <= ALIKE * 2 * lengths[farthest]:
            break
        chosen.append(farthest)
    return np.array(chosen)
