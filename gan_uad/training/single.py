"""What tasks share that train one network with one optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gan_uad.checkpoint import load_weights
from gan_uad.training.engine import Task


class SingleTask(Task):
    """A task whose whole state is a network `model`, kept as `role`, its optimiser `opt` and random numbers `rng`."""

    role: str
    model: Any
    device: torch.device
    opt: torch.optim.Optimizer
    rng: torch.Generator

    def networks(self) -> dict[str, nn.Module]:
        """The network by its role."""
        return {self.role: self.model}

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser, random numbers; all else follows from the images seen."""
        return {"model": self.model.state_dict(), "opt": self.opt.state_dict(), "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state back; raises `UserError` when it is of another architecture."""
        load_weights(self.model, state["model"], "the checkpoint")
        self.opt.load_state_dict(state["opt"])
        self.rng.set_state(state["rng"])


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """A network in evaluation mode; afterwards every part of it is as it was (a frozen one stays frozen)."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
