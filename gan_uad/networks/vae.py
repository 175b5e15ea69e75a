"""Variational autoencoders (Kingma & Welling 2014) of images: q(z|x) = N(μ, σ²) from an encoder `E`, images from a decoder `G`.

The families of Sikdar et al. (fully connected, convolutional, with self-attention, with a ResNet34 as encoder) and a plain one as in
work on skin lesions (Mukesh et al.). The papers give few sizes; those here are ours, and options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from gan_uad.networks.classifier import FrozenTrunk, Normalise
from gan_uad.networks.layers import as_images, check_resolution, check_sizes, check_widths, stack
from gan_uad.registry import register

HEAD_DIM = 8  # least channels of queries and keys, and what they are a multiple of: attention kernels of CUDA want that
RESNET34 = (3, 4, 6, 3)  # blocks of its stages


class Decoder(nn.Module):
    """Layers that end in images, and tanh. Says `z_dim` and `resolution` of itself, as a generator does."""

    def __init__(self, resolution: int, latent_dim: int, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.resolution, self.z_dim = resolution, latent_dim
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """z `[N, z_dim]` -> images `[N, 3, R, R]` in [-1, 1]."""
        return torch.tanh(self.layers(z))


class VAE(nn.Module):
    """An encoder `E`, images -> μ and log σ² side by side `[N, 2·latent_dim]`, and a decoder `G`, z `[N, latent_dim]` -> images."""

    E: nn.Sequential
    G: Decoder

    def __init__(self, resolution: int, latent_dim: int, least: int = 16) -> None:
        """`least`: px, below which the layers have nothing to work on."""
        super().__init__()
        check_resolution(resolution, least)
        check_sizes(latent_dim=latent_dim)
        if latent_dim > 3 * resolution**2:
            raise ValueError(
                f"latent_dim {latent_dim} is more than the {3 * resolution**2} values of a {resolution} px image: nothing would be learnt"
            )
        self.resolution, self.latent_dim = resolution, latent_dim

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[N, 3, R, R]` in [-1, 1] -> μ and log σ² of q(z|x), each float32 `[N, latent_dim]`."""
        mu, logvar = self.E(as_images(images)).float().chunk(2, 1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """z `[N, latent_dim]` -> images `[N, 3, R, R]` in [-1, 1]."""
        images: Tensor = self.G(z)
        return images

    def forward(self, images: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Images -> reconstruction, μ, log σ². z = μ + σ·eps with `eps` `[N, latent_dim]` ~ N(0, 1); None: z = μ, without chance."""
        mu, logvar = self.encode(images)
        return self.decode(mu if eps is None else mu + (0.5 * logvar).exp() * eps), mu, logvar


class SelfAttention(nn.Module):
    """x + γ · W·softmax(qᵀk/√d)·v over all places of a map (Zhang et al. 2019, SAGAN, section 3), d an eighth of the channels.

    The sources of the VAE are silent on what is done with the result: as in SAGAN it is added, by a gain γ that is learnt from 0. The
    scale 1/√d is that of Vaswani et al. 2017. By `scaled_dot_product_attention`, whose memory grows with the places, not their square.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dim = max(HEAD_DIM, channels // 8 // HEAD_DIM * HEAD_DIM)
        self.qkv = nn.Conv2d(channels, 3 * self.dim, 1)
        self.out = nn.Conv2d(self.dim, channels, 1)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> the same shape."""
        # [N, 1 head, H·W, d] of each; those kernels take no other order in memory.
        q, k, v = (part.flatten(2).mT[:, None].contiguous() for part in self.qkv(x).chunk(3, 1))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0].mT.unflatten(2, x.shape[2:])
        return x + self.gain * self.out(attended)


@register("fc_vae")
class FCVAE(VAE):
    """Fully connected VAE: hidden layers with ReLU to μ and log σ², the same back, tanh."""

    def __init__(self, resolution: int = 64, latent_dim: int = 128, hidden: tuple[int, ...] = (512, 256)) -> None:
        super().__init__(resolution, latent_dim)
        check_widths(hidden=hidden)
        values, images = 3 * resolution**2, nn.Unflatten(1, (3, resolution, resolution))
        self.E = nn.Sequential(nn.Flatten(), *_dense(values, *hidden), nn.Linear(hidden[-1], 2 * latent_dim))
        back = _dense(latent_dim, *reversed(hidden))
        self.G = Decoder(resolution, latent_dim, [*back, nn.Linear(hidden[0], values), images])


@register("conv_vae")
class ConvVAE(VAE):
    """ConvVAE: strided convolutions with BN and ReLU, a linear layer to μ and log σ², as many transposed convolutions back, tanh.

    `channels` of each convolution, from the image on; each divides the side by `stride` (2 or 4; kernels are twice as wide).
    """

    def __init__(
        self,
        resolution: int = 64,
        latent_dim: int = 128,
        channels: tuple[int, ...] = (32, 64, 128, 256),
        stride: int = 2,
    ) -> None:
        check_widths(channels=channels)
        if stride not in {2, 4}:
            raise ValueError(f"stride must be 2 or 4, got {stride}")
        super().__init__(resolution, latent_dim, max(16, stride ** len(channels)))
        side = resolution // stride ** len(channels)
        window = (2 * stride, stride, stride // 2)
        layers = stack((3, *channels), lambda a, b: (nn.Conv2d(a, b, *window, bias=False), *self.after(b)))
        self.E = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, 2 * latent_dim))
        back = _transposed(channels[::-1], stride, self.after)
        self.G = Decoder(resolution, latent_dim, [*_from_latent(latent_dim, channels[-1], side), *back])

    def after(self, channels: int) -> list[nn.Module]:
        """What follows every convolution but the one that makes the image."""
        return _normalised(channels)


@register("attn_conv_vae")
class AttnConvVAE(ConvVAE):
    """ConvVAE with self-attention after each convolution of encoder and decoder (but the one that makes the image)."""

    def after(self, channels: int) -> list[nn.Module]:
        """See `ConvVAE`."""
        return [*super().after(channels), SelfAttention(channels)]


@register("unet_vae")
class UNetVAE(FrozenTrunk, VAE):
    """VAE with the ResNet34 of a U-Net's encoder: its last maps to μ and log σ², transposed convolutions with BN and ReLU back, tanh.

    There are no skip connections: they would carry the image past the latent. `frozen`: the ResNet keeps its weights and the
    statistics of its batch norm. Images are normalised as ImageNet's, from 32 px on. `blocks` of its four stages: others than
    ResNet34's have no pretrained weights.
    """

    imagenet: str | None  # name of the weights that `trunk` may start from

    def __init__(
        self,
        resolution: int = 64,
        latent_dim: int = 128,
        channels: tuple[int, ...] = (256, 128, 64, 32),
        frozen: bool = False,
        blocks: tuple[int, int, int, int] = RESNET34,
    ) -> None:
        super().__init__(resolution, latent_dim, 32)
        check_widths(channels=channels, blocks=blocks)
        if 2 ** len(channels) > resolution:
            raise ValueError(f"{len(channels)} transposed convolutions make more than {resolution} px")
        self.frozen, self.imagenet = frozen, "resnet34" if tuple(blocks) == RESNET34 else None
        # Without pretrained weights and with batch norm that never sees data, each block would double the variance of its input until
        # log σ² overflows; blocks that begin as the identity (Goyal et al. 2017) keep it in bounds.
        trunk = ResNet(BasicBlock, list(blocks), zero_init_residual=True)
        trunk.avgpool = trunk.fc = nn.Identity()  # its forward then ends with flattened maps
        self.E = nn.Sequential(Normalise(), trunk, nn.Linear(512 * (resolution // 32) ** 2, 2 * latent_dim))
        start = _from_latent(latent_dim, channels[0], resolution >> len(channels))
        self.G = Decoder(resolution, latent_dim, [*start, *_transposed(channels, 2, _normalised)])
        trunk.requires_grad_(not frozen)

    @property
    def trunk(self) -> Any:  # type: ignore[override]
        """The ResNet."""
        return self.E[1]

    @staticmethod
    def trunk_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of torchvision's file under the names that `trunk` has."""
        return {key: value for key, value in state.items() if not key.startswith("fc.")}


@register("skin_vae")
class SkinVAE(VAE):
    """Plain convolutional VAE: strided 3×3 convolutions with ReLU, no batch norm, a dense layer before μ and log σ², mirrored decoder.

    The last activation is the logistic function, as is usual for values in [0, 1], brought to [-1, 1]: 2·s(y) − 1 = tanh(y / 2).
    """

    def __init__(
        self,
        resolution: int = 128,
        latent_dim: int = 128,
        channels: tuple[int, ...] = (32, 64, 128, 256),
        hidden: int = 256,
    ) -> None:
        check_widths(channels=channels)
        check_sizes(hidden=hidden)
        super().__init__(resolution, latent_dim, max(16, 2 ** len(channels)))
        side = resolution >> len(channels)
        layers = stack((3, *channels), lambda a, b: (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()))
        size = channels[-1] * side**2
        self.E = nn.Sequential(*layers, nn.Flatten(), *_dense(size, hidden), nn.Linear(hidden, 2 * latent_dim))
        start = [*_dense(latent_dim, hidden, size), nn.Unflatten(1, (channels[-1], side, side))]
        up = stack((*reversed(channels), 3), lambda a, b: (nn.ConvTranspose2d(a, b, 3, 2, 1, 1), nn.ReLU()))
        self.G = Decoder(resolution, latent_dim, [*start, *up[:-1], Halve()])


class Halve(nn.Module):
    """x / 2."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x / 2


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) of each image, `[N]`, in nats: ½·Σ (μ² + σ² − 1 − log σ²) (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)


def squared_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Sum of squared differences of each image, `[N]`.

    It is −log p(x|z) of a Gaussian of variance ½ around the reconstruction, but for a constant; so with the KL divergence it makes the
    negative ELBO.
    """
    return (images - reconstructions).square().flatten(1).sum(1)


def _dense(*widths: int) -> list[nn.Module]:
    return stack(widths, lambda a, b: (nn.Linear(a, b), nn.ReLU()))


def _normalised(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _transposed(channels: Sequence[int], stride: int, after: Callable[[int], list[nn.Module]]) -> list[nn.Module]:
    window = (2 * stride, stride, stride // 2)
    layers = stack(channels, lambda a, b: (nn.ConvTranspose2d(a, b, *window, bias=False), *after(b)))
    return [*layers, nn.ConvTranspose2d(channels[-1], 3, *window)]


def _from_latent(latent_dim: int, channels: int, side: int) -> list[nn.Module]:
    """z to maps; normalised, since what follows would else hang on the scale of a single linear layer."""
    maps = nn.Unflatten(1, (channels, side, side))
    return [nn.Linear(latent_dim, channels * side**2), maps, *_normalised(channels)]
