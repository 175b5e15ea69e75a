"""Compares an image with the Gaussian of the features of normal images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gan_uad.data.patches import to_uint8
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.weights import EMBEDDED
from gan_uad.metrics.frechet import Gaussian
from gan_uad.metrics.shrinkage import ShrinkageMoments, shrunk
from gan_uad.registry import register
from gan_uad.scoring.base import Scores, check_images, padded
from gan_uad.scoring.features import VectorScorer


@dataclass
class Normals:
    """The Gaussian of the features of normal images, its covariance shrunk (Ledoit & Wolf 2004): it is singular for few images."""

    gaussian: Gaussian
    shrinkage: float

    def __post_init__(self) -> None:
        """Raises `UserError` where the covariance cannot be inverted."""
        self.root, failed = torch.linalg.cholesky_ex(torch.from_numpy(shrunk(self.gaussian, self.shrinkage)))
        if bool(failed):
            raise UserError(
                f"the covariance of the features of the {self.gaussian.n} normal images cannot be inverted, they are too alike: "
                "fit on more, and different, images"
            )

    def distance(self, vectors: NDArray[np.floating[Any]]) -> Tensor:
        """Mahalanobis distances `[n]`, in float64."""
        away = torch.from_numpy(vectors - self.gaussian.mean)
        return torch.linalg.solve_triangular(self.root, away.T, upper=False).norm(dim=0)

    def tensors(self) -> dict[str, Tensor]:
        """The Gaussian and its shrinkage."""
        return {
            "mean": torch.from_numpy(self.gaussian.mean),
            "cov": torch.from_numpy(self.gaussian.cov),
            "n": torch.tensor(self.gaussian.n),
            "shrinkage": torch.tensor(self.shrinkage, dtype=torch.float64),
        }

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Normals:
        """Restore from the output of `tensors()`."""
        gaussian = Gaussian(int(tensors["n"]), tensors["mean"].numpy(), tensors["cov"].numpy())
        return cls(gaussian, float(tensors["shrinkage"]))


@register("mahalanobis", kind="scorer")
class Mahalanobis(VectorScorer):
    """Mahalanobis distance of an image's features to those of normal images.

    `levels`: use the network's maps of these levels instead of its vector. Each is averaged over the image (which goes in at its own
    size) and has a Gaussian of its own; the distances are summed. Memory: two `[dim, dim]` matrices per level, for any number of images.
    Source: Rippel, Mertens & Merhof 2021 (Gaussians of each level of ImageNet networks, summed).
    """

    name = "mahalanobis"

    def __init__(
        self,
        features: str = EMBEDDED,
        levels: list[int] | str | None = None,
        *,
        net: FeatureNet | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`levels`: numbers from 0 (the finest) on, or "all". See `FeatureScorer`. Raises `ValueError`."""
        if levels not in (None, "all") and not (
            isinstance(levels, list) and levels and all(isinstance(k, int) and k >= 0 for k in levels)
        ):
            raise ValueError(f"levels must be all, or a list of numbers from 0 on such as [1,2], got {levels!r}")
        super().__init__(features, net=net, device=device)
        self.levels = levels
        self._normals: list[Normals] | None = None

    @property
    def normals(self) -> list[Normals]:
        """The Gaussian of each level; raises `UserError` before `fit`."""
        if self._normals is None:
            raise self.not_fitted()
        return self._normals

    def level_vectors(self, images: Tensor) -> list[NDArray[np.float32]]:
        """Features of images `[n, 3, H, W]`, n ≥ 1: an array `[n, C]` for each level; no image depends on the others."""
        if self.levels is None:
            return [self.vectors(images)]
        check_images(images)
        images = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        pieces = [self._averaged(chunk) for chunk in images.split(self.micro_batch)]
        found = [np.concatenate(level) for level in zip(*pieces, strict=True)]
        self.check_finite(all(bool(np.isfinite(level).all()) for level in found))
        return found

    @torch.no_grad()
    def _averaged(self, images: Tensor) -> list[NDArray[np.float32]]:
        count = len(images)
        maps = self.net.maps(padded(images, self.micro_batch).to(self.device))
        chosen = range(len(maps)) if not isinstance(self.levels, list) else self.levels
        if max(chosen) >= len(maps):
            raise UserError(f"{self.features} has no level {max(chosen)}, only 0 to {len(maps) - 1}")
        return [maps[level][:count].mean((2, 3)).float().cpu().numpy() for level in chosen]

    def fit_normals(self, train: Iterator[Tensor]) -> None:
        """Mean, covariance and shrinkage, batch by batch; a `UserError` for images that are too few or too alike."""
        moments: list[ShrinkageMoments] = []
        for images in train:
            if len(images):
                found = self.level_vectors(images)
                moments = moments or [ShrinkageMoments(vectors.shape[1]) for vectors in found]
                for of_level, vectors in zip(moments, found, strict=True):
                    of_level.update(vectors)
        self.check_count(moments[0].moments.n if moments else 0, 3)
        self._normals = [Normals(of_level.gaussian(), of_level.shrinkage()) for of_level in moments]

    def score_batch(self, images: Tensor) -> Scores:
        """See `Scorer`; with `levels`, the distance of each is a component."""
        found = zip(self.normals, self.level_vectors(images), strict=True)
        distances = [normals.distance(vectors) for normals, vectors in found]
        components = {} if self.levels is None else {self._component(k): d.float() for k, d in enumerate(distances)}
        return Scores(torch.stack(distances).sum(0).float(), components)

    def _component(self, place: int) -> str:
        return f"level_{self.levels[place] if isinstance(self.levels, list) else place}"

    def tensors(self) -> dict[str, Tensor]:
        """The Gaussians, and the features that they are of."""
        kept = {f"{k}.{name}": value for k, n in enumerate(self.normals) for name, value in n.tensors().items()}
        return super().tensors() | kept

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `FeatureScorer`. Raises `UserError` for one that was fitted before Gaussians had levels."""
        super().load_tensors(tensors)
        levels = sorted({int(name.split(".")[0]) for name in tensors if "." in name})
        if not levels:
            raise UserError(f"this {self.name} scorer is of an older version and cannot be read: fit again")
        self._normals = [
            Normals.of({name.split(".")[1]: value for name, value in tensors.items() if name.startswith(f"{k}.")})
            for k in levels
        ]
