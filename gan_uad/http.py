"""Download one large file over HTTP. A stopped download is resumed; a file gets its name only once it is verified."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from gan_uad import console
from gan_uad.errors import JobFailed
from gan_uad.files import alone, explained, make_folder

TIMEOUT = 20.0  # seconds without a single byte
ATTEMPTS = 3  # in a row without new bytes
WAIT = 1.0  # seconds before the second attempt; doubled for each further one
CHUNK = 1 << 16
SPARE = 64 << 20  # bytes that must stay free on the disk
_MB = 1 << 20

Check = Callable[[FileIO], str]  # what is wrong with an open file; '' for nothing


class Unreachable(Exception):
    """The address cannot be reached, or fails before the file is complete; the message says why."""


class Refused(JobFailed):
    """The server refuses (HTTP 4xx), or sends a wrong file. `problem` is the message without the advice."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}; {advice}")
        self.problem = problem


def hashed(digest: str) -> Check:
    """A check of a hash such as `md5:0fe1…`; hex digits alone are the beginning of a SHA-256, in lower case."""
    algorithm, _, digits = digest.rpartition(":")
    algorithm = algorithm or "sha256"

    def check(file: FileIO) -> str:
        file.seek(0)
        found = hashlib.file_digest(file, algorithm).hexdigest()
        return "" if found.startswith(digits) else f"{algorithm} {found}, which should begin with {digits}"

    return check


def intact_zip(file: FileIO) -> str:
    """The check of a zip archive without published hash: every member is compared with its CRC-32."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        return f"no complete zip archive in it ({error})"
    return f"a damaged zip archive in it (the first bad member is {damaged})" if damaged else ""


def download(url: str, target: Path, check: str | Check) -> None:
    """Download `url` to `target`, if `check` (a hash as for `hashed`, or a function) finds nothing wrong with it.

    After a broken connection the beginning stays as `<target>.part`, and the next call resumes from there. Processes that download the
    same file at once wait for the first. Raises `Unreachable`, `Refused` (HTTP 4xx; a wrong file), and `JobFailed` for too little disk.
    """
    make_folder(target.parent)
    part = part_of(target)
    with explained(part), alone(part) as file:
        if target.is_file():  # another process downloaded it meanwhile
            part.unlink(missing_ok=True)
            return
        try:
            problem = _complete(url, file, target, hashed(check) if isinstance(check, str) else check)
        except BaseException:
            if not file.seek(0, os.SEEK_END):
                part.unlink(missing_ok=True)
            raise
        if problem:
            part.unlink()
            raise Refused(
                f"{url} sent a file with {problem}: it was removed", "try again, or download it by other means"
            )
        os.fsync(file.fileno())
        os.replace(part, target)


def part_of(target: Path) -> Path:
    """Path of an incomplete download."""
    return target.with_name(f"{target.name}.part")


def _complete(url: str, file: FileIO, target: Path, check: Check) -> str:
    """Receive the missing bytes; return what is wrong with the file then."""
    resumed = file.seek(0, os.SEEK_END) > 0
    _fetch(url, file, target)
    problem = check(file)
    if resumed and problem:  # the part may belong to another file
        file.truncate(0)
        _fetch(url, file, target)
        problem = check(file)
    return problem


def _fetch(url: str, file: FileIO, target: Path) -> None:
    """Receive until the file is complete, over as many connections as it takes."""
    failures = 0
    while True:
        have = file.seek(0, os.SEEK_END)
        try:
            if _receive(url, file, have, target):
                return
            problem = "the connection breaks off"
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # no more bytes: the check decides
                return
            problem = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                advice = f"download {target.name} by other means into {target.parent}"
                raise Refused(f"{url}: {problem}", advice) from None
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", error)
            problem = str(getattr(reason, "strerror", None) or reason) or type(reason).__name__
            if isinstance(reason, socket.gaierror):  # no such name: waiting does not help
                raise Unreachable(problem) from error
        failures = 0 if file.seek(0, os.SEEK_END) > have else failures + 1
        if failures == ATTEMPTS:
            raise Unreachable(problem)
        time.sleep(WAIT * 2**failures if failures else 0)


def _receive(url: str, file: FileIO, have: int, target: Path) -> bool:
    """Append what one connection sends; return whether the file is then complete."""
    headers = {"User-Agent": "gan_uad"} | ({"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if have and response.status == 206:
            start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if start is None or int(start[1]) != have:  # another part than requested: start again without a range
                file.truncate(0)
                return False
        elif have:  # the server ignores ranges and sends everything again
            file.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        _check_disk(target, have, total)
        with console.progress(f"downloading {target.name}", (total or 0) / _MB, "MB", have / _MB) as bar:
            while piece := response.read(CHUNK):
                rest = memoryview(piece)
                while rest:  # a nearly full disk may write only some of it
                    rest = rest[file.write(rest) :]
                have += len(piece)
                bar.update(have / _MB)
    return total is None or have == total


def _check_disk(target: Path, have: int, total: int | None) -> None:
    free = shutil.disk_usage(target.parent).free
    if total is not None and total - have > free - SPARE:
        need = (
            f"{target.name} needs {(total - have) / _MB:.0f} MB more in {target.parent}, {free / _MB:.0f} MB are free"
        )
        raise JobFailed(f"{need}: free some disk, then run again")
