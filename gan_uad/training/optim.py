"""An optimiser that torch does not have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class RMSpropTF(torch.optim.Optimizer):
    """RMSprop of TensorFlow 1, with which f-AnoGAN's encoder was trained.

    s ← decay·s + (1 − decay)·g², starting from s = 1; w ← w − lr·g / √(s + eps). torch's RMSprop has another decay, starts from s = 0,
    and adds eps outside the root.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, decay: float = 0.9, eps: float = 1e-10) -> None:
        if lr < 0:
            raise ValueError(f"lr must not be negative, got {lr}")
        super().__init__(params, {"lr": lr, "decay": decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            grads = [weight.grad for weight in weights]
            for weight in weights:
                if "mean_square" not in self.state[weight]:
                    self.state[weight]["mean_square"] = torch.ones_like(weight)
            means = [self.state[weight]["mean_square"] for weight in weights]
            # All tensors in one call each: a GPU starts few kernels for it.
            torch._foreach_mul_(means, group["decay"])
            torch._foreach_addcmul_(means, grads, grads, value=1 - group["decay"])
            roots = torch._foreach_add(means, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_addcdiv_(weights, grads, roots, value=-group["lr"])
