"""`gan-uad score-slide`: from a trained run and slides to heatmaps, tiles for QuPath, and scores of each slide."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad import console
from gan_uad.config import PREPROCESSING, DataConfig
from gan_uad.data.images import BadImage, preprocess
from gan_uad.data.patches import PatchSet, load_patches, some
from gan_uad.detection.patch_sets import SPLIT_SETTINGS, in_run_splits, known_images, overridden_config
from gan_uad.detection.rows import CHUNK, write_csv
from gan_uad.detection.score import calibrate
from gan_uad.device import cores, prepare
from gan_uad.errors import UserError
from gan_uad.files import claim, csv_text, known_key, write_json, write_text
from gan_uad.metrics import tails
from gan_uad.metrics.detection import fit_threshold
from gan_uad.metrics.tails import MIN_NORMALS, Tail
from gan_uad.model import Model, load_model, make_scorer
from gan_uad.run import model_file
from gan_uad.scoring.base import Scorer
from gan_uad.slides.batch import SLIDES, SlideTask, each_slide, finished_slides
from gan_uad.slides.score_slide import KEYS, CalibratedScorer, Cut, score_slide
from gan_uad.slides.slide_list import slide_list
from gan_uad.slides.tile import settings_of
from gan_uad.training.fit import fit_on

QUANTILE = 0.99  # of held-out normals: a tile above it is called anomalous
SETTINGS, NORMALS = "score_slide.json", "normals.csv"
COLUMNS = ("slide", "file", "tiles", "max", "top_k", "share", "model")


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
    slides_csv: Path | None = None,
) -> Path:
    """Score slides into a folder each; returns `slides.csv` of all slides in `out` that were scored with the same settings.

    `cut.size` 0: the side of the model's images. `normals`: patches whose validation split calibrates, or all of them where they bring
    no splits; default: the patches that the run was trained on. `shard` (i, n): every n-th slide, starting at the i-th (from 0).
    `slides_csv`: a table of µm/px by slide (`SlideList`).

    Resumes when run again; several processes may share the slides of one `out`. Raises `UserError` before any work, and `JobFailed` at
    the end if a slide failed.
    """
    table = slide_list(slides_csv, slides, cut.slide_mpp)
    model = load_model(run, prepare(device))
    trained_on = model.config.data
    config = model.config = overridden_config(model, overrides, inverter)
    if config.scoring.corruption.words:
        raise UserError(
            "scoring.corruption is not for slides; corrupt a set of patches and score it with gan-uad score"
        )
    scorer = make_scorer(model)
    cut = _checked(cut, config.data, model.resolution)
    held_out, train = _normals(model, trained_on, scorer, normals, cut)
    found_by = getattr(scorer, "inverter", None)
    inverter_spec = None if found_by is None else found_by.spec
    label = f"{model.name}/{(inverter_spec or scorer.spec)['name']}"
    of_model = model_file(run).read_bytes()

    def key_of(held_out: str, train: str | None) -> str:
        depends_on = [
            [scorer.spec, inverter_spec, scorer.rests_on], held_out, train,
            [getattr(config.data, name) for name in PREPROCESSING], asdict(cut), top_k, tails.VERSION,
        ]  # fmt: skip
        return hashlib.sha256(of_model + json.dumps(depends_on, sort_keys=True).encode()).hexdigest()

    old_key = key_of(held_out.old_fingerprint, None if train is None else train.old_fingerprint)
    key = key_of(held_out.fingerprint, None if train is None else train.fingerprint)
    key = known_key(out, SETTINGS, "key", key, old_key)
    claim(out, SETTINGS, {"key": key}, "slides scored with another model, calibration or setting", SLIDES)
    settings = {
        "key": key, "model": str(run), "label": label, "scorer": config.scoring.scorer, "options": scorer.spec["options"],
        "inverter": inverter_spec, "cut": asdict(cut), "top_k": top_k, "quantile": QUANTILE,
        "normals": held_out.source, "images": len(held_out), "notes": held_out.notes,
    }  # fmt: skip
    if train is not None:
        fit_on(scorer, train, CHUNK, "give a set with fewer train normals")
    rows, _ = calibrate(scorer, held_out, out / ".normals.jsonl", key)
    write_csv(out / NORMALS, held_out, rows, label, None)
    scores = np.array([row["score"] for row in rows], np.float64)
    limit = fit_threshold("quantile", scores, q=QUANTILE).value
    prepared = partial(preprocess, data=config.data, resolution=model.resolution)
    calibrated = CalibratedScorer(scorer, prepared, Tail.fit(scores), limit, top_k, key, label)
    write_json(out / SETTINGS, settings | {"limit": limit})

    def work(task: SlideTask) -> str:
        told = table and table.of(task.path).mpp
        own = replace(cut, slide_mpp=told or cut.slide_mpp)
        return _message(score_slide(task, calibrated, own, out / task.name, workers or cores()), len(scores))

    each_slide(slides, shard, out, KEYS, work, lambda: _write_table(out, key), "scored")
    return out / SLIDES


def _checked(cut: Cut, data: DataConfig, resolution: int) -> Cut:
    """The cut with its tile size. Raises `UserError` for a size that the run's preprocessing refuses."""
    cut = replace(cut, size=cut.size or data.crop_size or resolution)
    try:
        preprocess(np.zeros((cut.size, cut.size, 3), np.uint8), data, resolution)
    except BadImage as error:
        raise UserError(f"--size {cut.size}: a tile {error.reason}, which the run cuts out of its images") from None
    return cut


def _normals(
    model: Model, trained_on: DataConfig, scorer: Scorer, normals: str | None, cut: Cut
) -> tuple[PatchSet, PatchSet | None]:
    """Held-out normals, and normals to fit on for a scorer that is not fitted yet."""
    own = model.config.data
    path = normals or own.path
    hint = "name held-out normal patches with --normals DATA"
    if path is None:
        raise UserError(f"{model.path} does not name the patches that it was trained on; {hint}")
    if normals is None and not Path(path).exists():
        raise UserError(f"{path}, which {model.path} was trained on, is not there; {hint}")
    _check_alike(Path(path), own, cut)
    same = own.path is not None and Path(path).resolve() == Path(own.path).resolve()
    # Split as in training, so that no training image calibrates; preprocessed as the tiles are.
    split = {name: getattr(trained_on, name) for name in SPLIT_SETTINGS} if same else {}
    settings = own.model_copy(update={"path": path, **split})
    patches = load_patches(settings, model.resolution, progress=console.counter("reading patches"))
    for note in patches.notes:
        console.say(f"note: {note}")
    patches, counts = in_run_splits(patches, model, known_images(model), others_are_test=False)
    held_out = patches if normals and not (same or patches.brings_splits) else patches.select("val")
    if normals and (learnt := counts.get("train", 0)) and held_out is patches:
        problem = (
            f"the run was trained on {learnt} of the {len(patches)} images of {path}: p of the slides may be too small"
        )
        console.say(f"warning: {problem}; name normals that it has not seen")
    if normals:  # images without a label count as normal
        held_out = held_out.take(np.flatnonzero(held_out.manifest.label != 1))
        held_out.manifest = held_out.manifest.replace(label=np.zeros(len(held_out), np.int8))
    else:
        held_out = held_out.select(label=0)
    least = max(MIN_NORMALS, scorer.least_normals)
    if len(held_out) < least:
        raise UserError(
            f"{path}: calibration needs at least {least} held-out normals (of the val split where there are splits), found "
            f"{len(held_out)}; {hint}"
        )
    train = patches.select("train", 0) if scorer.learns else None
    if train is not None and not len(train):
        raise UserError(
            f"{path} has no normals in a train split, and the scorer {scorer.spec['name']} is fitted on them"
        )
    return some(held_out, model.config.scoring.calibration_images, 0), train


def _check_alike(path: Path, data: DataConfig, cut: Cut) -> None:
    """Raises `UserError` where `gan-uad tile` cut the normals with other settings than the slides: p would be of other tiles."""
    made = settings_of(path)
    if made is None:
        return
    wanted = {"mpp": cut.mpp, "stain": cut.stain or None} | ({"size": cut.size} if data.crop == "none" else {})
    for name, value in wanted.items():
        if made.get(name) != value:
            raise UserError(
                f"{path} was cut with --{name} {made.get(name) or 'none'}, not {value or 'none'}: normals and slides need the same; "
                f"use --{name} {made.get(name) or 'none'} or other --normals"
            )
    for name, value in (("rule", cut.rule), ("tissue", cut.tissue)):
        if made.get(name) != value:
            console.say(
                f"note: {path} was cut with --{name} {made.get(name)}, not {value}: tissue edges may score high"
            )


def _message(record: dict[str, Any], normals: int) -> str:
    if not record["tiles"]:
        return "no tissue found, so no score"
    return (
        f"{record['tiles']:,} tiles, highest -log10 p {record['max']:.2f}, mean of the {record['top_k_is']} highest "
        f"{record['top_k']:.2f}; {record['share']:.1%} of tiles score above {QUANTILE:.0%} of the {normals:,} calibration normals"
    )


def _write_table(out: Path, key: str) -> None:
    """`slides.csv`: a row for each slide in the folder with this key. Scores are empty where no tissue was found."""
    rows = [
        [f"{value:.9g}" if isinstance(value, float) else value for value in (record[name] for name in COLUMNS)]
        for _, record in finished_slides(out, KEYS)
        if record["key"] == key
    ]
    write_text(out / SLIDES, csv_text(COLUMNS, rows))
