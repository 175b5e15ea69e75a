"""Do gradients survive low precision? R1 of a style network's discriminator, weight by weight, against float32.

    python scripts/bench/low_precision.py [--preset stylegan2_e_64] [--side 32] [--batch 32]

The loss is γ/2 · interval · R1 as the preset trains it in a batch of `--batch` images, at `--side` px; 4 of them are computed, and divided
as if they were all. A cosine of 1: the gradient points where that of float32 does; 0: it vanished. Takes minutes on a CPU.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from gan_uad import registry
from gan_uad.config import load_config
from gan_uad.training.losses import r1_penalty

IMAGES = 4


def gradients(D: torch.nn.Module, real: Tensor, scale: float, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Those of the weights (not of the biases, on which R1 hardly depends)."""
    D.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = r1_penalty(D, real).mean() * scale
    loss.backward()
    return {name: p.grad.double() for name, p in D.named_parameters() if p.grad is not None and p.ndim > 1}


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-300))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="stylegan2_e_64")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    config = load_config(args.preset)
    torch.manual_seed(0)
    D = registry.build("network", config.model, {**config.network, "resolution": args.side}).D
    real = torch.rand(IMAGES, 3, args.side, args.side) * 2 - 1
    gamma = config.optim.get("r1_gamma", 0.0002 * args.side**2 / args.batch)
    scale = gamma / 2 * config.optim.get("r1_interval", 16) * IMAGES / args.batch
    full, half, brain = (gradients(D, real, scale, dtype) for dtype in (None, torch.float16, torch.bfloat16))
    print(f"{args.preset} at {args.side} px, batch {args.batch}: cosine to float32\n")
    print("| weight | float16 | bfloat16 |\n| --- | ---: | ---: |")
    for name, gradient in full.items():
        print(f"| {name} | {cosine(half[name], gradient):.3f} | {cosine(brain[name], gradient):.4f} |")


if __name__ == "__main__":
    main()
