"""A table of slides that the user brings: µm/px, patient and label of each. `--slides-csv`, and `--labels` of `gan-uad evaluate-slides`."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from gan_uad import console
from gan_uad.errors import JobFailed, UserError
from gan_uad.files import csv_lines, number

LABELS = {
    "0": 0, "normal": 0, "negative": 0, "1": 1, "anomalous": 1, "tumor": 1, "tumour": 1, "positive": 1, "unknown": -1,
}  # fmt: skip
NAME = ("slide", "wsi")  # the column that names the slide; `wsi` as in TRIDENT's lists
COLUMNS = ("mpp", "patient", "label")
MPP = (0.01, 1000.0)  # as of --slide-mpp
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Told:
    """What the table tells of a slide. mpp: µm/px. patient: "" where not told. label: 0 normal, 1 tumour, -1 unknown, None not told."""

    mpp: float | None = None
    patient: str = ""
    label: int | None = None


class SlideList:
    """The rows of such a table. A row names a slide by its file, with or without ending and folders.

    Raises `UserError`, with the line, for a table without these columns, a bad number or label, and a slide that is named twice.
    """

    def __init__(self, path: Path, required: Sequence[str] = ()) -> None:
        self.path = path
        self._rows: dict[str, tuple[int, Told]] = {}
        lines = csv_lines(path)
        header = list(lines[0][1]) if lines else []
        names = [name for name in NAME if name in header]
        self.columns = [name for name in COLUMNS if name in header]
        if len(names) != 1 or not {*required} <= {*self.columns} or not self.columns:
            wanted = (
                f"slide and {' and '.join(required)}" if required else f"slide and at least one of {', '.join(COLUMNS)}"
            )
            raise UserError(f"{path}: expected the columns {wanted}, found {', '.join(header) or 'no row'}")
        if other := [name for name in header if name not in (*names, *self.columns)]:
            console.say(f"{path}: columns that are not used: {', '.join(other)}")
        for line, row in lines:
            name = unicodedata.normalize("NFC", row[names[0]].strip())
            if not name:
                raise UserError(f"{path}, line {line}: no slide is named")
            if name in self._rows:
                raise UserError(f"{path}, line {line}: {name} is named twice (first in line {self._rows[name][0]})")
            self._rows[name] = (line, self._told(line, {key: row.get(key, "").strip() for key in COLUMNS}))

    def _told(self, line: int, row: dict[str, str]) -> Told:
        mpp = None
        if row["mpp"]:
            try:
                mpp = number(row["mpp"], "mpp")
            except ValueError as error:
                raise UserError(f"{self.path}, line {line}: {error}") from None
            if not MPP[0] <= mpp <= MPP[1]:
                raise UserError(
                    f"{self.path}, line {line}: mpp {row['mpp']} is not from {MPP[0]:g} to {MPP[1]:g} µm/px"
                )
        label = LABELS.get(row["label"].lower()) if row["label"] else None
        if row["label"] and label is None:
            raise UserError(f"{self.path}, line {line}: label {row['label']!r} is none of {', '.join(LABELS)}")
        return Told(mpp, row["patient"], label)

    def of(self, slide: Path, name: str = "", alone: bool = True) -> Told:
        """What is told of a slide; `name`: one that it has besides its file's; `alone`: its stem is no other slide's.

        Raises `UserError` where two rows name it.
        """
        name = unicodedata.normalize("NFC", name)
        found = [name] if name in self._rows else self._naming(slide, alone)
        if len(found) > 1:
            lines = " and ".join(str(self._rows[row][0]) for row in found[:2])
            raise UserError(f"{self.path}: lines {lines} both name {slide}; leave one")
        return self._rows[found[0]][1] if found else Told()

    def _naming(self, slide: Path, alone: bool = True) -> list[str]:
        parts = PurePath(unicodedata.normalize("NFC", str(slide.absolute()))).parts  # macOS names files in NFD
        return [
            row for row in self._rows if _names(PurePath(row).parts, parts) and (alone or len(PurePath(row).parts) > 1)
        ]

    def check(self, slides: Sequence[Path], names: Sequence[str] = (), strict: bool = False) -> None:
        """Say which slides are not in the table, have no patient in it, and which rows are of none of the slides. `names`: as in `of`.

        Raises `UserError` for a row that may be of two of them, and `JobFailed` where `strict` and anything is said.
        """
        rows: dict[str, Path] = {}
        missing, unknown = [], []
        for slide, name in dict.fromkeys(zip(slides, names or [""] * len(slides), strict=True)):
            found = [name] if name in self._rows else self._naming(slide)
            for row in found:
                if rows.get(row, slide) != slide and row not in names:
                    raise UserError(
                        f"{self.path}, line {self._rows[row][0]}: {row} may be {rows[row]} or {slide}; name it with its folder"
                    )
                rows[row] = slide
            if not found:
                missing.append(slide.name)
            elif "patient" in self.columns and not self._rows[found[0]][1].patient:
                unknown.append(slide.name)
        unused = [row for row in self._rows if row not in rows]
        for what, those in (
            ("slides are not in it", missing),
            ("slides have no patient in it, and each counts as a patient of its own", unknown),
            ("of its rows name none of the slides", unused),
        ):
            if those:
                more = ", ..." if len(those) > SHOWN else ""
                console.say(f"{self.path}: {len(those)} {what}: {', '.join(those[:SHOWN])}{more}")
        if strict and (missing or unknown or unused):
            raise JobFailed(
                f"--strict: every slide needs a row in {self.path}, and every row a slide; see the lists above"
            )


def slide_list(
    path: Path | None, slides: Sequence[Path], mpp: float | None, group: str | None = None, strict: bool = False
) -> SlideList | None:
    """The table `path` of `slides`, checked; None without one. Raises `UserError` where `mpp` or `group` tell the same as its columns."""
    if path is None:
        return None
    found = SlideList(path)
    for option, value, column in (("--slide-mpp", mpp, "mpp"), ("--group", group, "patient")):
        if value is not None and column in found.columns:
            raise UserError(f"{option} and the column {column} of {path} tell the same: give one of them")
    found.check(slides, strict=strict)
    return found


def _names(row: tuple[str, ...], slide: tuple[str, ...]) -> bool:
    """Whether the parts of a row are the last ones of a slide's path, with or without its ending."""
    if len(row) > len(slide) or row[:-1] != slide[len(slide) - len(row) : -1]:
        return False
    return row[-1] in (slide[-1], PurePath(slide[-1]).stem)
