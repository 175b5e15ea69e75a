"""Score components from a latent and its noise maps, one number per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_uad.errors import UserError
from gan_uad.metrics.shrinkage import ShrinkageMoments
from gan_uad.scoring.mahalanobis import Normals

SAMPLES = 10_000  # z mapped to estimate the distribution of w
AT_ONCE = 1000


class LatentCloud:
    """The Gaussian of the w that a style-based generator maps from z ~ N(0, 1): where latents of normal images are expected."""

    def __init__(self, G: Any) -> None:
        """Fit to 10,000 z of seed 0; the covariance is shrunk (Ledoit & Wolf 2004). Raises `UserError` where w does not vary."""
        device = next(G.parameters()).device
        moments = ShrinkageMoments(G.w_dim)
        with torch.no_grad():
            for z in torch.randn(SAMPLES, G.z_dim, generator=torch.Generator().manual_seed(0)).split(AT_ONCE):
                moments.update(G.mapping(z.to(device)).float().cpu().numpy())
        try:
            self.normals = Normals(moments.gaussian(), moments.shrinkage())
        except UserError:
            raise UserError(
                "the generator maps all z to almost the same w, so no distance of w can be measured: it has collapsed, or was not trained"
            ) from None

    def distance(self, w: Tensor) -> Tensor:
        """Mahalanobis distances `[N]` of w `[N, w_dim]`; of ws `[N, num_ws, w_dim]` the mean over the layers."""
        each = self.normals.distance(w.detach().double().cpu().reshape(-1, w.shape[-1]).numpy())
        return each.view(len(w), -1).mean(1).float()


def shell_distance(z: Tensor) -> Tensor:
    """How far ‖z‖² `[N]` is from that of z ~ N(0, 1) `[N, d]`, in standard deviations: |‖z‖² − d| / √(2d) (χ² of d degrees of freedom).

    Draws from N(0, 1) lie in a thin shell about the origin: z near 0 are as unlike them as z far out.
    """
    d = z.shape[1]
    return ((z.double().square().sum(1) - d).abs() / (2 * d) ** 0.5).float()


def painted(G: Any, ws: Tensor, images: Tensor, reconstruction: Tensor) -> Tensor:
    """How much the noise maps of a search reduce the difference to its images, `[N]`: mean (x − G(ws))² − mean (x − y)².

    y is the `reconstruction` with the maps that were found, G(ws) the one with the generator's own fixed maps, ws `[N, num_ws, w_dim]`.
    About 0 where the maps are mere noise. A search paints into them what no latent can generate, so that a reconstruction is closer to an
    image than normal tissue would be. The energy of the maps does not show that, since the search keeps it at 1, nor does the correlation
    of neighbours, which its regulariser keeps below that of white noise.
    """
    plain = G.synthesis(ws, "const").clamp(-1, 1)
    return (images - plain).square().mean((1, 2, 3)) - (images - reconstruction).square().mean((1, 2, 3))


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Maps `[N, H, W]` on the CPU, each under a Gaussian of `sigma` px (0: as they are), mirrored at the edges."""
    if sigma == 0:
        return maps
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(maps.numpy(), (0, sigma, sigma)))
