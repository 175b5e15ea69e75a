"""Features of a set of images as a file on disk, computed once: of patches, or of generated images."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
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
from gan_uad.model import Model
from gan_uad.training import distributed
from gan_uad.training.fid import features_of

Features = NDArray[np.float32]


@dataclass(frozen=True)
class ImageSet:
    """`count` images. `get(rows)` returns uint8 `[n, R, R, 3]`; `key` changes with the content of the set."""

    name: str
    count: int
    key: str
    get: Callable[[list[int]], Pixels]


def of_patches(patches: PatchSet, name: str) -> ImageSet:
    """The patches as they are."""
    return ImageSet(name, len(patches), patches.fingerprint, patches.gather)


def of_generator(
    model: Model, name: str, model_key: str, count: int, psi: float = 1.0, noise: str = "const"
) -> ImageSet:
    """Generated images of seeds 0 to `count` − 1. `get` raises `JobFailed` when one is not finite."""

    def get(seeds: list[int]) -> Pixels:
        images = model.generate(seeds, psi=psi, noise=noise)
        bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten()
        if len(bad):
            raise JobFailed(
                f"{name}: the generator makes images that are not finite (seed {seeds[int(bad[0])]}): its training diverged, "
                "use an earlier checkpoint"
            )
        return to_uint8(images)

    return ImageSet(name, count, digest("generated", model_key, psi, noise, model.device.type), get)


def features_key(images: ImageSet, net: FeatureNet, device: torch.device) -> str:
    """A key of all that the features depend on."""
    return digest(images.key, net.spec, net.weights, net.preprocessing, net.dim, device.type)


def features_file(images: ImageSet, net: FeatureNet, device: torch.device, folder: Path) -> Path:
    """The file of `collect`: raw little-endian float32, one row per image."""
    return folder / f"features-{features_key(images, net, device)[:24]}.f32"


def collect(images: ImageSet, net: FeatureNet, device: torch.device, folder: Path) -> Features:
    """Features float32 `[N, dim]` of all images, memory-mapped; in processes other than rank 0 empty, `[0, dim]`.

    Every process of the job calls it. Features that an earlier call computed are read from `folder`. An interrupted call loses at most
    one chunk; the next call continues. Other jobs that want the same features wait.
    """
    target = features_file(images, net, device, folder)
    partial = target.with_suffix(".part")
    row_bytes = 4 * net.dim

    def complete() -> bool:
        return target.is_file() and target.stat().st_size == images.count * row_bytes

    with ExitStack() as lock:

        def begin() -> int:
            make_folder(folder)
            if complete():
                return images.count
            with explained(partial):
                lock.enter_context(alone(partial))
                if complete():  # by the job that held the lock
                    partial.unlink()
                    return images.count
                rows = min(partial.stat().st_size // row_bytes, images.count)
                os.truncate(partial, rows * row_bytes)
            return rows

        def append(values: Features) -> None:
            with explained(partial), open(partial, "ab") as file:
                file.write(values.astype("<f4").tobytes())

        def finish() -> None:
            if not complete():
                with explained(target), open(partial, "rb+") as file:
                    os.fsync(file.fileno())
                    os.replace(partial, target)

        start = distributed.first(begin, patient=True)
        with console.progress(f"features of {images.name}", images.count, done=start) as bar:
            for done, values in features_of(images.count, images.get, net, device, start):
                distributed.first(lambda new=values: append(new))  # type: ignore[misc]
                bar.update(done)
        distributed.first(finish)
    if distributed.world().rank:
        return np.zeros((0, net.dim), np.float32)
    return np.memmap(target, np.float32, "r", shape=(images.count, net.dim))
