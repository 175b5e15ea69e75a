"""Three kinds of slide files behind one interface: OpenSlide's formats, other TIFFs, plain images."""

from __future__ import annotations

import logging
import math
import struct
import threading
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import defusedxml.ElementTree
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray
from PIL import Image

from gan_uad.data.images import MAX_PIXELS, Pixels, decode
from gan_uad.errors import UserError

TIFF_CACHE = 64 << 20  # bytes of decoded strips or tiles kept for the next read
PLAUSIBLE_MPP = (0.01, 20.0)  # µm/px of a scanner; default resolutions of 72 or 300 dpi are 353 and 85 µm
MICROMETRES = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6, "Å": 1e-4}
PIL_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # our errors report damaged files


class Backend(Protocol):
    """An open slide file. Thread-safe, but not to be used in another process."""

    sizes: list[tuple[int, int]]  # width and height of each level, level 0 first
    mpp: tuple[float, float] | None  # µm per level-0 px along x and y, where the file states it

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """uint8 [height, width, 3] of a region of `level` in its own pixels, entirely inside it; transparent is white. May be read-only."""

    def close(self) -> None: ...


def open_backend(path: Path) -> Backend:
    """Detect the format of `path` and open it. Raises `UserError` for a file that is missing, damaged or no slide."""
    try:
        if not path.is_file():
            raise UserError(f"no such slide: {path}" if not path.exists() else f"{path} is a folder, not a slide file")
        if not path.stat().st_size:
            raise UserError(f"{path}: the file is empty")
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    is_tiff = start[:2] in (b"II", b"MM") and start[2:4] in (b"*\0", b"\0*", b"+\0", b"\0+")
    # OpenSlide sees one level of an OME-TIFF, whose others are in SubIFDs, and not its µm/px.
    if is_tiff and _is_ome(path):
        return TiffBackend(path)
    if openslide.OpenSlide.detect_format(path):
        return OpenSlideBackend(path)
    return TiffBackend(path) if is_tiff else PlainBackend(path)


class OpenSlideBackend:
    """OpenSlide's formats: SVS, NDPI, MRXS, SCN, VMS, BIF, DICOM, Philips and Trestle TIFF, tiled TIFF."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise UserError(damaged(path, error)) from None
        self.sizes = list(self._slide.level_dimensions)
        self._downsamples = self._slide.level_downsamples
        properties = self._slide.properties
        self.mpp = _plausible(
            properties.get(openslide.PROPERTY_NAME_MPP_X), properties.get(openslide.PROPERTY_NAME_MPP_Y)
        )

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        # OpenSlide takes level-0 px. Where its downsample is no integer it interpolates by up to 1/(2·downsample) of a pixel.
        scale = self._downsamples[level]
        try:
            image = self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        except openslide.OpenSlideError as error:
            raise UserError(damaged(self._path, error)) from None
        lowest, _ = image.getchannel("A").getextrema()
        return np.asarray(image.convert("RGB") if lowest == 255 else _on_white(image))

    def close(self) -> None:
        self._slide.close()


class TiffBackend:
    """TIFFs that OpenSlide cannot open or sees only in part, by tifffile: OME-TIFF with SubIFD pyramids, striped and planar ones.

    RGB, RGBA or grey of 8 or 16 bits (16 are scaled), interleaved, in planes or in three pages. Segments (strips or tiles) are read one
    by one, and the last ones are kept decoded.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._decoded: OrderedDict[tuple[int, int, int], NDArray[Any]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        try:
            if _ends_early(path):
                raise ValueError("the file ends too early")
            self._tiff = tifffile.TiffFile(path)
            self._levels = self._find_levels()
            self.mpp = self._find_mpp()
        except UserError:
            raise
        except Exception as error:  # a damaged file may raise anything
            raise UserError(damaged(path, error)) from None
        self.sizes = [(pages[0].keyframe.imagewidth, pages[0].keyframe.imagelength) for pages in self._levels]

    def _find_levels(self) -> list[list[Any]]:
        """The pages of each level: one, or one per channel."""
        series = max(self._tiff.series, key=lambda one: _area(one.levels[0]), default=None)
        if series is None:
            raise UserError(f"{self._path}: the TIFF holds no image")
        first = series.levels[0]
        counts = dict(zip(series.axes, first.shape, strict=True))
        channels = counts.get("S", 1) * counts.get("C", 1)
        others = [axis for axis, count in counts.items() if axis not in "YXSC" and count > 1]
        if others or channels not in (1, 3, 4) or first.dtype not in (np.uint8, np.uint16):
            shape = " × ".join(f"{count} {axis}" for axis, count in counts.items())
            raise UserError(f"{self._path}: {shape} of {first.dtype} is not RGB or grey of 8 or 16 bits")
        levels = []
        for level in series.levels:
            pages = [page for page in level.pages if page is not None]
            if len(pages) not in (1, channels):
                raise UserError(f"{self._path}: {len(pages)} pages for {channels} channels are not supported")
            levels.append(pages)
        return levels

    def _find_mpp(self) -> tuple[float, float] | None:
        if self._tiff.is_ome and self._tiff.ome_metadata:
            root = defusedxml.ElementTree.fromstring(self._tiff.ome_metadata)
            for pixels in root.iter():
                if pixels.tag.rpartition("}")[2] == "Pixels" and "PhysicalSizeX" in pixels.attrib:
                    sides = [
                        float(pixels.attrib[f"PhysicalSize{axis}"])
                        * MICROMETRES.get(pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm"), np.nan)
                        for axis in "XY"
                    ]
                    return _plausible(*sides)
        tags = self._levels[0][0].keyframe.tags
        unit = {2: 25400.0, 3: 10000.0}.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2)
        if unit is None or "XResolution" not in tags or "YResolution" not in tags:
            return None
        (a, b), (c, d) = tags["XResolution"].value, tags["YResolution"].value
        return _plausible(unit * b / a, unit * d / c) if a and c else None

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        pages = self._levels[level]
        planes = [self._page_region(level, number, x, y, width, height) for number in range(len(pages))]
        found = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        if found.dtype == np.uint16:
            found = ((found.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if found.shape[2] == 1:
            return np.repeat(found, 3, axis=2)
        if found.shape[2] == 4:
            return np.array(_on_white(Image.fromarray(found, "RGBA")))
        return np.ascontiguousarray(found)

    def _page_region(self, level: int, number: int, x: int, y: int, width: int, height: int) -> NDArray[Any]:
        """uint8 or uint16 [height, width, samples of the page]."""
        page = self._levels[level][number].keyframe
        across, down = page.imagewidth, page.imagelength
        if page.is_tiled:
            wide, high = page.tilewidth, page.tilelength
        else:
            wide, high = across, min(page.rowsperstrip, down)
        separate = page.planarconfig == 2
        found = np.full((height, width, page.samplesperpixel), np.iinfo(page.dtype).max, page.dtype)
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


class PlainBackend:
    """A plain image in memory: PNG, JPEG, BMP or WebP of up to 64 million pixels. It states no µm/px."""

    mpp: tuple[float, float] | None = None

    def __init__(self, path: Path) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=PIL_FORMATS) as image:
                    self.sizes = [image.size]
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            self.sizes = [(MAX_PIXELS, MAX_PIXELS)]
        except Exception as error:
            raise UserError(
                f"{path} is no slide that OpenSlide, tifffile or Pillow can open ({_line(error)}); "
                "if it should be one, it may be truncated: copy it again"
            ) from None
        if math.prod(self.sizes[0]) > MAX_PIXELS:
            raise UserError(
                f"{path}: a plain image of more than {MAX_PIXELS // 10**6} million pixels needs too much memory; "
                "save it as a tiled pyramidal TIFF (vips tiffsave --tile --pyramid)"
            )
        self._pixels = decode(path.read_bytes(), str(path))
        self.sizes = [(self._pixels.shape[1], self._pixels.shape[0])]

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self._pixels[y : y + height, x : x + width].copy()

    def close(self) -> None:
        pass


def damaged(path: Path, error: Exception) -> str:
    """One line for any error of a reading library."""
    if "imagecodecs" in str(error):
        return f"{path}: this TIFF's compression needs one more package: pip install imagecodecs"
    return f"{path} cannot be read ({_line(error)}); it may be truncated or damaged: copy it again"


def _is_ome(path: Path) -> bool:
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.is_ome)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(damaged(path, error)) from None


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


def _plausible(x: object, y: object) -> tuple[float, float] | None:
    """µm/px along x and y as numbers; None where they are missing or implausible for a scanner."""
    try:
        found = (float(str(x)), float(str(y)))
    except ValueError:
        return None
    return found if all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in found) else None


def _on_white(image: Image.Image) -> Image.Image:
    """An RGBA image as RGB."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _paste(into: NDArray[Any], segment: NDArray[Any], x: int, y: int) -> None:
    """Copy a segment into an array with its top-left corner at (x, y), which may be negative; cut it off at the edges."""
    top, left = max(y, 0), max(x, 0)
    part = segment[top - y : into.shape[0] - y, left - x : into.shape[1] - x]
    into[top : top + part.shape[0], left : left + part.shape[1]] = part


def _area(level: Any) -> int:
    counts = dict(zip(level.axes, level.shape, strict=True))
    return int(counts.get("Y", 0) * counts.get("X", 0))


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
