"""Rows of (image, group, label, split, ...), column-wise: the only form that a patch set has inside the package.

A manifest holds no pixels. A source makes it, it is split by group, and written as `index.csv`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad.errors import UserError
from gan_uad.files import csv_text, first_line, number, parse_csv, write_text

LABELS = {"normal": 0, "anomalous": 1, "all": None}

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
NO_NAMES = {"nan", "na", "n/a", "none", "null", "unknown", "?"}  # of a group, as programs write it where there is none
N_NAMED = 3  # that a note names
NORMAL, ANOMALOUS, UNKNOWN = 0, 1, -1
LABEL_NAMES = {NORMAL: "normal", ANOMALOUS: "anomalous", UNKNOWN: "unknown"}
LABEL_TEXTS = {
    "0": NORMAL, "normal": NORMAL, "1": ANOMALOUS, "anomalous": ANOMALOUS, "": UNKNOWN, "-1": UNKNOWN, "unknown": UNKNOWN,
}  # fmt: skip

COLUMNS = ("image", "group", "label", "split", "class", "slide", "x", "y", "tissue", "mask")
OF_TILES = ("side", "level", "mpp", "tumour", "stain")  # columns that `gan-uad tile` writes too
REQUIRED = ("image", "group", "label", "split")


@dataclass(frozen=True)
class Manifest:
    """Equally long columns, one row an image."""

    image: list[str]  # name inside the source
    group: list[str]  # patient or slide; '' unknown
    label: NDArray[np.int8]  # [N]: 0 normal, 1 anomalous, -1 unknown
    split: list[str]  # 'train', 'val', 'test' or ''
    klass: list[str]  # class name as found; '' none
    slide: list[str]  # '' unknown
    x: NDArray[np.float64]  # [N], px on the slide; nan unknown
    y: NDArray[np.float64]
    tissue: NDArray[np.float64]  # [N], share of the patch in [0, 1]; nan unknown
    mask: list[str]  # name of the mask image inside the source; '' none

    def __post_init__(self) -> None:
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of unequal length: {lengths}")

    @classmethod
    def of(cls, image: Sequence[str], **columns: Any) -> Manifest:
        """A manifest of the given columns; those not given are unknown in every row."""
        n = len(image)
        blank: dict[str, Any] = {name: [""] * n for name in ("group", "split", "klass", "slide", "mask")}
        blank["label"] = [UNKNOWN] * n
        blank.update({name: [np.nan] * n for name in ("x", "y", "tissue")})
        types: dict[str, Any] = {"label": np.int8, "x": np.float64, "y": np.float64, "tissue": np.float64}
        made: dict[str, Any] = {
            k: np.array(v, types[k]) if k in types else list(v) for k, v in (blank | columns).items()
        }
        return cls(image=list(image), **made)

    def __len__(self) -> int:
        return len(self.image)

    def replace(self, **columns: Any) -> Manifest:
        """The same rows with other columns."""
        return dataclasses.replace(self, **columns)

    def take(self, indices: Iterable[int]) -> Manifest:
        """The rows of the given indices, in their order."""
        index = np.fromiter(indices, np.int64)
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, values in columns.items():
            columns[name] = values[index] if isinstance(values, np.ndarray) else [values[i] for i in index]
        return Manifest(**columns)

    def where(self, split: str | None = None, label: int | None = None) -> NDArray[np.int64]:
        """Indices of the rows of one split and one label (None: any), ascending."""
        wanted = np.ones(len(self), bool)
        if split is not None:
            wanted &= np.fromiter((s == split for s in self.split), bool, len(self))
        if label is not None:
            wanted &= self.label == label
        return np.flatnonzero(wanted)

    def counts(self) -> dict[str, dict[str, int]]:
        """{split: {class, or 'normal'/'anomalous'/'unknown' where the class has no name: images}}; '' is 'no split'."""
        names = [k or LABEL_NAMES[int(label)] for k, label in zip(self.klass, self.label, strict=True)]
        counted = Counter(zip(self.split, names, strict=True))
        present = [s for s in (*SPLITS, "") if s in set(self.split)]
        return {s or "no split": {n: counted[s, n] for n in sorted(set(names)) if counted[s, n]} for s in present}

    def groups_on_two_sides(self) -> dict[str, set[str]]:
        """Groups with images in more than one split, and those splits; empty for a correct split."""
        sides: dict[str, set[str]] = {}
        for group, split in zip(self.group, self.split, strict=True):
            if group and split:
                sides.setdefault(group, set()).add(split)
        return {group: found for group, found in sides.items() if len(found) > 1}

    def doubts(self) -> list[str]:
        """Notes of groups, slides and labels that contradict each other, as files written by hand do."""
        notes, groups = [], dict.fromkeys(self.group)
        alike: dict[str, list[str]] = {}
        for group in groups:
            alike.setdefault(re.sub(r"[.]0+$|[\W_]+|(?<![0-9])0+(?=[0-9])", "", group.casefold()), []).append(group)
        if same := [" and ".join(names) for key, names in alike.items() if key and len(names) > 1]:
            shown = "; ".join(same[:N_NAMED])
            notes.append(f"{len(same)} groups are written in several ways ({shown}): each counts as another patient")
        of_slide: dict[str, set[str]] = {}
        for slide, group in zip(self.slide, self.group, strict=True):
            of_slide.setdefault(slide, set()).add(group)
        if shared := sorted(slide for slide, found in of_slide.items() if slide and len(found) > 1):
            shown = ", ".join(shared[:N_NAMED])
            notes.append(
                f"{len(shared)} slides lie in several groups ({shown}): give a slide one group, or each its own name"
            )
        return notes

    def with_splits(self, fractions: tuple[float, float, float], seed: int) -> Manifest:
        """Give every row without a split one: groups stay together, in these shares, with the labels as even as groups allow.

        An image of unknown group is a group of its own; a group that already has a split keeps it. The same rows,
        fractions and seed give the same splits.
        """
        side = {group: split for group, split in zip(self.group, self.split, strict=True) if group and split}
        split = [split or side.get(group, "") for group, split in zip(self.group, self.split, strict=True)]
        return self.replace(split=split)._filled([i for i, s in enumerate(split) if not s], fractions, seed)

    def with_val_from_train(self, fractions: tuple[float, float, float], seed: int) -> Manifest:
        """Move groups from train to a validation split, in the ratio that `fractions` gives the two."""
        total = fractions[0] + fractions[1]
        return self._filled(self.where("train"), (fractions[0] / total, fractions[1] / total, 0.0), seed)

    def with_fold(self, folds: int, fold: int, fractions: tuple[float, float, float], seed: int) -> Manifest:
        """Splits for cross-validation, which replace any other: groups are split into `folds`, and number `fold`, from 1 on, is test.

        Of the others a validation split is made, in the ratio that `fractions` gives train and val. The same rows and seed give the same
        folds for every `fold`.
        """
        found = self._sides(range(len(self)), (1 / folds,) * folds, seed)
        split = self.replace(split=["test" if side == fold - 1 else "train" for side in found])
        return split.with_val_from_train(fractions, seed) if fractions[1] > 0 else split

    def _filled(self, rows: Iterable[int], fractions: tuple[float, ...], seed: int) -> Manifest:
        """The same manifest with the splits of these rows made here."""
        split, rows = list(self.split), list(rows)
        for i, side in zip(rows, self._sides(rows, fractions, seed), strict=True):
            split[i] = SPLITS[side]
        return self.replace(split=split)

    def _sides(self, rows: Sequence[int], fractions: tuple[float, ...], seed: int) -> NDArray[np.int64]:
        return split_groups([self.group[i] or int(i) for i in rows], self.label[list(rows)], fractions, seed)

    def to_csv(self, path: Path) -> None:
        """Write `index.csv` atomically."""
        rows = []
        for i in range(len(self)):
            label = "" if self.label[i] == UNKNOWN else int(self.label[i])
            numbers = ["" if np.isnan(c[i]) else f"{c[i]:.10g}" for c in (self.x, self.y, self.tissue)]
            texts = (self.image[i], self.group[i], label, self.split[i], self.klass[i], self.slide[i])
            rows.append([*texts, *numbers, self.mask[i]])
        write_text(path, csv_text(COLUMNS, rows))

    @classmethod
    def from_csv(cls, content: bytes, context: str) -> Manifest:
        """Read the bytes of an `index.csv`; `context` names it in errors. Columns beyond `COLUMNS` are left out.

        Raises `UserError` with the line number for a wrong header, label, split, number, or an image named twice.
        """
        rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        seen: dict[str, int] = {}
        for line, row in parse_csv(content, context, REQUIRED, skipinitialspace=True):
            _read_row(row, rows, seen, f"{context}, line {line}", line)
        if not seen:
            raise UserError(f"{context} names no image: there is nothing below its header")
        return cls.of(klass=rows.pop("class"), **rows)


def _read_row(row: dict[str, str], rows: dict[str, list[Any]], seen: dict[str, int], context: str, line: int) -> None:
    """Check one line and append it to the columns."""
    cells = {name: row.get(name, "").strip() for name in COLUMNS}
    image = cells["image"]
    if not image:
        raise UserError(f"{context}: the image name is empty")
    if (before := first_line(seen, image, line)) is not None:
        raise UserError(f"{context}: {image!r} is named twice (first in line {before})")
    if cells["label"].lower() not in LABEL_TEXTS:
        raise UserError(f"{context}: label {cells['label']!r} is neither 0 (normal), 1 (anomalous) nor empty (unknown)")
    if cells["split"].lower() not in {*SPLIT_NAMES, ""}:
        raise UserError(f"{context}: split {cells['split']!r} must be train, val, test or empty")
    for name in COLUMNS:
        rows[name].append(_number(cells[name], name, context) if name in {"x", "y", "tissue"} else cells[name])
    rows["label"][-1] = LABEL_TEXTS[cells["label"].lower()]
    rows["split"][-1] = SPLIT_NAMES.get(cells["split"].lower(), "")
    for name in ("group", "slide"):
        if cells[name].lower() in NO_NAMES:
            raise UserError(f"{context}: {name} {cells[name]!r} is no name: leave it empty where it is unknown")
    rows["group"][-1] = cells["group"] or cells["slide"]  # two patches of one slide are never independent


def _number(text: str, name: str, context: str) -> float:
    """A cell of the columns x, y and tissue; NaN where it is empty. Raises `UserError` for what is no such number."""
    if not text:
        return np.nan
    try:
        value = number(text, name)
    except ValueError as error:
        raise UserError(f"{context}: {error}") from None
    if name == "tissue" and not 0 <= value <= 1:
        raise UserError(f"{context}: tissue {text[:60]} is no share from 0 to 1")
    if name != "tissue" and not value.is_integer():  # also infinite and NaN
        raise UserError(f"{context}: {name} {text[:60]} is no whole number of pixels")
    return value


def split_groups(
    groups: Sequence[Any], labels: NDArray[np.int8], fractions: tuple[float, ...], seed: int
) -> NDArray[np.int64]:
    """Split rows by group: [N] group keys and labels to [N] indices into `fractions` (sides).

    Groups are assigned largest first (equals in seeded order), each to the side where the counts of every label, and of all, come
    closest to these fractions in least squares. A side of fraction 0 gets nothing.
    """
    keys, of_row = np.unique(np.array([repr(g) for g in groups]), return_inverse=True)
    label_values, label_of_row = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(keys), len(label_values)), np.int64)
    np.add.at(counts, (of_row, label_of_row), 1)
    counts = np.hstack([counts, counts.sum(axis=1, keepdims=True)])  # sizes count as much as a label does
    total = np.maximum(counts.sum(axis=0), 1)
    order = np.random.default_rng(seed).permutation(len(keys))
    order = order[np.argsort(-counts[order, -1], kind="stable")]

    # Plain lists: with every image its own group this loop runs once per image.
    weights = [1.0 / float(t) ** 2 for t in total]
    sides = [s for s, fraction in enumerate(fractions) if fraction > 0]
    excess = {s: [-fractions[s] * float(t) for t in total] for s in sides}
    chosen = np.zeros(len(keys), np.int64)
    empty = set(sides)
    for assigned, key in enumerate(order):
        row = counts[key].tolist()
        last_chance = len(empty) >= len(keys) - assigned  # every side gets a group where there are enough of them
        cost = {
            s: sum(n * (2 * e + n) * w for n, e, w in zip(row, excess[s], weights, strict=True) if n)
            for s in (sorted(empty) if empty and last_chance else sides)
        }
        best = min(cost, key=cost.__getitem__)
        empty.discard(best)
        chosen[key] = best
        excess[best] = [e + n for e, n in zip(excess[best], row, strict=True)]
    return chosen[of_row]
