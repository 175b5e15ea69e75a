"""The scorer `fid`: images against the Gaussian of normal features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from gan_uad import registry
from gan_uad.data.patches import to_uint8
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.metrics.generation import frechet_distance, gaussian_of
from gan_uad.scoring.base import Scorer, load_scorer

pytestmark = pytest.mark.numerical


class Tiny(FeatureNet):
    """Colours of the quarters of an image and of its fine grain."""

    metric, dim, weights, preprocessing = "FD-Tiny", 15, "none", "RGB, 0 to 1"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self.seen.append(images)
        x = images.float() / 255
        grain = (x - torch.nn.functional.avg_pool2d(x, 3, 1, 1)).abs().mean((2, 3))
        return torch.cat([torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1), grain], dim=1)


def patches(n: int, seed: int, brightness: float = 0.0) -> Tensor:
    """Float `[n, 3, 16, 16]` in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    base = torch.nn.functional.interpolate(torch.randn(n, 3, 4, 4, generator=random), size=16, mode="bilinear")
    return (0.3 * base + 0.05 * torch.randn(n, 3, 16, 16, generator=random) + brightness).clamp(-1, 1)


def stream(images: Tensor, size: int, labels: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    return zip(images.split(size), labels.split(size), strict=True)


def fitted(images: Tensor, size: int = 16, labels: Tensor | None = None) -> Scorer:
    scorer: Scorer = registry.build("scorer", "fid", {}, net=Tiny())
    scorer.fit(stream(images, size, labels))
    return scorer


def features(images: Tensor) -> np.ndarray:
    return Tiny()(torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize("n", [10, 120])
def test_a_score_is_the_mahalanobis_distance_with_scikit_learns_covariance(n: int) -> None:
    """With fewer images than features, too."""
    train, images = patches(n, 0), patches(20, 1)
    precision = np.linalg.inv(ledoit_wolf(features(train).astype(np.float64))[0])
    center = features(train).mean(0, dtype=np.float64)
    expected = [mahalanobis(x, center, precision) for x in features(images)]
    np.testing.assert_allclose(fitted(train).score(images).image.numpy(), expected, rtol=1e-5)


def test_what_is_not_normal_scores_higher_and_is_not_fitted_on() -> None:
    normal, strange = patches(100, 0), patches(50, 1, 0.5)
    labels = torch.tensor([0] * 100 + [1] * 50)
    scorer = fitted(torch.cat([normal, strange]), 16, labels)
    assert scorer.score(strange).image.min() > scorer.score(patches(50, 2)).image.median()
    torch.testing.assert_close(scorer.score(strange).image, fitted(normal).score(strange).image, rtol=1e-6, atol=0)


def test_compare_is_the_frechet_distance_and_says_of_what(capsys: pytest.CaptureFixture[str]) -> None:
    train, images = patches(90, 0), patches(70, 1, 0.1)
    found = fitted(train).compare(images)
    expected = frechet_distance(gaussian_of(features(train)), gaussian_of(features(images)))
    assert found["frechet_distance"] == pytest.approx(expected, rel=1e-9)
    assert expected > 5 * fitted(train).compare(patches(70, 2))["frechet_distance"]
    named = {"figure": "FD-Tiny", "weights": "none", "preprocessing": "RGB, 0 to 1", "n": 70, "n_normal": 90}
    assert named.items() <= found.items()
    assert "70 images against 90" in found["warning"]
    assert found["warning"] in capsys.readouterr().err
    assert fitted(train).compare(train)["frechet_distance"] == pytest.approx(0, abs=1e-9)


def test_nothing_is_said_of_enough_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("gan_uad.scoring.frechet.MIN_IMAGES", 60)
    assert fitted(patches(60, 0)).compare(patches(60, 1))["warning"] == ""
    assert capsys.readouterr().err == ""
    assert fitted(patches(60, 0)).compare(patches(59, 1))["warning"] != ""
    assert fitted(patches(59, 0)).compare(patches(60, 1))["warning"] != ""


def test_scores_do_not_depend_on_company_nor_on_the_batches_of_the_fit() -> None:
    train, images = patches(80, 0), patches(40, 1)
    scorer = fitted(train)
    complete = scorer.score(images).image
    for size in (1, 7, 33):
        torch.testing.assert_close(
            torch.cat([scorer.score(x).image for x in images.split(size)]), complete, rtol=1e-6, atol=0
        )
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scorer.score(images[order]).image, complete[order], rtol=1e-6, atol=0)
    for size in (1, 33, 80):
        torch.testing.assert_close(fitted(train, size).score(images).image, complete, rtol=1e-5, atol=0)


def test_the_network_sees_the_bytes_of_a_file() -> None:
    """x · 127.5 + 128, clamped."""
    scorer = fitted(patches(20, 0))
    image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    scorer.net.seen.clear()  # type: ignore[attr-defined]
    scorer.score(image)
    expected = np.clip(np.float32(127.5) * image.numpy() + 128, 0, 255).astype(np.uint8)
    (seen,) = scorer.net.seen  # type: ignore[attr-defined]
    assert (seen[0].numpy() == expected[0]).all()


def test_a_saved_scorer_scores_the_same(tmp_path: Path) -> None:
    train, images = patches(50, 0), patches(20, 1)
    scorer = fitted(train)
    scorer.fit(stream(train, 16), stream(images, 8))
    scorer.save(tmp_path / "fid.safetensors")
    again = load_scorer(tmp_path / "fid.safetensors", net=Tiny())
    assert torch.equal(again.score(images).image, scorer.score(images).image)
    assert again.compare(images) == scorer.compare(images)
    assert torch.equal(again.calibration, scorer.calibration)
    other = Tiny()
    other.weights = "others"
    with pytest.raises(UserError, match=r"fitted with the features .*none.*others"):
        load_scorer(tmp_path / "fid.safetensors", net=other)


def test_bad_input_is_refused_in_words(tmp_path: Path) -> None:
    unfitted: Scorer = registry.build("scorer", "fid", {}, net=Tiny())
    for use in (unfitted.score, unfitted.compare):
        with pytest.raises(UserError, match="not fitted"):
            use(patches(3, 0))
    with pytest.raises(UserError, match="not fitted"):
        unfitted.save(tmp_path / "fid.safetensors")
    with pytest.raises(UserError, match=r"at least 3 .* got 2"):
        fitted(patches(2, 0))
    with pytest.raises(UserError, match="normal images cannot be inverted"):
        fitted(patches(1, 0).expand(20, 3, 16, 16))
    broken = patches(20, 0)
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        fitted(broken)
    with pytest.raises(ValueError, match="finite"):
        fitted(patches(20, 0)).compare(broken)
    with pytest.raises(UserError, match="at least 2 images"):
        fitted(patches(20, 0)).compare(patches(1, 0))
    with pytest.raises(UserError, match="no features"):
        registry.build("scorer", "fid", {"features": "nonesuch"})


def test_the_default_features_are_the_embedded_ones_and_never_called_fid(tmp_path: Path) -> None:
    scorer: Scorer = registry.build("scorer", "fid", {})
    scorer.micro_batch = 4
    train = patches(4, 0)
    scorer.fit(stream(train, 4))
    found = scorer.compare(patches(4, 1))
    assert (found["figure"], found["features"]) == ("FD-EffNetLite0", "efficientnet_lite0")
    assert "sha256" in found["weights"]
    scorer.save(tmp_path / "fid.safetensors")
    again = load_scorer(tmp_path / "fid.safetensors")
    again.micro_batch = 4
    assert torch.equal(again.score(train).image, scorer.score(train).image)
