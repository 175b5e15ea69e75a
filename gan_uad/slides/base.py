"""What every kind of slide file offers, and what all of them need."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from PIL import Image

from gan_uad.data.images import Pixels

PLAUSIBLE_MPP = (0.01, 20.0)  # µm/px of a scanner; default resolutions of 72 or 300 dpi are 353 and 85 µm
BOUNDED = (".scn", ".mrxs", ".avs", ".czi")  # slides on which QuPath's coordinates may begin elsewhere than at (0, 0)


class Backend(Protocol):
    """An open slide file. Thread-safe, but not to be used in another process."""

    sizes: list[tuple[int, int]]  # width and height of each level, level 0 first
    mpp: tuple[float, float] | None  # µm per level-0 px along x and y, where the file states it
    unclear: str  # what the file states of its µm/px where that cannot be used
    origin: tuple[int, int] | None  # level-0 px where QuPath's coordinates begin; None where that is not known
    notes: list[str]  # what is unusual about the file, one sentence each, without its name

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """uint8 [height, width, 3] of a region of `level` in its own pixels, entirely inside it; transparent is white. May be read-only."""

    def close(self) -> None: ...


def damaged(path: Path, error: Exception) -> str:
    """One line for any error of a reading library."""
    if "imagecodecs" in str(error):
        return f"{path}: this TIFF's compression needs one more package: pip install imagecodecs"
    return f"{path} cannot be read ({line(error)}); it may be truncated or damaged: copy it again"


def line(error: Exception) -> str:
    """An error of a library in one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def plausible(x: object, y: object) -> tuple[float, float] | None:
    """µm/px along x and y as numbers; None where they are missing or implausible for a scanner."""
    try:
        found = (float(str(x)), float(str(y)))
    except ValueError:
        return None
    return found if all(PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1] for side in found) else None


def is_smaller(full: tuple[int, int], level: tuple[int, int]) -> bool:
    """Whether an image of size `level` has the aspect of `full` but for rounding, so that it can be a level of it."""
    ratio = (full[0] / level[0] + full[1] / level[1]) / 2
    return all(abs(side / ratio - found) <= max(2, 0.02 * found) for side, found in zip(full, level, strict=True))


def on_white(image: Image.Image) -> Image.Image:
    """An RGBA image as RGB."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
