"""What the tests of image-level metrics share."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, settings
from hypothesis import strategies as st

QUICK = settings(max_examples=40, deadline=None)
# few distinct values, so that ties are common
TIED = st.lists(st.tuples(st.integers(0, 1), st.integers(-6, 6)), min_size=4, max_size=40)


def both_classes(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], dtype=float)
    assume(0 < labels.sum() < len(labels))
    return labels, scores


def tied_set(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, (rng.normal(size=n) + labels).round(1)
