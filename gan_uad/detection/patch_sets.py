"""Which patches `gan-uad score` scores, which set the threshold, and which settings of a trained run can be overridden."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gan_uad import console
from gan_uad.config import DataConfig, RunConfig, resolve
from gan_uad.data.known import KnownImages
from gan_uad.data.patches import PatchSet, contaminated, load_patches, some
from gan_uad.data.scale import differ
from gan_uad.errors import UserError
from gan_uad.model import Model, inverter_of
from gan_uad.run import model_file

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
    known: dict[
        str, int
    ]  # images of the given set that the run has seen, by its splits, and "new" ones; {} where that is unknown


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
    given, known, original = _load(own.of(path), model.resolution), known_images(model), None
    strange = not (same or given.is_set(model.train_data))
    if strange and known is None and _exists(own.path):  # a run of an earlier version, or a model file alone
        original = _reference(model, trained_on, None)
        if original is not None and original.is_set(model.train_data):
            known = KnownImages.of(original)
    if strange and known is None:
        console.say(f"note: {model.path} has no list of its training images: those among {path} are not recognised")
    target, counts = in_run_splits(given, model, known, same or split is None)
    seen = counts.get("train", 0) + counts.get("val", 0)
    chosen = split or ("test" if same or target.brings_splits or seen else "all")
    picked = target if chosen == "all" else target.select(chosen)
    if seen and not same:
        _say_seen(path, counts, chosen)
    if len(picked) == 0 and seen and chosen == "test":
        raise UserError(
            f"{path}: the run was trained or tuned on all {len(target)} images; --split all scores them, with a warning"
        )
    if len(picked) == 0:
        raise UserError(f"{path} has no image in the {chosen} split; --split takes train, val, test or all")
    picked = some(picked, max_images, seed).corrupted(model.config.scoring.corruption)
    warnings = _warnings(picked, chosen, same or seen > 0, known)
    if same and not (given.brings_splits or given.is_set(model.train_data) or own != trained_on):
        warnings.append(
            f"{given.source} has changed since the training: its splits may differ, and training images may be among those scored"
        )
    warnings += _other_scale(given, model, trained_on)
    if changes := model.config.scoring.corruption.words:
        warnings.append(f"the scored images were corrupted before they were scored: {changes}")
    held_out = len(target.select("val", 0)) > 0
    apart = target.brings_splits and chosen in {"train", "test"} and held_out
    reference = target if same or apart else original or _reference(model, trained_on, known)
    if reference is None and held_out and (seen or split in {"train", "test"}):
        reference = target
    if reference is not None and seen and not len(reference.select("val", 0)):  # they have moved
        reference = target
    if reference is None:
        if chosen == "all" and held_out:
            advice = "with --split test the other splits set the threshold and mean colour"
            console.say(f"note: all {len(target):,} images are scored; {advice}")
        return ScoreSets(picked, None, None, None, warnings, counts)
    return ScoreSets(picked, *_calibration(reference, model, trained_on.contamination, seed), warnings, counts)


def _calibration(
    reference: PatchSet, model: Model, contamination: float, seed: int
) -> tuple[PatchSet | None, PatchSet | None, PatchSet | None]:
    """`validation`, `train` and `learnt_from` of `ScoreSets`."""
    validation = some(reference.select("val"), model.config.scoring.calibration_images, seed)
    train = reference.select("train", label=0)
    return (
        validation if len(validation.select(label=0)) else None,
        train if len(train) else None,
        contaminated(reference, train, contamination, model.config.training.seed) if len(train) else None,
    )


def _other_scale(given: PatchSet, model: Model, trained_on: DataConfig) -> list[str]:
    """A warning of patches that show the model another µm/px than it was trained on, where both are known."""
    try:
        theirs = given.scale.seen(model.config.data, model.resolution)
    except UserError as error:  # of several scales
        return [error.message]
    learnt = model.scale.seen(trained_on, model.resolution)
    if not differ(theirs, learnt):
        return []
    return [
        f"{given.source} shows the model {theirs:.4g} µm/px, and it was trained on {learnt:.4g}: scores may be of the scale"
    ]


def known_images(model: Model) -> KnownImages | None:
    """The images that the run of a model was trained, tuned and tested on; None where it has no list of them."""
    return KnownImages.beside(model_file(model.path))


def in_run_splits(
    patches: PatchSet, model: Model, known: KnownImages | None, others_are_test: bool
) -> tuple[PatchSet, dict[str, int]]:
    """The patches, those that the run knows in the splits of the run; and how many are of each, and "new".

    `others_are_test`: new images of a set that brings no splits are test images; else they keep the split that they have.
    """
    if patches.is_set(model.train_data):
        return patches, dict(Counter(patches.manifest.split))
    if known is None:
        return patches, {}
    of_run = known.split_of(patches)
    counts = Counter(split or "new" for split in of_run)
    if counts["train"] + counts["val"] == 0:
        return patches, dict(counts)
    others = ["test"] * len(patches) if others_are_test and not patches.brings_splits else patches.manifest.split
    return patches.with_splits([a or b for a, b in zip(of_run, others, strict=True)]), dict(counts)


def _say_seen(path: str, counts: dict[str, int], chosen: str) -> None:
    """How many images of a set that is not the training set the run has seen, and what becomes of them."""
    seen = {split: counts[split] for split in ("train", "val") if counts.get(split)}
    where = " and ".join(f"{count} in the {split} split" for split, count in seen.items())
    what = {"test": "these are not scored", "all": "these are scored too"}.get(chosen, f"those of {chosen} are scored")
    console.say(f"{path}: the run has seen {sum(seen.values())} of {sum(counts.values())} images ({where}): {what}")


def _warnings(picked: PatchSet, chosen: str, seen: bool, known: KnownImages | None) -> list[str]:
    """Why metrics of images that the run has seen would be too good."""
    found = []
    if seen and chosen in {"train", "all"}:
        found.append("the model was trained on some of the scored images: its metrics are better than on new ones")
    if seen and chosen in {"val", "all"}:
        found.append("the threshold was set on some of the scored images themselves")
    if chosen == "test" and known is not None and (count := known.split_of(picked).count("train")):
        found.append(f"{count} of the scored images have the pixels of training images: their scores are too good")
    return found


def _exists(path: str | None) -> bool:
    return path is not None and Path(path).exists()


def _reference(model: Model, trained_on: DataConfig, known: KnownImages | None) -> PatchSet | None:
    """The set that the run was trained on, prepared as for the training; None where it cannot be read.

    Where its splits are made here, and it has changed, only images that the run knows are in a split.
    """
    settings = trained_on.model_copy(update={"path": model.config.data.path})
    if settings.path is None:
        return None
    try:
        patches = _load(settings, model.resolution)
    except UserError as error:
        console.say(f"note: the patches that the run was trained on cannot be read ({error.message})")
        return None
    if known is None or patches.brings_splits or patches.is_set(model.train_data):
        return patches
    of_run = known.split_of(patches)
    if not any(of_run):  # another set, given in its place
        return patches
    if new := of_run.count(""):
        console.say(f"note: {settings.path} has changed since the training: its {new} new images are not used")
    return patches.with_splits(of_run)


def _load(settings: DataConfig, resolution: int) -> PatchSet:
    patches = load_patches(settings, resolution, progress=console.counter("reading patches"))
    for note in patches.notes:
        console.say(f"note: {note}")
    return patches
