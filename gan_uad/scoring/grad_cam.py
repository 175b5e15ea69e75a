"""Grad-CAM: which places of an image a classifier's score depends on."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def grad_cam(decide: Callable[[Tensor], Tensor], maps: Tensor) -> tuple[Tensor, Tensor]:
    """The scores `[N]` that `decide` (maps -> logits `[N, 2]`) gives maps `[N, C, h, w]`, and Grad-CAM `[N, h, w]` ≥ 0 of each.

    ReLU(Σ_c α_c · map_c), α_c being the mean over the places of ∂score/∂map_c (Selvaraju et al. 2017, eq. 1 and 2). The score is the
    difference of the logits, log P(anomalous) − log P(normal): one logit alone has no meaning. No image's map depends on
    another's, if `decide` treats each alone.
    """
    with torch.enable_grad():
        leaf = maps.detach().requires_grad_()
        logits = decide(leaf).float()
        score = logits[:, 1] - logits[:, 0]
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
    weights = gradient.float().mean((2, 3), keepdim=True)
    return score.detach(), F.relu((weights * maps.detach().float()).sum(1))


def enlarged(heat: Tensor, side: int) -> Tensor:
    """`[N, h, w]` to `[N, side, side]`, bilinear."""
    return F.interpolate(heat[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
