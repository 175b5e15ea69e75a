"""Whether one method ranks better than another: the difference of their AUROCs on the images that both scored, with an interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad.detection.score_file import ScoreFile, description_of
from gan_uad.errors import UserError, near
from gan_uad.metrics._inputs import group_codes
from gan_uad.metrics.bootstrap import FEW_GROUPS, Interval, group_notes, paired_interval
from gan_uad.metrics.delong import delong
from gan_uad.metrics.detection import count_images, strict_json
from gan_uad.tables import MISSING, format_interval, format_number

COLUMNS = {
    "model": "model", "against": "against", "difference": "AUROC difference", "verdict": "verdict", "n": "normal + anomalous in both",
    "method": "by", "p": "p",
}  # fmt: skip
ABOUT = "Differences in AUROC on the images that both scored, paired, with 95 % intervals"
BETTER, WORSE, UNCLEAR = "better", "worse", "no clear difference"
CONFIDENCE = 0.95


def compare(own: ScoreFile, other: ScoreFile, resamples: int, seed: int = 0) -> dict[str, Any]:
    """AUROC of `own` less that of `other`, both labelled, on the images in both files.

    Keys: `auroc` (an Interval as strict JSON, or None), `method` ("DeLong" where each image is a group of its own, or no group is known,
    else "paired bootstrap over G groups"), `p` (DeLong, two-sided), `images` {normal, anomalous}, `left_out` {own, other} (images of one
    file alone), `note` (what limits it, or why there is none). Images are matched by name. Raises `UserError` where an image has two labels
    or two groups.
    """
    rows = {name: i for i, name in enumerate(other.image)}
    pairs = np.array([(i, rows[name]) for i, name in enumerate(own.image) if name in rows], dtype=np.int64).reshape(
        -1, 2
    )
    mine, theirs = pairs.T
    result: dict[str, Any] = {
        "auroc": None, "method": None, "p": None, "images": count_images(own.label[mine]),
        "left_out": {"own": len(own.image) - len(mine), "other": len(other.image) - len(mine)}, "note": "",
    }  # fmt: skip
    if not len(mine):
        return result | {"note": "no image is in both files"}
    places = [str(Path(place).resolve()) for one in (own, other) if (place := description_of(one.path).get("data"))]
    elsewhere = len(set(places)) > 1
    if contradiction := _contradiction(own, other, mine, theirs):
        if elsewhere:  # two sets, whose files happen to have the same names
            return result | {"note": f"scored on {places[0]} and on {places[1]}, where {contradiction}"}
        raise UserError(f"{own.path} and {other.path}: {contradiction}: give scores of the same images")
    if min(result["images"].values()) == 0:
        return result | {"note": "the images in both files are of one label"}
    groups = [own.group[i] or other.group[k] for i, k in pairs.tolist()]
    found, method, p = _difference(own.label[mine], own.score[mine], other.score[theirs], groups, resamples, seed)
    notes = [found.note] if found.note else []
    if elsewhere:
        notes.insert(0, f"scored on {places[0]} and on {places[1]}; images of equal names are taken for the same")
    found_json = strict_json(asdict(found))
    return result | {"auroc": found_json, "method": method, "p": strict_json(p), "note": "; ".join(notes)}


def _contradiction(own: ScoreFile, other: ScoreFile, mine: np.ndarray, theirs: np.ndarray) -> str:
    """What tells that a name is of two images; "" where nothing does."""
    for what, a, b in (("label", own.label.tolist(), other.label.tolist()), ("group", own.group, other.group)):
        for i, k in zip(mine.tolist(), theirs.tolist(), strict=True):
            if a[i] != b[k] and "" not in (a[i], b[k]):
                return f"image {own.image[i]!r} has {what} {a[i]} in one and {b[k]} in the other"
    return ""


def _difference(
    labels: np.ndarray, own: np.ndarray, other: np.ndarray, groups: list[str], resamples: int, seed: int
) -> tuple[Interval, str, float | None]:
    """The difference with its interval, by which method, and p."""
    codes, n_unknown = group_codes(groups, len(labels))
    n_units = int(codes.max()) + 1
    if n_units < len(labels):
        found = paired_interval(labels, own, other, groups, n=resamples, confidence=CONFIDENCE, seed=seed)
        return found, f"paired bootstrap over {n_units} groups", None
    tested = delong(labels, own, other, CONFIDENCE)
    unknown, per_class = n_unknown == len(labels), np.bincount(labels, minlength=2)
    notes = group_notes(n_unknown, len(labels), per_class)
    if np.isnan(tested.low) and per_class.min() > 1:
        notes.append(
            "no interval can be given: "
            + (
                "both rank alike"
                if tested.value == 0
                else "all images weigh the same, which tells nothing of the uncertainty"
            )
        )
    optimistic = n_unknown > 0 or bool(per_class.min() < FEW_GROUPS)
    bounds = (tested.value, tested.low, tested.high, CONFIDENCE, 0, 0)
    return Interval(*bounds, "image" if unknown else "group", n_units, optimistic, "; ".join(notes)), "DeLong", tested.p


def verdict(difference: Mapping[str, Any]) -> str:
    """`better`, `worse` or `no clear difference` (0 is in the interval); "" where there is no interval."""
    area = difference["auroc"]
    if area is None or area["low"] is None:
        return ""
    return BETTER if area["low"] > 0 else WORSE if area["high"] < 0 else UNCLEAR


def signed(area: Mapping[str, Any] | None) -> str:
    """`+0.331 [0.11, 0.44]` of a difference's Interval."""
    if area is None:
        return MISSING
    return ("+" if area["value"] >= 0 else "") + format_interval(area["value"], area["low"], area["high"])


def in_a_sentence(against: str, found: Mapping[str, Any]) -> str:
    """`Better than mean colour by +0.331 [0.11, 0.44]`, with what limits it."""
    said = verdict(found)
    area, limits = signed(found["auroc"]), f" ({found['note']})" if found["note"] else ""
    if found["auroc"] is None:
        return f"Not compared with {against}{limits}"
    if not said:
        return f"Whether it is better than {against} cannot be told: {area}{limits}"
    if said == UNCLEAR:
        return f"No clear difference from {against}: {area}{limits}"
    return f"{said.capitalize()} than {against} by {area}{limits}"


def references(
    names: Mapping[str, ScoreFile], baselines: Mapping[Path, str], baseline: str | None
) -> dict[str, list[str]]:
    """What each score file is compared with: `baseline` where given, else mean colour (its own, by folder) and the first other file.

    Raises `UserError` for a `baseline` that is not there.
    """
    if baseline is not None:
        chosen = [name for name, one in names.items() if baseline in (name, one.model)]
        if len(chosen) != 1:
            why = f"names {len(chosen)} of them" if chosen else "is none of them"
            raise UserError(f"--baseline {baseline} {why}: {near(baseline, names)}")
        return {name: [] if name == chosen[0] else chosen for name in names}
    colours = set(baselines.values())
    first = next((name for name in names if name not in colours), None)
    alone = colours.pop() if len(colours) == 1 else None
    found: dict[str, list[str]] = {}
    for name, one in names.items():
        if name in baselines.values():
            found[name] = []
            continue
        wanted = (baselines.get(one.path.parent, alone), first)
        found[name] = [against for against in dict.fromkeys(wanted) if against not in (None, name)]
    return found


def as_row(name: str, against: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of differences."""
    counts = f"{found['images']['normal']} + {found['images']['anomalous']}"
    p = None if found["p"] is None else format_number(found["p"]) if found["p"] >= 0.001 else "< 0.001"
    return {
        "model": name, "against": against, "difference": signed(found["auroc"]), "verdict": verdict(found) or None, "n": counts,
        "method": found["method"], "p": p,
    }  # fmt: skip


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What a reader of a difference must know, in sentences."""
    said = [found["note"]] if found["note"] else []
    left = [
        f"{count} of {of} alone"
        for of, count in zip(("the first", "the second"), found["left_out"].values(), strict=True)
        if count
    ]
    return said + ([f"images that one of the two lacks are left out: {', '.join(left)}"] if left else [])
