"""An encoder into W or W+ of StyleGAN and StyleGAN2, alone or as the start of a short search.

Štepec & Skočaj (2020) name it as future work. It is trained on normal images and on generated ones, whose w is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encoders.base import Inversion, Inverter, SearchState
from encoders.izi import EncoderTask
from encoders.noise import autocorrelation
from encoders.projection import LatentSearch, mapped_w, w_statistics
from gan_uad.checkpoint import load_weights
from gan_uad.data.patches import PatchSet
from gan_uad.device import upload
from gan_uad.errors import UserError
from gan_uad.features.lpips import perceptual_distance
from gan_uad.networks.sampling import style_based
from gan_uad.networks.style_encoder import Code
from gan_uad.registry import register
from gan_uad.training import distributed
from gan_uad.training.ema import EMA
from gan_uad.training.validation import per_image

NOISE_WEIGHT = 0.1


@dataclass
class Drawn:
    """The inputs of generated images: z `[K, z_dim]` and noise maps `[K, 1, h, w]` of each layer; their share of the batch."""

    z: Tensor
    noise: list[Tensor]
    share: float

    def __getitem__(self, rows: slice) -> Drawn:
        """Those of a micro-batch."""
        return Drawn(self.z[rows], [maps[rows] for maps in self.noise], self.share)


@register("style_encoder", kind="task")
class StyleEncoderTask(EncoderTask):
    """Train a `style_encoder` E against a frozen StyleGAN or StyleGAN2: each image x should be y = synthesis(E(x)).

    For each image, the sum of: `pixel_weight` · mean (x − y)²; `perceptual_weight` · the distance called `perceptual`;
    `feature_weight` · mean (f(x) − f(y))², f the discriminator's features; `spread_weight` · mean over layers of ‖ws − w_avg‖² / w_std².
    The share `generated` of a batch is not normal images but images generated from z ~ N(0, 1) and new noise, which add
    `latent_weight` · mean over layers of ‖ws − w‖² / w_std². `noise_weight` · `noise.autocorrelation` keeps predicted noise maps like
    white noise; without predicted maps, y has the layers' own fixed ones.

    Adam; the exported and validated encoder is a moving average of half-life `ema_kimg`. Validation: median distance on normals.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        generator: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        ema_kimg: float = 1.0,
        perceptual: str = "efficientnet_lite0",
        pixel_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        feature_weight: float = 0.1,
        spread_weight: float = 0.01,
        latent_weight: float = 0.1,
        noise_weight: float = NOISE_WEIGHT,
        generated: float = 0.25,
    ) -> None:
        weights = (pixel_weight, perceptual_weight, feature_weight, spread_weight, latent_weight, noise_weight)
        if not all(0 <= weight < math.inf for weight in weights) or not 0 <= generated <= 1:
            raise ValueError(f"weights must not be negative and generated in [0, 1], got {weights} and {generated}")
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be above 0, got {lr}")
        self.betas, self.generated = betas, generated
        names = ("pixel", "perceptual", "features", "spread", "latent", "noise")
        self.weights = dict(zip(names, weights, strict=True))
        super().__init__(model, device, seed, generator, lr)
        self.perceptual = perceptual_distance(perceptual).to(device)
        self.E.centre(*w_statistics(mapped_w(self.gan.G)))
        self.ema = EMA(self.E, ema_kimg)

    def check_fit(self) -> None:
        E, G = self.E, self.gan.G
        if not style_based(G):
            raise ValueError(
                f"its generator must be a StyleGAN or StyleGAN2, which have a w; {self.gan.spec['name']} has none"
            )
        if not hasattr(E, "num_ws"):
            raise ValueError(f"it trains an encoder into w, such as style_encoder, not {E.spec['name']}")
        for name, ours, theirs in (
            ("resolution", E.resolution, G.resolution),
            ("w_dim", E.w_dim, G.w_dim),
            ("num_ws", E.num_ws, G.synthesis.num_ws),
            ("noise maps", E.noise_shapes, G.synthesis.noise_shapes),
        ):
            if ours is not None and ours != theirs:
                raise ValueError(
                    f"encoder and generator do not fit: {name} of the encoder {ours}, of the generator {theirs}"
                )

    def optimizer_of(self, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.E.parameters(), lr, self.betas, fused=True)

    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        metrics = super().step(real, nimg)
        count = self.batch_of(real)
        self.ema.update(count, nimg + count)
        return metrics

    def draw(self, count: int) -> Drawn:
        """Inputs of the images that replace the first of `count` images in this process: its share of those of the batch."""
        here = distributed.world()
        total = round(self.generated * count * here.size)
        z = torch.randn(total, self.gan.G.z_dim, generator=self.rng)
        # On the device, by a seed of their own: at high resolutions the CPU would take longer than the step.
        rng = torch.Generator(self.device).manual_seed(int(torch.randint(1 << 62, (), generator=self.rng)))
        noise = [
            distributed.share(torch.randn(total, *shape, generator=rng, device=self.device), here)
            for shape in self.gan.G.synthesis.noise_shapes
        ]
        return Drawn(upload(distributed.share(z, here), self.device), noise, total / (count * here.size))

    def loss(self, real: Tensor, drawn: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        """See `EncoderTask`; the first images of `real` are replaced by generated ones."""
        G = self.gan.G
        with torch.no_grad():
            w = G.mapping(drawn.z)
            images = torch.cat([G.synthesis(G.spread(w), drawn.noise).clamp(-1, 1), real[len(w) :]])
        code: Code = self.E(images)
        terms = self.distances(images, self.synthesize(code))
        terms["spread"] = w_distance(self.E, code.ws, self.E.w_avg)
        if code.noise is not None:
            terms["noise"] = autocorrelation(code.noise)
        metrics = {name: values.mean() for name, values in terms.items()}
        # Over all images of the pass, so that the mean over a batch does not depend on its split into micro-batches.
        metrics["latent"] = w_distance(self.E, code.ws[: len(w)], w[:, None]).sum() / len(images)
        value = torch.stack([self.weights[name] * metric for name, metric in metrics.items()]).sum()
        if drawn.share:
            metrics["latent"] = metrics["latent"] / drawn.share
        return value, metrics

    def distances(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Distances of images to their reconstructions, each `[N]`."""
        D = self.gan.D
        with torch.no_grad():
            features = D.features(images)
        with torch.autocast(self.device.type, enabled=False):
            with torch.no_grad():
                seen = self.perceptual.features(images, check=False)  # a check would wait for the device
            distance = self.perceptual.distance(seen, self.perceptual.features(reconstruction, check=False))
        return {
            "pixel": (images - reconstruction).square().mean((1, 2, 3)),
            "perceptual": distance,
            "features": (features - D.features(reconstruction)).square().mean(1),
        }

    def synthesize(self, code: Code) -> Tensor:
        """Images of what an encoder found."""
        images: Tensor = self.gan.G.synthesis(code.ws, "const" if code.noise is None else code.noise)
        return images

    def reconstruct(self, images: Tensor) -> Tensor:
        """See `EncoderTask`; by the averaged encoder."""
        return self.synthesize(self.ema.net(images)).clamp(-1, 1)

    def validator(self, patches: PatchSet) -> ReconstructionValidator:
        return ReconstructionValidator(self, patches)

    def networks(self) -> dict[str, nn.Module]:
        """The averaged encoder and its GAN."""
        return {"gan": self.gan, "encoder": self.ema.net}

    def start_from(self, trained: dict[str, nn.Module], context: str) -> None:
        """See `EncoderTask`; the mean and spread of w are this generator's."""
        super().start_from(trained, context)
        self.E.centre(*w_statistics(mapped_w(self.gan.G)))
        self.ema.net.load_state_dict(self.E.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "ema": self.ema.net.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        load_weights(self.ema.net, state["ema"], "the checkpoint")


class ReconstructionValidator:
    """Validates an encoder by its reconstructions of validation normals: medians of the perceptual and the pixel distance.

    In float32; processes share the images.
    """

    metric, larger = "val_perceptual", False

    def __init__(self, task: StyleEncoderTask, patches: PatchSet) -> None:
        """Raises `UserError` when no patch is normal."""
        self.task, self.patches = task, patches.select(label=0)
        if len(self.patches) == 0:
            raise UserError(f"{patches.source}: no normal image among the {len(patches)} validation images")

    def validate(self, nimg: int) -> dict[str, float]:
        task = self.task

        def distances(images: Tensor) -> Tensor:
            found = task.distances(images, task.reconstruct(images))
            return torch.stack([found["perceptual"], found["pixel"]], 1)

        perceptual, pixel = per_image(self.patches, task.device, 2, distances).median(0).values.tolist()
        return {"val_perceptual": perceptual, "val_pixel": pixel}


def w_distance(E: Any, ws: Tensor, w: Tensor) -> Tensor:
    """‖ws − w‖² / w_std² averaged over the layers, `[N]`: about 2 between two w of the mapping network."""
    distance: Tensor = (ws - w).square().sum(2).mean(1) / E.w_std**2
    return distance


@register("style_encoder", kind="inverter")
class StyleEncoderInverter(LatentSearch):
    """The encoder's w of each layer and noise maps, alone (`steps` 0) or as the start of a short search.

    The search is that of `LatentSearch` at a lower rate, without noise on the latents, which would only lead away from a good start, and
    with the encoder's own `noise_weight` (that of a search from random noise outweighs the distance by far, and would first erase the
    maps of the encoder). The other options are those of `LatentSearch`.
    """

    space = "ws"
    explore = 0.0

    def __init__(
        self,
        nets: dict[str, Any],
        device: torch.device,
        steps: int = 50,
        lr: float = 0.03,
        perceptual: str = "efficientnet_lite0",
        tol: float = 0.0,
        seed: int = 0,
        noise_weight: float = NOISE_WEIGHT,
        kappa: float = 1.0,
        micro_batch: int = 8,
    ) -> None:
        """Raises `ValueError` for options, and `UserError` where weights are missing."""
        if not hasattr(nets.get("encoder"), "num_ws"):
            raise ValueError(
                "this model has no encoder into w; train one (gan-uad train style_encoder_64 --generator RUN) or use --inverter w"
            )
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}")
        super().__init__(nets, device, max(steps, 1), lr, perceptual, tol, 1, seed, noise_weight, kappa, micro_batch)
        self.steps = steps

    def start(self, images: Tensor, attempt: int = 0) -> tuple[Tensor, list[Tensor] | None]:
        with torch.no_grad():
            code: Code = self.nets["encoder"](images)
        return code

    def stream(self, images: Tensor, progress: Callable[[float], None] | None = None) -> Iterator[SearchState]:
        if self.steps:
            return super().stream(images, progress)
        return Inverter.stream(self, images, progress)

    def _invert(self, images: Tensor) -> Inversion:
        """The encoder alone."""
        ws, noise = self.start(images)
        steps = torch.zeros(len(images), dtype=torch.long)
        return Inversion(ws, self.reconstruct(ws, noise), steps, images.new_zeros(0, len(images)), noise, self.space)

    def latent_distance(self, latent: Tensor, reconstruction: Tensor) -> Tensor:
        """How far ws of the reconstruction, by the encoder, are from those found, per image `[N]`: see `w_distance`."""
        return w_distance(self.nets["encoder"], latent, self.start(reconstruction)[0])
