"""Reading what `gan-uad score` writes: a score file, the validation scores and `scores.json` beside it, and its threshold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad.errors import UserError
from gan_uad.files import csv_lines, first_line, number, read_json
from gan_uad.metrics.detection import Threshold, fit_threshold, parse_threshold

SCORES, BASELINE = "scores.csv", "mean_color.csv"
LABELS = {"": -1, "0": 0, "1": 1}
UNSET = "none"  # the rule of a threshold that was not set
STANDARD_COLUMNS = (
    "image",
    "group",
    "label",
    "class",
    "score",
    "model",
    "threshold",
    "decision",
)  # all others are components


@dataclass
class ScoreFile:
    """One score file: columns as arrays; `label` -1 where unknown; `klass` '' where unknown; `components` by name."""

    path: Path
    model: str
    label: NDArray[np.int64]
    group: list[str]
    klass: list[str]
    score: NDArray[np.float64]
    components: dict[str, NDArray[np.float64]]
    threshold: float | None

    @property
    def finite_threshold(self) -> float | None:
        """The threshold, where some score could exceed it."""
        return self.threshold if self.threshold is not None and np.isfinite(self.threshold) else None

    @property
    def normals(self) -> NDArray[np.float64]:
        """Scores of the normal images."""
        return self.score[self.label == 0]

    def labelled(self) -> ScoreFile:
        """Without the rows whose label is unknown."""
        keep = self.label >= 0
        group, klass = (
            [name for name, kept in zip(names, keep, strict=True) if kept] for names in (self.group, self.klass)
        )
        components = {name: values[keep] for name, values in self.components.items()}
        label, score = self.label[keep], self.score[keep]
        return replace(self, label=label, group=group, klass=klass, score=score, components=components)


def read_scores(path: Path) -> ScoreFile:
    """Read one `scores.csv`. Raises `UserError` for a missing column, and with the line for a bad number, a bad label and an image that
    was there before: counted twice, it would make intervals too narrow.
    """
    lines = csv_lines(path, ("image", "label", "score"))
    if not lines:
        raise UserError(f"{path} holds no scores")
    names = ["score", *(name for name in lines[0][1] if name not in STANDARD_COLUMNS)]
    numbers: dict[str, list[float]] = {name: [] for name in names}
    seen: dict[str, int] = {}
    for line, row in lines:
        try:
            if (before := first_line(seen, row["image"], line)) is not None:
                raise ValueError(f"image {row['image']!r} is named twice (first in line {before})")
            for name, values in numbers.items():
                values.append(_finite(row[name], name))
            if row["label"] not in LABELS:
                raise ValueError(f"label {row['label']!r} is not 0 (normal), 1 (anomalous) or empty")
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
    rows = [row for _, row in lines]
    common = {}
    for name in ("model", "threshold"):
        found = sorted({row.get(name, "") for row in rows})
        if len(found) > 1:
            raise UserError(f"{path}: rows of more than one {name} ({', '.join(found[:3])}); give each its own file")
        common[name] = found[0]
    try:
        threshold = number(common["threshold"], "threshold") if common["threshold"] else None
        if threshold is not None and np.isnan(threshold):
            raise ValueError("threshold is nan, which decides nothing")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    labels = np.array([LABELS[row["label"]] for row in rows])
    groups, classes = ([row.get(name, "") for row in rows] for name in ("group", "class"))
    score, *others = (np.array(values) for values in numbers.values())
    components = dict(zip(names[1:], others, strict=True))
    return ScoreFile(path, common["model"] or path.stem, labels, groups, classes, score, components, threshold)


def _finite(text: str, name: str) -> float:
    value = number(text, name)
    if not np.isfinite(value):
        raise ValueError(f"{name} is {value}; an image without a finite score cannot be ranked")
    return value


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
