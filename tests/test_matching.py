"""Which annotation file belongs to which slide: by names, in subfolders, through links, and what is left over."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from score_tools import fails, rows
from slide_tools import asap, corners, feature, geojson, write_slide

from gan_uad.errors import JobFailed, UserError
from gan_uad.slides.matching import match_annotations

GRID = ("--size", 64, "--mpp", 1, "--tissue", 0, "--grid")
BOX = corners((0, 0, 64, 64))


def made(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return folder


@pytest.mark.parametrize(
    ("slide", "file"),
    [
        ("a.tif", "a.xml"),
        ("a.tif", "a.GEOJSON"),
        ("a.tif", "a_annotation.json"),
        ("a.tif", "a_Annotations.xml"),
        ("Case_1.tif", "case_1.xml"),
        ("b.svs.tif", "b.svs.tif.geojson"),
        ("b.svs.tif", "b.svs.geojson"),
        ("b.svs.tif", "b.geojson"),
        ("c.ome.tif", "c.geojson"),
        ("c.ome.tiff", "c.ome.geojson"),
        ("d .tif", "d.xml"),
        ("d.tif", "d .xml"),
        (unicodedata.normalize("NFD", "tumör.svs"), unicodedata.normalize("NFC", "tumör.xml")),
        ("TCGA-A1.2.3.svs", "TCGA-A1.2.3.xml"),
    ],
)
def test_names_that_belong_together(tmp_path: Path, slide: str, file: str) -> None:
    folder = made(tmp_path / "ann", file, ".DS_Store", "._a.xml")
    found = match_annotations(folder, [tmp_path / slide, tmp_path / "other.tif"])
    assert found.found == {tmp_path / slide: folder / file}
    assert (found.without, found.unused, found.unclear) == ([tmp_path / "other.tif"], [], {})


@pytest.mark.parametrize(
    ("slide", "file"), [("a1.tif", "a10.xml"), ("a.b.tif", "a.xml"), ("a.tif", "a.txt"), ("a.tif", "._a.xml")]
)
def test_names_that_do_not(tmp_path: Path, slide: str, file: str) -> None:
    found = match_annotations(made(tmp_path / "ann", file), [tmp_path / slide])
    assert found.without == [tmp_path / slide]
    assert [path.name for path in found.unused] == ([file] if file[0] == "a" and file.endswith("xml") else [])


def test_a_file_of_either_of_two_slides_is_unclear(tmp_path: Path) -> None:
    for slides, file in (
        (("A/x.tif", "B/x.tif"), "x.xml"),
        (("c.ome.tif", "c.tif"), "c.geojson"),
        (("x.svs", "x.tif"), "x.xml"),
        (("Case.svs", "Case.tif"), "case.xml"),
    ):
        folder = made(tmp_path / file / "ann", file)
        paths = [tmp_path / slide for slide in slides]
        found = match_annotations(folder, paths)
        assert set(found.unclear) == set(paths)
        with pytest.raises(UserError, match=file):
            found.of(paths[0])
        with pytest.raises(JobFailed):
            found.report(strict=True, normal=False)


def test_what_decides_between_two_slides(tmp_path: Path) -> None:
    whole = made(tmp_path / "1", "c.tif.geojson", "c.ome.tif.geojson")
    slides = [tmp_path / "c.ome.tif", tmp_path / "c.tif"]
    assert [match_annotations(whole, slides).of(s) for s in slides] == [whole / f"{s.name}.geojson" for s in slides]
    case = made(tmp_path / "2", "Case.xml", "case.xml")
    slides = [tmp_path / "Case.tif", tmp_path / "case.tif"]
    assert [match_annotations(case, slides).of(s) for s in slides] == [case / "Case.xml", case / "case.xml"]
    near = made(tmp_path / "3", "A/x.xml", "B/x.geojson", "A/y.xml", "C/x.xml", "z.xml")
    slides = [tmp_path / "A" / "x.tif", tmp_path / "B" / "x.tif", tmp_path / "x.tif"]
    found = match_annotations(near, slides)
    assert [found.of(s) for s in slides] == [near / "A" / "x.xml", near / "B" / "x.geojson", None]
    assert [path.relative_to(near).as_posix() for path in found.unused] == ["z.xml", "A/y.xml", "C/x.xml"]
    several = made(tmp_path / "4", "a.xml", "a.geojson")
    with pytest.raises(UserError, match=r"a\.geojson.*a\.xml"):
        match_annotations(several, [tmp_path / "a.tif"]).of(tmp_path / "a.tif")


def test_links_belong_to_the_folder_they_are_given_in(tmp_path: Path) -> None:
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        made(tmp_path / "store" / f"k{name}", "x.tif")
        os.symlink(tmp_path / "store" / f"k{name}" / "x.tif", tmp_path / name / "x.tif")
    slides = [tmp_path / name / "x.tif" for name in "AB"]
    given = made(tmp_path / "given", "A/x.xml", "B/x.xml")
    assert [match_annotations(given, slides).of(s) for s in slides] == [given / n / "x.xml" for n in "AB"]
    resolved = made(tmp_path / "resolved", "kA/x.xml", "kB/x.xml")
    assert [match_annotations(resolved, slides).of(s) for s in slides] == [resolved / n / "x.xml" for n in ("kA", "kB")]


def test_formats_that_are_not_read_are_listed(tmp_path: Path) -> None:
    folder = made(tmp_path / "ann", "a.ndpa", "b.qpdata")
    found = match_annotations(folder, [tmp_path / "a.tif"])
    assert found.without == [tmp_path / "a.tif"]
    assert [path.name for path in found.unused] == ["a.ndpa", "b.qpdata"]


def test_tile_lists_what_has_no_partner_and_strict_refuses(cli: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_slide(tmp_path / "s" / f"{name}.tif", 128, 64, [(0, 0, 128, 64)])
    asap(tmp_path / "ann" / "A.xml", ("Tumor", BOX))
    geojson(tmp_path / "ann" / "bb.geojson", feature("Tumor", BOX))
    slides = sorted((tmp_path / "s").iterdir())
    words = ("tile", *slides, "--annotations", tmp_path / "ann", "--unannotated", "normal", *GRID)
    fails(cli(*words, "--strict", "--out", tmp_path / "no"), "--strict", code=1)
    assert not (tmp_path / "no").exists()
    result = cli(*words, "--out", tmp_path / "t")
    assert result.exit_code == 0
    assert "2 slides: 1 annotated, 1 not; 1 annotation files unused" in result.stderr
    assert "b.tif" in result.stderr
    assert "bb.geojson" in result.stderr
    assert "warning" in result.stderr
    sharded = cli(*words, "--shard", "1/2", "--out", tmp_path / "shard")
    assert "1 annotation files unused" in sharded.stderr, "those of other shards are no leftovers"


def test_a_second_call_with_another_slide_of_the_same_name(cli: Any, tmp_path: Path) -> None:
    for k, name in enumerate("AB"):
        write_slide(tmp_path / name / "x.tif", 128, 64, [(0, 0, 128, 64)], seed=k)
    asap(tmp_path / "ann" / "x.xml", ("Tumor", BOX))
    words = ("--annotations", tmp_path / "ann", *GRID, "--out", tmp_path / "t")
    assert cli("tile", tmp_path / "A" / "x.tif", *words).exit_code == 0
    refused = cli("tile", tmp_path / "B" / "x.tif", *words)
    fails(refused, code=1)
    assert str(tmp_path / "ann" / "B") in refused.stderr
    assert {row["slide"] for row in rows(tmp_path / "t" / "index.csv")} == {"x"}
    (tmp_path / "ann" / "B").mkdir()
    shutil.copy(tmp_path / "ann" / "x.xml", tmp_path / "ann" / "B")
    assert cli("tile", tmp_path / "B" / "x.tif", *words).exit_code == 0
    assert len({row["slide"] for row in rows(tmp_path / "t" / "index.csv")}) == 2


def test_tiles_of_a_slide_with_tumour_somewhere_are_not_normal(cli: Any, tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", 192, 64, [(0, 0, 192, 64)])
    point = feature("Tumor", BOX) | {"geometry": {"type": "Point", "coordinates": [100, 10]}}
    geojson(tmp_path / "ann.geojson", feature("Tumor", BOX), point)
    result = cli("tile", tmp_path / "a.tif", "--annotations", tmp_path / "ann.geojson", *GRID, "--out", tmp_path / "t")
    assert result.exit_code == 0
    found = rows(tmp_path / "t" / "index.csv")
    assert [(row["label"], row["class"]) for row in found] == [("1", "tumour"), ("", ""), ("", "")]
