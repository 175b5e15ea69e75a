"""Training batches on their way to the device: the next one is prepared in a thread while a GPU works."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from gan_uad.data.patches import in_range

Batch = Tensor | tuple[Tensor, ...]


class Stream(Protocol):
    """The source of batches: a pure function of the number of images seen."""

    def fetch(self, nimg: int, batch: int | None = None) -> Tensor | tuple[Tensor, ...]:
        """This process's share of the batch of `batch` images that follows the first `nimg` images, on the CPU.

        Images as uint8 `[N, R, R, 3]`, or a tuple of these and other tensors `[N, ...]`. May be called in another thread.
        """


class Feed:
    """Batches of a stream on `device`, images as float32 `[N, 3, R, R]` in [-1, 1]. A context manager, which ends its thread.

    For a GPU the batch that follows is fetched in a thread, into pinned memory. On the CPU that would only take cores from the step:
    there every batch is fetched when it is asked for. Batches are the same either way, since a stream has no state.
    """

    def __init__(
        self,
        stream: Stream,
        device: torch.device,
        batch_after: Callable[[int], int | None],
        ahead: bool | None = None,
    ) -> None:
        """`batch_after(nimg)`: size of the batch after `nimg` images, None at the end. `ahead`: fetch ahead (default: on a GPU)."""
        self.stream, self.device, self.batch_after = stream, device, batch_after
        ahead = device.type == "cuda" if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, "feed") if ahead else None
        self._next: tuple[tuple[int, int], Future[Batch]] | None = None

    def at(self, nimg: int, batch: int) -> Batch:
        """The batch of `batch` images after the first `nimg`. An error of the thread is raised for the batch that it belongs to."""
        return _on(self.fetch(nimg, batch), self.device)

    def fetch(self, nimg: int, batch: int) -> Batch:
        """The same as the stream gives it, and start with the batch that follows."""
        if self._thread is None:
            return self.stream.fetch(nimg, batch)
        asked = (nimg, batch)
        coming = self._next[1] if self._next and self._next[0] == asked else self._thread.submit(self._prepare, *asked)
        found = coming.result()
        self._next = None
        if (following := self.batch_after(nimg + batch)) is not None:
            key = (nimg + batch, following)
            self._next = (key, self._thread.submit(self._prepare, *key))
        return found

    def _prepare(self, nimg: int, batch: int) -> Batch:
        found = self.stream.fetch(nimg, batch)
        if self.device.type != "cuda":
            return found
        return tuple(part.pin_memory() for part in found) if isinstance(found, tuple) else found.pin_memory()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


def _on(batch: Batch, device: torch.device) -> Batch:
    """A batch of the CPU on `device`. Bytes travel, and become numbers there."""
    if isinstance(batch, tuple):
        return tuple(_on_device(part, device) for part in batch)
    return _on_device(batch, device)


def _on_device(part: Tensor, device: torch.device) -> Tensor:
    part = part.to(device, non_blocking=True)
    return in_range(part) if part.dtype == torch.uint8 else part
