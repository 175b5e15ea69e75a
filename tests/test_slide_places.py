"""Where things are on a slide, and what the user's table tells of it: QuPath's bounds, µm/px, patient and label, through the commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from PIL import Image
from score_tools import fails
from slide_tools import asap, corners, feature, geojson, write_scn, write_slide

from gan_uad.errors import UserError
from gan_uad.slides.annotations import read_annotations
from gan_uad.slides.evaluate import evaluate_slides
from gan_uad.slides.reader import open_slide
from gan_uad.slides.slide_list import SlideList, Told

BOX = (128, 128, 256, 320)  # px of the scanned region
OFFSET = (800, 600)
PER_CM: dict[str, Any] = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}  # 0.5 µm/px
GRID = ("--grid", "--per-slide", "all", "--size", 64, "--mpp", 1, "--tissue", 0, "--workers", 1)


def region(side: int = 512, height: int = 512) -> np.ndarray:
    image = np.array([190, 90, 160]) + np.random.default_rng(0).integers(-20, 21, (height, side, 3))
    image[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (90, 50, 140)
    return image.astype(np.uint8)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan_uad.slides.tile_slide._write_sheet", lambda *_: None)
    monkeypatch.setattr("gan_uad.slides.score_slide.overlay", lambda *_: None)


@pytest.fixture
def scn(tmp_path: Path) -> Path:
    return write_scn(tmp_path / "c.scn", (region(), *OFFSET))


@pytest.fixture(scope="module")
def scorer(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A fitted run, and patches that calibrate it."""
    root = tmp_path_factory.mktemp("scorer")
    patches, rng = root / "patches" / "normal", np.random.default_rng(1)
    patches.mkdir(parents=True)
    for k in range(60):
        image = region(64, 64).astype(int) + rng.integers(-9, 10, (64, 64, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(patches / f"p{k}_0.png")
    assert cli("train", "mean_color", "--data", patches.parent, "--out", root / "runs").exit_code == 0
    return root / "runs" / "00000-mean_color", patches.parent


def index(out: Path) -> list[dict[str, str]]:
    with open(out / "index.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def record(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / name / "slide.json").read_text())
    return found


# Bounds


def moved(box: tuple[int, int, int, int], by: tuple[int, int]) -> tuple[float, float, float, float]:
    return box[0] + by[0], box[1] + by[1], box[2] + by[0], box[3] + by[1]


@pytest.mark.parametrize("kind", ["geojson", "xml"])
def test_outlines_lie_where_their_program_shows_them(cli: Any, tmp_path: Path, scn: Path, kind: str) -> None:
    """QuPath counts from the bounds, ASAP from the corner of the whole glass; the pixels there are those of the tumour."""
    if kind == "geojson":
        geojson(tmp_path / "c.geojson", feature("Tumor", corners(BOX)))
    else:
        asap(tmp_path / "c.xml", ("Tumor", corners(moved(BOX, OFFSET))))
    options = (*GRID, "--size", 32, "--stride", 0.5, "--label", "tumour")
    result = cli("tile", scn, "--annotations", tmp_path, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert ("800, 600" in result.stderr) == (kind == "geojson")
    tumour = [row for row in index(tmp_path / "out") if float(row["tumour"]) == 1]
    violet = [np.asarray(Image.open(tmp_path / "out" / row["image"])).mean((0, 1)) for row in tumour]
    assert len(tumour) > 3
    np.testing.assert_allclose(violet, [(90, 50, 140)] * len(tumour), atol=1)
    assert record(tmp_path / "out", "c")["origin"] == [800, 600]


def test_tiles_for_qupath_count_from_the_bounds(tmp_path: Path, scn: Path) -> None:
    from gan_uad.slides.geojson import write_geojson

    slide = open_slide(scn)
    assert slide.origin == OFFSET
    written = write_geojson(tmp_path / "a.geojson", "c", [(928, 728, 64, {"score": 1.0}, True)], slide.origin)
    (tile,) = json.loads(written.read_text())["features"]
    assert tile["geometry"]["coordinates"][0][0] == [128, 128]
    plain = json.loads(write_geojson(tmp_path / "b.geojson", "c", [(928, 728, 64, {"score": 1.0}, True)]).read_text())
    assert plain["features"][0]["id"] == tile["id"]
    # what is read back, as QuPath's, lies where it was
    tile["properties"] = {"objectType": "annotation", "classification": {"name": "Tumor"}}
    back = read_annotations(geojson(tmp_path / "c.geojson", tile), origin=slide.origin)
    assert back.tumour.bounds == (928, 728, 992, 792)
    assert back.bounds == (928, 728, 992, 792)


def test_scan_regions_are_said_and_their_outlines_placed_or_refused(cli: Any, tmp_path: Path) -> None:
    """QuPath opens one image where a region is the largest, and several where regions are of one size."""
    geojson(tmp_path / "c.geojson", feature("Tumor", corners(BOX)))
    uneven = write_scn(tmp_path / "c.scn", (region(), *OFFSET), (region(256, 256), 1800, 300))
    assert open_slide(uneven).origin == (800, 300)
    assert "2 scan regions" in open_slide(uneven).notes[0]
    write_scn(tmp_path / "c.scn", (region(), *OFFSET), (region(), 1800, 300))
    assert open_slide(tmp_path / "c.scn").origin is None
    words = ("tile", tmp_path / "c.scn", "--annotations", tmp_path, *GRID, "--out", tmp_path / "out")
    result = cli(*words)
    assert result.exit_code == 1
    assert "c.geojson" in result.stderr
    assert "ASAP" in result.stderr
    (tmp_path / "c.geojson").unlink()
    asap(tmp_path / "c.xml", ("Tumor", corners(moved(BOX, OFFSET))))
    assert cli(*words).exit_code == 0


BOUNDS = {f"openslide.bounds-{key}": str(value) for key, value in (("x", 30), ("y", 40), ("width", 50), ("height", 60))}
REGIONS = {f"openslide.region[{k}].{key}": "70" for k in (0, 1) for key in ("x", "y", "width", "height")}


@pytest.mark.parametrize(
    ("properties", "origin"),
    [
        ({}, (0, 0)),
        (BOUNDS | {"openslide.vendor": "mirax"}, (30, 40)),
        (BOUNDS | REGIONS | {"openslide.vendor": "leica"}, None),
        (BOUNDS | REGIONS | {"openslide.region[1].width": "60", "openslide.vendor": "leica"}, (30, 40)),
        (REGIONS | {"openslide.region[1].width": "60", "openslide.vendor": "zeiss"}, None),
        (BOUNDS | {"openslide.vendor": "generic-tiff"}, None),  # cropped from OpenSlide 4.0.1 on
        (BOUNDS | {"openslide.bounds-x": "0", "openslide.bounds-y": "0", "openslide.vendor": "generic-tiff"}, (0, 0)),
        ({key: BOUNDS[key] for key in list(BOUNDS)[:3]}, (0, 0)),  # QuPath crops where there are all four
        (BOUNDS | {"openslide.bounds-x": "30.5"}, (0, 0)),
    ],
)
def test_where_qupath_begins_to_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, properties: dict[str, str], origin: tuple[int, int] | None
) -> None:
    """By the source of QuPath's OpenslideImageServer and of OpenSlide's vendors."""
    path = write_slide(tmp_path / "a.tif", 300, 200, [(0, 0, 300, 200)])
    monkeypatch.setattr(openslide.OpenSlide, "properties", properties)
    assert open_slide(path, 1.0).origin == origin


def test_fluorescence_of_mrxs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "a.tif", 300, 200, [(0, 0, 300, 200)])
    monkeypatch.setattr(openslide.OpenSlide, "properties", {"mirax.GENERAL.SLIDE_TYPE": "SLIDE_TYPE_FLUORESCENCE"})
    monkeypatch.setattr(openslide.OpenSlide, "detect_format", lambda _: "mirax")
    with pytest.raises(UserError, match="fluorescence"):
        open_slide(path, 1.0)


def test_tiles_cut_before_bounds_were_known_are_cut_again(cli: Any, tmp_path: Path, scn: Path) -> None:
    geojson(tmp_path / "c.geojson", feature("Tumor", corners(BOX)))
    words = ("tile", scn, "--annotations", tmp_path, *GRID, "--out", tmp_path / "out")
    assert cli(*words).exit_code == 0
    assert "there already" in cli(*words).stderr
    old = record(tmp_path / "out", "c")
    del old["origin"]
    (tmp_path / "out" / "c" / "slide.json").write_text(json.dumps(old))
    assert "there already" not in cli(*words).stderr


def scored(out: Path, file: Path, tile: tuple[int, int], size: tuple[int, int], **more: Any) -> Path:
    """The output of score-slide for two slides, as far as evaluate-slides reads it: "a" with tumour in a tile, "n" without."""
    lines = ["slide"]
    for name, path in (("a", file), ("n", Path("n.png"))):
        found = {
            "key": "k", "identity": "i", "slide": name, "file": str(path), "alone": True, "width": size[0], "height": size[1],
            "mpp": 1.0, "tiles": 2, "max": 2.0 - (name == "n"), "top_k": 1.0, "share": 0.5, "model": "m", **more,
        }  # fmt: skip
        (out / name).mkdir(parents=True)
        (out / name / "slide.json").write_text(json.dumps(found))
        rows = f"x,y,side,neg_log10_p\n{tile[0]},{tile[1]},64,3\n0,0,64,1\n"
        (out / name / "tiles.csv").write_text(rows)
        lines.append(name)
    (out / "slides.csv").write_text("\n".join(lines) + "\n")
    return out


def test_evaluation_places_the_outlines_of_scored_slides(tmp_path: Path, scn: Path) -> None:
    """By the record, else by the slide's file; where that is gone, a kind of slide that may have bounds is refused."""
    notes = tmp_path / "notes"
    notes.mkdir()
    outline = [(0, 0), (400, 0), (400, 400), (0, 400)]
    geojson(notes / "c.geojson", feature("Tumor", outline))

    def tiles(name: str, file: Path, **more: Any) -> dict[str, Any]:
        out = scored(tmp_path / name, file, (928, 728), (3000, 2400), **more)
        evaluate_slides([out], annotations=notes, unannotated="normal", resamples=50)
        found: dict[str, Any] = json.loads((out / "metrics.json").read_text())["m"]["tiles"]
        return found

    for name, more in (("recorded", {"origin": [800, 600]}), ("asked", {})):
        assert tiles(name, scn, **more)["tiles"] == {"normal": 3, "anomalous": 1}
    gone = tmp_path / "gone"
    with pytest.raises(UserError, match="score the slide again"):
        tiles("gone", gone / "c.scn")
    with pytest.raises(UserError, match="ASAP"):
        tiles("unknown", gone / "c.scn", origin=None)
    assert tiles("plain", gone / "c.png")["tiles"]["anomalous"] == 1  # the tile at (0, 0)


def test_slides_without_bounds_begin_at_zero(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", 300, 200, [(0, 0, 300, 200)])
    Image.new("RGB", (30, 20)).save(tmp_path / "b.png")
    assert open_slide(path).origin == open_slide(tmp_path / "b.png", 1.0).origin == (0, 0)
    properties = openslide.OpenSlide(path).properties
    assert properties.get("openslide.bounds-x", "0") == "0"
    square = shapely.box(10, 20, 30, 40)
    drawn = geojson(tmp_path / "a.geojson", feature("Tumor", list(square.exterior.coords)[:-1]))
    assert read_annotations(drawn).tumour.equals(square)
    assert read_annotations(drawn).notes == []


# The table of slides


@pytest.fixture
def slides(tmp_path: Path) -> list[Path]:
    """One that states nothing, one of 0.5 µm/px, and one whose annotation has tumour."""
    Image.fromarray(region(256, 256)).save(tmp_path / "a.png")
    found = [tmp_path / "a.png"]
    for name in ("b", "c"):
        found.append(write_slide(tmp_path / f"{name}.tif", 256, 256, [(0, 0, 256, 256)], 0.5))
    asap(tmp_path / "c.xml", ("Tumor", corners((0, 0, 128, 128))))
    return found


def table(tmp_path: Path, text: str) -> Path:
    (tmp_path / "slides.csv").write_text(text, encoding="utf-8")
    return tmp_path / "slides.csv"


def test_replaced_scale_is_said_and_recorded(cli: Any, tmp_path: Path, slides: list[Path]) -> None:
    result = cli("tile", *slides[:2], "--slide-mpp", 0.25, *GRID, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (said,) = [line for line in result.stderr.splitlines() if "0.25 is taken" in line]
    assert "b.tif states 0.5" in said
    assert record(tmp_path / "out", "b")["notes"] == [said]
    assert record(tmp_path / "out", "a")["notes"] == []
    assert [record(tmp_path / "out", name)["mpp"] for name in "ab"] == [0.25, 0.25]


def test_scale_patient_and_label_of_each_slide(cli: Any, tmp_path: Path, slides: list[Path]) -> None:
    rows = "slide,mpp,patient,label\na.png,1.0,P7,normal\nb,,P7,tumour\nc.tif,0.5,,1\n"
    words = ("tile", *slides, "--annotations", tmp_path, *GRID, "--unannotated", "normal", "--out", tmp_path / "out")
    result = cli(*words, "--slides-csv", table(tmp_path, rows))
    assert result.exit_code == 0, result.output
    found = index(tmp_path / "out")
    assert {row["slide"]: row["group"] for row in found} == {"a": "P7", "b": "P7", "c": "c"}
    assert {row["slide"]: float(row["side"]) for row in found} == {"a": 64, "b": 128, "c": 128}
    labels = {name: sorted({row["label"] for row in found if row["slide"] == name}) for name in "abc"}
    assert labels == {"a": ["0"], "b": [""], "c": ["", "1"]}  # the outline touches the tiles beside it
    assert "no patient" in result.stderr
    assert "replaced" not in result.stderr
    # another row: that slide alone is cut again
    again = cli(*words, "--slides-csv", table(tmp_path, rows.replace("a.png,1.0", "a.png,0.5")))
    assert again.stderr.count("there already") == 2
    assert record(tmp_path / "out", "a")["mpp"] == 0.5


def test_label_of_the_table_and_annotation_must_agree(cli: Any, tmp_path: Path, slides: list[Path]) -> None:
    words = ("tile", slides[2], "--annotations", tmp_path, *GRID, "--out", tmp_path / "out", "--slides-csv")
    result = cli(*words, table(tmp_path, "slide,label\nc,normal\n"))
    assert result.exit_code == 1
    assert "c.xml" in result.stderr
    asap(tmp_path / "c.xml")
    assert cli(*words, table(tmp_path, "slide,label\nc,tumour\n")).exit_code == 1
    assert cli(*words, table(tmp_path, "slide,label\nc,unknown\n")).exit_code == 0


def test_list_of_trident_and_what_does_not_match(cli: Any, tmp_path: Path, slides: list[Path]) -> None:
    rows = "wsi,mpp,extra\na.png,1.0,x\nsub/b.tif,0.1,x\ngone.svs,0.5,x\n"
    result = cli("tile", *slides[:2], *GRID, "--out", tmp_path / "out", "--slides-csv", table(tmp_path, rows))
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines() if "slides.csv" in line]
    assert any("1 slides are not in it: b.tif" in line for line in said)
    assert any("2 of its rows" in line and "gone.svs" in line for line in said)
    assert any("extra" in line for line in said)
    assert [record(tmp_path / "out", name)["mpp"] for name in "ab"] == [1.0, 0.5]
    words = ("tile", *slides[:2], *GRID, "--strict", "--out", tmp_path / "strict", "--slides-csv")
    fails(cli(*words, tmp_path / "slides.csv"), "--strict", "slides.csv", code=1)
    assert not (tmp_path / "strict").exists()
    assert cli(*words, table(tmp_path, "wsi,mpp\na.png,1.0\nb.tif,0.5\n")).exit_code == 0


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("slide,mpp\nb,0.5\nb,0.6\n", ("line 3", "twice")),
        ("slide,mpp\nb,0.5\nb.tif,0.6\n", ("2 and 3", "b.tif")),
        ('slide,mpp\nb,"0,5"\n', ("line 2", "0,5")),
        ("slide,mpp\nb,-1\n", ("line 2", "-1")),
        ("slide,mpp\nb,nan\n", ("line 2", "nan")),
        ("slide,label\nb,perhaps\n", ("line 2", "perhaps")),
        ("slide,mpp\n,0.5\n", ("line 2", "no slide")),
        ("name,mpp\nb,0.5\n", ("slide", "name")),
        ("slide,wsi,mpp\nb,b,0.5\n", ("slide",)),
        ("slide,side\nb,0.5\n", ("mpp", "patient", "label")),
        ("", ("slide",)),
    ],
)
def test_bad_tables_are_one_line(
    cli: Any, tmp_path: Path, slides: list[Path], rows: str, words: tuple[str, ...]
) -> None:
    result = cli("tile", slides[1], *GRID, "--out", tmp_path / "out", "--slides-csv", table(tmp_path, rows))
    assert result.exit_code in (1, 2)
    assert all(word in result.stderr for word in ("slides.csv", *words))
    assert "Traceback" not in result.stderr


def test_two_sources_of_one_fact_are_refused(cli: Any, tmp_path: Path, slides: list[Path]) -> None:
    file = table(tmp_path, "slide,mpp,patient\nb,0.5,P\n")
    for option in (("--slide-mpp", 0.25), ("--group", "(.)")):
        result = cli("tile", slides[1], *GRID, *option, "--slides-csv", file, "--out", tmp_path / "out")
        fails(result, option[0], "slides.csv")


def test_names_with_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "x" / "b.tif", tmp_path / "y" / "b.tif"
    with pytest.raises(UserError, match=r"line 2.*folder"):
        SlideList(table(tmp_path, "slide,mpp\nb,0.5\n")).check([first, second])
    named = SlideList(table(tmp_path, f"slide,mpp\nx/b,0.5\n{second},0.7\n"))
    named.check([first, second])
    assert (named.of(first), named.of(second)) == (Told(0.5), Told(0.7))
    assert named.of(tmp_path / "xx" / "b.tif") == named.of(tmp_path / "b.tif") == Told()
    # of slides with one stem, only a row with a folder, or the name in the output, tells
    plain = SlideList(table(tmp_path, "slide,label\nb.tif,1\nb-1a2b3c,0\n"))
    assert plain.of(first, "b", alone=False) == Told()
    assert plain.of(second, "b-1a2b3c", alone=False).label == 0
    capsys.readouterr()
    SlideList(table(tmp_path, "slide,label\nb,1\nb-1a2b3c,0\n")).check([first, second], ["b", "b-1a2b3c"])
    assert capsys.readouterr().err == ""
    named.check([first, first, second])  # the same slide twice is one
    decomposed = SlideList(table(tmp_path, "slide,mpp\npra\u0308parat,0.5\n"))
    assert decomposed.of(tmp_path / "pr\u00e4parat.tif") == Told(0.5)
    assert capsys.readouterr().err == ""


def test_patients_of_scored_slides_are_the_groups_of_intervals(tmp_path: Path) -> None:
    out = tmp_path / "out"
    scored(out, tmp_path / "a.png", (64, 0), (200, 100))
    for patients, groups in (("P,Q", 2), (",", 2), ("P,P", 1)):
        one, other = patients.split(",")
        file = table(tmp_path, f"slide,patient,label\na,{one},tumour\nn,{other},normal\n")
        evaluate_slides([out], labels=file, resamples=50)
        found = json.loads((out / "metrics.json").read_text())["m"]["scores"]["max"]["auroc"]
        assert found["n_units"] == groups


def test_scored_slides_have_their_own_scale(
    cli: Any, tmp_path: Path, slides: list[Path], scorer: tuple[Path, Path]
) -> None:
    words = (
        "score-slide",
        scorer[0],
        *slides[:2],
        "--normals",
        scorer[1],
        "--mpp",
        1,
        "--tissue",
        0,
        "--out",
        tmp_path / "out",
    )
    result = cli(*words, "--slides-csv", table(tmp_path, "wsi,mpp\na.png,1.0\nb,0.25\n"))
    assert result.exit_code == 0, result.output
    found = {name: record(tmp_path / "out", name) for name in "ab"}
    assert {name: (one["mpp"], one["side"], one["tiles"]) for name, one in found.items()} == {
        "a": (1, 64, 16),
        "b": (0.25, 256, 1),
    }
    (said,) = found["b"]["notes"]
    assert "states 0.5" in said
    assert said in result.stderr
    # another scale for one slide: that one alone is scored again
    cli(*words, "--slides-csv", table(tmp_path, "wsi,mpp\na.png,0.5\nb,0.25\n"))
    again = {name: record(tmp_path / "out", name) for name in "ab"}
    assert (again["a"]["side"], again["a"]["tiles"]) == (128, 4)
    assert again["b"] == found["b"]
    result = cli(*words, "--slide-mpp", 1, "--slides-csv", tmp_path / "slides.csv")
    fails(result, "--slide-mpp", "slides.csv")


def test_scored_tiles_lie_in_qupath_where_they_are(
    cli: Any, tmp_path: Path, scn: Path, scorer: tuple[Path, Path]
) -> None:
    words = (
        "score-slide",
        scorer[0],
        scn,
        "--normals",
        scorer[1],
        "--mpp",
        1,
        "--tissue",
        0.9,
        "--out",
        tmp_path / "out",
    )
    result = cli(*words)
    assert result.exit_code == 0, result.output
    with open(tmp_path / "out" / "c" / "tiles.csv", newline="", encoding="utf-8") as file:
        places = [(int(row["x"]), int(row["y"])) for row in csv.DictReader(file)]
    features = json.loads((tmp_path / "out" / "c" / "tiles.geojson").read_text())["features"]
    assert places
    assert min(places) >= OFFSET
    shown = [tuple(one["geometry"]["coordinates"][0][0]) for one in features]
    assert shown == [(x - OFFSET[0], y - OFFSET[1]) for x, y in places]
    found = record(tmp_path / "out", "c")
    assert found["origin"] == list(OFFSET)
    assert "800, 600" in found["notes"][0]
    assert found["notes"][0] in result.stderr
    assert cli(*words).exit_code == 0
    assert record(tmp_path / "out", "c") == found


# Stain


@pytest.mark.parametrize("command", ["tile", "score-slide"])
def test_stain_that_cannot_be_fitted_is_said_and_not_recorded(
    cli: Any, tmp_path: Path, scorer: tuple[Path, Path], command: str
) -> None:
    """Eosin alone has no optical density in red: there is tissue, but nothing to fit."""
    eosin = np.array([235, 120, 170]) + np.random.default_rng(0).normal(0, 6, (512, 512, 3))
    pale, both = tmp_path / "eosin.tif", tmp_path / "both.tif"
    for path, image in ((pale, np.clip(eosin, 0, 255)), (both, region())):
        tifffile.imwrite(path, image.astype(np.uint8), tile=(256, 256), photometric="rgb", metadata=None, **PER_CM)
    out, words = tmp_path / "out", ("--stain", "macenko", "--size", 64, "--mpp", 1, "--tissue", 0.5, "--workers", 1)
    if command == "tile":
        result = cli("tile", pale, both, *words, "--grid", "--out", out)
    else:
        result = cli("score-slide", scorer[0], pale, both, *words, "--normals", scorer[1], "--out", out)
    assert result.exit_code == 0, result.output
    (said,) = [line for line in result.stderr.splitlines() if "macenko" in line and "eosin" in line]
    assert "of tissue" not in said
    found = record(out, "eosin")
    assert found["stain"]["fitted"] is False
    assert found["notes"] == [said]
    assert found["stain"]["reason"] in said
    assert record(out, "both")["stain"]["fitted"] is True
    if command == "tile":
        stains = {row["slide"]: row["stain"] for row in index(out)}
        assert stains == {"eosin": "", "both": "macenko"}
