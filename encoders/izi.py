"""f-AnoGAN's encoder (Schlegl et al. 2019): its three trainings izi, ziz and izi_f, and the inversion by one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from encoders.base import Inversion, Inverter
from gan_uad.checkpoint import load_weights
from gan_uad.device import upload
from gan_uad.errors import UserError
from gan_uad.registry import register
from gan_uad.scoring.distance import ImageDistance
from gan_uad.training import distributed
from gan_uad.training.optim import RMSpropTF
from gan_uad.training.task import Task


class EncoderTask(Task):
    """Train an encoder E against a frozen generator and discriminator, both in evaluation mode.

    `model` is the encoder, `generator` a trained GAN (`G`, `D`). RMSprop as in the original: 5e-5, decay 0.9, eps inside the root.
    """

    def __init__(self, model: Any, device: torch.device, seed: int, generator: Any, lr: float = 5e-5) -> None:
        self.E = model.to(device, memory_format=torch.channels_last).train()
        self.gan = generator.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.check_fit()
        self.device, self.rng = device, torch.Generator().manual_seed(seed)
        self.optimizer = self.optimizer_of(lr)
        self.shown: Tensor | None = None

    def check_fit(self) -> None:
        """Raise `ValueError` unless encoder and generator fit together."""
        if not hasattr(self.E, "z_dim"):
            raise ValueError(f"it trains an encoder into z, such as residual_encoder, not {self.E.spec['name']}")
        if (self.E.z_dim, self.E.resolution) != (self.gan.G.z_dim, self.gan.G.resolution):
            raise ValueError(
                f"the encoder (z_dim {self.E.z_dim}, {self.E.resolution} px) does not fit the generator "
                f"(z_dim {self.gan.G.z_dim}, {self.gan.G.resolution} px)"
            )

    def optimizer_of(self, lr: float) -> torch.optim.Optimizer:
        """The optimiser of the encoder."""
        return RMSpropTF(self.E.parameters(), lr)

    def draw(self, count: int) -> Any:
        """Latents for this process's `count` images of the batch; `[slice]` gives those of some. None where none are needed."""
        return None

    def loss(self, real: Tensor, drawn: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise for normal images (and latents as drawn), and its terms to log."""
        raise NotImplementedError

    def reconstruct(self, images: Tensor) -> Tensor:
        """G(E(x))."""
        reconstruction: Tensor = self.gan.G(self.E(images))
        return reconstruction

    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        """One optimiser step."""
        if self.shown is None:
            self.shown = real[:32].clone()
        drawn = self.draw(len(real))

        def loss(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            value, metrics = self.loss(real[rows], None if drawn is None else drawn[rows])
            return value, {"loss": value, **metrics}

        return self.optimise(self.optimizer, len(real), loss)

    def sample(self) -> Tensor:
        """Normal images, each followed by its reconstruction G(E(x)); images of the generator before the first step."""
        with torch.no_grad():
            shown = self.shown
            if shown is None:
                z = torch.randn(32, self.gan.G.z_dim, generator=torch.Generator().manual_seed(0)).to(self.device)
                shown = self.gan.G(z)
            self.E.eval()
            # A few at a time: a training leaves little memory.
            reconstructed = torch.cat([self.reconstruct(few) for few in shown.split(4)])
            self.E.train()
        return torch.stack([shown, reconstructed], 1).flatten(0, 1)

    def networks(self) -> dict[str, nn.Module]:
        """The encoder and its GAN, so that the file is complete."""
        return {"gan": self.gan, "encoder": self.E}

    def start_from(self, trained: dict[str, nn.Module], context: str) -> None:
        """See `Task`; the generator stays the one that was given."""
        if "encoder" not in trained:
            raise UserError(f"{context} holds no encoder, only {', '.join(trained) or 'a fitted scorer'}")
        load_weights(self.E, trained["encoder"].state_dict(), context)

    def state_dict(self) -> dict[str, Any]:
        """Encoder, optimiser, random numbers, and the frozen GAN: its run may have been trained on since."""
        return {
            "gan": self.gan.state_dict(),
            "encoder": self.E.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "shown": self.shown,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; raises `UserError` when it is of another architecture."""
        load_weights(self.gan, state["gan"], "the checkpoint")
        load_weights(self.E, state["encoder"], "the checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self.shown = None if state["shown"] is None else state["shown"].to(self.device)


@register("izi_f", kind="task")
class IziFTask(EncoderTask):
    """izi_f: mean (x − G(E(x)))² + κ·mean (f(x) − f(G(E(x))))², f the discriminator's features."""

    def __init__(
        self, model: Any, device: torch.device, seed: int, generator: Any, lr: float = 5e-5, kappa: float = 1.0
    ) -> None:
        super().__init__(model, device, seed, generator, lr)
        self.distance = ImageDistance("l2", "mean", 1.0, kappa)

    def loss(self, real: Tensor, drawn: None) -> tuple[Tensor, dict[str, Tensor]]:
        terms = self.distance.components(real, self.gan.G(self.E(real)), self.gan.D.features)
        return self.distance.total(terms).mean(), {name: value.mean() for name, value in terms.items()}


@register("izi", kind="task")
class IziTask(EncoderTask):
    """izi: mean (x − G(E(x)))²."""

    def loss(self, real: Tensor, drawn: None) -> tuple[Tensor, dict[str, Tensor]]:
        return (real - self.gan.G(self.E(real))).square().mean(), {}


@register("ziz", kind="task")
class ZizTask(EncoderTask):
    """ziz: mean (z − E(G(z)))², on generated images only."""

    def draw(self, count: int) -> Tensor:
        """z ~ N(0, 1)."""
        here = distributed.world()
        z = torch.randn(count * here.size, self.gan.G.z_dim, generator=self.rng)
        return upload(distributed.share(z, here), self.device)

    def loss(self, real: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `EncoderTask`; `real` is not used."""
        with torch.no_grad():
            images = self.gan.G(drawn)
        return (drawn - self.E(images)).square().mean(), {}


@register("izi_f", kind="inverter")
@register("izi", kind="inverter")
@register("ziz", kind="inverter")
class EncoderInverter(Inverter):
    """One forward pass of a trained encoder, from any of the three trainings. The score is f-AnoGAN's: A_R + κ·A_D, means of squares."""

    def __init__(self, nets: dict[str, Any], device: torch.device, kappa: float = 1.0, micro_batch: int = 16) -> None:
        if "encoder" not in nets:
            raise ValueError(
                "this model has no encoder; train one (gan-uad train izi_f_64 -o generator=RUN) or use --inverter anogan"
            )
        if not hasattr(nets["encoder"], "z_dim"):
            raise ValueError("this model's encoder gives w, not z: use --inverter style_encoder")
        super().__init__(nets, device, ImageDistance("l2", "mean", 1.0, kappa), micro_batch)

    def _invert(self, images: Tensor) -> Inversion:
        """No search, so `steps` is 0."""
        with torch.no_grad():
            z = self.nets["encoder"](images)
        steps = torch.zeros(len(images), dtype=torch.long)
        return Inversion(z, self.reconstruct(z), steps, images.new_zeros(0, len(images)))

    def latent_distance(self, latent: Tensor, reconstruction: Tensor) -> Tensor:
        """Mean (E(x) − E(G(E(x))))² per image, `[N]`."""
        with torch.no_grad():
            return (latent - self.nets["encoder"](reconstruction)).square().mean(1)
