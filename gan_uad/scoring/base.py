"""THE scoring interface: every detector is fitted, scores images, compares sets, and is saved in the same way."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_uad import old_names, registry
from gan_uad.checkpoint import dtype_name
from gan_uad.errors import UserError
from gan_uad.files import atomic
from gan_uad.metrics.tails import Tail

# Images [N, 3, R, R] in [-1, 1] and labels [N] (0 normal, 1 anomalous, -1 unknown).
Batches = Iterable[tuple[Tensor, Tensor]]

# Tensors that the package's scorers store and that are measured, so never whole numbers.
MEASURED = {"normals", "memory", "mean", "cov", "precision", "shrinkage"}
PIXELS = 128  # sampled of each map of a validation normal to calibrate maps: 65,536 of 512 images


@dataclass
class Scores:
    """Scores of N images, on the CPU.

    `image` `[N]`: higher = more anomalous. `components`: score components by name, `[N]` each. `map` `[N, H, W]`: the same per pixel.
    `maps`: the maps that `map` is computed from, by name, in their own units: `[N, H, W]`, or a sample of their pixels `[N, P]`.
    """

    image: Tensor
    components: dict[str, Tensor] = field(default_factory=dict)
    map: Tensor | None = None
    reconstruction: Tensor | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def concatenate(cls, pieces: list[Scores]) -> Scores:
        """Join the scores of consecutive images."""
        return cls._joined(pieces, torch.cat)

    @classmethod
    def _joined(cls, pieces: list[Scores], join: Callable[[list[Any]], Tensor]) -> Scores:
        def optional(values: list[Any]) -> Tensor | None:
            return None if values[0] is None else join(values)

        def named(values: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: join([value[name] for value in values]) for name in values[0]}

        return cls(
            join([p.image for p in pieces]),
            named([p.components for p in pieces]),
            optional([p.map for p in pieces]),
            optional([p.reconstruction for p in pieces]),
            named([p.maps for p in pieces]),
        )

    def take(self, rows: slice | Tensor) -> Scores:
        """The scores of some of the images."""
        return self._joined([self], lambda values: values[0][rows])

    def sampled(self) -> Scores:
        """What `calibrate` needs: no images, and of `maps` some pixels only, at the same random places of every image."""
        return Scores(self.image, self.components, maps={name: _some_pixels(maps) for name, maps in self.maps.items()})


class Scorer(ABC):
    """A detector of what is not normal.

    Scores are deterministic and independent of the batch that an image comes in: images go through the model in micro-batches of one
    fixed size, the last one padded. Scoring has two steps. `measure` looks at each image alone. `calibrated` compares its measurements
    with those of the validation normals that `calibrate` saw. Calibrated maps have one unit for all scorers: −log10 of the probability
    that a pixel of a normal image has such a value, averaged over the maps of a scorer that has several.
    """

    micro_batch = 16
    chunk: int | None = None  # images measured between two writes of the partial results; None: measuring is quick
    resolution: int | None = None  # side of the images in px that the networks need; None: any
    least_normals = 0  # validation normals that it needs to score
    spec: dict[str, Any]
    rests_on: str = ""  # the pretrained weights it uses, in words that identify them
    log_odds = False  # whether its scores are log P(anomalous) − log P(normal) of a classifier
    fitted = False  # by `fit` or `load_scorer`
    calibration: Tensor | None = None  # scores of validation normals, after `fit`
    map_tails: dict[str, Tail] | None = None  # tails of the pixels of their maps, by the name of the map

    def fit(self, train: Batches, validation: Batches | None = None) -> None:
        """Learn from normal images (label 1 is dropped); calibrate on the normals of `validation`, and keep their scores."""
        self.fit_normals((images[labels != 1] for images, labels in train))
        self.fitted = True
        if validation is not None:
            kept = [
                self.measure(images[labels == 0]).sampled()
                for images, labels in validation
                if bool((labels == 0).any())
            ]
            if not kept:
                raise UserError(
                    "the validation set holds no normal images (label 0), so nothing can be calibrated on it"
                )
            self.calibration = self.calibrate(Scores.concatenate(kept))

    @property
    def learns(self) -> bool:
        """Whether it must still be fitted on normal images before it can score."""
        return type(self).fit_normals is not Scorer.fit_normals and not self.fitted

    def fit_normals(self, train: Iterator[Tensor]) -> None:
        """Learn from batches of normal images. Detectors with trained networks do nothing here."""

    def calibrate(self, normals: Scores) -> Tensor:
        """Learn from the measurements of validation normals, `sampled` or not; returns their scores `[N]`.

        Each is scored without itself (leave-one-out), so that a threshold may be set on these scores.
        """
        self.map_tails = {name: Tail.fit(normals.maps[name].numpy().ravel()) for name in sorted(normals.maps)} or None
        return normals.image

    def score_batch(self, images: Tensor) -> Scores:
        """Measure exactly `micro_batch` images `[micro_batch, 3, R, R]` in [-1, 1]; no image may influence another's result."""
        raise NotImplementedError

    def measure(self, images: Tensor) -> Scores:
        """Measure `[N, 3, R, R]` in [-1, 1] for any N ≥ 1. Raises `ValueError` on another shape or range, or on NaN."""
        check_images(images, self.resolution)
        pieces = []
        for chunk in images.split(self.micro_batch):
            pieces.append(self.score_batch(padded(chunk, self.micro_batch)).take(slice(len(chunk))))
        found = Scores.concatenate(pieces)
        if found.map is not None and not found.maps:
            found.maps = {"map": found.map}
        return found

    def calibrated(self, measured: Scores) -> Scores:
        """The scores and maps of the measurements, by the normals that `calibrate` saw, where it saw any."""
        if self.map_tails is None:
            return measured
        neg_log10_p = [-tail.log_p(measured.maps[name].numpy()) / math.log(10) for name, tail in self.map_tails.items()]
        return replace(measured, map=torch.from_numpy(np.mean(neg_log10_p, axis=0)).float())

    def score(self, images: Tensor) -> Scores:
        """Score `[N, 3, R, R]` in [-1, 1] for any N ≥ 1. Raises `ValueError` on another shape or range, or on NaN."""
        return self.calibrated(self.measure(images))

    def compare(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        """How far a set is from the validation normals: Wasserstein-1 distance between their distributions of scores."""
        from scipy.stats import wasserstein_distance

        if self.calibration is None:
            raise UserError("compare needs a scorer that was fitted with a validation set")
        scores = self.score(images).image
        return {
            "wasserstein_1": float(wasserstein_distance(self.calibration.numpy(), scores.numpy())),
            "mean_score": float(scores.mean()),
            "mean_score_of_normals": float(self.calibration.mean()),
            "n": len(scores),
        }

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that `save` keeps, beside `spec` and the calibration."""

    @abstractmethod
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore from the output of `tensors()`."""

    def save(self, path: Path, about: dict[str, Any] | None = None) -> None:
        """Write the fitted scorer to one safetensors file with JSON metadata; with `about`, the metadata of a model file, as one."""
        from safetensors.torch import save_file

        tensors = {f"scorer.{k}": v.detach().cpu().contiguous().clone() for k, v in self.tensors().items()}
        if self.calibration is not None:
            tensors["calibration"] = self.calibration
        for name, tail in (self.map_tails or {}).items():
            tensors[f"map_tail.{name}"] = torch.from_numpy(tail.values)
        metadata = {"gan_uad_scorer": json.dumps(self.spec)} | ({} if about is None else {"gan_uad": json.dumps(about)})
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)


def load_scorer(path: Path, **given: Any) -> Scorer:
    """Read a fitted scorer; `given`: what its constructor needs beside its options, such as an inverter."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("gan_uad_scorer")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a scorer file ({error})") from None
    if text is None:
        raise UserError(f"{path} was not written by a scorer's save")
    for name, tensor in tensors.items():
        _check_stored(path, name, tensor)
    spec = old_names.spec("scorer", json.loads(text))
    scorer: Scorer = registry.build("scorer", spec["name"], spec["options"], **given)
    scorer.calibration = tensors.pop("calibration", None)
    tails = {name: tensors.pop(name).numpy() for name in sorted(tensors) if name.startswith("map_tail.")}
    scorer.map_tails = {name.removeprefix("map_tail."): Tail.fit(values) for name, values in tails.items()} or None
    try:
        scorer.load_tensors({name.removeprefix("scorer."): tensor for name, tensor in tensors.items()})
    except UserError as error:
        raise UserError(f"{path}: {error.message}") from None
    scorer.fitted = True
    return scorer


def _check_stored(path: Path, name: str, tensor: Tensor) -> None:
    """Raise `UserError` for a tensor that no fitted scorer holds: NaN or infinite values, and measurements that are whole numbers.

    Thresholds, which may be infinite, are not stored here. Counts and texts are integers.
    """
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise UserError(f"{path}: {name} holds NaN or infinite values; fit the scorer again")
    tail = name.startswith(("map_tail.", "scorer.tail."))
    measured = name == "calibration" or tail or name.rpartition(".")[2] in MEASURED
    if tensor.dtype == torch.bool or (measured and not tensor.is_floating_point()):
        raise UserError(f"{path}: {name} holds {dtype_name(tensor)} values, not floating ones; fit the scorer again")


def padded(images: Tensor, size: int) -> Tensor:
    """At most `size` images `[N, C, H, W]`, filled up to that number with images of zeros."""
    return F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - len(images)))


def check_images(images: Tensor, resolution: int | None = None) -> None:
    """Raise `ValueError` unless `images` is a float `[N, 3, H, W]` of that side with N ≥ 1, finite, in [-1, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0 or not images.is_floating_point():
        raise ValueError(f"images must be float [N, 3, H, W] with N >= 1, got {images.dtype} {list(images.shape)}")
    if resolution is not None and tuple(images.shape[2:]) != (resolution, resolution):
        raise ValueError(f"this model takes {resolution}x{resolution} px, got images of {list(images.shape)}")
    low, high = float(images.amin()), float(images.amax())
    if not (low >= -1 - 1e-4 and high <= 1 + 1e-4):  # also false for NaN
        raise ValueError(f"images must be finite and in [-1, 1], got values from {low:.4g} to {high:.4g}")


def _some_pixels(maps: Tensor) -> Tensor:
    pixels = maps.flatten(1)
    # A regular grid would always hit the same phase of the lattice that some generators leave.
    chosen = torch.randperm(pixels.shape[1], generator=torch.Generator().manual_seed(0))[:PIXELS]
    return pixels[:, chosen]
