"""Groups of processes for the tests: `gan-uad` as torchrun would start it, without the imports."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


class Launcher:
    """Starts groups of processes that need not import anything: see `distributed_driver.serve`."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self.requests, self.answers, self.folder = server.stdin, server.stdout, folder

    def start(self, *words: object, size: int = 2, folder: Path | None = None, memory: int | None = None) -> list[int]:
        """`gan-uad WORDS` in `size` processes of (further) `memory` bytes each; their process ids, by rank."""
        self.size, self.output = size, folder or self.folder
        self.requests.write(json.dumps([size, str(self.output), [str(word) for word in words], memory]) + "\n")
        self.requests.flush()
        return list(json.loads(self.answers.readline()))

    def end(self) -> tuple[list[int], list[str]]:
        """Wait for the group that was started; exit codes and outputs, by rank."""
        codes = json.loads(self.answers.readline())
        return codes, [(self.output / f"{rank}.txt").read_text() for rank in range(self.size)]

    def run(self, *words: object, **where: Any) -> tuple[list[int], list[str]]:
        """Both."""
        self.start(*words, **where)
        return self.end()
