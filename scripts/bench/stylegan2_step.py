"""StyleGAN2 training steps and inference: s/kimg, images/s, share of this machine's convolution peak, memory.

    python scripts/bench/stylegan2_step.py [--preset stylegan2_e_64] [--batch 8] [--rounds 3] [--precision fp32 bf16] [--compile]

One round = the peak probe (2 s of it), then each phase of a training step in each precision (generator, its path length,
discriminator, its R1), and inference without gradients. s/kimg weighs the phases by how often they come: generator + path / 4
+ discriminator + R1 / 16. `--compile` adds inference with the generator under torch.compile.
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
from common import flops_of, header, in_precision, interleave, median_ratio, peak_probe, sustained, task_of

from gan_uad import device as devices


def phases(preset: str, batch: int, device: torch.device) -> tuple[Any, dict[str, tuple[Callable[[], Any], float]]]:
    """The task, and each phase of its step with how often it comes."""
    torch.manual_seed(0)
    task, real = task_of(preset, batch, device)
    task.step(real, 0)  # makes the optimiser's state
    found = {
        "generator": (lambda: task.generator_step(batch), 1.0),
        "discriminator": (lambda: task.discriminator_step(real), 1.0),
    }
    if task.path_interval:
        found["path length"] = (lambda: task.path_step(batch // task.path_shrink), 1 / task.path_interval)
    if task.r1_interval:
        found["R1"] = (lambda: task.r1_step(real), 1 / task.r1_interval)
    return task, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="stylegan2_e_64")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "tf32", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    device = devices.prepare(args.device, args.threads, "tf32" if "tf32" in args.precision else "fp32")
    task, parts = phases(args.preset, args.batch, device)
    z = torch.randn(args.batch, task.G.z_dim).to(device)

    def infer() -> None:
        with torch.no_grad():
            task.ema.net(z)

    probe, probe_flops = sustained(*peak_probe(device), device, 2.0)
    flops = {name: flops_of(work) for name, (work, _) in parts.items()} | {"inference": flops_of(infer)}
    works: dict[str, Callable[[], Any]] = {"peak": probe}
    for precision in args.precision:
        for name, (work, _) in parts.items():
            works[f"{name}, {precision}"] = in_precision(work, precision, device)
        works[f"inference, {precision}"] = in_precision(infer, precision, device)
    if args.compile:
        compiled = torch.compile(task.ema.net)

        def infer_compiled() -> None:
            with torch.no_grad():
                compiled(z)

        works["inference compiled"] = infer_compiled
    spent = interleave(works, args.rounds, device)
    median = {name: statistics.median(values) for name, values in spent.items()}
    shares = {name: median_ratio(spent["peak"], values) / probe_flops for name, values in spent.items()}
    print(header(device))
    print(f"{args.preset}, batch {args.batch}, {args.rounds} interleaved rounds")
    print(f"convolution peak (fp32)      {probe_flops / median['peak'] / 1e9:8.0f} GFLOP/s")
    for name in list(works)[1:]:
        work = flops[name.partition(",")[0].removesuffix(" compiled")]
        print(f"{name:28} {median[name] * 1e3:8.0f} ms {work / 1e9:9.1f} GFLOP   {shares[name] * work:5.0%} of peak")
    for precision in args.precision:
        report(precision, parts, flops, spent, median, probe_flops, args.batch)
    if device.type == "cuda":
        print(f"memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")


def report(
    precision: str,
    parts: dict[str, tuple[Callable[[], Any], float]],
    flops: dict[str, int],
    spent: dict[str, list[float]],
    median: dict[str, float],
    probe_flops: int,
    batch: int,
) -> None:
    """The weighted sum of the phases: seconds for 1000 images, and the share of the peak."""
    steps = [
        sum(often * spent[f"{name}, {precision}"][i] for name, (_, often) in parts.items())
        for i in range(len(spent["peak"]))
    ]
    work = sum(often * flops[name] for name, (_, often) in parts.items())
    share = median_ratio(spent["peak"], steps) * work / probe_flops
    seconds = statistics.median(steps) * 1000 / batch
    print(
        f"training, {precision}: {seconds:.0f} s/kimg, {work / batch / 1e9:.1f} GFLOP an image, {share:.0%} of the fp32 peak"
    )
    print(f"inference, {precision}: {batch / median[f'inference, {precision}']:.1f} images/s")


if __name__ == "__main__":
    main()
