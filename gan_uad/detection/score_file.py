"""TODO"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad.errors import UserError
from gan_uad.metrics.detection import Threshold, fit_threshold, parse_threshold

SCORES, BASELINE = "scores.csv", "mean_color.csv"
LABELS = {"": -1, "0": 0, "1": 1}
UNSET = "none"  # the rule of a threshold that was not set
FIXED = ("image", "group", "label", "score", "model", "threshold", "decision")


@dataclass
class ScoreFile:
    """One score file: columns as arrays; `label` -1 where unknown; `parts` by name."""

    path: Path
    model: str
    label: NDArray[np.int64]
    group: list[str]
    score: NDArray[np.float64]
    components: dict[str, NDArray[np.float64]]
    threshold: float | None

    def labelled(self) -> ScoreFile:
        """Without the rows whose label is unknown."""
        keep = self.label >= 0
        groups = [g for g, k in zip(self.group, keep, strict=True) if k]
        components = {name: values[keep] for name, values in self.components.items()}
        return ScoreFile(self.path, self.model, self.label[keep], groups, self.score[keep], components, self.threshold)


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
                context = f"{path}, line {reader.line_num}"
                if "surplus" in row or None in row.values():
                    raise UserError(f"{context}: more or fewer cells than the header has columns")
                for name, values in numbers.items():
                    values.append(_finite(row[name], name, context))
                if row["label"] not in LABELS:
                    raise UserError(f"{context}: label {row['label']!r} is neither 0 (normal), 1 (anomalous) nor empty")
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
    components = {name: np.array(values) for name, values in numbers.items() if name != "score"}
    threshold = _number(at, "threshold", str(path)) if at else None
    return ScoreFile(
        path, model or path.stem, np.array(labels), groups, np.array(numbers["score"]), components, threshold
    )


def _number(text: str, name: str, context: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{context}: {name} {text!r} is not a number") from None


def _finite(text: str, name: str, context: str) -> float:
    value = _number(text, name, context)
    if not np.isfinite(value):
        raise UserError(f"{context}: {name} is {value}; an image without a finite score cannot be ranked")
    return value


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
        return Threshold(float("inf"), UNSET, {}, 0, 0, "no threshold was set, so nothing is called anomalous")
    return Threshold(
        scores.threshold, "manual", {"value": scores.threshold}, 0, 0, "threshold as written in the score file"
    )
