"""Tables as Markdown, CSV, LaTeX or aligned plain text, and numbers written the same way everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gan_uad.files import csv_text, write_text

MISSING = "–"
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
}


def format_number(value: float | None, digits: int = 3) -> str:
    """`0.8531` -> `0.853`; None and NaN -> `–`; infinite -> `inf`; a small number that would round to 0 -> `1.2e-05`."""
    if value is None or math.isnan(value):
        return MISSING
    if isinstance(value, int) or math.isinf(value):
        return str(value)
    text = f"{value:.{digits}f}"
    return f"{value:.2g}" if value != 0 and float(text) == 0 else text


def format_interval(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """`0.853 [0.81, 0.89]`. The bounds have one digit less, or as many where the rounded value would lie outside of them:
    `0.999 [0.998, 1.000]`. Bounds that are None or NaN: `0.853 [–]`.
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return f"{format_number(value, digits)} [{MISSING}]"
    shown = [format_number(bound, digits - 1) for bound in (low, high)]
    if value is not None and not float(shown[0]) <= round(value, digits) <= float(shown[1]):
        shown = [format_number(bound, digits) for bound in (low, high)]
    return f"{format_number(value, digits)} [{', '.join(shown)}]"


def used_columns(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The columns that have anything in some row."""
    return {key: name for key, name in columns.items() if any(row.get(key) not in (None, "") for row in rows)}


def write_tables(stem: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str]) -> None:
    """`stem`.md, .csv and .tex of one table; see `table`."""
    for ending, fmt in (("md", "markdown"), ("csv", "csv"), ("tex", "latex")):
        write_text(stem.with_name(f"{stem.name}.{ending}"), table(rows, columns, fmt))


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str], fmt: str = "markdown") -> str:
    """The `columns` (keys, or key -> heading) of `rows` as text that ends in a newline.

    `fmt` is markdown, csv, latex (a `tabular` that needs no package) or text. Strings are shown as they are (escaped
    for the format), numbers by `format_number`, but in full in CSV; a key that a row lacks is `–`, in CSV empty.
    ValueError for another `fmt`, or for a column that no row has.
    """
    writers = {"markdown": _markdown, "csv": csv_text, "latex": _latex, "text": _text}
    if fmt not in writers:
        raise ValueError(f"unknown table format {fmt!r}; the formats are {', '.join(writers)}")
    headings = dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns}
    absent = [key for key in headings if rows and not any(key in row for row in rows)]
    if absent:
        raise ValueError(f"no row has the columns {', '.join(absent)}; they have {', '.join(rows[0])}")
    cells = [[row.get(key) for key in headings] for row in rows]
    return writers[fmt](list(headings.values()), cells)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    return format_number(value) if value is None or _is_number(value) else str(value)


def _right_aligned(cells: list[list[Any]], width: int) -> list[bool]:
    """Per column: numbers and gaps only."""
    return [bool(cells) and all(row[i] is None or _is_number(row[i]) for row in cells) for i in range(width)]


def _padded(headings: list[str], cells: list[list[str]], right: list[bool]) -> tuple[list[list[str]], list[int]]:
    lines = [headings, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    padded = [
        [text.rjust(width) if r else text.ljust(width) for text, width, r in zip(line, widths, right, strict=True)]
        for line in lines
    ]
    return padded, widths


def _markdown(headings: list[str], cells: list[list[Any]]) -> str:
    def escape(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")

    right = _right_aligned(cells, len(headings))
    lines, widths = _padded([escape(h) for h in headings], [[escape(_cell(c)) for c in row] for row in cells], right)
    rule = ["-" * max(width - 1, 2) + ":" if r else "-" * max(width, 3) for width, r in zip(widths, right, strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], rule, *lines[1:]])


def _text(headings: list[str], cells: list[list[Any]]) -> str:
    shown = [[" ".join(_cell(c).split()) for c in row] for row in cells]
    lines, widths = _padded(headings, shown, _right_aligned(cells, len(headings)))
    lines.insert(1, ["-" * width for width in widths])
    return "".join("  ".join(line).rstrip() + "\n" for line in lines)


def _latex(headings: list[str], cells: list[list[Any]]) -> str:
    def line(texts: list[str]) -> str:
        escaped = ("".join(LATEX.get(char, char) for char in " ".join(text.split())) for text in texts)
        return " & ".join(escaped) + r" \\"

    spec = "".join("r" if right else "l" for right in _right_aligned(cells, len(headings)))
    body = [line([_cell(c) for c in row]) for row in cells]
    return "\n".join(
        [rf"\begin{{tabular}}{{{spec}}}", r"\hline", line(headings), r"\hline", *body, r"\hline", r"\end{tabular}", ""]
    )
