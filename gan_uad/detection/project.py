"""`gan-uad project`: find the closest image that a generator can make, with its latent; one folder of files per input image."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gan_uad import console, registry
from gan_uad.config import PREPROCESSING, DataConfig, resolve
from gan_uad.data.images import BadImage, Pixels, decode, preprocess
from gan_uad.data.patches import to_tensor, to_uint8
from gan_uad.data.sources import ENDINGS, Folder
from gan_uad.detection.rows import name_skipped
from gan_uad.device import prepare
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import atomic, claim, csv_text, make_folder, one_writer, read_json, write_json, write_text
from gan_uad.model import Model, file_digest, inverter_of, load_model
from gan_uad.networks.sampling import style_based
from gan_uad.plotting.pictures import image_grid, triplets
from gan_uad.plotting.projection import loss_curve, search_animation

CHUNK = 256  # prepared images in memory
FRAMES = 48  # of a GIF
MAX_DIFFERENCE = 1.0  # top of the colour scale, the same in all pictures; the largest possible is 2
SUMMARY, TABLE, RECORD = "projections.json", "projections.csv", "projection.json"
COLUMNS = ("image", "folder", "distance", "l2", "steps", "seconds")


@dataclass(frozen=True)
class Query:
    """An input image, prepared for the network, and the folder inside `out` for its files."""

    image: str
    pixels: Pixels
    folder: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()[:16]


def project(
    run: str,
    images: list[Path],
    out: Path,
    inverter: str | None = None,
    options: tuple[str, ...] = (),
    gif: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: str = "fp32",
) -> Path:
    """Find each image of `images` (files, or folders of them) with the generator of `run`; returns `out`.

    `inverter` None: the one that the run is set to or trained, else "w" with StyleGAN and StyleGAN2, else AnoGAN's search in z.
    `options`: key=value of the inverter. Writes a folder per image with reconstruction.png, latent.npz, side_by_side.png, loss.png of a
    search and, with `gif`, progress.gif. projections.csv has a row per image, those of earlier calls too. A call after an interruption
    resumes with the remaining images.
    """
    model = load_model(run, prepare(device, precision=precision))
    search = make_inverter(model, inverter, options, seed)
    if gif:
        if not (hasattr(search, "frames") and search.steps):
            raise UserError(
                f"--gif needs a search, which {search.spec['name']} is not: use --inverter w, w_plus, z or style_encoder"
            )
        search.frames = FRAMES
    found, skipped = read_images(images, model.config.data, model.resolution)
    settings = _settings(run, model, search, precision)
    records = _records(out)
    if not records:  # nothing was finished there: another model or setting may use the folder
        (out / SUMMARY).unlink(missing_ok=True)
    claim(out, SUMMARY, {"key": settings["key"]}, "projections")
    with one_writer(out):
        records = _records(out)  # another call may have ended just now
        pictures = _placed(found, records)
        given = {picture.image for picture in pictures}
        others = [record for record in records.values() if record["image"] not in given]
        done = {p.image: r for p in pictures if (r := _finished(out, p, records, settings["key"], gif)) is not None}
        todo = [picture for picture in pictures if picture.image not in done]
        if done:
            console.say(f"{_images(len(done))} done already")
        _advise(search, len(todo))

        def summarise() -> None:
            rows = [done[picture.image] for picture in pictures if picture.image in done]
            _write_summary(out, settings | {"skipped": skipped}, rows + others)

        summarise()
        try:
            with console.progress("projecting", len(pictures), done=len(done)) as bar:
                for picture, record in _projected(search, todo, out, settings["key"], bar):
                    done[picture.image] = record
        finally:
            summarise()
        console.say(f"{_images(len(done))} -> {out}/{TABLE}")
    name_skipped(skipped, SUMMARY)
    return out


def make_inverter(model: Model, name: str | None, options: tuple[str, ...], seed: int) -> Any:
    """The inverter called `name` (None: see `project`) with the run's options for it, overridden by `options`. Raises `UserError`."""
    G, configured = model.generator, inverter_of(model)
    searched = model.config.scoring.inverter is None and "encoder" not in model.networks
    chosen = name or ("w" if searched and style_based(G) else configured)
    takes = inspect.signature(registry.find("inverter", chosen)).parameters
    raw = model.config.model_dump(mode="json")
    kept = raw["scoring"]["options"] if chosen == configured else {}
    # The options of the scorer, which are among them, have no use here.
    raw["scoring"]["options"] = {key: value for key, value in kept.items() if key in takes}
    if "seed" in takes:
        raw["scoring"]["options"]["seed"] = seed
    elif seed:
        raise UserError(f"--seed {seed}: {chosen} draws no random numbers")
    overrides = [f"scoring.options.{option}" for option in options]
    wanted = resolve(raw, overrides, default_name=model.name, context="-o").scoring.options
    return registry.build("inverter", chosen, wanted, nets=model.networks, device=model.device)


# ---------------------------------------------------------------- the images


def read_images(inputs: list[Path], data: DataConfig, resolution: int) -> tuple[list[Query], list[tuple[str, str]]]:
    """All images of these files and folders, each once, prepared as the run's own, and those that cannot be used, with the reason.

    Prints how images of another size are prepared. Raises `UserError` for a missing path, and when no image is left.
    """
    pictures: dict[str, Query] = {}
    skipped: list[tuple[str, str]] = []
    sizes: Counter[tuple[int, int]] = Counter()
    for image, folder, name in _listed(inputs):
        if image in pictures:
            continue
        try:
            pixels = decode(folder.read(name), image)
            pictures[image] = Query(image, preprocess(pixels, data, resolution, image))
            sizes[pixels.shape[1], pixels.shape[0]] += 1
        except BadImage as error:
            skipped.append((error.name, error.reason))
        except OSError as error:
            skipped.append((image, f"cannot be read: {error.strerror or error}"))
    if not pictures:
        raise UserError("no image to project: " + "; ".join(f"{image}: {reason}" for image, reason in skipped[:3]))
    for (width, height), count in sizes.items():
        if (width, height) != (resolution, resolution):
            console.say(f"{_images(count)} of {width}x{height} px: {_rule(width, height, data, resolution)}")
    return list(pictures.values()), skipped


def _listed(inputs: list[Path]) -> Iterator[tuple[str, Folder, str]]:
    for path in inputs:
        if path.is_dir():
            folder = Folder(path)
            names = [name for name in folder.names if name.lower().endswith(ENDINGS)]
            if not names:
                raise UserError(f"{path} holds no images (looked for {' '.join(ENDINGS)})")
        elif path.is_file():
            folder, names = Folder(path.parent, only=path.name), [path.name]
        else:
            raise UserError(f"no such image or folder: {path}")
        for name in names:
            yield str((folder.root / name).resolve()), folder, name


def _rule(width: int, height: int, data: DataConfig, resolution: int) -> str:
    side = (data.crop_size or resolution) if data.crop == "center" else min(width, height)
    steps = [] if (width, height) == (side, side) else [f"the middle {side} px are used"]
    if side != resolution:
        steps.append(f"resized to {resolution} px ({data.resize})")
    return ", ".join(steps)


def _placed(pictures: list[Query], records: dict[str, dict[str, Any]]) -> list[Query]:
    """Give each image its folder: that of an earlier call, else one by its name, numbered where another image has it."""
    mine = {record["image"]: folder for folder, record in records.items()}
    used = {SUMMARY, TABLE, *records}
    placed = []
    for picture in pictures:
        folder = mine.get(picture.image)
        if folder is None:
            # An image called "..png" or "...png" must not lead out of its folder.
            folder = stem = Path(picture.image).stem.strip(".") or "image"
            number = 1
            while folder in used:
                number += 1
                folder = f"{stem}-{number}"
            used.add(folder)
        placed.append(Query(picture.image, picture.pixels, folder))
    return placed


# ---------------------------------------------------------------- what earlier calls finished


def _settings(run: str, model: Model, search: Any, precision: str) -> dict[str, Any]:
    prepared = model.config.data.model_dump(mode="json", include=set(PREPROCESSING))
    hashed = [file_digest(run), search.spec, search.rests_on, prepared, model.resolution]
    hashed += [precision] if precision != "fp32" else []
    return {
        "key": hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest(),
        "model": str(run), "name": model.name, "kimg": model.nimg / 1000, "resolution": model.resolution,
        "inverter": search.spec, "distance": search.measured, "weights": search.rests_on, "prepared": prepared,
        "precision": precision,
    }  # fmt: skip


def _records(out: Path) -> dict[str, dict[str, Any]]:
    """The records that earlier calls finished, folder -> record."""
    found = {path.parent.name: read_json(path) for path in sorted(out.glob(f"*/{RECORD}"))}
    return {folder: record for folder, record in found.items() if isinstance(record, dict) and {*COLUMNS} <= {*record}}


def _finished(
    out: Path, picture: Query, records: dict[str, dict[str, Any]], key: str, gif: bool
) -> dict[str, Any] | None:
    record = records.get(picture.folder, {})
    same = (record.get("key"), record.get("pixels")) == (key, picture.digest)
    return record if same and (not gif or (out / picture.folder / "progress.gif").is_file()) else None


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _advise(search: Any, count: int) -> None:
    places = search.micro_batch
    work = count * getattr(search, "restarts", 1)
    if getattr(search, "steps", 0) and 0 < work < places:
        console.say(
            f"note: the search works on {places} images at once, and only {work} {'is' if work == 1 else 'are'} left: "
            f"-o micro_batch={work} is faster (the last digits of the results may differ)"
        )


# ---------------------------------------------------------------- the work


def _projected(
    search: Any, todo: list[Query], out: Path, key: str, bar: console.Progress
) -> Iterator[tuple[Query, dict[str, Any]]]:
    """Each image with its record, as soon as its files are written."""
    before = bar.start_done
    for begin in range(0, len(todo), CHUNK):
        chunk = todo[begin : begin + CHUNK]
        images = to_tensor(np.stack([picture.pixels for picture in chunk]))
        for found in search.stream(images, lambda done, begin=begin: bar.update(before + begin + done)):
            rows = torch.tensor(found.rows)
            reconstructions = found.inversion.reconstruction
            # In a batch of fixed size, so that the last digits do not depend on how many were found together.
            distance = search.measure(search.padded(images[rows]), search.padded(reconstructions)).tolist()
            for i, row in enumerate(found.rows):
                query = chunk[row]
                record = {"key": key, "image": query.image, "pixels": query.digest, "folder": query.folder}
                record |= {"distance": distance[i], "seconds": round(found.seconds, 3)}
                frames = None if found.frames is None else to_uint8(found.frames)
                yield query, _write(out, query, record, found.inversion.take(slice(i, i + 1)), frames, search)


def _write(out: Path, picture: Query, record: dict[str, Any], found: Any, frames: Any, search: Any) -> dict[str, Any]:
    """Write all files of one image; the record comes last and says that the others are complete."""
    if not (found.latent.isfinite().all() and found.reconstruction.isfinite().all()):
        raise JobFailed(
            f"{picture.image}: the latent or image found is not finite: the model is damaged, or lr too high"
        )
    folder = make_folder(out / picture.folder)
    closest = to_uint8(found.reconstruction.cpu())
    difference = (to_tensor(picture.pixels[None]) - found.reconstruction.cpu()).float()
    image_grid(closest, folder / "reconstruction.png")
    losses = found.loss_history[:, 0].cpu().numpy()
    losses = losses[np.isfinite(losses)]
    record |= {"l2": float(difference.square().mean()), "steps": int(found.steps[0])}
    _write_latent(folder / "latent.npz", found, losses, record["distance"], search.spec["options"].get("seed", 0))
    shown = difference.abs().mean(1).numpy()
    triplets(picture.pixels[None], closest, shown, folder / "side_by_side.png", vmax=MAX_DIFFERENCE)
    if len(losses):
        loss_curve(losses, search.measured, record["distance"], folder / "loss.png")
    if frames is not None:
        search_animation(picture.pixels, frames, folder / "progress.gif")
    write_json(folder / RECORD, record)
    return record


def _write_latent(path: Path, found: Any, losses: Any, distance: float, seed: int) -> None:
    """`z`, `w` or `ws` `[1, ...]`, as `gan-uad generate --latents` takes them, `noise_00`, ... `[1, 1, h, w]`, and how they were found."""
    arrays = {found.space: found.latent.cpu().numpy()}
    for i, maps in enumerate(found.noise or []):
        arrays[f"noise_{i:02d}"] = maps.cpu().numpy()
    about = {"space": found.space, "seed": seed, "steps": int(found.steps[0]), "distance": distance}
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, loss=losses, **arrays, **{name: np.array(v) for name, v in about.items()})


def _write_summary(out: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    cells = [[f"{row[name]:.9g}" if isinstance(row[name], float) else row[name] for name in COLUMNS] for row in rows]
    write_text(out / TABLE, csv_text(COLUMNS, cells))
    write_json(out / SUMMARY, settings | {"images": [{name: row[name] for name in COLUMNS} for row in rows]})
