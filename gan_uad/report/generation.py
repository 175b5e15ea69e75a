"""Sections of a report: `gan-uad fid`, `classify`, `real-vs-synthetic`, `cross-validate` and `project`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gan_uad.report.gather import (
    RELIABILITY,
    Gathering,
    ResultFolder,
    in_words,
    listed,
    pairs,
    read_json,
    versions,
    well_formed,
)
from gan_uad.report.html import Notes, Table, TableCell, interval, percent

MIN_IMAGES = 2048  # below, a Fréchet distance is biased upwards
N_PROJECTIONS = 4  # shown at each end
MAX_ROWS = 100  # of their table


def add_fid(g: Gathering, found: ResultFolder) -> None:
    """A folder of `gan-uad fid`."""
    cells = read_json(found.path / "fid.json", list)
    with well_formed(found.path / "fid.json"):
        for metric in dict.fromkeys(cell["figure"] for cell in cells):
            chosen = [cell for cell in cells if cell["figure"] == metric]
            about = f"{chosen[0]['features']}, {chosen[0]['weights']}; {chosen[0]['preprocessing']}"
            headings = (
                "images of", "px", "kimg", "n", "n real", metric, "KID × 1000", "precision", "recall", "nearer than held-out",
                "copies",
            )  # fmt: skip
            g.doc.add(
                "generation",
                found.name,
                Table(f"{metric} against real images: {about}", headings, [_cell(c) for c in chosen]),
            )
        _fid_notes(g, found, cells)
        for cell in cells:
            _memorised(g, found, cell)


def _cell(cell: Mapping[str, Any]) -> list[Any]:
    kid = TableCell(f"{1000 * cell['kid']:.2f}", cell["kid"], f"± {1000 * cell['kid_std']:.2f}")
    kimg = cell.get("kimg")
    return [
        cell["method"], cell["px"], None if kimg is None else TableCell(f"{kimg:g}", kimg), cell["n"], cell["n_real"],
        TableCell(f"{cell['value']:.2f}", cell["value"]), kid, cell["precision"], cell["recall"],
        cell.get("memorisation"), cell.get("copies"),
    ]  # fmt: skip


def _fid_notes(g: Gathering, found: ResultFolder, cells: list[dict[str, Any]]) -> None:
    notes = {
        **dict.fromkeys(f"Real images: {c['reals']} of {c['real']}." for c in cells),
        **dict.fromkeys(f"{c['px']} px: {note}." for c in cells for note in c["notes"]),
        "Nearer than held-out: probability that an image is nearer to its nearest training image than a held-out real one is "
        "(0.5: no memorisation, 1: copies). KID: mean ± standard deviation over subsets.": None,
    }
    g.doc.add("generation", found.name, Notes(list(notes)))
    if warnings := list(dict.fromkeys(f"{c['method']}, {c['px']} px: {w}." for c in cells for w in c["warnings"])):
        g.doc.add("generation", found.name, Notes(warnings, warning=True))
    generated = [cell for cell in cells if cell.get("run") and cell.get("kimg") != 0]  # 0: the same nets untrained
    for cell in generated:
        run = cell["run"]
        g.compared |= {Path(run["run"]).resolve(), Path(run["run"]).resolve().parent}
        n = f"n = {cell['n']:,} against {cell['n_real']:,} real ones"
        g.doc.result(found.name, f"{cell['method']}, {cell['px']} px: {cell['figure']} {cell['value']:.2f} ({n}).")
        _truncated(g, found, cell["method"], run)
        if cell["n"] < MIN_IMAGES or cell["n_real"] < MIN_IMAGES:
            g.doc.missing(
                found.name,
                f"{cell['method']}: fewer than {MIN_IMAGES:,} images on one side, so the distance is biased upwards",
            )
        if "memorisation" not in cell:
            g.doc.missing(
                found.name, f"{cell['method']}: memorisation was not measured (no held-out images of the same kind)"
            )
    if generated and not any(str(cell["method"]).startswith("real, ") for cell in cells):
        g.doc.missing(
            found.name,
            "the real images were not compared with themselves, so what a perfect generator would reach is unknown",
        )
    _versions(
        g, found, "Comparison with real images", next((c["environment"] for c in cells if "environment" in c), {})
    )


def _truncated(g: Gathering, found: ResultFolder, name: str, run: Mapping[str, Any]) -> None:
    """Say it where a training was shorter than its configuration."""
    if run["short"]:
        g.doc.missing(
            found.name, f"TRUNCATED: {name} was trained for {run['trained_kimg']:g} of {run['planned_kimg']:g} kimg"
        )


def _memorised(g: Gathering, found: ResultFolder, cell: Mapping[str, Any]) -> None:
    """The pairs of generated and training images that lie nearest to each other."""
    if "pairs_picture" in cell:
        caption = (
            f"{cell['method']}, {cell['px']} px, {cell['figure']} features: the {len(cell['pairs'])} generated images (top) that are "
            "nearest to a training image (below each)."
        )
        if not g.doc.picture(
            "generation", found.name, found.path / "cells" / Path(cell["pairs_picture"]).name, caption, wide=True
        ):
            g.doc.missing(found.name, f"the picture of {cell['method']}'s nearest training images is gone")


def _versions(g: Gathering, found: ResultFolder, what: str, about: Mapping[str, Any]) -> None:
    """The command, versions and seed of a result."""
    if about:
        table = {
            "Command": shlex.join(map(str, about.get("command", []))),
            **versions(about),
            "Seed": str(about.get("seed", "unknown")),
        }
        g.doc.add("runs", found.name, pairs(what, table))


def add_classify(g: Gathering, found: ResultFolder) -> None:
    """A folder of `gan-uad classify` or `gan-uad real-vs-synthetic`."""
    for stem, title in (
        ("classify", "Accuracy of a classifier on real and on generated patches"),
        ("real_vs_synthetic", "Accuracy of telling generated patches from real ones (50 %: chance)"),
    ):
        path = found.path / f"{stem}.json"
        if not path.is_file():
            continue
        result = read_json(path)
        with well_formed(path):
            first, second = result["labels"]
            headings = (
                "patches", f"n ({first} + {second})", "accuracy", "accuracy, 95 %", "interval by", f"right of {first}",
                f"right of {second}", "AUROC",
            )  # fmt: skip
            rows = [_classified(row) for row in result["rows"]]
            g.doc.add("classification", found.name, Table(title, headings, rows), Notes(result["notes"]))
            for row in result["rows"]:
                g.doc.result(found.name, f"{title}: {row['set']}: {100 * row['accuracy']:.1f} % of {row['n']:,} right.")
            for role, run in result["runs"].items():
                g.scored |= {Path(run["run"]).resolve()}
                _truncated(g, found, f"the {role} {run['name']}", run)
            _versions(g, found, title, result["environment"])


def _classified(row: Mapping[str, Any]) -> list[Any]:
    low, high = row["low"], row["high"]
    bounds = "–" if None in (low, high) else f"{100 * low:.1f} to {100 * high:.1f} %"
    return [
        row["set"], TableCell(f"{row['n']:,} ({row['n_0']:,} + {row['n_1']:,})", row["n"]), percent(row["accuracy"]),
        TableCell(bounds, low), row["interval"], percent(row["recall_0"]), percent(row["recall_1"]),
        interval({"value": row["auroc"], "low": row["auroc_low"], "high": row["auroc_high"]}),
    ]  # fmt: skip


def add_folds(g: Gathering, found: ResultFolder) -> None:
    """A folder of `gan-uad cross-validate`."""
    result = read_json(found.path / "metrics.json")
    rows: list[list[Any]] = []
    with well_formed(found.path / "metrics.json"):
        for model, metrics in result["models"].items():
            for what, one in (("", metrics), ("external, ", metrics.get("external"))):
                if one:
                    rows += [_of_fold(model, f"{what}fold {k}", fold) for k, fold in enumerate(one["folds"], 1)]
                    mean = [
                        TableCell(f"{m['mean']:.3f}", m["mean"], f"± {m['sd']:.3f}")
                        for m in (one["mean"][key] for key in ("auroc", "auprc", "accuracy", "f1"))
                    ]
                    rows += [
                        [model, f"{what}mean ± sd", "", *mean],
                        _of_fold(model, f"{what}pooled", one["pooled"]),
                    ]
            area = metrics["pooled"]["auroc"]
            text = f"{model}, cross-validated in {len(metrics['folds'])} folds: AUROC {in_words(area)} on the pooled test images."
            g.doc.result(found.name, text)
            if area["note"]:
                g.doc.missing(found.name, f"{model}: {area['note']}")
        headings = ("model", "images of", "normal + anomalous", "AUROC", "AUPRC", "accuracy", "F1")
        g.doc.add("detection", found.name, Table(f"Cross-validation of {result['name']}, by group", headings, rows))
        g.doc.add("detection", found.name, Notes([f"{key}: {text}." for key, text in result["about"].items()]))
    for name, caption in (
        ("roc.png", "ROC curves of the folds, and of the pooled test images."),
        ("confusion.png", "Decisions on all test images, each by the fold whose model has not seen its group."),
        ("reliability.png", RELIABILITY),
    ):
        g.doc.picture("detection", found.name, found.path / name, caption)


def _of_fold(model: str, what: str, metrics: Mapping[str, Any]) -> list[Any]:
    images = metrics["images"]
    n = TableCell(f"{images['normal']:,} + {images['anomalous']:,}", images["normal"] + images["anomalous"])
    return [
        model,
        what,
        n,
        *(interval(metrics[key], drawn=key == "auroc") for key in ("auroc", "auprc", "accuracy", "f1")),
    ]


def add_projections(g: Gathering, found: ResultFolder) -> None:
    """A folder of `gan-uad project`: distances, and the nearest and the farthest images."""
    about = read_json(found.path / "projections.json")
    with well_formed(found.path / "projections.json"):
        g.scored |= {Path(about["model"]).resolve()}
        settings = {
            "Model": f"{about['model']} ({about['name']}, {about['kimg']:g} kimg)",
            "Closest normal by": f"{about['inverter']['name']} ({listed(about['inverter']['options'])})",
            "Distance": f"{about['distance']}; {about['weights']}",
            "Images": f"{len(about['images']):,}, of {about['resolution']} px",
        }
        g.doc.add("runs", found.name, pairs("Projection onto the generator's images", settings))
        if about["skipped"]:
            g.doc.missing(found.name, f"{len(about['skipped'])} images were skipped, since they could not be used")
        ranked = sorted(about["images"], key=lambda row: row["distance"])
        rows = [
            [
                Path(r["image"]).name,
                TableCell(f"{r['distance']:.4g}", r["distance"]),
                TableCell(f"{r['l2']:.4g}", r["l2"]),
                r["steps"],
                TableCell(f"{r['seconds']:.3g}", r["seconds"]),
            ]
            for r in (ranked if len(ranked) <= MAX_ROWS else ranked[: MAX_ROWS // 2] + ranked[-MAX_ROWS // 2 :])
        ]
        shown = "" if len(rows) == len(ranked) else f", the {MAX_ROWS // 2} nearest and farthest"
        caption = f"Distance ({about['distance']}) of {len(ranked):,} images to the closest image found{shown}"
        headings = ("image", "distance", "squared error", "steps", "seconds")
        g.doc.add("maps", found.name, Table(caption, headings, rows))
        ends = {"nearest": ranked[:N_PROJECTIONS], "farthest": ranked[N_PROJECTIONS:][-N_PROJECTIONS:]}
        for end, chosen in ends.items():
            for row in (row for row in chosen if Path(row["folder"]).name == row["folder"]):
                caption = (
                    f"Among the {end}: {Path(row['image']).name}, distance {row['distance']:.4g}. Input, closest image found, difference "
                    "(scale 0 to 1 in all)."
                )
                g.doc.picture("maps", found.name, found.path / row["folder"] / "side_by_side.png", caption)
