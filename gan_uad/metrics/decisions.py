"""Metrics of decisions at one threshold. A ratio with denominator 0 is NaN, never 0."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.metrics._inputs import IntArray, check_labels

CLASS_NAMES = ("normal", "anomalous")


def _ratio(count: float, total: float) -> float:
    return float(count / total) if total else float("nan")


def confusion(labels: ArrayLike, decisions: ArrayLike) -> IntArray:
    """Counts `[2, 2]`, rows true, columns decided, order normal, anomalous: `[[tn, fp], [fn, tp]]`.

    `labels [N]` of 0 and 1, `decisions [N]` bool (True: anomalous). ValueError for other values or shapes.
    """
    decided = np.asarray(decisions)
    if decided.ndim != 1 or decided.size == 0:
        raise ValueError(f"decisions: expected a non-empty one-dimensional array, got shape {decided.shape}")
    if not np.isin(decided, (0, 1)).all():
        raise ValueError("decisions: expected booleans (True: anomalous); apply a threshold to scores first")
    truth = check_labels(labels, decided.size)
    return np.bincount(2 * truth + decided.astype(np.int64), minlength=4).reshape(2, 2)


def accuracy(labels: ArrayLike, decisions: ArrayLike) -> float:
    """Share of correct decisions."""
    matrix = confusion(labels, decisions)
    return _ratio(matrix[0, 0] + matrix[1, 1], matrix.sum())


def sensitivity(labels: ArrayLike, decisions: ArrayLike) -> float:
    """Share of anomalous images that are flagged (recall); NaN without anomalous images."""
    matrix = confusion(labels, decisions)
    return _ratio(matrix[1, 1], matrix[1].sum())


def specificity(labels: ArrayLike, decisions: ArrayLike) -> float:
    """Share of normal images that are not flagged; NaN without normal images."""
    matrix = confusion(labels, decisions)
    return _ratio(matrix[0, 0], matrix[0].sum())


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) in [0, 1] of a proportion of n independent trials; NaNs for n = 0.

    Source: Wilson 1927, without continuity correction. ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n} trials is impossible")
    if n == 0:
        return float("nan"), float("nan")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = (z2 * share * (1 - share) / n + z2**2 / (4 * n**2)) ** 0.5 / (1 + z2 / n)
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def f1(labels: ArrayLike, decisions: ArrayLike) -> float:
    """2 tp / (2 tp + fp + fn); NaN where nothing is anomalous and nothing is flagged."""
    (_, fp), (fn, tp) = confusion(labels, decisions)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _class_report(correct: int, decided: int, support: int) -> dict[str, float]:
    return {
        "precision": _ratio(correct, decided),
        "recall": _ratio(correct, support),
        "f1": _ratio(2 * correct, decided + support),
        "support": support,
    }


def classification_report(labels: ArrayLike, decisions: ArrayLike, confidence: float = 0.95) -> dict[str, Any]:
    """All metrics of decisions at one threshold; the anomalous class is the positive one.

    Keys: accuracy, balanced_accuracy, precision, recall (= sensitivity), sensitivity, specificity, f1 in [0, 1] or NaN
    where undefined; confusion `[[tn, fp], [fn, tp]]`; classes: {normal, anomalous} each with precision, recall, f1,
    support; wilson: (low, high) of accuracy, sensitivity and specificity, valid only for independent images.
    F1 is 2 tp / (2 tp + fp + fn), so it is defined (0) when nothing is flagged. Inputs and errors as in `confusion`.
    """
    matrix = confusion(labels, decisions)
    (tn, fp), (fn, tp) = matrix.tolist()
    n = tn + fp + fn + tp
    classes = {CLASS_NAMES[0]: _class_report(tn, tn + fn, tn + fp), CLASS_NAMES[1]: _class_report(tp, tp + fp, tp + fn)}
    positive = classes["anomalous"]
    true_negative_rate = classes["normal"]["recall"]
    return {
        "accuracy": _ratio(tp + tn, n),
        "balanced_accuracy": (positive["recall"] + true_negative_rate) / 2,
        "precision": positive["precision"],
        "recall": positive["recall"],
        "sensitivity": positive["recall"],
        "specificity": true_negative_rate,
        "f1": positive["f1"],
        "confusion": matrix.tolist(),
        "classes": classes,
        "wilson": {
            "accuracy": wilson(tp + tn, n, confidence),
            "sensitivity": wilson(tp, tp + fn, confidence),
            "specificity": wilson(tn, tn + fp, confidence),
        },
    }
