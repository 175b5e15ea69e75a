"""`gan-uad cross-validate CONFIG --folds K`: K trainings, each tested on groups that it has not seen, and on an external set.

folds/NAME/  folds.json  metrics.json .md .csv .tex  roc.png  confusion.png  reliability.png (of a classifier)
             fold-1/00000-NAME (its run)  fold-1/scores  fold-1/external-SET   fold-2/...
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad import console, registry
from gan_uad.config import RunConfig, load_config
from gan_uad.data.arrays import digest
from gan_uad.data.manifest import Manifest
from gan_uad.data.patches import load_patches
from gan_uad.data.sources import open_source
from gan_uad.data.splits import split_manifest
from gan_uad.detection.folds import report
from gan_uad.detection.patch_sets import SPLIT_SETTINGS
from gan_uad.detection.score import score
from gan_uad.detection.score_file import SCORES, description_of
from gan_uad.errors import UserError
from gan_uad.files import alone, claim, known_key, make_folder
from gan_uad.model import load_model
from gan_uad.run import Run
from gan_uad.training.train import train

MIN_NORMALS = 2  # val images of a fold whose scores are not log-odds
MAY_DIFFER = ("threads", "device")  # settings of `training` that folds may differ in


def cross_validate(
    source: str,
    folds: int,
    data: str | None = None,
    external: str | None = None,
    out: Path | None = None,
    overrides: tuple[str, ...] = (),
    threshold: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Path:
    """Train and score the configuration `source` once per fold, and write the metrics; returns the output folder.

    The groups of the complete set are split into folds (`data.split_seed`), whatever splits it brings. A fold that an earlier call
    finished is kept, an interrupted one is resumed; several processes may run the same command. In an override, `{fold}` stands for the
    number of the fold. `external`: a set that the model of every fold scores too.
    """
    _check(overrides)
    config = _configured(source, overrides, data, folds, 1)
    folder = out or Path("folds") / config.name
    about = _about(config, folds, folder)
    if external is not None:
        _check_external(config, external)
    claim(folder, "folds.json", about, "a cross-validation")
    for fold in range(1, folds + 1):
        place = make_folder(folder / f"fold-{fold}")
        with alone(place / ".lock"):  # waits for another process at this fold
            console.say(f"fold {fold} of {folds}: {place}")
            config = _configured(source, overrides, data, folds, fold)
            _one(source, _overrides_of(overrides, folds, fold), config, place, external, threshold)
    report(folder, config.name, folds, None if external is None else _external(external), threshold, resamples, seed)
    return folder


def _overrides_of(overrides: tuple[str, ...], folds: int, fold: int) -> tuple[str, ...]:
    """The overrides of one fold."""
    return (*(text.replace("{fold}", str(fold)) for text in overrides), f"data.folds={folds}", f"data.fold={fold}")


def _configured(source: str, overrides: tuple[str, ...], data: str | None, folds: int, fold: int) -> RunConfig:
    """The configuration of one fold. Raises `UserError` where it has no data."""
    config = load_config(source, _overrides_of(overrides, folds, fold))
    path = data or config.data.path
    if path is None:
        raise UserError("there are no patches to train on: give a folder, zip, .npz or .h5 of patches with --data")
    config.data.path = str(Path(path).expanduser().resolve())
    return config


def _check(overrides: tuple[str, ...]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("cross-validate runs in one process, not under torchrun")
    for override in overrides:
        if override.partition("=")[0] in ("data.folds", "data.fold"):
            raise UserError(f"-o {override}: leave it out, --folds sets it")


def _about(config: RunConfig, folds: int, folder: Path) -> dict[str, Any]:
    """What identifies these folds. Raises `UserError` where some fold could not be tested."""
    path = str(config.data.path)
    opened = open_source(path, config.data)
    for fold in range(1, folds + 1):
        manifest, _ = split_manifest(opened, config.data.model_copy(update={"fold": fold}))
        _check_labels(manifest, "test", f"{path}: fold {fold} of {folds}", "use fewer --folds")
        log_odds = registry.find("scorer", config.scoring.scorer).log_odds  # comparable between models as they are
        if not log_odds and len(manifest.where("val", 0)) < MIN_NORMALS:
            raise UserError(
                f"{path}: fold {fold} of {folds} has fewer than {MIN_NORMALS} normal val images, by which scores of different models are "
                "compared: use other --folds, another data.split_seed, or a larger share of val in data.split_fractions"
            )
    settings = config.model_dump(mode="json")
    settings["training"] = {key: value for key, value in settings["training"].items() if key not in MAY_DIFFER}
    rows = opened.manifest
    keys = [
        digest(files, rows.image, rows.label.tolist(), rows.group)
        for files in (opened.fingerprint(), opened.old_fingerprint())
    ]
    return {"folds": folds, "config": settings, "data": known_key(folder, "folds.json", "data", *keys)}


def _check_labels(manifest: Manifest, split: str | None, context: str, advice: str) -> None:
    for label, name in ((0, "normal"), (1, "anomalous")):
        if not len(manifest.where(split, label)):
            raise UserError(f"{context} has no {name} image, and a test needs both labels: {advice}")


def _check_external(config: RunConfig, external: str) -> None:
    """Raise `UserError`, before any training, for an external set that cannot be used."""
    if Path(external).resolve() == Path(str(config.data.path)).resolve():
        raise UserError(f"--external {external} is the set of the folds: give another one")
    _check_labels(
        open_source(external, config.data.of(external)).manifest, None, external, "give another --external set"
    )
    progress = console.counter("reading patches")
    own, others = (
        load_patches(config.data.of(path), config.resolution, progress=progress).hashes
        for path in (str(config.data.path), external)
    )
    if same := int(np.isin(others, own).sum()):
        problem = f"{same} of its {len(others)} images have the pixels of images of {config.data.path}"
        raise UserError(f"--external {external}: {problem}, which the folds are trained on: leave them out")


def _one(
    source: str, overrides: tuple[str, ...], config: RunConfig, place: Path, external: str | None, threshold: str | None
) -> None:
    """Train and score one fold, where that is not done already."""
    wanted = {"scores": None} if external is None else {"scores": None, _external(external): external}
    missing = {name: data for name, data in wanted.items() if not _scored(place / name, data or config.data.path)}
    if not missing:
        console.say("done already")
        return
    _check_start(config)
    run = train(source, overrides, config.data.path, None, place, resume=Run.latest(place, config.name) is not None)
    assert run is not None
    device = config.training.device
    for name, data in missing.items():
        split = "test" if data is None else "all"
        score(str(run.folder), data, place / name, split, threshold=threshold, device=device)


def _check_start(config: RunConfig) -> None:
    """Raise `UserError` where the run to start from has seen images of the test fold."""
    for key, run in (
        ("generator", config.generator),
        ("init_from", config.init_from),
        ("optim.cnn", config.optim.get("cnn")),
    ):
        if run is None:
            continue
        theirs = load_model(str(run)).config.data
        same = theirs.path is not None and Path(theirs.path).resolve() == Path(str(config.data.path)).resolve()
        if same and any(getattr(theirs, name) != getattr(config.data, name) for name in SPLIT_SETTINGS):
            raise UserError(
                f"{key}={run} was trained on images of the test fold: give a run of the same fold, such as "
                f"-o {key}=folds/NAME/fold-{{fold}}/00000-NAME"
            )


def _external(data: str) -> str:
    """Name of the folder for the scores of an external set."""
    return f"external-{Path(data).stem}"


def _scored(folder: Path, data: str | None) -> bool:
    """Whether a folder holds the scores of a finished `gan-uad score` of that set."""
    described = description_of(folder / SCORES)
    return "thresholds" in described and Path(described["data"]).resolve() == Path(str(data)).resolve()
