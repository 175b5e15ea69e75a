"""Scored tiles as objects that QuPath (0.4 and later) opens: File > Import objects from file, or drag and drop on the slide."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from gan_uad.files import atomic

NAMESPACE = uuid.UUID("4c0d0a52-9a0e-5a9b-8d0b-7a1f6f2f9b11")  # of the ids of tiles; an arbitrary constant
ANOMALOUS = {"name": "Anomalous", "color": [213, 94, 0]}


def write_geojson(
    path: Path, slide: str, tiles: Iterable[tuple[float, float, float, Mapping[str, float], bool]],
    origin: tuple[int, int] = (0, 0),
) -> Path:  # fmt: skip
    """A FeatureCollection with one tile object for each of `tiles`: x, y (top left) and side in level-0 px, measurements by name, and
    whether it is classified "Anomalous". `origin`: level-0 px where QuPath's coordinates begin; it is subtracted.

    A tile's id depends on slide, position and side alone, so that importing it twice gives one object. ValueError for a measurement
    that is not finite, which JSON cannot hold.
    """
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, (x, y, side, measurements, anomalous) in enumerate(tiles):
            left, top = x - origin[0], y - origin[1]
            right, bottom = left + side, top + side
            ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(NAMESPACE, f"{slide} {x:g} {y:g} {side:g}")),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "tile", "measurements": dict(measurements)}
                | ({"classification": ANOMALOUS} if anomalous else {}),
            }
            file.write((",\n" if number else "\n") + json.dumps(feature, allow_nan=False))
        file.write("\n]}\n")
    return path
