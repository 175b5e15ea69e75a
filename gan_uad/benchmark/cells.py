"""The process of one cell: train what is not trained yet, score, evaluate. `python -m gan_uad.benchmark.cells PLAN DEVICE`."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter

from gan_uad.benchmark.metrics import metrics_of_scores, training_metrics
from gan_uad.benchmark.plan import BEFORE, DISTANCE, TABLE2, Cell, Comparison, Training, Work
from gan_uad.benchmark.tables import CELL, ENDED, ERROR, read_cell, training_length
from gan_uad.detection.score import score
from gan_uad.errors import Interrupted, JobFailed, UserError
from gan_uad.files import alone, make_folder, read_json, write_json, write_text
from gan_uad.generation.classify import classify
from gan_uad.generation.fid import fid
from gan_uad.generation.real_vs_synthetic import real_vs_synthetic
from gan_uad.run import environment
from gan_uad.training.train import train

DONE = "done.json"
SUBSETS = 2020  # seed of KID's subsets and of the halves, as of `gan-uad fid`
ATTEMPT_RESAMPLES = 100  # of the bootstrap: an attempt is chosen by its AUROC, not by the interval
CHOSEN_BY = {"auroc": "AUROC on the val split", "validation": "the run's own metric on validation images"}
ACCURACY = (
    "n", "n_0", "n_1", "accuracy", "low", "high", "interval", "auroc", "auroc_low", "auroc_high", "recall_0", "recall_1",
)  # fmt: skip


def main(plan: Path, device: str) -> int:
    """Do the cell or comparison that the file `plan` in its folder holds. Returns the exit code: 0 done, 1 failed (`error.txt` has the
    reason in one line), 130 interrupted.
    """
    work: Work = TypeAdapter(Work).validate_json(plan.read_bytes())
    folder, home = plan.parent, plan.parents[2]
    try:
        with alone(folder / ".lock"):
            if not (folder / CELL).is_file():
                of = (home, folder, device)
                write_json(folder / CELL, _cell(work, *of) if isinstance(work, Cell) else _comparison(work, *of))
        return 0
    except (Interrupted, KeyboardInterrupt) as error:
        print(getattr(error, "message", "stopped by Ctrl-C"), flush=True)
        return 130
    except Exception as error:  # whatever it is, the other cells continue
        traceback.print_exc()
        reason = error.message if isinstance(error, click.ClickException) else f"{type(error).__name__}: {error}"
        write_text(folder / ERROR, " ".join(reason.split()) + "\n")
        return 1


def _end_with_parent() -> None:
    """End as by SIGTERM when the benchmark's process is gone, which closes the pipe on stdin: a training then saves its state."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _cell(cell: Cell, home: Path, folder: Path, device: str) -> dict[str, Any]:
    """What `cell.json` of a row or an attempt holds."""
    search, used = _choice(cell, home) if cell.attempts else (None, cell)
    runs = _runs(used.chain, home, cell.path)
    speed = _score(cell, runs[-1], used.scoring_settings, folder / "scores", device)
    keys = ("method", "scoring", "data", "overrides", "seed", "settings", "key", "folder")
    result = {key: getattr(cell, key) for key in keys}
    result |= metrics_of_scores(folder / "scores", ATTEMPT_RESAMPLES if cell.by else cell.resamples)
    trainings = [training_metrics(run, step, home) for run, step in zip(runs, used.chain, strict=True)]
    result |= {"training": trainings, "score_images_per_s": speed, "environment": _machine()}
    if cell.by:
        result["figure"] = _criterion(cell, result)
    return result if search is None else result | {"search": search, "settings": search["chosen"]}


def _comparison(work: Comparison, home: Path, folder: Path, device: str) -> dict[str, Any]:
    """What `cell.json` of a comparison holds."""
    chains = [_runs(chain, home, work.path) for chain in work.chains]
    pairs = zip(itertools.chain(*chains), work.chain, strict=True)
    trainings = [training_metrics(run, step, home) for run, step in pairs]
    sources = [str(runs[-1]) for runs in chains]
    out = folder / "table"
    if work.kind == DISTANCE:
        fid((sources[0],), work.path, out, work.num, (work.features,), seed=SUBSETS, device=device)
        rows = []
        for found in read_json(out / "fid.json"):
            generated = "run" in found  # other rows compare real images with each other
            named = (work.what, work.seed) if generated else (found["method"], None)
            row = dict(zip(("data", "method", "seed"), (work.data, *named), strict=True))
            keys = ("px", "kimg", "value", "kid", "kid_std", "precision", "recall", "memorisation")
            row |= {key: found.get(key) for key in keys} | {"features": found["figure"]}
            rows.append(row | {key: found[key] for key in ("n", "n_real", "warnings")})
        said = f"{rows[-1]['features']} {rows[-1]['value']:.2f}"
    else:
        if work.kind == TABLE2:
            classifier, normal, anomalous = sources
            classify(classifier, work.path, normal, anomalous, out, work.num, seed=work.seed, device=device)
            name, kind = "classify.json", "real and generated"
        else:
            settings = (work.num, work.preset, work.kimg)
            real_vs_synthetic(sources[0], work.path, out, *settings, seed=work.seed, device=device)
            name, kind = "real_vs_synthetic.json", "real vs synthetic"
        found = read_json(out / name)
        about = {"data": work.data, "kind": kind, "what": work.what, "seed": work.seed}
        kimg = " + ".join(f"{run['kimg']:g}" for run in found["runs"].values())
        rows = [
            about | {"patches": row["set"], "kimg": kimg} | {key: row[key] for key in ACCURACY} for row in found["rows"]
        ]
        rows = [row | {"notes": found["notes"]} for row in rows]
        said = ", ".join(f"accuracy {row['accuracy']:.3f} ({row['patches']})" for row in rows)
    for row in rows:
        row["folder"] = f"{work.folder}/table"
        row["training"] = "" if row["seed"] is None else training_length(trainings)
    result = {key: getattr(work, key) for key in ("kind", "what", "data", "seed", "num", "key", "folder")}
    return result | {"rows": rows, "said": said, "training": trainings, "environment": _machine()}


def _machine() -> dict[str, Any]:
    found = {key: value for key, value in environment(0).items() if key not in {"command", "seed", "processes"}}
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return found | {"cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)}  # fmt: skip


def _runs(chain: Sequence[Training], home: Path, data: str) -> list[Path]:
    """The finished runs of a chain, trained where necessary."""
    runs: list[Path] = []
    for step in chain:
        runs.append(Path(step.run) if step.run else _train(step, home, data, runs[-1] if runs else None))
    return runs


def _train(step: Training, home: Path, data: str, before: Path | None) -> Path:
    """The run of one training: found finished, resumed, or new."""
    place = make_folder(home / step.place)
    with alone(place / ".lock"):  # another machine may train it
        if done := read_json(place / DONE):
            return place / str(done["run"])
        for left in place.iterdir():  # of a process that was killed before it described its run
            if left.is_dir() and not (left / "config.yaml").is_file():
                shutil.rmtree(left)
        started = sorted(file.parent for file in place.glob("*/config.yaml"))
        overrides = tuple(text.replace(BEFORE, str(before)) for text in step.overrides)
        generator = None if before is None or overrides != step.overrides else str(before)
        source = str(started[-1]) if started else step.config
        run = train(source, overrides, data, generator, place, resume=bool(started))
        if run is None:
            raise JobFailed(f"{step.config} was not trained")
        write_json(place / DONE, {"run": run.folder.name})
        return run.folder


def _score(cell: Cell, run: Path, settings: tuple[str, ...], folder: Path, device: str) -> float | None:
    """Score; returns images a second, from the model file to the last picture. None where an earlier call finished the scoring."""
    if "thresholds" not in (read_json(folder / "scores.json") or {}):
        before, start = _images(folder, ".scores.jsonl", ".validation.jsonl"), time.monotonic()
        split = "val" if cell.by else "test"
        way = (cell.inverter, None, settings, cell.maps)
        score(str(run), cell.path, folder, split, *way, max_images=cell.max_images, device=device)
        images = _images(folder, "scores.csv", "scores_validation.csv") - before
        write_json(folder / "speed.json", {"images_per_s": round(images / (time.monotonic() - start), 2)})
    speed: float | None = (read_json(folder / "speed.json") or {}).get("images_per_s")
    return speed


def _images(folder: Path, *names: str) -> int:
    """Lines of files, headers left out."""
    files = (folder / name for name in names)
    return sum(max(0, len(file.read_bytes().splitlines()) - 1) for file in files if file.is_file())


def _criterion(cell: Cell, result: dict[str, Any]) -> float:
    """What an attempt is chosen by, larger is better. Raises `UserError` where there is nothing."""
    if cell.by == "auroc":
        if result["auroc"] is None:
            raise UserError(
                f"{cell.data}: the val split has {result['normal']} normal and {result['anomalous']} anomalous images, so there is "
                "no AUROC to choose by: set by: validation (with training.eval_kimg), or give labels of both kinds"
            )
        return float(result["auroc"]["value"])
    best = result["training"][-1]["validation"]
    if best is None:
        raise UserError("by: validation needs trainings with validation: set training.eval_kimg")
    return float(best["value"]) if best["larger"] else -float(best["value"])


def _choice(cell: Cell, home: Path) -> tuple[dict[str, Any], Cell]:
    """Every attempt of a search, and the best that did not fail (of equals the first). Raises `JobFailed` for none."""
    rows: list[dict[str, Any]] = []
    for attempt in cell.attempts:
        found, error = read_cell(home / attempt.folder), home / attempt.folder / ERROR
        reason = error.read_text(encoding="utf-8") if error.is_file() else attempt.problem or ENDED
        if found is None and reason.startswith(ENDED):
            # Chosen without it, the table would depend on what killed it.
            raise JobFailed(f"the attempt {attempt.settings} was ended from outside, so nothing is chosen: run again")
        metric = None if found is None else found["figure"]
        rows.append({"settings": attempt.settings, "folder": attempt.folder, "figure": metric})
    known = [pair for pair in zip(rows, cell.attempts, strict=True) if pair[0]["figure"] is not None]
    if not known:
        raise JobFailed(f"none of {len(rows)} attempts finished, so nothing could be chosen")
    _, best = max(known, key=lambda pair: pair[0]["figure"])
    return {"by": CHOSEN_BY[best.by], "attempts": rows, "chosen": best.settings}, best


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
