"""`gan-uad evaluate`: from score files with labels to figures with intervals, tables and pictures."""

from __future__ import annotations

import re
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
from gan_uad.files import make_folder, write_json, write_text
from gan_uad.metrics.detection import (
    Threshold,
    auroc,
    pvalue_calibration,
    tail_probability,
)
from gan_uad.metrics.detection import (
    evaluate as metrics_of,
)
from gan_uad.tables import format_interval, format_number, table

COLUMNS = {
    "model": "model", "n": "normal + anomalous", "auroc": "AUROC", "auprc": "AUPRC", "rule": "threshold", "accuracy": "accuracy",
    "f1": "F1", "sensitivity": "sensitivity", "specificity": "specificity",
}  # fmt: skip


def evaluate(
    sources: list[Path], out: Path | None = None, threshold: str | None = None, resamples: int = 1000, seed: int = 0
) -> Path:
    """Figures of every score file named, or found in the folders named; returns the folder with `metrics.json` and pictures.

    `threshold` sets another rule than the one in the files, on the validation scores beside them, without scoring anew.
    """
    found = _without_repeats(
        [_read(path, threshold) for path in dict.fromkeys(file for source in sources for file in _files(source))]
    )
    folder = make_folder(out or (sources[0] if sources[0].is_dir() else sources[0].parent))
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    curves, tails = {}, {}
    named = _named(found)
    baselines = {place: name for name, one in named.items() if one.is_baseline for place in one.folders}
    for name, one in named.items():
        path, scores, validation = one.scores.path, one.scores, one.validation
        result = metrics_of(scores.label, scores.score, scores.group, one.fitted, n=resamples, seed=seed)
        if one.fitted.rule == UNSET:
            result |= {"decisions": None, "decision_intervals": None}
        result["components"] = {name: auroc(scores.label, values) for name, values in scores.components.items()}
        result["warnings"] += description_of(path).get("warnings", [])
        if gives_log_odds(path):
            result["reliability"] = reliability_of(scores.label, scores.score)
        if path.name == SCORES and (path.parent / "truth").is_dir():
            result["pixels"] = pixel_metrics(path.parent)
        if path.name == SCORES:
            result["baseline"] = baselines.get(path.parent)
        results[name] = {"file": str(path), **result}
        rows.append(_row(name, result))
        curves[name] = (scores.label, scores.score)
        if validation is not None and (validation.label == 0).any():
            p_values = tail_probability(validation.score[validation.label == 0], scores.score)
            tails[name] = pvalue_calibration(scores.label, p_values)
        _own_pictures(scores, one.fitted, result, folder, re.sub(r"[^\w.]+", "-", name).strip("-"))
    _write(folder, results, rows, curves, tails)
    return folder


@dataclass
class _Judged:
    """A score file and its threshold; of a baseline, the folders that it is the baseline of."""

    scores: ScoreFile
    validation: ScoreFile | None
    fitted: Threshold
    folders: list[Path]

    @property
    def is_baseline(self) -> bool:
        return self.scores.path.name == BASELINE

    def repeats(self, other: _Judged) -> bool:
        """Whether both are mean colour of the same images, decided alike."""
        a, b = self.scores, other.scores
        return (
            self.is_baseline
            and other.is_baseline
            and (a.model, a.group, self.fitted.value) == (b.model, b.group, other.fitted.value)
            and np.array_equal(a.label, b.label)
            and np.array_equal(a.score, b.score)
        )


def _read(path: Path, rule: str | None) -> _Judged:
    scores = read_scores(path).labelled()
    if len(set(scores.label.tolist())) < 2:
        raise UserError(
            f"{path}: needs labelled images of both kinds (label 0 and 1) to be evaluated, it has only one or none"
        )
    validation = validation_of(path)
    fitted = threshold_of(scores, validation, rule)
    if fitted.rule == UNSET:
        how = "--threshold fpr:0.05" if validation else "--threshold manual:VALUE (of validation scores there are none)"
        how = "a value given by hand is one of the other score" if rule else f"set one with {how}"
        fitted = replace(fitted, note=f"{fitted.note}: {how}")
    return _Judged(scores, validation, fitted, [path.parent])


def _without_repeats(found: list[_Judged]) -> list[_Judged]:
    """One of each baseline: that of many cells of one data set is the same."""
    kept: list[_Judged] = []
    for one in found:
        if (same := next((other for other in kept if one.repeats(other)), None)) is None:
            kept.append(one)
        else:
            same.folders += one.folders
    return kept


def _named(found: list[_Judged]) -> dict[str, _Judged]:
    """Each by its model, after what tells its folder from the others; a baseline that is the only one by itself."""
    named: dict[str, _Judged] = {}
    places = distinct_names([one.scores.path.parent for one in found])
    alone = sum(one.is_baseline for one in found) == 1
    for one, place in zip(found, places, strict=True):
        model = one.scores.model
        named[_unique(f"{place}: {model}" if place and not (alone and one.is_baseline) else model, named)] = one
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


def _unique(name: str, taken: dict[str, Any]) -> str:
    count = 2
    new = name
    while new in taken:
        new, count = f"{name} ({count})", count + 1
    return new


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    decisions = result["decisions"] or {}
    at = result["threshold"]
    return {
        "model": name,
        "n": f"{result['images']['normal']} + {result['images']['anomalous']}",
        **{
            key: format_interval(result[key]["value"], result[key]["low"], result[key]["high"])
            for key in ("auroc", "auprc")
        },
        "rule": None if at["rule"] == UNSET else f"{at['rule']} {format_number(float(at['value']))}",
        **{key: decisions.get(key) for key in ("accuracy", "f1", "sensitivity", "specificity")},
    }


def _own_pictures(scores: ScoreFile, fitted: Threshold, result: dict[str, Any], folder: Path, stem: str) -> None:
    from gan_uad.plotting import plots

    shown = fitted.value if np.isfinite(fitted.value) else None
    plots.histogram(scores.label, scores.score, shown, folder / f"{stem}_histogram.png")
    confusion = folder / f"{stem}_confusion.png"
    if result["decisions"]:
        plots.confusion(result["decisions"]["confusion"], confusion)
    else:
        confusion.unlink(missing_ok=True)  # of an earlier call that had a threshold


def _write(
    folder: Path, results: dict[str, Any], rows: list[dict[str, Any]], curves: dict[str, Any], tails: dict[str, Any]
) -> None:
    from gan_uad.plotting import plots

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
        for part, value in result["components"].items():
            print(f"{name}, {part} alone: AUROC {value:.3f}")
        if "reliability" in result:
            print(f"{name}: expected calibration error {result['reliability']['ece']:.3f}")
        if "pixels" in result:
            print(f"{name}, pixels: " + ", ".join(f"{k} {format_number(v)}" for k, v in result["pixels"].items()))
    _say_warnings(results, folder)
    console.say(f"figures and pictures -> {folder}")


def _say_warnings(results: dict[str, Any], folder: Path) -> None:
    """Each sentence once, after the rows that it is said of."""
    said: dict[str, list[str]] = {}
    for name, result in results.items():
        for warning in result["warnings"]:
            said.setdefault(warning, []).append(name)
    for warning, names in said.items():
        print(f"{'every row' if 1 < len(names) == len(results) else ', '.join(names)}: {warning}")
    if any(result["decision_intervals"] for result in results.values()):
        print(
            "Intervals of accuracy, sensitivity and specificity over groups (patients or slides): `decision_intervals` in "
            f"{folder / 'metrics.json'}; those of `wilson` there take images for independent"
        )
