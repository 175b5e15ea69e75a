"""The residual WGAN-GP of f-AnoGAN, and its encoder, at any power-of-two resolution from 32 px.

Sources: Gulrajani et al. 2017 (*Improved Training of Wasserstein GANs*, the 64 px residual nets), Schlegl et al. 2019 (*f-AnoGAN*).
With `channel_base` 4096 and `channel_max` 512 at 64 px the nets are the published ones (8,540,483 and 7,491,841 parameters).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.networks.layers import (
    Conv2d,
    DownConv3x3,
    LayerNorm2d,
    UpConv3x3,
    as_images,
    check_sizes,
    he_init,
    widths_of,
)
from gan_uad.registry import register

MIN_RESOLUTION = 32  # px


class UpBlock(nn.Module):
    """Pre-activation residual block that doubles the resolution: BN, ReLU, up-conv (no bias), BN, ReLU, conv; 1×1 shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = UpConv3x3(in_channels, out_channels, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, 2H, 2W]`."""
        # A 1×1 convolution commutes with nearest-neighbour up-sampling, and before it costs a quarter.
        skip = F.interpolate(self.shortcut(x), scale_factor=2, mode="nearest")
        x = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(x))) + skip


class DownBlock(nn.Module):
    """Pre-activation residual block that halves the resolution: norm, ReLU, conv (no bias), norm, ReLU, conv + pool; 1×1 shortcut."""

    def __init__(self, in_channels: int, out_channels: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = Conv2d(in_channels, in_channels, 3, padding=1, bias=False)
        self.norm2 = norm(in_channels)
        self.conv2 = DownConv3x3(in_channels, out_channels)
        self.shortcut = Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, H/2, W/2]`."""
        # Mean pooling commutes with a 1×1 convolution, and before it makes that a quarter of the work.
        skip = self.shortcut(F.avg_pool2d(x, 2))
        x = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(x))) + skip


class Generator(nn.Module):
    """z `[N, z_dim]` ~ N(0, 1) -> images `[N, 3, R, R]` in [-1, 1]."""

    def __init__(self, resolution: int, z_dim: int, channel_base: int, channel_max: int) -> None:
        super().__init__()
        check_sizes(z_dim=z_dim)
        self.resolution, self.z_dim = resolution, z_dim
        widths = widths_of(resolution, channel_base, channel_max, MIN_RESOLUTION)[1:]  # those that the blocks make
        self.width = widths[0]
        self.linear = nn.Linear(z_dim, 4 * 4 * self.width)
        self.blocks = nn.Sequential(*(UpBlock(a, b) for a, b in pairwise([self.width, *widths])))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.output = nn.Conv2d(widths[-1], 3, 3, padding=1)
        _initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        """Images of `z`."""
        x = as_images(self.linear(z).view(-1, self.width, 4, 4))
        return torch.tanh(self.output(F.relu(self.norm(self.blocks(x)))))


class Trunk(nn.Module):
    """Images `[N, 3, R, R]` -> the flattened last 4×4 feature maps `[N, F]`: the shape that critic and encoder share."""

    def __init__(self, resolution: int, channel_base: int, channel_max: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.resolution = resolution
        widths = widths_of(resolution, channel_base, channel_max, MIN_RESOLUTION)[:0:-1]
        widths = [*widths, widths[-1]]
        self.input = Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(DownBlock(a, b, norm) for a, b in pairwise(widths)))
        self.linear = nn.Linear(4 * 4 * widths[-1], 1)

    def features(self, x: Tensor) -> Tensor:
        """Activations before the last linear layer, `[N, F]`: the f of izi_f and of the anomaly score."""
        return self.blocks(self.input(as_images(x))).flatten(1)


class Critic(Trunk):
    """Images -> unbounded critic values `[N]`; layer normalisation inside the blocks only, so that images do not mix."""

    def __init__(self, resolution: int, channel_base: int, channel_max: int) -> None:
        super().__init__(resolution, channel_base, channel_max, LayerNorm2d)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Critic values of `x`, higher = more like the real images."""
        return self.linear(self.features(x)).squeeze(1)


@register("wgan_gp")
class WGANGP(nn.Module):
    """f-AnoGAN's residual WGAN-GP: generator `G` (batch norm) and critic `D` (layer norm)."""

    def __init__(
        self, resolution: int = 64, z_dim: int = 128, channel_base: int = 4096, channel_max: int = 512
    ) -> None:
        super().__init__()
        self.G = Generator(resolution, z_dim, channel_base, channel_max)
        self.D = Critic(resolution, channel_base, channel_max)


@register("residual_encoder")
class ResidualEncoder(Trunk):
    """f-AnoGAN's encoder: the critic's shape with batch norm, images -> z `[N, z_dim]`.

    `output` is "linear" or "tanh": z is N(0, 1), and a tanh cannot reach beyond ±1, so linear is the default.
    """

    def __init__(
        self,
        resolution: int = 64,
        z_dim: int = 128,
        channel_base: int = 4096,
        channel_max: int = 512,
        output: str = "linear",
    ) -> None:
        super().__init__(resolution, channel_base, channel_max, nn.BatchNorm2d)
        check_sizes(z_dim=z_dim)
        if output not in {"linear", "tanh"}:
            raise ValueError(f"output must be 'linear' or 'tanh', got {output!r}")
        self.z_dim, self.output = z_dim, output
        self.linear = nn.Linear(self.linear.in_features, z_dim)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Latents of the images `x`."""
        z = self.linear(self.features(x))
        return torch.tanh(z) if self.output == "tanh" else z


def _initialise(net: nn.Module) -> None:
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            he_init(module, relu=name.endswith(("conv1", "conv2")))
