"""How well a score ranks anomalous above normal images, at all thresholds at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.metrics._inputs import FloatArray, check_labels, check_scores


class RocPoints(NamedTuple):
    """The ROC curve: three arrays of one length; at `thresholds[i]` an image is flagged where score >= threshold."""

    fpr: FloatArray
    tpr: FloatArray
    thresholds: FloatArray


class PrPoints(NamedTuple):
    """The precision-recall curve, recall falling; `thresholds` (score >= threshold) is one shorter: the last point,
    precision 1 at recall 0, is set by convention and belongs to no threshold."""

    precision: FloatArray
    recall: FloatArray
    thresholds: FloatArray


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve in [0, 1]: P(anomalous score > normal score) + half of P(equal).

    `labels [N]` of 0 and 1, `scores [N]` finite, higher = more anomalous. Never flipped: below 0.5 the direction of the
    score is wrong on these images. ValueError for NaN, infinite or one-class input. Source: Hanley & McNeil 1982
    (area = Mann-Whitney U / n0 n1); computed by `sklearn.metrics.roc_auc_score`.
    """
    from sklearn.metrics import roc_auc_score

    values = check_scores(scores)
    return float(roc_auc_score(check_labels(labels, len(values), both_classes=True), values))


def auprc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Average precision in [0, 1]: sum over thresholds of (R_k - R_k-1) P_k, without interpolation.

    Chance is the share of anomalous images, so values of sets with other shares cannot be compared. Inputs and errors
    as in `auroc`. Source: Davis & Goadrich 2006 on why not to interpolate; `sklearn.metrics.average_precision_score`.
    """
    from sklearn.metrics import average_precision_score

    values = check_scores(scores)
    return float(average_precision_score(check_labels(labels, len(values), both_classes=True), values))


def roc_points(labels: ArrayLike, scores: ArrayLike) -> RocPoints:
    """The ROC curve for a plot: from (0, 0) at threshold infinity to (1, 1). Inputs and errors as in `auroc`."""
    from sklearn.metrics import roc_curve

    values = check_scores(scores)
    return RocPoints(*roc_curve(check_labels(labels, len(values), both_classes=True), values))


def pr_points(labels: ArrayLike, scores: ArrayLike) -> PrPoints:
    """The precision-recall curve for a plot; draw it as steps, as `auprc` sums it. Inputs and errors as in `auroc`."""
    from sklearn.metrics import precision_recall_curve

    values = check_scores(scores)
    return PrPoints(*precision_recall_curve(check_labels(labels, len(values), both_classes=True), values))


class WeightedRanking:
    """AUROC and AUPRC of many weightings of the same images, from one sort.

    Integer weights are multiplicities, so a row of weights gives the metric of a bootstrap resample. A score level is
    a run of equal scores: images of one level are ties and count half, as in `auroc`.
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike) -> None:
        values = check_scores(scores)
        self.order = np.argsort(values, kind="stable")
        self.anomalous = check_labels(labels, len(values))[self.order].astype(np.float64)
        ranked = values[self.order]
        self.level_starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))

    def _levels(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        ranked = weights[:, self.order]
        positive = np.add.reduceat(ranked * self.anomalous, self.level_starts, axis=1)
        return positive, np.add.reduceat(ranked, self.level_starts, axis=1) - positive

    def auroc(self, weights: FloatArray) -> FloatArray:
        """`weights [B, N]` >= 0 -> AUROC `[B]`; every row must weigh both classes."""
        positive, negative = self._levels(weights)
        below = np.cumsum(negative, axis=1) - negative
        area = (positive * (below + negative / 2)).sum(axis=1)
        return np.asarray(area / (positive.sum(axis=1) * negative.sum(axis=1)))

    def auprc(self, weights: FloatArray) -> FloatArray:
        """`weights [B, N]` >= 0 -> average precision `[B]`; every row must weigh both classes."""
        positive, negative = self._levels(weights)
        found = np.cumsum(positive[:, ::-1], axis=1)
        flagged = found + np.cumsum(negative[:, ::-1], axis=1)
        # A level above all that is drawn flags nothing, adds no recall, and so adds nothing: 0/0 is 0 here.
        precision = np.divide(found, flagged, out=np.zeros_like(found), where=flagged > 0)
        return np.asarray((positive[:, ::-1] * precision).sum(axis=1) / found[:, -1])
