"""`gan-uad tile`: positions, labels and counts against geometry known by hand, and batches in which things go wrong."""

from __future__ import annotations

import csv
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import shapely
from PIL import Image
from score_tools import fails
from slide_tools import asap, corners, feature, geojson, shared_phantom, write_slide

from gan_uad.config import DataConfig
from gan_uad.data.sources import open_source
from gan_uad.demo.phantom_slide import SlideGeometry

SIZE = 64
TISSUE = (128, 64, 896, 640)  # of the slide of rectangles, in px of 1 µm
TUMOUR, HOLE = (200, 128, 456, 384), (256, 192, 320, 256)
GRID = ("--grid", "--per-slide", "all", "--size", SIZE, "--mpp", 1, "--workers", 2)
Run = Callable[..., Any]


def index(out: Path) -> list[dict[str, str]]:
    with open(out / "index.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def corner(row: dict[str, str]) -> tuple[int, int]:
    return int(row["x"]), int(row["y"])


@pytest.fixture
def run(cli: Run, tmp_path: Path) -> Run:
    """`gan-uad tile` of some slides into tmp_path / "out"; what it must exit with is `code`."""

    def call(*words: object, out: Path = tmp_path / "out", code: int = 0) -> Any:
        result = cli("tile", *words, "--out", out)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def no_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the contact sheet, which most of a small slide's time goes into."""
    monkeypatch.setattr("gan_uad.slides.tile_slide._write_sheet", lambda *_: None)


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide whose tissue is one rectangle, and its annotation, in a folder."""
    folder = tmp_path_factory.mktemp("rectangles")
    asap(folder / "slide.xml", ("Tumor", corners(TUMOUR)), ("Exclusion", corners(HOLE)))
    return write_slide(folder / "slide.tif", 1000, 768, [TISSUE])


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SlideGeometry]:
    return shared_phantom(tmp_path_factory)


# ---------------------------------------------------------------- what is cut


@pytest.mark.usefixtures("no_sheet")
def test_every_tile_and_label_by_hand(run: Run, rectangles: Path, tmp_path: Path) -> None:
    result = run(rectangles, "--annotations", rectangles.parent, *GRID)
    assert result.stdout.strip() == str(tmp_path / "out")
    rows = index(tmp_path / "out")
    # 12 × 9 cells of the grid cover the tissue exactly.
    assert [corner(row) for row in rows] == [(x, y) for y in range(64, 640, 64) for x in range(128, 896, 64)]
    assert {row["tissue"] for row in rows} == {"1"}
    labels = {corner(row): row["label"] for row in rows}
    # Tumour spans x 200 to 456: cells at 256, 320 and 384 are wholly inside, those at 192 by 56/64, those at 448 by 8/64.
    for (x, y), label in labels.items():
        inside = 128 <= y < 384
        if (x, y) == (256, 192):
            wanted = ""  # the excluded cell: no tumour in it, but it touches some
        elif inside and x in (192, 256, 320, 384):
            wanted = "1"
        elif inside and x == 448:
            wanted = ""
        elif y in (64, 384) and 192 <= x <= 448:
            wanted = ""  # share an edge with it
        else:
            wanted = "0"
        assert label == wanted, (x, y)
    shares = {corner(row): float(row["tumour"]) for row in rows}
    assert shares[192, 128] == pytest.approx(56 / 64)
    assert shares[448, 128] == pytest.approx(8 / 64)
    assert shares[256, 192] == shares[128, 64] == 0
    assert {row["class"] for row in rows} == {"normal", "tumour", "border"}
    first = rows[0]
    assert (first["slide"], first["group"], first["split"], first["level"]) == ("slide", "slide", "", "0")
    assert (float(first["mpp"]), float(first["side"]), first["stain"]) == (1, 64, "")


@pytest.mark.usefixtures("no_sheet")
def test_tiles_are_the_pixels_of_the_slide(run: Run, rectangles: Path, tmp_path: Path) -> None:
    run(rectangles, *GRID)
    with openslide.OpenSlide(rectangles) as slide:
        for row in index(tmp_path / "out")[::11]:
            image = np.array(Image.open(tmp_path / "out" / row["image"]))
            region = np.array(slide.read_region(corner(row), 0, (SIZE, SIZE)).convert("RGB"))
            assert np.array_equal(image, region)
    assert {row["label"] for row in index(tmp_path / "out")} == {""}
    assert {row["tumour"] for row in index(tmp_path / "out")} == {""}


@pytest.mark.usefixtures("no_sheet")
def test_phantom_against_its_geometry(run: Run, phantom: tuple[Path, SlideGeometry], tmp_path: Path) -> None:
    """Positions and labels exactly; tissue up to what a mask of 16 µm can see of its edge."""
    path, geometry = phantom
    run(path, "--annotations", path.parent, *GRID)
    rows = index(tmp_path / "out")
    found = {corner(row): row for row in rows}
    assert len(found) == len(rows)
    sure = 0
    for x in range(0, 1664 - SIZE + 1, SIZE):
        for y in range(0, 1088 - SIZE + 1, SIZE):
            box = shapely.box(x, y, x + SIZE, y + SIZE)
            tissue = geometry.tissue.intersection(box).area / SIZE**2
            if tissue > 0.999:
                assert (x, y) in found
                sure += 1
            elif tissue < 0.8:
                assert (x, y) not in found
            if (x, y) in found:
                tumour = geometry.tumour.intersection(box).area / SIZE**2
                wanted = "0" if not geometry.tumour.intersects(box) else "1" if tumour >= 0.5 else ""
                assert found[x, y]["label"] == wanted
                assert float(found[x, y]["tumour"]) == pytest.approx(tumour, abs=1e-5)
    assert set(found) <= {(x, y) for x in range(0, 1664, SIZE) for y in range(0, 1088, SIZE)}
    assert sure > 80
    assert sure <= len(rows) < 1.25 * sure
    assert {row["label"] for row in rows} == {"0", "1", ""}
    record = json.loads((tmp_path / "out" / "phantom" / "slide.json").read_text())
    assert record["annotated"] == {"_0": 1, "_2": 1}
    assert record["tissue_share"] == pytest.approx(geometry.tissue.area / (1664 * 1088), abs=0.02)


def test_random_tiles_lie_apart_on_tissue_and_are_seeded(run: Run, rectangles: Path, tmp_path: Path) -> None:
    words = (rectangles, "--size", SIZE, "--mpp", 1, "--per-slide", 20)
    run(*words)
    run(*words, "--workers", 1, out=tmp_path / "again")
    run(*words, "--seed", 1, out=tmp_path / "other")
    places = [corner(row) for row in index(tmp_path / "out")]
    assert len(places) == 20
    boxes = shapely.box(*np.array(places).T, *(np.array(places) + SIZE).T)
    assert shapely.union_all(boxes).area == 20 * SIZE**2  # none overlaps another
    on_tissue = shapely.area(shapely.intersection(boxes, shapely.box(*TISSUE))) / SIZE**2
    assert on_tissue.min() >= 0.9 - 1e-6
    assert on_tissue.min() < 1  # also over the edge
    assert len({x % SIZE for x, _ in places}) > 10  # on no grid
    for name in (tmp_path / "out" / "slide").iterdir():
        assert name.read_bytes() == (tmp_path / "again" / "slide" / name.name).read_bytes(), name
    assert places != [corner(row) for row in index(tmp_path / "other")]


@pytest.mark.usefixtures("no_sheet")
def test_draw_from_the_grid_and_only_one_label(run: Run, rectangles: Path, tmp_path: Path) -> None:
    words = (rectangles, "--annotations", rectangles.parent, *GRID, "--per-slide", 10)
    for label, text in (("normal", "0"), ("tumour", "1")):
        run(*words, "--label", label, out=tmp_path / label)
        rows = index(tmp_path / label)
        assert len(rows) == 10
        assert {row["label"] for row in rows} == {text}
        assert all(x % SIZE == y % SIZE == 0 for x, y in map(corner, rows))
    run(
        rectangles,
        "--annotations",
        rectangles.parent,
        "--size",
        SIZE,
        "--mpp",
        1,
        "--label",
        "tumour",
        out=tmp_path / "r",
    )
    assert {row["label"] for row in index(tmp_path / "r")} == {"1"}
    run(rectangles, *GRID, "--unannotated", "normal", out=tmp_path / "all_normal")
    assert {(row["label"], row["class"], row["tumour"]) for row in index(tmp_path / "all_normal")} == {
        ("0", "normal", "")
    }


@pytest.mark.usefixtures("no_sheet")
def test_coarser_tiles_overlapping_tiles_and_stated_scale(run: Run, rectangles: Path, tmp_path: Path) -> None:
    words = ("--grid", "--per-slide", "all", "--size", SIZE)
    run(rectangles, *words, "--mpp", 2, out=tmp_path / "coarse")
    assert [corner(row) for row in index(tmp_path / "coarse")] == [
        (x, y) for y in range(128, 640, 128) for x in range(128, 896, 128)
    ]
    assert {float(row["side"]) for row in index(tmp_path / "coarse")} == {128}
    image = np.array(Image.open(tmp_path / "coarse" / index(tmp_path / "coarse")[0]["image"]))
    assert image.shape == (SIZE, SIZE, 3)
    run(rectangles, *words, "--mpp", 1, "--stride", 0.5, out=tmp_path / "dense")
    assert len(index(tmp_path / "dense")) == 23 * 17
    # The same slide, said to be of 0.5 µm: half the side in px.
    run(rectangles, *words, "--mpp", 0.25, "--slide-mpp", 0.25, "--rule", "otsu", out=tmp_path / "stated")
    record = json.loads((tmp_path / "stated" / "slide" / "slide.json").read_text())
    assert (record["mpp"], record["tissue_rule"]) == (0.25, "otsu")
    enlarged = run(rectangles, *words, "--mpp", 0.5, out=tmp_path / "enlarged", code=1)
    fails(enlarged, "1 slides", code=1)
    assert "--mpp 1" in enlarged.stderr


@pytest.mark.usefixtures("no_sheet")
def test_stain_is_recorded_and_compression_loses_nothing(run: Run, rectangles: Path, tmp_path: Path) -> None:
    run(rectangles, *GRID)
    run(rectangles, *GRID, "--stain", "reinhard", out=tmp_path / "stained")
    run(rectangles, *GRID, "--compress", out=tmp_path / "small")
    name = index(tmp_path / "out")[0]["image"]
    plain, stained, small = (np.array(Image.open(tmp_path / out / name)) for out in ("out", "stained", "small"))
    assert np.array_equal(plain, small)
    assert (tmp_path / "small" / name).stat().st_size < (tmp_path / "out" / name).stat().st_size
    assert np.abs(plain.astype(int) - stained).mean() > 3
    assert {row["stain"] for row in index(tmp_path / "stained")} == {"reinhard"}
    record = json.loads((tmp_path / "stained" / "slide" / "slide.json").read_text())
    assert record["stain"]["name"] == "reinhard"
    assert record["stain"]["fitted"]


def test_contact_sheet_shows_tissue_by_colour(run: Run, rectangles: Path, tmp_path: Path) -> None:
    run(rectangles, "--annotations", rectangles.parent, "--size", 128, "--mpp", 1, "--grid", "--per-slide", "all")
    with Image.open(tmp_path / "out" / "slide" / "tissue.png") as mask:
        shown = np.array(mask) > 0
    assert shown.sum() * 16 * 16 == pytest.approx(768 * 576, rel=0.01)
    sheet = np.array(Image.open(tmp_path / "out" / "slide" / "contact_sheet.jpg").convert("RGB")).astype(float)
    top = sheet.shape[0] - 768 - 128 - 2 * 6  # the slide, as it is, between the legend and the samples
    slide = sheet[top - 6 : top - 6 + 768, 6 : 6 + 1000]

    def tint(x: int, y: int) -> np.ndarray:
        """What the sheet added to the slide around a point of a cell."""
        base = np.array([190, 90, 160]) if 128 <= x < 896 and 64 <= y < 640 else np.array([240] * 3)
        return (slide[y - 20 : y + 20, x - 20 : x + 20].mean((0, 1)) - 0.7 * base) / 0.3

    assert np.abs(tint(704, 320) - (0, 170, 60)).max() < 15  # full
    assert np.abs(tint(704, 32) - (240, 200, 0)).max() < 15  # half
    assert np.abs(tint(64, 320) - (220, 40, 40)).max() < 15  # none


@pytest.mark.usefixtures("no_sheet")
def test_pictures_that_tile_adds_are_no_images_left_out(run: Run, rectangles: Path, tmp_path: Path) -> None:
    """Unlike others that `index.csv` does not name, be they called the same."""
    run(rectangles, *GRID)
    out = tmp_path / "out"
    settings = DataConfig(path=str(out))
    shutil.copy(out / "slide" / "tissue.png", out / "slide" / "contact_sheet.jpg")
    assert open_source(out, settings).notes == []
    (out / "other").mkdir()
    for name in ("other/tissue.png", "slide/mine.png"):
        shutil.copy(out / "slide" / "tissue.png", out / name)
    assert open_source(out, settings).notes == ["2 images are not named in index.csv and are left out"]


def test_real_slide(run: Run, shared_data: Path, tmp_path: Path) -> None:
    """The invented polygons of the real slide: labels against shapely, by the same file read in another way."""
    folder = shared_data / "slides"
    run(folder / "CMU-1-Small-Region.svs", "--annotations", folder, "--grid", "--per-slide", "all", "--size", 256)
    rows = index(tmp_path / "out")
    from xml.etree import ElementTree

    shapes: dict[str, list[Any]] = {"Tumor": [], "Exclusion": []}
    for found in ElementTree.parse(folder / "CMU-1-Small-Region_annotation.xml").iter("Annotation"):
        points = [(float(c.get("X", "")), float(c.get("Y", ""))) for c in found.iter("Coordinate")]
        shapes[found.get("PartOfGroup", "")].append(shapely.Polygon(points))
    tumour = shapely.union_all(shapes["Tumor"]) - shapely.union_all(shapes["Exclusion"])
    side = 256 * 0.5 / 0.499
    assert len(rows) > 10
    for row in rows:
        x, y = corner(row)
        assert {x, y} <= {round(k * side) for k in range(12)}
        box = shapely.box(x, y, x + side, y + side)
        share = tumour.intersection(box).area / side**2
        assert row["label"] == ("0" if not tumour.intersects(box) else "1" if share >= 0.5 else "")
        assert float(row["tissue"]) >= 0.9


# ---------------------------------------------------------------- what it is good for


@pytest.mark.usefixtures("no_sheet")
def test_the_set_can_be_checked_and_trained_on(run: Run, cli: Run, tiny: Any, tmp_path: Path) -> None:
    slides = [write_slide(tmp_path / f"patient_{k}_node.tif", 512, 512, [(0, 0, 512, 512)], seed=k) for k in range(4)]
    asap(tmp_path / "xml" / "patient_3_node.xml", ("_0", corners((0, 0, 512, 256))))
    words = ("--annotations", tmp_path / "xml", "--unannotated", "normal", "--group", r"patient_\d+")
    run(*slides, *words, *GRID)
    out = tmp_path / "out"
    source = open_source(out, DataConfig(path=str(out)))
    assert source.kind == "index.csv"
    assert sorted(set(source.manifest.group)) == [f"patient_{k}" for k in range(4)]
    assert source.manifest.x.tolist() == [float(row["x"]) for row in index(out)]
    assert (source.manifest.label == 1).sum() == 4 * 8
    assert (source.manifest.label == -1).sum() == 8  # the row below touches
    checked = cli("data", "check", out, "--json")
    report = json.loads(checked.stdout)
    assert report["images"] == 4 * 64
    assert report["sizes"] == {"64x64 RGB": 256}
    assert not report["broken"]
    assert sum(report["groups"].values()) == 4
    result = tiny.train(tiny.config("dcgan"), tmp_path / "runs", "--data", out, total_kimg=0.008)
    assert result.exit_code == 0, result.output


# ---------------------------------------------------------------- batches


def bad_batch(folder: Path, rectangles: Path) -> dict[str, Path]:
    """Slides of every kind that fails, and two that do not."""
    content = rectangles.read_bytes()
    slides = {name: folder / f"{name}.tif" for name in ("good", "truncated", "text", "other", "entity")}
    for name, path in slides.items():
        path.write_bytes({"truncated": content[: len(content) // 2], "text": b"no slide at all"}.get(name, content))
    slides["no_mpp"] = write_slide(folder / "no_mpp.tif", 600, 600, [(0, 0, 600, 600)], mpp=None)
    slides["glass"] = write_slide(folder / "glass.tif", 600, 600, [])
    slides["missing"] = folder / "missing.tif"
    slides["folder"] = folder
    asap(folder / "other.xml", ("_0", corners((5000, 5000, 6000, 6000))))
    asap(folder / "entity.xml", ("_0", corners(TUMOUR)), head='<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>')
    geojson(folder / "good.geojson", feature("Tumor", corners(TUMOUR)))
    return slides


def test_bad_slides_stop_nothing_and_are_listed_last(run: Run, rectangles: Path, tmp_path: Path) -> None:
    slides = bad_batch(tmp_path, rectangles)
    order = ["truncated", "text", "no_mpp", "missing", "folder", "other", "entity", "glass", "good"]
    result = run(*(slides[name] for name in order), "--annotations", tmp_path, *GRID, code=1)
    fails(result, "7 slides", str(tmp_path / "out"), code=1)
    last = result.stderr.splitlines()[-8:-1]
    reasons = {Path(line.split()[1].rstrip(":")).stem: line for line in last}
    assert set(reasons) == {"truncated", "text", "no_mpp", "missing", tmp_path.name, "other", "entity"}
    assert all(line.startswith("FAILED ") for line in last)
    assert "--slide-mpp" in reasons["no_mpp"]
    assert "folder" in reasons[tmp_path.name]
    for name in ("other", "entity"):
        assert str(tmp_path / f"{name}.xml") in reasons[name]
    assert "glass: no tiles" in result.stderr
    assert {row["slide"] for row in index(tmp_path / "out")} == {"good"}
    assert len(index(tmp_path / "out")) == 108
    kept = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert kept == ["glass", "good", "index.csv", "tile.json"]
    assert (tmp_path / "out" / "glass" / "contact_sheet.jpg").is_file()


@pytest.mark.usefixtures("no_sheet")
def test_again_leaves_what_is_there_and_cuts_what_failed(run: Run, rectangles: Path, tmp_path: Path) -> None:
    slides = bad_batch(tmp_path, rectangles)
    words = (slides["truncated"], slides["good"], "--annotations", tmp_path, *GRID)
    run(*words, code=1)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "good").iterdir()}
    slides["truncated"].write_bytes(rectangles.read_bytes())
    result = run(*words)
    assert "good: 108 tiles are there already" in result.stderr
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "good").iterdir()} == before
    assert sorted({row["slide"] for row in index(tmp_path / "out")}) == ["good", "truncated"]
    # Another annotation: that slide is cut again, and nothing of the old one stays.
    assert sum(row["label"] == "1" for row in index(tmp_path / "out")) > 0
    geojson(tmp_path / "good.geojson", feature("normal", corners(TUMOUR)))
    result = run(*words)
    assert "truncated: 108 tiles are there already" in result.stderr
    good = [row for row in index(tmp_path / "out") if row["slide"] == "good"]
    assert {row["label"] for row in good} == {"0"}
    assert len(list((tmp_path / "out" / "good").glob("*.png"))) == 108 + 1


def test_interrupted_it_resumes_to_the_same_result(
    run: Run, cli: Run, rectangles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = [shutil.copy(rectangles, tmp_path / f"{name}.tif") for name in "ab"]
    run(*slides, *GRID, out=tmp_path / "uninterrupted")
    from gan_uad.slides import tiles

    encode, left = tiles.encode_png, iter(range(150, -1, -1))

    def stop(*arguments: Any) -> bytes:
        if not next(left, 0):
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(tiles, "encode_png", stop)
    result = run(*slides, *GRID, code=130)
    assert result.stderr.splitlines()[-1].startswith("stopped by Ctrl-C")
    monkeypatch.undo()
    assert {row["slide"] for row in index(tmp_path / "out")} == {"a"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "index.csv", "tile.json"]
    (tmp_path / "out" / ".b.tmp").mkdir()  # as a killed process leaves it
    (tmp_path / "out" / ".b.tmp" / "half.png").touch()
    run(*slides, *GRID)
    same_trees(tmp_path / "uninterrupted", tmp_path / "out")


def same_trees(a: Path, b: Path) -> None:
    names = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_shards_together_make_the_same_set(
    run: Run, rectangles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = [shutil.copy(rectangles, tmp_path / f"{name}.tif") for name in "abc"]
    words = (*slides, "--size", SIZE, "--mpp", 1, "--per-slide", 5)
    run(*words, out=tmp_path / "uninterrupted")
    run(*words, "--shard", "2/2")
    assert {row["slide"] for row in index(tmp_path / "out")} == {"b"}
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run(*words)
    monkeypatch.undo()
    same_trees(tmp_path / "uninterrupted", tmp_path / "out")
    # The same file, drawn by its content: equal slides get equal tiles, whatever else is in the batch.
    assert (
        len({tuple(corner(r) for r in index(tmp_path / "uninterrupted") if r["slide"] == name) for name in "abc"}) == 1
    )
    for shard in ("0/2", "3/2", "1", "a/b"):
        fails(run(*words, "--shard", shard, code=2), "--shard", "2/8")


@pytest.mark.usefixtures("no_sheet")
def test_a_slide_that_was_replaced_at_its_path_is_refused(run: Run, tmp_path: Path) -> None:
    """Its old tiles would stay in the index beside the new ones, as of another patient."""
    slide = write_slide(tmp_path / "s.tif", 512, 512, [(0, 0, 512, 512)])
    run(slide, *GRID)
    before = index(tmp_path / "out")
    write_slide(slide, 512, 512, [(0, 0, 512, 512)], seed=1)
    result = run(slide, *GRID, code=1)
    assert f"FAILED {slide}" in result.stderr
    assert str(tmp_path / "out" / "s") in result.stderr
    assert index(tmp_path / "out") == before


@pytest.mark.usefixtures("no_sheet")
def test_two_slides_of_one_name(run: Run, tmp_path: Path) -> None:
    slides = []
    for k, folder in enumerate(("left", "right")):
        slides.append(write_slide(tmp_path / folder / "s.tif", 512, 512, [(0, 0, 512, 512)], seed=k))
        asap(
            tmp_path / "xml" / folder / "s.xml",
            ("_0", corners((0, 0, 512, 256 * k))) if k else ("_2", corners((0, 0, 9, 9))),
        )
    twin = shutil.copy(slides[0], tmp_path / "left" / "copy.tif")
    again = tmp_path / "third" / "s.tif"
    again.parent.mkdir()
    shutil.copy(slides[0], again)
    result = run(*slides, twin, again, "--annotations", tmp_path / "xml", *GRID)
    assert f"{again} is the same slide as {slides[0]}" in result.stderr
    assert f"{twin} holds the same as {slides[0]}" in result.stderr
    rows = index(tmp_path / "out")
    names = sorted({row["slide"] for row in rows})
    assert len(names) == 3
    assert names[0] == "copy"
    assert all(name.startswith("s-") for name in names[1:])
    tumour = {name: sum(row["label"] == "1" for row in rows if row["slide"] == name) for name in names}
    assert sorted(tumour.values()) == [0, 0, 32]
    # In later calls: a name is not used for a second slide; the same slide keeps its name.
    run(slides[0], *GRID, out=tmp_path / "later")
    run(slides[1], *GRID, out=tmp_path / "later")
    run(*slides, *GRID, out=tmp_path / "later")
    later = sorted({row["slide"] for row in index(tmp_path / "later")})
    assert later[0] == "s"
    assert later[1].startswith("s-")
    assert len(later) == 2


def test_names_with_spaces_commas_and_unicode(run: Run, cli: Run, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "Mäx, Möller 病理 (1).tif", 512, 512, [(0, 0, 512, 512)])
    run(path, *GRID)
    source = open_source(tmp_path / "out", DataConfig(path=str(tmp_path / "out")))
    assert set(source.manifest.group) == {"Mäx, Möller 病理 (1)"}
    assert source.read(0).shape == (SIZE, SIZE, 3)


@pytest.mark.usefixtures("no_sheet")
def test_settings_of_a_folder_stay(run: Run, rectangles: Path, tmp_path: Path) -> None:
    run(rectangles, *GRID, "--per-slide", 3)
    fails(run(rectangles, *GRID, "--per-slide", 4, code=2), "per_slide 3, not 4", "--out")
    fails(run(rectangles, *GRID, "--per-slide", 3, "--mpp", 2, code=2), "mpp 1.0, not 2.0")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    fails(run(rectangles, *GRID, out=tmp_path / "mine", code=2), str(tmp_path / "mine"), "tile.json", "--out")
    fails(run(rectangles, "--per-slide", "all", out=tmp_path / "x", code=2), "--grid")
    fails(run(rectangles, "--stride", 0.5, out=tmp_path / "x", code=2), "--grid")
    fails(run(rectangles, *GRID, "--group", "(", out=tmp_path / "x", code=2), "--group '('")
    fails(
        run(rectangles, *GRID, "--annotations", tmp_path / "none", out=tmp_path / "x", code=2),
        f"--annotations {tmp_path / 'none'}",
    )
    assert not (tmp_path / "x" / "slide").exists()
    for bad in (
        ("--class", "Stroma"),
        ("--class", "=tumour"),
        ("--class", "Stroma=bad"),
        ("--per-slide", "0"),
        ("--per-slide", "x"),
    ):
        assert (
            run(rectangles, *bad, out=tmp_path / "x", code=2).stderr.splitlines()[-1].startswith("Error: Invalid value")
        )


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may become larger than 8 kB, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_ends_the_batch_in_one_line(run: Run, rectangles: Path, tmp_path: Path, small_disk: None) -> None:
    result = run(rectangles, rectangles.parent / "none.tif", *GRID, code=1)
    fails(result, str(tmp_path / "out"), code=1)
    assert not (tmp_path / "out" / "slide").exists()
    assert index(tmp_path / "out") == []
