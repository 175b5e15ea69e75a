"""Several processes that train one model, started by torchrun: ranks, shares of a batch, and collectives.

Every process runs the same loop on its share of each batch; all communication is in this file. Without a process group (one process)
the functions change nothing, so callers need no special case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

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

# Bytes of tensors that travel together: large enough for the network's full speed, small enough to start before all are there.
BUCKET = 25 << 20

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


@contextmanager
def averaging(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Replace each gradient by its mean over the processes, for a `with` block that holds the last backward pass before an update.

    Gradients travel in buckets, the last weights first, while the backward pass computes those of earlier weights; the block ends
    when all means are there. A gradient that is missing stays None. Must be called by all processes with the same parameters, and
    the same ones must have a gradient in all: that is not asked here (it would cost a wait in each step), but `tick` compares it.

    Whatever a process computes, it reduces all buckets, in one order: so none waits for a collective that another leaves out.
    """
    if world().size == 1:
        yield
        return
    buckets = [_Bucket(group) for group in _chunks(reversed(parameters))]
    of = {p: bucket for bucket in buckets for p in bucket.parameters}
    waiting = iter(buckets)  # not yet on their way
    following = next(waiting, None)

    def arrived(p: Tensor) -> None:
        nonlocal following
        of[p].missing.discard(p)  # type: ignore[index]
        while following and not following.missing:
            following.start()
            following = next(waiting, None)

    hooks = [p.register_post_accumulate_grad_hook(arrived) for p in of if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    while following:
        following.start()
        following = next(waiting, None)
    for bucket in buckets:
        bucket.finish()


class _Bucket:
    """Gradients that are reduced together. They become views of one flat tensor, with the strides of their weights."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.missing = parameters, set(parameters)

    @torch.no_grad()
    def start(self) -> None:
        """Send the gradients as they are, zeros for missing ones."""
        like, sizes = self.parameters[0], [p.numel() for p in self.parameters]
        self.flat = torch.empty(sum(sizes), dtype=like.dtype, device=like.device)
        views = [
            part.as_strided(p.shape, p.stride(), part.storage_offset())
            for p, part in zip(self.parameters, self.flat.split(sizes), strict=True)
        ]
        here = [(p, p.grad, view) for p, view in zip(self.parameters, views, strict=True) if p.grad is not None]
        if len(here) < len(views):
            self.flat.zero_()
        if here:
            torch._foreach_copy_([view for _, _, view in here], [grad for _, grad, _ in here])
        for p, _, view in here:
            p.grad = view
        with _collective():
            self.sent = dist.all_reduce(self.flat, async_op=True)

    def finish(self) -> None:
        """Wait for the sums (on a GPU: its stream does, not the program) and make them means."""
        with _collective():
            self.sent.wait()
        self.flat /= world().size


def _chunks(tensors: Iterable[Any]) -> Iterator[list[Any]]:
    """Tensors of one dtype and device, of about `BUCKET` bytes together, in their order."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for kind in kinds.values():
        chunk: list[Tensor] = []
        size = 0
        for tensor in kind:
            if chunk and size + tensor.nbytes > BUCKET:
                yield chunk
                chunk, size = [], 0
            chunk.append(tensor)
            size += tensor.nbytes
        yield chunk


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
    for chunk in _chunks(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in chunk])
        with _collective():
            dist.broadcast(flat, src=0)
        if world().rank:
            for tensor, part in zip(chunk, flat.split([tensor.numel() for tensor in chunk]), strict=True):
                tensor.copy_(part.view(tensor.shape))


def state_from_first(state: T) -> T:
    """Rank 0's nested state of plain values and CPU tensors, in every process. Tensors are not pickled: none is held twice."""
    if world().size == 1:
        return state
    outline = from_first(_with_tensors(state, lambda tensor: tensor.to("meta")))
    if world().rank:
        state = _with_tensors(outline, lambda tensor: torch.empty_like(tensor, device="cpu"))
    tensors: list[Tensor] = []
    _with_tensors(state, tensors.append)
    broadcast(tensors)
    return state


def _with_tensors(value: Any, of: Callable[[Tensor], Any]) -> Any:
    """A nested value with `of` of each tensor in its place."""
    if isinstance(value, Tensor):
        return of(value)
    if isinstance(value, dict):
        return {key: _with_tensors(inner, of) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(inner, of) for inner in value)
    return value


def together(work: Callable[[], T], patient: bool = False) -> T:
    """Do `work` (without collectives) in every process. If it fails in one, raise that error in all of them.

    So rank 0 can report what went wrong in another process. Waits for the slowest; `patient`: for up to a day.
    """
    result, failure = None, None
    try:
        result = work()
    except click.ClickException as error:
        failure = error
    failures = of_each(failure, patient)
    failure = failure or next((f for f in failures if f), None)
    if failure:
        raise failure
    return result  # type: ignore[return-value]


def of_each(value: T, patient: bool = False) -> list[T]:
    """The (picklable) values of all processes, by rank. `patient`: as in `together`."""
    if world().size == 1:
        return [value]
    values = [value] * world().size
    with _collective():
        dist.all_gather_object(values, value, group=_patient[0] if patient else None)
    return values


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
