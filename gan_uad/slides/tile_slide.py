"""One slide of `gan-uad tile`: its tissue, annotation, tile files and contact sheet."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad import console
from gan_uad.data.images import Pixels
from gan_uad.data.manifest import ANOMALOUS, NORMAL, UNKNOWN
from gan_uad.data.sources import MASK, SHEET
from gan_uad.errors import UserError
from gan_uad.files import csv_text, explained, write_text
from gan_uad.plotting.contact_sheet import contact_sheet
from gan_uad.slides import tiles
from gan_uad.slides.annotations import Annotations, read_annotations
from gan_uad.slides.batch import SlideTask
from gan_uad.slides.reader import Slide
from gan_uad.slides.slide_list import Told
from gan_uad.slides.stain import StainNormaliser, fitted_normaliser
from gan_uad.slides.tiles import Tile
from gan_uad.slides.tissue import Tissue, find_tissue

COLUMNS = (
    "image", "group", "label", "split", "class", "slide", "x", "y", "side", "level", "mpp", "tissue", "tumour", "stain",
)  # fmt: skip
CLASSES = {NORMAL: "normal", ANOMALOUS: "tumour", UNKNOWN: "border"}  # of annotated slides
WANTED = {"normal": NORMAL, "tumour": ANOMALOUS}
ROWS = "tiles.csv"
SHEET_SIDE, MIN_CELL = 1500, 6  # px: longer side of the overview, smallest cell in it
N_EXAMPLES = 16  # tiles shown on the sheet


@dataclass(frozen=True)
class TileSettings:
    """How slides are cut; stored in `tile.json`, and other settings for the same folder are refused.

    size: px. mpp: µm/px. tissue: smallest share, by `rule`. per_slide: largest number of tiles, None: all of the grid. choice: "random"
    or "grid". stride: of the grid, in sides. label: which tiles to keep, "normal", "tumour" or "all". tumour: smallest annotated share of
    a tumour tile. unannotated: label of tiles of slides without annotation, "normal" or "unknown". classes: see `read_annotations`.
    slide_mpp: replaces what the files state. group: regular expression that finds the patient in the slide's name, None: the name. stain: a
    normalisation or None. compress: PNG files.
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
    task: SlideTask, annotation: Path | None, folder: Path, settings: TileSettings, workers: int, told: Told
) -> dict[str, Any]:
    """Cut one slide into the empty `folder`; returns the content of `slide.json`. `told`: what the user's table tells of it.

    The slide's identity and the seed decide which tiles are drawn, so that tiles depend neither on names nor on other slides. Raises
    `UserError` where the slide or annotation cannot be used.
    """
    s, name = settings, task.name
    if told.label is not None:  # not all of a tumour slide is tumour
        s = replace(s, unannotated="normal" if told.label == 0 else "unknown")
    group = told.patient or group_of(name, s.group)
    with tiles.open_for_tiles(task.path, told.mpp or s.slide_mpp, s.mpp) as slide:
        drawn = None
        if annotation is not None:
            drawn = read_annotations(annotation, s.classes, slide.origin)
            drawn.check(slide.path.name, slide.width, slide.height)
            for note in drawn.notes:
                console.say(note)
            if told.label in (0, 1) and bool(told.label) != drawn.has_tumour:
                kind, has = ("tumour", "no tumour") if told.label else ("normal", "tumour")
                raise UserError(
                    f"{name} is labelled {kind}, but its annotation {annotation} has {has}; correct one of them"
                )
        tissue = find_tissue(slide, s.rule)
        chosen = choose(slide, tissue, drawn, s, task.identity)
        labels = _labels(*tiles.corners(chosen), slide, drawn, s).tolist()
        certain = drawn is not None and not drawn.unplaced  # else a tile without a label need not be at a border
        classes = [CLASSES[label] if certain or label != UNKNOWN else "" for label in labels]
        stain = fitted_normaliser(s.stain, tissue, s.mpp, s.seed)
        examples = write_tiles(slide, chosen, name, folder, s, stain, workers)
        tissue.save(folder / MASK)
        _write_rows(folder / ROWS, name, group, chosen, labels, classes, slide.level_for(s.mpp), s, stain)
        _write_sheet(folder / SHEET, slide, tissue, chosen, drawn, examples, name, s)
        return {
            "slide": str(task.path), "identity": task.identity, "width": slide.width, "height": slide.height, "mpp": slide.mpp,
            "origin": slide.origin, "levels": slide.levels, "group": group, "tiles": len(chosen),
            "labels": Counter(which or "unknown" for which in classes),
            "tissue_share": float(tissue.mask.mean()), "tissue_rule": tissue.rule, "tissue_mpp": tissue.mpp,
            "annotation": None if drawn is None else str(drawn.path), "annotated": None if drawn is None else drawn.counts,
            "stain": None if stain is None else stain.to_dict(), "notes": slide.notes + ([] if drawn is None else drawn.notes),
        }  # fmt: skip


def group_of(name: str, pattern: str | None) -> str:
    """The patient of a slide: what `pattern` (its first group, if it has one) finds in the name, else the name."""
    if pattern is None:
        return name
    found = re.search(pattern, name)
    patient = found.group(found.re.groups and 1) if found else None
    if not patient:
        raise UserError(f"--group {pattern!r} finds no patient in the name {name!r}")
    return str(patient)


def choose(slide: Slide, tissue: Tissue, drawn: Annotations | None, s: TileSettings, identity: str) -> list[Tile]:
    """The tiles to cut, row by row."""
    seed = [s.seed, int(identity[:12], 16)]

    def keep(x: tiles.Positions, y: tiles.Positions) -> NDArray[np.bool_]:
        return np.ones(len(x), bool) if s.label == "all" else _labels(x, y, slide, drawn, s) == WANTED[s.label]

    if s.choice == "random":
        count = s.per_slide if s.per_slide is not None else slide.width * slide.height
        chosen = tiles.random_tiles(slide, tissue, s.size, s.mpp, s.tissue, count, seed, keep)
    else:
        chosen = tiles.grid_tiles(slide, tissue, s.size, s.mpp, s.tissue, s.stride)
        chosen = [tile for tile, kept in zip(chosen, keep(*tiles.corners(chosen)), strict=True) if kept]
        if s.per_slide is not None and len(chosen) > s.per_slide:
            picked = np.random.default_rng(seed).permutation(len(chosen))[: s.per_slide]
            chosen = [chosen[k] for k in np.sort(picked)]
    return chosen if drawn is None else tiles.annotate(chosen, drawn)


def _labels(
    x: tiles.Positions, y: tiles.Positions, slide: Slide, drawn: Annotations | None, s: TileSettings
) -> NDArray[np.int8]:
    """Labels of tiles with top-left corners (x, y)."""
    if drawn is None:
        return np.full(len(x), NORMAL if s.unannotated == "normal" else UNKNOWN, np.int8)
    return tiles.labels(drawn, x, y, s.size * s.mpp / slide.mpp, s.tumour)


def _file(name: str, tile: Tile) -> str:
    return f"{name}_x{tile.x}_y{tile.y}.png"


def write_tiles(
    slide: Slide, chosen: list[Tile], name: str, folder: Path, s: TileSettings, stain: StainNormaliser | None, workers: int
) -> list[Pixels]:  # fmt: skip
    """Write all tiles into `folder`; returns some of them as examples."""
    wanted = set(np.linspace(0, len(chosen) - 1, min(N_EXAMPLES, len(chosen))).round().astype(int).tolist())

    def write(numbered: tuple[int, Tile]) -> Pixels | None:
        number, tile = numbered
        image = slide.read(tile.x, tile.y, s.size, s.size, s.mpp)
        if stain is not None:
            image = stain.transform(image)
        path = folder / _file(name, tile)
        with explained(path):
            path.write_bytes(tiles.encode_png(image, s.compress))
        return image if number in wanted else None

    examples = []
    with console.progress(f"tiling {name}", len(chosen), "tiles") as bar:
        for k, image in enumerate(tiles.ahead(write, enumerate(chosen), workers)):
            if image is not None:
                examples.append(image)
            bar.update(k + 1)
    return examples


def _write_rows(
    path: Path, name: str, group: str, chosen: list[Tile], labels: list[int], classes: list[str], level: int, s: TileSettings,
    stain: StainNormaliser | None,
) -> None:  # fmt: skip
    rows = (
        (
            f"{name}/{_file(name, tile)}", group, "" if label == UNKNOWN else label, "", which, name, tile.x, tile.y,
            f"{tile.side:.10g}", level, f"{s.mpp:.10g}", f"{tile.tissue:.6g}", "" if tile.tumour is None else f"{tile.tumour:.6g}",
            stain.name if stain is not None and stain.fitted else "",
        )
        for tile, label, which in zip(chosen, labels, classes, strict=True)
    )  # fmt: skip
    write_text(path, csv_text(COLUMNS, rows))


def _write_sheet(
    path: Path, slide: Slide, tissue: Tissue, chosen: list[Tile], drawn: Annotations | None, examples: list[Pixels], name: str,
    s: TileSettings,
) -> None:  # fmt: skip
    """The overview: cells of the tiles' size, or of several tiles where single ones would be too small to see."""
    mpp = max(slide.mpp, slide.mpp * max(slide.width, slide.height) / SHEET_SIDE)
    scale = slide.mpp / mpp
    side = s.size * s.mpp / slide.mpp
    times = max(1, int(np.ceil(MIN_CELL / (side * scale))))
    columns, rows = tiles.grid_positions(slide, s.size * times, s.mpp)
    shares = tissue.share(columns[None, :], rows[:, None], side * times)
    boxes = np.array([(t.x, t.y, t.x + t.side, t.y + t.side) for t in chosen]).reshape(-1, 4) * scale
    outlines = [
        np.array(ring.coords) * scale for p in (drawn.lesions if drawn else []) for ring in (p.exterior, *p.interiors)
    ]
    title = f"{name}: {slide.width} × {slide.height} px of {slide.mpp:.4g} µm; tiles of {s.size} px at {s.mpp:g} µm/px"
    if times > 1:
        title += f"; a cell is {times} × {times} tiles"
    contact_sheet(path, slide.thumbnail(mpp), shares, (side * times * scale,) * 2, boxes, outlines, examples, title)
