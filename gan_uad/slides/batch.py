"""A batch of slides: a name and a folder for each, shards, and failures that stop no other slide."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from gan_uad import console
from gan_uad.data.sources import RECORD
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import read_json

SLIDES = "slides.csv"  # written by `gan-uad score-slide`: one row per slide
HASHED = 1 << 20  # bytes at each end of a slide file that its identity is computed from

Failures = list[tuple[Path, str]]  # slide file and reason


@dataclass(frozen=True)
class SlideTask:
    """One slide to process.

    `name`: of its folder in the output. `identity`: hash of the file. `alone`: no other slide of the batch, and none that the output holds,
    has the same stem. `other`: the file of one that the output holds.
    """

    path: Path
    name: str
    identity: str
    alone: bool
    other: str | None = None


def each_slide(
    slides: Sequence[Path], shard: tuple[int, int], out: Path, keys: Sequence[str], work: Callable[[SlideTask], str],
    finish: Callable[[], None], done: str,
) -> None:  # fmt: skip
    """Do `work` (which returns a message) for every slide of the shard, and then `finish`, even after an interruption.

    `shard` (i, n): every n-th slide, starting at the i-th (from 0). `keys`: see `read_record`. A slide that fails is listed at the end
    as not `done` ("scored"). Raises `JobFailed` then, and at once where the disk is full.
    """
    failures: Failures = []
    tasks = _tasks(slides, shard, out, keys, failures)
    try:
        for number, task in enumerate(tasks, 1):
            count = f"[{number}/{len(tasks)}]"
            try:
                message = work(task)
            except JobFailed:  # the disk is full: the other slides would fail too
                raise
            except Exception as error:  # a damaged file may raise anything
                failures.append((task.path, _reason(error)))
                console.say(f"{count} {task.path}: FAILED, {failures[-1][1]}")
            else:
                console.say(f"{count} {task.name}: {message}")
    finally:
        finish()
    for path, reason in failures:
        click.echo(f"FAILED {path}: {reason}", err=True)
    if failures:
        raise JobFailed(f"{len(failures)} slides could not be {done}, see above; the others are in {out}")


def read_record(folder: Path, keys: Sequence[str]) -> dict[str, Any] | None:
    """`slide.json` of a slide's folder, which is written last; None where it is missing or lacks one of `keys`."""
    found = read_json(folder / RECORD)
    return found if isinstance(found, dict) and {*keys} <= found.keys() else None


def finished_slides(out: Path, keys: Sequence[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folder and record of every finished slide in an output folder, by name."""
    for folder in sorted(out.iterdir()):
        record = None if folder.name.startswith(".") else read_record(folder, keys)
        if record is not None:
            yield folder, record


def _tasks(
    slides: Sequence[Path], shard: tuple[int, int], out: Path, keys: Sequence[str], failures: Failures
) -> list[SlideTask]:
    """The slides of a shard under distinct names. Files that cannot be read are added to `failures`.

    A name gets the first digits of the slide's identity appended where two slides share it, or where the output holds another slide
    under it.
    """
    files = list(dict.fromkeys(slides))
    count = Counter(_name(path) for path in files)
    found: dict[tuple[str, str], Path] = {}
    first: dict[str, Path] = {}  # file of each identity
    tasks = []
    for path in files[shard[0] :: shard[1]]:
        name = _name(path)
        try:
            identity = identify(path)
        except UserError as error:
            failures.append((path, error.message))
            continue
        if (name, identity) in found:
            console.say(f"{path} is the same slide as {found[name, identity]} and is left out")
            continue
        found[name, identity] = path
        if first.setdefault(identity, path) != path:
            console.say(f"{path} holds the same as {first[identity]}; under its other name it counts as another slide")
        record, alone = read_record(out / name, keys), count[name] == 1
        plain = alone if record is None else record["identity"] == identity
        other = None if record is None or plain else str(record.get("file") or record["slide"])
        if other == str(path):
            failures.append(
                (path, f"{out / name} is of an earlier file at this path: delete that folder, or choose another --out")
            )
            continue
        tasks.append(
            SlideTask(path, name if plain else f"{name}-{identity[:6]}", identity, alone and other is None, other)
        )
    return tasks


def holds_slides(folder: Path) -> bool:
    """Whether a folder was written by `gan-uad score-slide`."""
    return (folder / SLIDES).is_file()


def parse_shard(text: str | None) -> tuple[int, int]:
    """`2/8` -> (1, 8): the second of eight. None: the shard of this process under torchrun, else (0, 1)."""
    if text is None:
        try:
            return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError as error:
            raise UserError(f"RANK and WORLD_SIZE of the environment: {error}") from None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard {text}: expected I/N, from 1/N to N/N, such as 2/8")
    return int(found[1]) - 1, int(found[2])


def identify(path: Path) -> str:
    """A hash of a slide file's size, first and last MiB; it does not depend on the path. Raises `UserError`."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(str(size).encode() + file.read(HASHED), digest_size=8)
            file.seek(max(0, size - HASHED))
            digest.update(file.read(HASHED))
    except IsADirectoryError:
        raise UserError("is a folder; name the slide files in it") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """One line; an unexpected error is named with its type."""
    if isinstance(error, click.ClickException):
        return error.message
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _name(path: Path) -> str:
    """The stem, as the name of a folder that every reader of the set accepts."""
    return re.sub(r"[\x00-\x1f\\]", "_", path.stem).strip().lstrip(".") or "slide"
