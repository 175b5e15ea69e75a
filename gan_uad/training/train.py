"""`gan-uad train`: a configuration and a set of patches become a run folder."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from gan_uad import checkpoint, console, registry
from gan_uad.config import RunConfig, load_config, read_yaml, resolve, trained_model
from gan_uad.data.patches import PatchSet, some
from gan_uad.device import Precision, choose_precision, prepare, set_precision
from gan_uad.errors import Interrupted, UserError
from gan_uad.features.load import load_features
from gan_uad.files import one_writer
from gan_uad.model import inherit_preprocessing, load_model
from gan_uad.networks.sampling import style_based
from gan_uad.run import Run
from gan_uad.training import distributed
from gan_uad.training.adversarial import AdversarialTask
from gan_uad.training.engine import train as run_training
from gan_uad.training.fid import FrechetValidator
from gan_uad.training.fit import description, fit, open_run, train_images
from gan_uad.training.loading import load_together
from gan_uad.training.task import Task
from gan_uad.training.validation import Validator

# The settings that can be overridden for a resumed run: none that changes the result of the next step.
# (`micro_batch` changes it by rounding; without it a run that ran out of memory could not continue.)
_KEYS = "total_kimg tick_kimg snapshot_kimg checkpoint_kimg eval_kimg patience threads device micro_batch"
RESUMABLE = {f"training.{key}" for key in _KEYS.split()}
WIDE = 16384  # channel_base from which on bf16 is faster than fp32 on a CPU that has it: configuration E's


def train(
    source: str,
    overrides: tuple[str, ...] = (),
    data: str | None = None,
    generator: str | None = None,
    out: Path = Path("runs"),
    resume: bool = False,
    dry_run: bool = False,
    changed_data: bool = False,
) -> Run | None:
    """Train by the configuration `source` (preset, YAML file or run folder); returns the run, or None for a dry run.

    With `resume`, `source` may be a run folder, or a configuration whose latest run under `out` continues. Under torchrun every process
    calls it: they train together, and rank 0 alone reads the configuration, writes and prints. A run has one writer at a time.
    `changed_data`: resume although the patches are not those of the run. The run then says so for good.
    """
    if changed_data and not resume:
        raise UserError("--changed-data is for a run that continues: add --resume, or leave it out")
    given = [f"data.path={_quoted(_absolute(data))}"] if data else []
    given += [f"generator={_quoted(_absolute(str(trained_model(generator))))}"] if generator else []
    overrides = (*given, *overrides)
    with distributed.processes() as here, ExitStack() as held:
        config, existing = distributed.first(lambda: _configured(source, overrides, out, resume, here.size))
        if not dry_run:
            if existing is not None:
                folder = existing.folder
                distributed.first(lambda: held.enter_context(one_writer(folder)))
            if not config.task:
                return fit(config, out, existing, held)
            return _train(config, out, existing, here, held, changed_data)
        if here.rank == 0:
            print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
        return None


def _configured(
    source: str, overrides: tuple[str, ...], out: Path, resume: bool, processes: int
) -> tuple[RunConfig, Run | None]:
    """The configuration, and the run that continues with it, if any. Raises `UserError` for a batch that cannot be shared."""
    existing = _existing(source, overrides, out, resume)
    config = _completed(load_config(source, overrides)) if existing is None else _resumed(existing, overrides)
    batch, micro_batch = config.training.batch, config.training.micro_batch
    if batch % processes:
        raise UserError(
            f"training.batch {batch} cannot be shared evenly by {processes} processes: choose a multiple of {processes}"
        )
    if micro_batch is not None and (batch // processes) % micro_batch:
        share = f"{batch // processes} images of each process" if processes > 1 else f"training.batch {batch}"
        raise UserError(f"training.micro_batch {micro_batch} does not divide the {share}")
    if config.training.patience is not None and config.training.eval_kimg is None:
        raise UserError("training.patience counts validations, and there are none: set training.eval_kimg too")
    return config, existing


def _train(
    config: RunConfig, out: Path, existing: Run | None, here: distributed.World, held: ExitStack, changed_data: bool
) -> Run:
    settings = config.training
    device = distributed.together(lambda: prepare(settings.device, settings.threads))
    several = f", {here.size} processes" if here.size > 1 else ""
    precision = distributed.first(lambda: _precision(config, device))
    # From now on the run has this precision: it must not change when the run continues on another machine.
    settings.precision = precision.name  # type: ignore[assignment]
    distributed.together(lambda: set_precision(precision.name, device))
    console.say(
        f"{config.name}: training {config.model} by {config.task} at {config.resolution} px on {device}{several}, "
        f"{precision.name} ({precision.reason})"
    )
    torch.manual_seed(settings.seed)
    task = distributed.together(lambda: build_task(config, device))
    task.micro_batch = settings.micro_batch
    task.check_batches(settings.batch)
    if not distributed.first(lambda: existing is not None and checkpoint.has_state(existing.state_path)):
        distributed.together(lambda: _begin(task, config))
    if (here.size > 1 or settings.micro_batch) and _batch_norm(task):
        passes = settings.micro_batch or settings.batch // here.size
        console.say(f"note: batch norm sees passes of {passes} images, not the complete batch of {settings.batch}")
    patches = load_together(config.data, config.resolution)
    chosen = train_images(config, patches)
    _check_enough(config, task, len(chosen))
    stream = task.stream(chosen, settings.batch, settings.seed, config.data.flips, config.data.turns)
    validator = None if settings.eval_kimg is None else _validator(config, task, patches, chosen)
    about = description(config, patches, chosen)
    if existing is not None:
        about["train_data"] = distributed.first(lambda: _data_of(existing, patches, changed_data))
    run = distributed.first(lambda: open_run(config, out, existing, patches, chosen, held))
    try:
        ended = run_training(task, stream, run, device, about, existing is not None, validator)
    except Interrupted:
        distributed.first(lambda: _draw_curves(task, run))
        raise
    distributed.first(lambda: _draw_curves(task, run))
    console.say(f"done: {run.folder} ({ended})")
    return run


def _data_of(run: Run, patches: PatchSet, changed: bool) -> str:
    """What a resumed run says of its patches. Raises `UserError` where they have changed, unless allowed (`changed`): it then names both,
    a fingerprint that no patches have, so that scores of such a run are warned of for good.
    """
    if not checkpoint.has_state(run.state_path) or not run.model_path.is_file():
        return patches.fingerprint
    stored: str = checkpoint.read_model(run.model_path)[0].get("train_data", "")
    before, _, last = stored.rpartition("+")
    if not stored or patches.is_set(last):
        return stored if before else patches.fingerprint
    if not changed:
        raise UserError(
            f"{patches.source} has changed since the training of {run.folder}: its splits may differ, and training images would become "
            "test images. Restore it, start a new run, or add --changed-data (scores of the run are then warned of for good)"
        )
    console.say(f"warning: {patches.source} has changed since the training of {run.folder}: its scores may be too good")
    return f"{stored}+{patches.fingerprint}"


def _begin(task: Task, config: RunConfig) -> None:
    """Load the weights that a new training starts from."""
    task.begin()
    if config.init_from is not None:
        task.start_from(load_model(config.init_from).networks, f"init_from {config.init_from}")


def _draw_curves(task: Task, run: Run) -> None:
    """Draw curves.png: the metrics in `task.curves`, in training and (if validated) on validation images."""
    if task.curves and (rows := run.read_log()):
        from gan_uad.plotting.plots import learning_curves

        learning_curves(rows, run.read_validations(), task.curves, run.folder / "curves.png")


def _check_enough(config: RunConfig, task: Task, count: int) -> None:
    """Raise `UserError` when there are fewer images than the largest batch has."""
    batch = config.training.batch
    largest, fixed = (
        max(task.batch_sizes(batch)),
        task.batch_sizes(0),
    )  # `fixed`: sizes that `batch` does not set, and 0
    if count < largest:
        keys = ["-o training.batch"] * (0 in fixed and batch == largest) + ["optim.batch_per_level"] * (
            largest in fixed
        )
        raise UserError(
            f"{config.data.path}: {count} {config.data.label} train images are too few: a batch has {largest}. "
            f"Use more images or a smaller {' and '.join(keys)}"
        )


def _validator(config: RunConfig, task: Task, patches: PatchSet, chosen: PatchSet) -> Validator:
    """What validates the task every `eval_kimg`: a GAN uses its training images, other tasks use validation images."""
    settings = config.training
    if isinstance(task, AdversarialTask):
        net = distributed.together(lambda: load_features(settings.eval_features, device=task.device))
        return FrechetValidator(task, chosen, net, settings.eval_images)
    validation = patches.select("val")
    if len(validation) == 0:
        raise UserError(f"{config.data.path}: no image in the val split, which training.eval_kimg needs")
    validator = task.validator(some(validation, settings.eval_images, settings.seed))
    if validator is None:
        raise UserError(f"the task {config.task} has no validation: leave training.eval_kimg out")
    return validator


def _precision(config: RunConfig, device: torch.device) -> Precision:
    """What to train in: see `choose_precision`. Raises `UserError` for what the device lacks, and for fp16 where it would overflow."""
    takes = inspect.signature(registry.find("network", config.model)).parameters
    autocast = "low_precision_levels" in takes
    if config.training.precision == "fp16" and device.type == "cuda" and not autocast:
        raise UserError(
            f"{config.model} would overflow in fp16 (its gradients are not scaled): use training.precision=bf16"
        )
    width = config.network.get("channel_base", takes["channel_base"].default if "channel_base" in takes else 0)
    return choose_precision(config.training.precision, device, autocast, width >= WIDE)


def _batch_norm(task: Task) -> bool:
    """Whether a network in training normalises by the statistics of its batch."""
    layers = (layer for net in task.modules() for layer in net.modules())
    return any(layer.training and isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)


def build_task(config: RunConfig, device: torch.device) -> Task:
    """Networks and task of a configuration, freshly initialised from torch's global seed."""
    model = registry.build("network", config.model, {"resolution": config.resolution, **config.network})
    given: dict[str, Any] = {"model": model, "device": device, "seed": config.training.seed}
    if "generator" in inspect.signature(registry.find("task", config.task)).parameters:
        if config.generator is None:
            raise UserError(f"{config.name} trains an encoder and needs a trained generator: add --generator RUN")
        given["generator"] = load_model(config.generator).networks["gan"]
    elif config.generator is not None:
        raise UserError(f"task {config.task} trains no encoder: leave --generator out")
    task: Task = registry.build("task", config.task, config.optim, **given)
    return task


def _completed(config: RunConfig) -> RunConfig:
    """Add what follows from the generator and make paths absolute, so that the run's configuration is complete."""
    _make_paths_absolute(config)
    if config.init_from is not None and not config.task:
        raise UserError(f"{config.name} trains no network: leave init_from out")
    if config.generator is None:
        return config
    theirs = load_model(config.generator)
    network = {**_latent_sizes(config.model, theirs.generator), **config.network}
    data = inherit_preprocessing(config.data, theirs.config, config.resolution)
    return config.model_copy(update={"data": data, "network": network})


def _make_paths_absolute(config: RunConfig) -> None:
    """Commands such as `score` use these paths later, from any folder."""
    for section, key in ((config.data, "path"), (config, "init_from"), (config, "generator")):
        if (path := getattr(section, key)) is not None:
            setattr(section, key, _absolute(path))
    if isinstance(config.optim.get("cnn"), str):
        config.optim["cnn"] = _absolute(config.optim["cnn"])


def _latent_sizes(encoder: str, G: Any) -> dict[str, int]:
    """The options of an encoder that follow from its generator."""
    sizes = {"z_dim": G.z_dim}
    if style_based(G):
        sizes |= {"w_dim": G.w_dim, "num_ws": G.synthesis.num_ws, "num_noise": len(G.synthesis.noise_shapes)}
    takes = inspect.signature(registry.find("network", encoder)).parameters
    return {name: size for name, size in sizes.items() if name in takes}


def _existing(source: str, overrides: tuple[str, ...], out: Path, resume: bool) -> Run | None:
    if Path(source).is_dir():
        if not resume:
            raise UserError(f"{source} is a run folder: add --resume to continue it, or name a preset for a new run")
        return Run(Path(source))
    if not resume:
        return None
    name = load_config(source, overrides).name
    run = Run.latest(out, name)
    if run is None:
        console.say(f"nothing to resume: no run of {name} under {out}; starting a new one")
    return run


def _resumed(run: Run, overrides: tuple[str, ...]) -> RunConfig:
    raw = read_yaml(run.folder / "config.yaml")
    raw["training"].setdefault("precision", "fp32")  # the default of version 0.2 and before
    config = resolve(raw, overrides, default_name=run.folder.name, context=str(run.folder))
    started = run.config.model_copy(deep=True)
    for each in (config, started):
        _make_paths_absolute(each)
    before, after = _flat(started.model_dump()), _flat(config.model_dump())
    # Every device has fp32, and the next one may lack what the run was started with.
    to_fp32 = {"training.precision"} if after["training.precision"] == "fp32" else set()
    for key in before:
        if after[key] != before[key] and key not in RESUMABLE | to_fp32:
            raise UserError(
                f"{run.folder} was started with {key}={before[key]!r} and cannot go on with {after[key]!r}: start a new run"
            )
    if config.training.eval_kimg is None and run.read_validations():
        raise UserError(
            f"{run.folder} was validated, and its best model would not change without further validation: "
            "keep training.eval_kimg, or start a new run"
        )
    return config


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and key in {"data", "training"}:
            flat |= _flat(value, f"{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"').strip()
