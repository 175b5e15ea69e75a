"""Seconds per step of a preset by several processes: on the CPU with one thread each, or on a GPU each.

    torchrun --nproc-per-node=2 scripts/bench/processes_step.py [--preset stylegan2_64_small] [--device cpu]

Prints the median and the least of the steps, as rank 0 measures them, without lazy regularisation but with a collective after each.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from gan_uad.config import load_config
from gan_uad.device import prepare
from gan_uad.training import distributed
from gan_uad.training.train import build_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps after a first one that warms up")
    parser.add_argument("--preset", default="stylegan2_64_small")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    steps = args.steps
    with distributed.processes() as here:
        device = prepare(args.device, threads=1)
        torch.manual_seed(0)
        config = load_config(args.preset)
        task, batch, side = build_task(config, device), config.training.batch, config.resolution
        real = (torch.rand(batch // here.size, 3, side, side) * 2 - 1).to(device)
        times = []
        for turn in range(1, steps + 2):
            start = time.perf_counter()
            task.step(real, turn * batch)
            distributed.any_of(False)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        if here.rank == 0:
            print(
                f"{statistics.median(times[1:]):.3f} s median, {min(times[1:]):.3f} s least, {here.size} processes on {device.type}"
            )


if __name__ == "__main__":
    main()
