"""`gan-uad download`: public data sets, downloaded from their publishers, verified, and stored where the other commands look."""

from __future__ import annotations

import gzip
import hashlib
import os
import shlex
import shutil
import zlib
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

import click

from gan_uad import console
from gan_uad.data import catalogue
from gan_uad.data.catalogue import DataSet, Item, readable
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import alone, atomic, make_folder
from gan_uad.http import SPARE, Check, Refused, Unreachable, download, hashed, intact_zip, part_of

CHUNK = 1 << 20
LISTING = "checksums.md5"


def list_sets() -> None:
    """Print every set with size, licence and folder."""
    for name in catalogue.names():
        known = catalogue.entry(name)
        size = "by hand" if known.by_hand else known.size
        place = known.place or known.items[0].name
        print(f"{name:16s} {known.about}")
        print(f"{'':16s} {size}; licence: {known.licence}; stored as {place}; {known.page}")


def list_files(name: str, out: Path | None, side: int | None, splits: Sequence[str], only: Sequence[str]) -> None:
    """Print the chosen files of one set: size, split, published hash, and whether a file of that name is here (unverified)."""
    known = catalogue.entry(name, side)
    folder = _root(out) / known.place
    _introduce(known, folder, steps=bool(known.by_hand))
    if known.by_hand:
        return
    for item in catalogue.chosen(known, _items(known, folder), splits, only):
        size = readable(item.size) if item.size else f"at most {readable(item.kept)}" if item.kept else "small"
        begun = "begun" if part_of(folder / item.fetched).is_file() else "-"
        state = "here" if (folder / item.name).is_file() else begun
        print("\t".join((item.name, size, item.split or "all splits", item.digest or "no hash is published", state)))


def fetch(name: str, out: Path | None, side: int | None, splits: Sequence[str], only: Sequence[str]) -> int:
    """Download the chosen files of a set that are not here yet, verify those that are, and print the next command.

    Returns the exit code: 1 where a set must be downloaded by hand and is not here. Raises `UserError` for a file that differs from the
    published one, and `JobFailed` for a failed download, a damaged file, and too little disk.
    """
    known = catalogue.entry(name, side)
    folder = _root(out) / known.place
    by_hand = bool(known.by_hand)
    _introduce(known, folder, steps=by_hand and not folder.is_dir())
    if by_hand and not folder.is_dir():
        return 1
    if not by_hand:
        items = catalogue.chosen(known, _items(known, folder), splits, only)
        here = [item for item in items if (folder / item.name).exists()]
        missing = [item for item in items if item not in here]
        _check_disk(missing, folder)
        for item in missing:
            _bring(item, folder, known)
        _verify(here, folder)  # last, so that resuming with hundreds of slides does not wait for those that are here
    path = folder if known.place else folder / items[0].name
    root, quoted = shlex.quote(str(_root(out))), shlex.quote(str(path))
    console.say(f"next: {known.next.format(path=quoted, root=root)}")
    print(path)
    return 0


def _root(out: Path | None) -> Path:
    """Folder of all data sets, the same as for `gan-uad benchmark`."""
    return out or Path(os.environ.get("GAN_UAD_DATA") or "data")


def _introduce(known: DataSet, folder: Path, steps: bool) -> None:
    """What the set is, and its licence, before anything is downloaded; the steps for a download by hand."""
    lines = [
        f"{known.name}: {known.about}",
        f"licence: {known.licence}",
        f"source: {known.page} (looked up {catalogue.LOOKED_UP}; the addresses were not tried)",
        *known.notes,
    ]
    if steps:
        lines.append("This program cannot download it. By hand:")
        lines += [f"  {k}. {step.format(path=folder)}" for k, step in enumerate(known.by_hand, 1)]
        lines.append(f"  then: {known.next.format(path=shlex.quote(str(folder)))}")
    click.echo("\n".join(lines), err=True)


def _items(known: DataSet, folder: Path) -> Sequence[Item]:
    """The files of a set. Its list of checksums, where it has one, is downloaded once and kept beside them."""
    if not known.listing:
        return known.items
    target = folder / LISTING
    if not target.is_file():
        _from_any((known.listing,), target, _no_listing, known)
    try:
        return catalogue.listed(target.read_text(encoding="utf-8"), known.listing.removesuffix(LISTING))
    except (OSError, ValueError) as error:
        raise UserError(f"{target} is no list of checksums ({error}): remove it, then run again") from None


def _no_listing(file: FileIO) -> str:
    """What is wrong with a downloaded list of checksums."""
    file.seek(0)
    try:
        catalogue.listed(file.read().decode(), "")
    except ValueError as error:  # of `decode` too
        return f"no list of checksums in it ({error})"
    return ""


def _verify(items: Sequence[Item], folder: Path) -> None:
    """Compare files that were here before with their hashes."""
    if not items:
        return
    with console.progress("verifying existing files", len(items), "files") as bar:
        for done, item in enumerate(items, 1):
            _is_here(item, folder)
            bar.update(done)
    console.say(f"{len(items)} files were here before and are verified")


def _is_here(item: Item, folder: Path) -> bool:
    """Whether the file is there and verified. Raises `UserError` for another file of that name."""
    path = folder / item.name
    if not path.exists():
        return False
    if problem := _problem(path, _check(item.unpacked or item.digest)):
        raise _other_file(path, problem)
    return True


def _other_file(path: Path, problem: str) -> UserError:
    return UserError(f"{path} is not the published file: it has {problem}; move it away, then run again")


def _check(digest: str) -> Check:
    return hashed(digest) if digest else intact_zip


def _problem(path: Path, check: Check) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return check(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _check_disk(missing: Sequence[Item], folder: Path) -> None:
    """Raise `JobFailed` where the disk is too small for all files, plus the largest packed one, which is removed once unpacked."""
    stays = sum(item.kept or item.size if item.unpacked else item.size for item in missing)
    packed = max((item.size for item in missing if item.unpacked), default=0)
    begun = sum(path.stat().st_size for item in missing if (path := part_of(folder / item.fetched)).is_file())
    near = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(near).free
    if missing and stays + packed - begun > free - SPARE:
        need = (
            f"{len(missing)} files need about {readable(stays + packed - begun)} in {folder}, {readable(free)} are free"
        )
        raise JobFailed(f"{need}: choose another folder with --out, or fewer files with --split or --only")


def _bring(item: Item, folder: Path, known: DataSet) -> None:
    """Download one file, and unpack a .gz; other processes that want the same file wait."""
    target = folder / item.name
    make_folder(target.parent)
    lock = target.with_name(f".{target.name}.lock")
    with alone(lock):
        try:
            if not _is_here(item, folder):  # not downloaded by another process meanwhile
                _bring_alone(item, folder, known)
        finally:
            lock.unlink(missing_ok=True)


def _bring_alone(item: Item, folder: Path, known: DataSet) -> None:
    target, packed, check = folder / item.name, folder / item.fetched, _check(item.digest)
    if not item.unpacked:
        return _from_any(item.urls, target, check, known)
    for left in target.parent.glob(f".{target.name}.*.tmp"):  # of a process that was killed while unpacking
        left.unlink(missing_ok=True)
    if not packed.is_file():
        _from_any(item.urls, packed, check, known)
    elif problem := _problem(packed, check):
        raise _other_file(packed, problem)
    _unpack(packed, target, item.unpacked)


def _from_any(urls: Sequence[str], target: Path, check: Check, known: DataSet) -> None:
    """Download a file from the first of its addresses that works."""
    failures = []
    for url in urls:
        try:
            return download(url, target, check)
        except Refused as error:
            failures.append(error.problem)
        except Unreachable as error:
            failures.append(f"{url}: {error}")
    raise JobFailed(
        f"{target.name} cannot be downloaded ({'; '.join(failures)}). Run again later, or download it by hand (see {known.page}) "
        f"into {target.parent}, then run again"
    )


def _unpack(packed: Path, target: Path, digest: str) -> None:
    """Unpack a .gz beside itself and remove it. Raises `JobFailed`, and keeps it, when the unpacked file has another hash."""
    algorithm, _, published = digest.partition(":")
    found = hashlib.new(algorithm)
    done, size = 0, packed.stat().st_size
    try:
        with (
            atomic(target) as temporary,
            open(temporary, "wb") as out,
            open(packed, "rb") as raw,
            gzip.open(raw) as file,
            console.progress(f"unpacking {packed.name}", size / catalogue.MB, "MB") as bar,
        ):
            while piece := file.read(CHUNK):
                found.update(piece)
                out.write(piece)
                done = raw.tell()
                bar.update(done / catalogue.MB)
            if found.hexdigest() != published:
                wrong = f"{packed} unpacks to a file with {algorithm} {found.hexdigest()}, not {published}"
                raise JobFailed(f"{wrong}; run again, and check the disk if it happens again")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise JobFailed(f"{packed} cannot be unpacked ({error}): remove it, then run again") from None
    packed.unlink()
