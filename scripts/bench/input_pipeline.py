"""How long a training step waits for its images, without and with the thread that fetches ahead.

    python scripts/bench/input_pipeline.py [--sides 256 512] [--batch 32] [--steps 20] [--rest 0.1]

The consumer is simulated: it sleeps for `--rest` seconds a step, as the host does while a GPU computes. "before" fetches and makes
float32 in the step; "after" waits for the thread, and bytes become numbers on the device. Both in turns, in one run; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from common import header

from gan_uad.config import DataConfig
from gan_uad.data.patches import TrainStream, load_patches
from gan_uad.device import cores
from gan_uad.training.feed import AHEAD, Feed

CPU = torch.device("cpu")


def written(folder: Path, side: int, count: int) -> Path:
    """A folder of `count` random patches."""
    rng = np.random.default_rng(0)
    (found := folder / str(side)).mkdir()
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(
            found / f"{k}.png", compress_level=0
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rest", type=float, default=0.1, help="seconds of a step in which the host is idle")
    parser.add_argument(
        "--threads", type=int, default=max(1, min(AHEAD, cores() - 1)), help="default: as in a training on a GPU"
    )
    args = parser.parse_args()
    print(header(CPU))
    print(f"batch {args.batch}, steps of {args.rest * 1000:.0f} ms, {args.threads} threads, medians of {args.steps}\n")
    print(
        "| px | HED jitter | before: ms | share of the step | after: ms | share of the step |\n| ---: | --- | ---: | ---: | ---: | ---: |"
    )
    with tempfile.TemporaryDirectory() as folder:
        for side in args.sides:
            patches_folder = written(Path(folder), side, 4 * args.batch)
            for jitter in (0.0, 0.05):
                data = DataConfig(path=str(patches_folder), hed_jitter=jitter)
                patches = load_patches(data, side, cache=Path(folder))
                stream = TrainStream(patches, args.batch, 0, True, True)
                before, after = waits(stream, args.batch, args.steps, args.rest, args.threads)
                shares = [f"{value * 1000:.1f} | {value / (value + args.rest):.1%}" for value in (before, after)]
                print(f"| {side} | {jitter or 'no'} | {' | '.join(shares)} |", flush=True)


def waits(
    stream: TrainStream, batch: int, steps: int, rest: float, threads: int, rounds: int = 4
) -> tuple[float, float]:
    """Seconds that a step waits for its images, fetched in the step and ahead of it; in turns of a few steps."""
    spent: tuple[list[float], list[float]] = [], []
    for turn in range(rounds):
        for ahead, kept in enumerate(spent):
            with Feed(stream, CPU, lambda nimg: batch, ahead=ahead * threads) as feed:
                for k in range(steps // rounds + 1):
                    start = time.perf_counter()
                    if ahead:
                        feed.fetch((turn * steps + k) * batch, batch)
                    else:
                        feed.at((turn * steps + k) * batch, batch)
                    if k:  # the thread starts with the first
                        kept.append(time.perf_counter() - start)
                    time.sleep(rest)
    return statistics.median(spent[0]), statistics.median(spent[1])


if __name__ == "__main__":
    main()
