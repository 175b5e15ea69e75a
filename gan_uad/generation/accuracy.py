"""What both tables of `gan-uad classify` share: synthesised images, scores that an interrupted call leaves, a row's figures, the files."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gan_uad import console
from gan_uad.data.arrays import digest
from gan_uad.data.corruption import through_jpeg
from gan_uad.data.patches import PatchSet, Pixels, to_tensor
from gan_uad.errors import UserError
from gan_uad.files import write_json, write_text
from gan_uad.generation.feature_sets import ImageSet, of_generator
from gan_uad.metrics.detection import accuracy, auroc, bootstrap_interval, classification_report
from gan_uad.model import Model, file_digest, load_model
from gan_uad.networks.sampling import style_based
from gan_uad.run import environment
from gan_uad.scoring.base import Scorer
from gan_uad.tables import format_interval, table

CHUNK = 256  # images between two writes of the partial results
SEEDS = 1_000_000  # of images, for each --seed
SAME = ("crop", "crop_size", "resize", "grayscale")  # settings of `data` that decide how a patch looks


def in_one_process() -> None:
    """Raise `UserError` under torchrun, whose processes would write into the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("classify runs in one process, not under torchrun")


def open_generator(source: str, resolution: int | None, on: torch.device) -> tuple[Model, ImageSet]:
    """A trained generator and what it makes of seeds (noise maps by the seed too, where it has any).

    Raises `UserError` for a run without one, and for another resolution than that of the images it is put beside.
    """
    model = load_model(source, on)
    noise = "random" if style_based(model.generator) else "const"
    if resolution not in (None, model.resolution):
        raise UserError(f"{source} makes images of {model.resolution} px, the classifier takes {resolution} px")
    return model, of_generator(model, source, file_digest(source), 0, noise=noise)


def seeds_of(seed: int, count: int, after: int = 0) -> range:
    """The seeds of `count` images, `after` so many others."""
    return range(seed * SEEDS + after, seed * SEEDS + after + count)


def of_both_kinds(patches: PatchSet, num: int, seed: int) -> PatchSet:
    """At most `num` patches, half of them normal and half anomalous. Raises `UserError` where a kind is missing."""
    if num < 2:
        raise UserError(f"--num {num}: at least 2 images are needed, one of each kind")
    picked = []
    for label, name in enumerate(("normal", "anomalous")):
        rows = np.flatnonzero(patches.manifest.label == label)
        if not len(rows):
            raise UserError(
                f"{patches.source}: no patch is labelled {name} among the {len(patches)} to classify; accuracy needs both kinds"
            )
        if len(rows) > num // 2:
            rows = np.random.default_rng((seed, label)).choice(rows, num // 2, replace=False)
        picked.append(rows)
    return patches.take(np.sort(np.concatenate(picked)))


def as_jpeg(images: Pixels, quality: int | None) -> Pixels:
    """uint8 `[N, R, R, 3]` as they come out of a JPEG file of that quality; None: as they are."""
    return images if quality is None else through_jpeg(images, quality)


def scored(
    scorer: Scorer, about: str, images: ImageSet, rows: Sequence[int], folder: Path, jpeg: int | None
) -> NDArray[np.float64]:
    """Scores of some images of a set; `about` tells the scorer. Those that an earlier call finished are taken from `folder`.

    Raises `UserError` where a score is not finite.
    """
    key = digest(about, images.key, list(rows), jpeg)
    path = folder / f"scores-{key[:24]}.jsonl"
    values = _finished(path, len(rows))
    kept = (_line(start, values[start : start + CHUNK]) for start in range(0, len(values), CHUNK))
    write_text(path, "".join(kept))
    with console.progress(f"classifying {images.name}", len(rows), done=len(values)) as bar, open(path, "a") as file:
        for start in range(len(values), len(rows), CHUNK):
            pixels = as_jpeg(images.get(list(rows[start : start + CHUNK])), jpeg)
            new = scorer.score(to_tensor(pixels)).image
            if not bool(new.isfinite().all()):
                raise UserError(
                    "the classifier gives NaN or infinity for some images: it diverged in training, or its file is damaged"
                )
            file.write(_line(start, new.tolist()))
            file.flush()
            values += new.tolist()
            bar.update(len(values))
    return np.array(values)


def _line(first: int, scores: list[float]) -> str:
    """Scores of the images from number `first` on, as a file of scores holds them."""
    return json.dumps({"first": first, "scores": scores}) + "\n"


def _finished(path: Path, count: int) -> list[float]:
    """The scores of the whole chunks that an earlier call wrote, up to the first line that is not the one that belongs there."""
    values: list[float] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found = json.loads(line)
            first, scores = found["first"], found["scores"]
        except (json.JSONDecodeError, TypeError, KeyError):  # half a line of a killed process, or another program's
            break
        if first != len(values) or len(scores) != min(CHUNK, count - first):
            break
        values += scores
    return values


def metrics(
    name: str, labels: NDArray[Any], scores: NDArray[np.float64], groups: list[str] | None, seed: int
) -> dict[str, Any]:
    """One row: what it is worth to call every image with a score above 0 one of label 1.

    The interval of the accuracy is a bootstrap over groups (patients or slides) where any is known, since their patches are not
    independent, and Wilson's else.
    """
    report = classification_report(labels, scores > 0)
    low, high = report["wilson"]["accuracy"]
    by, notes = "Wilson", []
    if groups is not None and any(groups):
        found = bootstrap_interval(labels, (scores > 0).astype(float), groups, accuracy, seed=seed)
        if math.isfinite(found.low):
            low, high, by = found.low, found.high, "bootstrap over groups"
        notes = [f"{name}: {found.note}"] if found.note else []
    area = bootstrap_interval(labels, scores, groups, auroc, seed=seed)
    return {
        "set": name, "n": len(labels), "n_0": int((labels == 0).sum()), "n_1": int((labels == 1).sum()),
        "accuracy": report["accuracy"], "low": low, "high": high, "interval": by, "recall_0": report["specificity"],
        "recall_1": report["sensitivity"], "auroc": area.value, "auroc_low": area.low, "auroc_high": area.high,
        "confusion": report["confusion"], "wilson": report["wilson"], "notes": notes,
    }  # fmt: skip


def generator_notes(model: Model, source: str, looks: Any, label: str) -> list[str]:
    """Why a generator's images may not be what they stand for: trained on patches of another label, or prepared otherwise than `looks`."""
    theirs = model.config.data
    notes = []
    if theirs.label != label:
        notes.append(f"{source} was trained on {theirs.label} patches and stands for {label} ones here")
    if other := [key for key in SAME if getattr(theirs, key) != getattr(looks, key)]:
        settings = ", ".join(f"data.{key} {getattr(theirs, key)!r}, not {getattr(looks, key)!r}" for key in other)
        notes.append(
            f"{source} learnt from patches that were prepared otherwise than those of the classifier: {settings}"
        )
    return notes


def write_table(
    out: Path, stem: str, title: str, names: tuple[str, str], rows: list[dict[str, Any]], settings: dict[str, Any], notes: list[str]
) -> str:  # fmt: skip
    """`out/stem.md`, `.csv`, `.tex` and `.json`; returns the Markdown. `names`: what labels 0 and 1 stand for."""
    here = environment(settings["seed"])
    command = shlex.join(here["command"])
    packages = ", ".join(f"{name} {here['packages'][name]}" for name in ("gan_uad", "torch", "torchvision"))
    runs = settings["runs"]
    notes = [*notes, *(note for row in rows for note in row["notes"]), *_run_notes(runs), _jpeg_note(settings["jpeg"])]
    notes += [f"Made by `{command}` ({packages}, revision {here['git'] or 'unknown'}), seed {settings['seed']}, images of seeds "
              + ", ".join(f"{span} ({name})" for name, span in settings["image_seeds"].items())]  # fmt: skip
    columns = {
        "set": "patches", "n": f"n ({names[0]} + {names[1]})", "accuracy": "accuracy % [95 %]", "interval": "interval by",
        "recall_0": f"right of {names[0]} %", "recall_1": f"right of {names[1]} %", "auroc": "AUROC [95 %]",
    }  # fmt: skip
    shown = [_shown(row) for row in rows]
    text = "\n".join([title, "", table(shown, columns), *(f"- {note}" for note in dict.fromkeys(notes)), ""])
    write_text(out / f"{stem}.md", text)
    comments = "".join(f"% {' '.join(note.split())}\n" for note in dict.fromkeys([title, *notes]))
    write_text(out / f"{stem}.tex", comments + table(shown, columns, "latex"))
    common: dict[str, Any] = {
        f"{role}_{key}": run[key] for role, run in runs.items() for key in ("run", "kimg", "trained_kimg", "short")
    }
    common |= {f"seeds_{name}": span for name, span in settings["image_seeds"].items()}
    common |= {"jpeg": settings["jpeg"], "seed": settings["seed"], "command": command, "versions": packages}
    finite = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]
    plain = [
        {key: value for key, value in row.items() if not isinstance(value, list | dict)} | common for row in finite
    ]
    write_text(out / f"{stem}.csv", table(plain, list(plain[0]), "csv"))
    write_json(out / f"{stem}.json", {"rows": finite, "labels": names, **settings, "notes": notes, "environment": here})
    console.say(f"-> {out}/{stem}.md, .csv, .tex, .json")
    return text


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    percent, low, high = (100 * row[key] for key in ("accuracy", "low", "high"))
    return {
        "set": row["set"], "n": f"{row['n']} ({row['n_0']} + {row['n_1']})", "accuracy": format_interval(percent, low, high, 2),
        "interval": row["interval"], "recall_0": f"{100 * row['recall_0']:.2f}", "recall_1": f"{100 * row['recall_1']:.2f}",
        "auroc": format_interval(row["auroc"], row["auroc_low"], row["auroc_high"]),
    }  # fmt: skip


def _run_notes(runs: dict[str, dict[str, Any]]) -> list[str]:
    notes = []
    for role, run in runs.items():
        note = f"{role}: {run['name']} ({run['run']}), {run['file']}"
        if run["kimg"] is None:
            notes.append(f"{note}, a generator inside an encoder's run: how long it was trained is not known there")
            continue
        note += f" at {run['kimg']:g} of {run['trained_kimg']:g} kimg"
        if run["stopped_early"]:
            note += ", where it stopped, since nothing got better"
        elif run["short"]:
            note += f", SHORT of the {run['planned_kimg']:g} kimg that its configuration asks for"
        notes.append(note)
    return notes


def _jpeg_note(quality: int | None) -> str:
    if quality is not None:
        return f"all images passed through the same JPEG encoder, quality {quality}"
    return "real patches stored as JPEG carry its traces, synthesised ones do not; --jpeg QUALITY passes both through one encoder"
