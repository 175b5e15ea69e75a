"""Random changes of images within given bounds: the augmentation of classifiers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gan_uad.training.augment import Augmentation, AugmentPipe


@dataclass(frozen=True)
class Jitter:
    """Bounds; each change is uniform between minus and plus its bound, and drawn for every image. 0: no change.

    shift: along either side, as a share of it. zoom, brightness: a factor of 1 ± the bound. shear, rotation: in degrees. Edges are
    reflected; values that brightness moves out of [-1, 1] are clipped. Raises `ValueError` for a bound that is negative or too large.
    """

    shift: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    rotation: float = 0.0
    brightness: float = 0.0

    def __post_init__(self) -> None:
        for name, most in {"shift": 0.5, "zoom": 0.9, "shear": 60.0, "rotation": 180.0, "brightness": 1.0}.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from 0 to {most:g}, got {getattr(self, name)}")

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return self != Jitter()

    def draw(self, count: int, generator: torch.Generator) -> Augmentation:
        """The changes of `count` images. The bounds do not affect how many numbers are drawn from `generator` (on the CPU)."""
        drawn = torch.rand(count, 6, generator=generator, dtype=torch.float64) * 2 - 1
        angle = drawn[:, 0] * math.radians(self.rotation)
        slant = torch.tan(drawn[:, 1] * math.radians(self.shear))
        scale = 1 + drawn[:, 2] * self.zoom
        zero, cos, sin = torch.zeros_like(scale), angle.cos(), angle.sin()
        turn = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
        slanted = torch.stack([scale, slant * scale, zero, scale], 1).view(-1, 2, 2)
        shift = 2 * self.shift * drawn[:, 3:5, None]  # the image spans [-1, 1]²
        # From a point of the result to that of the image: turned · (slanted · point + shift).
        geometry = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
        geometry[:, :2] = turn @ torch.cat([slanted, shift], 2)
        factor = 1 + drawn[:, 5] * self.brightness
        # 0 stays black: in [-1, 1] that is x → f·(x + 1) − 1.
        color = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
        color[:, :3, :3] *= factor[:, None, None]
        color[:, :3, 3] = (factor - 1)[:, None]
        return Augmentation(geometry, color)

    @staticmethod
    def apply(images: Tensor, changes: Augmentation) -> Tensor:
        """`[N, 3, R, R]` in [-1, 1] -> the same shape and range."""
        return AugmentPipe.apply(images, changes).clamp(-1, 1)
