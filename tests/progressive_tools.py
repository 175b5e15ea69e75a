"""PGAN and StyleGAN in small, for the tests of test_progressive_*.py, and their definitions, computed slowly."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad import registry
from gan_uad.networks.pgan import PGAN
from gan_uad.networks.stylegan import StyleGAN

CPU = torch.device("cpu")
SMALL = {"resolution": 32, "z_dim": 6, "channel_base": 128, "channel_max": 12}
TINY = {**SMALL, "resolution": 16}
FAMILIES = {"pgan": PGAN, "stylegan": StyleGAN}


def randomised(net: nn.Module, seed: int = 0) -> Any:
    """No parameter is left at zero or one, or a term could be missing unseen."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * (1 if p.dim() > 1 else 0.3))
    return net


def model(name: str, seed: int = 0, **options: Any) -> Any:
    sizes = {**SMALL, **options}
    if name == "stylegan":
        sizes = {"w_dim": 5, "mapping_layers": 2, **sizes}
    return randomised(FAMILIES[name](**sizes), seed)


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def task(name: str, sizes: dict[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {**TINY, **(sizes or {})} | ({"w_dim": 5, "mapping_layers": 2} if name == "stylegan" else {})
    return registry.build("task", name, options, model=registry.build("network", name, sizes), device=CPU, seed=4)


def real(count: int = 8, side: int = 16, seed: int = 7) -> Tensor:
    return normal(count, 3, side, side, seed=seed, dtype=torch.float32).clamp(-1, 1)


# The definitions.


def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halved(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def conv(x: Tensor, weight: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    fan_in = weight.shape[1] * weight.shape[2] * weight.shape[3]
    return F.conv2d(x, weight * (gain / math.sqrt(fan_in)), padding=weight.shape[2] // 2)


def bias(x: Tensor, b: Tensor) -> Tensor:
    return x + b.view(1, -1, 1, 1)


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def unit(x: Tensor) -> Tensor:
    return x / ((x**2).mean(1, keepdim=True) + 1e-8).sqrt()


def blurred(x: Tensor) -> Tensor:
    line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype)
    kernel = (line[:, None] * line[None, :] / 16).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


def to_rgb(p: dict[str, Tensor], i: int, x: Tensor) -> Tensor:
    return bias(conv(x, p[f"to_rgb.{i}.weight"], gain=1), p[f"to_rgb.{i}.bias"])


def painted(p: dict[str, Tensor], maps: list[Tensor], alpha: float) -> Tensor:
    """Images of the last of the levels' maps, faded with those of the level before."""
    image = to_rgb(p, len(maps) - 1, maps[-1])
    if len(maps) == 1:
        return image
    return (1 - alpha) * twice(to_rgb(p, len(maps) - 2, maps[-2])) + alpha * image


def pgan_by_definition(G: nn.Module, z: Tensor, level: int, alpha: float) -> Tensor:
    p = dict(G.named_parameters())
    x = unit(z) @ (p["dense"] * (math.sqrt(2) / 4 / math.sqrt(z.shape[1]))).T
    x = unit(lrelu(bias(x.reshape(len(z), -1, 4, 4), p["dense_bias"])))
    maps = [unit(lrelu(bias(conv(x, p["conv.weight"]), p["conv.bias"])))]
    for i in range(level - 2):
        x = twice(maps[-1])
        for layer in ("conv0", "conv1"):
            x = unit(lrelu(bias(conv(x, p[f"blocks.{i}.{layer}.weight"]), p[f"blocks.{i}.{layer}.bias"])))
        maps.append(x)
    return painted(p, maps, alpha)


def adain_by_definition(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    out = torch.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            m = x[n, c]
            out[n, c] = (m - m.mean()) / (m.var(correction=0) + 1e-8).sqrt() * (scale[n, c] + 1) + offset[n, c]
    return out


def stylegan_by_definition(S: nn.Module, ws: Tensor, noise: list[Tensor], level: int, alpha: float) -> Tensor:
    p = dict(S.named_parameters())
    x, maps = p["const"].expand(len(ws), -1, -1, -1), []
    for j in range(2 * level - 2):
        if j > 0:
            x = conv(twice(x) if j > 1 and j % 2 == 0 else x, p[f"layers.{j}.weight"])
        if j > 1 and j % 2 == 0:
            x = blurred(x)
        x = x + noise[j] * p[f"layers.{j}.noise_strength"].view(1, -1, 1, 1)
        x = lrelu(bias(x, p[f"layers.{j}.bias"]))
        affine = p[f"layers.{j}.affine.weight"]
        style = ws[:, j] @ (affine / math.sqrt(affine.shape[1])).T + p[f"layers.{j}.affine.bias"]
        x = adain_by_definition(x, style[:, : x.shape[1]], style[:, x.shape[1] :])
        if j % 2:
            maps.append(x)
    return painted(p, maps, alpha)


def scores_by_definition(D: nn.Module, x: Tensor, level: int, alpha: float, with_blur: bool) -> tuple[Tensor, Tensor]:
    """Features and scores of images of the level's size."""
    p = dict(D.named_parameters())

    def read(x: Tensor, i: int) -> Tensor:
        return lrelu(bias(conv(x, p[f"from_rgb.{i}.weight"]), p[f"from_rgb.{i}.bias"]))

    y = read(x, level - 2)
    for i in range(level - 3, -1, -1):
        y = lrelu(bias(conv(y, p[f"blocks.{i}.conv0.weight"]), p[f"blocks.{i}.conv0.bias"]))
        y = halved(conv(blurred(y) if with_blur else y, p[f"blocks.{i}.conv1.weight"]))
        y = lrelu(bias(y, p[f"blocks.{i}.conv1.bias"]))
        if i == level - 3:
            y = (1 - alpha) * read(halved(x), i) + alpha * y
    n, group = len(y), min(4, len(y))
    spread = torch.empty(n, 1, 4, 4, dtype=y.dtype)
    for i in range(n):
        members = y[i % (n // group) :: n // group]
        assert len(members) == group
        spread[i] = (members.var(0, correction=0) + 1e-8).sqrt().mean()
    h = lrelu(bias(conv(torch.cat([y, spread], 1), p["conv.weight"]), p["conv.bias"])).flatten(1)
    h = lrelu(h @ (p["linear.weight"] * math.sqrt(2 / h.shape[1])).T + p["linear.bias"])
    score = h @ (p["output.weight"] / math.sqrt(h.shape[1])).T + p["output.bias"]
    return y.flatten(1), score[:, 0]
