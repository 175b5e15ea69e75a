"""Several processes that train one model, started by torchrun: ranks, shares of a batch, and collectives.

Every process runs the same loop on its share of each batch; all communication is in this file. Without a process group (one process)
the functions change nothing, so callers need no special case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import click
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gan_uad import console
from gan_uad.errors import JobFailed, UserError

T = TypeVar("T")

# A step or a checkpoint takes seconds; a process that takes longer than this hangs. (One that died is noticed at once.)
TIMEOUT = timedelta(minutes=15)
# The first reading of a large set of patches may take hours, and the other processes wait for it.
PATIENCE = timedelta(days=1)

_patient: list[dist.ProcessGroup] = []  # a separate group with the longer timeout


@dataclass(frozen=True)
class World:
    """This process among those of the job: `rank` 0 to `size` - 1. Rank 0 alone writes files and prints."""

    rank: int = 0
    size: int = 1

    @property
    def rows(self) -> slice:
        """The rows of a batch that are this process's share: every `size`-th, from `rank` on.

        Strided, not cut in blocks: StyleGAN's minibatch stddev groups images {i, i + N/G, i + 2N/G, ...}. With strided shares (and
        strided micro-batches) a group stays together, whatever the number of processes.
        """
        return slice(self.rank, None, self.size)


class PeerLost(JobFailed):
    """Another process of the job died or hangs; that one (or torchrun) reports why."""


class OwnFailure(JobFailed):
    """A failure of this process alone, which it must report itself, whatever its rank."""


def world() -> World:
    """This process's place in the started group; `World(0, 1)` without one."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()


@contextmanager
def processes() -> Iterator[World]:
    """Join the group that torchrun's environment describes (RANK, WORLD_SIZE, MASTER_ADDR ...) for a `with` block.

    NCCL for CUDA tensors, gloo for all others. Nothing is started when WORLD_SIZE is absent or 1. Raises `UserError` for an
    incomplete environment, and `PeerLost` here or in any collective when another process is gone. Only rank 0 prints. A
    `ClickException` ends the others silently with its exit code, unless it is an `OwnFailure`.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield World()
        return
    with _collective():
        try:
            # NCCL starts with the first CUDA tensor: by then `device.prepare` has chosen this process's GPU.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        except ValueError as error:
            raise UserError(f"WORLD_SIZE is set, but the rest of torchrun's environment is not: {error}") from None
        _patient.append(dist.new_group(backend="gloo", timeout=PATIENCE))  # type: ignore[arg-type]
    here = world()
    if here.rank:
        console.set_quiet(True)
    # A proper end waits for running collectives; after a process failed alone that could take for ever.
    end: Callable[[], None] = dist.group.WORLD.abort  # type: ignore[union-attr]
    try:
        yield here
        end = dist.destroy_process_group
    except click.ClickException as error:
        if not isinstance(error, PeerLost | OwnFailure):
            end = dist.destroy_process_group
        if here.rank == 0 or isinstance(error, OwnFailure):
            raise
        raise SystemExit(error.exit_code) from None
    finally:
        _patient.clear()
        with suppress(RuntimeError):
            end()


def share(x: Tensor, of: World | None = None) -> Tensor:
    """The share of a process (default: this one) of a complete batch `[N, ...]`: see `World.rows`."""
    return x[(of or world()).rows]


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one all-reduce for each dtype (and device).

    A missing gradient counts as zeros; one that is missing in every process stays None. Must be called by all processes with
    the same parameters.
    """
    size = world().size
    if size == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for p in parameters:
        kinds.setdefault((p.dtype, p.device), []).append(p)
    for (dtype, device), group in kinds.items():
        present = torch.tensor([p.grad is not None for p in group], dtype=dtype).to(device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        flat = torch.cat([g.reshape(-1) for g in grads] + [present])
        with _collective():
            dist.all_reduce(flat)
        flat /= size
        *parts, anywhere = flat.split([g.numel() for g in grads] + [len(group)])
        # Read from the device (which waits for it) only where a gradient is missing.
        given = [True] * len(group) if all(p.grad is not None for p in group) else (anywhere > 0).tolist()
        for p, grad, mean_grad, is_given in zip(group, grads, parts, given, strict=True):
            if is_given:
                p.grad = grad.copy_(mean_grad.view_as(grad))


@torch.no_grad()
def mean(x: Tensor) -> Tensor:
    """`x` (detached, of one shape everywhere) averaged over the processes."""
    x = x.detach()
    return x if world().size == 1 else total(x.clone()) / world().size


@torch.no_grad()
def total(x: Tensor) -> Tensor:
    """`x` (of one shape everywhere) summed over the processes, in place."""
    if world().size > 1:
        with _collective():
            dist.all_reduce(x)
    return x


def any_of(flag: bool) -> bool:
    """Whether `flag` is true in any process. On the CPU: no wait for the device."""
    return flag if world().size == 1 else bool(total(torch.tensor([float(flag)])).item() > 0)


@torch.no_grad()
def broadcast(tensors: nn.Module | Iterable[Tensor]) -> None:
    """Give every process rank 0's tensors (a module's parameters and buffers), in place."""
    if world().size == 1:
        return
    if isinstance(tensors, nn.Module):
        tensors = [*tensors.parameters(), *tensors.buffers()]
    with _collective():
        for tensor in tensors:
            dense = tensor.detach().contiguous()  # NCCL takes no strides; channels_last weights have them
            dist.broadcast(dense, src=0)
            tensor.copy_(dense)


def together(work: Callable[[], T], patient: bool = False) -> T:
    """Do `work` (without collectives) in every process. If it fails in one, raise that error in all of them.

    So rank 0 can report what went wrong in another process. Waits for the slowest; `patient`: for up to a day.
    """
    result, failure = None, None
    try:
        result = work()
    except click.ClickException as error:
        failure = error
    if world().size > 1:
        failures: list[click.ClickException | None] = [None] * world().size
        with _collective():
            dist.all_gather_object(failures, failure, group=_patient[0] if patient else None)
        failure = failure or next((f for f in failures if f), None)
    if failure:
        raise failure
    return result  # type: ignore[return-value]


def first(work: Callable[[], T], patient: bool = False) -> T:
    """Do `work` in rank 0 only; every process gets its (picklable) result, or its error. `patient`: as in `together`."""
    return from_first(together(lambda: work() if world().rank == 0 else None, patient))  # type: ignore[return-value]


def from_first(value: T) -> T:
    """Rank 0's (picklable) value, in every process."""
    if world().size == 1:
        return value
    box = [value]
    with _collective():
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


@contextmanager
def _collective() -> Iterator[None]:
    """One line in place of the traceback of a collective that failed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's are plain RuntimeErrors, NCCL's a subclass
        why = str(error).strip().partition("\n")[0]
        raise PeerLost(
            f"another process of this job ended or hangs ({why[:120]}). The last checkpoint is kept: continue with --resume"
        ) from None
