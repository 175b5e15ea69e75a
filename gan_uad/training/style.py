"""The base of StyleGAN's and StyleGAN2's training: latents with mixed styles, noise of each image, the mean of w."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gan_uad.training import distributed
from gan_uad.training.adversarial import AdversarialTask, frozen
from gan_uad.training.losses import nonsaturating_G

W_AVG_BETA = 0.995


@dataclass
class BatchLatents:
    """The input of the generator for a batch: z `[N, z_dim]`, from layer `crossover` on `z_mixed`; noise maps `[N, 1, H, W]` by layer."""

    z: Tensor
    z_mixed: Tensor | None
    crossover: int
    noise: list[Tensor]

    def ws(self, G: Any, part: slice) -> Tensor:
        """w for each layer of `G`, `[N, num_ws, w_dim]`, of one micro-batch; that of the first layer is always of `z`."""
        if self.z_mixed is None:
            ws: Tensor = G.spread(G.mapping(self.z[part]))
            return ws
        w, mixed = G.mapping(torch.cat([self.z[part], self.z_mixed[part]])).chunk(2)
        return torch.cat([G.spread(w)[:, : self.crossover], G.spread(mixed)[:, self.crossover :]], 1)

    def noise_of(self, part: slice) -> list[Tensor]:
        """Noise maps of one micro-batch."""
        return [maps[part] for maps in self.noise]


class StyleTask(AdversarialTask):
    """A task whose `G` is a `networks.layers.StyleGenerator`.

    `mixing`: probability that each image of a batch uses two w, the second one from a random layer on.
    """

    mixing: float
    average_buffers = False  # w_avg is an average itself
    guarded = True

    @property
    def layers_in_use(self) -> int:
        """How many layers, from the first on, are in use now."""
        return int(self.G.synthesis.num_ws)

    def synthesize(self, ws: Tensor, noise: list[Tensor]) -> Tensor:
        """Images of ws `[N, num_ws, w_dim]` and noise maps."""
        images: Tensor = self.G.synthesis(ws, noise)
        return images

    def draw(self, count: int) -> BatchLatents:
        """Fresh latents of `count` images in this process: z, two of them with probability `mixing`, and noise."""
        layers = self.layers_in_use
        z, z_mixed, crossover = self.draw_z(count), None, layers
        if float(torch.rand((), generator=self.rng)) < self.mixing:
            crossover = int(torch.randint(1, layers, (), generator=self.rng))
            z_mixed = self.draw_z(count)
        return BatchLatents(z, z_mixed, crossover, self.normal(count, self.G.synthesis.noise_shapes[:layers]))

    def normal(self, count: int, shapes: Iterable[tuple[int, ...]]) -> list[Tensor]:
        """N(0, 1) of each shape for `count` images in this process; all processes draw the same complete batch.

        Drawn on the device from a seed: at high resolutions the CPU would take longer than the step.
        """
        seed = int(torch.randint(1 << 62, (), generator=self.rng))
        rng, size = torch.Generator(self.device).manual_seed(seed), count * distributed.world().size
        return [distributed.share(torch.randn(size, *shape, generator=rng, device=self.device)) for shape in shapes]

    def make(self, latents: BatchLatents, part: slice) -> Tensor:
        """Images of one micro-batch."""
        return self.synthesize(latents.ws(self.G, part), latents.noise_of(part))

    def draw_shown(self, count: int) -> Callable[[Tensor, slice], Tensor]:
        """What D sees of `count` images in this process, a micro-batch at a time: here the images as they are."""
        return lambda images, part: images

    def generator_step(self, count: int) -> dict[str, Tensor]:
        """Minimise −log σ(D(G(z))) over the generator, on `count` images in this process, and update the mean of w."""
        latents, shown = self.draw(count), self.draw_shown(count)
        sums: list[Tensor] = []

        def loss(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            ws = latents.ws(self.G, part)
            sums.append(ws[:, 0].detach().sum(0))
            value = nonsaturating_G(self.D(shown(self.synthesize(ws, latents.noise_of(part)), part)))
            return value, {"loss_G": value}

        with frozen(self.D):
            metrics = self.optimise(self.opt_G, count, loss)
        self.G.mapping.track(distributed.mean(torch.stack(sums).sum(0, keepdim=True) / count), W_AVG_BETA)
        return metrics
