"""Calibration of a classifier's probabilities: ECE, Brier score, and a curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from gan_uad.metrics.detection import reliability, strict_json


def reliability_of(labels: ArrayLike, log_odds: NDArray[np.float64]) -> dict[str, Any]:
    """For `metrics.json`: metrics of labels `[N]` and scores `[N]` that are log P(anomalous) − log P(normal); empty bins are None.

    A classifier trained on balanced classes assumes that half of all patches are anomalous (`anomalous`: the share here).
    """
    found = reliability(labels, expit(log_odds))
    return {
        "ece": found.ece, "brier": found.brier, "anomalous": float(np.mean(np.asarray(labels))),
        "predicted": strict_json(found.predicted.tolist()), "observed": strict_json(found.observed.tolist()),
        "counts": found.counts.tolist(),
    }  # fmt: skip


def draw_reliability(results: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Draw `reliability.png` of the results, by name, that hold `reliability`; none where there are none."""
    from gan_uad.plotting import plots

    curves = {}
    for name, found in ((name, result["reliability"]) for name, result in results.items() if "reliability" in result):
        predicted, observed = (np.array(found[key], dtype=np.float64) for key in ("predicted", "observed"))
        curves[f"{name}: ECE {found['ece']:.3f}"] = predicted, observed
    if curves:
        plots.calibration(curves, folder / "reliability.png", "P(anomalous), as predicted", "share that is anomalous")
