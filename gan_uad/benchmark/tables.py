"""The table of a benchmark, from whatever cells are finished: results.csv .json .md .tex."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gan_uad import __version__
from gan_uad.benchmark.generators import CLASSIFICATION, GENERATION, Comparison, comparison_rows
from gan_uad.benchmark.metrics import how_long
from gan_uad.benchmark.plan import OWN, Cell
from gan_uad.benchmark.schema import Benchmark
from gan_uad.files import write_json, write_text
from gan_uad.tables import MISSING, format_interval, format_number, table

FORMAT = 1
BASELINE = "mean colour"
RULES = {"fpr5": "5 %", "youden": "Youden"}
RATES = ("accuracy", "f1", "sensitivity", "specificity")
PIXELS = ("pixel_auroc", "aupro", "dice", "iou")
ERRORS = ("reconstruction", "kl", "val_reconstruction", "val_kl")
FALSE_ALARMS = "fpr5_false_alarms"
FIGURES = ("auroc", "auprc", *(f"{rule}_{rate}" for rule in RULES for rate in RATES), FALSE_ALARMS, *PIXELS, *ERRORS)
COLUMNS = (
    "data", "method", "scoring", "overrides", "seed", "settings", "resolution", "normal", "anomalous", "auroc", "auroc_low", "auroc_high",
    "auprc", "auprc_low", "auprc_high", *FIGURES[2:], "trained_on", "kimg", "training", "train_seconds", "train_images_per_s",
    "score_images_per_s", "runs", "folder",
)  # fmt: skip
DETECTION = {
    "data": "data", "method": "method", "px": "px", "n": "normal + anomalous", "seeds": "seeds", "auroc": "AUROC", "auprc": "AUPRC",
    "pixel_auroc": "pixel AUROC", "trained_on": "trained on", "kimg": "kimg", "training": "training",
}  # fmt: skip
DECISIONS = {
    "data": "data", "method": "method", "px": "px",
    **{f"{rule}_{rate}": f"{'F1' if rate == 'f1' else rate} ({at})" for rule, at in RULES.items() for rate in RATES},
    FALSE_ALARMS: "false alarms (5 %)",
}  # fmt: skip
COSTS = {
    "data": "data", "method": "method", "px": "px", "kimg": "kimg", "training": "training", "train_seconds": "training s",
    "train_images_per_s": "images/s in training", "score_images_per_s": "images/s in scoring",
    "reconstruction": "reconstruction", "kl": "KL", "val_reconstruction": "reconstruction (val)", "val_kl": "KL (val)",
}  # fmt: skip
DISTANCES = {
    "data": "data", "method": "generator", "seed": "seed", "px": "px", "kimg": "kimg", "training": "training", "features": "features",
    "value": "Fréchet distance", "kid": "KID × 1000", "precision": "precision", "recall": "recall",
    "memorisation": "nearer than held-out", "n": "n", "n_real": "n real",
}  # fmt: skip
ACCURACIES = {
    "data": "data", "kind": "test", "what": "of", "seed": "seed", "patches": "patches", "n": "n", "accuracy": "accuracy % [95 %]",
    "auroc": "AUROC [95 %]", "kimg": "kimg", "training": "training",
}  # fmt: skip
JUDGED = {
    "Generation": "Generated against real images, as `gan-uad fid` compares them. FID is the distance in the Inception's features alone.",
    "Classification": "Real and synthesised: a classifier of normal and anomalous patches on real test patches, and on those that a "
    "generator of each kind makes (of: classifier-normal-anomalous). Real vs synthetic: a classifier that learnt to tell them apart; "
    "50 %: it cannot.",
}
ABOUT = (
    "AUROC and AUPRC of the test split with 95 % intervals by bootstrap over groups (over images where groups are unknown); over several "
    "seeds: mean ± standard deviation. (5 %): the threshold that 5 % of validation normals exceed (split-conformal); false alarms: the "
    "share of test normals above it; (Youden): the largest Youden's J on validation images of both labels. short: trained for less than "
    "the configuration, as published, says; unknown: a finished encoder, whose file does not say how long its generator was trained."
)


def collect(
    cells: Iterable[Cell | Comparison], home: Path
) -> tuple[list[dict[str, Any]], list[dict[str, str]], list[str]]:
    """Of the cells of the table: what is finished, what failed and why, and what was not tried yet."""
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    missing: list[str] = []
    for cell in cells:
        folder = home / cell.folder
        if (folder / "cell.json").is_file():
            done.append(json.loads((folder / "cell.json").read_text(encoding="utf-8")))
        elif cell.problem or (folder / "error.txt").is_file():
            why = cell.problem or (folder / "error.txt").read_text(encoding="utf-8").strip()
            log = f"{cell.folder}/log.txt" if (folder / "log.txt").is_file() else ""
            failed.append({"cell": cell.label, "error": why, "log": log})
        else:
            missing.append(cell.label)
    return done, failed, missing


def write_tables(
    benchmark: Benchmark, cells: Sequence[Cell], home: Path, comparisons: Sequence[Comparison] = ()
) -> str:
    """Write the four files, and those of generators where any are judged; returns the tables as plain text."""
    done, failed, missing = collect(cells, home)
    compared, failed_too, missing_too = collect(comparisons, home)
    failed, missing = failed + failed_too, missing + missing_too
    compared_rows = comparison_rows(comparisons, home)
    rows = [row for cell in with_baselines(done) for row in [flat(cell)]]
    summary = summarised(rows)
    write_text(home / "results.csv", table(rows, COLUMNS, "csv"))
    write_json(
        home / "results.json",
        {
            "format": FORMAT, "benchmark": benchmark.name, "about": benchmark.about, "gan_uad": __version__, "columns": list(COLUMNS),
            "data": {name: entry.note for name, entry in benchmark.data.items()},
            "rows": rows, "summary": summary, "cells": done, "failed": failed, "not_run": missing,
            "machines": _machines([*done, *compared]), **compared_rows,
        },
    )  # fmt: skip
    for name, found in compared_rows.items():
        if found:
            columns = [key for key, value in found[0].items() if not isinstance(value, list)]
            write_text(home / f"results_{name}.csv", table(found, columns, "csv"))
    shown = _in_text(summary)
    parts = {"Detection": (shown, DETECTION), **comparison_tables(compared_rows)}
    write_text(home / "results.md", _markdown(benchmark, summary, done, failed, missing, compared_rows, compared))
    tables = {
        form: [table(rows, used_columns(columns, rows), form) for rows, columns in parts.values() if rows]
        for form in ("latex", "text")
    }
    write_text(home / "results.tex", "\n".join(tables["latex"]))
    return "\n".join(tables["text"])


def comparison_tables(
    compared_rows: Mapping[str, list[dict[str, Any]]],
) -> dict[str, tuple[list[dict[str, Any]], dict[str, str]]]:
    """Rows of the two sections as cells of text, by title, with their columns."""
    distances = [
        {
            **row, "value": format_number(row["value"], 2), "kid": f"{1000 * row['kid']:.2f} ± {1000 * row['kid_std']:.2f}",
            "precision": format_number(row["precision"], 3), "recall": format_number(row["recall"], 3),
            "memorisation": None if row["memorisation"] is None else format_number(row["memorisation"], 3),
            "kimg": None if row["kimg"] is None else f"{row['kimg']:g}",
        }
        for row in compared_rows.get(GENERATION, [])
    ]  # fmt: skip
    accuracies = [
        {
            **row, "accuracy": format_interval(100 * row["accuracy"], 100 * row["low"], 100 * row["high"], 2),
            "auroc": format_interval(row["auroc"], row["auroc_low"], row["auroc_high"]),
            "n": f"{row['n']} ({row['n_0']} + {row['n_1']})",
        }
        for row in compared_rows.get(CLASSIFICATION, [])
    ]  # fmt: skip
    return {"Generation": (distances, DISTANCES), "Classification": (accuracies, ACCURACIES)}


def with_baselines(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of each data set after rows of mean colour, one of each resolution and corruption, as the first such scoring found it."""
    by_data: dict[str, list[dict[str, Any]]] = {}
    for cell in done:
        by_data.setdefault(cell["data"], []).append(cell)
    return [row for cells in by_data.values() for row in [*_baselines(cells), *cells]]


def _baselines(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: set[tuple[Any, ...]] = set()
    rows: list[dict[str, Any]] = []
    for cell in cells:
        resolution, changes = cell["training"][-1]["resolution"], cell.get("corruption")
        at = (resolution, changes)
        if cell["baseline"] is not None and at not in seen:
            seen.add(at)
            about = {
                "data": cell["data"],
                "method": BASELINE,
                "scoring": cell["scoring"] if changes else OWN,
                "overrides": cell["overrides"] if changes else "",
                "seed": None,
                "settings": "",
            }
            rows.append({**about, **cell["baseline"], "resolution": resolution, "folder": cell["folder"]})
    return rows


def flat(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell as a row of results.csv."""
    row: dict[str, Any] = {key: cell.get(key) for key in ("data", "method", "overrides", "seed", "settings")}
    row["scoring"] = "" if cell["scoring"] == OWN else cell["scoring"]
    row |= {key: cell[key] for key in ("normal", "anomalous")}
    for name in ("auroc", "auprc"):
        found = cell[name] or {}
        row |= {name: found.get("value"), f"{name}_low": found.get("low"), f"{name}_high": found.get("high")}
    for rule in RULES:
        row |= {f"{rule}_{rate}": (cell[rule] or {}).get(rate) for rate in RATES}
    kept = row["fpr5_specificity"]
    row[FALSE_ALARMS] = None if kept is None else round(1 - kept, 12)
    row |= {name: (cell.get("pixels") or {}).get(name) for name in PIXELS}
    row["folder"] = cell["folder"]
    trainings = cell.get("training", [])
    if not trainings:
        return {
            column: (row | {"resolution": cell["resolution"], "trained_on": "normal", "training": ""}).get(column)
            for column in COLUMNS
        }
    last = trainings[-1]
    seconds = [training["seconds"] for training in trainings]
    row |= {key: last[key] for key in ("resolution", *ERRORS)}
    seen = {training["trained_on"] for training in trainings}
    row |= {
        "trained_on": seen.pop() if len(seen) == 1 else "all",
        "kimg": " + ".join(f"{training['kimg']:g}" for training in trainings),
        "training": how_long(trainings),
        "train_seconds": None if None in seconds else round(sum(seconds), 2),
        "train_images_per_s": last["images_per_s"], "score_images_per_s": cell["score_images_per_s"],
        "runs": " ".join(training["run"] for training in trainings),
    }  # fmt: skip
    return {column: row.get(column) for column in COLUMNS}


def summarised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ in their seed alone (and in what was chosen) as one: mean and standard deviation of each figure."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("data", "method", "scoring", "overrides", "resolution"))
        groups.setdefault(key, []).append(row)
    return [_mean(members) for members in groups.values()]


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    same = ("data", "method", "scoring", "overrides", "resolution", "normal", "anomalous", "trained_on", "kimg")
    result: dict[str, Any] = {key: first[key] for key in same}
    result |= {"seeds": [row["seed"] for row in rows], "settings": [row["settings"] for row in rows]}
    result["training"] = "short" if any(row["training"] == "short" for row in rows) else first["training"]
    for name in (*FIGURES, "train_seconds", "train_images_per_s", "score_images_per_s"):
        values = [row[name] for row in rows if row[name] is not None]
        sd = statistics.stdev(values) if len(values) > 1 else None
        result[name] = {"mean": statistics.fmean(values), "sd": sd, "n": len(values)} if values else None
    for name in ("auroc", "auprc"):
        if result[name] is not None and len(rows) == 1:
            result[name] |= {"low": first[f"{name}_low"], "high": first[f"{name}_high"]}
    return result


def _in_text(summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The summary as rows of text; px and the number of seeds where rows differ in them."""
    shown = [_shown(row) for row in summary]
    for key in ("px", "seeds"):
        if len({row[key] for row in shown}) == 1:
            for row in shown:
                del row[key]
    return shown


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the summary as cells of text."""
    method = row["method"]
    details = [row["scoring"], row["overrides"], *sorted({text for text in row["settings"] if text})]
    shown: dict[str, Any] = {"data": row["data"], "method": ", ".join(part for part in [method, *details] if part)}
    shown |= {"px": str(row["resolution"]), "seeds": str(len(row["seeds"]))}
    shown["n"] = f"{row['normal']} + {row['anomalous']}"
    shown |= {key: row[key] for key in ("trained_on", "kimg", "training")}
    for name in (*FIGURES, "train_seconds", "train_images_per_s", "score_images_per_s"):
        shown[name] = _metric(row[name], 3 if name in FIGURES[: -len(ERRORS)] else 1)
    return shown


def _metric(found: dict[str, Any] | None, digits: int) -> str | None:
    if found is None:
        return None
    if "low" in found:
        return format_interval(found["mean"], found["low"], found["high"])
    value = format_number(found["mean"], digits)
    return value if found["sd"] is None else f"{value} ± {format_number(found['sd'], digits)}"


def used_columns(columns: dict[str, str], shown: list[dict[str, Any]]) -> dict[str, str]:
    """The columns that some row has anything in."""
    return {key: name for key, name in columns.items() if any(row.get(key) not in (None, "") for row in shown)}


def _markdown(
    benchmark: Benchmark, summary: list[dict[str, Any]], done: list[dict[str, Any]], failed: list[dict[str, str]], missing: list[str],
    compared_rows: dict[str, list[dict[str, Any]]], compared: list[dict[str, Any]],
) -> str:  # fmt: skip
    shown = _in_text(summary)
    parts = [f"# {benchmark.name}\n", benchmark.about.strip() + "\n" if benchmark.about else "", ABOUT + "\n"]
    parts += [f"{name}: {entry.note.strip()}\n" for name, entry in benchmark.data.items() if entry.note]
    for title, columns in (("Detection", DETECTION), ("Decisions", DECISIONS), ("Training and speed", COSTS)):
        if shown:
            parts += [f"## {title}\n", table(shown, used_columns(columns, shown), "markdown")]
    parts += _searches(done)
    for title, (rows, columns) in comparison_tables(compared_rows).items():
        if rows:
            links = dict.fromkeys(f"[{row['folder']}]({row['folder']})" for row in compared_rows[title.lower()])
            parts += [f"## {title}\n", JUDGED[title] + "\n", table(rows, used_columns(columns, rows), "markdown")]
            parts += ["What each rests on: " + ", ".join(links) + ".\n"]
    if failed:
        parts += [
            "## Failed\n",
            "".join(
                f"- {one['cell']}: {one['error']}{' (`' + one['log'] + '`)' if one['log'] else ''}\n" for one in failed
            ),
        ]
    if missing:
        parts += ["## Not run yet\n", "".join(f"- {label}\n" for label in missing)]
    parts += ["## Made with\n", "".join(f"- {text}\n" for text in _machines_in_words([*done, *compared]))]
    return "\n".join(part for part in parts if part)


def _searches(done: list[dict[str, Any]]) -> list[str]:
    """Every attempt of every search, and which was chosen."""
    parts: list[str] = []
    for cell in done:
        if (search := cell.get("search")) is None:
            continue
        rows = [
            {
                "settings": one["settings"],
                "figure": one["figure"],
                "chosen": "yes" if one["settings"] == search["chosen"] else "",
            }
            for one in search["attempts"]
        ]
        title = ", ".join(
            part for part in (cell["data"], cell["method"], cell["overrides"], f"seed {cell['seed']}") if part
        )
        parts += [
            f"## Search: {title}\n",
            f"Chosen by {search['by']}; the test split was read for the chosen one alone.\n",
        ]
        parts.append(table(rows, {"settings": "settings", "figure": search["by"], "chosen": "chosen"}, "markdown"))
    return parts


def _machines(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The different machines and versions that cells were made with."""
    found: list[dict[str, Any]] = []
    for cell in done:
        if cell["environment"] not in found:
            found.append(cell["environment"])
    return found


def _machines_in_words(done: list[dict[str, Any]]) -> list[str]:
    return [
        f"gan_uad {one['packages']['gan_uad']} ({one['git'] or MISSING}), torch {one['packages']['torch']}, Python {one['python']}, "
        f"{one['platform']}, {one['cpu_cores']} cores of {one.get('cpu') or 'an unknown CPU'}, {', '.join(one['cuda']) or 'no GPU'}"
        for one in _machines(done)
    ]
