"""A set, or an image, against the Gaussian that features of normal images have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gan_uad.console import say
from gan_uad.data.patches import to_uint8
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.extract import extract
from gan_uad.features.load import load_features
from gan_uad.features.weights import EMBEDDED
from gan_uad.metrics.frechet import Gaussian, Moments, frechet_distance
from gan_uad.metrics.shrinkage import ShrinkageMoments, shrunk
from gan_uad.registry import register
from gan_uad.scoring.base import Scorer, Scores, check_images

ENOUGH = 2048  # images, as many as the Inception has features: below, its covariance is singular, and the FID well above its limit


@register("fid", kind="scorer")
class FrechetScorer(Scorer):
    """Mahalanobis distance of an image's features to those of normal images; between sets, the Fréchet distance.

    It is the FID in the features of the 2015 Inception alone; in others it goes by their name (`FeatureNet.figure`). The covariance of
    the Mahalanobis distance is shrunk (Ledoit & Wolf 2004), since it is singular for fewer images than features; that of the Fréchet
    distance is not. Images reach the network as uint8, as files hold them.
    """

    micro_batch = 32

    def __init__(
        self, features: str = EMBEDDED, *, net: FeatureNet | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """`features`: a feature network by name. `net`: the same one loaded already (from other weights, for instance), on `device`."""
        self.features, self.device = features, device
        self.net = load_features(features, device=device) if net is None else net
        self.rests_on = f"{self.net.weights}; {self.net.preprocessing}"
        self.shrinkage = 0.0
        self._normal: Gaussian | None = None

    @property
    def normal(self) -> Gaussian:
        """The Gaussian of the normal images; raises `UserError` before `fit`."""
        if self._normal is None:
            raise UserError("the fid scorer was not fitted: it needs normal images to compare with")
        return self._normal

    def fit_normals(self, train: Iterator[Tensor]) -> None:
        """Mean, covariance and shrinkage, batch by batch; a `UserError` where they are too few or too alike for a distance."""
        moments = ShrinkageMoments(self.net.dim)
        for images in train:
            if len(images):
                moments.update(self._features(images))
        if moments.moments.n < 3:
            raise UserError(f"the fid scorer needs at least 3 normal images to fit, got {moments.moments.n}")
        self._set(moments.gaussian(), moments.shrinkage())

    def _set(self, normal: Gaussian, shrinkage: float) -> None:
        root, failed = torch.linalg.cholesky_ex(torch.from_numpy(shrunk(normal, shrinkage)))
        if bool(failed):
            raise UserError(
                f"the {normal.n} normal images are so alike that their features have no invertible covariance: "
                "fit with more, and different, images"
            )
        self._normal, self._root, self.shrinkage = normal, root, shrinkage

    def _features(self, images: Tensor) -> NDArray[np.float32]:
        check_images(images)
        return next(iter(extract(self.net, [to_uint8(images)], self.device, self.micro_batch)))

    def score_batch(self, images: Tensor) -> Scores:
        """See `Scorer`."""
        normal = self.normal
        away = torch.from_numpy(self._features(images) - normal.mean)
        return Scores(torch.linalg.solve_triangular(self._root, away.T, upper=False).norm(dim=0).float())

    def compare(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """Fréchet distance of a set `[N, 3, H, W]` in [-1, 1], N ≥ 2, to the normal images; `labels` play no part.

        `frechet_distance`, `figure` (what it is called), `features`, `weights`, `preprocessing`, `n`, `n_normal`, and `warning`:
        what must be said with the figure, also printed, or an empty text.
        """
        normal = self.normal
        moments = Moments(self.net.dim)
        for part in images.split(self.micro_batch):
            moments.update(self._features(part))
        if moments.n < 2:
            raise UserError("a Fréchet distance needs at least 2 images")
        warning = few_images(self.net.figure, moments.n, normal.n)
        if warning:
            say(warning)
        return {
            "frechet_distance": frechet_distance(normal, moments.gaussian()),
            "figure": self.net.figure,
            "features": self.features,
            "weights": self.net.weights,
            "preprocessing": self.net.preprocessing,
            "n": moments.n,
            "n_normal": normal.n,
            "warning": warning,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The Gaussian, the shrinkage, and which features they are of."""
        normal = self.normal
        return {
            "mean": torch.from_numpy(normal.mean),
            "cov": torch.from_numpy(normal.cov),
            "n": torch.tensor(normal.n),
            "shrinkage": torch.tensor(self.shrinkage, dtype=torch.float64),
            "of": torch.tensor(list(self._of().encode()), dtype=torch.uint8),
        }

    def take(self, tensors: dict[str, Tensor]) -> None:
        """See `Scorer`. Raises `UserError` where the feature network is not the one that it was fitted with."""
        of = bytes(tensors["of"].tolist()).decode()
        if of != self._of():
            raise UserError(
                f"this scorer was fitted with the features {of}, but here they are {self._of()}: give those weights, or fit again"
            )
        mean, cov = tensors["mean"].numpy(), tensors["cov"].numpy()
        self._set(Gaussian(int(tensors["n"]), mean, cov), float(tensors["shrinkage"]))

    def _of(self) -> str:
        return f"{self.features} ({self.net.weights}; {self.net.preprocessing})"


def few_images(figure: str, n: int, n_normal: int) -> str:
    """What to say of a Fréchet distance of so few images; empty for enough."""
    if min(n, n_normal) >= ENOUGH:
        return ""
    return (
        f"warning: {figure} of {n} images against {n_normal}: below {ENOUGH} the covariance is poorly known and the figure comes out "
        "too large; compare only figures of equal numbers, and see KID"
    )
