"""`gan-uad real-vs-synthetic`: can a classifier tell a generator's images from real ones? 50 % accuracy: it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from gan_uad import console, registry
from gan_uad.config import RunConfig, load_config
from gan_uad.data.arrays import digest
from gan_uad.data.manifest import LABELS, SPLITS, Manifest
from gan_uad.data.patches import PatchSet, load_patches, some
from gan_uad.device import prepare
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import explained, make_folder, write_json
from gan_uad.generation.accuracy import as_jpeg, in_one_process, metrics, open_generator, scored, seeds_of, write_table
from gan_uad.generation.feature_sets import ImageSet, of_patches
from gan_uad.model import Model, about_run, file_digest, load_model
from gan_uad.run import Run
from gan_uad.training.train import train

NAMES = ("real", "synthesised")
CHUNK = 256
LARGE = 128  # px: above it the classifier is the one for large images


def real_vs_synthetic(
    generator: str,
    data: str | None,
    out: Path = Path("classify"),
    num: int = 10_000,
    preset: str | None = None,
    kimg: float | None = None,
    jpeg: int | None = None,
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    device: str = "auto",
) -> Path:
    """Train the classifier `preset` to tell real patches from those that `generator` makes, and test it on others of both kinds.

    Train, validation and test have at most `num` real patches each, of the splits of `data` (default: what the generator was trained
    on) and of the label that it was trained on, and as many synthesised ones, all of different seeds. `jpeg`: both pass through a
    JPEG encoder of that quality. `overrides` are settings of the training. Returns the folder with `real_vs_synthetic.md`, `.csv`,
    `.tex` and `.json`. Run again after an interruption, it goes on.
    """
    in_one_process()
    model, made = open_generator(generator, None, prepare(device))
    real = _real(model, data)
    counts = {split: min(num, len(real.select(split))) for split in SPLITS}
    if empty := [split for split, count in counts.items() if count == 0]:
        raise UserError(
            f"{real.source}: no {model.config.data.label} patch in the {' and '.join(empty)} split; all three are needed"
        )
    config = _config(model, preset, kimg, seed, overrides, device)
    key = digest(
        file_digest(generator), real.fingerprint, counts, jpeg, seed, model.device.type, config.model_dump(mode="json")
    )
    folder = make_folder(out / f"{model.name}-{key[:12]}")
    patches, spans = _write_patches(folder / "patches", real, made, counts, jpeg, seed)
    run = _train(config, patches, folder)

    judged = load_model(run.folder, prepare(device))
    test = load_patches(judged.config.data, model.resolution).select("test")
    scorer = registry.build("scorer", "classifier", {}, nets=judged.networks, device=judged.device)
    about = f"{file_digest(str(run.folder))} {judged.device.type}"
    scores = scored(scorer, about, of_patches(test, "test images"), range(len(test)), folder, None)
    rows = [metrics(model.name, test.manifest.label, scores, test.manifest.group, seed)]
    settings: dict[str, Any] = {
        "runs": {"generator": about_run(generator, model), "classifier": about_run(str(run.folder), judged)}, "data": real.source,
        "jpeg": jpeg, "seed": seed, "image_seeds": spans, "images_of_each_kind": counts,
    }  # fmt: skip
    notes = [
        "50 % (AUROC 0.5): real and synthesised patches cannot be told apart by this classifier",
        "the classifier learnt from "
        + ", ".join(f"{2 * counts[s]} images ({s})" for s in SPLITS[:2])
        + ", half of them real",
        *real.notes,
    ]
    title = f"Telling synthesised from real {model.config.data.label} patches of {model.resolution} px."
    print(write_table(out, "real_vs_synthetic", title, NAMES, rows, settings, notes), end="")
    return out


def _real(model: Model, data: str | None) -> PatchSet:
    """The patches of the label that the generator was trained on, prepared in the same way."""
    own = model.config.data
    path = data or own.path
    if path is None:
        raise UserError("no real patches are given: name a folder, zip, .npz or .h5 with --data")
    patches = load_patches(own.of(path), model.resolution, progress=console.counter("reading patches"))
    return patches.select(None, LABELS[own.label])


def _config(
    model: Model, preset: str | None, kimg: float | None, seed: int, overrides: tuple[str, ...], device: str
) -> RunConfig:
    """The classifier's training; with another length, schedule, judgements and checkpoints are fitted to it."""
    preset = preset or ("densenet121_512" if model.resolution > LARGE else "densenet121_64")
    given = [
        f"resolution={model.resolution}",
        "name=real_vs_synthetic",
        f"training.seed={seed}",
        f"training.device={device}",
    ]
    if kimg is not None:
        shipped = load_config(preset)
        given.append(f"training.total_kimg={kimg}")
        if shipped.optim.get("schedule_kimg") == shipped.training.total_kimg:
            given.append(f"optim.schedule_kimg={kimg}")
        for name in ("eval_kimg", "checkpoint_kimg", "tick_kimg"):
            given.append(f"training.{name}={min(getattr(shipped.training, name) or kimg, kimg / 10)}")
    config = load_config(preset, (*given, *overrides, "data.label=all"))
    if config.task != "supervised":
        raise UserError(
            f"--preset {preset} trains by {config.task}: name one that trains a classifier (task supervised)"
        )
    if config.resolution != model.resolution:
        raise UserError(
            f"the generator's images are of {model.resolution} px: leave -o resolution={config.resolution} out"
        )
    return config


def _write_patches(
    folder: Path, real: PatchSet, made: ImageSet, counts: dict[str, int], jpeg: int | None, seed: int
) -> tuple[Path, dict[str, str]]:
    """Write real (label 0) and synthesised (label 1) images with their `index.csv`, and return the folder and the seeds of each split.

    The index comes last: a folder that has one is complete, in another what is missing is made.
    """
    spans: dict[str, str] = {}
    sets: list[tuple[str, str, ImageSet, list[int], list[str]]] = []
    before = 0
    for split in SPLITS:
        chosen = some(real.select(split), counts[split], seed)
        seeds = seeds_of(seed, counts[split], before)
        spans[split], before = f"{seeds.start}-{seeds.stop - 1}", before + len(seeds)
        sets.append((split, "real", of_patches(chosen, ""), list(range(len(chosen))), chosen.manifest.group))
        sets.append((split, "synthesised", made, list(seeds), [""] * len(seeds)))
    if (folder / "index.csv").is_file():
        return folder, spans
    make_folder(folder / "images")
    files: list[str] = []
    rows: list[tuple[str, int, str, str]] = []
    with console.progress("writing images", 2 * before) as bar:
        for split, name, images, which, groups in sets:
            for start in range(0, len(which), CHUNK):
                part = which[start : start + CHUNK]
                new = [f"images/{split}_{name}_{i:06d}.png" for i in range(start, start + len(part))]
                _write_missing([folder / file for file in new], images, part, jpeg)
                files += new
                bar.update(len(files))
            rows += [(group, NAMES.index(name), split, name) for group in groups]
    group, label, side, klass = zip(*rows, strict=True)
    Manifest.of(files, group=group, label=label, split=side, klass=klass).to_csv(folder / "index.csv")
    return folder, spans


def _write_missing(paths: list[Path], images: ImageSet, rows: list[int], jpeg: int | None) -> None:
    if all(path.is_file() for path in paths):
        return
    for path, image in zip(paths, as_jpeg(images.get(rows), jpeg), strict=True):
        temporary = path.with_name(f".{path.name}.tmp")
        with explained(path):
            Image.fromarray(image).save(temporary, format="png", compress_level=1)
            temporary.replace(path)


def _train(config: RunConfig, patches: Path, folder: Path) -> Run:
    """The classifier, trained anew or to its end."""
    source = folder / "classifier.yaml"
    write_json(source, config.model_dump(mode="json"))  # JSON is YAML
    existing = Run.latest(folder, config.name)
    if existing is not None:
        run = train(str(existing.folder), resume=True)
    else:
        run = train(str(source), data=str(patches), out=folder)
    if run is None:
        raise JobFailed("the classifier was not trained")
    return run
