"""Networks that tell normal from anomalous patches."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet

from gan_uad.registry import register

# Mean and standard deviation of ImageNet's RGB in [0, 1], which pretrained weights expect to be taken out.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """Images `[N, 3, R, R]` in [-1, 1] to what ImageNet's networks are given."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


class Classifier(nn.Module):
    """A network with two logits, normal and anomalous, in two halves: `maps` of images, and what it `decide`s from them.

    Grad-CAM looks between the two.
    """

    resolution: int

    def maps(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> the last maps that have places, `[N, C, h, w]`."""
        raise NotImplementedError

    def decide(self, maps: Tensor) -> Tensor:
        """Maps `[N, C, h, w]` -> logits `[N, 2]`."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> logits `[N, 2]`."""
        return self.decide(self.maps(images))


@register("densenet121")
class DenseNet121(Classifier):
    """DenseNet121 (Huang et al. 2017) of torchvision with two logits, normal and anomalous; 6,955,906 parameters.

    The stem is that of 224 px images (a 7×7 convolution and a pooling, of stride 2 each) at every resolution: 64 px images are
    2×2 when they come to the average. From 32 px on; with fewer blocks, from 2 px times 2 for every block.
    The four numbers are DenseNet121's own; others make another DenseNet, for which there are no pretrained weights.
    """

    imagenet = "densenet121"  # name of the weights that `trunk` may start from

    def __init__(
        self,
        resolution: int,
        growth_rate: int = 32,
        block_config: tuple[int, ...] = (6, 12, 24, 16),
        init_features: int = 64,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if min(growth_rate, init_features, *block_config) < 1 or not block_config:
            raise ValueError(
                f"growth_rate, init_features and blocks must be at least 1, got {growth_rate}, {init_features} and {block_config}"
            )
        least = 2 << len(block_config)
        if resolution < least:
            raise ValueError(f"images must be at least {least} px with {len(block_config)} blocks, not {resolution}")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate must be in [0, 1), got {drop_rate}")
        self.resolution = resolution
        self.normalise = Normalise()
        self.net = DenseNet(growth_rate, block_config, init_features, drop_rate=drop_rate, num_classes=2)

    @property
    def trunk(self) -> nn.Module:
        """All but the last layer."""
        return self.net.features

    @staticmethod
    def trunk_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of torchvision's file (or of one of its features alone) under the names that `trunk` has."""
        # The published file is older than the names: there "norm.1" is what is now "norm1".
        names = {key: re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key) for key in state}
        return {
            names[key].removeprefix("features."): value
            for key, value in state.items()
            if not key.startswith("classifier.")
        }

    def maps(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> `[N, C, h, w]` ≥ 0, of a side R / 32 with four blocks."""
        return F.relu(self.net.features(self.normalise(images)), inplace=True)

    def decide(self, maps: Tensor) -> Tensor:
        """The mean of each map, and a linear layer."""
        logits: Tensor = self.net.classifier(F.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits
