"""Odd annotations: files of other programs, and names."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import tifffile
from odd_inputs.annotations import BOTH, IN_B, A, B, asap, feature, geojson, made, outline, polygon
from odd_inputs.slide_frame import TILED, Made, annotation, scene

# Other programs


def foreign(name: str, file: str, text: str, accept: str = "refused", **expected: Any) -> None:
    @annotation(name, accept)
    def _(folder: Path) -> Made:
        (folder / "drawn" / file).write_text(text, encoding="utf-8")
        return made(folder, IN_B, **expected)


VERTICES = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in B)
foreign("ImageScope's XML", "case.xml",
        '<Annotations MicronsPerPixel="0.5"><Annotation Id="1" Name="Tumor"><Regions><Region Id="1"><Vertices>'
        f"{VERTICES}</Vertices></Region></Regions></Annotation></Annotations>")  # fmt: skip
foreign(
    "NDP.view's file, beside nothing else",
    "case.tif.ndpa",
    "<annotations><ndpviewstate/></annotations>",
    left_out="ndpa",
)
foreign("COCO's JSON", "case.json", json.dumps({"images": [{"id": 1}], "annotations": [{"segmentation": [[0, 0, 9, 9, 0, 9]]}],
        "categories": [{"id": 1, "name": "Tumor"}]}))  # fmt: skip
foreign(
    "labelme's JSON",
    "case.json",
    json.dumps({"version": "5", "shapes": [{"label": "Tumor", "points": B}], "imagePath": "a"}),
)
foreign("an HTML page named .xml", "case.xml", "<!DOCTYPE html><html><body>404</body></html>")
foreign("a table of corners", "case.csv", "x,y\n1,2\n", BOTH, left_out="no annotation")
foreign("JSON of null", "case.json", "null")
foreign("a VOC XML", "case.xml", "<annotation><object><name>Tumor</name></object></annotation>")


# Names


def _named(name: str, accept: str, *files: str, slide: str = "case.tif", **expected: Any) -> None:
    @annotation(f"name: {name}", accept)
    def _(folder: Path) -> Made:
        path = folder / slide
        if slide != "case.tif":
            path.parent.mkdir(exist_ok=True)
            (folder / "case.tif").rename(path)
        for file in files:
            geojson(folder, feature(polygon(B)), name=file)
        return Made([path], tumour=IN_B, **expected)


_named("other case", BOTH, "CASE.geojson", left_out="unused")
_named("the whole file name", "right", "case.tif.geojson")
_named(
    "NFD for a slide of NFC",
    BOTH,
    unicodedata.normalize("NFD", "Größe") + ".geojson",
    slide="Größe.tif",
    left_out="unused",
)
_named("of a longer name of another slide", BOTH, "case10.geojson", left_out="unused")
_named("with _annotations", BOTH, "case_annotations.geojson", left_out="unused")
_named("dots in the slide's name", "right", "S1.2.3.geojson", slide="S1.2.3.tif")
_named("dots: of S1.2 for S1.2.3", BOTH, "S1.2.geojson", slide="S1.2.3.tif", left_out="unused")
_named("TCGA's barcode alone for a name with its UUID", BOTH, "TCGA-AA-0001-01Z-00-DX1.geojson",
       slide="TCGA-AA-0001-01Z-00-DX1.1b2c.tif", left_out="unused")  # fmt: skip
_named("two endings: .geojson.geojson", BOTH, "case.geojson.geojson", left_out="unused")
_named("a space before the ending", BOTH, "case .geojson", left_out="unused")
_named("in capitals: .GEOJSON", BOTH, "case.GEOJSON", left_out="unused")
_named("packed: .geojson.gz", BOTH, "case.geojson.gz", left_out="no annotation")
_named("hidden: ._case.geojson of macOS beside the real one", "right", "case.geojson", "._case.geojson")
_named("in a subfolder of another name", BOTH, "more/case.geojson", left_out="unused")


@annotation("name: two files for one slide", "refused")
def _(folder: Path) -> Made:
    asap(folder, outline("Tumor", A))
    geojson(folder, feature(polygon(B)))
    return made(folder, IN_B)


@annotation("name: a copy `case (1).geojson` beside the real one")
def _(folder: Path) -> Made:
    geojson(folder, feature(polygon(B)))
    geojson(folder, feature(polygon(A)), name="case (1).geojson")
    return made(folder, IN_B, said=("case (1).geojson",))


def _second(folder: Path) -> Path:
    other = folder / "p2" / "case.tif"
    other.parent.mkdir()
    tifffile.imwrite(other, scene(9), **TILED)
    return other


@annotation("name: two slides of one stem in one call", "refused")
def _(folder: Path) -> Made:
    geojson(folder, feature(polygon(B)))
    return Made([folder / "case.tif", _second(folder)], tumour=IN_B)


@annotation("name: two slides of one stem in two calls", "refused")
def _(folder: Path) -> Made:
    geojson(folder, feature(polygon(B)))
    return Made([_second(folder)], tumour=IN_B, calls=[[str(folder / "case.tif")]])


@annotation("name: a.tif and a.svs, one file")
def _(folder: Path) -> Made:
    geojson(folder, feature(polygon(B)))
    other = folder / "case.tiff"
    tifffile.imwrite(other, scene(9), **TILED)
    return Made([folder / "case.tif", other], tumour=IN_B)


@annotation("name: the slide is a link of another name")
def _(folder: Path) -> Made:
    geojson(folder, feature(polygon(B)), name="case.geojson")
    (folder / "link.tif").symlink_to(folder / "case.tif")
    return Made([folder / "link.tif"], tumour=IN_B, left_out="unused")


@annotation("name: the annotation is a broken link")
def _(folder: Path) -> Made:
    (folder / "drawn/case.geojson").symlink_to(folder / "gone.geojson")
    return made(folder, IN_B, left_out="no annotation")


@annotation("one file given for one slide, of another name")
def _(folder: Path) -> Made:
    path = geojson(folder, feature(polygon(B)), name="zz.geojson")
    return made(folder, IN_B, "--annotations", str(path))


@annotation("annotation changed between two calls", "right")
def _(folder: Path) -> Made:
    first = folder / "first"
    first.mkdir()
    path = geojson(folder, feature(polygon(B)))
    (first / "case.geojson").write_text(json.dumps(feature(polygon(A))))
    return made(
        folder, IN_B, "--annotations", str(path.parent), calls=[[str(folder / "case.tif"), "--annotations", str(first)]]
    )
