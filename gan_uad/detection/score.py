"""`gan-uad score`: from a trained run and a set of patches to `scores.csv`, the baseline beside it, and examples."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gan_uad import console
from gan_uad.checkpoint import content
from gan_uad.data.images import BadImage
from gan_uad.data.patches import PatchSet, batches, to_tensor, to_uint8
from gan_uad.detection.maps import pixel_threshold, write_maps, write_masks, write_segments
from gan_uad.detection.patch_sets import ScoreSets, choose_sets, overridden_config
from gan_uad.detection.rows import CHUNK, Row, as_rows, name_skipped, read_back, resumed, write_csv, written_numbers
from gan_uad.device import prepare
from gan_uad.errors import UserError
from gan_uad.files import claim, known_key, one_writer, write_json
from gan_uad.metrics import tails
from gan_uad.metrics.detection import Threshold, fit_threshold, parse_threshold, strict_json
from gan_uad.model import load_model, make_scorer
from gan_uad.run import model_file
from gan_uad.scoring.base import Scorer
from gan_uad.scoring.mean_color import MeanColorScorer
from gan_uad.training.fit import fit_on

N_EXAMPLES = 5  # images of each label in triplets.png
MAP_MAX = 4.0  # the top of the colour scale of calibrated maps: one of 10,000 pixels of normals
MAPS = {
    True: "-log10 of the probability that a pixel of a normal image has such a value, by validation normals",
    False: "in the scorer's own unit: there were no maps of validation normals to calibrate on",
}


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
    device: str = "auto",
    precision: str = "fp32",
) -> Path:
    """Score a set of patches; returns the folder with `scores.csv`. A call after an interruption resumes.

    `split`: train, val, test or all; default: test where the source brings splits or the run was trained on it, else all.
    `precision`: fp32, or tf32 on a GPU that has it: the scores change by rounding.
    `maps` writes anomaly maps, and masks where a map exceeds `pixel_quantile` of the pixels of validation normals.
    Maps, combined components and the threshold of the decisions depend on the validation split of the scored set, or else of the set
    that the run was trained on.
    """
    model = load_model(run, prepare(device, precision=precision))
    trained_on = model.config.data
    config = model.config = overridden_config(model, overrides, inverter)
    parsed = parsed_rule(threshold or config.scoring.threshold)
    scorer = make_scorer(model)
    sets = choose_sets(model, trained_on, data, split, max_images, seed)
    found_by = getattr(scorer, "inverter", None)
    corruption = config.scoring.corruption
    method = "-".join(filter(None, [*_method(scorer), corruption.words]))
    folder = out or _default_folder(run, data or str(config.data.path), method, split)
    normals = _normals(scorer, sets, config.scoring.scorer)
    _check_normals(scorer, sets)
    spec = [scorer.spec, None if found_by is None else found_by.spec, *([precision] * (precision != "fp32"))]
    keys = [_key(run, spec, sets, normals, scorer.rests_on, old) for old in (False, True)]
    key = known_key(folder, "scores.json", "key", *keys)
    settings = {
        "key": key, "model": str(run), "name": model.name, "kimg": model.nimg / 1000, "scorer": config.scoring.scorer,
        "resolution": config.resolution, "precision": precision, "seed": config.training.seed,
        "inverter": None if found_by is None else found_by.spec, "options": scorer.spec["options"],
        "log_odds": scorer.log_odds, "label": f"{model.name}/{method}",
        "data": sets.target.source, "data_settings": config.data.model_dump(mode="json"), "images": len(sets.target),
        "corruption": corruption.model_dump(mode="json") if corruption.words else None,
        "notes": sets.target.notes, "warnings": sets.warnings, "known": sets.known, "skipped": sets.target.skipped,
    }  # fmt: skip
    claim(folder, "scores.json", {"key": key}, "scores", "scores.csv")
    truth = _truth(sets) if maps else None  # a mask that is refused should be so before any work
    with one_writer(folder):
        if normals is not None:
            fit_on(scorer, normals, CHUNK, "give a set with fewer train normals")
        write_json(folder / "scores.json", settings)
        _score_all(scorer, sets, folder, settings, parsed, maps, pixel_quantile, truth)
    return folder


def _score_all(
    scorer: Scorer,
    sets: ScoreSets,
    folder: Path,
    settings: dict[str, Any],
    rule: tuple[str, dict[str, Any]],
    maps: bool,
    pixel_quantile: float,
    truth: NDArray[np.bool_] | None,
) -> None:
    key, label = settings["key"], settings["label"]
    validation, pixels = None, None
    if sets.validation is not None:
        validation, pixels = calibrate(scorer, sets.validation, folder / ".validation.jsonl", key)
        write_csv(folder / "scores_validation.csv", sets.validation, validation, label, None)
    settings["maps"] = MAPS[scorer.map_tails is not None]
    fitted = _threshold(rule, sets.validation, validation)
    rows = _score_set(scorer, sets.target, folder / ".scores.jsonl", key, folder if maps else None)
    write_csv(folder / "scores.csv", sets.target, rows, label, fitted)
    if maps:
        settings["pixel_threshold"] = _segment(truth, folder, pixels, pixel_quantile)
    thresholds = {"scores.csv": fitted, "mean_color.csv": _baseline(sets, folder, rule)}
    _pictures(scorer, sets.target, rows, folder)
    settings["thresholds"] = {
        name: strict_json(asdict(found)) for name, found in thresholds.items() if found is not None
    }
    write_json(folder / "scores.json", settings)
    for partial in (".validation.jsonl", ".scores.jsonl"):
        (folder / partial).unlink(missing_ok=True)
    console.say(f"{len(rows):,} images scored -> {folder}/scores.csv")
    if fitted is None:
        console.say("note: no validation normals are available, so no threshold was set and no decisions were made")
    elif not fitted.exists:
        console.say(f"warning: {fitted.note}")
    for warning in sets.warnings:
        console.say(f"warning: {warning}")
    name_skipped(sets.target.skipped, "scores.json")


def _default_folder(run: str, data: str, method: str, split: str | None) -> Path:
    parent = Path(run) if Path(run).is_dir() else Path(run).parent
    return parent / "scores" / "-".join(filter(None, (Path(data).stem, split, method)))


def _method(scorer: Scorer) -> list[str]:
    """The method, for the name of a folder and a table: the inverter or scorer, and how components are combined."""
    found_by = getattr(scorer, "inverter", None)
    combined = scorer.spec["options"].get("combine", "own")
    return [(scorer if found_by is None else found_by).spec["name"], *([] if combined == "own" else [combined])]


def _check_normals(scorer: Scorer, sets: ScoreSets) -> None:
    """Raise `UserError`, before any work, for too few validation normals."""
    count = 0 if sets.validation is None else len(sets.validation.select(label=0))
    if count < scorer.least_normals:
        raise UserError(
            f"{' '.join(_method(scorer))} needs at least {scorer.least_normals} validation normals, and {count} are available: "
            "give patches with a val split, restore those that the run was trained on, or use combine=own"
        )


def _normals(scorer: Scorer, sets: ScoreSets, name: str) -> PatchSet | None:
    """The normal images that a scorer is fitted on; None for one that needs no fit."""
    if not scorer.learns:
        return None
    if sets.learnt_from is None:
        raise UserError(
            f"the scorer {name} learns from normal images, and none of a train split are available: "
            "give patches with a train split, or restore those that the run was trained on"
        )
    return sets.learnt_from


def _key(run: str, method: list[Any], sets: ScoreSets, normals: PatchSet | None, rests_on: str, old: bool) -> str:
    """What the scores depend on. old: as version 0.2 and before wrote it."""

    def of(patches: PatchSet) -> str:
        return patches.old_fingerprint if old else patches.fingerprint

    hashed = hashlib.sha256(content(model_file(run)))
    keyed: list[Any] = [method, of(sets.target), of(sets.validation) if sets.validation else None]
    keyed += [] if normals is None else [of(normals)]
    keyed += [rests_on] if rests_on else []
    hashed.update(json.dumps(keyed, sort_keys=True).encode())
    return hashed.hexdigest()


def calibrate(
    scorer: Scorer, patches: PatchSet, partial: Path, key: str
) -> tuple[list[Row], NDArray[np.floating[Any]] | None]:
    """Measure validation images and calibrate on the normal ones; `{score, components...}` of each, and pixels of the normals' maps.

    `partial` keeps what was measured. The calibration uses the kept rows, so the result does not depend on which of them an earlier call
    has written.
    """

    def rows_of(images: Tensor, start: int) -> list[Row]:
        sampled = scorer.measure(images).sampled()
        return [
            {**row, "pixels": {name: written_numbers(maps[i]) for name, maps in sampled.maps.items()}}
            for i, row in enumerate(as_rows(sampled))
        ]

    rows = resumed(patches, partial, {"key": key}, "scoring validation images", scorer.chunk, rows_of)
    measured = read_back(rows)
    normal = torch.from_numpy(patches.manifest.label == 0)
    scores = scorer.calibrate(measured.take(normal))
    found = scorer.calibrated(measured)
    found.image = found.image.masked_scatter(normal, scores)
    return as_rows(found), None if found.map is None else found.map[normal].numpy()


def _score_set(scorer: Scorer, patches: PatchSet, partial: Path, key: str, maps: Path | None) -> list[Row]:
    """`{score, components...}` of each image, in order; resumes from what an interrupted call left in `partial`."""

    def rows_of(images: Tensor, start: int) -> list[Row]:
        measured = scorer.measure(images)
        as_rows(measured)  # reports the NaN of a broken model before anything is computed from it
        scores = scorer.calibrated(measured)
        if maps is not None:
            if scores.map is None:
                raise UserError("this scorer makes no maps; leave --maps out")
            write_maps(scores.map.numpy(), start, maps)
        return as_rows(scores)

    return resumed(
        patches,
        partial,
        {"key": key, "maps": maps is not None, "tails": tails.VERSION},
        "scoring",
        scorer.chunk,
        rows_of,
    )


def parsed_rule(rule: str) -> tuple[str, dict[str, float]]:
    """`fpr:0.05` as its name and parameters. Raises `UserError`."""
    try:
        return parse_threshold(rule)
    except ValueError as error:
        raise UserError(f"--threshold {rule}: {error}") from None


def _threshold(rule: tuple[str, dict[str, Any]], patches: PatchSet | None, rows: list[Row] | None) -> Threshold | None:
    """The threshold by validation images; None without any, where it is not given by hand."""
    if patches is None or rows is None:
        return fit_threshold(rule[0], None, **rule[1]) if rule[0] == "manual" else None
    return threshold_by(rule, patches, rows)


def threshold_by(rule: tuple[str, dict[str, float]], patches: PatchSet, rows: list[Row]) -> Threshold:
    """The threshold that the rule sets on the scores (`rows`) of validation images."""
    name, params = rule
    labels = patches.manifest.label
    known = labels >= 0
    scores = np.array([row["score"] for row in rows])
    groups = [group for group, keep in zip(patches.manifest.group, known, strict=True) if keep]
    try:
        return fit_threshold(name, scores[known], labels=labels[known], groups=groups, **params)
    except ValueError as error:
        raise UserError(str(error)) from None


def _baseline(sets: ScoreSets, folder: Path, rule: tuple[str, dict[str, Any]]) -> Threshold | None:
    """The baseline that any detector must beat: mean colour, fitted on the same train normals and scored on the same images."""
    if sets.train is None or len(sets.train) < 4:
        console.say("note: no train normals are available, so the mean-colour baseline is missing")
        return None
    scorer = MeanColorScorer()
    scorer.fit(batches(sets.train, 256))

    def rows_of(patches: PatchSet) -> list[Row]:
        return [row for images, _ in batches(patches, 256) for row in as_rows(scorer.score(images))]

    if rule[0] == "manual":
        rule = ("fpr", {"alpha": 0.05})  # a value given by hand is one of the other score
    validation = None
    if sets.validation is not None:
        validation = rows_of(sets.validation)
        write_csv(folder / "mean_color_validation.csv", sets.validation, validation, "mean_color", None)
    fitted = _threshold(rule, sets.validation, validation)
    write_csv(folder / "mean_color.csv", sets.target, rows_of(sets.target), "mean_color", fitted)
    return fitted


def _segment(
    truth: NDArray[np.bool_] | None, folder: Path, pixels: NDArray[np.floating[Any]] | None, quantile: float
) -> float | None:
    """Threshold the maps by pixels of validation normals where there are any, and write the annotations beside them."""
    shutil.rmtree(folder / "truth", ignore_errors=True)  # of an earlier call
    if truth is not None:
        write_masks(truth, folder / "truth")
    if pixels is None:
        console.say(
            "note: no validation normals are available, so the maps are in the scorer's own unit and no masks were written"
        )
        return None
    value = pixel_threshold(pixels, quantile)
    write_segments(folder, value)
    return value


def _truth(sets: ScoreSets) -> NDArray[np.bool_] | None:
    """Annotations of the patches; None where there are none, and, with a warning, where they are not complete.

    Raises `UserError` for a mask that does not fit its image, or can be read in two ways.
    """
    if not any(sets.target.manifest.mask):
        return None
    try:
        return sets.target.masks()
    except BadImage as problem:
        sets.warnings.append(f"no pixel metrics: the masks are left out ({problem.message})")
        return None


def _drawn_masks(patches: PatchSet) -> NDArray[np.bool_] | None:
    """Annotations for pictures; None where there are none, and, with a note, where they cannot be used."""
    if not any(patches.manifest.mask):
        return None
    try:
        return patches.masks()
    except UserError as error:
        console.say(f"note: the masks are left out ({error.message})")
        return None


def _pictures(scorer: Scorer, patches: PatchSet, rows: list[Row], folder: Path) -> None:
    """Draw triplets.png (maps.png of a scorer without reconstructions): images spread evenly over the ranks of each label."""
    from gan_uad.plotting.pictures import triplets

    values, labels = np.array([row["score"] for row in rows]), patches.manifest.label
    picked: list[int] = []
    for label in sorted(set(labels.tolist())):
        ranked = np.flatnonzero(labels == label)[np.argsort(values[labels == label], kind="stable")]
        picked += ranked[np.unique(np.linspace(0, len(ranked) - 1, N_EXAMPLES).round().astype(int))].tolist()
    images = patches.gather(picked)
    if scorer.chunk and hasattr(scorer, "inverter"):  # scorers without a search have chunks too
        console.say(f"searching again for the {len(picked)} images of triplets.png")
    scores = scorer.score(to_tensor(images))
    if scores.map is None:
        return
    names = {0: "normal", 1: "anomalous", -1: "unknown"}
    captions = [f"{names[int(labels[i])]}\n{values[i]:.4g}" for i in picked]
    masks = _drawn_masks(patches.take(picked))
    calibrated = scorer.map_tails is not None
    vmax = MAP_MAX if calibrated else float(np.quantile(scores.map.numpy(), 0.995))
    closest = None if scores.reconstruction is None else to_uint8(scores.reconstruction)
    what = "−log10 p of normals" if calibrated else "map" if closest is None else "difference"
    path = folder / ("maps.png" if closest is None else "triplets.png")
    triplets(images, closest, scores.map.numpy(), path, captions, vmax, masks, what)
