"""Anomaly scores from the closest normal image that a generator can make."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from gan_uad.features.lpips import PERCEPTUAL, PerceptualDistance, perceptual_distance
from gan_uad.networks.sampling import style_based
from gan_uad.registry import register
from gan_uad.scoring.base import Scores, check_images
from gan_uad.scoring.combining import CombiningScorer
from gan_uad.scoring.components import LatentCloud, painted, shell_distance, smoothed
from gan_uad.scoring.distance import ImageDistance

COLUMN_OF = {"vgg": "lpips_vgg", "alex": "lpips_alex", "efficientnet_lite0": "effnet_lite0"}
COLUMNS = {"LPIPS-vgg": "lpips_vgg", "LPIPS-alex": "lpips_alex", "EffNetLite0 distance": "effnet_lite0"}
COMPONENTS = ("residual", "features", "l1", "l2", *COLUMNS.values(), "latent", "z_shell", "w_mahalanobis", "noise")
MAX_SMOOTH = 100  # px: more leaves nothing of a map
BATCHES = 2  # micro-batches of a search in one chunk: slots that are done early get more work, and a stop loses little


class Inverts(Protocol):
    """What scoring needs of an inverter (`encoders.base.Inverter`).

    An inverter that searches has `steps`. One that minimises a perceptual distance, and not its `distance`, has it as `perceptual`.
    """

    spec: dict[str, Any]
    generator: Any
    discriminator: Any
    device: torch.device
    distance: ImageDistance
    micro_batch: int

    def invert(self, images: Tensor) -> Any:
        """Images -> an object with `latent`, `space`, `reconstruction`, `noise`."""

    def measure(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """What the method itself minimises, `[N]`."""

    def networks(self) -> dict[str, Any]:
        """The nets by role."""

    def latent_distance(self, latent: Tensor, reconstruction: Tensor) -> Tensor | None:
        """`[N]`, or None where the inverter has none."""


@register("gan_inversion", kind="scorer")
class GanInversionScorer(CombiningScorer):
    """Distance to the closest normal image G(·) that an inverter finds for an image x, in several components.

    Components, each `[N]`, higher = further from normal:

    - `residual` (A_R), `features` (A_D, on the discriminator's features): the terms of the method's `ImageDistance`;
    - `l1`, `l2`: mean |x − G| and mean (x − G)²;
    - `lpips_vgg`, `lpips_alex` or `effnet_lite0`: the perceptual distance;
    - `latent`, with an encoder: how far the reconstruction's own latent is from the one found (of z mean (E(x) − E(G(E(x))))², of w ‖·‖²
      over w_std², averaged over the layers);
    - `w_mahalanobis`, StyleGAN and StyleGAN2: of w to the Gaussian of mapped z (`LatentCloud`); other generators: `z_shell`, how far
      ‖z‖ is from that of N(0, 1) (PGAN uses the direction of z alone, so there it only tells how far a search strayed);
    - `noise`, where noise maps were found too: how much they reduce the squared difference (`painted`).

    `combine` "own": the method's score, such as A(x) = A_R + κ·A_D (f-AnoGAN, section 2.3); "fisher", "max": `CombiningScorer`, without
    `residual`, which is `l1` or `l2` on another scale, unless `components` names it.

    The maps are |x − G| averaged over colours, in [0, 2], and that of the perceptual distance, under a Gaussian of `smooth` px.
    Before calibration `map` is the first alone.
    """

    COMPONENTS = COMPONENTS
    REPEATED = frozenset({"residual"})

    def __init__(
        self,
        inverter: Inverts,
        combine: str = "own",
        components: list[str] | None = None,
        perceptual: str | None = None,
        smooth: float = 1.0,
    ) -> None:
        """`perceptual`: "none" or one of `PERCEPTUAL`; None: the inverter's own, if it has one. Raises `ValueError` and `UserError`."""
        super().__init__(combine, components)
        if perceptual not in (None, "none", *PERCEPTUAL):
            raise ValueError(f"perceptual must be none or one of {', '.join(PERCEPTUAL)}, got {perceptual!r}")
        if not 0 <= smooth <= MAX_SMOOTH:  # also false for NaN
            raise ValueError(f"smooth must be in [0, {MAX_SMOOTH}], got {smooth}")
        self.inverter, self.smooth = inverter, smooth
        self.micro_batch, self.resolution = inverter.micro_batch, inverter.generator.resolution
        self.chunk = BATCHES * self.micro_batch if getattr(inverter, "steps", 0) else None
        self._theirs: PerceptualDistance | None = getattr(inverter, "perceptual", None)
        self.perceptual = self._perceptual(perceptual)
        weights = "" if self.perceptual is None else self.perceptual.weights
        self.rests_on = "; ".join(dict.fromkeys(text for text in (getattr(inverter, "rests_on", ""), weights) if text))
        self._cloud: LatentCloud | None = None

    def _perceptual(self, name: str | None) -> PerceptualDistance | None:
        theirs = self._theirs
        if name is None or (theirs is not None and COLUMNS[theirs.name] == COLUMN_OF.get(name)):
            return theirs
        return None if name == "none" else perceptual_distance(name).to(self.inverter.device)

    def measure(self, images: Tensor) -> Scores:
        """See `Scorer`; `image` is the method's own score. The inverter gets all images at once: it has batches of its own."""
        check_images(images, self.resolution)
        images = images.to(self.inverter.device)
        found = self.inverter.invert(images)
        pieces = []
        for start in range(0, len(images), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            count = len(images[rows])
            lacking = self.micro_batch - count
            # Padded by copies, since some components of an empty image would be infinite.
            chosen = torch.cat([torch.arange(start, start + count), torch.full((lacking,), start)])
            pieces.append(self._measured(images[chosen], found.take(chosen)).take(slice(count)))
        return Scores.concatenate(pieces)

    @torch.no_grad()
    def _measured(self, images: Tensor, found: Any) -> Scores:
        """Scores of exactly `micro_batch` images and what was found for them."""
        inverter, closest = self.inverter, found.reconstruction
        difference = images - closest
        components = inverter.distance.components(images, closest, inverter.discriminator.features)
        components |= {"l1": difference.abs().mean((1, 2, 3)), "l2": difference.square().mean((1, 2, 3))}
        maps = {"difference": difference.abs().mean(1)}
        if self.perceptual is not None:
            name = COLUMNS[self.perceptual.name]
            components[name], maps[name] = self.perceptual(images, closest), self.perceptual.maps(images, closest)
        latent = inverter.latent_distance(found.latent, closest)
        if latent is not None:
            components["latent"] = latent
        components |= self._of_latent(images, found)
        # The first equals `measure`, which would run the discriminator again.
        own = inverter.distance.total(components) if self._theirs is None else inverter.measure(images, closest)
        maps = {name: smoothed(values.cpu(), self.smooth) for name, values in maps.items()}
        return Scores(own.cpu(), {k: v.cpu() for k, v in components.items()}, maps["difference"], closest.cpu(), maps)

    def _of_latent(self, images: Tensor, found: Any) -> dict[str, Tensor]:
        G = self.inverter.generator
        if not style_based(G):
            return {"z_shell": shell_distance(found.latent)}
        self._cloud = self._cloud or LatentCloud(G)
        w = G.mapping(found.latent) if found.space == "z" else found.latent
        components = {"w_mahalanobis": self._cloud.distance(w)}
        if found.noise is not None:
            components["noise"] = painted(G, w if w.ndim == 3 else G.spread(w), images, found.reconstruction)
        return components

    def networks(self) -> dict[str, Any]:
        return self.inverter.networks()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        super().load_tensors(tensors)
        self._cloud = None
