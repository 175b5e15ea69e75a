"""Earth mover's distance and SSIM of image pairs, against scipy, scikit-image and cases known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from skimage.metrics import structural_similarity

from gan_uad.metrics.emd import intensity_emd
from gan_uad.metrics.ssim import ssim

pytestmark = pytest.mark.numerical

Images = NDArray[np.float64]


def pair(n: int = 4, height: int = 32, width: int = 24, seed: int = 0) -> tuple[Images, Images]:
    """8-bit-like images in [-1, 1] and smooth, darker, noisy copies."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (n, 3, height, width)) / 127.5 - 1
    b = np.tanh(0.6 * np.roll(a, 1, 3) + 0.3 * rng.standard_normal(a.shape) - 0.2)
    return a, b


# ---------------------------------------------------------------- earth mover's distance


def test_emd_is_scipys_per_channel_averaged() -> None:
    a, b = pair()
    expected = [
        np.mean([wasserstein_distance(x.ravel(), y.ravel()) for x, y in zip(one, two, strict=True)])
        for one, two in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(intensity_emd(a, b), expected, rtol=1e-12)
    single = intensity_emd(a.astype(np.float32), b.astype(np.float32))
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, expected, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)).flatmap(
        lambda shape: st.tuples(*[arrays(np.float64, shape, elements=st.sampled_from([-1.0, -0.5, 0.0, 0.7, 1.0]))] * 3)
    )
)
def test_emd_is_a_metric_of_intensities(images: tuple[Images, Images, Images]) -> None:
    """With many ties, as 8-bit images have."""
    a, b, c = images
    ab = intensity_emd(a, b)
    np.testing.assert_allclose(ab, intensity_emd(b, a), atol=1e-12)
    assert (ab <= intensity_emd(a, c) + intensity_emd(c, b) + 1e-12).all()
    assert (intensity_emd(a, a[:, :, ::-1, ::-1]) == 0).all(), "where a value lies does not matter"
    np.testing.assert_allclose(
        ab[0], np.mean([wasserstein_distance(x.ravel(), y.ravel()) for x, y in zip(a[0], b[0], strict=True)])
    )


def test_emd_known_by_hand() -> None:
    a = np.zeros((1, 3, 2, 2))
    b = a.copy()
    b[0, 0, 0, 0] = 1.0  # a quarter of one of three channels moves by one
    assert intensity_emd(a, b).tolist() == [1 / 12]
    assert intensity_emd(a, a + 0.25).tolist() == [0.25]


# ---------------------------------------------------------------- SSIM


@pytest.mark.parametrize(("data_range", "height", "width"), [(2.0, 32, 24), (255.0, 75, 64), (2.0, 33, 11)])
def test_ssim_is_scikit_images(data_range: float, height: int, width: int) -> None:
    a, b = (x * data_range / 2 for x in pair(4, height, width))
    metrics, maps = ssim(a, b, data_range)
    assert maps.shape == (4, height, width)
    for k in range(4):
        mean, full = structural_similarity(
            a[k], b[k], data_range=data_range, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )  # fmt: skip
        assert metrics[k] == pytest.approx(mean, abs=1e-6)
        np.testing.assert_allclose(maps[k], full.mean(0), atol=1e-6)


def test_ssim_of_float32_and_of_many_images_is_that_of_each() -> None:
    a, b = pair(n=300, height=16, width=16)
    together = ssim(a, b)
    few = ssim(a[170:173], b[170:173])
    np.testing.assert_array_equal(together[0][170:173], few[0])
    np.testing.assert_array_equal(together[1][170:173], few[1])
    np.testing.assert_allclose(ssim(a.astype(np.float32), b.astype(np.float32))[0], together[0], atol=1e-6)


def test_ssim_known_by_hand() -> None:
    a, b = pair(n=2)
    equal, maps = ssim(a, a)
    np.testing.assert_allclose(equal, 1)
    np.testing.assert_allclose(maps, 1)
    np.testing.assert_allclose(ssim(a, b)[0], ssim(b, a)[0])
    # Flat images: only the term of the means is left.
    dark, light = np.full((1, 3, 16, 16), -0.5), np.full((1, 3, 16, 16), 0.25)
    c1 = 0.02**2
    expected = (2 * -0.5 * 0.25 + c1) / (0.25 + 0.0625 + c1)
    np.testing.assert_allclose(ssim(dark, light)[0], expected)
    # A change far from an image's middle shows there in the map, and nowhere beyond the window.
    spot = a.copy()
    spot[:, :, 20, 12] = -spot[:, :, 20, 12]
    changed = np.abs(1 - ssim(a, spot)[1]) > 1e-12
    assert changed[:, 20, 12].all()
    assert not changed[:, :14].any()
    assert not changed[:, 26:].any()


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("metric", [intensity_emd, ssim])
def test_images_that_cannot_be_compared(metric: object) -> None:
    assert callable(metric)
    a, b = pair(n=1)
    for first, second, message in [
        (a, b[:, :2], "of one shape"),
        (a[0], b[0], "of one shape"),
        (a[:0], b[:0], "of one shape"),
        ((a * 100).astype(np.uint8), (b * 100).astype(np.uint8), "must be floats"),
        (a, np.where(b == b[0, 0, 0, 0], np.nan, b), "1 values of the images are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            metric(first, second)


def test_images_too_small_for_the_window() -> None:
    a, b = pair(height=10)
    with pytest.raises(ValueError, match=r"at least 11 px, got 10x24"):
        ssim(a, b)
    with pytest.raises(ValueError, match="data range must be positive"):
        ssim(*pair(), data_range=0)
