"""From a benchmark file to its cells: what is trained, how it is scored, and a key that tells each from every other."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad.benchmark.datasets import BenchmarkData
from gan_uad.benchmark.schema import Benchmark, Method, Range, Scoring, Search, Settings, Trained
from gan_uad.config import RunConfig, load_config
from gan_uad.data.arrays import digest
from gan_uad.errors import UserError, near
from gan_uad.run import model_file

FREE = ("device", "threads", "tick_kimg", "snapshot_kimg", "checkpoint_kimg")  # of `training`: they change no figure
BEFORE = "{before}"  # in a setting: the run before in the chain, where that is not a generator
ENDED = "ended by signal"  # how the reason begins where the cell itself did not fail
OWN = "own"  # the run's own way of scoring


@dataclass(frozen=True)
class Training:
    """One run of a chain: still to be trained into `place` (relative to the benchmark's folder), or finished elsewhere (`run`)."""

    name: str
    key: str
    config: str = ""
    overrides: tuple[str, ...] = ()
    place: str = ""
    published_kimg: float | None = None  # what the configuration itself says
    run: str = ""


@dataclass(frozen=True)
class Cell:
    """One row of the table, or one attempt of a search (scored on the val split)."""

    method: str
    scoring: str
    data: str
    overrides: str
    seed: int
    chain: tuple[Training, ...]
    path: str  # of the patches
    told: tuple[str, ...]  # scoring.* and data.* settings of the scoring
    inverter: str | None
    maps: bool
    max_images: int | None
    resamples: int
    key: str = ""
    settings: str = ""  # those of an attempt, in words
    by: str = ""  # how an attempt is judged; "" for a row of the table
    attempts: tuple[Cell, ...] = ()
    problem: str = ""  # why it cannot be tried

    @property
    def label(self) -> str:
        """In words, as on a line of progress."""
        parts = [
            self.data,
            self.method,
            "" if self.scoring == OWN else self.scoring,
            self.overrides,
            f"seed {self.seed}",
        ]
        return ", ".join(part for part in [*parts, self.settings] if part)

    @property
    def folder(self) -> str:
        """Relative to the benchmark's folder."""
        parts = [self.data, self.method, "" if self.scoring == OWN else self.scoring, self.overrides, f"s{self.seed}"]
        kind = "attempts" if self.by else "cells"
        return f"{kind}/{'-'.join(part for part in parts if part)}-{self.key[:10]}"

    @property
    def family(self) -> str:
        """Cells of one family begin with the same training: one machine does them all."""
        return self.chain[0].key if self.chain else self.attempts[0].family if self.attempts else self.key


def plan(benchmark: Benchmark, data: dict[str, BenchmarkData], kimg: float | None, device: str) -> list[Cell]:
    """All cells on the data sets that are at hand, in the order of the table. Raises `UserError` for settings that no training takes."""
    cells: list[Cell] = []
    for name in (n for n in benchmark.data if n in data):
        for label, method in benchmark.methods.items():
            if method.data is not None and name not in method.data:
                continue
            sets = method.overrides if method.overrides is not None else benchmark.overrides
            for overrides, settings in (sets or {"": {}}).items():
                for scoring, way in (method.score or {OWN: Scoring()}).items():
                    for seed in method.seeds if method.seeds is not None else benchmark.seeds:
                        maker = _Maker(benchmark, data[name], kimg, device, name, label, overrides, scoring, seed)
                        try:
                            cells.append(maker.cell(method, way, settings))
                        except UserError as error:
                            raise UserError(f"methods.{label}: {error.message}") from None
    return cells


def chain_of(
    benchmark: Benchmark, data: BenchmarkData, kimg: float | None, device: str, name: str, label: str, trained: Trained, seed: int
) -> list[Training]:  # fmt: skip
    """The trainings of `trained`, called `label`, on the data set `name`. Raises `Missing` for a run that is not there."""
    return _Maker(benchmark, data, kimg, device, name, label, "", OWN, seed).generator(trained)


@dataclass(frozen=True)
class _Maker:
    """Makes the cell of one place in the grid of methods, data sets, overrides, scorings and seeds."""

    benchmark: Benchmark
    data: BenchmarkData
    kimg: float | None
    device: str
    name: str
    method: str
    overrides: str
    scoring: str
    seed: int

    def cell(self, method: Method, way: Scoring, settings: Settings) -> Cell:
        layers = [self.benchmark.set, self.benchmark.data[self.name].set, method.set, settings]
        if method.search is None:
            return self._one(method, way, layers)
        found = tuple(
            replace(self._one(method, way, [*layers, point], method.search.by), settings=_in_words(point))
            for point in points(method.search)
        )
        first = found[0]
        key = digest("chosen", [attempt.key for attempt in found])
        return replace(first, chain=(), key=key, settings="", by="", attempts=found, problem="")

    def _one(self, method: Method, way: Scoring, layers: Sequence[Settings], by: str = "") -> Cell:
        cell = Cell(
            self.method, self.scoring, self.name, self.overrides, self.seed, (), str(self.data.path), (), way.inverter, way.maps,
            self.benchmark.max_images, self.benchmark.resamples, by=by,
        )  # fmt: skip
        try:
            chain, told = self._chain(method, layers)
        except Missing as missing:
            key = digest("missing", str(missing), self.method, self.scoring, self.name, self.overrides, self.seed)
            return replace(cell, key=key, problem=str(missing))
        if way.inverter is not None:  # what is set is for the run's own
            told = [override for override in told if not override.startswith("scoring.options.")]
        told += [f"{key}={json.dumps(value)}" for key, value in way.set.items()]
        key = digest(
            [step.key for step in chain], self.data.key, sorted(told), way.inverter, way.maps,
            self.benchmark.max_images, self.benchmark.resamples, by,
        )  # fmt: skip
        return replace(cell, chain=tuple(chain), told=tuple(told), key=key)

    def generator(self, trained: Trained) -> list[Training]:
        """The trainings of what is judged and not scored."""
        return self._chain(trained, [self.benchmark.set, self.benchmark.data[self.name].set, trained.set])[0]

    def _chain(self, method: Trained, layers: Sequence[Settings]) -> tuple[list[Training], list[str]]:
        """The trainings, and what of the settings is told to the scoring instead."""
        steps = [(step.config, step.run) for step in method.train] or [(self.method, None)]
        configs = [config for config, _ in steps if config]
        chain: list[Training] = []
        told: list[str] = []
        for config, run in steps:
            last = len(chain) + 1 == len(steps)
            if config is None:
                chain.append(self._finished(str(run)))
                anew = _overrides(layers, "", configs)
                told = [override for override in anew if last and override.startswith(("data.", "scoring."))]
                continue
            own = _overrides(layers, config, configs)
            trained = load_config(config, own).task != ""
            # A run is scored anew for another scoring, not trained anew; a scorer that is fitted is that scoring.
            # What is done to the scored images alone is nothing that a fit would differ by.
            aside = [o for o in own if o.startswith("scoring." if trained else "scoring.corruption")]
            told = aside if last else []
            chain.append(self._training(config, [o for o in own if o not in aside], chain[-1] if chain else None))
        return chain, told

    def _training(self, name: str, overrides: list[str], before: Training | None) -> Training:
        published = load_config(name).training.total_kimg
        overrides.append(f"training.seed={self.seed}")
        wanted = load_config(name, overrides).training.total_kimg
        if (most := min(self.kimg or wanted, self.benchmark.kimg or wanted)) < wanted:
            overrides.append(f"training.total_kimg={most}")
        config = load_config(name, overrides)
        key = digest(_essence(config), self.data.key, before.key if before else None)
        if self.device != "auto":
            overrides.append(f"training.device={self.device}")
        return Training(config.name, key, name, tuple(overrides), f"runs/{config.name}-{key[:10]}", published)

    def _finished(self, pattern: str) -> Training:
        text = pattern.replace("{data}", self.name).replace("{method}", self.method).replace("{seed}", str(self.seed))
        path = Path(text).expanduser()
        matches = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))) or [path]
        found = [(match, file) for match in matches if (file := _model_file(match))]
        if not found:
            raise Missing(f"no finished run or model file at {text}")
        run, file = found[-1]
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        place = run if run.exists() else file  # the name of a shipped model is no place
        return Training(re.sub(r"^\d{5}-", "", run.stem), content, run=str(place.resolve()))


class Missing(Exception):
    """A run that a method names is not there."""


def _model_file(path: Path) -> Path | None:
    with suppress(UserError):
        return model_file(path)
    return None


def _essence(config: RunConfig) -> str:
    """What of a configuration decides over its figures. Paths of data are told by the key of the data."""
    told = config.model_dump(mode="json")
    told["training"] = {key: value for key, value in told["training"].items() if key not in FREE}
    told["data"]["path"] = None
    if not told["data"]["contamination"]:  # keys are as they were before there was any
        del told["data"]["contamination"]
    if not config.scoring.corruption.words:
        del told["scoring"]["corruption"]
    return json.dumps(told, sort_keys=True)


def _overrides(layers: Sequence[Settings], config: str, configs: Sequence[str]) -> list[str]:
    """The settings that are of `config`, later layers over earlier ones, as `key=value`.

    A key holds for every training of a chain; `CONFIG/key` for that one. Raises `UserError` for another CONFIG.
    """
    merged: Settings = {}
    for layer in layers:
        for name, value in layer.items():
            address, slash, key = name.rpartition("/")
            if slash and address not in configs:
                raise UserError(f"{name!r}: no training of the chain is called {address!r}: {near(address, configs)}")
            if not slash or address == config:
                merged[key] = value
    return [f"{key}={json.dumps(value)}" for key, value in merged.items()]


def points(search: Search) -> Iterator[Settings]:
    """What a search tries: every combination of a grid, or seeded draws."""
    if search.grid:
        for values in itertools.product(*search.grid.values()):
            yield dict(zip(search.grid, values, strict=True))
        return
    rng = np.random.default_rng(search.seed)
    for _ in range(search.attempts):
        yield {key: _drawn(values, rng) for key, values in search.random.items()}


def _drawn(values: Range | list[Any], rng: np.random.Generator) -> Any:
    if isinstance(values, list):
        return values[int(rng.integers(len(values)))]
    ends = np.log([values.low, values.high]) if values.log else np.array([values.low, values.high])
    drawn = float(rng.uniform(*ends))
    value = float(f"{np.exp(drawn) if values.log else drawn:.4g}")
    return round(value) if values.whole else value


def _in_words(point: Settings) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in point.items())
