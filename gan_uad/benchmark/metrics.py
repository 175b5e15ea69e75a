"""Metrics of one folder of scores and of one run, as the cells of a benchmark keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gan_uad import old_names
from gan_uad.benchmark.plan import Training
from gan_uad.benchmark.tables import RATES
from gan_uad.checkpoint import read_model
from gan_uad.config import CorruptionConfig, load_config, presets
from gan_uad.detection.maps import pixel_metrics
from gan_uad.detection.score_file import BASELINE, SCORES, description_of, read_scores, threshold_of, validation_of
from gan_uad.errors import UserError
from gan_uad.metrics.detection import auroc, classification_report, evaluate, strict_json
from gan_uad.run import Run, model_file

RULES = {"fpr5": "fpr:0.05", "youden": "youden"}


def metrics_of_scores(folder: Path, resamples: int) -> dict[str, Any]:
    """Counts, AUROC, AUPRC, decisions at two thresholds, score components and pixel metrics of `scores.csv`; the same of mean colour."""
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
    result: dict[str, Any] = {"normal": int((scores.label == 0).sum()), "anomalous": int((scores.label == 1).sum())}
    if not (result["normal"] and result["anomalous"]):
        warning = "labels of one kind only, so there is no AUROC"
        nothing = dict.fromkeys(("groups", "auroc", "auprc", *RULES))
        return result | nothing | {"components": {}, "warnings": [warning]}
    found = evaluate(scores.label, scores.score, scores.group, threshold_of(scores, None, None), n=resamples)
    result |= {key: found[key] for key in ("groups", "auroc", "auprc", "warnings")}
    result["components"] = {name: auroc(scores.label, values) for name, values in scores.components.items()}
    for name, rule in RULES.items():
        try:
            fitted = threshold_of(scores, validation, rule)
        except UserError:  # validation images do not allow it: Youden's J needs both labels
            result[name] = None
            continue
        rates: dict[str, Any] = dict.fromkeys((*RATES, "confusion"))
        if fitted.exists:
            report = classification_report(scores.label, fitted.decide(scores.score))
            rates = {rate: report[rate] for rate in rates}
        result[name] = strict_json({"threshold": fitted.value, "note": fitted.note, **rates})
    return result


def training_metrics(path: Path, step: Training, home: Path) -> dict[str, Any]:
    """What is known of a run (folder or model file): length, cost, last and best metrics."""
    about, _ = read_model(model_file(path))
    run = Run(path) if path.is_dir() and (path / "config.yaml").is_file() else None
    rows, validations = (run.read_log(), run.read_validations()) if run else ([], [])
    last: dict[str, Any] = rows[-1] if rows else {}
    nimg = int(last.get("nimg", about["nimg"]))
    # By the log, which a resumed run continues: validation and pauses are not in it.
    steps = zip([{"kimg": 0.0}, *rows], rows, strict=False)
    seconds = round(sum((after["kimg"] - before["kimg"]) * after["seconds_per_kimg"] for before, after in steps), 2)
    config = about["config"]
    return {
        "config": step.config or config["name"], "reused": bool(step.run),
        "run": path.relative_to(home).as_posix() if path.is_relative_to(home) else path.name,
        "resolution": config["resolution"], "trained_on": _trained_on(config), "kimg": nimg / 1000,
        "complete": _is_complete(step, run, nimg, about, validations), "published_kimg": step.published_kimg,
        "seconds": seconds if rows else None, "images_per_s": round(nimg / seconds, 2) if seconds else None,
        "reconstruction": last.get("reconstruction"), "kl": last.get("kl"), **_best(validations, about),
    }  # fmt: skip


def _trained_on(config: dict[str, Any]) -> str:
    if config["optim"].get("cnn"):  # a first stage, which learnt from labels
        return "all"
    share = config["data"].get("contamination", 0)
    return config["data"]["label"] + (f", {100 * share:g} % anomalous" if share else "")


def _best(validations: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """The best validation of a run, and its reconstruction and KL on validation normals."""
    best = next((row for row in reversed(validations) if row["best"]), None)
    if best is None or about.get("best") is None:
        return dict.fromkeys(("validation", "val_reconstruction", "val_kl"))
    name = about["best"]["figure"]
    values = [row[name] for row in validations]
    larger = best[name] == max(values) != min(values)
    validation = {"figure": name, "value": best[name], "kimg": best["kimg"], "larger": larger}
    return {"validation": validation, **{key: best.get(key) for key in ("val_reconstruction", "val_kl")}}


def _is_complete(
    step: Training, run: Run | None, nimg: int, about: dict[str, Any], validations: list[dict[str, Any]]
) -> bool | None:
    """Whether a run was trained for as long as its configuration, as published, says, or until it stopped to improve.

    None for a finished encoder that was: its file does not say how long the generator in it was trained.
    """
    name, settings = old_names.preset(about["config"]["name"]), about["config"]["training"]
    asked = float(run.config.training.total_kimg if run else settings["total_kimg"])
    published = step.published_kimg
    if published is None:
        published = load_config(name).training.total_kimg if name in presets() else asked
    if nimg >= round(published * 1000):
        return None if step.run and {"gan", "encoder"} <= about["networks"].keys() else True
    if about.get("scorer") is not None:  # fitted on at most so many normals
        return nimg < round(asked * 1000)
    since = next((k for k, row in enumerate(reversed(validations)) if row["best"]), 0)
    return asked >= published and bool(settings.get("patience")) and since >= settings["patience"]
