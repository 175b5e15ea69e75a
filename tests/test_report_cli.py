"""`gan-uad report`: one page of the results of other commands, read with the HTML parser of the standard library."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from feature_tools import Thumbnails
from PIL import Image
from score_tools import fails, rows

from gan_uad.benchmark import tables as benchmark_tables
from gan_uad.benchmark.plan import DEFAULT_SCORING
from gan_uad.config import load_config
from gan_uad.files import make_folder, write_json
from gan_uad.generation import accuracy, fid
from gan_uad.plotting import plots
from gan_uad.run import Run, environment
from gan_uad.slides import score_slides

HOSTILE = "<script>alert(1)<&script>\"'`ü日本</td>.png".replace("/", "")
VOID = {"meta", "img", "br", "path", "circle"}
PLAIN = {"src", "alt", "width", "height"}


class Page(HTMLParser):
    """A report: tags with their attributes, the text of each section, tables and pictures. Raises where tags do not pair."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.images: dict[str, list[dict[str, str | None]]] = {}
        self.scripts, self.styles = "", ""
        self.tables: list[list[list[str]]] = []
        self.section = ""
        self.feed(self.raw)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section" and found.get("id"):
            self.section = str(found["id"])
            self.sections[self.section] = ""
            self.images[self.section] = []
        if tag == "footer":
            self.section = ""
        if tag == "img" and self.section:
            self.images[self.section].append(found)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            if self.open[-1] == "script":
                self.scripts += data
            else:
                self.styles += data
            return
        if self.section:
            self.sections[self.section] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def table(self, heading: str) -> list[dict[str, str]]:
        """The first table that has such a column, its cells by heading, blanks made single."""
        for found in self.tables:
            names = [" ".join(cell.split()) for cell in found[0]]
            if heading in names:
                return [dict(zip(names, (" ".join(cell.split()) for cell in row), strict=True)) for row in found[1:]]
        raise AssertionError(f"no table has a column {heading}")


@pytest.fixture(scope="module")
def hostile(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The patches with hostile names of files, folder and groups."""
    folder = tmp_path_factory.mktemp("data") / "<b>set&amp;"
    shutil.copytree(trained.patches, folder)
    table = rows(folder / "index.csv")
    for row in table:
        if row["split"] == "test":
            row["group"] = f"</figcaption><img src=x onerror=alert(1)>{row['group']}"
    anomalous = [row for row in table if row["split"] == "test" and row["label"] == "1"]
    for i, row in enumerate(anomalous):
        new = f"{i:02d}{HOSTILE}"
        (folder / row["image"]).rename(folder / "images" / new)
        row["image"] = f"images/{new}"
    with open(folder / "index.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    return folder


@pytest.fixture(scope="module")
def scored(cli: Any, trained: Any, hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of these by the encoder, not evaluated. Nobody writes into it."""
    out = tmp_path_factory.mktemp("scored") / "scores"
    result = cli("score", trained.encoder, hostile, "--out", out, "--threshold", "fpr:0.2")
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def evaluated(cli: Any, scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores with their metrics. Nobody writes into it."""
    out = tmp_path_factory.mktemp("evaluated") / "scores"
    shutil.copytree(scored, out)
    result = cli("evaluate", out, "--resamples", 100)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def full(cli: Any, trained: Any, evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A run, evaluated scores, samples and an interpolation, on one page."""
    root = tmp_path_factory.mktemp("full")
    for run in (
        ("generate", trained.generator, "--seeds", "0-8", "--out", root / "samples", "--grid"),
        ("interpolate", trained.generator, "--seeds", "0-1", "--out", root / "walk.gif", "--frames-between", 2),
        (
            "report", trained.encoder, evaluated, root / "samples", root / "walk.gif", "--out", root / "r.html",
            "--title", f"A {HOSTILE}",
        ),
    ):  # fmt: skip
        result = cli(*run)
        assert result.exit_code == 0, result.output
    return Page(root / "r.html")


def report(cli: Any, out: Path, *arguments: Any) -> Page:
    result = cli("report", *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    return Page(out)


def without_log(run: Path, root: Path) -> Path:
    """A copy of a run as it is before its first tick."""
    return Path(shutil.copytree(run, root / run.name, ignore=shutil.ignore_patterns("state*", "log.jsonl", "scores")))


def pictures(page: Page) -> Iterator[Image.Image]:
    for found in page.images.values():
        for attributes in found:
            kind, _, code = str(attributes["src"]).partition(";base64,")
            assert kind in ("data:image/png", "data:image/jpeg", "data:image/gif")
            with Image.open(io.BytesIO(base64.b64decode(code, validate=True))) as image:
                image.load()
                assert [str(image.width), str(image.height)] == [attributes["width"], attributes["height"]]
                yield image


# ---------------------------------------------------------------- results of other commands


def test_fid_with_memorised_pairs(cli: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "load_features", lambda *_args, **_how: Thumbnails())
    run = without_log(trained.generator, tmp_path)
    result = cli(
        "fid",
        run,
        "--real",
        trained.patches,
        "--num",
        8,
        "--features",
        "quick",
        "--out",
        tmp_path / "fid",
    )
    assert result.exit_code == 0, result.output
    page = report(cli, tmp_path / "r.html", tmp_path / "fid", run)
    found = {cell["method"]: cell for cell in json.loads((tmp_path / "fid" / "fid.json").read_text())}
    table = {row["images of"]: row for row in page.table("FD-Thumbnails")}
    assert {name: row["FD-Thumbnails"] for name, row in table.items()} == {
        n: f"{c['value']:.2f}" for n, c in found.items()
    }
    assert len(page.images["generation"]) == 1, "the nearest pairs"
    assert "gan-uad fid" not in page.sections["missing"]
    assert "2,048" in page.sections["missing"]


def test_classification(cli: Any, tmp_path: Path) -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([-1.0, 2.0, 1.0, 3.0])
    row = accuracy.metrics(HOSTILE, labels, scores, None, 0)
    run = {
        "run": "somewhere",
        "file": "f",
        "name": "net",
        "kimg": 1.0,
        "trained_kimg": 1.0,
        "planned_kimg": 9.0,
        "short": True,
        "stopped_early": False,
    }
    settings = {"runs": {"classifier": run}, "jpeg": None, "seed": 0, "image_seeds": {"made": "0-3"}}
    accuracy.write_table(tmp_path, "classify", "title", ("normal", "anomalous"), [row], settings, [HOSTILE])
    page = report(cli, tmp_path / "r.html", tmp_path)
    (shown,) = page.table("interval by")
    assert (shown["patches"], shown["accuracy"], shown["right of normal"]) == (HOSTILE, "75.0 %", "50.0 %")
    assert "1 of 9 kimg" in page.sections["missing"]
    assert "<script>alert" not in page.raw


def test_slides(cli: Any, tmp_path: Path) -> None:
    with open(tmp_path / "slides.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, score_slides.COLUMNS)
        writer.writeheader()
        for i, name in enumerate((HOSTILE, "../outside", "empty")):
            values = (
                {"max": "", "top_k": "", "share": ""} if name == "empty" else {"max": 4, "top_k": 3 - i, "share": 0.25}
            )
            writer.writerow({"slide": name, "file": "f", "tiles": 0 if name == "empty" else 7, "model": "m", **values})
    (tmp_path / HOSTILE).mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / HOSTILE / "overlay.png")
    page = report(cli, tmp_path / "r.html", tmp_path)
    table = page.table("highest −log10 p")
    assert [row["slide"] for row in table] == [HOSTILE, "../outside", "empty"]
    assert table[0]["tiles above 99 % of normals"] == "25.0 %"
    assert len(page.images["slides"]) == 1
    for text in (": empty", f"gan-uad evaluate-slides {tmp_path} --annotations"):
        assert text in page.sections["missing"]
    assert "<script>alert" not in page.raw


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")  # of the hostile name in a legend
def test_a_benchmark(cli: Any, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    area = {"value": 0.75, "low": 0.5, "high": 0.875, "note": ""}
    rates = dict.fromkeys(("accuracy", "f1", "sensitivity", "specificity"), 0.5)
    metrics = {
        "normal": 20,
        "anomalous": 20,
        "auroc": area,
        "auprc": area,
        "fpr5": rates,
        "youden": None,
        "pixels": None,
        "warnings": [],
    }
    training = dict.fromkeys(("seconds", "images_per_s", *benchmark_tables.ERRORS)) | {
        "resolution": 32, "kimg": 1.0, "whole": False, "run": "runs/0", "trained_on": "normal"
    }  # fmt: skip
    about = {
        "data": "toy",
        "method": HOSTILE,
        "scoring": DEFAULT_SCORING,
        "overrides": "",
        "seed": 0,
        "settings": "",
        "folder": "cells/0",
    }
    cell = {
        **about, **metrics, "baseline": None, "training": [training], "score_images_per_s": 9.5, "environment": environment(0),
        "search": {"by": "AUROC", "chosen": "a", "attempts": [{"settings": "a", "figure": 0.5}]},
    }  # fmt: skip
    (tmp_path / "cells" / "0").mkdir(parents=True)
    write_json(tmp_path / "cells" / "0" / "cell.json", cell)
    shutil.copytree(evaluated, tmp_path / "cells" / "0" / "scores")
    better = {**cell, "method": "better", "folder": "cells/3", "auroc": {**area, "value": 0.9}}
    write_json(make_folder(tmp_path / "cells" / "3") / "cell.json", better)
    shutil.copytree(evaluated, tmp_path / "cells" / "3" / "scores", ignore=lambda *_: ["triplets.png"])
    curves: list[str] = []
    roc = plots.roc
    monkeypatch.setattr(plots, "roc", lambda drawn, path: curves.extend(drawn) or roc(drawn, path))
    cells: list[Any] = [
        SimpleNamespace(folder="cells/0", problem="", label="one"),
        SimpleNamespace(folder="cells/3", problem="", label="four"),
        SimpleNamespace(folder="cells/1", problem="no memory", label="two"),
        SimpleNamespace(folder="cells/2", problem="", label="three"),
    ]
    described: Any = SimpleNamespace(name="bench", about="About it.", data={"toy": SimpleNamespace(note="A note.")})
    benchmark_tables.write_tables(described, cells, tmp_path)
    page = report(cli, tmp_path / "r.html", tmp_path)
    row = page.table("seeds")[0]
    assert curves == ["better, seed 0", f"{HOSTILE}, seed 0", "mean colour"]
    assert "(AUROC 0.750, number 2 of 2)" in page.sections["maps"], "the best has no triplets, the next one has"
    assert "labels" not in page.sections["benchmark"], "no method saw any"
    assert (row["method"], row["AUROC"]) == (HOSTILE, "0.750 [0.50, 0.88]")
    assert len(page.images["benchmark"]) == len(page.images["maps"]) == 1
    for text in ("two: no memory", ": three", f": {HOSTILE}"):
        assert text in page.sections["missing"]
    write_json(tmp_path / "cells" / "3" / "cell.json", {**better, "training": [{**training, "trained_on": "all"}]})
    benchmark_tables.write_tables(described, cells, tmp_path)
    assert "Rows marked `all` learnt from" in report(cli, tmp_path / "s.html", tmp_path).sections["benchmark"]
    assert "<script>alert" not in page.raw


# ---------------------------------------------------------------- what is missing


def test_what_is_missing_is_listed(cli: Any, scored: Path, tmp_path: Path) -> None:
    page = report(cli, tmp_path / "r.html", scored)
    assert f" gan-uad evaluate {scored}" in page.sections["missing"]
    assert len(page.images["detection"]) == 2, "ROC and precision-recall are drawn without intervals"
    assert "Drawn for this report" in page.sections["scores"]


def test_a_run_with_scores_inside(cli: Any, trained: Any, evaluated: Path, tmp_path: Path) -> None:
    run = without_log(trained.encoder, tmp_path)
    shutil.copytree(evaluated, run / "scores" / "mine")
    (run / "scores" / "mine" / "mean_color.csv").unlink()
    page = report(cli, tmp_path / "s.html", run)
    assert f"{run.name}/scores/mine: no mean-colour baseline" in page.sections["missing"]
    assert "0 of the 0.32 kimg" in page.sections["missing"]
    assert f"gan-uad train {run} --resume" in page.sections["missing"]
    assert page.images["patches"], "scores inside a run are found"


def test_scores_alone_without_labels_groups_threshold_or_images(cli: Any, evaluated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "scores.csv").write_text("image,label,score\na,,1.5\nb,,0.5\n")
    page = report(cli, tmp_path / "r.html", folder / "scores.csv")
    for text in ("scores.json", "label", "groups", "no threshold"):
        assert text in page.sections["missing"]
    assert len(page.images["scores"]) == 1
    described = json.loads((evaluated / "scores.json").read_text()) | {"data": str(tmp_path / "gone")}
    moved = tmp_path / "moved"
    shutil.copytree(evaluated, moved)
    write_json(moved / "scores.json", described)
    metrics = (moved / "metrics.json").read_text()
    (moved / "metrics.json").write_text(metrics.replace('"components"', '"parts"'))  # as version 0.1 wrote it
    page = report(cli, tmp_path / "s.html", moved)
    assert page.table("component")
    assert f"{tmp_path}/gone" in page.sections["missing"]
    assert "patches" not in page.sections


def test_large_pictures_are_reduced_and_broken_ones_listed(cli: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 2400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "wide.png").read_bytes()[:5000])
    see_through = Image.new("RGBA", (2000, 10), (255, 0, 0, 0))
    see_through.save(tmp_path / "clear.png")
    names = [f"{name}.png" for name in ("wide", "broken", "clear")]
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    see_through.resize((20, 10)).save(strange)
    page = report(cli, tmp_path / "r.html", *(tmp_path / name for name in names), strange)
    wide, clear, _ = pictures(page)
    assert (wide.size, wide.format) == ((1200, 150), "JPEG")
    assert clear.getpixel((5, 5)) == (255, 255, 255)
    assert "reduced from 2,400 × 300 px, stored as JPEG" in page.sections["samples"]
    assert "broken.png" in page.sections["missing"]
    assert "\\udcff.png" in page.sections["samples"]
    assert "<p>2 pictures" in page.raw


# ---------------------------------------------------------------- the page


def test_the_page_has_every_section_in_order(full: Page) -> None:
    there = ["glance", "missing", "runs", "data", "detection", "scores", "patches", "maps", "samples", "training"]
    assert list(full.sections) == there
    links = [attributes["href"] for tag, attributes in full.tags if tag == "a"]
    assert links == [f"#{name}" for name in there]
    assert all(full.images[name] for name in there[3:])
    assert "torch 2" in full.sections["runs"]
    assert "{{" not in full.raw
    assert "{%" not in full.raw


def test_the_page_needs_nothing_else_and_lets_nothing_in(full: Page) -> None:
    assert {tag for tag, _ in full.tags} & {"link", "iframe", "object", "embed", "form", "base", "video"} == set()
    for tag, attributes in full.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")]
        if tag == "img" and "src" in attributes:
            assert str(attributes["src"]).startswith("data:image/")
    assert "url(" not in full.styles
    assert "@import" not in full.styles
    assert re.findall(r"https?:", full.raw) == []
    (policy,) = (
        a["content"] for tag, a in full.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    for text, name in ((full.scripts, "script"), (full.styles, "style")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert [tag for tag, _ in full.tags].count("script") == 1


def test_only_what_is_missing_is_listed(full: Page) -> None:
    for command in ("evaluate", "train", "generate"):
        assert f"gan-uad {command}" not in full.sections["missing"]
    for text in ("training.eval_kimg", "gan-uad score-slide", "gan-uad classify"):
        assert text in full.sections["missing"]


def test_every_picture_can_be_read_and_says_what_it_is(full: Page) -> None:
    found = list(pictures(full))
    assert len(found) > 40
    assert any(getattr(image, "n_frames", 1) == 4 for image in found), "the animation is kept"
    assert all(attributes["alt"] for images in full.images.values() for attributes in images)


def test_hostile_names_are_text(full: Page, evaluated: Path, hostile: Path) -> None:
    assert HOSTILE in full.sections["patches"]
    assert "</figcaption><img src=x onerror=alert(1)>phantom" in full.sections["patches"]
    assert str(hostile) in full.sections["runs"]
    assert "<script>alert" not in full.raw
    assert "<b>set" not in full.raw
    assert "onerror=alert(1)>" not in full.raw
    assert any(attributes["alt"] == f"images/00{HOSTILE}" for attributes in full.images["patches"])


def test_metrics_are_those_of_the_evaluation(full: Page, evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics.json").read_text())
    table = full.table("AUPRC")
    assert [row["model"] for row in table] == list(metrics)
    for row, found in zip(table, metrics.values(), strict=True):
        area = found["auroc"]
        assert row["AUROC"] == f"{area['value']:.3f} [{area['low']:.2f}, {area['high']:.2f}]"
        assert row["normal + anomalous"] == f"{found['images']['normal']} + {found['images']['anomalous']}"
        rate = found["decision_intervals"]["accuracy"]
        bounds = "–" if rate["low"] is None else f"{rate['low']:.2f}, {rate['high']:.2f}"
        assert row["accuracy"] == f"{found['decisions']['accuracy']:.3f} [{bounds}]"
    name = next(iter(metrics))
    assert f"{name}: AUROC {table[0]['AUROC']} on 20 normal and " in full.sections["glance"]
    area = metrics[name]["differences"]["mean_color"]["auroc"]
    (difference,) = full.table("AUROC difference")
    assert difference["AUROC difference"].startswith(f"{area['value']:+.3f} [")
    verdict = "better" if area["low"] > 0 else "worse" if area["high"] < 0 else "no clear difference"
    assert difference["verdict"] == verdict
    assert re.search(f"{verdict} (than|from) mean colour", full.sections["glance"], re.I)


def test_counts_are_those_of_the_scores_and_the_set(full: Page, evaluated: Path, hostile: Path) -> None:
    table = rows(evaluated / "scores.csv")
    for row in full.table("above threshold"):
        if row["set"] == "scored":
            own = [r for r in table if r["label"] == str(int(row["label"] == "anomalous"))]
            assert row["images"] == str(len(own))
            assert row["groups"] == str(len({r["group"] for r in own}))
            flagged = sum(r["decision"] == "1" for r in own) / len(own)
            assert row["above threshold"] == f"{100 * flagged:.1f} %"
    split = {row["split"]: row for row in full.table("unknown")}
    index = rows(hostile / "index.csv")
    assert split["test"]["anomalous"] == str(sum(r["split"] == "test" and r["label"] == "1" for r in index))
    assert split["all"]["images"] == str(len(index))


def test_patches_shown_are_those_at_the_ends(full: Page, evaluated: Path) -> None:
    table = sorted(rows(evaluated / "scores.csv"), key=lambda row: float(row["score"]))
    normal, anomalous = ([row["image"] for row in table if row["label"] == label] for label in "01")
    wanted = [*anomalous[::-1][:8], *normal[:8], *anomalous[:8], *normal[::-1][:8]]
    assert [attributes["alt"] for attributes in full.images["patches"]] == wanted


# ---------------------------------------------------------------- wrong sources


def test_wrong_sources_are_answered_in_one_line(cli: Any, scored: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "r.html")
    fails(cli("report", tmp_path / "none", *out), str(tmp_path / "none"))
    fails(cli("report", tmp_path, *out), str(tmp_path), "gan-uad score")
    (tmp_path / "notes.txt").write_text("x")
    fails(cli("report", tmp_path / "notes.txt", *out), "notes.txt", ".png")
    fails(cli("report", scored, "--out", tmp_path), f"--out {tmp_path}", f"{tmp_path}/report.html")
    for number, (name, content) in enumerate(
        [
            ("metrics.json", "[]"), ("metrics.json", '{"f1": 0.5}'), ("fid.json", '[{"figure": "FID"}]'), ("scores.json", "{"),
            ("scores.json", '{"model": 3}'), ("projections.json", "{}"), ("classify.json", '{"labels": 1}'), ("slides.csv", "a,b\n1,2\n"),
            ("scores.csv", "image,label,score\na,5,1\n"), ("latents.npz", "no"),
        ]
    ):  # fmt: skip
        folder = tmp_path / f"wrong{number}"
        folder.mkdir()
        (folder / name).write_text(content)
        if name == "latents.npz":
            Image.new("RGB", (4, 4)).save(folder / "latent_space.png")
        fails(cli("report", folder, *out), str(folder / name))
    assert not (tmp_path / "r.html").exists()


def test_a_run_that_has_not_logged_yet_and_a_place_that_cannot_be_written(
    cli: Any, hostile: Path, tmp_path: Path
) -> None:
    config = load_config("demo_wgan_gp", (f"data.path={hostile}",))
    run = Run.create(tmp_path / "runs", config)
    page = report(cli, tmp_path / "deep" / "r.html", tmp_path / "runs")
    assert f"gan-uad fid {run.folder}" in page.sections["missing"]
    assert "training" not in page.sections
    (tmp_path / "file").write_text("")
    fails(cli("report", run.folder, "--out", tmp_path / "file" / "r.html"), str(tmp_path / "file"), "--out")
