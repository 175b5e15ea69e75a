"""Writing so that nothing is ever half there: every file appears whole, under its name, or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
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


def read_json(path: Path) -> Any:
    """The value of a JSON file; None where there is no file, or none that can be read as JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def append_json_line(path: Path, value: Any) -> None:
    """Append one line of JSON; a process that is killed meanwhile leaves an incomplete line at most."""
    with explained(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def read_json_lines(path: Path) -> list[Any]:
    """The values of all complete lines of a JSON Lines file, [] where there is none; an incomplete line is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with a header line; lines end with a line feed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def read_csv(path: Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file with a header line, by column. Raises `UserError` for a file that cannot be read, a missing column, and a
    row of more or fewer cells than the header.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="surplus")
            missing = [name for name in required if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: column {missing[0]!r} is missing; expected {', '.join(required)}")
            rows = []
            for row in reader:
                if "surplus" in row or None in row.values():
                    raise UserError(f"{path}, line {reader.line_num}: more or fewer cells than the header has columns")
                rows.append(dict(row))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def claim(folder: Path, record: str, wanted: dict[str, Any], what: str, refused: str = "") -> None:
    """Make the output folder of a command, or find it as an earlier call with the same settings made it.

    `folder/record` is a JSON file that holds at least the settings `wanted`; it is written where it is missing. Raises `UserError` where
    it says otherwise (`what`: what the folder then holds, such as "scores"), and where a file matches the pattern `refused` ("*": any
    that is not hidden) and there is no record.
    """
    wanted, path = json.loads(json.dumps(wanted)), folder / record
    check_folder(folder)
    if path.is_file():
        found = read_json(path)
        differing = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
        if differing:
            key = differing[0]
            values = [wanted[key], found.get(key) if isinstance(found, dict) else None]
            plain = all(isinstance(value, str | int | float | None) and len(str(value)) < 40 for value in values)
            settings = f"{key} {values[1]}, not {values[0]}" if plain and key != "key" else "other settings"
            raise UserError(f"{folder} holds {what} with {settings}; choose another folder with --out")
        make_folder(folder)
        return
    if refused and folder.is_dir() and any(not file.name.startswith(".") for file in folder.glob(refused)):
        raise UserError(
            f"{folder} is not empty and holds no {record}, so it is not of this command; choose another folder with --out"
        )
    make_folder(folder)
    write_json(path, wanted)
