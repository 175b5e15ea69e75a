"""What a pixel of a slide is, and where it is: colours, bits and channels of TIFF, and µm/px and bounds, right or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from gan_uad.errors import UserError
from gan_uad.slides import ome
from gan_uad.slides.reader import Slide, open_slide

Array = NDArray[Any]
PER_CM = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}  # 0.5 µm/px
STRIPED = {"rowsperstrip": 20, "compression": "zlib", "metadata": None} | PER_CM
TILED = {"tile": (64, 64), "compression": "zlib", "metadata": None} | PER_CM
HEIGHT, WIDTH = 90, 150


def tissue(height: int = HEIGHT, width: int = WIDTH) -> Array:
    """Glass, and pink with noise; uint8 [height, width, 3]."""
    image = np.full((height, width, 3), 235, np.uint8)
    image[20:, 30:] = np.array([190, 90, 160]) + np.random.default_rng(0).integers(
        -30, 31, (height - 20, width - 30, 3)
    )
    return image


IMAGE = tissue()
PICTURE = Image.fromarray(IMAGE)
GREY = np.asarray(PICTURE.convert("L"))


def write(path: Path, stored: Array, **options: Any) -> Path:
    tifffile.imwrite(path, stored, **STRIPED | options)
    return path


def whole(slide: Slide) -> Array:
    return slide.read(0, 0, WIDTH, HEIGHT, 0.5).astype(int)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_slide(path, 0.5).read(0, 0, 40, 40, 0.5)
    assert path.name in caught.value.message
    assert "\n" not in caught.value.message
    assert "damaged" not in caught.value.message
    return caught.value.message


def thumbnail_as_level(path: Path, is_ome: bool) -> Path:
    """A slide with a right level of half size and a flagged picture of another aspect at a third of the width."""
    options: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
    first = {"metadata": {"axes": "YXS"}, "subifds": 2} if is_ome else {"metadata": None}
    with tifffile.TiffWriter(path, ome=is_ome) as tiff:
        tiff.write(IMAGE, **options, **PER_CM, **first)
        tiff.write(IMAGE[::2, ::2], **options, subfiletype=1, metadata=None)
        tiff.write(np.zeros((60, 50, 3), np.uint8), **options, subfiletype=1, metadata=None)
    return path


@pytest.mark.parametrize(("tags", "right"), [(20000, 0.5), (40000, None), (20400, 0.5), (28.3, 0.5)])
def test_a_scanner_s_scale_that_the_resolution_tags_contradict_is_refused(
    tmp_path: Path, tags: float, right: float | None
) -> None:
    """As of an SVS that another program resized: it keeps the description, and writes tags of its own."""
    path, options = tmp_path / "a.svs", TILED | {"resolution": (tags, tags), "compression": "jpeg"}
    tifffile.imwrite(path, IMAGE, description="Aperio Image Library v1\r\n150x90|AppMag = 20|MPP = 0.5", **options)
    if right is None:
        with pytest.raises(UserError, match=r"a\.svs .*0\.5 .*0\.25 .*--slide-mpp"):
            open_slide(path)
        told = open_slide(path, 0.25)
        assert told.mpp == 0.25
        assert "0.5 µm/px" in told.notes[0]
    else:
        assert open_slide(path).mpp == right


@pytest.mark.parametrize("is_ome", [True, False])
def test_a_level_of_another_aspect_is_not_read(tmp_path: Path, is_ome: bool) -> None:
    with open_slide(thumbnail_as_level(tmp_path / "a.tif", is_ome), 0.5) as slide:
        assert slide.levels[0] == 1
        assert all(abs(level - 2) < 0.01 for level in slide.levels[1:])
        assert slide.read(0, 0, 50, 30, 1.5).min() > 30  # the thumbnail is black


# Colours


def indexed() -> tuple[Array, Array]:
    quantized = PICTURE.quantize(200)
    colours = np.zeros((256, 3), np.uint16)
    found = np.array(quantized.getpalette(), np.uint16).reshape(-1, 3)
    colours[: len(found)] = found
    return np.asarray(quantized), colours


def ycbcr(image: Array, weights: tuple[float, float, float] = (0.299, 0.587, 0.114)) -> Array:
    """By the definition of TIFF 6.0, section 21, full range."""
    red, green, blue = np.moveaxis(image.astype(float), 2, 0)
    y = weights[0] * red + weights[1] * green + weights[2] * blue
    parts = [y, (blue - y) / (2 - 2 * weights[2]) + 128, (red - y) / (2 - 2 * weights[0]) + 128]
    return np.stack(parts, 2).round().astype(np.uint8)


def rational(*values: float) -> tuple[int, ...]:
    return tuple(part for value in values for part in (round(value * 10000), 10000))


INDEX, COLOURS = indexed()
MARKED = np.where(np.arange(WIDTH)[None, :, None] < 60, 128, 255) * np.ones((HEIGHT, 1, 1))  # alpha
OVER_WHITE = IMAGE * (MARKED / 255) + 255 - MARKED
GREY3 = np.repeat(GREY[..., None], 3, 2)
BT709 = (0.2126, 0.7152, 0.0722)
# name: samples, options, what is shown, tolerance
KINDS: dict[str, tuple[Array, dict[str, Any], Array, int]] = {
    "white is zero": (255 - GREY, {"photometric": "miniswhite"}, GREY3, 0),
    "white is zero, 16 bits": ((255 - GREY).astype(np.uint16) * 257, {"photometric": "miniswhite"}, GREY3, 0),
    "palette": (INDEX, {"photometric": "palette", "colormap": COLOURS.T * 257}, COLOURS[INDEX], 0),
    "palette of 8-bit colours": (INDEX, {"photometric": "palette", "colormap": COLOURS.T}, COLOURS[INDEX], 0),
    "cmyk": (np.asarray(PICTURE.convert("CMYK")), {"photometric": "separated", "extrasamples": []}, IMAGE, 1),
    "ycbcr": (ycbcr(IMAGE), {"photometric": "ycbcr", "subsampling": (1, 1)}, IMAGE, 2),
    "ycbcr of BT.709": (
        ycbcr(IMAGE, BT709),
        {"photometric": "ycbcr", "subsampling": (1, 1), "extratags": [(529, 5, 3, rational(*BT709), True)]}, IMAGE, 2,
    ),
    "unspecified": (np.dstack([IMAGE, 0 * GREY]), {"photometric": "rgb", "extrasamples": ["unspecified"]}, IMAGE, 0),
    "unassociated": (
        np.dstack([IMAGE, MARKED]).astype(np.uint8), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, OVER_WHITE, 1,
    ),
    "associated": (
        np.dstack([IMAGE * (MARKED / 255), MARKED]).round().astype(np.uint8),
        {"photometric": "rgb", "extrasamples": ["assocalpha"]}, OVER_WHITE, 1,
    ),
    "grey and alpha": (
        np.dstack([GREY, MARKED[..., 0]]).astype(np.uint8), {"photometric": "minisblack", "extrasamples": ["unassalpha"]},
        GREY3 * (MARKED / 255) + 255 - MARKED, 1,
    ),
    "planes and alpha": (
        np.moveaxis(np.dstack([IMAGE, MARKED]), 2, 0).astype(np.uint8),
        {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unassalpha"]}, OVER_WHITE, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_colours_are_what_the_file_says(tmp_path: Path, name: str, tiled: bool) -> None:
    """Striped ones are read by tifffile, most tiled ones by OpenSlide: both alike."""
    stored, options, shown, tolerance = KINDS[name]
    if tiled:
        options = {"rowsperstrip": None, "tile": (64, 64)} | options
    slide = open_slide(write(tmp_path / "a.tif", stored, **options))
    assert slide.mpp == 0.5
    assert np.abs(whole(slide) - shown).max() <= tolerance + 0.5


def test_what_was_repeated_or_left_out_is_noted(tmp_path: Path) -> None:
    for name, word in [("white is zero", "grey"), ("unspecified", "fourth sample"), ("associated", "")]:
        stored, options, _, _ = KINDS[name]
        notes = open_slide(write(tmp_path / "a.tif", stored, **options)).notes
        assert [word in note for note in notes] == ([True] if word else [])
    grey = write(tmp_path / "tiled.tif", GREY, photometric="minisblack", rowsperstrip=None, tile=(64, 64))
    assert "grey" in open_slide(grey).notes[0]
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert "grey" in open_slide(tmp_path / "a.png", 0.5).notes[0]


def test_what_is_left_out_of_a_file_is_white_in_every_kind_of_colour(tmp_path: Path) -> None:
    for name in ("white is zero, 16 bits", "palette", "cmyk", "ycbcr", "unspecified"):
        stored, options, shown, tolerance = KINDS[name]
        stored = stored if stored.ndim == 3 else stored[..., None]
        tiles = [np.zeros((64, 64, stored.shape[2]), stored.dtype) for _ in range(6)]
        for tile, (y, x) in zip(tiles, [(y, x) for y in (0, 64) for x in (0, 64, 128)], strict=True):
            part = stored[y : y + 64, x : x + 64]
            tile[: part.shape[0], : part.shape[1]] = part
        missing: list[Any] = [*tiles[:4], None, tiles[5]]
        shape = stored.shape if stored.shape[2] > 1 else stored.shape[:2]
        with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:  # OME: never read by OpenSlide
            tiff.write(iter(missing), shape=shape, dtype=stored.dtype, **{**TILED, "metadata": {}} | options)
        found = whole(open_slide(tmp_path / "a.ome.tif", 0.5))
        wanted = shown.astype(float).copy()
        wanted[64:, 64:128] = 255 if name != "palette" else COLOURS.max(0)
        assert np.abs(found - wanted).max() <= tolerance + 0.5, name


REFUSED: dict[str, tuple[Array, dict[str, Any], str]] = {
    "CIELab": (IMAGE, {"photometric": "cielab"}, "CIELAB"),
    "ICCLab": (IMAGE, {"photometric": "icclab"}, "ICCLAB"),
    "signed": (IMAGE.astype(np.int16), {"photometric": "rgb"}, "signed"),
    "float": ((IMAGE / 255).astype(np.float32), {"photometric": "rgb"}, "floating"),
    "32 bits": (IMAGE.astype(np.uint32), {"photometric": "rgb"}, "32 bits"),
    "bilevel": (GREY > 128, {"photometric": "minisblack"}, "1 bits"),
    "six samples": (np.dstack([IMAGE, IMAGE]), {"photometric": "rgb", "extrasamples": ["unspecified"] * 3}, "3 samples"),
    "CMYK of 16 bits": (
        np.asarray(PICTURE.convert("CMYK")).astype(np.uint16) * 257, {"photometric": "separated", "extrasamples": []}, "16 bits",
    ),
    "other inks": (
        np.asarray(PICTURE.convert("CMYK")),
        {"photometric": "separated", "extrasamples": [], "extratags": [(332, 3, 1, 2, True)]}, "SEPARATED",
    ),
    "two channels": (np.dstack([GREY, GREY]), {"photometric": "minisblack", "planarconfig": "contig"}, "2 channels"),
    "four channels": (np.stack([GREY] * 4), {"photometric": "minisblack", "planarconfig": "separate"}, "4 channels"),
    "12 bits": (IMAGE.astype(np.uint16) * 16, {"photometric": "rgb"}, "12 bits"),
    "10 bits, grey": (GREY.astype(np.uint16) * 4, {"photometric": "minisblack"}, "10 bits"),
    "turned": (IMAGE, {"photometric": "rgb", "extratags": [(274, 3, 1, 6, True)]}, "Orientation 6"),
    "mirrored": (GREY, {"photometric": "minisblack", "extratags": [(274, 3, 1, 2, True)]}, "Orientation 2"),
    "unknown compression": (IMAGE, {"photometric": "rgb"}, "65111"),
}  # fmt: skip


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_colour_is_refused_in_one_line(tmp_path: Path, name: str, tiled: bool) -> None:
    stored, options, word = REFUSED[name]
    path = write(tmp_path / "a.tif", stored, **({"rowsperstrip": None, "tile": (64, 64)} if tiled else {}) | options)
    if name == "unknown compression":
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tiff.pages.first.tags["Compression"].overwrite(65111)
    assert word in refusal(path)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("compression", ["jpeg2000", "webp", "zstd"])
def test_compressions_that_openslide_does_not_know_are_read(tmp_path: Path, compression: str, tiled: bool) -> None:
    pytest.importorskip("imagecodecs")
    options = {"rowsperstrip": None, "tile": (64, 64)} if tiled else {}
    path = write(tmp_path / "a.tif", IMAGE, photometric="rgb", compression=compression, **options)
    np.testing.assert_array_equal(whole(open_slide(path)), IMAGE)


def test_sixteen_bits_in_tiles_keep_their_pyramid_and_values(tmp_path: Path) -> None:
    """OpenSlide's grey of 16 bits would be right too, but 12 bits of them would be black."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for k, level in enumerate([IMAGE, IMAGE[::2, ::2]]):
            scale = {} if k else PER_CM
            tiff.write(
                level.astype(np.uint16) * 257 + 100,
                photometric="rgb",
                tile=(64, 64),
                subfiletype=k,
                metadata=None,
                **scale,
            )
    slide = open_slide(tmp_path / "a.tif")
    assert slide.levels == [1.0, 2.0]
    np.testing.assert_array_equal(whole(slide), IMAGE)


def test_significant_bits_are_used_where_stated(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    for bits in (10, 12, 14):
        stored = ((IMAGE.astype(np.uint32) * (2**bits - 1) + 127) // 255).astype(np.uint16)
        metadata = {"axes": "YXS", "SignificantBits": bits, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        tifffile.imwrite(path, stored, photometric="rgb", metadata=metadata)
        assert np.abs(whole(open_slide(path)) - IMAGE).max() <= 1
    metadata["SignificantBits"] = 16  # as Bio-Formats states of every camera
    tifffile.imwrite(path, IMAGE.astype(np.uint16) * 16, photometric="rgb", metadata=metadata)
    assert "12 bits" in refusal(path)
    metadata["SignificantBits"] = 10
    tifffile.imwrite(path, IMAGE.astype(np.uint16) * 16, photometric="rgb", metadata=metadata)
    assert "above 1023" in refusal(path)


# Channels


def planes(path: Path, count: int, **channel: Any) -> Path:
    """An OME-TIFF with a page per channel."""
    stored = np.concatenate([np.moveaxis(IMAGE, 2, 0)] * 2)[:count]
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, **({"Channel": channel} if channel else {})}
    tifffile.imwrite(path, stored, photometric="minisblack", compression="zlib", metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("count", "channel"),
    [
        (4, {"Name": ["DAPI", "FITC", "TRITC", "Cy5"]}),
        (3, {"Name": ["DAPI", "FITC", "TRITC"]}),
        (3, {"Name": ["DAPI", "FITC", "TRITC"], "Color": [-16776961, 16711935, 65535]}),
        (3, {"Name": ["R", "G", "B"], "EmissionWavelength": [461, 519, 576]}),
        (3, {}),
        (2, {"Name": ["R", "G"]}),
        (1, {"Name": ["DAPI"]}),
        (1, {"Fluor": ["CD3"]}),
    ],
)
def test_channels_that_are_no_colours_are_refused(tmp_path: Path, count: int, channel: dict[str, Any]) -> None:
    message = refusal(planes(tmp_path / "a.ome.tif", count, **channel))
    assert f"{count} channel" in message
    assert all(name in message for name in channel.get("Name", []))


@pytest.mark.parametrize(
    ("channel", "order"),
    [
        ({"Name": ["Red", "green", "B"]}, [0, 1, 2]),
        ({"Name": ["blue", "green", "red"]}, [2, 1, 0]),
        ({"Color": [-16776961, 16711935, 65535]}, [0, 1, 2]),
    ],
)
def test_channels_that_are_red_green_and_blue_are_read(
    tmp_path: Path, channel: dict[str, Any], order: list[int]
) -> None:
    slide = open_slide(planes(tmp_path / "a.ome.tif", 3, **channel))
    np.testing.assert_array_equal(whole(slide), IMAGE[..., order])


def test_stacks_and_time_series_are_refused(tmp_path: Path) -> None:
    for axes in ("ZYXS", "TYXS"):
        tifffile.imwrite(tmp_path / "a.ome.tif", np.stack([IMAGE] * 3), photometric="rgb", metadata={"axes": axes})
        assert f"3 × {axes[0]}" in refusal(tmp_path / "a.ome.tif")
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:  # of which OpenSlide reads the first page
        for _ in range(3):
            tiff.write(IMAGE, photometric="rgb", **TILED)
    assert "3 × I" in refusal(tmp_path / "a.tif")


def test_channels_of_other_kinds_of_tiff(tmp_path: Path) -> None:
    """Of the first two OpenSlide would read the first channel, or the small image."""
    path, small = tmp_path / "a.tif", IMAGE[:40, :70]
    with tifffile.TiffWriter(path) as tiff:
        for _ in range(4):
            tiff.write(GREY, photometric="minisblack", software="PerkinElmer-QPI", **TILED)
    assert "4 channels" in refusal(path)
    with tifffile.TiffWriter(path) as tiff:
        for image in (small, IMAGE):
            tiff.write(image, photometric="rgb", **TILED)
    np.testing.assert_array_equal(whole(open_slide(path)), IMAGE)
    tifffile.imwrite(path, np.stack([GREY] * 3), imagej=True, metadata={"axes": "CYX", "mode": "composite"})
    assert "3 channels" in refusal(path)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(IMAGE, photometric="rgb", **TILED)
        tiff.write(GREY > 128, photometric="minisblack", subfiletype=4, **TILED)
    assert open_slide(path).notes == []


# µm/px of OME-TIFF


def images(path: Path, *parts: tuple[Array, dict[str, Any]]) -> Path:
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for image, metadata in parts:
            tiff.write(image, photometric="rgb", compression="zlib", metadata={"axes": "YXS", **metadata})
    return path


def sized(mpp: float, **more: Any) -> dict[str, Any]:
    return {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp, **more}


def test_scale_is_that_of_the_image_that_is_read(tmp_path: Path) -> None:
    small = IMAGE[::3, ::3].copy()
    for k, parts in enumerate([[(small, sized(1.5)), (IMAGE, sized(0.5))], [(IMAGE, sized(0.5)), (small, sized(1.5))]]):
        slide = open_slide(images(tmp_path / f"{k}.ome.tif", *parts))
        assert (slide.width, slide.mpp, slide.notes) == (WIDTH, 0.5, [])
    none = images(tmp_path / "none.ome.tif", (small, sized(1.5)), (IMAGE, {}))
    with pytest.raises(UserError, match="--slide-mpp"):
        open_slide(none)


def test_several_images_of_like_size_are_noted(tmp_path: Path) -> None:
    nearly = IMAGE[:-10].copy()
    slide = open_slide(images(tmp_path / "a.ome.tif", (nearly, sized(1.0)), (IMAGE, sized(0.5))))
    assert (slide.height, slide.mpp) == (HEIGHT, 0.5)
    assert "2 images" in slide.notes[0]
    assert "number 2" in slide.notes[0]
    equal = open_slide(images(tmp_path / "b.ome.tif", (IMAGE, sized(0.5)), (IMAGE, sized(1.0))))
    assert equal.mpp == 0.5
    assert "number 1" in equal.notes[0]


@pytest.mark.parametrize(
    ("stated", "seen"),
    [
        ({"PhysicalSizeX": 0.5}, "PhysicalSizeX '0.5'"),
        ({"PhysicalSizeX": "0,5", "PhysicalSizeY": "0,5"}, "0,5"),
        (sized(0.5, PhysicalSizeXUnit="parsec", PhysicalSizeYUnit="parsec"), "parsec"),
        (sized(0.5, PhysicalSizeXUnit="pixel", PhysicalSizeYUnit="pixel"), "pixel"),
        (sized(0.0), "0.0"),
        (sized(-0.5), "-0.5"),
        (sized(300.0), "300"),
        ({"PhysicalSizeX": "NaN", "PhysicalSizeY": "NaN"}, "NaN"),
    ],
)
def test_scale_that_cannot_be_used_counts_as_not_stated(tmp_path: Path, stated: dict[str, Any], seen: str) -> None:
    path = images(tmp_path / "a.ome.tif", (IMAGE, stated))
    with pytest.raises(UserError, match="--slide-mpp") as caught:
        open_slide(path)
    assert seen in caught.value.message
    assert "damaged" not in caught.value.message
    slide = open_slide(path, 0.25)
    assert (slide.mpp, slide.notes) == (0.25, [])


def test_images_without_data_do_not_shift_the_scale() -> None:
    """tifffile leaves out images without pixels, so that its numbers are not those of the XML."""

    def image(width: int, mpp: float) -> str:
        return f'<Image><Pixels SizeX="{width}" SizeY="9" PhysicalSizeX="{mpp}" PhysicalSizeY="{mpp}"/></Image>'

    xml = f"<OME>{image(5, 3.0)}{image(9, 2.0)}{image(9, 2.0)}{image(7, 0.5)}</OME>"
    for index, count, width, mpp in [(3, 4, 7, 0.5), (0, 4, 5, 3.0), (0, 1, 7, 0.5), (0, 2, 9, 2.0)]:
        pixels = ome.pixels_of(xml, index, count, width, 9)
        assert pixels is not None
        assert ome.scale(pixels) == ((mpp, mpp), "")
    assert ome.pixels_of(xml, 0, 1, 8, 9) is None
    assert ome.pixels_of(xml.replace('"2.0"', '"1.0"', 2), 0, 2, 9, 9) is None
    assert ome.pixels_of("<OME", 0, 1, 8, 9) is None
