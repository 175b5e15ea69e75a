"""One slide scored: its tiles' rows, kept while the scoring runs, and the files that are made of them.

out/SLIDE/  tiles.csv  tiles.geojson  heatmap.ome.tif  heatmap.tif  overlay.png  tissue.png  slide.json (written last: it is whole)
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gan_uad.data.images import Pixels
from gan_uad.data.patches import to_tensor
from gan_uad.detection.rows import CHUNK, Row, as_rows, resumed_values
from gan_uad.errors import UserError
from gan_uad.files import alone, make_folder, remove_leftovers, write_json, write_text
from gan_uad.metrics.tails import Tail
from gan_uad.plotting.overlay import overlay, thumbnail_mpp
from gan_uad.scoring.base import Scorer
from gan_uad.slides.batch import SlideTask
from gan_uad.slides.geojson import write_geojson
from gan_uad.slides.heatmap import TOP, heatmap, write_ome, write_pyramid
from gan_uad.slides.reader import Slide, open_slide
from gan_uad.slides.stain import StainNormaliser, sample_pixels, stain_normaliser
from gan_uad.slides.tile_slide import ENLARGED
from gan_uad.slides.tiles import AHEAD, Tile, ahead, grid_tiles
from gan_uad.slides.tissue import Tissue, find_tissue

WHAT = "−log10 p of normal tiles"
FIXED = ("slide", "x", "y", "side", "tissue", "score")
LAST = ("p", "neg_log10_p", "decision")


@dataclass(frozen=True)
class Cut:
    """How a slide is cut into tiles: `size` px at `mpp` µm/px, every `stride` tiles; `tissue`: least share of it, by `rule`;
    `stain`: normalisation, "" for none; `slide_mpp`: µm of a level-0 px where the file does not say."""

    size: int
    mpp: float
    stride: float
    rule: str
    tissue: float
    stain: str
    slide_mpp: float | None


@dataclass(frozen=True)
class CalibratedScorer:
    """A calibrated scorer. `tail`, `limit`: of the scores of held-out normals, and what 1 % of them exceed; `key`: of all that scores
    rest on; `prepare`: a tile as read to the network's picture; `label`: the model in words."""

    scorer: Scorer
    prepare: Callable[[Pixels], Pixels]
    tail: Tail
    limit: float
    top_k: int
    key: str
    label: str

    def neg_log10_p(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """−log10 of the probability that a normal tile scores as high, `[N]` ≥ 0."""
        return -self.tail.log_p(scores) / math.log(10)

    def aggregated(self, scores: NDArray[np.float64]) -> dict[str, float | None]:
        """What a slide is ranked by, of the scores `[N]` of its tiles: the highest rarity, the mean of the `top_k` highest (of all where
        there are fewer), the share of tiles beyond `limit`. None for a slide without tiles."""
        if not len(scores):
            return {"max": None, "top_k": None, "share": None}
        neg_log10_p = np.sort(self.neg_log10_p(scores))[::-1]
        share = float((scores > self.limit).mean())
        return {"max": float(neg_log10_p[0]), "top_k": float(neg_log10_p[: self.top_k].mean()), "share": share}


def score_slide(task: SlideTask, calibrated: CalibratedScorer, cut: Cut, folder: Path, workers: int) -> dict[str, Any]:
    """Score one slide into `folder`; returns what `slide.json` holds. What was finished before, for the same key, is left as it is.

    Two processes may be told the same slide: the second waits, and finds it done. Raises `UserError` or `JobFailed`.
    """
    with ExitStack() as stack:
        slide = stack.enter_context(open_slide(task.path, cut.slide_mpp))
        if slide.mpp > ENLARGED * cut.mpp:
            raise UserError(
                f"{task.path}: its pixels measure {slide.mpp:.4g} µm; tiles of {cut.mpp:g} µm/px would be enlarged. "
                f"Ask for --mpp {slide.mpp:.4g} or more, and for a model that was trained on that"
            )
        make_folder(folder)
        lock = folder / ".lock"
        stack.enter_context(alone(lock))
        stack.callback(lock.unlink, missing_ok=True)
        done = finished(folder)
        if done is not None and (done["key"], done["identity"]) == (calibrated.key, task.identity):
            return done
        remove_leftovers(folder)
        tissue = find_tissue(slide, cut.rule)
        tiles = grid_tiles(slide, tissue, cut.size, cut.mpp, cut.tissue, cut.stride)
        stain = _fitted_stain(tissue, cut)
        rows = _tile_rows(slide, tiles, task, stain, calibrated, cut, folder / ".tiles.jsonl", workers)
        scores = np.array([row["score"] for row in rows], np.float64)
        described = {
            "key": calibrated.key, "identity": task.identity, "slide": task.name, "file": str(task.path.absolute()), "alone": task.alone,
            "width": slide.width, "height": slide.height, "mpp": slide.mpp, "tiles": len(tiles),
            "side": tiles[0].side if tiles else cut.size * cut.mpp / slide.mpp, **calibrated.aggregated(scores),
            "limit": calibrated.limit, "top_k_is": calibrated.top_k, "model": calibrated.label, "cut": asdict(cut),
            "stain": None if stain is None else stain.to_dict(), "notes": slide.notes,
        }  # fmt: skip
        _write(slide, tissue, tiles, rows, scores, described, calibrated, folder)
        write_json(folder / "slide.json", described)
        (folder / ".tiles.jsonl").unlink(missing_ok=True)
        return described


def finished(folder: Path) -> dict[str, Any] | None:
    """What `slide.json` of a scored slide's folder holds; None where it was not finished."""
    try:
        described: dict[str, Any] = json.loads((folder / "slide.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return described if isinstance(described, dict) and {"key", "identity", "tiles"} <= described.keys() else None


def _fitted_stain(tissue: Tissue, cut: Cut) -> StainNormaliser | None:
    return stain_normaliser(cut.stain).fit(sample_pixels(tissue, cut.mpp)) if cut.stain else None


def _tile_rows(
    slide: Slide, tiles: list[Tile], task: SlideTask, stain: StainNormaliser | None, calibrated: CalibratedScorer, cut: Cut,
    partial: Path, workers: int,
) -> list[Row]:  # fmt: skip
    """`{score, parts...}` of each tile, in order."""
    chunk = calibrated.scorer.chunk or CHUNK

    def prepare(picture: Pixels) -> Pixels:
        return calibrated.prepare(picture if stain is None else stain.transform(picture))

    def chunks(start: int) -> Iterator[Tensor]:
        return read_chunks(slide, tiles[start:], cut.size, cut.mpp, prepare, chunk, workers)

    def rows_of(images: Tensor, start: int) -> list[Row]:
        measured = calibrated.scorer.measure(images)
        as_rows(measured)  # NaN of a broken model is told as such, before anything is made of it
        return as_rows(calibrated.scorer.calibrated(measured))

    header = {"key": calibrated.key, "identity": task.identity}
    return resumed_values(chunks, len(tiles), partial, header, task.name, chunk, rows_of, "tiles")


def read_chunks(
    slide: Slide,
    tiles: list[Tile],
    size: int,
    mpp: float,
    prepare: Callable[[Pixels], Pixels],
    chunk: int,
    workers: int,
) -> Iterator[Tensor]:
    """The tiles as `prepare` makes them, in order, `chunk` at a time: float32 `[n, 3, R, R]` in [-1, 1].

    While one chunk is used, the next is read on `workers` threads; no more than two are in memory beside it.
    """
    group = math.ceil(chunk / (AHEAD * workers))

    def read(part: list[Tile]) -> list[Pixels]:
        return [prepare(slide.read(tile.x, tile.y, size, size, mpp)) for tile in part]

    parts = (tiles[first : first + group] for first in range(0, len(tiles), group))
    held: list[Pixels] = []
    for pictures in ahead(read, parts, workers):
        held += pictures
        while len(held) >= chunk:
            yield to_tensor(np.stack(held[:chunk]))
            held = held[chunk:]
    if held:
        yield to_tensor(np.stack(held))


def _write(
    slide: Slide, tissue: Tissue, tiles: list[Tile], rows: list[Row], scores: NDArray[np.float64], described: dict[str, Any],
    calibrated: CalibratedScorer, folder: Path,
) -> None:  # fmt: skip
    """All files of a slide but `slide.json`."""
    name, side = described["slide"], described["side"]
    neg_log10_p = calibrated.neg_log10_p(scores)
    tissue.save(folder / "tissue.png")
    write_text(folder / "tiles.csv", _csv(name, tiles, rows, neg_log10_p, calibrated.limit))
    objects = (
        (tile.x, tile.y, tile.side, {**row, "p": 10.0**-rare, "neg_log10_p": rare}, row["score"] > calibrated.limit)
        for tile, row, rare in zip(tiles, rows, neg_log10_p.tolist(), strict=True)
    )
    write_geojson(folder / "tiles.geojson", name, objects)
    x, y = [tile.x for tile in tiles], [tile.y for tile in tiles]
    step = side * described["cut"]["stride"]
    heat = heatmap(x, y, neg_log10_p, side, step, slide.width, slide.height, slide.mpp)
    write_ome(folder / "heatmap.ome.tif", heat, name)
    write_pyramid(folder / "heatmap.tif", heat)
    shown = thumbnail_mpp(slide.width, slide.height, slide.mpp)
    title = f"{name}: {len(tiles):,} tiles of {side * slide.mpp:.0f} µm"
    overlay(slide.thumbnail(shown), heat.values, heat.cell / shown, folder / "overlay.png", title, TOP, WHAT)


def _csv(name: str, tiles: list[Tile], rows: list[Row], neg_log10_p: NDArray[np.float64], limit: float) -> str:
    """`slide, x, y, side, tissue, score, <parts>, p, neg_log10_p, decision` (decision: score > limit)."""
    parts = [key for key in rows[0] if key != "score"] if rows else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIXED, *parts, *LAST])
    for tile, row, rare in zip(tiles, rows, neg_log10_p.tolist(), strict=True):
        numbers = [f"{row[key]:.9g}" for key in ("score", *parts)]
        where = [name, tile.x, tile.y, f"{tile.side:.9g}", f"{tile.tissue:.6g}"]
        writer.writerow([*where, *numbers, f"{10.0**-rare:.9g}", f"{rare:.9g}", int(row["score"] > limit)])
    return text.getvalue()
