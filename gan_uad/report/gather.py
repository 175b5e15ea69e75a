"""Shared by all sections of a report: where results were found, what is known so far, and how result files are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad import files
from gan_uad.config import DataConfig
from gan_uad.data.images import BadImage, Pixels, preprocess
from gan_uad.data.manifest import LABEL_NAMES, SPLITS, Manifest
from gan_uad.data.sources import Source, open_source
from gan_uad.data.splits import split_manifest
from gan_uad.errors import UserError
from gan_uad.report.html import Document, Figure, Notes, Table, embed
from gan_uad.tables import format_interval

N_SAMPLES = 12  # of each class in the picture
RELIABILITY = "Share of anomalous images at each predicted probability. On the diagonal, probabilities are calibrated."
RERUN = "run the command that wrote it again, or leave it out"


@dataclass(frozen=True)
class ResultFolder:
    """A folder or picture that a report shows, and its name there."""

    path: Path
    name: str


@dataclass
class Gathering:
    """A report that is being built. `scratch`: a folder for pictures that are drawn for it. The sets hold resolved paths."""

    doc: Document
    scratch: Path
    evaluated: set[Path] = field(default_factory=set)  # score files with metrics
    scored: set[Path] = field(default_factory=set)  # runs that patches or slides were scored with
    compared: set[Path] = field(default_factory=set)  # runs whose images were compared with real ones
    shown_data: set[tuple[Any, ...]] = field(default_factory=set)
    checks: list[Callable[[], None]] = field(default_factory=list)  # find what is missing, once everything is gathered

    def drawing(self, name: str) -> Path:
        """A new file for a picture."""
        return self.scratch / f"{len(list(self.scratch.iterdir())):04d}_{name}.png"


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON file of another command. Raises `UserError` where it cannot be read or holds no `kind`."""
    value = files.read_json(path)
    if not isinstance(value, kind):
        raise UserError(f"{path} is damaged or not of gan-uad: expected a JSON {kind.__name__}; {RERUN}")
    return value


@contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """Within it, a missing key or a wrong kind of value is a `UserError` that names `path`."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(
            f"{path} is not what this version of gan-uad writes ({type(error).__name__}: {error}); {RERUN}"
        ) from error


def pairs(caption: str, values: dict[str, Any]) -> Table:
    """Names and values, without unknown ones."""
    return Table(caption, (), [(k, v) for k, v in values.items() if v is not None and v != ""], pairs=True)


def in_words(metric: dict[str, Any]) -> str:
    """`0.853 [0.81, 0.89]` of `{value, low, high}`."""
    return format_interval(metric["value"], metric["low"], metric["high"])


def listed(values: Mapping[str, Any]) -> str:
    """Settings in one line: `steps 0, combine fisher`."""
    return ", ".join(f"{key} {value}" for key, value in values.items())


def hardware(about: Mapping[str, Any]) -> str:
    """The hardware of `environment()`."""
    devices = ", ".join(about.get("cuda") or []) or f"CPU, {about.get('cpu_cores', '?')} cores"
    return f"{devices}; {about.get('platform', '')}"


def versions(about: Mapping[str, Any]) -> dict[str, str]:
    """The versions and the revision of `environment()`, as rows of `pairs`."""
    packages = {name: version for name, version in about.get("packages", {}).items() if version}
    return {
        "Versions": listed({"Python": about.get("python"), **packages}),
        "Revision": about.get("git") or "unknown",
    }


def show_data(g: Gathering, found: ResultFolder, raw: dict[str, Any], resolution: int | None) -> Source | None:
    """Show counts, balance and samples of a patch set, once. Returns the set, or None where it is not available."""
    data = DataConfig(**{key: value for key, value in raw.items() if key in DataConfig.model_fields})
    if data.path is None:
        g.doc.missing(found.name, "the settings do not name the patches, so they are not shown")
        return None
    try:
        source = open_source(data.path, data)
        manifest, notes = split_manifest(source, data)
    except UserError as error:
        g.doc.missing(found.name, f"the patches are not available, so they are not shown: {error.message}")
        return None
    split = (str(source.path), str(data.split_fractions), data.split_seed, data.folds, data.fold)
    if split not in g.shown_data:
        g.shown_data.add(split)
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
        chosen = np.random.default_rng(0).permutation(rows)[:N_SAMPLES].tolist()
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
