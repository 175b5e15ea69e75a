"""`gan-uad evaluate`: from score files with labels to figures with intervals, tables and pictures."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad import console
from gan_uad.errors import UserError
from gan_uad.files import make_folder, write_json, write_text
from gan_uad.jobs.maps import pixel_figures
from gan_uad.jobs.reliability import draw_reliability, reliability_of
from gan_uad.metrics.detection import (
    Threshold,
    auroc,
    fit_threshold,
    parse_threshold,
    pvalue_calibration,
    tail_probability,
)
from gan_uad.metrics.detection import (
    evaluate as figures_of,
)
from gan_uad.report.tables import format_interval, format_number, table

SCORES, BASELINE = "scores.csv", "mean_color.csv"
LABELS = {"": -1, "0": 0, "1": 1}
FIXED = ("image", "group", "label", "score", "model", "threshold", "decision")
COLUMNS = {
    "model": "model", "n": "normal + anomalous", "auroc": "AUROC", "auprc": "AUPRC", "rule": "threshold", "accuracy": "accuracy",
    "f1": "F1", "sensitivity": "sensitivity", "specificity": "specificity",
}  # fmt: skip


@dataclass
class ScoreFile:
    """One score file: columns as arrays; `label` -1 where unknown; `parts` by name."""

    path: Path
    model: str
    label: NDArray[np.int64]
    group: list[str]
    score: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]
    threshold: float | None

    def labelled(self) -> ScoreFile:
        """Without the rows whose label is unknown."""
        keep = self.label >= 0
        groups = [g for g, k in zip(self.group, keep, strict=True) if k]
        parts = {name: values[keep] for name, values in self.parts.items()}
        return ScoreFile(self.path, self.model, self.label[keep], groups, self.score[keep], parts, self.threshold)


def evaluate(
    sources: list[Path], out: Path | None = None, threshold: str | None = None, resamples: int = 1000, seed: int = 0
) -> Path:
    """Figures of every score file named, or found in the folders named; returns the folder with `metrics.json` and pictures.

    `threshold` sets another rule than the one in the files, on the validation scores beside them, without scoring anew.
    """
    files = [file for source in sources for file in _files(source)]
    folder = make_folder(out or (sources[0] if sources[0].is_dir() else sources[0].parent))
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    curves, tails = {}, {}
    for path in files:
        scores = read_scores(path).labelled()
        if len(set(scores.label.tolist())) < 2:
            raise UserError(
                f"{path}: needs labelled images of both kinds (label 0 and 1) to be evaluated, it has only one or none"
            )
        name = _unique(scores.model if len(sources) == 1 else f"{path.parent.name}: {scores.model}", results)
        validation = validation_of(path)
        fitted = threshold_of(scores, validation, threshold)
        result = figures_of(scores.label, scores.score, scores.group, fitted, n=resamples, seed=seed)
        result["parts"] = {part: auroc(scores.label, values) for part, values in scores.parts.items()}
        result["warnings"] += description_of(path).get("warnings", [])
        if gives_log_odds(path):
            result["reliability"] = reliability_of(scores.label, scores.score)
        if path.name == SCORES and (path.parent / "truth").is_dir():
            result["pixels"] = pixel_figures(path.parent)
        results[name] = {"file": str(path), **result}
        rows.append(_row(name, result))
        curves[name] = (scores.label, scores.score)
        if validation is not None and (validation.label == 0).any():
            p_values = tail_probability(validation.score[validation.label == 0], scores.score)
            tails[name] = pvalue_calibration(scores.label, p_values)
        _own_pictures(scores, fitted, result, folder, re.sub(r"[^\w.]+", "-", name).strip("-"))
    _write(folder, results, rows, curves, tails)
    return folder


def read_scores(path: Path) -> ScoreFile:
    """Read one `scores.csv`. Raises `UserError` with the line for a missing column, a bad number or a bad label."""
    labels, groups = [], []
    numbers: dict[str, list[float]] = {}
    same: dict[str, set[str]] = {"model": set(), "threshold": set()}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="surplus")
            header = list(reader.fieldnames or [])
            missing = [name for name in ("image", "label", "score") if name not in header]
            if missing:
                raise UserError(f"{path}: no column {missing[0]!r}; a score file has {', '.join(FIXED)}")
            numbers = {name: [] for name in ("score", *(name for name in header if name not in FIXED))}
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if "surplus" in row or None in row.values():
                    raise UserError(f"{where}: more or fewer cells than the header has columns")
                for name, values in numbers.items():
                    values.append(_finite(row[name], name, where))
                if row["label"] not in LABELS:
                    raise UserError(f"{where}: label {row['label']!r} is neither 0 (normal), 1 (anomalous) nor empty")
                labels.append(LABELS[row["label"]])
                groups.append(row.get("group", ""))
                for name, found in same.items():
                    found.add(row.get(name, ""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not labels:
        raise UserError(f"{path} holds no scores")
    for name, found in same.items():
        if len(found) > 1:
            raise UserError(
                f"{path}: rows of more than one {name} ({', '.join(sorted(found)[:3])}); give each its own file"
            )
    model, at = (found.pop() for found in same.values())
    parts = {name: np.array(values) for name, values in numbers.items() if name != "score"}
    threshold = _number(at, "threshold", str(path)) if at else None
    return ScoreFile(path, model or path.stem, np.array(labels), groups, np.array(numbers["score"]), parts, threshold)


def _number(text: str, name: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: {name} {text!r} is not a number") from None


def _finite(text: str, name: str, where: str) -> float:
    value = _number(text, name, where)
    if not np.isfinite(value):
        raise UserError(f"{where}: {name} is {value}; an image without a finite score cannot be ranked")
    return value


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.exists():
        raise UserError(f"no such folder or file of scores: {source} (a preset is evaluated with --folds K)")
    found = [source / name for name in (SCORES, BASELINE) if (source / name).is_file()]
    if not found:
        raise UserError(f"{source} is no score file and holds no scores.csv; {_instead(source)}")
    return found


def _instead(folder: Path) -> str:
    """What to do where a folder holds no scores: name those further inside, or make them."""
    inside = sorted(path.parent for path in folder.glob(f"scores/*/{SCORES}"))
    if inside:
        more = f" ({len(inside) - 1} more beside it)" if len(inside) > 1 else ""
        return f"there are some inside it: gan-uad evaluate {inside[0]}{more}"
    if (folder / "config.yaml").is_file():
        return f"it is a run, which is scored with: gan-uad score {folder}"
    return f"make one with: gan-uad score RUN DATA --out {folder}"


def validation_of(path: Path) -> ScoreFile | None:
    """Scores of the validation images by the same model, which `gan-uad score` writes beside `<name>.csv`."""
    beside = path.with_name(f"{path.stem}_validation.csv")
    return read_scores(beside) if beside.is_file() else None


def description_of(path: Path) -> dict[str, Any]:
    """What `gan-uad score` says of a score file in the `scores.json` beside it."""
    beside = path.with_name("scores.json")
    if path.name not in {SCORES, BASELINE} or not beside.is_file():
        return {}
    try:
        described: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{beside} is damaged ({error}); score again, or move it away") from None
    return described


def gives_log_odds(path: Path) -> bool:
    """Whether the scores of a file are log-odds, which a classifier's are."""
    return path.name == SCORES and description_of(path).get("log_odds") is True


def threshold_of(scores: ScoreFile, validation: ScoreFile | None, rule: str | None) -> Threshold:
    """The threshold of a score file: by `rule` on its validation scores, or else as it was scored with."""
    if rule is not None:
        try:
            name, params = parse_threshold(rule)
            # A value given by hand is one of the score itself, not of the baseline.
            if not (name == "manual" and scores.path.name == BASELINE):
                if validation is None:
                    return fit_threshold(name, None, None, None, **params)
                known = validation.labelled()
                return fit_threshold(name, known.score, known.label, known.group, **params)
        except ValueError as error:
            raise UserError(f"{scores.path}: --threshold {rule}: {error}") from None
    kept = description_of(scores.path).get("thresholds", {}).get(scores.path.name)
    if kept is not None:
        return Threshold(**{**kept, "value": float(kept["value"])})
    if scores.threshold is None:
        return Threshold(float("inf"), "manual", {}, 0, 0, "no threshold was set, so nothing is called anomalous")
    return Threshold(
        scores.threshold, "manual", {"value": scores.threshold}, 0, 0, "threshold as written in the score file"
    )


def _unique(name: str, taken: dict[str, Any]) -> str:
    count = 2
    new = name
    while new in taken:
        new, count = f"{name} ({count})", count + 1
    return new


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    decisions = result["decisions"]
    at = result["threshold"]
    return {
        "model": name,
        "n": f"{result['images']['normal']} + {result['images']['anomalous']}",
        **{
            key: format_interval(result[key]["value"], result[key]["low"], result[key]["high"])
            for key in ("auroc", "auprc")
        },
        "rule": f"{at['rule']} {format_number(float(at['value']))}",
        **{key: decisions[key] for key in ("accuracy", "f1", "sensitivity", "specificity")},
    }


def _own_pictures(scores: ScoreFile, fitted: Threshold, result: dict[str, Any], folder: Path, stem: str) -> None:
    from gan_uad.report import plots

    shown = fitted.value if np.isfinite(fitted.value) else None
    plots.histogram(scores.label, scores.score, shown, folder / f"{stem}_histogram.png")
    plots.confusion(result["decisions"]["confusion"], folder / f"{stem}_confusion.png")


def _write(
    folder: Path, results: dict[str, Any], rows: list[dict[str, Any]], curves: dict[str, Any], tails: dict[str, Any]
) -> None:
    from gan_uad.report import plots

    write_json(folder / "metrics.json", results)
    for ending, fmt in (("md", "markdown"), ("csv", "csv"), ("tex", "latex")):
        write_text(folder / f"metrics.{ending}", table(rows, COLUMNS, fmt))
    plots.roc(curves, folder / "roc.png")
    plots.pr(curves, folder / "pr.png")
    draw_reliability(
        {name: result["reliability"] for name, result in results.items() if "reliability" in result}, folder
    )
    if tails:
        drawn = {name: (tail.levels, tail.observed) for name, tail in tails.items()}
        plots.calibration(
            drawn, folder / "calibration.png", "p-value from validation normals", "share of test normals at or below"
        )
    print(table(rows, COLUMNS, "text"), end="")
    for name, result in results.items():
        for part, value in result["parts"].items():
            print(f"{name}, {part} alone: AUROC {value:.3f}")
        if "reliability" in result:
            print(f"{name}: expected calibration error {result['reliability']['ece']:.3f}")
        for warning in result["warnings"]:
            print(f"{name}: {warning}")
        if "pixels" in result:
            print(f"{name}, pixels: " + ", ".join(f"{k} {format_number(v)}" for k, v in result["pixels"].items()))
    console.say(f"figures and pictures -> {folder}")
