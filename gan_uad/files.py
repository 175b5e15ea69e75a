"""Writing so that nothing is ever half there: every file appears whole, under its name, or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from gan_uad.errors import JobFailed, UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and renamed, on failure it is removed.

    Raises `JobFailed` when the disk is full, `UserError` when the folder cannot be written; what stood under `path` stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the `OSError` of writing to `path` into `JobFailed` when the disk is full, and into `UserError` otherwise."""
    try:
        yield
    except OSError as error:
        raise _explain(error, path) from error


@contextmanager
def alone(part: Path) -> Iterator[FileIO]:
    """A partial file that several processes may want to go on with, opened for reading and appending, locked against the others.

    Whoever waited finds the file as the one before left it; where that one has renamed it, a new, empty one.
    """
    while True:
        with open(part, "a+b", buffering=0) as file:
            with suppress(OSError):  # some network disks know no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, part):
                yield file
                return


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether an open file is still the one under its name, which another process may take away at any moment."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `atomic` that a killed process left in a folder that nobody else writes into."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def make_folder(path: Path) -> Path:
    """Make a folder and its parents; raises `UserError` when that is not allowed or a file is in the way."""
    check_folder(path)
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(prefix=".write_test.", dir=path):  # a name of its own for every thread and machine
            pass
    return path


def check_folder(path: Path) -> None:
    """Raise `UserError` where `path` or a folder that it is to lie in is a file; looks only, so that it can come before any work."""
    with explained(path):
        there = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    if there is not None and not there.is_dir():
        raise UserError(f"cannot write {path}: {there} is a file, not a folder. Choose another folder with --out")


def _explain(error: OSError, path: Path) -> UserError | JobFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return JobFailed(
            f"no space left to write {path}; what was there before is kept. Free some disk, then run again"
        )
    return UserError(
        f"cannot write {path}: {error.strerror or error}. Choose another folder with --out or mend its permissions"
    )


def claim(folder: Path, settings: str, results: str, key: str, others: str) -> None:
    """Make the folder of results; `UserError` where it holds those of another key (`others` in words), as its file `settings` tells."""
    make_folder(folder)
    described = folder / settings
    if not described.is_file() and not (folder / results).exists():
        return
    try:
        mine = json.loads(described.read_text(encoding="utf-8"))["key"] == key
    except (OSError, ValueError, TypeError, KeyError):
        mine = False
    if not mine:
        raise UserError(f"{folder} holds {others}; choose another folder with --out")
