"""Fetching one large file over HTTP: it goes on where it stopped, and appears under its name only when it is the right one."""

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
ATTEMPTS = 3  # in a row that bring nothing new
WAIT = 1.0  # seconds before the second attempt; doubled for each further one
CHUNK = 1 << 16
SPARE = 64 << 20  # bytes that must stay free on the disk
_MB = 1 << 20


Check = Callable[[FileIO], str]  # what is wrong with an open file, '' where nothing is


class Unreachable(Exception):
    """The address cannot be reached, or gives up before the file is whole; the message says why."""


class Refused(JobFailed):
    """The server says no (HTTP 4xx), or gives another file than was asked for: the problem alone, and what to do about it."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}; {advice}")
        self.problem = problem


def hashed(digest: str) -> Check:
    """A check of a hash such as `md5:0fe1…`; hex digits alone are the front of a SHA-256, all lower case."""
    algorithm, _, digits = digest.rpartition(":")
    algorithm = algorithm or "sha256"

    def check(file: FileIO) -> str:
        file.seek(0)
        found = hashlib.file_digest(file, algorithm).hexdigest()
        return "" if found.startswith(digits) else f"{algorithm} {found} where it should begin with {digits}"

    return check


def whole_zip(file: FileIO) -> str:
    """The check of a zip archive whose hash nobody published: every member is read against its CRC-32."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        return f"no whole zip archive in it ({error})"
    return f"a damaged zip archive in it (the first bad member is {damaged})" if damaged else ""


def download(url: str, target: Path, check: str | Check) -> None:
    """Bring the file at `url` to `target`, if `check` (a hash as `hashed` takes it, or a function) finds nothing wrong with it.

    What a broken connection leaves stays as `<target>.part`, and the next call goes on from there. Processes that fetch the same file
    at once wait for the first. Raises `Unreachable`, `Refused` (HTTP 4xx; a wrong file), and `JobFailed` for too little disk.
    """
    make_folder(target.parent)
    part = part_of(target)
    with explained(part), alone(part) as file:
        if target.is_file():  # somebody else fetched it while this process waited
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
                f"{url} gave a file with {problem}: nothing was kept", "try again, or fetch it by other means"
            )
        os.fsync(file.fileno())
        os.replace(part, target)


def part_of(target: Path) -> Path:
    """Where the beginning of a file waits for the rest."""
    return target.with_name(f"{target.name}.part")


def _complete(url: str, file: FileIO, target: Path, check: Check) -> str:
    """Receive what is missing; what is wrong with the file then."""
    resumed = file.seek(0, os.SEEK_END) > 0
    _fetch(url, file, target)
    problem = check(file)
    if resumed and problem:  # the part may have been of another file
        file.truncate(0)
        _fetch(url, file, target)
        problem = check(file)
    return problem


def _fetch(url: str, file: FileIO, target: Path) -> None:
    """Receive until the file is whole, over as many connections as it takes."""
    failures = 0
    while True:
        have = file.seek(0, os.SEEK_END)
        try:
            if _receive(url, file, have, target):
                return
            problem = "the connection breaks off"
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # nothing follows what is here: its hash will tell
                return
            problem = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise Refused(
                    f"{url}: {problem}", f"fetch {target.name} by other means and put it into {target.parent}"
                ) from None
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
    """Append what one connection gives; whether that was all there is."""
    headers = {"User-Agent": "gan_uad"} | ({"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if have and response.status == 206:
            start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if (
                start is None or int(start[1]) != have
            ):  # a part that was not asked for: begin anew without asking for parts
                file.truncate(0)
                return False
        elif have:  # the server knows no ranges and gives everything again
            file.truncate(0)
            have = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        _check_disk(target, have, total)
        with console.progress(f"downloading {target.name}", (total or 0) / _MB, "MB", have / _MB) as bar:
            while piece := response.read(CHUNK):
                rest = memoryview(piece)
                while rest:  # a disk that fills up may take a part of it
                    rest = rest[file.write(rest) :]
                have += len(piece)
                bar.update(have / _MB)
    return total is None or have == total


def _check_disk(target: Path, have: int, total: int | None) -> None:
    free = shutil.disk_usage(target.parent).free
    if total is not None and total - have > free - SPARE:
        raise JobFailed(
            f"{target.name} needs {(total - have) / _MB:.0f} MB more in {target.parent}, where {free / _MB:.0f} MB are free: "
            "free some disk, then run again"
        )
