"""Which images a run was trained, tuned and tested on, by their pixels: known again in a copy, a zip, or among others.

`images.npz` in a run folder: the arrays `train`, `val` and `test`, uint64 `[n]`, sorted, a hash of each image's pixels.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gan_uad.data.manifest import SPLITS
from gan_uad.data.patches import PatchSet
from gan_uad.errors import UserError
from gan_uad.files import atomic

NAME = "images.npz"


@dataclass
class KnownImages:
    """Hashes of the images of each split, sorted. An image of several splits counts as train before val, and as val before test."""

    splits: dict[str, NDArray[np.uint64]] = field(default_factory=dict)

    @classmethod
    def of(cls, patches: PatchSet) -> KnownImages:
        """The images of a set, in its splits."""
        hashes = patches.hashes
        return cls({split: np.unique(hashes[patches.manifest.where(split)]) for split in SPLITS})

    @classmethod
    def beside(cls, model: Path) -> KnownImages | None:
        """What the run of a model file knows; None for a model without a run, or of an earlier version.

        Raises `UserError` for a damaged file.
        """
        path = model.parent / NAME
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                found = {split: np.unique(stored[split]) for split in SPLITS}
            if any(values.dtype != np.uint64 for values in found.values()):
                raise ValueError("wrong type")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            fix = "restore it, or remove it (its training images are then not recognised in other sets)"
            raise UserError(f"{path} is damaged: {fix}") from None
        return cls(found)

    def write(self, folder: Path) -> None:
        """Write `images.npz` of a run folder."""
        with atomic(folder / NAME) as temporary, open(temporary, "wb") as file:
            np.savez(file, **cast("dict[str, Any]", self.splits))

    def with_others(self, others: Iterable[KnownImages | None]) -> KnownImages:
        """These and those of other runs: an image that one of them was trained on is a training image."""
        every = [self, *(other for other in others if other is not None)]
        return KnownImages({split: np.unique(np.concatenate([one.splits[split] for one in every])) for split in SPLITS})

    def split_of(self, patches: PatchSet) -> list[str]:
        """The split of each image; '' for one that is not known."""
        found = np.full(len(patches), "", object)
        hashes = patches.hashes
        for split in reversed(SPLITS):
            found[np.isin(hashes, self.splits[split])] = split
        return list(found)

    def seen_by(self, others: Iterable[KnownImages | None]) -> int:
        """How many images of val and test are training images of others."""
        held_out = np.setdiff1d(np.concatenate([self.splits["val"], self.splits["test"]]), self.splits["train"])
        trained_on = [other.splits["train"] for other in others if other is not None]
        return int(np.isin(held_out, np.concatenate(trained_on)).sum()) if trained_on else 0
