"""The contact sheet of a tiled slide: its tissue, the chosen tiles, and some of the tiles enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gan_uad.files import atomic
from gan_uad.plotting.pictures import GAP, load_font, text_size

Pixels = NDArray[np.uint8]

# As in the reference paper's Figure 2.
GREEN, YELLOW, RED = (0, 170, 60), (240, 200, 0), (220, 40, 40)
FULL, EMPTY = 0.9, 0.1  # shares of tissue
CHOSEN, TUMOUR = (20, 60, 220), (0, 0, 0)
TINT = 0.3  # weight of the colour over the slide
FONT_SIZE = 15
MAX_SAMPLE = 128  # px of a sample


def contact_sheet(
    path: Path, thumbnail: Pixels, shares: NDArray[np.floating], cell: tuple[float, float],
    tiles: NDArray[np.floating], outlines: Sequence[NDArray[np.floating]] = (), samples: Sequence[Pixels] = (), title: str = "",
) -> Path:  # fmt: skip
    """Write the sheet as JPEG.

    Args:
        thumbnail: the slide, uint8 [H, W, 3]; all lengths are its px.
        shares: of tissue, [rows, columns], of a grid of cells from the top left: at least 90 % green, at most 10 % red, else yellow.
        cell: width and height of a cell.
        tiles: boxes (left, top, right, bottom) of the chosen tiles, [n, 4].
        outlines: rings [k, 2] around annotated tumour.
        samples: some tiles, uint8 [s, s, 3], shown below.
        title: first line of the legend.
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(tinted(thumbnail, shares, cell))
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in np.rint(np.asarray(tiles)).astype(int).tolist():
        draw.rectangle([left, top, max(left, right - 1), max(top, bottom - 1)], outline=CHOSEN)
    for ring in outlines:
        draw.line([tuple(point) for point in np.asarray(ring).tolist()], fill=TUMOUR, width=2)
    legend = [(GREEN, "tissue ≥ 90 %"), (YELLOW, "between"), (RED, "≤ 10 %"), (CHOSEN, f"{len(tiles)} tiles chosen")]
    if len(outlines):
        legend.append((TUMOUR, "annotated tumour"))
    font = load_font(FONT_SIZE)
    line = text_size("Äg", font)[1] + GAP
    widths = [line + GAP + text_size(text, font)[0] + 2 * GAP for _, text in legend]
    width = max(picture.width, text_size(title, font)[0], sum(widths)) + 2 * GAP
    strip = _strip(samples, width - 2 * GAP)
    below = 2 * line + picture.height + 2 * GAP  # where the samples begin
    sheet = Image.new("RGB", (width, below + len(strip) + (2 * GAP if len(strip) else GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill="black", font=font)
    left, top = GAP, GAP + line
    for (colour, text), step in zip(legend, widths, strict=True):
        draw.rectangle([left, top + 1, left + line - GAP, top + line - GAP + 1], fill=colour)
        draw.text((left + line, top), text, fill="black", font=font)
        left += step
    sheet.paste(picture, (GAP, 2 * line + GAP))
    if len(strip):
        sheet.paste(Image.fromarray(strip), (GAP, below))
    with atomic(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=90)
    return path


def tinted(thumbnail: Pixels, shares: NDArray[np.floating], cell: tuple[float, float]) -> Pixels:
    """The thumbnail with each cell of the grid tinted by its share of tissue; pixels outside the grid are unchanged."""
    if not shares.size:
        return thumbnail.copy()
    colours = np.array([RED, YELLOW, GREEN], np.float32)[(shares > EMPTY).astype(int) + (shares >= FULL - 1e-9)]
    row, column = (
        ((np.arange(n) + 0.5) / side).astype(int) for n, side in zip(thumbnail.shape, cell[::-1], strict=False)
    )
    row, column = row[row < shares.shape[0]], column[column < shares.shape[1]]
    result = thumbnail.copy()
    covered = result[: len(row), : len(column)]
    covered[:] = np.rint((1 - TINT) * covered + TINT * colours[row[:, None], column])
    return result


def _strip(samples: Sequence[Pixels], width: int) -> Pixels:
    """As many samples as fit side by side, [s, width, 3]; [0, width, 3] without samples."""
    from PIL import Image

    side = min(MAX_SAMPLE, samples[0].shape[0]) if len(samples) else 0
    strip = np.full((side, max(width, side), 3), 255, np.uint8)
    fit = min(len(samples), max(1, (width + GAP) // (side + GAP)))
    for k, chosen in enumerate(np.linspace(0, len(samples) - 1, fit).round().astype(int)):
        small = Image.fromarray(samples[chosen]).resize((side, side), Image.Resampling.BOX)
        strip[:, k * (side + GAP) :][:, :side] = np.asarray(small)
    return strip
