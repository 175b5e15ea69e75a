"""A plot of a latent space: one point per image, in two dimensions, coloured by label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from gan_uad.plotting.plots import ANOMALOUS, GUIDE, NORMAL, figure_file

KINDS = ((-1, "unknown", GUIDE, "s"), (0, "normal", NORMAL, "o"), (1, "anomalous", ANOMALOUS, "^"))


def scatter(points: ArrayLike, labels: ArrayLike, names: tuple[str, str], path: Path) -> Path:
    """Points `[N, 2]` with labels `[N]` (0 normal, 1 anomalous, -1 unknown); `names` of the two axes, on one scale."""
    xy, kinds = np.asarray(points, dtype=np.float64), np.asarray(labels)
    size = float(np.clip(6000 / max(1, len(xy)), 5, 40))  # thousands of points must not hide each other
    with figure_file(path, 6.0, 5.6) as figure:
        axes = figure.add_subplot(xlabel=names[0], ylabel=names[1], aspect="equal", adjustable="datalim")
        for label, name, colour, marker in KINDS:
            x, y = xy[kinds == label].T
            if len(x):
                text = f"{name} (n = {len(x):,})"
                axes.scatter(x, y, label=text, s=size, color=colour, marker=marker, alpha=0.5, linewidths=0)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return path
