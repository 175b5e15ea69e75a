"""Procedural H&E-like tissue with known anomalies: data for anyone who has none.

A patch shows the same field of view at every resolution. Lengths are in *units*: the field is 64 units wide, so a unit is
one pixel at resolution 64, where a nucleus measures 6 to 8 pixels. A patch is painted as two concentration maps,
haematoxylin and eosin, and becomes colour by the Beer-Lambert law with the stain of its slide (Ruifrok & Johnston, 2001).
The normal tissue is painted first; an anomaly then replaces it inside its mask and touches no pixel outside.

Colour alone hardly separates the classes: the Mahalanobis distance of a patch's mean RGB from 800 train normals has an image AUROC
of 0.59 on the test set (0.56 to 0.63; seeds 0 to 5 of `write_phantom(train=800, test=300)`, 64 px).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from gan_uad.files import csv_text, make_folder, read_json, write_json, write_text

Array = NDArray[np.floating]

SPLITS = ("train", "val", "test")
GROUPS = (40, 10, 20)  # slides per split
MIN_RESOLUTION, MAX_RESOLUTION = 16, 512
VERSION = 1  # raise it when the same arguments give other bytes

FIELD = 64  # units across a patch
BANK = 192  # units across a noise bank, from which fields are cut
WHITE = 240.0  # RGB of unstained glass
NUCLEUS_EDGE = 0.8  # units over which a nucleus fades out
MASK_EDGE = 1.5  # units over which an anomaly fades in, all of them inside the mask
MASK_AREA = (0.12, 0.42)  # share of the patch that an anomaly covers

# Optical density (natural logarithm) of one unit of stain in R, G and B, and the log-normal spread between slides.
HAEMATOXYLIN, EOSIN = (0.80, 1.04, 0.45), (0.12, 0.70, 0.38)
STRENGTH_SPREAD, HUE_SPREAD = 0.16, 0.10
STAIN_STREAM = 1000  # separates the random numbers of slides from those of patches


@dataclass(frozen=True)
class Stain:
    """How one slide's stains absorb light: optical density (natural log) per unit concentration, in R, G, B."""

    haematoxylin: tuple[float, ...]
    eosin: tuple[float, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Stain:
        """A stain of another laboratory: random strength and hue."""
        strength = np.exp(STRENGTH_SPREAD * rng.standard_normal((2, 1)))
        hue = np.exp(HUE_SPREAD * rng.standard_normal((2, 3)))
        h, e = (np.array([HAEMATOXYLIN, EOSIN]) * strength * hue).tolist()
        return cls(tuple(h), tuple(e))

    def colour(self, tissue: Tissue) -> Array:
        """RGB, float32 [S, S, 3] in (0, 240]."""
        h, e = np.array([self.haematoxylin, self.eosin], np.float32)
        density = tissue.h[..., None] * h + tissue.e[..., None] * e
        return np.float32(WHITE) * np.exp(-np.maximum(density, 0))


@dataclass
class Tissue:
    """Concentrations of haematoxylin and eosin, each float32 [S, S], 0 (glass) to about 2."""

    h: Array
    e: Array

    def fill(self, weight: Array, h: float | Array, e: float | Array) -> None:
        """Blend in the given concentrations with a weight, [S, S] in [0, 1]."""
        self.h += weight * (h - self.h)
        self.e += weight * (e - self.e)

    def add_nuclei(self, rng: np.random.Generator, canvas: Canvas, nuclei: Array) -> None:
        """Paint nuclei, [8, n] from `_nuclei`, with chromatin texture, over the tissue."""
        depth = canvas.stamp(nuclei)
        self.e *= 1 - 0.6 * np.minimum(depth, 1)
        self.h += depth * (1 + 0.22 * canvas.noise(rng, "grain"))


def bumpy(rng: np.random.Generator, turn: Array, bump: float) -> Array:
    """Radius of a unit circle with three random bumps, each up to `bump` high, at the angles `turn` (radians)."""
    heights, phases = rng.uniform(0, bump, 3).tolist(), rng.uniform(0, 2 * np.pi, 3).tolist()
    waves = (h * np.cos(k * turn + p) for k, h, p in zip((2, 3, 4), heights, phases, strict=True))
    return np.asarray(1 + sum(waves))


@lru_cache(maxsize=8)
def _bank(kind: str, scale: int) -> Array:
    """A periodic noise image, zero mean, unit variance, `BANK * scale` pixels per side; the same in every process."""
    sigma = {"cloud": (7.0, 7.0), "grain": (0.8, 0.8), "fibre": (0.9, 7.0)}[kind]
    white = np.random.default_rng(ord(kind[0])).standard_normal((BANK, BANK))
    noise = ndimage.gaussian_filter(white, sigma, mode="wrap")
    zoomed = ndimage.zoom(noise / noise.std(), scale, order=3, mode="grid-wrap", grid_mode=True)
    return np.asarray(zoomed, np.float32)


class Canvas:
    """A field of view painted at `size` pixels, a multiple of 64: positions of its pixels, in units, and drawing functions."""

    def __init__(self, size: int) -> None:
        self.size, self.scale = size, size // FIELD
        self.x = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / self.scale
        self.y = self.x[:, None]

    def noise(self, rng: np.random.Generator, kind: str) -> Array:
        """A random crop of a noise bank, [S, S]."""
        y, x = (rng.integers(0, BANK - FIELD, 2) * self.scale).tolist()
        flip_y, flip_x = (rng.integers(0, 2, 2) * 2 - 1).tolist()
        return _bank(kind, self.scale)[y : y + self.size, x : x + self.size][::flip_y, ::flip_x]

    def fibres(self, rng: np.random.Generator, angle: float, wave: float = 5.0) -> Array:
        """Bundles along `angle` (radians) in waves `wave` units high, [S, S], about zero mean and unit variance."""
        c, s = math.cos(angle), math.sin(angle)
        start, begin = rng.uniform(0, BANK, 2).tolist()
        across = c * self.y - s * self.x + wave * self.noise(rng, "cloud") + start
        along = s * self.y + c * self.x + begin
        at = np.stack([across, along]) * self.scale
        return np.asarray(ndimage.map_coordinates(_bank("fibre", self.scale), at, order=1, mode="grid-wrap"))

    def blob(
        self, rng: np.random.Generator, x: float, y: float, long: float, short: float, angle: float, bump: float
    ) -> Array:
        """Distance from (x, y) in radii of an ellipse with random bumps, each up to `bump` radii high, [S, S]."""
        dx, dy = self.x - x, self.y - y
        c, s = math.cos(angle), math.sin(angle)
        u, v = (c * dx + s * dy) / long, (c * dy - s * dx) / short
        turn = np.arctan2(v, u)
        return np.sqrt(u * u + v * v) / bumpy(rng, turn, bump)

    def stamp(self, nuclei: Array) -> Array:
        """Haematoxylin of nuclei [8, n], [S, S]: soft edge, darker rim; where two overlap, the darker."""
        x, y, long, short, angle, tone, bend, phase = nuclei[..., None, None]
        half = math.ceil((1.35 * float(nuclei[2:4].max(initial=0)) + 1) * self.scale)
        steps = np.arange(-half, half + 1, dtype=np.float32) + np.float32(0.5)
        column, row = np.floor(x * self.scale), np.floor(y * self.scale)
        dx, dy = (column + steps) / self.scale - x, (row + steps[:, None]) / self.scale - y
        c, s = np.cos(angle), np.sin(angle)
        u, v = c / long * dx + s / long * dy, c / short * dy - s / short * dx
        r = np.sqrt(u * u + v * v) + np.float32(1e-6)
        cos, sin = u / r, v / r
        r /= 1 + bend * np.cos(phase) * cos * (4 * cos * cos - 3) + 2 * bend * np.sin(phase) * cos * sin
        inside = np.clip((1 - r) * short / np.float32(NUCLEUS_EDGE) + np.float32(0.5), 0, 1)
        rim = np.minimum(r * r, 1)
        tiles = tone * inside * (np.float32(0.8) + np.float32(0.25) * rim * rim)
        width = len(steps)  # of a tile, and of the margin for nuclei off the field
        padded = np.zeros((self.size + 2 * width,) * 2, np.float32)
        corners = [np.clip(p.ravel() - half + width, 0, self.size + width).astype(int).tolist() for p in (column, row)]
        for tile, left, top in zip(tiles, *corners, strict=True):
            window = padded[top : top + width, left : left + width]
            np.maximum(window, tile, out=window)
        return padded[width:-width, width:-width]


def _nuclei(
    rng: np.random.Generator, xy: Array, long: float | Array, short: float | Array, angle: Array | None = None,
    spread: float = 0.12, tone: float = 1.0, bend: float = 0.06
) -> Array:  # fmt: skip
    """Bent ellipses at xy [n, 2], the rows of [8, n]: x, y, two semi-axes, angle of the first, tone, bend and its phase.

    Sizes and tones (haematoxylin inside) vary log-normally by `spread`; without `angle` (radians) they lie at random;
    `bend` is the irregularity of the outline, 0 (ellipse) to about 0.3.
    """
    n = len(xy)
    size, shape, shade = np.exp(spread * rng.standard_normal((3, n)))
    turn, phase = rng.uniform(0, 2 * np.pi, (2, n))
    angle, bends = turn if angle is None else angle, bend * rng.uniform(0.5, 1.5, n)
    return np.array([*xy.T, long * size, short * size * shape, angle, tone * shade, bends, phase], np.float32)


def _scatter(rng: np.random.Generator, canvas: Canvas, n: int, gap: float, weight: Array) -> tuple[Array, list[int]]:
    """Candidate points, [4n + 8, 2] in units, and which to keep: at most n, `gap` apart, where `weight` [S, S] > 1/2.

    Draw random numbers for every candidate before choosing: how many are kept may differ with the resolution.
    """
    points = rng.uniform(-2, FIELD + 2, (4 * n + 8, 2)).astype(np.float32)
    column, row = np.clip(points.T * canvas.scale, 0, canvas.size - 1).astype(int)
    eligible = np.flatnonzero(weight[row, column] > 0.5)
    x, y = points[eligible].T
    near = (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2 < gap * gap
    candidate = np.ones(len(eligible), bool)
    kept: list[int] = []
    for i, index in enumerate(eligible.tolist()):
        if candidate[i] and len(kept) < n:
            kept.append(index)
            candidate &= ~near[i]
    return points, kept


def _inside(distance: Array, reach: float, edge: float) -> Array:
    """Weight in [0, 1], [S, S]: 0 at distances from `reach` on, 1 up to `reach` − `edge`."""
    return np.clip((reach - distance) / edge, 0, 1)


def _paint_normal(rng: np.random.Generator, canvas: Canvas) -> Tissue:
    """Stroma of wavy fibres, spindle and round nuclei, sometimes glands or a white cleft."""
    angle, eosin, cells = rng.uniform(0, np.pi), rng.uniform(0.45, 0.85), int(rng.uniform(3, 30))
    bundles = np.tanh(1.2 * canvas.fibres(rng, angle))
    tissue = Tissue(
        h=0.10 + 0.04 * canvas.noise(rng, "grain") + 0.03 * canvas.noise(rng, "cloud"),
        e=eosin * (1 + 0.38 * bundles + 0.12 * canvas.noise(rng, "cloud")),
    )
    stroma = np.ones_like(tissue.h)
    if rng.random() < 0.35:
        (x, y), long, short = rng.uniform(0, FIELD, 2).tolist(), rng.uniform(7, 16), rng.uniform(2, 5)
        cleft = _inside(canvas.blob(rng, x, y, long, short, angle, bump=0.12), 1, 1 / short)
        tissue.fill(cleft, 0.02, 0.03)
        stroma -= cleft
    for _ in range(rng.choice(3, p=(0.4, 0.4, 0.2))):
        stroma -= _paint_gland(rng, canvas, tissue)
    xy, kept = _scatter(rng, canvas, cells, 6.5, stroma)
    turn = angle + 0.3 * rng.standard_normal(len(xy))
    long, short = np.where(rng.random(len(xy)) < 0.65, [[4.3], [1.8]], [[3.2], [2.8]])
    tissue.add_nuclei(rng, canvas, _nuclei(rng, xy, long, short, turn)[:, kept])
    return tissue


def _paint_gland(rng: np.random.Generator, canvas: Canvas, tissue: Tissue) -> Array:
    """A ring of basal nuclei around a light lumen; returns the weight of the gland and its surroundings, [S, S]."""
    x, y = rng.uniform(2, FIELD - 2, 2).tolist()
    long, angle = rng.uniform(12, 18), rng.uniform(0, np.pi)
    short, ring = long * rng.uniform(0.7, 1), 0.78
    distance = canvas.blob(rng, x, y, long, short, angle, bump=0.05)
    tissue.fill(_inside(distance, 1.16, 0.08), 0.06, 0.9)  # basement membrane
    cytoplasm = 0.22 + 0.03 * canvas.noise(rng, "grain"), 0.5 + 0.05 * canvas.noise(rng, "cloud")
    tissue.fill(_inside(distance, 1.05, 0.08), *cytoplasm)
    tissue.fill(_inside(distance, rng.uniform(0.35, 0.5), 0.1), 0.03, 0.05)  # lumen
    n = int(2 * np.pi * ring * math.sqrt(long * short) / 5.6)
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False) + 0.08 * rng.standard_normal(n)
    u, v = ring * long * np.cos(turn), ring * short * np.sin(turn)
    c, s = math.cos(angle), math.sin(angle)
    xy = np.stack([x + c * u - s * v, y + s * u + c * v], 1)
    tissue.add_nuclei(rng, canvas, _nuclei(rng, xy, 3.4, 2.4, turn + angle, spread=0.08, tone=0.9))
    return _inside(distance, 1.25, 0.05)


# Each anomaly fills a field; `region`, [S, S], is the weight with which it will be blended in.


def _paint_crowded(rng: np.random.Generator, canvas: Canvas, region: Array) -> Tissue:
    """Densely packed irregular nuclei with hardly any cytoplasm: a high-grade clump."""
    tissue = Tissue(0.22 + 0.04 * canvas.noise(rng, "grain"), 0.35 + 0.05 * canvas.noise(rng, "cloud"))
    xy, kept = _scatter(rng, canvas, 150, 4.1, region)
    tissue.add_nuclei(rng, canvas, _nuclei(rng, xy, 3.0, 2.2, spread=0.22, tone=1.1, bend=0.22)[:, kept])
    return tissue


def _paint_giant_nuclei(rng: np.random.Generator, canvas: Canvas, region: Array) -> Tissue:
    """Enlarged, misshapen, dark nuclei of unequal size with nucleoli, in glassy cytoplasm."""
    tissue = Tissue(0.12 + 0.04 * canvas.noise(rng, "grain"), 0.5 + 0.08 * canvas.noise(rng, "cloud"))
    xy, kept = _scatter(rng, canvas, 60, 11.5, region)
    tissue.add_nuclei(rng, canvas, _nuclei(rng, xy, 6.6, 5.0, spread=0.2, tone=1.15, bend=0.2)[:, kept])
    nucleoli = _nuclei(rng, xy + rng.normal(0, 1.2, xy.shape), 1.4, 1.2, tone=1.9)
    tissue.h = np.maximum(tissue.h, canvas.stamp(nucleoli[:, kept]))
    return tissue


def _paint_necrosis(rng: np.random.Generator, canvas: Canvas, region: Array) -> Tissue:
    """Smudged, structureless, eosinophilic ghost of tissue with nuclear dust."""
    tissue = Tissue(0.2 + 0.06 * canvas.noise(rng, "cloud"), 0.8 + 0.1 * canvas.noise(rng, "cloud"))
    xy, kept = _scatter(rng, canvas, int(rng.uniform(40, 90)), 2.0, region)
    tissue.add_nuclei(rng, canvas, _nuclei(rng, xy, 0.8, 0.7, spread=0.35, tone=1.3)[:, kept])
    return tissue


def _paint_haemorrhage(rng: np.random.Generator, canvas: Canvas, region: Array) -> Tissue:
    """Red cells outside any vessel: packed discs of eosin without nuclei, pale between."""
    tissue = Tissue(np.full_like(region, 0.03), np.full_like(region, 0.15))
    xy, kept = _scatter(rng, canvas, 150, 4.3, region)
    tissue.e += 1.3 * canvas.stamp(_nuclei(rng, xy, 2.6, 2.4, spread=0.08)[:, kept])
    return tissue


def _paint_mucin(rng: np.random.Generator, canvas: Canvas, region: Array) -> Tissue:
    """A pool of pale, blue-grey, streaming mucus in which a few cells float."""
    streaks = np.tanh(canvas.fibres(rng, rng.uniform(0, np.pi), wave=9.0))
    tissue = Tissue(0.22 + 0.14 * streaks, np.full_like(region, 0.06))
    xy, kept = _scatter(rng, canvas, 5, 14.0, region)
    tissue.add_nuclei(rng, canvas, _nuclei(rng, xy, 3.2, 2.2, tone=1.2, bend=0.15)[:, kept])
    return tissue


_PAINTERS: dict[str, Callable[[np.random.Generator, Canvas, Array], Tissue]] = {
    "crowded": _paint_crowded,
    "giant_nuclei": _paint_giant_nuclei,
    "necrosis": _paint_necrosis,
    "haemorrhage": _paint_haemorrhage,
    "mucin": _paint_mucin,
}
ANOMALIES: tuple[str, ...] = tuple(_PAINTERS)


def _add_anomaly(rng: np.random.Generator, canvas: Canvas, tissue: Tissue, kind: str) -> Array:
    """Replace a bumpy blob of tissue by the anomaly; returns its weight, [S, S], above zero where a pixel changed."""
    x, y = rng.uniform(0.2 * FIELD, 0.8 * FIELD, 2).tolist()
    distance = canvas.blob(rng, x, y, 1, rng.uniform(0.65, 1), rng.uniform(0, np.pi), bump=0.14)
    region = _inside(distance, float(np.quantile(distance, rng.uniform(*MASK_AREA))), MASK_EDGE)
    anomaly = _PAINTERS[kind](rng, canvas, region)
    tissue.fill(region, anomaly.h, anomaly.e)
    return region


def render_patch(
    rng: np.random.Generator, resolution: int = 64, anomaly: str | None = None, stain: Stain | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One patch and the exact mask of its anomaly.

    Args:
        rng: decides everything; equal generators give the same tissue at every resolution, up to the size of a pixel, and the same
            pixels outside the mask with and without an anomaly.
        resolution: pixels per side, a power of two, 16 to 512; the field of view stays the same.
        anomaly: one of `ANOMALIES`, or None for normal tissue.
        stain: the slide's; None draws one.

    Returns:
        RGB, uint8 [R, R, 3], and bool [R, R]: True where the anomaly changes a pixel, 8 to 50 % of the patch, or nowhere.

    Raises ValueError for another resolution or anomaly.
    """
    _check_resolution(resolution)
    if anomaly is not None and anomaly not in ANOMALIES:
        raise ValueError(f"unknown anomaly {anomaly!r}: choose from {', '.join(ANOMALIES)}")
    stain = stain or Stain.draw(rng)
    canvas = Canvas(max(resolution, FIELD))
    tissue = _paint_normal(rng, canvas)
    region = _add_anomaly(rng, canvas, tissue, anomaly) if anomaly else np.zeros_like(tissue.h)
    mask = region.reshape((resolution, canvas.size // resolution) * 2).max((1, 3)) > 0
    return _shrunk(stain.colour(tissue), resolution), mask


def render_field(rng: np.random.Generator, resolution: int, kind: str, stain: Stain) -> NDArray[np.uint8]:
    """A field full of one kind of tissue, "normal" or one of `ANOMALIES`: RGB, uint8 [R, R, 3]; resolutions as in `render_patch`."""
    _check_resolution(resolution)
    canvas = Canvas(max(resolution, FIELD))
    everywhere = np.ones((canvas.size, canvas.size), np.float32)
    tissue = _paint_normal(rng, canvas) if kind == "normal" else _PAINTERS[kind](rng, canvas, everywhere)
    return _shrunk(stain.colour(tissue), resolution)


def _shrunk(rgb: Array, resolution: int) -> NDArray[np.uint8]:
    blocks = (resolution, rgb.shape[0] // resolution) * 2
    return np.rint(rgb.reshape(*blocks, 3).mean((1, 3))).astype(np.uint8)


def _check_resolution(resolution: int) -> None:
    if not MIN_RESOLUTION <= resolution <= MAX_RESOLUTION or resolution & (resolution - 1):
        raise ValueError(f"resolution {resolution}: must be a power of two from {MIN_RESOLUTION} to {MAX_RESOLUTION}")


def write_phantom(
    out: Path, *, resolution: int = 64, train: int = 2000, val: int = 200, test: int = 300, seed: int = 0,
    groups: tuple[int, int, int] = GROUPS, train_anomalous: int = 0, progress: Callable[[int, int], None] | None = None
) -> Path:  # fmt: skip
    """Write a patch set: `images/*.png`, `masks/*.png` (8-bit, 0 or 255, anomalous patches only) and `index.csv`.

    The index has the columns image, group, label (0 or 1), split, class ("normal" or the anomaly) and mask; paths are relative
    to `out`. It is written last, so a folder with an index is complete, and is left as it is. Image i of a split and class depends on
    the seed and on its slide, not on the number of images.

    Args:
        out: the folder, made if missing; also the return value.
        resolution: see `render_patch`.
        train: normal patches to train on.
        train_anomalous: anomalous patches of the train split, for `data.contamination` and classifiers.
        val, test: normal patches, and as many anomalous ones, each kind in turn.
        seed: 0 or more.
        groups: slides of train, val and test, each with its own stain; small sets may not use all of them.
        progress: called with (patches done, total) after each.

    Raises ValueError when an argument is out of range or `out` holds other data.
    """
    _check_resolution(resolution)
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    if min(*counts.values(), *groups) < 1 or min(seed, train_anomalous) < 0:
        raise ValueError(
            f"counts {counts} and groups {groups} must be at least 1, seed {seed} and train_anomalous at least 0"
        )
    arguments = {"version": VERSION, "resolution": resolution, **counts, "seed": seed, "groups": list(groups)}
    arguments |= {"train_anomalous": train_anomalous} if train_anomalous else {}
    index, record = out / "index.csv", out / "phantom.json"
    if index.exists() or record.exists():
        found = read_json(record)
        if found != arguments:
            raise ValueError(f"{out} holds other data ({record.name}: {found}, not {arguments}); choose another folder")
        if index.exists():
            return out
    make_folder(out / "images")
    make_folder(out / "masks")
    write_json(record, arguments)
    kinds = [(train, train_anomalous), (val, val), (test, test)]
    plan = [(s, label, i) for s, counted in enumerate(kinds) for label in (0, 1) for i in range(counted[label])]
    rows = []
    for done, (split, label, i) in enumerate(plan, start=1):
        rows.append(_write_patch(out, resolution, seed, split, label, i, groups[split]))
        if progress:
            progress(done, len(plan))
    write_text(index, csv_text(("image", "group", "label", "split", "class", "mask"), rows))
    return out


def _write_patch(out: Path, resolution: int, seed: int, split: int, label: int, i: int, slides: int) -> list[object]:
    """Write patch i of a split and label, and its mask if it has an anomaly; returns its row of the index."""
    kind, slide = i % len(ANOMALIES), i // len(ANOMALIES) % slides
    name, group = ANOMALIES[kind] if label else "normal", f"phantom-{SPLITS[split]}-{slide:02d}"
    stain = Stain.draw(np.random.default_rng([seed, split, STAIN_STREAM, slide]))
    rng = np.random.default_rng([seed, split, label * (1 + kind), i])
    rgb, mask = render_patch(rng, resolution, name if label else None, stain)
    file = f"{SPLITS[split]}_{name}_{i:05d}.png"
    Image.fromarray(rgb).save(out / "images" / file, compress_level=1)
    if label:
        Image.fromarray(mask.astype(np.uint8) * 255).save(out / "masks" / file, compress_level=1)
    return [f"images/{file}", group, label, SPLITS[split], name, f"masks/{file}" if label else ""]
