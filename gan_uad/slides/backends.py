"""The kinds of slide files behind one interface: OpenSlide's formats, other TIFFs, plain images."""

from __future__ import annotations

import math
import re
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import openslide
import tifffile
from PIL import Image

from gan_uad.data.images import MAX_PIXELS, Pixels, decode
from gan_uad.errors import UserError
from gan_uad.slides.base import Backend, damaged, is_smaller, line, on_white, plausible
from gan_uad.slides.samples import ADVICE, ONE_CHANNEL
from gan_uad.slides.tiff import TiffBackend

GENERIC = "generic-tiff"  # OpenSlide's name of a tiled TIFF of no known scanner
DISAGREE = 0.05  # relative difference of two statements of µm/px that cannot both be meant
PIL_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")


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
    vendor = openslide.OpenSlide.detect_format(path)
    if not is_tiff:
        return OpenSlideBackend(path) if vendor else PlainBackend(path)
    # OpenSlide sees one level of an OME-TIFF, whose others are in SubIFDs, and not its µm/px.
    if vendor not in (None, GENERIC) and not _is_ome(path):
        return OpenSlideBackend(path)
    tiff = TiffBackend(path)
    if vendor == GENERIC and tiff.samples.plain and not tiff.is_ome:
        with suppress(UserError):  # a compression that OpenSlide does not know
            slide = OpenSlideBackend(path)
            if slide.sizes[0] == tiff.sizes[0] and all(is_smaller(slide.sizes[0], size) for size in slide.sizes):
                slide.notes += tiff.notes
                tiff.close()
                return slide
    return tiff.checked()


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
        properties = dict(self._slide.properties)
        if "SLIDE_TYPE_FLUORESCENCE" in properties.values():  # of MRXS
            raise UserError(
                f"{path}: this is a fluorescence slide, which is not supported: its channels are no colours"
            )
        x, y = properties.get(openslide.PROPERTY_NAME_MPP_X), properties.get(openslide.PROPERTY_NAME_MPP_Y)
        self.mpp = plausible(x, y)
        self.unclear = "" if self.mpp or not (x or y) else f"{x or 'nothing'} × {y or 'nothing'} µm/px"
        self.origin, self.notes = _origin(properties)
        tags, stated = _by_tags(properties), self.mpp
        if tags and stated and abs(tags - stated[0]) > DISAGREE * stated[0]:  # resized by another program?
            self.mpp = None
            self.unclear = f"{stated[0]:.4g} µm/px as its scanner's, and {tags:.4g} in its resolution tags"
            self.notes.append(f"states {self.unclear}")

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        # OpenSlide takes level-0 px. Where its downsample is no integer it interpolates by up to 1/(2·downsample) of a pixel.
        scale = self._downsamples[level]
        try:
            image = self._slide.read_region((round(x * scale), round(y * scale)), level, (width, height))
        except openslide.OpenSlideError as error:
            raise UserError(damaged(self._path, error)) from None
        lowest, _ = image.getchannel("A").getextrema()
        return np.asarray(image.convert("RGB") if lowest == 255 else on_white(image))

    def close(self) -> None:
        self._slide.close()


class PlainBackend:
    """A plain image in memory: PNG, JPEG, BMP or WebP of up to 64 million pixels. It states no µm/px."""

    mpp: tuple[float, float] | None = None
    unclear = ""
    origin: tuple[int, int] | None = (0, 0)

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=PIL_FORMATS) as image:
                    self.sizes = [image.size]
                    if image.mode.startswith(("1", "I", "LA")) or image.mode == "L":
                        self.notes.append(ONE_CHANNEL)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            self.sizes = [(MAX_PIXELS, MAX_PIXELS)]
        except Exception as error:
            raise UserError(
                f"{path} is no slide that OpenSlide, tifffile or Pillow can open ({line(error)}); "
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


def _is_ome(path: Path) -> bool:
    """Whether a scanner's TIFF is an OME-TIFF. Raises `UserError` for another one of more than 8 bits: OpenSlide reads the highest 8."""
    try:
        with tifffile.TiffFile(path) as tiff:
            is_ome, page = bool(tiff.is_ome), tiff.pages.first
            bits, unsigned = int(page.bitspersample), int(page.sampleformat) == 1
    except Exception as error:  # a damaged file may raise anything
        raise UserError(damaged(path, error)) from None
    if not is_ome and not (bits == 8 and unsigned):
        raise UserError(f"{path}: samples of {bits} bits are not supported in this format; {ADVICE}")
    return is_ome


def _by_tags(properties: dict[str, str]) -> float | None:
    """µm/px along x by the resolution tags of the first page, where they are plausible."""
    unit = {"inch": 25400.0, "centimeter": 10000.0}.get(properties.get("tiff.ResolutionUnit", ""))
    try:
        side = (unit or 0.0) / float(properties.get("tiff.XResolution", ""))
    except (ValueError, ZeroDivisionError):
        return None
    return side if plausible(side, side) else None


def _origin(properties: dict[str, str]) -> tuple[tuple[int, int] | None, list[str]]:
    """Where QuPath's coordinates begin on a slide that OpenSlide reads, and notes.

    QuPath crops to OpenSlide's bounds (its preference "Crop to OpenSlide bounds" is on unless changed). Of a TIFF with several largest
    regions, and of CZI, it opens each as an image of its own, by Bio-Formats. A tiled TIFF without its first tiles has bounds for
    OpenSlide 4.0.1 and later only, so it depends on QuPath's version.
    """
    bounds = [properties.get(f"openslide.bounds-{name}", "") for name in ("x", "y", "width", "height")]
    origin = (int(bounds[0]), int(bounds[1])) if all(re.fullmatch(r"-?\d+", text) for text in bounds) else (0, 0)
    sizes: list[tuple[str, str]] = []
    while (key := f"openslide.region[{len(sizes)}].") + "width" in properties:
        sizes.append((properties[key + "width"], properties[key + "height"]))
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR)
    if len(sizes) < 2:
        return (None if vendor == GENERIC and origin != (0, 0) else origin), []
    notes = [f"holds {len(sizes)} scan regions, all of which are read, with white between them"]
    alone = max(sizes, key=lambda size: int(size[0]) * int(size[1]))
    own = vendor == "zeiss" or sizes.count(alone) > 1
    return (None if own else origin), notes
