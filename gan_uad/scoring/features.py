"""Detectors on the features of a frozen network, or on pixels; most of them see an image as one vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gan_uad.data.patches import to_uint8
from gan_uad.errors import UserError
from gan_uad.features.base import FeatureNet
from gan_uad.features.extract import extract
from gan_uad.features.load import load_features
from gan_uad.features.weights import EMBEDDED
from gan_uad.scoring.base import Scorer, Scores, check_images


class FeatureScorer(Scorer):
    """What such detectors share: the network, and that a fitted one scores with no other."""

    name: str  # in messages

    def __init__(
        self, features: str = EMBEDDED, *, net: FeatureNet | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """`features`: a feature network by name. `net`: the same one loaded already (from other weights, for instance), on `device`."""
        self.features, self.device = features, device
        self.net = load_features(features, device=device) if net is None else net
        self.rests_on = f"{self.net.weights}; {self.net.preprocessing}"

    def check_finite(self, finite: bool) -> None:
        """Raise `UserError` for features that are not."""
        if not finite:
            raise UserError(
                f"the features {self.features} of some images are NaN or infinite: the {self.name} scorer cannot use them"
            )

    def check_count(self, count: int, least: int, why: str = "") -> None:
        """Raise `UserError` for fewer normal images than a fit needs."""
        if count < least:
            raise UserError(f"the {self.name} scorer needs at least {least} normal images to fit{why}, got {count}")

    def not_fitted(self) -> UserError:
        """The error of being asked before `fit`."""
        return UserError(f"the {self.name} scorer was not fitted: it needs normal images to compare with")

    def tensors(self) -> dict[str, Tensor]:
        """Which features it was fitted with."""
        return {"of": as_bytes(self._of())}

    def take(self, tensors: dict[str, Tensor]) -> None:
        """See `Scorer`. Raises `UserError` where the feature network is not the one that it was fitted with."""
        of = as_text(tensors["of"])
        if of != self._of():
            raise UserError(
                f"this scorer was fitted with the features {of}, but here they are {self._of()}: give those weights, or fit again"
            )

    def _of(self) -> str:
        return f"{self.features} ({self.net.weights}; {self.net.preprocessing})"


class VectorScorer(FeatureScorer):
    """Sees an image as one vector. Images reach the network as uint8, as files hold them."""

    micro_batch = 32
    chunk = 256

    def vectors(self, images: Tensor) -> NDArray[np.float32]:
        """Features `[n, dim]` of images `[n, 3, H, W]` in [-1, 1], n ≥ 1, each as in any company. `UserError` for NaN and infinity."""
        check_images(images)
        found = next(iter(extract(self.net, [to_uint8(images)], self.device, self.micro_batch)))
        self.check_finite(bool(np.isfinite(found).all()))
        return found

    def collected(self, train: Iterator[Tensor], least: int, why: str = "") -> NDArray[np.float32]:
        """Features `[n, dim]` of all images of a stream; a `UserError` for fewer than `least` images."""
        found = [self.vectors(images) for images in train if len(images)]
        data = np.concatenate(found) if found else np.empty((0, self.net.dim), np.float32)
        self.check_count(len(data), least, why)
        return data

    def measure(self, images: Tensor) -> Scores:
        """See `Scorer`. `vectors` has micro-batches of its own; their scores are quickest of many at once."""
        check_images(images)
        return self.score_batch(images)


def as_bytes(text: str) -> Tensor:
    """Text as a tensor of bytes, which is how a safetensors file holds it beside others."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def as_text(tensor: Tensor) -> str:
    """Undoes `as_bytes`."""
    return bytes(tensor.tolist()).decode()


def choice(value: Any, known: tuple[str, ...], what: str) -> None:
    """Raise `ValueError` for a word that is not known."""
    if value not in known:
        raise ValueError(f"{what} must be {' or '.join(known)}, not {value!r}")


def at_least(value: float, least: float, what: str) -> None:
    """Raise `ValueError` for a number that is too small (or NaN)."""
    if not value >= least:
        raise ValueError(f"{what} must be at least {least}, not {value}")
