"""What `gan-uad classify` and `gan-uad real-vs-synthetic` share: generated images, resumable scores, the metrics of a row, the files."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gan_uad import console, registry
from gan_uad.config import PREPROCESSING, DataConfig
from gan_uad.data.arrays import digest
from gan_uad.data.corruption import through_jpeg
from gan_uad.data.manifest import LABEL_NAMES
from gan_uad.data.patches import PatchSet, Pixels, to_tensor
from gan_uad.errors import UserError
from gan_uad.files import append_json_line, read_json_lines, write_json, write_text
from gan_uad.generation.feature_sets import ImageSet, of_generator
from gan_uad.metrics.detection import accuracy, auroc, bootstrap_interval, classification_report, strict_json
from gan_uad.model import Model, file_digest, load_model
from gan_uad.networks.sampling import style_based
from gan_uad.run import environment
from gan_uad.tables import format_interval, table

CHUNK = 256  # images between two writes of the partial results
SEEDS = 1_000_000  # of images, for each --seed


def in_one_process(command: str) -> None:
    """Raise `UserError` under torchrun, whose processes would write into the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"gan-uad {command} runs in one process: start it without torchrun")


def open_generator(source: str, resolution: int | None, device: torch.device) -> tuple[Model, ImageSet]:
    """A trained generator and its images by seed (with random noise maps, where it has any).

    Raises `UserError` for a run without a generator, and for a resolution other than `resolution`, that of the classifier.
    """
    model = load_model(source, device)
    noise = "random" if style_based(model.generator) else "const"
    if resolution not in (None, model.resolution):
        raise UserError(f"{source} makes images of {model.resolution} px, the classifier takes {resolution} px")
    return model, of_generator(model, source, file_digest(source), 0, noise=noise)


def seeds_of(seed: int, count: int, after: int = 0) -> range:
    """The seeds of `count` images, after the first `after`."""
    return range(seed * SEEDS + after, seed * SEEDS + after + count)


def as_text(seeds: range) -> str:
    """`range(0, 64)` -> `0-63`."""
    return f"{seeds.start}-{seeds.stop - 1}"


def of_both_classes(patches: PatchSet, num: int, seed: int) -> PatchSet:
    """At most `num` patches, half of them normal and half anomalous. Raises `UserError` where a class is missing."""
    if num < 2:
        raise UserError(f"--num {num}: at least 2 images are needed, one per class")
    picked = []
    for label in (0, 1):
        rows = np.flatnonzero(patches.manifest.label == label)
        if not len(rows):
            raise UserError(
                f"{patches.source}: none of the {len(patches)} patches is labelled {LABEL_NAMES[label]}; accuracy needs both classes"
            )
        if len(rows) > num // 2:
            rows = np.random.default_rng((seed, label)).choice(rows, num // 2, replace=False)
        picked.append(rows)
    return patches.take(np.sort(np.concatenate(picked)))


def as_jpeg(images: Pixels, quality: int | None) -> Pixels:
    """uint8 `[N, R, R, 3]` after JPEG compression of that quality; None: unchanged."""
    return images if quality is None else through_jpeg(images, quality)


def scored(
    classifier: Model, images: ImageSet, rows: Sequence[int], folder: Path, jpeg: int | None = None
) -> NDArray[np.float64]:
    """Scores `[len(rows)]` of some images of a set. Chunks that an earlier call finished are read from `folder`.

    Raises `UserError` where a score is not finite.
    """
    scorer = registry.build("scorer", "classifier", {}, nets=classifier.networks, device=classifier.device)
    key = digest(f"{file_digest(str(classifier.path))} {classifier.device.type}", images.key, list(rows), jpeg)
    path = folder / f"scores-{key[:24]}.jsonl"
    chunks = {line["first"]: line["scores"] for line in read_json_lines(path)}
    with console.progress(f"classifying {images.name}", len(rows)) as bar:
        for start in range(0, len(rows), CHUNK):
            chosen = list(rows[start : start + CHUNK])
            if len(chunks.get(start, ())) != len(chosen):
                new = scorer.score(to_tensor(as_jpeg(images.get(chosen), jpeg))).image
                if not bool(new.isfinite().all()):
                    raise UserError(
                        "the classifier gives NaN or infinity for some images: it diverged in training, or its file is damaged"
                    )
                chunks[start] = new.tolist()
                append_json_line(path, {"first": start, "scores": chunks[start]})
            bar.update(start + len(chosen))
    return np.concatenate([chunks[start] for start in range(0, len(rows), CHUNK)])


def metrics(
    name: str, labels: NDArray[Any], scores: NDArray[np.float64], groups: list[str] | None, seed: int
) -> dict[str, Any]:
    """One row: the metrics of the decision that an image with a score above 0 is of label 1.

    The interval of the accuracy is a bootstrap over groups (patients or slides) where any is known, since patches of one group are not
    independent; else Wilson's.
    """
    report = classification_report(labels, scores > 0)
    low, high = report["wilson"]["accuracy"]
    method, notes = "Wilson", []
    if groups is not None and any(groups):
        found = bootstrap_interval(labels, (scores > 0).astype(float), groups, accuracy, seed=seed)
        if math.isfinite(found.low):
            low, high, method = found.low, found.high, "bootstrap over groups"
        notes = [f"{name}: {found.note}"] if found.note else []
    area = bootstrap_interval(labels, scores, groups, auroc, seed=seed)
    row: dict[str, Any] = strict_json({
        "set": name, "n": len(labels), "n_0": int((labels == 0).sum()), "n_1": int((labels == 1).sum()),
        "accuracy": report["accuracy"], "low": low, "high": high, "interval": method, "recall_0": report["specificity"],
        "recall_1": report["sensitivity"], "auroc": area.value, "auroc_low": area.low, "auroc_high": area.high,
        "confusion": report["confusion"], "wilson": report["wilson"], "notes": notes,
    })  # fmt: skip
    return row


def generator_notes(model: Model, source: str, wanted: DataConfig, label: str) -> list[str]:
    """Why a generator's images may not stand for `label`: its training patches had another label, or were prepared unlike `wanted`."""
    own = model.config.data
    notes = []
    if own.label != label:
        notes.append(f"{source} was trained on {own.label} patches and stands for {label} ones here")
    if differing := [key for key in PREPROCESSING if getattr(own, key) != getattr(wanted, key)]:
        settings = ", ".join(f"data.{key} {getattr(own, key)!r}, not {getattr(wanted, key)!r}" for key in differing)
        notes.append(f"the training patches of {source} were prepared unlike those of the classifier: {settings}")
    return notes


def write_table(
    out: Path, stem: str, title: str, names: tuple[str, str], rows: list[dict[str, Any]], settings: dict[str, Any], notes: list[str]
) -> str:  # fmt: skip
    """`out/stem.md`, `.csv`, `.tex` and `.json`; returns the Markdown. `names`: the meaning of labels 0 and 1."""
    here = environment(settings["seed"])
    command, runs, spans = shlex.join(here["command"]), settings["runs"], settings["image_seeds"]
    packages = ", ".join(f"{name} {here['packages'][name]}" for name in ("gan_uad", "torch", "torchvision"))
    notes = [
        *notes,
        *(note for row in rows for note in row["notes"]),
        *(_run_note(role, run) for role, run in runs.items()),
        "real patches stored as JPEG carry its traces, generated ones do not; --jpeg QUALITY compresses both alike"
        if settings["jpeg"] is None
        else f"all images were compressed by the same JPEG encoder, quality {settings['jpeg']}",
        f"command: `{command}` ({packages}, revision {here['git'] or 'unknown'}), seed {settings['seed']}, seeds of the images: "
        + ", ".join(f"{span} ({name})" for name, span in spans.items()),
    ]
    notes = list(dict.fromkeys(notes))
    columns = {
        "set": "patches", "n": f"n ({names[0]} + {names[1]})", "accuracy": "accuracy % [95 %]", "interval": "interval by",
        "recall_0": f"correct of {names[0]} %", "recall_1": f"correct of {names[1]} %", "auroc": "AUROC [95 %]",
    }  # fmt: skip
    shown = [_shown(row) for row in rows]
    text = "\n".join([title, "", table(shown, columns), *(f"- {note}" for note in notes), ""])
    write_text(out / f"{stem}.md", text)
    comments = "".join(f"% {' '.join(note.split())}\n" for note in [title, *notes])
    write_text(out / f"{stem}.tex", comments + table(shown, columns, "latex"))
    common = {
        f"{role}_{key}": run[key] for role, run in runs.items() for key in ("run", "kimg", "trained_kimg", "short")
    }
    common |= {f"seeds_{name}": span for name, span in spans.items()}
    common |= {"jpeg": settings["jpeg"], "seed": settings["seed"], "command": command, "versions": packages}
    flat = [{key: value for key, value in row.items() if not isinstance(value, list | dict)} | common for row in rows]
    write_text(out / f"{stem}.csv", table(flat, list(flat[0]), "csv"))
    write_json(out / f"{stem}.json", {"rows": rows, "labels": names, **settings, "notes": notes, "environment": here})
    console.say(f"-> {out}/{stem}.md, .csv, .tex, .json")
    return text


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    percent, low, high = (100 * row[key] for key in ("accuracy", "low", "high"))
    return {
        "set": row["set"], "n": f"{row['n']} ({row['n_0']} + {row['n_1']})", "accuracy": format_interval(percent, low, high, 2),
        "interval": row["interval"], "recall_0": f"{100 * row['recall_0']:.2f}", "recall_1": f"{100 * row['recall_1']:.2f}",
        "auroc": format_interval(row["auroc"], row["auroc_low"], row["auroc_high"]),
    }  # fmt: skip


def _run_note(role: str, run: dict[str, Any]) -> str:
    note = f"{role}: {run['name']} ({run['run']}), {run['file']}"
    if run["kimg"] is None:
        return f"{note}, a generator inside an encoder's run: length of its training unknown"
    note += f" at {run['kimg']:g} of {run['trained_kimg']:g} kimg"
    if run["stopped_early"]:
        return f"{note}, stopped early because validation no longer improved"
    return f"{note}, TRUNCATED: {run['planned_kimg']:g} kimg were planned" if run["short"] else note
