"""The only training loop. A `Task` says what one step does; the engine owns everything around it."""

from __future__ import annotations

import math
import resource
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gan_uad import console
from gan_uad.data.patches import to_uint8
from gan_uad.errors import Interrupted, JobFailed, UserError
from gan_uad.files import atomic, explained, remove_leftovers
from gan_uad.run import Run
from gan_uad.training import checkpoint

EARLY_SNAPSHOTS = (0.0, 1 / 16, 1 / 4)  # of the snapshot interval: nobody should wait an hour for the first picture


class Task(ABC):
    """One trainable thing. Everything random in it comes from generators whose state is in `state_dict`."""

    @abstractmethod
    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        """Do the optimiser steps for one batch `[N, 3, R, R]` in [-1, 1], `nimg` images having been seen before it.

        Returns scalar figures to log (detached); a step may leave out those that it did not compute.
        """

    @abstractmethod
    def sample(self) -> Tensor:
        """Something to look at: images `[N, 3, R, R]` in [-1, 1], always from the same latents, leaving no trace in the state."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """What to export, by role; each was made by `registry.build`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs: weights, optimisers, averages, generators; tensors and plain values only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state back, exactly."""


class Stream(Protocol):
    """Where batches come from: a pure function of how many images were seen."""

    def at(self, nimg: int) -> Tensor:
        """The batch `[N, 3, R, R]` in [-1, 1] that follows the first `nimg` images."""


def train(
    task: Task, stream: Stream, run: Run, device: torch.device, description: dict[str, Any], resume: bool = False
) -> None:
    """Train `task` until the run's `total_kimg`, logging, drawing and saving on the way.

    Raises `Interrupted` (after saving) on Ctrl-C or SIGTERM, and `JobFailed` when a figure is not finite or the disk is full;
    the last good checkpoint is kept in either case.
    """
    loop = _Loop(task, run, device, description)
    nimg = loop.restore() if resume else 0
    settings = run.config.training
    total = round(settings.total_kimg * 1000)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")
    with (
        loop.writing(nimg),
        _signals() as stop,
        console.progress(run.config.name, total / 1000, "kimg", nimg / 1000) as bar,
    ):
        if nimg == 0:
            loop.snapshot(0)
        while nimg < total:
            real = stream.at(nimg).to(device, non_blocking=True)
            with autocast:
                loop.add(task.step(real, nimg))
            before, nimg = nimg, nimg + settings.batch
            done, stopped = nimg >= total, bool(stop)
            save = done or stopped or _crossed(before, nimg, settings.checkpoint_kimg)
            # A tick before every save: figures that are not finite are seen, and a resumed log is that of one run.
            if save or _crossed(before, nimg, settings.tick_kimg):
                loop.tick(nimg, bar)
            if done or _crossed(before, nimg, settings.snapshot_kimg) or _early(before, nimg, settings.snapshot_kimg):
                loop.snapshot(nimg)
            if save:
                loop.save(nimg)
            if stopped and not done:
                raise Interrupted(
                    f"stopped at {nimg / 1000:g} kimg, all saved. Go on with: gan-uad train {run.folder} --resume"
                )


class _Loop:
    """The loop's own small state: figures since the last tick, and the writers."""

    def __init__(self, task: Task, run: Run, device: torch.device, description: dict[str, Any]) -> None:
        self.task, self.run, self.device, self.description = task, run, device, description
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.tick_time, self.tick_nimg = time.monotonic(), 0
        self.saved_nimg: int | None = None

    @contextmanager
    def writing(self, nimg: int) -> Iterator[None]:
        """TensorBoard events from `nimg` on, in place of those that a killed process wrote after it; closed at the end."""
        from torch.utils.tensorboard import SummaryWriter

        with explained(self.run.folder):
            self.board = SummaryWriter(str(self.run.folder), purge_step=nimg + 1)
            try:
                yield
            finally:
                with suppress(OSError):  # a full disk was already answered
                    self.board.close()

    def add(self, figures: dict[str, Tensor]) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0) + value.float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def tick(self, nimg: int, bar: console.Progress) -> None:
        """Log the means since the last tick; a figure that is not finite ends the training before anything is overwritten."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        now = time.monotonic()
        per_kimg = (now - self.tick_time) / max(nimg - self.tick_nimg, 1) * 1000
        self.tick_time, self.tick_nimg = now, nimg
        for name, value in means.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}", nimg)
        row = {
            "nimg": nimg,
            "kimg": nimg / 1000,
            "seconds_per_kimg": round(per_kimg, 3),
            "memory_gb": _memory(self.device),
            **means,
        }
        self.run.log({**row, "time": round(time.time(), 1)})
        for name, value in {**means, "seconds_per_kimg": per_kimg}.items():
            self.board.add_scalar(name, value, nimg)
        shown = " ".join(f"{name} {value:.3g}" for name, value in means.items())
        bar.update(nimg / 1000, f"{shown} | {per_kimg:.1f} s/kimg, {row['memory_gb']:.1f} GB", force=not bar.live)

    def diverged(self, what: str, nimg: int) -> JobFailed:
        kept = "nothing was saved yet"
        if self.saved_nimg is not None:
            kept = f"the checkpoint at {self.saved_nimg / 1000:g} kimg is kept"
        return JobFailed(
            f"training diverged: {what} at {nimg / 1000:g} kimg ({kept}). Try a lower learning rate or another seed"
        )

    def snapshot(self, nimg: int) -> None:
        images = to_uint8(self.task.sample().float().cpu())
        save_grid(
            images,
            self.run.folder / "fakes" / f"{nimg // 1000:06d}{'' if nimg % 1000 == 0 else f'.{nimg % 1000:03d}'}.png",
        )

    def save(self, nimg: int) -> None:
        """Write the model, then the state: a process killed between the two makes the model again when it goes on."""
        state = {"nimg": nimg, "task": self.task.state_dict(), "torch_rng": torch.get_rng_state()}
        # Figures are those before the last update; the weights after it may be broken all the same.
        if broken := next(checkpoint.not_finite(state["task"], "state"), None):
            raise self.diverged(f"{broken} is not finite", nimg)
        checkpoint.save_model(self.run.model_path, self.task.networks(), {**self.description, "nimg": nimg})
        checkpoint.save_state(self.run.state_path, state)
        self.board.flush()
        self.saved_nimg = nimg

    def restore(self) -> int:
        """Take the last checkpoint back and return its `nimg`; 0 where the run was killed before its first."""
        remove_leftovers(self.run.folder)
        nimg = 0
        if checkpoint.has_state(self.run.state_path):
            state = checkpoint.load_state(self.run.state_path)
            nimg = self.saved_nimg = self.tick_nimg = state["nimg"]
            try:
                self.task.load_state_dict(state["task"])
            except KeyError as missing:
                raise UserError(f"{self.run.state_path} is of another task: it holds no {missing}") from None
            torch.set_rng_state(state["torch_rng"])
        console.say(f"going on at {nimg / 1000:g} kimg" if nimg else "nothing was saved yet: starting at the beginning")
        self.run.rewind_log(nimg)
        return nimg


def save_grid(images: np.ndarray, path: Any) -> None:
    """Write uint8 images `[N, R, R, 3]` as one PNG, in a near-square grid without gaps."""
    count, side = images.shape[:2]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        canvas[y * side : (y + 1) * side, x * side : (x + 1) * side] = image
    with atomic(path) as temporary:
        Image.fromarray(canvas).save(temporary, format="png")


def _crossed(before: int, after: int, every_kimg: float) -> bool:
    every = every_kimg * 1000
    return int(before / every) != int(after / every)


def _early(before: int, after: int, every_kimg: float) -> bool:
    return any(before < share * every_kimg * 1000 <= after for share in EARLY_SNAPSHOTS)


def _memory(device: torch.device) -> float:
    """Peak memory in GB: of the device on CUDA, of the process on CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


@contextmanager
def _signals() -> Iterator[list[int]]:
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
