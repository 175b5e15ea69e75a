"""Reading and writing files. Every file is written atomically: it appears complete, under its name, or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

from gan_uad.errors import JobFailed, UserError, near

LOCK = ".lock"  # of a folder with one writer at a time
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and renamed, on failure it is removed.

    Raises `JobFailed` when the disk is full, `UserError` when the folder cannot be written; an older file at `path` is then kept.
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            problem = f"no space left to write {path}; what was there before is kept. Free some disk, then run again"
            raise JobFailed(problem) from error
        problem = f"cannot write {path}: {error.strerror or error}"
        raise UserError(f"{problem}. Choose another folder with --out, or change its permissions") from error


@contextmanager
def alone(part: Path) -> Iterator[FileIO]:
    """Open a partial file for reading and appending, locked against other processes that want to continue it.

    A process that waited finds the file as the one before left it. If that one has renamed it, it finds a new, empty file.
    """
    while True:
        with open(part, "a+b", buffering=0) as file:
            with suppress(OSError):  # some network disks have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, part):
                yield file
                return


@contextmanager
def one_writer(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold the folder against other processes that want to write into it: they are refused at once, by `UserError`.

    Those that come with `shared` do not refuse each other. The lock is one of the operating system on `folder/.lock`, so it ends with the
    process however that ends; disks without locks are tolerated.
    """
    with explained(folder), ExitStack() as opened:
        while True:
            file = opened.enter_context(open(folder / LOCK, "ab"))
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is writing into {folder}: wait for its end, or choose another folder"
                ) from None
            except OSError:  # some network disks have no locks
                break
            if _is_at(file, folder / LOCK):  # else the one before has just removed it
                break
        held = opened.pop_all()
    try:
        yield
    finally:
        with suppress(OSError), held:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody shares it
            if _is_at(file, folder / LOCK):
                (folder / LOCK).unlink()


def _is_at(file: IO[bytes] | FileIO, path: Path) -> bool:
    """Whether an open file still has its name; another process may rename or remove it at any moment."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `atomic` that a killed process left in a folder that no other process writes into."""
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
    """The value of a JSON file; None where the file is missing or is no valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def append_json_line(path: Path, value: Any) -> None:
    """Append one line of JSON. A process killed meanwhile leaves at most one incomplete line."""
    with explained(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def read_json_lines(path: Path) -> list[Any]:
    """The values of all complete lines of a JSON Lines file; [] for a missing file. Incomplete lines are left out."""
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


def parse_csv(
    content: bytes, context: str, required: Sequence[str] = (), **options: Any
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column of each row of a CSV file with a header line. options: of `csv.DictReader`.

    Raises `UserError`, with `context` and line, for what is no UTF-8 CSV, a missing column, a column that is there twice, and a row of
    more or fewer cells than the header.
    """
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError:
        raise UserError(f"{context} is not UTF-8 text; save it as CSV in UTF-8") from None
    reader = csv.DictReader(text, **options)
    try:
        reader.fieldnames = header = [name.strip() for name in reader.fieldnames or ()]
        if missing := [name for name in required if name not in header]:
            hint = f"{near(missing[0], header)}; " if header else ""
            expected = f"{hint}expected {', '.join(required)}"
            raise UserError(f"{context}: column {missing[0]!r} is missing; {expected}")
        for name in header:
            same = [other for other in header if other == name or other.lower() == name.lower() in required]
            if name and len(same) > 1:
                problem = f"{len(same)} columns are called {name!r}: leave one"
                raise UserError(f"{context}, line {reader.line_num}: {problem}")
        for row in reader:
            if None in row or None in row.values():
                problem = "more or fewer cells than the header has columns"
                raise UserError(f"{context}, line {reader.line_num}: {problem}")
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise UserError(f"{context}, line {reader.line_num}: {error}") from None


def read_csv(path: Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file with a header line, by column. Raises `UserError` as `parse_csv` does, and for a file that cannot be read."""
    return [row for _, row in csv_lines(path, required)]


def csv_lines(path: Path, required: Sequence[str] = ()) -> list[tuple[int, dict[str, str]]]:
    """`read_csv`, with the line on which each row ends."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return list(parse_csv(content, str(path), required))


def number(text: str, what: str) -> float:
    """A number as programs write it: "12", "-0.5", "1.5e-07", "inf", "-inf" or "nan"; one too large for a float is none.

    Raises `ValueError`, which names `what`, for anything else that Python's `float` takes (" 1 ", "1_000", other digits than 0 to 9).
    """
    if NUMBER.fullmatch(text) or text in {"inf", "-inf", "nan"}:
        value = float(text)
        if math.isfinite(value) or text in {"inf", "-inf", "nan"}:
            return value
    raise ValueError(f"{what} {text[:60]!r} is not a number")


def first_line(seen: dict[str, int], image: str, line: int) -> int | None:
    """The line in which an image was named before, as `image` or in another way (`./a.png`, `b/../a.png`); `seen` is kept up to date."""
    key = posixpath.normpath(image)
    return None if (before := seen.setdefault(key, line)) == line else before


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> Path:
    """Make a folder and its parents. Raises `UserError` where that is not permitted, or a file has that name."""
    check_folder(path)
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(prefix=".write_test.", dir=path):  # a unique name for every thread and machine
            pass
    return path


def check_folder(path: Path) -> None:
    """Raise `UserError` where `path`, or a folder above it, is a file. Changes nothing, so that it can run before any work."""
    with explained(path):
        existing = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    if existing is not None and not existing.is_dir():
        raise UserError(f"cannot write {path}: {existing} is a file, not a folder. Choose another folder with --out")


def known_key(folder: Path, record: str, name: str, key: str, old: str) -> str:
    """`old` where `folder/record` has it as its `name`, as an earlier version wrote it, else `key`."""
    found = read_json(folder / record)
    return old if isinstance(found, dict) and found.get(name) == old else key


def claim(folder: Path, record: str, wanted: dict[str, Any], what: str, refused: str = "") -> None:
    """Make the output folder of a command, or find it as an earlier call with the same settings made it.

    `folder/record` is a JSON file that holds at least the settings `wanted`; it is written where it is missing. Raises `UserError` where
    its settings differ (`what`: what the folder then holds, such as "scores"), and where there is no record, but a file that matches the
    pattern `refused` ("*": any that is not hidden).
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
        raise UserError(f"{folder} is not empty, and has no {record} of this command; choose another folder with --out")
    make_folder(folder)
    write_json(path, wanted)
