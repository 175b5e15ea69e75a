"""Training batches on their way to the device: the next ones are prepared in threads while a GPU works."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from gan_uad.data.patches import in_range
from gan_uad.device import cores

Batch = Tensor | tuple[Tensor, ...]
AHEAD = 4  # a batch of 512 px with HED jitter takes a core 0.4 s (scripts/bench/input_pipeline.py)


class Stream(Protocol):
    """The source of batches: a pure function of the number of images seen."""

    def fetch(self, nimg: int, batch: int | None = None) -> Tensor | tuple[Tensor, ...]:
        """This process's share of the batch of `batch` images that follows the first `nimg` images, on the CPU.

        Images as uint8 `[N, R, R, 3]`, or a tuple of these and other tensors `[N, ...]`. May be called in another thread.
        """


class Feed:
    """Batches of a stream on `device`, images as float32 `[N, 3, R, R]` in [-1, 1]. A context manager, which ends its threads.

    For a GPU the batches that follow are fetched in threads, into pinned memory. On the CPU that would only take cores from the step:
    there every batch is fetched when it is asked for. Batches are the same either way, since a stream has no state.
    """

    def __init__(
        self, stream: Stream, device: torch.device, batch_after: Callable[[int], int | None], ahead: int | None = None
    ) -> None:
        """`batch_after(nimg)`: size of the batch after `nimg` images, None at the end. `ahead`: how many batches to fetch ahead, a thread
        each (default: on a GPU `AHEAD`, of the cores that there are beside the main thread's; else none)."""
        self.stream, self.device, self.batch_after = stream, device, batch_after
        self.ahead = ahead if ahead is not None else max(1, min(AHEAD, cores() - 1)) if device.type == "cuda" else 0
        self._threads = ThreadPoolExecutor(self.ahead, "feed") if self.ahead else None
        self._coming: dict[tuple[int, int], Future[Batch]] = {}

    def at(self, nimg: int, batch: int) -> Batch:
        """The batch of `batch` images after the first `nimg`. An error of a thread is raised for the batch that it belongs to."""
        return _on(self.fetch(nimg, batch), self.device)

    def fetch(self, nimg: int, batch: int) -> Batch:
        """The same as the stream gives it, and start with the batches that follow."""
        if self._threads is None:
            return self.stream.fetch(nimg, batch)
        this = (nimg, batch)
        if this not in self._coming:
            self._expect([this])
        found = self._coming[this].result()
        self._expect(self._after(nimg + batch))
        return found

    def _after(self, nimg: int) -> list[tuple[int, int]]:
        """The batches after `nimg` images."""
        found: list[tuple[int, int]] = []
        while len(found) < self.ahead and (batch := self.batch_after(nimg)) is not None:
            found.append((nimg, batch))
            nimg += batch
        return found

    def _expect(self, batches: list[tuple[int, int]]) -> None:
        """Have these batches fetched, and forget all others."""
        assert self._threads is not None
        for batch in self._coming.keys() - batches:
            self._coming.pop(batch).cancel()
        for batch in batches:
            if batch not in self._coming:
                self._coming[batch] = self._threads.submit(self._prepare, *batch)

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
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)


def _on(batch: Batch, device: torch.device) -> Batch:
    """A batch of the CPU on `device`. Bytes travel, and become numbers there."""
    if isinstance(batch, tuple):
        return tuple(_on_device(part, device) for part in batch)
    return _on_device(batch, device)


def _on_device(part: Tensor, device: torch.device) -> Tensor:
    part = part.to(device, non_blocking=True)
    return in_range(part) if part.dtype == torch.uint8 else part
