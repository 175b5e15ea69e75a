"""One score of many components without weights to set: each by its tail probability among validation normals."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gan_uad.checkpoint import load_weights
from gan_uad.errors import UserError, near
from gan_uad.metrics.tails import COMBINATIONS, MIN_NORMALS, Tail, combine
from gan_uad.scoring.base import Scorer, Scores


class CombiningScorer(Scorer):
    """A scorer with several components, whose score is the method's own or a combination of them.

    `combine` "own": the method's own score. "fisher", "max": the tail probability of each component among validation normals (`Tail`),
    combined by `metrics.tails.combine`; needs `calibrate`. `components`: which of them; default all but `REPEATED`.
    """

    COMPONENTS: ClassVar[tuple[str, ...]]  # all that the scorer may have, in the order of combination
    REPEATED: ClassVar[frozenset[str]] = frozenset()  # those that repeat others, and would count twice

    def __init__(self, combine: str, components: list[str] | None) -> None:
        """Raises `ValueError` for components that cannot be combined."""
        if combine not in ("own", *COMBINATIONS):
            raise ValueError(f"combine must be own, fisher or max, got {combine!r}")
        if components is not None and (combine == "own" or not components):
            raise ValueError(
                "components takes at least one name, and needs combine=fisher or max: the method's own score has its own"
            )
        for name in components or []:
            if name not in self.COMPONENTS:
                raise ValueError(f"no score component is called {name!r}: {near(name, self.COMPONENTS)}")
        self.combine, self.components = combine, components
        self.least_normals = 0 if combine == "own" else MIN_NORMALS
        self.tails: dict[str, Tail] | None = None  # of the components of validation normals

    def calibrate(self, normals: Scores) -> Tensor:
        """See `Scorer`. Raises `UserError` for fewer than 10 normals, unless the score is the method's own."""
        scores = super().calibrate(normals)
        if self.combine == "own":
            return scores
        if len(normals.image) < MIN_NORMALS:
            raise UserError(
                f"combine={self.combine} needs at least {MIN_NORMALS} validation normals, got {len(normals.image)}: "
                "give more, or use combine=own"
            )
        values = {name: normals.components[name].double().numpy() for name in self._chosen(normals.components)}
        self.tails = {name: Tail.fit(known) for name, known in values.items()}
        return self._combined([self.tails[name].left_out_log_p(known) for name, known in values.items()])

    def calibrated(self, measured: Scores) -> Scores:
        """See `Scorer`. Raises `UserError` where components are to be combined and nothing was calibrated."""
        calibrated = super().calibrated(measured)
        if self.combine == "own":
            return calibrated
        if self.tails is None:
            raise UserError(
                f"combine={self.combine} needs validation normals: fit the scorer with a validation set, or use combine=own"
            )
        log_p = [tail.log_p(measured.components[name].double().numpy()) for name, tail in self.tails.items()]
        return replace(calibrated, image=self._combined(log_p))

    def _chosen(self, components: dict[str, Tensor]) -> list[str]:
        chosen = self.components or [name for name in components if name not in self.REPEATED]
        for name in chosen:
            if name not in components:
                raise UserError(f"scoring.options.components: there is no {name} here, only {', '.join(components)}")
        return [name for name in self.COMPONENTS if name in chosen]

    def _combined(self, log_p: list[Any]) -> Tensor:
        return torch.from_numpy(combine(np.stack(log_p), self.combine)).float()

    @abstractmethod
    def networks(self) -> dict[str, Any]:
        """The networks by role, to be saved with the scorer."""

    def tensors(self) -> dict[str, Tensor]:
        """The weights of the networks, and the values of the tails."""
        weights = {
            f"{role}.{name}": tensor
            for role, net in self.networks().items()
            for name, tensor in net.state_dict().items()
        }
        return weights | {f"tail.{name}": torch.from_numpy(tail.values) for name, tail in (self.tails or {}).items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        def of(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        tails = {name: Tail.fit(values.numpy()) for name, values in of("tail.").items()}
        self.tails = {name: tails[name] for name in self.COMPONENTS if name in tails} or None
        for role, net in self.networks().items():
            load_weights(net, of(f"{role}."), f"the fitted scorer ({role})")
