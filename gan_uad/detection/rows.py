"""What is measured of each image, as rows: kept while a scoring runs, read back after an interruption, written as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_uad import console
from gan_uad.data.patches import PatchSet, batches
from gan_uad.errors import UserError
from gan_uad.files import write_text
from gan_uad.metrics.detection import Threshold
from gan_uad.scoring.base import Scores

CHUNK = 64  # images between two writes of the partial results, where they are measured quickly
Row = dict[str, Any]  # score and parts of an image, by name


def resumed(
    patches: PatchSet,
    partial: Path,
    header: dict[str, Any],
    what: str,
    chunk: int | None,
    rows_of: Callable[[Tensor, int], list[Row]],
) -> list[Row]:
    """What `rows_of(images, number of the first)` gives for all patches, chunk by chunk, each chunk kept in `partial` as soon as done."""
    chunk = chunk or CHUNK

    def chunks(start: int) -> Iterator[Tensor]:
        return (images for images, _ in batches(patches.take(np.arange(start, len(patches))), chunk))

    return resumed_from(chunks, len(patches), partial, header, what, chunk, rows_of)


def resumed_from(
    chunks: Callable[[int], Iterator[Tensor]],
    total: int,
    partial: Path,
    header: dict[str, Any],
    what: str,
    chunk: int,
    rows_of: Callable[[Tensor, int], list[Row]],
    unit: str = "images",
) -> list[Row]:
    """As `resumed`, of `total` images that `chunks(number of the first)` gives, `chunk` at a time from a multiple of it on."""
    rows = _partial_rows(partial, header, chunk)
    write_text(partial, "".join(json.dumps(row) + "\n" for row in [header, *rows]))
    with console.progress(what, total, unit, done=len(rows)) as bar, open(partial, "a", encoding="utf-8") as file:
        for images in chunks(len(rows)):
            new = rows_of(images, len(rows))
            file.write("".join(json.dumps(row) + "\n" for row in new))
            file.flush()
            rows += new
            bar.update(len(rows))
    return rows


def read_back(rows: list[Row]) -> Scores:
    """What was measured, from its rows; `maps` are samples of pixels."""
    names = [name for name in rows[0] if name not in {"score", "pixels"}]
    return Scores(
        torch.tensor([row["score"] for row in rows]),
        {name: torch.tensor([row[name] for row in rows]) for name in names},
        maps={name: torch.tensor([row["pixels"][name] for row in rows]) for name in rows[0]["pixels"]},
    )


def _partial_rows(partial: Path, header: dict[str, Any], chunk: int) -> list[Row]:
    """The rows of whole chunks: a search that goes on then meets the same micro-batches as an uninterrupted one."""
    if not partial.is_file():
        return []
    rows = []
    for line in partial.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the line that was being written when the process was killed
            break
    if not rows or rows.pop(0) != header:
        return []
    return rows[: len(rows) // chunk * chunk]


def as_rows(scores: Scores) -> list[Row]:
    """`{score, parts...}` of each image. Raises `UserError` where one is not finite."""
    columns = {"score": scores.image, **scores.components}
    for name, values in columns.items():
        if not bool(values.isfinite().all()):
            raise UserError(
                f"the model gives {name} = NaN or infinity for some images: it diverged in training, or its file is damaged"
            )
    # Thresholds are set on what is written, so that a file's decisions follow from its numbers.
    written = (written_numbers(values) for values in columns.values())
    return [dict(zip(columns, values, strict=True)) for values in zip(*written, strict=True)]


def written_numbers(values: Tensor) -> list[float]:
    """Numbers of nine digits, which hold a float32."""
    return [float(f"{value:.9g}") for value in values.tolist()]


def write_csv(path: Path, patches: PatchSet, rows: list[Row], model: str, threshold: Threshold | None) -> None:
    """`image, group, label, score, <parts>, model, threshold, decision` (decision: score > threshold)."""
    components = [name for name in rows[0] if name != "score"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "group", "label", "score", *components, "model", "threshold", "decision"])
    manifest = patches.manifest
    for image, group, label, row in zip(manifest.image, manifest.group, manifest.label, rows, strict=True):
        decision = "" if threshold is None else int(row["score"] > threshold.value)
        value = "" if threshold is None else repr(threshold.value)
        numbers = [f"{row[name]:.9g}" for name in ("score", *components)]
        writer.writerow([image, group, "" if label < 0 else int(label), *numbers, model, value, decision])
    write_text(path, text.getvalue())
