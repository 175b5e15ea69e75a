"""The baseline of every detector: colour alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gan_uad.errors import UserError
from gan_uad.registry import register
from gan_uad.scoring.base import Scorer, Scores


@register("mean_color", kind="scorer")
class MeanColorScorer(Scorer):
    """Squared Mahalanobis distance of an image's mean RGB to the Gaussian of the mean RGB of normal images."""

    micro_batch = 64

    def __init__(self) -> None:
        self.mean, self.precision = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)

    def fit_normals(self, train: Iterator[Tensor]) -> None:
        """Mean and covariance (n − 1 in the denominator) of at least four normal images; a `UserError` for fewer."""
        colors = torch.cat([self.mean.new_zeros(0, 3), *(images.double().mean((2, 3)) for images in train)])
        if len(colors) < 4:
            raise UserError(f"the mean-colour baseline needs at least 4 normal images to fit, got {len(colors)}")
        self.mean = colors.mean(0)
        # Grey images have a covariance of rank one: the pseudo-inverse measures distance along what varies.
        self.precision = torch.linalg.pinv(colors.T.cov(), hermitian=True, rtol=1e-9)

    def score_batch(self, images: Tensor) -> Scores:
        """See `Scorer`. Raises `UserError` before `fit`."""
        if not self.fitted:
            raise UserError("the mean_color scorer was not fitted: fit it on normal images first")
        away = images.double().mean((2, 3)) - self.mean
        return Scores(torch.einsum("ni,ij,nj->n", away, self.precision, away).float())

    def tensors(self) -> dict[str, Tensor]:
        """The Gaussian."""
        return {"mean": self.mean, "precision": self.precision}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.mean, self.precision = tensors["mean"], tensors["precision"]
