"""Metrics of a cross-validation: of each fold, their mean, of all test images pooled, and of an external set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gan_uad import console
from gan_uad.detection.evaluate import cells, write_results
from gan_uad.detection.reliability import reliability_of
from gan_uad.detection.score_file import (
    BASELINE,
    SCORES,
    ScoreFile,
    gives_log_odds,
    read_scores,
    threshold_of,
    validation_of,
)
from gan_uad.errors import UserError
from gan_uad.metrics.detection import (
    RATES,
    Threshold,
    classification_report,
    count_images,
    decision_metrics,
    ranking_metrics,
)
from gan_uad.tables import format_number

COLUMNS = {
    "model": "model", "set": "images of", "n": "normal + anomalous", "auroc": "AUROC", "auprc": "AUPRC", "accuracy": "accuracy",
    "f1": "F1", "sensitivity": "sensitivity", "specificity": "specificity",
}  # fmt: skip
METRICS = ("auroc", "auprc", *RATES)
ABOUT = {
    "mean": "mean and standard deviation over folds. It is no standard error: the trainings share images "
    "(Bengio & Grandvalet 2004: there is no unbiased one from k folds)",
    "pooled": "all test images, each scored by the model that has not seen its group, and decided by the threshold of that fold. "
    "Log-odds are pooled as they are, other scores in standard deviations from the mean of that fold's validation normals. "
    "Intervals are over groups, not trainings",
    "together": "the external images, scored by the mean over the models of all folds (log-odds as they are, other scores in standard "
    "deviations) and decided by the majority of them (a tie: normal)",
}


@dataclass
class Fold:
    """Scores of one fold's model: as they are, in a unit that all folds share, and its threshold."""

    scores: ScoreFile
    shared: NDArray[np.float64]
    threshold: Threshold

    @property
    def decided(self) -> NDArray[np.bool_]:
        """Decision of each image."""
        return self.threshold.decide(self.scores.score)


def report(
    folder: Path, name: str, folds: int, external: str | None, rule: str | None, resamples: int, seed: int
) -> None:
    """Write the metrics of `folder/fold-1` to `fold-<folds>` and print them. `external`: the folder in each with scores of such a set."""
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[ArrayLike, ArrayLike]] = {}
    settings: dict[str, Any] = {"n": resamples, "seed": seed}
    fold_folders = [folder / f"fold-{fold}" for fold in range(1, folds + 1)]

    def read(kind: str, file: str) -> list[Fold]:
        paths = [fold_folder / kind / file for fold_folder in fold_folders]
        return [_read(path, rule) for path in paths] if all(path.is_file() for path in paths) else []

    for file in (SCORES, BASELINE):
        own = read("scores", file)
        if not own:
            continue
        model = own[0].scores.model
        label, shared = _joined(own, lambda f: f.scores.label), _joined(own, lambda f: f.shared)
        groups = [group for fold in own for group in fold.scores.group]
        result = _results(own, label, shared, groups, _joined(own, lambda f: f.decided), settings)
        if gives_log_odds(own[0].scores.path):
            result["reliability"] = reliability_of(label, shared)
        rows += _rows(model, result, "fold", "pooled")
        curves[f"{model}, pooled"] = (label, shared)
        if file == SCORES:
            curves |= {f"fold {k}": (fold.scores.label, fold.scores.score) for k, fold in enumerate(own, 1)}
        if external is not None and (theirs := read(external, file)):
            scores, together = theirs[0].scores, np.mean([fold.shared for fold in theirs], axis=0)
            majority = np.mean([fold.decided for fold in theirs], axis=0) > 0.5
            result["external"] = _results(theirs, scores.label, together, scores.group, majority, settings)
            rows += _rows(model, result["external"], "external, model", "external, together")
            curves[f"{model}, external"] = (scores.label, together)
        results[model] = result
    _write(folder, name, results, rows, curves)


def _read(path: Path, rule: str | None) -> Fold:
    scores, validation = read_scores(path).labelled(), validation_of(path)
    shared = scores.score
    if not gives_log_odds(path):
        if validation is None or len(normals := validation.normals) < 2:
            raise UserError(
                f"{path}: scores of several models are compared by their validation normals; there are fewer than 2 beside it"
            )
        shared = (scores.score - normals.mean()) / (float(normals.std(ddof=1)) or 1.0)
    return Fold(scores, shared, threshold_of(scores, validation, rule))


def _joined(folds: Sequence[Fold], values: Any) -> NDArray[Any]:
    return np.concatenate([values(fold) for fold in folds])


def _results(
    folds: list[Fold], label: NDArray[np.int64], scores: NDArray[np.float64], groups: list[str], decided: NDArray[np.bool_],
    settings: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Metrics of each fold, their mean, and those of the images of all folds; decisions only where there are thresholds."""
    exist = [f.threshold.exists for f in folds]
    each = [
        _metrics(f.scores.label, f.scores.score, f.scores.group, f.decided if exists else None, settings)
        for f, exists in zip(folds, exist, strict=True)
    ]
    why = {f"fold {k}: {f.threshold.note}": None for k, f in enumerate(folds, 1) if not f.threshold.exists}
    pooled = _metrics(label, scores, groups, decided if all(exist) else None, settings)
    return {"folds": each, "mean": _mean(each), "pooled": pooled, "without_threshold": list(why)}


def _metrics(
    labels: NDArray[np.int64], scores: NDArray[np.float64], groups: list[str], decided: NDArray[np.bool_] | None,
    settings: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Each metric of one set of images with its interval, and the confusion matrix; None for those of decisions that do not exist."""
    found = {"images": count_images(labels), **ranking_metrics(labels, scores, groups, **settings)}
    if decided is None:
        return found | dict.fromkeys((*RATES, "confusion"))
    rates = decision_metrics(labels, decided, groups, **settings)
    return found | rates | {"confusion": classification_report(labels, decided)["confusion"]}


def _mean(each: list[dict[str, Any]]) -> dict[str, dict[str, float | None] | None]:
    """Mean and standard deviation over folds; None where some fold has no value, since the others are no fair sample."""
    result: dict[str, dict[str, float | None] | None] = {}
    for name in METRICS:
        values = [None if metrics[name] is None else metrics[name]["value"] for metrics in each]
        known = np.array([value for value in values if value is not None])
        whole = len(known) == len(each)
        result[name] = {"mean": float(known.mean()), "sd": float(known.std(ddof=1))} if whole else None
    return result


def _rows(model: str, result: dict[str, Any], one: str, all_: str) -> list[dict[str, Any]]:
    mean = {
        name: f"{format_number(found['mean'])} ± {format_number(found['sd'])}"
        for name, found in result["mean"].items()
        if found is not None
    }
    rows = [{"set": f"{one} {k}", **cells(model, metrics, METRICS)} for k, metrics in enumerate(result["folds"], 1)]
    rows.append({"model": model, "set": f"{one}s, mean ± sd", "n": "", **mean})
    return [*rows, {"set": all_, **cells(model, result["pooled"], METRICS)}]


def _write(
    folder: Path, name: str, results: dict[str, Any], rows: list[dict[str, Any]], curves: dict[str, Any]
) -> None:
    from gan_uad.plotting import plots

    write_results(folder, {"name": name, "about": ABOUT, "models": results}, results, rows, COLUMNS, curves)
    confusion, drawn = next(iter(results.values()))["pooled"]["confusion"], folder / "confusion.png"
    if confusion is None:
        drawn.unlink(missing_ok=True)  # of an earlier call that had thresholds
    else:
        plots.confusion(confusion, drawn)
    for model, result in results.items():
        for reason in (*result["without_threshold"], *result.get("external", {}).get("without_threshold", [])):
            print(f"{model}, {reason}")
        if note := result["pooled"]["auroc"]["note"]:
            print(f"{model}, intervals: {note}")
    for key in ("mean", "pooled", *(["together"] if any("external" in result for result in results.values()) else [])):
        print(f"{key}: {ABOUT[key]}")
    console.say(f"metrics and plots -> {folder}")
