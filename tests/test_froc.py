"""FROC: a case computed by hand, the definition by brute force, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from gan_uad.metrics.froc import RATES, Marks, froc_curve, froc_interval, froc_score, sensitivity_at

pytestmark = pytest.mark.numerical

# Two tumour slides with three lesions, two normal slides. One lesion has no detection.
#   score:   .95 .9  .8  .7  .6  .5  .4  .3  .2
#   lesion:   A           B
#   alarm:        x   x       x   x   x   x   x   and 25 more below all of them
HAND = [
    Marks.of([0.95, -np.inf], [0.8, 0.5]),
    Marks.of([0.7], [0.6, 0.2]),
    Marks.of([], [0.9, 0.3]),
    Marks.of([], [0.4, *np.linspace(0.01, 0.1, 25)]),
]


def test_a_case_computed_by_hand() -> None:
    """At 1/4 a slide one alarm is allowed (0.9), so A alone is found; at 1/2 two (0.9, 0.8), which lets B in at 0.7."""
    found = sensitivity_at(HAND)
    assert RATES == (0.25, 0.5, 1, 2, 4, 8)
    assert found.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert froc_score(HAND) == pytest.approx((1 / 3 + 5 * 2 / 3) / 6)
    assert sensitivity_at(HAND, [0]).tolist() == pytest.approx([1 / 3])


def test_the_curve_by_hand() -> None:
    curve = froc_curve(HAND)
    assert curve.thresholds[:5].tolist() == [np.inf, 0.95, 0.9, 0.8, 0.7]
    assert curve.alarms[:5].tolist() == [0, 0, 0.25, 0.5, 0.5]
    assert curve.sensitivity[:5].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert curve.alarms[-1] == 32 / 4
    assert curve.sensitivity[-1] == pytest.approx(2 / 3)


def _random(seed: int, slides: int = 7) -> list[Marks]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(slides):
        hits = rng.integers(0, 30, rng.integers(1, 5)).astype(float) if number % 2 == 0 else np.empty(0)
        hits[rng.random(len(hits)) < 0.2] = -np.inf
        made.append(Marks.of(hits, rng.integers(0, 25, rng.integers(0, 40)).astype(float)))  # many ties
    return made


@pytest.mark.parametrize("seed", range(5))
def test_against_every_threshold_tried(seed: int) -> None:
    slides = _random(seed)
    lesions = sum(len(marks.hits) for marks in slides)
    for rate, found in zip(RATES, sensitivity_at(slides), strict=True):
        best = 0.0
        for threshold in [*range(31), np.inf]:
            alarms = sum(int((marks.alarms >= threshold).sum()) for marks in slides)
            if alarms <= rate * len(slides):
                best = max(best, sum(int((marks.hits >= threshold).sum()) for marks in slides) / lesions)
        assert found == pytest.approx(best)


def test_the_interval_is_that_of_slides_drawn_again() -> None:
    """The weighted metrics are those of lists in which a slide stands as often as it was drawn."""
    slides = _random(0, 12)
    interval = froc_interval(slides, n=200, seed=3)
    rng = np.random.default_rng(3)
    holding = [i for i, marks in enumerate(slides) if len(marks.hits)]
    others = [i for i, marks in enumerate(slides) if not len(marks.hits)]
    first, second = rng.integers(0, len(holding), (200, len(holding))), rng.integers(0, len(others), (200, len(others)))
    metrics = [
        froc_score([slides[holding[i]] for i in a] + [slides[others[i]] for i in b])
        for a, b in zip(first, second, strict=True)
    ]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(metrics, [0.025, 0.975])))
    assert interval.value == pytest.approx(froc_score(slides))
    assert interval.low < interval.value < interval.high
    assert interval.unit == "slide"
    assert interval.n_units == 12
    assert interval.optimistic


def test_no_interval_where_none_can_be_told() -> None:
    one = froc_interval([Marks.of([1.0], []), Marks.of([], [0.5])])
    assert np.isnan(one.low)
    assert "only one slide has lesions" in one.note
    perfect = froc_interval([Marks.of([1.0], []), Marks.of([2.0], []), Marks.of([], [0.5])])
    assert perfect.value == 1
    assert np.isnan(perfect.high)
    assert "all resamples" in perfect.note


def test_the_order_of_slides_and_a_rising_transform_change_nothing() -> None:
    slides = _random(4)
    expected = sensitivity_at(slides)
    assert sensitivity_at(slides[::-1]).tolist() == expected.tolist()
    stretched = [Marks.of(np.exp(marks.hits / 9) - 3, np.exp(marks.alarms / 9) - 3) for marks in slides]
    for new, old in zip(stretched, slides, strict=True):
        new.hits[np.isneginf(old.hits)] = -np.inf
    assert sensitivity_at(stretched).tolist() == expected.tolist()


def test_what_is_refused() -> None:
    for hits, alarms in (([np.nan], []), ([np.inf], []), ([0.0], [np.nan]), ([0.0], [-np.inf])):
        with pytest.raises(ValueError, match="finite"):
            Marks.of(hits, alarms)
    with pytest.raises(ValueError, match="no slide given"):
        froc_curve([])
    with pytest.raises(ValueError, match="no slide has a lesion"):
        froc_score([Marks.of([], [1.0])])
    with pytest.raises(ValueError, match="rates"):
        sensitivity_at(HAND, [-1])
