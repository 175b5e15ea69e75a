"""Layers that several families share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.networks.fused import modulate, resample, scale_act
from gan_uad.networks.second_order import conv2d, conv_transpose2d, layer_norm, scaled_linear

SQRT2 = 2**0.5
NOISE_MODES = ("const", "none")  # of the style-based families: each layer's own fixed map, or none
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of its RGB values in [0, 1]


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps at a resolution: `channel_base / resolution`, at most `channel_max`, at least 1."""
    return max(1, min(channel_base // resolution, channel_max))


def check_resolution(resolution: int, least: int = 16) -> None:
    """Raise `ValueError` unless `resolution` is a power of two, at least `least`."""
    if resolution < least or resolution & (resolution - 1):
        raise ValueError(f"resolution must be a power of two of at least {least} px, got {resolution}")


def check_sizes(**sizes: int) -> None:
    """Raise `ValueError` unless every given size is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_widths(**widths: Sequence[int]) -> None:
    """Raise `ValueError` unless there is at least one layer of each kind, and each has a width of at least 1."""
    for name, values in widths.items():
        if not values:
            raise ValueError(f"{name} needs at least one layer")
        check_sizes(**{name: min(values)})


def check_rates(**rates: float) -> None:
    """Raise `ValueError` unless every given rate is in [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{name} must be in [0, 1), got {rate}")


def widths_of(resolution: int, channel_base: int, channel_max: int, least: int = 16) -> list[int]:
    """Feature maps at 4, 8, ..., `resolution` px: see `channels_at`. Raises `ValueError` for sizes that cannot be."""
    check_resolution(resolution, least)
    check_sizes(channel_base=channel_base, channel_max=channel_max)
    return [channels_at(4 << i, channel_base, channel_max) for i in range(resolution.bit_length() - 2)]


def stack(widths: Iterable[int], layers: Callable[[int, int], Sequence[nn.Module]]) -> list[nn.Module]:
    """`layers(a, b)` for each two successive widths, one after the other."""
    return [layer for a, b in pairwise(widths) for layer in layers(a, b)]


def spread(weight: Tensor, divisor: int = 1) -> Tensor:
    """Convolve 3×3 kernels `[O, I, 3, 3]` with a 2×2 box of ones, divided by `divisor`: kernels `[O, I, 4, 4]`."""
    return F.avg_pool2d(weight, 2, stride=1, padding=1, divisor_override=divisor)


class _Conv3x3(nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)


class UpConv3x3(_Conv3x3):
    """Nearest-neighbour 2× up-sampling, then a 3×3 convolution.

    Both are linear, so they are computed as one stride-2 transposed convolution with a 4×4 kernel: the same function to
    rounding, at 4/9 of the multiplications.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, 2H, 2W]`."""
        kernel = spread(self.weight).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class DownConv3x3(_Conv3x3):
    """A 3×3 convolution, then 2×2 mean pooling.

    Computed as one stride-2 convolution with a 4×4 kernel: the same function to rounding, at 4/9 of the multiplications.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, H/2, W/2]`; H and W even."""
        return conv2d(x, spread(self.weight, 4), self.bias, stride=2, padding=1)


class LayerNorm2d(nn.GroupNorm):
    """Layer normalisation over channels and pixels of each image, with one scale and offset per channel (`GroupNorm(1, C)`)."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> the same shape."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` (square, of one stride, no groups) for nets that a gradient penalty differentiates twice."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, H', W']`."""
        return conv2d(x, self.weight, self.bias, self.stride[0], int(self.padding[0]))


def he_init(module: nn.Conv2d | nn.Linear, relu: bool) -> None:
    """Uniform fan-in initialisation of Improved WGAN's residual nets: He's gain before a ReLU, LeCun's elsewhere; zero biases.

    The fan is that of the layer as written (3×3), not of its 4×4 form.
    """
    bound = (3 * (2 if relu else 1) / module.weight[0].numel()) ** 0.5
    nn.init.uniform_(module.weight, -bound, bound)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def as_images(x: Tensor) -> Tensor:
    """Put `[N, C, H, W]` into channels-last memory, in which CPU and GPU convolutions are fastest."""
    return x.contiguous(memory_format=torch.channels_last)


# --- the style-based families: PGAN, StyleGAN, StyleGAN2 ---


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Divide each pixel's (or row's) feature vector, dimension 1, by its root mean square (Karras et al. 2018, section 4.2)."""
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()


def minibatch_stddev(x: Tensor, group: int = 4, channels: int = 1) -> Tensor:
    """Append the features' standard deviation over groups of images, averaged, as `channels` maps (Karras et al. 2018, section 3).

    `[N, C, H, W]` -> `[N, C + channels, H, W]`. A group is the images i, i + N/group, i + 2N/group, ...; a batch smaller than
    `group` is one group. Raises `ValueError` when N is not a multiple of the group.
    """
    n, c, h, w = x.shape
    group = max(1, min(group, n))
    if n % group:
        raise ValueError(f"a batch of {n} images cannot be split into minibatch-stddev groups of {group}")
    wide = torch.promote_types(x.dtype, torch.float32)
    grouped = x.to(wide).reshape(group, n // group, channels, c // channels, h, w)
    spread = ((grouped - grouped.mean(0)).square().mean(0) + 1e-8).sqrt().mean((2, 3, 4))  # [N / group, channels]
    maps = spread.repeat(group, 1)[:, :, None, None].expand(n, channels, h, w)
    return torch.cat([x, maps.to(x.dtype)], 1)


class EqualLinear(nn.Module):
    """Linear layer of equalised learning rate (Karras et al. 2018, section 4.1): weights ~ N(0, 1) are scaled when used.

    Output: `x @ (gain / √in · lr_multiplier · weight)ᵀ + lr_multiplier · bias`; weights start ~ N(0, 1 / lr_multiplier²).
    With `activate`, a leaky ReLU (0.2) times √2 follows.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
        gain: float = 1.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.scale, self.lr_multiplier, self.activate = gain * lr_multiplier / in_features**0.5, lr_multiplier, activate

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I]` -> `[N, O]`."""
        gain = SQRT2 if self.activate else 1.0  # a leaky ReLU lets a positive gain through
        y = scaled_linear(x, self.weight, self.bias, gain * self.scale, gain * self.lr_multiplier)
        return F.leaky_relu(y, 0.2) if self.activate else y


class EqualConv2d(nn.Module):
    """Convolution of equalised learning rate, padded to keep the size, then optionally a leaky ReLU (0.2) times `act_gain`.

    The weights' scale `gain / √fan_in` and `act_gain` are multiplied into the weights: there are fewer of these than of activations, and
    gradients keep a size that float16 holds. Bias and activation are one step in memory. With `down`, the image is low-pass filtered by
    `taps` and halved: after a 3×3 kernel's blur by its stride, before a 1×1 kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        bias: bool = True,
        gain: float = 1.0,
        act_gain: float | None = None,
        down: bool = False,
        taps: tuple[float, ...] = (1, 3, 3, 1),
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.activate, self.act_gain = act_gain is not None, 1.0 if act_gain is None else act_gain
        self.scale = gain * self.act_gain / self.weight[0].numel() ** 0.5
        self.down, self.taps = down, taps

    def forward(self, x: Tensor) -> Tensor:
        """`[N, I, H, W]` -> `[N, O, H, W]`, or halved; computed in the precision of `x`."""
        kernel = self.weight.shape[-1]
        stride, padding = 1, kernel // 2
        if self.down:
            outside = len(self.taps) - 2 + 2 * padding  # rows of zeros that keep everything centred
            pad = ((outside + 1) // 2, outside // 2)
            if kernel == 1:
                x = resample(x, self.taps, 1, 2, pad)
            else:
                x, stride, padding = resample(x, self.taps, 1, 1, pad), 2, 0
        y = conv2d(x, self.kernels(x.dtype), None, stride, padding)
        return scale_act(y, None, self.bias, None, self.act_gain, self.activate)

    def kernels(self, dtype: torch.dtype) -> Tensor:
        """The weights times their scale and the activation's gain."""
        return (self.weight * self.scale).to(dtype)


class ModulatedConv2d(nn.Module):
    """StyleGAN2's convolution whose input channels are scaled by a style (Karras et al. 2020, section 2.2).

    The weights are shared by the batch: the *activations* are scaled by the style, and demodulation divides each output channel
    by the norm of its modulated weights, `rsqrt(s² · Σw²)`. With `up`, the result is doubled and low-pass filtered by [1, 3, 3, 1].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel: int = 3,
        up: bool = False,
        demodulate: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.up, self.demodulate = up, demodulate

    def forward(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """x `[N, I, H, W]`, w `[N, w_dim]` -> the convolution of the scaled input, and the factors `[N, O]` that are still to be applied.

        `scale_act` applies them, in the same pass as the activation. There are none without demodulation: the weights have their scale.
        """
        weight: Tensor = self.weight
        factors: Tensor | None = None
        style = self.affine(w)
        scale = weight[0].numel() ** -0.5
        if not self.demodulate:
            weight = weight * scale
        elif x.dtype == torch.float16:
            # Demodulation cancels any common factor, so scaling keeps float16 from overflowing.
            weight = weight * (scale / weight.abs().amax((1, 2, 3), keepdim=True))
            style = style / style.abs().amax(1, keepdim=True)
        if self.demodulate:
            factors = (style.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()
        x = modulate(x, style)
        weight = weight.to(x.dtype)
        if self.up:
            y = conv_transpose2d(x, weight.transpose(0, 1), stride=2, padding=0)
            return resample(y, (1, 3, 3, 1), 1, 1, (1, 1), gain=4.0), factors
        return conv2d(x, weight, None, 1, weight.shape[-1] // 2), factors


class MappingNetwork(nn.Module):
    """z `[N, z_dim]` -> w `[N, w_dim]`: z on the sphere, then fully connected layers (Karras et al. 2019, section 2).

    Keeps `w_avg`, the running mean of w, towards which `truncate` pulls.
    """

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, layers: int, lr_multiplier: float = 0.01) -> None:
        super().__init__()
        check_sizes(z_dim=z_dim, w_dim=w_dim, mapping_layers=layers)
        self.z_dim, self.w_dim = z_dim, w_dim
        sizes = pairwise([z_dim, *[w_dim] * layers])
        self.layers = nn.Sequential(*(EqualLinear(a, b, lr_multiplier=lr_multiplier, activate=True) for a, b in sizes))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor) -> Tensor:
        """w of `z`, in the precision of `z`, under autocast too: everything else rests on it."""
        with mixed_precision(z):
            return self.layers(pixel_norm(z))

    @torch.no_grad()
    def track(self, w: Tensor, beta: float = 0.995) -> None:
        """Move `w_avg` towards the mean of fresh w `[N, w_dim]`."""
        self.w_avg.copy_(w.mean(0).lerp(self.w_avg, beta))

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        """`w_avg + psi · (w − w_avg)`: 1 changes nothing, 0 is the average image; variety against fidelity."""
        return w if psi == 1 else self.w_avg.lerp(w, psi)


class StyleGenerator(nn.Module):
    """z `[N, z_dim]` ~ N(0, 1) -> w `[N, w_dim]` by `mapping` -> images `[N, 3, R, R]` by `synthesis`, real ones being in [-1, 1].

    `synthesis` takes ws `[N, num_ws, w_dim]` and noise: one of `NOISE_MODES`, or one map `[N or 1, 1, H, W]` for each layer.
    """

    synthesis: Any

    def __init__(self, mapping: MappingNetwork, synthesis: Any) -> None:
        super().__init__()
        self.resolution, self.z_dim, self.w_dim = synthesis.resolution, mapping.z_dim, mapping.w_dim
        self.mapping, self.synthesis = mapping, synthesis

    def forward(self, z: Tensor, psi: float = 1.0, noise: str | Sequence[Tensor] = "const") -> Tensor:
        """Images of `z`, with w truncated by `psi`."""
        images: Tensor = self.synthesis(self.spread(self.mapping.truncate(self.mapping(z), psi)), noise)
        return images

    def spread(self, w: Tensor) -> Tensor:
        """w `[N, w_dim]` -> the same for every layer, `[N, num_ws, w_dim]`."""
        return w.unsqueeze(1).expand(-1, self.synthesis.num_ws, -1)


def noise_of_layers(noise: str | Sequence[Tensor], layers: int) -> Sequence[Tensor | str]:
    """For each of so many layers a noise map, or the mode that holds for all; raises `ValueError` for an unknown mode."""
    if not isinstance(noise, str):
        return noise
    if noise not in NOISE_MODES:
        raise ValueError(f"noise must be one of {NOISE_MODES} or a map for each layer, got {noise!r}")
    return [noise] * layers


@contextmanager
def mixed_precision(x: Tensor) -> Iterator[torch.dtype]:
    """Yield the dtype that autocast asks for (that of `x` where it is off), and switch autocast off meanwhile.

    For nets that decide by themselves which of their layers are safe in low precision.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        yield dtype
