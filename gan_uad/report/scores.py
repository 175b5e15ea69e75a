"""Sections of a report: scored patches, and their metrics by `gan-uad evaluate`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad import old_names
from gan_uad.checkpoint import read_model
from gan_uad.config import DataConfig, resolve
from gan_uad.data.sources import Source
from gan_uad.detection.score_file import BASELINE, SCORES, ScoreFile, read_scores, validation_of
from gan_uad.errors import UserError
from gan_uad.files import read_csv
from gan_uad.report.gather import (
    RELIABILITY,
    Gathering,
    ResultFolder,
    in_words,
    listed,
    pairs,
    prepared,
    read_json,
    show_data,
    well_formed,
)
from gan_uad.report.html import Gallery, Notes, Table, TableCell, embed, interval, percent
from gan_uad.run import Run
from gan_uad.tables import format_number

N_PATCHES = 8  # in a row of best and worst
LABELS = ("normal", "anomalous")
OF_TABLE = "`decision_intervals`"  # of a warning in older files; the table shows those intervals
PIXELS = {"pixel_auroc": "AUROC", "aupro": "AUPRO", "dice": "Dice", "iou": "IoU"}
DRAWN = "Drawn for this report: there are no metrics with intervals yet."


# ---------------------------------------------------------------- scored patches


def add_scores(g: Gathering, found: ResultFolder) -> None:
    """A folder of `gan-uad score`: settings, counts, histograms, patches, maps, and what is missing."""
    described = read_json(found.path / "scores.json") if (found.path / "scores.json").is_file() else {}
    with well_formed(found.path / "scores.json"):
        _settings(g, found, described)
    if not (found.path / SCORES).is_file():
        g.doc.missing(
            found.name, "the scoring is not finished: there is no scores.csv; run the same `gan-uad score` again"
        )
        return
    scores = read_scores(found.path / SCORES)
    validation = validation_of(found.path / SCORES)
    g.doc.add("data", found.name, _counts(scores, validation))
    source, resolution = _source(g, found, described)
    _patches(g, found, scores, source, described, resolution)
    _maps(g, found)
    _score_gaps(g, found, scores, validation, described)
    if len(set(scores.label.tolist()) - {-1}) == 2:
        g.checks.append(lambda: _unless_evaluated(g, found, scores))
    else:
        _unlabelled(g, found, scores)


def _settings(g: Gathering, found: ResultFolder, described: dict[str, Any]) -> None:
    if not described:
        g.doc.missing(found.name, "no scores.json: which model and settings gave these scores is unknown")
        return
    model = Path(described["model"])
    g.scored |= {place.resolve() for place in (model, model.parent)}
    inverter, thresholds = described.get("inverter"), described.get("thresholds", {})
    at = thresholds.get(SCORES)
    table = {
        "Model": f"{described['model']} ({described['name']}, {described['kimg']:g} kimg)",
        "Scored by": described["scorer"] + (f" ({listed(described['options'])})" if described.get("options") else ""),
        "Closest normal by": None if inverter is None else f"{inverter['name']} ({listed(inverter['options'])})",
        "Patches": f"{described['data']}, {described['images']:,} images",
        "Threshold": _threshold(at) if at else None,
        "Maps": described.get("maps"),
    }
    g.doc.add("runs", found.name, pairs(f"Scoring of {described['label']}", table))
    if notes := [*described.get("notes", []), *described.get("warnings", [])]:
        g.doc.add("runs", found.name, Notes(list(dict.fromkeys(notes))))
    skipped = described.get("skipped", [])
    if skipped:
        some = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
        g.doc.missing(found.name, f"{len(skipped)} images were skipped, since they could not be used: {some}")


def _threshold(at: dict[str, Any]) -> str:
    value = float(at["value"])
    if not np.isfinite(value):
        return str(at["note"])
    return f"{format_number(value)} by {at['rule']} ({listed(at['params'])}); {at['note']}"


def _counts(scores: ScoreFile, validation: ScoreFile | None) -> Table:
    """Images, groups and decisions by label."""
    rows: list[list[Any]] = []
    for label, name in ((0, "normal"), (1, "anomalous"), (-1, "unknown")):
        for name_of_set, of in (("scored", scores), ("validation", validation)):
            if of is None or not (of.label == label).any():
                continue
            rows_of_label = of.label == label
            groups = {group for group, here in zip(of.group, rows_of_label, strict=True) if here} - {""}
            at = of.finite_threshold
            flagged = None if at is None else percent(float((of.score[rows_of_label] > at).mean()))
            median = float(np.median(of.score[rows_of_label]))
            rows.append([name_of_set, name, int(rows_of_label.sum()), len(groups) or None, median, flagged])
    headings = ("set", "label", "images", "groups", "median score", "above threshold")
    return Table(f"Scored patches: n by label, model {scores.model}", headings, rows)


def _unlabelled(g: Gathering, found: ResultFolder, scores: ScoreFile) -> None:
    from gan_uad.plotting.plots import GUIDE, figure_file

    known = sorted({LABELS[label] for label in scores.label.tolist() if label >= 0})
    have = f"all labelled ones are {known[0]}" if known else "none of the images has a label"
    g.doc.missing(found.name, f"detection cannot be evaluated: {have}")
    path = g.drawing("histogram")
    with figure_file(path, 6.4, 4.4) as figure:
        axes = figure.add_subplot(xlabel="Anomaly score", ylabel="Images")
        axes.hist(scores.score, bins=min(50, max(10, round(len(scores.score) ** 0.5))), color=GUIDE)
        if (at := scores.finite_threshold) is not None:
            axes.axvline(at, color="black", linestyle="--", label=f"threshold {at:.4g}")
            figure.legend(loc="outside upper center", frameon=False)
    g.doc.picture("scores", found.name, path, f"Histogram of the scores of {len(scores.score):,} images. {DRAWN}")


def _unless_evaluated(g: Gathering, found: ResultFolder, scores: ScoreFile) -> None:
    """ROC, precision-recall and histograms of a file that was not evaluated."""
    from gan_uad.plotting import plots

    files = [found.path / name for name in (SCORES, BASELINE) if (found.path / name).is_file()]
    left = [path for path in files if path.resolve() not in g.evaluated]
    if found.path / SCORES not in left:
        return
    command = f"gan-uad evaluate {shlex.quote(str(found.path))}"
    g.doc.missing(found.name, "no evaluation yet, so there are no intervals", command)
    curves = {}
    for path in left:
        of = (scores if path.name == SCORES else read_scores(path)).labelled()
        if len(set(of.label.tolist())) < 2:
            continue
        curves[of.model] = (of.label, of.score)
        n = f"{int((of.label == 0).sum()):,} normal, {int((of.label == 1).sum()):,} anomalous"
        drawn = plots.histogram(of.label, of.score, of.finite_threshold, g.drawing("histogram"))
        g.doc.picture("scores", found.name, drawn, f"Scores of {of.model} and its threshold; n = {n}. {DRAWN}")
    roc, pr = plots.roc(curves, g.drawing("roc")), plots.pr(curves, g.drawing("pr"))
    g.doc.picture("detection", found.name, roc, f"ROC curves without intervals. {DRAWN}")
    g.doc.picture("detection", found.name, pr, f"Precision-recall curves without intervals. {DRAWN}")


def _score_gaps(
    g: Gathering, found: ResultFolder, scores: ScoreFile, validation: ScoreFile | None, described: dict[str, Any]
) -> None:
    if not (found.path / BASELINE).is_file():
        g.doc.missing(
            found.name, "no mean-colour baseline, which any detector must beat (no train normals were available)"
        )
    if scores.threshold is None:
        g.doc.missing(found.name, "no threshold, so no decisions (no validation normals were available)")
    elif scores.finite_threshold is None:
        at = described.get("thresholds", {}).get(SCORES)
        g.doc.missing(found.name, at["note"] if at else "no threshold, so no decisions")
    elif validation is None:
        g.doc.missing(found.name, "no validation scores: the threshold was set without them")
    if not any(scores.group):
        g.doc.missing(found.name, "groups (patients or slides) are unknown, so intervals are likely too narrow")
    if not any((found.path / name).is_file() for name in ("triplets.png", "maps.png")):
        g.doc.missing(found.name, "no pictures of difference maps: this scorer makes none")
    elif not (found.path / "truth").is_dir():
        g.doc.missing(found.name, "no pixel metrics: there are no annotated masks, or --maps was not given")


def _maps(g: Gathering, found: ResultFolder) -> None:
    g.doc.picture(
        "maps", found.name, found.path / "triplets.png",
        "Input, the closest normal image found, and their difference, for images spread evenly over the ranks of each label "
        "(label and score at the left). All maps share one colour scale.", wide=True,
    )  # fmt: skip
    g.doc.picture(
        "maps", found.name, found.path / "maps.png",
        "Input and anomaly map, for images spread evenly over the ranks of each label (label and score at the left).", wide=True,
    )  # fmt: skip


# ---------------------------------------------------------------- best and worst patches


def _source(g: Gathering, found: ResultFolder, described: dict[str, Any]) -> tuple[Source | None, int | None]:
    """The scored set and the resolution of the model; None for what is not available."""
    resolution = _resolution(described.get("model"))
    if "data" not in described:
        g.doc.missing(found.name, "best and worst patches are not shown: scores.json does not name the images")
        return None, None
    raw = {**described.get("data_settings", {}), "path": described["data"]}
    with well_formed(found.path / "scores.json"):
        return show_data(g, found, raw, resolution), resolution


def _resolution(model: str | None) -> int | None:
    """The side of a model's images, in px; None where the model is not available."""
    if model is None:
        return None
    path = Path(model)
    try:
        if path.is_dir():
            return Run(path).config.resolution
        if path.is_file():
            return resolve(read_model(path)[0]["config"], default_name=path.stem, context=str(path)).resolution
    except (UserError, KeyError):
        return None
    return None


def _patches(
    g: Gathering,
    found: ResultFolder,
    scores: ScoreFile,
    source: Source | None,
    described: dict[str, Any],
    resolution: int | None,
) -> None:
    """The patches at both ends of the ranks of each label."""
    if source is None:
        return
    names = [row["image"] for row in read_csv(found.path / SCORES, ("image",))]
    rows = {name: i for i, name in enumerate(source.manifest.image)}
    data = DataConfig(**{k: v for k, v in described.get("data_settings", {}).items() if k in DataConfig.model_fields})
    for caption, chosen, total in _ends(scores):
        items = []
        for k in chosen:
            i = rows.get(names[k])
            picture = None if i is None else prepared(source, i, data, resolution)
            if picture is not None:
                group = f", group {scores.group[k]}" if scores.group[k] else ""
                items.append((embed(picture), names[k], f"score {scores.score[k]:.4g}{group}"))
        if items:
            g.doc.add("patches", found.name, Gallery(f"{caption} ({len(items)} of {total:,})", items))
        if len(items) < len(chosen):
            g.doc.missing(
                found.name, f"{len(chosen) - len(items)} patches are not shown: they are gone from {source.path}"
            )


def _ends(scores: ScoreFile) -> list[tuple[str, NDArray[np.int64], int]]:
    """Captions, rows, and the number of images of the label; best decisions before worst ones."""
    best: list[tuple[str, NDArray[np.int64], int]] = []
    worst: list[tuple[str, NDArray[np.int64], int]] = []
    for label, low, high in (
        (1, "Anomalous, lowest scores: missed first", "Anomalous, highest scores: found first"),
        (0, "Normal, lowest scores: most normal", "Normal, highest scores: false alarms first"),
        (-1, "Without label, lowest scores", "Without label, highest scores"),
    ):
        rows = np.flatnonzero(scores.label == label)
        ranked = rows[np.argsort(scores.score[rows], kind="stable")]
        if len(ranked):
            bottom, top = (low, ranked[:N_PATCHES], len(rows)), (high, ranked[::-1][:N_PATCHES], len(rows))
            best.append(bottom if label == 0 else top)
            worst.append(top if label == 0 else bottom)
    return best + worst


# ---------------------------------------------------------------- metrics


def add_metrics(g: Gathering, found: ResultFolder) -> None:
    """`metrics.json` of `gan-uad evaluate` on scored patches, with its pictures."""
    rows, components, classes, notes = [], [], [], []
    with well_formed(found.path / "metrics.json"):
        results = {name: old_names.keys(result) for name, result in read_json(found.path / "metrics.json").items()}
        for name, result in results.items():
            g.evaluated.add(Path(result["file"]).resolve())
            g.evaluated.add((found.path / Path(result["file"]).name).resolve())
            rows.append(_row(name, result))
            components += [
                [name, component, TableCell(format_number(value), value)]
                for component, value in result.get("components", {}).items()
            ]
            classes += [
                [name, klass, one["images"], interval(one["auroc"])] for klass, one in result.get("classes", {}).items()
            ]
            notes += [f"{name}: {warning}" for warning in result["warnings"] if OF_TABLE not in warning]
            _own_pictures(g, found, name, result, len(results))
        first = next(iter(results.values()))
        rule = first["auroc"]
        for line in _glance(results):
            g.doc.result(found.name, line)
    about = f"intervals: {rule['confidence']:.0%}, bootstrap of {rule['n_resamples']:,} over {rule['unit']}s ({rule['n_units']:,})"
    headings = [
        "model",
        "normal + anomalous",
        "AUROC",
        "AUPRC",
        "threshold",
        "accuracy",
        "sensitivity",
        "specificity",
        "F1",
    ]
    g.doc.add("detection", found.name, Table(f"Detection, by image; {about}. The bars go from 0 to 1.", headings, rows))
    if notes:
        g.doc.add("detection", found.name, Notes(notes, warning=True))
    _shared_pictures(g, found, results)
    if classes:
        headings = ["model", "class", "anomalous images", "AUROC"]
        g.doc.add("detection", found.name, Table("Each class of anomaly against all normals", headings, classes))
    if components:
        headings = ["model", "component", "AUROC"]
        g.doc.add("detection", found.name, Table("Each component of the score alone", headings, components))


def _row(name: str, result: dict[str, Any]) -> list[Any]:
    images, decisions, at = result["images"], result["decisions"], result["threshold"]
    if not np.isfinite(float(at["value"])):  # older files have decisions all the same
        decisions = None
    by_group, wilson = result.get("decision_intervals"), decisions and decisions["wilson"]
    threshold = (
        TableCell("none", None, f"by {at['rule']}")
        if decisions is None
        else TableCell(format_number(float(at["value"])), float(at["value"]), f"by {at['rule']}")
    )
    rates: list[TableCell | None] = []
    for key in ("accuracy", "sensitivity", "specificity"):
        if decisions is None:
            rates.append(None)
            continue
        low, high = (by_group[key]["low"], by_group[key]["high"]) if by_group else wilson[key]
        rates.append(interval({"value": decisions[key], "low": low, "high": high}, drawn=False))
    return [
        name, TableCell(f"{images['normal']:,} + {images['anomalous']:,}", images["normal"] + images["anomalous"]),
        interval(result["auroc"]), interval(result["auprc"]), threshold,
        *rates, decisions and decisions["f1"],
    ]  # fmt: skip


def _glance(results: dict[str, Any]) -> list[str]:
    """A sentence per model: its AUROC, and whether it beats mean colour."""
    lines = []
    first = next((name for name, result in results.items() if Path(result["file"]).name == BASELINE), None)
    for name, result in results.items():
        if Path(result["file"]).name == BASELINE:
            continue
        baseline = results.get(result.get("baseline", first))  # older files do not name it
        area, images = result["auroc"], result["images"]
        text = (
            f"{name}: AUROC {in_words(area)} on {images['normal']:,} normal and {images['anomalous']:,} anomalous images "
            "(0.5 is chance)"
        )
        if baseline is not None:
            other = baseline["auroc"]
            text += f"; mean colour alone: {in_words(other)}"
            if None not in (area["low"], other["high"]) and not area["low"] > other["high"]:
                text += (
                    ". The intervals overlap: it is not clearly better"
                    if area["value"] > other["value"]
                    else ". It is worse than mean colour"
                )
        lines.append(text + ".")
        if "pixels" in result:
            lines.append(
                f"{name}, pixels: "
                + ", ".join(f"{PIXELS.get(k, k)} {format_number(v)}" for k, v in result["pixels"].items())
                + "."
            )
    return lines


def _own_pictures(g: Gathering, found: ResultFolder, name: str, result: dict[str, Any], count: int) -> None:
    """Histogram and confusion matrix, by the file names of `evaluate`."""
    stem = re.sub(r"[^\w.]+", "-", name).strip("-")
    n = f"n = {result['images']['normal']:,} normal and {result['images']['anomalous']:,} anomalous images"
    histogram, confusion = found.path / f"{stem}_histogram.png", found.path / f"{stem}_confusion.png"
    g.doc.picture("scores", found.name, histogram, f"Scores of {name} by label, with the threshold; {n}.")
    g.doc.picture("scores", found.name, confusion, f"Decisions of {name} at its threshold; {n}.")


def _shared_pictures(g: Gathering, found: ResultFolder, results: dict[str, Any]) -> None:
    models = f"{len(results)} model{'s' if len(results) > 1 else ''}, each on its test images as in the table"
    for name, caption in (
        ("roc.png", f"ROC curves; {models}. The intervals of their areas are in the table."),
        ("pr.png", f"Precision-recall curves; {models}. The intervals of their areas are in the table."),
        (
            "calibration.png",
            "Share of test normals with a p-value below each level. On the diagonal, p-values are calibrated.",
        ),
        ("reliability.png", RELIABILITY),
    ):
        g.doc.picture("detection", found.name, found.path / name, caption)
