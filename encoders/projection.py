"""StyleGAN2's projection (Karras et al. 2020, appendix D), for all generators and a whole batch of images at once.

From the paper and the original programs: the start is the mean w of 10,000 z, the spread of w is one number, w_std. Adam (0.9, 0.999) has
learning rate 0.1, which rises over the first 5 % and falls over the last 25 % of 1000 steps. Noise of 0.05 · w_std · max(0, 1 − t/0.75)² is
added to w. Noise maps are searched for too, under a regulariser of weight 1e5, and renormalised after each step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.base import Inversion, Inverter, SearchState, pixel_seed
from encoders.noise import autocorrelation, renormalise_
from encoders.search import Job, Schedule, Slots
from gan_uad.device import upload
from gan_uad.errors import JobFailed, UserError
from gan_uad.features.lpips import perceptual_distance
from gan_uad.features.weights import EMBEDDED
from gan_uad.networks.sampling import style_based
from gan_uad.registry import register
from gan_uad.scoring.base import check_images
from gan_uad.scoring.distance import ImageDistance

SAMPLES, SAMPLES_SEED = 10_000, 123  # the original's z
MAX_RESTARTS = 100  # clusters of those z; more would have few z each
EXPLORE = 0.05  # of the spread of the latent
NOISE_WEIGHT = 1e5
COMPARED = 256  # px; larger images are compared at this size


@torch.no_grad()
def mapped_w(G: Any, count: int = SAMPLES) -> Tensor:
    """w `[count, w_dim]` of z ~ N(0, 1), the same in every call."""
    z = np.random.RandomState(SAMPLES_SEED).randn(count, G.z_dim).astype(np.float32)
    device = next(G.parameters()).device
    return torch.cat([G.mapping(some.to(device)) for some in torch.from_numpy(z).split(1000)])


def w_statistics(w: Tensor) -> tuple[Tensor, float]:
    """Mean `[w_dim]` of w `[N, w_dim]`, and w_std = (Σ‖w − mean‖² / N)^½: one number, not one per dimension."""
    mean = w.double().mean(0)
    return mean.to(w.dtype), float((w.double() - mean).square().sum(1).mean().sqrt())


def w_centres(w: Tensor, count: int, seed: int) -> Tensor:
    """The centres `[count, w_dim]` of `count` clusters of w `[N, w_dim]` (k-means)."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=1, random_state=seed % 2**32).fit(w.double().cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(w)


class LatentSearch(Inverter):
    """Adam on latents and noise maps until the generator's image is close to the given one in a perceptual distance.

    `perceptual`: "vgg" (LPIPS; the reference) or "alex", which need weight files, or "efficientnet_lite0". `tol`: an image whose
    distance falls by less than this share over 5 % of the steps skips to the fall of the learning rate (see `Schedule`) and ends early;
    0, the reference: never. `restarts` k > 1: start from the centres of k clusters of w (in z: from k draws) and keep the closest image.
    `micro_batch` images are searched for at once; when one is done, the next takes its slot. Random numbers depend only on `seed` and the
    image's own pixels. `noise_weight`: weight of the whiteness of the noise maps against the distance. The reference's 1e5 is for maps of
    up to 1024 px: white noise of n × n px has correlations whose square is about 1/n², so that on small maps, as of a 64 px generator,
    the regulariser outweighs the distance by far and the maps hardly change; about 0.1 lets the search find them. `kappa`: see
    `EncoderInverter`.

    `loss_history` is the distance at each step, of the unclamped image with noise on its latent, without the regulariser.
    For generators without noise maps only z is searched.
    """

    explore = EXPLORE

    def __init__(
        self,
        nets: dict[str, Any],
        device: torch.device,
        steps: int = 1000,
        lr: float = 0.1,
        perceptual: str = "vgg",
        tol: float = 0.0,
        restarts: int = 1,
        seed: int = 0,
        noise_weight: float = NOISE_WEIGHT,
        kappa: float = 1.0,
        micro_batch: int = 8,
    ) -> None:
        """Raises `ValueError` for options, and `UserError` where weights are missing."""
        if not 0 <= noise_weight < math.inf:
            raise ValueError(f"noise_weight must not be negative, got {noise_weight}")
        if steps < 1 or not 0 < lr < math.inf:
            raise ValueError(f"steps must be at least 1 and lr above 0, got {steps} and {lr}")
        if not 0 <= tol < 1 or not 1 <= restarts <= MAX_RESTARTS:
            raise ValueError(f"tol must be in [0, 1) and restarts in [1, {MAX_RESTARTS}], got {tol} and {restarts}")
        self.styled = style_based(nets["gan"].G)
        if self.space != "z" and not self.styled:
            raise ValueError("this generator has no w (only StyleGAN and StyleGAN2 have one): use --inverter z")
        super().__init__(nets, device, ImageDistance("l2", "mean", 1.0, kappa), micro_batch)
        self.schedule, self.restarts, self.seed = Schedule(steps, lr, tol), restarts, seed
        self.steps, self.noise_weight = steps, noise_weight
        self.frames = 0  # images of the search to keep for each image
        try:
            found = perceptual_distance(perceptual)
        except UserError as error:
            raise UserError(f"{error.message}: or use perceptual={EMBEDDED}") from None
        self.perceptual = found.to(device).to(memory_format=torch.channels_last)
        self.rests_on = self.perceptual.weights
        G = self.generator
        self.noise_shapes: list[tuple[int, int, int]] = list(G.synthesis.noise_shapes) if self.styled else []
        self.latent_shape: tuple[int, ...] = (G.z_dim,) if self.space == "z" else (G.w_dim,)
        if self.space == "ws":
            self.latent_shape = (G.synthesis.num_ws, G.w_dim)
        self.sizes = [math.prod(shape) for shape in (self.latent_shape, *self.noise_shapes)]

    # ------------------------------------------------------------------ where to start

    @cached_property
    def w_mean_std(self) -> tuple[Tensor, float]:
        """See `w_statistics`."""
        return w_statistics(mapped_w(self.generator))

    @cached_property
    def latent_std(self) -> float:
        """Root mean square distance of latents from their mean: w_std, or that of N(0, 1) in z."""
        return self.generator.z_dim**0.5 if self.space == "z" else self.w_mean_std[1]

    @cached_property
    def centres(self) -> Tensor:
        """Where the attempts start in w, `[restarts, w_dim]`."""
        if self.restarts == 1:
            return self.w_mean_std[0][None]
        return w_centres(mapped_w(self.generator), self.restarts, self.seed)

    def start(self, images: Tensor, attempt: int = 0) -> tuple[Tensor, list[Tensor] | None]:
        """Latents `[micro_batch, ...]` of an attempt's start, and noise maps `[micro_batch, 1, h, w]` or None (drawn per image)."""
        if self.space == "z":
            draws = [torch.randn(self.latent_shape, generator=self._rng(image, 2 * attempt)) for image in images]
            return torch.stack(draws).to(self.device), None
        return self.centres[attempt].expand(len(images), *self.latent_shape), None

    def _rng(self, image: Tensor, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(pixel_seed(image, self.seed) + (purpose << 32))

    @torch.no_grad()
    def jobs(self, images: Tensor) -> Iterator[Job]:
        """All jobs, prepared a micro-batch at a time."""
        for begin in range(0, len(images), self.micro_batch):
            count = len(images[begin : begin + self.micro_batch])
            batch = self.padded(images[begin : begin + self.micro_batch])
            features = self.perceptual.features(_compared(batch))
            for attempt in range(self.restarts):
                latent, noise = self.start(batch, attempt)
                for i in range(count):
                    rng = self._rng(batch[i], 2 * attempt + 1)
                    if noise is None:
                        maps = [torch.randn(shape, generator=rng).to(self.device) for shape in self.noise_shapes]
                    else:
                        maps = [of_layer[i] for of_layer in noise]
                    values = torch.cat([latent[i].flatten(), *(of_layer.flatten() for of_layer in maps)])
                    yield Job(begin + i, attempt, [layer[i] for layer in features], values, rng)

    # ------------------------------------------------------------------ the search

    def stream(self, images: Tensor, progress: Callable[[float], None] | None = None) -> Iterator[SearchState]:
        """See `Inverter`: one image at a time. Raises `JobFailed` when the distance is not finite."""
        check_images(images, self.generator.resolution)
        waiting = self.jobs(images)
        slots = Slots(self.micro_batch, next(waiting))
        best: dict[int, tuple[float, SearchState]] = {}
        ended = [0] * len(images)
        while True:
            begun = time.perf_counter()
            slots.fill(waiting)
            at_work = slots.at_work()
            if not at_work:
                return
            self.step(slots)
            over = [(place, job) for place, job in at_work if job.step >= self.steps]
            results = self._results(slots, over)
            for _, job in at_work:
                job.seconds += (time.perf_counter() - begun) / len(at_work)
            for (place, job), (distance, found) in zip(over, results, strict=True):
                before = best.get(job.row, (math.inf, found))
                found.seconds = job.seconds + before[1].seconds
                if distance >= before[0]:
                    found, distance = replace(before[1], seconds=found.seconds), before[0]
                best[job.row] = (distance, found)
                ended[job.row] += 1
                slots.jobs[place] = None
            if progress is not None:
                progress((sum(ended) + sum(job.step / self.steps for _, job in slots.at_work())) / self.restarts)
            for row in sorted({job.row for _, job in over if ended[job.row] == self.restarts}):
                yield best.pop(row)[1]

    def step(self, slots: Slots) -> None:
        """One step of all jobs. Raises `JobFailed`."""
        jobs = slots.at_work()
        explored = self._exploration(jobs)
        rates = [0.0 if job is None else self.schedule.rate(job.step) for job in slots.jobs]
        with torch.enable_grad():
            values = slots.values.detach().requires_grad_()
            latent, noise = self._unpacked(values)
            generated = self._synthesize(latent + explored, noise)
            distance = self.perceptual.distance(self._features(generated), slots.targets)
            loss = distance.sum()
            if noise is not None:
                loss = loss + self.noise_weight * autocorrelation(noise).sum()
            (grad,) = torch.autograd.grad(loss, values)
        slots.adam.step_(slots.values, grad, rates)
        if noise is not None:
            renormalise_(self._unpacked(slots.values)[1] or [])
        found = distance.tolist()
        for place, job in jobs:
            if not math.isfinite(found[place]):
                raise JobFailed(
                    f"the search diverged at step {len(job.losses) + 1}: its distance is {found[place]}. "
                    f"Use a lower lr than {self.schedule.lr:g}; if that does not help, the model is damaged"
                )
            if self.frames and job.step >= len(job.frames) * self.steps / self.frames:
                job.frames.append(generated[place].detach().clamp(-1, 1).cpu())
            job.losses.append(found[place])
            job.step = self.schedule.after(job.step, job.losses)

    def _exploration(self, jobs: list[tuple[int, Job]]) -> Tensor:
        """The noise on the latents `[S, ...]`, from the random numbers of each image."""
        noise = torch.zeros(self.micro_batch, *self.latent_shape)
        for place, job in jobs:
            share = self.explore * self.schedule.exploration(job.step)
            if share:
                scale = share * self.latent_std
                noise[place] = torch.randn(self.latent_shape, generator=job.rng) * scale
        return upload(noise, self.device)

    @torch.no_grad()
    def _results(self, slots: Slots, over: list[tuple[int, Job]]) -> list[tuple[float, SearchState]]:
        """The distance reached and what was found for these jobs; seconds are filled in later."""
        if not over:
            return []
        latent, noise = self._unpacked(slots.values)
        reconstruction = self.reconstruct(latent, noise)
        distance = self.perceptual.distance(self._features(reconstruction), slots.targets).tolist()
        results = []
        for place, job in over:
            here = slice(place, place + 1)
            maps = None if noise is None else [of_layer[here].clone() for of_layer in noise]
            steps, history = torch.tensor([len(job.losses)]), torch.tensor(job.losses)[:, None]
            inversion = Inversion(latent[here].clone(), reconstruction[here].clone(), steps, history, maps, self.space)
            frames = torch.stack([*job.frames, reconstruction[place].cpu()]) if self.frames else None
            results.append((distance[place], SearchState([job.row], inversion, 0.0, frames)))
        return results

    # ------------------------------------------------------------------ images of latents

    @torch.no_grad()
    def reconstruct(self, latent: Tensor, noise: list[Tensor] | None = None) -> Tensor:
        """See `Inverter`; with `noise` maps as found, or None: the generator's own."""
        return self._synthesize(latent, noise).clamp(-1, 1)

    def measure(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """The perceptual distance `[N]`."""
        with torch.no_grad():
            return self.perceptual.distance(self._features(images), self._features(reconstruction))

    @property
    def measured(self) -> str:
        return self.perceptual.name

    def _unpacked(self, values: Tensor) -> tuple[Tensor, list[Tensor] | None]:
        """Values `[S, P]` -> latents, and noise maps where the generator has any."""
        latent, *noise = values.split(self.sizes, 1)
        maps = [values.unflatten(1, shape) for values, shape in zip(noise, self.noise_shapes, strict=True)]
        return latent.unflatten(1, self.latent_shape), maps or None

    def _synthesize(self, latent: Tensor, noise: list[Tensor] | None) -> Tensor:
        G = self.generator
        if not self.styled:
            images: Tensor = G(latent)
            return images
        ws = latent if self.space == "ws" else G.spread(G.mapping(latent) if self.space == "z" else latent)
        generated: Tensor = G.synthesis(ws, "const" if noise is None else noise)
        return generated

    def _features(self, images: Tensor) -> list[Tensor]:
        return self.perceptual.features(_compared(images), check=False)


def _compared(images: Tensor) -> Tensor:
    if images.shape[-1] <= COMPARED:
        return images
    return F.interpolate(images, (COMPARED, COMPARED), mode="area")


@register("w", kind="inverter")
class WSearch(LatentSearch):
    """One w for all layers, and noise maps: StyleGAN2's projection."""

    space = "w"


@register("w_plus", kind="inverter")
class WPlusSearch(LatentSearch):
    """A w for each layer (W+), and noise maps: closer images, but less like those of the generator itself."""

    space = "ws"


@register("z", kind="inverter")
class ZSearch(LatentSearch):
    """z, for any generator; with StyleGAN and StyleGAN2 through the mapping network, and noise maps."""

    space = "z"
