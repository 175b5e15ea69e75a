"""A set, or an image, against the Gaussian that features of normal images have."""

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

ENOUGH = 2048  # images, as many as the Inception has features: below, its covariance is singular, and the FID well above its limit


@register("fid", kind="scorer")
class FrechetScorer(Mahalanobis):
    """Mahalanobis distance of an image's features to those of normal images; between sets, the Fréchet distance.

    It is the FID in the features of the 2015 Inception alone; in others it goes by their name (`FeatureNet.figure`). The covariance of
    the Mahalanobis distance is shrunk (see `Mahalanobis`); that of the Fréchet distance is not.
    """

    name = "fid"

    def __init__(
        self, features: str = EMBEDDED, *, net: FeatureNet | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """See `FeatureScorer`."""
        super().__init__(features, net=net, device=device)

    def compare(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """Fréchet distance of a set `[N, 3, H, W]` in [-1, 1], N ≥ 2, to the normal images; `labels` play no part.

        `frechet_distance`, `figure` (what it is called), `features`, `weights`, `preprocessing`, `n`, `n_normal`, and `warning`:
        what must be said with the figure, also printed, or an empty text.
        """
        normal = self.normals[0].gaussian
        moments = Moments(self.net.dim)
        for part in images.split(self.micro_batch):
            moments.update(self.vectors(part))
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
    """What to say of a Fréchet distance of so few images; empty for enough."""
    if min(n, n_normal) >= ENOUGH:
        return ""
    return (
        f"warning: {metric} of {n} images against {n_normal}: below {ENOUGH} the covariance is poorly known and the figure comes out "
        "too large; compare only figures of equal numbers, and see KID"
    )
