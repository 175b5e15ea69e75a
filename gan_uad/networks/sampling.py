"""Images of a trained generator, one a seed or latent, which do not depend on each other.

`G` is the generator of any family. A *style-based* one (StyleGAN, StyleGAN2) has a mapping network z -> w, truncation and noise maps;
of the others only `G(z)` is known. Nets see padded batches of one size, so an image never depends on the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_uad.errors import UserError

NOISES = ("const", "none", "random")

BATCH = 32


@dataclass(frozen=True)
class Latents:
    """`values` float32 on the CPU: z `[N, z_dim]`, w `[N, w_dim]` or ws `[N, num_ws, w_dim]`, as `space` says.

    `seeds`: a number for each, from which its random noise maps are drawn. `maps`: noise maps `[N, 1, h, w]` of each layer that were
    found with the latents; they take the place of the generator's fixed ones.
    """

    space: str
    values: Tensor
    seeds: Sequence[int]
    maps: Sequence[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> Latents:
        maps = None if self.maps is None else [of_layer[part] for of_layer in self.maps]
        return Latents(self.space, self.values[part], self.seeds[part], maps)


def style_based(G: Any) -> bool:
    """Whether `G` has a mapping network, and with it w, truncation and noise maps."""
    return hasattr(G, "mapping")


def from_seeds(seeds: Sequence[int], z_dim: int) -> Latents:
    """z ~ N(0, 1), each from a generator of its own."""
    z = [torch.randn(z_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return Latents("z", torch.stack(z), list(seeds))


def to_w(G: Any, latents: Latents, psi: float = 1.0, batch: int = BATCH) -> Latents:
    """What the images are made of: truncated w or ws with a style-based net, else z as it is."""
    if not style_based(G):
        return latents
    mapped = []
    with torch.no_grad():
        for n, part in _padded(latents.values, batch, _device(G)):
            w = G.mapping(part) if latents.space == "z" else part
            mapped.append(G.mapping.truncate(w, psi)[:n].cpu())
    return Latents("w" if latents.space == "z" else latents.space, torch.cat(mapped), latents.seeds, latents.maps)


def draw(G: Any, mapped: Latents, noise: str = "const", batch: int = BATCH) -> Tensor:
    """Images `[N, 3, R, R]` in [-1, 1] on the CPU of what `to_w` returned.

    noise "random": fresh maps for each image, from its own seed; "const": the maps of the latents, or else the generator's.
    """
    made = []
    with torch.no_grad():
        for i, (n, part) in enumerate(_padded(mapped.values, batch, _device(G))):
            if style_based(G):
                maps = _noise_of(G, mapped[i * batch : i * batch + n], noise, batch)
                images = G.synthesis(part if mapped.space == "ws" else G.spread(part), maps)
            else:
                images = G(part)
            made.append(images[:n].clamp(-1, 1).cpu())
    return torch.cat(made)


def _device(G: Any) -> torch.device:
    return next(G.parameters()).device


def _padded(values: Tensor, batch: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Batches of exactly `batch` rows, filled up with zeros, and how many of them count."""
    for part in values.split(batch):
        yield len(part), torch.cat([part, part.new_zeros(batch - len(part), *part.shape[1:])]).to(device)


def _noise_of(G: Any, mapped: Latents, noise: str, batch: int) -> str | list[Tensor]:
    """The noise argument of the generator for at most `batch` images."""
    if noise == "random":
        return _noise_maps(G, mapped.seeds, batch)
    if noise == "none" or mapped.maps is None:
        return noise
    return [next(_padded(of_layer, batch, _device(G)))[1] for of_layer in mapped.maps]


def _noise_maps(G: Any, seeds: Sequence[int], batch: int) -> list[Tensor]:
    shapes = G.synthesis.noise_shapes
    maps = [torch.zeros(batch, *shape) for shape in shapes]
    for row, seed in enumerate(seeds):
        # Not the numbers that z was drawn from.
        state = np.random.SeedSequence((seed, 1)).generate_state(1, np.uint64)[0] >> np.uint64(1)
        generator = torch.Generator().manual_seed(int(state))
        for of_layer, shape in zip(maps, shapes, strict=True):
            of_layer[row] = torch.randn(shape, generator=generator)
    return [of_layer.to(_device(G)) for of_layer in maps]


def check_style(G: Any, psi: float, noise: str) -> None:
    """Raise `UserError` for what does not exist, or not for `G`."""
    if noise not in NOISES:
        raise UserError(f"noise must be one of {', '.join(NOISES)}, not {noise!r}")
    if not math.isfinite(psi):
        raise UserError(f"truncation must be a finite number, not {psi}")
    if not style_based(G):
        if psi != 1:
            raise UserError(f"truncation {psi:g} needs StyleGAN or StyleGAN2: this generator has no w to truncate")
        if noise != "const":
            raise UserError(f"noise {noise!r} needs StyleGAN or StyleGAN2: this generator has no noise maps")
