"""Sections of a report: scored slides, and their metrics by `gan-uad evaluate-slides`."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from gan_uad.files import number, read_csv
from gan_uad.report.gather import Gathering, ResultFolder, in_words, listed, pairs, read_json, well_formed
from gan_uad.report.html import Notes, Table, TableCell, interval, percent
from gan_uad.slides.batch import SLIDES
from gan_uad.slides.evaluate import AGGREGATES
from gan_uad.tables import format_number

N_OVERLAYS = 12
MAX_ROWS = 200  # of the table


def add_slides(g: Gathering, found: ResultFolder) -> None:
    """A folder of `gan-uad score-slide`: settings, the table of slides, and the overlays of those that score highest."""
    described = read_json(found.path / "score_slide.json") if (found.path / "score_slide.json").is_file() else {}
    with well_formed(found.path / "score_slide.json"):
        if described:
            g.scored |= {Path(described["model"]).resolve()}
            cut, inverter = described["cut"], described["inverter"]
            settings = {
                "Model": described["model"],
                "Scored by": described["label"],
                "Closest normal by": None
                if inverter is None
                else f"{inverter['name']} ({listed(inverter['options'])})",
                "Tiles": f"{cut['size']} px at {cut['mpp']:g} µm/px, tissue by {cut['rule']}, stain {cut['stain'] or 'as it is'}",
                "Calibrated on": f"{described['images']:,} held-out normal patches of {described['normals']}",
                "Limit of share": f"score {format_number(described['limit'])}, {described.get('limit_is', '99 % of held-out normals')}",
                "Decision": described.get("threshold", {}).get("note"),
            }
            g.doc.add("runs", found.name, pairs("Scoring of slides", settings))
            if described["notes"]:
                g.doc.add("runs", found.name, Notes(described["notes"]))
    rows = read_csv(found.path / SLIDES, ("slide", "tiles", "max", "top_k", "share"))
    with well_formed(found.path / SLIDES):
        rows.sort(key=lambda row: -_number(row["top_k"], -math.inf))
        table = [
            [
                row["slide"],
                int(row["tiles"]),
                _shown(row["max"]),
                _shown(row["top_k"]),
                percent(_number(row["share"], math.nan)),
            ]
            for row in rows
        ]
    headings = ("slide", "tiles", "highest −log10 p", "mean of the highest", "tiles above 99 % of normals")
    shown = f", the {MAX_ROWS} with the highest scores" if len(rows) > MAX_ROWS else ""
    caption = f"{len(rows):,} slides{shown}. p: probability that a normal tile scores as high"
    g.doc.add("slides", found.name, Table(caption, headings, table[:MAX_ROWS]))
    empty = [row["slide"] for row in rows if not int(row["tiles"])]
    if empty:
        g.doc.missing(found.name, f"{len(empty)} slides have no tissue, so no score: {', '.join(empty[:5])}")
    _overlays(g, found, rows)
    metrics = found.path / "metrics.json"
    g.checks.append(lambda: _unless_evaluated(g, found, metrics))


def _overlays(g: Gathering, found: ResultFolder, rows: list[dict[str, str]]) -> None:
    inside = [row for row in rows if Path(row["slide"]).name == row["slide"]]  # no name leads out of the folder
    for row in inside[:N_OVERLAYS]:
        caption = f"Slide {row['slide']}: −log10 p of its {int(row['tiles']):,} tiles over the tissue."
        if not g.doc.picture("slides", found.name, found.path / row["slide"] / "overlay.png", caption, wide=True):
            g.doc.missing(found.name, f"slide {row['slide']}: no overlay.png")
    if len(inside) > N_OVERLAYS:
        g.doc.missing(
            found.name,
            f"overlays are shown of the {N_OVERLAYS} slides with the highest scores, not of all {len(inside)}",
        )


def _unless_evaluated(g: Gathering, found: ResultFolder, metrics: Path) -> None:
    if found.path.resolve() not in g.evaluated and not metrics.is_file():
        g.doc.missing(
            found.name, "no evaluation yet: slides were not compared with annotations or labels",
            f"gan-uad evaluate-slides {shlex.quote(str(found.path))} --annotations DIR",
        )  # fmt: skip


def _number(text: str, empty: float) -> float:
    return number(text, "a score") if text else empty


def _shown(text: str) -> TableCell:
    value = number(text, "a score") if text else None
    return TableCell(format_number(value, 2), value)


def add_slide_metrics(g: Gathering, found: ResultFolder) -> None:
    """`metrics.json` of `gan-uad evaluate-slides`, with its pictures."""
    results = read_json(found.path / "metrics.json")
    rows: list[list[Any]] = []
    with well_formed(found.path / "metrics.json"):
        for name, result in results.items():
            g.evaluated.add(Path(result["source"]).resolve())
            what = [
                (f"slides: {AGGREGATES.get(k, k)}", result["slides"], areas) for k, areas in result["scores"].items()
            ]
            if result.get("tiles"):
                what.append(("tiles", result["tiles"]["tiles"], result["tiles"]))
            for by, n, areas in what:
                count = TableCell(f"{n['normal']:,} + {n['anomalous']:,}", n["normal"] + n["anomalous"])
                rows.append([name, by, count, interval(areas["auroc"]), interval(areas["auprc"])])
            best, n = result["scores"]["top_k"]["auroc"], result["slides"]
            text = f"{name}: AUROC of slides {in_words(best)} ({n['normal']} normal and {n['anomalous']} anomalous)."
            g.doc.result(found.name, text)
            notes = dict.fromkeys([*result["notes"], *(areas["auroc"]["note"] for areas in result["scores"].values())])
            if warnings := [f"{name}: {note}" for note in notes if note]:
                g.doc.add("slides", found.name, Notes(warnings, warning=True))
    headings = ("model", "ranked by", "normal + anomalous", "AUROC", "AUPRC")
    caption = "Detection of slides and tiles; intervals over slides. The bar goes from 0 to 1."
    g.doc.add("slides", found.name, Table(caption, headings, rows))
    for name, result in results.items():
        with well_formed(found.path / "metrics.json"):
            _froc(g, found, name, result)
    g.doc.picture("slides", found.name, found.path / "roc.png", "ROC curves of slides; n as in the table.")
    g.doc.picture(
        "slides",
        found.name,
        found.path / "froc.png",
        "Free-response ROC: share of lesions found, by false alarms per slide.",
    )


def _froc(g: Gathering, found: ResultFolder, name: str, result: dict[str, Any]) -> None:
    froc = result.get("froc")
    if not froc:
        g.doc.missing(found.name, f"{name}: no FROC (no annotated lesions were available)")
        return
    of = f"{froc['lesions']} lesions on {froc['slides']} slides"
    rows = [[TableCell(rate, float(rate)), percent(share)] for rate, share in froc["rates"].items()]
    caption = f"{name}: lesions found; {of}. FROC score (mean of the rows) {in_words(froc['score'])}"
    g.doc.add("slides", found.name, Table(caption, ("false alarms per slide", "lesions found"), rows))
