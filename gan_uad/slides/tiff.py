"""TIFFs that OpenSlide cannot open, sees only in part or reads wrongly, by tifffile."""

from __future__ import annotations

import logging
import math
import struct
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

import numpy as np
import tifffile
from numpy.typing import NDArray

from gan_uad.data.images import Pixels
from gan_uad.errors import UserError
from gan_uad.slides import ome
from gan_uad.slides.base import damaged, is_smaller, plausible
from gan_uad.slides.samples import check_brightness, check_decoder, meaning

TIFF_CACHE = 64 << 20  # bytes of decoded strips or tiles kept for the next read
LIKE = 0.5  # from this share of the largest image's area, another one may be the slide too
MASK = 4  # bit of tag 254, NewSubfileType: transparency of another image
PROBES = 64  # strips or tiles whose brightest value is that of the slide

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # our errors report damaged files


class TiffBackend:
    """OME-TIFF with SubIFD pyramids, striped, planar and 16-bit TIFF.

    The pixels of `samples.meaning`, interleaved, in planes or in three pages. Segments (strips or tiles) are read one by one, and the last
    ones are kept decoded.
    """

    origin: tuple[int, int] | None = (0, 0)

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoded: OrderedDict[tuple[int, int, int], NDArray[Any]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self.notes: list[str] = []
        try:
            if _ends_early(path):
                raise ValueError("the file ends too early")
            self._tiff = tifffile.TiffFile(path)
            series, self._levels = self._find_levels()
            first = self._levels[0][0].keyframe
            self.is_ome = bool(self._tiff.is_ome)
            xml = self._tiff.ome_metadata if self.is_ome else None
            every = self._tiff.series
            at = next(k for k, one in enumerate(every) if one is series)
            pixels = ome.pixels_of(xml, at, len(every), first.imagewidth, first.imagelength) if xml else None
            self.mpp, self.unclear = self._find_mpp() if pixels is None else ome.scale(pixels)
            if pixels is not None and not self.mpp and not self.unclear:
                self.mpp, self.unclear = self._find_mpp()
            self.samples = meaning(path, first, len(self._levels[0]), pixels)
            self.sizes = [(pages[0].keyframe.imagewidth, pages[0].keyframe.imagelength) for pages in self._levels]
            if not all(map(all, self.sizes)):
                raise ValueError("a level of it has no pixels")
            self._leave_out_levels()
        except UserError:
            raise
        except Exception as error:  # a damaged file may raise anything
            raise UserError(damaged(path, error)) from None
        self.notes += self.samples.notes

    def _leave_out_levels(self) -> None:
        """Leave out levels of another aspect: they show something else (a thumbnail of the glass)."""
        kept = [is_smaller(self.sizes[0], size) for size in self.sizes]
        if not all(kept):
            others = ", ".join(f"{w} × {h}" for (w, h), like in zip(self.sizes, kept, strict=True) if not like)
            self.notes.append(f"its levels of another aspect than the slide's are not read: {others} px")
            self._levels = [level for level, like in zip(self._levels, kept, strict=True) if like]
            self.sizes = [size for size, like in zip(self.sizes, kept, strict=True) if like]

    def checked(self) -> Self:
        """This, if its pixels can be decoded and its values are as bright as their bits say. Raises `UserError`."""
        check_decoder(self._path, self._levels[0][0].keyframe)
        if self.samples.highest == 65535:
            check_brightness(self._path, self._brightest())
        return self

    def _find_levels(self) -> tuple[Any, list[list[Any]]]:
        """The largest image, and the pages of each of its levels: one, or one per channel."""
        images = [one for one in self._tiff.series if not one.levels[0].keyframe.subfiletype & MASK]
        series = max(images, key=lambda one: _area(one.levels[0]), default=None)
        if series is None:
            raise UserError(f"{self._path}: the TIFF holds no image")
        self._note_others(series, images)
        first = series.levels[0]
        counts = dict(zip(series.axes, first.shape, strict=True))
        if others := [f"{count} × {axis}" for axis, count in counts.items() if axis not in "YXSC" and count > 1]:
            raise UserError(
                f"{self._path}: its image is a stack ({', '.join(others)} of {first.dtype}), of focus planes, times or regions; save "
                "the one that is the slide as a file of its own"
            )
        channels = counts.get("S", 1) * counts.get("C", 1)
        levels = []
        for level in series.levels:
            pages: list[Any] = [page for page in level.pages if page is not None]
            if not pages or len(pages) * pages[0].keyframe.samplesperpixel != channels:
                raise UserError(f"{self._path}: {len(pages)} pages for {channels} channels are not supported")
            levels.append(pages)
        return series, levels

    def _note_others(self, series: Any, images: list[Any]) -> None:
        alike = [one for one in images if _area(one.levels[0]) >= LIKE * _area(series.levels[0])]
        if len(alike) > 1:
            names = [f"{one.name or 'image'} {_side(one, 'X')} × {_side(one, 'Y')}" for one in alike]
            areas = [_area(one.levels[0]) for one in alike]
            which = "the largest" if areas.count(max(areas)) == 1 else "the first of the largest"
            self.notes.append(
                f"holds {len(alike)} images of like size ({', '.join(names)} px); {which}, number {alike.index(series) + 1}, is read"
            )

    def _find_mpp(self) -> tuple[tuple[float, float] | None, str]:
        """µm/px by the tags of the page, or None and what they state."""
        tags = self._levels[0][0].keyframe.tags
        unit = {2: 25400.0, 3: 10000.0}.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2)
        if unit is None or "XResolution" not in tags or "YResolution" not in tags:
            return None, ""
        (a, b), (c, d) = tags["XResolution"].value, tags["YResolution"].value
        if not (a and c):
            return None, ""
        x, y = unit * b / a, unit * d / c
        found = plausible(x, y)
        return found, "" if found else f"{x:.4g} × {y:.4g} µm/px, which is no scanner's"

    def _brightest(self) -> int:
        """The largest sample of the coarsest level: of all of it, or of segments that are spread over it."""
        found = 0
        for number, page in enumerate(self._levels[-1]):
            count = len(page.dataoffsets)
            for index in np.unique(np.linspace(0, count - 1, min(count, PROBES)).round().astype(int)).tolist():
                segment = self._segment(len(self._levels) - 1, number, index)
                if segment is not None and segment.size:
                    found = max(found, int(segment.max()))
        return found

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        try:
            planes = [self._page_region(level, number, x, y, width, height) for number in self.samples.order]
            return self.samples.to_rgb(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2))
        except UserError:
            raise
        except Exception as error:  # tags of a damaged file may contradict each other
            raise UserError(damaged(self._path, error)) from None

    def _page_region(self, level: int, number: int, x: int, y: int, width: int, height: int) -> NDArray[Any]:
        """uint8 or uint16 [height, width, samples of the page]; white where the file has nothing."""
        page = self._levels[level][number].keyframe
        across, down = page.imagewidth, page.imagelength
        if page.is_tiled:
            wide, high = page.tilewidth, page.tilelength
        else:
            wide, high = across, min(page.rowsperstrip, down)
        separate = page.planarconfig == 2
        found = np.empty((height, width, page.samplesperpixel), page.dtype)
        found[:] = np.resize(self.samples.blank, page.samplesperpixel)
        for plane in range(page.samplesperpixel if separate else 1):
            into = found[..., plane : plane + 1] if separate else found
            for row in range(y // high, (y + height - 1) // high + 1):
                for column in range(x // wide, (x + width - 1) // wide + 1):
                    index = (plane * math.ceil(down / high) + row) * math.ceil(across / wide) + column
                    segment = self._segment(level, number, index)
                    if segment is not None:
                        _paste(into, segment, column * wide - x, row * high - y)
        return found

    def _segment(self, level: int, number: int, index: int) -> NDArray[Any] | None:
        """A decoded strip or tile, [height, width, samples]; None for one that the file leaves out."""
        key = (level, number, index)
        with self._lock:
            if key in self._decoded:
                self._decoded.move_to_end(key)
                return self._decoded[key]
        page = self._levels[level][number]
        try:
            count = page.databytecounts[index]
            with self._lock:
                self._tiff.filehandle.seek(page.dataoffsets[index])
                data = self._tiff.filehandle.read(count) if count else b""
            if len(data) < count:
                raise ValueError("the file ends too early")
            decoded, _, _ = page.keyframe.decode(data or None, index, jpegtables=page.keyframe.jpegtables)
        except Exception as error:  # a damaged file may raise anything
            raise UserError(damaged(self._path, error)) from None
        if decoded is None:
            return None
        segment: NDArray[Any] = decoded[0]
        with self._lock:
            if key not in self._decoded:
                self._decoded[key] = segment
                self._held += segment.nbytes
            while self._held > TIFF_CACHE and len(self._decoded) > 1:
                self._held -= self._decoded.popitem(last=False)[1].nbytes
        return segment

    def close(self) -> None:
        self._decoded.clear()
        self._tiff.close()


def _ends_early(path: Path) -> bool:
    """Whether the chain of a TIFF's directories leads beyond its end. tifffile would silently read only the pages before that."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(16).ljust(16, b"\0")
        order = "<" if start[:2] == b"II" else ">"
        big = struct.unpack(f"{order}H", start[2:4])[0] == 43
        counter, entry, pointer = (f"{order}Q", 20, f"{order}Q") if big else (f"{order}H", 12, f"{order}I")
        (offset,) = struct.unpack_from(pointer, start, 8 if big else 4)
        seen: set[int] = set()
        while offset not in seen and offset:
            seen.add(offset)
            file.seek(offset)
            count = file.read(struct.calcsize(counter))
            if len(count) < struct.calcsize(counter):
                return True
            end = offset + len(count) + struct.unpack(counter, count)[0] * entry
            if end + struct.calcsize(pointer) > size:
                return True
            file.seek(end)
            (offset,) = struct.unpack(pointer, file.read(struct.calcsize(pointer)))
    return not seen  # a writer fills in the first offset last


def _paste(into: NDArray[Any], segment: NDArray[Any], x: int, y: int) -> None:
    """Copy a segment into an array with its top-left corner at (x, y), which may be negative; cut it off at the edges."""
    top, left = max(y, 0), max(x, 0)
    part = segment[top - y : into.shape[0] - y, left - x : into.shape[1] - x]
    into[top : top + part.shape[0], left : left + part.shape[1]] = part


def _area(level: Any) -> int:
    counts = dict(zip(level.axes, level.shape, strict=True))
    return int(counts.get("Y", 0) * counts.get("X", 0))


def _side(series: Any, axis: str) -> int:
    return int(dict(zip(series.axes, series.shape, strict=True)).get(axis, 0))
