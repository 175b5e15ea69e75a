"""`gan-uad fid`: how far generated images are from real ones, for many runs and sizes: Table 1 of Štepec & Skočaj (2020)."""

from __future__ import annotations

import time
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
from gan_uad.files import make_folder, write_json, write_text
from gan_uad.generation.comparison import LEAST, Candidate, Reals, candidates, choose_reals, compare, halves, read_cell
from gan_uad.generation.feature_sets import FeatureSet, ImageSet, collect, features_key, of_generator, of_patches
from gan_uad.model import about_run
from gan_uad.networks.sampling import style_based
from gan_uad.plotting.pictures import image_grid
from gan_uad.run import environment
from gan_uad.tables import format_number, table
from gan_uad.training import distributed
from gan_uad.training.loading import load_together

NESTED = ("pairs", "data", "run", "environment")  # of a cell, in fid.json alone
VERSION = 1  # of the figures: raise it when the same images come to give other ones
COLUMNS = {
    "method": "method", "px": "px", "kimg": "kimg", "features": "features", "value": "Fréchet distance", "kid": "KID × 1000",
    "precision": "precision", "recall": "recall", "memorisation": "nearer than held-out", "n": "n", "n_real": "n real",
}  # fmt: skip


@dataclass(frozen=True)
class Choices:
    """What the user chose for all cells."""

    num: int
    psi: float
    noise: str
    split: str | None
    label: str | None
    baselines: bool
    seed: int
    out: Path
    on: torch.device


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
    """Judge every source in every feature network; returns the folder with `fid.md`, `fid.csv`, `fid.tex` and `fid.json`.

    A cell is one source in one network. Finished cells are found again, an unfinished one goes on where it stopped. Under torchrun
    every process calls it: they share the images, and rank 0 alone writes.
    """
    if num < LEAST:
        raise UserError(f"--num {num}: at least {LEAST} images are needed")
    if not features:
        raise UserError("--features names no network; see `gan-uad models`")
    with distributed.processes() as here:
        on = distributed.together(lambda: prepare(device))
        chosen = Choices(num, psi, noise, split, label, baselines, seed, out, on)
        rows = distributed.together(lambda: candidates(sources, real, overrides, resolution, untrained, psi, on))
        nets = distributed.together(lambda: [load_features(n, weights=weights, device=on, fast=fast) for n in features])
        distributed.first(lambda: make_folder(out / "cells"))
        cells: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            reals = choose_reals(row, split, label)
            for net in nets:
                for cell in _judge(row, reals, net, chosen):
                    cells.setdefault((cell["key"], cell["method"]), cell)
        if here.rank == 0:
            print(_write(list(cells.values()), out), end="")
    return out


def _judge(row: Candidate, reals: Reals, net: FeatureNet, chosen: Choices) -> list[dict[str, Any]]:
    """The row's cell in one network, after those of the reals themselves."""
    kept = cache.default_dir() / "features"
    real = collect(of_patches(reals.patches, "real images"), net, chosen.on, kept)
    held = of_patches(reals.held_out, "held-out real images")
    held_out = collect(held, net, chosen.on, kept) if held.count >= LEAST else None
    about = {
        "px": row.resolution, "features": net.spec["name"], "weights": net.weights, "preprocessing": net.preprocessing,
        "real": reals.patches.source, "reals": reals.words, "data": row.real_data.model_dump(mode="json"), "seed": chosen.seed,
    }  # fmt: skip
    named = {**about, "notes": reals.notes}
    cells = []
    if chosen.baselines and len(real) >= 2 * LEAST:
        key = _key("halves", real, None, None, net, chosen)
        cells.append(
            _cell("real, half against half", key, lambda: (*halves(real, chosen.seed), None), net, chosen, named)
        )
    if chosen.baselines and held_out is not None:
        key = _key("held out", real, held_out, None, net, chosen)
        cells.append(_cell("real, held out", key, lambda: (real, held_out, None), net, chosen, named))
    images, notes = _images(row, chosen)
    key = _key("images", real, FeatureSet(images, real.values[:0]), held_out, net, chosen)
    about |= {"source": row.source, "kimg": row.kimg, "notes": [*reals.notes, *notes]}
    if row.model is not None:
        about |= {"truncation": chosen.psi, "noise": _noise(row, chosen), "run": about_run(row.source, row.model)}
    if distributed.first(lambda: read_cell(_path(key, chosen), key)) is not None:
        return [*cells, _cell(row.name, key, None, net, chosen, about)]
    fake = collect(images, net, chosen.on, chosen.out)
    cells.append(_cell(row.name, key, lambda: (real, fake, held_out), net, chosen, about))
    distributed.first(lambda: Path(fake.values.filename).unlink(missing_ok=True))  # type: ignore[attr-defined]
    return cells


def _noise(row: Candidate, chosen: Choices) -> str:
    return chosen.noise if row.model is not None and style_based(row.model.generator) else "const"


def _images(row: Candidate, chosen: Choices) -> tuple[ImageSet, list[str]]:
    """What is compared with the reals, and what must be said of it."""
    if row.model is None:
        patches = load_together(row.real_data.of(row.source), row.resolution)
        if len(patches) < LEAST:
            raise UserError(f"{row.source}: {len(patches)} images, at least {LEAST} are needed")
        return of_patches(patches, row.name), [f"{row.name}: {note}" for note in patches.notes]
    run = about_run(row.source, row.model)
    images = of_generator(
        row.model, row.name, f"{run['sha256']} {row.kimg}", chosen.num, chosen.psi, _noise(row, chosen)
    )
    if not (run["short"] and row.kimg):
        return images, []
    length = f"{run['trained_kimg']:g} of the {run['planned_kimg']:g} kimg of its configuration"
    return images, [f"{row.name}: SHORT, trained for {length}"]


def _key(
    kind: str, real: FeatureSet, fake: FeatureSet | None, held: FeatureSet | None, net: FeatureNet, chosen: Choices
) -> str:
    sets = [(features_key(x.images, net, chosen.on), len(x)) if x is not None else None for x in (real, fake, held)]
    return digest(VERSION, kind, sets, chosen.seed)


def _path(key: str, chosen: Choices) -> Path:
    return chosen.out / "cells" / f"{key[:24]}.json"


def _cell(
    name: str,
    key: str,
    sets: Callable[[], tuple[FeatureSet, FeatureSet, FeatureSet | None]] | None,
    net: FeatureNet,
    chosen: Choices,
    about: dict[str, Any],
) -> dict[str, Any]:
    """One comparison's figures, kept as a file; a generator's nearest neighbours among the training images as a picture beside it.

    `sets`: real, compared and held-out features, asked for where the cell is not there yet. Names and notes are today's.
    """

    def work() -> dict[str, Any]:
        path = _path(key, chosen)
        found = read_cell(path, key)
        if found is None and sets is not None:
            started = time.monotonic()
            real, fake, held_out = sets()
            found = {"key": key, **compare(real, fake, held_out, net, chosen.seed), "version": __version__}
            if pairs := found.get("pairs"):
                made, nearest = (of.images.get([int(pair[i]) for pair in pairs]) for i, of in ((0, fake), (1, real)))
                image_grid(np.concatenate([made, nearest]), path.with_suffix(".png"), columns=len(pairs), scale=2)
                found["pairs_picture"] = str(path.with_suffix(".png"))
            found |= {"environment": environment(chosen.seed), "seconds": round(time.monotonic() - started, 1)}
        cell = {**(found or {}), "method": name, **about}
        write_json(path, cell)
        return cell

    return distributed.first(work, patient=True)


def _write(cells: list[dict[str, Any]], out: Path) -> str:
    """All files of the folder; returns the Markdown."""
    rows = [
        {**cell, "kid": f"{1000 * cell['kid']:.2f} ± {1000 * cell['kid_std']:.2f}", "features": cell["figure"]}
        for cell in cells
    ]
    for row in rows:
        row["value"] = round(row["value"], 3)
    columns = {key: heading for key, heading in COLUMNS.items() if any(key in row for row in rows)}
    text = "\n".join(
        [*(_pivot(cells, metric, "markdown") for metric in _metrics(cells)), table(rows, columns), *_remarks(cells)]
    )
    write_text(out / "fid.md", text)
    write_text(out / "fid.csv", table([_flat(cell) for cell in cells], _csv_columns(cells), "csv"))
    write_text(out / "fid.tex", "\n".join(_pivot(cells, metric, "latex") for metric in _metrics(cells)))
    write_json(out / "fid.json", cells)
    console.say(f"{len(cells)} cells -> {out}/fid.md, .csv, .tex, .json")
    return text


def _metrics(cells: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(cell["figure"] for cell in cells))


def _pivot(cells: list[dict[str, Any]], metric: str, fmt: str) -> str:
    """Table 1: methods by sizes, one figure. A method that was compared with several kinds of reals has a row for each."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    chosen = [cell for cell in cells if cell["figure"] == metric]
    kinds = {(cell["method"], f"{cell['real']}, {cell['reals']}") for cell in chosen}
    for cell in chosen:
        method, reals = cell["method"], f"{cell['real']}, {cell['reals']}"
        several = sum(name == method for name, _ in kinds) > 1
        row = rows.setdefault((method, reals), {"method": f"{method} [{reals}]" if several else method})
        row[str(cell["px"])] = format_number(cell["value"], 2)
    sizes = sorted({cell["px"] for cell in cells})
    return table(list(rows.values()), {"method": metric} | {str(size): f"{size} px" for size in sizes}, fmt)


def _flat(cell: dict[str, Any]) -> dict[str, Any]:
    return {
        key: "; ".join(value) if isinstance(value, list) else value for key, value in cell.items() if key != "pairs"
    }


def _csv_columns(cells: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for cell in cells for key in cell if key not in NESTED))


def _remarks(cells: list[dict[str, Any]]) -> list[str]:
    """What must stand beside the figures, each once."""
    said = dict.fromkeys(
        [
            *(f"{cell['figure']}: {cell['features']}, {cell['weights']}; {cell['preprocessing']}." for cell in cells),
            *(f"Reals: {cell['reals']} of {cell['real']}." for cell in cells),
            *(f"{cell['px']} px: {note}." for cell in cells for note in cell["notes"]),
            *(f"{cell['method']}, {cell['px']} px: {warning}." for cell in cells for warning in cell["warnings"]),
        ]
    )
    explained = (
        "n images (of the EMA generator, seeds from 0 on, as 8-bit pixels) against n real ones, unflipped. "
        "KID: mean ± standard deviation over subsets. Precision and recall: k = 3, in the same features. "
        "Nearer than held-out: probability that an image is nearer to its nearest training image than a held-out real one is "
        "(0.5: no memorisation, 1: copies)."
    )
    return ["", explained, "", *(f"- {line}" for line in said), ""]
