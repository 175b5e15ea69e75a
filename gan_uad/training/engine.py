"""The only training loop. A `Task` says what one step does; the engine owns everything around it."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gan_uad import checkpoint, console, old_names
from gan_uad.data.patches import PatchSet, TrainStream, to_uint8
from gan_uad.errors import Interrupted, JobFailed, UserError
from gan_uad.files import atomic, explained, remove_leftovers
from gan_uad.run import Run
from gan_uad.training import distributed, memory
from gan_uad.training.ema import EMA
from gan_uad.training.signals import signals
from gan_uad.training.validation import ValidationTracker, Validator
from gan_uad.training.watch import Watch

LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
EARLY_SNAPSHOTS = (0.0, 1 / 16, 1 / 4)  # of the snapshot interval: nobody should wait an hour for the first picture


class Task(ABC):
    """One trainable thing. Everything random in it comes from generators whose state is in `state_dict`.

    Several processes: each is given its share of a batch (every `size`-th image), draws the random numbers of the whole
    batch from equally seeded generators and takes its share of them, and averages gradients before it updates (`optimise`
    does), so that all hold the same weights, those that one process would make of the whole batch. Batch norm is the
    exception: it normalises each pass (a process's micro-batch) by that pass's own statistics.
    """

    micro_batch: int | None = None  # images of one pass in this process; None: its whole share of the batch
    group: int = 1  # images that a pass must hold together (minibatch stddev)
    curves: dict[str, str] = {}  # figures worth a picture, and what they are called among those of `judge`
    states: frozenset[str] = frozenset()  # figures that say where training stands: the last one is logged, not the mean

    def batch_at(self, nimg: int) -> int | None:
        """Images of the batch that follows `nimg` images, in all processes; None: what the run says."""
        return None

    def batch_sizes(self, batch: int) -> set[int]:
        """All sizes that batches will have in a run of batch size `batch`."""
        return {batch}

    def check_batches(self, batch: int) -> None:
        """Raise `UserError` unless every batch can be shared out, cut into passes, and these into groups."""
        size = distributed.world().size
        for whole in sorted(self.batch_sizes(batch)):
            if whole % size:
                raise UserError(f"a batch of {whole} images cannot be shared evenly by {size} processes")
            passes = {len(range(whole // size)[part]) for part in self.parts(whole // size)}
            together = whole if passes == {whole} else self.group
            if self.group > 1 and (len(passes) > 1 or max(passes) % min(self.group, together)):
                cut = "" if passes == {whole} else f" (in passes of {', '.join(map(str, sorted(passes)))})"
                key = "training.batch" if whole == batch else "optim.batch_per_level"
                raise UserError(
                    f"a batch of {whole} images{cut} cannot be cut into minibatch-stddev groups of {self.group}: "
                    f"make {key} (and micro_batch) a multiple of {self.group}, or set network.mbstd_group"
                )

    def allows(self, micro_batch: int, batch: int) -> bool:
        """Whether a run of batch size `batch` could go on in passes of `micro_batch` images."""
        asked, self.micro_batch = self.micro_batch, micro_batch
        try:
            self.check_batches(batch)
        except UserError:
            return False
        finally:
            self.micro_batch = asked
        return True

    def parts(self, count: int) -> list[slice]:
        """The micro-batches of a share of `count` images: every M-th image, for the reason given in `distributed.share`."""
        passes = -(-count // (self.micro_batch or count))
        return [slice(m, None, passes) for m in range(passes)]

    def begin(self) -> None:
        """Take weights to start from, say. Called before `train`, unless that goes on from a checkpoint."""

    def start_from(self, trained: dict[str, nn.Module], context: str) -> None:
        """Train on from the weights of `trained` networks, as `networks` gives them. Raises `UserError` for another architecture."""
        for role, net in self.networks().items():
            if role not in trained:
                raise UserError(f"{context} holds no {role}, only {', '.join(trained) or 'a fitted scorer'}")
            checkpoint.load_weights(net, trained[role].state_dict(), context)

    def stream(self, patches: PatchSet, batch: int, seed: int, flips: bool, turns: bool) -> Stream:
        """What it is trained on, from the `patches` chosen for that: their images, in this process's shares."""
        here = distributed.world()
        return TrainStream(patches, batch, seed, flips, turns, here.rank, here.size)

    def validator(self, patches: PatchSet) -> Validator | None:
        """What judges it while it is trained, on some validation `patches` (of any label); None: nothing of its own does."""
        return None

    def whole(self, real: Tensor) -> int:
        """Images of the batch in all processes, of which `real` is this one's share."""
        return len(real) * distributed.world().size

    def optimise(
        self, optimizer: torch.optim.Optimizer, count: int, loss: Callable[[slice], tuple[Tensor, dict[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """One optimiser step on a mean over the batch, `count` images of which are here.

        `loss(part)` gives the mean over one micro-batch and figures to log; returns the figures' means over the share (detached).
        """
        optimizer.zero_grad()
        metrics: dict[str, Tensor] = {}
        for part in self.parts(count):
            value, logged = loss(part)
            weight = len(range(count)[part]) / count
            (value * weight).backward()
            for name, metric in logged.items():
                metrics[name] = metrics.get(name, 0) + metric.detach() * weight
        distributed.average_gradients(p for group in optimizer.param_groups for p in group["params"])
        optimizer.step()
        return metrics

    def modules(self) -> list[nn.Module]:
        """The networks that it holds as attributes, averaged copies included."""
        held = [value.net if isinstance(value, EMA) else value for value in vars(self).values()]
        return [value for value in held if isinstance(value, nn.Module)]

    def synchronise(self) -> None:
        """Give every process rank 0's buffers (batch norm's running statistics are each process's own between checkpoints)."""
        for net in self.modules():
            distributed.broadcast(net.buffers())

    @abstractmethod
    def step(self, real: Any, nimg: int) -> dict[str, Tensor]:
        """Do the optimiser steps for one batch, `nimg` images having been seen before it (in all processes).

        `real` is what `stream` gives, this process's share of it, on the device: images `[N, 3, R, R]` in [-1, 1], or a tuple of
        tensors such as images and labels. Returns scalar figures to log (detached, means over the share); a step may leave out
        those that it did not compute.
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

    def at(self, nimg: int, batch: int | None = None) -> Tensor | tuple[Tensor, ...]:
        """The batch `[N, 3, R, R]` in [-1, 1] that follows the first `nimg` images, or a tuple of it and what belongs to it, each
        `[N, ...]`; this process's share of `batch` images."""


def train(
    task: Task,
    stream: Stream,
    run: Run,
    device: torch.device,
    description: dict[str, Any],
    resume: bool = False,
    validator: Validator | None = None,
) -> str:
    """Train `task` until the run's `total_kimg` or until `judge` says that nothing gets better, logging, drawing and saving on
    the way; returns in words how it ended.

    Every process of a group calls it; rank 0 alone writes. Raises `Interrupted` (after saving) on Ctrl-C or SIGTERM to any
    process, and `JobFailed` when a figure is not finite, the disk is full or memory does not do; the last good checkpoint is kept.
    """
    loop = _Loop(task, run, device, description, ValidationTracker(validator, run))
    nimg = loop.restore(resume)
    settings = run.config.training
    total = round(settings.total_kimg * 1000)
    low = LOW_PRECISION.get(settings.precision)
    autocast = torch.autocast(device.type, low, enabled=low is not None)
    with (
        loop.writing(nimg),
        signals() as stop,
        console.progress(run.config.name, total / 1000, "kimg", nimg / 1000) as bar,
    ):
        if nimg == 0:
            loop.snapshot(0)
        while nimg < total and not loop.validation.exhausted:
            batch = task.batch_at(nimg) or settings.batch
            with memory.explained(run, loop.kept, batch, task.allows):
                real = _moved(stream.at(nimg, batch), device)
                with autocast:
                    loop.add(task.step(real, nimg))
            before, nimg = nimg, nimg + batch
            if loop.validation.due(partial(_crossed, before, nimg), nimg >= total):
                loop.validate(nimg)
            done = nimg >= total or loop.validation.exhausted
            stopped = distributed.any_of(bool(stop))
            save = done or stopped or loop.validation.is_best(nimg) or _crossed(before, nimg, settings.checkpoint_kimg)
            # A tick before every save: figures that are not finite are seen, and a resumed log is that of one run.
            if save or _crossed(before, nimg, settings.tick_kimg):
                loop.tick(nimg, bar)
            if done or _crossed(before, nimg, settings.snapshot_kimg) or _early(before, nimg, settings.snapshot_kimg):
                loop.snapshot(nimg)
            if save:
                loop.save(nimg)
            if stopped and not done:
                raise Interrupted(
                    f"stopped at {nimg / 1000:g} kimg, all saved", f"Go on with: gan-uad train {run.folder} --resume"
                )
    return f"{nimg / 1000:g} kimg{loop.validation.verdict(stopped_early=nimg < total)}"


class _Loop:
    """The loop's own small state: figures since the last tick, and the writers (of rank 0)."""

    def __init__(
        self, task: Task, run: Run, device: torch.device, description: dict[str, Any], validation: ValidationTracker
    ) -> None:
        self.task, self.run, self.device, self.description, self.validation = task, run, device, description, validation
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.tick_time, self.tick_nimg = time.monotonic(), 0
        self.saved_nimg: int | None = None
        self.watch = Watch()

    @contextmanager
    def writing(self, nimg: int) -> Iterator[None]:
        """TensorBoard events from `nimg` on, in place of those that a killed process wrote after it; closed at the end."""
        if distributed.world().rank:
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        with explained(self.run.folder):
            self.board = SummaryWriter(str(self.run.folder), purge_step=nimg + 1)
            try:
                yield
            finally:
                with suppress(OSError):  # a full disk was already answered
                    self.board.close()

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            if name in self.task.states:
                self.sums[name], self.counts[name] = value.float(), 1
                continue
            self.sums[name] = self.sums.get(name, 0) + value.float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def tick(self, nimg: int, bar: console.Progress) -> None:
        """Log the means since the last tick, over all processes; a figure that is not finite ends the training before anything
        is overwritten."""
        means = self.means()
        now = time.monotonic()
        per_kimg = (now - self.tick_time) / max(nimg - self.tick_nimg, 1) * 1000
        self.tick_time, self.tick_nimg = now, nimg
        for name, value in means.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}", nimg)
        row: dict[str, Any] = {
            "nimg": nimg,
            "kimg": nimg / 1000,
            "seconds_per_kimg": round(per_kimg, 3),
            "memory_gb": memory.peak(self.device),
            **means,
        }
        if warnings := self.watch.look(means):
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

    def validate(self, nimg: int) -> None:
        """Have the task judged as it stands; a figure that is not finite ends the training."""
        start = time.monotonic()
        self.task.synchronise()
        with memory.explained_aside(self.run, self.kept, "validation", alone=True):
            metrics = self.validation.look(nimg, lambda *row: self.board.add_scalar(*row))
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}", nimg)
        self.tick_time += time.monotonic() - start  # seconds_per_kimg is of the training alone

    def means(self) -> dict[str, float]:
        """The mean of each figure since the last call (of `states` the last value), over all processes, which log the same
        figures at the same steps."""
        local = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        names = sorted(local)
        shared = distributed.mean(torch.tensor([local[name] for name in names], dtype=torch.float64)).tolist()
        return local | dict(zip(names, shared, strict=True))

    def kept(self) -> str:
        """What is left of the work when it ends here."""
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
            save_grid(images, self.run.folder / "fakes" / name)

        distributed.first(write)

    def save(self, nimg: int) -> None:
        """Write the model, the state, and the best model if this is it: one killed in between makes what lacks when it goes on."""
        self.task.synchronise()

        def write() -> None:
            state = {"nimg": nimg, "task": self.task.state_dict(), "torch_rng": torch.get_rng_state()}
            state["validation"] = self.validation.state_dict()
            # Figures are those before the last update; the weights after it may be broken all the same.
            if broken := next(checkpoint.not_finite(state["task"], "state"), None):
                raise self.diverged(f"{broken} is not finite", nimg)
            checkpoint.save_model(self.run.model_path, self.task.networks(), {**self.description, "nimg": nimg})
            checkpoint.save_state(self.run.state_path, state)
            self.validation.keep(nimg, self.task.networks(), self.description)
            self.board.flush()

        distributed.first(write)
        self.saved_nimg = nimg

    def restore(self, resume: bool) -> int:
        """Put every process where rank 0 stands and return its `nimg`: that of the last checkpoint when the run is resumed,
        0 for a new run and for one that was killed before its first."""
        if resume and (state := distributed.first(self._read)) is not None:
            self.saved_nimg = self.tick_nimg = state["nimg"]
            try:
                self.task.load_state_dict(state["task"])
            except KeyError as missing:
                raise UserError(f"{self.run.state_path} is of another task: it holds no {missing}") from None
            torch.set_rng_state(state["torch_rng"])
            self.validation.load_state_dict(old_names.keys(state).get("validation", {}))
        else:
            for net in self.task.modules():  # equal seeds do not make equal weights on unequal machines
                distributed.broadcast(net)
        nimg = self.saved_nimg or 0
        if resume:
            console.say(
                f"going on at {nimg / 1000:g} kimg" if nimg else "nothing was saved yet: starting at the beginning"
            )
            distributed.first(lambda: self.run.rewind_log(nimg))
            distributed.first(lambda: self.validation.keep(nimg, self.task.networks(), self.description))
            self.watch.replay(distributed.first(self.run.read_log))
        return nimg

    def _read(self) -> dict[str, Any] | None:
        remove_leftovers(self.run.folder)
        return checkpoint.load_state(self.run.state_path) if checkpoint.has_state(self.run.state_path) else None


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


def _moved(batch: Tensor | tuple[Tensor, ...], device: torch.device) -> Tensor | tuple[Tensor, ...]:
    if isinstance(batch, tuple):
        return tuple(part.to(device, non_blocking=True) for part in batch)
    return batch.to(device, non_blocking=True)


def _crossed(before: int, after: int, every_kimg: float) -> bool:
    every = every_kimg * 1000
    return int(before / every) != int(after / every)


def _early(before: int, after: int, every_kimg: float) -> bool:
    return any(before < share * every_kimg * 1000 <= after for share in EARLY_SNAPSHOTS)
