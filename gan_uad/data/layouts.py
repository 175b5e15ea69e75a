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

NORMAL_WORDS = {"normal", "normals", "benign", "good", "healthy", "negative", "negatives"}
NORMAL_NAMES = {"n", "neg", "ok"}
GROWTHS = {"tumor", "tumors", "tumour", "tumours", "lesion", "lesions"}  # may be benign
DISEASES = GROWTHS | {
    "idc", "cancer", "cancers", "carcinoma", "adenocarcinoma", "melanoma", "metastasis", "metastases", "malignant", "anomaly",
    "anomalies", "defect", "defects",
}  # fmt: skip
ANOMALOUS_WORDS = {"abnormal", "anomalous", "bad", "diseased", "positive", "positives"}
NEGATIONS = {"non", "not", "no"}
BOTH = {"vs", "versus", "and", "or"}  # a name with such a word holds several classes
RULE = (
    "a class is normal when its name has the word normal, benign, good, healthy or negative, "
    "has non/not/no before a disease (non_idc), is n, neg or ok, or ends in _n"
)
PUT_NORMALS = "if all images are normal, move them into a folder `normal` and give its parent folder"


@dataclass
class Layout:
    """How names were understood: the kind of layout, its rows, and notes for the user."""

    kind: str
    manifest: Manifest
    notes: list[str] = field(default_factory=list)


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def is_unclear_name(name: str) -> bool:
    """Whether a class of this name may be normal or not: a number, `normal_vs_tumour`, `no_sign_of_cancer`."""
    words = _words(name)
    if words and all(word.isdigit() for word in words):
        return True
    said_normal, before = NORMAL_WORDS & set(words), ["", *words]
    denied = [w for last, w in zip(before, words, strict=False) if last in NEGATIONS or w.startswith("non")]
    present = [
        w for last, w in zip(before, words, strict=False) if w in DISEASES | ANOMALOUS_WORDS and last not in NEGATIONS
    ]
    no_disease = any(word.removeprefix("non") in DISEASES for word in denied)
    if BOTH & set(words):
        return bool(said_normal or no_disease)
    if said_normal and not denied:
        if "negative" in said_normal:
            return bool(ANOMALOUS_WORDS & set(words))
        return not set(present) <= (GROWTHS if said_normal == {"benign"} else set())
    return bool(denied and present)


def is_normal_name(name: str) -> bool:
    """Whether a class of this name is normal tissue, by `RULE`; 'abnormal', 'ungood', 'not_normal' and unclear names are not."""
    words = _words(name)
    if is_unclear_name(name):
        return False
    negated = bool(NEGATIONS & set(words))
    if negated or (words and words[0].startswith("non")):
        return any(word.removeprefix("non") in DISEASES for word in words)
    return bool(NORMAL_WORDS & set(words)) or name.lower() in NORMAL_NAMES or (len(words) > 1 and words[-1] == "n")


def labels_of(
    classes: Sequence[str], data: DataConfig, context: str, other_fix: str = ""
) -> tuple[NDArray[np.int8], list[str]]:
    """Labels of class names ('' is unknown) and a note of which count as normal.

    Raises `UserError` when no class is known to be normal, a name may mean either, or `data.normal_classes` names one that is not there.
    """
    names = sorted(set(classes) - {""})
    for wanted in data.normal_classes:
        if wanted not in names:
            raise UserError(f"{context} has no class {wanted!r} (data.normal_classes): {near(wanted, names)}")
    if not data.normal_classes and (unclear := [name for name in names if is_unclear_name(name)]):
        shown = ", ".join(unclear[:10]) + (", ..." if len(unclear) > 10 else "")
        known, numbers = [n for n in names if is_normal_name(n)], [name for name in unclear if name.isdigit()]
        example = ", ".join([*known, *numbers[:1]] if numbers else [*known, "..."])
        raise UserError(
            f"{context}: each of the classes {shown} may be normal or anomalous: a number, or a name of both, does not say which. "
            f"Name the normal ones with -o data.normal_classes=[{example}]{other_fix}"
        )
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
    parts = _without_wrapper([PurePosixPath(name).parts for name in names], data, context)
    if all(len(p) == 1 for p in parts):
        return Layout("images", Manifest.of(names), ["the images lie in no class folder: their labels are unknown"])
    tops = {p[0].lower() for p in parts if len(p) > 1}
    if tops <= {*SPLIT_NAMES, *MASK_FOLDERS} and tops & set(SPLIT_NAMES):
        return _folders(names, parts, data, context, splits=True)
    _refuse_mixture(parts, context)
    below = [len(p) > 2 and p[1].lower() in SPLIT_NAMES for p in parts]
    if any(below):
        if not all(below):
            raise UserError(
                f"{context}: {names[below.index(True)]} lies in a split of its class, but {names[below.index(False)]} in none: "
                "put everything into train/val/test, or write an index.csv"
            )
        return _folders(names, [(p[1], p[0], *p[2:]) for p in parts], data, context, splits=True)
    if halves := tops & set(SPLIT_NAMES):
        others = ", ".join(sorted(tops - halves))
        fix = "Put everything into train/val/test, or write an index.csv"
        raise UserError(f"{context}: {', '.join(sorted(halves))} are splits, but what is {others}? {fix}")
    return _folders(names, parts, data, context, splits=False)


def _without_wrapper(parts: list[tuple[str, ...]], data: DataConfig, context: str) -> list[tuple[str, ...]]:
    """Drop a single folder around everything, as zips often have, unless it is a split, or its name means the class of all images."""
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        top, inside = parts[0][0], [p[1:] for p in parts]
        named = top in data.normal_classes if data.normal_classes else is_normal_name(top)
        if top.lower() in SPLIT_NAMES or (named and not _holds_classes(top, inside, data, context)):
            break
        parts = inside
    return parts


def _holds_classes(top: str, inside: list[tuple[str, ...]], data: DataConfig, context: str) -> bool:
    """Whether the folder `top`, named as a normal class, holds class folders, by their names. Raises `UserError` where it may."""
    inside = _without_wrapper(inside, data, context)
    tops = {p[0] for p in inside if len(p) > 1}
    splits = bool(tops) and {name.lower() for name in tops} <= {*SPLIT_NAMES, *MASK_FOLDERS}
    folders = {p[1] for p in inside if len(p) > 2} if splits else tops
    folders = {name for name in folders if name.lower() not in IMAGE_FOLDERS | MASK_FOLDERS}
    if data.normal_classes:
        return bool(folders & set(data.normal_classes))
    if any(is_normal_name(name) or DISEASES & set(_words(name)) for name in folders):
        return splits or all(len(p) > 1 for p in inside)
    if any(len(p) == 1 for p in inside) or not (splits or folders):
        return False
    some = ", ".join(sorted(folders or tops)[:5])
    raise UserError(
        f"{context}: {top} may be the class of all images, or a folder around others ({some}): say -o data.normal_classes=[{top}] if "
        f"all are normal, else give the folder {top} itself or name its normal classes with that option"
    )


def _refuse_mixture(parts: list[tuple[str, ...]], context: str) -> None:
    loose = [p[0] for p in parts if len(p) == 1]
    if loose:
        folder = next(p[0] for p in parts if len(p) > 1)
        raise UserError(
            f"{context}: {len(loose)} images such as {loose[0]} lie beside the folder {folder}: "
            "move every image into the folder of its class, or write an index.csv"
        )


def _refuse_hidden_classes(
    parts: list[tuple[str, ...]], label: NDArray[np.int8], data: DataConfig, context: str
) -> None:
    """Raise `UserError` where `benign` lies below an anomalous class, or `tumour` below a normal one, unless the user named the normals."""
    if data.normal_classes:
        return
    for path, value in zip(parts, label, strict=True):
        for inner in path[1:-1] if value != UNKNOWN else ():
            words, normal = set(_words(inner)), is_normal_name(inner)
            if value == ANOMALOUS:
                hidden = normal and bool(NORMAL_WORDS & words)
            else:
                hidden = not normal and bool((DISEASES | ANOMALOUS_WORDS) & words)
            if hidden:
                read = "an anomalous" if value == ANOMALOUS else "a normal"
                raise UserError(
                    f"{context}: {path[0]} is read as {read} class, but holds a folder {inner}: give the folder that directly "
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
    label, notes = labels_of(klass, data, context, ", or write an index.csv")
    _refuse_hidden_classes([path for _, path, _ in images], label, data, context)
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
    side: dict[str, str] = {}  # by file name
    for i, name in enumerate(names):
        path = PurePosixPath(name)
        first.setdefault(path.name, i)
        splits = {SPLIT_NAMES[part.lower()] for part in path.parts[:-1] if part.lower() in SPLIT_NAMES}
        if len(splits | {side.get(path.name) or next(iter(splits), "")} - {""}) > 1:
            raise UserError(
                f"{context}: {name} lies in two splits, by its folders or those of a copy: leave it in one, or write an index.csv"
            )
        side[path.name] = next(iter(splits), side.get(path.name, ""))
    rows = [(names[i], match) for i in first.values() if (match := matches[i])]
    copies = len(names) - len(rows)
    notes = [f"{copies} images have the name of another; one of each is used"] if copies else []
    patient = [m["patient"] for _, m in rows]
    klass = [m["label"] for _, m in rows]
    label, chosen = labels_of(klass, data, context) if data.normal_classes else (np.array(klass).astype(np.int8), [])
    x, y = ([int(m[axis]) for _, m in rows] for axis in "xy")
    split = [side[PurePosixPath(n).name] for n, _ in rows]
    names = [n for n, _ in rows]
    manifest = Manifest.of(names, group=patient, slide=patient, label=label, klass=klass, split=split, x=x, y=y)
    return Layout("IDC file names", manifest, notes + chosen)
