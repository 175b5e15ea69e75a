"""Whether the probabilities of a classifier mean what they say: ECE, Brier score, and a curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from gan_uad.metrics.detection import reliability


def reliability_of(labels: ArrayLike, log_odds: NDArray[np.float64]) -> dict[str, Any]:
    """Figures of labels `[N]` and scores `[N]` that are log P(anomalous) − log P(normal), for `metrics.json`; empty bins are None.

    A classifier trained on balanced classes speaks of a world in which every other patch is anomalous (`anomalous`: the share here).
    """
    found = reliability(labels, expit(log_odds))
    columns = {"predicted": found.predicted, "observed": found.observed}
    bins = {name: [None if np.isnan(value) else float(value) for value in values] for name, values in columns.items()}
    return {
        "ece": found.ece, "brier": found.brier, "anomalous": float(np.mean(np.asarray(labels))), **bins,
        "counts": found.counts.tolist(),
    }  # fmt: skip


def draw_reliability(metrics: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """`reliability.png` of what `reliability_of` gave, by name; nothing where there is none."""
    from gan_uad.plotting import plots

    if metrics:
        curves = {
            f"{name}: ECE {found['ece']:.3f}": (_numbers(found["predicted"]), _numbers(found["observed"]))
            for name, found in metrics.items()
        }
        plots.calibration(curves, folder / "reliability.png", "P(anomalous), as predicted", "share that is anomalous")


def _numbers(values: list[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values])
