"""Loss terms of several tasks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_uad.networks.second_order import input_gradients_only


def slope_at(value: Tensor, x: Tensor) -> Tensor:
    """∂value/∂x of a scalar, which can be differentiated again. Each operation in the precision of its forward pass, under autocast too."""
    with input_gradients_only(), torch.autocast(x.device.type, enabled=False):
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
    return slope


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Mean of (‖∇critic(x̂)‖₂ − 1)² at x̂ = real + mix·(fake − real) (Gulrajani et al. 2017, algorithm 1).

    real, fake: `[N, C, H, W]`; mix: `[N]` in [0, 1], one value for each image. The critic must not mix the images of a batch.
    Returns a scalar that can be differentiated with respect to the critic's weights.
    """
    between = real.detach().lerp(fake.detach(), mix.view(-1, 1, 1, 1)).requires_grad_(True)
    slope = slope_at(critic(between).sum(), between)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def nonsaturating_G(on_fake: Tensor) -> Tensor:
    """Generator's loss, mean of −log σ(D(fake)) (Goodfellow et al. 2014, section 3, the non-saturating form)."""
    return F.softplus(-on_fake).mean()


def nonsaturating_D(on_real: Tensor, on_fake: Tensor) -> Tensor:
    """Discriminator's loss, mean of −log σ(D(real)) − log(1 − σ(D(fake)))."""
    return F.softplus(-on_real).mean() + F.softplus(on_fake).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Squared norm of ∇D at each real image, `[N]` (Mescheder et al. 2018, equation 9, without γ/2).

    real `[N, C, H, W]`. Can be differentiated with respect to the discriminator's weights.
    """
    at = real.detach().requires_grad_(True)
    slope = slope_at(discriminator(at).sum(), at)
    return slope.square().sum((1, 2, 3))


def path_lengths(images: Tensor, ws: Tensor, directions: Tensor) -> Tensor:
    """‖Jᵀy‖ for each image, `[N]`: how far pixels move along y when w moves (Karras et al. 2020, section 3.2).

    images `[N, C, H, W]` of ws `[N, num_ws, w_dim]`, directions y ~ N(0, 1) of the images' shape. y is divided by √(H·W), and
    the squared gradient is averaged over the layers, as in the original code. Can be differentiated with respect to the generator.
    """
    y = directions / (images.shape[2] * images.shape[3]) ** 0.5
    slope = slope_at((images * y).sum(), ws)
    return slope.square().sum(2).mean(1).sqrt()
