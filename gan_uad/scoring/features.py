"""Detectors on the features of a frozen network, or on pixels; most of them use one vector per image."""

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
    """The base of these detectors: the network, and the check that a fitted detector uses the same one again."""

    name: str  # in messages

    def __init__(
        self, features: str = EMBEDDED, *, net: FeatureNet | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """`features`: a feature network by name. `net`: the network itself where it is loaded already, on `device`."""
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
        """The error for a call before `fit`."""
        return UserError(f"the {self.name} scorer was not fitted: fit it on normal images first")

    def tensors(self) -> dict[str, Tensor]:
        """The features that it was fitted with."""
        return {"of": as_bytes(self._of())}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `Scorer`. Raises `UserError` where the feature network is not the one that it was fitted with."""
        of = as_text(tensors["of"])
        if of != self._of():
            raise UserError(
                f"this scorer was fitted with the features {of}, not with {self._of()}: give those weights, or fit again"
            )

    def _of(self) -> str:
        return f"{self.features} ({self.net.weights}; {self.net.preprocessing})"


class VectorScorer(FeatureScorer):
    """Uses one vector per image. Images reach the network as uint8, as in files."""

    micro_batch = 32
    chunk = 256

    def vectors(self, images: Tensor) -> NDArray[np.float32]:
        """Features `[n, dim]` of images `[n, 3, H, W]` in [-1, 1], n ≥ 1, each independent of the others. `UserError` for NaN."""
        check_images(images)
        found = next(iter(extract(self.net, [to_uint8(images)], self.device, self.micro_batch)))
        self.check_finite(bool(np.isfinite(found).all()))
        return found

    def measure(self, images: Tensor) -> Scores:
        """See `Scorer`. `vectors` has micro-batches of its own; scoring many vectors at once is fastest."""
        check_images(images)
        return self.score_batch(images)


class StoredNormals(VectorScorer):
    """Keeps the float32 features of all normal images."""

    least, why = 1, ""  # images that a fit needs at least, and the reason
    _normals: NDArray[np.float32] | None = None

    @property
    def normals(self) -> NDArray[np.float32]:
        """The features `[n, dim]`; raises `UserError` before `fit`."""
        if self._normals is None:
            raise self.not_fitted()
        return self._normals

    def fit_normals(self, train: Iterator[Tensor]) -> None:
        """See `Scorer`. Raises `UserError` for fewer than `least` normal images."""
        found = [self.vectors(images) for images in train if len(images)]
        self.check_count(sum(map(len, found)), self.least, self.why)
        self.set_normals(np.concatenate(found))

    def set_normals(self, normals: NDArray[np.float32]) -> None:
        """Use these features `[n, dim]`."""
        self._normals = normals

    def tensors(self) -> dict[str, Tensor]:
        """The features, and which they are."""
        return super().tensors() | {"normals": torch.from_numpy(self.normals)}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        super().load_tensors(tensors)
        self.set_normals(tensors["normals"].numpy())


def as_bytes(text: str) -> Tensor:
    """Text as a tensor of bytes, for a safetensors file."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def as_text(tensor: Tensor) -> str:
    """The text of `as_bytes`."""
    return bytes(tensor.tolist()).decode()


def choice(value: Any, known: tuple[str, ...], what: str) -> None:
    """Raise `ValueError` for a word that is not known."""
    if value not in known:
        raise ValueError(f"{what} must be {' or '.join(known)}, not {value!r}")


def at_least(value: float, least: float, what: str) -> None:
    """Raise `ValueError` for a number that is too small (or NaN)."""
    if not value >= least:
        raise ValueError(f"{what} must be at least {least}, not {value}")
