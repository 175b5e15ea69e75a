"""`gan-uad tile`: from whole slides to a set of patches with its `index.csv`.

Each slide gets its own folder in the output, which appears complete or not at all: tiles, `tiles.csv` (the slide's rows of the index),
`tissue.png`, `contact_sheet.jpg` and `slide.json` (how it was made). `index.csv` covers all finished slides.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gan_uad import console
from gan_uad.data.sources import INDEX, RECORD
from gan_uad.errors import UserError
from gan_uad.files import alone, atomic, claim, explained, read_json, write_json
from gan_uad.slides.base import BOUNDED
from gan_uad.slides.batch import SlideTask, each_slide, finished_slides, read_record
from gan_uad.slides.matching import Matches, match_annotations
from gan_uad.slides.slide_list import Told, slide_list
from gan_uad.slides.tile_slide import COLUMNS, ROWS, TileSettings, cut_slide

SETTINGS = "tile.json"
KEYS = ("identity", "annotation_hash", "tiles", "labels")  # of a tiled slide's record


def tile(
    slides: Sequence[Path], out: Path, settings: TileSettings, annotations: Path | None = None,
    shard: tuple[int, int] = (0, 1), workers: int = 1, slides_csv: Path | None = None, strict: bool = False,
) -> Path:  # fmt: skip
    """Cut `slides` into tiles below `out`, and write `index.csv` over all finished slides; returns `out`.

    `annotations`: a folder of annotation files (see `match_annotations`), or one file for a single slide. `shard` (i, n): every n-th
    slide, starting at the i-th (from 0); all shards may write into one folder at the same time. `workers`: threads that read and write.
    `slides_csv`: a table of µm/px, patient and label by slide (`SlideList`). `strict`: refuse to start where a slide has no annotation
    or row, or a file of the folder or a row is unused.

    A slide that was cut from the same file, annotation and row of the table is left as it is. A slide that fails does not stop the
    others: `JobFailed` at the end. Raises `UserError` where `out` holds tiles of other settings.
    """
    if annotations is not None and not annotations.exists():
        raise UserError(f"--annotations {annotations}: no such file or folder")
    if annotations is not None and annotations.is_file() and len(slides) > 1:
        raise UserError(f"--annotations {annotations}: one file for {len(slides)} slides; name a folder of annotations")
    matches: Path | Matches | None = annotations
    if annotations is not None and annotations.is_dir():
        matches = match_annotations(annotations, slides)
        matches.report(strict, settings.unannotated == "normal")
    table = slide_list(slides_csv, slides, settings.slide_mpp, settings.group, strict)
    claim(out, SETTINGS, asdict(settings), "tiles cut", "*")
    records: list[dict[str, Any]] = []

    def work(task: SlideTask) -> str:
        told = Told() if table is None else table.of(task.path)
        record, message = _cut(task, out, settings, matches, workers, told)
        records.append(record)
        return message

    def finish() -> None:
        _write_index(out)
        total: Counter[str] = Counter()
        for record in records:
            total.update(record["labels"])
        console.say(f"{out}: {sum(total.values()):,} tiles of {len(records):,} slides" + _listed(total))

    each_slide(slides, shard, out, KEYS, work, finish, "tiled")
    return out


def check_settings(settings: TileSettings) -> None:
    """Raises `UserError` for settings that cannot work with any slide."""
    try:
        re.compile(settings.group or "")
    except re.error as error:
        raise UserError(f"--group {settings.group!r} is no regular expression: {error}") from None
    if settings.choice == "random" and settings.per_slide is None:
        raise UserError("--per-slide all needs --grid")
    if settings.choice == "random" and settings.stride != 1.0:
        raise UserError("--stride needs --grid")


def settings_of(folder: Path) -> dict[str, Any] | None:
    """The `TileSettings`, by name, of a folder that `tile` wrote; None for another folder."""
    found = read_json(folder / SETTINGS)
    return found if isinstance(found, dict) else None


def _cut(
    task: SlideTask, out: Path, settings: TileSettings, matches: Path | Matches | None, workers: int, told: Told
) -> tuple[dict[str, Any], str]:
    """Cut one slide, unless it is finished; returns its record and a message."""
    annotation = matches.of(task.path, task.other) if isinstance(matches, Matches) else matches
    digest = None if annotation is None else hashlib.blake2b(annotation.read_bytes(), digest_size=8).hexdigest()
    of_qupath = annotation is not None and annotation.suffix.lower() != ".xml"
    folder, lock = out / task.name, out / f".{task.name}.lock"
    with alone(lock):
        record = read_record(folder, KEYS)
        wanted = {"identity": task.identity, "annotation_hash": digest, "told": asdict(told)}
        placed = record is not None and ("origin" in record or not (of_qupath and task.path.suffix.lower() in BOUNDED))
        if record is not None and placed and {"told": asdict(Told()), **record}.items() >= wanted.items():
            lock.unlink(missing_ok=True)
            return record, f"{record['tiles']:,} tiles are there already"
        if record is None and folder.exists():
            raise UserError(f"{folder} is in the way: it was not made by this command")
        start, temporary = time.monotonic(), out / f".{task.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        try:
            with explained(temporary):
                temporary.mkdir()
            record = cut_slide(task, annotation, temporary, settings, workers, told) | wanted
            write_json(temporary / RECORD, record)
            with explained(folder):
                shutil.rmtree(folder, ignore_errors=True)  # of the same slide with another annotation
                os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            lock.unlink(missing_ok=True)
    count = f"{record['tiles']:,} tiles" + _listed(record["labels"]) if record["tiles"] else "no tiles"
    tissue = f"{record['tissue_share']:.0%} of it is tissue" if record["tissue_share"] else "no tissue was found"
    return record, f"{count}; {tissue}; {console.duration(time.monotonic() - start)}"


def _listed(counts: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{n:,} {name}' for name, n in sorted(counts.items()))})" if counts else ""


def _write_index(out: Path) -> None:
    """The rows of all finished slides. Shards that end at the same time wait for each other, so that the last one sees all."""
    lock = out / f".{INDEX}.lock"
    with alone(lock), atomic(out / INDEX) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(",".join(COLUMNS) + "\n")
        for folder, _ in finished_slides(out, KEYS):
            file.writelines((folder / ROWS).read_text(encoding="utf-8").splitlines(keepends=True)[1:])
    with suppress(OSError):
        lock.unlink()
