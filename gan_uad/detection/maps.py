"""Anomaly maps of a scored folder as files, their thresholded masks, and their metrics where annotations exist.

maps/000012.png   16-bit, value / 2048 in the unit given in scores.json   segments/000012.png  0 or 255   truth/000012.png  0 or 255
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gan_uad.files import atomic
from gan_uad.metrics import pixel

STEPS = 2048  # of a unit in 16 bits: a calibrated map reaches 32, which is one pixel of normals in 10³²


def write_maps(maps: NDArray[np.floating[Any]], start: int, folder: Path) -> None:
    """Write maps `[N, H, W]` as `maps/<start + i>.png`."""
    pixels = np.clip(np.round(maps * STEPS), 0, 65535).astype(np.uint16)
    _write(pixels, start, folder / "maps")


def write_masks(masks: NDArray[np.bool_], folder: Path) -> None:
    """Write masks `[N, H, W]` into `folder` as 8-bit PNG, 255 = anomalous."""
    _write(masks.astype(np.uint8) * 255, 0, folder)


def read_maps(folder: Path) -> NDArray[np.float32]:
    """All maps of a scored folder, `[N, H, W]` in [0, 32)."""
    return _read(folder / "maps").astype(np.float32) / np.float32(STEPS)


def pixel_threshold(maps: NDArray[np.floating[Any]], quantile: float) -> float:
    """The value that the given share of the pixels of validation normals does not exceed."""
    return float(np.quantile(maps, quantile, method="inverted_cdf"))


def write_segments(folder: Path, threshold: float) -> None:
    """Cut every map of a scored folder at `threshold`."""
    write_masks(pixel.segment(read_maps(folder), threshold), folder / "segments")


def pixel_metrics(folder: Path) -> dict[str, float]:
    """Pixel AUROC and AUPRO (to 30 % false positives) of a scored folder with `truth/`; Dice and IoU where it has segments."""
    maps, truth = read_maps(folder), _read(folder / "truth") > 0
    metrics = {"pixel_auroc": pixel.pixel_auroc(truth, maps), "aupro": pixel.aupro(truth, maps)}
    if (folder / "segments").is_dir():
        segments = _read(folder / "segments") > 0
        metrics |= {"dice": pixel.dice(truth, segments), "iou": pixel.iou(truth, segments)}
    return metrics


def _write(pictures: NDArray[Any], start: int, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures):
        with atomic(folder / f"{start + i:06d}.png") as temporary:
            Image.fromarray(picture).save(temporary, format="png")


def _read(folder: Path) -> NDArray[Any]:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))])
