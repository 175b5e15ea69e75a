"""The distance to the nearest normal images, in features."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_uad.features.base import FeatureNet
from gan_uad.features.weights import EMBEDDED
from gan_uad.metrics.neighbours import nearest
from gan_uad.registry import register
from gan_uad.scoring.base import Scores
from gan_uad.scoring.features import StoredNormals, at_least, choice


@register("knn", kind="scorer")
class NearestNeighbours(StoredNormals):
    """Distance of an image's features to its k nearest normal ones; exact, in float64.

    Beyond the features of the normal images, memory does not grow with their number.
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
        self.least, self.why = k, f" with k = {k}"

    def score_batch(self, images: Tensor) -> Scores:
        distance = nearest(self.vectors(images), self.normals, self.k, self.metric)
        return Scores(torch.from_numpy(distance.mean(1) if self.reduce == "mean" else distance[:, -1]).float())
