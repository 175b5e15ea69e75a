"""`gan-uad train` of a configuration without networks: its scorer is fitted on train normals, and kept as the run's model."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gan_uad import checkpoint, console, device, registry
from gan_uad.config import RunConfig
from gan_uad.data.layouts import PUT_NORMALS
from gan_uad.data.manifest import UNKNOWN
from gan_uad.data.patches import PatchSet, batches, contaminated, some
from gan_uad.errors import JobFailed, UserError
from gan_uad.model import Model, load_model, make_scorer
from gan_uad.run import Run
from gan_uad.scoring.base import Scorer
from gan_uad.training import distributed, memory
from gan_uad.training.engine import save_grid
from gan_uad.training.loading import load_together


def fit(config: RunConfig, out: Path, existing: Run | None) -> Run:
    """Fit the scorer of `config` on at most `training.total_kimg` train normals (drawn with `training.seed`); returns the run.

    A resumed run that is whole is left as it is; one that was interrupted is fitted from the start. Of `training`, only `total_kimg`,
    `batch` (images read together), `seed` (also that of a scorer that draws), `device` and `threads` play a part.
    """
    _check(config)
    config = _seeded(config)
    if existing is None and (config.data.flips or config.data.turns or config.data.hed_jitter):
        raise UserError(
            f"the scorer {config.scoring.scorer} is fitted on images as they are: data.flips, data.turns and data.hed_jitter have no use, "
            "leave them out"
        )
    settings = config.training
    where = device.prepare(settings.device, settings.threads)
    if existing is not None and _is_whole(existing, config):
        console.say(f"done: {existing.folder} was fitted already")
        return existing
    console.say(f"{config.name}: {config.scoring.scorer} to be fitted at {config.resolution} px on {where}")
    scorer = make_scorer(Model(Path(config.name), {}, config, 0, where))
    patches = load_together(config.data, config.resolution)
    for note in patches.notes:
        console.say(f"note: {note}")
    normals = some(patches.select("train", 0), round(settings.total_kimg * 1000), settings.seed)
    if len(normals) == 0:
        raise nothing_to_learn_from(config, patches)
    normals = contaminated(patches, normals, config.data.contamination, settings.seed)
    if existing is not None:
        existing.update_config(config)
    run = existing or Run.create(out, config)
    save_grid(normals.gather(range(min(64, len(normals)))), run.folder / "reals.png")
    console.say(
        f"{len(normals):,} normal train images of {config.data.path}{contamination_in_words(config)} -> {run.folder}"
    )
    start = time.monotonic()
    fit_on(scorer, normals, settings.batch, "take fewer with training.total_kimg")
    spent = time.monotonic() - start
    about = {
        "format": checkpoint.FORMAT, "networks": {}, "scorer": scorer.spec, "config": config.model_dump(mode="json"),
        "train_images": len(normals), "train_data": patches.fingerprint, "nimg": len(normals),
    }  # fmt: skip
    scorer.save(run.model_path, about)
    metrics = {
        "nimg": len(normals),
        "kimg": len(normals) / 1000,
        "seconds_per_kimg": round(spent / len(normals) * 1000, 3),
    }
    run.log({**metrics, "memory_gb": memory.peak(where), "time": round(time.time(), 1)})
    console.say(f"done: {run.folder}, fitted in {console.duration(spent)}")
    return run


def nothing_to_learn_from(config: RunConfig, patches: PatchSet) -> UserError:
    """Why no image of `data.label` is in the train split, and what to do."""
    unlabelled = bool((patches.manifest.label == UNKNOWN).all())
    remedy = PUT_NORMALS if unlabelled else "`gan-uad data check` shows what is there"
    return UserError(f"{config.data.path}: no {config.data.label} image in the train split; {remedy}")


def contamination_in_words(config: RunConfig) -> str:
    """`, 5 % of them anomalous`; "" where none are."""
    return f", {config.data.contamination:.4g} of them anomalous" if config.data.contamination else ""


def _seeded(config: RunConfig) -> RunConfig:
    """With `training.seed` for the seed of a scorer that draws (an isolation forest, a patch memory), where it is told no other."""
    scoring = config.scoring
    if "seed" not in inspect.signature(registry.find("scorer", scoring.scorer)).parameters:
        return config
    options = {"seed": config.training.seed, **scoring.options}
    return config.model_copy(update={"scoring": scoring.model_copy(update={"options": options})})


def _is_whole(run: Run, config: RunConfig) -> bool:
    """Whether the model is of as many images as `config` says: the run's own file may say so already, and its fit be interrupted."""
    if not run.model_path.is_file():
        return False
    return load_model(run.model_path).config.training.total_kimg == config.training.total_kimg


def _check(config: RunConfig) -> None:
    name = config.scoring.scorer
    if registry.find("scorer", name).fit_normals is Scorer.fit_normals:
        raise UserError(
            f"{config.name} names no network to train, and the scorer {name} learns nothing from images: give it a model and a task, "
            "or another scoring.scorer"
        )
    if distributed.world().size > 1:
        raise UserError(f"the scorer {name} is fitted by one process: start it without torchrun")
    if config.data.label != "normal":
        raise UserError(
            f"data.label is {config.data.label}, but the scorer {name} is fitted on normal images alone: leave it out"
        )
    if config.training.precision != "fp32" or config.training.eval_kimg is not None:
        raise UserError(
            f"the scorer {name} is fitted in fp32 and at once: leave training.precision and training.eval_kimg out"
        )
    for key, given in (("network", config.network), ("optim", config.optim), ("generator", config.generator)):
        if given:
            raise UserError(
                f"{config.name} trains no network, so {key} has no use: the scorer has its options in scoring.options"
            )


def fit_on(scorer: Scorer, normals: PatchSet, batch: int, advice: str) -> None:
    """Fit a scorer on normal images, `batch` of them in memory at once, with progress. `JobFailed` with `advice` when memory ends."""

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
