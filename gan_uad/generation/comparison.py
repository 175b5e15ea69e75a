"""What `gan-uad fid` compares, and the metrics of one comparison."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gan_uad import registry
from gan_uad.config import DataConfig, data_config, resolve, trained_model
from gan_uad.data.manifest import ANOMALOUS, LABELS, UNKNOWN
from gan_uad.data.patches import PatchSet
from gan_uad.detection.patch_sets import SPLIT_SETTINGS, in_run_splits, known_images
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.generation.feature_sets import Features
from gan_uad.metrics.generation import frechet_distance, gaussian_of, kid, memorisation, precision_recall
from gan_uad.model import Model, load_model
from gan_uad.networks.sampling import check_style
from gan_uad.training.loading import load_together

N_PAIRS = 8  # closest pairs that are kept
MIN_IMAGES = 4  # of a set, for the neighbours of precision and recall
MIN_UNBIASED = 2048  # images; with fewer the covariance of 2048 features is singular, and the distance biased upwards


@dataclass(frozen=True)
class Candidate:
    """A row of the table: a generator (`model`) or a set of images (`source`), and how its real images are prepared."""

    name: str
    source: str
    resolution: int
    real_data: DataConfig
    model: Model | None = None

    @property
    def kimg(self) -> float | None:
        """Thousands of images that the generator was trained with; None where unknown (a generator inside an encoder's run)."""
        return None if self.model is None or "encoder" in self.model.networks else self.model.nimg / 1000


def candidates(
    sources: tuple[str, ...],
    real: str,
    overrides: tuple[str, ...],
    resolution: int | None,
    untrained: bool,
    psi: float,
    device: torch.device,
) -> list[Candidate]:
    """Sources as rows with distinct names. Real images are prepared as those of the run, except for `overrides` (data.*)."""
    for override in overrides:
        if not override.startswith("data."):
            raise UserError(f"-o {override}: only data.* settings can be overridden here")
    found: list[Candidate] = []
    for source in sources:
        if _is_model(source):
            found += _of_run(source, real, overrides, resolution, untrained, device)
        elif resolution is None:
            raise UserError(f"{source} is a set of images, not a run: give their side in px with --resolution")
        else:
            found.append(Candidate(Path(source).stem, source, resolution, data_config(real, overrides)))
    for row in found:
        if row.model is not None:
            check_style(row.model.generator, psi, "const")
    return _named(found)


def _named(rows: list[Candidate]) -> list[Candidate]:
    """Each under the shortest name that no other row of its size has."""
    options = [(c.name, f"{c.name} ({Path(c.source).name})", f"{c.name} ({c.source})") for c in rows]
    counts = Counter((c.resolution, name) for c, names in zip(rows, options, strict=True) for name in set(names))
    return [
        replace(c, name=next((name for name in names if counts[c.resolution, name] == 1), names[-1]))
        for c, names in zip(rows, options, strict=True)
    ]


def _is_model(source: str) -> bool:
    path = trained_model(source)
    if not path.exists():
        raise UserError(f"no such run, model file or set of images: {source}")
    return path.suffix == ".safetensors" or any(
        (path / name).is_file() for name in ("model.safetensors", "config.yaml")
    )


def _of_run(
    source: str, real: str, overrides: tuple[str, ...], resolution: int | None, untrained: bool, device: torch.device
) -> list[Candidate]:
    model = load_model(source, device)
    side = model.resolution
    if "gan" not in model.networks:
        raise UserError(f"{source} holds no generator, only {model.held}: give the run of a GAN")
    if resolution not in (None, side):
        raise UserError(f"{source} makes images of {side} px, not of --resolution {resolution}")
    raw = model.config.model_dump(mode="json")
    raw["data"]["path"] = real
    data = resolve(raw, overrides, default_name=model.name, context="-o").data
    shipped = not Path(source).exists()  # a shipped model keeps the name that the user gave
    name = source if shipped else "_".join(word for word in model.name.split("_") if word != str(side))
    rows = [Candidate(name, source, side, data, model)]
    if untrained:
        torch.manual_seed(model.config.training.seed)
        spec = model.networks["gan"].spec
        fresh = registry.build("network", spec["name"], spec["options"]).eval().requires_grad_(False).to(device)
        rows.append(replace(rows[0], name=f"{name}, untrained", model=replace(model, networks={"gan": fresh}, nimg=0)))
    return rows


@dataclass(frozen=True)
class RealImages:
    """What candidates of one preparation are compared with, held-out images of the same kind, and notes on the choice."""

    patches: PatchSet
    held_out: PatchSet
    label: str  # "normal", "anomalous" or "all"
    kind: str  # such as "normal, train"
    notes: list[str]


def choose_real(candidate: Candidate, split: str | None, label: str | None) -> RealImages:
    """The real images of a split and a label, and the val split as held-out images where the train split is compared with.

    Default label: that of the generator's training images, else normal. Default split: train where the set brings splits or is what
    the generator was trained on, else all. Raises `UserError` where too few images are left.
    """
    settings, model = candidate.real_data, candidate.model
    patches = load_together(settings, candidate.resolution)
    trained_on = model is not None and _is_training_set(model, settings, patches)
    for key in SPLIT_SETTINGS if model and trained_on else ():
        if model and getattr(model.config.data, key) != getattr(settings, key):
            raise UserError(
                f"-o data.{key}: {candidate.source} was trained on these patches; with other splits, training images would be held out"
            )
    seen = 0
    if model and not trained_on:  # a copy, or some of these images among others
        patches, counts = in_run_splits(patches, model, known_images(model), others_are_test=True)
        seen = counts.get("train", 0)
    split = split or ("train" if trained_on or seen or patches.brings_splits else "all")
    wanted = label or settings.label
    crop = f"center crop of {settings.crop_size or candidate.resolution} px, " if settings.crop == "center" else ""
    notes = [f"image files: {crop}resized to {candidate.resolution} px ({settings.resize}), 8 bits", *patches.notes]
    if model and trained_on and not patches.brings_splits and not patches.is_set(model.train_data):
        notes.append("the real images have changed since the training: the splits may have changed too")
    if seen:
        notes.append(
            f"the generator was trained on {seen} of the {len(patches)} real images: they are in the train split"
        )
    of_label = patches
    if set(patches.manifest.label.tolist()) == {UNKNOWN}:
        if label in ("normal", "anomalous"):
            raise UserError(f"--label {label}: the images of {settings.path} have no labels; use --label all")
        wanted = "all"
        notes.append("the real images have no labels: all are used, normal or not")
    elif wanted != "all":
        of_label = patches.select(None, LABELS[wanted])
        notes.append(f"{len(patches) - len(of_label)} real images without the label {wanted} are not used")
    elif ANOMALOUS in patches.manifest.label:
        notes.append("the real images include anomalous ones")
    chosen = of_label if split == "all" else of_label.select(split)
    if len(chosen) < MIN_IMAGES:
        raise UserError(
            f"{settings.path}: {len(chosen)} {wanted} images in the {split} split, at least {MIN_IMAGES} are needed; "
            "see `gan-uad data check`, --split and --label"
        )
    comparable = split == "train" and (trained_on or seen or model is None)
    held_out = of_label.select("val") if comparable else of_label.take([])
    return RealImages(chosen, held_out, wanted, f"{wanted}, {split}", notes)


def choose_compared(patches: PatchSet, label: str, context: str) -> tuple[PatchSet, list[str]]:
    """Those of a set of images that are compared with real images of `label`: of the same label where the set has labels, else all.

    And notes on the choice. Raises `UserError`, with `context`, where too few images are left.
    """
    labels, notes, chosen = set(patches.manifest.label.tolist()), [], patches
    if label != "all" and labels == {UNKNOWN}:
        notes.append(f"the images have no labels: all are compared with {label} real images")
    elif label != "all":
        chosen = patches.select(None, LABELS[label])
        if left := len(patches) - len(chosen):
            notes.append(f"{left} of {len(patches)} images without the label {label} are not used")
    elif ANOMALOUS in labels:
        notes.append("the images include anomalous ones")
    if len(chosen) < MIN_IMAGES:
        of_label = "" if label == "all" else f" {label}"
        hint = "" if chosen is patches else f" of {len(patches)}; --label chooses the label of both sides"
        raise UserError(f"{context}: {len(chosen)}{of_label} images{hint}, at least {MIN_IMAGES} are needed")
    if patches.brings_splits and len(set(patches.manifest.split)) > 1:
        notes.append("images of all splits are used")
    return chosen, notes


def _is_training_set(model: Model, settings: DataConfig, patches: PatchSet) -> bool:
    """Whether the generator was trained on these images, here or at another path."""
    if model.train_data and patches.is_set(model.train_data):
        return True
    path = model.config.data.path
    return path is not None and Path(path).resolve() == Path(str(settings.path)).resolve()


def compare(
    real: Features, generated: Features, held_out: Features | None, net: FeatureNet, seed: int
) -> dict[str, Any]:
    """All metrics of `generated` against `real` in one network's features, and warnings to be shown beside them."""
    n, n_real = len(generated), len(real)
    warnings = []
    if few := [f"{count} {what} images" for what, count in (("compared", n), ("real", n_real)) if count < MIN_UNBIASED]:
        warnings.append(f"{' and '.join(few)}: below {MIN_UNBIASED} the distance is biased upwards, use the KID")
    distance = kid(real, generated, seed=seed)
    if distance.size < distance.asked:
        warnings.append(
            f"KID on {distance.subsets} subsets of {distance.size} images instead of {distance.asked}: the smaller set has {min(n, n_real)}"
        )
    precision, recall = precision_recall(real, generated)
    metrics: dict[str, Any] = {
        "figure": net.metric, "value": frechet_distance(gaussian_of(real), gaussian_of(generated)), "kid": distance.mean,
        "kid_std": distance.std, "kid_subset": distance.size, "precision": precision, "recall": recall, "n": n, "n_real": n_real,
    }  # fmt: skip
    if held_out is not None:
        copied = memorisation(real, generated, held_out)
        metrics |= {
            "memorisation": copied.nearer, "c_t": copied.c_t, "copies": copied.copies, "n_held_out": len(held_out),
            "pairs": copied.closest(N_PAIRS),
        }  # fmt: skip
        if copied.held_out_copies:
            warnings.append(
                f"{copied.held_out_copies} held-out images are copies of training images: the splits overlap"
            )
    return metrics | {"warnings": warnings}
