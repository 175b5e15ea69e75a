"""Is one method better than another: paired intervals against slow definitions, DeLong, and what `evaluate` and `report` say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_tools import QUICK, TIED, both_classes, tied_set
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from score_tools import fails, rows
from sklearn.metrics import roc_auc_score

from gan_uad.metrics.bootstrap import bootstrap_interval, paired_interval
from gan_uad.metrics.delong import delong
from gan_uad.metrics.patients import patient_metrics

# ---------------------------------------------------------------- paired bootstrap


@pytest.mark.parametrize("mixed", [True, False])
def test_paired_interval_is_that_of_the_same_draws(mixed: bool) -> None:
    """Image lists glued together group by group, both areas of one draw by scikit-learn."""
    labels, own = tied_set(90, 2)
    other = (own + np.random.default_rng(3).normal(size=90)).round(1)
    groups = [f"p{i % 13}" if mixed else f"{'an'[label]}{i % 7}" for i, label in enumerate(labels)]
    names = list(dict.fromkeys(groups))
    strata = [names] if mixed else [[name for name in names if name[0] == letter] for letter in "an"]
    rng, drawn = np.random.default_rng(5), [[] for _ in range(60)]
    for stratum in strata:
        for b, row in enumerate(rng.integers(0, len(stratum), (60, len(stratum)))):
            drawn[b] += [i for index in row for i, group in enumerate(groups) if group == stratum[index]]
    slow = [roc_auc_score(labels[i], own[i]) - roc_auc_score(labels[i], other[i]) for i in drawn]
    found = paired_interval(labels, own, other, groups, n=60, seed=5)
    np.testing.assert_allclose([found.low, found.high], np.quantile(slow, [0.025, 0.975]), atol=1e-10)
    assert found.value == pytest.approx(roc_auc_score(labels, own) - roc_auc_score(labels, other), abs=1e-10)
    swapped = paired_interval(labels, other, own, groups, n=60, seed=5)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def hard_patients(rng: np.random.Generator, gain: float) -> tuple[Any, ...]:
    """16 patients of 6 patches; what makes a patient hard is hard for both methods. The first has `gain` more signal."""
    labels, groups = np.tile([0, 0, 0, 1, 1, 1], 16), [f"p{i // 6}" for i in range(96)]
    hard = np.repeat(rng.normal(size=16) * 1.5, 6)
    own, other = (hard + labels * shift + rng.normal(size=96) * 0.7 for shift in (0.8 + gain, 0.8))
    return labels, own, other, groups


def test_paired_intervals_cover_the_truth_and_are_narrower_than_two_apart() -> None:
    rng, gain = np.random.default_rng(0), 0.8
    wide = math.sqrt(2 * (1.5**2 + 0.7**2))  # patients in common add a little, which the many groups make small
    truth = norm.cdf((0.8 + gain) / wide) - norm.cdf(0.8 / wide)
    covered, clear, apart_clear = 0, 0, 0
    for trial in range(100):
        labels, own, other, groups = hard_patients(rng, gain)
        found = paired_interval(labels, own, other, groups, n=150, seed=trial)
        covered += found.low <= truth + 0.02 and truth - 0.02 <= found.high
        a, b = (bootstrap_interval(labels, scores, groups, n=150, seed=trial) for scores in (own, other))
        clear += found.low > 0
        apart_clear += a.low > b.high
    assert covered >= 85  # 95 expected, of 100
    assert clear > 90
    assert apart_clear < 50, "the intervals of the two mostly overlap"


def test_methods_of_equal_worth_are_seldom_told_apart() -> None:
    rng, told = np.random.default_rng(1), 0
    for trial in range(100):
        labels, own, other, groups = hard_patients(rng, 0.0)
        found = paired_interval(labels, own, other, groups, n=150, seed=trial)
        told += not found.low <= 0 <= found.high
    assert told <= 15  # 5 expected, of 100


def test_no_interval_of_a_difference_that_never_varies() -> None:
    labels, scores = tied_set(60, 4)
    same = paired_interval(labels, scores, np.exp(scores), [f"p{i % 12}" for i in range(60)], n=50)
    assert (same.value, math.isnan(same.low), math.isnan(same.high)) == (0, True, True)
    assert same.note
    with pytest.raises(ValueError, match="expected 60"):
        paired_interval(labels, scores, scores[1:])
    with pytest.raises(ValueError, match="other scores: 1 of 60 are NaN"):
        paired_interval(labels, scores, np.where(np.arange(60) == 3, np.nan, scores))


# ---------------------------------------------------------------- DeLong


def slow_delong(labels: np.ndarray, own: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Difference and standard error by the definition: every pair of an anomalous and a normal image, and the 2 x 2 covariances."""
    areas, ten, one = [], [], []
    for scores in (own, other):
        high, low = scores[labels == 1][:, None], scores[labels == 0][None, :]
        psi = (high > low).astype(np.float64) + 0.5 * (high == low)
        areas.append(psi.mean())
        ten.append(psi.mean(axis=1))
        one.append(psi.mean(axis=0))
    covariance = np.cov(ten) / len(ten[0]) + np.cov(one) / len(one[0])
    contrast = np.array([1.0, -1.0])
    return areas[0] - areas[1], math.sqrt(max(0.0, contrast @ covariance @ contrast))


@given(TIED, st.integers(0, 2**31))
@QUICK
def test_delong_is_the_definition(pairs: list[tuple[int, int]], seed: int) -> None:
    labels, own = both_classes(pairs)
    other = np.random.default_rng(seed).integers(-3, 4, len(own)).astype(float)
    found = delong(labels, own, other)
    if min(labels.sum(), (1 - labels).sum()) < 2:
        assert math.isnan(found.p)
        return
    value, error = slow_delong(labels, own, other)
    assert (found.value, found.error) == pytest.approx((value, error), abs=1e-7)
    if error > 1e-6:
        z = value / error
        assert found.p == pytest.approx(2 * norm.sf(abs(z)), abs=1e-6)
        assert found.low == pytest.approx(max(-1, value - norm.ppf(0.975) * error), abs=1e-6)
        assert found.high == pytest.approx(min(1, value + norm.ppf(0.975) * error), abs=1e-6)
    else:
        assert math.isnan(found.p)


def test_delong_by_hand() -> None:
    """Three anomalous (2 4 6, 1 4 2) and three normal images (1 3 5, 0 3 5): components by hand.

    V10 = 1/3 2/3 1 and 1/3 2/3 1/3; V01 = 1 2/3 1/3 and 1 1/3 0; areas 2/3 and 4/9; differences 0 0 2/3 and 0 1/3 1/3.
    """
    found = delong([1, 1, 1, 0, 0, 0], [2, 4, 6, 1, 3, 5], [1, 4, 2, 0, 3, 5])
    assert found.value == pytest.approx(2 / 9)
    assert found.error == pytest.approx(math.sqrt((4 / 27 + 1 / 27) / 3))
    assert found.p == pytest.approx(2 * norm.sf(2 / 9 / math.sqrt(5 / 81)))


def test_p_values_of_equal_methods_are_even() -> None:
    rng = np.random.default_rng(7)
    labels = np.repeat([0, 1], 60)
    shared = rng.normal(size=(300, 120)) + labels
    p = [delong(labels, s + rng.normal(size=120), s + rng.normal(size=120)).p for s in shared]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.09
    assert 0.4 < np.mean(p) < 0.6


# ---------------------------------------------------------------- patients


def test_patient_scores_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(2)
    groups = [f"p{i % 11}" if i % 9 else "" for i in range(120)]
    labels = np.array([int(group in ("p1", "p3", "p4") and i % 2 == 0) for i, group in enumerate(groups)])
    scores = rng.normal(size=120) + 0.3 * labels
    found = patient_metrics(labels, scores, groups, n=80, seed=3)
    names = sorted({group for group in groups if group})
    truth = [max(labels[i] for i in range(120) if groups[i] == name) for name in names]
    for key, of in (("mean", np.mean), ("max", np.max), ("q90", lambda v: np.quantile(v, 0.9))):
        own = [of([scores[i] for i in range(120) if groups[i] == name]) for name in names]
        assert found[key]["value"] == pytest.approx(roc_auc_score(truth, own))
        interval = bootstrap_interval(truth, own, names, n=80, seed=3)
        np.testing.assert_equal((found[key]["low"], found[key]["high"]), (interval.low, interval.high))
    assert found["n"] == {"normal": 8, "anomalous": 3, "mixed": 3}
    assert found["images_without"] == sum(not group for group in groups)
    assert found["note"] == ""


def test_patients_of_one_kind_have_no_auroc() -> None:
    found = patient_metrics([0, 1, 0, 1], [1, 2, 3, 4], ["a", "a", "b", "b"], n=20)
    assert [found[key] for key in ("mean", "max", "q90")] == [None] * 3
    assert re.search(r"^2 .*all with anomalous", found["note"])
    assert "normal" in patient_metrics([0, 0], [1, 2], ["a", "b"], n=20)["note"]


# ---------------------------------------------------------------- evaluate and report


def written(
    folder: Path, scores: Any, labels: Any, groups: Any = None, model: str = "m", skip: int = 0, **names: str
) -> Path:
    """A score file in `folder`, without its first `skip` images."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = [""] * len(labels) if groups is None else groups
    table = [
        f"i{k}.png,{groups[k]},{'' if labels[k] < 0 else labels[k]},{scores[k]},{model}"
        for k in range(skip, len(labels))
    ]
    file = folder / names.get("file", "mean_color.csv" if model == "mean_color" else "scores.csv")
    file.write_text("\n".join(["image,group,label,score,model", *table]))
    if "data" in names:
        (folder / "scores.json").write_text(json.dumps({"data": names["data"]}))
    return folder


def evaluated(cli: Any, out: Path, *words: Any) -> tuple[dict[str, Any], str]:
    result = cli("evaluate", *words, "--out", out, "--resamples", 200)
    assert result.exit_code == 0, result.output
    return json.loads((out / "metrics.json").read_text()), result.stdout


@pytest.mark.usefixtures("fast")
def test_intervals_that_overlap_can_still_be_clearly_apart(cli: Any, tmp_path: Path) -> None:
    """What makes patients hard is common to both, so both intervals are wide; the difference is not."""
    labels, own, other, groups = hard_patients(np.random.default_rng(2), 0.6)
    folder = written(tmp_path / "s", own, labels, groups)
    written(folder, other, labels, groups, "mean_color")
    metrics, said = evaluated(cli, tmp_path / "out", folder)
    assert metrics["m"]["auroc"]["low"] < metrics["mean_color"]["auroc"]["high"]
    found = metrics["m"]["differences"]["mean_color"]
    expected = paired_interval(labels, own, other, groups, n=200)
    assert (found["auroc"]["value"], found["auroc"]["low"], found["auroc"]["high"]) == (
        expected.value,
        expected.low,
        expected.high,
    )
    assert found["auroc"]["low"] > 0
    assert "16 groups" in found["method"]
    assert found["p"] is None
    (row,) = rows(tmp_path / "out" / "differences.csv")
    assert row["verdict"] == "better"
    shown = f"+{expected.value:.3f} [{expected.low:.2f}, {expected.high:.2f}]"
    assert row["AUROC difference"] == shown
    assert shown in said
    assert cli("report", tmp_path / "out", "--out", tmp_path / "r.html").exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert f"Better than mean colour by {shown}" in page
    assert "not clearly better" not in page
    metrics, _ = evaluated(cli, tmp_path / "back", folder, "--baseline", "m")
    assert metrics["m"]["differences"] == {}
    assert metrics["mean_color"]["differences"]["m"]["auroc"]["high"] == pytest.approx(-expected.low)
    assert rows(tmp_path / "back" / "differences.csv")[0]["verdict"] == "worse"
    assert cli("report", tmp_path / "back", "--out", tmp_path / "r.html").exit_code == 0
    assert "Worse than m by -" in (tmp_path / "r.html").read_text()
    fails(cli("evaluate", folder, "--baseline", "mm"), "--baseline mm", "'m'")


@pytest.mark.usefixtures("fast")
def test_three_methods_and_images_of_one_alone(cli: Any, tmp_path: Path) -> None:
    labels, own, other, groups = hard_patients(np.random.default_rng(2), 0.0)
    a, b = (
        written(tmp_path / "a", own, labels, groups, "a"),
        written(tmp_path / "b", other, labels, groups, "b", skip=5),
    )
    written(a, other * 0.3, labels, groups, "mean_color")
    metrics, said = evaluated(cli, tmp_path / "out", a, b)
    assert {name: list(one["differences"]) for name, one in metrics.items()} == {
        "a: a": ["mean_color"], "mean_color": [], "b: b": ["mean_color", "a: a"],
    }  # fmt: skip
    found = metrics["b: b"]["differences"]["a: a"]
    assert found["left_out"] == {"own": 0, "other": 5}
    assert found["images"] == {"normal": 45, "anomalous": 46}
    assert re.search(r"left out.*\b5\b", said)
    expected = paired_interval(labels[5:], other[5:], own[5:], groups[5:], n=200)
    assert (found["auroc"]["low"], found["auroc"]["high"]) == (expected.low, expected.high)
    assert found["auroc"]["low"] < 0 < found["auroc"]["high"]
    assert "no clear difference" in said
    metrics, _ = evaluated(cli, tmp_path / "out", a / "scores.csv")
    assert metrics["a"]["differences"] == {}
    assert not list((tmp_path / "out").glob("differences.*")), "of the call before"


@pytest.mark.usefixtures("fast")
def test_independent_images_are_compared_by_delong(cli: Any, tmp_path: Path) -> None:
    labels, scores = tied_set(60, 9)
    other = scores + np.random.default_rng(1).normal(size=60)
    for name, groups in (("unknown", None), ("own", [f"p{i}" for i in range(60)])):
        a, b = (
            written(tmp_path / name / which, of, labels, groups, which) for which, of in (("a", scores), ("b", other))
        )
        metrics, said = evaluated(cli, tmp_path / name / "out", a, b)
        found, expected = metrics["b: b"]["differences"]["a: a"], delong(labels, other, scores)
        assert (found["method"], found["p"]) == ("DeLong", pytest.approx(expected.p))
        assert found["auroc"]["low"] == pytest.approx(expected.low)
        assert ("unknown" in found["note"]) == (name == "unknown")
        assert ("patients" in metrics["b: b"]) == (name == "own")
        assert "DeLong" in said


@pytest.mark.usefixtures("fast")
def test_few_or_perfect_images_are_no_certainty(cli: Any, tmp_path: Path) -> None:
    """DeLong's error is 0 where every image is ranked right by one and wrong by the other, or alike by both."""
    labels = np.tile([0, 1], 3)
    groups = [f"p{i}" for i in range(6)]
    for name, other, value in (("wrong", -labels, 1), ("alike", 2 * labels, 0)):
        folder = written(tmp_path / name, labels, labels, groups)
        written(folder, other, labels, groups, "mean_color")
        metrics, _ = evaluated(cli, tmp_path / "out", folder)
        found = metrics["m"]["differences"]["mean_color"]
        assert (found["auroc"]["value"], found["auroc"]["low"], found["p"]) == (value, None, None)
        assert found["auroc"]["optimistic"]
        assert "only 3 groups hold normal" in found["note"]
        assert ("alike" in found["note"]) == (name == "alike")
        assert rows(tmp_path / "out" / "differences.csv")[0].get("verdict", "") == ""
        assert cli("report", tmp_path / "out", "--out", tmp_path / "r.html").exit_code == 0
        assert "cannot be told" in (tmp_path / "r.html").read_text()


@pytest.mark.usefixtures("fast")
def test_what_cannot_be_paired_is_refused_or_said(cli: Any, tmp_path: Path) -> None:
    labels, own, other, groups = hard_patients(np.random.default_rng(3), 0.5)
    a = written(tmp_path / "a", own, labels, groups, "a", data="set1")
    flipped = labels.copy()
    flipped[7] = 1 - flipped[7]
    b = written(tmp_path / "b", other, flipped, groups, "b")
    out = ("--out", tmp_path / "out", "--resamples", 100)
    fails(cli("evaluate", a, b, *out), "'i7.png'", "label", str(a / "scores.csv"), str(b / "scores.csv"))
    assert not (tmp_path / "out").exists()
    b = written(tmp_path / "b", other, labels, ["x", *groups[1:]], "b")
    fails(cli("evaluate", a, b, *out), "'i0.png'", "group")
    # The names are of two sets, whose metrics can still be in one table.
    b = written(tmp_path / "b", other, flipped, groups, "b", data="set2")
    metrics, said = evaluated(cli, tmp_path / "out", a, b)
    assert metrics["b: b"]["differences"]["a: a"]["auroc"] is None
    assert "set2" in said
    assert cli("report", tmp_path / "out", "--out", tmp_path / "r.html").exit_code == 0
    assert "Not compared with a: a" in (tmp_path / "r.html").read_text()
    # Of equal names and labels, from two places: compared, and said.
    b = written(tmp_path / "b", other, labels, groups, "b", data="set2")
    metrics, said = evaluated(cli, tmp_path / "out", a, b)
    assert metrics["b: b"]["differences"]["a: a"]["auroc"] is not None
    assert "set1" in said
    assert "set2" in said
    c = written(tmp_path / "c", own[:10], labels[:10], groups, "c")
    (c / "scores.csv").write_text((c / "scores.csv").read_text().replace("i", "j", 11))
    (c / "scores.csv").write_text((c / "scores.csv").read_text().replace("jmage", "image"))
    metrics, said = evaluated(cli, tmp_path / "out", a, c)
    assert "no image" in metrics["c: c"]["differences"]["a: a"]["note"]
    assert "no image is in both" in said


@pytest.mark.usefixtures("fast")
def test_names_are_matched_however_they_are_written(cli: Any, tmp_path: Path) -> None:
    labels, own, other, groups = hard_patients(np.random.default_rng(3), 0.5)
    a, b = (written(tmp_path / name, of, labels, groups, name) for name, of in (("a", own), ("b", other)))
    (b / "scores.csv").write_text((b / "scores.csv").read_text().replace("\ni", "\n./x/../i"))
    metrics, _ = evaluated(cli, tmp_path / "out", a, b)
    assert sum(metrics["b: b"]["differences"]["a: a"]["left_out"].values()) == 0


@pytest.mark.usefixtures("fast")
def test_patients_in_evaluate_and_report(cli: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    groups = [f"p{i // 5}" for i in range(100)]
    labels = np.array([int(i // 5 % 2 and i % 5 < 3) for i in range(100)])
    scores = rng.normal(size=100) + 2 * labels
    hidden = np.where(np.arange(100) == 99, -1, labels)
    folder = written(tmp_path / "s", scores, hidden, groups)
    metrics, said = evaluated(cli, tmp_path / "out", folder)
    found = metrics["m"]["patients"]
    assert found["n"] == {"normal": 10, "anomalous": 10, "mixed": 10}
    assert found["patches"]["anomalous"] == [4, 5.0, 5]
    assert metrics["m"]["unlabelled"] == 1
    assert "1 images without a label" in said
    own = [scores[i : i + 5].max() for i in range(0, 100, 5)]
    own[-1] = scores[95:99].max()
    assert found["max"]["value"] == pytest.approx(roc_auc_score([0, 1] * 10, own))
    assert found["max"]["low"] < found["max"]["value"]
    assert rows(tmp_path / "out" / "patients.csv")[0]["maximum"].startswith(f"{found['max']['value']:.3f} [")
    assert "more patches" in said
    assert cli("report", tmp_path / "out", "--out", tmp_path / "r.html").exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert f"{found['max']['value']:.3f} [" in page
    assert "By patient" in page
    folder = written(tmp_path / "s", scores, np.tile([0, 1], 50), groups)
    metrics, said = evaluated(cli, tmp_path / "out", folder)
    assert metrics["m"]["patients"]["mean"] is None
    assert re.search("20 patients.* all with anomalous", said)
    assert not (tmp_path / "out" / "patients.csv").exists()
    assert cli("report", tmp_path / "out", "--out", tmp_path / "r.html").exit_code == 0
    assert "all with anomalous" in (tmp_path / "r.html").read_text()


@pytest.mark.usefixtures("fast")
def test_metrics_of_an_older_version_get_no_verdict(cli: Any, tmp_path: Path) -> None:
    labels, own, other, groups = hard_patients(np.random.default_rng(2), 0.6)
    folder = written(tmp_path / "s", own, labels, groups)
    written(folder, other, labels, groups, "mean_color")
    metrics, _ = evaluated(cli, folder, folder)
    for one in metrics.values():
        for key in ("differences", "patients", "unlabelled"):
            del one[key]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert cli("report", folder, "--out", tmp_path / "r.html").exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert "Better than" not in page
    assert "not clearly better" not in page
    assert "no paired comparison" in page
    assert f"gan-uad evaluate {folder}" in page


@pytest.mark.usefixtures("fast")
def test_a_page_tells_equal_names_of_folders_apart(cli: Any, tmp_path: Path) -> None:
    labels, own, _, groups = hard_patients(np.random.default_rng(5), 1.0)
    folders = [written(tmp_path / parent / "scores", own, labels, groups) for parent in ("first", "second")]
    for folder in folders:
        evaluated(cli, folder, folder)
    assert cli("report", *folders, "--out", tmp_path / "r.html").exit_code == 0
    page = (tmp_path / "r.html").read_text()
    assert all(f"{parent}/scores" in page for parent in ("first", "second"))
    assert cli("report", folders[0], "--out", tmp_path / "r.html").exit_code == 0
    assert ">first/scores" not in (tmp_path / "r.html").read_text()
