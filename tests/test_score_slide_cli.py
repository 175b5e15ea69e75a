"""`gan-uad score-slide` and `evaluate-slides` end to end: every number against the painted slides, by definition or by hand."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from score_tools import fails, rows
from sklearn.metrics import roc_auc_score
from slide_tools import asap, corners

import gan_uad
from gan_uad.data.patches import to_tensor
from gan_uad.metrics.tails import Tail
from gan_uad.plotting.overlay import overlay
from gan_uad.slides.annotations import read_annotations
from gan_uad.slides.tiles import labels

TISSUE = (64, 64, 704, 512)  # left, top, right, bottom in px of 1 µm: 10 × 7 tiles of 64
LESION = (320, 192, 640, 384)  # 5 × 3 tiles
UNICODE = "Präparat 1 (a)"


def paint(path: Path, seed: int, lesion: bool = False, tissue: bool = True, mpp: float = 1.0) -> Path:
    """800 × 600 px: noisy pink tissue, in it a purple lesion, on glass."""
    rng = np.random.default_rng(seed)
    image = np.full((600, 800, 3), 240, np.uint8)
    for (left, top, right, bottom), colour in ((TISSUE, (190, 90, 160)), (LESION, (150, 80, 170))):
        if tissue and (lesion or colour[0] == 190):
            shade = (
                rng.normal(0, 3, (-(-600 // 64), -(-800 // 64), 3)).repeat(64, 0).repeat(64, 1)[top:bottom, left:right]
            )
            noise = rng.integers(-20, 21, (bottom - top, right - left, 3))
            image[top:bottom, left:right] = np.clip(np.array(colour) + shade + noise, 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    per_cm = (1e4 / mpp, 1e4 / mpp)
    tifffile.imwrite(
        path, image, tile=(256, 256), compression="zlib", photometric="rgb", metadata=None, resolution=per_cm, resolutionunit="CENTIMETER"
    )  # fmt: skip
    return path


def cut_patches(folder: Path) -> None:
    """Every tile of 4 normal slides, three to train on and one held out."""
    lines = ["image,group,label,split"]
    (folder / "images").mkdir(parents=True)
    for k in range(4):
        image = tifffile.imread(paint(folder.parent / f"n{k}.tif", k))
        for y in range(64, 512, 64):
            for x in range(64, 704, 64):
                name = f"images/n{k}_{x}_{y}.png"
                Image.fromarray(image[y : y + 64, x : x + 64]).save(folder / name, compress_level=0)
                lines.append(f"{name},n{k},0,{'val' if k == 3 else 'train'}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Bench:
    """A fitted mean-colour run, slides with and without a lesion, and what `score-slide` made of them."""

    run: Path
    slides: list[Path]
    annotations: Path
    out: Path
    patches: Path


OPTIONS = ("--mpp", "1", "--tissue", "0.5")


@pytest.fixture(scope="module")
def bench(cli: Any, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = tmp_path_factory.mktemp("slides")
    patches, runs, notes = root / "patches", root / "runs", root / "annotations"
    cut_patches(patches)
    result = cli("train", "mean_color", "--data", patches, "--out", runs)
    assert result.exit_code == 0, result.output
    slides = []
    for number, name in enumerate((UNICODE, "b", "c", "d")):
        slides.append(paint(root / "test" / f"{name}.tif", 10 + number, lesion=number < 2))
        asap(notes / f"{name}.xml", *([("_0", corners(LESION))] if number < 2 else []))
    made = Bench(runs / "00000-mean_color", slides, notes, root / "scores", patches)
    with pytest.MonkeyPatch.context() as patch:
        # Drawing takes most of a small slide's time.
        patch.setattr("gan_uad.slides.score_slide.overlay", lambda *a: overlay(*a) if UNICODE in str(a[3]) else None)
        result = cli("score-slide", made.run, *slides, *OPTIONS, "--out", made.out)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(made.out / "slides.csv")
    return made


def tiles(out: Path, name: str) -> list[dict[str, str]]:
    return rows(out / name / "tiles.csv")


def column(table: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in table])


def in_lesion(table: list[dict[str, str]]) -> np.ndarray:
    x, y = column(table, "x"), column(table, "y")
    return (x >= 320) & (x < 640) & (y >= 192) & (y < 384)


def test_all_tiles_of_the_grid_are_scored_as_the_model_scores_them(bench: Bench) -> None:
    """Pixels by tifffile, scores by the public API."""
    scorer = gan_uad.load(str(bench.run)).scorer()
    for slide in bench.slides:
        table = tiles(bench.out, slide.stem)
        expected = [(x, y) for y in range(64, 512, 64) for x in range(64, 704, 64)]
        assert [(int(row["x"]), int(row["y"])) for row in table] == expected
        assert {row["side"] for row in table} == {"64"}
        image = tifffile.imread(slide)
        cut = np.stack([image[y : y + 64, x : x + 64] for x, y in expected])
        np.testing.assert_allclose(column(table, "score"), scorer.score(to_tensor(cut)).image.numpy(), rtol=1e-5)


def test_tumour_tiles_rank_above_normal_ones(bench: Bench) -> None:
    table = tiles(bench.out, UNICODE)
    assert roc_auc_score(in_lesion(table), column(table, "neg_log10_p")) == 1.0
    shown = rows(bench.out / "slides.csv")
    assert [row["slide"] for row in shown] == sorted(path.stem for path in bench.slides)
    by_name = {row["slide"]: row for row in shown}
    for name in ("max", "top_k", "share"):
        assert min(float(by_name[n][name]) for n in (UNICODE, "b")) > max(float(by_name[n][name]) for n in ("c", "d"))


def test_the_tail_probability_is_that_of_held_out_normals(bench: Bench) -> None:
    """The validation split of what the run was fitted on: by counting up to their 90 % quantile, and by the tail beyond."""
    used = rows(bench.out / "normals.csv")
    assert {r["image"] for r in used} == {
        r["image"] for r in rows(bench.patches / "index.csv") if r["group"] == used[0]["group"]
    }
    normals = column(used, "score")
    table = tiles(bench.out, "c")
    scores, p = column(table, "score"), column(table, "p")
    inside = scores <= np.sort(normals)[-math.ceil(0.1 * len(normals)) - 1]
    window = Tail.fit(normals).window
    least, most = ((1 + (normals[None] >= scores[:, None] - w).sum(1)) / (len(normals) + 1) for w in (0, window))
    assert (p[inside] >= least[inside] - 1e-6).all()
    assert (p[inside] <= most[inside] + 1e-6).all()
    assert inside.any()
    for name in ("c", UNICODE):
        table = tiles(bench.out, name)
        log_p = Tail.fit(normals).log_p(column(table, "score"))
        np.testing.assert_allclose(column(table, "neg_log10_p"), -log_p / np.log(10), rtol=1e-6)
        np.testing.assert_allclose(np.log10(column(table, "p")), -column(table, "neg_log10_p"), rtol=1e-6)
        limit = np.sort(normals)[math.ceil(0.99 * len(normals)) - 1]
        np.testing.assert_array_equal(column(table, "decision"), column(table, "score") > limit)


def test_the_scores_of_a_slide(bench: Bench) -> None:
    for row in rows(bench.out / "slides.csv"):
        table = tiles(bench.out, row["slide"])
        neg_log10_p = np.sort(column(table, "neg_log10_p"))[::-1]
        assert int(row["tiles"]) == len(table) == 70
        assert float(row["max"]) == pytest.approx(neg_log10_p[0])
        assert float(row["top_k"]) == pytest.approx(neg_log10_p[:10].mean())
        assert float(row["share"]) == pytest.approx(column(table, "decision").mean())
        assert Path(row["file"]).stem == row["slide"]
        assert row["model"] == "mean_color/mean_color"


def test_the_pictures_show_the_tiles_where_they_are(bench: Bench) -> None:
    folder = bench.out / UNICODE
    table = tiles(bench.out, UNICODE)
    expected = np.full((10, 13), np.nan, np.float32)
    for row in table:
        expected[int(row["y"]) // 64, int(row["x"]) // 64] = float(row["neg_log10_p"])
    with tifffile.TiffFile(folder / "heatmap.ome.tif") as file:
        np.testing.assert_allclose(file.asarray(), expected, rtol=1e-6)
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert pixels["PhysicalSizeX"] == 64
    with openslide.OpenSlide(str(folder / "heatmap.tif")) as slide:
        assert slide.dimensions == (13 * 16, 10 * 16)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(4)
        seen = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[8::16, 8::16, :3].astype(int).sum(2)
    assert (seen[np.isnan(expected)] == 3 * 255).all()
    assert seen[3:6, 5:10].min() > seen[1:3, 1:11].max()  # bright where the lesion is
    features = json.loads((folder / "tiles.geojson").read_text(encoding="utf-8"))["features"]
    assert len(features) == 70
    for row, feature in zip(table, features, strict=True):
        x, y = float(row["x"]), float(row["y"])
        assert feature["geometry"]["coordinates"] == [[[x, y], [x + 64, y], [x + 64, y + 64], [x, y + 64], [x, y]]]
        measured = feature["properties"]["measurements"]
        assert set(measured) == {"score", "p", "neg_log10_p"}
        assert measured["neg_log10_p"] == pytest.approx(float(row["neg_log10_p"]))
        assert ("classification" in feature["properties"]) == (row["decision"] == "1")
    assert sorted(file.name for file in folder.iterdir()) == [
        "heatmap.ome.tif", "heatmap.tif", "overlay.png", "slide.json", "tiles.csv", "tiles.geojson", "tissue.png",
    ]  # fmt: skip


@pytest.mark.usefixtures("bare")
def test_neither_workers_nor_other_slides_nor_an_interruption_change_anything(
    cli: Any, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone on one thread; and stopped after 64 of 70 tiles, then resumed: the same bytes."""
    expected = (bench.out / UNICODE / "tiles.csv").read_bytes()
    command = ("score-slide", bench.run, bench.slides[0], *OPTIONS)
    assert cli(*command, "--workers", 1, "--out", tmp_path / "alone").exit_code == 0
    assert (tmp_path / "alone" / UNICODE / "tiles.csv").read_bytes() == expected

    from gan_uad.scoring.mean_color import MeanColorScorer

    original, measured = MeanColorScorer.score_batch, []

    def stopping(self: Any, images: Any) -> Any:
        measured.append(len(images))
        if (tmp_path / "out" / UNICODE).exists() and len(measured) == stop_at:
            raise KeyboardInterrupt
        return original(self, images)

    monkeypatch.setattr(MeanColorScorer, "score_batch", stopping)
    normals = -(-len(rows(bench.out / "normals.csv")) // 64)
    stop_at = normals + 2
    assert cli(*command, "--out", tmp_path / "out").exit_code == 130
    kept = (tmp_path / "out" / UNICODE / ".tiles.jsonl").read_text().splitlines()
    assert len(kept) == 1 + 64
    stop_at = 0
    before = len(measured)
    assert cli(*command, "--out", tmp_path / "out").exit_code == 0
    assert len(measured) - before <= normals + 1  # the first 64 tiles are not scored again
    assert (tmp_path / "out" / UNICODE / "tiles.csv").read_bytes() == expected
    before = len(measured)
    assert cli(*command, "--out", tmp_path / "out").exit_code == 0
    assert len(measured) - before <= normals  # the slide is done


@pytest.mark.usefixtures("bare")
def test_bad_slides_stop_no_other(cli: Any, bench: Bench, tmp_path: Path) -> None:
    content = bench.slides[0].read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.svs").write_text("no slide")
    bad = [tmp_path / "cut.tif", tmp_path / "text.svs", tmp_path / "gone.svs"]
    glass = paint(tmp_path / "glass.tif", 0, tissue=False)
    coarse = paint(tmp_path / "coarse.tif", 0, mpp=2.0)
    twin = paint(tmp_path / "twin" / "b.tif", 50)
    good = [bench.slides[1], twin, glass]
    out = tmp_path / "out"
    result = cli("score-slide", bench.run, *bad, coarse, *good, *OPTIONS, "--out", out)
    fails(result, "4 slides", str(out), code=1)
    failed = [line for line in result.stderr.splitlines() if line.startswith("FAILED ")]
    assert len(failed) == 4
    for path, reason in zip((*bad, coarse), ("cut.tif", "text.svs", "gone.svs", "--mpp 2"), strict=True):
        assert any(str(path) in line and reason in line for line in failed), failed
    found = {row["file"]: row for row in rows(out / "slides.csv")}
    assert set(found) == {str(path) for path in good}
    assert found[str(glass)]["tiles"] == "0"
    assert [found[str(glass)][name] for name in ("max", "top_k", "share")] == ["", "", ""]
    assert any("glass: no tissue" in line for line in result.stderr.splitlines())
    names = {found[str(path)]["slide"] for path in good[:2]}
    assert len(names) == 2  # two slides of one name, each in a folder of its own
    assert all(name.startswith("b-") for name in names)


@pytest.mark.usefixtures("bare")
def test_slides_named_from_one_folder_are_evaluated_from_another(
    cli: Any, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Annotations lie in a subfolder with the name of the slides' folder, which a relative path does not contain."""
    folder = bench.slides[0].parent
    monkeypatch.chdir(folder)
    result = cli("score-slide", bench.run, "b.tif", "c.tif", *OPTIONS, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [row["file"] for row in rows(tmp_path / "out" / "slides.csv")] == [f"{folder}/b.tif", f"{folder}/c.tif"]
    shutil.copytree(bench.annotations, tmp_path / "notes" / folder.name)
    monkeypatch.chdir(tmp_path)
    result = cli("evaluate-slides", "out", "--annotations", "notes", "--resamples", 100)
    assert result.exit_code == 0, result.output
    assert "FROC 1.000" in result.stdout


@pytest.mark.usefixtures("bare")
def test_slides_join_a_folder_of_the_same_settings_alone(cli: Any, bench: Bench, tmp_path: Path) -> None:
    """In two calls, by shards; not with another tissue share."""
    out = tmp_path / "out"
    command = ("score-slide", bench.run, *bench.slides, "--out", out)
    for shard in ("1/2", "2/2"):
        assert cli(*command, *OPTIONS, "--shard", shard).exit_code == 0
    assert (out / "slides.csv").read_text() == (bench.out / "slides.csv").read_text()
    fails(cli(*command, "--mpp", 1, "--tissue", 0.6), str(out), "--out")
    (out / "score_slide.json").unlink()  # as if the slides.csv were another program's
    fails(cli(*command, *OPTIONS), str(out), "score_slide.json", "--out")


@pytest.mark.usefixtures("bare")
def test_normals_are_needed(cli: Any, bench: Bench, tmp_path: Path) -> None:
    slide = bench.slides[0]
    moved = Path(f"{bench.patches}-moved")
    os.rename(bench.patches, moved)
    try:
        missing = cli("score-slide", bench.run, slide, "--mpp", 1, "--out", tmp_path / "a")
        fails(missing, str(bench.patches), str(bench.run), "--normals DATA")
        few = tmp_path / "few"
        few.mkdir()
        for number, row in enumerate(rows(moved / "index.csv")[:9]):
            (few / f"{number}.png").write_bytes((moved / row["image"]).read_bytes())
        too_few = cli("score-slide", bench.run, slide, "--mpp", 1, "--normals", few, "--out", tmp_path / "a")
        fails(too_few, str(few), "10", "9", "--normals DATA")
        for number, row in enumerate(rows(moved / "index.csv")[9:30], 9):
            (few / f"{number}.png").write_bytes((moved / row["image"]).read_bytes())
        result = cli("score-slide", bench.run, slide, *OPTIONS, "--normals", few, "--out", tmp_path / "b")
        assert result.exit_code == 0, result.output
        assert len(rows(tmp_path / "b" / "normals.csv")) == 30  # a plain folder given as normal: all of it
    finally:
        os.rename(moved, bench.patches)
    fails(
        cli("score-slide", bench.run, slide, "--size", 32, "-o", "data.crop=center", "--out", tmp_path / "c"),
        "--size 32",
    )


@pytest.mark.usefixtures("bare")
def test_overlapping_tiles_and_stain(cli: Any, bench: Bench, tmp_path: Path) -> None:
    options = ("--mpp", 1, "--tissue", 0.9, "--stride", 0.5, "--stain", "reinhard", "--out", tmp_path)
    assert cli("score-slide", bench.run, bench.slides[1], *options).exit_code == 0
    table = tiles(tmp_path, "b")
    assert len(table) == 19 * 13
    heat = tifffile.imread(tmp_path / "b" / "heatmap.ome.tif")
    assert heat.shape == (19, 25)
    at = {(int(row["x"]), int(row["y"])): float(row["neg_log10_p"]) for row in table}
    assert heat[4, 5] == pytest.approx(np.mean([at[x, y] for x in (128, 160) for y in (96, 128)]), rel=1e-5)
    described = json.loads((tmp_path / "b" / "slide.json").read_text())
    assert described["stain"]["name"] == "reinhard"
    assert described["cut"]["stride"] == 0.5


def scored_by_hand(
    out: Path, slides: dict[str, Sequence[tuple[float, float, float]]], column: str = "neg_log10_p"
) -> Path:
    """A folder as `score-slide` writes it, of tiles (x, y, −log10 p) of 64 px at 1 µm; `column`: the name of the last in tiles.csv."""
    lines = ["slide,file,tiles,max,top_k,share,model"]
    for name, marks in slides.items():
        folder = out / name
        folder.mkdir(parents=True)
        top = max(neg_log10_p for *_, neg_log10_p in marks)
        about = {
            "key": "k",
            "identity": "i",
            "slide": name,
            "file": f"{name}.svs",
            "alone": True,
            "width": 9000,
            "height": 9000,
        }
        about |= {"mpp": 1.0, "tiles": len(marks), "max": top, "top_k": top, "share": 0.0, "model": "hand"}
        (folder / "slide.json").write_text(json.dumps(about))
        with open(folder / "tiles.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["slide", "x", "y", "side", column])
            writer.writerows([name, x, y, 64, neg_log10_p] for x, y, neg_log10_p in marks)
        lines.append(f"{name},{name}.svs,{len(marks)},{top},{top},0,hand")
    (out / "slides.csv").write_text("\n".join(lines) + "\n")
    return out


@pytest.mark.parametrize("column", ["neg_log10_p", "rarity"])
def test_froc_of_a_case_computed_by_hand(cli: Any, tmp_path: Path, column: str) -> None:
    """Also with a tiles.csv of version 0.1, whose column is called `rarity`.

    Two lesions on `t`, one of them missed, and isolated tumour cells there; one lesion on `u`; `n` and `m` are normal.

    Detections: 5.0 in t's lesion (the 4.5 beside it, 64 px away, is not another), 4.0 in the isolated cells (neither hit nor alarm),
    2.5 in u's lesion. Alarms, falling: 7 (u), 6 (n), 3 (t), 2 (m), 1 (n), on four slides. At 1/4 one alarm, the 7, is allowed, and
    nothing else scores above 6; at 1/2 two, and 5.0 is above the third; at 1 four, and 2.5 is above the 1 that would be the fifth.
    """
    hand = {
        "t": [(1000, 1000, 5.0), (1064, 1000, 4.5), (5000, 5000, 4.0), (8000, 100, 3.0)],
        "n": [(100, 100, 6.0), (3000, 3000, 1.0)],
        "m": [(100, 100, 2.0)],
        "u": [(4040, 40, 2.5), (100, 100, 7.0)],
    }
    out = scored_by_hand(tmp_path / "scores", hand, column)
    notes = tmp_path / "notes"
    asap(
        notes / "t.xml",
        *[
            ("Tumor", corners(box))
            for box in ((900, 900, 1400, 1300), (7000, 7000, 7500, 7500), (4990, 4990, 5080, 5080))
        ],
    )
    asap(notes / "u.xml", ("Tumor", corners((4000, 0, 4400, 400))))
    result = cli(
        "evaluate-slides",
        out,
        "--annotations",
        notes,
        "--unannotated",
        "normal",
        "--out",
        tmp_path / "figures",
        "--resamples",
        100,
    )
    assert result.exit_code == 0, result.output
    froc = json.loads((tmp_path / "figures" / "metrics.json").read_text())["hand"]["froc"]
    assert froc["lesions"] == 3
    assert froc["slides"] == 4
    expected = {"0.25": 0, "0.5": 1 / 3, "1.0": 2 / 3, "2.0": 2 / 3, "4.0": 2 / 3, "8.0": 2 / 3}
    assert froc["rates"] == pytest.approx(expected)
    assert froc["score"]["value"] == pytest.approx(np.mean(list(expected.values())))
    assert any(line.startswith("hand: 2 slides without an annotation") for line in result.stdout.splitlines())
    assert (tmp_path / "figures" / "froc.png").stat().st_size > 10_000


def test_metrics_of_the_scored_slides(cli: Any, bench: Bench, tmp_path: Path) -> None:
    result = cli(
        "evaluate-slides", bench.out, "--annotations", bench.annotations, "--out", tmp_path, "--resamples", 100
    )
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "metrics.json").read_text())["mean_color/mean_color"]
    assert metrics["slides"] == {"normal": 2, "anomalous": 2}
    for name in ("max", "top_k", "share"):
        assert metrics["scores"][name]["auroc"]["value"] == 1.0
        assert metrics["scores"][name]["auroc"]["n_units"] == 4
    tables = [tiles(bench.out, path.stem) for path in bench.slides]
    truth = np.concatenate([in_lesion(table) & (k < 2) for k, table in enumerate(tables)])
    beside = np.concatenate([near_lesion(table) & (k < 2) for k, table in enumerate(tables)])
    neg_log10_p = np.concatenate([column(table, "neg_log10_p") for table in tables])
    kept = truth | ~beside
    assert metrics["tiles"]["tiles"] == {"normal": int((kept & ~truth).sum()), "anomalous": 30}
    assert metrics["tiles"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth[kept], neg_log10_p[kept]))
    assert metrics["froc"]["lesions"] == 2
    assert metrics["froc"]["rates"]["0.25"] == 1.0
    assert "FROC 1.000" in result.stdout


def near_lesion(table: list[dict[str, str]]) -> np.ndarray:
    """Tiles that touch the lesion, even on their edge."""
    x, y = column(table, "x"), column(table, "y")
    return (x >= 320 - 64) & (x <= 640) & (y >= 192 - 64) & (y <= 384)


def test_labels_from_a_file(cli: Any, bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f"slide,label\n{UNICODE},tumor\nb.tif,1\nc,normal\n", encoding="utf-8")
    result = cli("evaluate-slides", bench.out, "--labels", file, "--out", tmp_path / "out", "--resamples", 100)
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["mean_color/mean_color"]
    assert metrics["slides"] == {"normal": 1, "anomalous": 2}
    assert "froc" not in metrics
    (left_out,) = [line for line in result.stdout.splitlines() if "1 slides have no label" in line]
    assert left_out.endswith(": d")
    fails(cli("evaluate-slides", bench.out), "--annotations DIR", "--labels FILE")
    for text, messages in (
        ("slide,label\nb,perhaps\n", ("line 2", "perhaps")),
        ("slide,label\nb,1\nb,0\n", ("line 3", "b")),
        ("name,label\nb,1\n", (str(file), "slide", "label")),
        ("slide,label\nx,1\n", (str(bench.out), "label")),
        ("slide,label\nb,1\n", (str(bench.out), "0 normal and 1 anomalous", "--labels FILE")),
    ):
        file.write_text(text)
        fails(cli("evaluate-slides", bench.out, "--labels", file), *messages)
    fails(cli("evaluate-slides", bench.out, "--labels", file, "--threshold", "fpr:0.1"), "--threshold")


def test_labels_and_annotations_that_contradict_each_other(cli: Any, bench: Bench, tmp_path: Path) -> None:
    """Otherwise tiles would count as normal on a slide with tumour that is not annotated."""
    file = tmp_path / "labels.csv"
    for text, messages in (
        ("b,0\nd,0", ("b is labelled normal",)),
        ("b,1\nc,1", ("c is labelled anomalous",)),
    ):
        file.write_text(f"slide,label\n{text}\n")
        result = cli(
            "evaluate-slides", bench.out, "--labels", file, "--annotations", bench.annotations, "--out", tmp_path
        )
        fails(result, *messages, str(bench.annotations))


def test_an_anomalous_slide_without_annotation_is_left_out_of_metrics_of_tiles(cli: Any, tmp_path: Path) -> None:
    """Its one tile, 9, may be of tumour: as a normal one it would make the tiles' AUROC 0.75, and as an alarm hide the lesion."""
    hand = {
        "t": [(1000, 1000, 5.0)],
        "u": [(100, 100, 9.0)],
        "n": [(100, 100, 1.0)],
        "m": [(100, 100, 2.0), (900, 900, 3.0)],
    }
    out, labels_file = scored_by_hand(tmp_path / "scores", hand), tmp_path / "labels.csv"
    labels_file.write_text("slide,label\nt,1\nu,1\nn,0\nm,0\n")
    asap(tmp_path / "notes" / "t.xml", ("Tumor", corners((900, 900, 1400, 1300))))
    options = ("--labels", labels_file, "--annotations", tmp_path / "notes", "--resamples", 100)
    result = cli("evaluate-slides", out, *options, "--out", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "figures" / "metrics.json").read_text())["hand"]
    assert metrics["slides"] == {"normal": 2, "anomalous": 2}
    assert metrics["tiles"]["tiles"] == {"normal": 3, "anomalous": 1}
    assert metrics["tiles"]["auroc"]["value"] == 1.0
    assert (metrics["froc"]["slides"], metrics["froc"]["lesions"]) == (3, 1)
    assert metrics["froc"]["rates"]["0.25"] == 1.0
    assert any(line.startswith("hand: 1 anomalous slides") for line in result.stdout.splitlines())


def test_tumour_without_an_area_never_makes_a_slide_normal(cli: Any, tmp_path: Path) -> None:
    hand = {"t": [(1000, 1000, 5.0)], "u": [(100, 100, 9.0)], "n": [(100, 100, 1.0)], "m": [(100, 100, 2.0)]}
    out, notes = scored_by_hand(tmp_path / "scores", hand), tmp_path / "notes"
    asap(notes / "t.xml", ("Tumor", corners((900, 900, 1400, 1300))))
    asap(notes / "u.xml", ("Tumor", [(100.0, 100.0)]), kind="Dot")
    asap(notes / "other.xml", ("Tumor", corners((0, 0, 9, 9))))
    options = ("--annotations", notes, "--unannotated", "normal", "--resamples", 100)
    fails(cli("evaluate-slides", out, *options, "--strict", "--out", tmp_path / "f"), "--strict", code=1)
    result = cli("evaluate-slides", out, *options, "--out", tmp_path / "f")
    assert result.exit_code == 0, result.output
    assert "4 slides: 2 annotated, 2 not; 1 annotation files unused" in result.stderr
    assert "other.xml" in result.stderr
    assert "u.xml" in result.stdout
    metrics = json.loads((tmp_path / "f" / "metrics.json").read_text())["hand"]
    assert metrics["slides"] == {"normal": 2, "anomalous": 1}
    assert metrics["tiles"]["tiles"] == {"normal": 2, "anomalous": 1}
    assert metrics["froc"]["slides"] == 3
    (tmp_path / "labels.csv").write_text("slide,label\nt,1\nu,1\nn,0\nm,0\n")
    result = cli("evaluate-slides", out, *options, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "f")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "f" / "metrics.json").read_text())["hand"]
    assert metrics["slides"] == {"normal": 2, "anomalous": 2}
    assert metrics["tiles"]["tiles"] == {"normal": 2, "anomalous": 1}
    (tmp_path / "labels.csv").write_text("slide,label\nt,1\nu,0\nn,0\nm,0\n")
    fails(cli("evaluate-slides", out, *options, "--labels", tmp_path / "labels.csv"), "u is labelled normal")


def test_an_annotation_of_another_slide(cli: Any, bench: Bench, tmp_path: Path) -> None:
    asap(tmp_path / "b.xml", ("_0", corners((700, 500, 3000, 900))))
    fails(cli("evaluate-slides", bench.out, "--annotations", tmp_path), str(tmp_path / "b.xml"), "b.tif")
    fails(cli("evaluate-slides", bench.out, "--annotations", tmp_path / "none"), f"--annotations {tmp_path / 'none'}")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the overlay, which most of a small slide's time goes into."""
    monkeypatch.setattr("gan_uad.slides.score_slide.overlay", lambda *_: None)


def test_the_demo_of_slides(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """End to end: the tumour of a phantom slide is found, and its tiles rank above the normal ones beside them."""
    monkeypatch.setattr("gan_uad.slides.tile_slide._write_sheet", lambda *_: None)
    monkeypatch.setattr("gan_uad.slides.score_slide.overlay", lambda *a: overlay(*a) if "test_0" in str(a[3]) else None)
    out = tmp_path / "demo"
    result = cli("demo-slides", "--quick", "--out", out)
    assert result.exit_code == 0, result.output
    results = json.loads((out / "result.json").read_text())
    assert results["froc"] == 1.0
    table = tiles(out / "scores", "test_0")
    x, y = (column(table, name).astype(np.int64) for name in "xy")
    label = labels(read_annotations(out / "test" / "test_0.xml"), x, y, 64, 0.5)
    assert (label == 1).sum() >= 5
    assert roc_auc_score(label[label >= 0], column(table, "neg_log10_p")[label >= 0]) > 0.9
    assert f"{results['tile_auroc']:.3f}  AUROC of tiles" in result.stdout
    assert (out / "scores" / "test_0" / "overlay.png").is_file()
    fails(cli("demo-slides", "--out", out), "quick True, not False", "--out")


@pytest.mark.usefixtures("bare")
def test_normals_are_preprocessed_as_the_tiles_are(cli: Any, bench: Bench, tmp_path: Path) -> None:
    """`-o data.*` changes the tiles and the run's own normals alike, and gives another calibration."""
    command, out = ("score-slide", bench.run, bench.slides[2], *OPTIONS), tmp_path / "grey"
    assert cli(*command, "-o", "data.grayscale=true", "--out", out).exit_code == 0
    grey = column(tiles(out, "c"), "neg_log10_p")
    assert np.median(grey) < 1  # a normal slide, against normals in grey
    fails(cli(*command, "--out", out), str(out), "--out")


@pytest.mark.usefixtures("bare")
def test_normals_that_were_cut_with_other_settings_are_refused(cli: Any, bench: Bench, tmp_path: Path) -> None:
    normal = paint(tmp_path / "normal.tif", 60)
    cut = ("tile", normal, "--size", 64, "--mpp", 1, "--tissue", 0.5, "--grid", "--unannotated", "normal")
    assert cli(*cut, "--out", tmp_path / "normals").exit_code == 0
    command = ("score-slide", bench.run, bench.slides[2], "--normals", tmp_path / "normals", "--out", tmp_path / "out")
    for options, message in (
        (("--mpp", 2), "--mpp 1.0"), ((*OPTIONS, "--size", 32), "--size 64"), ((*OPTIONS, "--stain", "macenko"), "--stain none"),
    ):  # fmt: skip
        fails(cli(*command, *options), message)
    result = cli(*command, "--mpp", 1, "--tissue", 0.6)
    assert result.exit_code == 0, result.output
    assert "--tissue 0.5, not 0.6" in result.stderr
