"""Perceptual distances between images: squared differences of channel-normalised features, summed over the layers of a network.

All have one interface, in which the features of a target can be computed once and compared with many images.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.load import load_features

EPS = 1e-10  # added to the norm over channels, as in the package `lpips`
MIN_SIDE = 16  # px
BACKBONES = {"vgg": "vgg16", "alex": "alexnet"}


class PerceptualDistance(nn.Module):
    """Distance of images in [-1, 1], one number an image; frozen, differentiable with respect to the images, which never mix."""

    def __init__(self, name: str, net: FeatureNet, heads: list[Tensor]) -> None:
        """`heads`: a weight for each channel `[C]` of each of the maps of `net`."""
        super().__init__()
        self.name, self.net, self.weights = name, net, net.weights
        self.heads = nn.ParameterList(nn.Parameter(head.view(1, -1, 1, 1), requires_grad=False) for head in heads)

    def features(self, images: Tensor, check: bool = True) -> list[Tensor]:
        """What is compared: normalised maps `[N, C, h, w]` of each layer.

        Raises `ValueError` for values outside [-1, 1], unless `check` is False (a generator may overstep slightly), and for images
        that are not float `[N, 3, H, W]` or too small.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"{self.name} takes float images [N, 3, H, W], got {images.dtype} {list(images.shape)}")
        if min(images.shape[2:]) < MIN_SIDE:
            raise ValueError(f"{self.name} takes images of at least {MIN_SIDE} px, got {list(images.shape[2:])}")
        if check and len(images):
            low, high = images.detach().aminmax()
            if not (low >= -1.001 and high <= 1.001):  # written so that NaN is refused too; resizing leaves rounding
                raise ValueError(f"{self.name} takes images in [-1, 1], got values from {low:.4g} to {high:.4g}")
        return [_normalised(maps) for maps in self.net.maps(images)]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distances `[N]` between what `features` gave for N images and for as many, or for one."""
        return torch.stack([layer.mean((1, 2, 3)) for layer in self._layers(a, b)]).sum(0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances `[N]` between images `[N, 3, H, W]` in [-1, 1]. Raises `ValueError`."""
        return self.distance(self.features(a), self.features(b))

    def maps(self, a: Tensor, b: Tensor) -> Tensor:
        """Where images differ, `[N, H, W]`: the differences of each layer, resized to the images (bilinear) and summed."""
        layers = self._layers(self.features(a), self.features(b))
        grown = [F.interpolate(layer, a.shape[2:], mode="bilinear", align_corners=False) for layer in layers]
        return torch.stack(grown).sum((0, 2))

    def _layers(self, a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        """Weighted sums over channels of the squared differences, `[N, 1, h, w]` of each layer."""
        return [F.conv2d((x - y).square(), head) for x, y, head in zip(a, b, self.heads, strict=True)]


class LPIPS(PerceptualDistance):
    """LPIPS 0.1 (Zhang et al. 2018): the linear heads of the package `lpips` on our VGG16 or AlexNet; equal to it up to rounding."""

    def __init__(self, net: str = "vgg", weights: Path | None = None) -> None:
        """`net`: "vgg" or "alex"; `weights`: the backbone's file instead of the usual places. Raises `ValueError` and `UserError`."""
        if net not in BACKBONES:
            raise ValueError(f"LPIPS is of {' or '.join(BACKBONES)}, not {net!r}")
        super().__init__(f"LPIPS-{net}", load_features(BACKBONES[net], weights=weights), _published_heads(net))


class EffNetLite0Distance(PerceptualDistance):
    """A distance like LPIPS that needs no download: maps of EfficientNet-Lite0, equal weights for all channels, mean over the layers.

    It is not fitted to human perception, so it is not called LPIPS.
    """

    def __init__(self, weights: Path | None = None) -> None:
        """`weights`: a file instead of the installed one. Raises `UserError`."""
        net = load_features("efficientnet_lite0", weights=weights)
        with torch.no_grad():
            channels = [maps.shape[1] for maps in net.maps(torch.zeros(1, 3, 32, 32))]
        super().__init__("EffNetLite0 distance", net, [torch.full((c,), 1 / len(channels)) for c in channels])


PERCEPTUAL = ("vgg", "alex", "efficientnet_lite0")


def perceptual_distance(name: str) -> PerceptualDistance:
    """The distance called "vgg" or "alex" (LPIPS) or "efficientnet_lite0" (needs no download). Raises `ValueError` and `UserError`."""
    if name not in PERCEPTUAL:
        raise ValueError(f"the perceptual distance must be one of {', '.join(PERCEPTUAL)}, got {name!r}")
    return EffNetLite0Distance() if name == "efficientnet_lite0" else LPIPS(name)


def _normalised(maps: Tensor) -> Tensor:
    """Unit length over the channels at each place; 0 with a gradient of 0 where all are 0 (1e-30 avoids the gradient of √0)."""
    return maps / (maps.square().sum(1, keepdim=True).add(1e-30).sqrt() + EPS)


def _published_heads(net: str) -> list[Tensor]:
    """The linear heads that the package `lpips` ships, each `[C]`; the package itself is not imported."""
    spec = find_spec("lpips")
    if spec is None or spec.origin is None:
        raise UserError("the package lpips is missing, which holds the heads of LPIPS: run `pip install lpips`")
    file = Path(spec.origin).parent / "weights" / "v0.1" / f"{net}.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{k}.model.1.weight"].flatten() for k in range(len(state))]
