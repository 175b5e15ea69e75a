"""`gan-uad report`: one HTML file of the results of other commands."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import gan_uad
from gan_uad import console
from gan_uad.errors import UserError
from gan_uad.files import make_folder, write_text
from gan_uad.report.benchmark import add_benchmark
from gan_uad.report.gather import Gathering, ResultFolder, read_json
from gan_uad.report.generation import add_classify, add_fid, add_folds, add_projections
from gan_uad.report.html import Document
from gan_uad.report.runs import add_check, add_generated, add_latents, add_picture, add_run
from gan_uad.report.scores import add_metrics, add_scores
from gan_uad.report.slides import add_slide_metrics, add_slides

PICTURES = {".png", ".jpg", ".jpeg", ".gif"}
MAX_DEPTH = 3  # levels of folders below a named one that are searched
MAX_RESULTS = 60
Adder = Callable[[Gathering, ResultFolder], None]

# Files that identify a folder, and the function that adds it. metrics.json is of several commands: see `_metrics`.
MARKS: tuple[tuple[tuple[str, ...], Adder], ...] = (
    (("config.yaml", "environment.json"), add_run),
    (("scores.json",), add_scores),
    (("scores.csv",), add_scores),
    (("results.json", "results.csv"), add_benchmark),
    (("slides.csv",), add_slides),
    (("fid.json",), add_fid),
    (("classify.json",), add_classify),
    (("real_vs_synthetic.json",), add_classify),
    (("projections.json",), add_projections),
    (("latent_space.png",), add_latents),
    (("class_balance.png",), add_check),
    (("grid.png",), add_generated),
)
ABSENT = {
    "detection": ("Detection was not evaluated", "gan-uad score RUN DATA --out SCORES; gan-uad evaluate SCORES"),
    "slides": ("No whole slides", "gan-uad score-slide RUN SLIDES"),
    "generation": ("Generated images were not compared with real ones", "gan-uad fid RUN --real DATA"),
    "classification": ("No classification of real and generated images", "gan-uad classify"),
    "latent": ("No picture of the latent space (of an autoencoder)", "gan-uad latents RUN"),
    "samples": ("No samples of a generator", "gan-uad generate RUN --grid"),
    "benchmark": ("No comparison of methods over data sets and seeds", "gan-uad benchmark"),
}


def report(sources: tuple[str, ...], out: Path = Path("report.html"), title: str | None = None) -> Path:
    """Write the report of `sources` to `out` and return it. Sources: folders that gan-uad wrote (their subfolders are searched too), and
    pictures. Raises `UserError` for what is neither, or for a damaged file.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, such as {out}/report.html")
    places = _places(sources)
    with TemporaryDirectory(prefix="gan_uad_report.") as scratch:
        g = Gathering(
            Document(title or f"Report of {', '.join(Path(source).resolve().name for source in sources[:3])}"),
            Path(scratch),
        )
        with console.progress("gathering", len(places), "sources") as bar:
            for number, (found, adders) in enumerate(places, 1):
                for add in adders:
                    add(g, found)
                bar.update(number)
        for check in g.checks:
            check()
        for topic, (text, command) in ABSENT.items():
            if topic not in g.doc.topics and not (topic == "detection" and "benchmark" in g.doc.topics):
                g.doc.missing("", f"{text}:", command)
        page = g.doc.render(_made_by(places), f"gan_uad {gan_uad.__version__}")
    make_folder(out.parent)
    write_text(out, page)
    console.say(f"{len(places)} sources, {len(page) / 1e6:.1f} MB -> {out}")
    return out


def _made_by(places: list[tuple[ResultFolder, list[Adder]]]) -> dict[str, str]:
    return {
        "Made by": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "Version": f"gan_uad {gan_uad.__version__}",
        "Made on": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "Sources": ", ".join(str(found.path) for found, _ in places),
    }


def _places(sources: tuple[str, ...]) -> list[tuple[ResultFolder, list[Adder]]]:
    """All results, each once, in the order named. Raises `UserError`."""
    places: dict[Path, tuple[ResultFolder, list[Adder]]] = {}
    for source in sources:
        path = Path(source)
        if not path.exists():
            raise UserError(f"no such folder or picture: {source}")
        if path.is_file():
            below = [_of_file(path)]
        else:
            below = list(_below(path, path.resolve(), MAX_DEPTH))
        if not below:
            raise UserError(
                f"{source} holds no results; name a run folder, or an output folder of gan-uad score, evaluate, score-slide, fid, "
                "classify, project, generate --grid, latents, data check --out or benchmark"
            )
        for found, adders in below:
            places.setdefault(found.path.resolve(), (found, adders))
    if len(places) > MAX_RESULTS:
        raise UserError(f"{len(places)} results are in these folders; name folders with at most {MAX_RESULTS}")
    return _told_apart(list(places.values()))


def _told_apart(places: list[tuple[ResultFolder, list[Adder]]]) -> list[tuple[ResultFolder, list[Adder]]]:
    """The places, those of one name by as much of their paths as tells them apart."""
    names = [found.name for found, _ in places]
    result = []
    for found, adders in places:
        same = [other.path.resolve().parts for other, _ in places if other.name == found.name]
        parts, length = found.path.resolve().parts, len(Path(found.name).parts)
        while len(same) > 1 and [one[-length:] for one in same].count(parts[-length:]) > 1:
            length += 1
        new = "/".join(parts[-length:]) if names.count(found.name) > 1 else found.name
        result.append((replace(found, name=new), adders))
    return result


def _of_file(path: Path) -> tuple[ResultFolder, list[Adder]]:
    if path.suffix.lower() in PICTURES:
        return ResultFolder(path, path.name), [add_picture]
    adders = _kinds(path.parent)
    if not adders or path.suffix not in {".csv", ".json"}:
        raise UserError(
            f"{path} is no picture ({' '.join(sorted(PICTURES))}) and no result of gan-uad; name an output folder of gan-uad"
        )
    return ResultFolder(path.parent, path.resolve().parent.name), adders


def _below(folder: Path, root: Path, levels: int) -> Iterator[tuple[ResultFolder, list[Adder]]]:
    """The folder, if it holds results, and its subfolders. Subfolders of results are searched in runs only."""
    adders = _kinds(folder)
    if adders:
        name = (
            folder.resolve().relative_to(root.parent).as_posix()
            if folder.resolve().is_relative_to(root.parent)
            else folder.name
        )
        yield ResultFolder(folder, name), adders
    if adders and add_run not in adders:
        return
    if levels:
        for below in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield from _below(below, root, levels - 1)


def _kinds(folder: Path) -> list[Adder]:
    """The functions that add the results of a folder."""
    found = [add for names, add in MARKS if all((folder / name).is_file() for name in names)]
    if (folder / "metrics.json").is_file():
        found.append(_metrics(folder / "metrics.json"))
    return list(dict.fromkeys(found))


def _metrics(path: Path) -> Adder:
    """The function that adds a metrics.json. Raises `UserError` for one of another program."""
    value = read_json(path)
    if "models" in value and "about" in value:
        return add_folds
    first = next(iter(value.values()), None)
    if isinstance(first, dict) and "source" in first:
        return add_slide_metrics
    if isinstance(first, dict) and "file" in first:
        return add_metrics
    raise UserError(f"{path} is not what gan-uad evaluate writes; evaluate again, or leave its folder out")
