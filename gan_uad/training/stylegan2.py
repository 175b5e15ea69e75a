"""StyleGAN2's training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gan_uad.registry import register
from gan_uad.training import distributed
from gan_uad.training.adversarial import logistic_loss
from gan_uad.training.augment import AdaptiveP, AugmentPipe
from gan_uad.training.losses import path_lengths, r1_penalty
from gan_uad.training.style import StyleTask


@register("stylegan2", kind="task")
class StyleGAN2Task(StyleTask):
    """Non-saturating loss, R1 and path length regularisation once in several steps, style mixing (Karras et al. 2020).

    `r1_gamma` None is StyleGAN2-ADA's heuristic, 0.0002 · resolution² / batch. The regularisers are multiplied by their interval k, and
    the learning rates and betas of a net that has one are corrected by k / (k + 1). An interval of 0 leaves a regulariser out. The path
    length is pulled to its running mean from *before* the step, so that micro-batches and processes do not change the result.

    `augment` shows D altered images: "none", or groups of ADA's transforms such as "bgc" (see `augment.AugmentPipe`). Their probability
    is `augment_p`, or adapted so that the mean sign of D(real) becomes `ada_target` (`ada_kimg`: images in which it can rise from 0 to 1).
    """

    states = frozenset({"ada_p"})

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        lr: float = 0.0025,
        lr_D: float | None = None,
        betas: tuple[float, float] = (0.0, 0.99),
        ema_kimg: float = 10.0,
        r1_gamma: float | None = None,
        r1_interval: int = 16,
        path_weight: float = 2.0,
        path_interval: int = 4,
        path_decay: float = 0.01,
        path_shrink: int = 2,
        mixing: float = 0.9,
        augment: str = "none",
        augment_p: float | None = None,
        ada_target: float = 0.6,
        ada_kimg: float = 500.0,
    ) -> None:
        if min(r1_interval, path_interval) < 0 or path_shrink < 1 or not 0 <= mixing <= 1:
            raise ValueError(
                "r1_interval and path_interval must not be negative, path_shrink at least 1 and mixing in [0, 1], "
                f"got {r1_interval}, {path_interval}, {path_shrink} and {mixing}"
            )
        if min(r1_gamma or 0, path_weight) < 0 or not 0 <= path_decay <= 1:
            raise ValueError(
                "r1_gamma and path_weight must not be negative and path_decay in [0, 1], "
                f"got {r1_gamma}, {path_weight} and {path_decay}"
            )
        self.path_interval = path_interval if path_weight else 0
        self.r1_interval = r1_interval if r1_gamma != 0 else 0
        intervals = (self.path_interval, self.r1_interval)
        super().__init__(model, device, seed, lr, lr if lr_D is None else lr_D, betas, ema_kimg, intervals)
        self.r1_gamma, self.mixing = r1_gamma, mixing
        self.path_weight, self.path_decay, self.path_shrink = path_weight, path_decay, path_shrink
        self.path_mean = torch.zeros((), device=device)
        if augment_p is not None and not 0 <= augment_p <= 1:
            raise ValueError(f"augment_p must be in [0, 1], got {augment_p}")
        if augment_p is not None and augment == "none":
            raise ValueError("augment_p has no effect without augment: set augment too, for example augment=bgc")
        self.pipe = None if augment == "none" else AugmentPipe(augment)
        self.ada, self.augment_p = AdaptiveP(ada_target, ada_kimg=ada_kimg), augment_p

    def draw_shown(self, count: int) -> Callable[[Tensor, slice], Tensor]:
        """See `StyleTask`: augmented images, with augmentations drawn for the complete batch."""
        if self.pipe is None:
            return super().draw_shown(count)
        pipe, world = self.pipe, distributed.world()
        p = self.ada.p if self.augment_p is None else self.augment_p
        drawn = pipe.draw(count * world.size, self.G.resolution, p, self.rng).take(world.rows)
        return lambda images, part: pipe.apply(images, drawn.take(part))

    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        """Generator, its path length when due, discriminator, its R1 when due, average."""
        batch = self.batch_of(real)
        turn = nimg // batch
        metrics = self.generator_step(len(real))
        if self.path_interval and turn % self.path_interval == 0:
            # Rounded down in each process: equal to one process only where the smaller batch can be shared evenly.
            metrics = self.path_step(max(1, len(real) // self.path_shrink)) | metrics
        metrics |= self.discriminator_step(real)
        if self.r1_interval and turn % self.r1_interval == 0:
            metrics = self.r1_step(real) | metrics
        self.ema.update(batch, nimg + batch)
        return metrics

    def path_step(self, count: int) -> dict[str, Tensor]:
        """Pull the path lengths of `count` images in this process to their running mean."""
        latents, side = self.draw(count), self.G.resolution
        (directions,) = self.normal(count, [(3, side, side)])

        def loss(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            ws = latents.ws(self.G, part)
            images = self.synthesize(ws, latents.noise_of(part))
            lengths = path_lengths(images, ws, directions[part])
            value = (lengths - self.path_mean).square().mean()
            return value * self.path_weight * self.path_interval, {"path_length": lengths.mean(), "path_penalty": value}

        metrics = self.optimise(self.opt_G, count, loss)
        self.path_mean.lerp_(distributed.mean(metrics["path_length"]), self.path_decay)
        return metrics

    def discriminator_step(self, real: Tensor) -> dict[str, Tensor]:
        """Minimise the logistic loss over the discriminator."""
        latents, show_fake, show_real = self.draw(len(real)), self.draw_shown(len(real)), self.draw_shown(len(real))

        def loss(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            with torch.no_grad():
                fake = self.make(latents, part)
            on_fake, on_real = self.D(show_fake(fake, part)), self.D(show_real(real[part], part))
            return logistic_loss(on_real, on_fake, real[part], fake)

        metrics = self.optimise(self.opt_D, len(real), loss)
        if self.pipe is not None and self.augment_p is None:
            batch = self.batch_of(real)
            self.ada.observe(distributed.mean(metrics["real_sign"]) * batch, batch)
            metrics["ada_p"] = torch.tensor(self.ada.p)
        return metrics

    def r1_step(self, real: Tensor) -> dict[str, Tensor]:
        """Minimise γ/2 · ‖∇D(real)‖² over the discriminator."""
        gamma = self.r1_gamma
        if gamma is None:
            gamma = 0.0002 * self.G.resolution**2 / self.batch_of(real)
        shown = self.draw_shown(len(real))

        def loss(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            penalty = r1_penalty(lambda images: self.D(shown(images, part)), real[part]).mean()
            return penalty * (gamma / 2 * self.r1_interval), {"r1": penalty}

        return self.optimise(self.opt_D, len(real), loss)

    def holders(self) -> dict[str, Any]:
        """See `AdversarialTask`."""
        return {**super().holders(), "path_mean": self.path_mean, "ada": self.ada}
