"""`gan-uad generate`: images of a trained generator as files, one per seed or latent."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections import Counter
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
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import atomic, make_folder
from gan_uad.generation.latents import read_latents
from gan_uad.model import Model, file_digest, load_model
from gan_uad.networks.sampling import Latents, check_style, draw, from_seeds, style_based, to_w
from gan_uad.plotting.pictures import image_grid

CHUNK = 256
MAX_SEEDS = 1_000_000  # of a range: more is a typing error
MAX_GRID = 8192  # px
LATENTS = ("z", "w", "ws", "noise_maps")  # keys of the digests of given latents in that text
PNG_KEY = "gan_uad"  # of the text in a PNG that says what the image depends on


@dataclass(frozen=True)
class GeneratorSource:
    """A loaded generator, its latents, and how it draws images of them."""

    model: Model
    digest: str  # of the model file
    seeds: list[int]  # empty where `latents` come from a file
    latents: Latents | None
    psi: float
    noise: str
    precision: str = "fp32"
    compiled: bool = False

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

    def draw(self, mapped: Latents) -> Pixels:
        """uint8 images `[N, R, R, 3]` of what `to_w` returned. Raises `JobFailed` for those of a generator that diverged."""
        images = draw(self.G, mapped, self.noise)
        bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten()
        if len(bad):
            seed = mapped.seeds[int(bad[0])]
            raise JobFailed(
                f"{self.model.path}: the generator makes images that are not finite (first: seed or row "
                f"{seed}): its training diverged, use an earlier checkpoint"
            )
        return to_uint8(images)

    def chunks(self, path: Latents | None = None) -> Iterator[tuple[int, Latents]]:
        """All latents (or those of `path`) in order, `CHUNK` at a time, with the row that each chunk starts at. Shows progress."""
        count = len(self if path is None else path)
        with console.progress("generating", count) as bar:
            for start in range(0, count, CHUNK):
                rows = slice(start, start + CHUNK)
                chunk = self.get(rows) if path is None else path[rows]
                yield start, chunk
                bar.update(start + len(chunk))


def open_source(
    run: str,
    seeds: list[int],
    latents: Path | None,
    psi: float = 1.0,
    noise: str = "const",
    device: str = "auto",
    precision: str = "fp32",
    compiled: bool = False,
) -> GeneratorSource:
    """Load the generator of `run`, and compile it if asked. Latents come from the file `latents`, else from `seeds`. Raises `UserError`."""
    model = load_model(run, prepare(device, precision=precision))
    check_style(model.generator, psi, noise)
    found = None if latents is None else read_latents(latents, model.generator)
    source = GeneratorSource(
        model, file_digest(run)[:16], seeds if found is None else [], found, psi, noise, precision, compiled
    )
    if compiled:
        _compile(source)
    return source


def _compile(source: GeneratorSource) -> None:
    """Compile the network that makes the images, by a first image. Raises `UserError` where this machine cannot."""
    console.say("compiling the generator, which takes a minute")
    (source.G.synthesis if style_based(source.G) else source.G).compile()
    try:
        draw(source.G, to_w(source.G, source.get(slice(1)), source.psi), source.noise)
    except Exception as error:  # of the compiler, its linker or its cache: many kinds
        why = str(error).strip().partition("\n")[0][:150]
        raise UserError(
            f"this machine cannot compile networks ({type(error).__name__}: {why}): leave --compile out"
        ) from None


def generate(
    run: str,
    seeds: list[int],
    out: Path,
    grid: bool = False,
    npz: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    compiled: bool = False,
    *,
    latents: Path | None = None,
    psi: float = 1.0,
    noise: str = "const",
) -> Path:
    """Write a PNG per seed (or row of the file `latents`), or all images to `images.npz` (see `write_npz`); `grid` adds `grid.png`.

    An interrupted call can be resumed by calling it again. PNGs of the same seeds by other settings or versions are
    replaced, and so is `images.npz` of the same model. Raises `UserError` for a seed that is named twice, for a folder with PNGs or an
    `images.npz` of another model, and where PNGs of other settings or latents would stay beside the new ones.
    """
    repeated = [seed for seed, count in Counter(seeds).items() if count > 1]
    if repeated:
        raise UserError(
            f"--seeds names seed {repeated[0]} more than once, and an image is written once: name each seed once"
        )
    source = open_source(run, seeds, latents, psi, noise, device, precision, compiled)
    limit = (MAX_GRID // source.model.resolution) ** 2
    if grid and len(source) > limit:
        raise UserError(f"--grid: at most {limit} images of {source.model.resolution} px, not {len(source)}")
    _check_others(source, out)
    _check_npz(source, out / "images.npz", replaced=npz)
    make_folder(out)
    existing = 0
    if npz:
        write_npz(source, out / "images.npz")
    else:
        existing = write_pngs(source, out)
    if grid:
        image_grid(_written(source, out, npz), out / "grid.png")
    console.say(f"{len(source)} images -> {out}" + (f" ({existing} existed already)" if existing else ""))
    return out


def write_pngs(source: GeneratorSource, out: Path) -> int:
    """A PNG per image, with all that it depends on in a text chunk. Returns how many existed already."""
    existing, names = 0, source.names
    for start, latents in source.chunks():
        paths = [out / name for name in names[start : start + len(latents)]]
        notes = [_note(source, latents, i) for i in range(len(latents))]
        todo = [i for i in range(len(latents)) if not _exists(paths[i], notes[i])]
        if todo:
            mapped = to_w(source.G, _pick(latents, todo), source.psi)
            for i, image in zip(todo, source.draw(mapped), strict=True):
                _write_png(paths[i], image, notes[i])
        existing += len(latents) - len(todo)
    return existing


def _check_others(source: GeneratorSource, out: Path) -> None:
    """Raise `UserError` where the folder holds images of another model, or others that would stay beside those of `source` unlike them."""
    rows = {name: row for row, name in enumerate(source.names)}
    changed, stays = False, None

    def refused(what: str, file: Path) -> UserError:
        return UserError(f"{out} holds images of {what}, such as {file.name}: choose another folder with --out")

    for file in sorted(out.glob("*.png")) if out.is_dir() else ():
        if not (found := _read_note(file)):
            continue
        if found.get("model") != source.digest:
            raise refused("another model", file)
        if (row := rows.get(file.name)) is not None:  # it will be replaced where it differs
            if source.latents is not None and not changed:
                ours = json.loads(_note(source, source.get(slice(row, row + 1)), 0))
                changed = any(found.get(key) != ours.get(key) for key in LATENTS)
            continue
        for key, value in (("truncation", source.psi), ("noise", source.noise)):
            if found.get(key) != value:
                raise refused(f"--{key} {found.get(key)}, not {value}", file)
        if ("row" in found) != (source.latents is not None):
            raise refused("--latents, not of seeds" if "row" in found else "seeds, not of --latents", file)
        stays = file
    if changed and stays is not None:
        raise refused("other --latents", stays)


def _check_npz(source: GeneratorSource, file: Path, replaced: bool) -> None:
    """Raise `UserError` where `file` is of another model, or would be replaced and does not say of which it is."""
    if not file.exists():
        return
    try:
        with np.load(file, allow_pickle=False) as arrays:
            model = str(arrays["model"]) if "model" in arrays else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        model = None
    if model == source.digest or (model is None and not replaced):
        return
    of = "does not say of which model it is, and would be replaced" if model is None else "is of another model"
    raise UserError(f"{file} {of}: choose another folder with --out, or move it away")


def _read_note(file: Path) -> dict[str, Any] | None:
    """What a PNG says that it depends on; None for a picture that `generate` did not write, and for a damaged one."""
    try:
        with Image.open(file) as image:
            found = json.loads(image.info.get(PNG_KEY, "null"))
    except (OSError, SyntaxError, ValueError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _written(source: GeneratorSource, out: Path, npz: bool) -> Pixels:
    """All images, as they were written."""
    if npz:
        with np.load(out / "images.npz") as file:
            images: Pixels = file["images"]
            return images
    return np.stack([np.asarray(Image.open(out / name)) for name in source.names])


def _pick(latents: Latents, rows: list[int]) -> Latents:
    maps = None if latents.maps is None else [of_layer[rows] for of_layer in latents.maps]
    return Latents(latents.space, latents.values[rows], [latents.seeds[i] for i in rows], maps)


def _note(source: GeneratorSource, latents: Latents, i: int) -> str:
    """All that image i of `latents` depends on, as JSON. Images with the same note are equal (on the same kind of machine)."""
    origin: dict[str, Any] = {"seed": latents.seeds[i]}
    if source.latents is not None:
        origin = {"row": latents.seeds[i], latents.space: _digest(latents.values[i])}
        if latents.maps is not None:
            origin["noise_maps"] = _digest(*(of_layer[i] for of_layer in latents.maps))
    origin |= {"truncation": source.psi, "noise": source.noise, "model": source.digest}
    origin |= {"precision": source.precision} if source.precision != "fp32" else {}
    origin |= {"compiled": True} if source.compiled else {}
    origin |= {"device": source.model.device.type, "version": __version__, "torch": str(torch.__version__)}
    return json.dumps(origin)


def _digest(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def _exists(path: Path, note: str) -> bool:
    """Whether the file `path` is a complete image with this note."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.info.get(PNG_KEY) == note
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for damaged files
        return False


def _write_png(path: Path, image: Pixels, note: str) -> None:
    info = PngInfo()
    info.add_text(PNG_KEY, note)
    with atomic(path) as temporary:
        Image.fromarray(image).save(temporary, format="png", pnginfo=info)


def write_npz(source: GeneratorSource, path: Path) -> None:
    """Write `images` uint8 `[N, R, R, 3]`, `truncation`, `noise`, `model` (digest of its file), `seeds` `[N]` and `z` if given, `w` or `ws`
    of style-based nets.

    w and ws are float32, after truncation. Noise maps that were given with latents are included. Images are written chunk by chunk, so
    memory holds only the latents; uncompressed, because deflate saves 5 % on tissue and takes longer than generating.
    """
    kept: dict[str, list[np.ndarray[Any, Any]]] = {}
    side = source.model.resolution
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(source), side, side, 3)}
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            for _, latents in source.chunks():
                mapped = to_w(source.G, latents, source.psi)
                entry.write(source.draw(mapped).tobytes())
                for each in {latents.space: latents, mapped.space: mapped}.values():
                    kept.setdefault(each.space, []).append(each.values.numpy())
        others = {"truncation": np.array(source.psi), "noise": np.array(source.noise), "model": np.array(source.digest)}
        if source.latents is None:
            others["seeds"] = np.array(source.seeds)
        elif source.noise == "const":
            others |= {f"noise_{i:02d}": maps.numpy() for i, maps in enumerate(source.latents.maps or [])}
        for name in [*others, *kept]:
            array = others[name] if name in others else np.concatenate(kept.pop(name))
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def parse_seeds(text: str) -> list[int]:
    """`"0-63"`, `"1,5,9"` and mixtures -> seeds of at most 18 digits, in that order. Raises `UserError` for anything else."""
    seeds: list[int] = []
    for word in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", word)
        if found is None:
            raise UserError(f"--seeds {text!r}: expected numbers and ranges such as 0-63 or 1,5,9")
        first, last = int(found[1]), int(found[2] or found[1])
        if not 0 <= last - first < MAX_SEEDS:
            raise UserError(
                f"--seeds {text!r}: a range goes upwards, such as 0-63, and holds at most {MAX_SEEDS:,} seeds"
            )
        seeds += range(first, last + 1)
    return seeds
