"""The measurements of images as rows: kept while a scoring runs, read again after an interruption, written as CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gan_uad import console
from gan_uad.data.patches import PatchSet, batches
from gan_uad.errors import UserError
from gan_uad.files import csv_text, write_text
from gan_uad.metrics.detection import Threshold
from gan_uad.scoring.base import Scores

CHUNK = 64  # images between two writes of the partial results, where they are measured quickly
N_NAMED = 10  # broken images named on the terminal
Row = dict[str, Any]  # score and components of an image, by name
Images = TypeVar("Images")


def resumed(
    patches: PatchSet,
    partial: Path,
    header: dict[str, Any],
    what: str,
    chunk: int | None,
    rows_of: Callable[[Tensor, int], list[Row]],
) -> list[Row]:
    """`resumed_values` of all patches; `rows_of(images, number of the first)` gives the rows of a chunk."""
    chunk = chunk or CHUNK

    def chunks(start: int) -> Iterator[Tensor]:
        return (images for images, _ in batches(patches.take(np.arange(start, len(patches))), chunk))

    return resumed_values(chunks, len(patches), partial, header, what, chunk, rows_of)


def resumed_values(
    chunks: Callable[[int], Iterable[Images]],
    total: int,
    partial: Path,
    header: dict[str, Any],
    what: str,
    chunk: int,
    values_of: Callable[[Images, int], list[Any]],
    unit: str = "images",
) -> list[Any]:
    """One JSON value for each of `total` images, computed chunk by chunk, and each chunk kept in the file `partial` as soon as it is done.

    `chunks(start)` iterates over the images from number `start` on, `chunk` at a time; `values_of(images, start)` gives their values.
    A later call with the same `header` resumes after the last complete chunk, so that a search meets the same micro-batches as in an
    uninterrupted call. `what` names the work in the progress bar.
    """
    values = _kept(partial, header)
    if len(values) < total:
        values = values[: len(values) // chunk * chunk]
    write_text(partial, "".join(json.dumps(value) + "\n" for value in [header, *values]))
    with console.progress(what, total, unit, done=len(values)) as bar, open(partial, "a", encoding="utf-8") as file:
        for images in chunks(len(values)) if len(values) < total else ():
            new = values_of(images, len(values))
            file.write("".join(json.dumps(value) + "\n" for value in new))
            file.flush()
            values += new
            bar.update(len(values))
    return values


def _kept(partial: Path, header: dict[str, Any]) -> list[Any]:
    """The values that an earlier call with the same header wrote, up to the first incomplete line."""
    values = []
    for line in partial.read_text(encoding="utf-8").splitlines() if partial.is_file() else []:
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError:  # the line that was being written when the process was killed
            break
    return values[1:] if values and values[0] == header else []


def read_back(rows: list[Row]) -> Scores:
    """What was measured, from its rows; `maps` are samples of pixels."""
    names = [name for name in rows[0] if name not in {"score", "pixels"}]
    return Scores(
        torch.tensor([row["score"] for row in rows]),
        {name: torch.tensor([row[name] for row in rows]) for name in names},
        maps={name: torch.tensor([row["pixels"][name] for row in rows]) for name in rows[0]["pixels"]},
    )


def as_rows(scores: Scores) -> list[Row]:
    """`{score, components...}` of each image. Raises `UserError` where one is not finite."""
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
    """`image, group, label[, class], score, <components>, model, threshold, decision` (score > threshold; empty where there is none).

    `class` is there where any class has a name.
    """
    names = ["score", *(name for name in rows[0] if name != "score")]
    manifest, lines = patches.manifest, []
    classes: list[list[str]] = [[name] for name in manifest.klass] if any(manifest.klass) else [[]] * len(manifest)
    columns = zip(manifest.image, manifest.group, manifest.label, classes, rows, strict=True)
    for image, group, label, named, row in columns:
        decision = "" if threshold is None or not threshold.exists else int(row["score"] > threshold.value)
        value = "" if threshold is None else repr(threshold.value)
        numbers = [f"{row[name]:.9g}" for name in names]
        lines.append([image, group, "" if label < 0 else int(label), *named, *numbers, model, value, decision])
    heading = ["image", "group", "label", *(["class"] if any(manifest.klass) else [])]
    write_text(path, csv_text([*heading, *names, "model", "threshold", "decision"], lines))


def name_skipped(skipped: list[tuple[str, str]], file: str) -> None:
    """Print which images were skipped and why, the first of them; `file` is the one that has all."""
    for name, reason in skipped[:N_NAMED]:
        console.say(f"skipped: {name}: {reason}")
    if len(skipped) > N_NAMED:
        console.say(f"skipped: {len(skipped) - N_NAMED} more, all in {file}")
