"""What every feature network is: pixels in, one vector an image out, and the words that make a figure traceable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class FeatureNet(nn.Module, ABC):
    """A frozen network in evaluation mode that gives one vector an image; it never mixes the images of a batch.

    `figure` is what a Fréchet distance in these features is called: "FID" for the 2015 Inception alone, "FD-VGG16" and the like for
    others. `weights` identifies the weights (file name and hash), `preprocessing` says in words how images reach the network: both
    stand beside every figure and in the key of every cached statistic.
    """

    metric: str
    dim: int
    weights: str
    preprocessing: str
    spec: dict[str, Any]

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """uint8 `[N, 3, H, W]` -> float32 `[N, dim]`, without gradients: figures are of the 8-bit images that files hold."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Float `[N, 3, H, W]` in [-1, 1] -> feature maps `[N, C, h, w]` of rising depth, differentiable with respect to the images.

        The images go in at their own size. Raises `NotImplementedError` where a network has no use for it.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no feature maps")
