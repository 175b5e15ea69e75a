"""The scoring interface: metrics against formulas, one score an image whatever its neighbours, and scorers that come back whole."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from score_tools import COMPONENTS
from torch import Tensor

import gan_uad
from gan_uad import registry
from gan_uad.config import DataConfig
from gan_uad.data.patches import batches, load_patches
from gan_uad.errors import UserError
from gan_uad.scoring.base import Scorer, load_scorer

pytestmark = pytest.mark.numerical

OPTIONS: dict[str, dict[str, float]] = {"izi_f": {"kappa": 0.7, "smooth": 0}, "anogan": {"steps": 3, "smooth": 0}}


@pytest.fixture(scope="module")
def patches(trained: Any) -> Any:
    return load_patches(DataConfig(path=str(trained.patches)), 32)


@pytest.fixture(scope="module")
def images(patches: Any) -> Tensor:
    return next(batches(patches.select("test").take(range(0, 40, 2)), 64))[
        0
    ]  # 20: a complete micro-batch and a truncated one


@pytest.fixture(scope="module", params=["izi_f", "anogan", "mean_color"])
def scorer(request: pytest.FixtureRequest, trained: Any, patches: Any) -> Scorer:
    return make(request.param, trained, patches)


def make(name: str, trained: Any, patches: Any) -> Scorer:
    if name != "mean_color":
        return gan_uad.load(str(trained.encoder)).scorer(name, **OPTIONS[name])
    found: Scorer = registry.build("scorer", "mean_color", {})
    found.fit(batches(patches.select("train"), 10))
    return found


def test_scores_do_not_depend_on_the_batch(scorer: Scorer, images: Tensor) -> None:
    """Exact where one pass gives the score; a search may carry rounding on (it does not on x86, where all of it is exact)."""
    complete = scorer.score(images)
    searched = getattr(getattr(scorer, "inverter", None), "spec", {}).get("name") == "anogan"
    tolerance = 1e-5 if searched else 0.0
    for size, count in ((1, 4), (3, 7), (16, 20), (17, 20)):
        pieces = [scorer.score(images[i : min(i + size, count)]) for i in range(0, count, size)]
        for name, expected in {"score": complete.image, **complete.components}.items():
            got = torch.cat([p.image if name == "score" else p.components[name] for p in pieces])
            torch.testing.assert_close(got, expected[:count], rtol=tolerance, atol=0, msg=f"{name}, batches of {size}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scorer.score(images[order]).image, complete.image[order], rtol=tolerance, atol=0)
    strange = torch.cat([images[:1], torch.ones(15, 3, 32, 32)])
    torch.testing.assert_close(scorer.score(strange).image[0], complete.image[0], rtol=tolerance, atol=0)


def test_scores_are_repeatable_and_well_formed(scorer: Scorer, images: Tensor) -> None:
    first = scorer.score(images)
    torch.manual_seed(99)
    second = scorer.score(images.clone())
    assert torch.equal(first.image, second.image)
    assert first.image.shape == (20,)
    assert first.image.dtype == torch.float32
    assert bool((first.image >= 0).all())
    assert len(set(first.image.tolist())) == 20
    if first.map is not None and first.reconstruction is not None:
        assert first.map.shape == (20, 32, 32)
        torch.testing.assert_close(first.map, (images - first.reconstruction).abs().mean(1))
        assert float(first.map.max()) <= 2


def test_the_izi_f_score_is_its_formula(trained: Any, images: Tensor) -> None:
    """A = mean (x − G(E(x)))² + κ·mean (f(x) − f(G(E(x))))², f the activations before the critic's last linear layer."""
    model = gan_uad.load(str(trained.encoder))
    G, D, E = model.networks["gan"].G, model.networks["gan"].D, model.networks["encoder"]
    tapped: list[Tensor] = []
    hook = D.linear.register_forward_pre_hook(lambda _, inputs: tapped.append(inputs[0].flatten(1).double()))
    with torch.no_grad():
        z = E(images)
        made = G(z)
        D(images), D(made)
        again = E(made)
    hook.remove()
    residual = (images - made).double().square().mean((1, 2, 3))
    features = (tapped[0] - tapped[1]).square().mean(1)
    scores = model.scorer("izi_f", kappa=0.7).score(images)
    expected = {"residual": residual, "features": features, "latent": (z - again).double().square().mean(1)}
    assert list(scores.components) == COMPONENTS
    for name, values in expected.items():
        torch.testing.assert_close(scores.components[name].double(), values, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(scores.image.double(), residual + 0.7 * features, rtol=1e-5, atol=1e-7)


def test_the_anogan_score_is_the_loss_at_the_end(trained: Any, images: Tensor) -> None:
    found = gan_uad.load(str(trained.generator)).scorer("anogan", steps=6, weight=0.3).score(images)
    assert list(found.components) == [name for name in COMPONENTS if name != "latent"]
    torch.testing.assert_close(found.image, 0.7 * found.components["residual"] + 0.3 * found.components["features"])
    assert found.reconstruction is not None
    torch.testing.assert_close(found.components["residual"], (images - found.reconstruction).abs().sum((1, 2, 3)))


@pytest.mark.parametrize("name", ["izi_f", "anogan", "mean_color"])
def test_higher_is_more_anomalous(name: str, trained: Any, patches: Any) -> None:
    """Pure blue is like no tissue: it lies above every normal image, whatever the detector."""
    normal, _ = next(batches(patches.select("test", 0).take(range(8)), 8))
    blue = torch.full((1, 3, 32, 32), -1.0)
    blue[:, 2] = 1
    scores = make(name, trained, patches).score(torch.cat([normal, blue])).image
    assert float(scores[-1]) > float(scores[:-1].max())


def test_mean_color_is_the_mahalanobis_distance(trained: Any, patches: Any, images: Tensor) -> None:
    normal = next(batches(patches.select("train", 0), 1000))[0].double().mean((2, 3)).numpy()
    away = images.double().mean((2, 3)).numpy() - normal.mean(0)
    expected = np.einsum("ni,ij,nj->n", away, np.linalg.inv(np.cov(normal.T)), away)
    np.testing.assert_allclose(make("mean_color", trained, patches).score(images).image.numpy(), expected, rtol=1e-4)


def test_mean_color_before_fit_gives_no_figure() -> None:
    with pytest.raises(UserError, match="not fitted"):
        registry.build("scorer", "mean_color", {}).score(torch.zeros(2, 3, 8, 8))


def test_mean_color_of_grey_images() -> None:
    grey = torch.linspace(-0.5, 0.5, 9).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    scorer: Scorer = registry.build("scorer", "mean_color", {})
    scorer.fit([(grey, torch.zeros(9))])
    expected = ((grey[:, 0, 0, 0] - grey[:, 0, 0, 0].mean()) / grey[:, 0, 0, 0].std()) ** 2
    torch.testing.assert_close(scorer.score(grey).image, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_mean_color_needs_four_normals(count: int) -> None:
    scorer: Scorer = registry.build("scorer", "mean_color", {})
    anomalous = (torch.zeros(5, 3, 4, 4), torch.ones(5))
    with pytest.raises(UserError, match=f"at least 4 normal images to fit, got {count}"):
        scorer.fit([anomalous, (torch.zeros(count, 3, 4, 4), torch.zeros(count))])
    with pytest.raises(UserError, match="got 0"):
        scorer.fit([])


def test_fit_drops_the_anomalous_and_calibrates_on_validation_normals(patches: Any) -> None:
    train = list(batches(patches.select("train"), 16))
    validation = list(batches(patches.select("val"), 16))
    spoiled = [*train, (torch.ones(6, 3, 32, 32), torch.ones(6, dtype=torch.int64))]
    plain, mixed = registry.build("scorer", "mean_color", {}), registry.build("scorer", "mean_color", {})
    plain.fit(train)
    mixed.fit(spoiled, validation)
    normals = torch.cat([images[labels == 0] for images, labels in validation])
    assert len(normals) == 20
    assert torch.equal(plain.score(normals).image, mixed.calibration)
    assert plain.calibration is None
    only_anomalous = [(images[labels == 1], labels[labels == 1]) for images, labels in validation]
    with pytest.raises(UserError, match="no normal images"):
        registry.build("scorer", "mean_color", {}).fit(train, only_anomalous)


def test_compare_is_the_distance_of_two_distributions(scorer: Scorer, patches: Any, images: Tensor) -> None:
    with pytest.raises(UserError, match="fitted with a validation set"):
        scorer.compare(images)
    scorer.fit(batches(patches.select("train"), 16), batches(patches.select("val"), 16))
    normals = torch.cat([x[y == 0] for x, y in batches(patches.select("val"), 16)])
    itself = scorer.compare(normals)
    assert itself["wasserstein_1"] == pytest.approx(0, abs=1e-6 * itself["mean_score"])
    assert itself["n"] == 20
    white = scorer.compare(torch.ones(4, 3, 32, 32))
    # Where all of one set lies above the other, Wasserstein-1 is the difference of the means.
    assert white["mean_score"] > white["mean_score_of_normals"]
    assert white["wasserstein_1"] == pytest.approx(white["mean_score"] - white["mean_score_of_normals"], rel=0.05)
    scorer.calibration = scorer.map_tails = None


def test_a_scorer_comes_back_from_its_file(
    scorer: Scorer, trained: Any, patches: Any, images: Tensor, tmp_path: Path
) -> None:
    scorer.fit(batches(patches.select("train"), 16), batches(patches.select("val"), 16))
    scorer.save(tmp_path / "scorer.safetensors")
    given = {}
    if hasattr(scorer, "inverter"):
        spec = scorer.inverter.spec
        blank = gan_uad.load(str(trained.encoder))
        for net in blank.networks.values():
            for tensor in net.state_dict().values():
                tensor.zero_()
        given["inverter"] = blank.scorer(spec["name"], **spec["options"]).inverter  # type: ignore[attr-defined]
    back = load_scorer(tmp_path / "scorer.safetensors", **given)
    before, after = scorer.score(images), back.score(images)
    assert torch.equal(after.image, before.image)
    if before.map is not None and after.map is not None:
        assert torch.equal(after.map, before.map)
        assert scorer.map_tails is not None
        assert not torch.equal(before.map, scorer.measure(images).map)
    assert back.calibration is not None
    assert scorer.calibration is not None
    assert torch.equal(back.calibration, scorer.calibration)
    scorer.calibration = scorer.map_tails = None


def test_what_is_no_scorer_file(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "pickle").write_bytes(pickle.dumps({"a": 1}))
    for path, message in (
        (tmp_path / "missing", "missing"),
        (tmp_path / "pickle", "pickle"),
        (trained.encoder / "model.safetensors", "model.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            load_scorer(path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.full((1, 3, 32, 32), 255.0), r"in \[-1, 1\], got values from 255 to 255"),
        (torch.full((1, 3, 32, 32), float("nan")), "finite"),
        (torch.cat([torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), float("inf"))]), "finite"),
        (torch.zeros(1, 1, 32, 32), r"\[N, 3, H, W\]"),
        (torch.zeros(3, 32, 32), r"\[N, 3, H, W\]"),
        (torch.zeros(0, 3, 32, 32), "N >= 1"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "float"),
        (torch.zeros(1, 32, 32, 3), r"\[N, 3, H, W\]"),
    ],
)
def test_what_is_no_image(scorer: Scorer, bad: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scorer.score(bad)


@pytest.mark.parametrize("name", ["izi_f", "anogan"])
def test_another_resolution_is_refused(trained: Any, patches: Any, name: str) -> None:
    with pytest.raises(ValueError, match="takes 32x32 px"):
        make(name, trained, patches).score(torch.zeros(1, 3, 64, 64))
