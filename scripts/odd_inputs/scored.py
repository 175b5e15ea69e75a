"""Odd slides and annotations after `gan-uad score-slide` and `evaluate-slides`: where the highest tiles lie, and AUROC by its definition.

A mean-colour run is fitted once to slides of pink tissue. The scored slides are pink, with two purple blocks where they have a lesion.
"""

from __future__ import annotations

import atexit
import csv
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from odd_inputs.annotations import IN_B, B, asap, feature, geojson, outline, polygon
from odd_inputs.common import Outcome, odd, run_cli
from odd_inputs.slide_frame import BLOCK, CENTIMETRE, HEIGHT, TILED, WIDTH

Check = Callable[[Path], list[str]]


def tissue(seed: int, lesion: bool = False) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-20, 21, (HEIGHT, WIDTH, 3))
    colour = np.full((HEIGHT, WIDTH, 3), (190, 90, 160))
    if lesion:
        colour[BLOCK : 2 * BLOCK, 2 * BLOCK :] = (110, 60, 180)
    return (colour + noise).astype(np.uint8)


@cache
def fitted() -> Path:
    """A folder with the mean-colour run `runs/00000-mean_color`."""
    root = Path(tempfile.mkdtemp(prefix="odd_run_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for k in range(8):
        tifffile.imwrite(root / f"n{k}.tif", tissue(k), **TILED)
    words = ["--size", 64, "--mpp", 1, "--tissue", 0, "--grid", "--unannotated", "normal", "--out", root / "patches"]
    for call in (
        ["tile", *sorted(root.glob("n*.tif")), *words],
        ["train", "mean_color", "--data", root / "patches", "--out", root / "runs"],
    ):
        code, text = run_cli([*map(str, call)])
        if code:
            raise RuntimeError(text)
    return root / "runs" / "00000-mean_color"


@cache
def six() -> Path:
    """A folder with the scores `out` of the slides t0, t1 and t2 with a lesion and n3, n4 and n5 without."""
    folder = fitted().parent.parent / "six"
    folder.mkdir()
    slides = [folder / f"{'t' if k < 3 else 'n'}{k}.tif" for k in range(6)]
    for k, path in enumerate(slides):
        tifffile.imwrite(path, tissue(30 + k, k < 3), **TILED)
    code, text = score(folder, *slides)
    if code:
        raise RuntimeError(text)
    return folder


def score(folder: Path, *slides: Path, args: tuple[Any, ...] = (), out: str = "out") -> tuple[int, str]:
    words = [
        "--tissue",
        0,
        "--threshold",
        "quantile:0.99",
        "--out",
        folder / out,
        "--workers",
        1,
        "--device",
        "cpu",
        *args,
    ]
    return run_cli([*map(str, ["score-slide", fitted(), *slides, *words])])


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def highest(folder: Path, name: str) -> set[tuple[int, int]]:
    """The blocks of the two tiles of the lowest p."""
    tiles = rows(folder / "out" / name / "tiles.csv")
    best = sorted(tiles, key=lambda row: -float(row["neg_log10_p"]))[:2]
    return {(int(float(row["x"])) // BLOCK, int(float(row["y"])) // BLOCK) for row in best}


def scored(name: str, accept: str = "right refused") -> Callable[[Callable[[Path], tuple[int, str, list[str]]]], Any]:
    """Register a case that returns exit code, output, and what is wrong with the result (judged where the code is 0)."""

    def register(case: Callable[[Path], tuple[int, str, list[str]]]) -> Any:
        @odd(name, "scored slide")
        def judged(folder: Path) -> Outcome:
            code, text, wrong = case(folder)
            text = text.replace(str(folder) + "/", "")
            if "Traceback" in text:
                return Outcome("WRONG", text[-300:])
            lines = [line for line in text.splitlines() if line.startswith(("FAILED", "Error:"))]
            verdict = "refused" if code and lines else "right" if not code and not wrong else "WRONG"
            if verdict not in accept.split():
                return Outcome("WRONG", f"{verdict}: {'; '.join(wrong)} | {text[-300:]}")
            return Outcome(verdict, lines[0] if lines else "")

        return judged

    return register


def stored(name: str, accept: str, write: Callable[[Path, np.ndarray], None], *args: Any, file: str = "a.tif") -> None:
    """A slide with a lesion, stored in an odd way: the tiles of the lesion must score highest, as in the plain file."""

    @scored(f"score-slide: {name}", accept)
    def _(folder: Path) -> tuple[int, str, list[str]]:
        image = tissue(20, lesion=True)
        write(folder / file, image)
        (folder / "plain").mkdir()
        tifffile.imwrite(folder / "plain" / "b.tif", image, **TILED)
        code, text = score(folder, folder / file, args=args)
        if code:
            return code, text, []
        score(folder, folder / "plain" / "b.tif", out="of_plain")
        stem = file.rpartition(".")[0]
        wrong = [] if highest(folder, stem) == IN_B else [f"highest at {highest(folder, stem)}, not {IN_B}"]
        odd_, plain = (
            [float(row["score"]) for row in rows(folder / place / "tiles.csv")]
            for place in (f"out/{stem}", "of_plain/b")
        )
        if len(odd_) != len(plain) or not np.allclose(odd_, plain, rtol=0.02, atol=1e-3):
            wrong.append("scores are not those of the plain file")
        return code, text, wrong


stored(
    "planar file",
    "right",
    lambda p, i: tifffile.imwrite(p, np.moveaxis(i, 2, 0), **TILED | {"planarconfig": "separate"}),
)
stored("16 bits", "right", lambda p, i: tifffile.imwrite(p, i.astype(np.uint16) * 257, **TILED))
stored("CMYK", "right refused", lambda p, i: tifffile.imwrite(
    p, np.dstack([255 - i, np.zeros_like(i[..., 0])]), **TILED | {"photometric": "separated"}))  # fmt: skip
stored("two channels of dyes", "refused", lambda p, i: tifffile.imwrite(
    p, np.moveaxis(i[..., :2], 2, 0), ome=True, photometric="minisblack",
    metadata={"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": ["DAPI", "CD3"]}}),
       file="a.ome.tif")  # fmt: skip
stored("no µm/px", "refused", lambda p, i: tifffile.imwrite(p, i, photometric="rgb", metadata=None))
stored(
    "no µm/px, told", "right", lambda p, i: tifffile.imwrite(p, i, photometric="rgb", metadata=None), "--slide-mpp", 0.5
)


def evaluated(
    name: str, accept: str, prepare: Callable[[Path], list[Any]], auroc: float | None = 1.0, said: tuple[str, ...] = ()
) -> None:
    """Three slides with and three without a lesion are scored and evaluated with the options that `prepare` returns."""

    @scored(f"evaluate-slides: {name}", accept)
    def _(folder: Path) -> tuple[int, str, list[str]]:
        shutil.copytree(six() / "out", folder / "out")
        code, text = run_cli([*map(str, ["evaluate-slides", folder / "out", "--resamples", 100, *prepare(folder)])])
        if code:
            return code, text, []
        wrong = [f"not said: {word}" for word in said if word not in text]
        (result,) = json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8")).values()
        found = result["scores"]["max"]["auroc"]["value"]
        if auroc is not None and abs(found - auroc) > 1e-9:
            wrong.append(f"AUROC {found}, not {auroc}")
        wrong += tile_auroc(folder, result)
        return code, text, wrong


def tile_auroc(folder: Path, result: dict[str, Any]) -> list[str]:
    """AUROC of tiles by its definition, where it was computed and all slides are annotated."""
    if not result.get("tiles") or result["notes"]:
        return []
    both: dict[bool, list[float]] = {True: [], False: []}
    for path in sorted((folder / "out").glob("*/tiles.csv")):
        for row in rows(path):
            place = (int(float(row["x"])) // BLOCK, int(float(row["y"])) // BLOCK)
            both[path.parent.name.startswith("t") and place in IN_B].append(float(row["neg_log10_p"]))
    pairs = np.subtract.outer(both[True], both[False])
    want = float(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    found = result["tiles"]["auroc"]["value"]
    return [] if abs(want - found) < 1e-9 else [f"AUROC of tiles {found}, not {want}"]


def drawn(folder: Path, of: tuple[str, ...] = ("t0", "t1", "t2"), normals: bool = True) -> list[Any]:
    (folder / "drawn").mkdir(exist_ok=True)
    for name in of:
        geojson(folder, feature(polygon(B)), name=f"{name}.geojson")
    for name in ("n3", "n4", "n5") if normals else ():
        asap(folder, name=f"{name}.xml")
    return ["--annotations", folder / "drawn"]


def labelled(folder: Path, text: str) -> list[Any]:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return ["--labels", folder / "labels.csv"]


ALL = "slide,label\nt0,1\nt1,1\nt2,1\nn3,0\nn4,0\nn5,0\n"


def with_dots(folder: Path) -> list[Any]:
    options = drawn(folder, of=("t0", "t1"))
    asap(folder, outline("Tumor", [(300, 200)], "Dot"), name="t2.xml")
    return options


def in_capitals(folder: Path) -> list[Any]:
    options = drawn(folder, of=("T0", "t1"))
    geojson(folder, feature(polygon(B)), name="t2.tif.geojson")
    return options


evaluated("annotated slides, normal ones with empty files", "right", lambda f: drawn(f))
evaluated("names in capitals and with the whole file name", "right refused", in_capitals)
evaluated("annotations of the lesions alone", "right refused", lambda f: drawn(f, normals=False))
evaluated("annotations of the lesions alone, others normal", "right", lambda f: [*drawn(f, normals=False), "--unannotated", "normal"],
          said=("3 slides",))  # fmt: skip
evaluated("one lesion without its file, others normal", "right refused",
          lambda f: [*drawn(f, of=("t0", "t1"), normals=False), "--unannotated", "normal"], auroc=None, said=("4 slides",))  # fmt: skip
evaluated("a dot for one lesion", "right refused", with_dots, said=("t2",))
evaluated("labels against annotations", "refused", lambda f: [*drawn(f), *labelled(f, ALL.replace("n3,0", "n3,1"))])
evaluated("labels of all slides", "right", lambda f: labelled(f, ALL))
evaluated(
    "labels that leave one slide out", "right refused", lambda f: labelled(f, ALL.replace("t0,1\n", "")), said=("t0",)
)
evaluated("labels with an unknown slide", "right refused", lambda f: labelled(f, ALL + "x9,1\n"), said=("x9",))
evaluated("labels by file name and by path of another machine", "right refused",
          lambda f: labelled(f, ALL.replace("t0,", "t0.tif,").replace("t1,", "/data/else/t1.tif,")), said=("t1",))  # fmt: skip
evaluated("labels 0.0 and 1.0", "right refused", lambda f: labelled(f, ALL.replace(",1", ",1.0").replace(",0", ",0.0")))
evaluated("labels of one kind", "refused", lambda f: labelled(f, ALL.replace(",0", ",1")))


assert CENTIMETRE["resolution"] == (20000, 20000)
