"""Shared by the tests of slides: one phantom slide, and slides and annotations made of rectangles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from sharing import once

from gan_uad.demo.phantom_slide import SlideGeometry, slide_geometry, write_phantom_slide

PHANTOM = (1664, 1088, 1.0)  # width and height in px, µm/px
Box = tuple[float, float, float, float]  # left, top, right, bottom in level-0 px


def shared_phantom(factory: pytest.TempPathFactory) -> tuple[Path, SlideGeometry]:
    """One phantom slide for all test files, with its annotation beside it; nobody may write into its folder."""
    folder = once(factory, "phantom_slide", lambda root: write_phantom_slide(root / "phantom.tif", *PHANTOM))
    return folder / "phantom.tif", slide_geometry(*PHANTOM)


def corners(box: Box) -> list[tuple[float, float]]:
    left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def write_slide(
    path: Path, width: int, height: int, tissue: Sequence[Box], mpp: float | None = 1.0, seed: int = 0
) -> Path:
    """A tiled TIFF (deflate, no pyramid) with noisy pink rectangles on glass: its tissue is exactly those."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 240, np.uint8)
    for left, top, right, bottom in (tuple(map(int, box)) for box in tissue):
        noise = rng.integers(-20, 21, (bottom - top, right - left, 3))
        image[top:bottom, left:right] = np.array([190, 90, 160]) + noise
    resolution: dict[str, Any] = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, tile=(256, 256), compression="zlib", photometric="rgb", metadata=None, **resolution)
    return path


def asap(
    path: Path, *annotations: tuple[str, Sequence[tuple[float, float]]], kind: str = "Polygon", head: str = ""
) -> Path:
    """An XML of ASAP: (group, corners) of each annotation, the corners in reversed order of lines."""
    lines = ['<?xml version="1.0"?>', head, "<ASAP_Annotations><Annotations>"]
    for k, (group, points) in enumerate(annotations):
        lines.append(f'<Annotation Name="Annotation {k}" Type="{kind}" PartOfGroup="{group}"><Coordinates>')
        lines += [f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in reversed(list(enumerate(points)))]
        lines.append("</Coordinates></Annotation>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, "</Annotations></ASAP_Annotations>"]), encoding="utf-8")
    return path


def feature(
    name: str | None, *rings: Sequence[tuple[float, float]], close: bool = True, **properties: Any
) -> dict[str, Any]:
    """A feature of QuPath's GeoJSON."""
    closed = [[list(p) for p in ring] + ([list(ring[0])] if close else []) for ring in rings]
    named = {"classification": {"name": name, "color": [200, 0, 0]}} if name else {}
    return {
        "type": "Feature", "id": "a6f9f3d8-6a1c-4d2e-8f0a-2d3c5b1f7e90", "geometry": {"type": "Polygon", "coordinates": closed},
        "properties": {"objectType": "annotation", **named, **properties},
    }  # fmt: skip


def geojson(path: Path, *features: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


def write_scn(path: Path, *parts: tuple[np.ndarray, int, int]) -> Path:
    """A Leica SCN of 0.5 µm/px with these images, each with its top-left corner at (x, y) px of the whole glass of 3000 × 2400 px."""

    def image(number: int, width: int, height: int, view: tuple[int, int, int, int], power: str) -> str:
        return (
            f'<image name="i{number}" uuid="u{number}"><creationDate>2015-01-01T00:00:00Z</creationDate><device model="m" version="1"/>'
            f'<pixels sizeX="{width}" sizeY="{height}"><dimension sizeX="{width}" sizeY="{height}" r="0" ifd="{number}"/></pixels>'
            f'<view sizeX="{view[2]}" sizeY="{view[3]}" offsetX="{view[0]}" offsetY="{view[1]}" spacingZ="0"/><scanSettings>'
            f"<objectiveSettings><objective>{power}</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4"
            "</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
        )

    glass = (1_500_000, 1_200_000)  # nm
    text = image(0, 500, 400, (0, 0, *glass), "0.6")
    for number, (pixels, x, y) in enumerate(parts, 1):
        height, width = pixels.shape[:2]
        text += image(number, width, height, (500 * x, 500 * y, 500 * width, 500 * height), "20")
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="x">'
        f'<collection name="c" uuid="y" sizeX="{glass[0]}" sizeY="{glass[1]}"><barcode></barcode>{text}</collection></scn>'
    )
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(np.full((400, 500, 3), 240, np.uint8), description=xml, **options)
        for pixels, _, _ in parts:
            tiff.write(pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER", **options)
    return path
