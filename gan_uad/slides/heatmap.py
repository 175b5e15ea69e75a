"""Scores of tiles as an image over the slide: a float OME-TIFF to compute with, and an 8-bit pyramid to look at.

Both show −log10 of the probability that a normal tile scores as high. The scale is the same for all slides: with a scale per slide
(min-max) even a normal slide would have bright tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gan_uad.files import atomic

MAX_VALUE = 4.0  # end of the colour scale: one of 10,000 normal tiles
CELL = 16  # px per cell in the pyramid's finest level, so that a viewer shows squares with sharp edges
TILE = 256  # px of the pyramid's tiles; a multiple of CELL
COLOURS = "inferno"


@dataclass(frozen=True)
class Heatmap:
    """`values` float32 `[rows, columns]`, NaN where there is no tile. Cell (i, j) is a square of `step` level-0 px with its top-left corner
    at (j · step, i · step); a level-0 px is `mpp` µm wide."""

    values: NDArray[np.float32]
    step: float
    mpp: float

    @property
    def cell(self) -> float:
        """Side of a cell in µm."""
        return self.step * self.mpp


def heatmap(
    x: ArrayLike, y: ArrayLike, values: ArrayLike, side: float, step: float, width: int, height: int, mpp: float
) -> Heatmap:
    """Heatmap of tiles with top-left corners `x`, `y` `[N]`, `side` level-0 px wide, on a grid of `step` px, on a slide of
    `width` × `height` level-0 px. A cell is the mean of the tiles that cover its centre: one tile where `step` is `side`.
    """
    rows, columns = max(1, math.ceil(height / step - 1e-6)), max(1, math.ceil(width / step - 1e-6))
    left = np.rint(np.asarray(x, np.float64) / step).astype(np.int64)
    top = np.rint(np.asarray(y, np.float64) / step).astype(np.int64)
    numbers = np.asarray(values, np.float64)
    covered = max(1, math.floor(side / step + 0.5 + 1e-6))  # cells along one side whose centre lies in a tile
    total, count = np.zeros((rows, columns)), np.zeros((rows, columns))
    for down in range(covered):
        for right in range(covered):
            i, j = top + down, left + right
            inside = (i < rows) & (j < columns)
            np.add.at(total, (i[inside], j[inside]), numbers[inside])
            np.add.at(count, (i[inside], j[inside]), 1)
    mean = np.divide(total, count, out=np.full((rows, columns), np.nan), where=count > 0)
    return Heatmap(mean.astype(np.float32), step, mpp)


def write_ome(path: Path, heat: Heatmap, name: str) -> Path:
    """The values as OME-TIFF: float32, one px per cell, with its side in µm; NaN where there is no tile."""
    import tifffile

    metadata = {
        "axes": "YX", "Name": name, "Channel": {"Name": "-log10 p of normal tiles"}, "PhysicalSizeX": heat.cell,
        "PhysicalSizeXUnit": "µm", "PhysicalSizeY": heat.cell, "PhysicalSizeYUnit": "µm",
    }  # fmt: skip
    with atomic(path) as temporary:
        tifffile.imwrite(
            temporary, heat.values, ome=True, photometric="minisblack", compression="zlib", predictor=False,
            metadata=metadata, software="gan_uad",
        )  # fmt: skip
    return path


def write_pyramid(path: Path, heat: Heatmap, top: float = MAX_VALUE) -> Path:
    """Tiled 8-bit TIFF in colour that OpenSlide opens, covering the slide; written tile by tile.

    The stored byte is 0 where there is no tile (white), else 1 + 254 · min(value / `top`, 1), rounded: tifffile reads the bytes back,
    OpenSlide shows their colours. The finest level has `CELL` px per cell. In levels coarser than a cell, a px is the highest of its
    four, so that a single tile stays visible.
    """
    import tifffile

    scaled = np.rint(1 + 254 * np.clip(np.nan_to_num(heat.values.astype(np.float64), nan=0.0) / top, 0, 1))
    cells = np.where(np.isnan(heat.values), 0, scaled).astype(np.uint8)
    colours = palette()
    with atomic(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=cells.size * CELL**2 > 2**31) as file:
        scale, level = CELL, 0
        while True:
            shape = (cells.shape[0] * scale, cells.shape[1] * scale)
            per_cm = 1e4 * CELL / (heat.cell * 2**level)
            file.write(
                _tiles(cells, scale), shape=shape, dtype=np.uint8, tile=(TILE, TILE), compression="zlib", compressionargs={"level": 1},
                photometric="palette", colormap=colours, subfiletype=int(level > 0), resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER", software="gan_uad", metadata=None,
            )  # fmt: skip
            if max(shape) <= TILE:
                return path
            level += 1
            if scale > 1:
                scale //= 2
            else:
                cells = _halved(cells)


def palette() -> NDArray[np.uint16]:
    """The colours of the 256 bytes, uint16 `[3, 256]` for TIFF: white for 0."""
    from matplotlib import colormaps

    ramp = colormaps[COLOURS](np.linspace(0, 1, 255))[:, :3]
    # TIFF readers keep only the upper byte of the 16 bits.
    colours = np.concatenate([np.ones((1, 3)), ramp]).T
    return np.rint(colours * 255).astype(np.uint16) * 257


def _tiles(cells: NDArray[np.uint8], scale: int) -> Iterator[NDArray[np.uint8]]:
    """The tiles of a level in which a cell is `scale` px wide, row by row; 0 beyond the edge."""
    step = TILE // scale
    for i in range(0, cells.shape[0], step):
        for j in range(0, cells.shape[1], step):
            part = cells[i : i + step, j : j + step].repeat(scale, 0).repeat(scale, 1)
            yield np.pad(part, [(0, TILE - part.shape[0]), (0, TILE - part.shape[1])])


def _halved(cells: NDArray[np.uint8]) -> NDArray[np.uint8]:
    padded = np.pad(cells, [(0, cells.shape[0] % 2), (0, cells.shape[1] % 2)])
    return np.maximum.reduce([padded[i::2, j::2] for i in (0, 1) for j in (0, 1)])
