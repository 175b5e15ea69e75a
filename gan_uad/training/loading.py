"""Reading patches in a job of several processes."""

from __future__ import annotations

import os

from gan_uad import console
from gan_uad.config import DataConfig
from gan_uad.data.patches import PatchSet, load_patches
from gan_uad.training import distributed


def load_together(data: DataConfig, resolution: int) -> PatchSet:
    """The patches, in every process. One process of each machine reads them into the cache; the others wait and read the cache."""

    def read() -> PatchSet:
        return load_patches(data, resolution, progress=console.counter("reading patches"))

    leads = os.environ.get("LOCAL_RANK", "0") == "0"
    patches = distributed.together(lambda: read() if leads else None, patient=True)
    return distributed.together(lambda: patches or read(), patient=True)
