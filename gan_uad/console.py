"""Progress and messages: a live bar on a terminal, plain lines elsewhere, nothing with `--quiet`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

_quiet = False
_said: set[str] = set()  # notes of this command


def set_quiet(quiet: bool) -> None:
    """Silence `say` and `progress` in this process; errors and results are still printed."""
    global _quiet
    _quiet = quiet
    _said.clear()


def say(text: str) -> None:
    """One line to the user (on stderr, so that a command's result on stdout can be piped)."""
    if not _quiet:
        click.echo(text, err=True)


def note(text: str) -> None:
    """A note to the user, once in a command."""
    if text not in _said:
        _said.add(text)
        say(f"note: {text}")


def duration(seconds: float) -> str:
    """`75` -> "1m 15s"; `4000` -> "1h 07m"."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded}s"
    if rounded < 3600:
        return f"{rounded // 60}m {rounded % 60:02d}s"
    return f"{rounded // 3600}h {rounded % 3600 // 60:02d}m"


class Progress:
    """Counts work done out of `total` and shows it with the time left. `update` is cheap enough for every batch."""

    def __init__(self, what: str, total: float, unit: str, done: float = 0) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.start_done, self.start_time = done, time.monotonic()
        self.last_shown = 0.0
        self.live = sys.stderr.isatty()

    def update(self, done: float, note: str = "", force: bool = False) -> None:
        """Show `done` of `total`: at most ten times a second on a terminal, every ten seconds elsewhere, always when forced."""
        now = time.monotonic()
        if _quiet or (not force and now - self.last_shown < (0.1 if self.live else 10)):
            return
        self.last_shown = now
        rate = (done - self.start_done) / max(now - self.start_time, 1e-9)
        left = f", {duration((self.total - done) / rate)} left" if rate > 0 and done < self.total else ""
        line = f"{self.what}: {done:,.5g}/{self.total:,.5g} {self.unit}{left}{' | ' + note if note else ''}"
        click.echo(f"\r\x1b[K{line}" if self.live else line, err=True, nl=not self.live)

    def finish(self) -> None:
        """Keep the last line on the terminal."""
        if self.live and self.last_shown and not _quiet:
            click.echo("", err=True)


@contextmanager
def progress(what: str, total: float, unit: str = "images", done: float = 0) -> Iterator[Progress]:
    """A `Progress` for a `with` block."""
    bar = Progress(what, total, unit, done)
    try:
        yield bar
    finally:
        bar.finish()


def counter(what: str, unit: str = "images") -> Callable[[int, int], None]:
    """A callback `(done, total)` that shows progress, for code that does not use the console."""
    bar: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or Progress(what, total, unit)
        bar.update(done)
        if done == total:
            bar.finish()

    return show
