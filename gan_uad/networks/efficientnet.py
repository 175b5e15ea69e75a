"""The supervised reference: EfficientNets with the head of Basavalingaiah's classifier of breast histology (IDC)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models import efficientnet_v2_s

from gan_uad.networks.classifier import Classifier, Normalise
from gan_uad.networks.efficientnet_lite import HEAD, EfficientNetLite0, own_names
from gan_uad.networks.layers import check_sizes
from gan_uad.registry import register

LEAST = 32  # px: the side is halved five times


class MaxPooled(Classifier):
    """A pretrained `trunk`, and its head: global max pooling, a dense layer with ReLU, dropout, two logits.

    `frozen`: the trunk keeps its weights and the statistics of its batch norm, as that paper's does; else all is fine-tuned. The paper
    names no activation of the dense layer; ReLU is ours.
    """

    imagenet: str  # name of the weights that `trunk` may start from

    def __init__(
        self, resolution: int, trunk: nn.Module, channels: int, hidden: int, dropout: float, frozen: bool
    ) -> None:
        super().__init__()
        if resolution < LEAST:
            raise ValueError(f"images must be at least {LEAST} px, not {resolution}")
        check_sizes(hidden=hidden)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.resolution, self.frozen = resolution, frozen
        self.trunk = trunk.requires_grad_(not frozen)
        dense = (nn.Linear(channels, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 2))
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), *dense)

    def decide(self, maps: Tensor) -> Tensor:
        """See `Classifier`."""
        logits: Tensor = self.head(maps)
        return logits

    def train(self, mode: bool = True) -> MaxPooled:
        """A frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self


@register("efficientnet_v2_s")
class EfficientNetV2S(MaxPooled):
    """EfficientNetV2-S (Tan & Le 2021) of torchvision with global max pooling, a dense layer, dropout and two logits.

    20,505,938 parameters. Maps are a 32nd of the side, so of 2×2 at 64 px; from 32 px on.
    """

    imagenet = "efficientnet_v2_s"

    def __init__(self, resolution: int, hidden: int = 256, dropout: float = 0.5, frozen: bool = False) -> None:
        super().__init__(resolution, efficientnet_v2_s(weights=None).features, 1280, hidden, dropout, frozen)
        self.normalise = Normalise()

    @staticmethod
    def trunk_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of torchvision's file (or of its features alone) under the names that `trunk` has."""
        kept = {key: value for key, value in state.items() if not key.startswith("classifier.")}
        return {key.removeprefix("features."): value for key, value in kept.items()}

    def maps(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> `[N, 1280, R / 32, R / 32]`."""
        found: Tensor = self.trunk(self.normalise(images))
        return found


@register("efficientnet_lite0")
class LiteClassifier(MaxPooled):
    """EfficientNet-Lite0 with the same head: a sixth as large, and its ImageNet weights are installed with this package."""

    imagenet = "efficientnet_lite0"

    def __init__(self, resolution: int, hidden: int = 256, dropout: float = 0.5, frozen: bool = False) -> None:
        super().__init__(resolution, EfficientNetLite0(), HEAD, hidden, dropout, frozen)

    @staticmethod
    def trunk_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the published file under the names that `trunk` has."""
        return own_names(state)

    def maps(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> `[N, 1280, R / 32, R / 32]`."""
        found: list[Any] = self.trunk(lite_input(images))
        last: Tensor = found[-1]
        return last


def lite_input(images: Tensor) -> Tensor:
    """Images in [-1, 1] as EfficientNet-Lite0 is given them: (value − 127) / 128 of 8 bits."""
    return images * (127.5 / 128) + 0.5 / 128
