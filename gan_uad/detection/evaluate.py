"""`gan-uad evaluate`: from score files with labels to metrics with intervals, tables and plots."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad import console
from gan_uad.detection.maps import pixel_metrics
from gan_uad.detection.reliability import draw_reliability, reliability_of
from gan_uad.detection.score_file import (
    BASELINE,
    SCORES,
    UNSET,
    ScoreFile,
    description_of,
    gives_log_odds,
    read_scores,
    threshold_of,
    validation_of,
)
from gan_uad.errors import UserError
from gan_uad.files import make_folder, write_json
from gan_uad.metrics.detection import Threshold, auroc, class_metrics, pvalue_calibration, tail_probability
from gan_uad.metrics.detection import evaluate as metrics_of
from gan_uad.tables import format_interval, format_number, table, write_tables

COLUMNS = {
    "model": "model", "n": "normal + anomalous", "auroc": "AUROC", "auprc": "AUPRC", "rule": "threshold", "accuracy": "accuracy",
    "f1": "F1", "sensitivity": "sensitivity", "specificity": "specificity",
}  # fmt: skip


def evaluate(
    sources: list[Path], out: Path | None = None, threshold: str | None = None, resamples: int = 1000, seed: int = 0
) -> Path:
    """Evaluate every score file given, or found in the folders given; returns the folder with `metrics.json`, tables and plots.

    `threshold` replaces the rule in the files; it is applied to the validation scores beside them, without scoring again.
    """
    files = dict.fromkeys(file for source in sources for file in _files(source))
    found = _without_repeats([_read(path, threshold) for path in files])
    folder = make_folder(out or (sources[0] if sources[0].is_dir() else sources[0].parent))
    named = _named(found)
    baselines = {parent: name for name, one in named.items() if one.is_baseline for parent in one.folders}
    results: dict[str, Any] = {}
    tails = {}
    for name, one in named.items():
        scores = one.scores
        results[name] = _result(one, baselines, resamples, seed)
        if one.validation is not None and len(one.validation.normals):
            p_values = tail_probability(one.validation.normals, scores.score)
            tails[name] = pvalue_calibration(scores.label, p_values)[:2]
        _draw(one, results[name]["decisions"], folder, re.sub(r"[^\w.]+", "-", name).strip("-"))
    curves = {name: (one.scores.label, one.scores.score) for name, one in named.items()}
    write_results(folder, results, results, [_row(name, result) for name, result in results.items()], COLUMNS, curves)
    _draw_all(folder, curves, tails)
    for name, result in results.items():
        for component, value in result["components"].items():
            print(f"{name}, {component} alone: AUROC {value:.3f}")
        for klass, one in result["classes"].items():
            area = one["auroc"]
            shown = format_interval(area["value"], area["low"], area["high"])
            print(f"{name}, class {klass} ({one['images']} images) against all normals: AUROC {shown}")
        if "pixels" in result:
            print(f"{name}, pixels: " + ", ".join(f"{k} {format_number(v)}" for k, v in result["pixels"].items()))
    _print_warnings(results, folder)
    console.say(f"metrics and plots -> {folder}")
    return folder


@dataclass
class Evaluated:
    """A score file and its threshold; for a baseline, the folders that it is the baseline of."""

    scores: ScoreFile
    validation: ScoreFile | None
    fitted: Threshold
    folders: list[Path]

    @property
    def is_baseline(self) -> bool:
        return self.scores.path.name == BASELINE

    def repeats(self, other: Evaluated) -> bool:
        """Whether both are mean colour of the same images, with the same threshold."""
        a, b = self.scores, other.scores
        return (
            self.is_baseline
            and other.is_baseline
            and (a.model, a.group, self.fitted.value) == (b.model, b.group, other.fitted.value)
            and np.array_equal(a.label, b.label)
            and np.array_equal(a.score, b.score)
        )


def _read(path: Path, rule: str | None) -> Evaluated:
    scores = read_scores(path).labelled()
    if len(set(scores.label.tolist())) < 2:
        raise UserError(f"{path}: images of both labels (0 and 1) are needed, and it has those of one or none")
    validation = validation_of(path)
    fitted = threshold_of(scores, validation, rule)
    if fitted.rule == UNSET:
        how = "--threshold fpr:0.05" if validation else "--threshold manual:VALUE (there are no validation scores)"
        how = "a value given by hand is one of the other score" if rule else f"set one with {how}"
        fitted = replace(fitted, note=f"{fitted.note}: {how}")
    return Evaluated(scores, validation, fitted, [path.parent])


def _without_repeats(found: list[Evaluated]) -> list[Evaluated]:
    """One of each baseline: many cells of one data set have the same."""
    kept: list[Evaluated] = []
    for one in found:
        if (same := next((other for other in kept if one.repeats(other)), None)) is None:
            kept.append(one)
        else:
            same.folders += one.folders
    return kept


def _named(found: list[Evaluated]) -> dict[str, Evaluated]:
    """Each by its model, after what distinguishes its folder; a single baseline without the folder."""
    named: dict[str, Evaluated] = {}
    prefixes = distinct_names([one.scores.path.parent for one in found])
    alone = sum(one.is_baseline for one in found) == 1
    for one, prefix in zip(found, prefixes, strict=True):
        model = one.scores.model
        base = name = f"{prefix}: {model}" if prefix and not (alone and one.is_baseline) else model
        count = 1
        while name in named:
            count += 1
            name = f"{base} ({count})"
        named[name] = one
    return named


def distinct_names(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that differ, without what all end in; "" for all where there is one folder only.

    `cells/a/scores`, `cells/b/scores` -> `a`, `b`.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < 2:
        return [""] * len(folders)
    while len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    length = next(n for n in range(1, 1 + max(map(len, parts))) if len({p[-n:] for p in parts}) == len(set(parts)))
    return ["/".join(part[-length:]) for part in parts]


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.exists():
        raise UserError(f"no such folder or file of scores: {source} (for a preset use gan-uad cross-validate)")
    found = [source / name for name in (SCORES, BASELINE) if (source / name).is_file()]
    if not found:
        raise UserError(f"{source} is no score file and holds no scores.csv; {_instead(source)}")
    return found


def _instead(folder: Path) -> str:
    """The command to use where a folder holds no scores."""
    inside = sorted(path.parent for path in folder.glob(f"scores/*/{SCORES}"))
    if inside:
        more = f" ({len(inside) - 1} more beside it)" if len(inside) > 1 else ""
        return f"evaluate those inside it: gan-uad evaluate {inside[0]}{more}"
    if (folder / "config.yaml").is_file():
        return f"it is a run; score it: gan-uad score {folder}"
    return f"make one: gan-uad score RUN DATA --out {folder}"


def _result(one: Evaluated, baselines: Mapping[Path, str], resamples: int, seed: int) -> dict[str, Any]:
    """What `metrics.json` holds of one score file."""
    scores, path = one.scores, one.scores.path
    result = metrics_of(scores.label, scores.score, scores.group, one.fitted, n=resamples, seed=seed)
    result["classes"] = class_metrics(scores.label, scores.score, scores.group, scores.klass, n=resamples, seed=seed)
    result["components"] = {name: auroc(scores.label, values) for name, values in scores.components.items()}
    result["warnings"] += description_of(path).get("warnings", [])
    if gives_log_odds(path):
        result["reliability"] = reliability_of(scores.label, scores.score)
    if path.name == SCORES:
        if (path.parent / "truth").is_dir():
            try:
                result["pixels"] = pixel_metrics(path.parent)
            except ValueError as error:  # such as masks that are all empty
                result["warnings"].append(f"no pixel metrics: {error}")
        result["baseline"] = baselines.get(path.parent)
    return {"file": str(path), **result}


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    rates, at = result["decisions"] or {}, result["threshold"]
    return {
        **cells(name, result, ("auroc", "auprc")),
        "rule": None
        if at["rule"] == UNSET
        else f"{at['rule']} {format_number(float(at['value'])) if rates else 'none'}",
        **{key: rates.get(key) for key in ("accuracy", "f1", "sensitivity", "specificity")},
    }


def cells(model: str, result: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The cells of a table's row that hold the model, the number of images, and metrics with their intervals."""
    counts = f"{result['images']['normal']} + {result['images']['anomalous']}"
    found = {key: result[key] for key in names}
    shown = {k: one and format_interval(one["value"], one["low"], one["high"]) for k, one in found.items()}
    return {"model": model, "n": counts, **shown}


def write_results(
    folder: Path, content: Any, results: Mapping[str, Any], rows: list[dict[str, Any]], columns: dict[str, str], curves: Any
) -> None:  # fmt: skip
    """Write `metrics.json` (`content`), the table in all formats, and roc.png; print the table and the ECE of classifiers."""
    from gan_uad.plotting import plots

    write_json(folder / "metrics.json", content)
    write_tables(folder / "metrics", rows, columns)
    plots.roc(curves, folder / "roc.png")
    draw_reliability(results, folder)
    print(table(rows, columns, "text"), end="")
    for name, result in results.items():
        if "reliability" in result:
            print(f"{name}: expected calibration error {result['reliability']['ece']:.3f}")


def _draw(one: Evaluated, decisions: dict[str, Any] | None, folder: Path, stem: str) -> None:
    from gan_uad.plotting import plots

    shown = one.fitted.value if np.isfinite(one.fitted.value) else None
    plots.histogram(one.scores.label, one.scores.score, shown, folder / f"{stem}_histogram.png")
    confusion = folder / f"{stem}_confusion.png"
    if decisions:
        plots.confusion(decisions["confusion"], confusion)
    else:
        confusion.unlink(missing_ok=True)  # of an earlier call that had a threshold


def _draw_all(folder: Path, curves: dict[str, Any], tails: dict[str, Any]) -> None:
    from gan_uad.plotting import plots

    plots.pr(curves, folder / "pr.png")
    if tails:
        names = "p-value from validation normals", "share of test normals at or below"
        plots.calibration(tails, folder / "calibration.png", *names)


def _print_warnings(results: dict[str, Any], folder: Path) -> None:
    """Each sentence once, after the rows that it applies to."""
    warned: dict[str, list[str]] = {}
    for name, result in results.items():
        for warning in result["warnings"]:
            warned.setdefault(warning, []).append(name)
    for warning, names in warned.items():
        print(f"{'every row' if 1 < len(names) == len(results) else ', '.join(names)}: {warning}")
    if any(result["decision_intervals"] for result in results.values()):
        print(
            "Intervals of accuracy, sensitivity and specificity over groups (patients or slides): `decision_intervals` in "
            f"{folder / 'metrics.json'}; those of `wilson` treat images as independent"
        )
