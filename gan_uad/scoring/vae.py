"""Anomaly scores of a variational autoencoder: the error of its reconstruction, and how unusual the latent is."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gan_uad.errors import UserError
from gan_uad.features.lpips import PERCEPTUAL, PerceptualDistance, perceptual_distance
from gan_uad.metrics.emd import intensity_emd
from gan_uad.metrics.ssim import ssim
from gan_uad.networks.vae import kl_divergence, squared_error
from gan_uad.registry import register
from gan_uad.scoring.base import Scores
from gan_uad.scoring.combining import CombiningScorer
from gan_uad.scoring.gan_inversion import COLUMN_OF

Score = Literal["elbo", "reconstruction", "kl", "l1", "emd", "ssim", "perceptual"]
Map = Literal["l1", "ssim", "perceptual"]


@register("vae", kind="scorer")
class VAEScorer(CombiningScorer):
    """Distance of an image to its reconstruction from μ (nothing is sampled), and of q(z|x) to N(0, 1); `score` chooses the score.

    Components: `reconstruction`, the sum of squared differences; `kl`, KL(q(z|x) ‖ N(0, 1)) in nats; `elbo`, the negative ELBO, their sum
    (for any β of the training); `l1`, the mean absolute difference; `emd`, the earth mover's distance between the intensities (Sikdar
    et al.; `metrics.emd`); `ssim`, 1 − SSIM; and the `perceptual` distance ("none" leaves it out), called `effnet_lite0`,
    `lpips_vgg` or `lpips_alex` as in `gan_inversion`. All of images in [-1, 1].

    `map`: `l1` (the absolute difference averaged over colours), `ssim` (1 − SSIM) or `perceptual`, per pixel; by default that of the
    score where it has one, else `l1`. The earth mover's distance has no map.

    `combine` "fisher", "max": `CombiningScorer`, without `elbo`, the sum of two other components, unless `components` names it.
    """

    COMPONENTS = ("reconstruction", "kl", "elbo", "l1", "emd", "ssim", *COLUMN_OF.values())
    REPEATED = frozenset({"elbo"})

    def __init__(
        self,
        nets: dict[str, Any],
        device: torch.device,
        score: Score = "elbo",
        map: Map | None = None,
        perceptual: Literal["none", "efficientnet_lite0", "vgg", "alex"] = "efficientnet_lite0",
        combine: str = "own",
        components: list[str] | None = None,
    ) -> None:
        super().__init__(combine, components)
        if "vae" not in nets:
            raise UserError(f"the scorer vae needs a trained VAE, not {', '.join(nets)}")
        self.net, self.device = nets["vae"], device
        self.resolution = self.net.resolution
        self.perceptual: PerceptualDistance | None = None
        if perceptual != "none":
            self.perceptual = perceptual_distance(perceptual).to(device)
            self.rests_on = f"{self.perceptual.name} {self.perceptual.weights}"
        elif "perceptual" in (score, map):
            raise ValueError(f"score or map is perceptual, and perceptual is none: use one of {', '.join(PERCEPTUAL)}")
        self.column = COLUMN_OF.get(perceptual, "")
        self.chosen: str = self.column if score == "perceptual" else score
        self.shown: str = map or (score if score in ("ssim", "perceptual") else "l1")

    @torch.no_grad()
    def score_batch(self, images: Tensor) -> Scores:
        """See `Scorer`. Raises `UserError` for a model that gives NaN or infinity."""
        given = images.to(self.device, memory_format=torch.channels_last)
        again, mu, logvar = self.net(given)
        if not (again.isfinite().all() and mu.isfinite().all() and logvar.isfinite().all()):
            raise UserError("the VAE gives NaN or infinity: it diverged in training, or its file is damaged")
        difference = (given - again).abs().mean(1)
        error, kl = squared_error(given, again), kl_divergence(mu, logvar)
        pixels, others = images.cpu().numpy(), again.cpu().numpy()
        likeness, likeness_map = ssim(pixels, others)
        components = {
            "reconstruction": error,
            "kl": kl,
            "elbo": error + kl,
            "l1": difference.mean((1, 2)),
            "emd": _tensor(intensity_emd(pixels, others)),
            "ssim": _tensor(1 - likeness),
        }
        maps = {"l1": difference, "ssim": _tensor(1 - likeness_map)}
        if self.perceptual is not None:
            features = self.perceptual.features(given, check=False), self.perceptual.features(again)
            components[self.column] = self.perceptual.distance(*features)
            if self.shown == "perceptual":
                maps["perceptual"] = self.perceptual.maps(given, again)
        on_cpu = {name: values.float().cpu() for name, values in components.items()}
        return Scores(on_cpu[self.chosen], on_cpu, maps[self.shown].float().cpu(), again.cpu())

    def networks(self) -> dict[str, Any]:
        return {"vae": self.net}


def _tensor(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
