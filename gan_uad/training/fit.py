"""`gan-uad train` of a configuration without networks: fits its scorer on train normals and keeps it as the run's model."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_uad import checkpoint, console, registry
from gan_uad.config import RunConfig, resolve
from gan_uad.data.findings import untested
from gan_uad.data.known import KnownImages
from gan_uad.data.layouts import PUT_NORMALS
from gan_uad.data.manifest import LABELS, UNKNOWN
from gan_uad.data.patches import PatchSet, batches, contaminated, some
from gan_uad.data.scale import Scale, differ
from gan_uad.device import prepare
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import one_writer
from gan_uad.model import Model, load_model, make_scorer
from gan_uad.plotting.pictures import image_grid
from gan_uad.run import Run, model_file
from gan_uad.scoring.base import Scorer
from gan_uad.training import distributed, memory
from gan_uad.training.loading import load_together


def fit(config: RunConfig, out: Path, existing: Run | None, held: ExitStack) -> Run:
    """Fit the scorer of `config` on at most `training.total_kimg` train normals (drawn with `training.seed`); returns the run.

    `held`: see `open_run`.

    A resumed run that is complete is left unchanged; one that was interrupted is fitted from the start. Of `training`, only
    `total_kimg`, `batch` (images read together), `seed` (also that of a scorer that draws), `device` and `threads` have an effect.
    """
    _check(config)
    config = _seeded(config)
    if existing is None and (config.data.flips or config.data.turns or config.data.hed_jitter):
        raise UserError(
            f"the scorer {config.scoring.scorer} is fitted on images as they are: data.flips, data.turns and data.hed_jitter must be "
            "left out"
        )
    settings = config.training
    device = prepare(settings.device, settings.threads)
    if existing is not None and _is_complete(existing, config):
        console.say(f"done: {existing.folder} was fitted already")
        return existing
    console.say(f"{config.name}: {config.scoring.scorer} to be fitted at {config.resolution} px on {device}")
    scorer = make_scorer(Model(Path(config.name), {}, config, 0, device))
    patches = load_together(config.data, config.resolution)
    normals = train_images(config, patches, round(settings.total_kimg * 1000))
    run = open_run(config, out, existing, patches, normals, held)
    start = time.monotonic()
    fit_on(scorer, normals, settings.batch, "use fewer with -o training.total_kimg")
    spent = time.monotonic() - start
    count = len(normals)
    made = {"format": checkpoint.FORMAT, "networks": {}, "scorer": scorer.spec}
    scorer.save(run.model_path, {**made, **description(config, patches, normals), "nimg": count})
    metrics = {"nimg": count, "kimg": count / 1000, "seconds_per_kimg": round(spent / count * 1000, 3)}
    run.log({**metrics, "memory_gb": memory.peak(device), "time": round(time.time(), 1)})
    console.say(f"done: {run.folder}, fitted in {console.duration(spent)}")
    return run


def train_images(config: RunConfig, patches: PatchSet, most: int | None = None) -> PatchSet:
    """The images to train on: the train images of `data.label`, at most `most`, contaminated as `data.contamination` says.

    Prints the notes of the patches, and why a detection could not be evaluated on them. Raises `UserError` where there are no such images.
    """
    for note in patches.notes:
        console.say(f"note: {note}")
    for problem in untested(patches.manifest):
        console.say(f"warning: {problem}")
    chosen = patches.select("train", LABELS[config.data.label])
    if most is not None:
        chosen = some(chosen, most, config.training.seed)
    if len(chosen) == 0:
        unlabelled = bool((patches.manifest.label == UNKNOWN).all())
        remedy = PUT_NORMALS if unlabelled else "`gan-uad data check` shows what is there"
        raise UserError(f"{config.data.path}: no {config.data.label} image in the train split; {remedy}")
    return contaminated(patches, chosen, config.data.contamination, config.training.seed)


def open_run(
    config: RunConfig, out: Path, existing: Run | None, patches: PatchSet, chosen: PatchSet, held: ExitStack
) -> Run:
    """The folder of a new or resumed run, with examples of its training images (`chosen` of `patches`) and the list of all images.

    `held` keeps a new one to this process.
    """
    models = [model_file(path) for path in _started_from(config)] if existing is None else [existing.model_path]
    scale = _check_scale(config, patches, models if existing is None else [])
    before, known = [KnownImages.beside(model) for model in models], KnownImages.of(patches)
    if existing is not None:
        existing.update_config(config)
    run = existing or Run.create(out, config)
    if existing is None:
        held.enter_context(one_writer(run.folder))
    listed = existing is None or before[0] is not None or not existing.model_path.is_file()
    if listed or (existing and patches.is_set(_data(existing))):  # else nobody has listed what it was trained on
        known.with_others(before).write(run.folder)
    image_grid(chosen.gather(range(min(64, len(chosen)))), run.folder / "reals.png")
    share = f", {config.data.contamination:.4g} of them anomalous" if config.data.contamination else ""
    console.say(f"{len(chosen):,} {config.data.label} train images of {config.data.path}{share}{scale} -> {run.folder}")
    if existing is None and (seen := known.seen_by(before)):
        console.say(f"warning: {seen} val and test images were train images of the run that this one starts from")
    return run


def _data(run: Run) -> str:
    """The fingerprint of the patches that a run was trained on."""
    stored: str = checkpoint.read_model(run.model_path)[0].get("train_data", "")
    return stored


def _check_scale(config: RunConfig, patches: PatchSet, models: list[Path]) -> str:
    """The µm/px of the patches, in words; "" where unknown. Raises `UserError` where a model to start from has learnt another."""
    seen = patches.scale.seen(config.data, config.resolution)
    for file in models:
        about, _ = checkpoint.read_model(file)
        theirs = resolve(about["config"], default_name=file.stem, context=str(file))
        other = Scale.read(about.get("patches")).seen(theirs.data, theirs.resolution)
        if differ(seen, other):
            raise UserError(
                f"{patches.source} shows {seen:.4g} µm/px, and {file} was trained on {other:.4g}: use patches of one scale"
            )
    return f", {patches.scale.mpp:.4g} µm/px" if patches.scale.mpp else ""


def _started_from(config: RunConfig) -> list[str]:
    """The runs and model files whose networks are part of this training."""
    return [str(path) for path in (config.generator, config.init_from, config.optim.get("cnn")) if path]


def description(config: RunConfig, patches: PatchSet, chosen: PatchSet) -> dict[str, Any]:
    """What a model file says of its training."""
    return {
        "config": config.model_dump(mode="json"), "train_images": len(chosen), "train_data": patches.fingerprint,
        "patches": asdict(patches.scale),
    }  # fmt: skip


def _seeded(config: RunConfig) -> RunConfig:
    """With `training.seed` as the seed of a scorer that draws (isolation forest, PatchCore), unless it has one."""
    scoring = config.scoring
    if "seed" not in inspect.signature(registry.find("scorer", scoring.scorer)).parameters:
        return config
    options = {"seed": config.training.seed, **scoring.options}
    return config.model_copy(update={"scoring": scoring.model_copy(update={"options": options})})


def _is_complete(run: Run, config: RunConfig) -> bool:
    """Whether the model was fitted on as many images as `config` says. (The run's config.yaml is changed before the fit.)"""
    if not run.model_path.is_file():
        return False
    return load_model(run.model_path).config.training.total_kimg == config.training.total_kimg


def _check(config: RunConfig) -> None:
    name = config.scoring.scorer
    if registry.find("scorer", name).fit_normals is Scorer.fit_normals:
        raise UserError(
            f"{config.name} names no network to train, and the scorer {name} learns nothing from images: "
            "set model and task, or another scoring.scorer"
        )
    if distributed.world().size > 1:
        raise UserError(f"the scorer {name} is fitted by one process: start it without torchrun")
    if config.data.label != "normal":
        raise UserError(f"the scorer {name} is fitted on normal images alone: leave data.label={config.data.label} out")
    if config.training.precision not in ("auto", "fp32") or config.training.eval_kimg is not None:
        raise UserError(
            f"the scorer {name} is fitted in fp32 in one step: leave training.precision and training.eval_kimg out"
        )
    for key, value in (("network", config.network), ("optim", config.optim), ("generator", config.generator)):
        if value:
            raise UserError(
                f"{config.name} trains no network, so {key} has no use: leave it out; the scorer's options are scoring.options"
            )


def fit_on(scorer: Scorer, normals: PatchSet, batch: int, advice: str) -> None:
    """Fit a scorer on normal images, `batch` of them at once, with progress. Raises `JobFailed` with `advice` when memory is full."""

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        with console.progress("fitting on normals", len(normals)) as bar:
            for number, (images, labels) in enumerate(batches(normals, batch), 1):
                yield images, labels
                bar.update(min(number * batch, len(normals)))

    try:
        scorer.fit(counted())
    except (MemoryError, torch.OutOfMemoryError):
        raise JobFailed(
            f"out of memory in fitting {scorer.spec['name']} on {len(normals):,} images: {advice}"
        ) from None
