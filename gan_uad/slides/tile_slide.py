"""One slide of `gan-uad tile`: its tissue, its annotation, its tiles as files, its contact sheet."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad import console
from gan_uad.data.images import Pixels
from gan_uad.data.manifest import ANOMALOUS, NORMAL, UNKNOWN
from gan_uad.data.sources import MASK, SHEET
from gan_uad.errors import UserError
from gan_uad.files import explained, write_text
from gan_uad.plotting.contact_sheet import contact_sheet
from gan_uad.slides import tiles
from gan_uad.slides.annotations import Annotations, read_annotations
from gan_uad.slides.reader import Slide, open_slide
from gan_uad.slides.stain import StainNormaliser, sample_pixels, stain_normaliser
from gan_uad.slides.tiles import Tile
from gan_uad.slides.tissue import Tissue, find_tissue

COLUMNS = (
    "image", "group", "label", "split", "class", "slide", "x", "y", "side", "level", "mpp", "tissue", "tumour", "stain",
)  # fmt: skip
CLASSES = {NORMAL: "normal", ANOMALOUS: "tumour", UNKNOWN: "border"}  # of annotated slides
WANTED = {"normal": NORMAL, "tumour": ANOMALOUS}
ROWS = "tiles.csv"
ENLARGED = 1.1  # a slide may be so much coarser than the tiles before it is refused
SHEET_SIDE, CELL = 1500, 6  # px of the longer side of the overview, and of its cells at least
SAMPLES = 16  # tiles shown on the sheet


@dataclass(frozen=True)
class TileSettings:
    """How slides are cut; kept in `tile.json`, and a folder of other settings is refused.

    size: px; mpp: µm/px; tissue: least share, by `rule`; per_slide: at most so many tiles, None: all of the grid; choice: "random"
    or "grid"; stride: of the grid, in sides; label: which tiles to take, "normal", "tumour" or "all"; tumour: least annotated share of
    a tumour tile; unannotated: the label of tiles of slides without annotation, "normal" or "unknown"; classes: see
    `read_annotations`; slide_mpp: of slides that state none (or against what they state); group: regular expression whose match in
    the slide's name is its patient, None: the whole name; stain: a normalisation or None; compress: PNGs.
    """

    size: int = 256
    mpp: float = 0.5
    tissue: float = 0.9
    rule: str = "mask"
    per_slide: int | None = 1000
    choice: str = "random"
    stride: float = 1.0
    label: str = "all"
    tumour: float = 0.5
    unannotated: str = "unknown"
    classes: dict[str, str] = field(default_factory=dict)
    slide_mpp: float | None = None
    group: str | None = None
    stain: str | None = None
    compress: bool = False
    seed: int = 0


def cut_slide(
    path: Path, name: str, identity: str, annotation: Path | None, folder: Path, settings: TileSettings, workers: int
) -> dict[str, Any]:
    """Cut one slide into `folder`, which is there and empty; returns what `slide.json` holds.

    name: of the slide in the index. identity: hexadecimal, of the file; with the seed it decides which tiles are drawn, so that these
    depend neither on names nor on other slides. Raises `UserError` where the slide or annotation cannot be used.
    """
    s = settings
    group = group_of(name, s.group)
    with open_slide(path, s.slide_mpp) as slide:
        if slide.mpp > ENLARGED * s.mpp:
            raise UserError(
                f"{path}: its pixels measure {slide.mpp:.4g} µm; tiles of {s.mpp:g} µm/px would be enlarged. "
                f"Ask for --mpp {slide.mpp:.4g} or more"
            )
        drawn = None
        if annotation is not None:
            drawn = read_annotations(annotation, s.classes)
            drawn.check(slide)
            for note in drawn.notes:
                console.say(note)
        tissue = find_tissue(slide, s.rule)
        chosen = choose(slide, tissue, drawn, s, identity)
        normaliser = stain_normaliser(s.stain).fit(sample_pixels(tissue, s.mpp, s.seed)) if s.stain else None
        labels = _labels(chosen, drawn, s)
        shown = write_tiles(slide, chosen, name, folder, s, normaliser, workers)
        _write_rows(folder / ROWS, name, group, chosen, labels, drawn is not None, slide.level_for(s.mpp), s)
        tissue.save(folder / MASK)
        _write_sheet(folder / SHEET, slide, tissue, chosen, drawn, shown, name, s)
        return {
            "slide": str(path), "identity": identity, "width": slide.width, "height": slide.height, "mpp": slide.mpp,
            "levels": slide.levels, "group": group, "tiles": len(chosen), "labels": _counted(labels, drawn),
            "tissue_share": float(tissue.mask.mean()), "tissue_rule": tissue.rule, "tissue_mpp": tissue.mpp,
            "annotation": None if drawn is None else str(drawn.path), "annotated": None if drawn is None else drawn.counts,
            "stain": None if normaliser is None else normaliser.to_dict(), "notes": slide.notes + ([] if drawn is None else drawn.notes),
        }  # fmt: skip


def group_of(name: str, pattern: str | None) -> str:
    """The patient of a slide: what `pattern` finds in its name (its first group, where it has one), else the name."""
    if pattern is None:
        return name
    found = re.search(pattern, name)
    if found is None or not found.group(found.re.groups and 1):
        raise UserError(f"--group {pattern!r} finds no patient in the name {name!r}")
    return str(found.group(found.re.groups and 1))


def choose(slide: Slide, tissue: Tissue, drawn: Annotations | None, s: TileSettings, identity: str) -> list[Tile]:
    """The tiles to cut, row by row."""
    seed = [s.seed, int(identity[:12], 16)]

    def keep(x: tiles.Positions, y: tiles.Positions) -> NDArray[np.bool_]:
        if s.label == "all":
            return np.ones(len(x), bool)
        if drawn is None:
            return np.full(len(x), s.label == s.unannotated)
        return np.asarray(tiles.labels(drawn, x, y, s.size * s.mpp / slide.mpp, s.tumour) == WANTED[s.label])

    if s.choice == "random":
        count = s.per_slide if s.per_slide is not None else slide.width * slide.height
        chosen = tiles.random_tiles(slide, tissue, s.size, s.mpp, s.tissue, count, seed, keep)
    else:
        chosen = tiles.grid_tiles(slide, tissue, s.size, s.mpp, s.tissue, s.stride)
        kept = keep(np.array([t.x for t in chosen], np.int64), np.array([t.y for t in chosen], np.int64))
        chosen = [tile for tile, k in zip(chosen, kept, strict=True) if k]
        if s.per_slide is not None and len(chosen) > s.per_slide:
            picked = np.random.default_rng(seed).permutation(len(chosen))[: s.per_slide]
            chosen = [chosen[k] for k in np.sort(picked)]
    return chosen if drawn is None else tiles.annotate(chosen, drawn)


def _labels(chosen: list[Tile], drawn: Annotations | None, s: TileSettings) -> NDArray[np.int8]:
    if drawn is None or not chosen:
        return np.full(len(chosen), NORMAL if s.unannotated == "normal" else UNKNOWN, np.int8)
    x, y = (np.array([getattr(t, axis) for t in chosen], np.int64) for axis in "xy")
    return tiles.labels(drawn, x, y, chosen[0].side, s.tumour)


def _class(label: int, annotated: bool) -> str:
    return "" if label == UNKNOWN and not annotated else CLASSES[label]


def _counted(labels: NDArray[np.int8], drawn: Annotations | None) -> dict[str, int]:
    return dict(Counter(_class(label, drawn is not None) or "unknown" for label in labels.tolist()))


def _file(name: str, tile: Tile) -> str:
    return f"{name}_x{tile.x}_y{tile.y}.png"


def write_tiles(
    slide: Slide, chosen: list[Tile], name: str, folder: Path, s: TileSettings, normaliser: StainNormaliser | None, workers: int
) -> list[Pixels]:  # fmt: skip
    """Write all tiles into `folder`; returns some of them."""

    wanted = set(np.linspace(0, len(chosen) - 1, min(SAMPLES, len(chosen))).round().astype(int).tolist())

    def write(numbered: tuple[int, Tile]) -> Pixels | None:
        number, tile = numbered
        image = slide.read(tile.x, tile.y, s.size, s.size, s.mpp)
        if normaliser is not None:
            image = normaliser.transform(image)
        path = folder / _file(name, tile)
        with explained(path):
            path.write_bytes(tiles.encode_png(image, s.compress))
        return image if number in wanted else None

    shown = []
    with console.progress(f"tiling {name}", len(chosen), "tiles") as bar:
        for k, image in enumerate(tiles.ahead(write, enumerate(chosen), workers)):
            if image is not None:
                shown.append(image)
            bar.update(k + 1)
    return shown


def _write_rows(
    path: Path, name: str, group: str, chosen: list[Tile], labels: NDArray[np.int8], annotated: bool, level: int, s: TileSettings
) -> None:  # fmt: skip
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for tile, label in zip(chosen, labels.tolist(), strict=True):
        numbers = (tile.x, tile.y, f"{tile.side:.10g}", level, f"{s.mpp:.10g}", f"{tile.tissue:.6g}")
        tumour = "" if tile.tumour is None else f"{tile.tumour:.6g}"
        known = "" if label == UNKNOWN else label
        image = f"{name}/{_file(name, tile)}"
        writer.writerow([image, group, known, "", _class(label, annotated), name, *numbers, tumour, s.stain or ""])
    write_text(path, table.getvalue())


def _write_sheet(
    path: Path, slide: Slide, tissue: Tissue, chosen: list[Tile], drawn: Annotations | None, shown: list[Pixels], name: str,
    s: TileSettings,
) -> None:  # fmt: skip
    """The overview: cells of the tiles' size, or of a whole number of them where those would be too small to see."""
    mpp = max(slide.mpp, slide.mpp * max(slide.width, slide.height) / SHEET_SIDE)
    scale = slide.mpp / mpp
    side = s.size * s.mpp / slide.mpp
    times = max(1, int(np.ceil(CELL / (side * scale))))
    columns, rows = tiles.grid_positions(slide, s.size * times, s.mpp)
    shares = tissue.share(columns[None, :], rows[:, None], side * times)
    taken = np.array([(t.x, t.y, t.x + t.side, t.y + t.side) for t in chosen]).reshape(-1, 4) * scale
    outlines = [
        np.array(ring.coords) * scale for p in (drawn.lesions if drawn else []) for ring in (p.exterior, *p.interiors)
    ]
    title = f"{name}: {slide.width} × {slide.height} px of {slide.mpp:.4g} µm; tiles of {s.size} px at {s.mpp:g} µm/px"
    if times > 1:
        title += f"; a cell is {times} × {times} tiles"
    contact_sheet(path, slide.thumbnail(mpp), shares, (side * times * scale,) * 2, taken, outlines, shown, title)
