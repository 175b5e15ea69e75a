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

from gan_uad.scoring.base import check_images
from gan_uad.scoring.distance import ImageDistance


@dataclass
class Inversion:
    """What was found for N images.

    `latent`: z `[N, z_dim]`, w `[N, w_dim]` or ws `[N, num_ws, w_dim]`, as `space` ("z", "w", "ws") says. `reconstruction`
    `[N, 3, R, R]` in [-1, 1]. `steps` `[N]`: how many each image took. `loss_history` `[most steps, N]`: what the search minimised, NaN
    after an image stopped. `noise`: one map `[N, 1, h, w]` for each layer that has one, or None where the search left them alone.
    """

    latent: Tensor
    reconstruction: Tensor
    steps: Tensor
    loss_history: Tensor
    noise: list[Tensor] | None = None
    space: str = "z"

    def take(self, rows: slice | Tensor) -> Inversion:
        """That of some of the images."""
        noise = None if self.noise is None else [maps[rows] for maps in self.noise]
        return Inversion(
            self.latent[rows],
            self.reconstruction[rows],
            self.steps[rows],
            self.loss_history[:, rows],
            noise,
            self.space,
        )

    @classmethod
    def concatenate(cls, pieces: list[Inversion]) -> Inversion:
        """Put the inversions of consecutive images together."""
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
    """Images that are done: their numbers among those given, what was found, seconds that each of them took.

    `frames`: pictures `[F, 3, R, R]` of the way there, where the inverter was asked to keep some.
    """

    rows: list[int]
    inversion: Inversion
    seconds: float
    frames: Tensor | None = None


class Inverter(ABC):
    """Finds, for each image of a batch, a latent of a trained generator. The nets are frozen and in evaluation mode.

    `nets` holds at least a `gan` with `G` and `D`. No image of a batch influences another's result: nets see micro-batches of one fixed
    size, the last one padded. A method implements `_invert`, or `stream` where its images do not all take equally long.
    """

    spec: dict[str, Any]
    rests_on = ""  # pretrained weights other than `nets`, in words that tell them from others
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
        together = Inversion.concatenate([piece.inversion for piece in found])
        order = torch.tensor([row for piece in found for row in piece.rows])
        return together if bool((order.diff() > 0).all()) else together.take(order.argsort())

    def stream(self, images: Tensor, progress: Callable[[float], None] | None = None) -> Iterator[SearchState]:
        """As `invert`, but each image as soon as it is done; `progress` is told how many are, parts of one included."""
        check_images(images, self.generator.resolution)
        done = 0
        for part in images.split(self.micro_batch):
            started = time.perf_counter()
            found = self._invert(self.padded(part)).take(slice(len(part)))
            seconds = (time.perf_counter() - started) / len(part)
            yield SearchState(list(range(done, done + len(part))), found, seconds)
            done += len(part)
            if progress is not None:
                progress(done)

    def _invert(self, images: Tensor) -> Inversion:
        """Invert exactly `micro_batch` images on `device`."""
        raise NotImplementedError

    def padded(self, images: Tensor) -> Tensor:
        """At most `micro_batch` images, on `device` and filled up to that number with grey ones."""
        return F.pad(images.to(self.device), (0, 0, 0, 0, 0, 0, 0, self.micro_batch - len(images)))

    @torch.no_grad()
    def reconstruct(self, latent: Tensor) -> Tensor:
        """The generator's images of latents, clamped to [-1, 1]: what is compared and shown. (StyleGAN2's lie beyond it here and there.)"""
        images: Tensor = self.generator(latent).clamp(-1, 1)
        return images

    @torch.no_grad()
    def measure(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """What the inverter makes small, per image `[N]`, for the reconstruction as it is returned; `measured` names it."""
        return self.distance.total(self.distance.components(images, reconstruction, self.discriminator.features))

    @property
    def measured(self) -> str:
        """The name of what `measure` gives."""
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
