"""Detections and lesions, and which of them match, by the rules of CAMELYON16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely import Geometry, Polygon
from shapely.geometry.base import BaseGeometry

from gan_uad.metrics.froc import Marks

MIN_DISTANCE = 192.0  # µm between two detections: closer than that, the lower peak is left out
MARGIN = 37.5  # µm by which outlines are widened: tumour closer than 75 µm is one lesion
MIN_LESION = 275.0  # µm across, widened (200 without); below: isolated tumour cells, neither hit nor false alarm


@dataclass(frozen=True)
class Lesions:
    """`counted`: the lesions to be found; `ignored`: isolated tumour cells. Polygons in level-0 px."""

    counted: list[Polygon]
    ignored: list[Polygon]


def lesions(tumour: BaseGeometry, mpp: float) -> Lesions:
    """The lesions of annotated `tumour` (level-0 px, `mpp` µm each), as in CAMELYON16's evaluation.

    Outlines are widened by 37.5 µm; outlines that then touch are one lesion; holes are filled; a lesion less than 275 µm across is
    isolated tumour cells. The original script works on a raster and measures the major axis of the ellipse of equal moments; this
    function works on the exact outline and measures the longer side of the smallest rectangle around it.
    """
    found = Lesions([], [])
    for part in shapely.get_parts(tumour.buffer(MARGIN / mpp)):
        if not part.is_empty:
            filled = Polygon(part.exterior)
            (found.counted if _across(filled) * mpp >= MIN_LESION else found.ignored).append(filled)
    return found


def peaks(x: ArrayLike, y: ArrayLike, scores: ArrayLike, distance: float) -> NDArray[np.int64]:
    """Indices of the detections among points `[N]`, best first: greedy non-maximum suppression within `distance` px.

    Of equal scores the first one wins.
    """
    from scipy.spatial import cKDTree

    points = np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    if not len(points):
        return np.empty(0, np.int64)
    tree = cKDTree(points)
    candidate = np.ones(len(points), bool)
    kept = []
    for index in np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist():
        if candidate[index]:
            kept.append(index)
            candidate[tree.query_ball_point(points[index], distance)] = False
    return np.array(kept, np.int64)


def marks(x: ArrayLike, y: ArrayLike, scores: ArrayLike, truth: Lesions) -> Marks:
    """Hits and false alarms of detections at points `[N]`; inside an ignored lesion a detection is neither."""
    px, py, values = (np.asarray(given, np.float64) for given in (x, y, scores))
    outside = np.ones(len(values), bool)
    hits = []
    for lesion in truth.counted:
        inside = _within(lesion, px, py)
        hits.append(values[inside].max(initial=-np.inf))
        outside &= ~inside
    for lesion in truth.ignored:
        outside &= ~_within(lesion, px, py)
    return Marks.of(hits, values[outside])


def _within(lesion: Polygon, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    shapely.prepare(lesion)
    return np.asarray(shapely.intersects_xy(lesion, x, y))


def _across(polygon: Polygon) -> float:
    """The longer side of the smallest rectangle around a polygon."""
    around: Geometry = shapely.minimum_rotated_rectangle(polygon)
    corners = shapely.get_coordinates(around)
    return float(np.hypot(*np.diff(corners, axis=0).T).max())
