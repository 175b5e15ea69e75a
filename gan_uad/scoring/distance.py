"""The difference between an image and its closest normal image: two terms, shared by the search, the encoder and the score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ImageDistance:
    """Residual and discriminator-feature terms, per image.

    `norm`: "l1" (absolute) or "l2" (squared) differences. `reduce`: "mean" or "sum" over pixels and over features.
    f-AnoGAN: l2, mean, weights 1 and κ. AnoGAN: l1, sum, weights 1 − λ and λ.
    """

    norm: str = "l2"
    reduce: str = "mean"
    residual_weight: float = 1.0
    feature_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in {"l1", "l2"} or self.reduce not in {"mean", "sum"}:
            raise ValueError(f"norm must be l1 or l2 and reduce mean or sum, got {self.norm!r} and {self.reduce!r}")
        weights = (self.residual_weight, self.feature_weight)
        if not all(0 <= weight < math.inf for weight in weights):  # so that NaN is refused too
            raise ValueError(
                f"the weights of residual and features (kappa) must not be negative, NaN or infinite, got {weights[0]} and {weights[1]}"
            )

    def components(self, images: Tensor, reconstructions: Tensor, features: Any) -> dict[str, Tensor]:
        """`residual` and `features`, each `[N]`; `features` is a function of images, such as a discriminator's."""
        return {
            "residual": self._reduce(images - reconstructions),
            "features": self._reduce(features(images) - features(reconstructions)),
        }

    def total(self, components: dict[str, Tensor]) -> Tensor:
        """The weighted sum `[N]`."""
        return self.residual_weight * components["residual"] + self.feature_weight * components["features"]

    def _reduce(self, difference: Tensor) -> Tensor:
        size = (difference.abs() if self.norm == "l1" else difference.square()).flatten(1)
        return size.mean(1) if self.reduce == "mean" else size.sum(1)
