"""Tasks that train a generator against a discriminator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_uad.device import upload
from gan_uad.networks.sampling import draw, from_seeds, style_based, to_w
from gan_uad.registry import register
from gan_uad.training import distributed
from gan_uad.training.ema import EMA
from gan_uad.training.losses import gradient_penalty, nonsaturating_D, nonsaturating_G
from gan_uad.training.task import Task

SAMPLES = 64  # images of a snapshot (a quarter of it above 256 px)
SAMPLE_BATCH = 4  # images drawn at once: training leaves little memory
GRADIENT_BOUND = 1e5  # in place of an infinite gradient


class AdversarialTask(Task):
    """The base of all GANs: two nets with an Adam each, an averaged generator, one generator of random numbers.

    `model` holds a generator `G` and a discriminator `D`. Random numbers are drawn on the CPU, so that a seed gives the same latents on
    every device. Every step logs the norms of both nets' gradients, `grad_G` and `grad_D`.
    """

    average_buffers = True
    guarded = False  # whether NaN and infinite gradients are replaced: see `guard_gradients`

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        lr: float,
        lr_D: float,
        betas: tuple[float, float],
        ema_kimg: float,
        intervals: tuple[int, int] = (0, 0),
    ) -> None:
        """`intervals`: how often G and D get an extra step: see `adam`."""
        self.model, self.device = model.to(device, memory_format=torch.channels_last), device
        self.G, self.D = model.G.train(), model.D.train()
        self.ema = EMA(self.G, ema_kimg, self.average_buffers)
        self.group = getattr(self.D, "mbstd_group", 1)
        self.opt_G, self.opt_D = adam(self.G, lr, betas, intervals[0]), adam(self.D, lr_D, betas, intervals[1])
        if self.guarded:
            self.opt_G.register_step_pre_hook(guard_gradients)
            self.opt_D.register_step_pre_hook(guard_gradients)
        self.rng = torch.Generator().manual_seed(seed)

    def draw_z(self, count: int) -> Tensor:
        """Fresh latents `[count, z_dim]` ~ N(0, 1) for this process's share; all processes draw the same complete batch."""
        return self.shared(torch.randn(count * distributed.world().size, self.G.z_dim, generator=self.rng))

    def shared(self, drawn: Tensor) -> Tensor:
        """This process's share of numbers drawn for the complete batch `[N, ...]`, on the device."""
        return upload(distributed.share(drawn), self.device)

    def optimise(
        self,
        optimizer: torch.optim.Optimizer,
        count: int,
        loss: Callable[[slice], tuple[Tensor, dict[str, Tensor]]],
    ) -> dict[str, Tensor]:
        """See `Task`; logs the gradient's norm too."""
        metrics = super().optimise(optimizer, count, loss)
        return metrics | {"grad_G" if optimizer is self.opt_G else "grad_D": gradient_norm(optimizer)}

    def sample(self) -> Tensor:
        """The images of `gan-uad generate` for seeds from 0 on, from the averaged generator; a style-based one gets random noise.

        (Noise places nuclei and fibres. With one fixed map, as in the original papers' figures, they would lie alike in every image.)
        """
        return self.images(range(SAMPLES if self.G.resolution <= 256 else SAMPLES // 4), SAMPLE_BATCH)

    def images(self, seeds: Sequence[int], batch: int) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] of the averaged generator, on the CPU, computed `batch` at a time."""
        G = self.ema.net
        noise = "random" if style_based(G) else "const"
        return draw(G, to_w(G, from_seeds(seeds, self.G.z_dim), batch=batch), noise, batch)

    def networks(self) -> dict[str, nn.Module]:
        """The averaged generator with the current discriminator."""
        exported = copy.copy(self.model)
        exported._modules = {**self.model._modules, "G": self.ema.net}
        return {"gan": exported}

    def start_from(self, trained: dict[str, nn.Module], context: str) -> None:
        """See `Task`. A model file holds the averaged generator, so the new generator starts from the average too."""
        super().start_from(trained, context)
        self.G.load_state_dict(self.ema.net.state_dict())

    def holders(self) -> dict[str, Any]:
        """See `Task`: nets, averages, optimisers, random numbers."""
        optimizers = {"opt_G": self.opt_G, "opt_D": self.opt_D}
        return {"model": self.model, "ema": self.ema.net, **optimizers, "rng": self.rng}


def adam(net: nn.Module, lr: float, betas: tuple[float, float], interval: int = 0) -> torch.optim.Adam:
    """Adam; rates are corrected for one extra step in every `interval` steps (Karras et al. 2020, appendix B; 0: no extra step)."""
    c = interval / (interval + 1) if interval else 1.0
    return torch.optim.Adam(net.parameters(), lr * c, (betas[0] ** c, betas[1] ** c), fused=True)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Compute no gradients for a net's weights inside the `with` block."""
    net.requires_grad_(False)
    try:
        yield
    finally:
        net.requires_grad_(True)


@torch.no_grad()
def guard_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Replace NaN in gradients by 0 and infinities by ±1e5, as StyleGAN2-ADA does; nothing is clipped. (An optimiser's hook.)

    All together in three steps, since a GPU starts a kernel for each step.
    """
    grads = [
        _in_memory_order(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    if grads:
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        torch.nan_to_num_(flat, nan=0.0, posinf=GRADIENT_BOUND, neginf=-GRADIENT_BOUND)
        sane = flat.split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [part.view(grad.shape) for part, grad in zip(sane, grads, strict=True)])


def _in_memory_order(x: Tensor) -> Tensor:
    """A view of `x` whose dimensions are ordered as its values lie in memory, so that flattening it copies nothing."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x


@torch.no_grad()
def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """L2 norm of all gradients that an optimiser holds."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.stack(torch._foreach_norm(grads)).norm()


@torch.no_grad()
def diversity(fake: Tensor, real: Tensor) -> Tensor:
    """How much generated images differ from each other, relative to real ones: about 1 is healthy, near 0 is collapse.

    The standard deviation over the batch of each pixel of thumbnails (8×8 px at most), averaged; the ratio of generated to real images.
    1 for a single image.
    """
    if len(fake) < 2:
        return torch.ones((), device=fake.device)
    side = min(8, fake.shape[-1])
    spread = [F.adaptive_avg_pool2d(images.float(), side).std(0).mean() for images in (fake, real)]
    return spread[0] / spread[1].clamp(min=1e-6)


def logistic_loss(on_real: Tensor, on_fake: Tensor, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminator's loss of its outputs `[N]`, and what is logged: loss, mean signs, and the `diversity` of the images."""
    loss = nonsaturating_D(on_real, on_fake)
    signs = {"real_sign": on_real.sign().mean(), "fake_sign": on_fake.sign().mean()}
    return loss, {"loss_D": loss, **signs, "diversity": diversity(fake, real)}


@register("dcgan", kind="task")
class DCGANTask(AdversarialTask):
    """DCGAN's training: binary cross-entropy, non-saturating generator loss, one step each on every batch."""

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        ema_kimg: float = 10.0,
    ) -> None:
        super().__init__(model, device, seed, lr, lr, betas, ema_kimg)

    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        """One discriminator and one generator step."""
        z = self.draw_z(len(real))
        # If the batch is one pass, one graph of G serves both steps; with micro-batches it would need too much memory.
        made = self.G(z) if len(self.parts(len(real))) == 1 else None

        def loss_D(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            with torch.no_grad():
                fake = self.G(z[part]) if made is None else made.detach()
            return logistic_loss(self.D(real[part]), self.D(fake), real[part], fake)

        def loss_G(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            loss = nonsaturating_G(self.D(self.G(z[part]) if made is None else made))
            return loss, {"loss_G": loss}

        metrics = self.optimise(self.opt_D, len(real), loss_D)
        with frozen(self.D):
            metrics |= self.optimise(self.opt_G, len(real), loss_G)
        batch = self.batch_of(real)
        self.ema.update(batch, nimg + batch)
        return metrics


class WassersteinTask(AdversarialTask):
    """A task with the losses of WGAN-GP (Gulrajani et al. 2017, algorithm 1)."""

    gp_weight: float
    drift = 0.0  # PGAN's weight of E[D(real)²]

    def make(self, z: Tensor) -> Tensor:
        """Images of `z`, with gradients."""
        images: Tensor = self.G(z)
        return images

    def scores(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The critic's values `[N]` of both."""
        on_real, on_fake = self.D(torch.cat([real, fake])).chunk(2)
        return on_real, on_fake

    def discriminator_step(self, real: Tensor) -> dict[str, Tensor]:
        """Minimise E[D(fake)] − E[D(real)] + gp_weight · penalty + drift · E[D(real)²] over the critic."""
        z = self.draw_z(len(real))
        mix = self.shared(torch.rand(self.batch_of(real), generator=self.rng))

        def loss(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            with torch.no_grad():
                fake = self.make(z[part])
            on_real, on_fake = self.scores(real[part], fake)
            penalty = gradient_penalty(self.D, real[part], fake, mix[part])
            wasserstein = on_real.mean() - on_fake.mean()
            value = self.gp_weight * penalty + self.drift * on_real.square().mean() - wasserstein
            return value, {"wasserstein": wasserstein, "penalty": penalty, "diversity": diversity(fake, real[part])}

        return self.optimise(self.opt_D, len(real), loss)

    def generator_step(self, count: int) -> dict[str, Tensor]:
        """Minimise −E[D(G(z))] over the generator, on `count` images in this process."""
        z = self.draw_z(count)

        def loss(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            value = -self.D(self.make(z[part])).mean()
            return value, {"loss_G": value}

        with frozen(self.D):
            return self.optimise(self.opt_G, count, loss)


@register("wgan_gp", kind="task")
class WGANGPTask(WassersteinTask):
    """WGAN-GP's training: a critic step on every batch, a generator step after every `n_critic` of them.

    `lr_D` gives the critic its own rate (Heusel et al. 2017, two time scales); then fewer critic steps suffice.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        lr: float = 1e-4,
        lr_D: float | None = None,
        betas: tuple[float, float] = (0.0, 0.9),
        n_critic: int = 5,
        gp_weight: float = 10.0,
        ema_kimg: float = 10.0,
    ) -> None:
        super().__init__(model, device, seed, lr, lr if lr_D is None else lr_D, betas, ema_kimg)
        if n_critic < 1:
            raise ValueError(f"n_critic must be at least 1, got {n_critic}")
        if gp_weight < 0:
            raise ValueError(f"gp_weight must not be negative, got {gp_weight}")
        self.n_critic, self.gp_weight = n_critic, gp_weight

    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        """One critic step, and a generator step when it is due."""
        metrics, batch = self.discriminator_step(real), self.batch_of(real)
        if (nimg // batch + 1) % self.n_critic == 0:
            metrics |= self.generator_step(len(real))
            self.ema.update(batch * self.n_critic, nimg + batch)
        return metrics
