"""What a pathologist drew: ASAP's XML (CAMELYON16 and CAMELYON17) and QuPath's GeoJSON, as one tumour region in level-0 px.

A class of annotation is tumour, is excluded from tumour, or is ignored. The names below are known; of any other the user must say
what it is, since a tumour class that nobody knew would label its tiles as normal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shapely
from defusedxml import DefusedXmlException, ElementTree
from numpy.typing import ArrayLike, NDArray
from shapely import MultiPolygon, Polygon, STRtree

from gan_uad.errors import UserError

TUMOUR, EXCLUDED, IGNORED = "tumour", "excluded", "ignored"
ROLES = (TUMOUR, EXCLUDED, IGNORED)
# Lower case. CAMELYON16: _0, _1, Tumor and _2, Exclusion, None; CAMELYON17: metastases and normal; QuPath's own classes.
KNOWN = (
    dict.fromkeys(("_0", "_1", "tumor", "tumour", "metastases", "metastasis"), TUMOUR)
    | dict.fromkeys(("_2", "exclusion", "none", "normal", "benign"), EXCLUDED)
    | dict.fromkeys(("ignore*", "region*"), IGNORED)
)
UNCLASSIFIED = "unclassified"  # the class of an annotation of QuPath that has none
SUFFIXES = (".xml", ".geojson", ".json")
WITH_AREA = ("Polygon", "Spline", "Rectangle")  # of ASAP; Dot, PointSet and Measurement have none
BEYOND = 0.01  # of the slide's side: a hand slips over its edge


class Extent(Protocol):
    """What a slide is called and how large it is, in level-0 px."""

    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class Annotations:
    """The annotated tumour of one slide.

    tumour: all that is tumour, exclusions subtracted; may be empty. lesions: its connected parts. bounds: of all that was drawn,
    (left, top, right, bottom), None where nothing was. counts: polygons by class name. notes: what was left out, one sentence each.
    All lengths are level-0 px.
    """

    path: Path
    tumour: MultiPolygon
    bounds: tuple[float, float, float, float] | None
    counts: dict[str, int]
    notes: list[str]
    lesions: list[Polygon] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lesions", list(self.tumour.geoms))

    def fraction(self, x: ArrayLike, y: ArrayLike, side: float) -> NDArray[np.float64]:
        """Share of tumour, in [0, 1], under squares of `side` whose top left corners are (x, y); in the shape of x and y."""
        squares, shape = _squares(x, y, side)
        tree, lesions, found = STRtree(squares), np.array(self.lesions, object), np.zeros(len(squares))
        lesion, square = tree.query(lesions, predicate="intersects")
        whole = tree.query(lesions, predicate="contains")[1]  # most of them, and quickly told
        found[whole] = side**2
        partly = ~np.isin(square, whole)
        areas = shapely.area(shapely.intersection(lesions[lesion[partly]], squares[square[partly]]))
        np.add.at(found, square[partly], areas)
        return np.clip(found / side**2, 0.0, 1.0).reshape(shape)

    def touches(self, x: ArrayLike, y: ArrayLike, side: float) -> NDArray[np.bool_]:
        """Whether such squares have any point in common with tumour, were it on their edge."""
        squares, shape = _squares(x, y, side)
        found = np.zeros(len(squares), bool)
        found[STRtree(squares).query(np.array(self.lesions, object), predicate="intersects")[1]] = True
        return found.reshape(shape)

    def check(self, slide: Extent) -> None:
        """Raises `UserError` where anything was drawn beyond the slide, as on another one."""
        if self.bounds is None:
            return
        left, top, right, bottom = self.bounds
        x, y = BEYOND * slide.width, BEYOND * slide.height
        if left < -x or top < -y or right > slide.width + x or bottom > slide.height + y:
            raise UserError(
                f"{self.path} reaches from ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}), beyond {slide.path.name} "
                f"({slide.width} × {slide.height} px): is it of another slide, or not in level-0 px?"
            )


def read_annotations(path: Path, classes: Mapping[str, str] | None = None) -> Annotations:
    """Read ASAP's XML or QuPath's GeoJSON.

    classes: what further classes are, or known ones other than by default: name -> one of `ROLES`; upper and lower case are the same.
    An outline of ASAP is closed whether or not its first corner is repeated; one of GeoJSON must be closed. An outline that crosses
    itself becomes the areas that it encloses an odd number of times. What has no area (points, lines) is left out, and noted.

    Raises `UserError` for a file that is missing, broken or neither, with a document type or entities, with fewer than three corners
    or numbers that are none, and for a class that nobody knows.
    """
    if not path.is_file():
        raise UserError(f"no such annotation: {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no annotation: give ASAP's .xml or QuPath's .geojson")
    roles = {**KNOWN, **{name.lower(): role for name, role in (classes or {}).items()}}
    notes: list[str] = []
    drawn = list(_read_asap(path, notes) if path.suffix.lower() == ".xml" else _read_geojson(path, notes))
    if unknown := sorted({name for name, _ in drawn if name.lower() not in roles}):
        raise UserError(
            f"{path}: what is the class {unknown[0]!r}? Say --class '{unknown[0]}={TUMOUR}', ={EXCLUDED} or ={IGNORED}"
        )
    parts: dict[str, list[Any]] = {role: [] for role in ROLES}
    counts: dict[str, int] = {}
    for name, geometry in drawn:
        parts[roles[name.lower()]].append(geometry)
        counts[name] = counts.get(name, 0) + 1
    tumour = shapely.union_all(parts[TUMOUR]) - shapely.union_all(parts[EXCLUDED])
    bounds = tuple(shapely.total_bounds([geometry for _, geometry in drawn]).tolist()) if drawn else None
    return Annotations(path, _areas(tumour), bounds, counts, notes)


def find_annotation(folder: Path, slide: Path, alone: bool = True) -> Path | None:
    """The annotation of a slide in a folder: `<stem>.xml`, .geojson or .json, also with `_annotation` or `_annotations` after the stem.

    Looked for in the folder's subfolder of the name of the slide's folder first, and then in `folder` itself. None where there is none;
    raises `UserError` where there are several, and for one in `folder` itself where the slide's name is not `alone`: it may be of
    another slide, and to leave it out would make tumour normal.
    """
    stems = [slide.stem + ending for ending in ("", "_annotation", "_annotations")]
    parent = slide.resolve().parent.name
    for place in (folder / parent, folder):
        found = [
            place / (stem + suffix) for stem in stems for suffix in SUFFIXES if (place / (stem + suffix)).is_file()
        ]
        if len(found) > 1:
            raise UserError(f"{slide.name} has two annotations, {found[0]} and {found[1].name}: keep one of them there")
        if found and place == folder and not alone:
            raise UserError(
                f"{found[0]} may be of any of the slides called {slide.stem}; for that in {slide.parent} put its own into {folder / parent}"
            )
        if found:
            return found[0]
    return None


def _read_asap(path: Path, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """(class, polygon) of each annotation with an area."""
    try:
        root = ElementTree.parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException:
        raise UserError(
            f"{path} has a document type or entities, which an annotation needs not and which can be used to read files or "
            "fill the memory: it is refused. Save it anew with ASAP"
        ) from None
    except (ElementTree.ParseError, UnicodeDecodeError, LookupError, ValueError) as error:
        raise UserError(f"{path} is not valid XML: {error}") from None
    if root is None or root.tag != "ASAP_Annotations":
        raise UserError(f"{path} is XML, but not of ASAP: it does not begin with <ASAP_Annotations>")
    skipped: dict[str, int] = {}
    for annotation in root.iterfind("./Annotations/Annotation"):
        kind = annotation.get("Type", "Polygon")
        if kind not in WITH_AREA:
            skipped[kind] = skipped.get(kind, 0) + 1
            continue
        context = f"{path}, annotation {annotation.get('Name', '')!r}"
        corners = sorted(
            (
                _numbers(c.get("Order"), c.get("X"), c.get("Y"), context)
                for c in annotation.iterfind("./Coordinates/Coordinate")
            ),
            key=lambda corner: corner[0],
        )
        yield annotation.get("PartOfGroup", "None"), _polygon([[(x, y) for _, x, y in corners]], context)
    notes += [f"{path}: {n} annotations of type {kind} have no area and are left out" for kind, n in skipped.items()]


def _read_geojson(path: Path, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """(class, polygon or multipolygon) of each annotation with an area; detections and tiles are left out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in features):
        raise UserError(f"{path} is JSON, but not GeoJSON: expected a FeatureCollection, as QuPath exports it")
    skipped: dict[str, int] = {}
    for k, feature in enumerate(features):
        properties, geometry = feature.get("properties") or {}, feature.get("geometry") or {}
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        what = properties.get("objectType", "annotation")
        if what != "annotation" or kind not in ("Polygon", "MultiPolygon"):
            reason = f"objects of type {what}" if what != "annotation" else f"annotations of shape {kind}"
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        context = f"{path}, feature {k + 1}"
        polygons = [geometry.get("coordinates")] if kind == "Polygon" else geometry.get("coordinates")
        if not isinstance(polygons, list):
            raise UserError(f"{context}: it has no coordinates")
        areas = [_polygon([_ring(ring, context) for ring in _listed(rings, context)], context) for rings in polygons]
        yield _class_of(properties), shapely.union_all(areas)
    notes += [f"{path}: {n} {reason} are left out" for reason, n in skipped.items()]


def _class_of(properties: dict[str, Any]) -> str:
    """QuPath's classification, {"name": ...} since 0.4 and {"names": [...]} for a class with subclasses."""
    found = properties.get("classification")
    if isinstance(found, dict):
        names = found.get("names")
        return str(
            found.get("name") or (": ".join(map(str, names)) if isinstance(names, list) and names else UNCLASSIFIED)
        )
    return str(found) if found else UNCLASSIFIED


def _ring(ring: Any, context: str) -> list[tuple[float, float]]:
    points = [_numbers(0, *_pair(point, context), context)[1:] for point in _listed(ring, context)]
    if len(points) < 2 or points[0] != points[-1]:
        raise UserError(
            f"{context}: its outline is open (the last corner is not the first); close it and export it again"
        )
    return [(x, y) for x, y in points]


def _listed(value: Any, context: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{context}: its coordinates are no lists of corners")
    return value


def _pair(point: Any, context: str) -> tuple[Any, Any]:
    values = _listed(point, context)
    if len(values) < 2:
        raise UserError(f"{context}: a corner needs x and y")
    return values[0], values[1]


def _numbers(order: Any, x: Any, y: Any, context: str) -> tuple[float, float, float]:
    try:
        values = (float(order), float(x), float(y))
    except (TypeError, ValueError):
        raise UserError(f"{context}: a corner with Order {order!r}, X {x!r}, Y {y!r} is not made of numbers") from None
    if not np.isfinite(values).all():
        raise UserError(f"{context}: a corner lies at ({x}, {y})")
    return values


def _polygon(rings: list[list[tuple[float, float]]], context: str) -> Any:
    """A valid polygon or multipolygon of an outline and its holes."""
    for ring in rings or [[]]:
        if len(set(ring)) < 3:
            raise UserError(
                f"{context}: an outline of {len(set(ring))} corners encloses nothing; draw it again or delete it"
            )
    polygon = Polygon(rings[0], rings[1:])
    return polygon if polygon.is_valid else _areas(shapely.make_valid(polygon))


def _areas(geometry: Any) -> MultiPolygon:
    """The parts of a geometry that have an area."""
    parts = shapely.get_parts(shapely.get_parts(geometry))  # a collection may hold multipolygons
    return MultiPolygon([part for part in parts if part.geom_type == "Polygon" and part.area > 0])


def _squares(x: ArrayLike, y: ArrayLike, side: float) -> tuple[NDArray[np.object_], tuple[int, ...]]:
    left, top = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    return np.asarray(shapely.box(left, top, left + side, top + side), object).reshape(-1), left.shape
