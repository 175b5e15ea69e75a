"""What a benchmark says of generators: which are judged (Table 1 and 2 of Štepec & Skočaj 2020), each apart from the others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gan_uad.benchmark.datasets import BenchmarkData
from gan_uad.benchmark.plan import Missing, Training, chain_of
from gan_uad.benchmark.schema import Benchmark, Trained
from gan_uad.data.arrays import digest
from gan_uad.errors import UserError

GENERATION, CLASSIFICATION = "generation", "classification"  # the sections of the file
DISTANCE, TABLE2, REAL_OR_NOT = "distance", "table2", "real_vs_synthetic"  # what is done
SECTION = {DISTANCE: GENERATION, TABLE2: CLASSIFICATION, REAL_OR_NOT: CLASSIFICATION}


@dataclass(frozen=True)
class Comparison:
    """One comparison of generated with real images, on one data set and of one seed; made after the trainings that it needs."""

    kind: str
    what: str  # names of the generators, and of the classifier
    data: str
    seed: int
    chains: tuple[tuple[Training, ...], ...]  # of the classifier (for `table2`, the first) and of each generator
    path: str  # of the real patches
    num: int
    features: str = ""
    preset: str | None = None
    kimg: float | None = None
    key: str = ""
    problem: str = ""  # why it cannot be tried
    by = ""  # as of cells that are rows of the table
    attempts = ()

    @property
    def method(self) -> str:
        """The section of the file that asks for it, by which --only chooses."""
        return SECTION[self.kind]

    @property
    def chain(self) -> tuple[Training, ...]:
        """All trainings that it rests on."""
        return tuple(step for chain in self.chains for step in chain)

    @property
    def label(self) -> str:
        """In words, as on a line of progress."""
        parts = [self.data, self.kind.replace("_", " "), self.what, self.features, f"seed {self.seed}"]
        return ", ".join(part for part in parts if part)

    @property
    def folder(self) -> str:
        """Relative to the benchmark's folder."""
        parts = [self.data, self.kind, self.what, re.sub(r"[^\w.+-]", "_", self.features), f"s{self.seed}"]
        return f"tables/{'-'.join(part for part in parts if part)}-{self.key[:10]}"

    @property
    def family(self) -> str:
        """Cells of one family begin with the same training: one machine does them all."""
        return self.chain[0].key if self.chain else self.key


def sections(benchmark: Benchmark) -> list[str]:
    """The sections that the file has."""
    return [name for name in (GENERATION, CLASSIFICATION) if getattr(benchmark, name)]


def plan_comparisons(
    benchmark: Benchmark, data: dict[str, BenchmarkData], kimg: float | None, device: str
) -> list[Comparison]:
    """All comparisons on the data sets that are at hand. Raises `UserError` for settings that no training takes."""
    found: list[Comparison] = []
    for name in (n for n in benchmark.data if n in data):
        for seed in benchmark.seeds:
            planner = _Planner(benchmark, data[name], kimg, device, name, seed)
            found += [*planner.generation(), *planner.classification()]
    return found


@dataclass(frozen=True)
class _Planner:
    benchmark: Benchmark
    data: BenchmarkData
    kimg: float | None
    device: str
    name: str
    seed: int

    def generation(self) -> Iterator[Comparison]:
        section = self.benchmark.generation
        if section is None or (section.data is not None and self.name not in section.data):
            return
        for generator in section.generators or self.benchmark.generators:
            if not self._has([generator]):
                continue
            for features in section.features:
                yield self._one(DISTANCE, generator, [generator], section.num, features)

    def classification(self) -> Iterator[Comparison]:
        for section in self.benchmark.classification:
            if section.data is not None and self.name not in section.data:
                continue
            names = [name for name in (section.classifier, section.normal, section.anomalous) if name is not None]
            if names and self._has(names):
                yield self._one(TABLE2, "-".join(names), names, section.num)
            caps = [cap for cap in (section.kimg, self.kimg, self.benchmark.kimg) if cap is not None]
            for generator in section.real_vs_synthetic:
                if self._has([generator]):
                    told = section.preset, min(caps) if caps else None
                    yield self._one(REAL_OR_NOT, generator, [generator], section.num, "", *told)

    def _has(self, names: list[str]) -> bool:
        """Whether all of these are for this data set."""
        return all(data is None or self.name in data for data in (self._trained(name).data for name in names))

    def _trained(self, name: str) -> Trained:
        return self.benchmark.generators.get(name) or self.benchmark.methods[name]

    def _one(
        self, kind: str, what: str, names: list[str], num: int, features: str = "", preset: str | None = None, kimg: float | None = None
    ) -> Comparison:  # fmt: skip
        num = min(num, self.benchmark.max_images or num)
        chains: list[tuple[Training, ...]] = []
        problem = ""
        for name in names:
            trained = self._trained(name)
            try:
                chains.append(
                    tuple(
                        chain_of(self.benchmark, self.data, self.kimg, self.device, self.name, name, trained, self.seed)
                    )
                )
            except Missing as missing:
                problem = str(missing)
            except UserError as error:
                raise UserError(f"{SECTION[kind]}: {name}: {error.message}") from None
        keys = [[step.key for step in chain] for chain in chains]
        key = digest(kind, what, keys, self.data.key, num, features, preset, kimg, self.seed, problem)
        path = str(self.data.path)
        return Comparison(
            kind, what, self.name, self.seed, tuple(chains), path, num, features, preset, kimg, key, problem
        )


def comparison_rows(comparisons: Iterable[Comparison], home: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of the finished comparisons by section, none twice (reals against themselves are beside every generator)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for comparison in comparisons:
        file = home / comparison.folder / "cell.json"
        rows = found.setdefault(comparison.method, [])
        if file.is_file():
            new = json.loads(file.read_text(encoding="utf-8"))["rows"]
            rows += [row for row in new if not any(_same(row, known) for known in rows)]
    return found


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether both are the same reals against themselves, which have no seed."""
    return a["seed"] is None and all(a.get(key) == b.get(key) for key in {*a, *b} - {"folder"})
