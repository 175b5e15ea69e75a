"""What the names of image files say: class folders, split folders, IDC names. Pure functions of names; no file is opened.

A guess is never silent: notes say how the names were understood. Ambiguous names are a `UserError`.
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
IMAGE_FOLDERS = {"img", "image", "images"}  # BMAD puts images and masks of a class into folders beside each other
MASK_SUFFIXES = ("_mask", "_gt")

NORMAL_WORDS = {"normal", "benign", "good", "healthy", "negative"}
NORMAL_NAMES = {"0", "n", "neg", "ok"}
DISEASES = {"idc", "tumor", "tumour", "cancer", "lesion", "metastasis", "metastases", "malignant", "anomaly", "defect"}
NEGATIONS = {"non", "not", "no"}
RULE = (
    "a class is normal when its name has the word normal, benign, good, healthy or negative, "
    "has non/not/no before a disease (non_idc), is 0, n, neg or ok, or ends in _n"
)
PUT_NORMALS = "if all images are normal, move them into a folder `normal` and give its parent folder"


@dataclass
class Layout:
    """How names were understood: the kind of layout, its rows, and notes for the user."""

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
    """Labels of class names ('' is unknown) and a note of which count as normal.

    Raises `UserError` when no class is known to be normal, or `data.normal_classes` names one that is not there.
    """
    names = sorted(set(classes) - {""})
    for wanted in data.normal_classes:
        if wanted not in names:
            raise UserError(f"{context} has no class {wanted!r} (data.normal_classes): {near(wanted, names)}")
    normal = set(data.normal_classes) or {n for n in names if is_normal_name(n)}
    if names and not normal:
        fix = f"Name it with -o data.normal_classes=[{names[0]}] ({RULE})"
        raise UserError(f"{context}: which of the classes {', '.join(names)} is normal? {fix}")
    label = {name: NORMAL if name in normal else ANOMALOUS for name in names} | {"": UNKNOWN}
    by_label = {word: [n for n in names if label[n] == value] for value, word in ((0, "normal"), (1, "anomalous"))}
    sides = [f"{word}: {', '.join(members)}" for word, members in by_label.items() if members]
    notes = [f"classes read as {'; '.join(sides)}"] if names else []
    return np.array([label[c] for c in classes], np.int8), notes


def read_names(names: list[str], data: DataConfig, context: str) -> Layout:
    """The manifest from the names of image files (relative, with forward slashes). Raises `UserError`."""
    idc = [IDC.match(PurePosixPath(name).stem) for name in names]
    if any(idc):
        return _idc(names, idc, data, context)
    parts = _without_wrapper([PurePosixPath(name).parts for name in names], data)
    if all(len(p) == 1 for p in parts):
        return Layout("images", Manifest.of(names), ["the images lie in no class folder: their labels are unknown"])
    tops = {p[0].lower() for p in parts if len(p) > 1}
    if tops <= {*SPLIT_NAMES, *MASK_FOLDERS} and tops & set(SPLIT_NAMES):
        return _folders(names, parts, data, context, splits=True)
    _refuse_mixture(parts, context)
    if halves := tops & set(SPLIT_NAMES):
        others = ", ".join(sorted(tops - halves))
        fix = "Put everything into train/val/test, or write an index.csv"
        raise UserError(f"{context}: {', '.join(sorted(halves))} are splits, but what is {others}? {fix}")
    return _folders(names, parts, data, context, splits=False)


def _without_wrapper(parts: list[tuple[str, ...]], data: DataConfig) -> list[tuple[str, ...]]:
    """Drop a single folder around everything, as zips often have, unless its name means a class or a split."""
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        top = parts[0][0]
        is_class = top in data.normal_classes if data.normal_classes else is_normal_name(top)
        if is_class or top.lower() in SPLIT_NAMES:
            break
        parts = [p[1:] for p in parts]
    return parts


def _refuse_mixture(parts: list[tuple[str, ...]], context: str) -> None:
    loose = [p[0] for p in parts if len(p) == 1]
    if loose:
        folder = next(p[0] for p in parts if len(p) > 1)
        raise UserError(
            f"{context}: {len(loose)} images such as {loose[0]} lie beside the folder {folder}: "
            "move every image into the folder of its class, or write an index.csv"
        )


def _refuse_hidden_normals(
    parts: list[tuple[str, ...]], label: NDArray[np.int8], data: DataConfig, context: str
) -> None:
    """Raise `UserError` where a folder such as `benign` lies below an anomalous class, unless the user named the normal classes."""
    if data.normal_classes:
        return
    for path, value in zip(parts, label, strict=True):
        for inner in path[1:-1] if value == ANOMALOUS else ():
            if NORMAL_WORDS & set(re.split(r"[^a-z0-9]+", inner.lower())) and is_normal_name(inner):
                raise UserError(
                    f"{context}: {path[0]} is read as an anomalous class, but holds a folder {inner}: give the folder that directly "
                    "holds the class folders, or name the normal classes with -o data.normal_classes=[...]"
                )


def _folders(names: list[str], parts: list[tuple[str, ...]], data: DataConfig, context: str, splits: bool) -> Layout:
    """`<class>/x.png`, or with `splits` `train/<class>/x.png`.

    Masks are MVTec's `ground_truth/<class>/x_mask.png` (of the test split) or BMAD's `<class>/label/`.
    """
    images: list[tuple[str, tuple[str, ...], str]] = []
    masks: dict[tuple[str, ...], str] = {}
    for name, path in zip(names, parts, strict=True):
        if splits and len(path) == 1:
            raise UserError(f"{context}: {name} lies outside of the train, val and test folders")
        split, inner = (SPLIT_NAMES.get(path[0].lower(), "test"), path[1:]) if splits else ("", path)
        if any(part.lower() in MASK_FOLDERS for part in path[:-1]):
            masks[_mask_key(split, inner)] = name
        else:
            images.append((name, inner, split))
    klass = [path[0] if len(path) > 1 else "" for _, path, _ in images]
    label, notes = labels_of(klass, data, context)
    _refuse_hidden_normals([path for _, path, _ in images], label, data, context)
    if unknown := klass.count(""):
        notes.append(f"{unknown} images lie in a split but in no class folder: their labels are unknown")
    mask = [masks.get(_mask_key(split, path), "") for _, path, split in images]
    if masks:
        folders = ", ".join(sorted(MASK_FOLDERS))
        notes.append(
            f"{len(masks)} files in mask folders ({folders}) are masks; {sum(map(bool, mask))} images have one"
        )
    split_column = [split for _, _, split in images]
    manifest = Manifest.of([name for name, _, _ in images], label=label, klass=klass, mask=mask, split=split_column)
    return Layout("split folders" if splits else "class folders", manifest, notes)


def _mask_key(split: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """What an image and its mask have in common: split, class and further folders, and the bare file name."""
    folders = [p for p in path[:-1] if p.lower() not in MASK_FOLDERS | IMAGE_FOLDERS]
    stem = PurePosixPath(path[-1]).stem
    for suffix in MASK_SUFFIXES:
        stem = stem.removesuffix(suffix)
    return (split, *folders, stem)


def _idc(names: list[str], matches: list[re.Match[str] | None], data: DataConfig, context: str) -> Layout:
    strange = [name for name, match in zip(names, matches, strict=True) if not match]
    if strange:
        raise UserError(
            f"{context}: {len(names) - len(strange)} images are named <patient>_idx5_x<X>_y<Y>_class<C>, but "
            f"{len(strange)} such as {strange[0]} are not; remove those or write an index.csv"
        )
    # The published archive holds every patch twice, once below a folder IDC_regular_ps50_idx5.
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        first.setdefault(PurePosixPath(name).name, i)
    rows = [(names[i], match) for i in first.values() if (match := matches[i])]
    copies = len(names) - len(rows)
    notes = [f"{copies} images have the name of another; one of each is used"] if copies else []
    patient = [m["patient"] for _, m in rows]
    klass = [m["label"] for _, m in rows]
    label, chosen = labels_of(klass, data, context) if data.normal_classes else (np.array(klass).astype(np.int8), [])
    x, y = ([int(m[axis]) for _, m in rows] for axis in "xy")
    split = [SPLIT_NAMES.get(PurePosixPath(n).parts[0].lower(), "") for n, _ in rows]
    names = [n for n, _ in rows]
    manifest = Manifest.of(names, group=patient, slide=patient, label=label, klass=klass, split=split, x=x, y=y)
    return Layout("IDC file names", manifest, notes + chosen)
