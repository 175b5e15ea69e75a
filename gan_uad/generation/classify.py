"""`gan-uad classify`: how well a classifier does on real and on synthesised patches: Table 2 of Štepec & Skočaj (2020)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gan_uad import registry
from gan_uad.detection.patch_sets import choose_sets
from gan_uad.device import prepare
from gan_uad.errors import UserError
from gan_uad.files import make_folder
from gan_uad.generation.accuracy import (
    generator_notes,
    in_one_process,
    metrics,
    of_both_kinds,
    open_generator,
    scored,
    seeds_of,
    write_table,
)
from gan_uad.generation.feature_sets import of_patches
from gan_uad.model import about_run, file_digest, load_model

CLASSES = ("normal", "anomalous")


def classify(
    run: str,
    data: str | None,
    normal: str,
    anomalous: str,
    out: Path = Path("classify"),
    num: int = 10_000,
    jpeg: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Accuracy of the classifier `run` on at most `num` real test patches of `data` (default: what it was trained on), half of each class,
    and on as many that the generators `normal` and `anomalous` make; returns the folder with `classify.md`, `.csv`, `.tex`, `.json`.

    `jpeg`: all images pass through a JPEG encoder of that quality. Run again after an interruption, it goes on.
    """
    in_one_process()
    on = prepare(device)
    model = load_model(run, on)
    if "classifier" not in model.networks:
        raise UserError(f"{run} holds no classifier, only {model.held}: train one with `gan-uad train densenet121_64`")
    sources = dict(zip(CLASSES, (normal, anomalous), strict=True))
    generators = {name: open_generator(source, model.resolution, on) for name, source in sources.items()}
    sets = choose_sets(model, model.config.data, data, None, None, seed)
    real = of_both_kinds(sets.target, num, seed)
    counts = np.bincount(real.manifest.label, minlength=2)
    seeds = {name: seeds_of(seed, int(count)) for name, count in zip(CLASSES, counts, strict=True)}

    scorer = registry.build("scorer", "classifier", {}, nets=model.networks, device=on)
    known = (make_folder(out / "parts"), jpeg)
    about = f"{file_digest(run)} {on.type}"
    of_real = scored(scorer, about, of_patches(real, "real patches"), range(len(real)), *known)
    of_made = [scored(scorer, about, generators[name][1], seeds[name], *known) for name in CLASSES]
    rows = [
        metrics("real", real.manifest.label, of_real, real.manifest.group, seed),
        metrics("synthesised", np.repeat([0, 1], counts), np.concatenate(of_made), None, seed),
    ]
    notes = [*sets.warnings, *real.notes]
    runs = {"classifier": about_run(run, model)}
    for name, (generator, _) in generators.items():
        notes += generator_notes(generator, sources[name], model.config.data, name)
        runs[name] = about_run(sources[name], generator)
    spans = {name: f"{span.start}-{span.stop - 1}" for name, span in seeds.items()}
    settings: dict[str, Any] = {"runs": runs, "data": real.source, "jpeg": jpeg, "seed": seed, "image_seeds": spans}
    title = f"Accuracy on real and on synthesised patches of {model.resolution} px."
    print(write_table(out, "classify", title, CLASSES, rows, settings, notes), end="")
    return out
