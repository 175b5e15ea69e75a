"""`gan-uad tile`: from whole slides to a set of patches with its `index.csv`.

Each slide gets a folder of its own in the output, which appears whole or not at all: the tiles, `tiles.csv` (its rows of the index),
`tissue.png`, `contact_sheet.jpg`, and `slide.json`, which says what it was made of. `index.csv` is made of the slides that are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gan_uad import console
from gan_uad.data.sources import INDEX, RECORD
from gan_uad.errors import UserError
from gan_uad.files import alone, atomic, claim, explained, make_folder, write_json
from gan_uad.slides.annotations import find_annotation
from gan_uad.slides.batch import SlideTask, each, tasks_of, tell_failures
from gan_uad.slides.tile_slide import COLUMNS, ROWS, TileSettings, cut_slide

SETTINGS = "tile.json"


def tile(
    slides: Sequence[Path], out: Path, settings: TileSettings, annotations: Path | None = None,
    shard: tuple[int, int] = (0, 1), workers: int = 1,
) -> Path:  # fmt: skip
    """Cut `slides` into tiles below `out`, and write `index.csv` over all slides that are there; returns `out`.

    annotations: folder of annotations, or the one of a single slide. shard: (i, n): every n-th of the slides, from the i-th on (from 0);
    all shards may write into one folder at the same time. workers: threads that read and write.

    A slide that was cut from the same file and annotation is left as it is. One that fails is told of at the end, and does not keep the
    others from being cut: `JobFailed` after all of them. Raises `UserError` where `out` holds tiles of other settings.
    """
    if annotations is not None and not annotations.exists():
        raise UserError(f"--annotations {annotations}: no such file or folder")
    if annotations is not None and annotations.is_file() and len(slides) > 1:
        raise UserError(
            f"--annotations {annotations}: one file for {len(slides)} slides; give the folder that holds theirs"
        )
    out = make_folder(out)
    claim(out, SETTINGS, asdict(settings), "tiles cut", "*")
    failures: list[tuple[Path, str]] = []
    tasks = tasks_of(slides, shard, lambda name: _identity(out / name), failures)
    done: Counter[str] = Counter()

    def work(task: SlideTask) -> str:
        record, said = _cut(task, out, settings, annotations, workers)
        done.update(record["labels"])
        return said

    try:
        cut = each(tasks, work, failures)
    finally:
        _write_index(out)
    console.say(f"{out}: {sum(done.values()):,} tiles of {cut:,} slides" + _listed(done))
    tell_failures(failures, "tiled", f"{cut} are in {out}")
    return out


def check_settings(settings: TileSettings) -> None:
    """Raises `UserError` for what cannot work with any slide."""
    try:
        re.compile(settings.group or "")
    except re.error as error:
        raise UserError(f"--group {settings.group!r} is no regular expression: {error}") from None
    if settings.choice == "random" and settings.per_slide is None:
        raise UserError("--per-slide all goes with --grid only: tiles at random places have no end")
    if settings.choice == "random" and settings.stride != 1.0:
        raise UserError("--stride goes with --grid only")


def settings_of(folder: Path) -> dict[str, Any] | None:
    """What the patches of a folder were cut with, `TileSettings` by name; None where it was not written by `tile`."""
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _cut(
    task: SlideTask, out: Path, settings: TileSettings, annotations: Path | None, workers: int
) -> tuple[dict[str, Any], str]:
    """Cut one slide, unless it is there already; returns its record, and what to say of it."""
    annotation = annotations
    if annotations is not None and annotations.is_dir():
        annotation = find_annotation(annotations, task.path, task.alone)
    drawn = None if annotation is None else hashlib.blake2b(annotation.read_bytes(), digest_size=8).hexdigest()
    folder, lock = out / task.name, out / f".{task.name}.lock"
    with alone(lock):
        there = _record(folder)
        if there is not None and (there["identity"], there["annotation_hash"]) == (task.identity, drawn):
            lock.unlink(missing_ok=True)
            return there, f"{there['tiles']:,} tiles are there already"
        if there is None and folder.exists():
            raise UserError(f"{folder} is in the way: it was not made by this command")
        start, temporary = time.monotonic(), out / f".{task.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        try:
            with explained(temporary):
                temporary.mkdir()
            record = cut_slide(task.path, task.name, task.identity, annotation, temporary, settings, workers)
            record["annotation_hash"] = drawn
            write_json(temporary / RECORD, record)
            with explained(folder):
                shutil.rmtree(folder, ignore_errors=True)  # of the same slide with another annotation
                os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            lock.unlink(missing_ok=True)
    what = f"{record['tiles']:,} tiles" + _listed(record["labels"]) if record["tiles"] else "no tiles"
    tissue = f"{record['tissue_share']:.0%} of it is tissue" if record["tissue_share"] else "no tissue was found"
    return record, f"{what}; {tissue}; {console.duration(time.monotonic() - start)}"


def _listed(counts: dict[str, int]) -> str:
    return f" ({', '.join(f'{n:,} {name}' for name, n in sorted(counts.items()))})" if counts else ""


def _record(folder: Path) -> dict[str, Any] | None:
    """What a folder of the output was cut from; None where it is none."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        found
        if isinstance(found, dict) and {"identity", "annotation_hash", "tiles", "labels"} <= found.keys()
        else None
    )


def _identity(folder: Path) -> str | None:
    there = _record(folder)
    return None if there is None else str(there["identity"])


def _write_index(out: Path) -> None:
    """The rows of all slides that are there. Shards that end together wait for each other, so that the last sees all."""
    lock = out / f".{INDEX}.lock"
    with alone(lock), atomic(out / INDEX) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(",".join(COLUMNS) + "\n")
        for folder in _folders(out):
            file.writelines((folder / ROWS).read_text(encoding="utf-8").splitlines(keepends=True)[1:])
    with suppress(OSError):
        lock.unlink()


def _folders(out: Path) -> Iterator[Path]:
    for folder in sorted(out.iterdir()):
        if not folder.name.startswith(".") and _record(folder) is not None:
            yield folder
