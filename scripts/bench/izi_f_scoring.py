"""izi_f scoring: images/s and share of this machine's convolution peak; AnoGAN's search in z beside it.

    python scripts/bench/izi_f_scoring.py [--preset wgan_gp_64_small] [--steps 20] [--rounds 5]

Networks are untrained (speed does not depend on the weights). AnoGAN is timed for `--steps` steps and given for 500.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import flops_of, header, interleave, median_ratio, peak_probe

from gan_uad import device as devices
from gan_uad import registry
from gan_uad.config import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="wgan_gp_64_small")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    device = devices.prepare(args.device, args.threads)
    config = load_config(args.preset)
    shape = {"resolution": config.resolution, **config.network}
    nets = {
        "gan": registry.build("network", config.model, shape),
        "encoder": registry.build("network", "residual_encoder", shape),
    }
    images = torch.rand(args.images, 3, config.resolution, config.resolution).mul(2).sub(1)
    scorers = {}
    for name, options in (("izi_f", {}), ("anogan", {"steps": args.steps})):
        inverter = registry.build(
            "inverter", name, {**options, "micro_batch": args.micro_batch}, nets=nets, device=device
        )
        scorers[name] = registry.build("scorer", "gan_inversion", {}, inverter=inverter)
    probe, probe_flops = peak_probe(device)
    works = {"peak": probe, **{name: (lambda s=scorer: s.score(images)) for name, scorer in scorers.items()}}
    flops = {name: flops_of(works[name]) for name in scorers}
    spent = interleave(works, args.rounds, device)
    print(header(device))
    print(
        f"{args.preset}, {args.images} images in micro-batches of {args.micro_batch}, {args.rounds} interleaved rounds"
    )
    print(f"convolution peak (fp32)  {probe_flops / statistics.median(spent['peak']) / 1e9:8.0f} GFLOP/s")
    for name in scorers:
        seconds = statistics.median(spent[name])
        share = median_ratio(spent["peak"], spent[name]) * flops[name] / probe_flops
        rate = f"{args.images / seconds:8.1f} images/s"
        if name == "anogan":
            rate = f"{seconds / args.images / args.steps * 500:8.2f} s/image (500 steps)"
        print(f"{name:24s} {rate}  {share:.0%} of peak")


if __name__ == "__main__":
    main()
