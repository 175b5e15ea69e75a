"""A slide beside itself under its heatmap, as a PNG file with the colour scale."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.plotting.plots import figure_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = 6.0  # inches of the longer side of a panel
SHORTEST = 1.5
HEAD, FOOT, GAP, BAR = 0.4, 0.12, 0.12, 1.0
VEIL = (0.2, 0.85)  # opacity of the lowest and of the highest value: what is normal stays in sight
COLOURS = "inferno"


def overlay(
    thumbnail: ArrayLike, values: ArrayLike, cell: float, path: Path, title: str, top: float, what: str
) -> Path:
    """`thumbnail` uint8 `[H, W, 3]` of the whole slide, left bare and right under `values` `[rows, columns]` (NaN: no tile).

    `cell`: side of a value's square in px of the thumbnail (both begin at the top left). Colours run from 0 to `top`, the same on every
    slide; `what` names the unit. ValueError for arrays of other shapes.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    picture, heat = np.asarray(thumbnail), np.asarray(values, np.float64)
    if picture.ndim != 3 or heat.ndim != 2:
        raise ValueError(f"overlay: expected [H, W, 3] and [rows, columns], got {picture.shape} and {heat.shape}")
    height, width = picture.shape[:2]
    ramp = colormaps[COLOURS](np.linspace(0, 1, 256))
    ramp[:, 3] = np.linspace(*VEIL, 256)
    inches = PANEL / max(height, width)
    across, down = max(SHORTEST, width * inches), max(SHORTEST, height * inches)
    total, tall = 2 * across + 3 * GAP + BAR, down + HEAD + FOOT
    with figure_file(path, total, tall) as figure:
        figure.set_layout_engine("none")

        def place(x: float, wide: float) -> Axes:
            return figure.add_axes((x / total, FOOT / tall, wide / total, down / tall))

        for number in range(2):
            axes = place(GAP + number * (across + GAP), across)
            axes.imshow(picture, extent=(0, width, height, 0))
            if number:
                extent = (0, heat.shape[1] * cell, heat.shape[0] * cell, 0)
                seen = np.ma.masked_invalid(heat)
                look: dict[str, Any] = {
                    "cmap": ListedColormap(ramp),
                    "vmin": 0,
                    "vmax": top,
                    "interpolation": "nearest",
                }
                drawn = axes.imshow(seen, extent=extent, **look)
            axes.set(xlim=(0, width), ylim=(height, 0))
            axes.set_axis_off()
        figure.text(GAP / total, 1 - HEAD / 2 / tall, title, va="center")
        beyond = bool((heat[np.isfinite(heat)] > top).any())
        bar = place(2 * across + 3 * GAP, 0.16)
        figure.colorbar(drawn, bar, label=what, extend="max" if beyond else "neither")
    return path


def thumbnail_mpp(width: int, height: int, mpp: float, most: int = 1600) -> float:
    """The µm/px at which a slide of `width` × `height` px at `mpp` is at most `most` px long, and no finer than it is."""
    return mpp * max(1.0, math.ceil(max(width, height) / most * 1000) / 1000)
