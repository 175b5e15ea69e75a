"""The distance to the nearest normal images, in features."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gan_uad.features.base import FeatureNet
from gan_uad.features.weights import EMBEDDED
from gan_uad.metrics.neighbours import nearest
from gan_uad.registry import register
from gan_uad.scoring.base import Scores
from gan_uad.scoring.features import VectorScorer, at_least, choice


@register("knn", kind="scorer")
class NearestNeighbours(VectorScorer):
    """Distance of an image's features to its k nearest normal ones; exact, in float64.

    Keeps the float32 features of all normal images; beyond them, memory does not grow with their number.
    Source: Bergman, Cohen & Hoshen 2020 (the mean over k, features of ImageNet); Ramaswamy et al. 2000 (the k-th alone).
    """

    name = "knn"

    def __init__(
        self,
        features: str = EMBEDDED,
        k: int = 5,
        metric: str = "cosine",
        reduce: str = "mean",
        *,
        net: FeatureNet | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`metric`: cosine (1 − cos, in [0, 2]) or euclidean. `reduce`: the mean over the `k` neighbours, or the last (k-th) alone."""
        at_least(k, 1, "k")
        choice(metric, ("cosine", "euclidean"), "metric")
        choice(reduce, ("mean", "last"), "reduce")
        super().__init__(features, net=net, device=device)
        self.k, self.metric, self.reduce = k, metric, reduce
        self._normals: NDArray[np.float32] | None = None

    def fit_normals(self, train: Iterator[Tensor]) -> None:
        """Keep the features; a `UserError` for fewer than `k` normal images."""
        self._normals = self.collected(train, self.k, f" with k = {self.k}")

    def score_batch(self, images: Tensor) -> Scores:
        """See `Scorer`."""
        if self._normals is None:
            raise self.not_fitted()
        distance = nearest(self.vectors(images), self._normals, self.k, self.metric)
        return Scores(torch.from_numpy(distance.mean(1) if self.reduce == "mean" else distance[:, -1]).float())

    def tensors(self) -> dict[str, Tensor]:
        """The features, and which they are."""
        if self._normals is None:
            raise self.not_fitted()
        return super().tensors() | {"normals": torch.from_numpy(self._normals)}

    def take(self, tensors: dict[str, Tensor]) -> None:
        """See `FeatureScorer`."""
        super().take(tensors)
        self._normals = tensors["normals"].numpy()
