"""Figures of one scored folder and of one run, as the cells of a benchmark keep them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gan_uad.benchmark.plan import Training
from gan_uad.checkpoint import read_model
from gan_uad.config import CorruptionConfig, RunConfig, load_config, presets
from gan_uad.detection.evaluate import metrics_of
from gan_uad.detection.maps import pixel_metrics
from gan_uad.detection.score_file import (
    BASELINE,
    SCORES,
    ScoreFile,
    description_of,
    read_scores,
    threshold_of,
    validation_of,
)
from gan_uad.errors import UserError
from gan_uad.metrics.detection import auroc, classification_report
from gan_uad.run import Run, model_file

RULES = {"fpr5": "fpr:0.05", "youden": "youden"}
LARGER = {"val_accuracy", "val_auroc"}  # judgements of which more is better; losses and distances are the others
RATES = ("accuracy", "f1", "sensitivity", "specificity")


def metrics_of_scores(folder: Path, resamples: int) -> dict[str, Any]:
    """Counts, AUROC, AUPRC, decisions at the two thresholds, parts and pixel figures of `scores.csv`; the same of mean colour."""
    described = description_of(folder / SCORES)
    result = _of_file(folder / SCORES, resamples)
    result["warnings"] += described.get("warnings", [])
    result["pixels"] = pixel_metrics(folder) if (folder / "truth").is_dir() and (folder / "maps").is_dir() else None
    result["scorer"] = described["label"]
    if described.get("corruption"):
        result["corruption"] = CorruptionConfig(**described["corruption"]).words
    result["baseline"] = _of_file(folder / BASELINE, resamples) if (folder / BASELINE).is_file() else None
    return result


def _of_file(path: Path, resamples: int) -> dict[str, Any]:
    scores, validation = read_scores(path).labelled(), validation_of(path)
    counts = {"normal": int((scores.label == 0).sum()), "anomalous": int((scores.label == 1).sum())}
    result: dict[str, Any] = {
        **counts,
        "groups": None,
        "auroc": None,
        "auprc": None,
        **dict.fromkeys(RULES),
        "components": {},
        "warnings": [],
    }
    if min(counts.values()) == 0:
        result["warnings"].append("labels of one kind only: there is nothing to tell apart")
        return result
    found = metrics_of(scores.label, scores.score, scores.group, threshold_of(scores, None, None), n=resamples)
    result |= {key: found[key] for key in ("groups", "auroc", "auprc")}
    result["warnings"] += found["warnings"]
    result["components"] = {part: auroc(scores.label, values) for part, values in scores.components.items()}
    return result | {name: _at(scores, validation, rule) for name, rule in RULES.items()}


def _at(scores: ScoreFile, validation: ScoreFile | None, rule: str) -> dict[str, Any] | None:
    """Decisions at the threshold that `rule` sets on validation images; None where these do not do (Youden's needs both labels)."""
    try:
        fitted = threshold_of(scores, validation, rule)
    except UserError:
        return None
    found = classification_report(scores.label, fitted.decide(scores.score))
    value = fitted.value if math.isfinite(fitted.value) else str(fitted.value)
    rates = {rate: None if math.isnan(found[rate]) else found[rate] for rate in RATES}
    return {"threshold": value, "note": fitted.note, **rates, "confusion": found["confusion"]}


def training_metrics(path: Path, step: Training, home: Path) -> dict[str, Any]:
    """What is known of a run (folder or model file): how long it was trained, what it cost, its last and best figures."""
    about, _ = read_model(model_file(path))
    name = path.relative_to(home).as_posix() if path.is_relative_to(home) else path.name
    run = Run(path) if path.is_dir() and (path / "config.yaml").is_file() else None
    rows = run.read_log() if run else []
    judgements = run.read_validations() if run else []
    last: dict[str, Any] = rows[-1] if rows else {}
    nimg = int(last.get("nimg", about["nimg"]))
    seconds = _seconds(rows)
    config = run.config if run else None
    return {
        "config": step.config or about["config"]["name"], "run": name, "reused": bool(step.run),
        "resolution": about["config"]["resolution"], "trained_on": _trained_on(about["config"]), "kimg": nimg / 1000,
        "whole": _is_whole(step, config, nimg, about, judgements), "published_kimg": step.published_kimg,
        "seconds": seconds, "images_per_s": round(nimg / seconds, 2) if seconds else None,
        **{key: last.get(key) for key in ("reconstruction", "kl")},
        **_best(judgements, about),
    }  # fmt: skip


def how_long(trainings: list[dict[str, Any]]) -> str:
    """`whole`, `short`, or `unknown` of a chain of trainings."""
    if any(training["whole"] is False for training in trainings):
        return "short"
    return "whole" if all(training["whole"] for training in trainings) else "unknown"


def _trained_on(config: dict[str, Any]) -> str:
    if config["optim"].get("cnn"):  # a first stage, which learnt from labels
        return "all"
    data = config["data"]
    share = data.get("contamination", 0)
    return f"{data['label']}, {100 * share:g} % anomalous" if share else str(data["label"])


def _seconds(rows: list[dict[str, Any]]) -> float | None:
    """Training time by the log, which a resumed run goes on with; judging and pauses are not in it."""
    total, before = 0.0, 0.0
    for row in rows:
        total += (row["kimg"] - before) * row["seconds_per_kimg"]
        before = row["kimg"]
    return round(total, 2) if rows else None


def _best(judgements: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """The best judgement of a run, and what it says of reconstruction and KL on validation normals."""
    best = [row for row in judgements if row["best"]]
    told = about.get("best")
    if not best or told is None:
        return {"judgement": None, "val_reconstruction": None, "val_kl": None}
    row, name = best[-1], told["figure"]
    values = [one[name] for one in judgements]
    judgement = {
        "figure": name,
        "value": row[name],
        "kimg": row["kimg"],
        "larger": row[name] == max(values) != min(values),
    }
    return {"judgement": judgement, **{key: row.get(key) for key in ("val_reconstruction", "val_kl")}}


def _is_whole(
    step: Training, config: RunConfig | None, nimg: int, about: dict[str, Any], judgements: list[dict[str, Any]]
) -> bool | None:
    """Whether a run was trained for as long as its configuration, as published, says, or until it got no better.

    None for a finished encoder that was: its file does not say how long the generator in it had been trained.
    """
    settings = about["config"]["training"]
    asked = float(config.training.total_kimg if config else settings["total_kimg"])
    published = step.published_kimg if step.published_kimg is not None else _published(about["config"]["name"]) or asked
    if nimg >= round(published * 1000):
        return None if step.run and {"gan", "encoder"} <= about["networks"].keys() else True
    if about.get("scorer") is not None:  # fitted on at most so many normals
        return nimg < round(asked * 1000)
    since = next((k for k, row in enumerate(reversed(judgements)) if row["best"]), 0)
    return asked >= published and bool(settings.get("patience")) and since >= settings["patience"]


def _published(name: str) -> float | None:
    return load_config(name).training.total_kimg if name in presets() else None
