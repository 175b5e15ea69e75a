"""A procedural whole slide: islands of phantom tissue on glass, pen marks, and a tumour whose outline is known exactly.

The slide is a tiled, pyramidal TIFF (JPEG, each level 4 times smaller than the previous one) that OpenSlide opens, with an annotation
beside it in ASAP's format, as in CAMELYON16. It is painted tile by tile, so that memory does not grow with its size. The texture is a
mosaic of fields of `demo.phantom`, faded into each other, that repeats after `PERIOD` fields.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely import MultiPolygon, Polygon
from shapely.affinity import scale

from gan_uad.data.images import Pixels
from gan_uad.demo.phantom import FIELD, MAX_RESOLUTION, MIN_RESOLUTION, WHITE, Stain, bumpy, render_field
from gan_uad.errors import UserError
from gan_uad.files import atomic, write_text
from gan_uad.slides.annotations import polygons

TILE = 256  # px, of the file
STEP = 4  # downsample from level to level
MIN_LEVEL = 512  # px: a level that is smaller is the last
QUALITY = 85  # of the JPEG
PERIOD = 8  # fields, after which the texture repeats
FADE = 8  # a field fades into its neighbour over this fraction of its side
MIN_ISLAND = 768.0  # µm: space for one island; smaller ones would look like dirt
MAX_ISLANDS = 4  # along the shorter side
CORNERS = 96  # of an outline
UNIT = 1.0  # µm of a unit of `demo.phantom`, so that nuclei measure 6 to 8 µm
TUMOUR = "crowded"  # of the anomalies of `demo.phantom`
PENS = ((25, 45, 150), (35, 140, 110), (200, 40, 60))  # RGB of blue, green and red ink


@dataclass(frozen=True)
class SlideGeometry:
    """Shapely geometries in level-0 px.

    `tissue`: visible tissue (islands without ink). `tumour`: lies inside it, exclusions subtracted. `lesions`, `exclusions`: the
    polygons of the annotation. `ink`: pen marks.
    """

    width: int
    height: int
    mpp: float
    islands: tuple[Polygon, ...]
    lesions: tuple[Polygon, ...]
    exclusions: tuple[Polygon, ...]
    ink: tuple[Polygon, ...]
    tissue: MultiPolygon = field(init=False)
    tumour: MultiPolygon = field(init=False)

    def __post_init__(self) -> None:
        ink = shapely.union_all(self.ink)
        tumour = shapely.union_all(self.lesions) - shapely.union_all(self.exclusions)
        object.__setattr__(self, "tissue", polygons(shapely.union_all(self.islands) - ink))
        object.__setattr__(self, "tumour", polygons(tumour))


def slide_geometry(width: int, height: int, mpp: float = 0.5, seed: int = 0, tumour: bool = True) -> SlideGeometry:
    """The geometry of the slide that `write_phantom_slide` writes for the same arguments.

    Each cell of a grid has one island. The first island and every third after it hold a lesion; the first lesion has an exclusion
    inside. Beside each island is a pen mark; the first one crosses into its island. Raises ValueError for a slide too small for an
    island.
    """
    side = max(MIN_ISLAND / mpp, min(width, height) / MAX_ISLANDS)
    columns, rows = int(width // side), int(height // side)
    if columns < 1 or rows < 1:
        raise ValueError(
            f"{width}x{height} px at {mpp} µm/px: an island needs at least {MIN_ISLAND / mpp:.0f} px per side"
        )
    rng = np.random.default_rng([seed, 0])
    islands, lesions, exclusions, ink = [], [], [], []
    for k, (row, column) in enumerate(itertools.product(range(rows), range(columns))):
        w, h = width / columns, height / rows
        x, y = (column + 0.5) * w, (row + 0.5) * h
        island = _outline(rng, x, y, 0.40 * w, 0.38 * h, bump=0.06)
        islands.append(island)
        if tumour and k % 3 == 0:
            shift = rng.uniform(-0.08, 0.08, 2)
            lesion = _outline(rng, x + shift[0] * w, y + shift[1] * h, 0.2 * w, 0.19 * h, bump=0.08)
            lesions.append(lesion)
            if k == 0:
                exclusions.append(_rounded(scale(lesion, 0.35, 0.35, origin="centroid")))
        ink.append(_stroke(rng, column * w, row * h, w, h, crosses=k == 0))
    return SlideGeometry(width, height, mpp, tuple(islands), tuple(lesions), tuple(exclusions), tuple(ink))


def write_phantom_slide(
    path: Path, width: int, height: int, mpp: float = 0.5, seed: int = 0, tumour: bool = True,
    progress: Callable[[int, int], None] | None = None
) -> SlideGeometry:  # fmt: skip
    """Write a slide of width x height px at `mpp` µm/px to `path` (.tif), and its annotation to `<stem>.xml` beside it.

    Args:
        path: the slide; written atomically, overwritten if it exists.
        seed: 0 or more; of outlines, tissue and stain. Equal arguments give the same bytes.
        tumour: False: no lesion, and an annotation without polygons.
        progress: called with (tiles done, total) of the full resolution.

    Returns:
        Where tissue, tumour and ink are.

    Raises `UserError` where it cannot be written, and ValueError for a slide too small for tissue.
    """
    if path.suffix.lower() not in {".tif", ".tiff"}:
        raise UserError(f"{path}: a phantom slide is a TIFF; give it a name that ends in .tif")
    geometry = slide_geometry(width, height, mpp, seed, tumour)
    pyramid = _Pyramid(_Painter(geometry, seed), width, height)
    with atomic(path) as temporary:
        _write_tiff(temporary, pyramid, mpp, progress)
    write_text(path.with_suffix(".xml"), asap_xml(geometry))
    return geometry


def _write_tiff(path: Path, pyramid: _Pyramid, mpp: float, progress: Callable[[int, int], None] | None) -> None:
    """All levels, encoded as JPEG here, since tifffile needs another package for that; the tags are corrected afterwards."""
    from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffWriter

    with TiffWriter(path, bigtiff=math.prod(pyramid.sizes[0]) > 2**30) as writer:
        for level, (width, height) in enumerate(pyramid.sizes):
            writer.write(
                pyramid.encoded(level, progress), shape=(height, width, 3), dtype=np.uint8, tile=(TILE, TILE),
                compression="zlib", photometric="rgb", subfiletype=int(level > 0), software=False, metadata=None,
                resolution=(1e4 / mpp / STEP**level,) * 2, resolutionunit="CENTIMETER",
                extratags=[("YCbCrSubSampling", "H", 2, (1, 1), True)],
            )  # fmt: skip
    with TiffFile(path, mode="r+") as tiff:
        for page in tiff.pages:
            tags = page.aspage().tags
            tags["Compression"].overwrite(COMPRESSION.JPEG)
            tags["PhotometricInterpretation"].overwrite(PHOTOMETRIC.YCBCR)


def asap_xml(geometry: SlideGeometry) -> str:
    """The annotation in ASAP's format, with CAMELYON16's groups: `_0` tumour, `_2` excluded from it."""
    polygons = [("_0", p) for p in geometry.lesions] + [("_2", p) for p in geometry.exclusions]
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "  <Annotations>"]
    for k, (group, polygon) in enumerate(polygons):
        lines.append(f'    <Annotation Name={quoteattr(f"Annotation {k}")} Type="Polygon" PartOfGroup="{group}">')
        lines.append("      <Coordinates>")
        for order, (x, y) in enumerate(polygon.exterior.coords[:-1]):
            lines.append(f'        <Coordinate Order="{order}" X="{x!r}" Y="{y!r}" />')
        lines += ["      </Coordinates>", "    </Annotation>"]
    lines += ["  </Annotations>", "  <AnnotationGroups>"]
    lines += [f'    <Group Name="{group}" PartOfGroup="None"><Attributes /></Group>' for group in ("_0", "_2")]
    return "\n".join([*lines, "  </AnnotationGroups>", "</ASAP_Annotations>"]) + "\n"


def _outline(rng: np.random.Generator, x: float, y: float, rx: float, ry: float, bump: float) -> Polygon:
    """A bumpy ellipse around (x, y), with three bumps of up to `bump` radii."""
    turn = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    r = bumpy(rng, turn, bump)
    return _rounded(Polygon(np.stack([x + rx * r * np.cos(turn), y + ry * r * np.sin(turn)], 1)))


def _stroke(rng: np.random.Generator, left: float, top: float, w: float, h: float, crosses: bool) -> Polygon:
    """A pen mark from top to bottom of the left edge of a cell, or from its left edge into the island."""
    thick = 0.03 * min(w, h)
    if crosses:
        y = top + h * rng.uniform(0.4, 0.6)
        return _rounded(shapely.box(left + 0.02 * w, y, left + 0.18 * w, y + thick))
    return _rounded(shapely.box(left + 0.01 * w, top + 0.1 * h, left + 0.01 * w + thick, top + 0.9 * h))


def _rounded(polygon: Polygon) -> Polygon:
    """Corners rounded to hundredths of a px, so that they are the same when read from text."""
    return Polygon([(round(x, 2), round(y, 2)) for x, y in polygon.exterior.coords])


class _Texture:
    """An endless plane of one kind of tissue: fields that fade into each other."""

    def __init__(self, kind: str, mpp: float, seed: int, stain: Stain) -> None:
        side = 2 ** round(math.log2(FIELD * UNIT / mpp))
        self.kind, self.seed, self.stain = kind, seed, stain
        self.side = min(max(side, MIN_RESOLUTION), MAX_RESOLUTION)
        self.fade = self.side // FADE
        self.step = self.side - self.fade
        self._fields: dict[tuple[int, int], Pixels] = {}
        self._cells: dict[tuple[int, int], Pixels] = {}

    def cut(self, x: int, y: int, width: int, height: int) -> Pixels:
        """The region at (x, y), uint8 [height, width, 3]."""
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // self.step, (y + height - 1) // self.step + 1):
            for column in range(x // self.step, (x + width - 1) // self.step + 1):
                cell = self._cell(row % PERIOD, column % PERIOD)
                top, left = row * self.step - y, column * self.step - x
                a, b = max(top, 0), max(left, 0)
                part = out[a : top + self.step, b : left + self.step]
                part[:] = cell[a - top :, b - left :][: part.shape[0], : part.shape[1]]
        return out

    def _cell(self, row: int, column: int) -> Pixels:
        """A field without its last rows and columns; the fields above and to the left fade into its first ones."""
        if (row, column) not in self._cells:
            ramp = np.minimum((np.arange(self.step, dtype=np.float32) + 1) / (self.fade + 1), 1)
            mixed = np.zeros((self.step, self.step, 3), np.float32)
            for up, left in itertools.product((0, 1), (0, 1)):
                h, w = self.fade if up else self.step, self.fade if left else self.step
                other = self._field((row - up) % PERIOD, (column - left) % PERIOD)
                part = other[up * self.step :, left * self.step :][:h, :w]
                weight = np.outer((1 - ramp if up else ramp)[:h], (1 - ramp if left else ramp)[:w])
                mixed[:h, :w] += weight[..., None] * part
            self._cells[row, column] = np.rint(mixed).astype(np.uint8)
        return self._cells[row, column]

    def _field(self, row: int, column: int) -> Pixels:
        if (row, column) not in self._fields:
            rng = np.random.default_rng([self.seed, 1 + (self.kind == TUMOUR), row, column])
            self._fields[row, column] = render_field(rng, self.side, self.kind, self.stain)
        return self._fields[row, column]


class _Painter:
    """Paints tiles of the slide: glass, tissue on it, tumour in it, ink on top."""

    def __init__(self, geometry: SlideGeometry, seed: int) -> None:
        stain = Stain.draw(np.random.default_rng([seed, 3]))
        normal, tumour = (_Texture(kind, geometry.mpp, seed, stain) for kind in ("normal", TUMOUR))
        inks = [(np.array(PENS[k % len(PENS)], np.uint8), ink) for k, ink in enumerate(geometry.ink)]
        self.layers: list[tuple[Polygon, _Texture | NDArray[np.uint8]]] = [
            *((island, normal) for island in geometry.islands),
            *((lesion, tumour) for lesion in geometry.lesions),
            *((exclusion, normal) for exclusion in geometry.exclusions),
            *((ink, colour) for colour, ink in inks),
        ]
        for outline, _ in self.layers:
            shapely.prepare(outline)

    def paint(self, x: int, y: int) -> Pixels | None:
        """The tile at (x, y), uint8 [TILE, TILE, 3]; None where there is only glass. Centres decide to which region pixels belong."""
        box = shapely.box(x, y, x + TILE, y + TILE)
        found = [layer for layer in self.layers if layer[0].intersects(box)]
        if not found:
            return None
        out = np.full((TILE, TILE, 3), WHITE, np.uint8)
        for outline, filling in found:
            colour = filling.cut(x, y, TILE, TILE) if isinstance(filling, _Texture) else filling
            if outline.contains(box):
                out[:] = colour
            else:
                out = np.where(_covered(outline, x, y)[..., None], colour, out)
        return out


class _Pyramid:
    """The levels of a slide as encoded tiles; each level is shrunk while the previous one is painted."""

    def __init__(self, painter: _Painter, width: int, height: int) -> None:
        self.painter = painter
        self.sizes = [(width, height)]
        while max(self.sizes[-1]) > MIN_LEVEL and min(self.sizes[-1]) >= STEP:
            self.sizes.append((self.sizes[-1][0] // STEP, self.sizes[-1][1] // STEP))
        self.tiles: list[list[bytes]] = [[] for _ in self.sizes]  # encoded, of the smaller levels
        self.bands: list[Pixels | None] = [None] * len(self.sizes)  # the current row of tiles
        self.glass = np.full((TILE, TILE, 3), WHITE, np.uint8)
        self.glass_bytes = _jpeg(self.glass)

    def encoded(self, level: int, progress: Callable[[int, int], None] | None = None) -> Iterator[bytes]:
        """The tiles of a level row by row. Read level 0 first: it makes the others."""
        if level:
            yield from self.tiles[level]
            return
        columns, rows = self._grid(0)
        for row in range(rows):
            for column in range(columns):
                tile = self.painter.paint(column * TILE, row * TILE)
                self._shrink(1, row, column, self.glass if tile is None else tile)
                if column == columns - 1:  # before the yield: the caller may not resume after the last tile
                    self._row_done(1, row, rows)
                if progress:
                    progress(row * columns + column + 1, rows * columns)
                yield self.glass_bytes if tile is None else _jpeg(tile)

    def _grid(self, level: int) -> tuple[int, int]:
        width, height = self.sizes[level]
        return -(-width // TILE), -(-height // TILE)

    def _shrink(self, level: int, row: int, column: int, tile: Pixels) -> None:
        """Copy a tile of the level above, shrunk, into the band of this level."""
        if level == len(self.sizes):
            return
        band = self.bands[level]
        if band is None:
            # As wide as the level above needs, which may be a few px more than this level's own tiles.
            tiles = max(self._grid(level)[0], -(-self._grid(level - 1)[0] // STEP))
            band = self.bands[level] = np.full((TILE, tiles * TILE, 3), WHITE, np.uint8)
        part = TILE // STEP
        top, left = row % STEP * part, column * part
        band[top : top + part, left : left + part] = np.asarray(Image.fromarray(tile).reduce(STEP))

    def _row_done(self, level: int, row: int, rows: int) -> None:
        """Called for each complete row of tiles of the level above; every fourth one, and the last, completes a row here."""
        if level == len(self.sizes) or not (row % STEP == STEP - 1 or row == rows - 1):
            return
        band, self.bands[level] = self.bands[level], None
        columns, own_rows = self._grid(level)
        if band is None or row // STEP >= own_rows:
            return
        for column in range(columns):
            tile = band[:, column * TILE : (column + 1) * TILE]
            self._shrink(level + 1, row // STEP, column, tile)
            self.tiles[level].append(_jpeg(tile))
        self._row_done(level + 1, row // STEP, own_rows)


def _covered(outline: Polygon, x: int, y: int) -> NDArray[np.bool_]:
    """Which pixels of the tile at (x, y) have their centre inside a polygon without holes, [TILE, TILE]: by parity of crossings."""
    (x0, y0), (x1, y1) = (np.array(outline.exterior.coords)[part].T for part in (slice(None, -1), slice(1, None)))
    centre = y + np.arange(TILE)[:, None] + 0.5
    row, edge = np.nonzero((y0 <= centre) != (y1 <= centre))
    at = x0[edge] + (centre[row, 0] - y0[edge]) / (y1 - y0)[edge] * (x1 - x0)[edge]
    flips = np.zeros((TILE, TILE + 1), np.int64)
    np.add.at(flips, (row, np.clip(np.ceil(at - x - 0.5), 0, TILE).astype(int)), 1)
    return flips.cumsum(1)[:, :TILE] % 2 == 1


def _jpeg(tile: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=QUALITY, subsampling="4:4:4")
    return buffer.getvalue()
