"""Scored tiles as objects that QuPath (0.4 and later) opens: File > Import objects from file, or drag and drop on the slide."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from gan_uad.files import atomic

NAMESPACE = uuid.UUID("4c0d0a52-9a0e-5a9b-8d0b-7a1f6f2f9b11")  # of the ids of tiles; any fixed one will do
ANOMALOUS = {"name": "Anomalous", "color": [213, 94, 0]}


def write_geojson(
    path: Path, slide: str, tiles: Iterable[tuple[float, float, float, Mapping[str, float], bool]]
) -> Path:
    """A FeatureCollection, one tile object a row of `tiles`: x, y (top-left) and side in level-0 px, measurements by name, and whether
    it is classified "Anomalous".

    The polygon is closed, and a tile's id depends on slide, place and size alone: imported again, it is the same object.
    ValueError for a measurement that is not finite, which JSON cannot hold.
    """
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, (x, y, side, measurements, anomalous) in enumerate(tiles):
            feature = tile_feature(slide, x, y, side, measurements, anomalous)
            file.write((",\n" if number else "\n") + json.dumps(feature, allow_nan=False))
        file.write("\n]}\n")
    return path


def tile_feature(
    slide: str, x: float, y: float, side: float, measurements: Mapping[str, float], anomalous: bool
) -> dict[str, object]:
    """One tile as a GeoJSON feature in QuPath's form; `measurements` is a map, as QuPath writes it since 0.4."""
    for name, value in measurements.items():
        if not math.isfinite(value):
            raise ValueError(f"tile at ({x:g}, {y:g}): {name} is {value}")
    right, bottom = x + side, y + side
    ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
    properties: dict[str, object] = {"objectType": "tile", "measurements": dict(measurements)}
    if anomalous:
        properties["classification"] = ANOMALOUS
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(NAMESPACE, f"{slide} {x:g} {y:g} {side:g}")),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
    }
