"""`gan-uad classify`: the accuracy of a classifier on real and on generated patches: Table 2 of Štepec & Skočaj (2020)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gan_uad.detection.patch_sets import choose_sets
from gan_uad.device import prepare
from gan_uad.errors import UserError
from gan_uad.files import make_folder
from gan_uad.generation import accuracy
from gan_uad.generation.feature_sets import of_patches
from gan_uad.model import about_run, load_model

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
    """Accuracy of the classifier `run` on at most `num` real test patches of `data` (default: its training set), half of each class,
    and on as many images of the generators `normal` and `anomalous`; returns the folder with `classify.md`, `.csv`, `.tex`, `.json`.

    `jpeg`: quality of a JPEG compression of all images. An interrupted call can be resumed by calling it again.
    """
    accuracy.in_one_process("classify")
    model = load_model(run, prepare(device))
    if "classifier" not in model.networks:
        raise UserError(f"{run} holds no classifier, only {model.held}: train one with `gan-uad train densenet121_64`")
    sources = dict(zip(CLASSES, (normal, anomalous), strict=True))
    generators = {
        name: accuracy.open_generator(source, model.resolution, model.device) for name, source in sources.items()
    }
    if data is None and model.config.data.path is None:
        raise UserError(f"{run} does not name the patches that it was trained on: give real patches with --data")
    sets = choose_sets(model, model.config.data, data, None, None, seed)
    real = accuracy.of_both_classes(sets.target, num, seed)
    counts = np.bincount(real.manifest.label, minlength=2)
    seeds = {name: accuracy.seeds_of(seed, int(count)) for name, count in zip(CLASSES, counts, strict=True)}

    cached = make_folder(out / "parts")
    of_real = accuracy.scored(model, of_patches(real, "real patches"), range(len(real)), cached, jpeg)
    of_generated = [accuracy.scored(model, generators[name][1], seeds[name], cached, jpeg) for name in CLASSES]
    rows = [
        accuracy.metrics("real", real.manifest.label, of_real, real.manifest.group, seed),
        accuracy.metrics("generated", np.repeat([0, 1], counts), np.concatenate(of_generated), None, seed),
    ]
    notes = [*sets.warnings, *real.notes]
    runs = {"classifier": about_run(run, model)}
    for name, (generator, _) in generators.items():
        notes += accuracy.generator_notes(generator, sources[name], model.config.data, name)
        runs[name] = about_run(sources[name], generator)
    spans = {name: accuracy.as_text(chosen) for name, chosen in seeds.items()}
    settings: dict[str, Any] = {"runs": runs, "data": real.source, "jpeg": jpeg, "seed": seed, "image_seeds": spans}
    title = f"Accuracy on real and on generated patches of {model.resolution} px."
    print(accuracy.write_table(out, "classify", title, CLASSES, rows, settings, notes), end="")
    return out
