"""What the training of StyleGAN and of StyleGAN2 shares: latents with mixed styles, noise of each image's own, the mean of w."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gan_uad.training import distributed
from gan_uad.training.adversarial import AdversarialTask

W_AVG_BETA = 0.995


@dataclass
class Latents:
    """What a batch of images is made from: z `[N, z_dim]`, from layer `crossover` on `z_mixed`, noise maps `[N, 1, H, W]` by layer."""

    z: Tensor
    z_mixed: Tensor | None
    crossover: int
    noise: list[Tensor]

    def ws(self, G: Any, part: slice) -> Tensor:
        """w for each layer of `G`, `[N, num_ws, w_dim]`, of one micro-batch."""
        ws: Tensor = G.spread(G.mapping(self.z[part]))
        if self.z_mixed is None:
            return ws
        mixed = G.spread(G.mapping(self.z_mixed[part]))
        return torch.cat([ws[:, : self.crossover], mixed[:, self.crossover :]], 1)

    def noise_of(self, part: slice) -> list[Tensor]:
        """Noise maps of one micro-batch."""
        return [maps[part] for maps in self.noise]


class StyleTask(AdversarialTask):
    """A task whose `G` is a `networks.layers.StyleGenerator`.

    `mixing`: probability that the images of a batch are made from two w each, which change places at a random layer.
    """

    mixing: float
    average_buffers = False  # w_avg is an average itself

    @property
    def layers_in_use(self) -> int:
        """How many layers, from the first on, take a w of their own now."""
        return int(self.G.synthesis.num_ws)

    def synthesize(self, ws: Tensor, noise: list[Tensor]) -> Tensor:
        """Images of ws `[N, num_ws, w_dim]` and noise maps."""
        images: Tensor = self.G.synthesis(ws, noise)
        return images

    def draw(self, count: int) -> Latents:
        """Fresh latents of `count` images in this process: z, two of them with probability `mixing`, and noise."""
        layers = self.layers_in_use
        z, z_mixed, crossover = self.draw_z(count), None, layers
        if float(torch.rand((), generator=self.rng)) < self.mixing:
            crossover = int(torch.randint(1, layers, (), generator=self.rng))
            z_mixed = self.draw_z(count)
        return Latents(z, z_mixed, crossover, self.normal(count, self.G.synthesis.noise_shapes[:layers]))

    def normal(self, count: int, shapes: Iterable[tuple[int, ...]]) -> list[Tensor]:
        """N(0, 1) of each shape for `count` images in this process; all processes draw the same whole batch.

        Drawn on the device, by a seed of their own: at high resolutions the CPU would take longer than the step.
        """
        seed = int(torch.randint(1 << 62, (), generator=self.rng))
        rng, world = torch.Generator(self.device).manual_seed(seed), distributed.world()
        return [
            distributed.share(torch.randn(count * world.size, *shape, generator=rng, device=self.device), world)
            for shape in shapes
        ]

    def make(self, latents: Latents, part: slice) -> Tensor:
        """Images of one micro-batch."""
        return self.synthesize(latents.ws(self.G, part), latents.noise_of(part))

    @torch.no_grad()
    def track(self, latents: Latents) -> None:
        """Let `w_avg` follow the w of a generator step, before the step changes the mapping network."""
        w = self.G.mapping(latents.z)
        self.G.mapping.track(distributed.mean(w.mean(0, keepdim=True)), W_AVG_BETA)
