"""The work of one cell of a benchmark, in a process of its own: train what is still to be trained, score, measure."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import click

from gan_uad import console
from gan_uad.benchmark.generators import DISTANCE, TABLE2, Comparison
from gan_uad.benchmark.metrics import how_long, metrics_of_scores, training_metrics
from gan_uad.benchmark.plan import BEFORE, ENDED, Cell, Training
from gan_uad.detection.score import score
from gan_uad.errors import Interrupted, JobFailed, UserError
from gan_uad.files import alone, make_folder, write_json, write_text
from gan_uad.generation.classify import classify
from gan_uad.generation.fid import fid
from gan_uad.generation.real_vs_synthetic import real_vs_synthetic
from gan_uad.run import Run, environment
from gan_uad.training.train import train

RESULT, ERROR, LOG, DONE = "cell.json", "error.txt", "log.txt", "done.json"
SUBSETS = 2020  # seed of KID's subsets and of the halves, as of `gan-uad fid`
TRIED = 100  # bootstrap resamples of an attempt, which is chosen by its figure alone


def work(cell: Cell | Comparison, home: Path, device: str, environ: Mapping[str, str]) -> None:
    """Do `cell` below `home`, and end the process: 0 done, 1 failed (`error.txt` says why in one line), 130 interrupted.

    All output goes to `log.txt` of the cell. When the process that started this one is gone, this one ends as by SIGTERM.
    """
    os.environ.update(environ)  # the server that this process was forked from may be older
    folder = make_folder(home / cell.folder)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    console.set_quiet(False)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with alone(folder / ".lock"):
            if not (folder / RESULT).is_file():
                (folder / ERROR).unlink(missing_ok=True)
                if isinstance(cell, Cell):
                    found = _done(cell, home, folder, device)
                else:
                    found = _compared(cell, home, folder, device)
                write_json(folder / RESULT, found)
    except Interrupted as error:
        print(error.message, flush=True)
        os._exit(130)
    except Exception as error:  # whatever it is, it is this cell's alone
        traceback.print_exc()
        write_text(folder / ERROR, reason(error) + "\n")
        sys.stdout.flush()
        os._exit(1)


def reason(error: Exception) -> str:
    """Why a cell failed, in one line."""
    if isinstance(error, click.ClickException):
        return " ".join(error.message.split())
    return " ".join(f"{type(error).__name__}: {error}".split())


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # a training saves and ends, a scoring has kept what it has


def _done(cell: Cell, home: Path, folder: Path, device: str) -> dict[str, Any]:
    """What `cell.json` holds."""
    tried = None
    if cell.attempts:
        tried, chosen = _choice(cell, home)
        chain, told = chosen.chain, chosen.told
    else:
        chain, told = cell.chain, cell.told
    runs = _runs(chain, home, cell.path)
    speed = _scored(cell, runs[-1], told, folder / "scores", device)
    result: dict[str, Any] = {
        "method": cell.method, "scoring": cell.scoring, "data": cell.data, "overrides": cell.overrides, "seed": cell.seed,
        "settings": cell.settings, "key": cell.key, "folder": cell.folder,
    }  # fmt: skip
    result |= metrics_of_scores(folder / "scores", TRIED if cell.by else cell.resamples)
    trainings = [training_metrics(run, step, home) for run, step in zip(runs, chain, strict=True)]
    result |= {"training": trainings, "score_images_per_s": speed, "environment": _machine()}
    if cell.by:
        result["figure"] = _judged(cell, result)
    if tried is not None:
        result["search"] = tried
        result["settings"] = tried["chosen"]
    return result


def _compared(comparison: Comparison, home: Path, folder: Path, device: str) -> dict[str, Any]:
    """What `cell.json` of a comparison holds."""
    chains = [_runs(chain, home, comparison.path) for chain in comparison.chains]
    sources = [str(runs[-1]) for runs in chains]
    out, at = folder / "table", comparison.path
    if comparison.kind == DISTANCE:
        fid((sources[0],), at, out, comparison.num, (comparison.features,), seed=SUBSETS, device=device)
        rows = [_distance_row(cell, comparison) for cell in json.loads((out / "fid.json").read_text(encoding="utf-8"))]
        said = f"{rows[-1]['features']} {rows[-1]['value']:.2f}"
    else:
        if comparison.kind == TABLE2:
            classifier, normal, anomalous = sources
            classify(classifier, at, normal, anomalous, out, comparison.num, seed=comparison.seed, device=device)
            name = "classify.json"
        else:
            real_vs_synthetic(
                sources[0],
                at,
                out,
                comparison.num,
                comparison.preset,
                comparison.kimg,
                seed=comparison.seed,
                device=device,
            )
            name = "real_vs_synthetic.json"
        found = json.loads((out / name).read_text(encoding="utf-8"))
        rows = [_accuracy_row(row, found, comparison) for row in found["rows"]]
        said = ", ".join(f"accuracy {row['accuracy']:.3f} ({row['patches']})" for row in rows)
    trainings = [
        training_metrics(run, step, home)
        for runs, chain in zip(chains, comparison.chains, strict=True)
        for run, step in zip(runs, chain, strict=True)
    ]
    for row in rows:
        row["training"] = how_long(trainings) if row["seed"] is not None else ""
    return {
        "kind": comparison.kind, "what": comparison.what, "data": comparison.data, "seed": comparison.seed, "num": comparison.num,
        "key": comparison.key, "folder": comparison.folder, "rows": rows, "said": said, "training": trainings, "environment": _machine(),
    }  # fmt: skip


def _distance_row(cell: dict[str, Any], comparison: Comparison) -> dict[str, Any]:
    """A cell of `gan-uad fid` as a row; the reals against themselves keep their names."""
    made = "run" in cell
    row = {
        "data": comparison.data,
        "method": comparison.what if made else cell["method"],
        "seed": comparison.seed if made else None,
    }
    row |= {
        key: cell.get(key) for key in ("px", "kimg", "value", "kid", "kid_std", "precision", "recall", "memorisation")
    }
    row |= {"features": cell["figure"], "n": cell["n"], "n_real": cell["n_real"], "warnings": cell["warnings"]}
    return {**row, "folder": f"{comparison.folder}/table"}


def _accuracy_row(row: dict[str, Any], found: dict[str, Any], comparison: Comparison) -> dict[str, Any]:
    """A row of `gan-uad classify`, with the lengths of the trainings that it rests on."""
    same = (
        "n",
        "n_0",
        "n_1",
        "accuracy",
        "low",
        "high",
        "interval",
        "auroc",
        "auroc_low",
        "auroc_high",
        "recall_0",
        "recall_1",
    )
    kind = "real and synthesised" if comparison.kind == TABLE2 else "real vs synthetic"
    kimg = " + ".join(f"{run['kimg']:g}" for run in found["runs"].values())
    named = {
        "data": comparison.data,
        "kind": kind,
        "what": comparison.what,
        "seed": comparison.seed,
        "patches": row["set"],
        "kimg": kimg,
    }
    return {**named, **{key: row[key] for key in same}, "notes": found["notes"], "folder": f"{comparison.folder}/table"}


def _runs(chain: Sequence[Training], home: Path, data: str) -> list[Path]:
    """The finished runs of a chain, trained where need be."""
    runs: list[Path] = []
    for step in chain:
        runs.append(Path(step.run) if step.run else _trained(step, home, data, runs[-1] if runs else None))
    return runs


def _machine() -> dict[str, Any]:
    found = {key: value for key, value in environment(0).items() if key not in {"command", "seed", "processes"}}
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {**found, "cpu": models[0] if models else None}


def _trained(step: Training, home: Path, data: str, before: Path | None) -> Path:
    """The run of one training, which is trained, gone on with, or found finished."""
    place = make_folder(home / step.place)
    with alone(place / ".lock"):  # another cell, or another machine, may be at it
        if (place / DONE).is_file():
            return place / str(json.loads((place / DONE).read_text(encoding="utf-8"))["run"])
        for left in place.iterdir():  # of a process that was killed before it had described its run
            if left.is_dir() and not (left / "config.yaml").is_file():
                shutil.rmtree(left)
        overrides = tuple(text.replace(BEFORE, str(before)) for text in step.overrides)
        generator = None if before is None or overrides != step.overrides else str(before)
        resume = Run.latest(place, step.name) is not None
        run = train(step.config, overrides, data, generator, place, resume)
        if run is None:
            raise JobFailed(f"{step.config} was not trained")
        write_json(place / DONE, {"run": run.folder.name})
        return run.folder


def _scored(cell: Cell, run: Path, told: tuple[str, ...], folder: Path, device: str) -> float | None:
    """Score; returns images a second, from the model file to the last picture. None where an earlier call had finished it."""
    kept = folder / "speed.json"
    described = folder / "scores.json"
    finished = described.is_file() and "thresholds" in json.loads(described.read_text(encoding="utf-8"))
    if not finished:
        before = _lines(folder)
        start = time.monotonic()
        split = "val" if cell.by else "test"
        score(
            str(run),
            cell.path,
            folder,
            split,
            cell.inverter,
            None,
            told,
            cell.maps,
            max_images=cell.max_images,
            device=device,
        )
        names = ("scores.csv", "scores_validation.csv")
        images = sum(_lines_of(folder / name) - 1 for name in names if (folder / name).is_file())
        write_json(kept, {"images_per_s": round((images - before) / (time.monotonic() - start), 2)})
    if not kept.is_file():
        return None
    speed: float = json.loads(kept.read_text(encoding="utf-8"))["images_per_s"]
    return speed


def _lines(folder: Path) -> int:
    """Images that an interrupted scoring has measured already."""
    files = (folder / ".scores.jsonl", folder / ".validation.jsonl")
    return sum(max(0, _lines_of(file) - 1) for file in files if file.is_file())


def _lines_of(file: Path) -> int:
    with open(file, "rb") as lines:
        return sum(1 for _ in lines)


def _judged(cell: Cell, result: dict[str, Any]) -> float:
    """The figure of an attempt, larger is better. Raises `UserError` where there is none to choose by."""
    if cell.by == "auroc":
        if result["auroc"] is None:
            raise UserError(
                f"{cell.data}: the val split has {result['normal']} normal and {result['anomalous']} anomalous images, so no AUROC "
                "can choose: say by: judgement (with training.eval_kimg), or give labels of both"
            )
        return float(result["auroc"]["value"])
    compared_rows = result["training"][-1]["judgement"]
    if compared_rows is None:
        raise UserError("by: judgement needs trainings that are judged: set training.eval_kimg")
    return float(compared_rows["value"]) if compared_rows["larger"] else -float(compared_rows["value"])


def _choice(cell: Cell, home: Path) -> tuple[dict[str, Any], Cell]:
    """Every attempt of a search, and the best of those that did not fail (of equals the first). Raises `JobFailed` for none."""
    rows: list[dict[str, Any]] = []
    best: tuple[float, Cell] | None = None
    for attempt in cell.attempts:
        row: dict[str, Any] = {"settings": attempt.settings, "folder": attempt.folder, "figure": None}
        file, error = home / attempt.folder / RESULT, home / attempt.folder / ERROR
        if file.is_file():
            row["figure"] = json.loads(file.read_text(encoding="utf-8"))["figure"]
            if best is None or row["figure"] > best[0]:
                best = row["figure"], attempt
        elif not error.is_file() or error.read_text(encoding="utf-8").startswith(ENDED):
            # Chosen without it, the table would depend on what has killed it.
            raise JobFailed(
                f"the attempt {attempt.settings} was ended from outside, so nothing is chosen yet: run again"
            )
        rows.append(row)
    if best is None:
        raise JobFailed(f"none of {len(rows)} attempts was finished, so nothing could be chosen")
    by = {"auroc": "AUROC on the val split", "judgement": "the run's own judgement on validation images"}
    return {"by": by[cell.attempts[0].by], "attempts": rows, "chosen": best[1].settings}, best[1]
