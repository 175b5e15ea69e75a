"""Warnings of collapse and divergence."""

from __future__ import annotations

import pytest

from gan_uad.training.watch import Watch

HEALTHY = {"real_sign": 0.5, "fake_sign": -0.5, "diversity": 0.9, "grad_G": 2.0, "grad_D": 1.0}


def warnings_of(*rows: dict[str, float]) -> list[str]:
    watch = Watch()
    return [warning for row in ([HEALTHY] * 20 + list(rows)) for warning in watch.check(row)]


def test_a_healthy_training_is_left_alone() -> None:
    assert warnings_of(*[HEALTHY] * 30) == []


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"real_sign": 1.0, "fake_sign": -0.99}, "optim.augment"),
        ({"diversity": 0.05}, "diversity 0.05"),
    ],
)
def test_lasting_trouble_is_reported_once(trouble: dict[str, float], words: str) -> None:
    found = warnings_of(*[HEALTHY | trouble] * 10)
    assert len(found) == 1
    assert words in found[0]
    assert warnings_of(*[HEALTHY | trouble] * 4) == []
    assert len(warnings_of(*[HEALTHY | trouble] * 40)) == 2


def test_exploding_gradients_are_reported_at_once() -> None:
    (found,) = warnings_of(HEALTHY | {"grad_G": 500.0})
    assert "of G" in found
    assert "250 times" in found


def test_no_warnings_at_the_beginning_and_for_missing_metrics() -> None:
    watch = Watch()
    assert [w for _ in range(9) for w in watch.check({"diversity": 0.0, "real_sign": 1.0, "fake_sign": -1.0})] == []
    assert warnings_of(*[{"loss_G": 1.0}] * 20) == []


def test_a_resumed_run_warns_like_an_uninterrupted_one() -> None:
    rows = [HEALTHY] * 20 + [HEALTHY | {"diversity": 0.1}] * 3
    watch = Watch()
    watch.replay(rows)
    later = [warning for _ in range(2) for warning in watch.check(HEALTHY | {"diversity": 0.1})]
    assert len(later) == 1
