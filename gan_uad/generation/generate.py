"""`gan-uad generate`: images of a trained generator as files, one a seed or latent; the ways between them are in `interpolate`."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from gan_uad import __version__, console
from gan_uad.data.patches import Pixels, to_uint8
from gan_uad.device import prepare
from gan_uad.errors import UserError
from gan_uad.files import atomic, make_folder
from gan_uad.generation.latents import read_latents
from gan_uad.model import Model, load_model
from gan_uad.networks.sampling import Latents, check_style, draw, from_seeds, to_w
from gan_uad.plotting.pictures import image_grid
from gan_uad.run import model_file

CHUNK = 256
MOST = 1_000_000  # seeds of a range: more is a slip of the finger
GRID_SIDE = 8192  # px
NOTE = "gan_uad"  # the text in a PNG that says what it was made of


@dataclass(frozen=True)
class GeneratorSource:
    """A loaded generator, which latents it gets, and how it shall draw them."""

    model: Model
    digest: str  # of the model file
    seeds: list[int]  # empty: `latents` are from a file
    latents: Latents | None
    psi: float
    noise: str

    @property
    def G(self) -> Any:
        """The generator."""
        return self.model.generator

    def __len__(self) -> int:
        return len(self.seeds if self.latents is None else self.latents)

    @property
    def names(self) -> list[str]:
        """A file name for each image."""
        if self.latents is None:
            return [f"seed{seed:06d}.png" for seed in self.seeds]
        return [f"latent{row:06d}.png" for row in range(len(self))]

    def get(self, rows: slice) -> Latents:
        """The latents of some of the images."""
        return from_seeds(self.seeds[rows], self.G.z_dim) if self.latents is None else self.latents[rows]

    def chunks(self) -> Iterator[tuple[int, Latents]]:
        """All latents in order, few at a time, with the row that each part starts at; progress is shown."""
        with console.progress("generating", len(self)) as bar:
            for start in range(0, len(self), CHUNK):
                part = self.get(slice(start, start + CHUNK))
                yield start, part
                bar.update(start + len(part))


def open_source(
    run: str, seeds: list[int], latents: Path | None, psi: float = 1.0, noise: str = "const", device: str = "auto"
) -> GeneratorSource:
    """Load the generator of `run`; latents come from the file if there is one, else from `seeds`. Raises `UserError`."""
    model = load_model(run, prepare(device))
    G = model.generator
    check_style(G, psi, noise)
    with open(model_file(run), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if latents is not None:
        return GeneratorSource(model, digest, [], read_latents(latents, G), psi, noise)
    return GeneratorSource(model, digest, seeds, None, psi, noise)


def generate(
    run: str,
    seeds: list[int],
    out: Path,
    grid: bool = False,
    npz: bool = False,
    device: str = "auto",
    *,
    latents: Path | None = None,
    psi: float = 1.0,
    noise: str = "const",
) -> Path:
    """Write a PNG for every seed (or row of the file `latents`), or all in `images.npz` (see `write_npz`), and `grid.png` if asked.

    Run again after an interruption, PNGs that were made of the very same are left as they are; others are written anew.
    """
    source = open_source(run, seeds, latents, psi, noise, device)
    if grid:
        most = (GRID_SIDE // source.model.resolution) ** 2
        if len(source) > most:
            raise UserError(f"--grid: at most {most} images of {source.model.resolution} px, not {len(source)}")
    make_folder(out)
    shown: list[Pixels] | None = [] if grid else None
    there = 0
    if npz:
        write_npz(source, out / "images.npz", shown)
    else:
        there = write_pngs(source, out, shown)
    if shown:
        image_grid(np.concatenate(shown), out / "grid.png")
    console.say(f"{len(source)} images -> {out}" + (f" ({there} were there already)" if there else ""))
    return out


def write_pngs(source: GeneratorSource, out: Path, shown: list[Pixels] | None) -> int:
    """A PNG for each image, which says in a text chunk what it was made of; returns how many were there already."""
    there = 0
    names = source.names
    for start, latents in source.chunks():
        paths = [out / name for name in names[start : start + len(latents)]]
        notes = [_note(source, latents, i) for i in range(len(latents))]
        images = [_existing(path, note) for path, note in zip(paths, notes, strict=True)]
        todo = [i for i, image in enumerate(images) if image is None]
        if todo:
            mapped = to_w(source.G, _pick(latents, todo), source.psi)
            for i, image in zip(todo, to_uint8(draw(source.G, mapped, source.noise)), strict=True):
                _write_png(paths[i], image, notes[i])
                images[i] = image
        there += len(latents) - len(todo)
        if shown is not None:
            shown += [image[None] for image in images if image is not None]
    return there


def _pick(latents: Latents, rows: list[int]) -> Latents:
    maps = None if latents.maps is None else [of_layer[rows] for of_layer in latents.maps]
    return Latents(latents.space, latents.values[rows], [latents.seeds[i] for i in rows], maps)


def _note(source: GeneratorSource, latents: Latents, i: int) -> str:
    """All that image i of `latents` depends on, as JSON: two with the same note are the same (on the same kind of machine)."""
    origin: dict[str, Any] = {"seed": latents.seeds[i]}
    if source.latents is not None:
        origin = {"row": latents.seeds[i], latents.space: _digest(latents.values[i])}
        if latents.maps is not None:
            origin["noise_maps"] = _digest(*(of_layer[i] for of_layer in latents.maps))
    origin |= {"truncation": source.psi, "noise": source.noise, "model": source.digest}
    origin |= {"device": source.model.device.type, "version": __version__, "torch": str(torch.__version__)}
    return json.dumps(origin)


def _digest(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def _existing(path: Path, note: str) -> Pixels | None:
    """The picture under `path`, if it is whole and was made of what `note` says."""
    try:
        with Image.open(path) as image:
            return np.asarray(image) if image.info.get(NOTE) == note else None
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for damaged files
        return None


def _write_png(path: Path, image: Pixels, note: str) -> None:
    info = PngInfo()
    info.add_text(NOTE, note)
    with atomic(path) as temporary:
        Image.fromarray(image).save(temporary, format="png", pnginfo=info)


def write_npz(source: GeneratorSource, path: Path, shown: list[Pixels] | None) -> None:
    """`images` uint8 `[N, R, R, 3]`, `truncation`, `noise`, `seeds` `[N]` and `z` where there were any, `w` or `ws` of style-based nets.

    w and ws float32 are those that made the images: truncated. Noise maps that came with latents are kept beside them. Images go to
    the file as they come (not compressed: deflate takes 5 % off patches of tissue, and longer than making them), so that memory holds
    the latents only.
    """
    kept: dict[str, list[np.ndarray[Any, Any]]] = {}
    side = source.model.resolution
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(source), side, side, 3)}
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            for _, latents in source.chunks():
                mapped = to_w(source.G, latents, source.psi)
                images = to_uint8(draw(source.G, mapped, source.noise))
                entry.write(images.tobytes())
                if shown is not None:
                    shown.append(images)
                for part in {latents.space: latents, mapped.space: mapped}.values():
                    kept.setdefault(part.space, []).append(part.values.numpy())
        others = {"truncation": np.array(source.psi), "noise": np.array(source.noise)}
        if source.latents is None:
            others["seeds"] = np.array(source.seeds)
        elif source.noise == "const":
            others |= {f"noise_{i:02d}": maps.numpy() for i, maps in enumerate(source.latents.maps or [])}
        for name in [*others, *kept]:
            array = others[name] if name in others else np.concatenate(kept.pop(name))
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def parse_seeds(text: str) -> list[int]:
    """`"0-63"` and `"1,5,9"` and mixtures -> seeds of at most 18 digits, in that order. Raises `UserError` for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", part)
        if found is None:
            raise UserError(f"--seeds {text!r}: expected numbers and ranges such as 0-63 or 1,5,9")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(f"--seeds {text!r}: a range goes upwards, such as 0-63")
        if last - first >= MOST:
            raise UserError(f"--seeds {text!r}: a range holds at most {MOST:,} seeds; generate in several calls")
        seeds += range(first, last + 1)
    return seeds
