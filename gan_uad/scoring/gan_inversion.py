"""Anomaly scores from the closest normal image that a generator can make."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from gan_uad.registry import register
from gan_uad.scoring.base import Scorer, Scores
from gan_uad.scoring.distance import ImageDistance


class Inverts(Protocol):
    """What this room needs of an inverter (`encoders.base.Inverter`)."""

    spec: dict[str, Any]
    generator: Any
    discriminator: Any
    device: torch.device
    distance: ImageDistance
    micro_batch: int

    def invert(self, images: Tensor) -> Any:
        """Images -> an object with `latent`, `reconstruction`."""

    def networks(self) -> dict[str, Any]:
        """The nets by role."""

    def latent_distance(self, latent: Tensor, reconstruction: Tensor) -> Tensor | None:
        """`[N]`, or None where the inverter has no such figure."""


@register("gan_inversion", kind="scorer")
class GanInversionScorer(Scorer):
    """Distance to the closest normal image: A(x) = A_R(x) + κ·A_D(x) (f-AnoGAN, section 2.3; AnoGAN's weights with its search).

    Parts: `residual` (A_R), `features` (A_D, on the discriminator's features), and with an encoder `latent`, the mean squared
    z-distance between E(x) and E(G(E(x))). The map is the absolute difference, averaged over colours, in [0, 2].
    The networks are trained already; `fit` only keeps the scores of validation normals.
    """

    def __init__(self, inverter: Inverts) -> None:
        self.inverter = inverter
        self.micro_batch, self.resolution = inverter.micro_batch, inverter.generator.resolution

    def score_batch(self, images: Tensor) -> Scores:
        """See `Scorer`."""
        inverter = self.inverter
        images = images.to(inverter.device)
        found = inverter.invert(images)
        with torch.no_grad():
            parts = inverter.distance.parts(images, found.reconstruction, inverter.discriminator.features)
            total = inverter.distance.total(parts)
            latent = inverter.latent_distance(found.latent, found.reconstruction)
        if latent is not None:
            parts["latent"] = latent
        difference = (images - found.reconstruction).abs().mean(1)
        return Scores(total.cpu(), {k: v.cpu() for k, v in parts.items()}, difference.cpu(), found.reconstruction.cpu())

    def tensors(self) -> dict[str, Tensor]:
        """The inverter's networks."""
        return {
            f"{role}.{name}": tensor
            for role, net in self.inverter.networks().items()
            for name, tensor in net.state_dict().items()
        }

    def take(self, tensors: dict[str, Tensor]) -> None:
        """See `Scorer`."""
        for role, net in self.inverter.networks().items():
            net.load_state_dict({k.removeprefix(f"{role}."): v for k, v in tensors.items() if k.startswith(f"{role}.")})
