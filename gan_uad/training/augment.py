"""Adaptive discriminator augmentation (ADA): the transforms of the discriminator's images, and their probability.

Karras et al. 2020, "Training generative adversarial networks with limited data", appendix B; constants and order of the transforms are
those of the authors' stylegan2-ada-pytorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from gan_uad.device import upload

aten = torch.ops.aten

TRANSFORMS = {
    "blit": ("xflip", "rotate90", "xint"),
    "geom": ("scale", "rotate", "aniso", "xfrac"),
    "color": ("brightness", "contrast", "lumaflip", "hue", "saturation"),
}
GROUPS = {"b": "blit", "g": "geom", "c": "color"}

XINT_MAX = 0.125  # of the image's width, as is XFRAC_STD
SCALE_STD = 0.2  # in log2, as are ANISO_STD, CONTRAST_STD and SATURATION_STD
ANISO_STD = 0.2
ROTATE_MAX = 1.0  # of half a turn either way, as is HUE_MAX
XFRAC_STD = 0.125
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5
HUE_MAX = 1.0
SATURATION_STD = 1.0

# Low-pass filter of the symlet with six vanishing moments, to the precision of its defining equations.
SYM6 = (
    0.015404109327044896, 0.0034907120842221356, -0.11799011114841655, -0.048311742585698024,
    0.49105594192764365, 0.7876411410286507, 0.3379294217282404, -0.07263752278637662,
    -0.021060292512697272, 0.04472490177075132, 0.0017677118643983648, -0.007800708324766065,
)  # fmt: skip
REACH = len(SYM6) // 4  # pixels by which either filter reaches beyond an image, at the image's own resolution

ADA_KIMG = 500.0  # thousand images in which p can rise from 0 to 1


@dataclass(frozen=True)
class Augmentation:
    """The transforms of each image of a batch; always float64 on the CPU, so that nothing waits for a device.

    geometry: `[N, 3, 3]`, from a point of the result to the point of the image that appears there, in coordinates in which the image
    spans [-1, 1]². color: `[N, 4, 4]`, from (R, G, B, 1) to its new value.
    """

    geometry: Tensor
    color: Tensor

    def __len__(self) -> int:
        return len(self.geometry)

    def take(self, which: slice | Tensor) -> Augmentation:
        """That of some of the images."""
        return Augmentation(self.geometry[which], self.color[which])


class AugmentPipe:
    """Draws augmentations, and applies them.

    group: which transforms are on: `blit`, `geom`, `color`, or their initials together (`b`, `bg`, `bgc`, ...).
    multipliers: by transform (see `TRANSFORMS`), a factor of its probability; by default 1 if it is on, else 0.
    Raises `ValueError` for unknown names.
    """

    def __init__(self, group: str = "bgc", **multipliers: float) -> None:
        names = [group] if group in TRANSFORMS else [GROUPS.get(letter, "") for letter in group]
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"unknown augmentations {group!r}: blit, geom, color, or their initials such as bg or bgc")
        self.multipliers = {
            name: float(kind in names) for kind, transforms in TRANSFORMS.items() for name in transforms
        }
        if unknown := sorted(multipliers.keys() - self.multipliers.keys()):
            raise ValueError(f"unknown transforms {', '.join(unknown)}: there are {', '.join(self.multipliers)}")
        self.multipliers.update(multipliers)

    def draw(self, count: int, resolution: int, p: float, generator: torch.Generator) -> Augmentation:
        """Augmentations of `count` images of `resolution` px; each transform is applied with probability `p` · multiplier.

        generator: on the CPU. The number of draws depends on `count` only, so processes that draw for the complete batch stay in step,
        whatever p and the multipliers are.
        """
        draw = _Draw(count, p, self.multipliers, generator)
        return Augmentation(_draw_geometry(draw, resolution), _draw_color(draw))

    @staticmethod
    def apply(images: Tensor, augmentation: Augmentation) -> Tensor:
        """`[N, 3, S, S]` in [-1, 1] -> the same shape (colours may leave that range); differentiable any number of times.

        Each image is transformed independently; one without a transform is returned unchanged. Below 8 px there are too few pixels to
        reflect, and moved edges fade to zero. Computes in float32 at least, under autocast too.
        """
        if len(images) != len(augmentation):
            raise ValueError(f"{len(images)} images, but augmentations of {len(augmentation)}")
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"images must be square, got {images.shape[2]} × {images.shape[3]}")
        with torch.autocast(images.device.type, enabled=False):
            images = images if images.dtype == torch.float64 else images.float()
            found = _recolor(_move(images, augmentation.geometry), augmentation.color)
            return found if found is images else found.contiguous(memory_format=torch.channels_last)


class AdaptiveP:
    """The probability `p` of augmentations, adjusted so that the mean of sign D(real) stays at `target`.

    Every `interval` steps of the discriminator p moves by images seen / (1000·ada_kimg): up if the mean is above the target, since the
    discriminator then overfits, else down. p never falls below 0. It may rise above 1, as in the original; that only delays its fall.
    """

    def __init__(self, target: float = 0.6, interval: int = 4, ada_kimg: float = ADA_KIMG, p: float = 0.0) -> None:
        if interval < 1 or ada_kimg <= 0 or p < 0:
            raise ValueError(f"need interval >= 1, ada_kimg > 0, p >= 0; got {interval}, {ada_kimg}, {p}")
        self.target, self.interval, self.ada_kimg = target, interval, ada_kimg
        self.p = p
        self._signs: Tensor | float = 0.0
        self._images, self._steps = 0, 0

    def observe(self, sum_of_signs: Tensor | float, count: int) -> None:
        """Count a step: Σ sign D(real) over the `count` real images of the batch, of all processes together.

        A tensor on a GPU is read, which waits for it, once in `interval` steps.
        """
        self._signs += sum_of_signs
        self._images += count
        self._steps += 1
        if self._steps < self.interval:
            return
        mean = float(self._signs) / max(self._images, 1)
        direction = (mean > self.target) - (mean < self.target)
        self.p = max(self.p + direction * self._images / (self.ada_kimg * 1000), 0.0)
        self._signs, self._images, self._steps = 0.0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """All that changes, as plain numbers."""
        return {"p": self.p, "signs": float(self._signs), "images": self._images, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, also within an interval."""
        self.p = state["p"]
        self._signs, self._images, self._steps = state["signs"], state["images"], state["steps"]


class _Draw:
    """Random numbers for a batch, and whether a transform is applied to an image; all `[N]` or `[N, k]`, float64."""

    def __init__(self, count: int, p: float, multipliers: dict[str, float], generator: torch.Generator) -> None:
        self.count, self.p, self.multipliers, self.generator = count, p, multipliers, generator

    def uniform(self, *shape: int) -> Tensor:
        """In [-1, 1)."""
        return self._rand(*shape) * 2 - 1

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.count, *shape, generator=self.generator, dtype=torch.float64)

    def integer(self, below: int) -> Tensor:
        return (self._rand() * below).floor()

    def maybe(self, name: str, value: Tensor) -> Tensor:
        """The value where the transform is applied, else zero, which means no change."""
        probability = self.multipliers[name] * self.p
        if name == "rotate":  # drawn twice, so that P(at least once) is `probability`
            probability = 1 - math.sqrt(min(max(1 - probability, 0.0), 1.0))
        happens = (self._rand() < probability).view(-1, *[1] * (value.ndim - 1))
        return torch.where(happens, value, torch.zeros_like(value))

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(self.count, *shape, generator=self.generator, dtype=torch.float64)


def _draw_geometry(draw: _Draw, resolution: int) -> Tensor:
    """`[N, 3, 3]`: the inverses of the transforms, the first transform leftmost."""
    flip = 1 - 2 * draw.maybe("xflip", draw.integer(2))
    found = _diagonal(flip, torch.ones_like(flip))
    turns = draw.maybe("rotate90", draw.integer(4)).long()
    cos, sin = torch.tensor([[1.0, 0, -1, 0], [0, 1, 0, -1]], dtype=torch.float64)  # exact, unlike those of π/2
    found = found @ _rotation(cos[turns], sin[turns])
    shift = (draw.maybe("xint", draw.uniform(2) * XINT_MAX) * resolution).round() / resolution
    found = found @ _translation(-2 * shift)

    scale = torch.exp2(-draw.maybe("scale", draw.normal() * SCALE_STD))
    found = found @ _diagonal(scale, scale)
    angle = draw.maybe("rotate", draw.uniform() * math.pi * ROTATE_MAX)
    found = found @ _rotation(angle.cos(), angle.sin())
    aspect = torch.exp2(-draw.maybe("aniso", draw.normal() * ANISO_STD))
    found = found @ _diagonal(aspect, 1 / aspect)
    angle = draw.maybe("rotate", draw.uniform() * math.pi * ROTATE_MAX)
    found = found @ _rotation(angle.cos(), angle.sin())
    shift = draw.maybe("xfrac", draw.normal(2) * XFRAC_STD)
    return found @ _translation(-2 * shift)


def _draw_color(draw: _Draw) -> Tensor:
    """`[N, 4, 4]`: the transforms, the first one rightmost; hue, saturation and luma refer to the grey axis."""
    one = torch.eye(3, dtype=torch.float64)
    grey = torch.full((3, 3), 1 / 3, dtype=torch.float64)  # projects onto (1, 1, 1)/√3
    # v × x for v on the grey axis, which generates rotations about it
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)

    shift = draw.maybe("brightness", draw.normal() * BRIGHTNESS_STD)
    contrast = torch.exp2(draw.maybe("contrast", draw.normal() * CONTRAST_STD)).view(-1, 1, 1)
    flip = draw.maybe("lumaflip", draw.integer(2)).view(-1, 1, 1)
    linear = (one - 2 * grey * flip) * contrast
    hue = draw.maybe("hue", draw.uniform() * math.pi * HUE_MAX).view(-1, 1, 1)
    linear = (one + cross * hue.sin() + (one - grey) * (hue.cos() - 1)) @ linear
    saturation = torch.exp2(draw.maybe("saturation", draw.normal() * SATURATION_STD)).view(-1, 1, 1)
    linear = (one + (one - grey) * (saturation - 1)) @ linear

    found = torch.eye(4, dtype=torch.float64).repeat(draw.count, 1, 1)
    found[:, :3, :3] = linear
    found[:, :3, 3] = linear.sum(2) * shift.view(-1, 1)  # brightness comes first
    return found


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], 1))


def _rotation(cos: Tensor, sin: Tensor) -> Tensor:
    found = _diagonal(cos, cos)
    found[:, 0, 1], found[:, 1, 0] = -sin, sin
    return found


def _translation(by: Tensor) -> Tensor:
    found = torch.eye(3, dtype=by.dtype).repeat(len(by), 1, 1)
    found[:, :2, 2] = by
    return found


def _move(images: Tensor, geometry: Tensor) -> Tensor:
    """Resample the images that move; for the others the filters would only cost time."""
    moving = (geometry != torch.eye(3, dtype=geometry.dtype)).flatten(1).any(1).nonzero().flatten()
    if len(moving) == 0:
        return images
    if len(moving) == len(images):
        return _resample(images, geometry)
    rows = upload(moving, images.device)
    return images.index_copy(0, rows, _resample(images[rows], geometry[moving]))


def _resample(images: Tensor, geometry: Tensor) -> Tensor:
    """Reflect at the edges, double the resolution, look up, halve it, crop.

    The filter is not quite symmetric, so a flip or turn also shifts by up to 0.4 pixels, as in the original.
    """
    size = images.shape[2]
    inner, wide = size + 2 * REACH, size + 2 * _margin(geometry, size)
    images = F.pad(images, [(wide - size) // 2] * 4, mode="reflect").contiguous(memory_format=torch.channels_last)
    filters = _filters(images.dtype, images.device)
    images = _upsample(images, *filters)

    # From [-1, 1] over the sampled area to [-1, 1] over the padded one.
    theta = torch.cat([geometry[:, :2, :2] * inner, geometry[:, :2, 2:] * size], 2) / wide
    shape = [len(images), images.shape[1], 2 * inner, 2 * inner]
    grid = F.affine_grid(upload(theta.to(images.dtype), images.device), shape, align_corners=False)
    images = _Sample.apply(images, grid)
    return _downsample(images.contiguous(memory_format=torch.channels_last), *filters)


def _margin(geometry: Tensor, size: int) -> int:
    """Pixels of padding that the lookups need. More would change nothing, so images do not affect each other.

    At most `size` − 1, which can be reflected; beyond that is zero.
    """
    corner = geometry[:, :2, :2].abs().sum(2) * (size + 2 * REACH) + geometry[:, :2, 2].abs() * size
    # One pixel more than the filter, for bilinear weights and for centres that lie half a pixel inside.
    needed = math.ceil(float(corner.max()) / 2 - size / 2 + REACH + 1)
    return min(max(needed, 0), size - 1)


@cache
def _filters(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The filter along y and along x, once for each of three channels, with unit sum."""
    taps = torch.tensor(SYM6, dtype=torch.float64)
    taps = (taps / taps.sum()).to(device, dtype)
    return taps.view(1, 1, -1, 1).repeat(3, 1, 1, 1), taps.view(1, 1, 1, -1).repeat(3, 1, 1, 1)


def _upsample(x: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
    """`[N, 3, H, W]` -> `[N, 3, 2H, 2W]`, in place: the filter's even length puts its middle between two pixels."""
    before = len(SYM6) // 2 - 1
    x = F.conv_transpose2d(x, 2 * along_y, stride=(2, 1), padding=(before, 0), groups=3)
    return F.conv_transpose2d(x, 2 * along_x, stride=(1, 2), padding=(0, before), groups=3)


def _downsample(x: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
    """The adjoint of `_upsample` up to its gain, without the `REACH` pixels on each side that the filter consumes."""
    x = x[:, :, 1:-1, 1:-1]
    x = F.conv2d(x, along_y, stride=(2, 1), groups=3)
    return F.conv2d(x, along_x, stride=(1, 2), groups=3)


class _Sample(Function):
    """`F.grid_sample` (bilinear, zeros outside), differentiable with respect to the images any number of times.

    It is linear in them: its derivative is its adjoint, whose derivative is the function itself. torch has no second derivative.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (grid,) = ctx.saved_tensors
        return _SampleAdjoint.apply(grad, grid, ctx.shape), None


class _SampleAdjoint(Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        # Only the derivative of the grid would need the images.
        unused = grad.new_empty(shape)
        return aten.grid_sampler_2d_backward(grad, unused, grid, 0, 0, False, [True, False])[0]

    @staticmethod
    def backward(ctx: Any, over: Tensor) -> Any:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(over, grid), None, None


def _recolor(images: Tensor, color: Tensor) -> Tensor:
    if bool((color == torch.eye(4, dtype=color.dtype)).all()):
        return images
    # Channel by channel: a matrix product in TF32 would change even images that keep their colours.
    new = upload(color[:, :3].to(images.dtype), images.device).view(-1, 3, 4, 1, 1)
    red, green, blue = images.split(1, 1)
    return new[:, :, 0] * red + new[:, :, 1] * green + new[:, :, 2] * blue + new[:, :, 3]
