"""Networks trained on ImageNet, as features: the average over space of their last maps, and the maps of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.features.base import FeatureNet, pretrained
from gan_uad.features.pixels import as_float, resized
from gan_uad.networks.efficientnet_lite import EfficientNetLite0, own_names
from gan_uad.networks.layers import IMAGENET
from gan_uad.registry import register

LITE = ((127 / 255,) * 3, (128 / 255,) * 3)  # (value − 127) / 128
SIDE = 224  # px to which an image is resized for pooled features
MIN_SIDE = 16  # px; of a smaller image nothing is left in the last maps


class Backbone(FeatureNet):
    """A convolutional network: `stages` gives its maps of rising depth, whose last, averaged over space, are the features.

    `forward` resizes images to `side` px (bilinear, antialiased when they shrink), by default the size that the network was trained on.
    With EfficientNet-Lite0 and 64 px patches, nearest normal features detect anomalies better that way than at 64 px (AUROC 0.917
    against 0.838 on LC25000 colon, 0.675 against 0.645 on PCam). `maps` takes images at their own size.
    """

    mean_std: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    side: int = SIDE
    pooling = "spatial mean of the last maps"  # words for `preprocessing`

    shift: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module, label: str, side: int | None = None) -> None:
        """`net`: with its weights; `label`: what identifies them; `side` in px instead of the usual one, which `metric` then names."""
        super().__init__()
        self.net = net.eval().to(memory_format=torch.channels_last).requires_grad_(False)
        self.weights = label
        if side is not None and side != self.side:
            if side < MIN_SIDE:
                raise ValueError(f"images must be resized to at least {MIN_SIDE} px, not {side}")
            self.side, self.metric = side, f"{self.metric}@{side}"
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in self.mean_std)
        # For values in [-1, 1]; float32 of −0.030 and 0.458 like those that LPIPS was published with.
        self.register_buffer("shift", 2 * mean - 1, persistent=False)
        self.register_buffer("scale", 2 * std, persistent=False)
        self.preprocessing = (
            f"RGB, resized to {self.side} px (bilinear, antialiased when shrunk), normalised by mean {self._words(0)} and "
            f"deviation {self._words(1)}; {self.pooling}"
        )

    def stages(self, x: Tensor) -> list[Tensor]:
        """Normalised images -> maps of rising depth. Raises `NotImplementedError` where a network has none (timm)."""
        raise NotImplementedError(f"{type(self).__name__} gives no feature maps")

    def pooled(self, x: Tensor) -> Tensor:
        """Normalised images -> features `[N, dim]`."""
        return self.stages(x)[-1].mean((2, 3))

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 `[N, 3, H, W]` -> float32 `[N, dim]`."""
        x = as_float(images).mul_(1 / 127.5).sub_(1)
        return self.pooled(self._normalised(resized(x, self.side)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Float `[N, 3, H, W]` in [-1, 1] at their own size -> `[N, C, h, w]` of each stage, differentiable."""
        return self.stages(self._normalised(images))

    def _normalised(self, x: Tensor) -> Tensor:
        return ((x - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)

    def _words(self, which: int) -> str:
        return "/".join(f"{value:.3g}" for value in self.mean_std[which])


def taps(layers: Any, x: Tensor, after: Sequence[int]) -> list[Tensor]:
    """What comes out of the layers of the given indices; those after the last are not run."""
    found = []
    for first, last in pairwise((0, *(index + 1 for index in after))):
        x = layers[first:last](x)
        found.append(x)
    return found


class Published(Backbone):
    """A network with published weights."""

    name: str  # of the weights

    def __init__(self, weights: Path | None = None, side: int | None = None) -> None:
        """`weights`: a file or folder, instead of the usual places; `side`: see `Backbone`. Raises `UserError`."""
        super().__init__(*pretrained(self.name, weights, self.make, self.rename), side)

    def make(self) -> nn.Module:
        """The network, without weights."""
        raise NotImplementedError

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the published file under the network's names."""
        return state


class Torchvision(Published):
    """A network of torchvision without its classifier, from a full file or, for VGG16 and AlexNet, one of the convolutions alone."""

    head: str  # what its classifier is called

    def make(self) -> nn.Module:
        import torchvision.models

        net: nn.Module = torchvision.models.get_model(self.name, weights=None)
        setattr(net, self.head, nn.Identity())
        return net

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in state.items() if not key.startswith(f"{self.head}.")}


class _Sequential(Torchvision):
    """Taps of `features` after the layers of `after`."""

    head = "classifier"
    after: tuple[int, ...]

    def stages(self, x: Tensor) -> list[Tensor]:
        return taps(self.net.features, x, self.after)


@register("vgg16", kind="features")
class VGG16(_Sequential):
    """VGG16 of ImageNet, 512 features of its last convolution (relu5_3)."""

    name, metric, dim = "vgg16", "FD-VGG16", 512
    after = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3


@register("alexnet", kind="features")
class AlexNet(_Sequential):
    """AlexNet of ImageNet, 256 features of its last convolution (relu5)."""

    name, metric, dim = "alexnet", "FD-AlexNet", 256
    after = (1, 4, 7, 9, 11)  # relu1 to relu5


@register("efficientnet_v2_s", kind="features")
class EfficientNetV2S(_Sequential):
    """EfficientNetV2-S of ImageNet, 1280 features; images at 384 px, as it was trained."""

    name, metric, dim = "efficientnet_v2_s", "FD-EfficientNetV2-S", 1280
    side = 384
    after = (1, 2, 3, 5, 7)  # at 1/2, 1/4, 1/8, 1/16 and 1/32


@register("densenet121", kind="features")
class DenseNet121(Torchvision):
    """DenseNet121 of ImageNet, 1024 features."""

    name, metric, dim = "densenet121", "FD-DenseNet121", 1024
    head = "classifier"

    def stages(self, x: Tensor) -> list[Tensor]:
        # relu0, the four dense blocks; the last with its normalisation
        found = taps(self.net.features, x, (2, 4, 6, 8, 11))
        return [*found[:-1], F.relu(found[-1])]

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        from gan_uad.networks.classifier import densenet_names

        return super().rename(densenet_names(state))


@register("resnet34", kind="features")
class ResNet34(Torchvision):
    """ResNet34 of ImageNet, 512 features."""

    name, metric, dim = "resnet34", "FD-ResNet34", 512
    head = "fc"

    def stages(self, x: Tensor) -> list[Tensor]:
        net: Any = self.net
        found = [net.relu(net.bn1(net.conv1(x)))]
        x = net.maxpool(found[0])
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            found.append(x)
        return found


@register("efficientnet_lite0", kind="features")
class EfficientNetLite0Features(Published):
    """EfficientNet-Lite0 of ImageNet, 1280 features; its weights are installed with this package."""

    name, metric, dim = "efficientnet_lite0", "FD-EffNetLite0", 1280
    mean_std = LITE

    def make(self) -> nn.Module:
        return EfficientNetLite0()

    def rename(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return own_names(state)

    def stages(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = self.net(x)
        return found
