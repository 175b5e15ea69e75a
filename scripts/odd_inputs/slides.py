"""Odd slides: kinds of pixels, pages and scales. What is right is computed here, without gan_uad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from odd_inputs.slide_frame import HEIGHT, PLAIN, TILED, WIDTH, Made, grey_scene, scene, slide
from odd_inputs.slide_makers import (
    COARSE,
    aperio,
    cmyk,
    pages,
    planes,
    with_fourth,
    write,
    ycbcr,
)
from PIL import Image

# Kinds of pixels


@slide("palette of 256 colours, 16-bit map")
def _(folder: Path) -> Made:
    blocks, index = np.unique(scene().reshape(-1, 3), axis=0, return_inverse=True)
    table = np.zeros((3, 256), np.uint16)
    table[:, : len(blocks)] = blocks.T.astype(np.uint16) * 257
    options = {**TILED, "photometric": "palette", "colormap": table}
    return Made([write(folder / "a.tif", index.reshape(HEIGHT, WIDTH).astype(np.uint8), **options)])


@slide("palette of 16 bits per index")
def _(folder: Path) -> Made:
    blocks, index = np.unique(scene().reshape(-1, 3), axis=0, return_inverse=True)
    table = np.zeros((3, 65536), np.uint16)
    table[:, : len(blocks)] = blocks.T.astype(np.uint16) * 257
    options = {**PLAIN, "photometric": "palette", "colormap": table}
    return Made([write(folder / "a.tif", index.reshape(HEIGHT, WIDTH).astype(np.uint16), **options)])


@slide("min-is-white, tiled", "right")
def _(folder: Path) -> Made:
    image = 255 - grey_scene()[..., 0]
    return Made([write(folder / "a.tif", image, **TILED | {"photometric": "miniswhite"})], grey_scene())


@slide("min-is-white of 16 bits in strips")
def _(folder: Path) -> Made:
    image = (255 - grey_scene()[..., 0]).astype(np.uint16) * 257
    return Made([write(folder / "a.tif", image, **PLAIN | {"photometric": "miniswhite"})], grey_scene())


@slide("one bit per pixel")
def _(folder: Path) -> Made:
    grey = np.where(grey_scene() > 128, 255, 0).astype(np.uint8)
    return Made([write(folder / "a.tif", grey[..., 0] > 0, **PLAIN | {"photometric": "minisblack"})], grey)


@slide("CMYK with a black channel, deflate")
def _(folder: Path) -> Made:
    ink, image = cmyk()
    return Made([write(folder / "a.tif", ink, **TILED | {"photometric": "separated"})], image)


@slide("CMYK in JPEG")
def _(folder: Path) -> Made:
    ink, image = cmyk()
    return Made([write(folder / "a.tif", ink, **TILED | {"photometric": "separated", "compression": "jpeg"})], image)


@slide("YCbCr without subsampling, deflate in tiles")
def _(folder: Path) -> Made:
    tags = [(530, 3, 2, (1, 1), True), (532, 5, 6, (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1), True)]
    return Made([write(folder / "a.tif", ycbcr(), **TILED | {"photometric": "ycbcr", "extratags": tags})])


@slide("YCbCr that states no subsampling, LZW")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", ycbcr(), **TILED | {"photometric": "ycbcr", "compression": "lzw"})])


@slide("JPEG in strips", "right")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", **PLAIN | {"compression": "jpeg", "rowsperstrip": 64})], tolerance=12)


@slide("JPEG in tiles, subsampled YCbCr", "right")
def _(folder: Path) -> Made:
    return Made(
        [write(folder / "a.tif", **TILED | {"photometric": "rgb", "compression": "jpeg", "subsampling": (2, 2)})]
    )


@slide("JPEG in tiles, stored as RGB")
def _(folder: Path) -> Made:
    options = TILED | {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}
    return Made([write(folder / "a.tif", **options)])


@slide("JPEG 2000 in tiles")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", **TILED | {"compression": "jpeg2000"})])


@slide("WebP in tiles")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", **TILED | {"compression": "webp"})])


@slide("LZW with a predictor, big-endian, in strips", "right")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", **PLAIN | {"compression": "lzw", "predictor": True, "byteorder": ">"})])


@slide("CIE L*a*b*")
def _(folder: Path) -> Made:
    lab = np.asarray(Image.fromarray(scene()).convert("LAB"))
    return Made([write(folder / "a.tif", lab, **TILED | {"photometric": "cielab"})])


@slide("ICC L*a*b*, tag changed after writing")
def _(folder: Path) -> Made:
    lab = np.asarray(Image.fromarray(scene()).convert("LAB"))
    path = write(folder / "a.tif", lab, **TILED)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages.first.tags["PhotometricInterpretation"].overwrite(9)
    return Made([path])


# Further samples, planes and bits


@slide("fourth sample of no stated meaning, zero")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", with_fourth(0), **TILED | {"extrasamples": ["unspecified"]})])


@slide("alpha unassociated, half of the slide clear")
def _(folder: Path) -> Made:
    image = scene()
    image[:, : WIDTH // 2] = 255
    return Made([write(folder / "a.tif", with_fourth(), **TILED | {"extrasamples": ["unassalpha"]})], image)


@slide("alpha associated, of one half")
def _(folder: Path) -> Made:
    image = with_fourth(128)
    image[..., :3] = (image[..., :3].astype(float) * 128 / 255 + 0.5).astype(np.uint8)
    right = (image[..., :3].astype(int) + 127).clip(0, 255).astype(np.uint8)
    return Made([write(folder / "a.tif", image, **TILED | {"extrasamples": ["assocalpha"]})], right)


@slide("alpha unassociated, of one half, in strips")
def _(folder: Path) -> Made:
    right = (scene().astype(float) * 128 / 255 + 127.5).astype(np.uint8)
    return Made([write(folder / "a.tif", with_fourth(128), **PLAIN | {"extrasamples": ["unassalpha"]})], right)


@slide("grey with alpha, half of the slide clear")
def _(folder: Path) -> Made:
    image = grey_scene()
    found = np.concatenate([image[..., :1], with_fourth()[..., 3:]], axis=2)
    image[:, : WIDTH // 2] = 255
    options = TILED | {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"}
    return Made([write(folder / "a.tif", found, **options)], image)


@slide("planar, in tiles", "right")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", np.moveaxis(scene(), 2, 0), **TILED | {"planarconfig": "separate"})])


@slide("planar with alpha in strips")
def _(folder: Path) -> Made:
    image = scene()
    image[:, : WIDTH // 2] = 255
    options = PLAIN | {"planarconfig": "separate", "extrasamples": ["unassalpha"]}
    return Made([write(folder / "a.tif", np.moveaxis(with_fourth(), 2, 0), **options)], image)


@slide("16 bits, all of the range", "right")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", scene().astype(np.uint16) * 257, **TILED)])


@slide("12 bits in 16 without a word", "refused")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", scene().astype(np.uint16) * 16, **TILED)])


@slide("32-bit unsigned")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", scene().astype(np.uint32) << 24, **PLAIN)])


@slide("float from 0 to 1")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", (scene() / 255).astype(np.float32), **TILED)])


@slide("signed 16 bits")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", scene().astype(np.int16), **PLAIN)])


@slide("signed 8 bits, tiled")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", (scene() // 2).astype(np.int8), **TILED)], scene() // 2)


# Pages and scales


@slide("tiled pyramid of odd sizes", "right")
def _(folder: Path) -> Made:
    levels = [(scene()[:: 2**k, :: 2**k][: HEIGHT // 2**k - k, : WIDTH // 2**k - k], k) for k in range(4)]
    path = pages(folder / "a.tif", *((image, {"subfiletype": int(k > 0)}) for image, k in levels))
    return Made([path], args=COARSE)


@slide("pyramid, coarsest page first")
def _(folder: Path) -> Path:
    coarse = {"resolution": (10000, 10000), "subfiletype": 1}
    return pages(folder / "a.tif", (scene()[::2, ::2], coarse), (scene(), {}))


@slide("thumbnail of another aspect, flagged as a reduced image, tiled")
def _(folder: Path) -> Made:
    return Made([pages(folder / "a.tif", (scene(), {}), (scene(9)[:100, ::2], {"subfiletype": 1}))], args=COARSE)


@slide("thumbnail of another aspect, flagged as a reduced image, in strips")
def _(folder: Path) -> Made:
    path = folder / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(scene(), **PLAIN)
        tiff.write(scene(9)[:100, ::2], **PLAIN, subfiletype=1)
    return Made([path], args=COARSE)


@slide("slide enlarged to tiles of 2 µm/px from one of 0.5 without levels", "right")
def _(folder: Path) -> Made:
    return Made([write(folder / "a.tif", **PLAIN)], args=COARSE)


@slide("label of like aspect at half size, not flagged")
def _(folder: Path) -> Path:
    return pages(folder / "a.tif", (scene(), {}), (scene(9)[::2, ::2], {}))


@slide("transparency mask as a second page of equal size")
def _(folder: Path) -> Path:
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    path = pages(folder / "a.tif", (scene(), {}), (mask, {"subfiletype": 2, "photometric": "minisblack"}))
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[1].tags["NewSubfileType"].overwrite(4)
        tiff.pages[1].tags["PhotometricInterpretation"].overwrite(4)
    return path


@slide("two pages of one size and other pictures")
def _(folder: Path) -> Made:
    return Made([pages(folder / "a.tif", (scene(), {}), (scene(9), {}))], said=("2",))


@slide("two pages of one size, in strips")
def _(folder: Path) -> Made:
    path = folder / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(scene(), **PLAIN)
        tiff.write(scene(9), **PLAIN)
    return Made([path], said=("2",))


@slide("three grey pages of one size")
def _(folder: Path) -> Made:
    grey = {"photometric": "minisblack"}
    path = pages(folder / "a.tif", *((plane, grey) for plane in planes(0, 1, 2)))
    return Made([path], grey_scene(), said=("3",))


@slide("resolution without a unit, tiled", "refused")
def _(folder: Path) -> Path:
    return write(folder / "a.tif", **TILED | {"resolutionunit": "NONE"})


@slide("resolution in inches", "right")
def _(folder: Path) -> Path:
    return write(folder / "a.tif", **TILED | {"resolution": (50800, 50800), "resolutionunit": "INCH"})


@slide("resolution 72 dpi, tiled", "refused")
def _(folder: Path) -> Path:
    return write(folder / "a.tif", **TILED | {"resolution": (72, 72), "resolutionunit": "INCH"})


@slide("resolution along x alone is usable", "refused")
def _(folder: Path) -> Path:
    return write(folder / "a.tif", **TILED | {"resolution": (20000, 0)})


@slide("resolution 0.5 by 0.25 µm, tiled", "refused")
def _(folder: Path) -> Path:
    return write(folder / "a.tif", **TILED | {"resolution": (20000, 40000)})


@slide("ImageJ's TIFF in microns")
def _(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", scene(), imagej=True, resolution=(2, 2), metadata={"unit": "um", "axes": "YXS"})
    return folder / "a.tif"


@slide("ImageJ's composite of three channels")
def _(folder: Path) -> Path:
    metadata = {"unit": "um", "axes": "CYX", "mode": "composite"}
    tifffile.imwrite(folder / "a.tif", planes(0, 1, 2), imagej=True, resolution=(20000, 20000), metadata=metadata)
    return folder / "a.tif"


@slide("SVS that states MPP", "right")
def _(folder: Path) -> Made:
    return Made([aperio(folder / "a.svs", "AppMag = 20|MPP = 0.5000")], tolerance=12)


@slide("SVS of 20x without MPP", "refused")
def _(folder: Path) -> Path:
    return aperio(folder / "a.svs", "AppMag = 20")


@slide("SVS with a decimal comma in MPP")
def _(folder: Path) -> Made:
    return Made([aperio(folder / "a.svs", "AppMag = 20|MPP = 0,5000")], tolerance=12)


@slide("SVS with MPP of 0")
def _(folder: Path) -> Path:
    return aperio(folder / "a.svs", "AppMag = 20|MPP = 0")
