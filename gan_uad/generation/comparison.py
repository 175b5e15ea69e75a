"""What `gan-uad fid` compares, and the figures of one comparison."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gan_uad import registry
from gan_uad.config import DataConfig, data_config, resolve, trained_model
from gan_uad.data.patches import PatchSet
from gan_uad.detection.patch_sets import SPLIT_SETTINGS
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.generation.feature_sets import FeatureSet
from gan_uad.metrics.generation import frechet_distance, kid, memorisation, precision_recall
from gan_uad.model import Model, load_model
from gan_uad.networks.sampling import check_style
from gan_uad.training.loading import load_together

LABELS = {"normal": 0, "anomalous": 1, "all": None}
PAIRS = 8  # nearest pairs shown
LEAST = 4  # images of a set, for the neighbours of precision and recall
FEW = 2048  # images; with fewer the covariance of 2048 features is singular, and the distance biased upwards


@dataclass(frozen=True)
class Candidate:
    """A row of the table: a generator (`model`) or a set of images (`source`), and how its reals are to be prepared."""

    name: str
    source: str
    resolution: int
    real_data: DataConfig
    model: Model | None = None

    @property
    def kimg(self) -> float | None:
        """Thousands of images that the generator was trained with; None where that is not known, as of one inside an encoder's run."""
        return None if self.model is None or "encoder" in self.model.networks else self.model.nimg / 1000


def candidates(
    sources: tuple[str, ...],
    real: str,
    overrides: tuple[str, ...],
    resolution: int | None,
    untrained: bool,
    psi: float,
    on: torch.device,
) -> list[Candidate]:
    """Sources as rows, with names that differ. Reals are prepared as a run's images were, told anew by `overrides` (data.*)."""
    for override in overrides:
        if not override.startswith("data."):
            raise UserError(f"-o {override}: only data.* settings apply here")
    found: list[Candidate] = []
    for source in sources:
        if _is_model(source):
            found += _of_run(source, real, overrides, resolution, untrained, on)
        elif resolution is None:
            raise UserError(
                f"{source} is a set of images, no run: say with --resolution at what side in px to compare it"
            )
        else:
            found.append(Candidate(Path(source).stem, source, resolution, data_config(real, overrides)))
    for row in found:
        if row.model is not None:
            check_style(row.model.generator, psi, "const")
    return _named(found)


def _named(rows: list[Candidate]) -> list[Candidate]:
    """Each by the shortest name that no other row of its size has."""
    ways = [[c.name, f"{c.name} ({Path(c.source).name})", f"{c.name} ({c.source})"] for c in rows]
    taken = [Counter((c.resolution, way[k]) for c, way in zip(rows, ways, strict=True)) for k in range(3)]
    named = []
    for c, way in zip(rows, ways, strict=True):
        name = next((way[k] for k in range(3) if taken[k][c.resolution, way[k]] == 1), way[-1])
        named.append(replace(c, name=name))
    return named


def _is_model(source: str) -> bool:
    path = trained_model(source)
    if not path.exists():
        raise UserError(f"no such run, model file or set of images: {source}")
    return path.suffix == ".safetensors" or any(
        (path / name).is_file() for name in ("model.safetensors", "config.yaml")
    )


def _of_run(
    source: str, real: str, overrides: tuple[str, ...], resolution: int | None, untrained: bool, on: torch.device
) -> list[Candidate]:
    model = load_model(source, on)
    side = model.resolution
    if "gan" not in model.networks:
        raise UserError(f"{source} holds no generator, only {model.held}: give the run of a GAN")
    if resolution not in (None, side):
        raise UserError(f"{source} makes images of {side} px, --resolution says {resolution}")
    raw = model.config.model_dump(mode="json")
    raw["data"]["path"] = real
    data = resolve(raw, overrides, default_name=model.name, context="-o").data
    shipped = not Path(source).exists()  # asked for by its name, so called by it
    name = source if shipped else "_".join(part for part in model.name.split("_") if part != str(side))
    rows = [Candidate(name, source, side, data, model)]
    if untrained:
        torch.manual_seed(model.config.training.seed)
        spec = model.networks["gan"].spec
        fresh = registry.build("network", spec["name"], spec["options"]).eval().requires_grad_(False).to(on)
        rows.append(
            Candidate(f"{name}, untrained", source, side, data, replace(model, networks={"gan": fresh}, nimg=0))
        )
    return rows


@dataclass(frozen=True)
class Reals:
    """What candidates of one preparation are compared with, others of the same kind (not trained on), and what was decided."""

    patches: PatchSet
    held_out: PatchSet
    split: str
    label: str
    notes: list[str]

    @property
    def words(self) -> str:
        """Such as "normal, train"."""
        return f"{self.label}, {self.split}"


def choose_reals(candidate: Candidate, split: str | None, label: str | None) -> Reals:
    """The real images of a split and label. Left open: the label that the generator was trained on (else normal), and the train split
    where the set brings splits or is what the generator was trained on (else all). Held-out ones are those of the val split, where
    the train split is compared with and is what the generator was trained on. Raises `UserError` where too little is left.
    """
    settings, model = candidate.real_data, candidate.model
    patches = load_together(settings, candidate.resolution)
    own = None if model is None else model.config.data
    same = own is not None and _same(own, settings, patches, model)
    for key in SPLIT_SETTINGS if same else ():
        if getattr(own, key) != getattr(settings, key):
            raise UserError(
                f"-o data.{key}: {candidate.source} was trained on these patches; dealt anew, what was trained on would be held out"
            )
    part = split or ("train" if same or patches.brings_splits else "all")
    wanted, notes = label or settings.label, [_prepared(settings, candidate.resolution), *patches.notes]
    if same and model and not patches.brings_splits and patches.fingerprint != model.train_data:
        notes.append("the real images have changed since the training: its splits may have moved")
    of_label = patches
    if set(patches.manifest.label.tolist()) == {-1}:
        if label in ("normal", "anomalous"):
            raise UserError(
                f"--label {label}: the images of {settings.path} have no labels; --label all takes them as they are"
            )
        wanted = "all"
        notes.append("the real images have no labels: all are used, whatever they show")
    elif wanted == "all":
        notes.append(
            "the real images are of any label: anomalous ones are among them" if 1 in patches.manifest.label else ""
        )
    else:
        of_label = patches.select(None, LABELS[wanted])
        notes.append(f"{len(patches) - len(of_label)} images that are not labelled {wanted} are left out of the reals")
    chosen = of_label if part == "all" else of_label.select(part)
    if len(chosen) < LEAST:
        raise UserError(
            f"{settings.path}: {len(chosen)} {wanted} images in the {part} split, at least {LEAST} are needed; "
            "see `gan-uad data check`, --split and --label"
        )
    held_out = of_label.select("val") if part == "train" and (same or model is None) else of_label.take([])
    return Reals(chosen, held_out, part, wanted, [note for note in notes if note])


def _same(own: DataConfig, settings: DataConfig, patches: PatchSet, model: Model | None) -> bool:
    """Whether the reals are what the generator was trained on, there or moved elsewhere."""
    if model is not None and model.train_data and model.train_data == patches.fingerprint:
        return True
    return own.path is not None and Path(own.path).resolve() == Path(str(settings.path)).resolve()


def _prepared(settings: DataConfig, resolution: int) -> str:
    cut = f"the middle {settings.crop_size or resolution} px cut out, " if settings.crop == "center" else ""
    return f"images from files are {cut}brought to {resolution} px ({settings.resize}), 8 bits"


def compare(
    real: FeatureSet, fake: FeatureSet, held_out: FeatureSet | None, net: FeatureNet, seed: int
) -> dict[str, Any]:
    """All figures of `fake` against `real` in one network's features, and what must be said beside them."""
    n, n_real = len(fake), len(real)
    few = [f"{count} {what} images" for what, count in (("compared", n), ("real", n_real)) if count < FEW]
    warnings = (
        [f"{' and '.join(few)}: below {FEW} the distance is biased upwards, read the KID beside it"] if few else []
    )
    distance = kid(real.values, fake.values, seed=seed)
    if distance.size < distance.asked:
        warnings.append(
            f"KID on {distance.subsets} subsets of {distance.size} images instead of {distance.asked}: the smaller set has {min(n, n_real)}"
        )
    precision, recall = precision_recall(real.values, fake.values)
    metrics: dict[str, Any] = {
        "figure": net.metric, "value": frechet_distance(real.gaussian, fake.gaussian), "kid": distance.mean, "kid_std": distance.std,
        "kid_subset": distance.size, "precision": precision, "recall": recall, "n": n, "n_real": n_real,
    }  # fmt: skip
    if held_out is not None:
        copied = memorisation(real.values, fake.values, held_out.values)
        metrics |= {
            "memorisation": copied.nearer, "c_t": copied.c_t, "copies": copied.copies, "n_held_out": len(held_out),
            "pairs": copied.closest(PAIRS),
        }  # fmt: skip
        if copied.held_out_copies:
            warnings.append(
                f"{copied.held_out_copies} held-out images are copies of training images: the splits overlap"
            )
    return metrics | {"warnings": warnings}


def read_cell(path: Path, key: str) -> dict[str, Any] | None:
    """A finished cell, if it was made of the very same."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


def halves(real: FeatureSet, seed: int) -> tuple[FeatureSet, FeatureSet]:
    """The reals dealt at random into two sets of one size, what a perfect generator of so many images would reach."""
    order = np.random.default_rng(seed).permutation(len(real))
    half = len(real) // 2
    a, b = (np.sort(part) for part in (order[:half], order[half : 2 * half]))
    return real.take(a), real.take(b)
