"""The procedural slide: OpenSlide opens it; its pixels, levels and annotation agree with its geometry."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import shapely
from shapely import Polygon
from slide_tools import PHANTOM, shared_phantom

from gan_uad.demo.phantom_slide import PENS, SlideGeometry, slide_geometry, write_phantom_slide
from gan_uad.errors import UserError

WIDTH, HEIGHT, MPP = PHANTOM


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SlideGeometry]:
    return shared_phantom(tmp_path_factory)


def pixels(path: Path, level: int = 0) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        rgba = np.array(slide.read_region((0, 0), level, slide.level_dimensions[level]))
    assert (rgba[..., 3] == 255).all()
    return rgba[..., :3].astype(float)


def inside(geometry: shapely.Geometry, shrink: float = 0.0) -> np.ndarray:
    """Pixels whose centre lies in the geometry, made smaller by some px on all sides. [HEIGHT, WIDTH]"""
    smaller = geometry.buffer(-shrink)
    shapely.prepare(smaller)
    left, top, right, bottom = (max(int(edge), 0) for edge in smaller.bounds)  # nothing beyond can lie in it
    x, y = np.meshgrid(np.arange(left, min(right + 1, WIDTH)) + 0.5, np.arange(top, min(bottom + 1, HEIGHT)) + 0.5)
    found = np.zeros((HEIGHT, WIDTH), bool)
    found[top : bottom + 1, left : right + 1] = shapely.contains_xy(smaller, x, y)
    return found


def test_openslide_knows_levels_and_scale(phantom: tuple[Path, SlideGeometry]) -> None:
    with openslide.OpenSlide(phantom[0]) as slide:
        assert slide.level_dimensions == ((WIDTH, HEIGHT), (416, 272))
        assert slide.level_downsamples == (1, 4)
        assert float(slide.properties["openslide.mpp-x"]) == float(slide.properties["openslide.mpp-y"]) == MPP


def test_pixels_are_what_the_geometry_says(phantom: tuple[Path, SlideGeometry]) -> None:
    path, geometry = phantom
    rgb = pixels(path)
    # A JPEG blurs over the 8 px of its blocks, which may lie slantwise to an edge.
    glass = inside(
        shapely.box(0, 0, WIDTH, HEIGHT) - geometry.tissue.buffer(12) - shapely.union_all(geometry.ink).buffer(12)
    )
    assert np.abs(rgb[glass] - 240).max() <= 2
    tissue = inside(geometry.tissue, 9)
    assert (rgb[tissue].mean(1) < 225).mean() > 0.97  # all but lumina and clefts
    haematoxylin = rgb[..., 0] < 150  # nuclei take the red light
    tumour, normal = inside(geometry.tumour, 9), inside(geometry.tissue - geometry.tumour.buffer(12), 9)
    assert haematoxylin[tumour].mean() > 2.5 * haematoxylin[normal].mean()
    hole = inside(shapely.union_all(geometry.exclusions), 9)
    assert hole.sum() > 1000
    assert haematoxylin[hole].mean() < 0.5 * haematoxylin[tumour].mean()
    for pen, stroke in zip(PENS, geometry.ink, strict=False):
        assert np.abs(rgb[inside(stroke, 9)] - pen).max() <= 4


def test_edges_lie_at_the_pixel(phantom: tuple[Path, SlideGeometry]) -> None:
    """An ink stroke has straight edges: half-way between ink and glass is crossed within a pixel of the polygon."""
    path, geometry = phantom
    left, top, right, bottom = geometry.ink[1].bounds
    row = pixels(path)[round((top + bottom) / 2)]
    dark = np.flatnonzero(row[:, 0] < (PENS[1][0] + 240) / 2)
    dark = dark[(dark > left - 20) & (dark < right + 20)]
    assert abs(dark.min() - left) <= 1
    assert abs(dark.max() + 1 - right) <= 1


def test_levels_are_means_of_the_first(phantom: tuple[Path, SlideGeometry]) -> None:
    large, small = pixels(phantom[0]), pixels(phantom[0], 1)
    mean = large.reshape(HEIGHT // 4, 4, WIDTH // 4, 4, 3).mean((1, 3))
    assert np.abs(mean - small).mean() < 4.5  # two JPEGs apart
    assert np.abs((mean - small).mean((0, 1))).max() < 0.5
    flat = (
        inside(shapely.box(0, 0, WIDTH, HEIGHT) - geometry_of(phantom).buffer(50))
        .reshape(mean.shape[0], 4, -1, 4)
        .all((1, 3))
    )
    assert np.abs(small[flat] - 240).max() <= 2


def geometry_of(phantom: tuple[Path, SlideGeometry]) -> shapely.Geometry:
    return shapely.union_all([*phantom[1].islands, *phantom[1].ink])


def test_annotation_holds_lesions_and_exclusions_exactly(phantom: tuple[Path, SlideGeometry]) -> None:
    path, geometry = phantom
    found: dict[str, list[Polygon]] = {"_0": [], "_2": []}
    for annotation in ElementTree.parse(path.with_suffix(".xml")).iter("Annotation"):
        corners = sorted(annotation.iter("Coordinate"), key=lambda c: int(c.get("Order", "")))
        found[annotation.get("PartOfGroup", "")].append(
            Polygon([(float(c.get("X")), float(c.get("Y"))) for c in corners])
        )
    assert [p.wkt for p in found["_0"]] == [p.wkt for p in geometry.lesions]
    assert [p.wkt for p in found["_2"]] == [p.wkt for p in geometry.exclusions]
    assert len(geometry.lesions) == len(geometry.exclusions) == 1
    assert geometry.tumour.area == pytest.approx(geometry.lesions[0].area - geometry.exclusions[0].area)
    assert geometry.lesions[0].contains(geometry.exclusions[0])


@pytest.mark.parametrize("seed", range(5))
def test_geometry_is_sound_for_every_seed(seed: int) -> None:
    geometry = slide_geometry(9000, 7000, 0.5, seed)
    assert all(p.is_valid for p in (*geometry.islands, *geometry.lesions, *geometry.ink))
    assert shapely.box(0, 0, 9000, 7000).contains(shapely.union_all([*geometry.islands, *geometry.ink]))
    assert sum(p.area for p in geometry.islands) == pytest.approx(shapely.union_all(geometry.islands).area)  # apart
    assert len(geometry.islands) == 5 * 4 or len(geometry.islands) == 4 * 4
    assert all(any(i.contains(lesion) for i in geometry.islands) for lesion in geometry.lesions)
    assert 0 < geometry.tissue.area < sum(p.area for p in geometry.islands)  # ink covers some
    assert geometry.ink[0].intersects(geometry.islands[0])


def test_same_arguments_same_bytes_and_seeds_differ(tmp_path: Path) -> None:
    for name in "ab":
        geometry = write_phantom_slide(tmp_path / f"{name}.tif", 800, 800, 1.0, seed=1, tumour=False)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "a.xml", "b.tif", "b.xml"]
    assert geometry.islands == slide_geometry(800, 800, 1.0, 1).islands
    assert geometry.islands != slide_geometry(800, 800, 1.0, 2).islands
    assert geometry.tumour.is_empty
    assert not list(ElementTree.parse(tmp_path / "a.xml").iter("Annotation"))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1536 px"):
        write_phantom_slide(tmp_path / "small.tif", 2000, 1000, 0.5)
    with pytest.raises(UserError, match=r"slide\.svs.*\.tif"):
        write_phantom_slide(tmp_path / "slide.svs", 2000, 2000, 0.5)
    with pytest.raises(UserError, match="nowhere"):
        write_phantom_slide(tmp_path / "nowhere" / "slide.tif", 800, 800, 1.0)
    assert not list(tmp_path.iterdir())
