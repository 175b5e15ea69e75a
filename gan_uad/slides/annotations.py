"""Pathologists' annotations as one tumour region in level-0 px: ASAP's XML (CAMELYON16, CAMELYON17) and QuPath's GeoJSON.

A class of annotation is tumour, is excluded from tumour, or is ignored. Known class names are below. The user must give the role of any
other: an unknown tumour class would label its tiles as normal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
UNCLASSIFIED = "unclassified"  # the class of a QuPath annotation that has none
SUFFIXES = (".xml", ".geojson", ".json")
WITH_AREA = ("Polygon", "Spline", "Rectangle")  # ASAP types; Dot, PointSet and Measurement have no area
NO_GROUP = "None"  # ASAP's group of what is drawn without one; CAMELYON16 uses it for exclusions
# Kinds of QuPath objects by `id`, which files of QuPath before 0.4 and of many scripts have in place of `objectType`.
OLD_KINDS = {
    "pathannotationobject": "annotation", "pathdetectionobject": "detection", "pathcellobject": "cell", "pathtileobject": "tile",
    "pathrootobject": "root", "tmacoreobject": "tma_core",
}  # fmt: skip
FOREIGN_XML = {
    "Annotations": "Aperio ImageScope",
    "annotations": "Hamamatsu NDP.view",
    "session": "Sedeen",
}  # by root element
MARGIN = 0.01  # of the slide's side: hand-drawn outlines may pass its edge by this much


@dataclass(frozen=True)
class Annotations:
    """The annotated tumour of one slide. All lengths are level-0 px.

    tumour: exclusions subtracted; may be empty. lesions: its connected polygons. bounds: of all annotations, (left, top, right, bottom),
    None where there are none. counts: polygons by class name. notes: what was left out or assumed, one sentence each. unplaced: number of
    tumour annotations without an area (points, lines): there is tumour that `tumour` does not hold, so no place is known to be normal.
    """

    path: Path
    tumour: MultiPolygon
    bounds: tuple[float, float, float, float] | None
    counts: dict[str, int]
    notes: list[str]
    unplaced: int = 0
    lesions: list[Polygon] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lesions", list(self.tumour.geoms))

    @property
    def has_tumour(self) -> bool:
        """Whether any tumour is annotated, with or without an area."""
        return not self.tumour.is_empty or self.unplaced > 0

    def fraction(self, x: ArrayLike, y: ArrayLike, side: float) -> NDArray[np.float64]:
        """Share of tumour, in [0, 1], in squares of `side` with top-left corners (x, y); in the shape of x and y."""
        squares, shape = _squares(x, y, side)
        tree, lesions, found = STRtree(squares), np.array(self.lesions, object), np.zeros(len(squares))
        lesion, square = tree.query(lesions, predicate="intersects")
        full = tree.query(lesions, predicate="contains")[1]  # most of them, and fast to find
        found[full] = side**2
        partial = ~np.isin(square, full)
        areas = shapely.area(shapely.intersection(lesions[lesion[partial]], squares[square[partial]]))
        np.add.at(found, square[partial], areas)
        return np.clip(found / side**2, 0.0, 1.0).reshape(shape)

    def touches(self, x: ArrayLike, y: ArrayLike, side: float) -> NDArray[np.bool_]:
        """Whether such squares share any point with tumour, even one on their edge."""
        squares, shape = _squares(x, y, side)
        found = np.zeros(len(squares), bool)
        found[STRtree(squares).query(np.array(self.lesions, object), predicate="intersects")[1]] = True
        return found.reshape(shape)

    def check(self, name: str, width: int, height: int) -> None:
        """Raises `UserError` where annotations lie outside the slide `name` of `width` × `height` px: they may be of another slide."""
        if self.bounds is None:
            return
        left, top, right, bottom = self.bounds
        x, y = MARGIN * width, MARGIN * height
        if left < -x or top < -y or right > width + x or bottom > height + y:
            raise UserError(
                f"{self.path} reaches from ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}), beyond {name} "
                f"({width} × {height} px): is it of another slide, or not in level-0 px?"
            )


def read_annotations(
    path: Path, classes: Mapping[str, str] | None = None, origin: tuple[int, int] | None = (0, 0)
) -> Annotations:
    """Read ASAP's XML or QuPath's GeoJSON.

    origin: level-0 px where QuPath's coordinates begin (`Slide.origin`), None where that is not known. ASAP's are of the whole slide.

    classes: roles of further or known classes, name -> one of `ROLES`; case does not matter. An ASAP outline is closed whether or not
    its first corner is repeated; a GeoJSON outline must be closed. An outline that crosses itself becomes the areas that it encloses an
    odd number of times. Points and lines have no area: see `unplaced`. Detections, cells and tiles of QuPath are left out, with a note.

    Raises `UserError` for a file that is missing, damaged or of another format, for document types and entities in XML, for outlines
    of fewer than three corners or without finite coordinates, for an unknown class, for ASAP's group None where a file has no other (it
    may be tumour or exclusion), and for a GeoJSON file of detections alone.
    """
    if not path.is_file():
        raise UserError(f"no such annotation: {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no annotation: give ASAP's .xml or QuPath's .geojson")
    given = {_key(name): role for name, role in (classes or {}).items()}
    roles = {**KNOWN, **given}
    notes: list[str] = []
    xml = path.suffix.lower() == ".xml"
    drawn = list(_read_asap(path) if xml else _read_geojson(path, notes, origin))
    if unknown := sorted({name for name, _, _ in drawn if _key(name) not in roles}):
        raise UserError(
            f"{path}: unknown class {unknown[0]!r}; give its role with --class '{unknown[0]}={TUMOUR}', ={EXCLUDED} or ={IGNORED}"
        )
    if xml and _key(NO_GROUP) not in given:
        _check_no_group(path, [name for name, _, _ in drawn], notes)
    placed = [(name, area) for name, _, area in drawn if area is not None]
    tumour, excluded = (
        shapely.union_all([area for name, area in placed if roles[_key(name)] == role]) for role in (TUMOUR, EXCLUDED)
    )
    tumour = polygons(tumour - excluded)
    unplaced = sum(area is None and roles[_key(name)] == TUMOUR for name, _, area in drawn)
    if tumour.is_empty and not unplaced:
        held = ", ".join(sorted({name for name, _, _ in drawn}))
        what = f"leaves no area of tumour (its classes: {held})" if drawn else "holds no annotation"
        notes.append(f"{path} {what}: the slide counts as free of tumour")
    bounds = tuple(shapely.total_bounds([area for _, area in placed]).tolist()) if placed else None
    counts = dict(Counter(name for name, _ in placed))
    bare = Counter((name, shape) for name, shape, area in drawn if area is None)
    for (name, shape), n in bare.items():
        unknown_place = (
            "; where there is tumour is not known, so nothing counts as normal" if roles[_key(name)] == TUMOUR else ""
        )
        notes.append(
            f"{path}: {n} annotations of class {name} are of type {shape}, without an area, and are left out{unknown_place}"
        )
    return Annotations(path, tumour, bounds, counts, notes, unplaced)


def _key(name: str) -> str:
    return " ".join(name.split()).lower()


def _check_no_group(path: Path, names: Sequence[str], notes: list[str]) -> None:
    """Group None beside others is excluded from tumour, as in CAMELYON16; alone it may be either."""
    count = sum(_key(name) == _key(NO_GROUP) for name in names)
    if count and count == len(names):
        raise UserError(
            f"{path}: all {count} outlines are of ASAP's default group {NO_GROUP}: they may be tumour without a group, or excluded as in "
            f"CAMELYON16; choose with --class {NO_GROUP}={TUMOUR} or --class {NO_GROUP}={EXCLUDED}"
        )
    if count:
        notes.append(
            f"{path}: {count} outlines of ASAP's default group {NO_GROUP} are excluded from tumour, as in CAMELYON16; "
            f"--class {NO_GROUP}={TUMOUR} makes them tumour"
        )


def _read_asap(path: Path) -> Iterator[tuple[str, str, Any]]:
    """(class, type, polygon; None without an area) of each annotation."""
    try:
        root = ElementTree.parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException:
        raise UserError(
            f"{path} has a document type or entities, which can be used to read files or fill the memory; save it again with ASAP"
        ) from None
    except (ElementTree.ParseError, UnicodeDecodeError, LookupError, ValueError) as error:
        raise UserError(f"{path} is not valid XML: {error}") from None
    if root is None or root.tag != "ASAP_Annotations":
        program = FOREIGN_XML.get("" if root is None else root.tag)
        of = f"of {program}, which is not read: open it in QuPath and export GeoJSON" if program else "not of ASAP"
        raise UserError(f"{path} is XML {of}; ASAP's begins with <ASAP_Annotations>")
    found = root.findall("./Annotations/Annotation")
    if elsewhere := sum(1 for _ in root.iter("Annotation")) - len(found):
        raise UserError(
            f"{path} holds {elsewhere} annotations outside <Annotations>, where ASAP has them; save it with ASAP"
        )
    for annotation in found:
        kind, group = annotation.get("Type", "Polygon"), annotation.get("PartOfGroup", NO_GROUP).strip() or NO_GROUP
        if kind not in WITH_AREA:
            yield group, kind, None
            continue
        context = f"{path}, annotation {annotation.get('Name', '')!r}"
        if len(annotation.findall("./Coordinates")) > 1:
            raise UserError(f"{context}: it has several lists of <Coordinates>; make each an annotation of its own")
        try:
            values = [
                [float(corner.get(key, "")) for key in ("Order", "X", "Y")]
                for corner in annotation.iterfind("./Coordinates/Coordinate")
            ]
        except ValueError:
            raise UserError(f"{context}: a corner has an Order, X or Y that is not a number") from None
        outline = [(x, y) for _, x, y in sorted(values, key=lambda corner: corner[0])]
        yield group, kind, _area([outline], context)


def _read_geojson(path: Path, notes: list[str], origin: tuple[int, int] | None) -> Iterator[tuple[str, str, Any]]:
    """(class, shape, polygon or multipolygon; None without an area) of each annotation; detections and tiles are left out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if origin is None:
        raise UserError(
            f"{path}: where its outlines lie is not known, since QuPath may open this slide cropped, or its regions one by one; draw them "
            "in ASAP"
        )
    if origin != (0, 0):
        notes.append(f"{path}: bounds {origin[0]}, {origin[1]} px of the slide are added to QuPath's outlines")
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list) or not all(isinstance(f, dict) and f.get("type") == "Feature" for f in features):
        raise UserError(f"{path} is JSON, but not GeoJSON: expected a FeatureCollection, as QuPath exports it")
    skipped: Counter[str] = Counter()
    for number, feature in enumerate(features, 1):
        properties, geometry = feature.get("properties") or {}, feature.get("geometry") or {}
        shape = geometry.get("type") if isinstance(geometry, dict) else None
        if not isinstance(properties, dict):
            raise UserError(f"{path}, feature {number}: its properties are no object; export it again from QuPath")
        kind = _kind_of(feature, properties)
        context = f"{path}, feature {number}"
        if kind not in OLD_KINDS.values():
            raise UserError(
                f"{context}: objectType {kind!r} is none of QuPath's; make it annotation, or delete the object"
            )
        if kind != "annotation":
            skipped[kind] += 1
            continue
        if shape not in ("Polygon", "MultiPolygon", "GeometryCollection"):
            yield _class_of(properties), str(shape), None
            continue
        try:
            read = shapely.force_2d(shapely.from_geojson(json.dumps(geometry)))
            drawn = shapely.transform(read, lambda corners: corners + np.array(origin))
        except shapely.GEOSException as error:
            raise UserError(
                f"{context}: its outline cannot be read ({' '.join(str(error).split())}); close the outline and export it again"
            ) from None
        parts = shapely.get_parts(shapely.get_parts(drawn))  # a collection may hold multipolygons
        if shape == "GeometryCollection":
            bare = [part for part in parts if part.geom_type != "Polygon" and not part.is_empty]
            parts = [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
            if not parts:
                yield _class_of(properties), str(shape), None
                continue
            for (
                part
            ) in bare:  # points and lines at its polygons are left by QuPath's tools; others mark a place of their own
                if not any(part.intersects(area) for area in parts):
                    yield _class_of(properties), part.geom_type, None
        outlines = [[part.exterior, *part.interiors] for part in parts] or [[]]
        areas = [_area([list(ring.coords) for ring in rings], context) for rings in outlines]
        yield _class_of(properties), str(shape), shapely.union_all(areas)
    if len(features) and sum(skipped.values()) == len(features):
        found = ", ".join(f"{n} objects of type {kind}" for kind, n in skipped.items())
        raise UserError(f"{path} holds no annotation, only {found}: export the annotations of the slide from QuPath")
    notes += [f"{path}: {n} objects of type {kind} are left out" for kind, n in skipped.items()]


def _kind_of(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    """QuPath's kind of an object: `objectType`, else `object_type`, else what older files have as `id`, else an annotation."""
    stated = properties.get("objectType") or properties.get("object_type")
    if stated:
        return OLD_KINDS.get(str(stated).strip().lower(), str(stated).strip().lower())
    for value in (feature.get("id"), properties.get("id")):
        if isinstance(value, str) and (kind := OLD_KINDS.get(value.strip().lower())):
            return kind
    return "annotation"


def _class_of(properties: dict[str, Any]) -> str:
    """QuPath's classification, {"name": ...} since 0.4 and {"names": [...]} for a class with subclasses."""
    found = properties.get("classification")
    if isinstance(found, dict):
        names = found.get("names")
        found = found.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else None)
    return str(found).strip() or UNCLASSIFIED if found else UNCLASSIFIED


def _area(rings: Sequence[Sequence[tuple[float, float]]], context: str) -> Any:
    """A valid polygon or multipolygon of an outline and its holes, which take away only what lies in the outline."""
    for ring in rings or [[]]:
        if len(set(ring)) < 3:
            raise UserError(
                f"{context}: an outline of {len(set(ring))} corners has no area; draw it again or delete it"
            )
        if not np.isfinite(ring).all():
            raise UserError(f"{context}: a corner has a coordinate that is not finite")
    polygon = Polygon(rings[0], rings[1:])
    if polygon.is_valid:
        return polygon
    outline, *holes = (polygons(shapely.make_valid(Polygon(ring))) for ring in rings)
    return polygons(outline - shapely.union_all(holes))


def polygons(geometry: Any) -> MultiPolygon:
    """The polygons of a geometry, without its points and lines."""
    parts = shapely.get_parts(shapely.get_parts(geometry))  # a collection may hold multipolygons
    return MultiPolygon([part for part in parts if part.geom_type == "Polygon" and part.area > 0])


def _squares(x: ArrayLike, y: ArrayLike, side: float) -> tuple[NDArray[np.object_], tuple[int, ...]]:
    left, top = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    return np.asarray(shapely.box(left, top, left + side, top + side), object).reshape(-1), left.shape
