"""`gan-uad evaluate`: from score files with labels to metrics with intervals, tables and plots."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad import console
from gan_uad.detection import comparison
from gan_uad.detection.comparison import compare, references
from gan_uad.detection.maps import pixel_metrics
from gan_uad.detection.reliability import draw_reliability, reliability_of
from gan_uad.detection.score_file import (
    BASELINE,
    SCORES,
    UNSET,
    ScoreFile,
    description_of,
    gives_log_odds,
    read_scores,
    threshold_of,
    validation_of,
)
from gan_uad.errors import UserError
from gan_uad.files import make_folder, write_json
from gan_uad.metrics.detection import Threshold, auroc, class_metrics, pvalue_calibration, strict_json, tail_probability
from gan_uad.metrics.detection import evaluate as metrics_of
from gan_uad.metrics.patients import OF_PATCHES, patient_metrics
from gan_uad.tables import format_interval, format_number, table, used_columns, write_tables

COLUMNS = {
    "model": "model", "n": "normal + anomalous", "auroc": "AUROC", "auprc": "AUPRC", "rule": "threshold", "accuracy": "accuracy",
    "f1": "F1", "sensitivity": "sensitivity", "specificity": "specificity",
}  # fmt: skip
BY_PATIENT = "By patient or slide (group): AUROC of the mean, maximum and 90 % quantile of the scores of its patches"
PATIENTS = {"model": "model", "n": "normal + anomalous", "mean": "mean", "max": "maximum", "q90": "90 % quantile"}


def evaluate(
    sources: list[Path],
    out: Path | None = None,
    threshold: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    baseline: str | None = None,
) -> Path:
    """Evaluate every score file given, or found in the folders given; returns the folder with `metrics.json`, tables and plots.

    `threshold` replaces the rule in the files; it is applied to the validation scores beside them, without scoring again. `baseline`: the
    model that all are compared with (default: mean colour, and the first of several others).
    """
    files: dict[Path, Path] = {}  # each once, however it is named
    for file in (file for source in sources for file in _files(source)):
        files.setdefault(file.resolve(), file)
    found = _without_repeats([_read(path, threshold) for path in files.values()])
    named = _named(found)
    baselines = {parent: name for name, one in named.items() if one.is_baseline for parent in one.folders}
    # First, so that files that do not fit are refused before any work.
    differences = _differences(named, baselines, baseline, resamples, seed)
    folder = make_folder(out or (sources[0] if sources[0].is_dir() else sources[0].parent))
    results: dict[str, Any] = {}
    tails = {}
    for name, one in named.items():
        scores = one.scores
        results[name] = _result(one, baselines, resamples, seed) | {"differences": differences[name]}
        if one.validation is not None and len(one.validation.normals):
            p_values = tail_probability(one.validation.normals, scores.score)
            tails[name] = pvalue_calibration(scores.label, p_values)[:2]
        _draw(one, results[name]["decisions"], folder, re.sub(r"[^\w.]+", "-", name).strip("-"))
    curves = {name: (one.scores.label, one.scores.score) for name, one in named.items()}
    write_results(folder, results, results, [_row(name, result) for name, result in results.items()], COLUMNS, curves)
    _draw_all(folder, curves, tails)
    for name, result in results.items():
        for component, value in result["components"].items():
            print(f"{name}, {component} alone: AUROC {value:.3f}")
        for klass, one in result["classes"].items():
            area = one["auroc"]
            shown = format_interval(area["value"], area["low"], area["high"])
            print(f"{name}, class {klass} ({one['images']} images) against all normals: AUROC {shown}")
        if "pixels" in result:
            print(f"{name}, pixels: " + ", ".join(f"{k} {format_number(v)}" for k, v in result["pixels"].items()))
    _compared(results, folder)
    _patients(results, folder)
    _print_warnings(results, folder)
    console.say(f"metrics and plots -> {folder}")
    return folder


@dataclass
class Evaluated:
    """A score file and its threshold; for a baseline, the folders that it is the baseline of."""

    scores: ScoreFile
    validation: ScoreFile | None
    fitted: Threshold
    folders: list[Path]
    unlabelled: int  # rows left out

    @property
    def is_baseline(self) -> bool:
        return self.scores.path.name == BASELINE

    def repeats(self, other: Evaluated) -> bool:
        """Whether both are mean colour of the same images, with the same threshold."""
        a, b = self.scores, other.scores
        return (
            self.is_baseline
            and other.is_baseline
            and (a.model, a.group, self.fitted.value) == (b.model, b.group, other.fitted.value)
            and np.array_equal(a.label, b.label)
            and np.array_equal(a.score, b.score)
        )


def _read(path: Path, rule: str | None) -> Evaluated:
    whole = read_scores(path)
    scores = whole.labelled()
    if len(set(scores.label.tolist())) < 2:
        raise UserError(f"{path}: images of both labels (0 and 1) are needed, and it has those of one or none")
    validation = validation_of(path)
    fitted = threshold_of(scores, validation, rule)
    if fitted.rule == UNSET:
        how = "--threshold fpr:0.05" if validation else "--threshold manual:VALUE (there are no validation scores)"
        how = "a value given by hand is one of the other score" if rule else f"set one with {how}"
        fitted = replace(fitted, note=f"{fitted.note}: {how}")
    return Evaluated(scores, validation, fitted, [path.parent], len(whole.label) - len(scores.label))


def _without_repeats(found: list[Evaluated]) -> list[Evaluated]:
    """One of each baseline: many cells of one data set have the same."""
    kept: list[Evaluated] = []
    for one in found:
        if (same := next((other for other in kept if one.repeats(other)), None)) is None:
            kept.append(one)
        else:
            same.folders += one.folders
    return kept


def _named(found: list[Evaluated]) -> dict[str, Evaluated]:
    """Each by its model and the settings that differ, after what distinguishes its folder; a single baseline without the folder."""
    named: dict[str, Evaluated] = {}
    prefixes = distinct_names([one.scores.path.parent for one in found])
    alone = sum(one.is_baseline for one in found) == 1
    names = [
        f"{prefix}: {one.scores.model}" if prefix and not (alone and one.is_baseline) else one.scores.model
        for one, prefix in zip(found, prefixes, strict=True)
    ]
    for one, base in zip(found, names, strict=True):
        settings = _settings_that_differ(one, [other for other in found if other.scores.model == one.scores.model])
        name = ", ".join([base, *settings])
        if names.count(base) > 1:  # files of one folder
            name = f"{name} ({one.scores.path.stem})"
        named[name] = one
    return named


def _settings_that_differ(one: Evaluated, all_: list[Evaluated]) -> list[str]:
    """What tells a file from others of the same model, as `scores.json` has it: `64 px`, `features vgg16`, `seed 1`."""

    def settings(file: Evaluated) -> dict[str, str]:
        about = description_of(file.scores.path)
        known = {} if file.is_baseline else {**about.get("options", {}), "seed": about.get("seed")}
        texts = {key: f"{key} {value}" for key, value in known.items() if value is not None}
        return {"resolution": f"{about['resolution']} px"} | texts if "resolution" in about else texts

    own, others = settings(one), [settings(file) for file in all_]
    return [text for key, text in own.items() if any(other.get(key) != text for other in others)]


def distinct_names(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that differ, without what all end in; "" for all where there is one folder only.

    `cells/a/scores`, `cells/b/scores` -> `a`, `b`.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < 2:
        return [""] * len(folders)
    while len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    length = next(n for n in range(1, 1 + max(map(len, parts))) if len({p[-n:] for p in parts}) == len(set(parts)))
    return ["/".join(part[-length:]) for part in parts]


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.exists():
        raise UserError(f"no such folder or file of scores: {source} (for a preset use gan-uad cross-validate)")
    found = [source / name for name in (SCORES, BASELINE) if (source / name).is_file()]
    if not found:
        raise UserError(f"{source} is no score file and holds no scores.csv; {_instead(source)}")
    return found


def _instead(folder: Path) -> str:
    """The command to use where a folder holds no scores."""
    inside = sorted(path.parent for path in folder.glob(f"scores/*/{SCORES}"))
    if inside:
        more = f" ({len(inside) - 1} more beside it)" if len(inside) > 1 else ""
        return f"evaluate those inside it: gan-uad evaluate {inside[0]}{more}"
    if (folder / "config.yaml").is_file():
        return f"it is a run; score it: gan-uad score {folder}"
    return f"make one: gan-uad score RUN DATA --out {folder}"


def _result(one: Evaluated, baselines: Mapping[Path, str], resamples: int, seed: int) -> dict[str, Any]:
    """What `metrics.json` holds of one score file."""
    scores, path = one.scores, one.scores.path
    result = metrics_of(scores.label, scores.score, scores.group, one.fitted, n=resamples, seed=seed)
    result["classes"] = class_metrics(scores.label, scores.score, scores.group, scores.klass, n=resamples, seed=seed)
    result["components"] = {name: auroc(scores.label, values) for name, values in scores.components.items()}
    result["unlabelled"] = one.unlabelled
    if result["groups"]["known"]:
        result["patients"] = strict_json(
            patient_metrics(scores.label, scores.score, scores.group, n=resamples, seed=seed)
        )
    result["warnings"] += description_of(path).get("warnings", [])
    if one.unlabelled:
        result["warnings"].append(f"{one.unlabelled} images without a label are left out")
    if gives_log_odds(path):
        result["reliability"] = reliability_of(scores.label, scores.score)
    if path.name == SCORES:
        if (path.parent / "truth").is_dir():
            try:
                result["pixels"] = pixel_metrics(path.parent)
            except ValueError as error:  # such as masks that are all empty
                result["warnings"].append(f"no pixel metrics: {error}")
        result["baseline"] = baselines.get(path.parent)
    return {"file": str(path), **result}


def _differences(
    named: Mapping[str, Evaluated], baselines: Mapping[Path, str], baseline: str | None, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Of each score file: `compare` with what it is compared with, by its name."""
    files = {name: one.scores for name, one in named.items()}
    against = references(files, baselines, baseline)
    return {
        name: {other: compare(files[name], files[other], resamples, seed) for other in others}
        for name, others in against.items()
    }


def _compared(results: Mapping[str, Any], folder: Path) -> None:
    """Print the table of differences with what limits them, and write it in all formats."""
    found = [(name, *pair) for name, result in results.items() for pair in result["differences"].items()]
    _write(folder / "differences", [comparison.as_row(*one) for one in found], comparison.COLUMNS, comparison.ABOUT)
    said: dict[str, list[str]] = {}
    for name, against, difference in found:
        for remark in comparison.remarks(difference):
            said.setdefault(remark, []).append(f"{name} against {against}")
    for remark, names in said.items():
        print(f"{'every difference' if 1 < len(names) == len(found) else ', '.join(names)}: {remark}")


def _patients(results: Mapping[str, Any], folder: Path) -> None:
    """Print the table of AUROCs by patient with what limits them, and write it in all formats."""
    known = {name: result["patients"] for name, result in results.items() if "patients" in result}
    rows = [patients_row(name, found) for name, found in known.items() if not found["note"]]
    _write(folder / "patients", rows, PATIENTS, BY_PATIENT)
    said: dict[str, list[str]] = {}
    for name, found in known.items():
        for remark in patients_remarks(found):
            said.setdefault(remark, []).append(name)
    for remark, names in said.items():
        print(f"by patient{'' if len(names) == len(results) else ', ' + ', '.join(names)}: {remark}")


def _write(stem: Path, rows: list[dict[str, Any]], columns: dict[str, str], about: str) -> None:
    """Print a table after `about`, and write it in all formats; without rows, remove that of an earlier call."""
    if not rows:
        for ending in ("md", "csv", "tex"):
            stem.with_suffix(f".{ending}").unlink(missing_ok=True)
        return
    shown = used_columns(columns, rows)
    write_tables(stem, rows, shown)
    print(f"\n{about}:\n{table(rows, shown, 'text')}", end="")


def patients_row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of AUROCs by patient."""
    areas = {key: format_interval(*(found[key][part] for part in ("value", "low", "high"))) for key in OF_PATCHES}
    return {"model": name, "n": f"{found['n']['normal']} + {found['n']['anomalous']}", **areas}


def patients_remarks(found: Mapping[str, Any]) -> list[str]:
    """What a reader of AUROCs by patient must know, in sentences."""
    said = [found["note"]] if found["note"] else []
    if found["images_without"]:
        said.append(f"{found['images_without']} patches without a group belong to no patient and are left out")
    if found["note"]:
        return said
    n, (normal, anomalous) = found["n"], (found["patches"][key] for key in ("normal", "anomalous"))
    mixed = f" ({n['mixed']} of {n['anomalous']} have normal patches too)" if n["mixed"] else ""
    said.append(f"a patient is anomalous where any patch is{mixed}; the interval resamples patients")
    if len({*normal, *anomalous}) > 1:
        ranges = f"{normal[0]} to {normal[2]} patches where normal, {anomalous[0]} to {anomalous[2]} where anomalous"
        said.append(f"patients have {ranges}: the maximum of more patches is higher by chance alone")
    if found["mean"]["note"]:
        said.append(f"intervals: {found['mean']['note']}")
    return said


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    rates, at = result["decisions"] or {}, result["threshold"]
    return {
        **cells(name, result, ("auroc", "auprc")),
        "rule": None
        if at["rule"] == UNSET
        else f"{at['rule']} {format_number(float(at['value'])) if rates else 'none'}",
        **{key: rates.get(key) for key in ("accuracy", "f1", "sensitivity", "specificity")},
    }


def cells(model: str, result: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The cells of a table's row that hold the model, the number of images, and metrics with their intervals."""
    counts = f"{result['images']['normal']} + {result['images']['anomalous']}"
    found = {key: result[key] for key in names}
    shown = {k: one and format_interval(one["value"], one["low"], one["high"]) for k, one in found.items()}
    return {"model": model, "n": counts, **shown}


def write_results(
    folder: Path, content: Any, results: Mapping[str, Any], rows: list[dict[str, Any]], columns: dict[str, str], curves: Any
) -> None:  # fmt: skip
    """Write `metrics.json` (`content`), the table in all formats, and roc.png; print the table and the ECE of classifiers."""
    from gan_uad.plotting import plots

    write_json(folder / "metrics.json", content)
    write_tables(folder / "metrics", rows, columns)
    plots.roc(curves, folder / "roc.png")
    draw_reliability(results, folder)
    print(table(rows, columns, "text"), end="")
    for name, result in results.items():
        if "reliability" in result:
            print(f"{name}: expected calibration error {result['reliability']['ece']:.3f}")


def _draw(one: Evaluated, decisions: dict[str, Any] | None, folder: Path, stem: str) -> None:
    from gan_uad.plotting import plots

    shown = one.fitted.value if np.isfinite(one.fitted.value) else None
    plots.histogram(one.scores.label, one.scores.score, shown, folder / f"{stem}_histogram.png")
    confusion = folder / f"{stem}_confusion.png"
    if decisions:
        plots.confusion(decisions["confusion"], confusion)
    else:
        confusion.unlink(missing_ok=True)  # of an earlier call that had a threshold


def _draw_all(folder: Path, curves: dict[str, Any], tails: dict[str, Any]) -> None:
    from gan_uad.plotting import plots

    plots.pr(curves, folder / "pr.png")
    if tails:
        names = "p-value from validation normals", "share of test normals at or below"
        plots.calibration(tails, folder / "calibration.png", *names)


def _print_warnings(results: dict[str, Any], folder: Path) -> None:
    """Each sentence once, after the rows that it applies to."""
    warned: dict[str, list[str]] = {}
    for name, result in results.items():
        for warning in result["warnings"]:
            warned.setdefault(warning, []).append(name)
    for warning, names in warned.items():
        print(f"{'every row' if 1 < len(names) == len(results) else ', '.join(names)}: {warning}")
    if any(result["decision_intervals"] for result in results.values()):
        print(
            "Intervals of accuracy, sensitivity and specificity over groups (patients or slides): `decision_intervals` in "
            f"{folder / 'metrics.json'}; those of `wilson` treat images as independent"
        )
