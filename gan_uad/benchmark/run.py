"""`gan-uad benchmark`: methods x data sets x seeds x overrides, each cell in a process of its own, and one table of them all.

benchmarks/NAME/  results.csv .json .md .tex
                  cells/<data>-<method>-...-<key>/  plan.json  cell.json  scores/  log.txt  error.txt (of one that failed)
                  attempts/... (of searches)
                  tables/<data>-<kind>-...-<key>/  plan.json  cell.json  table/ (of fid and classify)  log.txt  error.txt
                  runs/<configuration>-<key>/00000-<configuration>  done.json
                  data/ (generated data sets, splits by patch)
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from gan_uad import console
from gan_uad.benchmark.datasets import BenchmarkData, prepare_data
from gan_uad.benchmark.plan import CLASSIFICATION, GENERATION, Work, plan
from gan_uad.benchmark.schema import Benchmark, load_benchmark
from gan_uad.benchmark.tables import CELL, ENDED, ERROR, LOG, read_cell, write_tables
from gan_uad.device import cores
from gan_uad.errors import Interrupted, JobFailed, UserError, near
from gan_uad.files import make_folder, one_writer, read_json, write_json, write_text
from gan_uad.slides.batch import parse_shard
from gan_uad.tables import format_number

POLL_S = 0.1
OLD_KEYS = "data/old_keys.json"  # {key of a data set as version 0.2 and before made it: key of its content}


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

    Cells that fail are reported, the others continue, and `JobFailed` comes last. `shard` I/N: this machine's part; shards may share the
    folder, every other call has it alone. The table has whatever cells are finished, by this call or others on the same folder.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("benchmark starts its own processes: call it without torchrun, with --jobs or --shard")
    found = load_benchmark(source, reduced)
    part, parts = parse_shard(shard)
    wanted = _selection(found, only)
    folder = (out or Path("benchmarks") / found.name).resolve()
    places = _places(found, data)
    sets: dict[str, BenchmarkData] = {}
    with TemporaryDirectory() as aside:  # a dry run leaves nothing
        home = Path(aside) if dry_run else folder
        for name, entry in found.data.items():
            try:
                sets[name] = prepare_data(name, entry, {**found.set, **entry.set}, root, places, home, dry_run)
            except UserError:
                if name in wanted:  # else what is finished on the others can stay in the table
                    plan(
                        found, {name: BenchmarkData(Path(name), name)}, kimg, device
                    )  # mistakes in the file come first
                    raise
    sets = _as_kept(sets, folder, lambda one: plan(found, one, kimg, device, folder), dry_run)
    cells, comparisons = plan(found, sets, kimg, device, folder)
    planned: list[Work] = [*cells, *comparisons]
    families = list(dict.fromkeys(_family(cell) for cell in planned))[part::parts]
    mine = [cell for cell in planned if _family(cell) in families and wanted >= {cell.method, cell.data}]
    if dry_run:
        for cell in mine:
            print(f"{cell.label}: {'finished' if _finished(cell, folder) else cell.problem or 'to do'}")
        return folder
    left: list[Work] = [one for cell in mine if not _finished(cell, folder) for one in (*cell.attempts, cell)]
    todo = [cell for cell in {one.folder: one for one in left}.values() if not _finished(cell, folder)]
    make_folder(folder)
    shown = out or Path("benchmarks") / found.name
    console.say(f"{found.name}: {len(planned)} cells, {len(mine)} of them here, {len(todo)} to do -> {shown}")
    with one_writer(folder, shared=shard is not None):
        try:
            failed = _run(todo, folder, jobs, device, lambda: write_tables(found, cells, folder, comparisons))
        finally:
            text = write_tables(found, cells, folder, comparisons)
    print(text, end="")
    console.say(
        f"table -> {shown}/results.md (.csv, .json, .tex); pictures: gan-uad evaluate {shown}/cells/*/scores --out FOLDER"
    )
    if failed:
        raise JobFailed(f"{failed} of {len(mine)} cells failed, the others are in the table: see {shown}/results.md")
    return folder


def _as_kept(
    sets: dict[str, BenchmarkData], folder: Path, planned: Callable[[dict[str, BenchmarkData]], Any], dry_run: bool
) -> dict[str, BenchmarkData]:
    """The sets, with their old keys where version 0.2 or before finished cells under them.

    An old key does not change with the content of files, so that the content that is first found under it is kept in `OLD_KEYS`, and
    another never gets these results.
    """
    path = folder / OLD_KEYS
    kept = read_json(path)
    contents: dict[str, str] = kept if isinstance(kept, dict) else {}
    before, result = dict(contents), dict(sets)
    for name, one in sets.items():
        if not one.old_key:
            continue
        old = replace(one, key=one.old_key)
        if one.old_key not in contents:
            cells, comparisons = planned({name: old})
            if any(_finished(cell, folder) for cell in (*cells, *comparisons)):
                contents[one.old_key] = one.key
        if contents.get(one.old_key) == one.key:
            result[name] = old
    if contents != before and not dry_run:
        make_folder(path.parent)
        write_json(path, contents)
    return result


def _selection(found: Benchmark, only: tuple[str, ...]) -> set[str]:
    """Names of the wanted methods (with the sections of generators) and data sets; all of a kind of which `only` names none."""
    methods = {*found.methods, *(name for name in (GENERATION, CLASSIFICATION) if getattr(found, name))}
    for name in only:
        if name not in methods | set(found.data):
            raise UserError(f"--only {name}: no such method or data set: {near(name, methods | set(found.data))}")
    return {one for names in (methods, set(found.data)) for one in (names & set(only)) or names}


def _places(found: Benchmark, given: tuple[str, ...]) -> dict[str, str]:
    places = {}
    for text in given:
        name, _, places[name] = text.partition("=")
        if not places[name]:
            raise UserError(f"--data {text}: expected NAME=PATH, NAME a data set of the benchmark")
        if name not in found.data:
            raise UserError(f"--data {text}: no data set is called {name!r}: {near(name, found.data)}")
    return places


def _family(cell: Work) -> str:
    """Cells of one family begin with the same training: one machine runs them all."""
    return cell.chain[0].key if cell.chain else _family(cell.attempts[0]) if cell.attempts else cell.key


def _finished(cell: Work, home: Path) -> bool:
    return (home / cell.folder / CELL).is_file()


def start(plan: Path, device: str, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of the cell that the file `plan` holds; its output goes to `log.txt` beside it. (Tests replace this function to
    run `cells.main` in their own process.)
    """
    command = [sys.executable, "-m", "gan_uad.benchmark.cells", str(plan), device]
    with open(plan.with_name(LOG), "ab") as log:  # the child ends when its stdin does, that is with this process
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environ)


def _run(todo: Sequence[Work], home: Path, jobs: int, device: str, after_each: Callable[[], object]) -> int:
    """Run all cells, `jobs` at a time; returns how many of the table failed. Raises `Interrupted` on Ctrl-C, when all have ended."""
    waiting, failed = list(todo), list[Work]()
    running: dict[Work, tuple[subprocess.Popen[bytes], int]] = {}
    count = itertools.count(1)

    def report(cell: Work, why: str) -> None:
        log = home / cell.folder / LOG
        result = f" FAILED: {why}{f' (log: {log})' if log.is_file() else ''}" if why else f": {_said(cell, home)}"
        console.say(f"[{next(count)}/{len(todo)}] {cell.label}{result}")
        failed.extend([cell] if why and not cell.by else [])

    try:
        while waiting or running:
            for cell in [cell for cell in waiting if cell.problem]:
                waiting.remove(cell)
                report(cell, cell.problem)
            while len(running) < jobs and (ready := _ready(waiting, running, home)) is not None:
                waiting.remove(ready)
                seat = min(set(range(jobs)) - {seat for _, seat in running.values()})
                folder = make_folder(home / ready.folder)
                (folder / ERROR).unlink(missing_ok=True)
                write_text(folder / "plan.json", TypeAdapter(type(ready)).dump_json(ready, indent=2).decode())
                running[ready] = start(folder / "plan.json", device, _environment(seat, jobs)), seat
            for cell, (process, _) in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[cell]
                    report(cell, _why(cell, home, code))
                    after_each()
            time.sleep(POLL_S if running else 0)
    except KeyboardInterrupt:
        raise Interrupted("stopped by Ctrl-C; run the same command again to resume") from None
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
    return len(failed)


def _ready(waiting: Sequence[Work], running: Mapping[Work, object], home: Path) -> Work | None:
    """The first cell whose attempts have ended, and none of whose trainings is running for another."""

    def untrained(cell: Work) -> set[str]:
        return {step.place for step in cell.chain if step.place and not (home / step.place / "done.json").is_file()}

    pending = {cell.folder for cell in (*waiting, *running)}
    busy = {place for cell in running for place in untrained(cell)}
    for cell in waiting:
        if not pending & {attempt.folder for attempt in cell.attempts} and not busy & untrained(cell):
            return cell
    return None


def _environment(seat: int, jobs: int) -> dict[str, str]:
    """Threads: a share of the cores. GPUs: of those that CUDA_VISIBLE_DEVICES names, one, in turn."""
    found = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // jobs))}
    if gpus := [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]:
        found["CUDA_VISIBLE_DEVICES"] = gpus[seat % len(gpus)]
    return {**os.environ, **found}


def _why(cell: Work, home: Path, code: int) -> str:
    """Why a cell is not finished; "" for one that is."""
    file = home / cell.folder / ERROR
    if _finished(cell, home):
        return ""
    if code < 0:
        write_text(file, f"{ENDED} {-code}{' (out of memory?)' if code == -signal.SIGKILL else ''}\n")
    return file.read_text(encoding="utf-8").strip() if file.is_file() else f"ended with exit code {code}"


def _said(cell: Work, home: Path) -> str:
    """The result of a cell in a few words."""
    found = read_cell(home / cell.folder) or {}
    if "said" in found:
        return str(found["said"])
    area = "scored" if found["auroc"] is None else f"AUROC {format_number(found['auroc']['value'])}"
    return f"{area}{' on val' if cell.by else ''}"
