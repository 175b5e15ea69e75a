"""Validation of a generator during training: the Fréchet distance of its images to the training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from gan_uad.data.patches import PatchSet, Pixels, to_uint8
from gan_uad.errors import JobFailed
from gan_uad.features.base import FeatureNet
from gan_uad.features.extract import extract
from gan_uad.metrics.generation import Gaussian, Moments, frechet_distance
from gan_uad.training import distributed
from gan_uad.training.adversarial import AdversarialTask

CHUNK = 256  # images of each process between two exchanges
BATCH = 32  # images that are generated at once
READ = 64  # images in memory at once


class FrechetValidator:
    """Fréchet distance of the averaged generator's images (seeds 0 to `num` − 1) to all `patches`, unflipped.

    The same value as `gan-uad fid` gives for that model and those real images. The features name the metric: "fid" for the Inception,
    "fd_vgg16" and the like for others.
    """

    larger = False

    def __init__(self, task: AdversarialTask, patches: PatchSet, net: FeatureNet, num: int) -> None:
        self.task, self.patches, self.net, self.num = task, patches, net, num
        self.metric = net.metric.lower().replace("-", "_")
        self.real: Gaussian | None = None

    def validate(self, nimg: int) -> dict[str, float]:
        """See `Validator`; NaN for a generator whose images are not finite."""
        device = self.task.device
        if self.real is None:
            self.real = gaussian(len(self.patches), self.patches.gather, self.net, device)
        broken = False

        def generated(seeds: list[int]) -> Pixels:
            nonlocal broken
            images = self.task.images(seeds, BATCH)
            broken |= not bool(images.isfinite().all())
            return to_uint8(images.nan_to_num())

        fake = gaussian(self.num, generated, self.net, device)
        return {self.metric: float("nan") if distributed.any_of(broken) else frechet_distance(self.real, fake)}


def gaussian(count: int, get: Callable[[list[int]], Pixels], net: FeatureNet, device: torch.device) -> Gaussian:
    """The Gaussian of the features of images 0 to `count` − 1, `get(rows)` being uint8 `[n, R, R, 3]`; nothing is kept."""
    moments = Moments(net.dim)
    for _, values in features_of(count, get, net, device):
        moments.update(values)
    return moments.gaussian()


def features_of(
    count: int, get: Callable[[list[int]], Pixels], net: FeatureNet, device: torch.device, start: int = 0
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Features float32 `[n, dim]` of images `start` to `count` − 1 in order, with the number of the image after them.

    Every process gets all features and computes its share of each chunk. An error in one process is raised in all.
    """
    here = distributed.world()
    for first in range(start, count, CHUNK * here.size):
        rows = list(range(first, min(first + CHUNK * here.size, count)))
        found = distributed.together(partial(_share, rows[here.rows], get, net, device))
        values = torch.zeros(len(rows), net.dim)
        values[here.rows] = torch.from_numpy(found)
        yield rows[-1] + 1, distributed.total(values).numpy()


def _share(
    rows: list[int], get: Callable[[list[int]], Pixels], net: FeatureNet, device: torch.device
) -> NDArray[np.float32]:
    parts = extract(net, (get(rows[i : i + READ]) for i in range(0, len(rows), READ)), device)
    values = np.concatenate([np.zeros((0, net.dim), np.float32), *parts])
    broken = np.flatnonzero(~np.isfinite(values).all(1))
    if len(broken):
        raise JobFailed(f"features of image {rows[broken[0]]} are not finite: the weights ({net.weights}) are broken")
    return values
