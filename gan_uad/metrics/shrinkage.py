"""A covariance that can be inverted for any number of images, from features that come in batches."""

from __future__ import annotations

import numpy as np

from gan_uad.metrics._features import Features, FloatArray, blocks, check_features
from gan_uad.metrics.frechet import Gaussian, Moments


class ShrinkageMoments:
    """Moments, and the sums from which Ledoit and Wolf's shrinkage follows; memory as for `Moments`, however many images."""

    def __init__(self, dim: int) -> None:
        self.moments = Moments(dim)
        self.origin: FloatArray = np.zeros(dim)  # about the mean, so that powers of what is left do not cancel
        self.cubes: FloatArray = np.zeros(dim)  # Σ ‖y‖² y of y = x − origin
        self.fourth = 0.0  # Σ ‖y‖⁴

    def update(self, features: Features) -> None:
        """Take in features `[n, dim]`, n ≥ 0. ValueError as in `Moments`."""
        checked = check_features(features, "features", 0, len(self.origin), self.moments.n)
        if self.moments.n == 0 and len(checked):
            self.origin = checked.mean(axis=0, dtype=np.float64)
        self.moments.update(checked)
        for _, block in blocks(checked):
            away = block - self.origin
            squared = np.einsum("nd,nd->n", away, away)
            self.cubes += squared @ away
            self.fourth += float(squared @ squared)

    def gaussian(self) -> Gaussian:
        """The Gaussian of all that was seen, not shrunk. ValueError for fewer than 2 images."""
        return self.moments.gaussian()

    def shrinkage(self) -> float:
        """The share in [0, 1] of the multiple of the identity. ValueError for fewer than 2 images.

        Source: Ledoit & Wolf 2004, section 3.2 (β², δ²); the same value as scikit-learn's `ledoit_wolf` of all features at once.
        """
        gaussian = self.gaussian()
        n, d = gaussian.n, gaussian.dim
        cov = gaussian.cov * ((n - 1) / n)
        trace, square = float(np.trace(cov)), float(np.einsum("ij,ij->", cov, cov))
        to_identity = square - trace**2 / d
        spread = self._fourth_about_the_mean(cov) / n - square  # of the images' own x xᵀ about their mean
        if to_identity <= 0 or spread <= 0:
            return 0.0
        return min(1.0, spread / n / to_identity)

    def _fourth_about_the_mean(self, cov: FloatArray) -> float:
        """Σ ‖x − μ‖⁴, by opening (‖y‖² − 2 m·y + ‖m‖²)² with m = μ − origin; `cov` has n in the denominator."""
        n, m = self.moments.n, self.moments.mean - self.origin
        mm = float(m @ m)
        squares = n * (float(np.trace(cov)) + mm)  # Σ ‖y‖²
        projected = n * (float(m @ cov @ m) + mm**2)  # Σ (m·y)²
        return self.fourth + 4 * projected + n * mm**2 - 4 * float(m @ self.cubes) + 2 * mm * squares - 4 * mm * n * mm


def shrunk(gaussian: Gaussian, shrinkage: float) -> FloatArray:
    """(1 − s) S + s (tr S / d) I `[d, d]`, where S is the covariance with n in the denominator (Ledoit & Wolf 2004, eq. 14)."""
    cov = gaussian.cov * ((1 - shrinkage) * (gaussian.n - 1) / gaussian.n)
    level = shrinkage * float(np.trace(gaussian.cov)) * (gaussian.n - 1) / gaussian.n / gaussian.dim
    cov[np.diag_indices(gaussian.dim)] += level
    return cov
