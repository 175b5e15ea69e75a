"""`gan-uad score-slide`: from a trained run and slides to heatmaps, tiles for QuPath, and scores of each slide."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad import console
from gan_uad.checkpoint import content
from gan_uad.config import PREPROCESSING, DataConfig
from gan_uad.data.images import BadImage, Pixels, preprocess
from gan_uad.data.patches import PatchSet, load_patches, some
from gan_uad.data.scale import Scale, differ
from gan_uad.detection.patch_sets import SPLIT_SETTINGS, in_run_splits, known_images, overridden_config
from gan_uad.detection.rows import CHUNK, write_csv
from gan_uad.detection.score import calibrate, parsed_rule, threshold_by
from gan_uad.device import cores, prepare
from gan_uad.errors import UserError
from gan_uad.files import claim, csv_text, write_json, write_text
from gan_uad.metrics import tails
from gan_uad.metrics.detection import fit_threshold, strict_json
from gan_uad.metrics.tails import MIN_NORMALS, Tail
from gan_uad.model import Model, load_model, make_scorer
from gan_uad.run import model_file
from gan_uad.scoring.base import Scorer
from gan_uad.slides.batch import SLIDES, SlideTask, each_slide, finished_slides
from gan_uad.slides.score_slide import KEYS, CalibratedScorer, Cut, score_slide
from gan_uad.slides.slide_list import slide_list
from gan_uad.slides.tile import settings_of
from gan_uad.training.fit import fit_on

QUANTILE = 0.99  # of held-out normals: `share` is of the tiles above it
FEW = 99  # calibration normals: fewer cannot show which score 1 % of normals exceed
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
    precision: str = "fp32",
    slides_csv: Path | None = None,
    threshold: str | None = None,
    other_mpp: bool = False,
) -> Path:
    """Score slides into a folder each; returns `slides.csv` of all slides in `out` that were scored with the same settings.

    `cut.mpp` 0: the µm/px of the patches that the model was trained on, and `cut.size` 0 their side, or else that of the model's images.
    Another scale is refused unless `other_mpp`. `threshold`: rule of the tiles' decisions, default that of the run.
    `normals`: patches whose validation split calibrates, or all of them where they bring no splits; default: the patches that the run
    was trained on. `shard` (i, n): every n-th slide, starting at the i-th (from 0).
    `slides_csv`: a table of µm/px by slide (`SlideList`).

    Resumes when run again; several processes may share the slides of one `out`. Raises `UserError` before any work, and `JobFailed` at
    the end if a slide failed.
    """
    table = slide_list(slides_csv, slides, cut.slide_mpp)
    model = load_model(run, prepare(device, precision=precision))
    trained_on = model.config.data
    config = model.config = overridden_config(model, overrides, inverter)
    if config.scoring.corruption.words:
        raise UserError(
            "scoring.corruption is not for slides; corrupt a set of patches and score it with gan-uad score"
        )
    scorer = make_scorer(model)
    rule = parsed_rule(threshold or config.scoring.threshold)
    cut = _checked(_scaled(cut, model, trained_on, other_mpp), config.data, model.resolution)
    held_out, train = _normals(model, trained_on, scorer, normals, cut)
    found_by = getattr(scorer, "inverter", None)
    inverter_spec = None if found_by is None else found_by.spec
    label = f"{model.name}/{(inverter_spec or scorer.spec)['name']}"
    depends_on = [
        [scorer.spec, inverter_spec, scorer.rests_on], held_out.fingerprint, None if train is None else train.fingerprint,
        [getattr(config.data, name) for name in PREPROCESSING], asdict(cut), top_k, tails.VERSION, rule,
        *([precision] * (precision != "fp32")),
    ]  # fmt: skip
    key = hashlib.sha256(content(model_file(run)) + json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    claim(out, SETTINGS, {"key": key}, "slides scored with another model, calibration or setting", SLIDES)
    settings = {
        "key": key, "model": str(run), "label": label, "scorer": config.scoring.scorer, "options": scorer.spec["options"],
        "inverter": inverter_spec, "cut": asdict(cut), "top_k": top_k, "quantile": QUANTILE,
        "precision": precision, "normals": held_out.source, "images": len(held_out), "notes": held_out.notes,
    }  # fmt: skip
    if train is not None:
        fit_on(scorer, train, CHUNK, "give a set with fewer train normals")
    prepared = partial(preprocess, data=config.data, resolution=model.resolution)
    calibrated = _calibrated(scorer, prepared, held_out, rule, out, settings)

    def work(task: SlideTask) -> str:
        told = table and table.of(task.path).mpp
        own = replace(cut, slide_mpp=told or cut.slide_mpp)
        return _message(score_slide(task, calibrated, own, out / task.name, workers or cores()))

    each_slide(slides, shard, out, KEYS, work, lambda: _write_table(out, key), "scored")
    return out / SLIDES


def _calibrated(
    scorer: Scorer, prepared: Callable[[Pixels], Pixels], held_out: PatchSet, rule: tuple[str, dict[str, float]], out: Path,
    settings: dict[str, Any],
) -> CalibratedScorer:  # fmt: skip
    """Calibrate on held-out normals, say how few they are, and write their scores and `settings`."""
    key, label = settings["key"], settings["label"]
    rows, _ = calibrate(scorer, held_out, out / ".normals.jsonl", key)
    fitted = threshold_by(rule, held_out, rows)
    write_csv(out / NORMALS, held_out, rows, label, fitted)
    scores = np.array([row["score"] for row in rows], np.float64)
    limit, above = fit_threshold("quantile", scores, q=QUANTILE).value, limit_in_words(len(scores))
    write_json(out / SETTINGS, settings | {"limit": limit, "limit_is": above, "threshold": strict_json(asdict(fitted))})
    if len(scores) < FEW:
        few = f"share is of tiles above {above}, and a p below {1 / (len(scores) + 1):.2g} is an extrapolation"
        console.say(f"note: {len(scores)} calibration normals: {few}")
    if not fitted.exists:
        console.say(f"warning: tiles have no decision: {fitted.note}")
    return CalibratedScorer(scorer, prepared, Tail.fit(scores), limit, above, fitted, settings["top_k"], key, label)


def limit_in_words(n: int) -> str:
    """What the limit of `share` is with n calibration normals. Fewer than `FEW` cannot tell which scores 1 % of normals exceed."""
    return (
        f"{QUANTILE:.0%} of the {n:,} calibration normals"
        if n >= FEW
        else f"the highest of the {n} calibration normals"
    )


def _scaled(cut: Cut, model: Model, trained_on: DataConfig, other: bool) -> Cut:
    """The cut at the scale that the model has learnt. Raises `UserError` where that is not known and not given, and, unless `other`, for
    another one."""
    data, scale = model.config.data, model.scale
    if scale.mpp is None:
        scale = replace(scale, mpp=data.mpp)
    if (
        scale.mpp is None and trained_on.path is not None and Path(trained_on.path).exists()
    ):  # a run of version 0.2 or before
        scale = load_patches(trained_on, model.resolution).scale
    if not cut.mpp and scale.mpp is None:
        raise UserError(
            f"{model.path} does not know the µm/px of its training patches: give the µm/px of the tiles with --mpp, the same as theirs"
        )
    side = data.crop_size or (scale.side if data.crop == "none" else None) or model.resolution
    found = replace(cut, mpp=cut.mpp or scale.mpp or 0.0, size=cut.size or side)
    tiles, learnt = Scale(found.mpp, found.size).seen(data, model.resolution), scale.seen(data, model.resolution)
    if differ(tiles, learnt) and not other:
        raise UserError(
            f"tiles of {found.size} px at {found.mpp:g} µm/px show the model {tiles:.4g} µm/px, and {model.path} was trained on "
            f"{learnt:.4g}: leave --mpp and --size out, or score at another scale with --other-mpp"
        )
    source = (
        "given"
        if cut.mpp and scale.mpp is None
        else "of the model"
        if not differ(tiles, learnt)
        else f"not the model's {learnt:.4g}"
    )
    console.say(f"tiles of {found.size} px at {found.mpp:g} µm/px ({source})")
    return found


def _checked(cut: Cut, data: DataConfig, resolution: int) -> Cut:
    """The cut. Raises `UserError` for a size of tiles that the run's preprocessing refuses."""
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
    settings = own.of(path).model_copy(update=split)
    patches = load_patches(settings, model.resolution, progress=console.counter("reading patches"))
    for note in patches.notes:
        console.say(f"note: {note}")
    theirs, tiles = (one.seen(own, model.resolution) for one in (patches.scale, Scale(cut.mpp, cut.size)))
    if differ(theirs, tiles):
        raise UserError(
            f"{path} shows {theirs:.4g} µm/px, and tiles of {cut.size} px at {cut.mpp:g} µm/px {tiles:.4g}: normals and slides need the "
            "same scale; use other --normals, or another --mpp"
        )
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


def _message(record: dict[str, Any]) -> str:
    if not record["tiles"]:
        return "no tissue found, so no score"
    return (
        f"{record['tiles']:,} tiles, highest -log10 p {record['max']:.2f}, mean of the {record['top_k_is']} highest "
        f"{record['top_k']:.2f}; {record['share']:.1%} of tiles score above {record['limit_is']}"
    )


def _write_table(out: Path, key: str) -> None:
    """`slides.csv`: a row for each slide in the folder with this key. Scores are empty where no tissue was found."""
    rows = [
        [f"{value:.9g}" if isinstance(value, float) else value for value in (record[name] for name in COLUMNS)]
        for _, record in finished_slides(out, KEYS)
        if record["key"] == key
    ]
    write_text(out / SLIDES, csv_text(COLUMNS, rows))
