"""For a gradient search where each image is at its own step: schedule, Adam per row, and the list of jobs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gan_uad.device import upload

BETAS, EPS = (0.9, 0.999), 1e-8
RAMP_UP, RAMP_DOWN, EXPLORED = 0.05, 0.25, 0.75  # shares of the steps


@dataclass(frozen=True)
class Schedule:
    """Learning rate and exploration over `steps` steps (Karras et al. 2020, appendix D), and when to leave the main phase early.

    The rate rises linearly over the first 5 % and falls as a cosine over the last 25 %. `tol`: when the mean loss of the last 5 % of
    the steps (at least 10) is lower by less than this share than that of as many before, the search skips to the fall of the rate;
    0: never.
    """

    steps: int
    lr: float
    tol: float = 0.0

    def rate(self, step: int) -> float:
        """Learning rate of a step; 0 at the very first, as in the original."""
        t = step / self.steps
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / RAMP_DOWN))
        return self.lr * fall * min(1.0, t / RAMP_UP)

    def exploration(self, step: int) -> float:
        """Factor of the noise on the latent: from 1 down to 0 at 75 %."""
        return max(0.0, 1 - step / self.steps / EXPLORED) ** 2

    @property
    def fall(self) -> int:
        """The step at which the rate begins to fall."""
        return math.ceil((1 - RAMP_DOWN) * self.steps)

    def after(self, step: int, losses: list[float]) -> int:
        """The step after `step`, given the losses since the start."""
        window = max(10, round(0.05 * self.steps))
        risen = math.ceil(RAMP_UP * self.steps)
        if self.tol and step < self.fall and step + 1 >= risen + 2 * window:
            last = math.fsum(losses[-window:])
            before = math.fsum(losses[-2 * window : -window])
            if before - last < self.tol * before:
                return self.fall
        return step + 1


class RowAdam:
    """Adam (Kingma & Ba 2015, as in `torch.optim.Adam`) for rows that are each at their own step."""

    def __init__(self, like: Tensor) -> None:
        """`like`: values `[S, P]`."""
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)
        self.count = [0] * len(like)

    def reset(self, row: int) -> None:
        """Reset the moments of a row."""
        self.mean[row] = 0
        self.square[row] = 0
        self.count[row] = 0

    @torch.no_grad()
    def step_(self, values: Tensor, grad: Tensor, rates: list[float]) -> None:
        """One step of every row of `values`, each with its own learning rate (0: it stays)."""
        self.count = [count + 1 for count in self.count]
        self.mean.lerp_(grad, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        # In double precision, as torch does.
        sizes = [rate / (1 - BETAS[0] ** n) for rate, n in zip(rates, self.count, strict=True)]
        roots = [(1 - BETAS[1] ** n) ** 0.5 for n in self.count]
        size, root = upload(torch.tensor([sizes, roots], dtype=values.dtype), values.device).unsqueeze(2)
        values.sub_(self.mean.div(self.square.sqrt().div_(root).add_(EPS)).mul_(size))


@dataclass
class Job:
    """The search for one image from one start, and its progress."""

    row: int
    attempt: int
    target: list[Tensor]  # features `[C, h, w]` of each layer
    values: Tensor  # where to start `[P]`: the latent and the noise maps
    rng: torch.Generator
    step: int = 0
    losses: list[float] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0


class Slots:
    """A batch of fixed size whose rows are the running jobs; the next job takes the slot of one that is done.

    `values` `[S, P]`, `targets` features `[S, C, h, w]` of each layer. Rows without a job repeat the first one and are not used.
    """

    def __init__(self, size: int, first: Job) -> None:
        self.jobs: list[Job | None] = [None] * size
        self.values = first.values.repeat(size, 1)
        self.targets = [
            layer.expand(size, *layer.shape).contiguous(memory_format=torch.channels_last) for layer in first.target
        ]
        self.adam = RowAdam(self.values)
        self.put(0, first)

    def put(self, place: int, job: Job) -> None:
        """Start a job in a slot."""
        self.jobs[place] = job
        self.values[place] = job.values
        for layer, target in zip(self.targets, job.target, strict=True):
            layer[place] = target
        self.adam.reset(place)

    def fill(self, waiting: Iterator[Job]) -> None:
        """Start the next jobs in the free slots."""
        for place, job in enumerate(self.jobs):
            if job is None and (following := next(waiting, None)) is not None:
                self.put(place, following)

    def at_work(self) -> list[tuple[int, Job]]:
        """The running jobs, each with its slot."""
        return [(place, job) for place, job in enumerate(self.jobs) if job is not None]
