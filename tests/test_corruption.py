"""Corruptions of scored images: the definition by other means, the scored images alone, the same in every batch."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from score_tools import fails, index, rows

from gan_uad.config import CorruptionConfig, DataConfig
from gan_uad.data.corruption import corrupt
from gan_uad.data.hed import STAINS
from gan_uad.data.patches import load_patches

BOTH = CorruptionConfig(haematoxylin=0.4, eosin=-0.5, blur=0.8, jpeg=25)


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3)).astype(np.uint8)


def as_file(image: Any, quality: int, folder: Path) -> Any:
    """The picture after it was a file, as anybody would make one."""
    Image.fromarray(image).save(folder / "one.jpg", quality=quality)
    with Image.open(folder / "one.jpg") as found:
        return np.array(found)


def test_jpeg_is_what_a_file_of_that_quality_gives(images: Any, tmp_path: Path) -> None:
    found = corrupt(images, CorruptionConfig(jpeg=30))
    assert all((one == as_file(image, 30, tmp_path)).all() for one, image in zip(found, images, strict=True))
    assert (corrupt(images, CorruptionConfig(jpeg=90)) != found).any()


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_blur_is_a_gaussian(images: Any, sigma: float) -> None:
    """As a float64 matrix on rows and columns of the mirrored picture."""
    reach = int(4 * sigma + 0.5)
    at = np.arange(-reach, reach + 1)
    kernel = np.exp(-(at**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(images[0].astype(np.float64), ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    for axis in (0, 1):
        padded = np.apply_along_axis(lambda line: np.convolve(line, kernel, "valid"), axis, padded)
    found = corrupt(images, CorruptionConfig(blur=sigma))[0]
    assert np.abs(found - padded).max() <= 0.501


def test_stain_is_so_much_more_of_it() -> None:
    """A pixel of h haematoxylin and e eosin comes to be one of 1.4 h and 0.5 e."""

    def colour(h: float, e: float) -> Any:
        return 256 * np.exp(-(h * STAINS[0] + e * STAINS[1])) - 1

    for h, e in ((0.2, 0.1), (0.5, 0.3), (0.0, 0.4), (0.6, 0.0)):
        start = np.rint(colour(h, e)).astype(np.uint8).reshape(1, 1, 1, 3)
        found = corrupt(start, CorruptionConfig(haematoxylin=0.4, eosin=-0.5))
        assert np.abs(found[0, 0, 0] - colour(1.4 * h, 0.5 * e)).max() < 2.5  # the start is rounded
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    assert (corrupt(white, CorruptionConfig(haematoxylin=0.4, eosin=0.4)) == 255).all()


def test_stain_then_blur_then_jpeg(images: Any) -> None:
    one_by_one = images
    for part in ({"haematoxylin": 0.4, "eosin": -0.5}, {"blur": 0.8}, {"jpeg": 25}):
        one_by_one = corrupt(one_by_one, CorruptionConfig(**part))
    assert (corrupt(images, BOTH) == one_by_one).all()
    assert corrupt(images, CorruptionConfig()) is images


def test_patches_are_corrupted_alike_in_every_batch(tiny: Any) -> None:
    patches = load_patches(DataConfig(path=str(tiny.patches)), 32)
    found = patches.corrupted(BOTH)
    assert (found.images == corrupt(patches.images, BOTH)).all()
    assert (found.gather([7]) == found.images[[7]]).all()
    assert (found.take([9, 7, 3]).gather([1, 2]) == found.images[[7, 3]]).all()
    assert found.fingerprint != patches.fingerprint == patches.corrupted(CorruptionConfig()).fingerprint


@pytest.mark.usefixtures("fast")
def test_scored_images_alone_are_corrupted(cli: Any, trained: Any, scored: Path, tmp_path: Path) -> None:
    """Scores are those of a set whose test files are JPEGs; everything about validation is as without."""
    words = ["--threshold", "fpr:0.2", "--out", tmp_path / "scores"]
    result = cli("score", trained.encoder, "-o", "scoring.corruption.jpeg=20", *words)
    assert result.exit_code == 0, result.output
    described = json.loads((tmp_path / "scores" / "scores.json").read_text())
    clean = json.loads((scored / "scores.json").read_text())
    assert described["corruption"] == {"haematoxylin": 0.0, "eosin": 0.0, "blur": 0.0, "jpeg": 20}
    assert clean["corruption"] is None
    assert "jpeg20" in described["label"]
    assert any("corrupted before they were scored: jpeg20" in warning for warning in described["warnings"])
    assert described["thresholds"] == clean["thresholds"]
    named = {"model"}  # the column that tells the two apart
    for name in ("scores_validation.csv", "mean_color_validation.csv"):
        here, there = (
            [{k: v for k, v in row.items() if k not in named} for row in rows(f / name)]
            for f in (tmp_path / "scores", scored)
        )
        assert here == there

    stored = shutil.copytree(trained.patches, tmp_path / "stored")
    for row in index(stored):
        if row["split"] == "test":
            with Image.open(stored / row["image"]) as picture:
                picture.convert("RGB").save(buffer := io.BytesIO(), "jpeg", quality=20)
            Image.open(buffer).save(stored / row["image"])
    result = cli("score", trained.encoder, stored, "--threshold", "fpr:0.2", "--out", tmp_path / "by_hand")
    assert result.exit_code == 0, result.output
    for name in ("scores.csv", "mean_color.csv"):
        numbers = [[float(row["score"]) for row in rows(tmp_path / f / name)] for f in ("scores", "by_hand")]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)
        assert numbers[0] != [float(row["score"]) for row in rows(scored / name)]
    fails(cli("score", trained.encoder, "-o", "scoring.corruption.jpeg=21", *words), "--out")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("scoring.corruption.jpg=20", "'jpeg'"),
        ("scoring.corruption.jpeg=0", "scoring.corruption.jpeg"),
        ("scoring.corruption={blur: -1}", "scoring.corruption.blur"),
    ],
)
def test_wrong_corruptions_are_refused(cli: Any, trained: Any, setting: str, message: str, tmp_path: Path) -> None:
    fails(cli("score", trained.encoder, "-o", setting, "--out", tmp_path / "out"), message)


def test_slides_are_scored_as_they_are(cli: Any, trained: Any, tmp_path: Path) -> None:
    (tmp_path / "slide.tif").write_bytes(b"")
    words = ["score-slide", trained.encoder, tmp_path / "slide.tif", "--out", tmp_path / "out"]
    fails(cli(*words, "-o", "scoring.corruption.jpeg=20"), "scoring.corruption")
