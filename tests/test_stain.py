"""Stain normalisation against torchstain, and on pixels that it cannot be fitted to; HED jitter against scikit-image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gan_uad.errors import UserError
from gan_uad.slides.reader import open_slide
from gan_uad.slides.stain import Macenko, Reinhard, from_lab, sample_pixels, stain_normaliser, to_lab
from gan_uad.slides.tissue import find_tissue

Array = NDArray[Any]
NAMES = ("reinhard", "macenko")
# Two scanners' haematoxylin and eosin, as optical densities of R, G, B.
STAINS = {
    "a": np.array([[0.65, 0.70, 0.29], [0.20, 0.93, 0.30]]),
    "b": np.array([[0.55, 0.75, 0.37], [0.30, 0.88, 0.36]]),
}


def patch(stains: str = "a", seed: int = 0, amount: float = 1.0, side: int = 96) -> Array:
    """Tissue without background: random amounts of both stains, mixed by Beer and Lambert's law; uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(2.0, 0.35, (side, side, 2)) * amount + 0.3
    return np.clip(240 * np.exp(-(amounts @ STAINS[stains])), 1, 200).astype(np.uint8)


def reference(name: str, target: Array, image: Array) -> Array:
    """torchstain's answer, by its numpy backend."""
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer, NumpyReinhardNormalizer

    if name == "reinhard":
        normaliser = NumpyReinhardNormalizer()
        normaliser.fit(target)
        return np.asarray(normaliser.normalize(image))
    normaliser = NumpyMacenkoNormalizer()
    normaliser.fit(target)
    return np.asarray(normaliser.normalize(image, stains=False)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("source", "amount"), [("a", 1.0), ("b", 1.0), ("b", 0.6), ("a", 1.8)])
def test_equals_torchstain(name: str, source: str, amount: float) -> None:
    image, target = patch(source, 1, amount), patch("a", 2)
    wanted = reference(name, target, image)
    found = stain_normaliser(name, target).fit(image).transform(image)
    assert found.dtype == np.uint8
    difference = found.astype(int) - wanted
    assert set(np.unique(difference)) <= {0, 1}  # torchstain cuts off what we round
    assert 0.4 < difference.mean() < 0.6


@pytest.mark.parametrize("name", NAMES)
def test_equals_torchstain_on_a_real_slide(name: str, shared_data: Path) -> None:
    slide = open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs")
    tissue = slide.read(900, 2350, 160, 160, 0.499)
    flat = tissue.reshape(-1, 3)
    flat = flat[flat.min(1) < 200]  # without background, which torchstain takes for tissue
    image = flat[: len(flat) // 80 * 80].reshape(80, -1, 3)
    difference = stain_normaliser(name, patch("b")).fit(image).transform(image).astype(int) - reference(
        name, patch("b"), image
    )
    assert (difference >= 0).all()
    assert (difference <= 1).all()


def test_macenko_finds_the_stains_that_were_mixed() -> None:
    for name, stains in STAINS.items():
        found = np.array(Macenko().fit(patch(name, side=200)).to_dict()["source"]["stains"])
        pure = stains / np.linalg.norm(stains, axis=1, keepdims=True)
        angles = np.degrees(np.arccos(np.clip((found * pure).sum(1), -1, 1)))
        assert (angles < 8).all()  # the percentiles lie a little inside the pure stains
    default = Macenko().fit(patch("b", side=200))
    moved = np.array(Macenko().fit(default.transform(patch("b", side=200))).to_dict()["source"]["stains"])
    np.testing.assert_allclose(moved, default.to_dict()["target"]["stains"], atol=0.03)


def test_macenko_finds_stains_that_take_each_others_place() -> None:
    """Where the sum of both is almost constant, what varies most is the mix: angles are measured from the other eigenvector."""
    share, total = np.random.default_rng(0).uniform(0, 1, (2, 150, 150, 1))
    amounts = np.concatenate([share, 1 - share], axis=2) * (1.5 + 0.2 * total)
    image = np.round(240 * np.exp(-(amounts @ STAINS["b"]))).astype(np.uint8)
    found = np.array(Macenko().fit(image).to_dict()["source"]["stains"])
    pure = STAINS["b"] / np.linalg.norm(STAINS["b"], axis=1, keepdims=True)
    assert (np.degrees(np.arccos(np.clip((found * pure).sum(1), -1, 1))) < 3).all()


def test_reinhard_gives_the_target_its_mean_and_deviation() -> None:
    target = patch("b", 3)
    normaliser = Reinhard(target).fit(patch("a", 4, 0.9))
    lab, wanted = to_lab(normaliser.transform(patch("a", 4, 0.9))), to_lab(target)
    np.testing.assert_allclose(lab.mean((0, 1)), wanted.mean((0, 1)), atol=0.7)  # some colours cannot be shown
    np.testing.assert_allclose(lab.std((0, 1)), wanted.std((0, 1)), rtol=0.06)


def test_lab_equals_skimage() -> None:
    from skimage.color import rgb2lab

    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    np.testing.assert_allclose(to_lab(image), rgb2lab(image), atol=0.02)
    np.testing.assert_array_equal(from_lab(to_lab(image)), image)


@pytest.mark.parametrize("name", NAMES)
def test_background_changes_nothing_in_the_fit(name: str) -> None:
    image = patch("b").reshape(-1, 3)
    white = np.random.default_rng(0).integers(225, 256, (20_000, 3), dtype=np.uint8)
    with_white = np.concatenate([white, image, white])
    assert stain_normaliser(name).fit(with_white).to_dict() == stain_normaliser(name).fit(image).to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_a_pixel_does_not_depend_on_its_tile(name: str) -> None:
    normaliser = stain_normaliser(name).fit(patch("b"))
    image = patch("b", 7)
    expected = normaliser.transform(image)
    np.testing.assert_array_equal(normaliser.transform(image[10:30, 40:90]), expected[10:30, 40:90])
    np.testing.assert_array_equal(normaliser.transform(image[50:51, 50:51]), expected[50:51, 50:51])
    for value in (0, 128, 255):  # degenerate tiles of a fitted slide
        tile = np.full((8, 8, 3), value, np.uint8)
        assert len(np.unique(normaliser.transform(tile).reshape(-1, 3), axis=0)) == 1


def test_macenko_keeps_white_white() -> None:
    white = np.full((4, 4, 3), 255, np.uint8)
    assert Macenko().fit(patch("b")).transform(white).min() >= 240


DEGENERATE = {
    "nothing": np.zeros((0, 3), np.uint8),
    "white": np.full((100, 100, 3), 255, np.uint8),
    "few": np.concatenate([np.full((9000, 3), 250, np.uint8), patch().reshape(-1, 3)[:500]]),
    "one colour": np.full((100, 100, 3), (150, 90, 160), np.uint8),
    "black": np.zeros((100, 100, 3), np.uint8),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_what_cannot_be_fitted_is_left_as_it_is_and_recorded(name: str, kind: str) -> None:
    normaliser = stain_normaliser(name).fit(DEGENERATE[kind])
    np.testing.assert_array_equal(normaliser.transform(patch()), patch())
    record = normaliser.to_dict()
    assert record["fitted"] is False
    assert record["source"] is None
    assert "tissue" in record["reason"]
    # the next slide is fitted as if there had been none before
    assert normaliser.fit(patch()).to_dict() == stain_normaliser(name).fit(patch()).to_dict()


def test_one_stain_is_not_unmixed() -> None:
    amounts = np.random.default_rng(0).gamma(2, 0.4, (100, 100, 1)) + 0.5
    image = (240 * np.exp(-amounts * STAINS["a"][0])).astype(np.uint8)
    record = Macenko().fit(image).to_dict()
    assert (record["fitted"], record["reason"]) == (False, "the tissue shows one stain only")


@pytest.mark.parametrize("name", NAMES)
def test_record_is_plain_and_complete(name: str) -> None:
    normaliser = stain_normaliser(name, patch("b")).fit(patch("a"))
    record = json.loads(json.dumps(normaliser.to_dict()))
    assert record == normaliser.to_dict()
    assert (record["name"], record["fitted"]) == (name, True)
    same = stain_normaliser(name, patch("a")).fit(patch("a")).to_dict()
    assert np.allclose(*(list(_numbers(same[side])) for side in ("source", "target")), atol=1e-9)
    assert list(_numbers(record["target"])) != list(_numbers(record["source"]))


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    else:
        yield value


def test_not_fitted_yet_changes_nothing() -> None:
    assert stain_normaliser("reinhard").to_dict()["reason"] == "not fitted"
    np.testing.assert_array_equal(stain_normaliser("macenko").transform(patch()), patch())


def test_unknown_names_and_targets() -> None:
    with pytest.raises(UserError, match="'macenko'"):
        stain_normaliser("macenco")
    for name in NAMES:
        with pytest.raises(UserError, match="reference"):
            stain_normaliser(name, DEGENERATE["white"])


def test_sample_is_of_tissue_and_seeded(tmp_path: Path) -> None:
    from test_tissue import TISSUE, WHITE, write_slide

    image = np.full((1024, 1024, 3), WHITE, np.uint8)
    image[256:768, 256:768] = TISSUE["haematoxylin"]
    tissue = find_tissue(write_slide(tmp_path / "a.tif", image))
    pixels = sample_pixels(tissue, 0.5, seed=3)
    assert pixels.shape == (64 * 64 * 64, 3)
    assert (pixels == TISSUE["haematoxylin"]).all(1).mean() > 0.85
    np.testing.assert_array_equal(pixels, sample_pixels(tissue, 0.5, seed=3))
    assert (pixels != sample_pixels(tissue, 0.5, seed=4)).any()
    blank = find_tissue(write_slide(tmp_path / "b.tif", np.full((512, 512, 3), 255, np.uint8)))
    assert sample_pixels(blank, 0.5).shape == (0, 3)


def test_reference_of_reinhard_is_the_public_slide(shared_data: Path) -> None:
    slide = open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs")
    pixels = slide.read(0, 0, slide.width, slide.height, slide.mpp)
    target = Reinhard(pixels).to_dict()["target"]
    np.testing.assert_allclose([target["mean"], target["std"]], Reinhard.REFERENCE, atol=0.01)
