"""The classical detectors: against their definitions in float64 and scikit-learn itself, alone and saved, bounded in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_tools import Thumbnails
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.covariance import ledoit_wolf
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM
from torch import Tensor

from gan_uad import registry
from gan_uad.data.patches import to_uint8
from gan_uad.errors import UserError
from gan_uad.features import weights
from gan_uad.features.base import FeatureNet
from gan_uad.features.load import load_features
from gan_uad.metrics import neighbours
from gan_uad.metrics.coreset import Reservoir, k_center
from gan_uad.metrics.neighbours import nearest
from gan_uad.scoring.base import Scorer, load_scorer

pytestmark = pytest.mark.numerical

SIDE = 16
VECTORS: dict[str, dict[str, Any]] = {
    "mahalanobis": {},
    "knn": {"k": 3, "metric": "euclidean"},
    "one_class_svm": {"nu": 0.2},
    "isolation_forest": {"trees": 10, "samples": 20},
    "local_outlier_factor": {"k": 5},
}
ALL = {**VECTORS, "mean_color": {}, "patchcore": {"strides": [4, 8], "memory_mb": 0.05, "max_patches": 40}}


class Maps(Thumbnails):
    """Maps at 1/4 (gradients and colour) and 1/8 of the side (colour), of images as large as they are."""

    side = SIDE

    def maps(self, images: Tensor) -> list[Tensor]:
        pool = torch.nn.functional.avg_pool2d
        return [torch.cat([pool(images, 4), pool(images.square(), 4)], 1), pool(images, 8)]


def make(name: str, **options: Any) -> Scorer:
    given = {} if name == "mean_color" else {"net": Maps()}
    scorer: Scorer = registry.build("scorer", name, ALL[name] | options, **given)
    return scorer


def patches(n: int, seed: int, brightness: float = 0.0) -> Tensor:
    """Float `[n, 3, 16, 16]` in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    base = torch.nn.functional.interpolate(torch.randn(n, 3, 4, 4, generator=random), size=SIDE, mode="bilinear")
    return (0.3 * base + 0.05 * torch.randn(n, 3, SIDE, SIDE, generator=random) + brightness).clamp(-1, 1)


def stream(images: Tensor, size: int = 16, labels: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    return zip(images.split(size), labels.split(size), strict=True)


def fitted(name: str, images: Tensor | None = None, size: int = 16, **options: Any) -> Scorer:
    scorer = make(name, **options)
    scorer.fit(stream(patches(60, 0) if images is None else images, size))
    return scorer


def vectors(images: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return Thumbnails()(torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2)).double().numpy()


def scores(scorer: Scorer, images: Tensor) -> np.ndarray[Any, Any]:
    return scorer.score(images).image.numpy()


# ---------------------------------------------------------------- nearest neighbours


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 4, 23])
def test_nearest_neighbours_are_those_of_brute_force(monkeypatch: Any, metric: str, k: int) -> None:
    """In tiles that cut both sets, far from the origin, and where a query is among the targets."""
    monkeypatch.setattr(neighbours, "TILE", 7)
    monkeypatch.setattr(neighbours, "ROWS_AT_ONCE", 4)
    rng = np.random.default_rng(0)
    targets = (rng.normal(size=(23, 6)) + 50).astype(np.float32)
    queries = np.concatenate([targets[:2], (rng.normal(size=(9, 6)) + 50).astype(np.float32)])
    expected = np.sort(cdist(queries.astype(float), targets.astype(float), metric), axis=1)[:, :k]
    found = nearest(queries, targets, k, metric)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert (found[:2, 0] == 0).all()


def test_a_vector_of_zeros_has_no_direction() -> None:
    targets = np.eye(3, dtype=np.float32)
    assert nearest(np.zeros((1, 3), np.float32), targets, 3, "cosine").tolist() == [[0.5, 0.5, 0.5]]
    with pytest.raises(ValueError, match=r"3 images, .* at least 4"):
        nearest(targets, targets, 4)
    with pytest.raises(ValueError, match="no 0-th nearest"):
        nearest(targets, targets, 0)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("reduce", ["mean", "last"])
def test_knn_is_the_distance_to_the_nearest_normals(metric: str, reduce: str) -> None:
    images = patches(10, 1)
    distance = np.sort(cdist(vectors(images), vectors(patches(60, 0)), metric), axis=1)[:, :4]
    expected = distance.mean(1) if reduce == "mean" else distance[:, 3]
    found = scores(fitted("knn", k=4, metric=metric, reduce=reduce), images)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ---------------------------------------------------------------- against scikit-learn


def expected_of(name: str, known: Any, new: Any) -> Any:
    if name == "mahalanobis":
        precision = np.linalg.inv(ledoit_wolf(known)[0])
        return [mahalanobis(x, known.mean(0), precision) for x in new]
    if name == "one_class_svm":
        return -OneClassSVM(nu=0.2).fit(known).decision_function(new)
    if name == "isolation_forest":
        return -IsolationForest(n_estimators=10, max_samples=20, random_state=0).fit(known).score_samples(new)
    return -LocalOutlierFactor(n_neighbors=5, novelty=True).fit(known).score_samples(new)


@pytest.mark.parametrize("name", ["mahalanobis", "one_class_svm", "isolation_forest", "local_outlier_factor"])
def test_scores_are_those_of_scikit_learn(name: str) -> None:
    images = torch.cat([patches(10, 1), patches(5, 2, 0.4)])
    expected = expected_of(name, vectors(patches(60, 0)), vectors(images))
    np.testing.assert_allclose(scores(fitted(name), images), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("levels", ["all", [0], [1, 0]])
def test_the_gaussians_of_levels_are_summed(levels: Any, tmp_path: Path) -> None:
    def averaged(images: Tensor) -> list[np.ndarray[Any, Any]]:
        eight_bit = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2).double() / 127.5 - 1
        return [maps.mean((2, 3)).numpy() for maps in Maps().maps(eight_bit)]

    train, images = patches(60, 0), torch.cat([patches(35, 1), patches(5, 2, 0.4)])
    each = [expected_of("mahalanobis", k, n) for k, n in zip(averaged(train), averaged(images), strict=True)]
    chosen = [0, 1] if levels == "all" else levels
    scorer = fitted("mahalanobis", train, levels=levels)
    found = scorer.score(images)
    np.testing.assert_allclose(found.image, np.sum([each[level] for level in chosen], 0), rtol=1e-4)
    for level in chosen:
        np.testing.assert_allclose(found.components[f"level_{level}"], each[level], rtol=1e-4)
    np.testing.assert_allclose(scores(scorer, images[3:4]), found.image[3:4], rtol=1e-6)
    scorer.save(tmp_path / "a.safetensors")
    torch.testing.assert_close(load_scorer(tmp_path / "a.safetensors", net=Maps()).score(images).image, found.image)


def test_options_have_their_effect() -> None:
    images = patches(6, 1)
    plain = {name: scores(fitted(name), images) for name in ALL}
    for name, options in (
        ("one_class_svm", {"nu": 0.5}),
        ("one_class_svm", {"gamma": 1e-6}),
        ("isolation_forest", {"trees": 11}),
        ("isolation_forest", {"samples": 10}),
        ("isolation_forest", {"seed": 1}),
        ("local_outlier_factor", {"k": 6}),
        ("local_outlier_factor", {"metric": "cosine"}),
        ("patchcore", {"strides": [4]}),
        ("patchcore", {"max_patches": 20}),
        ("patchcore", {"memory_mb": 0.01}),
        ("patchcore", {"seed": 1}),
        ("patchcore", {"reweight": 3}),
    ):
        assert not np.array_equal(scores(fitted(name, **options), images), plain[name]), (
            name,
            options,
        )


# ---------------------------------------------------------------- the coreset


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 6))
def test_k_center_always_takes_the_farthest(seed: int, n: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(100, size=(n, d)).astype(np.float32)  # integers, whose distances have no rounding
    points[:, 0] = rng.permutation(100)[:n]  # no two alike
    first, count = int(rng.integers(n)), int(rng.integers(1, n + 1))
    chosen = k_center(points, count, first)
    assert chosen[0] == first
    assert len(set(chosen.tolist())) == len(chosen) == count
    distance = cdist(points.astype(float), points.astype(float))
    for k in range(1, count):
        away = distance[:, chosen[:k]].min(1)
        assert away[chosen[k]] == away.max()


def test_k_center_does_not_repeat_itself() -> None:
    points = np.repeat(np.array([[3, 4], [30, 40], [-3, 5]], np.float32), 5, axis=0)
    assert sorted((k_center(points, 15, 2) // 5).tolist()) == [0, 1, 2]
    for count, first in ((0, 0), (1, 15), (1, -1)):
        with pytest.raises(ValueError, match="cannot choose"):
            k_center(points, count, first)


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_a_sample_is_of_the_stream_and_does_not_depend_on_how_it_is_cut(cuts: list[int], size: int) -> None:
    total = sum(cuts)
    numbers = np.arange(total, dtype=np.float32)[:, None]
    complete, cut = Reservoir(size, 1, 5), Reservoir(size, 1, 5)
    complete.update(numbers)
    for part in np.split(numbers, np.cumsum(cuts)):
        cut.update(part)
    held = sorted(complete.sample[:, 0].tolist())
    assert held == sorted(cut.sample[:, 0].tolist())
    assert len(set(held)) == len(held) == complete.held == min(size, total)
    assert complete.seen == total
    if total:
        assert complete.sample[complete.first] == cut.sample[cut.first]


def test_a_sample_is_fair() -> None:
    """Each of 50 vectors is among 10 kept in a fifth of 500 streams, and is the first in a fiftieth."""
    kept, first = np.zeros(50), np.zeros(50)
    for seed in range(500):
        sample = Reservoir(10, 1, seed)
        for part in np.split(np.arange(50, dtype=np.float32)[:, None], [3, 20]):
            sample.update(part)
        kept[sample.sample[:, 0].astype(int)] += 1
        first[int(sample.sample[sample.first, 0])] += 1
    assert np.abs(kept - 100).max() < 5 * np.sqrt(500 * 0.2 * 0.8)
    assert np.abs(first - 10).max() < 5 * np.sqrt(10)


# ---------------------------------------------------------------- the memory of patches


def patches_of(images: Tensor) -> Any:
    """`[N, 4, 4, 9]` by the definition: averages over the 3 × 3 neighbours that there are, the coarse map interpolated."""
    fine, coarse = (m.double().numpy() for m in Maps().maps(images))

    def averaged(m: Any) -> Any:
        out = np.empty_like(m)
        for y in range(m.shape[2]):
            for x in range(m.shape[3]):
                out[:, :, y, x] = m[:, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean((2, 3))
        return out

    weights = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # centres of 4 places among those of 2
    larger = np.einsum("yi,xj,ncij->ncyx", weights, weights, averaged(coarse))
    return np.concatenate([averaged(fine), larger], 1).transpose(0, 2, 3, 1)


def test_a_map_holds_distances_to_the_nearest_patch_in_memory_and_the_score_is_the_largest() -> None:
    """All patches of few images are in memory, so that the memory is known."""
    train, images = patches(6, 0), patches(5, 1)
    scorer = fitted("patchcore", train, max_patches=96, memory_mb=1, sigma=0)
    known, new = patches_of(train).reshape(-1, 9), patches_of(images)
    assert len(scorer.memory) == 96  # type: ignore[attr-defined]
    distance = cdist(new.reshape(-1, 9), known).min(1).reshape(5, 4, 4)
    found = scorer.score(images)
    np.testing.assert_allclose(found.image.numpy(), distance.max((1, 2)), rtol=1e-4)
    assert torch.equal(found.components["max"], found.image)
    np.testing.assert_allclose(found.components["mean"].numpy(), distance.mean((1, 2)), rtol=1e-4)
    mean = fitted("patchcore", train, max_patches=96, memory_mb=1, reduce="mean").score(images)
    assert torch.equal(mean.image, found.components["mean"])
    up = torch.nn.functional.interpolate(
        torch.from_numpy(distance)[:, None], SIDE, mode="bilinear", align_corners=False
    )
    assert found.map is not None
    np.testing.assert_allclose(found.map.numpy(), up[:, 0].numpy(), rtol=1e-4, atol=1e-6)
    smooth = fitted("patchcore", train, max_patches=96, memory_mb=1, sigma=1.5).score(images)
    assert torch.equal(smooth.image, found.image)
    expected = gaussian_filter(up[:, 0].numpy(), (0, 1.5, 1.5), mode="nearest", truncate=4)
    assert smooth.map is not None
    np.testing.assert_allclose(smooth.map.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_of_several_maps_of_a_stride_the_last_is_taken() -> None:
    class More(Maps):
        def maps(self, images: Tensor) -> list[Tensor]:
            fine, coarse = super().maps(images)
            return [fine[:, :2] * 9, fine, coarse * 9, coarse]

    train, images = patches(6, 0), patches(5, 1)
    scorer: Scorer = registry.build("scorer", "patchcore", ALL["patchcore"], net=More())
    scorer.fit(stream(train))
    assert np.array_equal(scores(scorer, images), scores(fitted("patchcore", train), images))


def test_the_weight_of_the_score_is_that_of_the_paper() -> None:
    train, images = patches(6, 0), patches(5, 1)
    scorer = fitted("patchcore", train, max_patches=96, memory_mb=1, reweight=4)
    known, new = patches_of(train).reshape(-1, 9), patches_of(images).reshape(5, 16, 9)
    expected = []
    for image in new:
        distance = cdist(image, known)
        x = image[distance.min(1).argmax()]
        m = known[cdist(x[None], known)[0].argmin()]
        around = known[cdist(m[None], known)[0].argsort()[:4]]
        star = np.linalg.norm(x - m)
        expected.append((1 - np.exp(star) / np.exp(cdist(x[None], around)).sum()) * star)
    np.testing.assert_allclose(scores(scorer, images), expected, rtol=1e-4)


def test_the_memory_is_a_coreset_of_the_sample() -> None:
    """With room for all patches the sample is everything: the memory must cover it as the definition does."""
    train = patches(20, 0)
    scorer = fitted("patchcore", train, max_patches=30, memory_mb=1)
    memory = scorer.memory.double().numpy()  # type: ignore[attr-defined]
    everything = patches_of(train).reshape(-1, 9)
    assert memory.shape == (30, 9)
    own = cdist(memory, everything)
    assert own.min(1).max() < 1e-5
    radius = own.min(0).max()
    for k in range(1, 30):  # each was the farthest, so none lies closer to those before than what is left uncovered
        assert cdist(memory[k : k + 1], memory[:k]).min() >= radius - 1e-5


@pytest.mark.parametrize("count", [40, 400])
def test_memory_is_bounded_at_any_number_of_images(count: int) -> None:
    """400 images have 6,400 patches of 36 bytes; the fit may take 0.05 MiB for them, beside one micro-batch."""
    scorer, images = make("patchcore"), patches(16, 0)
    many = ((images.roll(k, 0), torch.zeros(16, dtype=torch.int64)) for k in range(count // 16))
    scorer.fit(stream(images))  # what is imported and cached at the first call
    tracemalloc.start()
    scorer.fit(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.05 * 2**20 + 30_000
    assert len(scorer.memory) == 40  # type: ignore[attr-defined]
    assert scorer.sample == (0.05 * 2**20 - 40 * 36) // (36 + 32)  # type: ignore[attr-defined]


# ---------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_normal_scores_higher_and_is_not_fitted_on(name: str) -> None:
    normal, strange = patches(60, 0), patches(20, 1, 0.6)
    scorer = make(name)
    assert scorer.learns
    scorer.fit(stream(torch.cat([normal, strange]), 16, torch.tensor([0] * 60 + [1] * 20)))
    assert not scorer.learns
    assert np.median(scores(scorer, strange)) > scores(scorer, patches(20, 2)).max() * 0.99
    np.testing.assert_allclose(scores(scorer, strange), scores(fitted(name, normal), strange), rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_scores_do_not_depend_on_company(name: str) -> None:
    scorer, images = fitted(name), patches(40, 1)
    complete = scorer.score(images)
    for size in (1, 7, 33):
        components = [scorer.score(x) for x in images.split(size)]
        torch.testing.assert_close(torch.cat([p.image for p in components]), complete.image, rtol=1e-5, atol=1e-7)
        if complete.map is not None:
            torch.testing.assert_close(
                torch.cat([p.map for p in components if p.map is not None]), complete.map, rtol=1e-5, atol=1e-7
            )
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scorer.score(images[order]).image, complete.image[order], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(fitted(name, size=33).score(images).image, complete.image, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_a_saved_scorer_scores_the_same(name: str, tmp_path: Path) -> None:
    scorer, images = make(name), patches(20, 1)
    scorer.fit(stream(patches(60, 0)), stream(patches(12, 3)))
    scorer.save(tmp_path / "a.safetensors")
    given = {} if name == "mean_color" else {"net": Maps()}
    again = load_scorer(tmp_path / "a.safetensors", **given)
    assert not again.learns
    torch.testing.assert_close(again.score(images).image, scorer.score(images).image, rtol=1e-6, atol=0)
    assert torch.equal(again.calibration, scorer.calibration)
    if name != "mean_color":
        other = Maps()
        other.weights = "others"
        with pytest.raises(UserError, match=r"fitted with the features .*none.*others"):
            load_scorer(tmp_path / "a.safetensors", net=other)


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors of a scorer's file, and nothing of what it says of itself."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("mahalanobis", "scorer.0.cov"), ("knn", "scorer.normals"), ("isolation_forest", "scorer.normals"), ("mean_color", "scorer.mean"),
        ("patchcore", "scorer.memory"), ("knn", "calibration"), ("patchcore", "map_tail.map"),
    ],
)  # fmt: skip
def test_a_scorer_with_values_that_no_fit_gives_is_refused(name: str, tensor: str, tmp_path: Path) -> None:
    scorer, file = make(name), tmp_path / "a.safetensors"
    scorer.fit(stream(patches(60, 0)), stream(patches(12, 3)))
    scorer.save(file)
    good = load_file(file)[tensor]
    infinite = good.clone()
    infinite.view(-1)[0] = float("inf")
    for bad in (good * float("nan"), infinite, good.long(), good > 0):
        rewrite(file, lambda tensors, bad=bad: tensors | {tensor: bad})  # type: ignore[misc]
        with pytest.raises(UserError, match=f"{file}: {tensor} "):
            load_scorer(file, **({} if name == "mean_color" else {"net": Maps()}))


def test_a_gaussian_of_the_format_without_levels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    fitted("mahalanobis").save(path)
    rewrite(path, lambda tensors: {name.replace("scorer.0.", "scorer."): value for name, value in tensors.items()})
    with pytest.raises(UserError, match=r"older version.*fit again"):
        load_scorer(path, net=Maps())


def test_another_version_of_scikit_learn_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    scorer = fitted("isolation_forest")
    scorer.save(path)
    load_scorer(path, net=Maps())
    assert capsys.readouterr().err == ""
    rewrite(path, lambda tensors: tensors | {"scorer.scikit_learn": torch.tensor(list(b"0.9"), dtype=torch.uint8)})
    load_scorer(path, net=Maps())
    assert "fitted by scikit-learn 0.9 and is fitted again by" in capsys.readouterr().err


@pytest.mark.parametrize("name", ALL)
def test_constant_images_have_finite_scores(name: str) -> None:
    """Scored, and for those that need no covariance also as all that was fitted on."""
    grey = torch.linspace(-1, 1, 9).view(9, 1, 1, 1).expand(9, 3, SIDE, SIDE).contiguous()
    found = fitted(name).score(grey)
    assert bool(found.image.isfinite().all())
    assert found.map is None or bool(found.map.isfinite().all())
    if name != "mahalanobis":
        alike = fitted(name, grey[3:4].expand(30, -1, -1, -1))
        assert bool(alike.score(grey).image.isfinite().all())


@pytest.mark.parametrize("name", ALL)
def test_before_fit_there_is_no_figure(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the {name} scorer was not fitted"):
        make(name).score(patches(2, 0))
    if name != "mean_color":
        with pytest.raises(UserError, match="was not fitted"):
            make(name).save(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "options", "count", "message"),
    [
        ("knn", {"k": 7}, 6, "the knn scorer needs at least 7 normal images to fit with k = 7, got 6"),
        ("local_outlier_factor", {"k": 6}, 6, "at least 7 normal images to fit with k = 6, got 6"),
        ("mahalanobis", {}, 2, "at least 3 normal images"),
        ("mahalanobis", {"levels": "all"}, 0, "at least 3 normal images"),
        ("mahalanobis", {"levels": [1, 2]}, 9, "no level 2, only 0 to 1"),
        ("one_class_svm", {}, 1, "at least 2 normal images"),
        ("isolation_forest", {}, 0, "at least 2 normal images to fit, got 0"),
        ("patchcore", {}, 0, "at least 1 normal images"),
        (
            "patchcore",
            {"max_patches": 4, "reweight": 4, "strides": [4]},
            -1,
            "found 1 different patches .* asks for 4 neighbours",
        ),
    ],
)
def test_too_few_images(name: str, options: dict[str, Any], count: int, message: str) -> None:
    images = patches(count, 0) if count >= 0 else torch.ones(5, 3, SIDE, SIDE)
    with pytest.raises(UserError, match=message):
        fitted(name, images, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("knn", {"k": 0}, "k must be at least 1, not 0"),
        ("knn", {"metric": "manhattan"}, "metric must be cosine or euclidean, not 'manhattan'"),
        ("knn", {"reduce": "sum"}, "reduce must be mean or last"),
        ("knn", {"neighbours": 3}, "no option 'neighbours'"),
        ("mahalanobis", {"levels": []}, "levels must be all, or a list"),
        ("mahalanobis", {"levels": [-1]}, "levels must be all, or a list"),
        ("mahalanobis", {"levels": "some"}, "levels must be all, or a list"),
        ("one_class_svm", {"nu": 0}, "nu must be above 0 and at most 1"),
        ("one_class_svm", {"nu": 1.01}, "nu must be above 0 and at most 1"),
        ("one_class_svm", {"gamma": 0}, "gamma must be above 0"),
        ("isolation_forest", {"trees": 0}, "trees must be at least 1"),
        ("isolation_forest", {"samples": 1}, "samples must be at least 2"),
        ("isolation_forest", {"seed": -1}, "seed must be from 0"),
        ("local_outlier_factor", {"k": 0}, "k must be at least 1"),
        ("local_outlier_factor", {"metric": "l3"}, "metric must be"),
        ("patchcore", {"strides": []}, "at least one map"),
        ("patchcore", {"strides": [16]}, "has no maps of stride 16; it has 4, 8"),
        ("patchcore", {"max_patches": 0}, "max_patches must be at least 1"),
        ("patchcore", {"memory_mb": 0.003}, "memory_mb 0.003 does not hold a sample of 40 patches of 9 numbers .* at least 0.0"),
        ("patchcore", {"memory_mb": float("nan")}, "memory_mb must be above 0"),
        ("patchcore", {"reduce": "median"}, "reduce must be max or mean"),
        ("patchcore", {"reweight": 1}, "reweight must be 0"),
        ("patchcore", {"reweight": 41}, "reweight must be 0"),
        ("patchcore", {"sigma": -1}, "sigma must be at least 0"),
        ("patchcore", {"seed": -1}, "seed must be at least 0"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(name, **options)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", [name for name in ALL if name != "mean_color"])
def test_features_that_are_no_numbers(name: str) -> None:
    """Of a network that overflows, for instance: neither fitted on nor scored."""

    class Broken(Maps):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) / 0

        def maps(self, images: Tensor) -> list[Tensor]:
            return [m / 0 for m in super().maps(images)]

    message = f"features .* of some images are NaN or infinite: the {name} scorer cannot use them"
    scorer: Any = fitted(name)
    scorer.net = Broken()
    with pytest.raises(UserError, match=message):
        scorer.score(patches(3, 1))
    with pytest.raises(UserError, match=message):
        scorer.fit(stream(patches(60, 0)))


def test_features_that_cannot_be_had() -> None:
    with pytest.raises(UserError, match="did you mean 'vgg16'"):
        registry.build("scorer", "knn", {"features": "vgg61"})
    with pytest.raises(UserError, match="use a network with maps"):
        registry.build("scorer", "patchcore", {"features": "pixels"})


def test_features_without_their_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: Any) -> None:
        raise weights.Unreachable("no network")

    monkeypatch.setenv("GAN_UAD_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights, "download", offline)
    with pytest.raises(UserError, match=r"resnet34.*GAN_UAD_WEIGHTS") as caught:
        registry.build("scorer", "knn", {"features": "resnet34"})
    assert "\n" not in caught.value.message


# ---------------------------------------------------------------- pixels as features


def test_pixels_are_averages_over_areas() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
    net: FeatureNet = load_features("pixels@4")
    expected = images.double().view(3, 3, 4, 8, 4, 8).mean((3, 5)).flatten(1) / 255
    np.testing.assert_allclose(net(images).numpy(), expected.numpy(), rtol=1e-5)
    assert (net.dim, load_features("pixels").dim) == (48, 768)
    assert net.metric == "FD-Pixels4"
    assert load_features("pixels@1")(images).shape == (3, 3)
    with pytest.raises(UserError, match="have no weights"):
        load_features("pixels", weights=Path("here"))
    with pytest.raises(UserError, match="at least 1 px"):
        load_features("pixels@0")


def test_the_gaussian_of_one_pixel_is_that_of_the_mean_colour() -> None:
    """But for shrinkage, which is little for many images, and the square."""
    images, train = patches(20, 1), patches(400, 0)
    scorer: Scorer = registry.build("scorer", "mahalanobis", {"features": "pixels@1"})
    scorer.fit(stream(train))
    np.testing.assert_allclose(scores(scorer, images) ** 2, scores(fitted("mean_color", train), images), rtol=0.1)
