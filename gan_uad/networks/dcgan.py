"""DCGAN (Radford et al. 2016) at any power-of-two resolution from 16 px.

With `channel_base` 4096 at 64 px the widths are the published 1024-512-256-128; z is N(0, 1) as in common practice (the paper: uniform).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.networks.layers import as_images, check_sizes, stack, widths_of
from gan_uad.registry import register


class Generator(nn.Module):
    """z `[N, z_dim]` -> images `[N, 3, R, R]` in [-1, 1]: transposed 4×4 convolutions, BN, ReLU, tanh."""

    def __init__(self, resolution: int, z_dim: int, channel_base: int, channel_max: int) -> None:
        super().__init__()
        check_sizes(z_dim=z_dim)
        self.resolution, self.z_dim = resolution, z_dim
        widths = widths_of(resolution, channel_base, channel_max)[:-1]
        up = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
        layers = stack(widths, lambda a, b: (nn.BatchNorm2d(a), nn.ReLU(), up(a, b, bias=False)))
        last = (nn.BatchNorm2d(widths[-1]), nn.ReLU(), up(widths[-1], 3))
        self.layers = nn.Sequential(nn.ConvTranspose2d(z_dim, widths[0], 4, bias=False), *layers, *last)
        self.apply(_initialise)

    def forward(self, z: Tensor) -> Tensor:
        """Images of `z`."""
        return torch.tanh(self.layers(as_images(z[:, :, None, None])))


class Discriminator(nn.Module):
    """Images -> logits `[N]` of "real": strided 4×4 convolutions, BN (not in the first), LeakyReLU 0.2."""

    def __init__(self, resolution: int, channel_base: int, channel_max: int) -> None:
        super().__init__()
        self.resolution = resolution
        widths = widths_of(resolution, channel_base, channel_max)[-2::-1]
        down = partial(nn.Conv2d, kernel_size=4, stride=2, padding=1)
        layers = stack(widths, lambda a, b: (down(a, b, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)))
        self.layers = nn.Sequential(down(3, widths[0]), nn.LeakyReLU(0.2), *layers)
        self.last = nn.Conv2d(widths[-1], 1, 4)
        self.apply(_initialise)

    def features(self, x: Tensor) -> Tensor:
        """Flattened activations before the last convolution, `[N, F]`."""
        return self.layers(as_images(x)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `x`, higher = more like the real images."""
        return F.linear(self.features(x), self.last.weight.flatten(1), self.last.bias).squeeze(1)


@register("dcgan")
class DCGAN(nn.Module):
    """DCGAN: generator `G` and discriminator `D`, both with batch norm."""

    def __init__(
        self, resolution: int = 64, z_dim: int = 100, channel_base: int = 4096, channel_max: int = 1024
    ) -> None:
        super().__init__()
        self.G = Generator(resolution, z_dim, channel_base, channel_max)
        self.D = Discriminator(resolution, channel_base, channel_max)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)
