"""Score one slide: rows of its tiles, kept so that an interrupted run resumes, and the files made of them.

out/SLIDE/  tiles.csv  tiles.geojson  heatmap.ome.tif  heatmap.tif  overlay.png  tissue.png  slide.json (written last)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gan_uad.data.images import Pixels
from gan_uad.data.patches import to_tensor
from gan_uad.data.sources import MASK, RECORD
from gan_uad.detection.rows import CHUNK, Row, as_rows, resumed_values
from gan_uad.files import alone, csv_text, make_folder, remove_leftovers, write_json, write_text
from gan_uad.metrics.detection import Threshold, strict_json
from gan_uad.metrics.tails import Tail
from gan_uad.plotting.overlay import overlay, thumbnail_mpp
from gan_uad.scoring.base import Scorer
from gan_uad.slides.batch import SlideTask, read_record
from gan_uad.slides.geojson import write_geojson
from gan_uad.slides.heatmap import MAX_VALUE, heatmap, write_ome, write_pyramid
from gan_uad.slides.reader import Slide
from gan_uad.slides.stain import StainNormaliser, fitted_normaliser
from gan_uad.slides.tiles import GROUPS_AHEAD, Tile, ahead, corners, grid_tiles, open_for_tiles
from gan_uad.slides.tissue import Tissue, find_tissue

KEYS = ("key", "identity", "tiles")  # of a scored slide's record
VALUES = "−log10 p of normal tiles"


@dataclass(frozen=True)
class Cut:
    """How a slide is cut into tiles: `size` px at `mpp` µm/px, every `stride` sides; `tissue`: smallest share of it, by `rule`;
    `stain`: normalisation, "" for none; `slide_mpp`: replaces the file's µm/px."""

    size: int
    mpp: float
    stride: float
    rule: str
    tissue: float
    stain: str
    slide_mpp: float | None


@dataclass(frozen=True)
class CalibratedScorer:
    """A scorer, calibrated on held-out normals.

    `preprocess`: from a tile as read to the model's input image. `tail`: of the normals' scores; `limit`: their 99 % quantile, or highest
    score (`limit_is`, in words). `threshold`: of the tiles' decisions. `key`:
    hash of everything that scores depend on. `label`: name of the model.
    """

    scorer: Scorer
    preprocess: Callable[[Pixels], Pixels]
    tail: Tail
    limit: float
    limit_is: str
    threshold: Threshold
    top_k: int
    key: str
    label: str

    def neg_log10_p(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """−log10 of the probability that a normal tile scores as high, `[N]` ≥ 0."""
        return -self.tail.log_p(scores) / math.log(10)

    def slide_scores(self, scores: NDArray[np.float64]) -> dict[str, float | None]:
        """Scores of a slide from those of its tiles `[N]`: the highest −log10 p, the mean of the `top_k` highest (of all where there are
        fewer), and the share of tiles above `limit`. None for a slide without tiles."""
        if not len(scores):
            return {"max": None, "top_k": None, "share": None}
        neg_log10_p = np.sort(self.neg_log10_p(scores))[::-1]
        share = float((scores > self.limit).mean())
        return {"max": float(neg_log10_p[0]), "top_k": float(neg_log10_p[: self.top_k].mean()), "share": share}


def score_slide(task: SlideTask, calibrated: CalibratedScorer, cut: Cut, folder: Path, workers: int) -> dict[str, Any]:
    """Score one slide into `folder`; returns the content of `slide.json`. A slide that was finished with the same key is left as it is.

    Where two processes get the same slide, the second waits and then finds it finished. Raises `UserError` or `JobFailed`.
    """
    with ExitStack() as stack:
        slide = stack.enter_context(open_for_tiles(task.path, cut.slide_mpp, cut.mpp))
        make_folder(folder)
        lock = folder / ".lock"
        stack.enter_context(alone(lock))
        stack.callback(lock.unlink, missing_ok=True)
        record = read_record(folder, KEYS)
        known = {"key": calibrated.key, "identity": task.identity, "origin": slide.origin and list(slide.origin)}
        same_scale = record is not None and record["cut"]["slide_mpp"] == cut.slide_mpp
        if record is not None and same_scale and {"origin": [0, 0], **record}.items() >= known.items():
            return record
        remove_leftovers(folder)
        tissue = find_tissue(slide, cut.rule)
        tiles = grid_tiles(slide, tissue, cut.size, cut.mpp, cut.tissue, cut.stride)
        stain = fitted_normaliser(cut.stain, tissue, cut.mpp)
        if slide.origin != (0, 0):
            slide.note(_placed(slide.origin))
        partial = folder / ".tiles.jsonl"
        rows = _tile_rows(slide, tiles, task, stain, calibrated, cut, partial, workers)
        scores = np.array([row["score"] for row in rows], np.float64)
        record = {
            "key": calibrated.key, "identity": task.identity, "slide": task.name, "file": str(task.path.absolute()), "alone": task.alone,
            "width": slide.width, "height": slide.height, "mpp": slide.mpp, "origin": slide.origin, "tiles": len(tiles),
            "side": tiles[0].side if tiles else cut.size * cut.mpp / slide.mpp, **calibrated.slide_scores(scores),
            "limit": calibrated.limit, "limit_is": calibrated.limit_is,
            "threshold": strict_json(asdict(calibrated.threshold)), "top_k_is": calibrated.top_k,
            "model": calibrated.label, "cut": asdict(cut),
            "stain": None if stain is None else stain.to_dict(), "notes": slide.notes,
        }  # fmt: skip
        _write(slide, tissue, tiles, rows, calibrated.neg_log10_p(scores), record, folder)
        write_json(folder / RECORD, record)
        partial.unlink(missing_ok=True)
        return record


def _placed(origin: tuple[int, int] | None) -> str:
    if origin is None:
        return (
            "QuPath may open this slide cropped, or its regions one by one; tiles.geojson is in px of the whole slide"
        )
    return f"bounds {origin[0]}, {origin[1]} px are subtracted in tiles.geojson, as QuPath does"


def _tile_rows(
    slide: Slide, tiles: list[Tile], task: SlideTask, stain: StainNormaliser | None, calibrated: CalibratedScorer, cut: Cut,
    partial: Path, workers: int,
) -> list[Row]:  # fmt: skip
    """`{score, components...}` of each tile, in order."""
    scorer = calibrated.scorer
    chunk = scorer.chunk or CHUNK

    def prepare(image: Pixels) -> Pixels:
        return calibrated.preprocess(image if stain is None else stain.transform(image))

    def chunks(start: int) -> Iterator[Tensor]:
        return read_chunks(slide, tiles[start:], cut.size, cut.mpp, prepare, chunk, workers)

    def rows_of(images: Tensor, start: int) -> list[Row]:
        measured = scorer.measure(images)
        as_rows(measured)  # reports NaN of a broken model before calibration hides it
        return as_rows(scorer.calibrated(measured))

    header = {"key": calibrated.key, "identity": task.identity, "mpp": slide.mpp}
    return resumed_values(chunks, len(tiles), partial, header, task.name, chunk, rows_of, "tiles")


def read_chunks(
    slide: Slide, tiles: list[Tile], size: int, mpp: float, prepare: Callable[[Pixels], Pixels], chunk: int, workers: int
) -> Iterator[Tensor]:  # fmt: skip
    """The tiles, each passed through `prepare`, in order, `chunk` at a time: float32 `[n, 3, R, R]` in [-1, 1].

    While one chunk is used, `workers` threads read the next one.
    """

    def read(tile: Tile) -> Pixels:
        return prepare(slide.read(tile.x, tile.y, size, size, mpp))

    images = ahead(read, tiles, workers, math.ceil(chunk / (GROUPS_AHEAD * workers)))
    while part := list(islice(images, chunk)):
        yield to_tensor(np.stack(part))


def _write(
    slide: Slide, tissue: Tissue, tiles: list[Tile], rows: list[Row], neg_log10_p: NDArray[np.float64], record: dict[str, Any],
    folder: Path,
) -> None:  # fmt: skip
    """All files of a slide but `slide.json`. A tile's decision is score > threshold, as in `scores.csv`; empty without a threshold."""
    name, side = record["slide"], record["side"]
    measured = [{**row, "p": 10.0**-v, "neg_log10_p": v} for row, v in zip(rows, neg_log10_p.tolist(), strict=True)]
    threshold = float(record["threshold"]["value"])
    decisions = [row["score"] > threshold for row in rows]
    names = list(measured[0]) if measured else ["score", "p", "neg_log10_p"]
    lines = (
        [
            *(name, tile.x, tile.y, f"{tile.side:.9g}", f"{tile.tissue:.6g}"),
            *(f"{number:.9g}" for number in row.values()),
            int(decision) if math.isfinite(threshold) else "",
        ]
        for tile, row, decision in zip(tiles, measured, decisions, strict=True)
    )
    tissue.save(folder / MASK)
    write_text(folder / "tiles.csv", csv_text(["slide", "x", "y", "side", "tissue", *names, "decision"], lines))
    objects = ((tile.x, tile.y, tile.side, *rest) for tile, *rest in zip(tiles, measured, decisions, strict=True))
    write_geojson(folder / "tiles.geojson", name, objects, slide.origin or (0, 0))
    step = side * record["cut"]["stride"]
    heat = heatmap(*corners(tiles), neg_log10_p, side, step, slide.width, slide.height, slide.mpp)
    write_ome(folder / "heatmap.ome.tif", heat, name)
    write_pyramid(folder / "heatmap.tif", heat)
    mpp = thumbnail_mpp(slide.width, slide.height, slide.mpp)
    title = f"{name}: {len(tiles):,} tiles of {side * slide.mpp:.0f} µm"
    overlay(slide.thumbnail(mpp), heat.values, heat.cell / mpp, folder / "overlay.png", title, MAX_VALUE, VALUES)
