"""Patches in TIFF and 16-bit PNG: what a sample means, read right or refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from patch_tools import refused
from PIL import Image

from gan_uad.data.images import BadImage, decode, decode_mask

Array = NDArray[Any]
IMAGE = (np.array([200, 120, 170]) + np.random.default_rng(0).integers(-20, 21, (24, 32, 3))).astype(np.uint8)
GREY = np.asarray(Image.fromarray(IMAGE).convert("L"))
GREY3 = np.repeat(GREY[..., None], 3, 2)
WIDE = IMAGE.astype(np.uint16) * 257


def tiff(stored: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, stored, metadata=None, **options)
    return file.getvalue()


def png_of_16_bits(image: Array) -> bytes:
    """An RGB PNG of 16 bits, which Pillow cannot write."""
    height, width, _ = image.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def without_extra_samples(content: bytes) -> bytes:
    """The tag is renamed to a private one, as where a writer does not know it."""
    at = content.index(struct.pack("<HH", 338, 3))
    return content[:at] + struct.pack("<H", 60000) + content[at + 2 :]


def eight_bit_palette() -> tuple[bytes, Array]:
    quantized = Image.fromarray(IMAGE).quantize(64)
    colours = np.zeros((256, 3), np.uint16)
    colours[:64] = np.array(quantized.getpalette()[: 64 * 3]).reshape(64, 3)
    return tiff(np.asarray(quantized), photometric="palette", colormap=colours.T), np.asarray(quantized.convert("RGB"))


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (tiff(255 - GREY, photometric="miniswhite"), GREY3),
        (tiff((255 - GREY).astype(np.uint16) * 257, photometric="miniswhite"), GREY3),
        (tiff(WIDE, photometric="rgb"), IMAGE),
        (tiff(np.moveaxis(IMAGE, 2, 0), photometric="rgb", planarconfig="separate"), IMAGE),
        (tiff(np.dstack([IMAGE, 0 * GREY]), photometric="rgb", extrasamples=["unspecified"]), IMAGE),
        (without_extra_samples(tiff(np.dstack([IMAGE, 0 * GREY]), photometric="rgb", extrasamples=["unspecified"])), IMAGE),
        (tiff(np.asarray(Image.fromarray(IMAGE).convert("CMYK")), photometric="separated", extrasamples=[]), IMAGE),
        eight_bit_palette(),
        (png_of_16_bits(WIDE), IMAGE),
    ],
    ids=[
        "white is zero", "of 16 bits", "rgb of 16 bits", "planes", "fourth sample", "without ExtraSamples", "cmyk",
        "palette of 8-bit colours", "png of 16 bits",
    ],
)  # fmt: skip
def test_colours_are_what_the_file_says(content: bytes, shown: Array) -> None:
    assert np.abs(decode(content, "x").astype(int) - shown).max() <= 1


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (tiff(GREY.astype(np.uint16) * 16, photometric="minisblack"), "bits"),
        (tiff(IMAGE.astype(np.uint16) * 16, photometric="rgb"), "bits"),
        (tiff(IMAGE.astype(np.uint16) * 4, photometric="rgb", compression="zlib"), "bits"),
        (png_of_16_bits(IMAGE.astype(np.uint16) * 16), "bits"),
        (tiff((GREY // 2).astype(np.int8), photometric="minisblack"), "signed"),
        (tiff(GREY.astype(np.int16), photometric="minisblack"), "'I'"),
        (tiff(GREY.astype(np.float32), photometric="minisblack"), "'F'"),
        (tiff(np.dstack([GREY, GREY]), photometric="minisblack", extrasamples=["unspecified"]), "two channels"),
        (tiff(IMAGE, photometric="cielab"), "LAB"),
        (tiff(IMAGE, photometric="minisblack", planarconfig="contig"), "image"),
        (tiff(np.moveaxis(IMAGE, 2, 0), photometric="minisblack"), "3 pages"),
    ],
    ids=[
        "12 bits, grey", "12 bits", "10 bits", "12 bits, png", "signed", "signed, 16 bits", "float", "two", "lab", "three channels",
        "three pages",
    ],
)  # fmt: skip
def test_what_is_no_colour_is_skipped_with_a_reason(content: bytes, word: str) -> None:
    with refused("p7.tif", word, error=BadImage):
        decode(content, "p7.tif")


def test_black_is_black_in_every_depth() -> None:
    for content in (tiff(WIDE * 0, photometric="rgb"), tiff(GREY.astype(np.uint16) * 0), png_of_16_bits(WIDE * 0)):
        assert not decode(content, "x").any()


def test_a_mask_of_16_bits_where_white_is_zero() -> None:
    marked = np.zeros((24, 32), bool)
    marked[3:9, 4:20] = True
    stored = np.where(marked, 0, 65535).astype(np.uint16)
    np.testing.assert_array_equal(decode_mask(tiff(stored, photometric="miniswhite"), "m"), marked)
    np.testing.assert_array_equal(decode_mask(tiff(65535 - stored, photometric="minisblack"), "m"), marked)
