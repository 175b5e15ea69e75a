"""Seconds per step of `stylegan2_64_small` by several processes on the CPU, one thread each.

    torchrun --nproc-per-node=2 scripts/bench/processes_step.py

Prints the median and the least of the steps, as rank 0 measures them, without lazy regularisation but with a collective after each.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from gan_uad.config import load_config
from gan_uad.training import distributed
from gan_uad.training.train import build_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps after a first one that warms up")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with distributed.processes() as here:
        torch.manual_seed(0)
        config = load_config("stylegan2_64_small", ())
        task, batch = build_task(config, torch.device("cpu")), config.training.batch
        real = torch.rand(batch // here.size, 3, 64, 64) * 2 - 1
        times = []
        for turn in range(1, steps + 2):
            start = time.perf_counter()
            task.step(real, turn * batch)
            distributed.any_of(False)
            times.append(time.perf_counter() - start)
        if here.rank == 0:
            print(f"{statistics.median(times[1:]):.3f} s median, {min(times[1:]):.3f} s least")


if __name__ == "__main__":
    main()
