"""Training of the progressively grown families, PGAN and StyleGAN: the schedule of growth, and one task for each."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gan_uad.networks.progressive import enlarge, shrink
from gan_uad.registry import register
from gan_uad.training.adversarial import AdversarialTask, WassersteinTask, logistic_loss
from gan_uad.training.losses import r1_penalty
from gan_uad.training.style import StyleTask

# As in both originals, for one GPU.
BATCH_PER_LEVEL = {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4}
LR_PER_LEVEL = {128: 1.5e-3, 256: 2e-3, 512: 3e-3, 1024: 3e-3}  # StyleGAN's
DECAY_PER_STEP = 0.999  # of PGAN's averaged weights
HALF_LIFE_STEPS = math.log(0.5) / math.log(DECAY_PER_STEP)


@dataclass(frozen=True)
class Schedule:
    """Level and fade as a pure function of the images seen (Karras et al. 2018, appendix A.1).

    The first level takes `level_kimg`. Each further level takes `fade_kimg` to fade in, then `level_kimg`.
    """

    start: int  # log2 of the first resolution
    top: int
    level_kimg: float = 600.0
    fade_kimg: float = 600.0

    def at(self, nimg: int) -> tuple[int, float]:
        """Level and alpha after `nimg` images; alpha is 1 where nothing fades, and never 0."""
        stable, fade = round(self.level_kimg * 1000), round(self.fade_kimg * 1000)
        period, within = divmod(nimg, stable + fade)
        level, alpha = self.start + period, 1.0
        if within > stable:
            level, alpha = level + 1, (within - stable) / fade
        return (level, alpha) if level <= self.top else (self.top, 1.0)


class ProgressiveTask(AdversarialTask):
    """The base of PGAN's and StyleGAN's training: growth, faded real images, rates and batches by level, one D and one G step a batch.

    Adam's moments are reset whenever a layer is added or has faded in, as in the originals. Batches hold real images `[N, 3, R, R]`; a
    step averages them down to the level's size.
    """

    average_buffers = False
    guarded = True
    ema_per_step = False  # whether the half-life of the averaged generator is a number of steps
    states = frozenset({"resolution", "alpha"})

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        lr: float,
        betas: tuple[float, float],
        ema_kimg: float,
        start_resolution: int,
        level_kimg: float,
        fade_kimg: float,
        batch_per_level: dict[int, int] | None,
        lr_per_level: dict[int, float],
    ) -> None:
        levels = [1 << level for level in range(2, model.G.resolution.bit_length())]
        if start_resolution not in levels:
            raise ValueError(f"start_resolution must be one of {levels}, got {start_resolution}")
        if round(min(level_kimg, fade_kimg) * 1000) < 0 or round((level_kimg + fade_kimg) * 1000) < 1:
            raise ValueError(
                f"level_kimg and fade_kimg must not be negative nor both 0, got {level_kimg} and {fade_kimg}"
            )
        self.batches = BATCH_PER_LEVEL if batch_per_level is None else batch_per_level
        if min([*self.batches.values(), 1]) < 1:
            raise ValueError(f"batch_per_level must hold sizes of at least 1, got {self.batches}")
        if min([*lr_per_level.values(), 0.0]) < 0:
            raise ValueError(f"lr_per_level must hold no negative rate, got {lr_per_level}")
        super().__init__(model, device, seed, lr, lr, betas, ema_kimg)
        self.lr, self.lrs = lr, lr_per_level
        self.schedule = Schedule(start_resolution.bit_length() - 1, levels[-1].bit_length() - 1, level_kimg, fade_kimg)
        averaged: Any = self.ema.net
        for net in (self.G, self.D, averaged):
            net.grow(*self.schedule.at(0))

    def batch_sizes(self, batch: int) -> set[int]:
        """See `Task`: those of all levels."""
        levels = range(self.schedule.start, self.schedule.top + 1)
        return {self.batches.get(1 << level, batch) for level in levels}

    def batch_at(self, nimg: int) -> int | None:
        """See `Task`."""
        return self.batches.get(1 << self.schedule.at(nimg)[0])

    def lr_at(self, nimg: int) -> float:
        """Learning rate of the step that follows `nimg` images."""
        return self.lrs.get(1 << self.schedule.at(nimg)[0], self.lr)

    def enter(self, nimg: int) -> None:
        """Bring networks and optimisers to the level of the schedule."""
        level, alpha = self.schedule.at(nimg)
        was_level, was_alpha = self.G.stage
        for net, optimizer in ((self.G, self.opt_G), (self.D, self.opt_D)):
            if (level, alpha < 1) != (was_level, was_alpha < 1):
                optimizer.state.clear()
            for group in optimizer.param_groups:
                group["lr"] = self.lr_at(nimg)
            net.grow(level, alpha)

    def at_level(self, real: Tensor) -> Tensor:
        """Images `[N, 3, R, R]` averaged down to the level's size; while it fades in, blended with those of the level before."""
        level, alpha = self.G.stage
        x = shrink(real, 1 << level)
        return enlarge(shrink(x, 1 << (level - 1)), 1 << level).lerp(x, alpha) if alpha < 1 else x

    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        """One discriminator and one generator step at the present level."""
        self.enter(nimg)
        metrics = self.discriminator_step(self.at_level(real))
        metrics |= self.generator_step(len(real))
        batch = self.batch_of(real)
        if self.ema_per_step:
            self.ema.half_life = HALF_LIFE_STEPS * batch
        self.ema.update(batch, nimg + batch)
        level, alpha = self.G.stage
        return metrics | {"resolution": torch.tensor(float(1 << level)), "alpha": torch.tensor(alpha)}

    @abstractmethod
    def discriminator_step(self, real: Tensor) -> dict[str, Tensor]:
        """One step on real images `[N, 3, H, H]` of the level's size."""

    @abstractmethod
    def generator_step(self, count: int) -> dict[str, Tensor]:
        """One step on `count` images in this process."""


@register("pgan", kind="task")
class PGANTask(WassersteinTask, ProgressiveTask):
    """PGAN's training: WGAN-GP with a small pull of the critic's real scores to zero, growing from 4 px.

    `ema_kimg` None is the published average, 0.999 a step: a half-life of 693 steps, or 0.693 · batch kimg.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.0, 0.99),
        gp_weight: float = 10.0,
        drift: float = 1e-3,
        ema_kimg: float | None = None,
        start_resolution: int = 4,
        level_kimg: float = 600.0,
        fade_kimg: float = 600.0,
        batch_per_level: dict[int, int] | None = None,
        lr_per_level: dict[int, float] | None = None,
    ) -> None:
        if min(gp_weight, drift) < 0:
            raise ValueError(f"gp_weight and drift must not be negative, got {gp_weight} and {drift}")
        growth = (start_resolution, level_kimg, fade_kimg, batch_per_level, lr_per_level or {})
        super().__init__(model, device, seed, lr, betas, ema_kimg or 0.0, *growth)
        self.gp_weight, self.drift, self.ema_per_step = gp_weight, drift, ema_kimg is None

    def make(self, z: Tensor) -> Tensor:
        """See `WassersteinTask`; of the present level's size."""
        images: Tensor = self.G.synthesize_level(z)
        return images

    def scores(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """See `WassersteinTask`; in two passes, because the minibatch stddev would mix them."""
        return self.D(real), self.D(fake)


@register("stylegan", kind="task")
class StyleGANTask(StyleTask, ProgressiveTask):
    """StyleGAN's training: non-saturating logistic loss, R1 on every step, style mixing, growing from 8 px.

    `lr_per_level` None is the published table (1.5e-3 at 128 px, 2e-3 at 256, 3e-3 from 512 on); `lr` holds for levels without an entry.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.0, 0.99),
        r1_gamma: float = 10.0,
        mixing: float = 0.9,
        ema_kimg: float = 10.0,
        start_resolution: int = 8,
        level_kimg: float = 600.0,
        fade_kimg: float = 600.0,
        batch_per_level: dict[int, int] | None = None,
        lr_per_level: dict[int, float] | None = None,
    ) -> None:
        if r1_gamma < 0 or not 0 <= mixing <= 1:
            raise ValueError(f"r1_gamma must not be negative and mixing in [0, 1], got {r1_gamma} and {mixing}")
        rates = LR_PER_LEVEL if lr_per_level is None else lr_per_level
        growth = (start_resolution, level_kimg, fade_kimg, batch_per_level, rates)
        super().__init__(model, device, seed, lr, betas, ema_kimg, *growth)
        self.r1_gamma, self.mixing = r1_gamma, mixing

    @property
    def layers_in_use(self) -> int:
        """See `StyleTask`: those of the present level."""
        return int(self.G.synthesis.layers_in_use)

    def synthesize(self, ws: Tensor, noise: list[Tensor]) -> Tensor:
        """See `StyleTask`; of the present level's size."""
        images: Tensor = self.G.synthesis.synthesize_level(ws, noise)
        return images

    def discriminator_step(self, real: Tensor) -> dict[str, Tensor]:
        """Minimise the logistic loss + γ/2 · ‖∇D(real)‖²."""
        latents = self.draw(len(real))

        def loss(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            with torch.no_grad():
                fake = self.make(latents, part)
            scores: list[Tensor] = []

            def noted(x: Tensor) -> Tensor:  # the penalty's pass over the real images serves the logistic loss too
                scores.append(self.D(x))
                return scores[0]

            penalty = r1_penalty(noted, real[part]).mean() if self.r1_gamma else real.new_zeros(())
            on_real = scores[0] if scores else self.D(real[part])
            value, metrics = logistic_loss(on_real, self.D(fake), real[part], fake)
            return value + self.r1_gamma / 2 * penalty, {**metrics, "r1": penalty}

        return self.optimise(self.opt_D, len(real), loss)
