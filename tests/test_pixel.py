"""Pixel-level metrics against scikit-learn, threshold sweeps and values by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from gan_uad.metrics import pixel

pytestmark = pytest.mark.numerical

QUICK = settings(max_examples=20, deadline=None)


def random_set(seed: int, levels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Masks of one image without, two with regions, one of them touching corners; maps with many ties."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, 12, 14), dtype=bool)
    masks[1, 1:4, 2:6] = masks[1, 4:6, 6:9] = True  # diagonal neighbours: one region of 8 neighbours
    masks[2] = rng.random((12, 14)) < 0.15
    masks[2, 0, 0] = True
    return masks, np.floor(rng.random(masks.shape) * levels + 3 * masks).astype(np.float32)


def slow_pro(masks: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    regions = []
    for mask, values in zip(masks, maps, strict=True):
        numbers = label(mask, connectivity=2)
        regions += [values[numbers == i] for i in range(1, numbers.max() + 1)]
    levels = [np.inf, *np.unique(maps)[::-1]]
    fpr = [(maps[~masks] >= level).mean() for level in levels]
    return np.array(fpr), np.array([np.mean([(r >= level).mean() for r in regions]) for level in levels])


def slow_area(fpr: np.ndarray, pro: np.ndarray, limit: float) -> float:
    total = 0.0
    for x0, x1, y0, y1 in zip(fpr, fpr[1:], pro, pro[1:], strict=False):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        total += (end - x0) * (y0 + y_end) / 2
    return total / limit


@given(st.integers(0, 10_000))
@QUICK
def test_aupro_against_a_threshold_sweep(seed):
    masks, maps = random_set(seed)
    fpr, pro = pixel.pro_curve(masks, maps)
    slow_fpr, slow = slow_pro(masks, maps)
    np.testing.assert_allclose(fpr, slow_fpr, atol=1e-12)
    np.testing.assert_allclose(pro, slow, atol=1e-12)
    for limit in (0.05, 0.3, 1.0):
        assert pixel.aupro(masks, maps, limit) == pytest.approx(slow_area(slow_fpr, slow, limit), abs=1e-12)


def test_aupro_of_perfect_constant_and_reversed_maps():
    masks, _ = random_set(0)
    assert pixel.aupro(masks, masks.astype(float)) == pytest.approx(1)
    assert pixel.aupro(masks, np.ones(masks.shape)) == pytest.approx(0.15)
    assert pixel.aupro(masks, -masks.astype(float)) == 0


def test_aupro_weighs_regions_not_pixels():
    masks = np.zeros((1, 20, 20), dtype=bool)
    masks[0, :10, :10] = masks[0, 15, 15] = True
    maps = np.zeros(masks.shape)
    maps[0, :10, :10] = 1
    fpr, pro = pixel.pro_curve(masks, maps)
    np.testing.assert_allclose([fpr, pro], [[0, 0, 1], [0, 0.5, 1]], atol=1e-12)
    assert pixel.aupro(masks, maps) == pytest.approx(0.5 + 0.5 * 0.3 / 2)
    assert pixel.pixel_auroc(masks, maps) > 0.99


@given(st.integers(0, 10_000))
@QUICK
def test_pixel_auroc_against_sklearn(seed):
    masks, maps = random_set(seed)
    assert pixel.pixel_auroc(masks, maps) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert pixel.pixel_auroc(masks, -maps) == pytest.approx(1 - pixel.pixel_auroc(masks, maps), abs=1e-12)


def test_dice_and_iou_by_hand():
    masks = np.zeros((2, 2, 4), dtype=bool)
    masks[0, 0] = True
    found = np.zeros_like(masks)
    found[0, 0, :3] = found[1, 1, 0] = True
    assert pixel.dice(masks, found) == 2 * 3 / (4 + 4)
    assert pixel.iou(masks, found) == 3 / 5
    assert pixel.dice(masks, np.zeros_like(masks)) == 0
    assert pixel.iou(masks, masks) == 1


@given(st.integers(0, 10_000))
@QUICK
def test_overlaps_against_sklearn(seed):
    masks, maps = random_set(seed)
    found = pixel.segment(maps, 8)
    assert pixel.dice(masks, found) == pytest.approx(f1_score(masks.ravel(), found.ravel()))
    assert pixel.iou(masks, found) == pytest.approx(jaccard_score(masks.ravel(), found.ravel()))


def test_segment_is_strict():
    maps = np.zeros((2, 2, 2), dtype=np.float32)
    maps[0, 0, 0], maps[1, 1, 1] = 1, 0.5
    assert np.argwhere(pixel.segment(maps, 0.5)).tolist() == [[0, 0, 0]]
    assert np.argwhere(pixel.segment(maps, 0.4)).tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("metric", [pixel.pixel_auroc, pixel.pro_curve, pixel.aupro])
def test_bad_maps_and_masks_are_refused_in_words(metric):
    masks, maps = random_set(0)
    with pytest.raises(ValueError, match="do not fit maps"):
        metric(masks[:2], maps)
    with pytest.raises(ValueError, match="no anomalous pixel"):
        metric(np.zeros_like(masks), maps)
    with pytest.raises(ValueError, match="no normal pixel"):
        metric(np.ones_like(masks), maps)
    with pytest.raises(ValueError, match=r"\[N, H, W\]"):
        metric(masks[0], maps[0])
    with pytest.raises(ValueError, match="binarise"):
        metric(masks * 255, maps)
    maps[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 504 pixels are NaN"):
        metric(masks, maps)


def test_bad_segments_and_parameters_are_refused():
    masks, maps = random_set(0)
    for metric in (pixel.dice, pixel.iou):
        with pytest.raises(ValueError, match="use `segment`"):
            metric(masks, maps)
        with pytest.raises(ValueError, match="no anomalous pixel"):
            metric(np.zeros_like(masks), masks)
        with pytest.raises(ValueError, match="do not fit"):
            metric(masks[:1], masks)
    with pytest.raises(ValueError, match="max_fpr"):
        pixel.aupro(masks, maps, 0)
    with pytest.raises(ValueError, match="threshold"):
        pixel.segment(maps, np.nan)
