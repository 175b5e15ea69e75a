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
