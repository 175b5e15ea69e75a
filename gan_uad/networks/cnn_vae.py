"""The CNN-VAE hybrid of Kalusivalingam et al.: a CNN that tells normal from anomalous, and a VAE of its maps.

They give the widths of the CNN (32-64-128, then 512-256), max-pooling, dropout, and of the VAE two convolutions, a dense layer, 128
latents and a mirrored decoder. Kernels, the pooling before the dense layers and the widths of the VAE are ours. In the place of their
CNN may stand the first stages of a ResNet34 or of EfficientNet-Lite0, up to maps of an eighth of the side, as theirs are.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from gan_uad.networks.classifier import Classifier, Normalise
from gan_uad.networks.efficientnet import LiteInput
from gan_uad.networks.efficientnet_lite import EfficientNetLite0, own_names
from gan_uad.networks.layers import as_images, check_rates, check_resolution, check_widths, stack
from gan_uad.networks.vae import RESNET34, VAE, Decoder
from gan_uad.registry import register

Backbone = Literal["plain", "resnet34", "efficientnet_lite0"]
EIGHTH = 3  # halvings of the side by the stages of a backbone
POOLED = 8  # px of the maps that the dense layers see; all 32 px of a 256 px image would need 67 million weights


class Trunk(nn.Sequential):
    """Images -> maps `[N, width, h, w]`: 3×3 convolutions with ReLU, each before a 2×2 max-pooling, or the stages of a backbone."""

    def __init__(self, backbone: Backbone, channels: tuple[int, ...]) -> None:
        if backbone == "plain":
            layers = stack((3, *channels), lambda a, b: (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
            super().__init__(*layers)
            self.width = channels[-1]
        elif backbone == "resnet34":
            net = ResNet(BasicBlock, list(RESNET34))
            names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2")
            parts = [("normalise", Normalise()), *((name, getattr(net, name)) for name in names)]
            super().__init__(OrderedDict(parts))
            self.width = 128
        else:
            lite = EfficientNetLite0()
            stages = nn.Sequential(*list(lite.stages)[:3])
            super().__init__(OrderedDict([("normalise", LiteInput()), ("stem", lite.stem), ("stages", stages)]))
            self.width = 40


class OnBackbone(nn.Module):
    """A network whose `trunk` may be the first stages of a backbone."""

    trunk: Trunk

    def trunk_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those tensors of the backbone's published file that `trunk` has, by its names."""
        mine = self.trunk.state_dict().keys()
        return {key: value for key, value in own_names(state).items() if key in mine}


@register("cnn")
class CNN(OnBackbone, Classifier):
    """Convolutional classifier: 3×3 convolutions with ReLU, each before a 2×2 max-pooling, dense layers, dropout, two logits.

    `channels` of the convolutions; with another `backbone` they are its own.
    """

    def __init__(
        self,
        resolution: int = 256,
        channels: tuple[int, ...] = (32, 64, 128),
        hidden: tuple[int, ...] = (512, 256),
        dropout: float = 0.5,
        backbone: Backbone = "plain",
    ) -> None:
        super().__init__()
        _check(resolution, channels, backbone)
        check_widths(hidden=hidden)
        check_rates(dropout=dropout)
        self.resolution = resolution
        self.imagenet = None if backbone == "plain" else backbone
        self.trunk = Trunk(backbone, channels)
        side = min(POOLED, resolution >> len(channels))
        sizes = (self.trunk.width * side**2, *hidden)
        layers = stack(sizes, lambda a, b: (nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), *layers, nn.Linear(hidden[-1], 2))

    def maps(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> `[N, C, h, w]`."""
        found: Tensor = self.trunk(as_images(images))
        return found


@register("cnn_vae")
class CNNVAE(OnBackbone, VAE):
    """VAE of the maps of a CNN: its convolutions, two strided ones with ReLU, linear to μ and log σ²; all mirrored back, tanh.

    `channels` are those of the CNN, and of its mirror where another `backbone` stands in its place; `vae_channels` those of the strided
    convolutions. Its CNN may start from that of a trained `cnn` of the same channels and backbone, or a backbone from ImageNet weights,
    so that it never sees a label.
    """

    def __init__(
        self,
        resolution: int = 256,
        latent_dim: int = 128,
        channels: tuple[int, ...] = (32, 64, 128),
        vae_channels: tuple[int, ...] = (128, 128),
        backbone: Backbone = "plain",
    ) -> None:
        _check(resolution, channels, backbone)
        check_widths(vae_channels=vae_channels)
        super().__init__(resolution, latent_dim, max(16, 1 << len((*channels, *vae_channels))))
        widths = (*channels, *vae_channels)
        side = resolution >> len(widths)
        self.imagenet = None if backbone == "plain" else backbone
        trunk = Trunk(backbone, channels)
        down = stack((trunk.width, *vae_channels), lambda a, b: (nn.Conv2d(a, b, 4, stride=2, padding=1), nn.ReLU()))
        self.E = nn.Sequential(trunk, *down, nn.Flatten(), nn.Linear(widths[-1] * side**2, 2 * latent_dim))
        start = [nn.Linear(latent_dim, widths[-1] * side**2), nn.Unflatten(1, (widths[-1], side, side))]
        up = stack((*reversed(widths), 3), lambda a, b: (nn.ReLU(), nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)))
        self.G = Decoder(resolution, latent_dim, [*start, *up])

    @property
    def trunk(self) -> Trunk:  # type: ignore[override]
        """The CNN's convolutions."""
        found = self.E[0]
        assert isinstance(found, Trunk)
        return found


def _check(resolution: int, channels: tuple[int, ...], backbone: Backbone) -> None:
    check_widths(channels=channels)
    check_resolution(resolution, max(16, 1 << len(channels)))
    if backbone != "plain" and len(channels) != EIGHTH:
        raise ValueError(
            f"{backbone} makes maps of an eighth of the side: channels must be {EIGHTH}, not {len(channels)}"
        )
