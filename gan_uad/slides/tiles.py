"""Which squares of a slide to take, and reading them: in order, ahead of their use, on several threads, in bounded memory."""

from __future__ import annotations

import math
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gan_uad.data.images import Pixels
from gan_uad.data.manifest import ANOMALOUS, NORMAL, UNKNOWN
from gan_uad.slides.annotations import Annotations
from gan_uad.slides.reader import Slide
from gan_uad.slides.tissue import Tissue

T = TypeVar("T")
R = TypeVar("R")
Positions = NDArray[np.int64]
Keep = Callable[[Positions, Positions], NDArray[np.bool_]]

PASSED = 4  # items that a worker gets at once
AHEAD = 2  # times that for each worker may be done before it is asked for
ROUND = (256, 16384)  # random positions tried at once
GAIN = 0.01  # a round that finds fewer than this share of new tiles is the last
EXACT = 1e-9  # what sums of shares may be off by


@dataclass(frozen=True)
class Tile:
    """A square of a slide: its top left corner and side in level-0 px, its shares of tissue and (where annotated) of tumour, in [0, 1]."""

    x: int
    y: int
    side: float
    tissue: float
    tumour: float | None = None


def grid_positions(slide: Slide, size: int, mpp: float, stride: float = 1.0) -> tuple[Positions, Positions]:
    """Corners (x [columns], y [rows]) of a grid of squares of `size` px at `mpp` µm/px that lie wholly on the slide.

    stride: distance from square to square in sides. Corners are rounded to whole level-0 px, each for itself: nothing adds up.
    """
    side = size * mpp / slide.mpp
    counts = [
        max(0, math.floor((extent - side) / (side * stride) + EXACT) + 1) for extent in (slide.width, slide.height)
    ]
    x, y = (np.floor(np.arange(n) * side * stride + 0.5).astype(np.int64) for n in counts)
    return x[x + side <= slide.width + 0.5], y[y + side <= slide.height + 0.5]


def grid_tiles(slide: Slide, tissue: Tissue, size: int, mpp: float, share: float, stride: float = 1.0) -> list[Tile]:
    """All tiles of the grid (`grid_positions`) with at least this `share` of tissue, row by row."""
    columns, rows = grid_positions(slide, size, mpp, stride)
    x, y = (part.ravel() for part in np.meshgrid(columns, rows))
    return _tiles(x, y, size * mpp / slide.mpp, tissue, share)


def random_tiles(
    slide: Slide, tissue: Tissue, size: int, mpp: float, share: float, count: int, seed: int | list[int],
    keep: Keep | None = None,
) -> list[Tile]:  # fmt: skip
    """At most `count` tiles with at least this `share` of tissue at random places, none overlapping another, row by row.

    Centres are uniform over the tissue; `keep` (x, y -> bool) says which corners may be taken. Places are tried until there are
    enough, or until hardly any new one fits: random squares cover about half of what a grid does. Equal arguments, equal tiles.
    """
    side = size * mpp / slide.mpp
    rows, columns = np.nonzero(tissue.mask)
    rng = np.random.default_rng(seed)
    scale = tissue.mpp / slide.mpp
    taken = _Apart(side)
    tries = int(np.clip(2 * count, *ROUND))
    while len(rows) and len(taken.tiles) < count:
        pick = rng.integers(0, len(rows), tries)
        centre = np.stack([columns[pick], rows[pick]]) + rng.random((2, tries))
        x, y = np.floor(centre * scale - side / 2 + 0.5).astype(np.int64)
        inside = (x >= 0) & (y >= 0) & (x + side <= slide.width) & (y + side <= slide.height)
        x, y = x[inside], y[inside]
        if keep is not None:
            kept = keep(x, y)
            x, y = x[kept], y[kept]
        before = len(taken.tiles)
        for tile in _tiles(x, y, side, tissue, share):
            if len(taken.tiles) < count:
                taken.add(tile)
        if len(taken.tiles) - before < GAIN * tries:
            break
    return sorted(taken.tiles, key=lambda tile: (tile.y, tile.x))


class _Apart:
    """Tiles of one side that do not overlap."""

    def __init__(self, side: float) -> None:
        self.side = side
        self.tiles: list[Tile] = []
        self._cells: dict[tuple[int, int], list[Tile]] = {}

    def add(self, tile: Tile) -> None:
        """Take the tile if it overlaps none taken before."""
        column, row = int(tile.x // self.side), int(tile.y // self.side)
        near = (self._cells.get((column + i, row + j), ()) for i in (-1, 0, 1) for j in (-1, 0, 1))
        if not any(abs(t.x - tile.x) < self.side and abs(t.y - tile.y) < self.side for cell in near for t in cell):
            self.tiles.append(tile)
            self._cells.setdefault((column, row), []).append(tile)


def _tiles(x: Positions, y: Positions, side: float, tissue: Tissue, share: float) -> list[Tile]:
    shares = tissue.share(x, y, side)
    found = np.flatnonzero(shares >= share - EXACT)
    return [Tile(int(x[k]), int(y[k]), side, float(shares[k])) for k in found]


def annotate(tiles: list[Tile], annotations: Annotations) -> list[Tile]:
    """The tiles with their shares of annotated tumour."""
    if not tiles:
        return []
    fractions = annotations.fraction([t.x for t in tiles], [t.y for t in tiles], tiles[0].side)
    return [replace(tile, tumour=float(f)) for tile, f in zip(tiles, fractions, strict=True)]


def labels(annotations: Annotations, x: Positions, y: Positions, side: float, tumour: float) -> NDArray[np.int8]:
    """Labels of squares: 1 where at least the share `tumour` is annotated, 0 where tumour does not even touch, else -1 (unknown)."""
    anomalous = annotations.fraction(x, y, side) >= tumour - EXACT
    normal = ~annotations.touches(x, y, side)
    return np.where(normal, NORMAL, np.where(anomalous, ANOMALOUS, UNKNOWN)).astype(np.int8)


def read_tiles(
    slide: Slide, tiles: Iterable[Tile], size: int, mpp: float, workers: int = 1
) -> Iterator[tuple[Tile, Pixels]]:
    """Each tile with its pixels, uint8 [size, size, 3], in the given order, read ahead on `workers` threads.

    Raises `UserError` at a tile where the file is damaged.
    """
    return ahead(lambda tile: (tile, slide.read(tile.x, tile.y, size, size, mpp)), tiles, workers)


def ahead(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`map` on so many threads, in order; never more than a few items for each worker are under way or waiting to be fetched.

    Threads get several items at a time: passing the interpreter to and fro for each would take a tenth of the time that reading does.
    """

    def several(part: Sequence[T]) -> list[R]:
        return [work(item) for item in part]

    todo = iter(items)
    waiting: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while part := list(islice(todo, PASSED)):
                waiting.append(pool.submit(several, part))
                if len(waiting) > AHEAD * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def encode_png(image: Pixels, compress: bool = False) -> bytes:
    """A PNG file of an image, uint8 [H, W, 3].

    Stored as it is unless `compress`: Pillow tries all filters on every line even then, which takes longer than reading the tile
    from its slide (6.6 ms of CPU against 3.7 for 256 px; 0.25 here). Compressed (differences of lines, Huffman codes) tissue takes
    a fifth to a third less room, in as long as reading it takes.
    """
    height, width, _ = image.shape
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    flat = image.reshape(height, 3 * width)
    lines[:, 0] = 2 if compress else 0  # filter: difference to the line above, or none
    lines[:, 1:] = flat
    if compress:
        lines[1:, 1:] -= flat[:-1]
    packer = zlib.compressobj(1 if compress else 0, strategy=zlib.Z_HUFFMAN_ONLY)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in ((b"IHDR", [header]), (b"IDAT", [packer.compress(lines.data), packer.flush()]), (b"IEND", [])):
        check = zlib.crc32(name)
        for part in data:
            check = zlib.crc32(part, check)
        parts += [struct.pack(">I", sum(map(len, data))), name, *data, struct.pack(">I", check)]
    return b"".join(parts)
