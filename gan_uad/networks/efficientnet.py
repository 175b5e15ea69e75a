"""The supervised reference: EfficientNets with the head of Basavalingaiah's classifier of breast histology (IDC)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models import efficientnet_v2_s

from gan_uad.networks.classifier import Classifier, FrozenTrunk, Normalise, torchvision_trunk
from gan_uad.networks.efficientnet_lite import HEAD, EfficientNetLite0, own_names
from gan_uad.networks.layers import check_rates, check_sizes
from gan_uad.registry import register

MIN_RESOLUTION = 32  # px: the side is halved five times


class MaxPooled(FrozenTrunk, Classifier):
    """A pretrained `trunk`, and its head: global max pooling, a dense layer with ReLU, dropout, two logits.

    `frozen`: see `FrozenTrunk`; the paper's trunk is frozen. Otherwise all weights are fine-tuned. The paper names no activation of the
    dense layer; ReLU is ours.
    """

    imagenet: str  # name of the weights that `trunk` may start from
    normalise: nn.Module

    def __init__(
        self, resolution: int, trunk: nn.Module, channels: int, hidden: int, dropout: float, frozen: bool
    ) -> None:
        super().__init__()
        if resolution < MIN_RESOLUTION:
            raise ValueError(f"images must be at least {MIN_RESOLUTION} px, not {resolution}")
        check_sizes(hidden=hidden)
        check_rates(dropout=dropout)
        self.resolution, self.frozen = resolution, frozen
        self.trunk = trunk.requires_grad_(not frozen)
        dense = (nn.Linear(channels, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 2))
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), *dense)

    def maps(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> `[N, 1280, R / 32, R / 32]`."""
        found: Any = self.trunk(self.normalise(images))
        last: Tensor = (
            found[-1] if isinstance(found, list) else found
        )  # EfficientNet-Lite0 gives the maps of all stages
        return last


@register("efficientnet_v2_s")
class EfficientNetV2S(MaxPooled):
    """EfficientNetV2-S (Tan & Le 2021) of torchvision with global max pooling, a dense layer, dropout and two logits.

    20,505,938 parameters. Maps are a 32nd of the side, so of 2×2 at 64 px; from 32 px on.
    """

    imagenet = "efficientnet_v2_s"

    trunk_weights = staticmethod(torchvision_trunk)

    def __init__(self, resolution: int, hidden: int = 256, dropout: float = 0.5, frozen: bool = False) -> None:
        super().__init__(resolution, efficientnet_v2_s(weights=None).features, 1280, hidden, dropout, frozen)
        self.normalise = Normalise()


@register("efficientnet_lite0")
class LiteClassifier(MaxPooled):
    """EfficientNet-Lite0 with the same head: a sixth as large, and its ImageNet weights are installed with this package."""

    imagenet = "efficientnet_lite0"

    trunk_weights = staticmethod(own_names)

    def __init__(self, resolution: int, hidden: int = 256, dropout: float = 0.5, frozen: bool = False) -> None:
        super().__init__(resolution, EfficientNetLite0(), HEAD, hidden, dropout, frozen)
        self.normalise = LiteInput()


class LiteInput(nn.Module):
    """Images in [-1, 1] as EfficientNet-Lite0 expects them: (value − 127) / 128 of 8 bits."""

    def forward(self, images: Tensor) -> Tensor:
        """`[N, 3, R, R]` -> the same shape."""
        return images * (127.5 / 128) + 0.5 / 128
