"""Annotations: the areas by hand, exclusions, what touches, and files that must not be believed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from slide_tools import asap, corners, feature, geojson

from gan_uad.errors import UserError
from gan_uad.slides.annotations import Annotations, read_annotations
from gan_uad.slides.tiles import labels

SQUARE = corners((100, 100, 300, 300))
HOLE = corners((150, 150, 200, 250))


def test_camelyon_areas_exclusions_and_lesions_by_hand(tmp_path: Path) -> None:
    far = corners((500, 100, 600, 150))
    found = read_annotations(asap(tmp_path / "a.xml", ("_0", SQUARE), ("_1", far), ("_2", HOLE)))
    assert found.tumour.area == 200 * 200 - 50 * 100 + 100 * 50
    assert sorted(lesion.area for lesion in found.lesions) == [5000, 35000]
    assert found.counts == {"_0": 1, "_1": 1, "_2": 1}
    assert found.bounds == (100, 100, 600, 300)
    assert found.notes == []
    # The hole takes 50 × 50 of the first, 10 % of the last but one is beyond, and of the last 45 × 90 lie in the hole.
    x, y = [100, 0, 210, 155], [100, 0, 150, 160]
    assert found.fraction(x, y, 100.0).tolist() == pytest.approx([(1e4 - 50 * 50) / 1e4, 0, 0.9, 0.595])
    assert found.fraction(155, 160, 40).tolist() == 0
    assert not found.touches(155, 160, 40)
    assert float(found.fraction(520, 120, 20)) == 1


def test_touching_an_edge_or_a_corner_is_touching(tmp_path: Path) -> None:
    found = read_annotations(asap(tmp_path / "a.xml", ("Tumor", SQUARE), ("Exclusion", HOLE)))
    x, y = np.array([[50, 49], [300, 301], [150, 151]]), np.array([[100, 100], [300, 300], [200, 200]])
    assert found.touches(x, y, 50).tolist() == [[True, False], [True, False], [True, True]]
    assert found.touches(x[2], y[2], 48).tolist() == [True, False]
    assert found.fraction(x, y, 50)[:2].tolist() == [[0, 0], [0, 0]]
    assert found.fraction(x, y, 50).shape == (3, 2)


def test_fractions_against_points_drawn_at_random(tmp_path: Path) -> None:
    """A jagged outline with a hole, against counting 40,000 points."""
    rng = np.random.default_rng(0)
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    outline = np.stack([np.cos(turn), np.sin(turn)], 1) * rng.uniform(200, 450, (60, 1)) + 500
    path = asap(tmp_path / "a.xml", ("metastases", outline.tolist()), ("normal", corners((450, 450, 560, 540))))
    found = read_annotations(path)
    shape = shapely.Polygon(outline) - shapely.box(450, 450, 560, 540)
    x, y = rng.uniform(0, 900, (2, 60))
    points = np.stack(np.meshgrid(*[(np.arange(200) + 0.5) / 200 * 120] * 2))
    counted = [shapely.contains_xy(shape, points[0] + a, points[1] + b).mean() for a, b in zip(x, y, strict=True)]
    assert found.fraction(x, y, 120) == pytest.approx(counted, abs=0.005)
    boxes = shapely.box(x, y, x + 120, y + 120)
    assert found.touches(x, y, 120).tolist() == shapely.intersects(shape, boxes).tolist()
    assert 10 < found.touches(x, y, 120).sum() < 60


def test_order_of_corners_is_by_their_number(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", ("Tumor", SQUARE + [(200.0, 500.0)]))
    lines = path.read_text().splitlines()
    places = [k for k, line in enumerate(lines) if "Coordinate Order" in line]
    shuffled = [lines[k] for k in places]
    random.Random(1).shuffle(shuffled)
    for k, line in zip(places, shuffled, strict=True):
        lines[k] = line
    (tmp_path / "b.xml").write_text("\n".join(lines))
    assert read_annotations(tmp_path / "b.xml").tumour.equals(read_annotations(path).tumour)


def test_real_file_in_the_form_of_camelyon(shared_data: Path) -> None:
    found = read_annotations(shared_data / "slides" / "CMU-1-Small-Region_annotation.xml")
    first = [
        (1015.5, 980.25),
        (1130.0, 905.5),
        (1290.75, 1010.0),
        (1330.25, 1240.5),
        (1245.0, 1510.75),
        (1120.5, 1720.0),
    ]
    first += [(985.25, 1905.5), (905.0, 1760.25), (930.5, 1430.0), (960.0, 1180.5)]
    second = [(1180.0, 2010.0), (1330.5, 1985.0), (1365.0, 2140.5), (1240.0, 2195.0)]

    def shoelace(points: list[tuple[float, float]]) -> float:
        return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, points[1:] + points[:1], strict=True))) / 2

    assert found.tumour.area == pytest.approx(shoelace(first) + shoelace(second) - 100 * 110)
    assert found.counts == {"Tumor": 2, "Exclusion": 1}


def test_qupath_geojson(tmp_path: Path) -> None:
    hollow = feature("Tumor", SQUARE, HOLE)
    several = feature("Tumor", corners((400, 0, 450, 50)))
    several["geometry"] = {
        "type": "MultiPolygon",
        "coordinates": [several["geometry"]["coordinates"], [[*map(list, corners((0, 0, 10, 10))), [0, 0]]]],
    }
    ignored = feature("Ignore*", corners((900, 900, 950, 950)))
    tile = feature(None, SQUARE, objectType="tile")
    line = feature("Tumor", SQUARE) | {"geometry": {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}}
    found = read_annotations(geojson(tmp_path / "a.geojson", hollow, several, ignored, tile, line))
    assert found.tumour.area == 35000 + 2500 + 100
    assert found.counts == {"Tumor": 2, "Ignore*": 1}
    assert found.bounds == (0, 0, 950, 950)
    assert len(found.notes) == 2
    assert "1 objects of type tile" in found.notes[0]
    assert "LineString" in found.notes[1]
    assert found.unplaced == 1
    assert not (labels(found, np.array([0, 900]), np.array([0, 900]), 10, 0.5) == 0).any(), (
        "nowhere is known to be normal"
    )
    # A bare list, as older versions export it, and a single feature.
    for k, content in enumerate(([hollow], hollow)):
        (tmp_path / f"{k}.json").write_text(json.dumps(content))
        assert read_annotations(tmp_path / f"{k}.json").tumour.area == 35000


def test_both_formats_give_the_same(tmp_path: Path) -> None:
    xml = read_annotations(asap(tmp_path / "a.xml", ("Tumor", SQUARE), ("Exclusion", HOLE)))
    other = read_annotations(geojson(tmp_path / "a.geojson", feature("tumor", SQUARE), feature("EXCLUSION", HOLE)))
    assert xml.tumour.equals(other.tumour)


def test_an_outline_that_crosses_itself_is_its_odd_areas(tmp_path: Path) -> None:
    bow = [(0.0, 0.0), (100.0, 100.0), (100.0, 0.0), (0.0, 100.0)]
    found = read_annotations(asap(tmp_path / "a.xml", ("Tumor", bow)))
    assert found.tumour.area == pytest.approx(5000)
    assert len(found.lesions) == 2
    # The first corner repeated at the end, as some tools write it, changes nothing.
    again = read_annotations(asap(tmp_path / "b.xml", ("Tumor", SQUARE + SQUARE[:1])))
    assert again.tumour.area == 40000


def test_classes_that_the_user_names(tmp_path: Path) -> None:
    path = geojson(
        tmp_path / "a.geojson", feature("DCIS", SQUARE), feature("Necrosis", HOLE), feature(None, corners((0, 0, 9, 9)))
    )
    with pytest.raises(UserError, match=r"a\.geojson: .*--class 'DCIS=tumour'"):
        read_annotations(path)
    classes = {"dcis": "tumour", "Necrosis": "excluded", "unclassified": "ignored"}
    assert read_annotations(path, classes).tumour.area == 35000
    assert read_annotations(path, classes | {"Necrosis": "ignored"}).tumour.area == 40000
    # Known classes can be overridden.
    assert read_annotations(asap(tmp_path / "a.xml", ("normal", SQUARE)), {"Normal": "tumour"}).tumour.area == 40000


def test_an_annotation_without_polygons_says_that_there_is_no_tumour(tmp_path: Path) -> None:
    found = read_annotations(asap(tmp_path / "a.xml"))
    assert found.tumour.is_empty
    assert found.bounds is None
    assert found.fraction([0, 5], [0, 5], 10).tolist() == [0, 0]
    assert not found.touches(0, 0, 10)
    dots = read_annotations(asap(tmp_path / "b.xml", ("Tumor", SQUARE[:1]), kind="Dot"))
    assert dots.tumour.is_empty
    assert "Dot" in dots.notes[0]
    assert dots.unplaced == 1
    assert "no annotation" in found.notes[0]


@pytest.mark.parametrize(
    ("geometry", "area"),
    [
        ({"type": "Point", "coordinates": [5, 5]}, None),
        ({"type": "MultiPoint", "coordinates": [[5, 5], [9, 9]]}, None),
        ({"type": "LineString", "coordinates": [[0, 0], [5, 5]]}, None),
        ({"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [5, 5]}]}, None),
        ({"type": "GeometryCollection", "geometries": []}, None),
        (None, None),
        (
            {
                "type": "GeometryCollection",
                "geometries": [
                    {"type": "LineString", "coordinates": [[0, 0], [5, 5]]},
                    {"type": "MultiPolygon", "coordinates": [[[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]]]},
                    {"type": "Polygon", "coordinates": [[[20, 0], [25, 0], [25, 5], [20, 5], [20, 0]]]},
                ],
            },
            125,
        ),
    ],
)
@pytest.mark.parametrize("name", ["Tumor", "Region*"])
def test_what_has_no_area_is_no_sign_of_normal_tissue(
    tmp_path: Path, geometry: Any, area: int | None, name: str
) -> None:
    found = read_annotations(geojson(tmp_path / "a.geojson", feature(name, SQUARE) | {"geometry": geometry}))
    tumour = name == "Tumor"
    assert found.tumour.area == (area or 0) * tumour
    assert found.unplaced == (area is None and tumour)
    assert any("without an area" in note for note in found.notes) == (area is None)


def test_an_unknown_class_is_asked_about_without_an_area_too(tmp_path: Path) -> None:
    point = feature("DCIS", SQUARE) | {"geometry": {"type": "Point", "coordinates": [1, 1]}}
    with pytest.raises(UserError, match="--class 'DCIS=tumour'"):
        read_annotations(geojson(tmp_path / "a.geojson", point))


def test_group_none_alone_may_be_either(tmp_path: Path) -> None:
    alone = asap(tmp_path / "a.xml", ("None", SQUARE), ("None", HOLE))
    with pytest.raises(UserError, match=r"(?s)--class None=tumour.*--class None=excluded"):
        read_annotations(alone)
    assert read_annotations(alone, {"none": "tumour"}).tumour.area == 40000
    assert read_annotations(alone, {"None": "excluded"}).tumour.area == 0
    beside = read_annotations(asap(tmp_path / "b.xml", ("Tumor", SQUARE), ("None", HOLE)))
    assert beside.tumour.area == 35000
    assert "None=tumour" in beside.notes[0]


def test_spaces_and_case_of_a_class_do_not_matter(tmp_path: Path) -> None:
    drawn = geojson(tmp_path / "a.geojson", feature("Tumor ", SQUARE), feature(" EXCLUSION", HOLE))
    assert read_annotations(drawn).tumour.area == 35000
    assert read_annotations(asap(tmp_path / "a.xml", (" tumor ", SQUARE))).tumour.area == 40000


@pytest.mark.parametrize("where", ["id", "properties id", "objectType", "object_type"])
def test_kinds_of_objects_that_older_files_have(tmp_path: Path, where: str) -> None:
    def made(kind: str, new: str) -> dict[str, Any]:
        one = feature("Tumor", SQUARE)
        del one["properties"]["objectType"]
        if where == "id":
            return one | {"id": kind}
        one["properties"][where.split()[-1]] = new if where == "object_type" else kind
        return one

    drawn = made("PathAnnotationObject", "annotation")
    others = [made(f"Path{kind}Object", kind.lower()) for kind in ("Detection", "Cell", "Tile")]
    assert read_annotations(geojson(tmp_path / "a.geojson", drawn)).tumour.area == 40000
    found = read_annotations(geojson(tmp_path / "b.geojson", drawn, *others))
    assert found.counts == {"Tumor": 1}
    assert len(found.notes) == 3
    with pytest.raises(UserError, match="detection"):
        read_annotations(geojson(tmp_path / "c.geojson", *others))


@pytest.mark.parametrize(
    ("content", "program"),
    [
        ('<Annotations MicronsPerPixel="0.25"><Annotation Id="1"/></Annotations>', "ImageScope"),
        ('<annotations><ndpviewstate id="1"/></annotations>', "NDP.view"),
    ],
)
def test_xml_of_other_programs_is_named(tmp_path: Path, content: str, program: str) -> None:
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(UserError, match=program):
        read_annotations(tmp_path / "a.xml")


ENTITY = '<!DOCTYPE x [<!ENTITY secret SYSTEM "file:///etc/hostname">]>'
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("entity.xml", ENTITY + "<ASAP_Annotations>&secret;</ASAP_Annotations>", "entities"),
        ("bomb.xml", BOMB + "<ASAP_Annotations>&b;</ASAP_Annotations>", "entities"),
        ("dtd.xml", '<!DOCTYPE x SYSTEM "x.dtd"><ASAP_Annotations/>', "entities"),
        ("cut.xml", "<ASAP_Annotations><Annotations>", "XML"),
        ("empty.xml", "", "XML"),
        ("other.xml", "<svg/>", "<ASAP_Annotations>"),
        ("cut.geojson", '{"type": "FeatureCollection", "features": [', "JSON"),
        ("other.geojson", '{"type": "Topology"}', "FeatureCollection"),
        ("list.json", "[1, 2]", "FeatureCollection"),
        ("text.json", '"x"', "FeatureCollection"),
        ("nothing.txt", "", ".geojson"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, content: str, kind: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    refused(path, str(path), kind)


def refused(path: Path, *names: str) -> None:
    """One line that names the place."""
    with pytest.raises(UserError) as caught:
        read_annotations(path)
    assert all(name in caught.value.message for name in names), caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "points", [SQUARE[:2], [SQUARE[0]] * 5, [], [*SQUARE, ("nan", 3)], [*SQUARE, ("x", 3)], [*SQUARE, ("", 3)]]
)
def test_refused_outlines(tmp_path: Path, points: list[Any]) -> None:
    path = asap(tmp_path / "a.xml", ("Tumor", SQUARE), ("Tumor", points))
    refused(path, f"{path}, annotation 'Annotation 1'")


RING = [*map(list, SQUARE), list(SQUARE[0])]


@pytest.mark.parametrize(
    "coordinates",
    [
        [RING[:-1]], [], None, [[1, 2]], [[[1], [1]]], [[[0, 0], [0, 1], [True, {}], [0, 0]]], {"x": 1}, ["12", "34", "56", "12"],
        [[["0", "0"], [0, 1], [1, 1], ["0", "0"]]], [[[0, 0], [0, float("nan")], [1, 1], [0, 0]]], [[[0, 0]] * 4], [RING, []],
    ],
)  # fmt: skip
def test_refused_geojson_outlines(tmp_path: Path, coordinates: Any) -> None:
    broken = feature("Tumor", SQUARE)
    broken["geometry"]["coordinates"] = coordinates
    path = geojson(tmp_path / "a.geojson", feature("Tumor", SQUARE), broken)
    refused(path, f"{path}, feature 2")


@pytest.mark.parametrize("hole", [(400, 100, 500, 300), (200, 0, 400, 400)])
def test_a_hole_takes_away_only_what_lies_in_its_outline(tmp_path: Path, hole: tuple[float, ...]) -> None:
    left, top, right, bottom = hole
    found = read_annotations(
        geojson(tmp_path / "a.geojson", feature("Tumor", SQUARE, corners((left, top, right, bottom))))
    )
    assert found.tumour.area == 40000 - 200 * max(0, 300 - left)
    assert found.tumour.bounds[2] == min(300, left)


@pytest.mark.parametrize(("place", "unplaced"), [([150, 150], 0), ([300, 200], 0), ([500, 500], 1)])
def test_a_point_of_a_collection_marks_a_place_of_its_own(tmp_path: Path, place: list[float], unplaced: int) -> None:
    both = feature("Tumor", SQUARE)
    both["geometry"] = {
        "type": "GeometryCollection", "geometries": [both["geometry"], {"type": "Point", "coordinates": place}],
    }  # fmt: skip
    found = read_annotations(geojson(tmp_path / "a.geojson", both))
    assert (found.tumour.area, found.unplaced) == (40000, unplaced)


def test_objects_and_places_that_are_not_of_the_format_are_refused(tmp_path: Path) -> None:
    other = geojson(tmp_path / "a.geojson", feature("Tumor", SQUARE), feature("Tumor", SQUARE, objectType="lesion"))
    refused(other, f"{other}, feature 2")
    path = asap(tmp_path / "a.xml", ("Tumor", SQUARE))
    path.write_text(path.read_text().replace("<Annotations>", "<Old/>").replace("</Annotations>", ""))
    refused(path, f"{path} holds 1 annotations outside")


def test_lists_of_corners_and_properties_that_are_not_of_the_format_are_refused(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", ("Tumor", SQUARE), ("Tumor", HOLE))
    path.write_text(path.read_text().replace("<Coordinates>", "<Coordinates/><Coordinates>", 1))
    refused(path, f"{path}, annotation 'Annotation 0'", "<Coordinates>")
    other = geojson(tmp_path / "a.geojson", feature("Tumor", SQUARE) | {"properties": [1]})
    refused(other, f"{other}, feature 1", "properties")


def test_a_tumour_that_is_wholly_excluded_is_said(tmp_path: Path) -> None:
    found = read_annotations(asap(tmp_path / "a.xml", ("_0", HOLE), ("_2", SQUARE)))
    assert not found.has_tumour
    assert "_0, _2" in found.notes[0]


def test_a_file_without_tumour_says_what_it_holds(tmp_path: Path) -> None:
    found = read_annotations(geojson(tmp_path / "a.geojson", feature("Region*", SQUARE)))
    assert not found.has_tumour
    assert "Region*" in found.notes[0]


def test_annotation_of_another_slide_is_detected_by_its_bounds(tmp_path: Path) -> None:
    found: Annotations = read_annotations(asap(tmp_path / "a.xml", ("Tumor", SQUARE)))
    for width, height in ((300, 300), (298, 4000)):  # 1 % beyond the edge is allowed
        found.check("slide.svs", width, height)
    for width, height in ((296, 4000), (4000, 296)):
        with pytest.raises(UserError, match=r"a.xml .*\(100, 100\).*\(300, 300\).* slide.svs \("):
            found.check("slide.svs", width, height)
