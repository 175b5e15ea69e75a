"""What the OME-XML of an OME-TIFF says of the image that is read: its µm/px, bits and channels."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

import defusedxml.ElementTree

from gan_uad.slides.base import plausible

MICROMETRES = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6, "Å": 1e-4}
COLOURS = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}
PURE = {0xFF0000: 0, 0x00FF00: 1, 0x0000FF: 2}  # the OME attribute Color without its alpha
OF_FLUORESCENCE = ("Fluor", "EmissionWavelength", "ExcitationWavelength")
DYES = (
    "dapi", "hoechst", "fitc", "tritc", "rhodamine", "texas red", "gfp", "rfp", "yfp", "mcherry", "alexa", "cy2", "cy3", "cy5", "cy7",
)  # fmt: skip


def pixels_of(xml: str, index: int, count: int, width: int, height: int) -> Element | None:
    """The `Pixels` of image `index` of the `count` that tifffile found, which has this width and height; None where the XML does not tell.

    Where the XML names another number of images (tifffile leaves out those without data), all of the right size must state the same.
    """
    try:
        root = defusedxml.ElementTree.fromstring(xml)
    except Exception:  # the file can be read without it
        return None
    found = [pixels for image in _children(root, "Image") for pixels in _children(image, "Pixels")]
    alike = [pixels for pixels in found if (pixels.get("SizeX"), pixels.get("SizeY")) == (str(width), str(height))]
    if len(found) == count and found[index] in alike:
        return found[index]
    return alike[0] if alike and len({scale(pixels) for pixels in alike}) == 1 else None


def scale(pixels: Element) -> tuple[tuple[float, float] | None, str]:
    """µm/px along x and y, or None and what is stated instead ("" where nothing is)."""
    stated = {key: value for key, value in pixels.items() if key.startswith(("PhysicalSizeX", "PhysicalSizeY"))}
    sides = []
    for axis in "XY":
        try:
            unit = stated.get(f"PhysicalSize{axis}Unit", "µm")
            sides.append(float(stated[f"PhysicalSize{axis}"]) * MICROMETRES[unit])
        except (KeyError, ValueError):
            sides.append(float("nan"))
    found = plausible(*sides)
    return found, "" if found else ", ".join(f"{key} {value!r}" for key, value in stated.items())


def significant_bits(pixels: Element) -> int | None:
    """How many bits of each sample are used, where that is stated."""
    text = pixels.get("SignificantBits", "")
    return int(text) if text.isdecimal() else None


def channels(pixels: Element) -> list[Element]:
    return _children(pixels, "Channel")


def names(found: Sequence[Element]) -> list[str]:
    """The names of channels that have one."""
    return [name for channel in found if (name := (channel.get("Name") or "").strip())]


def fluorescent(found: Sequence[Element]) -> bool:
    """Whether any channel says that it is one of fluorescence."""
    return any(
        any(channel.get(key) is not None for key in OF_FLUORESCENCE)
        or channel.get("ContrastMethod") == "Fluorescence"
        or channel.get("IlluminationType") == "Epifluorescence"
        or any(dye in (channel.get("Name") or "").lower() for dye in DYES)
        for channel in found
    )  # fmt: skip


def red_green_blue(found: Sequence[Element]) -> list[int] | None:
    """The positions of red, green and blue among three channels, by their names or, where none has one, their colours; else None."""
    if len(found) != 3 or fluorescent(found):
        return None
    named = names(found)
    kinds = [COLOURS.get(name.lower()) for name in named] if named else [PURE.get(_colour(one)) for one in found]
    return [kinds.index(k) for k in range(3)] if set(kinds) == {0, 1, 2} and len(kinds) == 3 else None


def _colour(channel: Element) -> int:
    try:
        return (int(channel.get("Color", "")) & 0xFFFFFFFF) >> 8  # a signed integer, red in the highest byte
    except ValueError:
        return -1


def _children(element: Element, name: str) -> list[Element]:
    return [child for child in element if child.tag.rpartition("}")[2] == name]
