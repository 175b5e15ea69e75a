"""From scores of patches to scores of patients (or slides: whatever the groups are)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.metrics._inputs import FloatArray, check_labels, check_scores, group_codes
from gan_uad.metrics.bootstrap import bootstrap_interval

OF_PATCHES: dict[str, Callable[[FloatArray], Any]] = {
    "mean": np.mean, "max": np.max, "q90": lambda values: np.quantile(values, 0.9),
}  # fmt: skip


def patient_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str],
    n: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """AUROC of patients, by the mean, the maximum and the 90 % quantile of the scores of their patches.

    `labels [N]` of 0 and 1, `scores [N]`, `groups [N]` ('' unknown: left out). A patient is anomalous where any patch is. Keys: `n`
    {normal, anomalous, mixed} (mixed: those of the anomalous ones that have normal patches too), `patches` {normal, anomalous} ([fewest,
    median, most] of a patient), `images_without` (patches of unknown group), `mean`, `max`, `q90` (an Interval each, patients resampled;
    None where there is no AUROC), `note` (why not, or ""). ValueError for bad input.
    """
    values = check_scores(scores)
    classes = check_labels(labels, len(values))
    group_codes(groups, len(values))  # the length
    known = np.array([bool(name) for name in groups])
    names, codes = np.unique(np.array(groups, dtype=object)[known].astype(str), return_inverse=True)
    ends = np.bincount(codes, minlength=len(names)).cumsum()[:-1]
    of_patient = np.split(np.flatnonzero(known)[np.argsort(codes, kind="stable")], ends) if len(names) else []
    truth = np.array([classes[rows].max() for rows in of_patient], dtype=np.int64)
    counts = np.array([len(rows) for rows in of_patient])
    n_normal, n_anomalous = int((truth == 0).sum()), int(truth.sum())
    result: dict[str, Any] = {
        "n": {
            "normal": n_normal, "anomalous": n_anomalous,
            "mixed": sum(bool(classes[rows].min() < classes[rows].max()) for rows in of_patient),
        },
        "patches": {
            name: [int(own.min()), float(np.median(own)), int(own.max())]
            for label, name in ((0, "normal"), (1, "anomalous")) if len(own := counts[truth == label])
        },
        "images_without": int((~known).sum()), **dict.fromkeys(OF_PATCHES), "note": "",
    }  # fmt: skip
    if not n_normal or not n_anomalous:
        which = "anomalous patches" if n_anomalous else "normal patches only"
        return result | {"note": f"{len(names)} patients or slides, all with {which}: no AUROC of patients"}
    for name, of_patches in OF_PATCHES.items():
        own = np.array([of_patches(values[rows]) for rows in of_patient], dtype=np.float64)
        result[name] = asdict(bootstrap_interval(truth, own, names.tolist(), n=n, confidence=confidence, seed=seed))
    return result
