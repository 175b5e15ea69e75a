"""A slide of any file format as one object: read any region at any µm/px, as uint8 RGB."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gan_uad.console import say
from gan_uad.data.images import Pixels
from gan_uad.errors import UserError
from gan_uad.slides.backends import open_backend
from gan_uad.slides.base import Backend

SCALE_TOLERANCE = 1e-3  # relative; level sizes are rounded to whole pixels
SQUARE_TOLERANCE = 0.01  # relative difference of µm/px in x and y of pixels that count as square
SUPPORT = 2.0  # px of the coarser grid that Pillow's bicubic filter reaches to each side
BLOCK = 16_000_000  # px of a level in memory at once


class Slide:
    """An open slide. Positions are (x, y) from the top left in level-0 px; sizes of a region are in its own px.

    path, name: the file and its stem. width, height: of level 0. mpp: µm per level-0 px, the mean of x and y. levels: the downsample of
    each level against level 0, ascending, 1.0 first. origin: where QuPath's coordinates begin, None where that is not known. notes: what
    is unusual about the slide, one sentence each.

    Thread-safe. Pickles without its handle; each process opens its own when it first reads.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self.path, self.name = Path(path), Path(path).stem
        self._lock = threading.Lock()
        self._handle: tuple[int, Backend] | None = None
        backend = self._backend()
        self.width, self.height = backend.sizes[0]
        self.origin = backend.origin
        self.notes = [f"{self.path}: {note}" for note in backend.notes]
        self.mpp = self._scale(backend, mpp)
        self._sizes = backend.sizes
        self.levels = [self._downsample(size) for size in self._sizes]

    def _scale(self, backend: Backend, given: float | None) -> float:
        if given is not None:
            if not (math.isfinite(given) and given > 0):
                raise UserError(f"--slide-mpp {given}: µm/px must be a positive number")
            if backend.mpp and any(abs(side - given) > SCALE_TOLERANCE * given for side in backend.mpp):
                self.notes.append(
                    f"{self.path} states {_sides(*backend.mpp)} µm/px; {given:g} is taken (--slide-mpp or --slides-csv)"
                )
            return float(given)
        if backend.mpp is None:
            unclear = f" (it states {backend.unclear})" if backend.unclear else ""
            raise UserError(
                f"{self.path} does not state its µm/px{unclear}; give them with --slide-mpp or --slides-csv"
            )
        x, y = backend.mpp
        if abs(x - y) > SQUARE_TOLERANCE * min(x, y):
            raise UserError(
                f"{self.path}: its pixels of {_sides(x, y)} µm are not square; save it with square ones, or give µm/px that fit both sides "
                "well enough with --slide-mpp"
            )
        return (x + y) / 2

    def _downsample(self, size: tuple[int, int]) -> float:
        """The integer that explains the rounded size of a level, where there is one, else the mean ratio of the sides."""
        ratio = (self.width / size[0] + self.height / size[1]) / 2
        integer = round(ratio)
        if abs(self.width / integer - size[0]) < 1 and abs(self.height / integer - size[1]) < 1:
            return float(integer)
        return ratio

    def note(self, text: str) -> None:
        """Say what is unusual about the slide, and keep it in `notes`."""
        self.notes.append(f"{self.path}: {text}")
        say(self.notes[-1])

    def read(self, x: float, y: float, width: int, height: int, mpp: float) -> Pixels:
        """uint8 [height, width, 3], RGB, maybe read-only: the region of `width` × `height` px of `mpp` µm with top-left corner (x, y).

        Where a level has this µm/px (to 0.1 %), its pixels are returned as they are, from the pixel nearest to the corner. Else the
        nearest finer level is resampled, bicubic and antialiased, at the exact position: overlapping regions agree. A slide coarser
        than `mpp` is enlarged. White outside the slide and where it is transparent. Raises `UserError` where the file is damaged.
        """
        if not (width > 0 and height > 0 and math.isfinite(mpp) and mpp > 0):
            raise ValueError(f"cannot read {width} × {height} px at {mpp} µm/px")
        level = self.level_for(mpp)
        scale = mpp / self.mpp / self.levels[level]
        left, top = x / self.levels[level], y / self.levels[level]
        if abs(scale - 1) <= SCALE_TOLERANCE:
            return self._cut(level, math.floor(left + 0.5), math.floor(top + 0.5), width, height)
        return self._resample(level, left, top, width, height, scale)

    def level_for(self, mpp: float) -> int:
        """The level to read for this µm/px: the coarsest that is not coarser."""
        return max(
            (k for k, down in enumerate(self.levels) if down <= mpp / self.mpp * (1 + SCALE_TOLERANCE)), default=0
        )

    def thumbnail(self, mpp: float) -> Pixels:
        """The slide at `mpp` µm/px, uint8 [H, W, 3], its sides rounded to whole pixels."""
        width, height = (max(1, round(side * self.mpp / mpp)) for side in (self.width, self.height))
        return self.read(0, 0, width, height, mpp)

    def _cut(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """A region of a level in its own pixels, white outside."""
        across, down = self._sizes[level]
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, across), min(y + height, down)
        if (left, top, right, bottom) == (x, y, x + width, y + height):
            return self._backend().region(level, x, y, width, height)
        found = np.full((height, width, 3), 255, np.uint8)
        if left < right and top < bottom:
            part = self._backend().region(level, left, top, right - left, bottom - top)
            found[top - y : bottom - y, left - x : right - x] = part
        return found

    def _resample(self, level: int, left: float, top: float, width: int, height: int, scale: float) -> Pixels:
        """A region at `scale` px of `level` per px of the result, in blocks that bound the memory."""
        found = np.full((height, width, 3), 255, np.uint8)
        # Pixels whose centres lie on the slide (a level may lack the last of them); the others stay white.
        across, down = (side / self.levels[level] for side in (self.width, self.height))
        x0, x1 = (min(max(math.ceil((edge - left) / scale - 0.5), 0), width) for edge in (0, across))
        y0, y1 = (min(max(math.ceil((edge - top) / scale - 0.5), 0), height) for edge in (0, down))
        side = max(1, int(math.sqrt(BLOCK) / scale))
        for row in range(y0, y1, side):
            for column in range(x0, x1, side):
                bottom, right = min(row + side, y1), min(column + side, x1)
                corner = (left + column * scale, top + row * scale)
                block = self._block(level, *corner, right - column, bottom - row, scale)
                found[row:bottom, column:right] = block
        return found

    def _block(self, level: int, left: float, top: float, width: int, height: int, scale: float) -> Pixels:
        """One resampled block. Beyond the slide's edge its last pixels are repeated, so that white does not bleed in."""
        margin = math.ceil(SUPPORT * max(scale, 1.0)) + 1
        spans = []
        for start, count, end in zip((left, top), (width, height), self._sizes[level], strict=True):
            first, last = math.floor(start) - margin, math.ceil(start + count * scale) + margin
            spans.append((first, last, min(max(first, 0), end - 1), max(min(last, end), 1)))
        (x0, x1, in_x0, in_x1), (y0, y1, in_y0, in_y1) = spans
        source = self._backend().region(level, in_x0, in_y0, in_x1 - in_x0, in_y1 - in_y0)
        missing = ((in_y0 - y0, y1 - in_y1), (in_x0 - x0, x1 - in_x1), (0, 0))
        if any(map(any, missing)):
            source = np.pad(source, missing, mode="edge")
        box = (left - x0, top - y0, left - x0 + width * scale, top - y0 + height * scale)
        return np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.BICUBIC, box=box))

    def _backend(self) -> Backend:
        handle = self._handle
        if handle is None or handle[0] != os.getpid():  # a forked process must not share the file position
            with self._lock:
                handle = self._handle
                if handle is None or handle[0] != os.getpid():
                    handle = self._handle = (os.getpid(), open_backend(self.path))
        return handle[1]

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        handle, self._handle = self._handle, None
        if handle and handle[0] == os.getpid():
            handle[1].close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Open a slide: a format of OpenSlide, another TIFF (OME-TIFF, striped), or a plain image.

    mpp: µm per level-0 px, replaces what the file states, with a note. Raises `UserError` for a file that is missing, damaged or no slide,
    where neither the file nor `mpp` states the µm/px (objective power does not count), and for pixels that are not square without `mpp`.
    """
    slide = Slide(path, mpp)
    for note in slide.notes:
        say(note)
    return slide


def _sides(x: float, y: float) -> str:
    return f"{x:.4g}" if abs(x - y) <= SCALE_TOLERANCE * x else f"{x:.4g} × {y:.4g}"
