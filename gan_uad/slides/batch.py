"""What a batch of slides is made of: which slide goes by which name, and which of several processes does it."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from gan_uad import console
from gan_uad.errors import JobFailed, UserError

SLIDES = "slides.csv"  # of `gan-uad score-slide`: a row a slide
PROBED = 1 << 20  # bytes at each end of a slide file that tell it from others


@dataclass(frozen=True)
class SlideTask:
    """One slide to work on: its file, its name in the output, what tells it from others, and whether no other has its stem."""

    path: Path
    name: str
    identity: str
    alone: bool


def tasks_of(
    slides: Sequence[Path],
    shard: tuple[int, int],
    identity_there: Callable[[str], str | None],
    failures: list[tuple[Path, str]],
) -> list[SlideTask]:
    """This shard's slides under names that differ: (i, n) is every n-th, from the i-th on (from 0).

    A name that two slides share gets the first digits of the slide's identity behind it, and so does one that the output holds another
    slide under. identity_there: of what the output holds under a name, None where that is nothing. failures: files that cannot be read
    are added, with the reason.
    """
    files = list(dict.fromkeys(slides))
    shared = Counter(_name(path) for path in files)
    found: dict[tuple[str, str], Path] = {}
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
        there, only = identity_there(name), shared[name] == 1
        plain = there == identity or (there is None and only)
        tasks.append(SlideTask(path, name if plain else f"{name}-{identity[:6]}", identity, only))
    return tasks


def holds_slides(folder: Path) -> bool:
    """Whether a folder was written by `gan-uad score-slide`."""
    return (folder / SLIDES).is_file()


def parse_shard(text: str | None) -> tuple[int, int]:
    """`2/8` -> (1, 8): the second of eight. None: this process's of those that torchrun started, if it did, else (0, 1)."""
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
    """What tells a slide file from others, wherever it lies: a hash of its size, its first and its last MiB. Raises `UserError`."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(str(size).encode() + file.read(PROBED), digest_size=8)
            file.seek(max(0, size - PROBED))
            digest.update(file.read(PROBED))
    except IsADirectoryError:
        raise UserError("is a folder; name the slide files in it") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def each(tasks: list[SlideTask], work: Callable[[SlideTask], str], failures: list[tuple[Path, str]]) -> int:
    """Do `work`, which returns what to say of a slide, with every slide; returns with how many it was done.

    One that fails keeps no other from it: it is told of, and added to `failures` with the reason in one line.
    """
    failed = 0
    for number, task in enumerate(tasks, 1):
        count = f"[{number}/{len(tasks)}]"
        try:
            said = work(task)
        except JobFailed:  # the disk is full: no other slide would fare better
            raise
        except Exception as error:
            failed += 1
            failures.append((task.path, _reason(error)))
            console.say(f"{count} {task.path}: FAILED, {failures[-1][1]}")
        else:
            console.say(f"{count} {task.name}: {said}")
    return len(tasks) - failed


def tell_failures(failures: list[tuple[Path, str]], done: str, others: str) -> None:
    """List the slides that failed once more, at the end; `JobFailed` if there are any (not `done`; where the `others` are)."""
    for path, reason in failures:
        click.echo(f"FAILED {path}: {reason}", err=True)
    if failures:
        raise JobFailed(f"{len(failures)} slides could not be {done}, see above; {others}")


def _reason(error: Exception) -> str:
    """One line; of what nobody foresaw, with its kind: readers of broken files raise anything."""
    if isinstance(error, click.ClickException):
        return error.message
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _name(path: Path) -> str:
    """The stem, as a folder's name that every reader of the set accepts."""
    return re.sub(r"[\x00-\x1f\\]", "_", path.stem).strip().lstrip(".") or "slide"
