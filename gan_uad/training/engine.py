"""The only training loop. A `Task` (task.py) says what one step does; the engine owns everything around it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_uad import checkpoint, console, old_names
from gan_uad.data.patches import to_uint8
from gan_uad.errors import Interrupted, JobFailed, UserError
from gan_uad.files import explained, remove_leftovers
from gan_uad.plotting.pictures import image_grid
from gan_uad.run import Run
from gan_uad.training import distributed, memory
from gan_uad.training.feed import Feed, Stream
from gan_uad.training.signals import signals
from gan_uad.training.task import Task
from gan_uad.training.validation import ValidationTracker, Validator
from gan_uad.training.watch import Watch

LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Processes ask each other for a request to stop about once a second, and at least once in so many steps.
ASK_SECONDS, ASK_STEPS = 1.0, 8
EARLY_SNAPSHOTS = (0.0, 1 / 16, 1 / 4)  # of the snapshot interval: so that the first images do not take an hour


def train(
    task: Task,
    stream: Stream,
    run: Run,
    device: torch.device,
    description: dict[str, Any],
    resume: bool = False,
    validator: Validator | None = None,
) -> str:
    """Train `task` until the run's `total_kimg`, or until validation has not improved for the run's `patience`.

    Logs, draws snapshots and saves on the way. Returns in words how it ended. Every process of a group calls it; rank 0 alone writes.
    Raises `Interrupted` (after saving) on Ctrl-C or SIGTERM to any process, and `JobFailed` when a metric is not finite or disk or
    memory is full; the last good checkpoint is kept.
    """
    loop = _Loop(task, run, device, description, ValidationTracker(validator, run))
    nimg = loop.restore(resume)
    settings = run.config.training
    total = round(settings.total_kimg * 1000)
    low = LOW_PRECISION.get(settings.precision)
    autocast = torch.autocast(device.type, low, enabled=low is not None)

    def batch_after(images: int) -> int | None:
        return None if images >= total else task.batch_at(images) or settings.batch

    with (
        loop.writing(nimg),
        Feed(stream, device, batch_after) as feed,
        signals() as stop,
        console.progress(run.config.name, total / 1000, "kimg", nimg / 1000) as bar,
    ):
        if nimg == 0:
            loop.snapshot(0)
        while nimg < total and not loop.validation.exhausted:
            batch = batch_after(nimg) or settings.batch
            with memory.explained(run, loop.kept, batch, task.allows):
                real = feed.at(nimg, batch)
                with autocast:
                    loop.add(task.step(real, nimg))
            before, nimg = nimg, nimg + batch
            if loop.validation.due(partial(_crossed, before, nimg), nimg >= total):
                loop.validate(nimg)
            done = nimg >= total or loop.validation.exhausted
            save = done or loop.validation.is_best(nimg) or _crossed(before, nimg, settings.checkpoint_kimg)
            stopped = loop.stopped(bool(stop), save)
            save = save or stopped
            # A tick before every save: it finds metrics that are not finite, and the log of a resumed run has the same lines.
            if save or _crossed(before, nimg, settings.tick_kimg):
                loop.tick(nimg, bar)
            if done or _crossed(before, nimg, settings.snapshot_kimg) or _early(before, nimg, settings.snapshot_kimg):
                loop.snapshot(nimg)
            if save:
                loop.save(nimg)
            if stopped and not done:
                raise Interrupted(
                    f"stopped at {nimg / 1000:g} kimg, all saved", f"Continue with: gan-uad train {run.folder} --resume"
                )
    return f"{nimg / 1000:g} kimg{loop.validation.summary(stopped_early=nimg < total)}"


class _Loop:
    """The loop's own small state: metrics since the last tick, and the writers (of rank 0)."""

    def __init__(
        self, task: Task, run: Run, device: torch.device, description: dict[str, Any], validation: ValidationTracker
    ) -> None:
        self.task, self.run, self.device, self.description, self.validation = task, run, device, description, validation
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.tick_time, self.tick_nimg = time.monotonic(), 0
        self.steps, self.ask_every = 0, 1  # steps since the last tick; in how many the processes ask once
        self.saved_nimg: int | None = None
        self.watch = Watch()

    @contextmanager
    def writing(self, nimg: int) -> Iterator[None]:
        """TensorBoard events from `nimg` on, which replace those that a killed process wrote after it; closed at the end."""
        if distributed.world().rank:
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        with explained(self.run.folder):
            self.board = SummaryWriter(str(self.run.folder), purge_step=nimg + 1)
            try:
                yield
            finally:
                with suppress(OSError):  # a full disk was reported already
                    self.board.close()

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            if name in self.task.states:
                self.sums[name], self.counts[name] = value.float(), 1
                continue
            self.sums[name] = self.sums.get(name, 0) + value.float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def stopped(self, requested: bool, now: bool) -> bool:
        """Whether to stop after this step, the same in all processes: whether it was `requested` of any.

        Asking waits for the slowest, so they ask about once a second, or where `now` is set. One process knows at each step.
        """
        self.steps += 1
        if distributed.world().size > 1 and not now and self.steps % self.ask_every:
            return False
        return distributed.any_of(requested)

    def tick(self, nimg: int, bar: console.Progress) -> None:
        """Log the means since the last tick, over all processes. A metric that is not finite ends the training before any file is
        overwritten."""
        means = self.means()
        now = time.monotonic()
        per_kimg = (now - self.tick_time) / max(nimg - self.tick_nimg, 1) * 1000
        self.agree((now - self.tick_time) / max(self.steps, 1), nimg)
        self.tick_time, self.tick_nimg, self.steps = now, nimg, 0
        self.check_finite(means, nimg)
        row: dict[str, Any] = {
            "nimg": nimg,
            "kimg": nimg / 1000,
            "seconds_per_kimg": round(per_kimg, 3),
            "memory_gb": memory.peak(self.device),
            **means,
        }
        if warnings := self.watch.check(means):
            row["warnings"] = warnings
        for warning in warnings:
            console.say(f"warning: at {nimg / 1000:g} kimg {warning}")
        shown = " ".join(f"{name} {value:.3g}" for name, value in means.items())

        def write() -> None:
            self.run.log({**row, "time": round(time.time(), 1)})
            for name, value in {**means, "seconds_per_kimg": per_kimg}.items():
                self.board.add_scalar(name, value, nimg)
            bar.update(nimg / 1000, f"{shown} | {per_kimg:.1f} s/kimg, {row['memory_gb']:.1f} GB", force=not bar.live)

        distributed.first(write)

    def agree(self, seconds: float, nimg: int) -> None:
        """Agree, by rank 0's `seconds` a step, on how often to ask for requests to stop. Processes that have updated different weights
        since the start no longer hold the same: that ends the training, before any file is overwritten."""
        every = min(ASK_STEPS, max(1, int(ASK_SECONDS / max(seconds, 1e-9))))
        self.ask_every, updated = distributed.from_first((every, self.task.updated))
        if distributed.any_of(updated != self.task.updated):
            raise JobFailed(
                f"the processes updated different weights until {nimg / 1000:g} kimg ({self.kept()}): a fault of the task "
                f"{self.run.config.task}, which must give the same weights a gradient in all of them. Train with one process"
            )

    def validate(self, nimg: int) -> None:
        """Validate the task; a metric that is not finite ends the training."""
        start = time.monotonic()
        self.task.synchronise()
        with memory.explained_aside(self.run, self.kept, "validation", alone=True):
            self.check_finite(self.validation.validate(nimg, lambda *row: self.board.add_scalar(*row)), nimg)
        self.tick_time += time.monotonic() - start  # seconds_per_kimg is of the training alone

    def check_finite(self, metrics: dict[str, float], nimg: int) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}", nimg)

    def means(self) -> dict[str, float]:
        """The mean of each metric since the last call (of `states` the last value), over all processes.

        All processes log the same metrics at the same steps.
        """
        local = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        names = sorted(local)
        shared = distributed.mean(torch.tensor([local[name] for name in names], dtype=torch.float64)).tolist()
        return local | dict(zip(names, shared, strict=True))

    def kept(self) -> str:
        """Which work is kept when training ends now."""
        if self.saved_nimg is None:
            return "nothing was saved yet"
        return f"the checkpoint at {self.saved_nimg / 1000:g} kimg is kept"

    def diverged(self, what: str, nimg: int) -> JobFailed:
        return JobFailed(
            f"training diverged: {what} at {nimg / 1000:g} kimg ({self.kept()}). Try a lower learning rate or another seed"
        )

    def snapshot(self, nimg: int) -> None:
        name = f"{nimg // 1000:06d}{'' if nimg % 1000 == 0 else f'.{nimg % 1000:03d}'}.png"

        def write() -> None:
            with memory.explained_aside(self.run, self.kept, "drawing a snapshot", alone=False):
                images = to_uint8(self.task.sample().float().cpu())
            image_grid(images, self.run.folder / "fakes" / name)

        distributed.first(write)

    def save(self, nimg: int) -> None:
        """Write the model, the state, and the best model if this is it. After a kill in between, `restore` writes what is missing."""
        self.task.synchronise()
        generators = distributed.of_each(_generators(self.device))

        def write() -> None:
            state = {"nimg": nimg, "task": self.task.state_dict(), "generators": generators}
            state["validation"] = self.validation.state_dict()
            # Metrics describe the weights before the last update; those after it may still be broken.
            if broken := next(checkpoint.not_finite(state["task"], "state"), None):
                raise self.diverged(f"{broken} is not finite", nimg)
            checkpoint.save_model(self.run.model_path, self.task.networks(), {**self.description, "nimg": nimg})
            checkpoint.save_state(self.run.state_path, state)
            self.validation.keep(nimg, self.task.networks(), self.description)
            self.board.flush()

        distributed.first(write)
        self.saved_nimg = nimg

    def restore(self, resume: bool) -> int:
        """Give every process the state of rank 0 and return its `nimg`: that of the last checkpoint of a resumed run, 0 for a new run
        and for one that was killed before its first checkpoint."""
        state = self._read() if resume else None
        if state is not None:
            self.saved_nimg = self.tick_nimg = state["nimg"]
            try:
                self.task.load_state_dict(state["task"])
            except KeyError as missing:
                raise UserError(f"{self.run.state_path} is of another task: it holds no {missing}") from None
            except UserError as error:
                raise UserError(f"{self.run.state_path}: {error.message}") from None
            # Up to version 0.2 it held the state of rank 0's CPU generator alone.
            generators = state["generators"] if "generators" in state else [{"cpu": state["torch_rng"]}]
            self.seed(generators)
            self.validation.load_state_dict(old_names.keys(state).get("validation", {}))
        else:
            for net in self.task.modules():  # equal seeds do not give equal weights on different machines
                distributed.broadcast(net)
            self.seed([_generators(self.device)])
        nimg = self.saved_nimg or 0
        if resume:
            console.say(f"resuming at {nimg / 1000:g} kimg" if nimg else "nothing was saved yet: starting from 0 kimg")
            distributed.first(lambda: self.run.rewind_log(nimg))
            distributed.first(lambda: self.validation.keep(nimg, self.task.networks(), self.description))
            self.watch.replay(distributed.first(self.run.read_log))
        return nimg

    def seed(self, generators: list[dict[str, Tensor]]) -> None:
        """Restore this process's states of torch's generators (dropout draws from them), or seed them afresh where it has none.

        `generators`: by rank. So no two processes drop the same for their different images.
        """
        here, nimg = distributed.world(), self.saved_nimg or 0
        if here.rank >= len(generators):
            seeds = np.random.SeedSequence((self.run.config.training.seed, here.rank, nimg)).generate_state(1)
            torch.manual_seed(int(seeds[0]))
            return
        torch.set_rng_state(generators[here.rank]["cpu"])
        if self.device.type == "cuda" and "cuda" in generators[here.rank]:
            torch.cuda.set_rng_state(generators[here.rank]["cuda"], self.device)
        if nimg and here.size > len(generators):
            console.say(
                f"note: the checkpoint is of {len(generators)} processes: random numbers of the others (dropout) start afresh"
            )

    def _read(self) -> dict[str, Any] | None:
        """The last state, in every process; None: there is none."""

        def read() -> dict[str, Any] | None:
            remove_leftovers(self.run.folder)
            return checkpoint.load_state(self.run.state_path) if checkpoint.has_state(self.run.state_path) else None

        return distributed.state_from_first(distributed.together(lambda: None if distributed.world().rank else read()))


def _generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's own generators that a training on `device` may draw from."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _crossed(before: int, after: int, every_kimg: float) -> bool:
    every = every_kimg * 1000
    return int(before / every) != int(after / every)


def _early(before: int, after: int, every_kimg: float) -> bool:
    return any(before < share * every_kimg * 1000 <= after for share in EARLY_SNAPSHOTS)
