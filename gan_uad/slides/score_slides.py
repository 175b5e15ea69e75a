"""`gan-uad score-slide`: from a trained run and slides to heatmaps, tiles for QuPath, and a score for each slide."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad import console
from gan_uad.config import DataConfig
from gan_uad.data.images import BadImage, Pixels, preprocess
from gan_uad.data.patches import PatchSet, load_patches, some
from gan_uad.detection.patch_sets import SPLIT_SETTINGS, overridden_config
from gan_uad.detection.rows import CHUNK, write_csv
from gan_uad.detection.score import calibrate
from gan_uad.device import cores, prepare
from gan_uad.errors import UserError
from gan_uad.files import claim, write_json, write_text
from gan_uad.metrics.detection import fit_threshold
from gan_uad.metrics.tails import MIN_NORMALS, Tail
from gan_uad.model import Model, load_model, make_scorer
from gan_uad.run import model_file
from gan_uad.scoring.base import Scorer
from gan_uad.slides.batch import SLIDES, each, tasks_of, tell_failures
from gan_uad.slides.score_slide import CalibratedScorer, Cut, finished, score_slide
from gan_uad.slides.tile import settings_of
from gan_uad.training.fit import fit_on

QUANTILE = 0.99  # of held-out normals: a tile beyond it is called anomalous
SETTINGS, NORMALS = "score_slide.json", "normals.csv"
COLUMNS = ("slide", "file", "tiles", "max", "top_k", "share", "model")
PREPARED_BY = ("crop", "crop_size", "resize", "grayscale")  # what of DataConfig a tile's preparation rests on
NO_NORMALS = "nothing tells how normal tiles score: name patches of held-out normal tissue with --normals DATA"


def score_slides(
    run: str,
    slides: list[Path],
    out: Path,
    cut: Cut,
    normals: str | None = None,
    overrides: tuple[str, ...] = (),
    inverter: str | None = None,
    top_k: int = 10,
    shard: tuple[int, int] = (0, 1),
    workers: int | None = None,
    device: str = "auto",
) -> Path:
    """Score slides into a folder each; returns `slides.csv` of all slides in `out` that were scored in the same way.

    `cut.size` 0 is the side of the model's images. `normals`: patches whose validation split (all of them where they bring no splits)
    calibrates; default: of those that the run was trained on. `shard` (i, n): every n-th of the slides, from the i-th on (from 0).
    Run again, it goes on; processes may share the slides of one `out`. Raises `JobFailed` at the end if any slide failed, after all
    others were scored; `UserError` before any work.
    """
    model = load_model(run, prepare(device))
    trained_on = model.config.data
    config = model.config = overridden_config(model, overrides, inverter)
    if config.scoring.corruption.words:
        raise UserError("scoring.corruption is for sets of patches (gan-uad score): slides are scored as they are")
    scorer = make_scorer(model)
    cut = _checked(cut, config.data, model.resolution)
    held_out, train = _normals(model, trained_on, scorer, normals, cut)
    key = _key(run, scorer, held_out, train, config.data, cut, top_k)
    found_by = getattr(scorer, "inverter", None)
    label = f"{model.name}/{(scorer if found_by is None else found_by).spec['name']}"
    claim(out, SETTINGS, {"key": key}, "slides scored with another model, calibration or setting", SLIDES)
    settings = {
        "key": key, "model": str(run), "label": label, "scorer": config.scoring.scorer, "options": scorer.spec["options"],
        "inverter": None if found_by is None else found_by.spec, "cut": asdict(cut), "top_k": top_k, "quantile": QUANTILE,
        "normals": held_out.source, "images": len(held_out), "notes": held_out.notes,
    }  # fmt: skip
    if train is not None:
        fit_on(scorer, train, CHUNK, "give a set with fewer train normals")
    calibrated = _calibrated(scorer, held_out, config.data, model.resolution, out, key, label, top_k)
    write_json(out / SETTINGS, settings | {"limit": calibrated.limit})
    failures: list[tuple[Path, str]] = []
    tasks = tasks_of(slides, shard, lambda name: _identity(out / name), failures)
    workers = workers or cores()
    try:
        each(tasks, lambda task: _said(score_slide(task, calibrated, cut, out / task.name, workers)), failures)
    finally:
        _table(out, key)
    tell_failures(failures, "scored", f"the others are in {out / SLIDES}")
    return out / SLIDES


def _identity(folder: Path) -> str | None:
    """Of the slide whose scores a folder holds."""
    there = finished(folder)
    return None if there is None else str(there["identity"])


def _checked(cut: Cut, data: DataConfig, resolution: int) -> Cut:
    """The cut with its tile size, which must be one that the run's preparation of images takes."""
    whole = Cut(**asdict(cut) | {"size": cut.size or data.crop_size or resolution})
    try:
        preprocess(np.zeros((whole.size, whole.size, 3), np.uint8), data, resolution)
    except BadImage as error:
        raise UserError(f"--size {whole.size}: a tile {error.reason}, which the run cuts out of its images") from None
    return whole


def _normals(
    model: Model, trained_on: DataConfig, scorer: Scorer, normals: str | None, cut: Cut
) -> tuple[PatchSet, PatchSet | None]:
    """Held-out normals, and those to learn from for a scorer that is still to be fitted."""
    own = model.config.data
    path = normals or own.path
    if path is None:
        raise UserError(f"{model.path} does not name the patches that it was trained on, so {NO_NORMALS}")
    if normals is None and not Path(path).exists():
        raise UserError(f"{path}, which {model.path} was trained on, is not there, so {NO_NORMALS}")
    _check_alike(Path(path), own, cut)
    same = own.path is not None and Path(path).resolve() == Path(own.path).resolve()
    # Dealt as for the training, lest it be calibrated on what was trained on; prepared as the tiles are.
    dealt = {name: getattr(trained_on, name) for name in SPLIT_SETTINGS} if same else {}
    settings = own.model_copy(update={"path": path, **dealt})
    patches = load_patches(settings, model.resolution, progress=console.counter("reading patches"))
    for note in patches.notes:
        console.say(f"note: {note}")
    kept = patches if normals and not (same or patches.brings_splits) else patches.select("val")
    kept = _as_normals(kept, bool(normals))
    if len(kept) < max(MIN_NORMALS, scorer.least_normals):
        raise UserError(
            f"{path}: calibration takes at least {max(MIN_NORMALS, scorer.least_normals)} held-out normals (of the val split, if there are "
            f"splits), and {len(kept)} are there; give others with --normals DATA"
        )
    train = patches.select("train", 0) if scorer.learns else None
    if train is not None and not len(train):
        raise UserError(f"the scorer {scorer.spec['name']} learns from normals, and {path} has none in a train split")
    return some(kept, model.config.scoring.calibration_images, 0), train


def _check_alike(path: Path, data: DataConfig, cut: Cut) -> None:
    """Raises `UserError` where `gan-uad tile` cut the normals otherwise than the slides are to be: p would be of something else."""
    made = settings_of(path)
    if made is None:
        return
    wanted = {"mpp": cut.mpp, "stain": cut.stain or None} | ({"size": cut.size} if data.crop == "none" else {})
    for name, value in wanted.items():
        if made.get(name) != value:
            raise UserError(
                f"{path} was cut with --{name} {made.get(name) or 'none'}, and slides would be with {value or 'none'}: "
                "tiles are only told from normals like them"
            )
    for name, share in (("rule", cut.rule), ("tissue", cut.tissue)):
        if made.get(name) != share:
            console.say(
                f"note: {path} was cut with --{name} {made.get(name)}, not {share}: rims of tissue may seem rare"
            )


def _as_normals(patches: PatchSet, told: bool) -> PatchSet:
    """Those of label 0; where the user has told that a set is of normals, also those without a label."""
    if not told:
        return patches.select(label=0)
    kept = patches.take(np.flatnonzero(patches.manifest.label != 1))
    kept.manifest = kept.manifest.replace(label=np.zeros(len(kept), np.int8))
    return kept


def _key(
    run: str, scorer: Scorer, held_out: PatchSet, train: PatchSet | None, data: DataConfig, cut: Cut, top_k: int
) -> str:
    found_by = getattr(scorer, "inverter", None)
    spec = [scorer.spec, None if found_by is None else found_by.spec, scorer.rests_on]
    prepared = [getattr(data, name) for name in PREPARED_BY]
    parts = [spec, held_out.fingerprint, None if train is None else train.fingerprint, prepared, asdict(cut), top_k]
    hashed = hashlib.sha256(model_file(run).read_bytes())
    hashed.update(json.dumps(parts, sort_keys=True).encode())
    return hashed.hexdigest()


def _calibrated(
    scorer: Scorer, held_out: PatchSet, data: DataConfig, resolution: int, out: Path, key: str, label: str, top_k: int
) -> CalibratedScorer:
    """Measure the held-out normals, and keep what they score."""
    rows, _ = calibrate(scorer, held_out, out / ".normals.jsonl", key)
    write_csv(out / NORMALS, held_out, rows, label, None)
    scores = np.array([row["score"] for row in rows], np.float64)
    limit = fit_threshold("quantile", scores, q=QUANTILE).value

    def prepare(tile: Pixels) -> Pixels:
        return preprocess(tile, data, resolution)

    return CalibratedScorer(scorer, prepare, Tail.fit(scores), limit, top_k, key, label)


def _said(found: dict[str, Any]) -> str:
    if not found["tiles"]:
        return "no tissue found, so no score"
    return (
        f"{found['tiles']:,} tiles, highest rarity {found['max']:.2f}, mean of the {found['top_k_is']} highest {found['top_k']:.2f}, "
        f"{found['share']:.1%} beyond what 1 % of normals exceed"
    )


def _table(out: Path, key: str) -> None:
    """`slides.csv`: a row a slide of this key in the folder, whoever scored it; figures are empty where no tissue was found."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for folder in sorted(file.parent for file in out.glob("*/slide.json")):
        found = finished(folder)
        if found is not None and found["key"] == key:
            numbers = {name: "" if found[name] is None else f"{found[name]:.9g}" for name in ("max", "top_k", "share")}
            writer.writerow(found | numbers)
    write_text(out / SLIDES, text.getvalue())
