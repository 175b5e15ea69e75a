"""Images of one size as a memory-mapped array on disk: made once from a source, found again by a key of its content and settings.

A cache is two files, `<name>-<key>.npy` (uint8 [N, R, R, 3]) and a `.json` beside it: which rows of the source these are, which were
skipped, and the checksum. Both are written atomically, so that two processes may build the same cache at once, and an incomplete or
damaged one is never used. Without a usable folder the images stay in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gan_uad.config import DataConfig
from gan_uad.data.arrays import digest
from gan_uad.data.contents import default_dir
from gan_uad.data.images import BadImage, Pixels, preprocess, tissue_share
from gan_uad.data.sources import Source
from gan_uad.device import cores
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import atomic, make_folder, read_json, write_text

Progress = Callable[[int, int], None]

FORMAT = 3  # of the files: one of another format is built again
VERSION = 2  # of the images: raise it when the same settings give other bytes
OLD_VERSION = 1  # of the keys that version 0.2 and before wrote into runs
STALE_S = 86400  # a temporary file older than this was left by a process that was killed
GB = 1e9


@dataclass(kw_only=True)
class Tally:
    """Which rows of a source are used."""

    rows: list[int] = field(default_factory=list)  # [N] indices into the source's manifest
    hashes: list[str] = field(default_factory=list)  # [N] of the pixels as they were read, 16 hexadecimal digits
    sizes: dict[str, int] = field(default_factory=dict)  # {"96x96": images}, of the pixels as they were read
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (name, reason) of broken images
    white: int = 0  # images left out for too little tissue
    cut: int = 0  # images that were not square and lost their longer sides
    passing: int = 0  # of the skipped, those that the machine failed to read: the next call tries again


@dataclass(kw_only=True)
class Prepared(Tally):
    """Images ready for a network."""

    images: Pixels  # [N, R, R, 3]
    key: str
    old_key: str = ""  # as version 0.2 and before made it
    notes: list[str] = field(default_factory=list)


def cache_key(source: Source, data: DataConfig, resolution: int, old: bool = False) -> str:
    """A key of everything that decides the pixels: the source's files and every setting of `preprocess`; not labels, nor splits.

    old: as version 0.2 and before made it.
    """
    side = (data.crop_size or resolution) if data.crop == "center" else None
    tissue = source.manifest.tissue.tolist() if data.min_tissue else None
    settings = (data.crop, side, data.resize, data.grayscale, data.min_tissue)
    version, files = (OLD_VERSION, source.old_fingerprint()) if old else (VERSION, source.fingerprint())
    return digest(version, files, resolution, settings, tissue)


def prepare(
    source: Source, data: DataConfig, resolution: int, folder: Path | None = None, progress: Progress | None = None
) -> Prepared:
    """The source's images at one resolution: from the cache in `folder` (None: `default_dir`), or built into it.

    Raises `UserError` for `data.strict` and a broken image, `JobFailed` when the set fits neither on disk nor in memory.
    """
    folder = default_dir() if folder is None else folder
    key = cache_key(source, data, resolution)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.path.stem)[:40] or "patches"
    target = folder / f"{name}-{resolution}-{key[:16]}.npy"
    old_key = cache_key(source, data, resolution, old=True)
    found = _load(target, key, resolution)
    if found is None:
        earlier = _earlier(target, target.with_name(f"{name}-{resolution}-{old_key[:16]}.npy"))
        try:
            _write(target, key, source, data, resolution, progress)
            found = _load(target, key, resolution, just_read=True)
            problem = f"{target} does not read back as written"
        except (UserError, JobFailed) as error:  # of `files`: no permission to write, or a full disk
            problem = error.message
        if found is None:
            found = _in_memory(key, source, data, resolution, progress, f"no cache ({problem})")
        elif earlier:
            found.notes.append("the pixel cache was of an earlier version and was built again")
    found.old_key = old_key
    if found.passing:  # another set than the one without these faults
        found.key, found.old_key = (digest(made, found.skipped) for made in (found.key, found.old_key))
        found.notes.append(f"{found.passing} images could not be read: they are tried again the next time")
    if data.strict and found.skipped:
        bad, reason = found.skipped[0]
        raise UserError(f"{source.path}: {len(found.skipped)} broken images (data.strict), the first: {bad}: {reason}")
    return found


def _load(target: Path, key: str, resolution: int, just_read: bool = False) -> Prepared | None:
    """The cache where it exists and is complete, else None. One with images that the machine failed to read serves only who made it."""
    facts = read_json(target.with_suffix(".json"))
    try:
        images = np.load(target, mmap_mode="r", allow_pickle=False)
        shape = (len(facts["rows"]), resolution, resolution, 3)
        if facts["key"] != key or facts.get("format") != FORMAT or (images.shape, images.dtype) != (shape, np.uint8):
            return None
        if len(facts["hashes"]) != len(facts["rows"]) or (facts["passing"] and not just_read):
            return None
        if _checksum(target) != facts["crc32"]:
            return None
        skipped = [(str(bad), str(reason)) for bad, reason in facts["skipped"]]
        kept = {name: facts[name] for name in ("rows", "hashes", "sizes", "white", "cut", "passing")}
        return Prepared(images=images, key=key, skipped=skipped, **kept)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _earlier(target: Path, old: Path) -> bool:
    """Whether an earlier version has built this cache: as `target` in another format, or as `old`, which is removed."""
    facts = read_json(target.with_suffix(".json"))
    if found := old.is_file():
        for file in (old, old.with_suffix(".json")):
            with suppress(OSError):
                file.unlink(missing_ok=True)
    return found or (target.is_file() and isinstance(facts, dict) and facts.get("format") != FORMAT)


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def _write(
    target: Path, key: str, source: Source, data: DataConfig, resolution: int, progress: Progress | None
) -> None:
    """Build the cache. Written as a plain file: a full disk is then an OSError, where a memory map would die of SIGBUS."""
    for left in make_folder(target.parent).glob(".*.tmp"):
        if time.time() - left.stat().st_mtime > STALE_S:
            left.unlink(missing_ok=True)
    tally = Tally()
    with atomic(target) as temporary:
        with temporary.open("wb") as file:
            _header(file, len(source.manifest), resolution)
            for image in usable(source, data, resolution, tally, progress):
                file.write(image.tobytes())
            file.seek(0)
            _header(file, len(tally.rows), resolution)  # numpy pads headers so that the number of rows may change
        crc = _checksum(temporary)
    facts = {
        "format": FORMAT,
        "key": key,
        "source": str(source.path),
        "settings": data.model_dump(),
        "resolution": resolution,
    }
    write_text(target.with_suffix(".json"), json.dumps(facts | vars(tally) | {"crc32": crc}))


def _header(file: BinaryIO, n: int, resolution: int) -> None:
    shape = (n, resolution, resolution, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _in_memory(
    key: str, source: Source, data: DataConfig, resolution: int, progress: Progress | None, why: str
) -> Prepared:
    size = len(source.manifest) * resolution**2 * 3
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > free / 2:
        raise JobFailed(
            f"{why}, and {size / GB:.1f} GB of images do not fit into memory ({free / GB:.1f} GB free): "
            "set GAN_UAD_CACHE to a folder with enough space"
        )
    tally = Tally()
    images = np.empty((len(source.manifest), resolution, resolution, 3), np.uint8)
    for n, image in enumerate(usable(source, data, resolution, tally, progress)):
        images[n] = image
    notes = [f"{why}: the images are kept in memory, and read again next time"]
    return Prepared(images=images[: len(tally.rows)], key=key, notes=notes, **vars(tally))


def usable(
    source: Source, data: DataConfig, resolution: int, tally: Tally, progress: Progress | None
) -> Iterator[Pixels]:
    """The usable images in the order of the manifest, read by one thread per core, and counted in `tally`."""
    tissue = source.manifest.tissue

    def read(i: int) -> tuple[Pixels | None, str, tuple[int, int]] | BadImage:
        name = source.manifest.image[i]
        try:
            image = source.read(i)
            height, width = image.shape[:2]
            if data.min_tissue:
                share = tissue[i] if not np.isnan(tissue[i]) else tissue_share(image, data, resolution, name)
                if share < data.min_tissue:
                    return None, "", (width, height)
            return preprocess(image, data, resolution, name), pixel_hash(image), (width, height)
        except BadImage as error:
            return error
        except MemoryError:
            return BadImage(name, "not enough memory to read it", passing=True)

    total = len(source.manifest)
    with ThreadPoolExecutor(cores()) as pool:
        for i, result in enumerate(_ordered(pool, read, total)):
            if progress:
                progress(i + 1, total)
            if isinstance(result, BadImage):
                tally.skipped.append((result.name, result.reason))
                tally.passing += result.passing
                continue
            pixels, content, (width, height) = result
            if pixels is None:
                tally.white += 1
                continue
            tally.rows.append(i)
            tally.hashes.append(content)
            size = f"{width}x{height}"
            tally.sizes[size] = tally.sizes.get(size, 0) + 1
            tally.cut += data.crop == "none" and width != height
            yield pixels


def pixel_hash(image: Pixels) -> str:
    """16 hexadecimal digits that are equal for images of equal size and pixels, whatever their files."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8, key=repr(image.shape).encode()).hexdigest()


def _ordered(pool: ThreadPoolExecutor, read: Callable[[int], Any], total: int) -> Iterator[Any]:
    """`pool.map` in blocks, so that no more than a few hundred images wait in memory."""
    rows = iter(range(total))
    while block := list(islice(rows, 256)):
        yield from pool.map(read, block)
