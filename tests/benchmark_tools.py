"""Cells of a benchmark without their start-up, and who is at work on one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from gan_uad.benchmark import cells


class Finished:
    """A process that has ended with this exit code."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def terminate(self) -> None: ...

    def wait(self) -> int:
        return self.code


def in_process(plan: Path, device: str, environ: Mapping[str, str]) -> Finished:
    """In the place of `gan_uad.benchmark.run.start`: the cell is done in this process, which has imported torch already."""
    with open(plan.with_name("log.txt"), "a") as log, redirect_stdout(log), redirect_stderr(log):
        return Finished(cells.main(plan, device))


def at_work(out: Path, of: str = "") -> list[int]:
    """Processes that work on a cell below `out` with `of` in its name: such a one has its log open as stdout."""
    found = []
    for stdout in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            log = os.readlink(stdout)
        except OSError:  # it ended meanwhile
            continue
        if log.startswith(str(out)) and log.endswith("log.txt") and of in log:
            found.append(int(stdout.parts[2]))
    return found
