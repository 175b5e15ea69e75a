"""What files hold, as one hash each: two files are equal where their hashes are, whatever their names, times and places.

Hashes are kept in the cache folder with the size and times of each file, so that only new and changed files are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gan_uad.device import cores
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import make_folder, read_json, write_text

VERSION = 1
SETTLED_S = 2.0  # a file changed less than this before it was hashed may change again within one tick of its clock
BLOCK = 1 << 20
DIGEST = 16  # bytes


def default_dir() -> Path:
    """$GAN_UAD_CACHE, else gan_uad below $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("GAN_UAD_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gan_uad"


def problem_of(path: Path, error: OSError | None = None) -> str:
    """Why a file cannot be read, in words; empty for a file that may be."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
    except OSError as found:
        return f"cannot be read: {found.strerror or found}"
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        return f"is a {kinds.get(stat.S_IFMT(mode), 'device')}, not a file"
    return "" if error is None else f"cannot be read: {error.strerror or error}"


def stats_of(root: Path, names: Sequence[str]) -> dict[str, os.stat_result | None]:
    """The state of each file below `root`, links followed; None for one that is not there."""
    found: dict[str, os.stat_result | None] = {}
    for name in names:
        try:
            found[name] = os.stat(root / name)
        except OSError:
            found[name] = None
    return found


def hashes(root: Path, stats: Mapping[str, os.stat_result | None]) -> list[str]:
    """A hash of the content of each file below `root`; one that cannot be read has the reason in its place.

    A file is read where its size, times or place on the disk differ from those of the last call, or it was changed just before it.
    """
    place = os.path.realpath(root)
    path = default_dir() / f"contents-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.json"
    kept = read_json(path)
    valid = isinstance(kept, dict) and kept.get("version") == VERSION and kept.get("root") == place
    before: dict[str, Any] = kept["files"] if valid and isinstance(kept.get("files"), dict) else {}
    started = time.time()

    def entry(name: str) -> list[Any]:
        found = stats[name]
        if found is None or not stat.S_ISREG(found.st_mode):
            return [None, problem_of(root / name) or "changed meanwhile"]
        state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
        old = before.get(name)
        if isinstance(old, list) and len(old) == 2 and old[0] == state and isinstance(old[1], str):
            return old
        try:
            content = _hashed(root / name)
        except (OSError, MemoryError) as error:
            return [None, problem_of(root / name, error if isinstance(error, OSError) else None) or "cannot be read"]
        settled = max(found.st_ctime_ns, found.st_mtime_ns) / 1e9 < started - SETTLED_S
        return [state if settled else None, content]

    unread = [name for name in stats if before.get(name) is None]
    if len(unread) > 1:
        with ThreadPoolExecutor(cores()) as pool:
            entries = dict(zip(stats, pool.map(entry, stats), strict=True))
    else:
        entries = {name: entry(name) for name in stats}
    new = {name: made for name, made in entries.items() if made[0] is not None and made is not before.get(name)}
    if new:
        try:
            make_folder(path.parent)
            write_text(path, json.dumps({"version": VERSION, "root": place, "files": before | new}))
        except (UserError, JobFailed):  # without a cache folder the files are read again next time
            pass
    return [made[1] for made in entries.values()]


def hash_of(content: bytes) -> str:
    """The hash that `hashes` gives a file of this content."""
    return hashlib.blake2b(content, digest_size=DIGEST).hexdigest()


def _hashed(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
