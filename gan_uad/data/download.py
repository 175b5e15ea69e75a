"""`gan-uad download`: public data sets, fetched from where they are published, checked, and put where the other verbs look."""

from __future__ import annotations

import gzip
import hashlib
import os
import shlex
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import click

from gan_uad import console
from gan_uad.data import catalogue
from gan_uad.data.catalogue import DataSet, Item, readable
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import alone, atomic, make_folder
from gan_uad.http import SPARE, Check, Refused, Unreachable, download, hashed, part_of, whole_zip

CHUNK = 1 << 20
LISTING = "checksums.md5"


def list_sets() -> None:
    """Print every set with size, licence and where it goes."""
    for name in catalogue.names():
        known = catalogue.entry(name)
        size = "by hand" if known.by_hand else known.size
        goes = known.place or known.items[0].name
        print(f"{name:16s} {known.about}")
        print(f"{'':16s} {size}; licence: {known.licence}; goes to {goes}; {known.page}")


def list_files(name: str, out: Path | None, side: int | None, splits: Sequence[str], only: Sequence[str]) -> None:
    """Print the chosen files of one set: size, split, published hash, and whether something of that name is here (unverified)."""
    known = catalogue.entry(name, side)
    folder = _root(out) / known.place
    _introduce(known, folder, steps=bool(known.by_hand))
    if known.by_hand:
        return
    for item in catalogue.chosen(known, _items(known, folder), splits, only):
        size = readable(item.size) if item.size else f"at most {readable(item.kept)}" if item.kept else "small"
        here = (
            "here" if (folder / item.name).is_file() else "begun" if part_of(folder / item.fetched).is_file() else "-"
        )
        print("\t".join((item.name, size, item.split or "all splits", item.digest or "no hash is published", here)))


def fetch(name: str, out: Path | None, side: int | None, splits: Sequence[str], only: Sequence[str]) -> int:
    """Fetch the chosen files of a set that are not here yet, verify those that are, and say what comes next.

    Returns the exit code: 1 where a set must be brought by hand and is not here. Raises `UserError` for a file in the way that is
    another than the published one, and `JobFailed` for what cannot be fetched or is broken, and for too little disk.
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
        _verify(here, folder)  # last, so that who goes on with hundreds of slides does not wait for those that are here
    path = folder if known.place else folder / items[0].name
    root, quoted = shlex.quote(str(_root(out))), shlex.quote(str(path))
    console.say(f"next: {known.next.format(path=quoted, root=root)}")
    print(path)
    return 0


def _root(out: Path | None) -> Path:
    """Where data sets lie: as `gan-uad benchmark` looks for them."""
    return out or Path(os.environ.get("GAN_UAD_DATA") or "data")


def _introduce(known: DataSet, folder: Path, steps: bool) -> None:
    """What the set is, and its licence, before anything is fetched; the steps by which it is brought by hand."""
    lines = [
        f"{known.name}: {known.about}",
        f"licence: {known.licence}",
        f"source: {known.page} (looked up {catalogue.LOOKED_UP}; the addresses were not tried where this was written)",
        *known.notes,
    ]
    if steps:
        lines.append("It cannot be fetched by this program:")
        lines += [f"  {k}. {step.format(path=folder)}" for k, step in enumerate(known.by_hand, 1)]
        lines.append(f"  then: {known.next.format(path=shlex.quote(str(folder)))}")
    click.echo("\n".join(lines), err=True)


def _items(known: DataSet, folder: Path) -> Sequence[Item]:
    """The files of a set; for one with a list of checksums, that list is fetched once and kept beside them."""
    if not known.listing:
        return known.items
    target = folder / LISTING
    if not target.is_file():
        _from_any((known.listing,), target, catalogue.list_of_checksums, known)
    try:
        return catalogue.listed(target.read_text(encoding="utf-8"), known.listing.removesuffix(LISTING))
    except (OSError, ValueError) as error:
        raise UserError(f"{target} is no list of checksums ({error}): remove it, then run again") from None


def _verify(items: Sequence[Item], folder: Path) -> None:
    """Read files that were here before against their hashes."""
    if not items:
        return
    with console.progress("verifying what was here", len(items), "files") as bar:
        for done, item in enumerate(items, 1):
            _is_here(item, folder)
            bar.update(done)
    console.say(f"{len(items)} of the files were here before and are whole")


def _is_here(item: Item, folder: Path) -> bool:
    """Whether the file lies there whole. Raises `UserError` when another one lies there."""
    path = folder / item.name
    if not path.exists():
        return False
    if problem := _problem(path, _check(item.unpacked or item.digest)):
        raise UserError(f"{path} is in the way: it has {problem}; move it away, then run again")
    return True


def _check(digest: str) -> Check:
    return hashed(digest) if digest else whole_zip


def _problem(path: Path, check: Check) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return check(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _check_disk(missing: Sequence[Item], folder: Path) -> None:
    """Refuse to begin what will not fit: all that stays, and beside it the largest file that is only there to be unpacked."""
    stays = sum(item.kept or item.size if item.unpacked else item.size for item in missing)
    packed = max((item.size for item in missing if item.unpacked), default=0)
    begun = sum(path.stat().st_size for item in missing if (path := part_of(folder / item.fetched)).is_file())
    near = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(near).free
    if missing and stays + packed - begun > free - SPARE:
        raise JobFailed(
            f"{len(missing)} files need about {readable(stays + packed - begun)} in {folder}, where {readable(free)} are free: "
            "choose another folder with --out, or fewer files with --split or --only"
        )


def _bring(item: Item, folder: Path, known: DataSet) -> None:
    """Fetch one file, and unpack it where it is a .gz; other processes that want the same one wait."""
    target = folder / item.name
    make_folder(target.parent)
    lock = target.with_name(f".{target.name}.lock")
    with alone(lock):
        try:
            if not _is_here(item, folder):  # nobody else has brought it while this process waited
                _bring_alone(item, folder, known)
        finally:
            lock.unlink(missing_ok=True)


def _bring_alone(item: Item, folder: Path, known: DataSet) -> None:
    target, packed, check = folder / item.name, folder / item.fetched, _check(item.digest)
    if not item.unpacked:
        return _from_any(item.urls, target, check, known)
    for left in target.parent.glob(f".{target.name}.*.tmp"):  # of a process that was killed while it unpacked
        left.unlink(missing_ok=True)
    if not packed.is_file():
        _from_any(item.urls, packed, check, known)
    elif problem := _problem(packed, check):
        raise UserError(f"{packed} is in the way: it has {problem}; move it away, then run again")
    _unpack(packed, target, item.unpacked)


def _from_any(urls: Sequence[str], target: Path, check: Check, known: DataSet) -> None:
    """Fetch a file from the first of its addresses that gives it."""
    failures = []
    for url in urls:
        try:
            return download(url, target, check)
        except Refused as error:
            failures.append(error.problem)
        except Unreachable as error:
            failures.append(f"{url}: {error}")
    raise JobFailed(
        f"{target.name} cannot be fetched ({'; '.join(failures)}). Run again later, or fetch it by hand, see {known.page}, "
        f"put it into {target.parent}, then run again"
    )


def _unpack(packed: Path, target: Path, digest: str) -> None:
    """Unpack a .gz beside itself and remove it. Raises `JobFailed`, and keeps it, when what comes out has another hash."""
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
                raise JobFailed(
                    f"{packed} unpacks to a file with {algorithm} {found.hexdigest()} where it should be {published}: it is kept, the "
                    "file not; run again, and look at the disk if it happens again"
                )
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise JobFailed(f"{packed} cannot be unpacked ({error}): remove it, then run again") from None
    packed.unlink()
