"""Networks that tell normal from anomalous patches."""

from __future__ import annotations

import re
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet

from gan_uad.networks.layers import IMAGENET, check_rates
from gan_uad.registry import register


class Normalise(nn.Module):
    """Images `[N, 3, R, R]` in [-1, 1] as pretrained networks expect them: ImageNet's mean and standard deviation removed."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


class Classifier(nn.Module):
    """A network with two logits, normal and anomalous, in two halves: `maps` of images, and what it `decide`s from them.

    Grad-CAM looks between the two.
    """

    resolution: int
    head: nn.Module  # maps to logits

    def maps(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> the last maps that have places, `[N, C, h, w]`."""
        raise NotImplementedError

    def decide(self, maps: Tensor) -> Tensor:
        """Maps `[N, C, h, w]` -> logits `[N, 2]`."""
        logits: Tensor = self.head(maps)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> logits `[N, 2]`."""
        return self.decide(self.maps(images))


class FrozenTrunk(nn.Module):
    """A network whose `trunk` keeps its weights and the statistics of its batch norm where `frozen` is set."""

    trunk: nn.Module
    frozen: bool

    def train(self, mode: bool = True) -> Self:
        """A frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self


def densenet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under today's names: in the published file of DenseNet121, "norm.1" is what is now "norm1"."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value for key, value in state.items()}


def torchvision_trunk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a torchvision file (or of its `features` alone) without the classifier, under the names in `features`."""
    kept = {key: value for key, value in densenet_names(state).items() if not key.startswith("classifier.")}
    return {key.removeprefix("features."): value for key, value in kept.items()}


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
        check_rates(drop_rate=drop_rate)
        self.resolution = resolution
        self.normalise = Normalise()
        self.net = DenseNet(growth_rate, block_config, init_features, drop_rate=drop_rate, num_classes=2)

    @property
    def trunk(self) -> nn.Module:
        """All but the last layer."""
        return self.net.features

    trunk_weights = staticmethod(torchvision_trunk)

    def maps(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> `[N, C, h, w]` ≥ 0, of a side R / 32 with four blocks."""
        return F.relu(self.net.features(self.normalise(images)), inplace=True)

    def decide(self, maps: Tensor) -> Tensor:
        """The mean of each map, and a linear layer."""
        logits: Tensor = self.net.classifier(F.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits
