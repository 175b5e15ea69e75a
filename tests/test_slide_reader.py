"""Slides of every kind read at every scale, against the arrays that they were written from and against closed forms."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from gan_uad.errors import UserError
from gan_uad.slides import reader
from gan_uad.slides.reader import Slide, open_slide

Array = NDArray[Any]
TILED = {"tile": (64, 48), "compression": "zlib", "photometric": "rgb"}
PER_CM = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}  # 0.5 µm/px


def picture(height: int, width: int, seed: int = 0) -> Array:
    """Noise of some pixels' width, uint8 [height, width, 3], away from black and white, where overshoot would be clipped."""
    small = np.random.default_rng(seed).integers(70, 186, (height // 3 + 2, width // 3 + 2, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def shrunk(image: Array, by: int) -> Array:
    height, width = (side // by * by for side in image.shape[:2])
    return image[:height, :width].reshape(height // by, by, width // by, by, 3).mean((1, 3)).round().astype(np.uint8)


LEVELS = [picture(203, 331), *(shrunk(picture(203, 331), by) for by in (4, 8))]


def write_pyramid(path: Path, levels: list[Array], **options: Any) -> Path:
    """Tiled TIFF of one page a level, as OpenSlide reads it."""
    with tifffile.TiffWriter(path) as tiff:
        for k, level in enumerate(levels):
            scale = PER_CM if not k else {}
            tiff.write(level, **{**TILED, **scale, "subfiletype": int(k > 0), "metadata": None} | options)
    return path


def write_ome(path: Path, levels: list[Array], metadata: dict[str, Any] | None = None, **options: Any) -> Path:
    """OME-TIFF whose lower levels are SubIFDs."""
    scale = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5} if metadata is None else metadata
    options = TILED | options
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(levels[0], subifds=len(levels) - 1, metadata={"axes": "YXS", **scale}, **options)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, **options)
    return path


def write_striped(path: Path, levels: list[Array], **options: Any) -> Path:
    options = {"rowsperstrip": 20, "compression": "zlib", "photometric": "rgb", "metadata": None} | PER_CM | options
    tifffile.imwrite(path, levels[0], **options)
    return path


KINDS: dict[str, Callable[[Path], Slide]] = {
    "openslide": lambda folder: open_slide(write_pyramid(folder / "a.tif", LEVELS)),
    "ome": lambda folder: open_slide(write_ome(folder / "a.ome.tif", LEVELS)),
    "striped": lambda folder: open_slide(write_striped(folder / "s.tif", LEVELS)),
    "plain": lambda folder: (Image.fromarray(LEVELS[0]).save(folder / "a.png"), open_slide(folder / "a.png", 0.5))[1],
}


@pytest.fixture(params=KINDS)
def slide(request: pytest.FixtureRequest, tmp_path: Path) -> Slide:
    return KINDS[request.param](tmp_path)


def outside_white(image: Array, x: int, y: int, width: int, height: int) -> Array:
    """The definition: a crop of an endless white plane on which the image lies."""
    plane = np.full((image.shape[0] + 2000, image.shape[1] + 2000, 3), 255, np.uint8)
    plane[1000:-1000, 1000:-1000] = image
    return plane[1000 + y : 1000 + y + height, 1000 + x : 1000 + x + width]


def test_what_a_slide_says_of_itself(slide: Slide) -> None:
    assert (slide.width, slide.height, slide.mpp) == (331, 203, 0.5)
    # 331 / 82 and 203 / 50 are no integers, but the levels are those of 4 and 8 with their last px cut off.
    assert slide.levels == (
        [1.0, 4.0, 8.0] if slide.path.name.startswith("a.") and slide.path.suffix == ".tif" else [1.0]
    )
    assert slide.notes == []


@pytest.mark.parametrize(
    ("x", "y", "width", "height"),
    [
        (0, 0, 331, 203),
        (100, 70, 50, 60),
        (47, 63, 2, 2),
        (-20, -30, 60, 40),
        (320, 190, 40, 40),
        (-500, 0, 20, 10),
        (400, 300, 5, 5),
    ],
)
def test_pixels_of_level_0_are_untouched_and_white_outside(
    slide: Slide, x: int, y: int, width: int, height: int
) -> None:
    found = slide.read(x, y, width, height, 0.5)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, outside_white(LEVELS[0], x, y, width, height))


@pytest.mark.parametrize("level", [1, 2])
def test_pixels_of_other_levels_are_untouched(tmp_path: Path, level: int) -> None:
    slide = KINDS["ome"](tmp_path)
    by = (1, 4, 8)[level]
    found = slide.read(3 * by, -2 * by, 30, 28, 0.5 * by)
    np.testing.assert_array_equal(found, outside_white(LEVELS[level], 3, -2, 30, 28))
    # between two pixels of the level the nearer one is the corner, and 0.1 % of µm/px are nothing
    np.testing.assert_array_equal(slide.read(3 * by + 0.4 * by, -2 * by - 0.4 * by, 30, 28, 0.5005 * by), found)


def test_levels_of_openslide_are_untouched_where_they_divide_evenly(tmp_path: Path) -> None:
    base = picture(192, 320)
    slide = open_slide(write_pyramid(tmp_path / "even.tif", [base, shrunk(base, 4)]))
    np.testing.assert_array_equal(slide.read(40, 16, 30, 20, 2.0), shrunk(base, 4)[4:24, 10:40])


def test_the_nearest_finer_level_is_read(tmp_path: Path) -> None:
    levels = [np.full((256 // by, 256 // by, 3), 10 * by, np.uint8) for by in (1, 4, 16)]
    slide = open_slide(write_pyramid(tmp_path / "a.tif", levels, tile=(16, 16)))
    seen = {mpp: int(slide.read(64, 64, 2, 2, mpp)[0, 0, 0]) for mpp in (0.25, 0.5, 1.0, 1.9, 2.0, 3.0, 7.9, 8.0, 20.0)}
    assert [slide.level_for(mpp) for mpp in seen] == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert seen == {0.25: 10, 0.5: 10, 1.0: 10, 1.9: 10, 2.0: 40, 3.0: 40, 7.9: 40, 8.0: 160, 20.0: 160}


def weights(size: int, start: float, scale: float, count: int) -> Array:
    """Bicubic resampling of a line by its definition (Keys 1981, a = −1/2, widened by the scale), edges repeated: [count, size]."""
    pad = 400
    centres = start + (np.arange(count)[:, None] + 0.5) * scale
    t = np.abs((np.arange(-pad, size + pad) + 0.5 - centres) / max(scale, 1))
    kernel = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))
    kernel /= kernel.sum(1, keepdims=True)
    inside = kernel[:, pad:-pad].copy()
    inside[:, 0] += kernel[:, :pad].sum(1)
    inside[:, -1] += kernel[:, -pad:].sum(1)
    return inside


def resampled(image: Array, x: float, y: float, scale: float, width: int, height: int, by: int = 1) -> Array:
    """float64 [height, width, 3] from a level of downsample `by`; white where a pixel's centre is outside the slide."""
    rows, columns = (weights(n, a, scale, m) for n, a, m in ((image.shape[0], y, height), (image.shape[1], x, width)))
    found = np.einsum("ij,jkc,lk->ilc", rows, image.astype(float), columns, optimize=True)
    for axis, (start, count) in enumerate(((y, height), (x, width))):
        centres = start + (np.arange(count) + 0.5) * scale
        outside = (centres < 0) | (centres >= LEVELS[0].shape[axis] / by)
        found[(slice(None),) * axis + (outside,)] = 255
    return found


@pytest.mark.parametrize("scale", [0.6, 1.002, 1.37, 3.71])
def test_resampling_is_exact(slide: Slide, scale: float) -> None:
    for x, y in [(100.0, 50.0), (60.25, 33.7), (-21.3, -8.0), (300.9, 190.2)]:
        found = slide.read(x, y, 40, 30, 0.5 * scale)
        # a rounding of 0.5 after each of two passes
        assert np.abs(found - resampled(LEVELS[0], x, y, scale, 40, 30)).max() < 1.3


def test_resampling_of_other_levels_is_exact(tmp_path: Path) -> None:
    slide = KINDS["ome"](tmp_path)
    for mpp, level, by in [(2.6, 1, 4), (3.9, 1, 4), (4.7, 2, 8), (9.1, 2, 8)]:
        found = slide.read(31.0, 17.0, 30, 25, mpp)
        wanted = resampled(LEVELS[level], 31 / by, 17 / by, mpp / 0.5 / by, 30, 25, by)
        assert np.abs(found - wanted).max() < 1.3


def test_overlapping_regions_agree(slide: Slide) -> None:
    large = slide.read(3.3, 4.4, 100, 80, 0.85)
    part = slide.read(3.3 + 31 * 1.7, 4.4 + 17 * 1.7, 40, 50, 0.85)
    difference = np.abs(large[17:67, 31:71].astype(int) - part)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_blocks_do_not_show(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    large = slide.read(-5, 7, 120, 90, 1.3)
    monkeypatch.setattr(reader, "BLOCK", 50**2)
    in_blocks = slide.read(-5, 7, 120, 90, 1.3)
    assert np.abs(large.astype(int) - in_blocks).max() <= 1
    assert (large != in_blocks).mean() < 0.02


def test_white_does_not_bleed_into_the_slide(tmp_path: Path) -> None:
    slide = open_slide(write_pyramid(tmp_path / "a.tif", [np.full((96, 96, 3), 40, np.uint8)], tile=(32, 32)))
    found = slide.read(-30, -30, 60, 60, 1.5)  # centres of the pixels are at −28.5, −25.5, ...
    inside = (np.arange(60) * 3 - 28.5 > 0) & (np.arange(60) * 3 - 28.5 < 96)
    assert (found[np.ix_(inside, inside)] == 40).all()
    assert (found[~inside] == 255).all()
    assert (found[:, ~inside] == 255).all()


def test_thumbnail_is_the_whole_slide(slide: Slide) -> None:
    found = slide.thumbnail(2.5)
    assert found.shape == (41, 66, 3)
    np.testing.assert_allclose(found.mean((0, 1)), LEVELS[0].mean((0, 1)), atol=1.5)
    assert slide.thumbnail(1000.0).shape == (1, 1, 3)


def test_transparent_is_white(tmp_path: Path) -> None:
    rgba = np.dstack([LEVELS[0], np.full(LEVELS[0].shape[:2], 255, np.uint8)])
    rgba[50:90, 60:100, 3] = 0
    rgba[100:110, 60:100] = (0, 0, 0, 128)
    slide = open_slide(write_striped(tmp_path / "a.tif", [rgba], extrasamples=["unassalpha"]))
    found = slide.read(0, 0, 331, 203, 0.5)
    assert (found[50:90, 60:100] == 255).all()
    assert (np.abs(found[100:110, 60:100].astype(int) - 127) <= 1).all()
    np.testing.assert_array_equal(found[120:], LEVELS[0][120:])


@pytest.mark.parametrize("ome", [False, True])
def test_tiles_that_the_file_leaves_out_are_white(tmp_path: Path, ome: bool) -> None:
    base = picture(128, 192)
    tiles = [base[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64, 128)]
    tiles[1] = tiles[5] = None
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=ome) as tiff:
        tiff.write(
            iter(tiles), shape=base.shape, dtype=base.dtype, **TILED | {"tile": (64, 64)}, metadata={} if ome else None
        )
    found = open_slide(tmp_path / "a.ome.tif", 0.5).read(0, 0, 192, 128, 0.5)
    base[:64, 64:128] = base[64:, 128:] = 255
    np.testing.assert_array_equal(found, base)


GREY = LEVELS[0][..., 0]
LAYOUTS: dict[str, tuple[Array, dict[str, Any], Array]] = {
    "16 bit": (LEVELS[0].astype(np.uint16) * 257 + 128, {}, LEVELS[0]),  # 257 · v ± 128 is v
    "planes": (np.moveaxis(LEVELS[0], 2, 0), {"planarconfig": "separate"}, LEVELS[0]),
    "grey": (GREY, {"photometric": "minisblack"}, np.repeat(GREY[..., None], 3, 2)),
    "one strip, not compressed": (LEVELS[0], {"compression": None, "rowsperstrip": 203}, LEVELS[0]),
    "big endian": (LEVELS[0].astype(np.uint16) * 257 - 128, {"byteorder": ">", "compression": None}, LEVELS[0]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_tiff(tmp_path: Path, name: str) -> None:
    stored, options, wanted = LAYOUTS[name]
    slide = open_slide(write_striped(tmp_path / "a.tif", [stored], **options))
    np.testing.assert_array_equal(slide.read(-3, 30, 100, 90, 0.5), outside_white(wanted, -3, 30, 100, 90))


def test_ome_of_three_pages_in_planes(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    options = {"tile": (64, 48), "compression": "zlib", "photometric": "minisblack"}
    planes = [np.moveaxis(level, 2, 0) for level in LEVELS]
    with tifffile.TiffWriter(path, ome=True) as tiff:
        scale = {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.0005, "PhysicalSizeYUnit": "mm"}
        named = {"axes": "CYX", "Channel": {"Name": ["R", "G", "B"]}}
        tiff.write(planes[0], subifds=2, metadata=named | scale, **options)
        for level in planes[1:]:
            tiff.write(level, subfiletype=1, **options)
    slide = open_slide(path)
    assert slide.mpp == pytest.approx(0.5)
    assert slide.levels == [1.0, 4.0, 8.0]
    np.testing.assert_array_equal(slide.read(0, 0, 40, 20, 2.0), LEVELS[1][:20, :40])


def test_the_largest_picture_of_an_ome_tiff_is_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:  # a label before the slide
        tiff.write(picture(20, 30), photometric="rgb", metadata={"axes": "YXS"})
        tiff.write(LEVELS[0], metadata={"axes": "YXS"}, **TILED)
    assert (open_slide(path, 0.5).width, open_slide(path, 0.5).height) == (331, 203)


def test_compressed_by_jpeg_with_the_extra_package(tmp_path: Path) -> None:
    smooth = np.array(Image.fromarray(picture(20, 30)).resize((331, 203), Image.Resampling.BICUBIC))
    path = write_ome(tmp_path / "a.ome.tif", [smooth], compression="jpeg", compressionargs={"level": 95})
    assert np.abs(open_slide(path).read(0, 0, 331, 203, 0.5).astype(int) - smooth).mean() < 3


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_ome(tmp_path / "a.ome.tif", LEVELS)

    def decode(*_: Any, **__: Any) -> Any:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    slide = open_slide(path)
    monkeypatch.setattr(tifffile.TiffPage, "decode", decode)
    with pytest.raises(UserError, match="pip install imagecodecs"):
        slide.read(0, 0, 10, 10, 0.5)


# µm per pixel


def aperio(path: Path, description: str) -> Path:
    image = np.full((100, 100, 3), 200, np.uint8)
    text = f"Aperio Image Library v10.0.51\r\n100x100 |{description}"
    tifffile.imwrite(path, image, description=text, metadata=None, **TILED)
    return path


def test_scale_that_the_file_states(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert open_slide(aperio(tmp_path / "a.svs", "AppMag = 20|MPP = 0.4990")).mpp == 0.499
    assert open_slide(tmp_path / "a.svs", 0.4991).mpp == 0.4991
    assert capsys.readouterr().err == ""
    replaced = open_slide(tmp_path / "a.svs", 0.25)
    assert replaced.mpp == 0.25
    (note,) = replaced.notes
    assert "a.svs" in note
    assert "0.499" in note
    assert "0.25" in note
    assert note in capsys.readouterr().err


def test_no_scale_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    Image.fromarray(LEVELS[0]).save(tmp_path / "a.png", dpi=(72, 72))
    paths = [
        aperio(tmp_path / "a.svs", "AppMag = 20"),  # objective power says nothing of µm
        tmp_path / "a.png",
        write_ome(tmp_path / "a.ome.tif", LEVELS, metadata={}),
        write_striped(tmp_path / "72dpi.tif", LEVELS, resolution=(72, 72), resolutionunit="INCH"),
        write_striped(tmp_path / "none.tif", LEVELS, resolution=(20000, 20000), resolutionunit="NONE"),
        write_striped(tmp_path / "zero.tif", LEVELS, resolution=(0, 0), resolutionunit="CENTIMETER"),
    ]
    for path in paths:
        with pytest.raises(UserError, match="--slide-mpp") as caught:
            open_slide(path)
        assert str(path) in caught.value.message
        assert open_slide(path, 0.3).mpp == 0.3


@pytest.mark.parametrize("given", [0.0, -0.5, float("nan"), float("inf")])
def test_impossible_scale_is_an_error(tmp_path: Path, given: float) -> None:
    with pytest.raises(UserError, match="--slide-mpp"):
        open_slide(write_pyramid(tmp_path / "a.tif", LEVELS), given)
    with pytest.raises(ValueError):
        open_slide(tmp_path / "a.tif").read(0, 0, 8, 8, given)


def test_pixels_that_are_not_square_are_refused_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ome(tmp_path / "a.ome.tif", LEVELS, metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.6})
    with pytest.raises(UserError, match=r"0\.5 × 0\.6.*--slide-mpp"):
        open_slide(path)
    assert open_slide(path, 0.55).mpp == 0.55
    assert "0.5 × 0.6" in capsys.readouterr().err
    write_ome(path, LEVELS, metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.502})
    assert open_slide(path).notes == []
    assert capsys.readouterr().err == ""


# Handles


def test_many_threads_read_the_same(slide: Slide) -> None:
    places = [(x, y) for y in range(-10, 200, 23) for x in range(-10, 330, 29)]
    wanted = [slide.read(x, y, 40, 30, 0.7) for x, y in places]
    fresh = pickle.loads(pickle.dumps(slide))  # opened by whichever thread comes first
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: fresh.read(*place, 40, 30, 0.7), places))
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_do_not_disturb_each_other_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan_uad.slides.tiff.TIFF_CACHE", 0)  # so that all is read from the file again and again
    slide = KINDS["striped"](tmp_path)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda k: slide.read(0, 20 * (k % 10), 331, 2, 0.5), range(1500)))
    finally:
        sys.setswitchinterval(before)
    for k, pixels in enumerate(found):
        np.testing.assert_array_equal(pixels, LEVELS[0][20 * (k % 10) :][:2])


def test_pickle_takes_no_handle_along_and_needs_the_file_only_to_read(slide: Slide) -> None:
    pixels = slide.read(10, 10, 20, 20, 0.5)
    stored = pickle.dumps(slide)
    moved = slide.path.rename(slide.path.with_name("gone"))
    copy = pickle.loads(stored)
    assert (copy.name, copy.width, copy.mpp, copy.levels) == (slide.name, slide.width, slide.mpp, slide.levels)
    with pytest.raises(UserError, match=f"{slide.path.name}$"):
        copy.read(0, 0, 5, 5, 0.5)
    moved.rename(slide.path)
    np.testing.assert_array_equal(copy.read(10, 10, 20, 20, 0.5), pixels)


def _in_child(slide: Slide, connection: Any) -> None:
    pixels = slide.read(10, 10, 200, 150, 0.5)
    connection.send((pixels, slide._handle is not None and slide._handle[0] == os.getpid()))
    connection.close()


def test_a_forked_child_opens_its_own_handle(slide: Slide) -> None:
    wanted = slide.read(10, 10, 200, 150, 0.5)
    before = slide._handle
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_in_child, args=(slide, theirs))
    child.start()
    np.testing.assert_array_equal(slide.read(10, 10, 200, 150, 0.5), wanted)
    assert ours.poll(30)
    pixels, its_own = ours.recv()
    np.testing.assert_array_equal(pixels, wanted)
    assert its_own
    child.join()
    assert slide._handle is before


def test_close_and_go_on(slide: Slide) -> None:
    with slide as same:
        wanted = same.read(0, 0, 9, 9, 0.5)
    assert slide._handle is None
    np.testing.assert_array_equal(slide.read(0, 0, 9, 9, 0.5), wanted)


def test_decoded_strips_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gan_uad.slides import tiff

    slide = KINDS["striped"](tmp_path)
    strip = 20 * 331 * 3
    monkeypatch.setattr(tiff, "TIFF_CACHE", 3 * strip)
    np.testing.assert_array_equal(slide.read(0, 0, 331, 203, 0.5), LEVELS[0])
    np.testing.assert_array_equal(slide.read(0, 0, 331, 203, 0.5), LEVELS[0])
    (_, backend) = slide._handle or (0, None)
    assert isinstance(backend, tiff.TiffBackend)
    assert backend._held == sum(part.nbytes for part in backend._decoded.values()) <= 3 * strip


# Bad input


def test_names_with_spaces_and_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "Präparate der Woche – 病理"
    folder.mkdir()
    for name in ("a b #1 ü 切片.tif", "a b #1 ü 切片.ome.tif"):
        path = (write_ome if "ome" in name else write_pyramid)(folder / name, LEVELS)
        slide = open_slide(path)
        assert slide.name == path.stem
        np.testing.assert_array_equal(slide.read(5, 6, 7, 8, 0.5), LEVELS[0][6:14, 5:12])


def test_what_is_no_slide(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").write_bytes(b"")
    (tmp_path / "text.svs").write_text("this is no slide")
    (tmp_path / "folder.svs").mkdir()
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 64, 64), np.float32))
    for name, why in [
        ("missing.svs", "no such slide"),
        ("empty.svs", "empty"),
        ("text.svs", "no slide"),
        ("folder.svs", "folder"),
        ("stack.tif", "float32"),
    ]:
        with pytest.raises(UserError, match=why) as caught:
            open_slide(tmp_path / name, 0.5)
        assert str(tmp_path / name) in caught.value.message
        assert "\n" not in caught.value.message


def test_plain_image_that_is_too_large_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (8, 8)).save(tmp_path / "small.png")
    content = bytearray((tmp_path / "small.png").read_bytes())
    for side in (9000, 10000, 20000):  # the latter two are above Pillow's own bounds, of a warning and of an error
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match="vips tiffsave"):
            open_slide(tmp_path / "a.png", 0.5)


@pytest.mark.parametrize("kind", ["openslide", "ome", "striped", "plain"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
def test_truncated_slides_are_one_clear_line_or_whole(tmp_path: Path, kind: str, kept: float) -> None:
    """Where only the end of the file is lost, which may be no more than a lower level, level 0 is as it was."""
    path = KINDS[kind](tmp_path).path
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    if (kind, kept) == ("ome", 0.95):  # only the description is lost
        np.testing.assert_array_equal(open_slide(path, 0.5).read(0, 0, 331, 203, 0.5), LEVELS[0])
        return
    with pytest.raises(UserError) as caught:
        open_slide(path, 0.5).read(0, 0, 331, 203, 0.5)
    assert path.name in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_lost_level_is_not_passed_over(tmp_path: Path, big: bool, order: str) -> None:
    """tifffile alone would take the pages before the end of the file for all there are."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=order) as tiff:
        for level in LEVELS:
            tiff.write(level, rowsperstrip=20, photometric="rgb", metadata=None)
    assert open_slide(path, 0.5).width == 331
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages[2].offset
    content = path.read_bytes()
    for end in (last, last + 1, last + 30):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"a\.tif"):
            open_slide(path, 0.5)
    at, length = (8, 8) if big else (4, 4)
    path.write_bytes(content[:at] + bytes(length) + content[at + length :])  # as a writer leaves it that was killed
    with pytest.raises(UserError, match=r"a\.tif"):
        open_slide(path, 0.5)


def test_pixels_missing_at_the_end_are_an_error_where_they_are_read(tmp_path: Path) -> None:
    """Headers first, as streaming writers put them: the file opens, and only the lost tiles fail."""
    path = write_pyramid(tmp_path / "a.tif", [LEVELS[1], LEVELS[0]], **PER_CM)
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages[1].dataoffsets[-1]
    path.write_bytes(path.read_bytes()[: last + 10])
    slide = open_slide(path)
    np.testing.assert_array_equal(slide.read(0, 0, 40, 40, 0.5), LEVELS[0][:40, :40])
    with pytest.raises(UserError, match=r"a\.tif"):
        slide.read(280, 180, 40, 20, 0.5)


def test_slides_need_no_torch() -> None:
    script = "import sys, gan_uad.slides.reader, gan_uad.slides.tissue, gan_uad.slides.stain; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_real_slide(shared_data: Path) -> None:
    """An Aperio SVS against OpenSlide itself."""
    import openslide

    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    slide = open_slide(path)
    assert (slide.width, slide.height, slide.mpp, slide.levels) == (2220, 2967, 0.499, [1.0])
    direct = openslide.OpenSlide(path).read_region((1000, 2000), 0, (256, 200)).convert("RGB")
    np.testing.assert_array_equal(slide.read(1000, 2000, 256, 200, 0.499), np.array(direct))
