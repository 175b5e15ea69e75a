"""The interface of everything that finds a latent for an image."""

from __future__ import annotations

import time
import zlib
from abc import ABC
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.scoring.base import check_images, padded
from gan_uad.scoring.distance import ImageDistance


@dataclass
class Inversion:
    """What was found for N images.

    `latent`: z `[N, z_dim]`, w `[N, w_dim]` or ws `[N, num_ws, w_dim]`, by `space` ("z", "w", "ws"). `reconstruction` `[N, 3, R, R]` in
    [-1, 1]. `steps` `[N]` of each image. `loss_history` `[most steps, N]`: what the search minimised, NaN after an image stopped.
    `noise`: one map `[N, 1, h, w]` for each layer that has one, or None where the search did not change them.
    """

    latent: Tensor
    reconstruction: Tensor
    steps: Tensor
    loss_history: Tensor
    noise: list[Tensor] | None = None
    space: str = "z"

    def take(self, rows: slice | Tensor) -> Inversion:
        """The inversion of some of the images."""
        noise = None if self.noise is None else [maps[rows] for maps in self.noise]
        latent, reconstruction, steps = (values[rows] for values in (self.latent, self.reconstruction, self.steps))
        return Inversion(latent, reconstruction, steps, self.loss_history[:, rows], noise, self.space)

    @classmethod
    def concatenate(cls, pieces: list[Inversion]) -> Inversion:
        """Join the inversions of consecutive images."""
        longest = max(len(p.loss_history) for p in pieces)
        history = [F.pad(p.loss_history, (0, 0, 0, longest - len(p.loss_history)), value=torch.nan) for p in pieces]
        maps = [p.noise for p in pieces if p.noise is not None]
        return cls(
            torch.cat([p.latent for p in pieces]),
            torch.cat([p.reconstruction for p in pieces]),
            torch.cat([p.steps for p in pieces]),
            torch.cat(history, 1),
            [torch.cat(of_layer) for of_layer in zip(*maps, strict=True)] if maps else None,
            pieces[0].space,
        )


@dataclass
class SearchState:
    """Images that are done: their numbers among those given, what was found, and seconds per image.

    `frames`: images `[F, 3, R, R]` of the search, where the inverter was asked to keep some.
    """

    rows: list[int]
    inversion: Inversion
    seconds: float
    frames: Tensor | None = None


class Inverter(ABC):
    """Finds, for each image of a batch, a latent of a trained generator. The nets are frozen and in evaluation mode.

    `nets` holds at least a `gan` with `G` and `D`. No image of a batch influences another's result: nets get micro-batches of one fixed
    size, the last one padded. A method implements `_invert`, or `stream` where images need different numbers of steps.
    """

    spec: dict[str, Any]
    rests_on = ""  # pretrained weights other than `nets`, in words that identify them
    space = "z"

    def __init__(self, nets: dict[str, Any], device: torch.device, distance: ImageDistance, micro_batch: int) -> None:
        if micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, got {micro_batch}")
        self.nets = {
            role: net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
            for role, net in nets.items()
        }
        self.generator, self.discriminator = nets["gan"].G, nets["gan"].D
        self.device, self.distance, self.micro_batch = device, distance, micro_batch

    def invert(self, images: Tensor) -> Inversion:
        """Images `[N, 3, R, R]` in [-1, 1] -> latents and reconstructions on `device`, for any N ≥ 1.

        Raises `ValueError` for another shape or range, or NaN.
        """
        found = list(self.stream(images))
        joined = Inversion.concatenate([piece.inversion for piece in found])
        order = torch.tensor([row for piece in found for row in piece.rows])
        return joined if bool((order.diff() > 0).all()) else joined.take(order.argsort())

    def stream(self, images: Tensor, progress: Callable[[float], None] | None = None) -> Iterator[SearchState]:
        """As `invert`, but each image as soon as it is done; `progress` is called with the number done, fractions included."""
        check_images(images, self.generator.resolution)
        done = 0
        for chunk in images.split(self.micro_batch):
            started = time.perf_counter()
            found = self._invert(self.padded(chunk)).take(slice(len(chunk)))
            seconds = (time.perf_counter() - started) / len(chunk)
            yield SearchState(list(range(done, done + len(chunk))), found, seconds)
            done += len(chunk)
            if progress is not None:
                progress(done)

    def _invert(self, images: Tensor) -> Inversion:
        """Invert exactly `micro_batch` images on `device`."""
        raise NotImplementedError

    def padded(self, images: Tensor) -> Tensor:
        """At most `micro_batch` images, on `device` and filled up to that number with grey ones."""
        return padded(images.to(self.device), self.micro_batch)

    @torch.no_grad()
    def reconstruct(self, latent: Tensor) -> Tensor:
        """The generator's images of latents, clamped to [-1, 1], which StyleGAN2's exceed in places."""
        images: Tensor = self.generator(latent).clamp(-1, 1)
        return images

    @torch.no_grad()
    def measure(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """What the inverter minimises, per image `[N]`, for the reconstruction as it is returned; `measured` names it."""
        return self.distance.total(self.distance.components(images, reconstruction, self.discriminator.features))

    @property
    def measured(self) -> str:
        """The name of what `measure` returns."""
        return "residual and discriminator features"

    def latent_distance(self, latent: Tensor, reconstruction: Tensor) -> Tensor | None:
        """Per image `[N]`: how far the reconstruction's own latent is from `latent`; None where there is no encoder."""
        return None

    def networks(self) -> dict[str, nn.Module]:
        """The nets by role."""
        return self.nets


def pixel_seed(image: Tensor, seed: int) -> int:
    """A number in [0, 2³²) that follows from `seed` and the pixels of an image `[3, R, R]` in [-1, 1], as 8 bits."""
    pixels = (image.cpu() * 127.5 + 128).clamp(0, 255).byte().contiguous().numpy().tobytes()
    return zlib.crc32(pixels, seed)
