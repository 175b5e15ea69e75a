"""Figures of a cross-validation: of each fold, their mean, of all test images together, and of an external set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gan_uad import console
from gan_uad.detection.reliability import draw_reliability, reliability_of
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
from gan_uad.files import write_json, write_text
from gan_uad.metrics.detection import (
    accuracy,
    auprc,
    auroc,
    bootstrap_interval,
    classification_report,
    sensitivity,
    specificity,
)
from gan_uad.tables import format_interval, format_number, table

RATES: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "accuracy": accuracy,
    "f1": lambda labels, decided: float(classification_report(labels, decided)["f1"]),
    "sensitivity": sensitivity,
    "specificity": specificity,
}
COLUMNS = {
    "model": "model", "set": "images of", "n": "normal + anomalous", "auroc": "AUROC", "auprc": "AUPRC", "accuracy": "accuracy",
    "f1": "F1", "sensitivity": "sensitivity", "specificity": "specificity",
}  # fmt: skip
FIGURES = ("auroc", "auprc", *RATES)
ABOUT = {
    "mean": "mean and standard deviation over folds, whose trainings share images: no standard error "
    "(Bengio & Grandvalet 2004: k folds tell of no unbiased one)",
    "pooled": "all test images, each scored by the model that has not seen its group and decided by that fold's threshold; log-odds as "
    "they are, other scores in standard deviations from the mean of that fold's validation normals; intervals over groups, not trainings",
    "together": "the external images, scored by the mean of all folds' models (log-odds as they are, others in those standard deviations), "
    "decided by most of them (a tie: normal)",
}


@dataclass
class Fold:
    """Scores of one fold's model: as they are, in a unit that all folds share, and decided upon."""

    scores: ScoreFile
    shared: NDArray[np.float64]
    decided: NDArray[np.bool_]


def report(
    folder: Path, name: str, folds: int, external: str | None, rule: str | None, resamples: int, seed: int
) -> None:
    """Write the figures of `folder/fold-1` to `fold-<folds>` and print them. `external`: the folder in each with scores of such a set."""
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[ArrayLike, ArrayLike]] = {}
    settings: dict[str, Any] = {"n": resamples, "seed": seed}
    places = [folder / f"fold-{fold}" for fold in range(1, folds + 1)]
    for file in (SCORES, BASELINE):
        if not all((place / "scores" / file).is_file() for place in places):
            continue
        own = [_read(place / "scores" / file, rule) for place in places]
        model = own[0].scores.model
        result = _cross_validated(own, settings)
        if gives_log_odds(places[0] / "scores" / file):
            result["reliability"] = reliability_of(_joined(own).label, np.concatenate([fold.shared for fold in own]))
        rows += _rows(model, result, "fold", "pooled")
        curves[f"{model}, pooled"] = (_joined(own).label, np.concatenate([fold.shared for fold in own]))
        if file == SCORES:
            curves |= {f"fold {k}": (fold.scores.label, fold.scores.score) for k, fold in enumerate(own, 1)}
        if external is not None and all((place / external / file).is_file() for place in places):
            theirs = [_read(place / external / file, rule) for place in places]
            result["external"] = _of_all_models(theirs, settings)
            rows += _rows(model, result["external"], "external, model", "external, together")
            curves[f"{model}, external"] = (theirs[0].scores.label, np.mean([fold.shared for fold in theirs], axis=0))
        results[model] = result
    _write(folder, name, results, rows, curves)


def _read(path: Path, rule: str | None) -> Fold:
    scores, validation = read_scores(path).labelled(), validation_of(path)
    shared = scores.score
    if not gives_log_odds(path):
        normals = np.empty(0) if validation is None else validation.score[validation.label == 0]
        if len(normals) < 2:
            raise UserError(
                f"{path}: no validation normals stand beside it, by which scores of several models could be compared"
            )
        spread = float(normals.std(ddof=1))
        shared = (scores.score - normals.mean()) / (spread or 1.0)
    return Fold(scores, shared, threshold_of(scores, validation, rule).decide(scores.score))


def _joined(folds: Sequence[Fold]) -> ScoreFile:
    first = folds[0].scores
    label = np.concatenate([fold.scores.label for fold in folds])
    group = [name for fold in folds for name in fold.scores.group]
    return ScoreFile(first.path, first.model, label, group, np.concatenate([fold.shared for fold in folds]), {}, None)


def _cross_validated(folds: list[Fold], settings: dict[str, Any]) -> dict[str, Any]:
    each = [_metrics(f.scores.label, f.scores.score, f.scores.group, f.decided, settings) for f in folds]
    joined, decided = _joined(folds), np.concatenate([fold.decided for fold in folds])
    pooled = _metrics(joined.label, joined.score, joined.group, decided, settings)
    return {"folds": each, "mean": _mean(each), "pooled": pooled}


def _of_all_models(folds: list[Fold], settings: dict[str, Any]) -> dict[str, Any]:
    """Figures of one set that the models of all folds have scored."""
    first = folds[0].scores
    each = [_metrics(first.label, f.scores.score, first.group, f.decided, settings) for f in folds]
    most = np.mean([fold.decided for fold in folds], axis=0) > 0.5
    together = np.mean([fold.shared for fold in folds], axis=0)
    return {"folds": each, "mean": _mean(each), "pooled": _metrics(first.label, together, first.group, most, settings)}


def _metrics(
    labels: NDArray[np.int64],
    scores: NDArray[np.float64],
    groups: list[str],
    decided: NDArray[np.bool_],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Of one set of images: each figure with its interval, and the confusion matrix. NaN is None."""
    metrics = {"auroc": bootstrap_interval(labels, scores, groups, auroc, **settings)}
    metrics["auprc"] = bootstrap_interval(labels, scores, groups, auprc, **settings)
    for name, rate in RATES.items():
        metrics[name] = bootstrap_interval(labels, decided.astype(np.float64), groups, rate, **settings)
    plain = {
        name: {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(found).items()
        }
        for name, found in metrics.items()
    }
    counts = {"normal": int((labels == 0).sum()), "anomalous": int((labels == 1).sum())}
    return {"images": counts, **plain, "confusion": classification_report(labels, decided)["confusion"]}


def _mean(each: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found = {}
    for name in FIGURES:
        values = np.array([metrics[name]["value"] for metrics in each], dtype=np.float64)
        found[name] = {"mean": float(values.mean()), "sd": float(values.std(ddof=1))}
    return found


def _rows(model: str, result: dict[str, Any], one: str, all_: str) -> list[dict[str, Any]]:
    rows = [_row(model, f"{one} {k}", metrics) for k, metrics in enumerate(result["folds"], 1)]
    mean = {
        name: f"{format_number(found['mean'])} ± {format_number(found['sd'])}" for name, found in result["mean"].items()
    }
    rows.append({"model": model, "set": f"{one}s, mean ± sd", "n": "", **mean})
    return [*rows, _row(model, all_, result["pooled"])]


def _row(model: str, name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    shown = {key: format_interval(metrics[key]["value"], metrics[key]["low"], metrics[key]["high"]) for key in FIGURES}
    return {
        "model": model,
        "set": name,
        "n": f"{metrics['images']['normal']} + {metrics['images']['anomalous']}",
        **shown,
    }


def _write(
    folder: Path,
    name: str,
    results: dict[str, Any],
    rows: list[dict[str, Any]],
    curves: dict[str, tuple[ArrayLike, ArrayLike]],
) -> None:
    from gan_uad.plotting import plots

    write_json(folder / "metrics.json", {"name": name, "about": ABOUT, "models": results})
    for ending, fmt in (("md", "markdown"), ("csv", "csv"), ("tex", "latex")):
        write_text(folder / f"metrics.{ending}", table(rows, COLUMNS, fmt))
    plots.roc(curves, folder / "roc.png")
    plots.confusion(next(iter(results.values()))["pooled"]["confusion"], folder / "confusion.png")
    draw_reliability(
        {name: result["reliability"] for name, result in results.items() if "reliability" in result}, folder
    )
    print(table(rows, COLUMNS, "text"), end="")
    for model, result in results.items():
        if note := result["pooled"]["auroc"]["note"]:
            print(f"{model}, intervals: {note}")
        if "reliability" in result:
            print(f"{model}: expected calibration error {result['reliability']['ece']:.3f}")
    for key in ("mean", "pooled", *(["together"] if any("external" in result for result in results.values()) else [])):
        print(f"{key}: {ABOUT[key]}")
    console.say(f"figures and pictures -> {folder}")
