"""Image-level metrics against scikit-learn, brute force and simulation."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from detection_tools import QUICK, TIED, both_classes, tied_set
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics as sk

from gan_uad.metrics import detection as d
from gan_uad.metrics.ranking import WeightedRanking

pytestmark = pytest.mark.numerical


@given(TIED)
@QUICK
def test_auroc_is_the_share_of_pairs_ranked_right(pairs):
    labels, scores = both_classes(pairs)
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    wins = (anomalous[:, None] > normal).mean() + 0.5 * (anomalous[:, None] == normal).mean()
    assert d.auroc(labels, scores) == pytest.approx(wins, abs=1e-12)


@given(TIED)
@QUICK
def test_auroc_under_monotone_maps_and_negation(pairs):
    labels, scores = both_classes(pairs)
    value = d.auroc(labels, scores)
    assert d.auroc(labels, np.exp(scores / 3)) == pytest.approx(value, abs=1e-12)
    assert d.auroc(labels, -scores) == pytest.approx(1 - value, abs=1e-12)


@given(TIED)
@QUICK
def test_auprc_is_the_sum_over_thresholds(pairs):
    labels, scores = both_classes(pairs)
    total, recall_before = 0.0, 0.0
    for level in np.unique(scores)[::-1]:
        flagged = scores >= level
        recall = labels[flagged].sum() / labels.sum()
        total += (recall - recall_before) * labels[flagged].mean()
        recall_before = recall
    assert d.auprc(labels, scores) == pytest.approx(total, abs=1e-12)


def test_curve_points_enclose_the_areas():
    labels, scores = tied_set(300, 1)
    roc, pr = d.roc_points(labels, scores), d.pr_points(labels, scores)
    assert np.trapezoid(roc.tpr, roc.fpr) == pytest.approx(d.auroc(labels, scores))
    assert -np.sum(np.diff(pr.recall) * pr.precision[:-1]) == pytest.approx(d.auprc(labels, scores))
    for fpr, tpr, level in zip(*roc, strict=True):
        assert fpr == pytest.approx((scores[labels == 0] >= level).mean())
        assert tpr == pytest.approx((scores[labels == 1] >= level).mean())


@pytest.mark.parametrize("metric", [d.auroc, d.auprc, d.roc_points, d.pr_points, d.bootstrap_interval])
def test_bad_input_is_refused_in_words(metric):
    with pytest.raises(ValueError, match="2 of 4 are NaN and 1 are infinite"):
        metric([0, 1, 0, 1], [0.1, np.nan, np.nan, np.inf])
    with pytest.raises(ValueError, match="no anomalous image"):
        metric([0, 0], [0.1, 0.2])
    with pytest.raises(ValueError, match="no normal image"):
        metric([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="1 of 3 are neither 0"):
        metric([0, 1, -1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="one for each score"):
        metric([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="one-dimensional"):
        metric([[0, 1]], [[0.1, 0.2]])


# ---------------------------------------------------------------- bootstrap


@given(TIED, st.integers(0, 2**31))
@QUICK
def test_weighted_ranking_equals_sklearn_on_resampled_data(pairs, seed):
    labels, scores = both_classes(pairs)
    weights = np.random.default_rng(seed).integers(0, 4, (5, len(labels)))
    weights[:, [labels.argmax(), labels.argmin()]] += 1
    ranking = WeightedRanking(labels, scores)
    for ours, theirs in ((ranking.auroc, sk.roc_auc_score), (ranking.auprc, sk.average_precision_score)):
        expected = [theirs(np.repeat(labels, row), np.repeat(scores, row)) for row in weights]
        np.testing.assert_allclose(ours(weights.astype(float)), expected, rtol=0, atol=1e-12)


def slow_bootstrap(labels, scores, groups, strata, n, seed, metric):
    """Image lists glued together group by group, the metric by scikit-learn."""
    rng = np.random.default_rng(seed)
    drawn: list[list[int]] = [[] for _ in range(n)]
    for stratum in strata:
        for b, row in enumerate(rng.integers(0, len(stratum), (n, len(stratum)))):
            for index in row:
                drawn[b] += [i for i, g in enumerate(groups) if g == stratum[index]]
    return np.quantile([metric(labels[i], scores[i]) for i in drawn], [0.025, 0.975])


@pytest.mark.parametrize(("ours", "theirs"), [(d.auroc, sk.roc_auc_score), (d.auprc, sk.average_precision_score)])
def test_group_bootstrap_against_a_slow_one(ours, theirs):
    labels, scores = tied_set(120, 2)
    apart = [f"{'an'[label]}{i % 11}" for i, label in enumerate(labels)]
    interval = d.bootstrap_interval(labels, scores, apart, ours, n=60, seed=5)
    names = list(dict.fromkeys(apart))
    strata = [[g for g in names if g[0] == letter] for letter in "an"]
    expected = slow_bootstrap(labels, scores, apart, strata, 60, 5, theirs)
    np.testing.assert_allclose([interval.low, interval.high], expected, atol=1e-12)
    assert (interval.unit, interval.n_units, interval.optimistic, interval.note) == ("group", 22, False, "")
    assert interval.value == theirs(labels, scores)

    mixed = [f"p{i % 13}" for i in range(len(labels))]
    interval = d.bootstrap_interval(labels, scores, mixed, ours, n=60, seed=5)
    expected = slow_bootstrap(labels, scores, mixed, [list(dict.fromkeys(mixed))], 60, 5, theirs)
    np.testing.assert_allclose([interval.low, interval.high], expected, atol=1e-12)


def test_any_metric_can_be_resampled_and_matches_the_fast_path():
    labels, scores = tied_set(80, 3)
    groups = [f"p{i % 12}" for i in range(80)]
    fast = d.bootstrap_interval(labels, scores, groups, d.auroc, n=50)
    slow = d.bootstrap_interval(labels, scores, groups, lambda y, s: d.auroc(y, s), n=50)
    assert (slow.low, slow.high) == pytest.approx((fast.low, fast.high), abs=1e-12)


def test_resamples_without_a_class_are_drawn_again():
    groups = ["a"] * 4 + ["b"] * 4 + [f"n{i}" for i in range(20)]
    labels = np.array([0, 1, 1, 1, 0, 1, 1, 1] + [0] * 20)
    interval = d.bootstrap_interval(labels, np.linspace(1, 0, 28) + 0.3 * (np.arange(28) % 3), groups, n=500)
    assert interval.n_redrawn > 20  # (20/22)^22 = 12 % of draws hold neither a nor b
    assert math.isfinite(interval.low)
    assert interval.n_resamples == 500
    assert interval.optimistic
    assert "only 2 groups hold anomalous" in interval.note


def test_no_interval_rather_than_a_false_one():
    one_slide = d.bootstrap_interval([0, 0, 0, 1, 1], [1, 2, 3, 2, 4], ["a", "b", "c", "t", "t"])
    assert math.isnan(one_slide.low)
    assert math.isnan(one_slide.high)
    assert one_slide.n_resamples == 0
    assert "only one group holds anomalous images" in one_slide.note
    perfect = d.bootstrap_interval([0] * 12 + [1] * 12, np.arange(24))
    assert perfect.value == 1
    assert math.isnan(perfect.low)
    assert "all resamples" in perfect.note


def test_unknown_groups_are_said_to_be_unknown():
    labels, scores = tied_set(60, 4)
    for groups in (None, [""] * 60):
        interval = d.bootstrap_interval(labels, scores, groups, n=50)
        assert (interval.unit, interval.n_units, interval.optimistic) == ("image", 60, True)
        assert interval.note == "slides or patients unknown: interval over images, likely too narrow"
    partly = d.bootstrap_interval(labels, scores, [f"p{i % 12}" if i < 48 else "" for i in range(60)], n=50)
    assert (partly.unit, partly.n_units, partly.optimistic) == ("group", 24, True)
    assert "12 of 60 images have no group" in partly.note
    with pytest.raises(ValueError, match="groups: expected 60"):
        d.bootstrap_interval(labels, scores, ["a"])


def test_same_seed_same_interval():
    labels, scores = tied_set(60, 5)
    assert d.bootstrap_interval(labels, scores, seed=1) == d.bootstrap_interval(labels, scores, seed=1)
    assert d.bootstrap_interval(labels, scores, seed=1) != d.bootstrap_interval(labels, scores, seed=2)


def test_group_intervals_cover_where_image_intervals_do_not():
    rng = np.random.default_rng(0)
    labels, groups = np.repeat([0, 1], 200), [f"s{i // 10}" for i in range(400)]
    truth = norm.cdf(1 / math.sqrt(2 * (1 + 0.5)))
    covered = {"group": 0, "image": 0}
    for trial in range(80):
        scores = labels + np.repeat(rng.normal(size=40), 10) + math.sqrt(0.5) * rng.normal(size=400)
        for unit, names in (("group", groups), ("image", None)):
            interval = d.bootstrap_interval(labels, scores, names, n=150, seed=trial)
            covered[unit] += interval.low <= truth <= interval.high
    assert covered["group"] >= 69  # 76 expected, of 80
    assert covered["image"] <= 58


def test_a_thousand_resamples_are_fast():
    labels, scores = tied_set(1500, 6)
    d.auroc(labels, scores)
    start = time.process_time()
    d.bootstrap_interval(labels, scores, [f"p{i % 40}" for i in range(1500)], n=1000)
    assert time.process_time() - start < 2


# ---------------------------------------------------------------- evaluate


def test_evaluate_is_strict_json_and_complete():
    labels, scores = tied_set(200, 13)
    groups = [f"{'an'[label]}{i % 15}" for i, label in enumerate(labels)]
    threshold = d.fit_threshold("fpr", scores[labels == 0][:5], alpha=0.05)
    result = json.loads(json.dumps(d.evaluate(labels, scores, groups, threshold, n=50), allow_nan=False))
    assert result["images"] == {"normal": int((labels == 0).sum()), "anomalous": int(labels.sum())}
    assert result["groups"] == {"known": 30, "normal": 15, "anomalous": 15, "mixed": 0, "images_without": 0}
    assert result["auroc"]["value"] == sk.roc_auc_score(labels, scores)
    assert result["auprc"]["chance"] == pytest.approx(labels.mean())
    assert float(result["threshold"]["value"]) == math.inf
    assert result["decisions"] is result["decision_intervals"] is None
    assert any("quantile:0.95" in warning for warning in result["warnings"])
    assert not any("below 0.5" in warning for warning in result["warnings"])


def test_each_class_of_anomaly_is_compared_with_all_normals():
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], [60, 90])
    classes = ["normal"] * 60 + ["mucin"] * 40 + ["necrosis"] * 49 + [""]
    scores = rng.normal(size=150) + np.repeat([0, 1.5, 0.2], [60, 40, 50])
    groups = [f"p{i % 10}" for i in range(150)]
    found = d.class_metrics(labels, scores, groups, classes, n=50)
    assert {name: one["images"] for name, one in found.items()} == {"mucin": 40, "necrosis": 49}
    for name, one in found.items():
        kept = np.array([c in ("normal", name) for c in classes])
        area = sum((a > b) + (a == b) / 2 for a in scores[kept & (labels == 1)] for b in scores[:60]) / 60
        assert one["auroc"]["value"] == pytest.approx(area / one["images"])
        assert one["auroc"]["low"] < one["auroc"]["value"] < one["auroc"]["high"]
        assert (one["auroc"]["unit"], one["auroc"]["n_units"]) == ("group", 10)
    assert d.class_metrics(labels, scores, groups, ["normal"] * 60 + ["tumour"] * 90, n=50) == {}


def test_evaluate_states_a_wrong_direction_and_flips_nothing():
    labels, scores = tied_set(200, 14)
    result = d.evaluate(labels, -scores, None, d.fit_threshold("youden", -scores, labels), n=50)
    assert result["auroc"]["value"] == pytest.approx(1 - sk.roc_auc_score(labels, scores))
    assert any("is below 0.5" in w and "not flipped" in w for w in result["warnings"])
    assert any("slides or patients unknown" in w for w in result["warnings"])
    assert result["decision_intervals"] is None
    assert result["groups"]["known"] == 0
    assert result["groups"]["images_without"] == 200


def test_importing_is_cheap():
    code = "import sys, gan_uad.metrics.detection, gan_uad.metrics.pixel; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"sklearn", "scipy", "skimage", "matplotlib", "torch"} & set(loaded)
