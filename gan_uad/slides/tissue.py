"""Where a slide has tissue: a mask at a scale fixed in µm, and its share in any square.

Three rules. `mask` (default): the filters of CODAIT deep-histopath (github.com/CODAIT/deep-histopath) for a slide shrunk 32 times.
`keep_tile`: the same project's rule for single tiles. `otsu`: a threshold of colour. All leave pen marks out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from gan_uad.data.images import Mask, Pixels
from gan_uad.errors import UserError, near
from gan_uad.files import atomic
from gan_uad.slides.reader import Slide

MASK_MPP = 16.0  # 1/32 of a 20× scan; sizes in px below refer to it
TILE_MPP = 0.5  # 20× tiles; the disks of `keep_tile` refer to it

GREEN = (200, 228, 242, 249, 252, 254, 255)  # upper bounds of green, tried in turn
MAX_GREEN_MASKED = 0.90  # share masked from which the next bound is tried
GREY = 15  # largest difference between the channels of a grey pixel
MIN_OBJECT = 500  # px at `MASK_MPP`, halved while ...
MAX_SMALL_MASKED = 0.95  # ... this share is masked

# Bounds of (red, green, blue), one triple per kind of ink and scan.
RED_PEN = (  # above, below, below
    (150, 80, 90), (110, 20, 30), (185, 65, 105), (195, 85, 125), (220, 115, 145),
    (125, 40, 70), (200, 120, 150), (100, 50, 65), (85, 25, 45),
)  # fmt: skip
GREEN_PEN = (  # below, above, above
    (150, 160, 140), (70, 110, 110), (45, 115, 100), (30, 75, 60), (195, 220, 210),
    (225, 230, 225), (170, 210, 200), (20, 30, 20), (50, 60, 40), (30, 50, 35),
    (65, 70, 60), (100, 110, 105), (165, 180, 180), (140, 140, 150), (185, 195, 195),
)  # fmt: skip
BLUE_PEN = (  # below, below, above
    (60, 120, 190), (120, 170, 200), (175, 210, 230), (145, 180, 210), (37, 95, 160), (30, 65, 130),
    (130, 155, 180), (40, 35, 85), (30, 20, 65), (90, 90, 140), (60, 60, 120), (110, 110, 175),
)  # fmt: skip


@dataclass(frozen=True)
class Tissue:
    """The tissue of a slide. mask: bool [h, w], pixels of `mpp` µm, from the slide's top-left corner on.

    With the rule `keep_tile`, tiles that touch the mask (of the rule `mask`) are read, and their own pixels decide.
    """

    mask: Mask
    mpp: float
    rule: str
    slide: Slide
    _sums: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sums = np.zeros((self.mask.shape[0] + 1, self.mask.shape[1] + 1))
        sums[1:, 1:] = self.mask.cumsum(0, dtype=np.float64).cumsum(1)
        object.__setattr__(self, "_sums", sums)

    def share(self, x: ArrayLike, y: ArrayLike, side: float) -> NDArray[np.float64]:
        """Share of tissue, in [0, 1], in squares of `side` with top-left corners (x, y), all in level-0 px; in the shape of x and y.

        Exact to fractions of a mask pixel; there is no tissue outside the slide. With `keep_tile`, each square that touches the mask is
        read from the slide at 0.5 µm/px and its share is its `keep_tile_share`; other squares have 0.
        """
        left, top = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
        scale = self.slide.mpp / self.mpp
        x0, y0, x1, y1 = (edge * scale for edge in (left, top, left + side, top + side))
        area = self._sum(x1, y1) - self._sum(x0, y1) - self._sum(x1, y0) + self._sum(x0, y0)
        share: NDArray[np.float64] = np.clip(area / (side * scale) ** 2, 0.0, 1.0)
        if self.rule != "keep_tile":
            return share
        found = np.zeros(share.shape)
        size = max(1, round(side * self.slide.mpp / TILE_MPP))
        for index in zip(*np.nonzero(np.atleast_1d(share)), strict=True):
            at = index if share.ndim else ()
            tile = self.slide.read(float(left[at]), float(top[at]), size, size, side * self.slide.mpp / size)
            found[at] = keep_tile_share(tile)
        return found

    def _sum(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Area of tissue above and left of a point, in mask px: exact, bilinear between the sums at the corners."""
        height, width = self.mask.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column, row = np.minimum(x.astype(int), width - 1), np.minimum(y.astype(int), height - 1)
        u, v = x - column, y - row
        s = self._sums
        above = (1 - u) * s[row, column] + u * s[row, column + 1]
        below = (1 - u) * s[row + 1, column] + u * s[row + 1, column + 1]
        found: NDArray[np.float64] = (1 - v) * above + v * below
        return found

    def save(self, path: Path) -> None:
        """Write the mask as a grey PNG, 255 for tissue, with its rule and µm/px as text in the file. Atomic."""
        text = PngInfo()
        text.add_text("rule", self.rule)
        text.add_text("mpp", f"{self.mpp:g}")
        with atomic(path) as temporary:
            Image.fromarray(self.mask.astype(np.uint8) * 255).save(temporary, format="PNG", pnginfo=text)


def find_tissue(slide: Slide, rule: str = "mask", mpp: float = MASK_MPP) -> Tissue:
    """The tissue of a slide by one of `RULES`, at `mpp` µm/px. Raises `UserError` for another rule and where the slide cannot be read.

    The smallest object has a fixed size in µm, whatever `mpp` is. A slide without tissue is no error: its mask is all false.
    """
    if rule not in RULES:
        raise UserError(f"no rule for tissue is called {rule!r}: {near(rule, RULES)}")
    smallest = MIN_OBJECT * (MASK_MPP / mpp) ** 2
    return Tissue(RULES[rule](slide.thumbnail(mpp), smallest), mpp, rule, slide)


def filter_chain(image: Pixels, smallest: float = MIN_OBJECT) -> Mask:
    """Tissue of a slide's uint8 [H, W, 3] by the rule `mask`, bool [H, W].

    Green in (0, 200), where the bound is raised in steps to 255 while it masks at least 90 % of the slide; not grey; no pen; no object
    (4-connected) below `smallest` px, which is halved while at least 95 % is masked.
    """
    green = image[..., 1]
    for bound in GREEN:
        coloured = (green > 0) & (green < bound)
        if 1 - coloured.mean() < MAX_GREEN_MASKED:
            break
    found = coloured & (_chroma(image) > GREY) & ~pen_marks(image)
    while True:
        kept = _without_small(found, smallest)
        if 1 - kept.mean() < MAX_SMALL_MASKED or smallest < 1:
            return kept
        smallest /= 2


def otsu(image: Pixels, smallest: float = MIN_OBJECT) -> Mask:
    """Tissue by Otsu's threshold (1979) of chroma (max − min of the channels) without pen marks, at least `GREY`; bool [H, W].

    For slides with background: where all is tissue, the threshold divides the tissue.
    """
    from skimage.filters import threshold_otsu

    chroma, pens = _chroma(image), pen_marks(image)
    if pens.all():
        return np.zeros(pens.shape, bool)
    bound = max(float(threshold_otsu(chroma[~pens])), GREY)
    return _without_small((chroma > bound) & ~pens, smallest)


def pen_marks(image: Pixels) -> Mask:
    """Where a uint8 [H, W, 3] shows red, green or blue ink, bool [H, W]."""
    red, green, blue = np.moveaxis(image, 2, 0)
    found = np.zeros(red.shape, bool)
    for r, g, b in RED_PEN:
        found |= (red > r) & (green < g) & (blue < b)
    for r, g, b in GREEN_PEN:
        found |= (red < r) & (green > g) & (blue > b)
    for r, g, b in BLUE_PEN:
        found |= (red < r) & (green < g) & (blue > b)
    return found


def keep_tile_share(tile: Pixels) -> float:
    """Share of tissue of a tile by deep-histopath's `keep_tile`, the smaller of two, in [0, 1]; a tile is kept where it is ≥ 0.9.

    tile: uint8 [H, W, 3] at about 0.5 µm/px. One share is that of edges (Canny, σ 1), closed and dilated by a disk of 10 px. The other
    is that of optical density −ln((I + 1) / 240) of at least 0.15 in each channel, closed and dilated by a disk of 2 px. Both with
    holes filled.
    """
    from skimage.color import rgb2gray
    from skimage.feature import canny

    edges = canny(1 - rgb2gray(tile))
    dense = -np.log((tile.max(axis=2) + 1.0) / 240) >= 0.15  # the least density is that of the brightest channel
    return min(_filled_share(edges, 10), _filled_share(dense, 2))


def _filled_share(mask: Mask, radius: int) -> float:
    # Morphology by a disk of r px is a threshold of the distance to the nearest pixel: its cost does not grow with r.
    closed = ~_dilated(~_dilated(mask, radius), radius)
    return float(ndimage.binary_fill_holes(_dilated(closed, radius)).mean())


def _dilated(mask: Mask, radius: int) -> Mask:
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask) <= radius)


def _chroma(image: Pixels) -> NDArray[np.uint8]:
    return np.asarray(image.max(axis=2) - image.min(axis=2))


def _without_small(mask: Mask, smallest: float) -> Mask:
    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) >= smallest
    large[0] = False
    return np.asarray(large[labels])


RULES: dict[str, Any] = {"mask": filter_chain, "keep_tile": filter_chain, "otsu": otsu}
