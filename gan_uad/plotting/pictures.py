"""Pictures made of images (uint8 `[N, H, W, 3]`), as PNG files; written atomically, the path is returned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gan_uad.files import atomic
from gan_uad.plotting.plots import DPI, figure_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image, ImageFont

Images = NDArray[np.uint8]
Column = tuple[NDArray[Any], dict[str, Any]]
FONT_SIZE = 13
GAP = 6
CELL_INCHES, GAP_INCHES, HEAD_INCHES, BAR_INCHES = 1.6, 0.09, 0.34, 1.05


def _check_images(images: ArrayLike, what: str) -> Images:
    values = np.asarray(images)
    if values.dtype != np.uint8 or values.ndim != 4 or values.shape[-1] != 3 or not values.size:
        raise ValueError(f"{what}: expected non-empty uint8 [N, H, W, 3], got {values.dtype} {list(values.shape)}")
    return values


def load_font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    # Pillow's own font has no letters beyond Latin-1; names of patients and slides do.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    from PIL import Image, ImageDraw

    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return math.ceil(box[2]), math.ceil(box[3])


def _grid(images: Images, columns: int, scale: int, captions: Sequence[str] | None) -> Image.Image:
    """Without captions the images touch; with them, cells are as wide as the widest caption needs."""
    from PIL import Image, ImageDraw

    if columns < 1 or scale < 1:
        raise ValueError(f"image grid: columns and scale must be at least 1, got {columns} and {scale}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"image grid: {len(captions)} captions for {len(images)} images")
    enlarged = images.repeat(scale, axis=1).repeat(scale, axis=2) if scale > 1 else images
    height, width = enlarged.shape[1:3]
    cell_width, cell_height = width, height
    if captions is not None:
        font = load_font()
        sizes = [text_size(text, font) for text in captions]
        cell_width = max(width, *(w for w, _ in sizes)) + GAP
        cell_height = height + max(h for _, h in sizes) + 2 * GAP
    rows = math.ceil(len(images) / columns)
    canvas = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(canvas)
    for index, image in enumerate(enlarged):
        left, top = index % columns * cell_width, index // columns * cell_height
        canvas.paste(Image.fromarray(image), (left + (cell_width - width) // 2, top))
        if captions is not None:
            middle = (left + cell_width / 2, top + height + GAP / 2)
            draw.multiline_text(middle, captions[index], fill="black", font=font, anchor="ma", align="center")
    return canvas


def image_grid(
    images: ArrayLike, path: Path, columns: int | None = None, scale: int = 1, captions: Sequence[str] | None = None
) -> Path:
    """`images` uint8 `[N, H, W, 3]` row by row, every pixel kept exactly (each becomes `scale` x `scale`).

    `columns` None: as square as N allows. Cells left over are white. ValueError for other images or numbers of captions.
    """
    values = _check_images(images, "image grid")
    canvas = _grid(values, columns or min(len(values), math.ceil(math.sqrt(len(values)))), scale, captions)
    with atomic(path) as temporary:
        canvas.save(temporary, format="PNG")
    return path


def animation(frames: ArrayLike, path: Path, duration: int) -> Path:
    """`frames` uint8 `[N, H, W, 3]` as an animated GIF that plays for ever, `duration` ms a frame (GIF keeps 10 ms steps).

    Each frame has 256 colours of its own. Equal frames that follow each other become one that stands longer.
    """
    from PIL import Image

    images = [
        # Dithering would make what stands still flicker.
        Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        for frame in _check_images(frames, "animation")
    ]
    with atomic(path) as temporary:
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0, disposal=1
        )
    return path


def class_samples(images_by_class: Mapping[str, ArrayLike], path: Path, columns: int = 8, scale: int = 1) -> Path:
    """Samples of each class, name -> uint8 `[N, H, W, 3]`, under the name of the class, `columns` to a row."""
    from PIL import Image, ImageDraw

    if not images_by_class:
        raise ValueError("class samples: no class given")
    font = load_font(16)
    blocks = {name: _check_images(images, name) for name, images in images_by_class.items()}
    grids = {name: _grid(images, min(columns, len(images)), scale, None) for name, images in blocks.items()}
    strip = max(text_size(name, font)[1] for name in grids) + 2 * GAP
    width = max(max(grid.width, text_size(name, font)[0]) for name, grid in grids.items()) + 2 * GAP
    canvas = Image.new("RGB", (width, sum(grid.height + strip for grid in grids.values()) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for name, grid in grids.items():
        draw.text((GAP, top + GAP), name, fill="black", font=font)
        canvas.paste(grid, (GAP, top + strip))
        top += strip + grid.height
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
    what: str = "difference",
) -> Path:
    """Rows of input | closest normal | map (of `what`), and annotation where `masks [N, H, W]` are given; None: no closest normals.

    `inputs`, `reconstructions` uint8 `[N, H, W, 3]`; `maps` float `[N, h, w]` >= 0. All maps share one colour scale from
    0 to `vmax` (None: the largest value among these maps, so comparable inside this picture only): a scale of its own
    for each image would make every normal image glow. ValueError for arrays that do not fit.
    """
    columns, beyond = _triplet_columns(inputs, reconstructions, maps, masks, vmax)
    shown = columns["input"][0]
    if captions is not None and len(captions) != len(shown):
        raise ValueError(f"triplets: {len(captions)} captions for {len(shown)} inputs")
    # Laid out by hand: matplotlib's own layouts cut captions off beside pictures of a fixed aspect.
    left = GAP_INCHES + max((_inches(text) for text in captions or ()), default=0.0)
    cell_height = CELL_INCHES * shown.shape[1] / shown.shape[2]
    width = left + len(columns) * (CELL_INCHES + GAP_INCHES) + BAR_INCHES
    height = HEAD_INCHES + len(shown) * (cell_height + GAP_INCHES)
    with figure_file(path, width, height) as figure:
        figure.set_layout_engine("none")

        def place(x: float, y: float, w: float, h: float) -> Axes:
            return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

        for column, (title, (pictures, look)) in enumerate(columns.items()):
            for row, picture in enumerate(pictures):
                x, y = left + column * (CELL_INCHES + GAP_INCHES), HEAD_INCHES + row * (cell_height + GAP_INCHES)
                axes = place(x, y, CELL_INCHES, cell_height)
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
        bar = place(width - BAR_INCHES + 2 * GAP_INCHES, HEAD_INCHES, 0.16, height - HEAD_INCHES - GAP_INCHES)
        figure.colorbar(scale, bar, label=what, extend="max" if beyond else "neither")
    return path


def _triplet_columns(
    inputs: ArrayLike, reconstructions: ArrayLike | None, maps: ArrayLike, masks: ArrayLike | None, vmax: float | None
) -> tuple[dict[str, Column], bool]:
    """Title -> (pictures, how to draw them), checked, and whether some map goes beyond the colour scale."""
    heat = np.asarray(maps)
    if heat.ndim != 3 or not np.isfinite(heat).all() or heat.min() < 0:
        raise ValueError(f"triplets: maps must be finite, not negative and [N, h, w], got shape {list(heat.shape)}")
    top = float(heat.max()) if vmax is None else vmax
    if not 0 <= top < math.inf:
        raise ValueError(f"triplets: vmax must be finite and not negative, got {top}")
    columns: dict[str, Column] = {"input": (_check_images(inputs, "inputs"), {})}
    if reconstructions is not None:
        columns["closest normal"] = (_check_images(reconstructions, "reconstructions"), {})
    title = "map" if reconstructions is None else "difference"
    columns[title] = (heat, {"cmap": "inferno", "vmin": 0, "vmax": top or 1.0})
    if masks is not None:
        columns["annotation"] = (np.asarray(masks, dtype=bool), {"cmap": "gray", "vmin": 0, "vmax": 1})
    lengths = {title: len(pictures) for title, (pictures, _) in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"triplets: the columns differ in length: {lengths}")
    return columns, bool(heat.max() > top)


def _inches(text: str) -> float:
    """The width of a caption in a plot, which has 11 points."""
    return text_size(text, load_font(round(11 * DPI / 72)))[0] / DPI + GAP_INCHES
