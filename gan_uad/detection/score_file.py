"""Reading what `gan-uad score` writes: a score file, the validation scores and `scores.json` beside it, and its threshold."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad.errors import UserError
from gan_uad.files import read_csv, read_json
from gan_uad.metrics.detection import Threshold, fit_threshold, parse_threshold

SCORES, BASELINE = "scores.csv", "mean_color.csv"
LABELS = {"": -1, "0": 0, "1": 1}
UNSET = "none"  # the rule of a threshold that was not set
STANDARD_COLUMNS = ("image", "group", "label", "score", "model", "threshold", "decision")  # all others are components


@dataclass
class ScoreFile:
    """One score file: columns as arrays; `label` -1 where unknown; `components` by name."""

    path: Path
    model: str
    label: NDArray[np.int64]
    group: list[str]
    score: NDArray[np.float64]
    components: dict[str, NDArray[np.float64]]
    threshold: float | None

    @property
    def normals(self) -> NDArray[np.float64]:
        """Scores of the normal images."""
        return self.score[self.label == 0]

    def labelled(self) -> ScoreFile:
        """Without the rows whose label is unknown."""
        keep = self.label >= 0
        groups = [g for g, k in zip(self.group, keep, strict=True) if k]
        components = {name: values[keep] for name, values in self.components.items()}
        return replace(self, label=self.label[keep], group=groups, score=self.score[keep], components=components)


def read_scores(path: Path) -> ScoreFile:
    """Read one `scores.csv`. Raises `UserError` for a missing column, and with the line for a bad number or a bad label."""
    rows = read_csv(path, ("image", "label", "score"))
    if not rows:
        raise UserError(f"{path} holds no scores")
    names = ["score", *(name for name in rows[0] if name not in STANDARD_COLUMNS)]
    numbers: dict[str, list[float]] = {name: [] for name in names}
    for index, row in enumerate(rows):
        try:
            for name, values in numbers.items():
                values.append(_finite(row[name], name))
            if row["label"] not in LABELS:
                raise ValueError(f"label {row['label']!r} is not 0 (normal), 1 (anomalous) or empty")
        except ValueError as error:
            raise UserError(f"{path}, line {_line(path, index)}: {error}") from None
    common = {}
    for name in ("model", "threshold"):
        found = sorted({row.get(name, "") for row in rows})
        if len(found) > 1:
            raise UserError(f"{path}: rows of more than one {name} ({', '.join(found[:3])}); give each its own file")
        common[name] = found[0]
    try:
        threshold = float(common["threshold"]) if common["threshold"] else None
    except ValueError:
        raise UserError(f"{path}: threshold {common['threshold']!r} is not a number") from None
    labels, groups = np.array([LABELS[row["label"]] for row in rows]), [row.get("group", "") for row in rows]
    score, *others = (np.array(values) for values in numbers.values())
    components = dict(zip(names[1:], others, strict=True))
    return ScoreFile(path, common["model"] or path.stem, labels, groups, score, components, threshold)


def _finite(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} {text!r} is not a number") from None
    if not np.isfinite(value):
        raise ValueError(f"{name} is {value}; an image without a finite score cannot be ranked")
    return value


def _line(path: Path, index: int) -> int:
    """The line on which a row (from 0) ends; there may be empty lines, and line breaks in cells."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        next(islice(reader, index, None))
        return reader.line_num


def validation_of(path: Path) -> ScoreFile | None:
    """Scores of the validation images by the same model, which `gan-uad score` writes beside `<name>.csv`."""
    beside = path.with_name(f"{path.stem}_validation.csv")
    return read_scores(beside) if beside.is_file() else None


def description_of(path: Path) -> dict[str, Any]:
    """The `scores.json` beside a score file; {} where there is none. Raises `UserError` for a damaged one."""
    beside = path.with_name("scores.json")
    if path.name not in {SCORES, BASELINE} or not beside.is_file():
        return {}
    described = read_json(beside)
    if not isinstance(described, dict):
        raise UserError(f"{beside} is damaged: score again, or move it away")
    return described


def gives_log_odds(path: Path) -> bool:
    """Whether the scores of a file are log-odds, as those of a classifier are."""
    return path.name == SCORES and description_of(path).get("log_odds") is True


def threshold_of(scores: ScoreFile, validation: ScoreFile | None, rule: str | None) -> Threshold:
    """The threshold of a score file: by `rule` on its validation scores, or else the one that it was scored with."""
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
    value = scores.threshold
    if value is None:
        return Threshold(float("inf"), UNSET, {}, 0, 0, "no threshold was set, so nothing is called anomalous")
    return Threshold(value, "manual", {"value": value}, 0, 0, "threshold as written in the score file")
