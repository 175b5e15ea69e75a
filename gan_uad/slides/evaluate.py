"""`gan-uad evaluate` of scored slides: how well slides are told apart, and where annotations are given, tiles and lesions."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan_uad import console, old_names
from gan_uad.detection.evaluate import distinct_names
from gan_uad.errors import UserError
from gan_uad.files import make_folder, write_json, write_text
from gan_uad.metrics.bootstrap import bootstrap_interval
from gan_uad.metrics.detection import auprc, auroc
from gan_uad.metrics.froc import RATES, FrocCurve, Marks, froc_curve, froc_interval, sensitivity_at
from gan_uad.slides.annotations import Annotations, find_annotation, read_annotations
from gan_uad.slides.batch import SLIDES
from gan_uad.slides.detections import APART, lesions, marks, peaks
from gan_uad.slides.score_slide import finished
from gan_uad.slides.tiles import labels as tile_labels
from gan_uad.tables import format_interval, table

AGGREGATES = {
    "max": "highest tile", "top_k": "mean of the highest tiles", "share": "share of tiles beyond 1 % of normals",
}  # fmt: skip
NAMES = {"0": 0, "normal": 0, "negative": 0, "1": 1, "anomalous": 1, "tumor": 1, "tumour": 1, "positive": 1}
LABELS = {"normal": 0, "unknown": -1}
MOSTLY = 0.5  # share of tumour from which a tile counts as anomalous; between that and none it is left out
COLUMNS = {"model": "model", "what": "score", "n": "normal + anomalous", "auroc": "AUROC", "auprc": "AUPRC"}


@dataclass
class Extent:
    """How large a slide is that need not be at hand, in level-0 px."""

    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class Scored:
    """A scored slide: what its `slide.json` holds, the columns of its `tiles.csv`, its annotation, its label (-1 unknown)."""

    folder: Path
    about: dict[str, Any]
    tiles: dict[str, NDArray[np.float64]]
    annotation: Annotations | None
    label: int

    @property
    def name(self) -> str:
        """Its name in `slides.csv`."""
        return str(self.about["slide"])


@dataclass(frozen=True)
class Truth:
    """What is known of slides: a folder of annotations, the roles of their classes, what a slide without one is, and labels by name."""

    annotations: Path | None
    classes: dict[str, str]
    unannotated: int  # 0 normal, -1 unknown
    labels: dict[str, int] | None


def evaluate_slides(
    sources: list[Path],
    out: Path | None = None,
    annotations: Path | None = None,
    labels: Path | None = None,
    classes: dict[str, str] | None = None,
    unannotated: str = "unknown",
    resamples: int = 1000,
    seed: int = 0,
) -> Path:
    """Figures of folders of `gan-uad score-slide`; returns the folder with `metrics.json`, tables and pictures.

    `labels`: a CSV file with columns `slide` and `label`. `annotations`: a folder of them; where there is no `labels`, a slide with
    annotated tumour is anomalous, one with an annotation without tumour normal, and one without an annotation is `unannotated`:
    normal (as in CAMELYON16) or unknown. Intervals are over slides.
    """
    if annotations is None and labels is None:
        raise UserError("which slides are anomalous? Name their annotations with --annotations DIR, or --labels FILE")
    if annotations is not None and not annotations.is_dir():
        raise UserError(f"--annotations {annotations}: no such folder")
    known_labels = None if labels is None else read_labels(labels)
    truth = Truth(annotations, classes or {}, LABELS[unannotated], known_labels)
    folder = make_folder(out or sources[0])
    results: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[Any, Any]] = {}
    found: dict[str, FrocCurve] = {}
    for source, place in zip(sources, distinct_names(sources), strict=True):
        slides, notes = _read(source, truth)
        model = str(slides[0].about["model"])
        name = f"{place}: {model}" if place else model
        result = {"source": str(source), "notes": notes, **_slide_level(slides, resamples, seed)}
        known = [slide for slide in slides if slide.annotation is not None or slide.label == 0]
        if annotations is not None:
            result |= {"tiles": _tile_level(known, resamples, seed), "froc": None}
            seen = [_marks(slide) for slide in known]
            if sum(len(one.hits) for one in seen):
                result["froc"] = _froc(seen, resamples, seed)
                found[name] = froc_curve(seen)
        results[name] = result
        rows += _rows(name, result)
        usable = [slide for slide in slides if slide.about["tiles"]]
        for key, what in AGGREGATES.items():
            curves[f"{name}, {what}"] = ([s.label for s in usable], [s.about[key] for s in usable])
    _write(folder, results, rows, curves, found)
    return folder


def read_labels(path: Path) -> dict[str, int]:
    """`slide` → 0 or 1 from a CSV file with a header. Raises `UserError` with the line for what cannot be understood."""
    found: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"slide", "label"} <= set(reader.fieldnames or []):
                raise UserError(f"{path}: no columns 'slide' and 'label' in its first line")
            for row in reader:
                where, text = f"{path}, line {reader.line_num}", (row["label"] or "").strip().lower()
                if text not in NAMES:
                    raise UserError(f"{where}: label {row['label']!r} is none of {', '.join(NAMES)}")
                if found.setdefault(row["slide"], NAMES[text]) != NAMES[text]:
                    raise UserError(f"{where}: {row['slide']} has another label above")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return found


def _read(source: Path, truth: Truth) -> tuple[list[Scored], list[str]]:
    """The slides of known label in a folder, and notes of what was taken for granted or left out."""
    try:
        with open(source / SLIDES, encoding="utf-8", newline="") as file:
            names = [row["slide"] for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise UserError(f"cannot read {source / SLIDES}: {error}; score the slides again") from None
    slides, notes = [], []
    unlabelled, bare, empty = [], [], []
    for name in names:
        slide = _scored(source / name, truth)
        if slide.label < 0:
            unlabelled.append(name)
            continue
        if truth.annotations is not None and slide.annotation is None:
            bare.append(slide)
        if not slide.about["tiles"]:
            empty.append(name)
        slides.append(slide)
    if not slides:
        raise UserError(f"{source}: no scored slide has a label")
    for those, what in ((unlabelled, "have no label and are left out"), (empty, "have no tissue, so no score")):
        if those:
            notes.append(f"{len(those)} slides {what}: {', '.join(those[:5])}")
    normal = sum(slide.label == 0 for slide in bare)
    if normal:
        notes.append(f"{normal} slides without an annotation count as normal")
    if len(bare) > normal:
        notes.append(f"{len(bare) - normal} anomalous slides have no annotation: no lesions of theirs are looked for")
    return slides, notes


def _scored(folder: Path, truth: Truth) -> Scored:
    about = finished(folder)
    if about is None:
        raise UserError(f"{folder} holds no whole slide.json; score the slide again")
    annotation = _annotation(about, truth)
    name = about["slide"]
    tumour = annotation is not None and not annotation.tumour.is_empty
    if truth.labels is None:
        label = truth.unannotated if annotation is None else int(tumour)
    else:
        by_file = truth.labels.get(Path(about["file"]).name, -1) if about["alone"] else -1
        label = truth.labels.get(name, by_file)
        if annotation is not None and label >= 0 and bool(label) != tumour:
            kind, has = ("anomalous", "no tumour") if label else ("normal", "tumour")
            raise UserError(
                f"{name} is labelled {kind}, but its annotation in {truth.annotations} has {has}: which is right?"
            )
    return Scored(folder, about, _columns(folder / "tiles.csv"), annotation, label)


def _annotation(about: dict[str, Any], truth: Truth) -> Annotations | None:
    if truth.annotations is None:
        return None
    path = Path(about["file"])
    found = find_annotation(truth.annotations, path, about["alone"])
    if found is None:
        return None
    annotation = read_annotations(found, truth.classes)
    annotation.check(Extent(path, about["width"], about["height"]))
    return annotation


def _columns(path: Path) -> dict[str, NDArray[np.float64]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [old_names.keys(row) for row in csv.DictReader(file)]
        return {name: np.array([float(row[name]) for row in rows]) for name in ("x", "y", "side", "neg_log10_p")}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); score the slide again") from None


def _slide_level(slides: list[Scored], resamples: int, seed: int) -> dict[str, Any]:
    """AUROC and AUPRC of each way to make one score of a slide's tiles."""
    usable = [slide for slide in slides if slide.about["tiles"]]
    labels = np.array([slide.label for slide in usable])
    counts = {"normal": int((labels == 0).sum()), "anomalous": int((labels == 1).sum())}
    if not all(counts.values()):
        raise UserError(
            f"{slides[0].folder.parent}: slides of both kinds are needed, with tissue and known label, and there are "
            f"{counts['normal']} normal and {counts['anomalous']} anomalous ones; slides without an annotation are normal with "
            "--unannotated normal, and any have the label that --labels FILE gives them"
        )
    metrics = {
        key: _areas(labels, np.array([slide.about[key] for slide in usable]), [s.name for s in usable], resamples, seed)
        for key in AGGREGATES
    }
    return {"slides": counts, "scores": metrics}


def _areas(
    labels: NDArray[Any], scores: NDArray[np.float64], groups: list[str], resamples: int, seed: int
) -> dict[str, Any]:
    """AUROC and AUPRC with intervals, as strict JSON."""
    found = {}
    for name, metric in (("auroc", auroc), ("auprc", auprc)):
        found[name] = _plain(asdict(bootstrap_interval(labels, scores, groups, metric, resamples, seed=seed)))
    return found


def _tile_level(slides: list[Scored], resamples: int, seed: int) -> dict[str, Any] | None:
    """How well tiles of tumour are told from those that touch none, over all annotated slides; None where a kind is missing."""
    labels, scores, groups = [], [], []
    for slide in slides:
        x, y, neg_log10_p = (slide.tiles[name] for name in ("x", "y", "neg_log10_p"))
        label = np.zeros(len(x), np.int8)
        if slide.annotation is not None and len(x):
            label = tile_labels(
                slide.annotation, x.astype(np.int64), y.astype(np.int64), float(slide.tiles["side"][0]), MOSTLY
            )
        labels.append(label[label >= 0])
        scores.append(neg_log10_p[label >= 0])
        groups += [slide.name] * int((label >= 0).sum())
    truth = np.concatenate(labels)
    counts = {"normal": int((truth == 0).sum()), "anomalous": int((truth == 1).sum())}
    if not all(counts.values()):
        return None
    return {"tiles": counts, **_areas(truth, np.concatenate(scores), groups, resamples, seed)}


def _marks(slide: Scored) -> Marks:
    """What was detected on a slide: the peaks of its tiles' rarity, at the tiles' centres."""
    mpp, half = slide.about["mpp"], slide.tiles["side"] / 2
    x, y, neg_log10_p = slide.tiles["x"] + half, slide.tiles["y"] + half, slide.tiles["neg_log10_p"]
    best = peaks(x, y, neg_log10_p, APART / mpp)
    if slide.annotation is None:
        return Marks.of([], neg_log10_p[best])
    return marks(x[best], y[best], neg_log10_p[best], lesions(slide.annotation.tumour, mpp))


def _froc(seen: list[Marks], resamples: int, seed: int) -> dict[str, Any]:
    found = sensitivity_at(seen)
    return {
        "score": _plain(asdict(froc_interval(seen, n=resamples, seed=seed))),
        "rates": dict(zip(map(str, RATES), found.tolist(), strict=True)),
        "lesions": sum(len(one.hits) for one in seen),
        "slides": len(seen),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Strict JSON: undefined figures are None."""
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in values.items()}


def _rows(name: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    found = [("slides: " + what, result["slides"], result["scores"][key]) for key, what in AGGREGATES.items()]
    if result.get("tiles"):
        found.append(("tiles", result["tiles"]["tiles"], result["tiles"]))
    return [
        {
            "model": name,
            "what": what,
            "n": f"{counts['normal']} + {counts['anomalous']}",
            **{k: format_interval(areas[k]["value"], areas[k]["low"], areas[k]["high"]) for k in ("auroc", "auprc")},
        }
        for what, counts, areas in found
    ]


def _write(
    folder: Path,
    results: dict[str, Any],
    rows: list[dict[str, Any]],
    curves: dict[str, Any],
    found: dict[str, FrocCurve],
) -> None:
    from gan_uad.plotting import plots
    from gan_uad.plotting.froc import froc

    write_json(folder / "metrics.json", results)
    for ending, fmt in (("md", "markdown"), ("csv", "csv"), ("tex", "latex")):
        write_text(folder / f"metrics.{ending}", table(rows, COLUMNS, fmt))
    plots.roc(curves, folder / "roc.png")
    if found:
        froc(found, folder / "froc.png")
    print(table(rows, COLUMNS, "text"), end="")
    for name, result in results.items():
        if result.get("froc"):
            at = ", ".join(f"{rate}: {value:.3f}" for rate, value in result["froc"]["rates"].items())
            score = result["froc"]["score"]
            print(
                f"{name}: FROC {format_interval(score['value'], score['low'], score['high'])} of "
                f"{result['froc']['lesions']} lesions on {result['froc']['slides']} slides (alarms a slide: {at})"
            )
        notes = [areas["auroc"]["note"] for areas in result["scores"].values()]
        for note in dict.fromkeys([*result["notes"], *filter(None, notes)]):
            print(f"{name}: {note}")
    console.say(f"figures and pictures -> {folder}")
