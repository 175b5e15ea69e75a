"""What the name of a class says: normal, anomalous, without a label, or nothing for sure. Pure functions of names.

A label is known from an unambiguous name, or told (`data.normal_classes`): it is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gan_uad.config import DataConfig
from gan_uad.data.manifest import ANOMALOUS, NORMAL, UNKNOWN
from gan_uad.errors import UserError, near

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
# Beside a word of `NORMAL_WORDS` they say that it is not quite so: normal-like is a subtype of breast cancer.
QUALIFIERS = {
    "ab", "adjacent", "almost", "appearing", "atypical", "borderline", "like", "looking", "near", "nearly", "para", "pathologic",
    "pathological", "peri", "peritumoral", "peritumoural", "possibly", "probably", "pseudo", "quasi", "semi", "sub", "suspicious",
    "un",
}  # fmt: skip
FILLERS = {
    "class", "classes", "patch", "patches", "tile", "tiles", "tissue", "tissues", "image", "images", "img", "imgs", "sample",
    "samples", "set", "data", "slide", "slides", "crop", "crops",
}  # fmt: skip
UNLABELLED = {"unannotated", "unclassified", "undefined", "unknown", "unlabeled", "unlabelled"}
NEITHER = {
    "artefact", "artefacts", "artifact", "artifacts", "background", "blank", "blur", "blurred", "blurry", "discard", "discarded",
    "empty", "exclude", "excluded", "glass", "ignore", "ignored", "misc", "other", "others", "uncertain", "unsure", "white",
}  # fmt: skip
HINTS = ("norm", "health", "free", "without", "non", "no", "control")  # of the class to name first in an example
RULE = (
    "a class is normal when its name has the word normal, benign, good, healthy or negative, "
    "has non/not/no before a disease (non_idc), is n, neg or ok, or ends in _n"
)


def words_of(name: str) -> list[str]:
    """The words of a name, in lower case."""
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def is_unclear_name(name: str) -> bool:
    """Whether a class of this name may be normal or not: a number, `normal_vs_tumour`, `normal-like`, `her2_negative`, `background`."""
    words = words_of(name)
    present_words, said_normal = set(words), NORMAL_WORDS & set(words)
    if words and (
        all(word.isdigit() for word in words) or (present_words <= NEITHER | FILLERS and present_words & NEITHER)
    ):
        return True
    before = ["", *words]
    denied = [w for last, w in zip(before, words, strict=False) if last in NEGATIONS or w.startswith("non")]
    present = [
        w for last, w in zip(before, words, strict=False) if w in DISEASES | ANOMALOUS_WORDS and last not in NEGATIONS
    ]
    no_disease = any(word.removeprefix("non") in DISEASES for word in denied)
    if BOTH & present_words:
        return bool(said_normal or no_disease)
    if said_normal and not denied:
        if QUALIFIERS & present_words:
            return True
        if said_normal <= {"negative", "negatives"}:  # of a tumour; HER2-negative and node-negative are none of this
            others = present_words - said_normal - DISEASES - FILLERS
            return not all(word.isdigit() for word in others)
        return not set(present) <= (GROWTHS if said_normal == {"benign"} else set())
    if len(words) > 1 and words[-1] == "n":
        return bool(present)
    return bool(denied and present)


def is_normal_name(name: str) -> bool:
    """Whether a class of this name is normal tissue, by `RULE`; 'abnormal', 'ungood', 'not_normal' and unclear names are not."""
    words = words_of(name)
    if is_unclear_name(name):
        return False
    negated = bool(NEGATIONS & set(words))
    if negated or (words and words[0].startswith("non")):
        return any(word.removeprefix("non") in DISEASES for word in words)
    return bool(NORMAL_WORDS & set(words)) or name.lower() in NORMAL_NAMES or (len(words) > 1 and words[-1] == "n")


def has_no_label(name: str) -> bool:
    """Whether a class of this name holds images whose label nobody knows."""
    words = set(words_of(name))
    return bool(words & UNLABELLED) and words <= UNLABELLED | FILLERS


def labels_of(
    classes: Sequence[str], data: DataConfig, context: str, other_fix: str = ""
) -> tuple[NDArray[np.int8], list[str]]:
    """Labels of class names ('' is unknown) and a note of which count as normal.

    Raises `UserError` when no class is known to be normal, a name may mean either, or `data.normal_classes` names one that is not there.
    `other_fix`: what else can be done about that, in words.
    """
    names = sorted(set(classes) - {""})
    for wanted in data.normal_classes:
        if wanted not in names:
            raise UserError(f"{context} has no class {wanted!r} (data.normal_classes): {near(wanted, names)}")
        if twins := [name for name in names if name not in data.normal_classes and _alike(name) == _alike(wanted)]:
            raise UserError(
                f"{context}: the classes {wanted} and {twins[0]} differ in case or spaces alone, and data.normal_classes has one of "
                "them: name both, or rename one"
            )
    unlabelled = [name for name in names if has_no_label(name) and name not in data.normal_classes]
    names = [name for name in names if name not in unlabelled]
    if not data.normal_classes:
        _refuse_unclear(names, context, other_fix)
    normal = set(data.normal_classes) or {n for n in names if is_normal_name(n)}
    if names and not normal:
        fix = f"Name it with -o data.normal_classes=[{_likely(names)}]{other_fix} ({RULE})"
        raise UserError(f"{context}: which of the classes {', '.join(names)} is normal? {fix}")
    label = {name: NORMAL if name in normal else ANOMALOUS for name in names} | dict.fromkeys(
        ["", *unlabelled], UNKNOWN
    )
    sides = {
        "normal": [n for n in names if label[n] == NORMAL],
        "anomalous": [n for n in names if label[n] == ANOMALOUS],
        "without a label": unlabelled,
    }
    read = [f"{word}: {', '.join(members)}" for word, members in sides.items() if members]
    notes = [f"classes read as {'; '.join(read)}"] if read else []
    return np.array([label[c] for c in classes], np.int8), notes


def _refuse_unclear(names: list[str], context: str, other_fix: str) -> None:
    """Raise `UserError` for names that may mean either: alone, or as benign does beside normal."""
    unclear = [name for name in names if is_unclear_name(name)]
    known = [name for name in names if is_normal_name(name)]
    benign = [name for name in known if "benign" in words_of(name)]
    strictly = [name for name in known if {"normal", "normals", "healthy"} & set(words_of(name))]
    why = "a number, or a name of both, does not say which"
    if not unclear and benign and strictly:
        unclear, known, why = benign, strictly, f"beside {strictly[0]} it may be a lesion"
    if not unclear:
        return
    shown = ", ".join(unclear[:10]) + (", ..." if len(unclear) > 10 else "")
    numbers = [name for name in unclear if name.isdigit()]
    example = ", ".join([*known, *numbers[:1]] if numbers else [*known, "..."])
    raise UserError(
        f"{context}: each of the classes {shown} may be normal or anomalous: {why}. "
        f"Name the normal ones with -o data.normal_classes=[{example}]{other_fix}"
    )


def _alike(name: str) -> str:
    return " ".join(name.lower().split())


def _likely(names: list[str]) -> str:
    """The name to show in an example: one that sounds normal, where there is one."""
    return min(names, key=lambda name: not any(hint in name.lower() for hint in HINTS))
