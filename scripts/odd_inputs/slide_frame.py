"""Makes and judges one odd slide or annotation: `gan-uad tile` cuts it, and every tile is compared with the value known here.

The scene is 4 × 3 blocks of 128 px of 0.5 µm, each of one colour, so that a tile of 64 px at 1 µm/px is exactly one block.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from odd_inputs.common import Outcome, odd, run_cli
from PIL import Image

BLOCK, COLUMNS, ROWS = 128, 4, 3  # px of a block, and blocks of the scene
WIDTH, HEIGHT = COLUMNS * BLOCK, ROWS * BLOCK
CENTIMETRE: dict[str, Any] = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}  # 0.5 µm/px
PLAIN: dict[str, Any] = {"photometric": "rgb", "metadata": None, **CENTIMETRE}
TILED: dict[str, Any] = {"tile": (128, 128), "compression": "zlib", **PLAIN}
EVERY = {(column, row) for column in range(COLUMNS) for row in range(ROWS)}
TOLERANCE = 8  # grey values of a block's middle

Maker = Callable[[Path], "Made | Path"]


@dataclass
class Made:
    """What a maker made, and what is right. image: uint8 [H, W, 3] of level 0. said: words that the output must hold (any case)."""

    slides: list[Path]
    image: np.ndarray = field(default_factory=lambda: scene())
    mpp: float = 0.5
    args: list[str] = field(default_factory=list)
    said: tuple[str, ...] = ()
    patient: str | None = None
    tolerance: int = TOLERANCE
    tumour: set[tuple[int, int]] | None = None
    unknown: set[tuple[int, int]] = field(default_factory=set)
    left_out: str = ""  # a word that says that an annotation is left out: then all tiles may be without label
    calls: list[list[str]] = field(default_factory=list)  # further calls into the same folder, before the one judged
    between: Callable[[], object] = lambda: None  # what happens after them
    judged: str = ""  # what the names of the judged slides' folders begin with


def scene(seed: int = 3) -> np.ndarray:
    """uint8 [384, 512, 3]: twelve blocks of distinct colours."""
    colours = np.random.default_rng(seed).integers(20, 236, (ROWS, COLUMNS, 3)).astype(np.uint8)
    return np.kron(colours, np.ones((BLOCK, BLOCK, 1), np.uint8))


def grey_scene() -> np.ndarray:
    return np.repeat(scene()[..., :1], 3, axis=2)


def slide(name: str, accept: str = "right refused") -> Callable[[Maker], Maker]:
    """Register a maker of a slide. accept: outcomes that are not wrong."""
    return lambda maker: _register(name, "slide", maker, accept)


def annotation(name: str, accept: str = "right refused") -> Callable[[Maker], Maker]:
    """Register a maker of an annotation; it gets a folder with the slide `case.tif` and an empty folder `drawn`."""
    return lambda maker: _register(name, "annotation", maker, accept)


def _register(name: str, kind: str, maker: Maker, accept: str) -> Maker:
    @odd(name, kind)
    def case(folder: Path) -> Outcome:
        if kind == "annotation":
            tifffile.imwrite(folder / "case.tif", scene(), **TILED)
            (folder / "drawn").mkdir()
        made = maker(folder)
        made = Made([made]) if isinstance(made, Path) else made
        verdict, why = judge(folder, made)
        if verdict != "WRONG" and verdict not in accept.split():
            verdict, why = "WRONG", f"{verdict}, but must be {accept}: {why}"
        return Outcome(verdict, why)

    return maker


def judge(folder: Path, made: Made) -> tuple[str, str]:
    """("right", "refused" or "WRONG", why) of one call of `gan-uad tile`."""
    out = folder / "out"
    fixed = ["--out", out, "--size", 64, "--mpp", 1, "--tissue", 0, "--grid", "--per-slide", 10000, "--workers", 1]
    if made.tumour is not None and "--annotations" not in made.args:
        fixed += ["--annotations", folder / "drawn"]
    for call in made.calls:
        run_cli(["tile", *map(str, [*call, *fixed])])
    made.between()
    code, text = run_cli(["tile", *map(str, [*made.slides, *fixed, *made.args])])
    if "Traceback" in text or code not in (0, 1, 2):
        return "WRONG", f"exit code {code}: {text[-300:]}"
    lines = [line for line in text.splitlines() if line.startswith(("FAILED", "Error:"))]
    if code:
        named = [line for line in lines if re.search(r"/|--|'", line) and "see above" not in line]
        if not named or re.search(r"FAILED [^:]+: \w+(Error|Exception): ", text):
            return "WRONG", f"no clear line: {text[-300:]}"
        return "refused", named[0].replace(str(folder) + "/", "")
    missing = [word for word in made.said if word.lower() not in text.lower()]
    wrong = [f"not said: {missing}"] if missing else []
    wrong += _compare(out, made, text)
    notes = text.replace(str(folder) + "/", "").strip().splitlines()
    if wrong:
        return "WRONG", "; ".join(wrong) + " | " + " / ".join(notes)[-300:]
    labels = {row["label"] for row in _rows(out)}
    if made.tumour and made.left_out and made.left_out.lower() in text.lower() and labels <= {"", "-1", "unknown"}:
        return "refused", " / ".join(line for line in notes if made.left_out.lower() in line.lower())
    return "right", " / ".join(notes[:-2])


def _rows(out: Path) -> list[dict[str, str]]:
    with open(out / "index.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _compare(out: Path, made: Made, text: str) -> list[str]:
    """What is wrong with the tiles of the judged slides, with their colours, scale, patient and labels."""
    wrong, rows = [], [row for row in _rows(out) if row["slide"].startswith(made.judged)]
    for record in sorted(out.glob("*/slide.json")):
        told = json.loads(record.read_text(encoding="utf-8"))
        if abs(told["mpp"] / made.mpp - 1) > 0.011:
            wrong.append(f"{told['mpp']} µm/px, not {made.mpp}")
        if made.patient is not None and told["group"] != made.patient:
            wrong.append(f"patient {told['group']}, not {made.patient}")
    side = 64 / made.mpp
    height, width = made.image.shape[:2]
    count = int(height / side + 0.01) * int(width / side + 0.01) * len({row["slide"] for row in rows})
    if len(rows) != count or not rows:
        wrong.append(f"{len(rows)} tiles, not {count or 'some'}")
    left_out = bool(made.left_out) and made.left_out.lower() in text.lower()
    for row in rows:
        x, y = float(row["x"]) + side / 2, float(row["y"]) + side / 2
        want = made.image[int(y - 6) : int(y + 6), int(x - 6) : int(x + 6)].reshape(-1, 3).mean(0)
        tile = np.asarray(Image.open(out / row["image"]).convert("RGB"), float)
        middle = slice(len(tile) // 2 - 4, len(tile) // 2 + 4)
        got = tile[middle, middle].reshape(-1, 3).mean(0)
        if np.abs(want - got).max() > made.tolerance:
            wrong.append(f"tile ({row['x']}, {row['y']}) is {got.round().tolist()}, not {want.round().tolist()}")
        if made.tumour is not None:
            place = (int(x // BLOCK), int(y // BLOCK))
            label = "1" if place in made.tumour else "-1" if place in made.unknown else "0"
            if {"": "-1"}.get(row["label"], row["label"]) != label and not (left_out and row["label"] in ("", "-1")):
                wrong.append(f"tile {place} is labelled {row['label']!r}, not {label}")
    return wrong[:3]
