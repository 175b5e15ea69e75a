"""`gan-uad fid`: how far generated images are from real ones, for many runs and sizes: Table 1 of Štepec & Skočaj (2020)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gan_uad import __version__, console
from gan_uad.data import cache
from gan_uad.data.arrays import digest
from gan_uad.device import prepare
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.load import load_features
from gan_uad.files import make_folder, read_json, write_json, write_text
from gan_uad.generation.comparison import (
    MIN_IMAGES,
    Candidate,
    RealImages,
    candidates,
    choose_compared,
    choose_real,
    compare,
)
from gan_uad.generation.feature_sets import (
    Features,
    ImageSet,
    collect,
    features_file,
    features_key,
    of_generator,
    of_patches,
)
from gan_uad.model import about_run
from gan_uad.networks.sampling import style_based
from gan_uad.plotting.pictures import image_grid
from gan_uad.run import environment
from gan_uad.tables import format_number, table
from gan_uad.training import distributed
from gan_uad.training.loading import load_together

JSON_ONLY = ("pairs", "data", "run", "environment")  # keys of a cell that are in fid.json, but not in fid.csv
VERSION = 1  # of the metrics: raise it when the same images give other values
COLUMNS = {
    "method": "method", "px": "px", "kimg": "kimg", "features": "features", "value": "Fréchet distance", "kid": "KID × 1000",
    "precision": "precision", "recall": "recall", "memorisation": "nearer than held-out", "n": "n", "n_real": "n real",
}  # fmt: skip
EXPLANATION = (
    "n images (of the EMA generator, seeds from 0 on, as 8-bit pixels) against n real ones, unflipped. "
    "KID: mean ± standard deviation over subsets. Precision and recall: k = 3, in the same features. "
    "Nearer than held-out: probability that an image is nearer to its nearest training image than a held-out real one is "
    "(0.5: no memorisation, 1: copies)."
)
FeatureSets = tuple[Features, Features, Features | None]  # real, compared, held out


@dataclass(frozen=True)
class Choices:
    """What the user chose for all cells."""

    baselines: bool
    seed: int
    out: Path
    device: torch.device


def fid(
    sources: tuple[str, ...],
    real: str,
    out: Path = Path("fid"),
    num: int = 50_000,
    features: tuple[str, ...] = ("efficientnet_lite0",),
    *,
    weights: Path | None = None,
    fast: bool = False,
    split: str | None = None,
    label: str | None = None,
    psi: float = 1.0,
    noise: str = "random",
    resolution: int | None = None,
    overrides: tuple[str, ...] = (),
    baselines: bool = True,
    untrained: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Compare every source in every feature network; returns the folder with `fid.md`, `fid.csv`, `fid.tex` and `fid.json`.

    A cell is one source in one network. Finished cells are read back, an interrupted one is resumed. Under torchrun every process
    calls it: they share the images, and only rank 0 writes.
    """
    if num < MIN_IMAGES:
        raise UserError(f"--num {num}: at least {MIN_IMAGES} images are needed")
    if not features:
        raise UserError("--features names no network; see `gan-uad models`")
    with distributed.processes() as here:
        chosen = Choices(baselines, seed, out, distributed.together(lambda: prepare(device)))
        rows = distributed.together(
            lambda: candidates(sources, real, overrides, resolution, untrained, psi, chosen.device)
        )
        nets = distributed.together(
            lambda: [load_features(name, weights=weights, device=chosen.device, fast=fast) for name in features]
        )
        distributed.first(lambda: make_folder(out / "cells"))
        cells: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            real_images = choose_real(row, split, label)
            images, about = _compared_images(row, num, psi, noise, real_images.label)
            for net in nets:
                for cell in _cells(row, real_images, images, about, net, chosen):
                    cells.setdefault((cell["key"], cell["method"]), cell)
        if here.rank == 0:
            print(_write(list(cells.values()), out), end="")
    return out


def _cells(
    row: Candidate, real_images: RealImages, images: ImageSet, about: dict[str, Any], net: FeatureNet, chosen: Choices
) -> list[dict[str, Any]]:
    """The cell of `images` in one network, with what `about` says of them, after those of the real images among themselves."""
    kept, device = cache.default_dir() / "features", chosen.device
    real_set = of_patches(real_images.patches, "real images")
    real, held_set, held_out = collect(real_set, net, device, kept), None, None
    if len(real_images.held_out) >= MIN_IMAGES:
        held_set = of_patches(real_images.held_out, "held-out real images")
        held_out = collect(held_set, net, device, kept)
    common = {
        "px": row.resolution, "features": net.spec["name"], "weights": net.weights, "preprocessing": net.preprocessing,
        "real": real_images.patches.source, "reals": real_images.kind, "data": row.real_data.model_dump(mode="json"),
        "seed": chosen.seed,
    }  # fmt: skip

    def cell(
        kind: str, method: str, images: ImageSet | None, held: ImageSet | None, features: Callable[[], FeatureSets], about: dict[str, Any]
    ) -> dict[str, Any]:  # fmt: skip
        """Read a finished cell, or compute it. Method and `about` (names and notes) are those of this call in both cases."""
        sets = [each and (features_key(each, net, device), each.count) for each in (real_set, images, held)]
        key = digest(VERSION, kind, sets, chosen.seed)
        path = chosen.out / "cells" / f"{key[:24]}.json"
        found = distributed.first(lambda: read_json(path))
        if not isinstance(found, dict) or found.get("key") != key:
            compared = features()
            found = distributed.first(
                lambda: {"key": key, **_compared(compared, images, real_set, net, chosen.seed, path)}, patient=True
            )
        found |= {"method": method, **common, **about}
        distributed.first(lambda: write_json(path, found))
        return found

    cells, notes = [], {"notes": real_images.notes}
    if chosen.baselines and real_set.count >= 2 * MIN_IMAGES:
        cells.append(cell("halves", "real, half against half", None, None, lambda: _halves(real, chosen.seed), notes))
    if chosen.baselines and held_out is not None:
        cells.append(cell("held out", "real, held out", held_set, None, lambda: (real, held_out, None), notes))
    about = {"source": row.source, "kimg": row.kimg, **about, "notes": [*real_images.notes, *about["notes"]]}

    def generated() -> FeatureSets:
        return real, collect(images, net, device, chosen.out), held_out

    cells.append(cell("images", row.name, images, held_set, generated, about))
    distributed.first(lambda: features_file(images, net, device, chosen.out).unlink(missing_ok=True))
    return cells


def _compared_images(row: Candidate, num: int, psi: float, noise: str, label: str) -> tuple[ImageSet, dict[str, Any]]:
    """What is compared with the real images, and what its cells say of it."""
    if row.model is None:
        patches = load_together(row.real_data.of(row.source), row.resolution)
        chosen, notes = choose_compared(patches, label, row.source)
        return of_patches(chosen, row.name), {"notes": [f"{row.name}: {note}" for note in (*patches.notes, *notes)]}
    run = about_run(row.source, row.model)
    noise = noise if style_based(row.model.generator) else "const"
    images = of_generator(row.model, row.name, f"{run['sha256']} {row.kimg}", num, psi, noise)
    notes = []
    if run["short"] and row.kimg:
        notes = [f"{row.name}: TRUNCATED training, {run['trained_kimg']:g} of {run['planned_kimg']:g} kimg"]
    return images, {"notes": notes, "truncation": psi, "noise": noise, "run": run}


def _halves(real: Features, seed: int) -> FeatureSets:
    """The real images split at random into two sets of one size: the best that a generator of so many images can reach."""
    order = np.random.default_rng(seed).permutation(len(real))
    half = len(real) // 2
    return real[np.sort(order[:half])], real[np.sort(order[half : 2 * half])], None


def _compared(
    features: FeatureSets, images: ImageSet | None, real_set: ImageSet, net: FeatureNet, seed: int, path: Path
) -> dict[str, Any]:
    """The metrics of one cell. The closest pairs of images and training images become a picture beside the cell's file `path`."""
    started = time.monotonic()
    found: dict[str, Any] = {**compare(*features, net, seed), "version": __version__}
    if images is not None and (pairs := found.get("pairs")):
        pixels = [images.get([pair.fake for pair in pairs]), real_set.get([pair.train for pair in pairs])]
        image_grid(np.concatenate(pixels), path.with_suffix(".png"), columns=len(pairs), scale=2)
        found["pairs_picture"] = str(path.with_suffix(".png"))
    return {**found, "environment": environment(seed), "seconds": round(time.monotonic() - started, 1)}


def _write(cells: list[dict[str, Any]], out: Path) -> str:
    """All files of the folder; returns the Markdown."""
    rows = []
    for cell in cells:
        kid = f"{1000 * cell['kid']:.2f} ± {1000 * cell['kid_std']:.2f}"
        rows.append({**cell, "kid": kid, "features": cell["figure"], "value": round(cell["value"], 3)})
    columns = {key: heading for key, heading in COLUMNS.items() if any(key in row for row in rows)}
    pivots = {
        form: [_pivot(cells, metric, form) for metric in dict.fromkeys(cell["figure"] for cell in cells)]
        for form in ("markdown", "latex")
    }
    text = "\n".join([*pivots["markdown"], table(rows, columns), "", EXPLANATION, "", *_remarks(cells), ""])
    flat = [
        {key: "; ".join(value) if isinstance(value, list) else value for key, value in cell.items() if key not in JSON_ONLY}
        for cell in cells
    ]  # fmt: skip
    write_text(out / "fid.md", text)
    write_text(out / "fid.csv", table(flat, list(dict.fromkeys(key for cell in flat for key in cell)), "csv"))
    write_text(out / "fid.tex", "\n".join(pivots["latex"]))
    write_json(out / "fid.json", cells)
    console.say(f"{len(cells)} cells -> {out}/fid.md, .csv, .tex, .json")
    return text


def _pivot(cells: list[dict[str, Any]], metric: str, form: str) -> str:
    """Table 1: methods by sizes, one metric. A method that was compared with several kinds of real images has a row for each."""
    chosen = [
        (cell, (cell["method"], f"{cell['real']}, {cell['reals']}")) for cell in cells if cell["figure"] == metric
    ]
    kinds = Counter(method for method, _ in {key for _, key in chosen})
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for cell, (method, real) in chosen:
        row = rows.setdefault((method, real), {"method": f"{method} [{real}]" if kinds[method] > 1 else method})
        row[str(cell["px"])] = format_number(cell["value"], 2)
    sizes = sorted({cell["px"] for cell in cells})
    return table(list(rows.values()), {"method": metric} | {str(size): f"{size} px" for size in sizes}, form)


def _remarks(cells: list[dict[str, Any]]) -> list[str]:
    """What is shown beside the metrics, each remark once."""
    remarks = [
        *(f"{cell['figure']}: {cell['features']}, {cell['weights']}; {cell['preprocessing']}." for cell in cells),
        *(f"Real images: {cell['reals']} of {cell['real']}." for cell in cells),
        *(f"{cell['px']} px: {note}." for cell in cells for note in cell["notes"]),
        *(f"{cell['method']}, {cell['px']} px: {warning}." for cell in cells for warning in cell["warnings"]),
    ]
    return [f"- {remark}" for remark in dict.fromkeys(remarks)]
