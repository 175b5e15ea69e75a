"""`gan-uad score`: from a trained run and a set of patches to `scores.csv`, the baseline beside it, and pictures."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gan_uad import console, device
from gan_uad.data.patches import PatchSet, batches, to_tensor, to_uint8
from gan_uad.errors import UserError
from gan_uad.files import make_folder, write_json, write_text
from gan_uad.jobs.load import load_model, make_scorer, model_file
from gan_uad.jobs.maps import pixel_threshold, write_maps, write_masks, write_segments
from gan_uad.jobs.score_sets import ScoreSets, choose_sets, some, told_anew
from gan_uad.metrics.detection import Threshold, fit_threshold, parse_threshold
from gan_uad.scoring.base import Scorer, Scores
from gan_uad.scoring.mean_color import MeanColorScorer

CHUNK = 64  # images between two writes of the partial results
SHOWN = 5  # pictures of each kind in triplets.png
PIXEL_IMAGES = 128  # validation normals whose pixels set the threshold of the segments
LISTED = 10  # broken images named at the end; scores.json has all


def score(
    run: str,
    data: str | None = None,
    out: Path | None = None,
    split: str | None = None,
    inverter: str | None = None,
    threshold: str | None = None,
    overrides: tuple[str, ...] = (),
    maps: bool = False,
    pixel_quantile: float = 0.99,
    max_images: int | None = None,
    seed: int = 0,
    where: str = "auto",
) -> Path:
    """Score a set of patches; returns the folder with `scores.csv`. Run again after an interruption, it goes on.

    `split`: train, val, test or all; default: test where the source brings splits or is what the run was trained on, else all.
    `maps` writes difference maps, and masks cut where a map exceeds `pixel_quantile` of the pixels of validation normals.
    The threshold of the decisions is set on the validation split of the scored set, or else of the set that the run was trained on.
    """
    model = load_model(run, device.prepare(where))
    trained_on = model.config.data
    config = model.config = told_anew(model, overrides, inverter)
    parsed = _parsed(threshold or config.scoring.threshold)
    scorer = make_scorer(model)
    sets = choose_sets(model, trained_on, data, split, max_images, seed)
    found_by = getattr(scorer, "inverter", None)
    used = scorer.spec if found_by is None else found_by.spec
    folder = out or _default_folder(run, data or str(config.data.path), used["name"], split)
    normals = _normals(scorer, sets, config.scoring.scorer)
    key = _key(run, used, sets, normals, scorer.rests_on)
    settings = {
        "key": key, "model": str(run), "name": model.name, "kimg": model.nimg / 1000, "scorer": config.scoring.scorer,
        "inverter": None if found_by is None else used, "label": f"{model.name}/{used['name']}",
        "data": sets.target.source, "data_settings": config.data.model_dump(mode="json"), "images": len(sets.target),
        "notes": sets.target.notes, "warnings": sets.warnings, "skipped": sets.target.skipped,
    }  # fmt: skip
    _claim(folder, key)
    if normals is not None:
        _fit(scorer, normals)
    write_json(folder / "scores.json", settings)
    _score_all(scorer, sets, folder, settings, parsed, maps, pixel_quantile)
    return folder


def _score_all(
    scorer: Scorer,
    sets: ScoreSets,
    folder: Path,
    settings: dict[str, Any],
    rule: tuple[str, dict[str, Any]],
    maps: bool,
    pixel_quantile: float,
) -> None:
    key = settings["key"]
    label = settings["label"]
    validation = None
    if sets.validation is not None:
        validation = _score_set(
            scorer, sets.validation, folder / ".validation.jsonl", key, "scoring validation images", None
        )
        _write_csv(folder / "scores_validation.csv", sets.validation, validation, label, None)
    fitted = _threshold(rule, sets.validation, validation)
    rows = _score_set(scorer, sets.target, folder / ".scores.jsonl", key, "scoring", folder if maps else None)
    _write_csv(folder / "scores.csv", sets.target, rows, label, fitted)
    if maps:
        settings["pixel_threshold"] = _segment(scorer, sets, folder, pixel_quantile)
    thresholds = {"scores.csv": fitted, "mean_color.csv": _baseline(sets, folder, rule)}
    _pictures(scorer, sets.target, rows, folder)
    settings["thresholds"] = {name: _json_threshold(found) for name, found in thresholds.items() if found is not None}
    write_json(folder / "scores.json", settings)
    for partial in (".validation.jsonl", ".scores.jsonl"):
        (folder / partial).unlink(missing_ok=True)
    console.say(f"{len(rows):,} images scored -> {folder}/scores.csv")
    if fitted is None:
        console.say("note: no validation normals at hand, so no threshold was set and no decisions were made")
    for warning in sets.warnings:
        console.say(f"warning: {warning}")
    _list_skipped(sets.target)


def _list_skipped(patches: PatchSet) -> None:
    for name, reason in patches.skipped[:LISTED]:
        console.say(f"skipped: {name}: {reason}")
    if len(patches.skipped) > LISTED:
        console.say(f"skipped: {len(patches.skipped) - LISTED} more, all in scores.json")


def _parsed(rule: str) -> tuple[str, dict[str, Any]]:
    try:
        return parse_threshold(rule)
    except ValueError as error:
        raise UserError(f"--threshold {rule}: {error}") from None


def _default_folder(run: str, data: str, method: str, split: str | None) -> Path:
    parent = Path(run) if Path(run).is_dir() else Path(run).parent
    return parent / "scores" / "-".join(part for part in (Path(data).stem, split, method) if part)


def _normals(scorer: Scorer, sets: ScoreSets, name: str) -> PatchSet | None:
    """What a scorer that learns is fitted on; None for one that has nothing to learn."""
    if not scorer.learns:
        return None
    if sets.train is None:
        raise UserError(
            f"the scorer {name} learns from normal images, and none of a train split are at hand: "
            "give patches with a train split, or put back those that the run was trained on"
        )
    return sets.train


def _fit(scorer: Scorer, normals: PatchSet) -> None:
    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        with console.progress("fitting on normals", len(normals)) as bar:
            for number, (images, labels) in enumerate(batches(normals, CHUNK), 1):
                yield images, labels
                bar.update(min(number * CHUNK, len(normals)))

    scorer.fit(counted())


def _key(run: str, method: dict[str, Any], sets: ScoreSets, normals: PatchSet | None, rests_on: str) -> str:
    hashed = hashlib.sha256(model_file(run).read_bytes())
    parts: list[Any] = [method, sets.target.fingerprint, sets.validation.fingerprint if sets.validation else None]
    if normals is not None:
        parts.append(normals.fingerprint)
    if rests_on:
        parts.append(rests_on)
    hashed.update(json.dumps(parts, sort_keys=True).encode())
    return hashed.hexdigest()


def _claim(folder: Path, key: str) -> None:
    """Make the folder; refuse one that holds scores of something else, as `scores.json` tells."""
    make_folder(folder)
    described = folder / "scores.json"
    if described.is_file() or (folder / "scores.csv").exists():
        try:
            mine = json.loads(described.read_text(encoding="utf-8"))["key"] == key
        except (OSError, ValueError, TypeError, KeyError):
            mine = False
        if not mine:
            raise UserError(
                f"{folder} holds scores of another model, data set or setting; choose another folder with --out"
            )


def _score_set(
    scorer: Scorer, patches: PatchSet, partial: Path, key: str, what: str, maps: Path | None
) -> list[dict[str, float]]:
    """One `{score, parts...}` an image, in order; what an interrupted call left in `partial` is taken over."""
    header = {"key": key, "maps": maps is not None}
    rows = _partial_rows(partial, header)
    write_text(partial, "".join(json.dumps(row) + "\n" for row in [header, *rows]))
    with console.progress(what, len(patches), done=len(rows)) as bar, open(partial, "a", encoding="utf-8") as file:
        rest = patches.take(np.arange(len(rows), len(patches)))
        for images, _ in batches(rest, CHUNK):
            scores = scorer.score(images)
            new = _rows(scores)
            if maps is not None:
                write_maps(_maps_of(scores), len(rows), maps)
            file.write("".join(json.dumps(row) + "\n" for row in new))
            file.flush()
            rows += new
            bar.update(len(rows))
    return rows


def _partial_rows(partial: Path, header: dict[str, Any]) -> list[dict[str, float]]:
    """The rows of whole chunks: a search that goes on then meets the same micro-batches as an uninterrupted one."""
    if not partial.is_file():
        return []
    rows = []
    for line in partial.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the line that was being written when the process was killed
            break
    if not rows or rows.pop(0) != header:
        return []
    return rows[: len(rows) // CHUNK * CHUNK]


def _rows(scores: Scores) -> list[dict[str, float]]:
    columns = {"score": scores.image, **scores.parts}
    for name, values in columns.items():
        if not bool(values.isfinite().all()):
            raise UserError(
                f"the model gives {name} = NaN or infinity for some images: it diverged in training, or its file is damaged"
            )
    # Nine digits hold a float32. Thresholds are set on what is written, so that a file's decisions follow from its numbers.
    written = ([float(f"{value:.9g}") for value in values.tolist()] for values in columns.values())
    return [dict(zip(columns, values, strict=True)) for values in zip(*written, strict=True)]


def _threshold(
    rule: tuple[str, dict[str, Any]], patches: PatchSet | None, rows: list[dict[str, float]] | None
) -> Threshold | None:
    name, params = rule
    if patches is None or rows is None:
        return fit_threshold(name, None, **params) if name == "manual" else None
    labels = patches.manifest.label
    known = labels >= 0
    scores = np.array([row["score"] for row in rows])
    groups = [group for group, keep in zip(patches.manifest.group, known, strict=True) if keep]
    try:
        return fit_threshold(name, scores[known], labels=labels[known], groups=groups, **params)
    except ValueError as error:
        raise UserError(str(error)) from None


def _write_csv(
    path: Path, patches: PatchSet, rows: list[dict[str, float]], model: str, threshold: Threshold | None
) -> None:
    """`image, group, label, score, <parts>, model, threshold, decision` (decision: score > threshold)."""
    parts = [name for name in rows[0] if name != "score"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "group", "label", "score", *parts, "model", "threshold", "decision"])
    manifest = patches.manifest
    for image, group, label, row in zip(manifest.image, manifest.group, manifest.label, rows, strict=True):
        decision = "" if threshold is None else int(row["score"] > threshold.value)
        value = "" if threshold is None else repr(threshold.value)
        numbers = [f"{row[name]:.9g}" for name in ("score", *parts)]
        writer.writerow([image, group, "" if label < 0 else int(label), *numbers, model, value, decision])
    write_text(path, text.getvalue())


def _baseline(sets: ScoreSets, folder: Path, rule: tuple[str, dict[str, Any]]) -> Threshold | None:
    """Mean colour, fitted on the same train normals and scored on the same images: what any detector must beat."""
    if sets.train is None or len(sets.train) < 4:
        console.say("note: no train normals at hand, so the mean-colour baseline is missing")
        return None
    scorer = MeanColorScorer()
    scorer.fit(batches(sets.train, 256))

    def rows_of(patches: PatchSet) -> list[dict[str, float]]:
        return [row for images, _ in batches(patches, 256) for row in _rows(scorer.score(images))]

    if rule[0] == "manual":
        rule = ("fpr", {"alpha": 0.05})  # a value given by hand is one of the other score
    validation = None
    if sets.validation is not None:
        validation = rows_of(sets.validation)
        _write_csv(folder / "mean_color_validation.csv", sets.validation, validation, "mean_color", None)
    fitted = _threshold(rule, sets.validation, validation)
    _write_csv(folder / "mean_color.csv", sets.target, rows_of(sets.target), "mean_color", fitted)
    return fitted


def _json_threshold(threshold: Threshold) -> dict[str, Any]:
    values = asdict(threshold)
    return values | {"value": str(threshold.value) if np.isinf(threshold.value) else threshold.value}


def _maps_of(scores: Scores) -> NDArray[np.floating[Any]]:
    if scores.map is None:
        raise UserError("this scorer makes no maps; leave --maps out")
    maps: NDArray[np.floating[Any]] = scores.map.numpy()
    return maps


def _segment(scorer: Scorer, sets: ScoreSets, folder: Path, quantile: float) -> float | None:
    """Threshold the maps where validation normals tell how; put the annotations beside them where there are any."""
    truth = _truth(sets.target)
    if truth is not None:
        write_masks(truth, folder / "truth")
    if sets.validation is None:
        console.say("note: no validation normals at hand, so the maps were not cut into masks")
        return None
    normals = some(sets.validation.select(label=0), PIXEL_IMAGES, 0)
    value = pixel_threshold(
        np.concatenate([_maps_of(scorer.score(images)) for images, _ in batches(normals, CHUNK)]), quantile
    )
    write_segments(folder, value)
    return value


def _truth(patches: PatchSet) -> NDArray[np.bool_] | None:
    """Annotations of the patches; None where there are none, or not of every anomalous patch."""
    if not any(patches.manifest.mask):
        return None
    try:
        return patches.masks()
    except UserError as error:
        console.say(f"note: the masks are left out ({error.message})")
        return None


def _pictures(scorer: Scorer, patches: PatchSet, rows: list[dict[str, float]], folder: Path) -> None:
    """triplets.png: images spread evenly over the ranks of each label, least to most anomalous."""
    from gan_uad.report.pictures import triplets

    values, labels = np.array([row["score"] for row in rows]), patches.manifest.label
    picked: list[int] = []
    for label in sorted(set(labels.tolist())):
        ranked = np.flatnonzero(labels == label)[np.argsort(values[labels == label], kind="stable")]
        picked += ranked[np.unique(np.linspace(0, len(ranked) - 1, SHOWN).round().astype(int))].tolist()
    images = patches.gather(picked)
    scores = scorer.score(to_tensor(images))
    if scores.reconstruction is None or scores.map is None:
        return
    names = {0: "normal", 1: "anomalous", -1: "unknown"}
    captions = [f"{names[int(labels[i])]}\n{values[i]:.4g}" for i in picked]
    masks = _truth(patches.take(picked))
    vmax = float(np.quantile(scores.map.numpy(), 0.995))
    triplets(
        images, to_uint8(scores.reconstruction), scores.map.numpy(), folder / "triplets.png", captions, vmax, masks
    )
