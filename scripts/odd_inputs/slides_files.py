"""Odd slides: files, plain images, repeated calls and slides.csv."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from odd_inputs.slide_frame import BLOCK, CENTIMETRE, HEIGHT, PLAIN, TILED, WIDTH, Made, grey_scene, scene, slide
from odd_inputs.slide_makers import (
    aperio,
    cmyk,
    pages,
    renamed,
    with_fourth,
    without_first_tile,
    write,
)
from PIL import Image

# Files


@slide("BigTIFF in strips", "right")
def _(folder: Path) -> Path:
    return write(folder / "a.tif", **PLAIN, bigtiff=True)


@slide("truncated by a third", "refused")
def _(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    path = write(folder / "a.tif", noise, **TILED)
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path


@slide("a tile's bytes overwritten with zeros", "refused")
def _(folder: Path) -> Path:
    path = write(folder / "a.tif", **TILED)
    with tifffile.TiffFile(path) as tiff:
        start, count = tiff.pages.first.dataoffsets[5], tiff.pages.first.databytecounts[5]
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(bytes(count))
    return path


@slide("empty file", "refused")
def _(folder: Path) -> Path:
    (folder / "a.svs").touch()
    return folder / "a.svs"


@slide("PNG named .svs, with --slide-mpp")
def _(folder: Path) -> Made:
    Image.fromarray(scene()).save(folder / "a.svs", format="PNG")
    return Made([folder / "a.svs"], args=["--slide-mpp", "0.5"])


@slide("PNG of 16 bits grey, with --slide-mpp")
def _(folder: Path) -> Made:
    Image.fromarray(grey_scene()[..., 0].astype(np.uint16) * 257).save(folder / "a.png")
    return Made([folder / "a.png"], grey_scene(), args=["--slide-mpp", "0.5"])


@slide("PNG with alpha, half clear, with --slide-mpp")
def _(folder: Path) -> Made:
    image = scene()
    image[:, : WIDTH // 2] = 255
    Image.fromarray(with_fourth()).save(folder / "a.png")
    return Made([folder / "a.png"], image, args=["--slide-mpp", "0.5"])


@slide("JPEG of CMYK, with --slide-mpp")
def _(folder: Path) -> Made:
    ink, image = cmyk()
    Image.fromarray(ink, "CMYK").save(folder / "a.jpg", quality=95)
    return Made([folder / "a.jpg"], image, args=["--slide-mpp", "0.5"])


@slide("JPEG turned by EXIF, with --slide-mpp")
def _(folder: Path) -> Made:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(scene()).save(folder / "a.jpg", quality=95, exif=exif)
    return Made([folder / "a.jpg"], scene()[::-1, ::-1], args=["--slide-mpp", "0.5"])


@slide("PNG named .tif without µm/px", "refused")
def _(folder: Path) -> Path:
    Image.fromarray(scene()).save(folder / "a.tif", format="PNG")
    return folder / "a.tif"


@slide("name in capitals: SLIDE.TIF", "right")
def _(folder: Path) -> Path:
    return write(folder / "SLIDE.TIF", **TILED)


@slide("orientation 6 in strips")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", **PLAIN, extratags=[(274, 3, 1, 6, True)])], np.rot90(scene(), -1).copy())


@slide("orientation 2 in tiles")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", **TILED, extratags=[(274, 3, 1, 2, True)])], scene()[:, ::-1].copy())


@slide("one slide twice, by a link", "right")
def _(folder: Path) -> Made:
    path = write(folder / "a.tif", **TILED)
    (folder / "other").mkdir()
    (folder / "other" / "a.tif").symlink_to(path)
    return Made([path, folder / "other" / "a.tif"], said=("same slide",))


@slide("one slide twice, as a copy of another name")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", **TILED), write(folder / "b.tif", **TILED)], said=("same",))


@slide("--slide-mpp against a stated value", "right")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", **TILED)], mpp=0.25, args=["--slide-mpp", "0.25"], said=("0.25", "states"))


@slide("--slide-mpp of 0.25 by inch tag of 0.5, in strips")
def _(folder: Path) -> Made:
    path = write(folder / "a.tif", **PLAIN | {"resolution": (50800, 50800), "resolutionunit": "INCH"})
    return Made([path], mpp=0.25, args=["--slide-mpp", "0.25"], said=("states",))


@slide("tiles that the file leaves out, min-is-white", "right")
def _(folder: Path) -> Made:
    path = write(folder / "a.tif", 255 - grey_scene()[..., 0], **TILED | {"photometric": "miniswhite"})
    image = grey_scene()
    image[:BLOCK, :BLOCK] = 255
    return Made([without_first_tile(path)], image)


@slide("tiles that the file leaves out, RGB", "right")
def _(folder: Path) -> Made:
    image = scene()
    image[:BLOCK, :BLOCK] = 255
    return Made([without_first_tile(write(folder / "a.tif", **TILED))], image)


@slide("tiles that the file leaves out, planar 16 bits", "right")
def _(folder: Path) -> Made:
    planes_ = np.moveaxis(scene().astype(np.uint16) * 257, 2, 0)
    path = write(folder / "a.tif", planes_, **TILED | {"planarconfig": "separate"})
    image = scene()
    image[:BLOCK, :BLOCK, 0] = 255  # of the first plane alone
    return Made([without_first_tile(path)], image)


def _plain(
    name: str, file: str, image: Image.Image, right: np.ndarray, accept: str = "right refused", **options: Any
) -> None:
    @slide(f"plain image: {name}", accept)
    def _(folder: Path) -> Made:
        image.save(folder / file, **options)
        return Made([folder / file], right, args=["--slide-mpp", "0.5"], tolerance=12)


def _exif(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


RGB = Image.fromarray(scene())


INDEXED = RGB.quantize(32)


_plain("palette PNG with a clear colour", "a.png", INDEXED, scene(), transparency=INDEXED.getcolors()[-1][1] + 60)


_plain("grey PNG with alpha", "a.png", Image.fromarray(np.dstack([grey_scene()[..., 0], with_fourth()[..., 3]])),
       np.where(np.arange(WIDTH)[None, :, None] < WIDTH // 2, 255, grey_scene()).astype(np.uint8))  # fmt: skip


_plain("JPEG turned by a quarter by EXIF", "a.jpg", RGB, np.rot90(scene(), -1).copy(), exif=_exif(6), quality=95)


_plain("PNG turned by EXIF", "a.png", RGB, scene()[::-1, ::-1].copy(), exif=_exif(3))


_plain("grey JPEG", "a.jpg", Image.fromarray(grey_scene()[..., 0]), grey_scene(), quality=95)


_plain(
    "WebP of two frames", "a.webp", RGB, scene(), save_all=True, append_images=[Image.fromarray(scene(9))], quality=95
)


_plain("GIF named .png", "a.png", INDEXED, scene(), format="GIF")


_plain("PNG of one bit", "a.png", Image.fromarray(grey_scene()[..., 0] > 128), np.where(grey_scene() > 128, 255, 0))


@slide("plain image: PNG of 16-bit RGB")
def _(folder: Path) -> Made:
    import imagecodecs

    (folder / "a.png").write_bytes(imagecodecs.png_encode(scene().astype(np.uint16) * 257))
    return Made([folder / "a.png"], args=["--slide-mpp", "0.5"])


@slide("plain image: PNG of 12 bits in 16, grey")
def _(folder: Path) -> Made:
    Image.fromarray(grey_scene()[..., 0].astype(np.uint16) * 16).save(folder / "a.png")
    return Made([folder / "a.png"], grey_scene(), args=["--slide-mpp", "0.5"])


@slide("resolution without ResolutionUnit, which means inches", "right")
def _(folder: Path) -> Path:
    path = write(folder / "a.tif", **TILED | {"resolution": (50800, 50800), "resolutionunit": "INCH"})
    return renamed(path, 296)


@slide("resolution in millimetres (unit 4, not of TIFF)")
def _(folder: Path) -> Path:
    return write(folder / "a.tif", **TILED | {"resolution": (2000, 2000), "resolutionunit": "MILLIMETER"})


@slide("--slide-mpp beside slides.csv with mpp", "refused")
def _(folder: Path) -> Made:
    found = listed(folder, "slide,mpp\na,0.5\n")
    return Made(found.slides, args=[*found.args, "--slide-mpp", "0.25"])


@slide("SVS resized by another program, which kept MPP = 0.25 beside tags of 0.5")
def _(folder: Path) -> Made:
    path = aperio(folder / "a.svs", "AppMag = 40|MPP = 0.2500", **CENTIMETRE)
    return Made([path], mpp=0.25, tolerance=12, said=("0.5",))


@slide("a larger picture as a second page")
def _(folder: Path) -> Made:
    larger = np.pad(scene(9), ((0, 128), (0, 128), (0, 0)))
    return Made([pages(folder / "a.tif", (scene(), {}), (larger, {}))], larger, said=("2 images",))


@slide("another slide under the same path in a second call")
def _(folder: Path) -> Made:
    """The first call is made with what lies at the path of a link, which then leads to another slide."""
    path, other = write(folder / "a.tif", scene(9), **TILED), write(folder / "b.tif", **TILED)
    link = folder / "s.tif"
    link.symlink_to(path)
    return Made(
        [link],
        calls=[[str(link)]],
        between=lambda: (link.unlink(), link.symlink_to(other)),
        said=("s.tif",),
        judged="s-",
    )


@slide("slides.csv: patient changed between two calls", "right")
def _(folder: Path) -> Made:
    (folder / "first.csv").write_text("slide,patient\na,p0\n")
    made = listed(folder, "slide,patient\na,p1\n", patient="p1")
    made.calls = [[str(made.slides[0]), "--slides-csv", str(folder / "first.csv")]]
    return made


@slide("slides.csv: one row for two slides of one stem", "refused")
def _(folder: Path) -> Made:
    made = listed(folder, "slide,patient\na,p1\n")
    (folder / "p2").mkdir()
    made.slides.append(write(folder / "p2" / "a.tif", scene(9), **TILED))
    return made


# slides.csv


def listed(folder: Path, rows: str, **expected: Any) -> Made:
    (folder / "s.csv").write_bytes(rows.encode())
    path = write(folder / "a.tif", **TILED)
    return Made([path], args=["--slides-csv", str(folder / "s.csv")], **expected)


@slide("slides.csv: row of another slide alone")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient\nb,p1\n", said=("a.tif",))


@slide("slides.csv: an unknown row beside the right one", "right")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient\na,p1\nzz,p2\n", patient="p1", said=("zz",))


@slide("slides.csv: BOM, CRLF and semicolons")
def _(folder: Path) -> Made:
    return listed(folder, "\ufeffslide;patient\r\na;p1\r\n", patient="p1")


@slide("slides.csv: mpp with a decimal comma")
def _(folder: Path) -> Made:
    return listed(folder, 'slide,mpp\na,"0,25"\n', mpp=0.25)


@slide("slides.csv: mpp replaces the stated one", "right")
def _(folder: Path) -> Made:
    return listed(folder, "slide,mpp\na.tif,0.25\n", mpp=0.25, said=("states",))


@slide("slides.csv: a row of the name in other case")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient\nA,p1\n", said=("a.tif",))


@slide("slides.csv: one slide in two rows", "refused")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient\na,p1\na.tif,p2\n")


@slide("slides.csv: columns of other case")
def _(folder: Path) -> Made:
    return listed(folder, "Slide,Patient\na,p1\n", patient="p1")


@slide("slides.csv: patient column of spaces around")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient\n a , p1 \n", patient="p1")


@slide("slides.csv: mpp in nm")
def _(folder: Path) -> Made:
    return listed(folder, "slide,mpp\na,500\n", mpp=0.5)


@slide("slides.csv: mpp of 0", "refused")
def _(folder: Path) -> Made:
    return listed(folder, "slide,mpp\na,0\n")


@slide("slides.csv: two rows that differ in spaces alone", "refused")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient\na,p1\n a,p2\n")


@slide("slides.csv: a column twice", "refused")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient,patient\na,p1,p2\n")


@slide("slides.csv: a row with a comma too many")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient\na,p1,p2\n", patient="p1")


@slide("slides.csv: a row with a field too few")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient,mpp\na,p1\n", patient="p1")


@slide("slides.csv: patient of spaces alone")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient\na,  \n", patient="a", said=("a.tif",))


@slide("slides.csv: path with back slashes")
def _(folder: Path) -> Made:
    return listed(folder, "slide,patient\nC:\\slides\\a.tif,p1\n", said=("a.tif",))


@slide("slides.csv: column case_id in place of patient", "refused")
def _(folder: Path) -> Made:
    return listed(folder, "slide,case_id\na,p1\n")


@slide("slides.csv: label in German", "refused")
def _(folder: Path) -> Made:
    return listed(folder, "slide,label\na,Tumorgewebe\n")


@slide("--group that finds nothing in the name", "refused")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", **TILED)], args=["--group", r"patient_\d+"])
