"""The kernel distance between two sets of features (KID)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gan_uad.metrics._features import Features, check_features


@dataclass(frozen=True)
class Kid:
    """Mean and standard deviation of the kernel distance over `subsets` random subsets of `size` images of each set.

    `size` is less than `asked` where a set holds fewer images than that: a report must say so.
    """

    mean: float
    std: float
    size: int
    subsets: int
    asked: int


def kid(a: Features, b: Features, subsets: int = 100, size: int = 1000, seed: int = 2020) -> Kid:
    """Kernel distance of features `[n, d]` and `[m, d]`, in memory or memory-mapped: unbiased MMD² with the kernel (x·y / d + 1)³.

    Unbiased: 0 on average, and so also below 0, where both sets come from one distribution. A set smaller than `size` gives subsets
    of half the smaller set, since subsets of the complete set are all the same. Subsets and default seed are torch-fidelity's, so
    that the values agree up to its sums in single precision (here they are in double; the products are as precise as the features
    are). ValueError for fewer than 4 images, other shapes, and features that are not finite.
    Source: Bińkowski et al. 2018, section 4 and appendix D.
    """
    a = check_features(a, "first features", 4)
    b = check_features(b, "second features", 4, a.shape[1])
    if size < 2 or subsets < 1:
        raise ValueError(f"at least 1 subset of at least 2 images is needed, got {subsets} of {size}")
    least = min(len(a), len(b))
    used = size if least >= size else least // 2
    random = np.random.RandomState(seed)
    exact = np.result_type(a, b, np.float32)
    values = np.zeros(subsets)
    for i in range(subsets):
        x = a[random.choice(len(a), used, replace=False)]
        y = b[random.choice(len(b), used, replace=False)]
        values[i] = _mmd2(np.concatenate([x, y], dtype=exact))
    return Kid(float(values.mean()), float(values.std()), used, subsets, size)


def _mmd2(both: Features) -> float:
    """Unbiased MMD² of the first half of the rows against the second."""
    m = len(both) // 2
    kernel = both @ both.T  # one symmetric product
    kernel /= both.shape[1]
    kernel += 1
    kernel *= kernel * kernel
    within = sum(float(k.sum(dtype=np.float64) - k.trace(dtype=np.float64)) for k in (kernel[:m, :m], kernel[m:, m:]))
    return within / (m * (m - 1)) - 2 * float(kernel[:m, m:].mean(dtype=np.float64))
