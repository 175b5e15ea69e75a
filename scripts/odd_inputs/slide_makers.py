"""Makers of odd slide files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from odd_inputs.slide_frame import HEIGHT, TILED, WIDTH, scene

COARSE = ["--mpp", "2", "--size", "32"]  # tiles of the same places from coarser levels


NAMESPACE = 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'


def write(path: Path, image: np.ndarray | None = None, **options: Any) -> Path:
    tifffile.imwrite(path, scene() if image is None else image, **options)
    return path


def cmyk() -> tuple[np.ndarray, np.ndarray]:
    """CMYK with a black channel that matters, and its RGB."""
    ink = np.concatenate([255 - scene(), np.full((HEIGHT, WIDTH, 1), 60, np.uint8)], axis=2)
    paper = (255.0 - ink) / 255
    return ink, (paper[..., :3] * paper[..., 3:] * 255 + 0.5).astype(np.uint8)


def ycbcr() -> np.ndarray:
    """BT.601, full range."""
    r, g, b = np.moveaxis(scene().astype(float), 2, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    parts = [y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402]
    return np.clip(np.stack(parts, 2) + 0.5, 0, 255).astype(np.uint8)


def with_fourth(value: int | None = None) -> np.ndarray:
    """RGB and a fourth sample that is `value`, else 0 in the left half and 255 in the right one."""
    fourth = np.full((HEIGHT, WIDTH, 1), 255 if value is None else value, np.uint8)
    if value is None:
        fourth[:, : WIDTH // 2] = 0
    return np.concatenate([scene(), fourth], axis=2)


def ome(
    path: Path,
    image: np.ndarray,
    pixels: str,
    channel: str = '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>',
    **options: Any,
) -> Path:
    """An OME-TIFF with this XML of `Pixels`; `image`: [H, W, 3], or [C, H, W] of channels in pages."""
    planes = image[None] if image.shape[-1] == 3 else image
    size_c = 3 if image.shape[-1] == 3 else len(image)
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?><OME {NAMESPACE}><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
        f'Type="{image.dtype}" SizeX="{WIDTH}" SizeY="{HEIGHT}" SizeC="{size_c}" SizeZ="1" SizeT="1" {pixels}>{channel}'
        "<TiffData/></Pixels></Image></OME>"
    )
    kind = "rgb" if image.shape[-1] == 3 else "minisblack"
    with tifffile.TiffWriter(path) as tiff:
        for k, plane in enumerate(planes):
            described = {"description": xml.encode()} if not k else {}
            tiff.write(plane, tile=(128, 128), photometric=kind, metadata=None, **described, **options)
    return path


def named(*names: str) -> str:
    return "".join(f'<Channel ID="Channel:0:{k}" Name="{n}" SamplesPerPixel="1"/>' for k, n in enumerate(names))


HALF = 'PhysicalSizeX="0.5" PhysicalSizeY="0.5"'


def planes(*which: int) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(scene()[..., list(which)], 2, 0))


def pages(path: Path, *images: tuple[np.ndarray, dict[str, Any]]) -> Path:
    with tifffile.TiffWriter(path) as tiff:
        for image, options in images:
            tiff.write(image, **TILED | options)
    return path


def aperio(path: Path, text: str, **tags: Any) -> Path:
    """An SVS: tiled JPEG with Aperio's description; its tags state 72 dpi."""
    options = {"tile": (128, 128), "compression": "jpeg", "photometric": "rgb", "metadata": None}
    described = (
        f"Aperio Image Library v11.2.1\r\n{WIDTH}x{HEIGHT} [0,0 {WIDTH}x{HEIGHT}] (128x128) JPEG/RGB Q=90|{text}"
    )
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(scene(), description=described, **options, **tags)
    return path


def without_first_tile(path: Path) -> Path:
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = tiff.pages.first
        for tag, values in (("TileOffsets", page.dataoffsets), ("TileByteCounts", page.databytecounts)):
            page.tags[tag].overwrite((0, *values[1:]))
    return path


def described(path: Path, change: Callable[[str], str]) -> Path:
    """The file with its OME-XML changed."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages.first.tags["ImageDescription"]
        tag.overwrite(change(tag.value))
    return path


def renamed(path: Path, code: int) -> Path:
    """The file with a tag given a number that means nothing."""
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.tags[code].offset
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write((65000).to_bytes(2, "little"))
    return path
