"""HED jitter against scikit-image's matrices, and as what a training is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gan_uad.config import DataConfig, load_config
from gan_uad.data.hed import hed_jitter
from gan_uad.data.patches import LabelledStream, PatchSet, TrainStream, load_patches
from gan_uad.errors import UserError

pytestmark = pytest.mark.numerical


def noise(count: int, side: int = 24, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_equals_its_definition_by_skimage() -> None:
    from skimage.color.colorconv import hed_from_rgb, rgb_from_hed

    images = noise(5)
    changes = np.random.default_rng(1).uniform(-0.2, 0.2, (5, 6))
    found = hed_jitter(images, changes)
    for image, into, change in zip(images, found, changes, strict=True):
        stains = -np.log((image + 1.0) / 256) @ hed_from_rgb
        wanted = 256 * np.exp(-(stains * (1 + change[:3]) + change[3:]) @ rgb_from_hed) - 1
        assert np.abs(into - np.clip(wanted, 0, 255)).max() < 0.502


def test_no_change_is_no_change_and_each_image_has_its_own() -> None:
    images = noise(3)
    changes = np.zeros((3, 6))
    np.testing.assert_array_equal(hed_jitter(images, changes), images)
    changes[1, 0] = 0.3
    found = hed_jitter(images, changes)
    np.testing.assert_array_equal(found[[0, 2]], images[[0, 2]])
    assert (found[1] != images[1]).mean() > 0.5
    np.testing.assert_array_equal(hed_jitter(images[1:2], changes[1:2]), found[1:2])


def test_more_haematoxylin_is_bluer_and_darker_and_white_stays_white() -> None:
    purple = np.full((1, 1, 1, 3), (120, 90, 170), np.uint8)
    change = np.array([[0.3, 0, 0, 0, 0, 0]])
    found = hed_jitter(purple, change)[0, 0, 0].astype(int) - purple[0, 0, 0]
    assert (found < 0).all()
    assert found[0] < found[2]  # red is reduced most
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    np.testing.assert_array_equal(hed_jitter(white, change), white)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[float, PatchSet]:
    """The same patches with and without jitter."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("hed")
    for k, image in enumerate(noise(12, 16)):
        (folder / ("normal", "anomalous")[k % 2]).mkdir(exist_ok=True)
        Image.fromarray(image // 2 + 64).save(folder / ("normal", "anomalous")[k % 2] / f"{k}.png")
    return {
        j: load_patches(DataConfig(path=str(folder), hed_jitter=j), 16, tmp_path_factory.mktemp("c"))
        for j in (0.0, 0.1)
    }


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().mean())


@pytest.mark.parametrize("kind", [TrainStream, LabelledStream])
def test_a_training_is_shown_jittered_images(sets: dict[float, PatchSet], kind: Any) -> None:
    def at(jitter: float, nimg: int, batch: int = 8, seed: int = 0, **share: int) -> torch.Tensor:
        shown = kind(sets[jitter], batch, seed, False, False, **share).at(nimg)
        return shown[0] if isinstance(shown, tuple) else shown

    plain, changed = at(0.0, 0), at(0.1, 0)
    assert 0.005 < difference(plain, changed) < 0.2  # the same images in the same order, a little otherwise
    each = (plain - changed).abs().mean((1, 2, 3))
    assert (each > 0).all()
    assert len(each.unique()) == 8  # every image by itself
    # stateless: the same again, from the middle, and shared among processes
    torch.testing.assert_close(at(0.1, 0), changed, rtol=0, atol=0)
    torch.testing.assert_close(at(0.1, 3)[:5], changed[3:], rtol=0, atol=0)
    shares = [at(0.1, 0, rank=rank, world=2) for rank in (0, 1)]
    torch.testing.assert_close(torch.stack(shares, 1).flatten(0, 1), changed, rtol=0, atol=0)


def test_changes_are_drawn_evenly_within_the_bound(
    sets: dict[float, PatchSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[NDArray[np.float64]] = []
    monkeypatch.setattr("gan_uad.data.patches.hed_jitter", lambda images, changes: (drawn.append(changes), images)[1])
    TrainStream(sets[0.1], 2000, 5, True, True).at(0)
    (changes,) = drawn
    assert changes.shape == (2000, 6)
    assert np.abs(changes).max() <= 0.1
    # mean and variance of the even distribution, and no two of the six hang together
    np.testing.assert_allclose(changes.mean(0), 0, atol=5 * 0.1 / np.sqrt(3 * 2000))
    np.testing.assert_allclose(changes.var(0), 0.01 / 3, rtol=0.1)
    assert np.abs(np.corrcoef(changes.T) - np.eye(6)).max() < 0.1


def test_what_the_set_itself_holds_is_untouched(sets: dict[float, PatchSet]) -> None:
    np.testing.assert_array_equal(sets[0.0].images, sets[0.1].images)
    assert sets[0.0].fingerprint == sets[0.1].fingerprint


def test_setting(tmp_path: Path) -> None:
    assert load_config("wgan_gp_64").data.hed_jitter == 0
    assert load_config("wgan_gp_64", ["data.hed_jitter=0.05"]).data.hed_jitter == 0.05
    for wrong in ("-0.1", "0.6", "much"):
        with pytest.raises(UserError, match="hed_jitter"):
            load_config("wgan_gp_64", [f"data.hed_jitter={wrong}"])
