"""The interface of everything that finds a latent for an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gan_uad.scoring.distance import ImageDistance


@dataclass
class Inversion:
    """What was found for N images.

    `latent` `[N, ...]`, `reconstruction` `[N, 3, R, R]` in [-1, 1], `steps` taken, `loss_history` `[steps, N]`.
    """

    latent: Tensor
    reconstruction: Tensor
    steps: int
    loss_history: Tensor


class Inverter(ABC):
    """Finds, for each image of a batch, a latent of a trained generator. The nets are frozen and in evaluation mode.

    `nets` holds at least a `gan` with `G` and `D`. No image of a batch influences another's result.
    """

    spec: dict[str, Any]

    def __init__(self, nets: dict[str, Any], device: torch.device, distance: ImageDistance, micro_batch: int) -> None:
        if micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, got {micro_batch}")
        self.nets = {
            role: net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
            for role, net in nets.items()
        }
        self.generator, self.discriminator = nets["gan"].G, nets["gan"].D
        self.device, self.distance, self.micro_batch = device, distance, micro_batch

    @abstractmethod
    def invert(self, images: Tensor) -> Inversion:
        """Images `[N, 3, R, R]` in [-1, 1] on `device` -> latents and reconstructions."""

    @torch.no_grad()
    def reconstruct(self, latent: Tensor) -> Tensor:
        """The generator's images of latents, clamped to [-1, 1]: what is compared and shown. (StyleGAN2's lie beyond it here and there.)"""
        images: Tensor = self.generator(latent).clamp(-1, 1)
        return images

    def latent_distance(self, latent: Tensor, reconstruction: Tensor) -> Tensor | None:
        """Per image `[N]`: how far the reconstruction's own latent is from `latent`; None where there is no encoder."""
        return None

    def networks(self) -> dict[str, nn.Module]:
        """The nets by role."""
        return self.nets
