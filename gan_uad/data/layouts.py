"""What the names of image files say: class folders, split folders, IDC names. Pure functions of names; no file is opened.

A guess is never silent: notes say how the names were understood. Ambiguous names are a `UserError`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from gan_uad.config import DataConfig
from gan_uad.data.classes import ANOMALOUS_WORDS, DISEASES, FILLERS, NORMAL_WORDS, is_normal_name, labels_of, words_of
from gan_uad.data.manifest import ANOMALOUS, SPLIT_NAMES, UNKNOWN, Manifest
from gan_uad.errors import UserError

IDC = re.compile(r"(?P<patient>.+)_idx\d+_x(?P<x>\d+)_y(?P<y>\d+)_class(?P<label>[01])$")
MASK_FOLDERS = {"ground_truth", "label", "mask", "masks", "anomaly_mask"}
IMAGE_FOLDERS = {"img", "image", "images"}  # BMAD puts images and masks of a class into folders beside each other
MASK_SUFFIXES = ("_mask", "_gt")
SHORT_SPLITS = {"tr", "te", "trn", "tst", "va", "dev", "eval", "holdout"}  # are asked about

PUT_NORMALS = "if all images are normal, move them into a folder `normal` and give its parent folder"


@dataclass
class Layout:
    """How names were understood: the kind of layout, its rows, and notes for the user."""

    kind: str
    manifest: Manifest
    notes: list[str] = field(default_factory=list)


def split_of(folder: str) -> str:
    """The split that the name of a folder says, as in `Train`, `validation` and `test_set`; '' for another name."""
    words = [word.removesuffix("set") for word in words_of(folder)]
    named = [word for word in words if word in SPLIT_NAMES]
    others = set(words) - set(named) - FILLERS - {""}
    return SPLIT_NAMES[named[0]] if len(named) == 1 and not others else ""


def read_names(names: list[str], data: DataConfig, context: str) -> Layout:
    """The manifest from the names of image files (relative, with forward slashes). Raises `UserError`."""
    idc = [IDC.match(PurePosixPath(name).stem) for name in names]
    if any(idc):
        return _idc(names, idc, data, context)
    parts = _without_wrapper([PurePosixPath(name).parts for name in names], data, context)
    if all(len(p) == 1 for p in parts):
        return Layout("images", Manifest.of(names), ["the images lie in no class folder: their labels are unknown"])
    splits = [{split_of(part) for part in path[:-1]} - {""} for path in parts]
    beside = [len(path) > 1 and path[0].lower() in MASK_FOLDERS for path in parts]  # MVTec's masks, of the test split
    if not any(splits):
        _refuse_mixture(parts, context)
        return _folders(names, [("", path) for path in parts], data, context, "class folders")
    inner: list[tuple[str, tuple[str, ...]]] = []
    for name, path, found, masks in zip(names, parts, splits, beside, strict=True):
        if len(found) > 1:
            raise UserError(
                f"{context}: {name} lies in two splits, by its folders: leave it in one, or write an index.csv"
            )
        if not found and not masks:
            other = names[next(i for i, there in enumerate(splits) if there)]
            fix = "put everything into train/val/test, or write an index.csv"
            raise UserError(f"{context}: {other} lies in a split, but {name} in none: {fix}")
        rest = path[1:-1] if masks and not found else tuple(part for part in path[:-1] if not split_of(part))
        mark = (path[0],) if masks and not found else ()
        inner.append((next(iter(found), "test"), (*rest, *mark, path[-1])))
    return _folders(names, inner, data, context, "split folders")


def _without_wrapper(parts: list[tuple[str, ...]], data: DataConfig, context: str) -> list[tuple[str, ...]]:
    """Drop a single folder around everything, as zips often have, unless it is a split, or its name means the class of all images."""
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        top, inside = parts[0][0], [p[1:] for p in parts]
        named = top in data.normal_classes if data.normal_classes else is_normal_name(top)
        if split_of(top) or (named and not _holds_classes(top, inside, data, context)):
            break
        parts = inside
    return parts


def _holds_classes(top: str, inside: list[tuple[str, ...]], data: DataConfig, context: str) -> bool:
    """Whether the folder `top`, named as a normal class, holds class folders, by their names. Raises `UserError` where it may."""
    inside = _without_wrapper(inside, data, context)
    tops = {p[0] for p in inside if len(p) > 1}
    splits = bool(tops) and all(split_of(name) or name.lower() in MASK_FOLDERS for name in tops)
    folders = {p[1] for p in inside if len(p) > 2} if splits else tops
    folders = {name for name in folders if name.lower() not in IMAGE_FOLDERS | MASK_FOLDERS}
    if data.normal_classes:
        return bool(folders & set(data.normal_classes))
    if any(is_normal_name(name) or DISEASES & set(words_of(name)) for name in folders):
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
            words, normal = set(words_of(inner)), is_normal_name(inner)
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


def _folders(
    names: list[str], parts: list[tuple[str, tuple[str, ...]]], data: DataConfig, context: str, kind: str
) -> Layout:
    """`<class>/x.png`; `parts` has the split of each image ('' none) and its path without it.

    Masks are MVTec's `ground_truth/<class>/x_mask.png` or BMAD's `<class>/label/`.
    """
    images: list[tuple[str, tuple[str, ...], str]] = []
    masks: dict[tuple[str, ...], str] = {}
    for name, (split, path) in zip(names, parts, strict=True):
        if any(part.lower() in MASK_FOLDERS for part in path[:-1]):
            if (other := masks.setdefault(_mask_key(split, path), name)) != name:
                raise UserError(f"{context}: {other} and {name} are masks of one image: leave one")
        else:
            images.append((name, path, split))
    if not images:
        raise UserError(
            f"{context} holds {len(masks)} masks, and no image outside of {', '.join(sorted(MASK_FOLDERS))}"
        )
    klass = [path[0] if len(path) > 1 else "" for _, path, _ in images]
    _refuse_splits_in_classes(set(klass), context)
    label, notes = labels_of(klass, data, context, _instead([path for _, path, _ in images]))
    _refuse_hidden_classes([path for _, path, _ in images], label, data, context)
    if unknown := klass.count(""):
        notes.append(f"{unknown} images lie in a split but in no class folder: their labels are unknown")
    keys = [_mask_key(split, path) for _, path, split in images]
    mask = [masks.get(key, "") for key in keys]
    if masks:
        folders = ", ".join(sorted(MASK_FOLDERS))
        unused = len(masks.keys() - set(keys))
        left = f"; {unused} masks belong to no image" if unused else ""
        notes.append(
            f"{len(masks)} files in mask folders ({folders}) are masks; {sum(map(bool, mask))} images have one{left}"
        )
    notes += _names_not_read([path for _, path, _ in images], any(split for _, _, split in images))
    split_column = [split for _, _, split in images]
    manifest = Manifest.of([name for name, _, _ in images], label=label, klass=klass, mask=mask, split=split_column)
    return Layout(kind, manifest, notes)


def _refuse_splits_in_classes(classes: set[str], context: str) -> None:
    """Raise `UserError` for classes such as `normal_train`, whose splits would be lost."""
    if named := sorted(name for name in classes if set(words_of(name)) & SPLIT_NAMES.keys()):
        raise UserError(
            f"{context}: the folder {named[0]} seems to name a split and a class: make folders train, val and test with the class "
            "folders below, write an index.csv, or rename it"
        )


def _instead(paths: list[tuple[str, ...]]) -> str:
    """What else can be done where the folders on top are no classes, as words after an advice."""
    if {path[0].lower() for path in paths} & SHORT_SPLITS:
        return ", or rename the folders to train, val and test if they are splits, or write an index.csv"
    below = sorted({path[1] for path in paths if len(path) > 2} - {path[0] for path in paths})
    if any(is_normal_name(name) or DISEASES & set(words_of(name)) for name in below):
        shown = ", ".join(below[:4])
        return f", or move the class folders ({shown}) to the top if these are the classes, or write an index.csv"
    return ", or write an index.csv"


def _names_not_read(paths: list[tuple[str, ...]], splits: bool) -> list[str]:
    """Notes of names that may say a group or a split, which class folders do not give, and of images of one name."""
    notes = []
    if below := sorted({part for path in paths for part in path[1:-1] if part.lower() not in IMAGE_FOLDERS}):
        some = f"{len(below)} folders below the classes, such as {below[0]},"
        notes.append(f"{some} are not read as groups (patients or slides): write an index.csv where they are")
    stems = [PurePosixPath(path[-1]).stem for path in paths]
    named = [SPLIT_NAMES[word] for stem in stems for word in words_of(stem) if word in SPLIT_NAMES]
    if len(set(named)) > 1 and not splits:
        notes.append(
            f"{len(named)} file names hold train, val or test, which are not read as splits: use folders or an index.csv"
        )
    if repeats := len(paths) - len({(*path[:-1], stem) for path, stem in zip(paths, stems, strict=True)}):
        notes.append(
            f"{repeats} images have the name of another in their folder but for the ending: they may be copies"
        )
    return notes


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
        splits = {split_of(part) for part in path.parts[:-1]} - {""}
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
