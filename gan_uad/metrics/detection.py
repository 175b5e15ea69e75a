"""Image-level detection figures: the one place to import them from, and `evaluate`, which gathers them.

Scores are float `[N]`, higher = more anomalous; labels are 0 normal, 1 anomalous; groups are names of patients or
slides, '' where unknown. A decision is score > threshold, strictly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.metrics._inputs import IntArray, check_labels, check_scores, group_codes
from gan_uad.metrics.bootstrap import Interval, bootstrap_interval
from gan_uad.metrics.calibration import pvalue_calibration, reliability, tail_probability
from gan_uad.metrics.decisions import accuracy, classification_report, confusion, sensitivity, specificity, wilson
from gan_uad.metrics.ranking import auprc, auroc, pr_points, roc_points
from gan_uad.metrics.thresholds import Threshold, fit_threshold, parse_threshold

__all__ = [
    "Interval",
    "Threshold",
    "accuracy",
    "auprc",
    "auroc",
    "bootstrap_interval",
    "classification_report",
    "confusion",
    "evaluate",
    "fit_threshold",
    "parse_threshold",
    "pr_points",
    "pvalue_calibration",
    "ranking_metrics",
    "reliability",
    "roc_points",
    "sensitivity",
    "specificity",
    "strict_json",
    "tail_probability",
    "wilson",
]


def evaluate(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str] | None,
    threshold: Threshold,
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure of a test set `labels [N]`, `scores [N]`, `groups [N]` at a threshold set without it.

    Keys: `images` {normal, anomalous}; `groups` {known, normal, anomalous, mixed, images_without} (counts of known
    groups by what they hold); `auroc` and `auprc` (an Interval each, `auprc` with `chance`); `threshold`; `decisions`
    (`classification_report`, whose Wilson intervals take images for independent); `decision_intervals` (accuracy,
    sensitivity, specificity by bootstrap over groups, to be used instead; None where no group is known); `warnings`
    (sentences). Strict JSON: undefined figures (NaN) are None, an infinite threshold is the string "inf". ValueError
    for bad input or a single class.
    """
    values = check_scores(scores)
    classes = check_labels(labels, len(values), both_classes=True)
    decided = threshold.decide(values).astype(np.float64)
    settings: dict[str, Any] = {"n": n, "confidence": confidence, "seed": seed}
    group_counts = _count_groups(classes, groups)
    ranked = ranking_metrics(classes, values, groups, **settings)
    by_group = None
    if group_counts["known"]:
        rates = {"accuracy": accuracy, "sensitivity": sensitivity, "specificity": specificity}
        by_group = {
            name: asdict(bootstrap_interval(classes, decided, groups, rate, **settings)) for name, rate in rates.items()
        }
    result = {
        "images": {"normal": int((classes == 0).sum()), "anomalous": int((classes == 1).sum())},
        "groups": group_counts,
        **ranked,
        "threshold": asdict(threshold),
        "decisions": classification_report(classes, decided, confidence),
        "decision_intervals": by_group,
        "warnings": _warnings(ranked["auroc"], threshold),
    }
    return strict_json(result)


def ranking_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str] | None,
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """`auroc` and `auprc` of a test set as in `evaluate`, without any threshold."""
    classes = check_labels(labels, len(np.asarray(scores)), both_classes=True)
    settings: dict[str, Any] = {"n": n, "confidence": confidence, "seed": seed}
    area = bootstrap_interval(classes, scores, groups, auroc, **settings)
    precision = bootstrap_interval(classes, scores, groups, auprc, **settings)
    return {
        "auroc": strict_json(asdict(area)),
        "auprc": strict_json(asdict(precision) | {"chance": float(classes.mean())}),
    }


def _count_groups(labels: IntArray, groups: Sequence[str] | None) -> dict[str, int]:
    codes, n_unknown = group_codes(groups, len(labels))
    known = np.array([bool(name) for name in groups]) if groups is not None else np.zeros(len(labels), dtype=bool)
    normal, anomalous = (set(codes[known & (labels == label)].tolist()) for label in (0, 1))
    return {
        "known": len(normal | anomalous),
        "normal": len(normal - anomalous),
        "anomalous": len(anomalous - normal),
        "mixed": len(normal & anomalous),
        "images_without": n_unknown,
    }


def _warnings(area: dict[str, Any], threshold: Threshold) -> list[str]:
    warnings = []
    if area["value"] < 0.5:
        warnings.append(
            f"AUROC {area['value']:.3f} is below 0.5: anomalous images score lower than normal ones. The direction of the "
            "score is wrong for these images; the figure is reported as it is, not flipped"
        )
    if area["note"]:
        warnings.append(f"intervals: {area['note']}")
    if math.isinf(threshold.value) or threshold.rule == "manual":
        warnings.append(f"threshold: {threshold.note}")
    return warnings


def strict_json(value: Any) -> Any:
    """Strict JSON of nested dicts, lists, tuples and numbers: NaN -> None, infinities -> "inf", "-inf"."""
    if isinstance(value, dict):
        return {key: strict_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
