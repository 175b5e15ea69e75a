"""An image against the Gaussian that features of normal images have."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.weights import EMBEDDED
from gan_uad.metrics.frechet import Gaussian
from gan_uad.metrics.shrinkage import ShrinkageMoments, shrunk
from gan_uad.registry import register
from gan_uad.scoring.base import Scores
from gan_uad.scoring.features import VectorScorer


@register("gaussian", kind="scorer")
class GaussianScorer(VectorScorer):
    """Mahalanobis distance of an image's features to those of normal images.

    The covariance is shrunk (Ledoit & Wolf 2004), since it is singular for fewer images than features. Memory of two `[dim, dim]`
    matrices, however many images.
    Source: Rippel, Mertens & Merhof 2021 (Gaussians of the features of ImageNet networks).
    """

    name = "gaussian"

    def __init__(
        self, features: str = EMBEDDED, *, net: FeatureNet | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """See `FeatureScorer`."""
        super().__init__(features, net=net, device=device)
        self.shrinkage = 0.0
        self._normal: Gaussian | None = None

    @property
    def normal(self) -> Gaussian:
        """The Gaussian of the normal images; raises `UserError` before `fit`."""
        if self._normal is None:
            raise self.not_fitted()
        return self._normal

    def fit_normals(self, train: Iterator[Tensor]) -> None:
        """Mean, covariance and shrinkage, batch by batch; a `UserError` where they are too few or too alike for a distance."""
        moments = ShrinkageMoments(self.net.dim)
        for images in train:
            if len(images):
                moments.update(self.vectors(images))
        self.check_count(moments.moments.n, 3)
        self._set(moments.gaussian(), moments.shrinkage())

    def _set(self, normal: Gaussian, shrinkage: float) -> None:
        root, failed = torch.linalg.cholesky_ex(torch.from_numpy(shrunk(normal, shrinkage)))
        if bool(failed):
            raise UserError(
                f"the {normal.n} normal images are so alike that their features have no invertible covariance: "
                "fit with more, and different, images"
            )
        self._normal, self._root, self.shrinkage = normal, root, shrinkage

    def score_batch(self, images: Tensor) -> Scores:
        """See `Scorer`."""
        normal = self.normal
        away = torch.from_numpy(self.vectors(images) - normal.mean)
        return Scores(torch.linalg.solve_triangular(self._root, away.T, upper=False).norm(dim=0).float())

    def tensors(self) -> dict[str, Tensor]:
        """The Gaussian, the shrinkage, and which features they are of."""
        normal = self.normal
        return super().tensors() | {
            "mean": torch.from_numpy(normal.mean),
            "cov": torch.from_numpy(normal.cov),
            "n": torch.tensor(normal.n),
            "shrinkage": torch.tensor(self.shrinkage, dtype=torch.float64),
        }

    def take(self, tensors: dict[str, Tensor]) -> None:
        """See `FeatureScorer`."""
        super().take(tensors)
        mean, cov = tensors["mean"].numpy(), tensors["cov"].numpy()
        self._set(Gaussian(int(tensors["n"]), mean, cov), float(tensors["shrinkage"]))
