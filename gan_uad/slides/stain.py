"""Stain normalisation: map the colours of a slide to those of a reference. Fitted once per slide, off by default.

It can hide anomalies that show in colour, so the fit is always recorded with the tiles (`to_dict`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gan_uad.data.images import Pixels
from gan_uad.errors import UserError, near
from gan_uad.slides.tissue import Tissue

FloatArray = NDArray[np.float64]
Colours = tuple[FloatArray, FloatArray]

WHITE = 240.0  # intensity of the light where there is no tissue
BETA = 0.15  # optical density below which a pixel is background
MIN_PIXELS = 1000  # of tissue, for a fit
DENSITY = -np.log((np.arange(256) + 1) / WHITE)  # of each intensity; natural logarithm
MIN_ANGLE = 0.05  # radians between two stains: unmixing closer ones divides by almost nothing
SAMPLE = 64  # side in px, and number, of the squares that a slide is fitted on

# sRGB as linear light, and light to XYZ and CIE L*a*b* with the white of D65 (IEC 61966-2-1, ISO/CIE 11664-4).
LINEAR = np.where(
    np.arange(256) / 255 > 0.04045, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4, np.arange(256) / 255 / 12.92
)
TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
D65 = np.array([0.95047, 1.0, 1.08883])


class StainNormaliser(ABC):
    """Maps the colours of one slide to those of a reference. Results depend on the slide and the pixel alone, not on the tile."""

    name: str
    statistics: tuple[str, str]  # names of the two arrays that describe colours
    REFERENCE: tuple[Any, Any]  # of the built-in reference

    def __init__(self, target: Pixels | None = None) -> None:
        """See `stain_normaliser`."""
        found = self.REFERENCE if target is None else self.measured(target)
        if isinstance(found, str):
            raise UserError(f"the reference of the stain normalisation cannot be used: {found}; choose another image")
        self._target: Colours = np.array(found[0]), np.array(found[1])
        self._source: Colours | None = None
        self.why = "not fitted"

    def fit(self, pixels: Pixels) -> Self:
        """Fit to pixels of a slide, uint8 [..., 3] (`sample_pixels`); background among them is left out.

        Where they are too few or of one colour, `transform` leaves every image as it is.
        """
        found = self.measured(pixels)
        self._source, self.why = (None, found) if isinstance(found, str) else (found, "")
        return self

    @property
    def fitted(self) -> bool:
        """Whether images are changed; else `why` says the reason."""
        return self._source is not None

    def transform(self, image: Pixels) -> Pixels:
        """An image of the fitted slide, uint8 [H, W, 3], in the colours of the reference."""
        return image if self._source is None else self.moved(image, self._source, self._target)

    def to_dict(self) -> dict[str, Any]:
        """The name, whether the slide could be fitted (else the reason), and source and reference in plain numbers."""
        source, target = (
            colours and {name: array.T.tolist() for name, array in zip(self.statistics, colours, strict=True)}
            for colours in (self._source, self._target)
        )
        reason = {"reason": self.why} if self.why else {}
        return {"name": self.name, "fitted": self.fitted, **reason, "source": source, "target": target}

    @staticmethod
    @abstractmethod
    def measured(pixels: Pixels) -> Colours | str:
        """Statistics of the colours of tissue, or the reason why there are none."""

    @staticmethod
    @abstractmethod
    def moved(image: Pixels, source: Colours, target: Colours) -> Pixels:
        """An image with the colours of `source` in those of `target`."""


def stain_normaliser(name: str, target: Pixels | None = None) -> StainNormaliser:
    """`reinhard` or `macenko`; target: pixels of the reference, uint8 [..., 3], or None for a built-in one.

    Raises `UserError` for another name, and for a target without enough tissue.
    """
    if name not in NORMALISERS:
        raise UserError(f"no stain normalisation is called {name!r}: {near(name, NORMALISERS)}")
    return NORMALISERS[name](target)


def fitted_normaliser(name: str | None, tissue: Tissue, mpp: float, seed: int = 0) -> StainNormaliser | None:
    """`stain_normaliser(name)` fitted to the tissue of a slide whose tiles have `mpp` µm/px; None without a name.

    Where it cannot be fitted, the slide's `notes` get a line that says why.
    """
    if not name:
        return None
    found = stain_normaliser(name).fit(sample_pixels(tissue, mpp, seed))
    if not found.fitted:
        slide = tissue.slide
        slide.note(
            f"its stain is not normalised: {name} cannot be fitted, since {found.why}; its tiles keep their colours"
        )
    return found


class Reinhard(StainNormaliser):
    """Mean and standard deviation of each channel of CIE L*a*b* become those of the reference (Reinhard et al. 2001).

    L*a*b*, as is usual for slides, replaces the paper's lαβ. Background is changed too and may get a tint.
    """

    name = "reinhard"
    statistics = ("mean", "std")
    # Mean and standard deviation of L*, a*, b* of the tissue of OpenSlide's CMU-1-Small-Region.svs (CC0).
    REFERENCE = ((47.64, 28.84, -12.45), (19.20, 12.67, 9.89))

    @staticmethod
    def measured(pixels: Pixels) -> Colours | str:
        """Mean and standard deviation, [3] each."""
        tissue = _tissue_of(pixels)
        if len(tissue) < MIN_PIXELS:
            return _too_few(len(tissue), pixels, "any channel")
        lab = to_lab(tissue)
        deviation = lab.std(0)
        return (lab.mean(0), deviation) if deviation.min() > 1e-6 else "the tissue is of one colour"

    @staticmethod
    def moved(image: Pixels, source: Colours, target: Colours) -> Pixels:
        return from_lab((to_lab(image) - source[0]) * (target[1] / source[1]) + target[0])


class Macenko(StainNormaliser):
    """The two stains found in optical density, and their amounts, become those of the reference (Macenko et al. 2009).

    Stains are the directions at the 1st and 99th percentile of angle in the plane of the two largest eigenvectors; an amount is the 99th
    percentile of concentration. A pixel's new density is a 3×3 matrix times its old one.
    """

    name = "macenko"
    statistics = ("stains", "amounts")
    # Haematoxylin and eosin (columns) and their 99th percentiles, of the authors' reference image.
    REFERENCE = (((0.5626, 0.2159), (0.7201, 0.8012), (0.4062, 0.5581)), (1.9705, 1.0308))

    @staticmethod
    def measured(pixels: Pixels) -> Colours | str:
        """Stains [3, 2] and amounts [2]."""
        density = DENSITY[_tissue_of(pixels)]
        dark = density[(density >= BETA).all(axis=1)]
        if len(dark) < MIN_PIXELS:
            return _too_few(len(dark), pixels, "each channel")
        values, vectors = np.linalg.eigh(np.cov(dark.T))
        if values[1] <= 1e-9:
            return "the tissue is of one colour"
        plane = vectors[:, 1:]
        plane = plane * np.where(plane.sum(0) < 0, -1, 1)  # an eigenvector has no sign of its own
        across = dark @ plane
        angles = np.percentile(np.arctan2(across[:, 1], across[:, 0]), (1, 99))
        if angles[1] - angles[0] < MIN_ANGLE:
            return "the tissue shows one stain only"
        stains = plane @ np.stack([np.cos(angles), np.sin(angles)])
        stains = stains[:, ::-1] if stains[0, 0] < stains[0, 1] else stains  # haematoxylin absorbs more red
        amounts = np.percentile(density @ np.linalg.pinv(stains).T, 99, axis=0)
        if amounts.min() <= 1e-6:
            return "one of two stains is missing"
        return stains, amounts

    @staticmethod
    def moved(image: Pixels, source: Colours, target: Colours) -> Pixels:
        (stains, amounts), (new_stains, new_amounts) = source, target
        matrix = (new_stains * (new_amounts / amounts)) @ np.linalg.pinv(stains)
        return _to_uint8(WHITE * np.exp(-(DENSITY[image] @ matrix.T)))


NORMALISERS: dict[str, type[StainNormaliser]] = {"reinhard": Reinhard, "macenko": Macenko}


def sample_pixels(tissue: Tissue, mpp: float, seed: int = 0) -> Pixels:
    """Pixels to fit a slide on, uint8 [n, 3]: up to 64 squares of 64 px, drawn at random from its tissue.

    `mpp` is that of the tiles: the spread of colours depends on it. Empty where the slide has no tissue.
    """
    rows, columns = np.nonzero(tissue.mask)
    rng = np.random.default_rng(seed)
    picked = np.sort(rng.permutation(len(rows))[:SAMPLE])
    slide = tissue.slide
    scale, half = tissue.mpp / slide.mpp, SAMPLE * mpp / slide.mpp / 2
    squares = [
        slide.read((columns[k] + 0.5) * scale - half, (rows[k] + 0.5) * scale - half, SAMPLE, SAMPLE, mpp)
        for k in picked
    ]
    return np.concatenate([square.reshape(-1, 3) for square in squares]) if squares else np.zeros((0, 3), np.uint8)


def to_lab(image: Pixels) -> FloatArray:
    """sRGB uint8 [..., 3] as CIE L*a*b*: L* in [0, 100], a* and b* about ±100."""
    relative = LINEAR[image] @ (TO_XYZ / D65[:, None]).T
    cubed = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    x, y, z = np.moveaxis(cubed, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def from_lab(lab: FloatArray) -> Pixels:
    """The inverse of `to_lab`; colours that sRGB cannot show are clipped."""
    y = (lab[..., 0] + 16) / 116
    cubed = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    relative = np.where(cubed > 0.2068966, cubed**3, (cubed - 16 / 116) / 7.787)
    light = np.clip(relative @ np.linalg.inv(TO_XYZ / D65[:, None]).T, 0, 1)
    return _to_uint8(255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light))


def _tissue_of(pixels: Pixels) -> Pixels:
    """[n, 3]: the pixels that absorb light in any channel."""
    flat = np.asarray(pixels).reshape(-1, 3)
    return flat[flat.min(axis=1) <= WHITE * np.exp(-BETA) - 1]


def _too_few(count: int, pixels: Pixels, where: str) -> str:
    sampled = np.asarray(pixels).size // 3
    if not sampled:
        return "no tissue was found"
    return (
        f"only {count:,} of {sampled:,} pixels sampled from tissue absorb light in {where} (density {BETA}), and {MIN_PIXELS:,} are "
        "needed"
    )


def _to_uint8(values: FloatArray) -> Pixels:
    return (np.clip(values, 0, 255) + 0.5).astype(np.uint8)
