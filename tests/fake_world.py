"""A group of several processes, played by one: what reaches the collectives, without a second process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor


class _Done:
    def wait(self) -> None:
        pass


@dataclass
class FakeWorld:
    """`size` processes that all hold what this one (`rank`) holds. `calls`: name, bytes and device of each collective on tensors;
    (name, 0, "object") of those on objects."""

    rank: int = 0
    size: int = 2
    calls: list[tuple[str, int, str]] = field(default_factory=list)

    def start(self, monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
        """Take the place of `torch.distributed`."""
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: self.rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: self.size)
        for name in ("all_reduce", "broadcast", "all_gather_object", "broadcast_object_list"):
            monkeypatch.setattr(dist, name, getattr(self, name))
        return self

    def all_reduce(self, x: Tensor, async_op: bool = False) -> _Done | None:
        self.calls.append(("all_reduce", x.nbytes, x.device.type))
        x *= self.size
        return _Done() if async_op else None

    def broadcast(self, x: Tensor, src: int) -> None:
        self.calls.append(("broadcast", x.nbytes, x.device.type))

    def all_gather_object(self, found: list[Any], value: Any, group: Any = None) -> None:
        self.calls.append(("all_gather_object", 0, "object"))
        found[:] = [value] * self.size

    def broadcast_object_list(self, box: list[Any], src: int, device: Any) -> None:
        self.calls.append(("broadcast_object_list", 0, "object"))
