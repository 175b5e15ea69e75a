"""Odd images of a patch set: pixel types, alpha, orientation, several pages, what is no image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from odd_inputs.patch_frame import PINK, VIOLET, Want, encoded, one, patches, tissue
from PIL import Image


@patches("PNG of 16-bit grey", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.png", encoded(Image.fromarray(np.full((32, 32), 120 * 257, np.uint16)), "PNG"), (120,) * 3)


@patches("PNG palette with transparency", "right")
def _(folder: Path) -> Want:
    image = Image.fromarray(np.full((32, 32), 1, np.uint8), "P")
    image.putpalette([0, 0, 0, 200, 40, 90])
    return one(folder, "odd.png", encoded(image, "PNG", transparency=0), (200, 40, 90))


@patches("PNG whose half is transparent: on white", "right")
def _(folder: Path) -> Want:
    image = np.full((32, 32, 4), (100, 50, 150, 255), np.uint8)
    image[:16, :, 3] = 0
    want = one(folder, "odd.png", encoded(Image.fromarray(image), "PNG"), (178, 152, 202))
    want.top = (255, 255, 255)
    return want


@patches("PNG of grey with alpha", "right")
def _(folder: Path) -> Want:
    image = np.dstack([np.full((32, 32), 90, np.uint8), np.full((32, 32), 255, np.uint8)])
    return one(folder, "odd.png", encoded(Image.fromarray(image, "LA"), "PNG"), (90,) * 3)


@patches("PNG of one bit", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.png", encoded(Image.new("1", (32, 32), 1), "PNG"), (255,) * 3)


@patches("JPEG of CMYK")
def _(folder: Path) -> Want:
    return one(folder, "odd.jpg", encoded(Image.new("RGB", (32, 32), PINK).convert("CMYK"), "JPEG", quality=95), PINK)


@patches("JPEG that lies on its side by EXIF", "right")
def _(folder: Path) -> Want:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.full((64, 32, 3), PINK, np.uint8)
    image[:, :8] = VIOLET  # turned by 6 (a quarter clockwise), the left edge is the upper one
    want = one(folder, "odd.jpg", encoded(Image.fromarray(image), "JPEG", exif=exif, quality=95), (192, 122, 180))
    want.said, want.top = ("not square",), VIOLET
    return want


@patches("JPEG named .png", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.png", encoded(Image.new("RGB", (32, 32), PINK), "JPEG", quality=95), PINK)


@patches("animated WebP")
def _(folder: Path) -> Want:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (PINK, VIOLET)]
    return one(
        folder, "odd.webp", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), PINK
    )


@patches("TIFF of two pages")
def _(folder: Path) -> Want:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (PINK, VIOLET)]
    return one(folder, "odd.tif", encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), PINK)


@patches("TIFF of white-is-zero grey", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32), 155, np.uint8), (100,) * 3, photometric="miniswhite")


@patches("TIFF of 16-bit white-is-zero grey", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32), 155 * 257, np.uint16), (100,) * 3, photometric="miniswhite")


@patches("TIFF of 16-bit RGB")
def _(folder: Path) -> Want:
    image = np.full((32, 32, 3), np.array(PINK) * 257, np.uint16)
    return one(folder, "odd.tif", image, PINK, photometric="rgb")


@patches("TIFF of 12 bits in 16")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32), 1930, np.uint16), (120,) * 3, photometric="minisblack")


@patches("TIFF of float grey from 0 to 1", "refused")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32), 0.5, np.float32), (128,) * 3, photometric="minisblack")


@patches("TIFF of signed bytes", "refused")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32), 60, np.int8), (188,) * 3, photometric="minisblack")


@patches("TIFF of five channels", "refused")
def _(folder: Path) -> Want:
    return one(
        folder,
        "odd.tif",
        np.full((5, 32, 32), 60, np.uint8),
        (60,) * 3,
        photometric="minisblack",
        planarconfig="separate",
    )


@patches("TIFF of CIELAB")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32, 3), (128, 0, 0), np.uint8), (119,) * 3, photometric="cielab")


@patches("image of no bytes", "refused")
def _(folder: Path) -> Want:
    return one(folder, "odd.png", b"", PINK)


@patches("truncated JPEG", "refused")
def _(folder: Path) -> Want:
    return one(folder, "odd.jpg", encoded(Image.fromarray(tissue(side=256)), "JPEG")[:900], PINK)


@patches("text named .png", "refused")
def _(folder: Path) -> Want:
    return one(folder, "odd.png", b"<html>not found</html>", PINK)


@patches("image of 1 px")
def _(folder: Path) -> Want:
    want = one(folder, "odd.png", encoded(Image.new("RGB", (1, 1), PINK), "PNG"), PINK)
    want.said = ("enlarged",)
    return want


@patches("progressive JPEG", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.jpg", encoded(Image.new("RGB", (32, 32), PINK), "JPEG", quality=95, progressive=True), PINK)
