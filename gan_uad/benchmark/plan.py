"""From a benchmark file to its cells and comparisons: what is trained, what is done with it, and a key that identifies each."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gan_uad import old_names, registry
from gan_uad.benchmark.datasets import BenchmarkData
from gan_uad.benchmark.schema import Benchmark, Method, Range, Scoring, Search, Trained, preset
from gan_uad.checkpoint import content
from gan_uad.config import DataConfig, RunConfig, load_config
from gan_uad.data.arrays import digest
from gan_uad.data.manifest import LABELS
from gan_uad.data.patches import split_manifest
from gan_uad.data.sources import open_source
from gan_uad.errors import UserError, near
from gan_uad.run import model_file

NO_EFFECT = ("device", "threads", "tick_kimg", "snapshot_kimg", "checkpoint_kimg")  # of `training`: on no metric
BEFORE = "{before}"  # in a setting: the run before in the chain, where that is not a generator
DEFAULT_SCORING = "own"  # name of the run's own way of scoring
GENERATION, CLASSIFICATION = "generation", "classification"  # sections of the file
DISTANCE, TABLE2, REAL_VS_SYNTHETIC = "distance", "table2", "real_vs_synthetic"  # kinds of comparison
SECTION = {DISTANCE: GENERATION, TABLE2: CLASSIFICATION, REAL_VS_SYNTHETIC: CLASSIFICATION}


@dataclass(frozen=True)
class Training:
    """One run of a chain: still to be trained into `place` (relative to the benchmark's folder), or finished elsewhere (`run`)."""

    name: str
    key: str
    config: str = ""
    overrides: tuple[str, ...] = ()
    place: str = ""
    published_kimg: float | None = None  # of the configuration itself
    run: str = ""


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """What one process does. It is finished when `folder`, relative to the benchmark's, holds `cell.json`."""

    data: str  # name of the data set
    path: str  # ... and its place
    seed: int
    key: str
    label: str  # for lines of progress
    folder: str
    problem: str = ""  # why it cannot be run


@dataclass(frozen=True, kw_only=True)
class Cell(_Planned):
    """One row of the table, or one attempt of a search (scored on the val split)."""

    method: str
    scoring: str
    overrides: str
    chain: tuple[Training, ...]
    scoring_settings: tuple[str, ...]  # scoring.* and data.* overrides of the scoring
    inverter: str | None
    maps: bool
    max_images: int | None
    resamples: int
    settings: str = ""  # those of an attempt, in words
    by: str = ""  # what an attempt is chosen by; "" for a row of the table
    attempts: tuple[Cell, ...] = ()
    instead_of: tuple[str, ...] = ()  # folders of the same with other seeds, where no seed changes it


@dataclass(frozen=True, kw_only=True)
class Comparison(_Planned):
    """One comparison of generated with real images, on one data set and with one seed."""

    kind: str
    what: str  # names of the generators, and of the classifier
    chains: tuple[tuple[Training, ...], ...]  # of the classifier (for `table2`, the first) and of each generator
    num: int
    features: str
    preset: str | None
    kimg: float | None
    by: ClassVar[str] = ""
    attempts: ClassVar[tuple[Cell, ...]] = ()

    @property
    def method(self) -> str:
        """The section of the file, as --only names it."""
        return SECTION[self.kind]

    @property
    def chain(self) -> tuple[Training, ...]:
        """All its trainings."""
        return tuple(itertools.chain(*self.chains))


Work = Cell | Comparison


class Missing(Exception):
    """A run that a method names does not exist."""


def plan(
    benchmark: Benchmark, data: Mapping[str, BenchmarkData], kimg: float | None, device: str, home: Path | None = None
) -> tuple[list[Cell], list[Comparison]]:
    """All cells and comparisons on the data sets of `data`, in the order of the tables. `home`: where folders of version 0.1 may lie.

    Raises `UserError` for settings that a training does not have.
    """
    found = [_Planner(benchmark, name, data[name], kimg, device, home) for name in benchmark.data if name in data]
    comparisons: dict[Any, Comparison] = {}
    for one in (one for planner in found for seed in benchmark.seeds for one in planner.comparisons(seed)):
        # Images of a finished generator do not depend on the seed, which draws those of a classifier.
        fixed = one.kind == DISTANCE and one.chain and all(step.run for step in one.chain)
        comparisons.setdefault(
            (one.data, one.what, one.features, *(s.key for s in one.chain)) if fixed else one.folder, one
        )
    return [cell for planner in found for cell in planner.cells()], list(comparisons.values())


@dataclass(frozen=True)
class _Planner:
    """Plans what is done on one data set."""

    benchmark: Benchmark
    name: str
    data: BenchmarkData
    kimg: float | None
    device: str
    home: Path | None

    def cells(self) -> Iterator[Cell]:
        for label, method in self.benchmark.methods.items():
            if self._has(method.data):
                sets = self.benchmark.overrides if method.overrides is None else method.overrides
                ways = method.score or {DEFAULT_SCORING: Scoring()}
                seeds = self.benchmark.seeds if method.seeds is None else method.seeds
                for overrides, scoring in itertools.product(sets or {"": {}}, ways):
                    layers, way = [method.set, sets[overrides] if sets else {}], ways[scoring]
                    try:
                        found = [self._cell(label, method, overrides, layers, scoring, way, seed) for seed in seeds]
                        yield from [self._once(found)] if self._seedless(found) else found
                    except UserError as error:
                        raise UserError(f"methods.{label}: {error.message}") from None

    def _seedless(self, cells: Sequence[Cell]) -> bool:
        """Whether cells that differ in their seed alone have the same result: nothing in them is drawn."""
        planned = [one for cell in cells for one in (cell, *cell.attempts)]
        if len({cell.seed for cell in cells}) < 2 or any(one.problem for one in planned):
            return False
        steps = zip(*([step for one in (cell, *cell.attempts) for step in one.chain] for cell in cells), strict=True)
        return all(
            len({step.key for step in same}) == 1 if same[0].run else self._draws_nothing(same[0]) for same in steps
        )

    def _draws_nothing(self, step: Training) -> bool:
        """Whether a training is the fit of a scorer that draws neither images nor anything else by its seed."""
        config = load_config(step.config, step.overrides)
        if config.task or config.data.contamination:
            return False
        scorer = registry.find("scorer", config.scoring.scorer)
        if "seed" in inspect.signature(scorer).parameters and "seed" not in config.scoring.options:
            return False
        data = config.data.model_copy(update={"path": str(self.data.path)})
        try:
            count = _n_train(self.data.key, str(self.data.path), data.model_dump_json())
        except UserError:  # nothing there yet
            return False
        return count <= round(config.training.total_kimg * 1000)

    @staticmethod
    def _once(cells: Sequence[Cell]) -> Cell:
        others = dict.fromkeys(cell.folder for cell in cells if cell.folder != cells[0].folder)
        return replace(cells[0], instead_of=tuple(others))

    def _cell(
        self, label: str, method: Method, overrides: str, layers: list[dict[str, Any]], scoring: str, way: Scoring, seed: int
    ) -> Cell:  # fmt: skip
        bench, path = self.benchmark, str(self.data.path)
        named = [self.name, label, "" if scoring == DEFAULT_SCORING else scoring, overrides]

        def make(by: str, point: Mapping[str, Any], attempts: tuple[Cell, ...] = ()) -> Cell:
            chain: list[Training] = []
            settings: list[str] = []
            problem, words = "", " ".join(f"{key}={json.dumps(value)}" for key, value in point.items())
            try:
                if attempts:
                    key = digest("chosen", [attempt.key for attempt in attempts])
                else:
                    chain, settings = self._chain(method, label, [*layers, point], seed)
                    if way.inverter is not None:  # the options are those of the run's own inverter
                        settings = [setting for setting in settings if not setting.startswith("scoring.options.")]
                    settings += [f"{key}={json.dumps(value)}" for key, value in way.set.items()]
                    words_0_1 = sorted(_first_words(setting) for setting in settings)
                    inverter = way.inverter and _first_words(way.inverter)
                    caps = (bench.max_images, bench.resamples, by.replace("validation", "judgement"))
                    key = digest([step.key for step in chain], self.data.key, words_0_1, inverter, way.maps, *caps)
            except Missing as missing:
                problem = str(missing)
                key = digest("missing", problem, label, scoring, self.name, overrides, seed)
            return Cell(
                data=self.name, path=path, seed=seed, key=key, label=_joined(", ", *named, f"seed {seed}", words),
                folder=self._folder("attempts" if by else "cells", _joined("-", *named, f"s{seed}"), key), problem=problem,
                method=label, scoring=scoring, overrides=overrides, chain=tuple(chain), scoring_settings=tuple(settings),
                inverter=way.inverter, maps=way.maps, max_images=bench.max_images, resamples=bench.resamples, settings=words,
                by=by, attempts=attempts,
            )  # fmt: skip

        if method.search is None:
            return make("", {})
        return make("", {}, tuple(make(method.search.by, point) for point in points(method.search)))

    def comparisons(self, seed: int) -> Iterator[Comparison]:
        first = self.benchmark.generation
        if first is not None and self._has(first.data):
            for generator, features in itertools.product(first.generators or self.benchmark.generators, first.features):
                yield from self._comparison(DISTANCE, [generator], seed, first.num, features)
        for second in self.benchmark.classification:
            if self._has(second.data):
                if second.table2:
                    yield from self._comparison(TABLE2, second.table2, seed, second.num)
                kimg = min((one for one in (second.kimg, self.kimg, self.benchmark.kimg) if one), default=None)
                for generator in second.real_vs_synthetic:
                    yield from self._comparison(
                        REAL_VS_SYNTHETIC, [generator], seed, second.num, "", second.preset, kimg
                    )

    def _comparison(
        self, kind: str, names: list[str], seed: int, num: int, features: str = "", preset: str | None = None, kimg: float | None = None
    ) -> Iterator[Comparison]:  # fmt: skip
        trained = [self.benchmark.generators.get(name) or self.benchmark.methods[name] for name in names]
        if not all(self._has(one.data) for one in trained):
            return
        num = min(num, self.benchmark.max_images or num)
        chains: list[tuple[Training, ...]] = []
        problem, what = "", "-".join(names)
        for name, one in zip(names, trained, strict=True):
            try:
                chains.append(tuple(self._chain(one, name, [one.set], seed)[0]))
            except Missing as missing:
                problem = str(missing)
            except UserError as error:
                raise UserError(f"{SECTION[kind]}: {name}: {error.message}") from None
        keys = [[step.key for step in chain] for chain in chains]
        key = digest(kind, what, keys, self.data.key, num, features, preset, kimg, seed, problem)
        folder = _joined("-", self.name, kind, what, re.sub(r"[^\w.+-]", "_", features), f"s{seed}")
        yield Comparison(
            data=self.name, path=str(self.data.path), seed=seed, key=key, problem=problem, kind=kind, what=what, chains=tuple(chains),
            num=num, features=features, preset=preset, kimg=kimg, folder=self._folder("tables", folder, key),
            label=_joined(", ", self.name, kind.replace("_", " "), what, features, f"seed {seed}"),
        )  # fmt: skip

    def _has(self, names: list[str] | None) -> bool:
        return names is None or self.name in names

    def _folder(self, kind: str, name: str, key: str) -> str:
        """The folder of what has this key: a new one, or the one that version 0.1 made under an old name."""
        new, old = (f"{kind}/{one}-{key[:10]}" for one in (name, _first_name(name)))
        return old if self.home and (self.home / old).is_dir() and not (self.home / new).is_dir() else new

    def _chain(
        self, trained: Trained, label: str, layers: Sequence[Mapping[str, Any]], seed: int
    ) -> tuple[list[Training], list[str]]:
        """The trainings of `trained`, called `label`, and the settings that belong to the scoring instead."""
        layers = [self.benchmark.set, self.benchmark.data[self.name].set, *layers]
        steps = [(step.config, step.run) for step in trained.train] or [(preset(label), None)]
        configs = [config for config, _ in steps if config]
        chain: list[Training] = []
        of_scoring: list[str] = []
        for config, run in steps:
            own = _overrides(layers, config or "", configs)
            if config is None:
                chain.append(self._finished(str(run), label, seed))
                of_scoring = [one for one in own if one.startswith(("data.", "scoring."))]
                continue
            # A trained run is scored again, not trained again, for another scoring; a fitted scorer is that scoring.
            # `scoring.corruption` changes the scored images alone, so no fit differs by it.
            fitted = load_config(config, own).task == ""
            of_scoring = [one for one in own if one.startswith("scoring.corruption" if fitted else "scoring.")]
            own = [one for one in own if one not in of_scoring]
            chain.append(self._training(config, own, seed, chain[-1] if chain else None))
        return chain, of_scoring

    def _training(self, name: str, overrides: list[str], seed: int, before: Training | None) -> Training:
        published = load_config(name).training.total_kimg
        overrides.append(f"training.seed={seed}")
        wanted = load_config(name, overrides).training.total_kimg
        if (most := min(self.kimg or wanted, self.benchmark.kimg or wanted)) < wanted:
            overrides.append(f"training.total_kimg={most}")
        config = load_config(name, overrides)
        key = digest(_identity(config), self.data.key, before.key if before else None)
        if self.device != "auto":
            overrides.append(f"training.device={self.device}")
        return Training(config.name, key, name, tuple(overrides), self._folder("runs", config.name, key), published)

    def _finished(self, pattern: str, label: str, seed: int) -> Training:
        text = pattern.replace("{data}", self.name).replace("{method}", label).replace("{seed}", str(seed))
        path = Path(text).expanduser()
        for run in sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))), reverse=True) or [path]:
            with suppress(UserError):
                file = model_file(run)
                place = run if run.exists() else file  # a shipped model goes by its name
                of_file = hashlib.sha256(content(file)).hexdigest()
                return Training(re.sub(r"^\d{5}-", "", run.stem), of_file, run=str(place.resolve()))
        raise Missing(f"no finished run or model file at {text}")


@lru_cache
def _n_train(key: str, path: str, settings: str) -> int:
    """How many images of a data set are trained on by `settings` (of data, as JSON). `key`: of the content, for the cache."""
    data = DataConfig.model_validate_json(settings)
    manifest, _ = split_manifest(open_source(path, data), data)
    return len(manifest.where("train", LABELS[data.label]))


def _joined(by: str, *parts: str) -> str:
    return by.join(part for part in parts if part)


def _overrides(layers: Sequence[Mapping[str, Any]], config: str, configs: Sequence[str]) -> list[str]:
    """The settings of `config`, later layers over earlier ones, as `key=value`.

    A key holds for every training of a chain; `CONFIG/key` for that one. Raises `UserError` for another CONFIG.
    """
    merged = {}
    for name, value in (item for layer in layers for item in layer.items()):
        address, slash, key = name.rpartition("/")
        if slash and address not in configs:
            raise UserError(f"{name!r}: no training of the chain is called {address!r}: {near(address, configs)}")
        if not slash or address == config:
            merged[key] = value
    return [f"{key}={json.dumps(value)}" for key, value in merged.items()]


def points(search: Search) -> Iterator[dict[str, Any]]:
    """What a search tries: every combination of a grid, or seeded draws."""
    if search.grid:
        yield from (dict(zip(search.grid, values, strict=True)) for values in itertools.product(*search.grid.values()))
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


# ---------------------------------------------------------------- keys: in the words of version 0.1, so that what it finished is found

_NAMES = {new: old for old, new in {**old_names.PRESETS, **old_names.REGISTERED["task"]}.items()}
_WORDS = _NAMES | {new: old for kind in old_names.REGISTERED.values() for old, new in kind.items()}
_WORDS |= {new.rpartition(".")[2]: old.rpartition(".")[2] for old, new in old_names.SETTINGS.items()}


def _identity(config: RunConfig) -> str:
    """What of a configuration decides its metrics. The key of the data stands for its path."""
    found = config.model_dump(mode="json")
    found["training"] = {key: value for key, value in found["training"].items() if key not in NO_EFFECT}
    # "fp32" was the default of version 0.2 and before, as "auto" is now; fp32 that is asked for is another thing.
    kept = found["training"]["precision"]
    found["training"]["precision"] = {"auto": "fp32", "fp32": "fp32, as asked"}.get(kept, kept)
    found["data"]["path"] = None
    if not found["data"]["contamination"]:  # younger than keys
        del found["data"]["contamination"]
    if not config.scoring.corruption.words:
        del found["scoring"]["corruption"]
    words_0_1 = json.loads(_first_words(json.dumps(found))) | {"model": config.model}  # networks kept their names
    return json.dumps(words_0_1, sort_keys=True)


def _first_words(text: str) -> str:
    return re.sub(r"\w+", lambda word: _WORDS.get(word[0], word[0]), text)


def _first_name(name: str) -> str:
    """A folder's name with each preset or method in it as version 0.1 called it."""
    return re.sub("|".join(sorted(_NAMES, key=len, reverse=True)), lambda found: _NAMES[found[0]], name)
