"""`gan-uad real-vs-synthetic`: train a classifier to tell generated images from real ones. An accuracy of 50 %: it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from gan_uad import console
from gan_uad.config import RunConfig, load_config
from gan_uad.data.arrays import digest
from gan_uad.data.manifest import LABELS, SPLITS, Manifest
from gan_uad.data.patches import PatchSet, Pixels, load_patches, some
from gan_uad.device import prepare
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import explained, make_folder, write_json
from gan_uad.generation import accuracy
from gan_uad.generation.feature_sets import ImageSet, of_patches
from gan_uad.model import Model, about_run, file_digest, load_model
from gan_uad.run import Run
from gan_uad.training.train import train

CLASSES = ("real", "synthesised")  # as in index.csv and the names of the images
MAX_SMALL = 128  # px: above it the classifier is the one for large images


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
    """Train the classifier `preset` on real patches and on images of `generator`, and test it on other images of both kinds.

    Train, validation and test have at most `num` real patches each, of the splits of `data` and of the label that the generator was
    trained on (default of `data`: its training set), and as many generated images, all of different seeds. `jpeg`: quality of a JPEG
    compression of both. `overrides` are settings of the training. Returns the folder with `real_vs_synthetic.md`, `.csv`, `.tex` and
    `.json`. An interrupted call can be resumed by calling it again.
    """
    accuracy.in_one_process("real-vs-synthetic")
    model, generated = accuracy.open_generator(generator, None, prepare(device))
    real = _real_patches(model, data)
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
    spans = _write_patches(folder / "patches", real, generated, counts, jpeg, seed)
    run = str(_train(config, folder / "patches", folder).folder)

    classifier = load_model(run, prepare(device))
    test = load_patches(classifier.config.data, model.resolution).select("test")
    scores = accuracy.scored(classifier, of_patches(test, "test images"), range(len(test)), folder)
    rows = [accuracy.metrics(model.name, test.manifest.label, scores, test.manifest.group, seed)]
    settings: dict[str, Any] = {
        "runs": {"generator": about_run(generator, model), "classifier": about_run(run, classifier)}, "data": real.source,
        "jpeg": jpeg, "seed": seed, "image_seeds": spans, "images_of_each_kind": counts,
    }  # fmt: skip
    notes = [
        "50 % (AUROC 0.5): this classifier cannot tell real and generated patches apart",
        f"the classifier was trained on {2 * counts['train']} and validated on {2 * counts['val']} images, half of them real",
        *real.notes,
    ]
    title = f"Telling generated from real {model.config.data.label} patches of {model.resolution} px."
    print(accuracy.write_table(out, "real_vs_synthetic", title, ("real", "generated"), rows, settings, notes), end="")
    return out


def _real_patches(model: Model, data: str | None) -> PatchSet:
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
    """The classifier's training. Schedule, validations and checkpoints are scaled to its length `kimg`."""
    preset = preset or ("densenet121_512" if model.resolution > MAX_SMALL else "densenet121_64")
    given: dict[str, Any] = {
        "resolution": model.resolution, "name": "real_vs_synthetic", "training.seed": seed, "training.device": device,
    }  # fmt: skip
    if kimg is not None:
        shipped = load_config(preset)
        given["training.total_kimg"] = kimg
        if shipped.optim.get("schedule_kimg") == shipped.training.total_kimg:
            given["optim.schedule_kimg"] = kimg
        for name in ("eval_kimg", "checkpoint_kimg", "tick_kimg"):
            given[f"training.{name}"] = min(getattr(shipped.training, name) or kimg, kimg / 10)
    config = load_config(preset, (*(f"{key}={value}" for key, value in given.items()), *overrides, "data.label=all"))
    if config.task != "supervised":
        raise UserError(f"--preset {preset} has the task {config.task}: name one with the task supervised")
    if config.resolution != model.resolution:
        raise UserError(f"the generator makes images of {model.resolution} px: omit -o resolution={config.resolution}")
    return config


def _write_patches(
    folder: Path, real: PatchSet, generated: ImageSet, counts: dict[str, int], jpeg: int | None, seed: int
) -> dict[str, str]:
    """Write real (label 0) and generated (label 1) images with their `index.csv`, and return the seeds of each split.

    The index is written last: a folder that has one is complete; in a folder without one only the missing images are written.
    """
    spans: dict[str, str] = {}
    sets: list[tuple[str, int, ImageSet, list[int], list[str]]] = []  # split, label, images, their rows and groups
    n = 0
    for split in SPLITS:
        chosen = some(real.select(split), counts[split], seed)
        seeds = accuracy.seeds_of(seed, counts[split], n)
        spans[split], n = accuracy.as_text(seeds), n + len(seeds)
        sets.append((split, 0, of_patches(chosen, ""), list(range(len(chosen))), chosen.manifest.group))
        sets.append((split, 1, generated, list(seeds), [""] * len(seeds)))
    if (folder / "index.csv").is_file():
        return spans
    make_folder(folder / "images")
    index: list[tuple[str, str, int, str, str]] = []
    with console.progress("writing images", 2 * n) as bar:
        for split, label, images, rows, groups in sets:
            files = [f"images/{split}_{CLASSES[label]}_{i:06d}.png" for i in range(len(rows))]
            for start in range(0, len(rows), accuracy.CHUNK):
                chunk = slice(start, start + accuracy.CHUNK)
                paths = [folder / file for file in files[chunk]]
                if not all(path.is_file() for path in paths):
                    _write_images(paths, accuracy.as_jpeg(images.get(rows[chunk]), jpeg))
                bar.update(len(index) + start)
            index += [(file, group, label, split, CLASSES[label]) for file, group in zip(files, groups, strict=True)]
    file, group, of_label, of_split, klass = zip(*index, strict=True)
    Manifest.of(file, group=group, label=of_label, split=of_split, klass=klass).to_csv(folder / "index.csv")
    return spans


def _write_images(paths: list[Path], images: Pixels) -> None:
    for path, image in zip(paths, images, strict=True):
        temporary = path.with_name(f".{path.name}.tmp")  # not `atomic`: a sync to disk per image would take minutes
        with explained(path):
            Image.fromarray(image).save(temporary, format="png", compress_level=1)
            temporary.replace(path)


def _train(config: RunConfig, patches: Path, folder: Path) -> Run:
    """The trained classifier. An unfinished training in `folder` is resumed."""
    existing = Run.latest(folder, config.name)
    if existing is not None:
        run = train(str(existing.folder), resume=True)
    else:
        source = folder / "classifier.yaml"
        write_json(source, config.model_dump(mode="json"))  # JSON is YAML
        run = train(str(source), data=str(patches), out=folder)
    if run is None:
        raise JobFailed("the classifier was not trained")
    return run
