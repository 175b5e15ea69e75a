"""Metrics of a generator by features of its images: the one place to import them from.

Features are float `[images, features]` of one network for all sets, in memory or memory-mapped, and finite.
"""

from gan_uad.metrics.frechet import Gaussian, Moments, frechet_distance, gaussian_of
from gan_uad.metrics.kid import Kid, kid
from gan_uad.metrics.neighbours import Memorisation, Pair, PrecisionRecall, memorisation, precision_recall

__all__ = [
    "Gaussian", "Kid", "Memorisation", "Moments", "Pair", "PrecisionRecall", "frechet_distance", "gaussian_of", "kid",
    "memorisation", "precision_recall",
]  # fmt: skip
