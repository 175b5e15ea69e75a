"""What all parts of a report share: a place that results were found in, what is known so far, and reading what jobs wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad.config import DataConfig
from gan_uad.data.images import BadImage, Pixels, preprocess
from gan_uad.data.manifest import LABEL_NAMES, SPLITS, Manifest
from gan_uad.data.patches import split_manifest
from gan_uad.data.sources import Source, open_source
from gan_uad.errors import UserError
from gan_uad.report.html import Document, Figure, Notes, Table, embed
from gan_uad.tables import format_interval

SAMPLES = 12  # of each class in the picture


@dataclass(frozen=True)
class ResultFolder:
    """A folder or picture that a report is made of, and what it is called there."""

    path: Path
    name: str


@dataclass
class Gathering:
    """The report in the making. `scratch`: a folder for pictures that are drawn for it; the sets hold resolved paths."""

    doc: Document
    scratch: Path
    evaluated: set[Path] = field(default_factory=set)  # score files that figures were made of
    scored: set[Path] = field(default_factory=set)  # runs that patches or slides were scored with
    judged: set[Path] = field(default_factory=set)  # runs whose images were compared with real ones
    shown_data: set[tuple[Any, ...]] = field(default_factory=set)
    checks: list[Callable[[], None]] = field(default_factory=list)  # of what is missing, when all is gathered

    def drawing(self, name: str) -> Path:
        """Where to draw a picture."""
        return self.scratch / f"{len(list(self.scratch.iterdir())):04d}_{name}.png"


def read_json(path: Path, kind: type = dict) -> Any:
    """What a job wrote. Raises `UserError` for a damaged file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run again what wrote it, or leave it out") from None
    if not isinstance(value, kind):
        raise UserError(f"{path} is not what gan-uad writes: expected a JSON {kind.__name__}; leave it out")
    return value


def read_rows(path: Path, needed: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file. Raises `UserError` for one that cannot be read or lacks a column."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if absent := [name for name in needed if name not in (reader.fieldnames or [])]:
        raise UserError(f"{path}: no column {absent[0]!r}; leave the file out, or run again what wrote it")
    return rows


def well_formed(path: Path) -> Any:
    """A guard for what is made of a file: a key or kind of value that it lacks is a `UserError` that names it."""
    return _WellFormed(path)


class _WellFormed:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, KeyError | TypeError | AttributeError | IndexError | ValueError):
            raise UserError(
                f"{self.path} is not what this version of gan-uad writes ({type(error).__name__}: {error}); "
                "run again what wrote it, or leave it out"
            ) from error


def pairs(caption: str, values: dict[str, Any]) -> Table:
    """Names and values, without those that are unknown."""
    return Table(caption, (), [(k, v) for k, v in values.items() if v is not None and v != ""], pairs=True)


def in_words(figure: dict[str, Any]) -> str:
    """`0.853 [0.81, 0.89]` of `{value, low, high}`."""
    return format_interval(figure["value"], figure["low"], figure["high"])


def listed(values: dict[str, Any]) -> str:
    """Settings in one line: `steps 0, combine fisher`."""
    return ", ".join(f"{key} {value}" for key, value in values.items())


def show_data(g: Gathering, found: ResultFolder, raw: dict[str, Any], resolution: int | None) -> Source | None:
    """Counts, balance and samples of a patch set, once, where it is at hand; returns it."""
    data = DataConfig(**{key: value for key, value in raw.items() if key in DataConfig.model_fields})
    if data.path is None:
        g.doc.missing(found.name, "the settings do not name the patches, so they are not shown")
        return None
    try:
        source = open_source(data.path, data)
        manifest, notes = split_manifest(source, data)
    except UserError as error:
        g.doc.missing(
            found.name, f"the patches are not at hand, so neither they nor their counts are shown: {error.message}"
        )
        return None
    dealt = (str(source.path), str(data.split_fractions), data.split_seed, data.folds, data.fold)
    if dealt not in g.shown_data:
        g.shown_data.add(dealt)
        g.doc.add("data", found.name, _counted(manifest, str(data.path), source.kind), Notes(notes))
        _draw_data(g, found, source, manifest, data, resolution)
    return source


def _counted(manifest: Manifest, path: str, kind: str) -> Table:
    """Images and groups by split and label."""
    rows: list[list[Any]] = []
    for split in (*SPLITS, None):
        if split is not None and split not in manifest.split:
            continue
        counts = [len(manifest.where(split, label)) for label in LABEL_NAMES]
        groups = {manifest.group[i] for i in manifest.where(split)} - {""}
        rows.append([split or "all", *counts, sum(counts), len(groups) or None])
    headings = ("split", *LABEL_NAMES.values(), "images", "groups")
    return Table(f"Patches of {path} ({kind}): n by split and label; groups are patients or slides", headings, rows)


def _draw_data(
    g: Gathering, found: ResultFolder, source: Source, manifest: Manifest, data: DataConfig, resolution: int | None
) -> None:
    from gan_uad.plotting.pictures import class_samples
    from gan_uad.plotting.plots import class_balance

    counts = manifest.replace(klass=[""] * len(manifest)).counts()
    ordered = {split: {name: of[name] for name in LABEL_NAMES.values() if name in of} for split, of in counts.items()}
    balance = class_balance(ordered, g.drawing("balance"))
    g.doc.picture(
        "data", found.name, balance, f"Class balance: number of images by split and label, n = {len(manifest):,}."
    )
    samples = {}
    for label, name in LABEL_NAMES.items():
        rows = manifest.where(None, label)
        chosen = np.random.default_rng(0).permutation(rows)[:SAMPLES].tolist()
        read = [picture for i in chosen if (picture := prepared(source, i, data, resolution)) is not None]
        sides = {picture.shape for picture in read}
        if read and len(sides) == 1:
            samples[f"{name}, {len(read)} of {len(rows):,}"] = np.stack(read)
    if samples:
        side = next(iter(samples.values())).shape[1]
        drawn = class_samples(samples, g.drawing("samples"), columns=6, scale=max(1, 96 // side))
        g.doc.add(
            "data",
            found.name,
            Figure(
                embed(drawn), "Random patches of each class, as the network sees them.", "random patches of each class"
            ),
        )


def prepared(source: Source, i: int, data: DataConfig, resolution: int | None) -> Pixels | None:
    """Picture i as the network sees it, or as it is stored where the resolution is unknown; None for a broken one."""
    try:
        picture = source.read(i)
        return picture if resolution is None else preprocess(picture, data, resolution, source.manifest.image[i])
    except BadImage:
        return None
