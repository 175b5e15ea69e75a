"""From scores of tiles and outlines of tumour to what was found of it and what was not, by the rules of CAMELYON16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely import Geometry, Polygon
from shapely.geometry.base import BaseGeometry

from gan_uad.metrics.froc import Marks

APART = 192.0  # µm: of two peaks closer than that the lower one is no detection of its own
MARGIN = 37.5  # µm by which outlines are widened, so that what lies within 75 µm is one lesion
SMALLEST = (
    275.0  # µm across, widened (200 without): below, isolated tumour cells, which are neither hit nor false alarm
)


@dataclass(frozen=True)
class Lesions:
    """`counted`: the lesions to be found; `ignored`: isolated tumour cells. Polygons in level-0 px."""

    counted: list[Polygon]
    ignored: list[Polygon]


def lesions(tumour: BaseGeometry, mpp: float) -> Lesions:
    """The lesions of annotated `tumour` (level-0 px, `mpp` µm each), as CAMELYON16's evaluation has them.

    Outlines are widened by 37.5 µm, what then touches is one lesion, its holes are filled, and one that is less than 275 µm across is
    isolated tumour cells. Its script does so on a raster and measures across by the major axis of the ellipse of equal moments; this is
    the exact outline, and the longer side of the smallest rectangle around it.
    """
    counted: list[Polygon] = []
    ignored: list[Polygon] = []
    widened = tumour.buffer(MARGIN / mpp)
    for part in [] if widened.is_empty else shapely.get_parts(widened).tolist():
        filled = Polygon(part.exterior)
        (counted if _across(filled) * mpp >= SMALLEST else ignored).append(filled)
    return Lesions(counted, ignored)


def peaks(x: ArrayLike, y: ArrayLike, scores: ArrayLike, apart: float) -> NDArray[np.int64]:
    """Indices of the detections among points `[N]`, best first: a point is one unless a better one lies within `apart` px.

    Of equal scores the first counts as the better one. (Greedy non-maximum suppression.)
    """
    from scipy.spatial import cKDTree

    points = np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    if not len(points):
        return np.empty(0, np.int64)
    tree = cKDTree(points)
    free = np.ones(len(points), bool)
    kept = []
    for index in np.argsort(-np.asarray(scores, np.float64), kind="stable").tolist():
        if free[index]:
            kept.append(index)
            free[tree.query_ball_point(points[index], apart)] = False
    return np.array(kept, np.int64)


def marks(x: ArrayLike, y: ArrayLike, scores: ArrayLike, found_in: Lesions) -> Marks:
    """Hits and false alarms of detections at points `[N]`; inside an ignored lesion a detection is neither."""
    px, py, values = (np.asarray(given, np.float64) for given in (x, y, scores))
    outside = np.ones(len(values), bool)
    hits = []
    for lesion in found_in.counted:
        inside = _within(lesion, px, py)
        hits.append(values[inside].max(initial=-np.inf))
        outside &= ~inside
    for lesion in found_in.ignored:
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
