"""Odd slides: OME-TIFF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from odd_inputs.slide_frame import CENTIMETRE, Made, scene, slide
from odd_inputs.slide_makers import (
    COARSE,
    HALF,
    NAMESPACE,
    described,
    named,
    ome,
    planes,
)


@slide("OME of two dyes", "refused")
def _(folder: Path) -> Path:
    return ome(folder / "a.ome.tif", planes(0, 1), HALF, named("DAPI", "panCK"))


@slide("OME of three markers without dyes' names", "refused")
def _(folder: Path) -> Path:
    return ome(folder / "a.ome.tif", planes(0, 1, 2), HALF, named("CD3", "CD8", "CD20"))


@slide("OME of four channels without names", "refused")
def _(folder: Path) -> Path:
    return ome(folder / "a.ome.tif", planes(0, 1, 2, 0), HALF, "")


@slide("OME with three pages named Blue, Green, Red")
def _(folder: Path) -> Path:
    return ome(folder / "a.ome.tif", planes(2, 1, 0), HALF, named("Blue", "Green", "Red"))


@slide("OME of 12 bits that states SignificantBits")
def _(folder: Path) -> Path:
    return ome(folder / "a.ome.tif", scene().astype(np.uint16) * 16, HALF + ' SignificantBits="12"')


@slide("OME that states 12 bits and uses 16")
def _(folder: Path) -> Path:
    return ome(folder / "a.ome.tif", scene().astype(np.uint16) * 257, HALF + ' SignificantBits="12"')


def _units(text: str) -> Any:
    return lambda folder: ome(folder / "a.ome.tif", scene(), text)


for _name, _text, _accept in (
    ("mm", 'PhysicalSizeX="0.0005" PhysicalSizeXUnit="mm" PhysicalSizeY="0.0005" PhysicalSizeYUnit="mm"', "right"),
    ("nm", 'PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="500" PhysicalSizeYUnit="nm"', "right"),
    ("one side in nm, the other in µm", 'PhysicalSizeX="500" PhysicalSizeXUnit="nm" PhysicalSizeY="0.5"', "right"),
    ("pixel", 'PhysicalSizeX="0.5" PhysicalSizeXUnit="pixel" PhysicalSizeY="0.5" PhysicalSizeYUnit="pixel"', "refused"),
    ("reference frame", 'PhysicalSizeX="1" PhysicalSizeXUnit="reference frame" PhysicalSizeY="1"', "refused"),
    ("inch", 'PhysicalSizeX="0.00001968504" PhysicalSizeXUnit="in" PhysicalSizeY="0.00001968504" PhysicalSizeYUnit="in"',
     "right refused"),
    ("missing Y", 'PhysicalSizeX="0.5"', "right refused"),
    ("decimal comma", 'PhysicalSizeX="0,5" PhysicalSizeY="0,5"', "right refused"),
    ("zero", 'PhysicalSizeX="0" PhysicalSizeY="0"', "refused"),
    ("negative", 'PhysicalSizeX="-0.5" PhysicalSizeY="-0.5"', "refused"),
    ("not a number", 'PhysicalSizeX="NaN" PhysicalSizeY="NaN"', "refused"),
    ("0.5 by 0.25", 'PhysicalSizeX="0.5" PhysicalSizeY="0.25"', "refused"),
    ("none, with no resolution", "", "refused"),
):  # fmt: skip
    slide(f"OME, PhysicalSize: {_name}", _accept)(_units(_text))


@slide("OME with PhysicalSize of µm as HTML entity and as Greek mu", "right")
def _(folder: Path) -> Path:
    text = 'PhysicalSizeX="0.5" PhysicalSizeXUnit="&#181;m" PhysicalSizeY="0.5" PhysicalSizeYUnit="&#956;m"'
    return ome(folder / "a.ome.tif", scene(), text)


@slide("OME without PhysicalSize, 72 dpi by default", "refused")
def _(folder: Path) -> Path:
    return ome(folder / "a.ome.tif", scene(), "", resolution=(72, 72), resolutionunit="INCH")


@slide("OME with a PhysicalSize that cannot be used, and a resolution tag")
def _(folder: Path) -> Path:
    return ome(folder / "a.ome.tif", scene(), 'PhysicalSizeX="0" PhysicalSizeY="0"', **CENTIMETRE)


@slide("OME by tifffile: macro of 8 µm first, then the slide")
def _(folder: Path) -> Path:
    with tifffile.TiffWriter(folder / "a.ome.tif", ome=True) as tiff:
        for image, mpp in ((scene()[::4, ::4], 8.0), (scene(), 0.5)):
            tiff.write(image, photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp})
    return folder / "a.ome.tif"


@slide("OME of two scans of one size, of 0.25 and 0.5 µm")
def _(folder: Path) -> Made:
    with tifffile.TiffWriter(folder / "a.ome.tif", ome=True) as tiff:
        for image, mpp in ((scene(), 0.5), (scene(9), 0.25)):
            tiff.write(image, photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeY": mpp})
    return Made([folder / "a.ome.tif"], said=("2 images",))


def _stack(axis: str) -> Any:
    def make(folder: Path) -> Made:
        metadata = {"axes": f"{axis}YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        stack = np.stack([scene(), scene(9)])
        tifffile.imwrite(folder / "a.ome.tif", stack, photometric="rgb", metadata=metadata, ome=True)
        return Made([folder / "a.ome.tif"], said=("stack",))

    return make


slide("OME of two focus planes")(_stack("Z"))


slide("OME of two times")(_stack("T"))


@slide("OME with a pyramid in SubIFDs whose second level is of another picture's aspect")
def _(folder: Path) -> Made:
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(folder / "a.ome.tif", ome=True) as tiff:
        tiff.write(scene(), subifds=1, tile=(128, 128), photometric="rgb", metadata=metadata)
        tiff.write(scene(9)[:160, ::2], subfiletype=1, tile=(128, 128), photometric="rgb")
    return Made([folder / "a.ome.tif"], args=COARSE)


@slide("OME, pages of channels stored in another order by TiffData")
def _(folder: Path) -> Path:
    path = ome(folder / "a.ome.tif", planes(2, 0, 1), HALF, named("Red", "Green", "Blue"))
    where = "".join(f'<TiffData IFD="{ifd}" FirstC="{c}" PlaneCount="1"/>' for c, ifd in enumerate((1, 2, 0)))
    return described(path, lambda xml: xml.replace("<TiffData/>", where))


@slide("OME whose second image lies in another file")
def _(folder: Path) -> Path:
    path = ome(folder / "a.ome.tif", planes(0, 1, 2), HALF, named("Red", "Green", "Blue"))
    part = '<TiffData IFD="{}" FirstC="{}" PlaneCount="1"><UUID FileName="{}">urn:uuid:{}</UUID></TiffData>'
    here, there = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
    data = (
        part.format(0, 0, "a.ome.tif", here)
        + part.format(1, 1, "a.ome.tif", here)
        + part.format(0, 2, "b.ome.tif", there)
    )
    return described(
        path, lambda xml: xml.replace("<TiffData/>", data).replace("<OME ", f'<OME UUID="urn:uuid:{here}" ')
    )


@slide("OME with BinaryOnly metadata", "refused")
def _(folder: Path) -> Path:
    path = ome(folder / "a.ome.tif", scene(), HALF)
    return described(
        path, lambda xml: f'<OME {NAMESPACE}><BinaryOnly MetadataFile="x.companion.ome" UUID="urn:uuid:1"/></OME>'
    )


@slide("OME whose XML is cut off")
def _(folder: Path) -> Path:
    return described(ome(folder / "a.ome.tif", scene(), HALF), lambda xml: xml[:-40])


@slide("OME whose sizes are of another image")
def _(folder: Path) -> Path:
    return described(ome(folder / "a.ome.tif", scene(), HALF), lambda xml: xml.replace('SizeX="512"', 'SizeX="1024"'))


@slide("OME of RGB whose Color attributes say blue, green, red")
def _(folder: Path) -> Path:
    colours = "".join(
        f'<Channel ID="Channel:0:{k}" Color="{colour}" SamplesPerPixel="1"/>'
        for k, colour in enumerate((65535, 16711935, -16776961))
    )
    return ome(folder / "a.ome.tif", planes(2, 1, 0), HALF, colours)


@slide("OME of RGB samples whose channel is called DAPI")
def _(folder: Path) -> Path:
    channel = '<Channel ID="Channel:0:0" Name="DAPI" SamplesPerPixel="3"/>'
    return ome(folder / "a.ome.tif", scene(), HALF, channel)


@slide("OME of RGB samples with three channels of dyes")
def _(folder: Path) -> Path:
    return ome(folder / "a.ome.tif", scene(), HALF, named("DAPI", "FITC", "Cy5"))


@slide("OME of 0.25 µm whose resolution tag states 0.5", "right")
def _(folder: Path) -> Made:
    return Made([ome(folder / "a.ome.tif", scene(), HALF.replace("0.5", "0.25"), **CENTIMETRE)], mpp=0.25)
