"""Kill -9 a run, again and again: `kill_driver.py RUN COUNT`. Used by test_resume.py.

Everything is imported once; each `gan-uad train RUN --resume` is a fork of this process, killed at a random moment. Prints, for each
kill, what it waited for and whether a temporary file was left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard

from gan_uad.cli import main
from gan_uad.jobs import train  # noqa: F401


def resume(run: Path) -> int:
    """Start `gan-uad train RUN --resume` in a fork; its process id."""
    child = os.fork()
    if child == 0:
        os.setsid()
        main(["-q", "train", str(run), "--resume"])
        os._exit(0)
    return child


def moment(kind: str, run: Path, rng: random.Random) -> None:
    """Wait for a moment of that kind."""
    before = (run / "state.pt").stat().st_mtime_ns
    end = time.monotonic() + 20
    if kind == "start":
        time.sleep(rng.uniform(0, 0.15))
        return
    while (run / "state.pt").stat().st_mtime_ns == before and time.monotonic() < end:
        time.sleep(0.001)
    if kind == "checkpoint":
        time.sleep(rng.uniform(0, 0.04))
    while kind == "writing" and not list(run.glob(".*.tmp")) and time.monotonic() < end:
        pass


def drive(run: Path, count: int) -> list[dict[str, Any]]:
    """Kill at least `count` times, until one kill has left a temporary file."""
    rng = random.Random(0)
    kills: list[dict[str, Any]] = []
    while len(kills) < count or (len(kills) < 3 * count and not any(kill["left"] for kill in kills)):
        kind = ("writing", "checkpoint", "start")[len(kills) % 3]
        child = resume(run)
        moment(kind, run, rng)
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
            raise SystemExit("a run ended before it was killed")
        kills.append({"kind": kind, "left": len(list(run.glob(".*.tmp")))})
    return kills


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1)])  # the first optimiser of a process imports for seconds
    print(json.dumps(drive(Path(sys.argv[1]), int(sys.argv[2]))))
