"""Tiling: tiles/s of `gan-uad tile` against bare OpenSlide reading of the same tiles, interleaved; and its peak memory by slide size.

    python scripts/bench/tiling.py [SLIDE] [--size 256] [--tiles 400] [--workers 1] [--rounds 5]
    python scripts/bench/tiling.py --memory SIDE [SIDE ...]

Without SLIDE a phantom of 8192 px is made. Every work opens the slide anew (an empty cache) and reads the same grid tiles at the level-0
scale with so many threads; bare reading is `read_region`, converted to RGB in an array. Besides the clock, the seconds of CPU count:
on a machine with other work the clock says little. --memory makes phantoms of SIDE x SIDE px
(seconds for 6000, minutes for 40000), tiles each in a process of its own, and tells its peak resident memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import header, median_ratio

from gan_uad import console
from gan_uad.demo.phantom_slide import write_phantom_slide
from gan_uad.slides.reader import open_slide
from gan_uad.slides.tile_slide import TileSettings, write_tiles
from gan_uad.slides.tiles import Tile, ahead, grid_tiles
from gan_uad.slides.tissue import find_tissue


def bare(path: Path, tiles: list[Tile], size: int, workers: int) -> None:
    """What anyone would write first."""
    with openslide.OpenSlide(path) as slide, ThreadPoolExecutor(workers) as pool:

        def read(tile: Tile) -> tuple[int, ...]:
            return np.array(slide.read_region((tile.x, tile.y), 0, (size, size)).convert("RGB")).shape

        for _ in pool.map(read, tiles):
            pass


def reading(path: Path, tiles: list[Tile], size: int, workers: int) -> None:
    """As scoring reads."""
    with open_slide(path) as slide:
        for _ in ahead(lambda tile: slide.read(tile.x, tile.y, size, size, slide.mpp), tiles, workers):
            pass


def writing(path: Path, tiles: list[Tile], size: int, workers: int, out: Path, compress: bool) -> None:
    """As `gan-uad tile` reads, encodes and writes."""
    out = Path(tempfile.mkdtemp(dir=out))  # as new as that of a slide: to overwrite files takes longer
    with open_slide(path) as slide:
        write_tiles(slide, tiles, path.stem, out, TileSettings(size, slide.mpp, compress=compress), None, workers)


def speed(path: Path, size: int, count: int, workers: int, rounds: int, scratch: Path) -> None:
    """Print a line for each work: tiles by clock and by CPU, and the ratios to bare reading."""
    console.set_quiet(True)
    with open_slide(path) as slide:
        tiles = grid_tiles(slide, find_tissue(slide), size, slide.mpp, 0.9)[:count]
    for name in ("plain", "small"):
        (scratch / name).mkdir()
    works: dict[str, Callable[[], Any]] = {
        "bare OpenSlide": lambda: bare(path, tiles, size, workers),
        "reading": lambda: reading(path, tiles, size, workers),
        "tile": lambda: writing(path, tiles, size, workers, scratch / "plain", False),
        "tile --compress": lambda: writing(path, tiles, size, workers, scratch / "small", True),
    }
    print(f"{path.name}: {len(tiles)} tiles of {size} px, {workers} thread(s)")
    wall: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):  # one untimed
        for name, work in works.items():
            start = time.perf_counter(), time.process_time()
            work()
            if turn:
                wall[name].append(time.perf_counter() - start[0])
                cpu[name].append(time.process_time() - start[1])
    for name in works:
        rates = [len(tiles) / statistics.median(spent[name]) for spent in (wall, cpu)]
        ratios = [median_ratio(spent["bare OpenSlide"], spent[name]) for spent in (wall, cpu)]
        print(
            f"  {name:16} {rates[0]:7.1f} tiles/s ({ratios[0]:6.1%} of bare reading), "
            f"{rates[1]:7.1f} tiles per CPU-second ({ratios[1]:6.1%})"
        )
    for name in ("plain", "small"):
        files = list((scratch / name).glob("*/*"))
        print(f"  {name}: {sum(f.stat().st_size for f in files) / len(files) / 1e3:.1f} kB a tile")


def memory(side: int, size: int, workers: int, scratch: Path) -> None:
    """Print the peak memory and time of tiling a phantom of this side."""
    path = scratch / f"phantom_{side}.tif"
    start = time.monotonic()
    write_phantom_slide(path, side, side)
    print(
        f"phantom of {side} px: {path.stat().st_size / 1e6:.0f} MB, made in {time.monotonic() - start:.0f} s",
        flush=True,
    )
    command = [sys.executable, "-m", "gan_uad", "--quiet", "tile", path, "--size", size, "--grid", "--per-slide", 4000]
    command += ["--annotations", scratch, "--workers", workers, "--out", scratch / "tiles"]
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    spent, count = time.monotonic() - start, len(list((scratch / "tiles").glob("*/*_x*.png")))
    print(
        f"  {count} tiles in {spent:.0f} s, peak memory {used.ru_maxrss / 1024:.0f} MiB, exit {os.waitstatus_to_exitcode(status)}"
    )
    shutil.rmtree(scratch / "tiles")
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--tiles", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="+", metavar="SIDE")
    arguments = parser.parse_args()
    print(header(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if arguments.memory:
            for side in arguments.memory:
                memory(side, arguments.size, arguments.workers, scratch)
            return
        path = arguments.slide
        if path is None:
            write_phantom_slide(path := scratch / "phantom.tif", 8192, 8192)
        speed(path, arguments.size, arguments.tiles, arguments.workers, arguments.rounds, scratch)


if __name__ == "__main__":
    main()
