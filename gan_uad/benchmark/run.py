"""`gan-uad benchmark`: methods x data sets x seeds x overrides, each cell in a process of its own, and one table of them all.

benchmarks/NAME/  results.csv .json .md .tex
                  cells/<data>-<method>-...-<key>/  cell.json  scores/  log.txt  error.txt (of one that failed)   attempts/... (of searches)
                  tables/<data>-<kind>-...-<key>/  cell.json  table/ (of fid and classify)  log.txt  error.txt
                  runs/<configuration>-<key>/00000-<configuration>  done.json   data/ (what is made: phantom, splits by patch)
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gan_uad import console
from gan_uad.benchmark.datasets import BenchmarkData, data_root, prepare_data
from gan_uad.benchmark.generators import Comparison, plan_comparisons, sections
from gan_uad.benchmark.plan import ENDED, Cell, plan
from gan_uad.benchmark.schema import Benchmark, load_benchmark
from gan_uad.benchmark.tables import write_tables
from gan_uad.device import cores
from gan_uad.errors import Interrupted, JobFailed, UserError, near
from gan_uad.files import make_folder, write_text
from gan_uad.slides.batch import parse_shard
from gan_uad.tables import format_number

Work = Cell | Comparison
# What cells need and takes seconds to import, of which this process needs nothing (the last: torch's first optimiser imports it).
PRELOADED = [
    "gan_uad.benchmark.cells", "gan_uad.plotting.pictures", "gan_uad.plotting.plots", "matplotlib.backends.backend_agg", "sklearn.metrics",
    "torch.utils.tensorboard", "torch._dynamo",
]  # fmt: skip


def benchmark(
    source: str,
    out: Path | None = None,
    root: Path | None = None,
    data: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    kimg: float | None = None,
    reduced: bool = False,
    jobs: int = 1,
    shard: str | None = None,
    device: str = "auto",
    dry_run: bool = False,
) -> Path:
    """Run every cell of the benchmark `source` (bare name or YAML file) that is not finished yet; returns its folder.

    Cells that fail are told of, and the others go on; at the end `JobFailed`. `shard` I/N: this machine's part. The table is made of
    whatever cells are finished, by this call or others on the same folder.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("benchmark starts its own processes: call it without torchrun, with --jobs or --shard")
    found = load_benchmark(source, reduced)
    part = parse_shard(shard)
    wanted = _selection(found, only)
    folder = out or Path("benchmarks") / found.name
    named = _places(found, data)
    sets: dict[str, BenchmarkData] = {}
    for name, entry in found.data.items():
        try:
            sets[name] = prepare_data(name, entry, {**found.set, **entry.set}, data_root(root), named, folder.resolve())
        except UserError:
            if name not in wanted:  # what is finished on the others stays in the table where it can
                continue
            absent = {name: BenchmarkData(Path(name), name)}  # what is wrong in the file is told first
            plan(found, absent, kimg, device)
            plan_comparisons(found, absent, kimg, device)
            raise
    cells, comparisons = plan(found, sets, kimg, device), plan_comparisons(found, sets, kimg, device)
    mine = [cell for cell in _sharded([*cells, *comparisons], part) if wanted >= {cell.method, cell.data}]
    todo = [cell for cell in _with_attempts(mine) if not _finished(cell, folder)]
    if dry_run:
        for cell in mine:
            print(f"{cell.label}: {'finished' if _finished(cell, folder) else cell.problem or 'to do'}")
        return folder
    make_folder(folder)
    console.say(
        f"{found.name}: {len(cells) + len(comparisons)} cells, {len(mine)} of them here, {len(todo)} to do -> {folder}"
    )
    try:
        tell = partial(write_tables, found, cells, folder, comparisons)
        failed = _Pool(folder.resolve(), max(1, jobs), device, tell).run(todo)
    finally:
        shown = write_tables(found, cells, folder, comparisons)
    print(shown, end="")
    console.say(
        f"table -> {folder}/results.md (.csv, .json, .tex); pictures: gan-uad evaluate {folder}/cells/*/scores --out FOLDER"
    )
    if failed:
        raise JobFailed(
            f"{len(failed)} of {len(mine)} cells failed, the others are in the table; {folder}/results.md says why"
        )
    return folder


def _selection(found: Benchmark, only: tuple[str, ...]) -> set[str]:
    """Names of the methods (with the sections of generators) and data sets that are asked for; of a kind of which none is named, all."""
    methods = {*found.methods, *sections(found)}
    known = {*methods, *found.data}
    for name in only:
        if name not in known:
            raise UserError(f"--only {name}: no method or data set is called so: {near(name, known)}")
    chosen: set[str] = set()
    for names in (methods, set(found.data)):
        chosen |= (names & set(only)) or names
    return chosen


def _places(found: Benchmark, told: tuple[str, ...]) -> dict[str, str]:
    places = {}
    for text in told:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UserError(f"--data {text}: expected NAME=PATH, NAME a data set of the benchmark")
        if name not in found.data:
            raise UserError(f"--data {text}: no data set is called {name!r}: {near(name, found.data)}")
        places[name] = path
    return places


def _sharded(cells: list[Work], part: tuple[int, int]) -> list[Work]:
    """Every n-th family: what begins with the same training stays together."""
    families = list(dict.fromkeys(cell.family for cell in cells))
    mine = set(families[part[0] :: part[1]])
    return [cell for cell in cells if cell.family in mine]


def _with_attempts(cells: list[Work]) -> list[Work]:
    """The cells, each after its attempts, and none twice."""
    every = [one for cell in cells for one in (*cell.attempts, cell)]
    return list({cell.folder: cell for cell in every}.values())


def _finished(cell: Work, home: Path) -> bool:
    return (home / cell.folder / "cell.json").is_file()


class _Pool:
    """Runs cells in processes that are forked from a server which has imported once what takes long."""

    def __init__(self, home: Path, jobs: int, device: str, after_each: Any) -> None:
        self.home, self.jobs, self.device, self.after_each = home, jobs, device, after_each
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        self.running: dict[BaseProcess, Work] = {}
        self.seats: dict[BaseProcess, int] = {}  # which of the `jobs` places a process has
        self.failed: list[Work] = []

    def run(self, todo: Sequence[Work]) -> list[Work]:
        """All of them; returns those that failed, attempts left out. Raises `Interrupted` on Ctrl-C, when all have ended."""
        waiting, total, ended = [cell for cell in todo if not cell.problem], len(todo), 0
        for broken in (cell for cell in todo if cell.problem):
            ended += 1
            self._tell(broken, broken.problem, f"[{ended}/{total}]")
        try:
            while waiting or self.running:
                while len(self.running) < self.jobs and (cell := self._ready(waiting)) is not None:
                    waiting.remove(cell)
                    self._start(cell)
                sentinels: list[Any] = [process.sentinel for process in self.running]
                wait(sentinels, timeout=1)
                for process in [process for process in self.running if not process.is_alive()]:
                    cell = self.running.pop(process)
                    process.join()
                    ended += 1
                    self._tell(cell, self._why(cell, process.exitcode or 0), f"[{ended}/{total}]")
                    self.after_each()
        except KeyboardInterrupt:
            raise Interrupted("stopped by Ctrl-C; the same command goes on where it stopped") from None
        finally:
            for process in self.running:
                process.terminate()
            for process in self.running:
                process.join()
        return [cell for cell in self.failed if not cell.by]

    def _ready(self, waiting: list[Work]) -> Work | None:
        """The first cell whose attempts have ended, and none of whose trainings another cell is at."""
        pending = {cell.folder for cell in (*waiting, *self.running.values())}
        taken = {place for cell in self.running.values() for place in self._untrained(cell)}
        for cell in waiting:
            if not pending & {attempt.folder for attempt in cell.attempts} and not taken & self._untrained(cell):
                return cell
        return None

    def _untrained(self, cell: Work) -> set[str]:
        places = {step.place for step in cell.chain if step.place}
        return {place for place in places if not (self.home / place / "done.json").is_file()}

    def _start(self, cell: Work) -> None:
        taken = {self.seats[process] for process in self.running}
        seat = next(seat for seat in range(self.jobs) if seat not in taken)
        process = self.context.Process(target=_work, args=(cell, self.home, self.device, self._environment(seat)))
        process.start()
        self.running[process], self.seats[process] = cell, seat

    def _environment(self, seat: int) -> dict[str, str]:
        """Threads: a share of the cores. GPUs: of those that CUDA_VISIBLE_DEVICES names, one, in turn."""
        told = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // self.jobs))}
        if gpus := [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]:
            told["CUDA_VISIBLE_DEVICES"] = gpus[seat % len(gpus)]
        return {**os.environ, **told}

    def _why(self, cell: Work, code: int) -> str:
        """Why a cell is not finished; "" for one that is."""
        if _finished(cell, self.home):
            return ""
        file = self.home / cell.folder / "error.txt"
        if code < 0:
            write_text(file, f"{ENDED} {-code}{' (out of memory?)' if code == -signal.SIGKILL else ''}\n")
        return file.read_text(encoding="utf-8").strip() if file.is_file() else f"ended with exit code {code}"

    def _tell(self, cell: Work, why: str, count: str) -> None:
        """A line of what became of a cell."""
        folder = self.home / cell.folder
        if why:
            self.failed.append(cell)
            log = folder / "log.txt"
            console.say(f"{count} {cell.label} FAILED: {why}{f' (log: {log})' if log.is_file() else ''}")
            return
        found = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        if "said" in found:
            console.say(f"{count} {cell.label}: {found['said']}")
            return
        area = "scored" if found["auroc"] is None else f"AUROC {format_number(found['auroc']['value'])}"
        console.say(f"{count} {cell.label}: {area}{' on val' if cell.by else ''}")


def _work(cell: Work, home: Path, device: str, environ: dict[str, str]) -> None:
    """In the new process: what imports torch."""
    from gan_uad.benchmark.cells import work

    work(cell, home, device, environ)
