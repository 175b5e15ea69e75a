"""Pictures made of images (uint8 `[N, H, W, 3]`), as PNG and GIF files. Files are written atomically; the path is returned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gan_uad.files import atomic
from gan_uad.plotting.plots import DPI, figure_file, place

if TYPE_CHECKING:
    from PIL import ImageFont

Images = NDArray[np.uint8]
Column = tuple[NDArray[Any], dict[str, Any]]
GAP = 6
CELL_INCHES, GAP_INCHES, HEAD_INCHES, BAR_INCHES = 1.6, 0.09, 0.34, 1.05


def _check_images(images: ArrayLike, context: str) -> Images:
    values = np.asarray(images)
    if values.dtype != np.uint8 or values.ndim != 4 or values.shape[-1] != 3 or not values.size:
        raise ValueError(f"{context}: expected non-empty uint8 [N, H, W, 3], got {values.dtype} {list(values.shape)}")
    return values


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans: names of patients and slides have letters that Pillow's own font lacks."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height in px."""
    from PIL import Image, ImageDraw

    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return math.ceil(box[2]), math.ceil(box[3])


def _grid(images: Images, columns: int, scale: int) -> Images:
    """The images side by side, without gaps; cells without an image are white."""
    if columns < 1 or scale < 1:
        raise ValueError(f"image grid: columns and scale must be at least 1, got {columns} and {scale}")
    n, height, width = images.shape[:3]
    rows = math.ceil(n / columns)
    cells = np.full((rows * columns, height, width, 3), 255, np.uint8)
    cells[:n] = images
    grid = cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return grid.repeat(scale, axis=0).repeat(scale, axis=1)


def image_grid(images: ArrayLike, path: Path, columns: int | None = None, scale: int = 1) -> Path:
    """`images` uint8 `[N, H, W, 3]` row by row, every pixel kept exactly (each becomes `scale` x `scale`).

    `columns` None: as square as N allows. Cells left over are white. ValueError for other images.
    """
    from PIL import Image

    values = _check_images(images, "image grid")
    grid = _grid(values, columns or math.ceil(math.sqrt(len(values))), scale)
    with atomic(path) as temporary:
        Image.fromarray(grid).save(temporary, format="PNG")
    return path


def animation(frames: ArrayLike, path: Path, duration: int) -> Path:
    """`frames` uint8 `[N, H, W, 3]` as an animated GIF in an endless loop, `duration` ms per frame (in steps of 10 ms).

    Each frame has its own 256 colours. Equal consecutive frames become one longer frame.
    """
    from PIL import Image

    images = [
        # Dithering would make still areas flicker.
        Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        for frame in _check_images(frames, "animation")
    ]
    with atomic(path) as temporary:
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0, disposal=1
        )
    return path


def class_samples(images_by_class: Mapping[str, ArrayLike], path: Path, columns: int = 8, scale: int = 1) -> Path:
    """Samples of each class, name -> uint8 `[N, H, W, 3]`, under the name of the class, `columns` per row."""
    from PIL import Image, ImageDraw

    if not images_by_class:
        raise ValueError("class samples: no class given")
    font = load_font(16)
    blocks = {name: _check_images(images, name) for name, images in images_by_class.items()}
    grids = {name: _grid(images, min(columns, len(images)), scale) for name, images in blocks.items()}
    strip = max(text_size(name, font)[1] for name in grids) + 2 * GAP
    width = max(max(grid.shape[1], text_size(name, font)[0]) for name, grid in grids.items()) + 2 * GAP
    canvas = Image.new("RGB", (width, sum(len(grid) + strip for grid in grids.values()) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for name, grid in grids.items():
        draw.text((GAP, top + GAP), name, fill="black", font=font)
        canvas.paste(Image.fromarray(grid), (GAP, top + strip))
        top += strip + len(grid)
    with atomic(path) as temporary:
        canvas.save(temporary, format="PNG")
    return path


def triplets(
    inputs: ArrayLike,
    reconstructions: ArrayLike | None,
    maps: ArrayLike,
    path: Path,
    captions: Sequence[str] | None = None,
    vmax: float | None = None,
    masks: ArrayLike | None = None,
    label: str = "difference",
) -> Path:
    """Rows of input | closest normal (unless None) | map | annotation (where `masks [N, H, W]` are given).

    `inputs`, `reconstructions` uint8 `[N, H, W, 3]`; `maps` float `[N, h, w]` >= 0. All maps share one colour scale, called `label`,
    from 0 to `vmax` (None: the largest value among these maps, so comparable inside this picture only): with one scale per image,
    every normal image would look anomalous. ValueError for arrays that do not fit.
    """
    columns, beyond = _triplet_columns(inputs, reconstructions, maps, masks, vmax)
    n, input_height, input_width = columns["input"][0].shape[:3]
    if captions is not None and len(captions) != n:
        raise ValueError(f"triplets: {len(captions)} captions for {n} inputs")
    # Explicit layout: matplotlib's own layouts cut captions off beside pictures of a fixed aspect.
    left = GAP_INCHES + max((_inches(text) for text in captions or ()), default=0.0)
    cell_height = CELL_INCHES * input_height / input_width
    width = left + len(columns) * (CELL_INCHES + GAP_INCHES) + BAR_INCHES
    height = HEAD_INCHES + n * (cell_height + GAP_INCHES)
    with figure_file(path, width, height) as figure:
        figure.set_layout_engine("none")
        for column, (title, (pictures, look)) in enumerate(columns.items()):
            for row, picture in enumerate(pictures):
                x, y = left + column * (CELL_INCHES + GAP_INCHES), HEAD_INCHES + row * (cell_height + GAP_INCHES)
                axes = place(figure, x, y, CELL_INCHES, cell_height)
                drawn = axes.imshow(picture, interpolation="nearest", aspect="auto", **look)
                axes.set_axis_off()
                if row == 0:
                    axes.set_title(title)
                if column == 0 and captions is not None:
                    axes.annotate(
                        captions[row], (0, 0.5), (-5, 0), "axes fraction", "offset points", ha="right", va="center"
                    )
            if look.get("cmap") == "inferno":
                scale = drawn
        left = width - BAR_INCHES + 2 * GAP_INCHES
        bar = place(figure, left, HEAD_INCHES, 0.16, height - HEAD_INCHES - GAP_INCHES)
        figure.colorbar(scale, bar, label=label, extend="max" if beyond else "neither")
    return path


def _triplet_columns(
    inputs: ArrayLike, reconstructions: ArrayLike | None, maps: ArrayLike, masks: ArrayLike | None, vmax: float | None
) -> tuple[dict[str, Column], bool]:
    """Title -> (checked pictures, how to draw them), and whether some map exceeds the colour scale."""
    heat = np.asarray(maps)
    if heat.ndim != 3 or not np.isfinite(heat).all() or heat.min() < 0:
        raise ValueError(f"triplets: maps must be finite, not negative and [N, h, w], got shape {list(heat.shape)}")
    vmax = float(heat.max()) if vmax is None else vmax
    if not 0 <= vmax < math.inf:
        raise ValueError(f"triplets: vmax must be finite and not negative, got {vmax}")
    columns: dict[str, Column] = {"input": (_check_images(inputs, "inputs"), {})}
    if reconstructions is not None:
        columns["closest normal"] = (_check_images(reconstructions, "reconstructions"), {})
    title = "map" if reconstructions is None else "difference"
    columns[title] = (heat, {"cmap": "inferno", "vmin": 0, "vmax": vmax or 1.0})
    if masks is not None:
        columns["annotation"] = (np.asarray(masks, dtype=bool), {"cmap": "gray", "vmin": 0, "vmax": 1})
    lengths = {title: len(pictures) for title, (pictures, _) in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"triplets: the columns differ in length: {lengths}")
    return columns, bool(heat.max() > vmax)


def _inches(text: str) -> float:
    """The width of a caption in a plot, in inches, at 11 points."""
    return text_size(text, load_font(round(11 * DPI / 72)))[0] / DPI + GAP_INCHES
