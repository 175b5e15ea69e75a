"""Which patches `gan-uad score` scores, which set the threshold, and which settings of a trained run can be overridden."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gan_uad import console
from gan_uad.config import DataConfig, RunConfig, resolve
from gan_uad.data.patches import PatchSet, contaminated, load_patches, some
from gan_uad.errors import UserError
from gan_uad.model import Model, inverter_of

# Settings of `data` that decide which image is in which split.
SPLIT_SETTINGS = ("split_fractions", "split_seed", "folds", "fold", "normal_classes")


@dataclass
class ScoreSets:
    """What is scored, what sets the threshold (None: not available), and which normals the baseline (`train`) and scorers learn from."""

    target: PatchSet
    validation: PatchSet | None
    train: PatchSet | None
    learnt_from: PatchSet | None  # train, contaminated as the training of the run was (`data.contamination`)
    warnings: list[str]  # why metrics of these scores would be too good


def overridden_config(model: Model, overrides: tuple[str, ...], inverter: str | None) -> RunConfig:
    """The run's configuration with the user's overrides. Another scorer or inverter than the run's starts from its own defaults."""
    for override in overrides:
        if not override.startswith(("data.", "scoring.")):
            raise UserError(f"-o {override}: only data.* and scoring.* can be overridden for a trained run")
        if override.startswith("data.contamination"):
            raise UserError(f"-o {override}: it applies to training, and this run is trained already")
    if inverter is not None:
        overrides = (*overrides, f"scoring.inverter={inverter}")
    name, raw = model.name, model.config.model_dump(mode="json")
    wanted = resolve(raw, overrides, default_name=name, context="-o").scoring
    if wanted.scorer != model.config.scoring.scorer:
        raw["scoring"] |= {"inverter": None, "options": {}}
    elif wanted.inverter not in {None, inverter_of(model)}:
        raw["scoring"]["options"] = {}
    return resolve(raw, overrides, default_name=name, context="-o")


def choose_sets(
    model: Model, trained_on: DataConfig, data: str | None, split: str | None, max_images: int | None, seed: int
) -> ScoreSets:
    """The images of `split` (or at most `max_images` of them), and the validation and train images to compare them with.

    These are the scored set's own where the run was trained on it, or where it brings its splits; else the training data's. Where the
    training data are not available, they are the other splits of the scored set, if one split of it was asked for.
    """
    own = model.config.data
    path = data or own.path
    if path is None:
        raise UserError("there is nothing to score: give a folder, zip, .npz or .h5 of patches after the run")
    same = own.path is not None and Path(path).resolve() == Path(own.path).resolve()
    for key in SPLIT_SETTINGS if same else ():
        if getattr(own, key) != getattr(trained_on, key):
            raise UserError(
                f"-o data.{key}: the run was trained on these patches; with other splits it would be tested on training images"
            )
    target = _load(own.of(path), model.resolution)
    chosen = split or ("test" if same or target.brings_splits else "all")
    picked = target if chosen == "all" else target.select(chosen)
    if len(picked) == 0:
        raise UserError(f"{path} has no image in the {chosen} split; --split takes train, val, test or all")
    picked = some(picked, max_images, seed).corrupted(model.config.scoring.corruption)
    held_out = len(target.select("val", 0)) > 0
    apart = target.brings_splits and chosen in {"train", "test"} and held_out
    reference = (
        target if same or apart else _reference(trained_on.model_copy(update={"path": own.path}), model.resolution)
    )
    warnings = _warnings(model, trained_on, target, chosen) if same else []
    if changes := model.config.scoring.corruption.words:
        warnings.append(f"the scored images were corrupted before they were scored: {changes}")
    if reference is None and held_out and split in {"train", "test"}:
        reference = target
    if reference is None:
        if chosen == "all" and held_out:
            advice = "with --split test the other splits set the threshold and mean colour"
            console.say(f"note: all {len(target):,} images are scored; {advice}")
        return ScoreSets(picked, None, None, None, warnings)
    validation = some(reference.select("val"), model.config.scoring.calibration_images, seed)
    train = reference.select("train", label=0)
    share = trained_on.contamination
    return ScoreSets(
        picked,
        validation if len(validation.select(label=0)) else None,
        train if len(train) else None,
        contaminated(reference, train, share, model.config.training.seed) if len(train) else None,
        warnings,
    )


def _warnings(model: Model, trained_on: DataConfig, target: PatchSet, chosen: str) -> list[str]:
    """Why metrics of the run's own patches would be too good."""
    found = []
    if chosen in {"train", "all"}:
        found.append("the model was trained on some of the scored images: its metrics are better than on new ones")
    if chosen in {"val", "all"}:
        found.append("the threshold was set on some of the scored images themselves")
    unchanged = target.is_set(model.train_data) or model.config.data != trained_on
    if not (target.brings_splits or unchanged):
        found.append(
            f"{target.source} has changed since the training: its splits may differ, and training images may be among those scored"
        )
    return found


def _reference(trained_on: DataConfig, resolution: int) -> PatchSet | None:
    """The set that the run was trained on, prepared as for the training; None where it cannot be read."""
    if trained_on.path is None:
        return None
    try:
        return _load(trained_on, resolution)
    except UserError as error:
        console.say(f"note: the patches that the run was trained on cannot be read ({error.message})")
        return None


def _load(settings: DataConfig, resolution: int) -> PatchSet:
    patches = load_patches(settings, resolution, progress=console.counter("reading patches"))
    for note in patches.notes:
        console.say(f"note: {note}")
    return patches
