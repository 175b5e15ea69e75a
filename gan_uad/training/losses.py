"""Loss terms that more than one task uses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gan_uad.networks.second_order import input_gradients_only


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Mean of (‖∇critic(x̂)‖₂ − 1)² at x̂ = real + mix·(fake − real) (Gulrajani et al. 2017, algorithm 1).

    real, fake: `[N, C, H, W]`; mix: `[N]` in [0, 1], one draw an image. The critic must not mix the images of a batch.
    Returns a scalar that can be differentiated with respect to the critic's weights.
    """
    between = real.detach().lerp(fake.detach(), mix.view(-1, 1, 1, 1)).requires_grad_(True)
    values = critic(between).sum()
    with input_gradients_only():
        (slope,) = torch.autograd.grad(values, between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()
