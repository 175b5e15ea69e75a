"""Judging a model while it is trained: figures every so many images, the best model kept, and the end when none gets better."""

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

AT_ONCE = 32  # images judged together


class Validator(Protocol):
    """Tells how good a task is as it stands: a classifier's loss on validation images, a generator's FID."""

    metric: str  # that of its figures which says which model is best
    larger: bool  # whether more of it is better

    def validate(self, nimg: int) -> dict[str, float]:
        """Figures by name, of the task after `nimg` images. A pure function of the task's state, in which it leaves no trace: no
        random number is taken from the generators of the run.

        Every process calls it at the same time (after rank 0's buffers were given to all), so that they may share the work.
        """


def per_image(patches: PatchSet, device: torch.device, columns: int, metrics: Callable[[Tensor], Tensor]) -> Tensor:
    """`figures` `[n, columns]` of images `[n, 3, R, R]` on `device`, for all patches: `[N, columns]` on the CPU, in every process.

    Processes share the images; nothing is kept for a gradient.
    """
    here = distributed.world()
    rows = np.arange(here.rank, len(patches), here.size)
    found = torch.zeros(len(patches), columns)
    with torch.no_grad():
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            found[some] = metrics(to_tensor(patches.gather(some)).to(device)).float().cpu()
    return distributed.total(found)


class ValidationTracker:
    """Calls a run's judge when it is due, and remembers which model was best and how long ago.

    `best.safetensors` is that model, `metrics.jsonl` holds every judgement. Without a judge nothing is ever due. All that it
    remembers is in `state_dict`, so that a resumed run stops where an uninterrupted one does.

    What is found best is saved in this order: the line of `metrics.jsonl`, the state of the run, `best.safetensors`. So a line
    describes that file whenever the process is killed: without the state a resumed run drops the line and judges again, with it
    `keep` makes the file.
    """

    def __init__(self, validator: Validator | None, run: Run) -> None:
        self.validator, self.run = validator, run
        settings = run.config.training
        self.every, self.patience = settings.eval_kimg, settings.patience
        self.best: float | None = None
        self.best_nimg = 0
        self.since = 0  # judgements after the best

    def due(self, crossed: Callable[[float], bool], last: bool) -> bool:
        """Whether to judge now; `crossed(kimg)`: a multiple of `kimg` was just passed. `last`: the training ends here."""
        return self.validator is not None and (last or (self.every is not None and crossed(self.every)))

    @property
    def exhausted(self) -> bool:
        """Whether so many judgements brought nothing better that training should end."""
        return self.validator is not None and self.patience is not None and self.since >= self.patience

    def is_best(self, nimg: int) -> bool:
        """Whether the model after `nimg` images is the best of all that were judged."""
        return self.best is not None and self.best_nimg == nimg

    def keep(self, nimg: int, networks: dict[str, nn.Module], description: dict[str, Any]) -> None:
        """Write `best.safetensors` if the model after `nimg` images, which is given, is the best."""
        if self.validator is not None and self.is_best(nimg):
            told = {**description, "nimg": nimg, "best": {"figure": self.validator.metric, "value": self.best}}
            checkpoint.save_model(self.run.best_path, networks, told)

    def look(self, nimg: int, plot: Callable[[str, float, int], None]) -> dict[str, float]:
        """Judge the task, remember whether it is the best so far, and log; returns the figures, the same in every process.

        `plot(name, value, nimg)` is called by rank 0. Figures that are not finite are returned, and nothing else is done:
        they say that training diverged.
        """
        validator = self.validator
        if validator is None:
            raise ValueError("there is no judge")
        with full_precision():  # as `gan-uad fid` and `classify` compute it, however the training does
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
        console.say(f"judged at {nimg / 1000:g} kimg: {shown}{' (the best so far)' if better else ''}")
        return metrics

    def verdict(self, stopped_early: bool) -> str:
        """How it went, in words that follow on "12 kimg"; "" where nothing was judged."""
        if self.validator is None or self.best is None:
            return ""
        text = f"; best {self.validator.metric} {self.best:.4g} at {self.best_nimg / 1000:g} kimg: {self.run.best_path.name}"
        judgements = f"{self.since} judgement{'s' if self.since > 1 else ''}"
        return f", stopped early after {judgements} without a better one{text}" if stopped_early else text

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"best": self.best, "best_nimg": self.best_nimg, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; an empty one is of a run that was never judged."""
        for name in self.state_dict():
            if name in state:
                setattr(self, name, state[name])
