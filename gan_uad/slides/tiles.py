"""Choose the tiles of a slide, and read them in order on several threads, in bounded memory."""

from __future__ import annotations

import math
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gan_uad.data.images import Pixels
from gan_uad.data.manifest import ANOMALOUS, NORMAL, UNKNOWN
from gan_uad.errors import UserError
from gan_uad.slides.annotations import Annotations
from gan_uad.slides.reader import Slide, open_slide
from gan_uad.slides.tissue import Tissue

T = TypeVar("T")
R = TypeVar("R")
Positions = NDArray[np.int64]
Keep = Callable[[Positions, Positions], NDArray[np.bool_]]

GROUP = 4  # items that a worker gets at once
GROUPS_AHEAD = 2  # groups per worker that may be finished before they are used
ROUND = (256, 16384)  # random positions tried at once, at least and at most
MIN_GAIN = 0.01  # a round that finds a smaller share of new tiles is the last
EPSILON = 1e-9  # rounding error of sums of shares
MAX_ENLARGEMENT = 1.1  # a slide may be coarser than its tiles by this factor


@dataclass(frozen=True)
class Tile:
    """A square of a slide: top-left corner and side in level-0 px; shares of tissue and (where annotated) of tumour, in [0, 1]."""

    x: int
    y: int
    side: float
    tissue: float
    tumour: float | None = None


def open_for_tiles(path: Path, slide_mpp: float | None, mpp: float) -> Slide:
    """As `open_slide`; also raises `UserError` for a slide so coarse that tiles at `mpp` µm/px would be enlarged."""
    slide = open_slide(path, slide_mpp)
    if slide.mpp <= MAX_ENLARGEMENT * mpp:
        return slide
    slide.close()
    raise UserError(
        f"{path}: its pixels measure {slide.mpp:.4g} µm, so tiles of {mpp:g} µm/px would be enlarged; "
        f"use --mpp {slide.mpp:.4g} or more, and a model trained on such tiles"
    )


def grid_positions(slide: Slide, size: int, mpp: float, stride: float = 1.0) -> tuple[Positions, Positions]:
    """Corners (x [columns], y [rows]) of a grid of squares of `size` px at `mpp` µm/px that lie entirely on the slide.

    stride: step of the grid, in sides. Corners are rounded to level-0 px one by one, so that errors do not add up.
    """
    side = size * mpp / slide.mpp
    counts = [
        max(0, math.floor((extent - side) / (side * stride) + EPSILON) + 1) for extent in (slide.width, slide.height)
    ]
    x, y = (np.floor(np.arange(n) * side * stride + 0.5).astype(np.int64) for n in counts)
    return x[x + side <= slide.width + 0.5], y[y + side <= slide.height + 0.5]


def grid_tiles(slide: Slide, tissue: Tissue, size: int, mpp: float, share: float, stride: float = 1.0) -> list[Tile]:
    """All tiles of the grid (`grid_positions`) with at least this `share` of tissue, row by row."""
    columns, rows = grid_positions(slide, size, mpp, stride)
    x, y = (part.ravel() for part in np.meshgrid(columns, rows))
    return _tiles(x, y, size * mpp / slide.mpp, tissue, share)


def random_tiles(
    slide: Slide, tissue: Tissue, size: int, mpp: float, share: float, count: int, seed: int | list[int], keep: Keep
) -> list[Tile]:  # fmt: skip
    """At most `count` tiles with at least this `share` of tissue at random places, without overlap, row by row.

    Centres are uniform over the tissue; `keep` (x, y -> bool) filters corners. The search ends where hardly any new tile fits: random
    squares cover about half of what a grid does. Equal arguments give equal tiles.
    """
    side = size * mpp / slide.mpp
    rows, columns = np.nonzero(tissue.mask)
    rng = np.random.default_rng(seed)
    scale = tissue.mpp / slide.mpp
    chosen: dict[tuple[int, int], Tile] = {}  # by cell of a grid of `side`, which has room for one tile
    tries = int(np.clip(2 * count, *ROUND))
    while len(rows) and len(chosen) < count:
        pick = rng.integers(0, len(rows), tries)
        centre = np.stack([columns[pick], rows[pick]]) + rng.random((2, tries))
        x, y = np.floor(centre * scale - side / 2 + 0.5).astype(np.int64)
        inside = (x >= 0) & (y >= 0) & (x + side <= slide.width) & (y + side <= slide.height)
        x, y = x[inside], y[inside]
        kept = keep(x, y)
        x, y = x[kept], y[kept]
        before = len(chosen)
        for tile in _tiles(x, y, side, tissue, share):
            column, row = int(tile.x // side), int(tile.y // side)
            near = (chosen.get((column + i, row + j)) for i in (-1, 0, 1) for j in (-1, 0, 1))
            overlaps = any(t and abs(t.x - tile.x) < side and abs(t.y - tile.y) < side for t in near)
            if len(chosen) < count and not overlaps:
                chosen[column, row] = tile
        if len(chosen) - before < MIN_GAIN * tries:
            break
    return sorted(chosen.values(), key=lambda tile: (tile.y, tile.x))


def _tiles(x: Positions, y: Positions, side: float, tissue: Tissue, share: float) -> list[Tile]:
    shares = tissue.share(x, y, side)
    found = np.flatnonzero(shares >= share - EPSILON)
    return [Tile(int(x[k]), int(y[k]), side, float(shares[k])) for k in found]


def corners(tiles: list[Tile]) -> tuple[Positions, Positions]:
    """x and y of tiles, int64 [N] each."""
    return np.array([tile.x for tile in tiles], np.int64), np.array([tile.y for tile in tiles], np.int64)


def annotate(tiles: list[Tile], annotations: Annotations) -> list[Tile]:
    """The tiles with their shares of annotated tumour."""
    if not tiles:
        return []
    fractions = annotations.fraction(*corners(tiles), tiles[0].side)
    return [replace(tile, tumour=float(f)) for tile, f in zip(tiles, fractions, strict=True)]


def labels(annotations: Annotations, x: Positions, y: Positions, side: float, tumour: float) -> NDArray[np.int8]:
    """Labels of squares: 1 where at least the share `tumour` is annotated, 0 where no tumour touches, else -1 (unknown).

    None is 0 where some tumour has no place (`Annotations.unplaced`).
    """
    anomalous = annotations.fraction(x, y, side) >= tumour - EPSILON
    normal = ~annotations.touches(x, y, side) & (annotations.unplaced == 0)
    return np.where(normal, NORMAL, np.where(anomalous, ANOMALOUS, UNKNOWN)).astype(np.int8)


def ahead(work: Callable[[T], R], items: Iterable[T], workers: int, group: int = GROUP) -> Iterator[R]:
    """`map` on several threads, in order; at most `GROUPS_AHEAD` groups of items per worker are read ahead or wait to be used.

    Threads get `group` items at a time: switching threads for each tile would take a tenth of the time that reading it does.
    """

    def several(part: list[T]) -> list[R]:
        return [work(item) for item in part]

    todo = iter(items)
    waiting: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while part := list(islice(todo, group)):
                waiting.append(pool.submit(several, part))
                if len(waiting) > GROUPS_AHEAD * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def encode_png(image: Pixels, compress: bool = False) -> bytes:
    """A PNG file of an image, uint8 [H, W, 3].

    Not compressed unless `compress`. Pillow tries all filters on every line even then, which is slower than reading the tile from its
    slide (6.6 ms of CPU against 3.7 for 256 px; 0.25 here). `compress` (differences of lines, Huffman codes) makes tissue a fifth to a
    third smaller, and takes as long as reading.
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
