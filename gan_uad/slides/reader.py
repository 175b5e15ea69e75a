"""A slide as one object, whatever file it comes from: any region at any µm/px, as uint8 RGB."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from gan_uad.console import say
from gan_uad.data.images import Pixels
from gan_uad.errors import UserError
from gan_uad.slides.backends import Backend, open_backend

SAME = 1e-3  # two scales that differ by less are the same: level sizes are rounded to whole pixels
SQUARE = 0.01  # x and y may differ so much in µm/px without a word
SUPPORT = 2.0  # px of the coarser grid by which Pillow's bicubic filter reaches to each side
BLOCK = 16_000_000  # px of a level that are held at once


class Slide:
    """An open slide. Positions are (x, y) from the top left in level-0 px, lengths of what is read are in its own px.

    path, name: the file and its stem. width, height: of level 0. mpp: µm per level-0 px, the mean of x and y. levels: the downsample
    of each level against level 0, ascending, 1.0 first. notes: what is odd about the slide, one sentence each.

    May be read from many threads. It pickles without its handle, which each process opens for itself at its first reading.
    """

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        self.path, self.name = Path(path), Path(path).stem
        self._lock = threading.Lock()
        self._handle: tuple[int, Backend] | None = None
        backend = self._backend()
        self.width, self.height = backend.sizes[0]
        self.notes: list[str] = []
        self.mpp = self._scale(backend.mpp, mpp)
        self._sizes = backend.sizes
        self.levels = [self._downsample(size) for size in self._sizes]

    def _scale(self, stated: tuple[float, float] | None, given: float | None) -> float:
        if given is not None:
            if not (math.isfinite(given) and given > 0):
                raise UserError(f"--slide-mpp {given}: µm/px must be a positive number")
            return float(given)
        if stated is None:
            raise UserError(f"{self.path} does not say how many µm a pixel is; give it with --slide-mpp")
        x, y = stated
        if abs(x - y) > SQUARE * min(x, y):
            self.notes.append(
                f"{self.path}: pixels of {x:.4g} × {y:.4g} µm are not square; their mean is taken for both sides"
            )
        return (x + y) / 2

    def _downsample(self, size: tuple[int, int]) -> float:
        """The whole number that the rounded size of a level comes from, where there is one, else the mean ratio of the sides."""
        ratios = (self.width / size[0], self.height / size[1])
        whole = round(sum(ratios) / 2)
        if abs(self.width / whole - size[0]) < 1 and abs(self.height / whole - size[1]) < 1:
            return float(whole)
        return sum(ratios) / 2

    def read(self, x: float, y: float, width: int, height: int, mpp: float) -> Pixels:
        """uint8 [height, width, 3], RGB, maybe read-only: the region of `width` × `height` px of `mpp` µm whose top left corner is (x, y).

        Pixels are those of a level where one has this µm/px (to 0.1 %; the corner then moves to its nearest pixel), else they are
        resampled from the nearest finer level, bicubic and antialiased, at the exact position: overlapping regions agree in
        what they share. A slide that is coarser than `mpp` is enlarged. White outside the slide and where it is transparent.
        Raises `UserError` where the file is damaged.
        """
        if not (width > 0 and height > 0 and math.isfinite(mpp) and mpp > 0):
            raise ValueError(f"cannot read {width} × {height} px at {mpp} µm/px")
        level = self.level_for(mpp)
        scale = mpp / self.mpp / self.levels[level]
        left, top = x / self.levels[level], y / self.levels[level]
        if abs(scale - 1) <= SAME:
            return self._cut(level, math.floor(left + 0.5), math.floor(top + 0.5), width, height)
        return self._resample(level, left, top, width, height, scale)

    def level_for(self, mpp: float) -> int:
        """The level that is read for this µm/px: the coarsest that is not coarser."""
        return max((k for k, down in enumerate(self.levels) if down <= mpp / self.mpp * (1 + SAME)), default=0)

    def thumbnail(self, mpp: float) -> Pixels:
        """The whole slide at `mpp` µm/px, uint8 [H, W, 3], its sides rounded to whole pixels."""
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
        """A region at `scale` px of `level` for each px of the result, in blocks that bound the memory."""
        found = np.full((height, width, 3), 255, np.uint8)
        # The pixels whose centres lie on the slide, the last of which may be missing in a level; the others stay white.
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
        """One resampled block; beyond the slide's edge its last pixels are repeated, so that white does not bleed in."""
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
        if handle is None or handle[0] != os.getpid():  # a forked child must not share the file position
            with self._lock:
                handle = self._handle
                if handle is None or handle[0] != os.getpid():
                    handle = self._handle = (os.getpid(), open_backend(self.path))
        return handle[1]

    def close(self) -> None:
        """Let go of the file; a later reading opens it again."""
        handle, self._handle = self._handle, None
        if handle and handle[0] == os.getpid():
            handle[1].close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Open a slide: what OpenSlide knows, other TIFFs (OME-TIFF, striped), or a plain image.

    mpp: µm per level-0 px, against what the file says. Raises `UserError` for a file that is missing, damaged or no slide, and for one
    that does not state its µm/px where none is given (objective power is never taken for it).
    """
    slide = Slide(path, mpp)
    for note in slide.notes:
        say(note)
    return slide
