"""What the tests of runs share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_uad.config import resolve
from gan_uad.run import Run
from gan_uad.training import engine
from gan_uad.training.task import Task


def same(a: Any, b: Any, context: str = "state") -> None:
    """Assert that two nested states are equal bit for bit."""
    assert type(a) is type(b), context
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, context
        assert a.shape == b.shape, context
        assert torch.equal(a, b), context
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), context
        for key in a:
            same(a[key], b[key], f"{context}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), context
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{context}.{k}")
    else:
        assert a == b, context


def state(run: Path, name: str = "state.pt") -> Any:
    return torch.load(run / name, weights_only=True)


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The log without what the clock and the machine say."""
    return [{k: v for k, v in row.items() if k not in {"time", "seconds_per_kimg", "memory_gb"}} for row in log(run)]


def errors(result: Any) -> list[str]:
    """The error of a failed command: exactly one line, and no traceback."""
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("Error:")] == lines[-1:], result.stderr
    return lines


# ---------------------------------------------------------------- the loop alone


class Toy(Task):
    """One weight that counts images; `figure(nimg)` is what it logs."""

    def __init__(self, figure: Callable[[int], float] = float, weight: Callable[[int], float] = float) -> None:
        self.net = nn.Linear(1, 1)
        self.net.spec = {"name": "toy", "options": {}}  # type: ignore[assignment]
        self.metric, self.weight, self.steps = figure, weight, []  # type: ignore[var-annotated]
        self.after_step: Callable[[int], None] = lambda nimg: None

    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        self.steps.append(nimg)
        with torch.no_grad():
            self.net.weight.fill_(self.weight(nimg + len(real)))
        self.after_step(nimg + len(real))
        sometimes = {"rare": torch.tensor(float(nimg))} if len(self.steps) % 2 == 0 else {}
        return {"figure": torch.tensor(self.metric(nimg)), **sometimes}

    def sample(self) -> Tensor:
        return torch.zeros(5, 3, 8, 8)

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])


class Blank:
    """A stream of batches of 10 grey images."""

    def fetch(self, nimg: int, batch: int | None = None) -> Tensor:
        return torch.full((batch or 10, 8, 8, 3), 127, dtype=torch.uint8)


def toy_run(out: Path, **training: Any) -> Run:
    settings = {"batch": 10, "total_kimg": 0.2, "tick_kimg": 0.05, "snapshot_kimg": 0.16, "checkpoint_kimg": 0.1}
    raw = {"model": "toy", "task": "toy", "training": settings | training}
    return Run.create(out, resolve(raw, default_name="toy", context="test"))


def train_toy(task: Toy, run: Run, resume: bool = False) -> None:
    engine.train(task, Blank(), run, torch.device("cpu"), {"about": "toy"}, resume)


def generator_of(tiny: Any, task: str) -> list[object]:
    return ["--generator", tiny.generator] if task == "izi_f" else []


def model_metadata(folder: Path) -> str:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return str(file.metadata()["gan_uad"])
