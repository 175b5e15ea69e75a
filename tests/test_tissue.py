"""The tissue finder on colours whose answer is known, against skimage's own morphology, and under change of resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from gan_uad.errors import UserError
from gan_uad.slides.reader import Slide, open_slide
from gan_uad.slides.tissue import filter_chain, find_tissue, keep_tile_share, otsu, pen_marks

Array = NDArray[Any]

WHITE = (243, 242, 244)
TISSUE = {
    "eosin": (200, 120, 165),
    "haematoxylin": (110, 70, 150),
    "pale": (240, 195, 225),
    "red cells": (200, 90, 110),
}
INK = {"red": (190, 40, 60), "dark red": (120, 30, 50), "green": (20, 130, 110), "pale green": (150, 215, 205),
       "dark green": (25, 65, 50), "blue": (30, 60, 150), "light blue": (110, 165, 215), "dark blue": (25, 15, 80)}  # fmt: skip
NOTHING = {"white": WHITE, "grey": (150, 150, 150), "shadow": (190, 185, 178), "black": (0, 0, 0), "dust": (40, 45, 38)}


def canvas(**squares: tuple[int, int, int]) -> tuple[Array, dict[str, Any]]:
    """Squares of 40 px in a row on white, 20 px apart, and where they are; the picture is 80 px high."""
    image = np.full((80, 60 * len(squares) + 20, 3), WHITE, np.uint8)
    places = {name: np.s_[20:60, 60 * k + 20 : 60 * k + 60] for k, name in enumerate(squares)}
    for name, colour in squares.items():
        image[places[name]] = colour
    return image, places


def write_slide(path: Path, image: Array, mpp: float = 0.5) -> Slide:
    """A slide that is `image`, with levels of 1/4 and 1/16."""
    with tifffile.TiffWriter(path) as tiff:
        for k, by in enumerate((1, 4, 16)):
            small = Image.fromarray(image).reduce(by) if by > 1 else image
            tiff.write(np.asarray(small), tile=(256, 256), photometric="rgb", metadata=None,
                       subfiletype=int(k > 0), resolution=(10000 / mpp, 10000 / mpp), resolutionunit="CENTIMETER")  # fmt: skip
    return open_slide(path)


def blobs(side: int, seed: int = 0) -> tuple[Array, Array]:
    """Islands of H&E colours with ragged edges and holes on white, uint8 [side, side, 3], and where they are."""
    rng = np.random.default_rng(seed)

    def noise(width: int) -> Array:
        small = rng.standard_normal((side // width + 3, side // width + 3)).astype(np.float32)
        return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))

    inside = noise(side // 3) + 0.3 * noise(side // 25) > 0.2
    stain = np.clip(noise(12) * 4, 0, 1)[..., None]
    colour = stain * np.array(TISSUE["haematoxylin"]) + (1 - stain) * np.array(TISSUE["eosin"])
    image = np.where(inside[..., None], colour, WHITE) + rng.normal(0, 3, (side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8), inside


@pytest.mark.parametrize("rule", [filter_chain, otsu])
def test_tissue_is_found_and_nothing_else(rule: Any) -> None:
    # pale tissue beside dark is below Otsu's threshold, as it should be
    tissue = {name: colour for name, colour in TISSUE.items() if name != "pale" or rule is filter_chain}
    image, places = canvas(**tissue, **INK, **NOTHING)
    mask = rule(image, 100)
    assert {name: float(mask[place].mean()) for name, place in places.items()} == {
        name: float(name in tissue) for name in places
    }
    assert mask.sum() == 1600 * len(tissue)


@pytest.mark.parametrize("name", INK)
def test_ink_is_ink(name: str) -> None:
    assert pen_marks(np.full((2, 2, 3), INK[name], np.uint8)).all()


@pytest.mark.parametrize("name", [*TISSUE, "white", "grey"])
def test_tissue_is_no_ink(name: str) -> None:
    assert not pen_marks(np.full((2, 2, 3), (TISSUE | NOTHING)[name], np.uint8)).any()


def test_bounds_of_colours_are_strict() -> None:
    """One pixel below and at each bound: green below 200 and above 0, differences above 15, the first red pen's own bounds."""
    row = [(230, 199, 230), (230, 200, 230), (90, 1, 60), (90, 0, 60), (170, 155, 170), (170, 154, 170)]
    image = np.array([row] * 3, np.uint8).repeat(200, axis=0)
    assert filter_chain(image, 1)[0].tolist() == [True, False, True, False, False, True]
    assert pen_marks(np.array([[(151, 79, 89), (150, 79, 89), (151, 80, 89), (151, 79, 90)]], np.uint8))[0].tolist() == [
        True, False, False, False,
    ]  # fmt: skip


def test_bound_of_green_rises_where_almost_all_is_masked() -> None:
    image = np.full((100, 100, 3), WHITE, np.uint8)
    image[:, :9] = (250, 235, 252)  # pale: green is below 242, the third bound
    assert filter_chain(image, 1)[:, :9].all()
    assert filter_chain(image, 1).sum() == 900
    image[:, 50:70] = TISSUE["eosin"]  # now the first bound masks less than 90 %
    assert not filter_chain(image, 1)[:, :9].any()
    assert filter_chain(image, 1).sum() == 2000


def test_small_objects_go_unless_that_leaves_nothing() -> None:
    image = np.full((200, 200, 3), WHITE, np.uint8)
    image[:100, :100] = TISSUE["eosin"]
    image[120:140, 120:145] = TISSUE["eosin"]  # 500 px
    image[120:140, 160:185] = TISSUE["eosin"]
    image[139, 184] = WHITE  # 499 px
    image[100, 100:130] = TISSUE["eosin"]  # touches the large one at a corner only
    mask = filter_chain(image)
    assert mask[:100, :100].all()
    assert mask[120:140, 120:145].all()
    assert mask.sum() == 100 * 100 + 500
    alone = np.full((200, 200, 3), WHITE, np.uint8)
    alone[10:20, 10:40] = TISSUE[
        "eosin"
    ]  # 300 px: found at the first halving, while what is smaller than 250 px is not
    alone[100:110, 10:30] = TISSUE["eosin"]
    assert filter_chain(alone)[10:20, 10:40].all()
    # 99.25 % are still masked, so it goes on until single pixels would do
    assert filter_chain(alone).sum() == 500


def test_smallest_object_has_a_size_in_micrometres(tmp_path: Path) -> None:
    image = np.full((2560, 2560, 3), WHITE, np.uint8)
    image[:1280, :1280] = TISSUE["eosin"]
    image[1600:2240, 1600:2240] = TISSUE["eosin"]  # 320 µm: 400 px of 16 µm
    slide = write_slide(tmp_path / "a.tif", image)
    for mpp in (16.0, 8.0, 4.0):
        tissue = find_tissue(slide, "mask", mpp)
        assert tissue.share(0, 0, 1280) == pytest.approx(1, abs=0.02)
        assert tissue.share(1600, 1600, 640) == 0
        assert tissue.mask.shape == (1280 / mpp, 1280 / mpp)
        assert (tissue.mpp, tissue.rule) == (mpp, "mask")


def test_otsu_divides_at_the_valley_and_not_below_grey() -> None:
    from skimage.filters import threshold_otsu

    rng = np.random.default_rng(0)
    chroma = np.concatenate([rng.normal(25, 5, 6000), rng.normal(80, 10, 4000)]).clip(0, 255).astype(np.uint8)
    image = np.stack([np.full_like(chroma, 220), 220 - chroma, np.full_like(chroma, 200)], 1).reshape(100, 100, 3)
    spread = image.max(2).astype(int) - image.min(2)
    # the bound that makes the variance within the two classes least, by trying all
    within = [
        spread[spread <= t].var() * (spread <= t).sum() + spread[spread > t].var() * (spread > t).sum()
        for t in range(30, 80)
    ]
    assert abs(threshold_otsu(spread) - (30 + int(np.argmin(within)))) <= 1
    assert otsu(image, 1).sum() == (spread > 30 + int(np.argmin(within))).sum()
    faint = np.array(np.random.default_rng(0).integers(235, 248, (60, 60, 3)), np.uint8)
    assert not otsu(faint, 1).any()


def test_otsu_is_not_led_astray_by_ink() -> None:
    image = np.full((100, 100, 3), WHITE, np.uint8)
    image[:50, :50] = TISSUE["pale"]
    alone = otsu(image, 1)
    assert alone[:50, :50].all()
    image[60:] = INK["blue"]
    assert (otsu(image, 1)[:60] == alone[:60]).all()
    assert not otsu(image, 1)[60:].any()
    assert not otsu(np.full((50, 50, 3), INK["blue"], np.uint8), 1).any()


# keep_tile


def by_morphology(tile: Array) -> float:
    """The rule as METHODS states it, with skimage's own morphology."""
    from skimage.color import rgb2gray
    from skimage.feature import canny
    from skimage.morphology import closing, dilation, disk

    shares = []
    density = -np.log((tile.astype(np.float64) + 1) / 240)
    for found, radius in ((canny(1 - rgb2gray(tile)), 10), (density.min(axis=2) >= 0.15, 2)):
        closed = dilation(closing(found, disk(radius), mode="ignore"), disk(radius), mode="ignore")
        shares.append(float(ndimage.binary_fill_holes(closed).mean()))
    return min(shares)


def tiles() -> dict[str, Array]:
    image, _ = blobs(384)
    rng = np.random.default_rng(1)
    return {
        "tissue": image[50:110, 24:94],
        "edge": image[100:260, 150:310],
        "wide": image[200:264, :190],
        "white": np.full((64, 64, 3), WHITE, np.uint8),
        "dark": np.full((64, 64, 3), 60, np.uint8),
        "noise": rng.integers(0, 256, (96, 96, 3), dtype=np.uint8),
        "one dot": np.where(np.indices((80, 80)).sum(0)[..., None] == 70, np.uint8(30), np.uint8(240)).repeat(3, 2),
    }


@pytest.mark.parametrize("name", tiles())
def test_keep_tile_equals_its_definition(name: str) -> None:
    assert keep_tile_share(tiles()[name]) == pytest.approx(by_morphology(tiles()[name]), abs=1e-12)


def test_keep_tile_cases_differ() -> None:
    shares = {name: keep_tile_share(tile) for name, tile in tiles().items()}
    assert shares["white"] == shares["dark"] == 0  # one has no density, the other no edges
    assert shares["tissue"] > 0.9
    assert 0.05 < shares["edge"] < 0.95


def test_keep_tile_reads_only_what_the_mask_touches(tmp_path: Path) -> None:
    image, _ = blobs(1024)
    image[:, :400] = WHITE
    slide = write_slide(tmp_path / "a.tif", image)
    tissue = find_tissue(slide, "keep_tile")
    x, y = np.meshgrid(np.arange(0, 1024, 128), np.arange(0, 1024, 128))
    found = tissue.share(x, y, 128)
    assert found.shape == (8, 8)
    touched = find_tissue(slide, "mask").share(x, y, 128) > 0
    assert (~touched).sum() > 16
    for i, j in np.ndindex(8, 8):
        wanted = keep_tile_share(image[y[i, j] : y[i, j] + 128, x[i, j] : x[i, j] + 128]) if touched[i, j] else 0.0
        assert found[i, j] == tissue.share(x[i, j], y[i, j], 128) == wanted
    slide.path.unlink()
    slide.close()
    assert (tissue.share(x[:, :2], y[:, :2], 128) == 0).all()


def test_keep_tile_is_computed_at_its_own_scale(tmp_path: Path) -> None:
    """A slide of 0.25 µm/px: 512 of its px are a tile of 256 px at 0.5."""
    image, _ = blobs(512)
    slide = write_slide(tmp_path / "a.tif", image, mpp=0.25)
    tissue = find_tissue(slide, "keep_tile", mpp=4.0)
    assert float(tissue.share(0, 0, 512)) == keep_tile_share(slide.read(0, 0, 256, 256, 0.5))


# Shares


def test_share_is_exact_to_fractions_of_a_mask_pixel(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "a.tif", blobs(1002)[0], mpp=2.0)
    tissue = find_tissue(slide)
    assert tissue.mask.shape == (125, 125)
    assert 0.2 < tissue.mask.mean() < 0.8
    fine = np.zeros((1100, 1100), bool)
    fine[:1000, :1000] = tissue.mask.repeat(8, 0).repeat(8, 1)  # a mask px is 8 level-0 px
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 1000, (2, 60))
    wanted = [fine[b : b + 77, a : a + 77].sum() / 77**2 for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(tissue.share(x, y, 77), wanted, atol=1e-9)
    assert tissue.share(x.reshape(6, 10), y.reshape(6, 10), 77).shape == (6, 10)
    assert float(tissue.share(x[0], y[0], 77)) == tissue.share(x, y, 77)[0]
    # partly and entirely outside: there is no tissue outside the slide
    complete = tissue.share(0, 0, 1001)
    assert float(tissue.share(-1001, -1001, 2002)) == pytest.approx(float(complete) / 4)
    assert float(tissue.share(2000, 0, 50)) == float(tissue.share(-200, -200, 100)) == 0.0
    # fractions of level-0 px, on a mask of one px
    one = type(tissue)(np.ones((1, 1), bool), 16.0, "mask", slide)
    assert float(one.share(7.5, 0, 8)) == pytest.approx(0.5 / 8)
    assert float(one.share(7.25, 7.5, 8)) == pytest.approx(0.75 * 0.5 / 8**2)


def test_no_tissue_at_all_is_no_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 2, (600, 600, 3))
    slide = write_slide(tmp_path / "a.tif", np.clip(WHITE + noise, 0, 255).astype(np.uint8))
    for rule in ("mask", "keep_tile", "otsu"):
        tissue = find_tissue(slide, rule)
        assert not tissue.mask.any()
        assert (tissue.share([0, 100], [0, 50], 256) == 0).all()


def test_unknown_rule_names_the_known(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "a.tif", np.full((64, 64, 3), 255, np.uint8))
    with pytest.raises(UserError, match="'otsu'"):
        find_tissue(slide, "otsuu")


def test_mask_is_written_with_its_scale(tmp_path: Path) -> None:
    tissue = find_tissue(write_slide(tmp_path / "a.tif", blobs(1024)[0]), "otsu", 8.0)
    tissue.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "L"
        assert image.text == {"rule": "otsu", "mpp": "8"}
        np.testing.assert_array_equal(np.asarray(image), np.where(tissue.mask, 255, 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "mask.png"]


def iou(a: Array, b: Array) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("rule", ["mask", "otsu"])
def test_mask_is_stable_under_resolution(tmp_path: Path, rule: str) -> None:
    """The same slide saved at 1, 2 and 4 µm/px; and the mask is where the tissue was painted."""
    image, inside = blobs(2048)
    masks = []
    for k, mpp in enumerate((1.0, 2.0, 4.0)):
        small = np.asarray(Image.fromarray(image).reduce(2**k)) if k else image
        masks.append(find_tissue(write_slide(tmp_path / f"{k}.tif", small, mpp), rule).mask)
    assert len({mask.shape for mask in masks}) == 1
    assert iou(masks[0], masks[1]) > 0.98
    assert iou(masks[0], masks[2]) > 0.98
    painted = np.asarray(Image.fromarray(inside).resize(masks[0].shape[::-1], Image.Resampling.NEAREST))
    assert iou(masks[0], painted) > 0.85


def test_mask_of_a_real_slide_is_stable_under_resolution(tmp_path: Path, shared_data: Path) -> None:
    original = open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs")
    pixels = original.read(0, 0, 2220, 2964, 0.499)
    half = write_slide(tmp_path / "half.tif", np.asarray(Image.fromarray(pixels).reduce(2)), 0.998)
    whole = write_slide(tmp_path / "whole.tif", pixels, 0.499)
    for rule in ("mask", "otsu"):
        for mpp in (16.0, 8.0):
            a, b = (find_tissue(slide, rule, mpp).mask for slide in (whole, half))
            print(f"{rule} at {mpp:g} µm/px: {iou(a, b):.3f}")
            assert iou(a, b) > 0.95
    share = find_tissue(original).mask.mean()
    assert 0.3 < share < 0.45  # looked at: the tissue, without the background on its left and top
