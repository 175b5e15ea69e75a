"""Kill -9 a run, again and again: `kill_driver.py CONFIG OUT RUN COUNT`. Used by test_resume.py.

Everything is imported once; `gan-uad train CONFIG --out OUT`, which makes RUN, and each `gan-uad train RUN --resume` after it is a
fork of this process, killed at a random moment. Prints, for each kill, what it waited for and whether a temporary file was left.
"""

from __future__ import annotations

import importlib
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

from gan_uad.cli.main import main


def train(*words: str) -> int:
    """Start `gan-uad train WORDS` in a fork; its process id."""
    child = os.fork()
    if child == 0:
        os.setsid()
        main(["-q", "train", *words])
        os._exit(0)
    return child


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        raise SystemExit("a run ended before it was killed")


def moment(kind: str, run: Path, rng: random.Random) -> None:
    """Wait for a moment of that kind."""
    before = (run / "state.pt").stat().st_mtime_ns if kind != "first" else 0
    end = time.monotonic() + 60
    if kind == "first":
        while not (run / "state.pt").exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        return
    if kind == "start":
        time.sleep(rng.uniform(0, 0.15))
        return
    while (run / "state.pt").stat().st_mtime_ns == before and time.monotonic() < end:
        time.sleep(0.001)
    if kind == "checkpoint":
        time.sleep(rng.uniform(0, 0.04))
    while kind == "writing" and not list(run.glob(".*.tmp")) and time.monotonic() < end:
        pass


def drive(config: Path, out: Path, run: Path, count: int) -> list[dict[str, Any]]:
    """Kill at least `count` times, until one kill has left a temporary file."""
    rng = random.Random(0)
    kills: list[dict[str, Any]] = []
    while len(kills) < count or (len(kills) < 3 * count and not any(done["left"] for done in kills)):
        kind = ("start", "writing", "checkpoint")[len(kills) % 3] if kills else "first"
        child = train(str(run), "--resume") if kills else train(str(config), "--out", str(out))
        moment(kind, run, rng)
        kill(child)
        kills.append({"kind": kind, "left": len(list(run.glob(".*.tmp")))})
    return kills


if __name__ == "__main__":
    importlib.import_module("gan_uad.training.train")
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1)])  # the first optimiser of a process imports for seconds
    print(json.dumps(drive(*map(Path, sys.argv[1:4]), count=int(sys.argv[4]))))
