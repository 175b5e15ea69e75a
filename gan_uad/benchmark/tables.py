"""The table of a benchmark, from whatever cells are finished: results.csv .json .md .tex."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gan_uad import __version__, old_names
from gan_uad.benchmark.plan import CLASSIFICATION, DEFAULT_SCORING, GENERATION, Cell, Comparison, Work
from gan_uad.benchmark.schema import Benchmark
from gan_uad.files import read_json, write_json, write_text
from gan_uad.tables import MISSING, format_interval, format_number, table

CELL, ERROR, LOG = "cell.json", "error.txt", "log.txt"  # in the folder of a cell
ENDED = "ended by signal"  # how the reason begins where the cell itself did not fail
FORMAT = 1
BASELINE = "mean colour"
RULES = {"fpr5": "5 %", "youden": "Youden"}
RATES = {"accuracy": "accuracy", "f1": "F1", "sensitivity": "sensitivity", "specificity": "specificity"}
FALSE_ALARMS = "fpr5_false_alarms"
DECISIONS = {f"{rule}_{rate}": f"{name} ({at})" for rule, at in RULES.items() for rate, name in RATES.items()}
DECISIONS |= {FALSE_ALARMS: "false alarms (5 %)"}
PIXELS = {"pixel_auroc": "pixel AUROC", "aupro": "AUPRO", "dice": "Dice", "iou": "IoU"}
ERRORS = {"reconstruction": "reconstruction", "kl": "KL"}
ERRORS |= {f"val_{key}": f"{name} (val)" for key, name in ERRORS.items()}  # fmt: skip
RATE_METRICS = ("auroc", "auprc", *DECISIONS, *PIXELS)  # between 0 and 1
SPEED = {"train_seconds": "training s"}
SPEED |= {"train_images_per_s": "images/s in training", "score_images_per_s": "images/s in scoring"}  # fmt: skip
COLUMNS = (
    "data", "method", "scoring", "overrides", "seed", "settings", "resolution", "normal", "anomalous", "auroc", "auroc_low", "auroc_high",
    "auprc", "auprc_low", "auprc_high", *DECISIONS, *PIXELS, *ERRORS, "trained_on", "kimg", "training", *SPEED, "runs", "folder",
)  # fmt: skip
NAMED = {"data": "data", "method": "method", "px": "px"}
LENGTH = {"kimg": "kimg", "training": "training"}
TABLES = {
    "Detection": NAMED | {
        "n": "normal + anomalous", "seeds": "seeds", "auroc": "AUROC", "auprc": "AUPRC", "pixel_auroc": "pixel AUROC",
        "trained_on": "trained on",
    } | LENGTH,
    "Decisions": NAMED | DECISIONS,
    "Training and speed": NAMED | LENGTH | SPEED | ERRORS,
    "Generation": {
        "data": "data", "method": "generator", "seed": "seed", "px": "px", **LENGTH, "features": "features",
        "value": "Fréchet distance", "kid": "KID × 1000", "precision": "precision", "recall": "recall",
        "memorisation": "nearer than held-out", "n": "n", "n_real": "n real",
    },
    "Classification": {
        "data": "data", "kind": "test", "what": "of", "seed": "seed", "patches": "patches", "n": "n", "accuracy": "accuracy % [95 %]",
        "auroc": "AUROC [95 %]", **LENGTH,
    },
}  # fmt: skip
COMPARED = {
    "Generation": "Generated against real images, as `gan-uad fid` compares them. FID is the distance in the Inception's features alone.",
    "Classification": "Real and generated: a classifier of normal and anomalous patches on real test patches, and on those of a generator "
    "of each kind (of: classifier-normal-anomalous). Real vs synthetic: a classifier trained to tell them apart; 50 %: it cannot.",
}
ABOUT = (
    "AUROC and AUPRC of the test split with 95 % intervals by bootstrap over groups (over images where groups are unknown); over several "
    "seeds: mean ± standard deviation. (5 %): the threshold that 5 % of validation normals exceed (split-conformal); false alarms: the "
    "share of test normals above it; (Youden): the largest Youden's J on validation images of both labels. truncated: trained for less "
    "than the configuration, as published, says; unknown: a finished encoder, whose file does not say how long its generator was trained."
)


def todays(value: Any) -> Any:
    """The content of a `cell.json` or `results.json`, of version 0.1 too, under the names of today."""
    if isinstance(value, list):
        return [todays(one) for one in value]
    if not isinstance(value, dict):
        return value
    words = old_names.BENCHMARK
    found = {words.get(k, k): one if k == "data" else todays(one) for k, one in old_names.keys(value).items()}
    length = found.get("training")
    return found | ({"training": words.get(length, length)} if isinstance(length, str) else {})


def read_cell(folder: Path) -> dict[str, Any] | None:
    """The result in the folder of a cell; None where it is not finished."""
    found: dict[str, Any] | None = todays(read_json(folder / CELL))
    return found


def collect(cells: Iterable[Work], home: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]], list[str]]:
    """Of the cells of the table: what is finished, what failed and why, and what was not run yet."""
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    missing: list[str] = []
    for cell in cells:
        folder = home / cell.folder
        if (found := read_cell(folder)) is not None:
            # Under the method's name of today, whatever the name was when it was finished.
            done.append(found | ({"method": cell.method} if isinstance(cell, Cell) else {}))
        elif cell.problem or (folder / ERROR).is_file():
            why = cell.problem or (folder / ERROR).read_text(encoding="utf-8").strip()
            log = f"{cell.folder}/{LOG}" if (folder / LOG).is_file() else ""
            failed.append({"cell": cell.label, "error": why, "log": log})
        else:
            missing.append(cell.label)
    return done, failed, missing


def write_tables(
    benchmark: Benchmark, cells: Sequence[Cell], home: Path, comparisons: Sequence[Comparison] = ()
) -> str:
    """Write the four files, and one more for each kind of comparison; returns the tables as plain text."""
    done, failed, missing = collect(cells, home)
    compared, more_failed, more_missing = collect(comparisons, home)
    failed, missing = failed + more_failed, missing + more_missing
    sections: dict[str, list[dict[str, Any]]] = {comparison.method: [] for comparison in comparisons}
    for one in compared:
        rows = sections[GENERATION if one["kind"] == "distance" else CLASSIFICATION]
        # Real images compared with each other have no seed, and are beside every generator.
        rows += [row for row in one["rows"] if row["seed"] is not None or not any(_same(row, known) for known in rows)]
    rows = [flat(cell) for cell in with_baselines(done)]
    summary = summarised(rows)
    machines: list[dict[str, Any]] = []
    for one in (*done, *compared):
        if one["environment"] not in machines:
            machines.append(one["environment"])
    write_text(home / "results.csv", table(rows, COLUMNS, "csv"))
    write_json(
        home / "results.json",
        {
            "format": FORMAT, "benchmark": benchmark.name, "about": benchmark.about, "gan_uad": __version__, "columns": list(COLUMNS),
            "data": {name: entry.note for name, entry in benchmark.data.items()},
            "rows": rows, "summary": summary, "cells": done, "failed": failed, "not_run": missing, "machines": machines, **sections,
        },
    )  # fmt: skip
    for name, found in sections.items():
        if found:
            keys = [key for key, value in found[0].items() if not isinstance(value, list)]
            write_text(home / f"results_{name}.csv", table(found, keys, "csv"))
    texts = _in_text(summary)
    unset = without_threshold(done)
    shown = {"Detection": texts, "Decisions": texts, "Training and speed": texts} | comparison_rows(sections)
    tables = {title: (rows, used_columns(TABLES[title], rows)) for title, rows in shown.items() if rows}
    blocks = _markdown(benchmark, tables, done, unset)
    lists = {
        "Failed": [f"{one['cell']}: {one['error']}{' (`' + one['log'] + '`)' if one['log'] else ''}" for one in failed],
        "Not run yet": missing,
        "Made with": [
            f"gan_uad {one['packages']['gan_uad']} ({one['git'] or MISSING}), torch {one['packages']['torch']}, Python {one['python']}, "
            f"{one['platform']}, {one['cpu_cores']} cores of {one.get('cpu') or 'an unknown CPU'}, {', '.join(one['cuda']) or 'no GPU'}"
            for one in machines
        ],
    }
    blocks += [f"## {title}\n\n" + "".join(f"- {text}\n" for text in items) for title, items in lists.items() if items]
    write_text(home / "results.md", "\n".join(blocks))
    brief = [tables[title] for title in ("Detection", *COMPARED) if title in tables]
    write_text(home / "results.tex", "\n".join(table(*one, "latex") for one in brief))
    return "\n".join([*(table(*one, "text") for one in brief), *unset])


Shown = tuple[list[dict[str, Any]], dict[str, str]]  # rows, and the headings of their columns


def without_threshold(done: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why decisions are missing, a sentence for each data set and rule that had no threshold."""
    found = [(cell, name, cell[rule]) for cell in done for rule, name in RULES.items() if cell.get(rule)]
    missing = [(f"{cell['data']}, ({name})", one["note"]) for cell, name, one in found if one.get("threshold") == "inf"]
    return [f"{context}: {note}" for context, note in dict.fromkeys(missing)]


def _markdown(
    benchmark: Benchmark, tables: Mapping[str, Shown], done: Iterable[Mapping[str, Any]], unset: Sequence[str]
) -> list[str]:
    """The tables with what a reader must know of them."""
    blocks = [f"# {benchmark.name}\n", *([benchmark.about.strip() + "\n"] if benchmark.about else []), ABOUT + "\n"]
    blocks += [f"{name}: {entry.note.strip()}\n" for name, entry in benchmark.data.items() if entry.note]
    compared = []
    for title, (rows, headings) in tables.items():
        text = table(rows, headings, "markdown")
        if title in COMPARED:
            links = ", ".join(dict.fromkeys(f"[{row['folder']}]({row['folder']})" for row in rows))
            compared += [f"## {title}\n", COMPARED[title] + "\n", text, f"Details: {links}.\n"]
        else:
            blocks += [f"## {title}\n", text]
            blocks += ["".join(f"- {reason}\n" for reason in unset)] if unset and title == "Decisions" else []
    for name, columns, attempts in searches(done):
        note = f"Chosen by {columns['figure']}; the test split was read for the chosen one alone.\n"
        blocks += [f"## Search: {name}\n", note, table(attempts, columns, "markdown")]
    return blocks + compared


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(a.get(key) == b.get(key) for key in {*a, *b} - {"folder"})


def comparison_rows(sections: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the two sections as cells of text, by the title of their table."""
    distances = [
        {
            **row, "value": format_number(row["value"], 2), "kid": f"{1000 * row['kid']:.2f} ± {1000 * row['kid_std']:.2f}",
            "precision": format_number(row["precision"], 3), "recall": format_number(row["recall"], 3),
            "memorisation": None if row["memorisation"] is None else format_number(row["memorisation"], 3),
            "kimg": None if row["kimg"] is None else f"{row['kimg']:g}",
        }
        for row in sections.get(GENERATION, [])
    ]  # fmt: skip
    accuracies = [
        {
            **row, "accuracy": format_interval(100 * row["accuracy"], 100 * row["low"], 100 * row["high"], 2),
            "auroc": format_interval(row["auroc"], row["auroc_low"], row["auroc_high"]),
            "n": f"{row['n']} ({row['n_0']} + {row['n_1']})",
        }
        for row in sections.get(CLASSIFICATION, [])
    ]  # fmt: skip
    return {"Generation": distances, "Classification": accuracies}


def with_baselines(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of each data set after rows of mean colour, one of each resolution and corruption, from the first cell that has it."""
    by_data: dict[str, list[dict[str, Any]]] = {}
    for cell in done:
        by_data.setdefault(cell["data"], []).append(cell)
    result: list[dict[str, Any]] = []
    for cells in by_data.values():
        baselines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for cell in (cell for cell in cells if cell["baseline"] is not None):
            resolution, changes = cell["training"][-1]["resolution"], cell.get("corruption")
            kept = ("data", "folder", *(("scoring", "overrides") if changes else ()))
            about = {"scoring": DEFAULT_SCORING, "overrides": "", "settings": ""} | {key: cell[key] for key in kept}
            row = about | cell["baseline"] | {"method": BASELINE, "resolution": resolution}
            baselines.setdefault((resolution, changes), row)
        result += [*baselines.values(), *cells]
    return result


def flat(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as a row of results.csv."""
    row = {key: cell.get(key) for key in COLUMNS} | {"trained_on": "normal", "training": ""}
    row["scoring"] = "" if cell["scoring"] == DEFAULT_SCORING else cell["scoring"]
    for name in ("auroc", "auprc"):
        found = cell[name] or {}
        row |= {name: found.get("value"), f"{name}_low": found.get("low"), f"{name}_high": found.get("high")}
    for rule in RULES:
        found = cell[rule] or {}
        exists = found.get("threshold") != "inf"  # cells of version 0.2 and before have metrics of decisions without it
        row |= {f"{rule}_{rate}": found.get(rate) if exists else None for rate in RATES}
    if row["fpr5_specificity"] is not None:
        row[FALSE_ALARMS] = round(1 - row["fpr5_specificity"], 12)
    row |= {name: (cell.get("pixels") or {}).get(name) for name in PIXELS}
    if trainings := cell.get("training"):
        last, trained_on = trainings[-1], {training["trained_on"] for training in trainings}
        seconds = [training["seconds"] for training in trainings]
        row |= {key: last[key] for key in ("resolution", *ERRORS)} | {
            "trained_on": trained_on.pop() if len(trained_on) == 1 else "all",
            "kimg": " + ".join(f"{training['kimg']:g}" for training in trainings), "training": training_length(trainings),
            "train_seconds": None if None in seconds else round(sum(seconds), 2), "train_images_per_s": last["images_per_s"],
            "runs": " ".join(training["run"] for training in trainings),
        }  # fmt: skip
    return row


def training_length(trainings: Sequence[Mapping[str, Any]]) -> str:
    """`complete`, `truncated`, or `unknown` of a chain of trainings."""
    if any(training["complete"] is False for training in trainings):
        return "truncated"
    return "complete" if all(training["complete"] for training in trainings) else "unknown"


def summarised(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ in their seed alone (and in what a search chose) as one: mean and standard deviation of each metric."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("data", "method", "scoring", "overrides", "resolution"))
        groups.setdefault(key, []).append(row)
    return [_mean(members) for members in groups.values()]


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    common = ("data", "method", "scoring", "overrides", "resolution", "normal", "anomalous", "trained_on", "kimg")
    result: dict[str, Any] = {key: first[key] for key in common}
    result |= {"seeds": [row["seed"] for row in rows], "settings": [row["settings"] for row in rows]}
    truncated = any(row["training"] == "truncated" for row in rows)
    result["training"] = "truncated" if truncated else first["training"]
    for name in (*RATE_METRICS, *ERRORS, *SPEED):
        values = [row[name] for row in rows if row[name] is not None]
        if name in DECISIONS and len(values) < len(rows):  # the seeds that have a threshold are no fair sample
            values = []
        sd = statistics.stdev(values) if len(values) > 1 else None
        result[name] = {"mean": statistics.fmean(values), "sd": sd, "n": len(values)} if values else None
        if values and len(rows) == 1 and f"{name}_low" in first:
            result[name] |= {"low": first[f"{name}_low"], "high": first[f"{name}_high"]}
    return result


def _in_text(summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The summary as cells of text; px and the number of seeds where rows differ in them."""
    shown = []
    for row in summary:
        details = [row["method"], row["scoring"], row["overrides"], *sorted({text for text in row["settings"] if text})]
        texts = {key: row[key] for key in ("data", "trained_on", "kimg", "training")} | {
            "method": ", ".join(text for text in details if text), "px": str(row["resolution"]), "seeds": str(len(row["seeds"])),
            "n": f"{row['normal']} + {row['anomalous']}",
        }  # fmt: skip
        texts |= {name: _metric(row[name], 3 if name in RATE_METRICS else 1) for name in (*RATE_METRICS, *ERRORS, *SPEED)}  # fmt: skip
        shown.append(texts)
    for key in ("px", "seeds"):
        if len({row[key] for row in shown}) == 1:
            for row in shown:
                del row[key]
    return shown


def _metric(found: dict[str, Any] | None, digits: int) -> str | None:
    if found is None:
        return None
    if "low" in found:
        return format_interval(found["mean"], found["low"], found["high"])
    value = format_number(found["mean"], digits)
    return value if found["sd"] is None else f"{value} ± {format_number(found['sd'], digits)}"


def used_columns(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The columns that have anything in some row."""
    return {key: name for key, name in columns.items() if any(row.get(key) not in (None, "") for row in rows)}


def searches(done: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, str], list[dict[str, Any]]]]:
    """Of every search: its name, the columns of its table, and every attempt as a row."""
    for cell in done:
        if search := cell.get("search"):
            named = (cell["data"], cell["method"], cell["overrides"], f"seed {cell['seed']}")
            columns = {"settings": "settings", "figure": search["by"], "chosen": "chosen"}
            chosen = {True: "yes", False: ""}
            rows = [one | {"chosen": chosen[one["settings"] == search["chosen"]]} for one in search["attempts"]]
            yield ", ".join(text for text in named if text), columns, rows
