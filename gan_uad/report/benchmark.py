"""Of a report: the table of `gan-uad benchmark`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gan_uad.benchmark.plan import DEFAULT_SCORING
from gan_uad.benchmark.tables import (
    BASELINE,
    COMPARED,
    DECISIONS,
    PIXELS,
    SPEED,
    TABLES,
    comparison_rows,
    flat,
    searches,
    summarised,
    todays,
    used_columns,
    with_baselines,
    without_threshold,
)
from gan_uad.detection.score_file import BASELINE as MEAN_COLOUR
from gan_uad.detection.score_file import SCORES, read_scores
from gan_uad.report.gather import Gathering, ResultFolder, listed, pairs, read_json, well_formed
from gan_uad.report.html import Folded, Notes, Table, TableCell, interval
from gan_uad.tables import format_number

RESULTS = "results.json"
CURVES = 7  # in one picture, and mean colour
TRIPLETS = 3  # best cells of a data set that have some
ABOUT = (
    "Test split, with 95 % intervals by bootstrap over groups (over images where groups are unknown); over several seeds: mean ± "
    "standard deviation. (5 %): at the threshold that 5 % of validation normals exceed; (Youden): at the largest J on validation images."
)


def add_benchmark(g: Gathering, found: ResultFolder) -> None:
    """A folder of `gan-uad benchmark`: methods by data set, costs, what was chosen, what failed and what was not run."""
    result = todays(read_json(found.path / RESULTS))
    with well_formed(found.path / RESULTS):
        summary = summarised([flat(cell) for cell in with_baselines(result["cells"])])
        if result.get("about"):
            g.doc.add("benchmark", found.name, Notes([result["about"].strip()]))
        if summary:
            _tables(g, found, summary)
        if reasons := without_threshold(result["cells"]):
            g.doc.add("benchmark", found.name, Notes(reasons, warning=True))
        g.doc.add(
            "benchmark",
            found.name,
            Notes([ABOUT, *(f"{name}: {note.strip()}" for name, note in result["data"].items() if note)]),
        )
        _pictures(g, found, result["cells"])
        _searches(g, found, result["cells"])
        _compared(g, found, result)
        _warnings(g, found, result["cells"])
        _results(g, found, summary)
        for number, machine in enumerate(result["machines"], 1):
            _machine(
                g, found, machine, f"Machine {number} of {len(result['machines'])}, benchmark {result['benchmark']}"
            )
        for failed in result["failed"]:
            g.doc.missing(found.name, f"FAILED: {failed['cell']}: {failed['error']}")
        if left := result["not_run"]:
            g.doc.missing(
                found.name,
                f"{len(left)} cells of the benchmark were not run yet: {'; '.join(left[:8])}{' ...' if len(left) > 8 else ''}",
            )
        if truncated := [_name(row) for row in summary if row["training"] == "truncated"]:
            g.doc.missing(
                found.name,
                f"TRUNCATED: trained for less than their configurations, as published, say: {'; '.join(truncated)}",
            )
        if any(len(row["seeds"]) == 1 and row["seeds"] != [None] for row in summary):
            g.doc.missing(found.name, "rows of one seed do not tell how much a training depends on it")


def _tables(g: Gathering, found: ResultFolder, summary: list[dict[str, Any]]) -> None:
    pixels, rates = (
        {key: heading for key, heading in headings.items() if any(row[key] for row in summary)}
        for headings in (PIXELS, DECISIONS)
    )
    areas, decisions = [], []
    for row in summary:
        n = TableCell(f"{row['normal']:,} + {row['anomalous']:,}", row["normal"] + row["anomalous"])
        first_columns = [_name(row), row["data"]]
        drawn = [_figure(row[key], drawn=key == "auroc") for key in ("auroc", "auprc")]
        areas.append(
            [*first_columns, row["trained_on"], len(row["seeds"]), n, *drawn, *(_figure(row[key]) for key in pixels)]
        )
        decisions.append([*first_columns, *(_figure(row[key]) for key in rates)])
    headings = ("method", "data", "trained on", "seeds", "normal + anomalous", "AUROC", "AUPRC", *pixels.values())
    labels = any(row["trained_on"] == "all" for row in summary)
    seen = " Rows marked `all` learnt from anomalous labels too, the others did not." if labels else ""
    caption = f"Methods compared.{seen} The bar of the AUROC goes from 0 to 1"
    g.doc.add("benchmark", found.name, Table(caption, headings, areas))
    if rates:
        g.doc.add("benchmark", found.name, Table("Decisions", ("method", "data", *rates.values()), decisions))
    costs = [
        [_name(row), row["data"], row["kimg"], row["training"], *(_figure(row[k], 1) for k in SPEED)]
        for row in summary if row["training"]
    ]  # fmt: skip
    if costs:
        headings = ("method", "data", "kimg", "training", *SPEED.values())
        g.doc.add("benchmark", found.name, Table("What it cost", headings, costs))


def _compared(g: Gathering, found: ResultFolder, result: Mapping[str, Any]) -> None:
    """The tables of generators and of real and generated patches, where the benchmark has them."""
    for title, rows in comparison_rows(result).items():
        if not rows:
            continue
        used = used_columns(TABLES[title], rows)
        caption = f"Benchmark {result['benchmark']}. {COMPARED[title].replace('`', '')}"
        g.doc.add(
            title.lower(),
            found.name,
            Table(caption, tuple(used.values()), [[row.get(key) for key in used] for row in rows]),
        )
        said = dict.fromkeys(text for row in result[title.lower()] for text in row.get("warnings", []))
        if said:
            g.doc.add(title.lower(), found.name, Notes(list(said), warning=True))


def _name(row: Mapping[str, Any]) -> str:
    """A method with all that tells it from others."""
    settings = sorted({text for text in row["settings"] if text})
    return ", ".join(part for part in (row["method"], row["scoring"], row["overrides"], *settings) if part)


def _figure(found: dict[str, Any] | None, digits: int = 3, drawn: bool = False) -> TableCell | None:
    """A figure of one seed with its interval, or of several as mean ± standard deviation."""
    if found is None:
        return None
    if "low" in found:
        return interval({"value": found["mean"], **found}, drawn=drawn)
    spread = "" if found["sd"] is None else f"± {format_number(found['sd'], digits)}"
    return TableCell(format_number(found["mean"], digits), found["mean"], spread)


def _pictures(g: Gathering, found: ResultFolder, cells: list[dict[str, Any]]) -> None:
    """ROC curves of the cells of each data set, with what distinguishes them, and triplets of the best."""
    from gan_uad.plotting.plots import roc

    for data in dict.fromkeys(cell["data"] for cell in cells):
        own = [cell for cell in cells if cell["data"] == data and cell["auroc"] and _scores(found, cell) is not None]
        own.sort(key=lambda cell: -cell["auroc"]["value"])
        curves: dict[str, Any] = {}
        for cell in own[:CURVES]:
            scores = read_scores(_scores(found, cell) or found.path).labelled()
            curves[f"{_cell_name(cell)}"] = (scores.label, scores.score)
        if not curves:
            continue
        plain = sorted(own, key=lambda cell: bool(cell.get("corruption")))
        colour = next((path for cell in plain if (path := _scores(found, cell, MEAN_COLOUR)) is not None), None)
        if colour is not None:
            scores = read_scores(colour).labelled()
            curves[BASELINE] = (scores.label, scores.score)
        which = (
            f"the {CURVES} cells with the highest AUROC of {len(own)}"
            if len(own) > CURVES
            else f"{len(own)} cell{'s' if len(own) > 1 else ''}"
        )
        which += "" if colour is None else " and of mean colour"
        n = f"n = {own[0]['normal']:,} normal and {own[0]['anomalous']:,} anomalous images"
        drawn = roc(curves, g.drawing("roc"))
        g.doc.picture("benchmark", found.name, drawn, f"{data}: ROC curves of {which}; {n}. Drawn for this report.")
        shown = [
            (rank, cell, path) for rank, cell in enumerate(own, 1) if (path := _scores(found, cell, "triplets.png"))
        ]
        for rank, cell, path in shown[:TRIPLETS]:
            caption = (
                f"{data}, {_cell_name(cell)} (AUROC {cell['auroc']['value']:.3f}, number {rank} of {len(own)}): "
                "input, closest normal image found, and difference."
            )
            g.doc.picture("maps", found.name, path, caption, wide=True)


def _scores(found: ResultFolder, cell: Mapping[str, Any], name: str = SCORES) -> Path | None:
    """The scores of a cell, or what else lies there, if it is inside the benchmark's folder."""
    path = found.path / cell["folder"] / "scores" / name
    return path if path.is_file() and path.resolve().is_relative_to(found.path.resolve()) else None


def _cell_name(cell: Mapping[str, Any]) -> str:
    parts = (
        cell["method"],
        "" if cell["scoring"] == DEFAULT_SCORING else cell["scoring"],
        cell["overrides"],
        f"seed {cell['seed']}",
    )
    return ", ".join(part for part in parts if part)


def _searches(g: Gathering, found: ResultFolder, cells: list[dict[str, Any]]) -> None:
    for name, columns, attempts in searches(cells):
        caption = f"Search: {name}: chosen by {columns['figure']}, never by the test split"
        rows = [[attempt[key] for key in columns] for attempt in attempts]
        g.doc.add("benchmark", found.name, Table(caption, tuple(columns.values()), rows))


def _warnings(g: Gathering, found: ResultFolder, cells: list[dict[str, Any]]) -> None:
    said = [
        f"{cell['data']}, {cell['method']}, seed {cell['seed']}: {text}"
        for cell in cells
        for text in cell["warnings"]
        if "`" not in text
    ]
    if said:
        g.doc.add("benchmark", found.name, Folded(f"Warnings of single cells ({len(said)})", "\n".join(said)))


def _results(g: Gathering, found: ResultFolder, summary: list[dict[str, Any]]) -> None:
    """The best method of each data set that saw normal images only, mean colour, and the best that saw labels."""
    for data in dict.fromkeys(row["data"] for row in summary):
        known = [row for row in summary if row["data"] == data and row["auroc"]]
        baseline = next((row for row in known if row["method"] == BASELINE), None)
        said = []
        for what, own in (
            ("trained on normal images", [row for row in known if row["trained_on"] != "all" and row is not baseline]),
            ("trained with anomalous labels", [row for row in known if row["trained_on"] == "all"]),
        ):
            if own:
                best = max(own, key=lambda row: row["auroc"]["mean"])
                choice = f"the highest AUROC of {len(own)} rows" if len(own) > 1 else "AUROC"
                said.append(f"{what}, {choice} is {best['auroc']['mean']:.3f} ({_name(best)})")
        if baseline is not None:
            said.append(f"mean colour: {baseline['auroc']['mean']:.3f}")
        if said:
            flattered = " The best of many is flattered by the choice." if len(known) > 2 else ""
            g.doc.result(found.name, f"{data}: {'; '.join(said)}.{flattered}")


def _machine(g: Gathering, found: ResultFolder, about: Mapping[str, Any], title: str) -> None:
    versions = {"Python": about.get("python"), **{k: v for k, v in about.get("packages", {}).items() if v}}
    hardware = ", ".join(about.get("cuda") or []) or f"CPU, {about.get('cpu_cores', '?')} cores"
    table = {
        "Hardware": f"{hardware}; {about.get('platform', '')}",
        "Versions": listed(versions),
        "Revision": about.get("git") or "unknown",
    }
    g.doc.add("runs", found.name, pairs(title, table))
