"""Features of a set of images as a file on disk, made once: of patches, or of what a generator makes of a row of seeds."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gan_uad import console
from gan_uad.data.arrays import digest
from gan_uad.data.patches import PatchSet, Pixels, to_uint8
from gan_uad.errors import JobFailed
from gan_uad.features.base import FeatureNet
from gan_uad.files import alone, explained, make_folder
from gan_uad.metrics.generation import Gaussian, gaussian_of
from gan_uad.model import Model
from gan_uad.training import distributed
from gan_uad.training.fid import features_of


@dataclass(frozen=True)
class ImageSet:
    """`count` images of which any can be asked for: `get(rows)` gives uint8 `[n, R, R, 3]`; `key` tells their content."""

    name: str
    count: int
    key: str
    get: Callable[[list[int]], Pixels]


def of_patches(patches: PatchSet, name: str) -> ImageSet:
    """The patches as they are."""
    return ImageSet(name, len(patches), patches.fingerprint, patches.gather)


def of_generator(
    model: Model, name: str, digested: str, count: int, psi: float = 1.0, noise: str = "const"
) -> ImageSet:
    """Images of seeds 0 to `count` − 1. Asked for them, raises `JobFailed` when one is not finite."""

    def get(rows: list[int]) -> Pixels:
        images = model.generate(rows, psi=psi, noise=noise)
        bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten()
        if len(bad):
            raise JobFailed(
                f"{name}: the generator makes images that are not finite (seed {rows[int(bad[0])]}): its training diverged, "
                "take an earlier checkpoint"
            )
        return to_uint8(images)

    return ImageSet(name, count, digest("generated", digested, psi, noise, model.device.type), get)


@dataclass(frozen=True)
class FeatureSet:
    """Features float32 `[N, dim]` (memory-mapped) of an `ImageSet`, and their Gaussian. (In rank 0; other processes hold none.)"""

    images: ImageSet
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return self.images.count

    def take(self, rows: NDArray[np.int64]) -> FeatureSet:
        """Some of the images."""
        key, get = digest(self.images.key, rows.tolist()), self.images.get
        chosen = ImageSet(self.images.name, len(rows), key, lambda some: get([int(rows[i]) for i in some]))
        return FeatureSet(chosen, self.values[rows])

    @cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance in float64, read a few rows at a time."""
        return gaussian_of(self.values)


def features_key(images: ImageSet, net: FeatureNet, device: torch.device) -> str:
    """A key of all that the features depend on."""
    return digest(images.key, net.spec, net.weights, net.preprocessing, net.dim, device.type)


def collect(images: ImageSet, net: FeatureNet, device: torch.device, folder: Path) -> FeatureSet:
    """The features of all images: found in `folder`, gone on with where an earlier call stopped, or made; in all processes together.

    The file is raw float32 while it grows (a row is whole or cut off when it is taken up again), and renamed when complete. Another
    job that wants the same waits.
    """
    target = folder / f"features-{features_key(images, net, device)[:24]}.f32"
    row_bytes, size = 4 * net.dim, 4 * net.dim * images.count

    with ExitStack() as locked:
        handles: list[FileIO] = []

        def begin() -> int:
            make_folder(folder)
            if target.is_file() and target.stat().st_size == size:
                return images.count
            part = target.with_suffix(".part")
            with explained(part):
                file = locked.enter_context(alone(part))
                if target.is_file() and target.stat().st_size == size:  # made while this process waited
                    part.unlink()
                    return images.count
                done = min(file.seek(0, os.SEEK_END) // row_bytes, images.count)
                file.truncate(done * row_bytes)
            handles.append(file)
            return done

        def finish() -> None:
            with explained(target):
                for file in handles:
                    os.fsync(file.fileno())
                    os.replace(file.name, target)

        start = distributed.first(begin, patient=True)
        with console.progress(f"features of {images.name}", images.count, done=start) as bar:
            for done, values in features_of(images.count, images.get, net, device, start):
                distributed.first(partial(_append, handles, target, values.astype("<f4").tobytes()))
                bar.update(done)
        distributed.first(finish)
    if distributed.world().rank:
        return FeatureSet(images, np.zeros((0, net.dim), np.float32))
    return FeatureSet(images, np.memmap(target, np.float32, "r", shape=(images.count, net.dim)))


def _append(handles: list[FileIO], target: Path, data: bytes) -> None:
    with explained(target):
        view = memoryview(data)
        while view:  # a raw file may take less than it is given
            view = view[handles[0].write(view) :]
