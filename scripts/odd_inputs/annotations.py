"""Odd annotations: of ASAP, and of QuPath. What is right is stated by hand, in blocks of the scene."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from odd_inputs.slide_frame import BLOCK, EVERY, Made, annotation

Corners = list[tuple[float, float]]


def box(left: float, top: float, right: float, bottom: float, inset: float = 0.1) -> Corners:
    """Corners, in px, of a rectangle of whole blocks, smaller by `inset` blocks at each side, so that it touches no other block."""
    left, top, right, bottom = left + inset, top + inset, right - inset, bottom - inset
    return [(BLOCK * x, BLOCK * y) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]


A, B = box(0, 0, 1, 1), box(2, 1, 4, 2)  # the block (0, 0), and the blocks (2, 1) and (3, 1)
IN_A, IN_B = {(0, 0)}, {(2, 1), (3, 1)}


def made(folder: Path, tumour: set[tuple[int, int]], *args: str, **expected: Any) -> Made:
    return Made([folder / "case.tif"], args=list(args), tumour=tumour, **expected)


# ASAP


def outline(group: str, corners: Corners, kind: str = "Polygon", number: str = "{:g}") -> str:
    body = "".join(
        f'<Coordinate Order="{i}" X="{number.format(x)}" Y="{number.format(y)}"/>' for i, (x, y) in enumerate(corners)
    )
    return f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}"><Coordinates>{body}</Coordinates></Annotation>'


def asap(folder: Path, *outlines: str, name: str = "case.xml") -> Path:
    text = (
        '<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{}</Annotations><AnnotationGroups/></ASAP_Annotations>'
    )
    path = folder / "drawn" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.format("".join(outlines)), encoding="utf-8")
    return path


@annotation("ASAP: group None alone", "refused")
def _(folder: Path) -> Made:
    asap(folder, outline("None", A))
    return made(folder, IN_A)


@annotation("ASAP: group None alone, told to be tumour", "right")
def _(folder: Path) -> Made:
    asap(folder, outline("None", A))
    return made(folder, IN_A, "--class", "None=tumour")


@annotation("ASAP: group None cuts a hole into _0")
def _(folder: Path) -> Made:
    asap(folder, outline("_0", box(0, 0, 4, 1)), outline("None", box(1, 0, 2, 1, -0.05)))
    return made(folder, {(0, 0), (2, 0), (3, 0)}, said=("None",))


@annotation("ASAP: empty group and None beside Tumor")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", B), outline("", A))
    return made(folder, IN_B, said=("None",))


@annotation("ASAP: dots of tumour alone")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", [(64, 64)], "Dot"))
    return made(folder, set(), unknown=EVERY, said=("Dot",))


@annotation("ASAP: a polygon, and a dot elsewhere")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", A), outline("Tumor", [(300, 200)], "Dot"))
    return made(folder, IN_A, unknown=EVERY - IN_A, said=("Dot",))


@annotation("ASAP: a measurement of class Tumor beside a polygon")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", A), outline("Tumor", [(300, 200), (310, 200)], "Measurement"))
    return made(folder, IN_A, unknown=EVERY - IN_A, said=("Measurement",))


@annotation("ASAP: spline through the corners of two blocks")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", [*box(2, 1, 3, 2)[:2], *B[1:]], "Spline"))
    return made(folder, IN_B)


@annotation("ASAP: rectangle of two opposite corners")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", [B[0], B[2]], "Rectangle"))
    return made(folder, IN_B)


@annotation("ASAP: corners out of order, Order tells", "right")
def _(folder: Path) -> Made:
    path = asap(folder, outline("Tumor", B))
    found = path.read_text().split("<Coordinate ")
    last = found[-1].index("/>") + 2
    ends = [*found[1:-1], found[-1][:last]]
    path.write_text(found[0] + "".join(f"<Coordinate {ends[k]}" for k in (2, 0, 3, 1)) + found[-1][last:])
    return made(folder, IN_B)


@annotation("ASAP: every Order is 0")
def _(folder: Path) -> Made:
    path = asap(folder, outline("Tumor", B))
    text = path.read_text()
    for k in (1, 2, 3):
        text = text.replace(f'Order="{k}"', 'Order="0"')
    path.write_text(text)
    return made(folder, IN_B)


@annotation("ASAP: corners without Order")
def _(folder: Path) -> Made:
    path = asap(folder, outline("Tumor", B))
    text = path.read_text()
    for k in range(4):
        text = text.replace(f'Order="{k}" ', "")
    path.write_text(text)
    return made(folder, IN_B)


@annotation("ASAP: outline closed by its first corner", "right")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", [*B, B[0]]))
    return made(folder, IN_B)


@annotation("ASAP: group with a trailing space and other case", "right")
def _(folder: Path) -> Made:
    asap(folder, outline("TUMOR ", B))
    return made(folder, IN_B)


@annotation("ASAP: decimal commas", "refused")
def _(folder: Path) -> Made:
    path = asap(folder, outline("Tumor", B, number="{:.1f}"))
    path.write_text(re.sub(r'([XY]="\d+)\.', r"\1,", path.read_text()))
    return made(folder, IN_B)


@annotation("ASAP: outline far left of the slide", "refused")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", box(-2, 0, -1, 1)))
    return made(folder, set())


@annotation("ASAP: file of no bytes", "refused")
def _(folder: Path) -> Made:
    (folder / "drawn/case.xml").touch()
    return made(folder, set())


@annotation("ASAP: no annotation in it")
def _(folder: Path) -> Made:
    asap(folder)
    return made(folder, set(), said=("no annotation",))


@annotation("ASAP: with an XML namespace")
def _(folder: Path) -> Made:
    path = asap(folder, outline("Tumor", B))
    path.write_text(path.read_text().replace("<ASAP_Annotations>", '<ASAP_Annotations xmlns="http://a.b">'))
    return made(folder, IN_B)


@annotation("ASAP: annotations outside <Annotations>")
def _(folder: Path) -> Made:
    path = asap(folder, outline("Tumor", B))
    path.write_text(path.read_text().replace("<Annotations>", "").replace("</Annotations>", ""))
    return made(folder, IN_B)


@annotation("ASAP: corners outside <Coordinates>")
def _(folder: Path) -> Made:
    path = asap(folder, outline("Tumor", B))
    path.write_text(path.read_text().replace("<Coordinates>", "").replace("</Coordinates>", ""))
    return made(folder, IN_B)


@annotation("ASAP: type in lower case")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", B, kind="polygon"))
    return made(folder, IN_B, left_out="polygon")


@annotation("ASAP: class Metastasis ITC, not known", "refused")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", A), outline("Metastasis ITC", B))
    return made(folder, IN_A | IN_B)


@annotation("ASAP: UTF-16 with its BOM")
def _(folder: Path) -> Made:
    path = asap(folder, outline("Tumor", B))
    path.write_text(path.read_text().replace('"1.0"', '"1.0" encoding="UTF-16"'), encoding="utf-16")
    return made(folder, IN_B)


# QuPath's GeoJSON


def ring(corners: Corners) -> list[list[float]]:
    return [list(corner) for corner in [*corners, corners[0]]]


def polygon(*rings: Corners) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [ring(one) for one in rings]}


def feature(geometry: Any, name: Any = "Tumor", **properties: Any) -> dict[str, Any]:
    named = {"classification": {"name": name}} if isinstance(name, str) else name or {}
    held = {"objectType": "annotation", **named, **properties}
    return {"type": "Feature", "id": "PathAnnotationObject", "geometry": geometry, "properties": held}


def geojson(folder: Path, *features: Any, name: str = "case.geojson", bare: bool = False) -> Path:
    path = folder / "drawn" / name
    path.parent.mkdir(exist_ok=True)
    held = list(features) if bare else {"type": "FeatureCollection", "features": list(features)}
    path.write_text(json.dumps(held), encoding="utf-8")
    return path


def _simple(name: str, accept: str, *features: Any, tumour: Any = IN_B, unknown: Any = (), **expected: Any) -> None:
    @annotation(f"GeoJSON: {name}", accept)
    def _(folder: Path) -> Made:
        geojson(folder, *features)
        return made(folder, set(tumour), unknown=set(unknown), **expected)


BOTH = "right refused"
POINT = {"type": "Point", "coordinates": [64, 64]}
LINE = {"type": "LineString", "coordinates": [[0, 0], [100, 100]]}
_simple("a point of tumour", BOTH, feature(POINT), tumour=(), unknown=EVERY, said=("Point",))
_simple("MultiPoint beside a polygon", BOTH, feature(polygon(B)), feature({"type": "MultiPoint", "coordinates": [[9, 9]]}),
        unknown=EVERY - IN_B, said=("MultiPoint",))  # fmt: skip
_simple("a line of tumour beside a polygon", BOTH, feature(polygon(B)), feature(LINE), unknown=EVERY - IN_B,
        said=("LineString",))  # fmt: skip
_simple(
    "a line of class Normal beside a polygon", BOTH, feature(polygon(B)), feature(LINE, "Normal"), said=("LineString",)
)
_simple("a polygon without a geometry", BOTH, feature(polygon(B)), feature(None), unknown=EVERY - IN_B)
_simple("GeometryCollection of a polygon and a line", BOTH,
        feature({"type": "GeometryCollection", "geometries": [polygon(B), LINE]}), unknown=EVERY - IN_B)  # fmt: skip
_simple(
    "GeometryCollection of a polygon and a line in it",
    BOTH,
    feature(
        {
            "type": "GeometryCollection",
            "geometries": [polygon(B), {"type": "LineString", "coordinates": [[300, 180], [310, 180]]}],
        }
    ),
)
_simple("GeometryCollection of a polygon and a point elsewhere", BOTH,
        feature({"type": "GeometryCollection", "geometries": [polygon(B), POINT]}), unknown=EVERY - IN_B)  # fmt: skip
_simple("GeometryCollection of a line alone", BOTH, feature({"type": "GeometryCollection", "geometries": [LINE]}), tumour=(),
        unknown=EVERY)  # fmt: skip
_simple("GeometryCollection in a GeometryCollection", BOTH, feature(
    {"type": "GeometryCollection", "geometries": [{"type": "GeometryCollection", "geometries": [polygon(B)]}]}))  # fmt: skip
_simple("MultiPolygon with a hole", "right", feature({"type": "MultiPolygon", "coordinates": [
    [ring(box(0, 0, 3, 3)), ring(box(1, 1, 2, 2, -0.05))], [ring(box(3, 2, 4, 3))]]}),
    tumour={(x, y) for x in range(3) for y in range(3)} - {(1, 1)} | {(3, 2)})  # fmt: skip
_simple("outline that crosses itself", BOTH, feature(polygon([(BLOCK * x, BLOCK * y) for x, y in (
    (0.1, 0.1), (0.9, 0.1), (2.1, 0.9), (2.9, 0.9), (2.9, 0.1), (2.1, 0.1), (0.9, 0.9), (0.1, 0.9))])),
    tumour={(0, 0), (2, 0)}, unknown={(1, 0)})  # fmt: skip
_simple("outline not closed", BOTH, feature({"type": "Polygon", "coordinates": [[list(p) for p in B]]}))
_simple(
    "empty coordinates beside a polygon", BOTH, feature(polygon(B)), feature({"type": "Polygon", "coordinates": []})
)
_simple(
    "classification null beside Tumor", "refused", feature(polygon(B)), feature(polygon(A), {"classification": None})
)
_simple("no classification at all", "refused", feature(polygon(B), {}))
_simple("classification Tumor: Necrosis", BOTH, feature(polygon(B)), feature(polygon(A), "Tumor: Necrosis"))
_simple("classification as a list of names", BOTH, feature(polygon(B), {"classification": {"names": ["Tumor"]}}))
_simple("names and a differing name", BOTH, feature(polygon(B), {"classification": {"names": ["Tumor", "Necrosis"]}}))
_simple("classification as text", BOTH, feature(polygon(B), {"classification": "Tumor"}))
_simple("classification as a list", BOTH, feature(polygon(B), {"classification": ["Tumor"]}))
_simple("the class in `name` alone", BOTH, feature(polygon(B), {"name": "Tumor"}))
_simple("classification of a number", BOTH, feature(polygon(B), {"classification": {"name": 1}}))
_simple("old ids of detections beside an annotation", BOTH, feature(polygon(B)),
        feature(polygon(A)) | {"id": "PathCellObject", "properties": {"classification": {"name": "Tumor"}}},
        said=("cell",))  # fmt: skip
_simple("objectType tile beside an annotation", BOTH, feature(polygon(B)), feature(polygon(A), objectType="tile"),
        said=("tile",))  # fmt: skip
_simple("objectType detection alone", "refused", feature(polygon(B), objectType="detection"))
_simple("objectType of an unknown word", BOTH, feature(polygon(B), objectType="lesion"), left_out="lesion")
_simple("objectType of an unknown word beside an annotation", BOTH, feature(polygon(B), objectType="lesion"), feature(polygon(A)),
        tumour=IN_A | IN_B)  # fmt: skip
_simple("coordinates as text", BOTH, feature({"type": "Polygon", "coordinates": [
    [[str(x), str(y)] for x, y in ring(B)]]}))  # fmt: skip
_simple("corners of three numbers", BOTH, feature({"type": "Polygon", "coordinates": [[[*p, 0.0] for p in ring(B)]]}))
_simple(
    "a corner of one number", BOTH, feature({"type": "Polygon", "coordinates": [[*ring(B)[:2], [5.0], *ring(B)[2:]]]})
)
_simple("NaN in a corner", "refused", feature({"type": "Polygon", "coordinates": [
    [[float("nan"), 0.0], *ring(B)[1:-1], [float("nan"), 0.0]]]}))  # fmt: skip
_simple("coordinates in nm, beyond the slide", "refused", feature(polygon([(500 * x, 500 * y) for x, y in B])))
_simple("an outline beyond the slide, ignored", BOTH, feature(polygon(B)), feature(polygon(box(0, 0, 9, 9)), "Region*"))
_simple("ring wound the other way, a hole too", "right", feature(polygon(box(0, 0, 3, 3)[::-1], box(1, 1, 2, 2, -0.05))),
        tumour={(x, y) for x in range(3) for y in range(3)} - {(1, 1)})  # fmt: skip
_simple("hole that sticks out of its outline", BOTH, feature(polygon(B, box(3, 0, 4, 2, -0.05))), tumour={(2, 1)})
_simple("Region* alone", BOTH, feature(polygon(B), "Region*"), tumour=(), said=("tumour",))
_simple("Other and Stroma, known to no one", "refused", feature(polygon(A), "Other"), feature(polygon(B), "Stroma"))
_simple("hole outside its outline", BOTH, feature(polygon(B, A)))
_simple(
    "locked, hidden annotation with measurements", "right", feature(polygon(B), isLocked=True, measurements={"a": 1})
)
_simple("plane of z 1", BOTH, feature(polygon(B) | {"plane": {"c": -1, "z": 1, "t": 0}}))


@annotation("GeoJSON: no features")
def _(folder: Path) -> Made:
    geojson(folder)
    return made(folder, set(), said=("no annotation",))


@annotation("GeoJSON: BOM, CRLF and spaces", "right")
def _(folder: Path) -> Made:
    path = geojson(folder, feature(polygon(B)))
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(json.loads(path.read_text()), indent=1).replace("\n", "\r\n").encode()
    )
    return made(folder, IN_B)


@annotation("GeoJSON: UTF-16")
def _(folder: Path) -> Made:
    path = geojson(folder, feature(polygon(B)))
    path.write_bytes(path.read_text().encode("utf-16"))
    return made(folder, IN_B)


@annotation("GeoJSON: a single feature")
def _(folder: Path) -> Made:
    path = geojson(folder)
    path.write_text(json.dumps(feature(polygon(B))))
    return made(folder, IN_B)


@annotation("GeoJSON: a bare geometry")
def _(folder: Path) -> Made:
    geojson(folder).write_text(json.dumps(polygon(B)))
    return made(folder, IN_B)


@annotation("GeoJSON: a bare list, named .json")
def _(folder: Path) -> Made:
    geojson(folder, feature(polygon(B)), bare=True, name="case.json")
    return made(folder, IN_B)


@annotation("GeoJSON: one feature per line")
def _(folder: Path) -> Made:
    geojson(folder).write_text("\n".join(json.dumps(feature(polygon(one))) for one in (A, B)))
    return made(folder, IN_A | IN_B)


@annotation("GeoJSON: cut off in the middle", "refused")
def _(folder: Path) -> Made:
    path = geojson(folder, feature(polygon(B)))
    os.truncate(path, path.stat().st_size // 2)
    return made(folder, IN_B)


@annotation("GeoJSON: key features is named otherwise")
def _(folder: Path) -> Made:
    geojson(folder).write_text(json.dumps({"type": "FeatureCollection", "annotations": [feature(polygon(B))]}))
    return made(folder, IN_B)


@annotation("GeoJSON: in µm, inside the slide's px", "right")
def _(folder: Path) -> Made:
    """Nothing tells that these are µm: read as px they are right as px."""
    geojson(folder, feature(polygon(box(0, 0, 2, 1))))
    return made(folder, {(0, 0), (1, 0)})


@annotation("GeoJSON: with a coordinate reference system")
def _(folder: Path) -> Made:
    path = geojson(folder, feature(polygon(B)))
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"crs": {"type": "name", "properties": {"name": "EPSG:4326"}}})
    )
    return made(folder, IN_B)


@annotation("ASAP: two lists of corners in one annotation")
def _(folder: Path) -> Made:
    path = asap(folder, outline("Tumor", A), outline("Tumor", B))
    text = path.read_text()
    path.write_text(
        text.replace(
            '</Coordinates></Annotation><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor">', "</Coordinates>"
        )
    )
    return made(folder, IN_A | IN_B)


@annotation("ASAP: annotation without its type and group")
def _(folder: Path) -> Made:
    path = asap(folder, outline("Tumor", B))
    path.write_text(path.read_text().replace(' Type="Polygon" PartOfGroup="Tumor"', ""))
    return made(folder, IN_B)


@annotation("ASAP: GeoJSON named .xml", "refused")
def _(folder: Path) -> Made:
    geojson(folder, feature(polygon(B)), name="case.xml")
    return made(folder, IN_B)


@annotation("GeoJSON: ASAP's XML named .geojson", "refused")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", B), name="case.geojson")
    return made(folder, IN_B)


_simple(
    "type in lower case: polygon",
    BOTH,
    feature(polygon(B) | {"type": "polygon"}),
    tumour=(),
    unknown=EVERY,
    said=("polygon",),
)
_simple("a flat list of corners", "refused", feature({"type": "Polygon", "coordinates": ring(B)}))
_simple("numbers of 1e300", "refused", feature(polygon([(x * 1e300, y) for x, y in B])))
_simple("tumour wholly excluded", BOTH, feature(polygon(B)), feature(polygon(box(2, 1, 4, 2, 0)), "Exclusion"), tumour=(),
        said=("tumour",))  # fmt: skip
_simple("two outlines of one MultiPolygon that overlap", "right", feature({"type": "MultiPolygon", "coordinates": [
    [ring(B)], [ring(box(2, 1, 3, 2))]]}))  # fmt: skip
_simple("a collection of features in the features", "refused", feature(polygon(A)),
        {"type": "FeatureCollection", "features": [feature(polygon(B))]})  # fmt: skip
_simple("properties null", BOTH, feature(polygon(B)) | {"properties": None})
_simple("properties as a list", BOTH, feature(polygon(B)) | {"properties": [1]})
_simple("features null", BOTH, feature(polygon(B)), None)
_simple("geometry as text", BOTH, feature("Polygon"), tumour=(), unknown=EVERY)
_simple("curve: type CircularString beside a polygon", BOTH, feature(polygon(B)),
        feature({"type": "CircularString", "coordinates": [[0, 0], [9, 9], [18, 0]]}), unknown=EVERY - IN_B)  # fmt: skip
_simple("infinite corner", "refused", feature({"type": "Polygon", "coordinates": [[[float("inf"), 0.0], *ring(B)[1:-1],
        [float("inf"), 0.0]]]}))  # fmt: skip
