"""The CNN-VAE hybrid of Kalusivalingam et al.: a CNN that tells normal from anomalous, and a VAE of its maps.

They give the widths of the CNN (32-64-128, then 512-256), max-pooling, dropout, and of the VAE two convolutions, a dense layer, 128
latents and a mirrored decoder. Kernels, the pooling before the dense layers and the widths of the VAE are ours.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from gan_uad.networks.layers import as_images, check_resolution, check_sizes
from gan_uad.networks.vae import VAE, Decoder
from gan_uad.registry import register

POOLED = (
    8  # px of the maps that the dense layers see; with all 32 px of a 256 px image they would have 67 million weights
)


@register("cnn")
class CNN(nn.Module):
    """Convolutional classifier: 3×3 convolutions with ReLU, each before a 2×2 max-pooling, dense layers, dropout, two logits."""

    def __init__(
        self,
        resolution: int = 256,
        channels: tuple[int, ...] = (32, 64, 128),
        hidden: tuple[int, ...] = (512, 256),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        _check(resolution, channels)
        if not hidden:
            raise ValueError("hidden needs at least one layer")
        check_sizes(hidden=min(hidden))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.resolution = resolution
        self.trunk = convolutions(channels)
        side = min(POOLED, resolution >> len(channels))
        layers: list[nn.Module] = []
        for a, b in pairwise((channels[-1] * side**2, *hidden)):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), *layers, nn.Linear(hidden[-1], 2))

    def forward(self, images: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] -> logits `[N, 2]`."""
        logits: Tensor = self.head(self.trunk(as_images(images)))
        return logits


@register("cnn_vae")
class CNNVAE(VAE):
    """VAE of the maps of a CNN: its convolutions, two strided ones with ReLU, linear to μ and log σ²; all mirrored back, tanh.

    `channels` are those of the CNN, `vae_channels` those of the strided convolutions. Its CNN may start from that
    of a trained `cnn` of the same channels.
    """

    def __init__(
        self,
        resolution: int = 256,
        latent_dim: int = 128,
        channels: tuple[int, ...] = (32, 64, 128),
        vae_channels: tuple[int, ...] = (128, 128),
    ) -> None:
        _check(resolution, channels)
        if not vae_channels:
            raise ValueError("vae_channels needs at least one layer")
        check_sizes(vae_channels=min(vae_channels))
        super().__init__(resolution, latent_dim, max(16, 1 << len((*channels, *vae_channels))))
        widths = (*channels, *vae_channels)
        side = resolution >> len(widths)
        own: list[nn.Module] = []
        for a, b in pairwise((channels[-1], *vae_channels)):
            own += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.ReLU()]
        self.E = nn.Sequential(
            convolutions(channels), *own, nn.Flatten(), nn.Linear(widths[-1] * side**2, 2 * latent_dim)
        )
        back: list[nn.Module] = [nn.Linear(latent_dim, widths[-1] * side**2), nn.Unflatten(1, (widths[-1], side, side))]
        for a, b in pairwise((*reversed(widths), 3)):
            back += [nn.ReLU(), nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)]
        self.G = Decoder(resolution, latent_dim, back)

    @property
    def trunk(self) -> nn.Module:
        """The CNN's convolutions."""
        return self.E[0]


def convolutions(channels: tuple[int, ...]) -> nn.Sequential:
    """Images -> maps, of half the side for each of `channels`."""
    layers: list[nn.Module] = []
    for a, b in pairwise((3, *channels)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def _check(resolution: int, channels: tuple[int, ...]) -> None:
    if not channels:
        raise ValueError("channels needs at least one layer")
    check_sizes(channels=min(channels))
    check_resolution(resolution, max(16, 1 << len(channels)))
