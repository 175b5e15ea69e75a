"""Validation during training: metrics every `eval_kimg`, the best model kept, and the end when they stop improving."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gan_uad import checkpoint, console
from gan_uad.data.patches import PatchSet, to_tensor
from gan_uad.device import full_precision
from gan_uad.run import Run
from gan_uad.training import distributed

BATCH = 32  # images validated at once


class Validator(Protocol):
    """Measures how good a task is now: a classifier's loss on validation images, a generator's FID."""

    metric: str  # the metric that decides which model is best
    larger: bool  # whether larger values of it are better

    def validate(self, nimg: int) -> dict[str, float]:
        """Metrics by name, of the task after `nimg` images.

        A pure function of the task's state: it draws no random numbers from the run's generators and changes nothing. Every process
        calls it at the same time (after rank 0's buffers were given to all), so the processes may share the work.
        """


def per_image(patches: PatchSet, device: torch.device, columns: int, metrics: Callable[[Tensor], Tensor]) -> Tensor:
    """`metrics` `[n, columns]` of images `[n, 3, R, R]` on `device`, for all patches: `[N, columns]` on the CPU, in every process.

    Processes share the images. No gradients.
    """
    rows = np.arange(len(patches))[distributed.world().rows]
    found = torch.zeros(len(patches), columns)
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            found[some] = metrics(to_tensor(patches.gather(some)).to(device)).float().cpu()
    return distributed.total(found)


class ValidationTracker:
    """Validates a run when it is due, and remembers which model was best and how long ago.

    `best.safetensors` is that model; `metrics.jsonl` has a line for every validation. Without a validator nothing is ever due.
    `state_dict` holds everything that it remembers, so a resumed run stops where an uninterrupted one does.

    The best model is saved in this order: the line of `metrics.jsonl`, the state of the run, `best.safetensors`. So a line describes
    that file whenever the process is killed: without the state, a resumed run drops the line and validates again; with the state,
    `keep` writes the file.
    """

    def __init__(self, validator: Validator | None, run: Run) -> None:
        self.validator, self.run = validator, run
        settings = run.config.training
        self.every, self.patience = settings.eval_kimg, settings.patience
        self.best: float | None = None
        self.best_nimg = 0
        self.since = 0  # validations after the best one

    def due(self, crossed: Callable[[float], bool], last: bool) -> bool:
        """Whether to validate now. `crossed(kimg)`: a multiple of `kimg` was just passed. `last`: training ends here."""
        return self.validator is not None and (last or (self.every is not None and crossed(self.every)))

    @property
    def exhausted(self) -> bool:
        """Whether `patience` validations brought no improvement, so that training should end."""
        return self.validator is not None and self.patience is not None and self.since >= self.patience

    def is_best(self, nimg: int) -> bool:
        """Whether the model after `nimg` images is the best so far."""
        return self.best is not None and self.best_nimg == nimg

    def keep(self, nimg: int, networks: dict[str, nn.Module], description: dict[str, Any]) -> None:
        """Write `best.safetensors` if `networks`, the model after `nimg` images, is the best so far."""
        if self.validator is not None and self.is_best(nimg):
            about = {**description, "nimg": nimg, "best": {"figure": self.validator.metric, "value": self.best}}
            checkpoint.save_model(self.run.best_path, networks, about)

    def validate(self, nimg: int, plot: Callable[[str, float, int], None]) -> dict[str, float]:
        """Validate the task, update the best, and log. Returns the metrics, the same in every process.

        Rank 0 calls `plot(name, value, nimg)`. If a metric is not finite, training diverged: the metrics are returned and nothing else
        is done.
        """
        validator = self.validator
        if validator is None:
            raise ValueError("this run has no validator")
        with full_precision():  # as in `gan-uad fid` and `classify`, whatever the precision of the training
            metrics = distributed.from_first(validator.validate(nimg))
        if not all(map(math.isfinite, metrics.values())):
            return metrics
        value = metrics[validator.metric]
        better = self.best is None or (value > self.best if validator.larger else value < self.best)
        if better:
            self.best, self.best_nimg, self.since = value, nimg, 0
        else:
            self.since += 1

        def write() -> None:
            self.run.log_validation({"nimg": nimg, "kimg": nimg / 1000, **metrics, "best": better})
            for name, metric in metrics.items():
                plot(name, metric, nimg)

        distributed.first(write)
        shown = " ".join(f"{name} {metric:.4g}" for name, metric in metrics.items())
        console.say(f"validated at {nimg / 1000:g} kimg: {shown}{' (best so far)' if better else ''}")
        return metrics

    def summary(self, stopped_early: bool) -> str:
        """How it went, to follow "12 kimg"; "" without validation."""
        if self.validator is None or self.best is None:
            return ""
        best = f"; best {self.validator.metric} {self.best:.4g} at {self.best_nimg / 1000:g} kimg: {self.run.best_path.name}"
        return (
            f", stopped early: no improvement in {self.since} validation{'s' * (self.since > 1)}{best}"
            if stopped_early
            else best
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"best": self.best, "best_nimg": self.best_nimg, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; an empty one is of a run that was never validated."""
        for name in self.state_dict().keys() & state.keys():
            setattr(self, name, state[name])
