"""Scoring a slide: tiles/s of reading alone, of scoring alone, and of both as `gan-uad score-slide` does them; interleaved.

    python scripts/bench/score_slide.py [SLIDE] [--size 64] [--mpp 0.5] [--tiles 256] [--workers N] [--rounds 3] [--threads 1]

Reading is hidden where both together take as long as scoring alone: the share of the reading time that is not seen is printed. Without a
slide, one of phantom tissue is painted first. Networks are untrained (speed does not depend on that). Threads for scoring and workers for
reading share the cores: with all of them scoring, reading has to take its time from it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import header, interleave
from scorers import trained

from gan_uad import device as devices
from gan_uad.demo.phantom_slide import write_phantom_slide
from gan_uad.detection.rows import CHUNK
from gan_uad.slides.reader import open_slide
from gan_uad.slides.score_slide import read_chunks
from gan_uad.slides.tiles import grid_tiles
from gan_uad.slides.tissue import find_tissue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--scorer", default="izi_f", choices=["izi_f", "classifier"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--tiles", type=int, default=256)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    device = devices.prepare(args.device, args.threads)
    workers = args.workers or devices.cores()
    scorer = trained(args.scorer, args.size, device)
    with tempfile.TemporaryDirectory() as folder:
        path = args.slide or Path(folder) / "phantom.tif"
        if args.slide is None:
            write_phantom_slide(path, 4096, 4096)
        with open_slide(path) as slide:
            tiles = grid_tiles(slide, find_tissue(slide), args.size, args.mpp, 0.5)[: args.tiles]

            def chunks() -> Iterator[torch.Tensor]:
                return read_chunks(slide, tiles, args.size, args.mpp, lambda picture: picture, CHUNK, workers)

            held = list(chunks())
            works: dict[str, Any] = {
                "reading alone": lambda: list(chunks()),
                "scoring alone": lambda: [scorer.measure(images) for images in held],
                "both": lambda: [scorer.measure(images) for images in chunks()],
            }
            print(header(device))
            print(f"{args.scorer}, {len(tiles)} tiles of {args.size} px at {args.mpp} µm/px, {workers} reading threads")
            seconds = interleave(works, args.rounds, device)
    for name, spent in seconds.items():
        print(f"{name:14s} {len(tiles) / statistics.median(spent):8.1f} tiles/s")
    rounds = list(zip(*seconds.values(), strict=True))
    seen = statistics.median((both - scoring) / reading for reading, scoring, both in rounds)
    print(
        f"hidden: {1 - max(0.0, seen):.0%} of the reading time; both take {statistics.median(b / s for _, s, b in rounds):.2f} of scoring"
    )


if __name__ == "__main__":
    main()
