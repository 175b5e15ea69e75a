"""The Fréchet distance between Gaussians, and the Gaussian of a stream of features.

It is called FID only where the features are those of the 2015 Inception (Heusel et al. 2017); see `features.base.FeatureNet.metric`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.linalg import blas, lapack

from gan_uad.metrics._features import Features, FloatArray, blocks, check_features

EPS = float(np.finfo(np.float64).eps)
# Of the sum of the traces: what the square roots of eigenvalues may lose in rounding before singular values are used instead.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Gaussian:
    """Mean `[d]` and covariance `[d, d]` (n − 1 in the denominator) of the features of `n` images, in float64."""

    n: int
    mean: FloatArray
    cov: FloatArray

    def __post_init__(self) -> None:
        d = len(self.mean)
        if self.n < 2 or self.mean.shape != (d,) or self.cov.shape != (d, d):
            raise ValueError(
                f"a Gaussian needs at least 2 images, a mean [d] and a covariance [d, d], got {self.n} images, "
                f"{list(self.mean.shape)} and {list(self.cov.shape)}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.cov).all()):
            raise ValueError("the mean or the covariance of the features is not finite")

    @property
    def dim(self) -> int:
        """Features an image."""
        return len(self.mean)


class Moments:
    """Count, mean and scatter of features that come in batches, in float64; memory of one `[dim, dim]` matrix.

    Every batch is centred on its own mean before it is squared and then merged (Chan, Golub & LeVeque 1983), so features far from
    zero lose nothing, and the split into batches does not matter beyond rounding.
    """

    def __init__(self, dim: int) -> None:
        self.n, self.mean = 0, np.zeros(dim)
        self.scatter = np.zeros((dim, dim), order="F")  # its upper triangle alone: half the work

    def update(self, features: Features) -> None:
        """Take in features `[n, dim]` of any float type, n ≥ 0. ValueError for another shape and for rows that are not finite."""
        checked = check_features(features, "features", 0, len(self.mean), self.n)
        for _, block in blocks(checked):
            values = block.astype(np.float64)
            mean = values.mean(axis=0)
            values -= mean
            self._join(len(values), mean, values)

    def _join(self, n: int, mean: FloatArray, centred: FloatArray) -> None:
        # The shift between the two means is one more row of the same product.
        shift = mean - self.mean
        rows = np.vstack([centred, np.sqrt(self.n * n / (self.n + n)) * shift])
        self.scatter = blas.dsyrk(1.0, rows.T, beta=1.0, c=self.scatter, overwrite_c=1)
        self.n += n
        self.mean = self.mean + shift * (n / self.n)

    def gaussian(self) -> Gaussian:
        """The Gaussian of all that was seen. ValueError for fewer than 2 images."""
        if self.n < 2:
            raise ValueError(f"a covariance needs the features of at least 2 images, got {self.n}")
        upper = np.triu(self.scatter) / (self.n - 1)
        return Gaussian(self.n, self.mean.copy(), upper + np.triu(upper, 1).T)


def gaussian_of(features: Features) -> Gaussian:
    """The Gaussian of features `[n, d]`, n ≥ 2, that lie in one array (memory-mapped or not). ValueError as in `Moments`."""
    moments = Moments(check_features(features, "features", 2).shape[1])
    moments.update(features)
    return moments.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet (2-Wasserstein) distance: ‖μa − μb‖² + tr(Σa + Σb − 2 (Σa Σb)^½) ≥ 0; ValueError for different `dim`.

    Source: Dowson & Landau 1982; Heusel et al. 2017, eq. 6. With Σa = FᵀF, Σa Σb has the eigenvalues of the symmetric F Σb Fᵀ, whose
    square roots are the singular values of F Gᵀ where Σb = GᵀG; so no root of an unsymmetric matrix is taken, nothing is added to a
    diagonal, and nothing turns complex. Symmetric in its arguments; covariances may be singular (fewer images than features).
    """
    if a.dim != b.dim:
        raise ValueError(
            f"Gaussians of {a.dim} and of {b.dim} features cannot be compared: are they of the same network?"
        )
    # One order for both calls: the fewer images, the smaller the matrix.
    a, b = sorted((a, b), key=lambda g: (g.n, float(np.trace(g.cov)), g.mean.tolist()))
    traces = float(np.trace(a.cov) + np.trace(b.cov))
    difference = a.mean - b.mean
    return max(0.0, float(difference @ difference) + (traces - 2 * _trace_of_root(a, b, traces)))


def _trace_of_root(a: Gaussian, b: Gaussian, traces: float) -> float:
    """tr (Σa Σb)^½: by eigenvalues, which are quick, or by singular values where rounding shows among the eigenvalues."""
    if traces == 0:
        return 0.0
    eigenvalues = _eigenvalues_of_product(a, b)
    if len(eigenvalues) == 0 or eigenvalues[-1] <= (EPS * traces) ** 2:
        return 0.0  # the sets vary in directions that have nothing in common
    roots = np.sqrt(np.clip(eigenvalues, 0, None))
    # No true eigenvalue is negative: how far they are below 0 is what rounding does to those that are small. It moves the root of a
    # larger one by δ / 2√λ, up or down, and that of a smaller one by up to √δ, only up. A bound from norms alone would be far too
    # careful: the columns of a Cholesky factor shrink, and small eigenvalues are mostly found as precisely as large ones.
    delta = max(0.0, -2 * float(eigenvalues[0]))
    drowned = eigenvalues <= delta
    off = float(np.sqrt(np.sum(delta**2 / (4 * eigenvalues[~drowned]))) + drowned.sum() * np.sqrt(delta))
    if off > TOLERANCE * traces:
        roots = scipy.linalg.svdvals(_factor(a) @ _factor(b).T, check_finite=False)
    return float(roots.sum())


def _eigenvalues_of_product(a: Gaussian, b: Gaussian) -> FloatArray:
    """The eigenvalues of Σa Σb, ascending, without the zeros that Σa brings."""
    if a.n > a.dim:
        # Transposed, since that is the same and the order in memory that LAPACK takes.
        lower, failed = lapack.dpotrf(a.cov.T, lower=1)
        if not failed:
            # Lᵀ Σb L, its lower triangle alone, at half the work of two products.
            product, _ = lapack.dsygst(b.cov.T, lower, itype=3, lower=1)
            return scipy.linalg.eigvalsh(product, lower=True, overwrite_a=True, check_finite=False)
    factor = _factor(a)
    return scipy.linalg.eigvalsh(factor @ b.cov @ factor.T, overwrite_a=True, check_finite=False)


def _factor(g: Gaussian) -> FloatArray:
    """F `[r, d]` of the covariance's numerical rank r < n with Σ = FᵀF: Cholesky with pivots (LAPACK dpstrf)."""
    upper, pivots, rank, _ = lapack.dpstrf(g.cov.T)
    rank = min(rank, g.n - 1)  # what is left beyond is rounding
    columns = np.empty((g.dim, rank))
    columns[pivots - 1] = np.tril(upper.T)[:, :rank]
    return columns.T
