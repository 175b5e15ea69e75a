"""Tail probabilities of normals: closed forms, the definition spelt out, and what cannot be a tail."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_uad.metrics.calibration import tail_probability
from gan_uad.metrics.tails import Tail, combine

pytestmark = pytest.mark.numerical


def window_of(known: list[float]) -> float:
    ranked = sorted(known)
    body = ranked[: len(ranked) - max(3, math.ceil(0.1 * len(ranked)))]
    below = [body[-1] - v for v in body]
    most = 4 * float(np.quantile(below, 0.75))
    return max(statistics.fmean(min(d, most) for d in below) / min(len(ranked), 512), 1e-5 * max(map(abs, known)))


def by_definition(known: list[float], value: float, window: float) -> float:
    """log p, number by number: the share of the window below the value in which each known value counts, added up."""
    n = len(known)
    ranked = sorted(known)
    k = max(3, math.ceil(0.1 * n))
    start, tail = ranked[n - k - 1], ranked[n - k :]
    scale = sum(v - start for v in tail) / k
    size = max(abs(ranked[-1]), abs(sum(known) / n))
    if scale <= 1e-7 * size:
        above = ranked[-1] - sum(known) / n
        scale = above if above > 1e-7 * size else (size or 1.0)
    inside = min(value, start)
    if window:
        counted = sum(min(1.0, max(0.0, (v - inside + window) / window)) for v in known)
    else:
        counted = float(sum(v >= inside for v in known))
    return math.log((1 + counted) / (n + 1)) - (value - inside) / scale


SAMPLES = {
    "normal": np.random.default_rng(0).normal(5, 1e-3, 83),
    "ties": np.random.default_rng(1).integers(0, 4, 57).astype(float),
    "saturated": np.minimum(np.random.default_rng(2).exponential(size=40), 0.7),
    "constant": np.full(23, 0.3),
    "zeros": np.zeros(11),
    "fewest": np.arange(10.0),
    "negative": -np.random.default_rng(3).exponential(size=31),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_definition(name: str) -> None:
    known = SAMPLES[name]
    spread = known.max() - known.min() + 0.1
    values = np.concatenate([known, known + 1e-4, np.linspace(known.min() - spread, known.max() + 3 * spread, 57)])
    expected = [by_definition(known.tolist(), v, window_of(known.tolist())) for v in values.tolist()]
    np.testing.assert_allclose(Tail.fit(known[::-1]).log_p(values), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLES)
def test_never_below_the_conformal_p_value_and_close_to_it(name: str) -> None:
    """(1 + #{known ≥ v}) / (n + 1), which a normal falls below no more often than it says; that of a window lower is the most."""
    known = SAMPLES[name]
    tail, window = Tail.fit(known), window_of(known.tolist())
    assert tail.window == pytest.approx(window, rel=1e-9)
    values = np.minimum(np.concatenate([known, np.linspace(known.min() - 1, tail.start, 501)]), tail.start)
    found = np.exp(tail.log_p(values))
    assert (found >= tail_probability(known, values) - 1e-9).all()
    assert (found <= tail_probability(known, values - 1.001 * window) + 1e-9).all()


@pytest.mark.parametrize("n", [12, 200, 65_536])
def test_rounding_stays_rounding(n: int) -> None:
    """Of values and of what the tail was fitted on: a change of 1e-6 of the spread never moves log p by a step."""
    rng = np.random.default_rng(n)
    known = rng.gamma(2.0, size=n)
    known[: n // 3] = known[0]  # ties, such as of saturated pixels
    values = rng.gamma(2.0, size=5000)
    tail, step = Tail.fit(known), 1e-6 * rng.uniform(-1, 1, 5000)
    moved = Tail.fit(known + 1e-6 * rng.uniform(-1, 1, n))
    for found in (tail.log_p(values + step), moved.log_p(values)):
        np.testing.assert_allclose(
            found, tail.log_p(values), rtol=0, atol=3e-6 / tail.window / 0.2
        )  # all within a window
        away = np.abs(values - known[0]) > 2 * tail.window
        np.testing.assert_allclose(found[away], tail.log_p(values[away]), rtol=0, atol=1e-4)


def test_a_part_that_hardly_varies_is_constant() -> None:
    """What differs by the rounding of float32 kernels alone is no tail of its own."""
    known = 0.3 * (1 + 1e-8 * np.random.default_rng(0).uniform(-1, 1, 50))
    assert -1e-2 < Tail.fit(known).log_p([0.3 * (1 + 1e-6)])[0] <= 0


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "fewest"])
def test_left_out_values_are_judged_by_all_others(name: str) -> None:
    known = SAMPLES[name]
    window = window_of(known.tolist())
    expected = [by_definition(np.delete(known, i).tolist(), known[i], window) for i in range(len(known))]
    np.testing.assert_allclose(Tail.fit(known).left_out_log_p(known), expected, rtol=1e-7, atol=1e-9)
    some = known[[3, 0, 7]]
    np.testing.assert_allclose(
        Tail.fit(known).left_out_log_p(some), [expected[3], expected[0], expected[7]], rtol=1e-7, atol=1e-9
    )


def test_an_exponential_sample_has_an_exponential_tail() -> None:
    """P(X ≥ v) = exp(−v), far beyond the 20,000 values that were seen."""
    tail = Tail.fit(np.random.default_rng(0).exponential(size=20_000))
    assert tail.start == pytest.approx(math.log(10), rel=0.02)
    assert tail.scale == pytest.approx(1, rel=0.05)
    values = np.array([0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 30.0])
    np.testing.assert_allclose(tail.log_p(values), -values, rtol=0.06, atol=0.02)


@pytest.mark.parametrize("level", [0.3, 0.05])
def test_p_values_of_new_normals_are_what_they_say(level: float) -> None:
    """And those of the fitted ones are alike if each is left out, not if it is not."""
    rng = np.random.default_rng(0)
    shares = np.zeros(3)
    for _ in range(1000):
        known, new = rng.exponential(size=(2, 20))
        tail = Tail.fit(known)
        shares += [
            (v <= math.log(level)).mean() for v in (tail.log_p(new), tail.left_out_log_p(known), tail.log_p(known))
        ]
    of_new, left_out, kept_in = shares / 1000
    assert of_new == pytest.approx(level, rel=0.2)
    assert left_out == pytest.approx(of_new, rel=0.1)
    assert kept_in < 0.9 * of_new


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=10, max_size=60), st.floats(0.0, 1e3), st.floats(1e-3, 1e3))
def test_it_falls_and_is_never_tied_beyond(known: list[float], above: float, step: float) -> None:
    tail = Tail.fit(known)
    values = np.sort(np.concatenate([known, [tail.start, tail.start + above, tail.start + above + step]]))
    log_p = tail.log_p(values)
    assert (log_p <= 0).all()
    assert (np.diff(log_p) <= 1e-12).all()
    beyond = tail.log_p([tail.start, tail.start + above, tail.start + above + step])
    assert beyond[2] < beyond[1] <= beyond[0]
    near = tail.log_p([tail.start, np.nextafter(tail.start, np.inf)])
    assert near[1] == pytest.approx(near[0], abs=1e-6)


def test_a_rounding_error_of_a_constant_part_means_nothing() -> None:
    tail = Tail.fit(np.full(50, 0.3))
    assert tail.log_p([0.3])[0] == 0
    assert -1e-5 < tail.log_p([0.3 * (1 + 1e-6)])[0] < 0


def test_shapes_are_kept() -> None:
    tail = Tail.fit(np.arange(20.0))
    assert tail.log_p(np.zeros((2, 3, 4))).shape == (2, 3, 4)
    assert tail.log_p(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.arange(9.0), "at least 10 are needed for a tail, got 9"),
        ([*range(20), np.nan], "1 of 21 are NaN"),
        ([*range(20), -np.inf], "1 are infinite"),
        (np.zeros((20, 2)), "one-dimensional"),
    ],
)
def test_what_is_no_sample(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tail.fit(values)


def test_what_cannot_be_looked_up() -> None:
    tail = Tail.fit(np.arange(20.0))
    with pytest.raises(ValueError, match="1 of 2 are NaN"):
        tail.log_p([1.0, np.nan])
    for stranger in (0.5, -1.0, 100.0):
        with pytest.raises(ValueError, match="not among those"):
            tail.left_out_log_p([3.0, stranger])


def test_the_combinations() -> None:
    p = np.array([[0.5, 0.01, 1.0], [0.2, 0.9, 1.0]])
    np.testing.assert_allclose(combine(np.log(p), "fisher"), -2 * np.log(p[0] * p[1]), atol=1e-12)
    np.testing.assert_allclose(combine(np.log(p), "max"), [-math.log(0.2), -math.log(0.01), 0], atol=1e-12)
    for bad, how, message in (
        (np.log(p), "mean", "fisher or max"),
        (np.log(p)[0], "max", r"\[components, N\]"),
        (-np.log(p) - 1, "max", "up to 0"),
        (np.full((1, 1), np.nan), "fisher", "up to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            combine(bad, how)
