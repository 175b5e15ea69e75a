"""Image-level figures against scikit-learn, brute force and simulation."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from gan_uad.metrics import detection as d
from gan_uad.metrics.ranking import WeightedRanking
from gan_uad.metrics.thresholds import RULES, conformal_threshold

QUICK = settings(max_examples=40, deadline=None)
# few distinct values, so that ties are common
TIED = st.lists(st.tuples(st.integers(0, 1), st.integers(-6, 6)), min_size=4, max_size=40)


def both_classes(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], dtype=float)
    assume(0 < labels.sum() < len(labels))
    return labels, scores


def tied_set(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, (rng.normal(size=n) + labels).round(1)


# ---------------------------------------------------------------- ranking


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


@pytest.mark.parametrize("figure", [d.auroc, d.auprc, d.roc_points, d.pr_points, d.bootstrap_interval])
def test_bad_input_is_refused_in_words(figure):
    with pytest.raises(ValueError, match="2 of 4 are NaN and 1 are infinite"):
        figure([0, 1, 0, 1], [0.1, np.nan, np.nan, np.inf])
    with pytest.raises(ValueError, match="no anomalous image"):
        figure([0, 0], [0.1, 0.2])
    with pytest.raises(ValueError, match="no normal image"):
        figure([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="1 of 3 are neither 0"):
        figure([0, 1, -1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="one for each score"):
        figure([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="one-dimensional"):
        figure([[0, 1]], [[0.1, 0.2]])


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


def slow_bootstrap(labels, scores, groups, strata, n, seed, figure):
    """Image lists glued together group by group, the figure by scikit-learn."""
    rng = np.random.default_rng(seed)
    drawn: list[list[int]] = [[] for _ in range(n)]
    for stratum in strata:
        for b, row in enumerate(rng.integers(0, len(stratum), (n, len(stratum)))):
            for index in row:
                drawn[b] += [i for i, g in enumerate(groups) if g == stratum[index]]
    return np.quantile([figure(labels[i], scores[i]) for i in drawn], [0.025, 0.975])


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
    assert "same figure" in perfect.note


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


# ---------------------------------------------------------------- thresholds


@given(TIED)
@QUICK
def test_youden_against_brute_force(pairs):
    labels, scores = both_classes(pairs)

    def gain(threshold):
        flagged = scores > threshold
        return flagged[labels == 1].mean() - flagged[labels == 0].mean()

    threshold = d.fit_threshold("youden", scores, labels)
    candidates = np.concatenate(([-np.inf], np.unique(scores)))
    best = max(gain(t) for t in candidates)
    assert gain(threshold.value) == pytest.approx(best, abs=1e-12)
    as_good = [t for t in candidates if gain(t) > best - 1e-9]
    np.testing.assert_array_equal(threshold.decide(scores), scores > max(as_good))


def test_youden_lies_between_the_classes_and_names_a_useless_score():
    assert d.fit_threshold("youden", [1.0, 2.0, 4.0, 5.0], [0, 0, 1, 1]).value == 3.0
    useless = d.fit_threshold("youden", [4.0, 5.0, 1.0, 2.0], [0, 0, 1, 1])
    assert "direction" in useless.note
    assert not useless.decide([4.0, 5.0, 1.0]).any()
    neighbours = [1.0, np.nextafter(1.0, 2)]
    assert d.fit_threshold("youden", neighbours, [0, 1]).decide(neighbours).tolist() == [False, True]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9]))
@QUICK
def test_ungrouped_conformal_is_the_kth_smallest_score(values, alpha):
    n = len(values)
    k = math.ceil(round((n + 1) * (1 - alpha), 9))
    expected = sorted(values)[k - 1] if k <= n else math.inf
    threshold = d.fit_threshold("fpr", values, alpha=alpha)
    assert threshold.value == expected
    assert ("INFINITE" in threshold.note) == math.isinf(expected)


def test_infinite_conformal_threshold_flags_nothing_and_says_what_it_needs():
    threshold = d.fit_threshold("fpr", range(18), groups=[f"s{i}" for i in range(18)], alpha=0.05)
    assert math.isinf(threshold.value)
    assert not threshold.decide([1e300]).any()
    assert "18 groups cannot promise 0.05, at least 19 are needed" in threshold.note
    assert d.fit_threshold("fpr", range(19), alpha=0.05).value == 18
    assert d.fit_threshold("fpr", range(9), alpha=0.1).value == 8  # 9 weights of 1/10 add up to less than 0.9 in floats
    assert d.fit_threshold("fpr", range(79), alpha=0.05).value == 75


@given(st.integers(0, 10_000))
@QUICK
def test_grouped_conformal_against_its_definition(seed):
    rng = np.random.default_rng(seed)
    codes, scores = rng.integers(0, 8, 50), rng.integers(0, 20, 50).astype(float)
    names = np.unique(codes)
    alpha = float(rng.uniform(0.15, 0.5))

    def weight_up_to(t):
        return sum((scores[codes == g] <= t).mean() for g in names) / (len(names) + 1)

    enough = [t for t in np.unique(scores) if weight_up_to(t) >= 1 - alpha - 1e-9]
    assert conformal_threshold(scores, alpha, codes) == (enough[0] if enough else math.inf)


@pytest.mark.parametrize("tied", [False, True])
def test_conformal_keeps_its_promise_for_exchangeable_normals(tied):
    rng = np.random.default_rng(7)
    alpha, n, trials = 0.1, 24, 4000
    scores = rng.normal(size=(trials, n + 1))
    scores = scores.round(0) if tied else scores
    flagged = [row[n] > conformal_threshold(row[:n], alpha, np.arange(n)) for row in scores]
    assert np.mean(flagged) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / trials)
    p = np.array([d.tail_probability(row[:n], row[n:])[0] for row in scores])
    assert (p <= alpha).mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / trials)
    if not tied:
        assert np.mean(flagged) >= 0.06  # the 23rd of 24 gives 0.08: the promise is not kept by flagging nothing


def test_grouped_conformal_keeps_its_promise_where_pooling_does_not():
    rng = np.random.default_rng(8)
    alpha, n_groups, trials = 0.2, 19, 1500
    flagged = {"grouped": [], "pooled": []}
    for _ in range(trials):
        high = rng.random(n_groups + 1) < 0.4  # slides with high scores have few patches, as small biopsies do
        sizes = np.where(high, 2, 30)
        codes = np.repeat(np.arange(n_groups), sizes[:-1])
        scores = 3.0 * high[codes] + rng.normal(size=codes.size)
        new = 3.0 * high[-1] + rng.normal()
        flagged["grouped"].append(new > conformal_threshold(scores, alpha, codes))
        flagged["pooled"].append(new > conformal_threshold(scores, alpha, np.arange(codes.size)))
    assert np.mean(flagged["grouped"]) <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / trials)
    assert np.mean(flagged["grouped"]) >= 0.1
    assert np.mean(flagged["pooled"]) > alpha + 5 * math.sqrt(alpha * (1 - alpha) / trials)


def test_normal_only_rules_ignore_anomalous_images():
    normal = np.random.default_rng(9).normal(size=101)
    scores, labels = np.concatenate([normal, [50.0, 60.0]]), [0] * 101 + [1] * 2
    quantile = d.fit_threshold("quantile", scores, labels, q=0.9)
    assert quantile.value == np.sort(normal)[90]
    assert (normal > quantile.value).mean() <= 0.1
    assert quantile.n == 101
    spread = d.fit_threshold("mean_std", scores, labels, k=3)
    assert spread.value == pytest.approx(normal.mean() + 3 * normal.std(ddof=1))
    assert d.fit_threshold("fpr", scores, labels, alpha=0.1).value == np.sort(normal)[91]
    known = d.fit_threshold("fpr", scores, labels, [f"s{i % 20}" for i in range(101)] + ["t", ""], alpha=0.1)
    assert known.n_groups == 20
    assert "no group" not in known.note
    unknown = d.fit_threshold("fpr", scores, labels, [""] * 101 + ["t", "u"], alpha=0.1)
    assert unknown.n_groups is None
    assert "slides or patients unknown" in unknown.note
    partly = d.fit_threshold("fpr", scores, labels, ["s"] * 100 + [""] + ["t", "u"], alpha=0.5)
    assert partly.n_groups == 2
    assert "1 images have no group" in partly.note


def test_decisions_are_strict():
    threshold = d.fit_threshold("manual", None, value=0.5)
    assert threshold.decide([0.4, 0.5, 0.6]).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fpr:0.05", ("fpr", {"alpha": 0.05})),
        ("quantile:0.99", ("quantile", {"q": 0.99})),
        ("mean_std:3", ("mean_std", {"k": 3.0})),
        ("manual:-0.7", ("manual", {"value": -0.7})),
        ("youden", ("youden", {})),
    ],
)
def test_threshold_texts(text, expected):
    assert d.parse_threshold(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "fpr", "fpr:0", "fpr:1", "fpr:x", "quantile:1.1", "youden:1", "youden:", "manual:nan", "otsu", "manual:inf"],
)
def test_bad_threshold_texts_list_the_forms(text):
    with pytest.raises(ValueError, match="the forms are") as error:
        d.parse_threshold(text)
    assert all(form in str(error.value) for _, form in RULES.values())


def test_thresholds_that_cannot_be_set():
    with pytest.raises(ValueError, match="labels of both classes"):
        d.fit_threshold("youden", [1.0, 2.0])
    with pytest.raises(ValueError, match="no anomalous"):
        d.fit_threshold("youden", [1.0, 2.0], [0, 0])
    with pytest.raises(ValueError, match="needs normal validation images"):
        d.fit_threshold("fpr", [1.0, 2.0], [1, 1], alpha=0.1)
    with pytest.raises(ValueError, match="at least two"):
        d.fit_threshold("mean_std", [1.0], k=3)
    with pytest.raises(ValueError, match="takes alpha"):
        d.fit_threshold("fpr", [1.0], q=0.1)
    with pytest.raises(ValueError, match="groups: expected 2"):
        d.fit_threshold("fpr", [1.0, 2.0], groups=["a"], alpha=0.1)
    with pytest.raises(ValueError, match="unknown threshold rule"):
        d.fit_threshold("otsu", [1.0])
    with pytest.raises(ValueError, match="1 of 2 are NaN"):
        d.fit_threshold("quantile", [1.0, np.nan], q=0.5)
    with pytest.raises(ValueError, match="needs validation scores"):
        d.fit_threshold("quantile", None, q=0.5)


# ---------------------------------------------------------------- decisions and calibration


def test_classification_report_against_sklearn():
    labels, scores = tied_set(200, 10)
    decided = scores > 0.9
    report = d.classification_report(labels, decided)
    assert report["accuracy"] == pytest.approx(sk.accuracy_score(labels, decided))
    assert report["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, decided))
    assert report["precision"] == pytest.approx(sk.precision_score(labels, decided))
    assert report["recall"] == report["sensitivity"] == pytest.approx(sk.recall_score(labels, decided))
    assert report["specificity"] == pytest.approx(sk.recall_score(labels, decided, pos_label=0))
    assert report["f1"] == pytest.approx(sk.f1_score(labels, decided))
    assert report["confusion"] == sk.confusion_matrix(labels, decided).tolist()
    expected = sk.classification_report(labels, decided, output_dict=True)
    for name, key in (("normal", "0"), ("anomalous", "1")):
        theirs = expected[key]
        ours = report["classes"][name]
        assert (ours["precision"], ours["recall"], ours["f1"], ours["support"]) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )
    assert d.accuracy(labels, decided) == report["accuracy"]
    assert d.sensitivity(labels, decided) == report["sensitivity"]
    assert d.specificity(labels, decided) == report["specificity"]


def test_undefined_ratios_are_nan():
    nothing_flagged = d.classification_report([0, 0, 1], [False, False, False])
    assert math.isnan(nothing_flagged["precision"])
    assert nothing_flagged["f1"] == 0
    normals_only = d.classification_report([0, 0], [False, False])
    for key in ("precision", "recall", "f1", "balanced_accuracy"):
        assert math.isnan(normals_only[key])
    assert math.isnan(normals_only["wilson"]["sensitivity"][0])
    with pytest.raises(ValueError, match="apply a threshold"):
        d.confusion([0, 1], [0.3, 0.7])


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
@QUICK
def test_wilson_against_scipy(n, share, confidence):
    successes = round(share * n)
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert d.wilson(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_reliability_against_sklearn_and_by_hand():
    rng = np.random.default_rng(11)
    probabilities = rng.random(500)
    labels = (rng.random(500) < probabilities**2).astype(int)
    result = d.reliability(labels, probabilities)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=10)
    np.testing.assert_allclose(result.observed, observed)
    np.testing.assert_allclose(result.predicted, predicted)
    assert result.brier == pytest.approx(sk.brier_score_loss(labels, probabilities))
    by_hand = d.reliability([0, 1, 1, 0], [0.1, 0.2, 1.0, 0.95], bins=2)
    assert by_hand.counts.tolist() == [2, 2]
    assert by_hand.ece == pytest.approx((abs(0.5 - 0.15) + abs(0.5 - 0.975)) / 2)
    assert np.isnan(d.reliability([0, 1], [0.1, 0.2], bins=2).observed[1])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        d.reliability([0, 1], [0.1, 1.2])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.lists(st.integers(-1, 10), min_size=1, max_size=5))
@QUICK
def test_tail_probability_against_counting(calibration, scores):
    expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    np.testing.assert_array_equal(d.tail_probability(calibration, scores), expected)


def test_tail_probability_agrees_with_the_conformal_threshold():
    rng = np.random.default_rng(12)
    calibration, scores = rng.integers(0, 40, 99).astype(float), rng.integers(0, 50, 200).astype(float)
    threshold = d.fit_threshold("fpr", calibration, alpha=0.1)
    np.testing.assert_array_equal(threshold.decide(scores), d.tail_probability(calibration, scores) <= 0.1 + 1e-12)


def test_pvalue_calibration_counts_normals_only():
    result = d.pvalue_calibration([0, 0, 0, 0, 1], [0.07, 0.29, 0.5, 1.0, 0.01])
    assert result.n == 4
    share = dict(zip(result.levels.round(2), result.observed, strict=True))
    assert (share[0.06], share[0.07], share[0.28], share[0.29], share[0.99], share[1.0]) == (
        0,
        0.25,
        0.25,
        0.5,
        0.75,
        1,
    )
    with pytest.raises(ValueError, match="normals"):
        d.pvalue_calibration([1], [0.5])


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
    assert result["decisions"]["precision"] is None
    assert result["decision_intervals"]["sensitivity"]["low"] is None
    assert any("INFINITE" in warning for warning in result["warnings"])
    assert not any("below 0.5" in warning for warning in result["warnings"])


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
