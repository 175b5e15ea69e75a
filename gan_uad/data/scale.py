"""The µm/px of patches, which belongs to the models that learn from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad.config import DataConfig
from gan_uad.errors import UserError

TOLERANCE = 1.1  # a larger ratio of two scales is another scale
ROUNDING = 1.01  # a smaller one is none: programs round µm/px


@dataclass(frozen=True)
class Scale:
    """Of a set of patches: `mpp`, µm/px as they are stored, and `side`, the shorter one in px. None where unknown or not one for all."""

    mpp: float | None = None
    side: int | None = None

    @classmethod
    def read(cls, stored: Any) -> Scale:
        """From the metadata of a model file; files of version 0.2 and before have none."""
        found = stored if isinstance(stored, dict) else {}
        mpp, side = found.get("mpp"), found.get("side")
        numbers = [value is None or (isinstance(value, int | float) and value > 0) for value in (mpp, side)]
        return cls(mpp, side) if all(numbers) else cls()

    def seen(self, data: DataConfig, resolution: int) -> float | None:
        """µm/px of the network's input, after crop and resizing to `resolution`; None where unknown."""
        side = (data.crop_size or resolution) if data.crop == "center" else self.side
        return None if self.mpp is None or side is None else self.mpp * side / resolution


def differ(a: float | None, b: float | None, ratio: float = TOLERANCE) -> bool:
    """Whether two scales in µm/px are both known and differ by more than `ratio`."""
    return a is not None and b is not None and max(a / b, b / a) > ratio


def scale_of(stated: NDArray[np.float64], sizes: Mapping[str, int], data: DataConfig, context: str) -> Scale:
    """The scale of patches whose index states µm/px `stated [N]` (NaN: not stated) and whose `sizes` are {"96x96": images}.

    `data.mpp` gives what is not stated. Raises `UserError` where it contradicts what is stated, and where patches of several scales are
    in one set, unless `data.mpp` names the one to use for all.
    """
    sides = {min(map(int, size.split("x"))) for size in sizes}
    side = sides.pop() if len(sides) == 1 else None
    known = np.unique(stated[np.isfinite(stated)])
    if not len(known):
        return Scale(data.mpp, side)
    low, high = float(known[0]), float(known[-1])
    if differ(low, high):
        if data.mpp is None:
            raise UserError(
                f"{context} holds patches of {low:g} to {high:g} µm/px, and a model has one scale: leave some out, or set data.mpp to the "
                "scale to use for all"
            )
        return Scale(data.mpp, side)
    if differ(data.mpp, high, ROUNDING) and differ(data.mpp, low, ROUNDING):
        raise UserError(
            f"{context} states {high:g} µm/px, and data.mpp is {data.mpp:g}: correct one of them, or leave data.mpp out"
        )
    return Scale(float(np.median(stated[np.isfinite(stated)])), side)
