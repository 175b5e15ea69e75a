"""What the samples of a TIFF's pixels mean, and how they become RGB: by its photometric interpretation, extra samples and bits (TIFF 6.0).

What is no colour (fluorescence), or can be read in two ways, is refused in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from gan_uad.data.images import Pixels
from gan_uad.errors import UserError
from gan_uad.slides import ome
from gan_uad.slides.base import damaged, on_white

WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6  # tag 262, PhotometricInterpretation
COLOURS = {WHITE_IS_ZERO: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}  # samples of each
ASSOCIATED, UNASSOCIATED = 1, 2  # tag 338, ExtraSamples: alpha; other numbers are not
JPEG = 7  # tag 259, Compression; its decoder makes RGB of YCbCr
RAW = (
    1,
    5,
    8,
    32773,
    32946,
    34925,
    50000,
)  # compressions that know no colours: none, LZW, deflate, PackBits, LZMA, Zstandard
BRIGHT = 1 << 15  # 16-bit values that all stay below are taken for fewer bits: glass is brighter
ONE_CHANNEL = "its one channel (grey) is repeated to red, green and blue"
ADVICE = "save it as RGB of 8 bits"


@dataclass(frozen=True)
class Samples:
    """How the samples of a pixel become RGB.

    photometric: tag 262. highest: the largest value of a sample. alpha: that of the sample after the colours, 0 for none. plain: whether
    OpenSlide reads such a tiled TIFF alike. palette: uint8 [n, 3]. weights, black, white: tags 529 and 532 of YCbCr. order: of pages.
    """

    path: Path
    photometric: int
    highest: int
    alpha: int = 0
    plain: bool = True
    palette: Pixels | None = None
    weights: tuple[float, ...] = (0.299, 0.587, 0.114)
    range: tuple[float, ...] = (0, 255, 128, 255, 128, 255)
    order: Sequence[int] = (0,)
    notes: list[str] = field(default_factory=list)

    @property
    def blank(self) -> list[int]:
        """The samples of a white pixel, for what the file leaves out."""
        if self.palette is not None:
            return [int(self.palette.sum(1, dtype=np.int64).argmax())]
        white = {WHITE_IS_ZERO: [0], CMYK: [0] * 4, YCBCR: [255, 128, 128]}
        return white.get(self.photometric, [self.highest] * 8)

    def to_rgb(self, found: NDArray[Any]) -> Pixels:
        """uint8 [h, w, 3] of samples [h, w, n]; those beyond colours and alpha are left out."""
        colours = COLOURS[self.photometric] if len(self.order) == 1 else len(self.order)
        if self.palette is not None:
            return np.ascontiguousarray(self.palette[np.minimum(found[..., 0], len(self.palette) - 1)])
        found = self._scaled(found[..., : colours + bool(self.alpha)])
        if self.photometric == CMYK:
            black = 255 - found[..., 3:].astype(np.uint16)
            return np.asarray(((255 - found[..., :3]) * black + 127) // 255, np.uint8)
        if self.photometric == YCBCR:
            return self._from_ycbcr(found)
        if self.photometric == WHITE_IS_ZERO:
            found = np.concatenate([255 - found[..., :1], found[..., 1:]], axis=2)
        if colours == 1:
            found = np.concatenate([found[..., :1]] * 3 + [found[..., 1:]], axis=2)
        if self.alpha == ASSOCIATED:
            clear = 255 - found[..., 3:].astype(np.uint16)
            return np.minimum(found[..., :3] + clear, 255).astype(np.uint8)
        if self.alpha == UNASSOCIATED:
            return np.array(on_white(Image.fromarray(found, "RGBA")))
        return np.ascontiguousarray(found)

    def _scaled(self, found: NDArray[Any]) -> Pixels:
        if self.highest == 255:
            return np.asarray(found, np.uint8)
        if found.size and found.max() > self.highest:
            raise UserError(
                f"{self.path}: a value of {found.max()} is above {self.highest}, the highest of its bits; {ADVICE}"
            )
        return np.asarray((found.astype(np.uint32) * 255 + self.highest // 2) // self.highest, np.uint8)

    def _from_ycbcr(self, found: Pixels) -> Pixels:
        black, white = np.array(self.range[::2]), np.array(self.range[1::2])
        y, cb, cr = np.moveaxis((found - black) * np.array([255, 127, 127]) / (white - black), 2, 0)
        of_red, of_green, of_blue = self.weights
        red, blue = y + cr * (2 - 2 * of_red), y + cb * (2 - 2 * of_blue)
        green = (y - of_red * red - of_blue * blue) / of_green
        return (np.clip(np.stack([red, green, blue], axis=2), 0, 255) + 0.5).astype(np.uint8)


def meaning(path: Path, page: Any, pages: int, pixels: Element | None) -> Samples:
    """What the samples of a slide of `pages` TIFF pages are; `page`: its keyframe, `pixels`: of its OME-XML.

    Raises `UserError` for what is no RGB, grey, palette, CMYK or YCbCr image of 8 to 16 bits, and for channels that are not colours.
    """
    bits, kind = int(page.bitspersample), int(page.photometric)
    if int(page.sampleformat) != 1 or not 8 <= bits <= 16:
        what = {1: "unsigned", 2: "signed", 3: "floating-point"}.get(int(page.sampleformat), "complex")
        raise UserError(f"{path}: {what} samples of {bits} bits are not 8 to 16 unsigned bits; {ADVICE}")
    if kind not in COLOURS:
        raise UserError(f"{path}: colours of the kind {_name(tifffile.PHOTOMETRIC, kind)} are not supported; {ADVICE}")
    if (turned := page.tags.valueof("Orientation", 1)) != 1:  # OpenSlide mirrors each tile
        raise UserError(f"{path}: it is stored turned or mirrored (Orientation {turned}); save it upright")
    found = [] if pixels is None else ome.channels(pixels)
    _check_channels(path, page, pages, found)
    alpha, notes = _extra_samples(path, page)
    if kind in (WHITE_IS_ZERO, GREY) and pages == 1:
        notes.append(ONE_CHANNEL)
    stated = None if pixels is None else ome.significant_bits(pixels)
    bits = min(bits, stated) if stated else bits
    order = (ome.red_green_blue(found) or range(pages)) if pages > 1 else (0,)
    plain = bits == 8 and pages == 1 and (not page.extrasamples or (alpha > 0 and kind == RGB))
    known: dict[str, Any] = {"photometric": kind, "highest": 2**bits - 1, "alpha": alpha, "plain": plain}
    return Samples(path, **known | _special(path, page, bits), order=order, notes=notes)


def check_brightness(path: Path, brightest: int) -> None:
    """Raise `UserError` where the brightest of 16-bit values may be one of fewer bits: scaled as 16 bits, it would be nearly black."""
    if brightest < BRIGHT:
        raise UserError(
            f"{path}: its 16-bit values never exceed {brightest}: it may be dark, or of {max(brightest, 1).bit_length()} bits and bright; "
            f"{ADVICE}, or as OME-TIFF that states SignificantBits"
        )


def check_decoder(path: Path, page: Any) -> None:
    """Raise `UserError` for a compression that tifffile cannot decode, by its name."""
    compression = int(page.compression)
    if compression == 1:
        return
    try:
        tifffile.TIFF.DECOMPRESSORS[compression]
    except KeyError as error:
        if "imagecodecs" in str(error):
            raise UserError(damaged(path, error)) from None
        name = _name(tifffile.COMPRESSION, compression)
        raise UserError(
            f"{path}: its compression, {name}, cannot be decoded; save it with another one (deflate)"
        ) from None


def _check_channels(path: Path, page: Any, pages: int, found: list[Element]) -> None:
    """Refuse channels that are no colours: several of one sample each, unless they are red, green and blue."""
    kind, named = int(page.photometric), ", ".join(ome.names(found))
    colours, samples = COLOURS[kind], int(page.samplesperpixel)
    several = pages > 1 or (colours == 1 and samples > 1 and not _alphas(page))
    dyed = ome.fluorescent(found) and (colours == 1 or len(found) > 1)
    count = max(pages, samples, len(found))
    what = f"{count} channel{'s' if count > 1 else ''}" + (f" ({named})" if named else "")
    if dyed or (several and count != 3):
        raise UserError(f"{path}: {what} of one colour each are no RGB or grey image; fluorescence is not supported")
    if several and not (pages == 3 and kind == GREY and ome.red_green_blue(found)):
        raise UserError(
            f"{path}: {what} of one colour each may be fluorescence, which is not supported, or red, green and blue: then save it as RGB, "
            "or name its channels R, G and B in its OME-XML"
        )
    if samples < colours:
        raise UserError(f"{path}: {samples} samples are too few for {_name(tifffile.PHOTOMETRIC, kind)}; {ADVICE}")


def _extra_samples(path: Path, page: Any) -> tuple[int, list[str]]:
    """The kind of alpha, 0 for none, and notes. Only samples that the file calls alpha are."""
    kind, count = int(page.photometric), int(page.samplesperpixel) - COLOURS[int(page.photometric)]
    if not count:
        return 0, []
    alphas = _alphas(page)
    if count == 1 and alphas and kind in (WHITE_IS_ZERO, GREY, RGB):
        return alphas[0], []
    if count == 1 and not alphas and kind == RGB:
        return 0, ["its fourth sample, of unknown meaning, is left out: red, green and blue are read"]
    raise UserError(
        f"{path}: {count} samples beside those of {_name(tifffile.PHOTOMETRIC, kind)} are not supported; {ADVICE}"
    )


def _alphas(page: Any) -> list[int]:
    return [int(one) for one in page.extrasamples if int(one) in (ASSOCIATED, UNASSOCIATED)]


def _special(path: Path, page: Any, bits: int) -> dict[str, Any]:
    """What a palette, CMYK or YCbCr needs."""
    kind, compression, tags = int(page.photometric), int(page.compression), page.tags
    if kind not in (PALETTE, CMYK, YCBCR) or (kind == YCBCR and compression == JPEG):
        return {"photometric": RGB} if kind == YCBCR else {}
    if bits != 8 or compression not in RAW or (kind == CMYK and tags.valueof("InkSet", 1) != 1):
        how = f"{bits} bits, compression {_name(tifffile.COMPRESSION, compression)}"
        raise UserError(f"{path}: {_name(tifffile.PHOTOMETRIC, kind)} ({how}) is not supported; {ADVICE}")
    if kind == PALETTE:
        colours = np.asarray(page.colormap)
        return {"palette": (colours if colours.max() < 256 else colours >> 8).T.astype(np.uint8)}
    if kind == YCBCR:
        if tuple(tags.valueof("YCbCrSubSampling", (2, 2))) != (1, 1):
            raise UserError(f"{path}: subsampled YCbCr without JPEG is not supported; {ADVICE}")
        weights, limits = _fractions(tags.valueof("YCbCrCoefficients")), _fractions(tags.valueof("ReferenceBlackWhite"))
        return ({"weights": weights} if len(weights) == 3 and weights[1] else {}) | (
            {"range": limits} if len(limits) == 6 else {}
        )
    return {}


def _fractions(value: Any) -> tuple[float, ...]:
    """Of RATIONAL numbers, as tifffile gives them: numerators and denominators."""
    flat = list(value or ())
    return tuple(a / b if b else 0.0 for a, b in zip(flat[::2], flat[1::2], strict=True))


def _name(kinds: Any, number: int) -> str:
    try:
        return f"{kinds(number).name} ({number})"
    except ValueError:
        return str(number)
