"""What a training does in one step: the interface between the engine and everything that can be trained."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gan_uad import checkpoint
from gan_uad.data.patches import PatchSet, TrainStream
from gan_uad.errors import UserError
from gan_uad.training import distributed
from gan_uad.training.ema import EMA
from gan_uad.training.feed import Stream
from gan_uad.training.validation import Validator


class Task(ABC):
    """One trainable thing. Everything random in it comes from generators whose state is in `state_dict`.

    With several processes, each gets its share of a batch (every `size`-th image). It draws the random numbers of the complete batch
    from equally seeded generators and uses its share of them. `optimise` averages gradients before the update. So all processes hold
    the same weights as one process with the complete batch. Batch norm is the exception: it normalises each pass (a process's
    micro-batch) by that pass's own statistics.
    """

    micro_batch: int | None = None  # images of one pass in this process; None: its complete share of the batch
    updated: int = 0  # checksum of which weights had a gradient, in each update until now (several processes)
    group: int = 1  # images that must stay together in a pass (minibatch stddev)
    curves: dict[str, str] = {}  # metrics to plot as learning curves, and their names in validation
    states: frozenset[str] = (
        frozenset()
    )  # metrics of which the last value is logged, not the mean (a learning rate, say)

    def batch_at(self, nimg: int) -> int | None:
        """Images of the batch that follows `nimg` images, in all processes; None: the run's batch size."""
        return None

    def batch_sizes(self, batch: int) -> set[int]:
        """All batch sizes that occur in a run of batch size `batch`."""
        return {batch}

    def check_batches(self, batch: int) -> None:
        """Raise `UserError` unless every batch can be split over the processes, into passes, and these into groups."""
        size = distributed.world().size
        for total in sorted(self.batch_sizes(batch)):
            if total % size:
                raise UserError(f"a batch of {total} images cannot be shared evenly by {size} processes")
            passes = {len(range(total // size)[part]) for part in self.parts(total // size)}
            together = total if passes == {total} else self.group
            if self.group > 1 and (len(passes) > 1 or max(passes) % min(self.group, together)):
                cut = "" if passes == {total} else f" (in passes of {', '.join(map(str, sorted(passes)))})"
                key = "training.batch" if total == batch else "optim.batch_per_level"
                raise UserError(
                    f"a batch of {total} images{cut} cannot be split into minibatch-stddev groups of {self.group}: "
                    f"make {key} (and micro_batch) a multiple of {self.group}, or set network.mbstd_group"
                )

    def allows(self, micro_batch: int, batch: int) -> bool:
        """Whether a run of batch size `batch` could continue in passes of `micro_batch` images."""
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
        """Prepare a new training, for example load initial weights. Called before `train`, but not for a resumed run."""

    def start_from(self, trained: dict[str, nn.Module], context: str) -> None:
        """Start from the weights of `trained` networks, by the roles of `networks`. Raises `UserError` for another architecture."""
        for role, net in self.networks().items():
            if role not in trained:
                raise UserError(f"{context} holds no {role}, only {', '.join(trained) or 'a fitted scorer'}")
            checkpoint.load_weights(net, trained[role].state_dict(), context)

    def stream(self, patches: PatchSet, batch: int, seed: int, flips: bool, turns: bool) -> Stream:
        """Training batches of `patches`: this process's share of their images."""
        here = distributed.world()
        return TrainStream(patches, batch, seed, flips, turns, here.rank, here.size)

    def validator(self, patches: PatchSet) -> Validator | None:
        """What validates this task during training, on validation `patches` (of any label); None: nothing does."""
        return None

    def batch_of(self, share: Tensor) -> int:
        """Images of the batch in all processes, given this process's share of it."""
        return len(share) * distributed.world().size

    def optimise(
        self, optimizer: torch.optim.Optimizer, count: int, loss: Callable[[slice], tuple[Tensor, dict[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """One optimiser step on a mean over the batch; `count`: images of this process's share.

        `loss(part)` gives the mean over one micro-batch and metrics to log. Returns the metrics' means over the share (detached).
        """
        optimizer.zero_grad()
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        metrics: dict[str, Tensor] = {}
        parts = self.parts(count)
        for part in parts:
            value, logged = loss(part)
            weight = len(range(count)[part]) / count
            last = distributed.averaging(weights) if part is parts[-1] else nullcontext()
            # Autocast would compute float32 layers' gradients in low precision: backward passes have their dtypes from the forward pass.
            with last, torch.autocast(value.device.type, enabled=False):
                (value * weight).backward()
            for name, metric in logged.items():
                metrics[name] = metrics.get(name, 0) + metric.detach() * weight
        if distributed.world().size > 1:
            self.updated = zlib.crc32(bytes(p.grad is not None for p in weights), self.updated)
        optimizer.step()
        return metrics

    def modules(self) -> list[nn.Module]:
        """The networks among its attributes, averaged copies included."""
        held = [value.net if isinstance(value, EMA) else value for value in vars(self).values()]
        return [value for value in held if isinstance(value, nn.Module)]

    def synchronise(self) -> None:
        """Give every process rank 0's buffers (between checkpoints, batch norm's running statistics differ)."""
        for net in self.modules():
            distributed.broadcast(net.buffers())

    @abstractmethod
    def step(self, real: Any, nimg: int) -> dict[str, Tensor]:
        """Do the optimiser steps for one batch; `nimg`: images seen before it, in all processes.

        `real`: this process's share of a batch of `stream`, on the device: images `[N, 3, R, R]` in [-1, 1], or a tuple of tensors such
        as images and labels. Returns scalar metrics to log (detached, means over the share). A step may leave out some of them.
        """

    @abstractmethod
    def sample(self) -> Tensor:
        """Images `[N, 3, R, R]` in [-1, 1] for a snapshot, always from the same latents. Must not change the state."""

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """What to export, by role; each was made by `registry.build`."""

    def holders(self) -> dict[str, Any]:
        """All that holds state, by its name in `state_dict`: networks, optimisers, random generators, tensors, and other objects with
        `state_dict` and `load_state_dict`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs; tensors and plain values only."""
        return {name: _state_of(holder) for name, holder in self.holders().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state exactly. Raises `UserError` when it is of another architecture."""
        for name, holder in self.holders().items():
            if isinstance(holder, nn.Module):
                checkpoint.load_weights(holder, state[name], "the checkpoint")
            elif isinstance(holder, torch.Generator):
                holder.set_state(state[name])
            elif isinstance(holder, Tensor):
                if fault := checkpoint.fault_of(state[name], holder):
                    raise UserError(f"the checkpoint: {name} {fault}")
                holder.copy_(state[name])
            else:
                holder.load_state_dict(state[name])


def _state_of(holder: Any) -> Any:
    if isinstance(holder, Tensor):
        return holder
    return holder.get_state() if isinstance(holder, torch.Generator) else holder.state_dict()
