"""The base of tasks that train one network with one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from gan_uad.data.patches import PatchSet, to_tensor
from gan_uad.training.task import Task


class SingleTask(Task):
    """Trains the network `model`, exported as `role`, with the optimiser `opt`; random numbers come from `rng`.

    `examples`: train images `[N, 3, R, R]` for the snapshots.
    """

    role: str

    def __init__(
        self, model: Any, device: torch.device, seed: int, optimizer: Callable[..., Any], **options: float
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last).train()
        self.device = device
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.opt: torch.optim.Optimizer = optimizer(trained, **options)
        self.rng = torch.Generator().manual_seed(seed)
        self.examples = torch.zeros(1, 3, model.resolution, model.resolution)

    def choose_examples(self, patches: PatchSet, count: int, seed: int) -> None:
        """Choose up to `count` of the patches as `examples`, at random."""
        chosen = np.random.default_rng(seed).permutation(len(patches))[:count]
        self.examples = to_tensor(patches.gather(np.sort(chosen)))

    def networks(self) -> dict[str, nn.Module]:
        """The network by its role."""
        return {self.role: self.model}

    def holders(self) -> dict[str, Any]:
        """Network, optimiser, random numbers; everything else follows from the images seen."""
        return {"model": self.model, "opt": self.opt, "rng": self.rng}


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """A network in evaluation mode; afterwards every module has its former mode (a frozen one stays frozen)."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
