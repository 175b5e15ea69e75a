"""What a latent and its noise maps tell of an image, beside the reconstruction: figures of one image each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_uad.errors import UserError
from gan_uad.metrics.shrinkage import ShrinkageMoments, shrunk

SAMPLES = 10_000  # z that are mapped to know the cloud of w
AT_ONCE = 1000
LEAST_SIDE = 8  # px of the smallest map whose neighbours are compared


class LatentCloud:
    """The Gaussian of w that a style-based generator makes of z ~ N(0, 1): where the latents of normal images are to be expected."""

    def __init__(self, G: Any) -> None:
        """From 10,000 z of seed 0; the covariance is shrunk (Ledoit & Wolf 2004). Raises `UserError` where w does not vary."""
        device = next(G.parameters()).device
        moments = ShrinkageMoments(G.w_dim)
        with torch.no_grad():
            for z in torch.randn(SAMPLES, G.z_dim, generator=torch.Generator().manual_seed(0)).split(AT_ONCE):
                moments.update(G.mapping(z.to(device)).float().cpu().numpy())
        gaussian = moments.gaussian()
        self.mean = torch.from_numpy(gaussian.mean)
        self.root, failed = torch.linalg.cholesky_ex(torch.from_numpy(shrunk(gaussian, moments.shrinkage())))
        if bool(failed):
            raise UserError(
                "the generator maps all z to w that hardly vary, so no distance of w to them can be measured: "
                "it has collapsed, or was not trained"
            )

    def distance(self, w: Tensor) -> Tensor:
        """Mahalanobis distances `[N]` of w `[N, w_dim]`; of ws `[N, num_ws, w_dim]` the mean over the layers."""
        away = w.double().cpu() - self.mean
        whitened = torch.linalg.solve_triangular(self.root, away.reshape(-1, away.shape[-1]).T, upper=False)
        return whitened.norm(dim=0).view(away.shape[:-1]).reshape(len(w), -1).mean(1).float()


def shell_distance(z: Tensor) -> Tensor:
    """How far ‖z‖² `[N]` is from that of z ~ N(0, 1) `[N, d]`, in standard deviations: |‖z‖² − d| / √(2d) (χ² of d degrees of freedom).

    Draws from N(0, 1) lie in a thin shell about the origin, so its middle is as unlike them as what is far out.
    """
    d = z.shape[1]
    return ((z.double().square().sum(1) - d).abs() / (2 * d) ** 0.5).float()


def whiteness(noise: list[Tensor]) -> Tensor:
    """How far noise maps `[N, 1, h, w]` of each layer are from white noise, `[N]`: 1 is what white noise gives on average.

    A search with noise maps paints into them what no latent can make; the plain energy does not show that, since the search keeps it at
    1. What is painted makes neighbours alike: the mean of H·W·r² over horizontal and vertical neighbours, over all maps and their
    halvings down to 8 px, r the correlation of neighbours, which are the terms of the search's own regulariser (Karras et al. 2020,
    appendix D) but each in units of its variance in white noise (Box & Pierce 1970): unweighted, small maps would outweigh the rest.
    Raises `ValueError` where no map has 8 px.
    """
    terms = []
    for maps in noise:
        level = maps.double()
        while level.shape[2] >= LEAST_SIDE:
            centred = level - level.mean((1, 2, 3), keepdim=True)
            power = centred.square().mean((1, 2, 3)).clamp_min(torch.finfo(torch.float64).tiny)
            for axis in (2, 3):
                r = (centred * centred.roll(1, axis)).mean((1, 2, 3)) / power
                terms.append(r.square() * level[0].numel())
            level = F.avg_pool2d(level, 2)
    if not terms:
        raise ValueError(f"noise: no map of {LEAST_SIDE} px or more")
    return torch.stack(terms).mean(0).float()


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Maps `[N, H, W]` on the CPU, each under a Gaussian of `sigma` px (0: as they are), mirrored at the edges."""
    if sigma == 0:
        return maps
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(maps.numpy(), (0, sigma, sigma)))
