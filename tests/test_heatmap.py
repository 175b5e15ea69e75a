"""Heatmaps, GeoJSON and detections: reopened by tifffile, OpenSlide and shapely, against what was put in."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from PIL import Image

from gan_uad.plotting.overlay import overlay, thumbnail_mpp
from gan_uad.slides.detections import lesions, marks, peaks
from gan_uad.slides.geojson import write_geojson
from gan_uad.slides.heatmap import CELL, Heatmap, heatmap, palette, write_ome, write_pyramid

SIDE = 128.4  # level-0 px: 64 px at 0.5 µm on a slide of 0.2492 µm


def _random(rows: int = 40, columns: int = 90, seed: int = 0) -> Heatmap:
    rng = np.random.default_rng(seed)
    values = rng.exponential(1.0, (rows, columns)).astype(np.float32)
    values[rng.random((rows, columns)) < 0.3] = np.nan
    return Heatmap(values, SIDE, 0.25)


def test_tiles_side_by_side_fill_a_cell_each() -> None:
    grid = [(i, j) for i in range(5) for j in range(7) if (i + j) % 3]
    x, y = [int(j * SIDE) for _, j in grid], [int(i * SIDE) for i, _ in grid]
    heat = heatmap(x, y, range(len(grid)), SIDE, SIDE, 900, 650, 0.25)
    assert heat.values.shape == (6, 8)  # 650 / 128.4 = 5.06: the slide's rim has its cells too
    expected = np.full((6, 8), np.nan, np.float32)
    for number, (i, j) in enumerate(grid):
        expected[i, j] = number
    np.testing.assert_array_equal(heat.values, expected)
    assert heat.cell == pytest.approx(32.1)


def test_overlapping_tiles_share_their_cells() -> None:
    """Tiles 4 px wide every 2 px: each covers 2 × 2 cells of 2 px; by hand."""
    heat = heatmap([0, 2, 0], [0, 0, 2], [1.0, 3.0, 8.0], 4, 2, 8, 6, 1.0)
    nan = np.nan
    expected = [[1, 2, 3, nan], [(1 + 8) / 2, (1 + 3 + 8) / 3, 3, nan], [8, 8, nan, nan]]
    np.testing.assert_allclose(heat.values, np.array(expected, np.float32), rtol=1e-6)


def test_the_float_file_by_tifffile(tmp_path: Path) -> None:
    heat = _random()
    write_ome(tmp_path / "märz 1.ome.tif", heat, "märz 1")
    with tifffile.TiffFile(tmp_path / "märz 1.ome.tif") as file:
        assert file.is_ome
        np.testing.assert_array_equal(file.asarray(), heat.values)
        assert file.series[0].axes == "YX"
        described = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    assert described["Name"] == "märz 1"
    assert described["Pixels"]["Type"] == "float"
    assert described["Pixels"]["PhysicalSizeX"] == pytest.approx(32.1)
    assert described["Pixels"]["PhysicalSizeXUnit"] == "µm"
    assert not list(tmp_path.glob(".*"))


def test_the_pyramid_by_openslide(tmp_path: Path) -> None:
    """Every cell's colour, at the finest level and where a px is a cell; lengths in µm; and back to numbers by tifffile."""
    heat = _random()
    path = write_pyramid(tmp_path / "heat map.tif", heat, top=2.0)
    bytes_ = np.where(np.isnan(heat.values), 0, np.rint(1 + 254 * np.minimum(heat.values, 2) / 2)).astype(int)
    colours = (palette() >> 8).T
    with openslide.OpenSlide(str(path)) as slide:
        assert slide.dimensions == (90 * CELL, 40 * CELL)
        assert slide.level_downsamples == (1, 2, 4, 8)
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(32.1 / CELL)
        for level, scale in ((0, 16), (3, 2)):
            seen = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))[..., :3]
            np.testing.assert_array_equal(seen, colours[bytes_].repeat(scale, 0).repeat(scale, 1))
    stored = tifffile.imread(path)[::CELL, ::CELL].astype(float)
    back = np.where(stored == 0, np.nan, (stored - 1) / 254 * 2)
    np.testing.assert_allclose(back, np.minimum(heat.values, 2), atol=2 / 254 / 2 + 1e-6)
    assert colours[0].tolist() == [255, 255, 255]


def test_a_lone_tile_is_seen_at_every_level(tmp_path: Path) -> None:
    values = np.full((151, 263), np.nan, np.float32)
    values[:100] = 0.5
    values[33, 177] = 9.0
    path = write_pyramid(tmp_path / "wide.tif", Heatmap(values, 64.0, 0.5))
    with tifffile.TiffFile(path) as file:
        levels = [page.asarray() for page in file.pages]
    assert len(levels) == 6
    assert max(levels[-1].shape) <= 256 < max(levels[-2].shape)
    for number, level in enumerate(levels):
        shrink = 2**number / CELL
        assert int((level == 255).sum()) == max(1, round(1 / shrink)) ** 2
        assert level[int(33.5 / shrink), int(177.5 / shrink)] == 255
        assert level[-1, 0] == 0
    with openslide.OpenSlide(str(path)) as slide:
        assert slide.level_count == 6


def test_geojson_is_qupaths(tmp_path: Path) -> None:
    tiles = [
        (10, 20, 64.5, {"neg_log10_p": 0.25, "score": -3.0}, False),
        (74.5, 20, 64.5, {"neg_log10_p": 5.0, "score": 1.0}, True),
    ]
    first = json.loads(write_geojson(tmp_path / "a.geojson", "ein Präparat", tiles).read_text("utf-8"))
    assert first["type"] == "FeatureCollection"
    assert len(first["features"]) == 2
    for (x, y, side, measurements, anomalous), feature in zip(tiles, first["features"], strict=True):
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        ring = feature["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1]
        shape = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert shape.is_valid
        assert shape.bounds == (x, y, x + side, y + side)
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert properties["measurements"] == measurements
        assert ("classification" in properties) == anomalous
    assert first["features"][1]["properties"]["classification"]["name"] == "Anomalous"
    ids = [feature["id"] for feature in first["features"]]
    assert len(set(ids)) == 2
    again = json.loads(write_geojson(tmp_path / "b.geojson", "ein Präparat", tiles[1:]).read_text("utf-8"))
    assert again["features"][0]["id"] == ids[1]
    other = json.loads(write_geojson(tmp_path / "c.geojson", "another", tiles).read_text("utf-8"))
    assert not {feature["id"] for feature in other["features"]} & set(ids)
    assert json.loads(write_geojson(tmp_path / "d.geojson", "none", []).read_text())["features"] == []


def test_geojson_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_geojson(tmp_path / "a.geojson", "s", [(0, 0, 1, {"neg_log10_p": float("nan")}, False)])
    assert not list(tmp_path.iterdir())


def test_peaks_stand_apart() -> None:
    """On a line, 1 px apart: by hand, with 2 px between detections. Of equal ones the first is kept."""
    scores = [3, 5, 4, 1, 1, 2, 9, 9]
    assert peaks(range(8), [0] * 8, scores, 2).tolist() == [6, 1]
    assert peaks(range(8), [0] * 8, scores, 0.5).tolist() == [6, 7, 1, 2, 0, 5, 3, 4]
    assert peaks([], [], [], 2).tolist() == []


def test_lesions_as_camelyon16_has_them() -> None:
    """At 0.5 µm/px: two squares 100 px (50 µm) apart are one lesion, a ring is filled, 100 µm across are isolated cells."""
    near = [shapely.box(0, 0, 600, 600), shapely.box(700, 0, 1000, 600)]
    ring = shapely.box(5000, 5000, 6000, 6000) - shapely.box(5300, 5300, 5700, 5700)
    speck = shapely.box(9000, 0, 9200, 200)
    found = lesions(shapely.union_all([*near, ring, speck]), 0.5)
    assert len(found.counted) == 2
    assert len(found.ignored) == 1
    x, y, scores = (
        [650, 100, 5500, 9100, 1073, 1077, 8000],
        [300, 100, 5500, 100, 300, 300, 8000],
        [1, 3, 2, 9, 0, 5, 4],
    )
    made = marks(x, y, scores, found)  # (1073, 300) lies within 37.5 µm of the second square, (1077, 300) does not
    order = np.argsort([polygon.bounds[0] for polygon in found.counted])
    assert made.hits[order].tolist() == [3, 2]
    assert sorted(made.alarms.tolist()) == [4, 5]
    missed = marks([8000], [8000], [1.0], found)
    assert np.isneginf(missed.hits).all()


@pytest.mark.parametrize(("side", "counted"), [(201, 1), (199, 0)])
def test_the_size_of_isolated_tumour_cells(side: float, counted: int) -> None:
    """200 µm across as annotated, in whatever direction."""
    turned = shapely.affinity.rotate(shapely.box(0, 0, side / 0.25, 30), 30)
    assert len(lesions(turned, 0.25).counted) == counted


def test_no_tumour_is_no_lesion() -> None:
    found = lesions(shapely.Polygon(), 0.5)
    assert found.counted == []
    assert marks([1], [1], [2.0], found).alarms.tolist() == [2.0]


def test_the_overlay_lies_where_the_tiles_do(tmp_path: Path) -> None:
    thumbnail = np.full((300, 200, 3), 230, np.uint8)
    values = np.full((6, 4), np.nan)
    values[4, 0], values[0, 3] = 4.0, 0.0
    path = overlay(thumbnail, values, 50, tmp_path / "o.png", "a slide", 4.0, "−log10 p")
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    grey = np.abs(picture - 230).max(2) <= 1
    columns = np.flatnonzero(grey.sum(0) > 400)  # both panels
    gap = int(np.flatnonzero(np.diff(columns) > 5)[0])
    left, right = columns[: gap + 1], columns[gap + 1 :]
    rows = np.flatnonzero(grey[:, left].mean(1) > 0.9)
    height, width = np.ptp(rows) + 1, np.ptp(right) + 1
    assert width / height == pytest.approx(2 / 3, rel=0.02)
    assert grey[np.ix_(rows, left)].mean() > 0.95

    def at(i: float, j: float) -> np.ndarray:
        return picture[rows[0] + int(i / 6 * height), right[0] + int(j / 4 * width)]

    assert at(2.5, 1.5).tolist() == [230, 230, 230]
    np.testing.assert_allclose(at(0.5, 3.5), 0.8 * 230, atol=3)  # the dark end, a thin veil
    np.testing.assert_allclose(at(4.5, 0.5), 0.15 * 230 + 0.85 * np.array([252, 255, 164]), atol=3)
    assert thumbnail_mpp(40_000, 20_000, 0.25) == pytest.approx(0.25 * 25)
    assert thumbnail_mpp(400, 200, 0.25) == 0.25
