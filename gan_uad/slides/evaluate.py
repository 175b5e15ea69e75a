"""`gan-uad evaluate-slides`: AUROC of slides, and where annotations are given, AUROC of tiles and FROC of lesions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad import console, old_names
from gan_uad.detection.evaluate import distinct_names
from gan_uad.errors import UserError
from gan_uad.files import csv_lines, make_folder, number, write_json
from gan_uad.metrics.detection import ranking_metrics, strict_json
from gan_uad.metrics.froc import RATES, FrocCurve, Marks, froc_curve, froc_interval, sensitivity_at
from gan_uad.slides.annotations import Annotations, read_annotations
from gan_uad.slides.backends import open_backend
from gan_uad.slides.base import BOUNDED
from gan_uad.slides.batch import SLIDES, read_record
from gan_uad.slides.detections import MIN_DISTANCE, lesions, marks, peaks
from gan_uad.slides.matching import Matches, match_annotations
from gan_uad.slides.score_slide import KEYS
from gan_uad.slides.slide_list import SlideList, Told
from gan_uad.slides.tiles import labels as tile_labels
from gan_uad.tables import format_interval, table, write_tables

AGGREGATES = {
    "max": "highest tile", "top_k": "mean of the highest tiles", "share": "share of tiles above 99 % of normals",
}  # fmt: skip
LABELS = {"normal": 0, "unknown": -1}
TUMOUR_SHARE = 0.5  # from which a tile counts as anomalous; tiles with less tumour are left out
COLUMNS = {"model": "model", "what": "score", "n": "normal + anomalous", "auroc": "AUROC", "auprc": "AUPRC"}


@dataclass(frozen=True)
class Scored:
    """A scored slide: its `slide.json`, columns of its `tiles.csv`, annotation, label (-1 unknown) and patient (else its name)."""

    record: dict[str, Any]
    tiles: dict[str, NDArray[np.float64]]
    annotation: Annotations | None
    label: int
    patient: str

    @property
    def name(self) -> str:
        """Its name in `slides.csv`."""
        return str(self.record["slide"])


@dataclass(frozen=True)
class Truth:
    """Ground truth: annotations by slide, roles of their classes, the label of a slide without one, and labels by slide."""

    annotations: Matches | None
    classes: dict[str, str]
    unannotated: int  # 0 normal, -1 unknown
    labels: SlideList | None


def evaluate_slides(
    sources: list[Path],
    out: Path | None = None,
    annotations: Path | None = None,
    labels: Path | None = None,
    classes: dict[str, str] | None = None,
    unannotated: str = "unknown",
    resamples: int = 1000,
    seed: int = 0,
    strict: bool = False,
) -> Path:
    """Metrics of folders of `gan-uad score-slide`; returns the folder with `metrics.json`, tables and plots.

    `labels`: a CSV file with columns `slide` and `label`, and maybe `patient`. `annotations`: a folder of annotation files. Without
    `labels`, a slide with annotated tumour is anomalous, a slide whose annotation has no tumour is normal, and a slide without
    annotation is `unannotated`: normal (as in CAMELYON16) or unknown. A slide whose only tumour has no area (a point, a line) is unknown.
    `strict`: refuse where a slide has no annotation or an annotation file is unused. Intervals are over patients where `labels` names
    them, else over slides.
    """
    if annotations is None and labels is None:
        raise UserError("no ground truth: name annotations with --annotations DIR, or labels with --labels FILE")
    if annotations is not None and not annotations.is_dir():
        raise UserError(f"--annotations {annotations}: no such folder")
    known_labels = None if labels is None else SlideList(labels, ("label",))
    matches = None
    if annotations is not None:
        records = [record for source in sources for record in _records(source)]
        matches = match_annotations(annotations, [Path(record["file"]) for record in records])
        matches.report(strict, unannotated == "normal" and labels is None)
    truth = Truth(matches, classes or {}, LABELS[unannotated], known_labels)
    folder = make_folder(out or sources[0])
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[Any, Any]] = {}
    froc_curves: dict[str, FrocCurve] = {}
    for source, place in zip(sources, distinct_names(sources), strict=True):
        slides, notes = _read(source, truth)
        model = str(slides[0].record["model"])
        name = f"{place}: {model}" if place else model
        with_tiles = [slide for slide in slides if slide.record["tiles"]]
        result = {"source": str(source), "notes": notes, **_slide_level(source, with_tiles, resamples, seed)}
        if annotations is not None:
            known = [
                slide
                for slide in slides
                if (slide.label == 0 if slide.annotation is None else not slide.annotation.unplaced)
            ]
            result |= {"tiles": _tile_level(known, resamples, seed), "froc": None}
            seen = [_marks(slide) for slide in known]
            if any(slide.patient != slide.name for slide in known):
                notes.append("the interval of the FROC score is over slides, not over patients")
            if any(len(one.hits) for one in seen):
                result["froc"] = _froc(seen, resamples, seed)
                froc_curves[name] = froc_curve(seen)
        results[name] = result
        rows += _rows(name, result)
        for key, what in AGGREGATES.items():
            curves[f"{name}, {what}"] = ([s.label for s in with_tiles], [s.record[key] for s in with_tiles])
    _write(folder, results, rows, curves, froc_curves)
    return folder


def _read(source: Path, truth: Truth) -> tuple[list[Scored], list[str]]:
    """The slides of known label in a folder, and notes of what was assumed or left out."""
    records = _records(source)
    found = [_scored(source / record["slide"], record, truth) for record in records]
    if truth.labels is not None:
        truth.labels.check([Path(record["file"]) for record in records], [record["slide"] for record in records])
    slides = [slide for slide in found if slide.label >= 0]
    if not slides:
        raise UserError(f"{source}: no scored slide has a label")
    unlabelled = [slide.name for slide in found if slide.label < 0]
    empty = [slide.name for slide in slides if not slide.record["tiles"]]
    notes = [
        f"{len(names)} slides {what}: {', '.join(names[:5])}"
        for names, what in ((unlabelled, "have no label and are left out"), (empty, "have no tissue, so no score"))
        if names
    ]
    notes += [note for slide in found if slide.annotation is not None for note in slide.annotation.notes]
    if unplaced := [slide.name for slide in slides if slide.annotation is not None and slide.annotation.unplaced]:
        shown = ", ".join(unplaced[:5])
        notes.append(
            f"{len(unplaced)} slides have tumour without an area, and count for the AUROC of slides only: {shown}"
        )
    bare = [slide.label for slide in slides if truth.annotations is not None and slide.annotation is None]
    if normal := bare.count(0):
        notes.append(f"{normal} slides without an annotation count as normal")
    if anomalous := bare.count(1):
        notes.append(f"{anomalous} anomalous slides have no annotation: they count for the AUROC of slides only")
    return slides, notes


def _records(source: Path) -> list[dict[str, Any]]:
    """`slide.json` of each slide in `slides.csv`."""
    names: dict[str, int] = {}
    records = []
    for line, row in csv_lines(source / SLIDES, ("slide",)):
        if (before := names.setdefault(row["slide"], line)) != line:
            raise UserError(f"{source / SLIDES}, line {line}: {row['slide']} is named twice (first in line {before})")
        if (record := read_record(source / row["slide"], KEYS)) is None:
            raise UserError(f"{source / row['slide']} holds no complete slide.json; score the slide again")
        records.append(record)
    return records


def _scored(folder: Path, record: dict[str, Any], truth: Truth) -> Scored:
    annotation = _annotation(record, truth)
    name, told = record["slide"], Told()
    if truth.labels is None:
        label = truth.unannotated if annotation is None else int(annotation.has_tumour)
        if annotation is not None and annotation.tumour.is_empty and annotation.unplaced:
            label = -1
    else:
        told = truth.labels.of(Path(record["file"]), name, record["alone"])
        label = -1 if told.label is None else told.label
        if annotation is not None and label >= 0 and bool(label) != annotation.has_tumour:
            kind, has = ("anomalous", "no tumour") if label else ("normal", "tumour")
            raise UserError(f"{name} is labelled {kind}, but {annotation.path} has {has}; correct one of them")
    return Scored(record, _columns(folder / "tiles.csv"), annotation, label, told.patient or str(name))


def _annotation(record: dict[str, Any], truth: Truth) -> Annotations | None:
    path = Path(record["file"])
    found = None if truth.annotations is None else truth.annotations.of(path)
    if found is None:
        return None
    of_asap = found.suffix.lower() == ".xml"
    annotation = read_annotations(found, truth.classes, (0, 0) if of_asap else _origin(record))
    annotation.check(path.name, record["width"], record["height"])
    return annotation


def _origin(record: dict[str, Any]) -> tuple[int, int] | None:
    """Where QuPath's coordinates begin on a scored slide. Where that is not recorded (until version 0.2), the slide's file tells."""
    if "origin" in record:
        return None if record["origin"] is None else (int(record["origin"][0]), int(record["origin"][1]))
    path = Path(record["file"])
    try:
        backend = open_backend(path)
    except UserError:
        if path.suffix.lower() not in BOUNDED:
            return 0, 0
        raise UserError(f"{path} is needed to place QuPath's outlines, or score the slide again") from None
    backend.close()
    return backend.origin


def _columns(path: Path) -> dict[str, NDArray[np.float64]]:
    columns: dict[str, list[float]] = {name: [] for name in ("x", "y", "side", "neg_log10_p")}
    places: dict[tuple[float, ...], int] = {}
    for line, cells in csv_lines(path):
        row = old_names.keys(cells)
        try:
            for name, values in columns.items():
                values.append(number(row[name], name))
                if not np.isfinite(values[-1]):
                    raise ValueError(f"{name} is {values[-1]}")
            place = tuple(columns[name][-1] for name in ("x", "y", "side"))
            if (before := places.setdefault(place, line)) != line:
                raise ValueError(f"the tile at {row['x']}, {row['y']} is there twice (first in line {before})")
        except (KeyError, ValueError) as error:
            raise UserError(f"cannot read {path}, line {line} ({error}); score the slide again") from None
    return {name: np.array(values) for name, values in columns.items()}


def _slide_level(source: Path, slides: list[Scored], resamples: int, seed: int) -> dict[str, Any]:
    """AUROC and AUPRC of each way to aggregate the scores of a slide's tiles."""
    labels = np.array([slide.label for slide in slides])
    counts = _counts(labels)
    if not all(counts.values()):
        raise UserError(
            f"{source}: slides of both kinds are needed, with tissue and known label; found {counts['normal']} normal and "
            f"{counts['anomalous']} anomalous. Use --unannotated normal where slides without an annotation are normal, or --labels FILE"
        )
    names = [slide.patient for slide in slides]
    metrics = {
        key: ranking_metrics(labels, np.array([slide.record[key] for slide in slides]), names, resamples, seed=seed)
        for key in AGGREGATES
    }
    return {"slides": counts, "scores": metrics}


def _counts(labels: NDArray[Any]) -> dict[str, int]:
    return {"normal": int((labels == 0).sum()), "anomalous": int((labels == 1).sum())}


def _tile_level(slides: list[Scored], resamples: int, seed: int) -> dict[str, Any] | None:
    """How well tiles of tumour are separated from those that touch none, over all annotated slides; None where a kind is missing."""
    labels, scores, groups = [], [], []
    for slide in slides:
        x, y, side, values = slide.tiles.values()
        label = np.zeros(len(x), np.int8)
        if slide.annotation is not None and len(x):
            label = tile_labels(slide.annotation, x.astype(np.int64), y.astype(np.int64), float(side[0]), TUMOUR_SHARE)
        labels.append(label[label >= 0])
        scores.append(values[label >= 0])
        groups += [slide.patient] * len(labels[-1])
    truth = np.concatenate(labels)
    counts = _counts(truth)
    if not all(counts.values()):
        return None
    return {"tiles": counts, **ranking_metrics(truth, np.concatenate(scores), groups, resamples, seed=seed)}


def _marks(slide: Scored) -> Marks:
    """The detections on a slide: peaks of −log10 p, at the centres of tiles."""
    x, y, side, values = slide.tiles.values()
    x, y, mpp = x + side / 2, y + side / 2, slide.record["mpp"]
    best = peaks(x, y, values, MIN_DISTANCE / mpp)
    if slide.annotation is None:
        return Marks.of([], values[best])
    return marks(x[best], y[best], values[best], lesions(slide.annotation.tumour, mpp))


def _froc(seen: list[Marks], resamples: int, seed: int) -> dict[str, Any]:
    return {
        "score": strict_json(asdict(froc_interval(seen, n=resamples, seed=seed))),
        "rates": dict(zip(map(str, RATES), sensitivity_at(seen).tolist(), strict=True)),
        "lesions": sum(len(one.hits) for one in seen),
        "slides": len(seen),
    }


def _interval(metric: dict[str, Any]) -> str:
    return format_interval(metric["value"], metric["low"], metric["high"])


def _rows(name: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    found = [("slides: " + what, result["slides"], result["scores"][key]) for key, what in AGGREGATES.items()]
    if result.get("tiles"):
        found.append(("tiles", result["tiles"]["tiles"], result["tiles"]))
    return [
        {
            "model": name, "what": what, "n": f"{counts['normal']} + {counts['anomalous']}",
            "auroc": _interval(metrics["auroc"]), "auprc": _interval(metrics["auprc"]),
        }
        for what, counts, metrics in found
    ]  # fmt: skip


def _write(
    folder: Path, results: dict[str, Any], rows: list[dict[str, Any]], curves: dict[str, Any], froc_curves: dict[str, FrocCurve]
) -> None:  # fmt: skip
    from gan_uad.plotting import plots
    from gan_uad.plotting.froc import froc

    write_json(folder / "metrics.json", results)
    write_tables(folder / "metrics", rows, COLUMNS)
    plots.roc(curves, folder / "roc.png")
    if froc_curves:
        froc(froc_curves, folder / "froc.png")
    print(table(rows, COLUMNS, "text"), end="")
    for name, result in results.items():
        if found := result.get("froc"):
            rates = ", ".join(f"{rate}: {value:.3f}" for rate, value in found["rates"].items())
            print(
                f"{name}: FROC {_interval(found['score'])} of {found['lesions']} lesions on {found['slides']} slides "
                f"(sensitivity by false alarms per slide: {rates})"
            )
        notes = [metrics["auroc"]["note"] for metrics in result["scores"].values()]
        for note in dict.fromkeys([*result["notes"], *filter(None, notes)]):
            print(f"{name}: {note}")
    console.say(f"metrics and plots -> {folder}")
