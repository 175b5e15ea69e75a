"""Plot and animation of one search for the closest normal image. Files are written atomically; the path is returned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.plotting.pictures import Images, animation
from gan_uad.plotting.plots import COLOURS, figure_file

FRAME_MS, LAST_FRAMES, MIN_SIDE = 80, 15, 256  # ms per frame; repeats of the last one; px


def loss_curve(losses: ArrayLike, ylabel: str, found: float, path: Path) -> Path:
    """`losses` `[T]` at steps 1 to T; the title states the last one and that of the image `found`. ValueError without losses."""
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"loss curve: expected [T] with T >= 1, got {list(values.shape)}")
    with figure_file(path, 6.0, 3.6) as figure:
        title = f"last step {values[-1]:.4g}, image found {found:.4g}"
        axes = figure.add_subplot(xlabel="Step", ylabel=ylabel, title=title)
        axes.plot(np.arange(1, len(values) + 1), values, color=COLOURS[0], marker="o" if len(values) == 1 else "")
        axes.set_ylim(0, 1.05 * float(values.max()) or 1.0)
        axes.grid(alpha=0.3)
    return path


def search_animation(target: Images, frames: Images, path: Path) -> Path:
    """The target image `[H, W, 3]` beside each frame `[N, H, W, 3]` of the search, as a GIF. Small images are enlarged."""
    beside = np.concatenate([np.broadcast_to(target, frames.shape), frames], 2)
    scale = max(1, MIN_SIDE // target.shape[0])
    beside = beside.repeat(scale, 1).repeat(scale, 2)
    return animation(np.concatenate([beside, beside[-1:].repeat(LAST_FRAMES, 0)]), path, FRAME_MS)
