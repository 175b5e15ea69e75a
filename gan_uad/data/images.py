"""From an image file to a square uint8 RGB array: read, crop, resize, and measure its share of tissue. Nothing else reads images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from gan_uad.config import DataConfig
from gan_uad.errors import UserError

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MAX_PIXELS = 64_000_000  # more is a slide, not a patch (and could be a decompression bomb)
SEEN = 128  # alpha from which a pixel of a mask is marked
FAINT = 32 / 255  # lossy compression leaves less of what was black; numbers of classes are below it
DARK = 64  # of 255: what 14 bits reach in an image of 16
WHITE = 200  # a pixel is white (no tissue) when R, G and B are all above this
BITS, PHOTOMETRIC, SAMPLES, COLOUR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 262, 277, 320, 338, 339  # tags of TIFF
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


class BadImage(UserError):
    """One image cannot be used; `name` says which and `reason` why. In a set it is skipped and listed.

    `passing`: the machine failed to read it (no permission, a network drive, no memory), which may be different the next time.
    """

    def __init__(self, name: str, reason: str, passing: bool = False) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason, self.passing = name, reason, passing

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str, bool]]:
        return type(self), (self.name, self.reason, self.passing)


def decode(content: bytes, name: str) -> Pixels:
    """Image file content as uint8 [H, W, 3], RGB in [0, 255].

    Grey and 1-bit are repeated to three channels, alpha is composited on white, 16-bit is scaled, palettes and CMYK are
    converted, and the EXIF orientation is applied. Raises `BadImage` for anything else, such as a truncated file, and for 16-bit values so
    small that they may be of fewer bits.
    """
    with _reading(name):
        image, deep = _loaded(content, name)
        pixels = _to_rgb(image, name)
        if deep and 0 < pixels.max() <= DARK:
            raise BadImage(
                name, "its 16-bit values use 14 bits or fewer: it may be bright or nearly black; save it with 8 bits"
            )
        return pixels


def decode_mask(content: bytes, name: str) -> Mask:
    """Mask file content as bool [H, W], true where it marks.

    Where pixels are transparent, alpha says where the mark is. Else it is where the largest channel reaches half of its range; of an
    image without loss that has 0 and one other value, where it is not 0. Raises `BadImage` for a file that cannot be read, and
    `UserError` for one that can be read in two ways.
    """
    with _reading(name):
        image, _ = _loaded(content, name)
        alpha = np.asarray(image.convert("RGBA").getchannel("A")) if _has_alpha(image) else None
        deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
        values = (
            np.asarray(image)
            if deep
            else np.asarray(image.convert("RGBA"))[..., :3]
            if alpha is not None
            else _to_rgb(image, name)
        )
        values = (values if deep else values.max(axis=2)) / (65535 if deep else 255)
        lossy = image.format in {"JPEG", "MPO", "WEBP"}
    if alpha is not None and not (seen := alpha >= SEEN).all():
        inside = values[seen] >= 0.5
        if inside.any() and not inside.all():
            raise UserError(
                f"{name}: both the transparency and the colours of this mask may say where it is: save it without transparency"
            )
        return np.asarray(seen)
    levels = np.unique(values)
    if not lossy and len(levels) <= 2 and levels[0] == 0:
        return np.asarray(values > 0)
    faint = 0 < levels[-1] < 0.5 and not (lossy and levels[-1] < FAINT)
    classes = not lossy and len(levels) <= 8 and bool(((levels > 0) & (levels < FAINT)).any())
    if faint or classes:
        raise UserError(
            f"{name}: this may be a map of classes or a faint mask: save it with 0 for normal and 255 for anomalous pixels"
        )
    return np.asarray(values >= 0.5)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info


def inspect(content: bytes, name: str) -> tuple[int, int, str]:
    """Width, height and Pillow mode as stored, from the header alone. Raises `BadImage` when the file does not open."""
    with _reading(name):
        image = _opened(content, name)
        return image.width, image.height, image.mode


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn every exception inside into `BadImage`: Pillow's decoders raise anything from SyntaxError to struct.error."""
    try:
        yield
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(name, f"is no {', '.join(FORMATS)} image") from None
    except MemoryError:
        raise BadImage(name, "not enough memory to read it", passing=True) from None
    except Exception as error:
        raise BadImage(name, " ".join(str(error).split()) or type(error).__name__) from None


def _opened(content: bytes, name: str) -> Image.Image:
    if not content:
        raise BadImage(name, "the file is empty")
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(name, f"{image.width}x{image.height} px is a slide, not a patch")
    # A camera's MPO is a JPEG followed by previews; in any other format a second page is a second image.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise BadImage(name, f"holds {getattr(image, 'n_frames', 1)} pages; a patch is a single image")
    return image


def _loaded(content: bytes, name: str) -> tuple[Image.Image, bool]:
    """The image as it is to be seen, and whether it is stored with more than 8 bits, of which Pillow keeps the highest 8 of RGB."""
    image = _opened(content, name)
    tags = dict(image.tag_v2) if isinstance(image, TiffImageFile) else {}
    deep = any(bits > 8 for bits in tags.get(BITS, ())) or any(
        ";16" in str(part[3]) for part in getattr(image, "tile", ())
    )
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return (_by_tags(image, tags, name) if tags else image), deep


def _by_tags(image: Image.Image, tags: dict[int, Any], name: str) -> Image.Image:
    """A TIFF as its tags say (TIFF 6.0), where Pillow reads them otherwise."""
    if image.mode == "L" and 2 in tags.get(SAMPLE_FORMAT, ()):
        raise BadImage(name, "signed samples are not supported; save it as 8- or 16-bit grey or RGB")
    alpha = any(kind in (1, 2) for kind in tags.get(EXTRA_SAMPLES, ()))
    if tags.get(SAMPLES) == 2 and not alpha:
        raise BadImage(name, "two channels that are no colours are not supported; save it as 8- or 16-bit grey or RGB")
    if image.mode == "RGBA" and not alpha:
        return Image.merge("RGB", image.split()[:3])
    if image.mode == "P" and max(tags[COLOUR_MAP]) < 256:
        image.putpalette(np.array(tags[COLOUR_MAP], np.uint8).reshape(3, -1).T.tobytes())
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64) / (2 ** tags[BITS][0] - 1)
        return Image.fromarray(
            np.rint(65535 * (1 - values if tags.get(PHOTOMETRIC) == 0 else values)).astype(np.uint16)
        )
    return image


def _to_rgb(image: Image.Image, name: str) -> Pixels:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # "I": Pillow before 11.3
        values = np.asarray(image).astype(np.uint32)
        return np.repeat(((values + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if _has_alpha(image):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    if image.mode in {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}:
        return np.array(image.convert("RGB"))
    raise BadImage(name, f"pixel type {image.mode!r} is not supported; save it as 8- or 16-bit grey or RGB")


def preprocess(image: Pixels, data: DataConfig, resolution: int, name: str = "image") -> Pixels:
    """From an image as read to the network's input: crop, resize with antialiasing, drop colour if configured.

    image: uint8 [H, W, 3]; returns uint8 [resolution, resolution, 3]. Without `data.crop` an image that is not square
    loses its longer sides evenly. Raises `BadImage` when the image is smaller than the crop.
    """
    square = _cut(image, data, resolution, name)
    if square.shape[0] != resolution:
        size = (resolution, resolution)
        square = np.array(Image.fromarray(square).resize(size, RESAMPLING[data.resize], reducing_gap=None))
    if data.grayscale:
        square = np.repeat(np.array(Image.fromarray(square).convert("L"))[..., None], 3, axis=2)
    return np.ascontiguousarray(square)


def preprocess_mask(mask: Mask, data: DataConfig, resolution: int, name: str = "mask") -> Mask:
    """The geometry of `preprocess` for a mask, bool [H, W] to [resolution, resolution]: true where at least half is marked."""
    square = _cut(mask, data, resolution, name)
    if square.shape[0] == resolution:
        return square
    area = Image.fromarray(square.astype(np.uint8) * 255).resize((resolution, resolution), Image.Resampling.BOX)
    return np.asarray(area) >= 128


def tissue_share(image: Pixels, data: DataConfig, resolution: int, name: str = "image") -> float:
    """Share of the pixels inside the crop that are not white (R, G and B all above `WHITE`), in [0, 1]."""
    return float((_cut(image, data, resolution, name).min(axis=2) <= WHITE).mean())


def _cut(image: NDArray[Any], data: DataConfig, resolution: int, name: str) -> NDArray[Any]:
    height, width = image.shape[:2]
    side = min(height, width)
    if data.crop == "center":
        wanted = data.crop_size or resolution
        if side < wanted:
            raise BadImage(name, f"{width}x{height} px is smaller than the centre crop of {wanted} px")
        side = wanted
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]
