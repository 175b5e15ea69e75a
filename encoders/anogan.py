"""AnoGAN's search in z (Schlegl et al. 2017), for all images of a batch at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from encoders.base import Inversion, Inverter, pixel_seed
from gan_uad.registry import register
from gan_uad.scoring.distance import ImageDistance


@register("anogan", kind="inverter")
class AnoGANInverter(Inverter):
    """Minimise (1 − λ)·Σ|x − G(z)| + λ·Σ|f(x) − f(G(z))| over z with Adam, starting at z ~ N(0, 1).

    `norm` "l1" is AnoGAN's residual; "l2" is the squared one that Štepec & Skočaj describe. The start depends only on `seed`
    and the image's own pixels, and Adam treats each number alone, so images of a batch do not influence each other.
    The score is the loss of the reconstruction, which is clamped. (The search is not: clamped values have no gradient.)
    """

    def __init__(
        self,
        nets: dict[str, Any],
        device: torch.device,
        steps: int = 500,
        lr: float = 0.05,
        weight: float = 0.1,
        norm: str = "l1",
        seed: int = 0,
        micro_batch: int = 16,
    ) -> None:
        if steps < 1 or not 0 < lr < math.inf or not 0 <= weight <= 1:
            raise ValueError(
                f"steps must be at least 1, lr above 0 and weight (λ) in [0, 1], got {steps}, {lr} and {weight}"
            )
        super().__init__(nets, device, ImageDistance(norm, "sum", 1 - weight, weight), micro_batch)
        self.steps, self.lr, self.seed = steps, lr, seed

    def _invert(self, images: Tensor) -> Inversion:
        """The reconstruction is that of the last step."""
        z = torch.stack([self._start(image) for image in images]).to(self.device).requires_grad_(True)
        optimizer = torch.optim.Adam([z], self.lr)
        with torch.no_grad():
            target = self.discriminator.features(images)
        history = []
        for _ in range(self.steps):
            with torch.enable_grad():
                loss = self._loss(images, target, self.generator(z))
                (z.grad,) = torch.autograd.grad(loss.sum(), z)
            optimizer.step()
            history.append(loss.detach())
        steps = torch.full((len(images),), self.steps)
        return Inversion(z.detach(), self.reconstruct(z), steps, torch.stack(history))

    def _loss(self, images: Tensor, target: Tensor, generated: Tensor) -> Tensor:
        # The features of the images stay the same during the search: compute them once.
        return self.distance.total(
            self.distance.components(
                images, generated, lambda x: target if x is images else self.discriminator.features(x)
            )
        )

    def _start(self, image: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(pixel_seed(image, self.seed))
        return torch.randn(self.generator.z_dim, generator=rng)
