"""Being asked to stop: noted, and heeded when what is under way can be left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM arrives; a second Ctrl-C does not wait. (SIGTERM may well come twice:
    `timeout` sends it to the process and to its group.)
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
