"""A slide, and the slide under its heatmap, side by side as a PNG file with the colour scale."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.plotting.plots import figure_file, place

PANEL = 6.0  # inches of the longer side of a panel
MIN_PANEL = 1.5
HEAD, FOOT, GAP, BAR = 0.4, 0.12, 0.12, 1.0
OPACITY = (0.2, 0.85)  # of the lowest and of the highest value
COLOURS = "inferno"


def overlay(
    thumbnail: ArrayLike, values: ArrayLike, cell: float, path: Path, title: str, vmax: float, unit: str
) -> Path:
    """`thumbnail` uint8 `[H, W, 3]` of a slide: left as it is, right under `values` `[rows, columns]` (NaN: no tile).

    `cell`: side of a value's square in px of the thumbnail (both begin at the top left). Colours run from 0 to `vmax`, the same on
    every slide; `unit` labels them. ValueError for arrays of other shapes.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    picture, heat = np.asarray(thumbnail), np.asarray(values, np.float64)
    if picture.ndim != 3 or heat.ndim != 2:
        raise ValueError(f"overlay: expected [H, W, 3] and [rows, columns], got {picture.shape} and {heat.shape}")
    height, width = picture.shape[:2]
    ramp = colormaps[COLOURS](np.linspace(0, 1, 256))
    ramp[:, 3] = np.linspace(*OPACITY, 256)
    inches = PANEL / max(height, width)
    across, down = max(MIN_PANEL, width * inches), max(MIN_PANEL, height * inches)
    total_width, total_height = 2 * across + 3 * GAP + BAR, down + HEAD + FOOT
    with figure_file(path, total_width, total_height) as figure:
        figure.set_layout_engine("none")
        for left in (GAP, across + 2 * GAP):
            axes = place(figure, left, HEAD, across, down)
            axes.imshow(picture, extent=(0, width, height, 0))
            if left > GAP:
                extent = (0, heat.shape[1] * cell, heat.shape[0] * cell, 0)
                shown = np.ma.masked_invalid(heat)
                drawn = axes.imshow(
                    shown, extent=extent, cmap=ListedColormap(ramp), vmin=0, vmax=vmax, interpolation="nearest"
                )
            axes.set(xlim=(0, width), ylim=(height, 0))
            axes.set_axis_off()
        figure.text(GAP / total_width, 1 - HEAD / 2 / total_height, title, va="center")
        beyond = bool((heat[np.isfinite(heat)] > vmax).any())
        bar = place(figure, 2 * across + 3 * GAP, HEAD, 0.16, down)
        figure.colorbar(drawn, bar, label=unit, extend="max" if beyond else "neither")
    return path


def thumbnail_mpp(width: int, height: int, mpp: float, max_side: int = 1600) -> float:
    """The µm/px, not below `mpp`, at which a slide of `width` × `height` px at `mpp` has at most `max_side` px per side."""
    return mpp * max(1.0, math.ceil(max(width, height) / max_side * 1000) / 1000)
