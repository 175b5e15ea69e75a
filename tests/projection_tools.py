"""What the tests of projection share: tiny generators, and a perceptual distance that needs no weights and little time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_uad import registry
from gan_uad.features.base import FeatureNet
from gan_uad.features.lpips import PerceptualDistance

SIZES: dict[str, Any] = {"resolution": 32, "z_dim": 8, "channel_base": 128, "channel_max": 16}
STYLE = {"w_dim": 8, "mapping_layers": 2}


class Colours(FeatureNet):
    """The pixels and their 4×4 means, each with a constant beside the colours, so that brightness survives the normalisation."""

    metric, dim, weights, preprocessing = "FD-colours", 4, "none sha256:0", "as they are"

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images.float(), (0, 0, 0, 0, 0, 1), value=1.0).mean((2, 3))

    def maps(self, images: Tensor) -> list[Tensor]:
        shown = F.pad(images, (0, 0, 0, 0, 0, 1), value=1.0)
        return [shown, F.avg_pool2d(shown, 4)]


def colour_distance(name: str = "") -> PerceptualDistance:
    return PerceptualDistance("colour distance", Colours(), [torch.ones(4), torch.ones(4)]).eval()


def toy(family: str) -> dict[str, Any]:
    """A GAN of random weights, with noise maps that are seen and images about as far apart as those of a trained one."""
    torch.manual_seed(0)
    gan = registry.build("network", family, SIZES | (STYLE if family.startswith("style") else {}))
    G = gan.G.eval()
    z = torch.randn(64, SIZES["z_dim"])
    with torch.no_grad():
        if family.startswith("style"):
            for layer in G.synthesis.layers:
                layer.noise_strength.fill_(0.05)
        if family == "dcgan":
            G.layers[-1].weight.mul_(1000)
        if family == "stylegan2":
            for to_rgb in G.synthesis.to_rgb:
                to_rgb.conv.weight.mul_(0.7 / G(z).abs().amax())
    return {"gan": gan}


def made(nets: dict[str, Any], count: int, seed: int = 5) -> Tensor:
    """Images that the generator makes."""
    G = nets["gan"].G
    z = torch.randn(count, G.z_dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        images: Tensor = G(z).clamp(-1, 1)
    return images
