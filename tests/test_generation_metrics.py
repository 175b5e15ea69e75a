"""Metrics of generated images against torch-fidelity, matrix square roots, closed forms and brute force."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from gan_uad.metrics import generation as g
from gan_uad.metrics.shrinkage import ShrinkageMoments, shrunk

pytestmark = pytest.mark.numerical

QUICK = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**31)


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Like those of a network: not negative, correlated, some nearly constant."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(d).normal(size=(d, d)) * np.exp(-np.arange(d) / (d / 8))[:, None] / np.sqrt(d)
    return np.maximum(rng.normal(size=(n, d)) @ mix + 0.3 + shift, 0).astype(np.float32)


def by_sqrtm(a: g.Gaussian, b: g.Gaussian) -> float:
    """The published formula as pytorch-fid computes it, without its way out for singular products."""
    root = scipy.linalg.sqrtm(a.cov @ b.cov)
    return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * np.trace(root).real)


def by_torch_fidelity(a: g.Gaussian, b: g.Gaussian) -> float:
    sides = [{"mu": side.mean, "sigma": side.cov} for side in (a, b)]
    return fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]


# ---------------------------------------------------------------- moments


@given(SEEDS, st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sampled_from([0.0, 1e3, 1e6]))
@QUICK
def test_moments_of_batches_are_those_of_the_whole(seed, sizes, offset):
    sizes = [*sizes, 3]
    x = (np.random.default_rng(seed).normal(size=(sum(sizes), 5)) + offset).astype(np.float32)
    parts = np.split(x, np.cumsum(sizes)[:-1])
    forth, back = g.Moments(5), g.Moments(5)
    for part in parts:
        forth.update(part)
    for part in reversed(parts):
        back.update(part)
    for moments in (forth, back):
        found = moments.gaussian()
        assert found.n == len(x)
        np.testing.assert_allclose(found.mean, x.mean(0, dtype=np.float64), rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(
            found.cov, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12 + 1e-15 * offset
        )
        assert (found.cov == found.cov.T).all()


def test_moments_keep_no_images():
    moments, batch = g.Moments(64), features(256, 64, 0)
    moments.update(batch)
    tracemalloc.start()
    for _ in range(200):
        moments.update(batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * batch.nbytes  # of 200 batches


def test_features_that_are_no_numbers_are_named():
    x = features(40, 6, 0)
    moments = g.Moments(6)
    moments.update(x[:30])
    broken = x[30:].copy()
    broken[2, 1], broken[7] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 of 10 images .* \(rows 32, 37, counted from 0\)"):
        moments.update(broken)
    assert moments.n == 30
    x[33] = np.nan
    for metric in (g.kid, g.precision_recall, lambda a, b: g.memorisation(a, b, b)):
        with pytest.raises(ValueError, match="rows 33,"):
            metric(x, features(40, 6, 1))
    with pytest.raises(ValueError, match="expected 6"):
        moments.update(features(4, 5, 0))
    with pytest.raises(ValueError, match="float array"):
        moments.update(np.zeros((4, 6), np.uint8))
    with pytest.raises(ValueError, match="at least 2"):
        g.Moments(6).gaussian()
    with pytest.raises(ValueError, match="not finite"):
        g.Gaussian(3, np.zeros(2), np.full((2, 2), np.nan))


# ---------------------------------------------------------------- Fréchet distance


@pytest.mark.parametrize(("n", "m"), [(400, 300), (400, 40), (40, 400), (50, 40)])
def test_frechet_distance_is_the_published_one(n, m):
    """Full rank, one or both rank-deficient: there the square roots of the references are only good to about 1e-6."""
    a, b = g.gaussian_of(features(n, 96, 1)), g.gaussian_of(features(m, 96, 2, 0.05))
    distance = g.frechet_distance(a, b)
    tolerance = 1e-10 if min(n, m) > 96 else 2e-6
    assert distance == pytest.approx(by_sqrtm(a, b), rel=tolerance)
    assert distance == pytest.approx(by_torch_fidelity(a, b), rel=tolerance)
    assert distance == g.frechet_distance(b, a)


@given(SEEDS, st.integers(2, 40), st.integers(2, 40), st.integers(1, 20))
@QUICK
def test_frechet_distance_of_singular_covariances(seed, n, m, d):
    """tr (ΣΣ')^½ is the nuclear norm of the product of the centred data: an SVD of the data alone, no covariance."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * rng.uniform(0, 2, d)
    cx, cy = (x - x.mean(0)) / np.sqrt(n - 1), (y - y.mean(0)) / np.sqrt(m - 1)
    nuclear = np.linalg.svd(cx @ cy.T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (cx**2).sum() + (cy**2).sum() - 2 * nuclear
    a, b = g.gaussian_of(x), g.gaussian_of(y)
    assert g.frechet_distance(a, b) == pytest.approx(expected, abs=1e-9 * (1 + np.trace(a.cov) + np.trace(b.cov)))
    assert g.frechet_distance(a, b) == pytest.approx(g.frechet_distance(b, a), abs=1e-9)


@pytest.mark.parametrize(("n", "d", "scale"), [(400, 96, 1), (30, 96, 1), (2, 8, 1), (300, 8, 100), (40, 96, 100)])
def test_frechet_distance_of_a_set_to_itself_is_nothing(n, d, scale):
    x = features(n, d, 3) * scale
    x[:, 1] = x[:, 0]  # a feature twice, and one that never fires
    x[:, 2] = 0
    a = g.gaussian_of(x)
    b = g.Moments(d)
    for part in np.array_split(x[::-1], 3):
        b.update(part)
    for other in (a, b.gaussian()):
        assert 0 <= g.frechet_distance(a, other) < 1e-6


def test_frechet_distance_where_eigenvalues_fall_over_twenty_orders():
    """Commuting covariances of small eigenvalues that a product drowns: Σ (√λ − √λ')² is what remains."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    one, two = 10.0 ** np.linspace(2, -10, 60), 10.0 ** np.linspace(2, -10, 60)[::-1]
    a, b = (g.Gaussian(1000, np.zeros(60), (basis * values) @ basis.T) for values in (one, two))
    expected = ((np.sqrt(one) - np.sqrt(two)) ** 2).sum()
    assert g.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert 0 <= g.frechet_distance(a, a) < 1e-6
    moved = g.Gaussian(1000, np.full(60, 1e-3), a.cov)  # what a root of too much would take away shows
    assert g.frechet_distance(a, moved) == pytest.approx(60e-6, abs=1e-9)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 4), st.floats(0, 4))
@QUICK
def test_frechet_distance_in_one_dimension(m1, m2, s1, s2):
    a, b = (g.Gaussian(9, np.array([m]), np.array([[s**2]])) for m, s in ((m1, s1), (m2, s2)))
    assert g.frechet_distance(a, b) == pytest.approx((m1 - m2) ** 2 + (s1 - s2) ** 2, abs=1e-12)


@given(SEEDS, st.sampled_from([(60, 50), (60, 6), (5, 7)]), st.floats(0.1, 10), st.floats(-100, 100))
@QUICK
def test_frechet_distance_under_rotation_translation_and_scaling(seed, sizes, scale, shift):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(sizes[0], 8)), rng.normal(size=(sizes[1], 8)) * 2 + 1
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    distance = g.frechet_distance(g.gaussian_of(x), g.gaussian_of(y))
    moved = [g.gaussian_of(scale * (z @ rotation) + shift) for z in (x, y)]
    assert g.frechet_distance(*moved) == pytest.approx(scale**2 * distance, rel=1e-8)
    assert distance == pytest.approx(g.frechet_distance(g.gaussian_of(y), g.gaussian_of(x)), abs=1e-9)


def test_frechet_distance_where_more_images_vary_in_fewer_directions():
    """Most eigenvalues of the product are 0, and their rounding alone would add 1e-7 of the traces a direction."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 40)) * 30
    y = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 40)) * 30
    cx, cy = (x - x.mean(0)) / np.sqrt(199), (y - y.mean(0)) / np.sqrt(299)
    nuclear = np.linalg.svd(cx @ cy.T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (cx**2).sum() + (cy**2).sum() - 2 * nuclear
    assert g.frechet_distance(g.gaussian_of(x), g.gaussian_of(y)) == pytest.approx(expected, rel=1e-10)
    z = y[:, ::-1]  # neither has full rank, and the directions differ
    root = np.linalg.svd(cy @ cy[:, ::-1].T, compute_uv=False).sum()
    expected = ((y.mean(0) - z.mean(0)) ** 2).sum() + 2 * (cy**2).sum() - 2 * root
    assert g.frechet_distance(g.gaussian_of(y), g.gaussian_of(z)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.filterwarnings("error")
def test_frechet_distance_of_sets_that_do_not_vary_or_share_no_direction():
    still = g.gaussian_of(np.full((5, 3), 2.0))
    along, across = (g.Gaussian(50, np.zeros(3), np.diag(values)) for values in ([4.0, 0, 0], [0, 9.0, 1.0]))
    assert g.frechet_distance(still, still) == 0
    assert g.frechet_distance(still, along) == g.frechet_distance(along, still) == pytest.approx(12 + 4)
    assert g.frechet_distance(along, across) == g.frechet_distance(across, along) == pytest.approx(14)


def test_frechet_distance_of_other_features_is_refused():
    with pytest.raises(ValueError, match="of 4 and of 5"):
        g.frechet_distance(g.gaussian_of(features(9, 4, 0)), g.gaussian_of(features(9, 5, 0)))


# ---------------------------------------------------------------- KID


def test_kid_is_torch_fidelitys():
    """To rounding in double precision; in single precision, ours stays by the double value and theirs errs in its sums."""
    x, y = features(700, 64, 1), features(600, 64, 2, 0.05)
    ours, theirs = {}, {}
    for kind in (np.float32, np.float64):
        ours[kind] = g.kid(x.astype(kind), y.astype(kind), 10, 200)
        theirs[kind] = kid_features_to_metric(
            *(torch.from_numpy(z.astype(kind)) for z in (x, y)), kid_subsets=10, kid_subset_size=200, verbose=False
        )
    assert ours[np.float64].mean == pytest.approx(theirs[np.float64]["kernel_inception_distance_mean"], rel=1e-11)
    assert ours[np.float64].std == pytest.approx(theirs[np.float64]["kernel_inception_distance_std"], rel=1e-9)
    assert ours[np.float32].mean == pytest.approx(ours[np.float64].mean, rel=1e-6)
    assert ours[np.float32].mean == pytest.approx(theirs[np.float32]["kernel_inception_distance_mean"], rel=1e-4)
    assert (ours[np.float32].size, ours[np.float32].subsets, ours[np.float32].asked) == (200, 10, 200)


def test_kid_of_one_subset_is_the_unbiased_estimate():
    x, y = (features(7, 3, seed).astype(np.float64) for seed in (1, 2))

    def kernel(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    within = sum(kernel(z[i], z[j]) for z in (x, y) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    between = sum(kernel(a, b) for a in x for b in y) / 49
    assert g.kid(x, y, 1, 7).mean == pytest.approx(within - 2 * between, rel=1e-12)


def test_kid_of_few_images_takes_halves_and_says_so():
    x, y = features(60, 8, 1), features(90, 8, 2)
    found = g.kid(x, y, 40)
    assert (found.size, found.asked) == (30, 1000)
    assert found.std > 0  # subsets of all 60 would be one and the same
    with pytest.raises(ValueError, match="at least 4"):
        g.kid(x[:3], y)


def test_kid_is_around_nothing_for_one_distribution_and_reads_memory_maps(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(2000, 8))
    x[:] = features(2000, 8, 1)
    values = [g.kid(x[:1000], x[1000:], 20, 200, seed).mean for seed in range(3)]
    far = g.kid(x, features(500, 8, 2, 0.3), 20, 200)
    assert abs(np.mean(values)) < 0.02 * far.mean
    assert g.kid(x, np.array(x[::-1]), 5, 100) == g.kid(np.array(x), np.array(x[::-1]), 5, 100)


# ---------------------------------------------------------------- precision and recall


def by_definition(real, fake, k):
    def among(points, others):
        inside = 0
        radii = []
        for i, other in enumerate(others):
            away = ((np.delete(others, i, axis=0) - other) ** 2).sum(1)
            radii.append(sorted(away)[k - 1])
        for point in points:
            inside += any(((others - point) ** 2).sum(1) <= radii)
        return inside / len(points)

    return among(fake, real), among(real, fake)


@given(SEEDS, st.integers(4, 14), st.integers(4, 14), st.integers(1, 3))
@QUICK
def test_precision_and_recall_by_their_definition(seed, n, m, k):
    """On integers, where images repeat and distances tie."""
    rng = np.random.default_rng(seed)
    real, fake = rng.integers(0, 4, (n, 2)).astype(np.float64), rng.integers(1, 5, (m, 2)).astype(np.float64)
    assert g.precision_recall(real, fake, k) == pytest.approx(by_definition(real, fake, k))


@pytest.mark.parametrize("tile", [37, 2048])
def test_precision_and_recall_are_torch_fidelitys_in_tiles_of_any_size(monkeypatch, tile):
    monkeypatch.setattr("gan_uad.metrics.neighbours.TILE", tile)
    real, fake = features(310, 6, 1), features(270, 6, 2, 0.1)
    found = g.precision_recall(real, fake)
    theirs = prc_features_to_metric(torch.from_numpy(fake).double(), torch.from_numpy(real).double(), verbose=False)
    assert 0 < found.recall < found.precision < 1 or 0 < found.precision < found.recall < 1
    assert found == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def test_precision_and_recall_of_sets_alike_apart_and_collapsed():
    x = features(200, 6, 1)
    assert g.precision_recall(x, x) == (1, 1)
    assert g.precision_recall(x, x + 100) == (0, 0)
    collapsed = np.repeat(x[:1], 50, axis=0) + np.float32(1000)
    collapsed[:, 0] = 1000  # equal rows far from zero: their distances must be exactly 0
    assert g.precision_recall(collapsed, collapsed[:10]) == (1, 1)
    assert g.precision_recall(x, np.repeat(x[3:4], 50, axis=0)) == (1, 1 / 200)
    with pytest.raises(ValueError, match="at least 4"):
        g.precision_recall(x, x[:3])


# ---------------------------------------------------------------- memorisation


@pytest.mark.parametrize("tile", [23, 2048])
def test_nearest_training_images_by_brute_force(monkeypatch, tile):
    monkeypatch.setattr("gan_uad.metrics.neighbours.TILE", tile)
    train, fake, held = features(150, 5, 1), features(90, 5, 2), features(70, 5, 3)
    train[100] = train[7]  # the first of equals is named
    fake[4] = train[7]
    found = g.memorisation(train, fake, held)
    for queries, distance in ((fake, found.fake_distance), (held, found.held_out_distance)):
        away = np.linalg.norm(queries[:, None].astype(np.float64) - train[None], axis=2)
        np.testing.assert_allclose(distance, away.min(1), rtol=1e-6, atol=1e-12)
        if queries is fake:
            assert (found.fake_index == away.argmin(1)).all()
    assert found.fake_distance[4] == 0
    assert found.copies == 1
    assert found.closest(1) == [(4, 7, 0.0)]
    wins = np.sign(found.held_out_distance[None] - found.fake_distance[:, None])
    assert found.nearer == pytest.approx(((wins + 1) / 2).mean())


def test_memorisation_tells_copies_from_new_images():
    train, held, fresh = features(600, 6, 1), features(300, 6, 2), features(500, 6, 3)
    new = g.memorisation(train, fresh, held)
    assert new.nearer == pytest.approx(0.5, abs=0.06)
    assert abs(new.c_t) < 3
    rng = np.random.default_rng(0)
    near = g.memorisation(train, train[:200] + rng.normal(size=(200, 6)).astype(np.float32) * 1e-3, held)
    assert near.nearer > 0.95
    assert near.c_t < -10
    copies = g.memorisation(train, train[:200], held)
    assert (copies.nearer, copies.copies, copies.held_out_copies) == (1.0, 200, 0)
    leaked = g.memorisation(train, train[:200], train[200:300])
    assert (leaked.nearer, leaked.held_out_copies) == (0.5, 100)
    far = g.memorisation(train, fresh + 100, held)
    assert far.nearer == 0
    assert far.c_t > 10


def test_the_z_score_of_memorisation_is_that_of_the_rank_sum_test():
    from scipy.stats import mannwhitneyu

    found = g.memorisation(features(200, 6, 1), features(120, 6, 2, 0.02), features(80, 6, 3))
    test = mannwhitneyu(found.fake_distance, found.held_out_distance, use_continuity=False, method="asymptotic")
    assert test.statistic / (120 * 80) == pytest.approx(1 - found.nearer)
    from scipy.stats import norm

    assert 2 * norm.sf(abs(found.c_t)) == pytest.approx(test.pvalue, rel=1e-9)


def test_a_collapsed_generator_does_not_fill_the_closest_pairs():
    train = features(40, 6, 1)
    fake = np.concatenate([np.repeat(train[5:6], 30, axis=0), features(10, 6, 2)])
    pairs = g.memorisation(train, fake, features(20, 6, 3)).closest(5)
    assert pairs[0] == (0, 5, 0.0)
    assert len({pair.train for pair in pairs}) == 5
    assert [pair.distance for pair in pairs] == sorted(pair.distance for pair in pairs)


# ---------------------------------------------------------------- shrinkage


@pytest.mark.parametrize(("n", "d", "offset"), [(30, 40, 0.0), (500, 12, 0.0), (60, 12, 1e3), (3, 5, 0.0)])
def test_shrinkage_from_batches_is_scikit_learns(n, d, offset):
    x = features(n, d, 1).astype(np.float64) + offset
    moments = ShrinkageMoments(d)
    for part in np.array_split(x[np.argsort(x[:, 0])], 4):  # sorted, so that the first batch is far from the mean
        moments.update(part)
    covariance, shrinkage = ledoit_wolf(x)
    assert moments.shrinkage() == pytest.approx(shrinkage, rel=1e-7)
    np.testing.assert_allclose(shrunk(moments.gaussian(), moments.shrinkage()), covariance, rtol=1e-6, atol=1e-9)
