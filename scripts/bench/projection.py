"""Search for the closest image: seconds of a step and of an image, a batch side by side against one at a time.

    python scripts/bench/projection.py [--preset stylegan2_e_64] [--perceptual vgg] [--batch 8] [--steps 5] [--rounds 3] [--encoder RUN]

Networks are untrained unless --run names a trained one (speed does not depend on the weights). `--steps` steps of the search in w are
timed, without what comes before and after them, and given for 1000. With --encoder, the run of a hybrid encoder, also what it takes an
image: start and `--hybrid-steps` steps, all included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import flops_of, header, interleave, median_ratio, peak_probe

from encoders.search import Slots
from gan_uad import device as devices
from gan_uad import registry
from gan_uad.config import load_config
from gan_uad.model import load_model

WHOLE = 1000  # steps of the reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="stylegan2_e_64")
    parser.add_argument("--run", help="a trained generator instead of the preset")
    parser.add_argument("--perceptual", default="vgg")
    parser.add_argument("--inverter", default="w")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", help="run of a hybrid encoder")
    parser.add_argument("--hybrid-steps", type=int, default=50)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    device = devices.prepare(args.device, args.threads)
    nets = networks_of(args)
    side = nets["gan"].G.resolution
    images = torch.rand(args.batch, 3, side, side).mul(2).sub(1).to(device)
    probe, probe_flops = peak_probe(device)
    works: dict[str, Callable[[], Any]] = {"peak": probe}
    sizes = {f"{args.batch} side by side": args.batch, "one at a time": 1}
    for name, size in sizes.items():
        options = {"perceptual": args.perceptual, "micro_batch": size}
        search = registry.build("inverter", args.inverter, options, nets=nets, device=device)
        works[name] = steps_of(search, images[:size], args.steps)
    if args.encoder:
        model = load_model(args.encoder, device)
        options = {"perceptual": args.perceptual, "micro_batch": args.batch, "steps": args.hybrid_steps}
        hybrid = registry.build("inverter", "style_encoder", options, nets=model.networks, device=device)
        own = torch.rand(args.batch, 3, model.resolution, model.resolution).mul(2).sub(1)
        works["style_encoder"] = lambda: hybrid.invert(own)
    flops = {name: flops_of(works[name]) for name in sizes}
    spent = interleave(works, args.rounds, device)
    print(header(device))
    what = args.run or args.preset
    print(f"{what}, {args.inverter}, {args.perceptual}, {args.steps} steps a round, {args.rounds} interleaved rounds")
    print(f"convolution peak (fp32)  {probe_flops / statistics.median(spent['peak']) / 1e9:8.0f} GFLOP/s")
    for name, size in sizes.items():
        step = statistics.median(spent[name]) / args.steps
        share = median_ratio(spent["peak"], spent[name]) * flops[name] / probe_flops
        print(f"{name:24s} {step:8.3f} s/step {step * WHOLE / size:8.1f} s/image ({WHOLE} steps)  {share:.0%} of peak")
    together, alone = (spent[name] for name in sizes)
    print(f"an image side by side costs {median_ratio(together, alone) / args.batch:.2f} of one alone")
    if args.encoder:
        seconds = statistics.median(spent["style_encoder"]) / args.batch
        print(f"{'hybrid':24s} {seconds:8.2f} s/image ({args.hybrid_steps} steps and the start)")


def networks_of(args: argparse.Namespace) -> dict[str, Any]:
    """The GAN whose latents are searched."""
    if args.run:
        networks: dict[str, Any] = load_model(args.run).networks
        return networks
    config = load_config(args.preset)
    return {"gan": registry.build("network", config.model, {"resolution": config.resolution, **config.network})}


def steps_of(search: Any, images: torch.Tensor, steps: int) -> Callable[[], None]:
    """So many steps of a search that is under way."""
    waiting = search.jobs(images)
    slots = Slots(search.micro_batch, next(waiting))
    slots.fill(waiting)
    search.step(slots)  # what is computed once, such as the mean w

    def work() -> None:
        for _ in range(steps):
            search.step(slots)

    return work


if __name__ == "__main__":
    main()
