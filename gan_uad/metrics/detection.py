"""Image-level detection metrics: the one place to import them from, and `evaluate`, which gathers them.

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
from gan_uad.metrics.decisions import accuracy, classification_report, confusion, f1, sensitivity, specificity, wilson
from gan_uad.metrics.ranking import auprc, auroc, pr_points, roc_points
from gan_uad.metrics.thresholds import Threshold, fit_threshold, parse_threshold, unmet

__all__ = [
    "Interval", "Threshold", "accuracy", "auprc", "auroc", "bootstrap_interval", "class_metrics", "classification_report", "confusion",
    "decision_metrics", "evaluate", "f1", "fit_threshold", "parse_threshold", "pr_points", "pvalue_calibration",
    "ranking_metrics", "reliability", "roc_points", "sensitivity", "specificity", "strict_json", "tail_probability",
    "unmet", "wilson",
]  # fmt: skip
RATES = {"accuracy": accuracy, "f1": f1, "sensitivity": sensitivity, "specificity": specificity}  # of decisions


def evaluate(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str] | None,
    threshold: Threshold,
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """All metrics of a test set `labels [N]`, `scores [N]`, `groups [N]` at a threshold set without it.

    Keys: `images` {normal, anomalous}; `groups` {known, normal, anomalous, mixed, images_without} (counts of known
    groups by what they hold); `auroc` and `auprc` (an Interval each, `auprc` with `chance`); `threshold`; `decisions`
    (`classification_report`, whose Wilson intervals take images for independent); `decision_intervals` (accuracy,
    sensitivity, specificity by bootstrap over groups, to be used instead; None where no group is known); `warnings`
    (sentences). Without a threshold (infinite) `decisions` and `decision_intervals` are None, and `warnings` says why. Strict JSON:
    undefined metrics (NaN) are None, an infinite threshold is the string "inf". ValueError for bad input or a single class.
    """
    values = check_scores(scores)
    classes = check_labels(labels, len(values), both_classes=True)
    decided = threshold.decide(values)
    settings: dict[str, Any] = {"n": n, "confidence": confidence, "seed": seed}
    group_counts = _count_groups(classes, groups)
    ranked = ranking_metrics(classes, values, groups, **settings)
    by_group = None
    if group_counts["known"] and threshold.exists:
        by_group = decision_metrics(classes, decided, groups, ("accuracy", "sensitivity", "specificity"), **settings)
    result = {
        "images": count_images(classes),
        "groups": group_counts,
        **ranked,
        "threshold": asdict(threshold),
        "decisions": classification_report(classes, decided, confidence) if threshold.exists else None,
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
    area, precision = (asdict(bootstrap_interval(classes, scores, groups, m, **settings)) for m in (auroc, auprc))
    return strict_json({"auroc": area, "auprc": precision | {"chance": float(classes.mean())}})


def class_metrics(
    labels: ArrayLike, scores: ArrayLike, groups: Sequence[str] | None, classes: Sequence[str], **settings: Any
) -> dict[str, Any]:
    """AUROC of each class of anomaly (`classes [N]`, names of label 1) against all normals: {class: {"images": n, "auroc": Interval}}.

    Empty where there are fewer than two such classes. Anomalous images without a class name are in none. `settings` as in
    `decision_metrics`.
    """
    values, truth, names = np.asarray(scores), np.asarray(labels), np.asarray(classes, dtype=object)
    result = {}
    for name in sorted({str(name) for name in names[truth == 1]} - {""}):
        kept = (truth == 0) | ((truth == 1) & (names == name))
        theirs = None if groups is None else [group for group, keep in zip(groups, kept, strict=True) if keep]
        found = bootstrap_interval(truth[kept], values[kept], theirs, auroc, **settings)
        result[name] = {"images": int((truth[kept] == 1).sum()), "auroc": strict_json(asdict(found))}
    return result if len(result) > 1 else {}


def decision_metrics(
    labels: ArrayLike,
    decisions: ArrayLike,
    groups: Sequence[str] | None,
    names: Sequence[str] = tuple(RATES),
    **settings: Any,
) -> dict[str, Any]:
    """Metrics (`names` among `RATES`) of decisions `[N]` (True: anomalous), each an Interval as strict JSON.

    `settings`: `n`, `confidence` and `seed` of `bootstrap_interval`.
    """
    decided = np.asarray(decisions).astype(np.float64)
    found = {name: bootstrap_interval(labels, decided, groups, RATES[name], **settings) for name in names}
    return {name: strict_json(asdict(interval)) for name, interval in found.items()}


def count_images(labels: ArrayLike) -> dict[str, int]:
    """Number of images of each label."""
    values = np.asarray(labels)
    return {"normal": int((values == 0).sum()), "anomalous": int((values == 1).sum())}


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
            "score is wrong for these images; it is reported as it is, not flipped"
        )
    if area["note"]:
        warnings.append(f"intervals: {area['note']}")
    if not threshold.exists or threshold.rule not in ("fpr", "youden"):
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
