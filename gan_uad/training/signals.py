"""Requests to stop: recorded, and obeyed at the end of a step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list of the SIGINT and SIGTERM signals received so far; a second Ctrl-C raises `KeyboardInterrupt` at once.

    A second SIGTERM does not: `timeout` sends it to the process and to its group.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
