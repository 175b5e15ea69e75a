"""Compares a set, or an image, with the Gaussian of the features of normal images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_uad.console import say
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.weights import EMBEDDED
from gan_uad.metrics.frechet import Moments, frechet_distance
from gan_uad.registry import register
from gan_uad.scoring.mahalanobis import Mahalanobis

MIN_IMAGES = (
    2048  # the features of the Inception: with fewer images its covariance is singular, and the FID far too large
)


@register("fid", kind="scorer")
class FrechetScorer(Mahalanobis):
    """Mahalanobis distance of an image's features to those of normal images; between sets, the Fréchet distance.

    It is the FID in the features of the 2015 Inception alone; in others it has their name (`FeatureNet.metric`). The covariance of
    the Mahalanobis distance is shrunk (see `Mahalanobis`); that of the Fréchet distance is not.
    """

    name = "fid"

    def __init__(
        self, features: str = EMBEDDED, *, net: FeatureNet | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(features, net=net, device=device)

    def compare(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """Fréchet distance of a set `[N, 3, H, W]` in [-1, 1], N ≥ 2, to the normal images; `labels` are not used.

        `frechet_distance`, `figure` (its name), `features`, `weights`, `preprocessing`, `n`, `n_normal`, and `warning` (also printed,
        empty where there is none).
        """
        normal = self.normals[0].gaussian
        moments = Moments(self.net.dim)
        for chunk in images.split(self.micro_batch):
            moments.update(self.vectors(chunk))
        if moments.n < 2:
            raise UserError("a Fréchet distance needs at least 2 images")
        warning = few_images(self.net.metric, moments.n, normal.n)
        if warning:
            say(warning)
        return {
            "frechet_distance": frechet_distance(normal, moments.gaussian()),
            "figure": self.net.metric,
            "features": self.features,
            "weights": self.net.weights,
            "preprocessing": self.net.preprocessing,
            "n": moments.n,
            "n_normal": normal.n,
            "warning": warning,
        }


def few_images(metric: str, n: int, n_normal: int) -> str:
    """The warning for a Fréchet distance of too few images; empty for enough."""
    if min(n, n_normal) >= MIN_IMAGES:
        return ""
    return (
        f"warning: {metric} of {n} images against {n_normal}: below {MIN_IMAGES} the covariance is poorly known and the value "
        "too large; compare only values of equal numbers, and see KID"
    )
