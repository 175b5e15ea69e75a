"""`gan-uad fid`: how far generated images are from real ones, for many runs and sizes: Table 1 of Štepec & Skočaj (2020)."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gan_uad import __version__, console, device
from gan_uad.data import cache
from gan_uad.data.arrays import digest
from gan_uad.data.patches import load_patches
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.load import load_features
from gan_uad.files import make_folder, write_json, write_text
from gan_uad.jobs.feature_sets import FeatureSet, ImageSet, collect, features_key, of_generator, of_patches
from gan_uad.jobs.fid_cells import Candidate, Reals, candidates, choose_reals, compare, halves, read_cell
from gan_uad.jobs.load import model_file
from gan_uad.networks.sampling import style_based
from gan_uad.report.pictures import image_grid
from gan_uad.report.tables import format_number, table
from gan_uad.training import distributed

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
    where: str = "auto",
) -> Path:
    """Judge every source in every feature network; returns the folder with `fid.md`, `fid.csv`, `fid.tex` and `fid.json`.

    A cell is one source in one network. Finished cells are found again, an unfinished one goes on where it stopped. Under torchrun
    every process calls it: they share the images, and rank 0 alone writes.
    """
    if num < 2:
        raise UserError(f"--num {num}: a distance needs at least 2 images")
    with distributed.processes() as here:
        on = distributed.together(lambda: device.prepare(where))
        chosen = Choices(num, psi, noise, split, label, baselines, seed, out, on)
        rows = distributed.together(lambda: candidates(sources, real, overrides, resolution, untrained, on))
        nets = distributed.together(lambda: [load_features(n, weights=weights, device=on, fast=fast) for n in features])
        distributed.first(lambda: make_folder(out / "cells"))
        cells: dict[str, dict[str, Any]] = {}
        for row in rows:
            reals = distributed.together(partial(choose_reals, row, split, label), patient=True)
            for net in nets:
                for cell in _judge(row, reals, net, chosen):
                    cells.setdefault(cell["key"], cell)
        if here.rank == 0:
            print(_write(list(cells.values()), out), end="")
    return out


def _judge(row: Candidate, reals: Reals, net: FeatureNet, chosen: Choices) -> list[dict[str, Any]]:
    """The row's cell in one network, after those of the reals themselves."""
    kept = cache.default_dir() / "features"
    real = collect(of_patches(reals.patches, "real images"), net, chosen.on, kept)
    held = of_patches(reals.held_out, "held-out real images")
    held_out = collect(held, net, chosen.on, kept) if held.count else None
    about = {
        "px": row.resolution, "features": net.spec["name"], "weights": net.weights, "preprocessing": net.preprocessing,
        "real": reals.patches.source, "notes": reals.notes,
    }  # fmt: skip
    cells = []
    if chosen.baselines:
        if len(real) >= 4:
            a, b = halves(real, chosen.seed)
            cells.append(_cell("real, half against half", a, b, None, net, chosen, about))
        if held_out is not None and len(held_out) >= 2:
            cells.append(_cell("real, held out", real, held_out, None, net, chosen, about))
    images = _images(row, chosen)
    key = _key(real.images, images, held, net, chosen)
    cell = distributed.first(lambda: read_cell(_path(key, chosen), key))
    if cell is None:
        fake = collect(images, net, chosen.on, chosen.out)
        about |= {"kimg": row.kimg, "source": row.source, "truncation": chosen.psi, "noise": _noise(row, chosen)}
        cell = _cell(row.name, real, fake, held_out, net, chosen, about, key)
        distributed.first(lambda: Path(fake.values.filename).unlink(missing_ok=True))  # type: ignore[attr-defined]
    return [*cells, cell]


def _noise(row: Candidate, chosen: Choices) -> str:
    return chosen.noise if row.model is not None and style_based(row.model.networks["gan"].G) else "const"


def _images(row: Candidate, chosen: Choices) -> ImageSet:
    if row.model is None:
        settings = row.real_data.model_copy(update={"path": row.source})
        return of_patches(load_patches(settings, row.resolution, progress=console.counter("reading images")), row.name)
    with open(model_file(row.source), "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return of_generator(row.model, row.name, f"{content} {row.kimg}", chosen.num, chosen.psi, _noise(row, chosen))


def _key(real: ImageSet, fake: ImageSet, held: ImageSet, net: FeatureNet, chosen: Choices) -> str:
    return digest(
        VERSION,
        features_key(real, net),
        features_key(fake, net),
        fake.count,
        held.key if held.count else "",
        chosen.seed,
    )


def _path(key: str, chosen: Choices) -> Path:
    return chosen.out / "cells" / f"{key[:24]}.json"


def _cell(
    name: str,
    real: FeatureSet,
    fake: FeatureSet,
    held_out: FeatureSet | None,
    net: FeatureNet,
    chosen: Choices,
    about: dict[str, Any],
    key: str | None = None,
) -> dict[str, Any]:
    """One comparison's figures, kept as a file; a generator's nearest neighbours among the training images as a picture beside it."""
    key = key or digest(VERSION, features_key(real.images, net), features_key(fake.images, net), chosen.seed)

    def work() -> dict[str, Any]:
        path = _path(key, chosen)
        if (found := read_cell(path, key)) is not None:
            return found
        started = time.monotonic()
        figures = compare(real, fake, held_out, net, chosen.seed)
        cell = {"key": key, "method": name, **about, **figures, "seed": chosen.seed, "version": __version__}
        if pairs := figures.get("pairs"):
            made, nearest = (of.images.get([int(pair[i]) for pair in pairs]) for i, of in ((0, fake), (1, real)))
            image_grid(np.concatenate([made, nearest]), path.with_suffix(".png"), columns=len(pairs), scale=2)
            cell["pairs_picture"] = str(path.with_suffix(".png"))
        cell["seconds"] = round(time.monotonic() - started, 1)
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
        [*(_pivot(cells, figure, "markdown") for figure in _figures(cells)), table(rows, columns), *_remarks(cells)]
    )
    write_text(out / "fid.md", text)
    write_text(out / "fid.csv", table([_flat(cell) for cell in cells], _csv_columns(cells), "csv"))
    write_text(out / "fid.tex", "\n".join(_pivot(cells, figure, "latex") for figure in _figures(cells)))
    write_json(out / "fid.json", cells)
    console.say(f"{len(cells)} cells -> {out}/fid.md, .csv, .tex, .json")
    return text


def _figures(cells: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(cell["figure"] for cell in cells))


def _pivot(cells: list[dict[str, Any]], figure: str, fmt: str) -> str:
    """Table 1: methods by sizes, one figure."""
    rows: dict[str, dict[str, Any]] = {}
    sizes = sorted({cell["px"] for cell in cells})
    for cell in cells:
        if cell["figure"] == figure:
            row = rows.setdefault(cell["method"], {"method": cell["method"]})
            row[str(cell["px"])] = format_number(cell["value"], 2)
    return table(list(rows.values()), {"method": figure} | {str(size): f"{size} px" for size in sizes}, fmt)


def _flat(cell: dict[str, Any]) -> dict[str, Any]:
    return {
        key: "; ".join(value) if isinstance(value, list) else value for key, value in cell.items() if key != "pairs"
    }


def _csv_columns(cells: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for cell in cells for key in cell if key != "pairs"))


def _remarks(cells: list[dict[str, Any]]) -> list[str]:
    """What must stand beside the figures, each once."""
    said = dict.fromkeys(
        [
            *(f"{cell['figure']}: {cell['features']}, {cell['weights']}; {cell['preprocessing']}." for cell in cells),
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
