"""What the names of image files say: class folders, split folders, IDC names. Pure functions of names; no file is opened.

A guess is never silent: what the names were taken to mean is said in notes, and what they leave open is a `UserError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from gan_uad.config import DataConfig
from gan_uad.data.manifest import ANOMALOUS, NORMAL, SPLIT_NAMES, UNKNOWN, Manifest
from gan_uad.errors import UserError, near

IDC = re.compile(r"(?P<patient>.+)_idx\d+_x(?P<x>\d+)_y(?P<y>\d+)_class(?P<label>[01])$")
MASK_FOLDERS = {"ground_truth", "label", "mask", "masks", "anomaly_mask"}
PICTURE_FOLDERS = {"img", "image", "images"}  # BMAD puts pictures and masks of a class in folders beside each other
MASK_SUFFIXES = ("_mask", "_gt")

NORMAL_WORDS = {"normal", "benign", "good", "healthy", "negative"}
NORMAL_NAMES = {"0", "n", "neg", "ok"}
DISEASES = {"idc", "tumor", "tumour", "cancer", "lesion", "metastasis", "metastases", "malignant", "anomaly", "defect"}
NEGATIONS = {"non", "not", "no"}
RULE = (
    "a class is normal when its name has the word normal, benign, good, healthy or negative, "
    "says non/not/no before a disease (non_idc), is 0, n, neg or ok, or ends in _n"
)
PUT_NORMALS = "if all of them are normal, put them into a folder `normal`, and name the folder around it"


@dataclass
class Layout:
    """What names were taken to mean: the kind of layout, its rows, and notes for the user."""

    kind: str
    manifest: Manifest
    notes: list[str] = field(default_factory=list)


def is_normal_name(name: str) -> bool:
    """Whether a class of this name is normal tissue, by `RULE`; 'abnormal', 'ungood' and 'not_normal' are not."""
    words = [w for w in re.split(r"[^a-z0-9]+", name.lower()) if w]
    negated = bool(NEGATIONS & set(words))
    if negated or (words and words[0].startswith("non")):
        return any(word.removeprefix("non") in DISEASES for word in words)
    return bool(NORMAL_WORDS & set(words)) or name.lower() in NORMAL_NAMES or (len(words) > 1 and words[-1] == "n")


def labels_of(classes: Sequence[str], data: DataConfig, context: str) -> tuple[NDArray[np.int8], list[str]]:
    """Labels of class names ('' is unknown) and a note of what was taken for normal.

    Raises `UserError` when no class is known to be normal, or `data.normal_classes` names one that is not there.
    """
    names = sorted(set(classes) - {""})
    listed = ", ".join(names)
    for wanted in data.normal_classes:
        if wanted not in names:
            raise UserError(f"{context} has no class {wanted!r} (data.normal_classes): {near(wanted, names)}")
    normal = set(data.normal_classes) or {n for n in names if is_normal_name(n)}
    if names and not normal:
        raise UserError(
            f"{context}: which of the classes {listed} is normal? Say so with -o data.normal_classes=[{names[0]}] ({RULE})"
        )
    label = {name: NORMAL if name in normal else ANOMALOUS for name in names} | {"": UNKNOWN}
    sides = [
        f"{word}: {', '.join(n for n in names if label[n] == value)}"
        for value, word in ((0, "normal"), (1, "anomalous"))
    ]
    notes = ["classes taken as " + "; ".join(s for s in sides if not s.endswith(": "))] if names else []
    return np.array([label[c] for c in classes], np.int8), notes


def read_names(names: list[str], data: DataConfig, context: str) -> Layout:
    """The manifest that the names of image files (relative, with forward slashes) tell. Raises `UserError`."""
    idc = [IDC.match(PurePosixPath(name).stem) for name in names]
    if any(idc):
        return _idc(names, idc, data, context)
    parts = _without_wrapper([PurePosixPath(name).parts for name in names], data)
    if all(len(p) == 1 for p in parts):
        return Layout("images", Manifest.of(names), ["the images lie in no class folder: their labels are unknown"])
    tops = {p[0].lower() for p in parts if len(p) > 1}
    if tops <= {*SPLIT_NAMES, *MASK_FOLDERS} and tops & set(SPLIT_NAMES):
        return _split_folders(names, parts, data, context)
    _refuse_mixture(parts, context)
    if halves := tops & set(SPLIT_NAMES):
        others = ", ".join(sorted(tops - halves))
        raise UserError(
            f"{context}: {', '.join(sorted(halves))} are splits, but what is {others}? "
            "Put everything into train/val/test, or write an index.csv"
        )
    return _class_folders(names, parts, data, context)


def _without_wrapper(parts: list[tuple[str, ...]], data: DataConfig) -> list[tuple[str, ...]]:
    """Drop a single folder around everything, as zips often have, unless its name means a class or a split."""
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        top = parts[0][0]
        if (
            top.lower() in SPLIT_NAMES
            or top in data.normal_classes
            or (not data.normal_classes and is_normal_name(top))
        ):
            break
        parts = [p[1:] for p in parts]
    return parts


def _refuse_mixture(parts: list[tuple[str, ...]], context: str) -> None:
    loose = [p[0] for p in parts if len(p) == 1]
    if loose:
        folder = next(p[0] for p in parts if len(p) > 1)
        raise UserError(
            f"{context}: {len(loose)} images such as {loose[0]} lie beside the folder {folder}: "
            "put every image into the folder of its class, or write an index.csv"
        )


def _refuse_hidden_normals(
    parts: list[tuple[str, ...]], label: NDArray[np.int8], data: DataConfig, context: str
) -> None:
    """Raise `UserError` where a folder such as `benign` would be anomalous unseen, below a class that the user has not named."""
    if data.normal_classes:
        return
    for path, value in zip(parts, label, strict=True):
        for inner in path[1:-1] if value == ANOMALOUS else ():
            if NORMAL_WORDS & set(re.split(r"[^a-z0-9]+", inner.lower())) and is_normal_name(inner):
                raise UserError(
                    f"{context}: {path[0]} is taken for a class, and an anomalous one, but holds a folder {inner}: give a folder in which "
                    "the folders of the classes lie side by side, or name the normal classes with -o data.normal_classes=[...]"
                )


def _class_folders(names: list[str], parts: list[tuple[str, ...]], data: DataConfig, context: str) -> Layout:
    is_mask = [_is_mask(p) for p in parts]
    masks = {_mask_key("", p): n for n, p, m in zip(names, parts, is_mask, strict=True) if m}
    kept = [(n, p) for n, p, m in zip(names, parts, is_mask, strict=True) if not m]
    klass = [p[0] for _, p in kept]
    label, notes = labels_of(klass, data, context)
    _refuse_hidden_normals([p for _, p in kept], label, data, context)
    mask = [masks.get(_mask_key("", p), "") for _, p in kept]
    manifest = Manifest.of([n for n, _ in kept], label=label, klass=klass, mask=mask)
    return Layout("class folders", manifest, notes + _mask_note(masks, mask))


def _split_folders(names: list[str], parts: list[tuple[str, ...]], data: DataConfig, context: str) -> Layout:
    """`train/<class>/x.png`, also with MVTec's `ground_truth/<class>/x_mask.png` (of the test split) or BMAD's `label/`."""
    images: list[tuple[str, tuple[str, ...], str]] = []
    masks: dict[tuple[str, ...], str] = {}
    for name, path in zip(names, parts, strict=True):
        if len(path) == 1:
            raise UserError(f"{context}: {name} lies outside of the train, val and test folders")
        split = SPLIT_NAMES.get(path[0].lower(), "test")
        if _is_mask(path):
            masks[_mask_key(split, path[1:])] = name
        else:
            images.append((name, path[1:], split))
    klass = [p[0] if len(p) > 1 else "" for _, p, _ in images]
    label, notes = labels_of(klass, data, context)
    _refuse_hidden_normals([p for _, p, _ in images], label, data, context)
    if unknown := klass.count(""):
        notes.append(f"{unknown} images lie in a split but in no class folder: their labels are unknown")
    mask = [masks.get(_mask_key(split, p), "") for _, p, split in images]
    split_column = [split for _, _, split in images]
    manifest = Manifest.of([n for n, _, _ in images], label=label, klass=klass, mask=mask, split=split_column)
    return Layout("split folders", manifest, notes + _mask_note(masks, mask))


def _is_mask(path: tuple[str, ...]) -> bool:
    return any(part.lower() in MASK_FOLDERS for part in path[:-1])


def _mask_key(split: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """What a picture and its mask have in common: split, class and further folders, and the bare file name."""
    folders = [p for p in path[:-1] if p.lower() not in MASK_FOLDERS | PICTURE_FOLDERS]
    stem = PurePosixPath(path[-1]).stem
    for suffix in MASK_SUFFIXES:
        stem = stem.removesuffix(suffix)
    return (split, *folders, stem)


def _mask_note(masks: dict[tuple[str, ...], str], used: list[str]) -> list[str]:
    if not masks:
        return []
    paired = sum(bool(m) for m in used)
    return [
        f"{len(masks)} files in mask folders ({', '.join(sorted(MASK_FOLDERS))}) are masks, {paired} of them of an image"
    ]


def _idc(names: list[str], matches: list[re.Match[str] | None], data: DataConfig, context: str) -> Layout:
    strange = [name for name, match in zip(names, matches, strict=True) if not match]
    if strange:
        raise UserError(
            f"{context}: {len(names) - len(strange)} images are named <patient>_idx5_x<X>_y<Y>_class<C>, but "
            f"{len(strange)} such as {strange[0]} are not; take those out or write an index.csv"
        )
    # The published archive holds every patch twice, once below a folder IDC_regular_ps50_idx5.
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        first.setdefault(PurePosixPath(name).name, i)
    rows = [(names[i], match) for i in first.values() if (match := matches[i])]
    notes = (
        [f"{len(names) - len(rows)} images are there twice by name; one of each is used"]
        if len(rows) < len(names)
        else []
    )
    patient = [m["patient"] for _, m in rows]
    klass = [m["label"] for _, m in rows]
    label, taken = labels_of(klass, data, context) if data.normal_classes else (np.array(klass).astype(np.int8), [])
    x, y = ([int(m[axis]) for _, m in rows] for axis in "xy")
    split = [SPLIT_NAMES.get(PurePosixPath(n).parts[0].lower(), "") for n, _ in rows]
    names = [n for n, _ in rows]
    manifest = Manifest.of(names, group=patient, slide=patient, label=label, klass=klass, split=split, x=x, y=y)
    return Layout("IDC file names", manifest, notes + taken)
