"""The µm/px of patches, models and tiles: kept, shown, and never mixed in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from score_tools import fails, rows
from slide_tools import write_slide

import gan_uad
from gan_uad.checkpoint import content, read_model
from gan_uad.config import DataConfig, trained_models
from gan_uad.data.scale import Scale, scale_of
from gan_uad.errors import UserError
from gan_uad.slides.score_slides import limit_in_words

NAN = float("nan")


@pytest.mark.parametrize(
    ("stated", "told", "expected"),
    [
        ([NAN, NAN], None, None),
        ([NAN, NAN], 0.5, 0.5),
        ([0.5, 0.5], None, 0.5),
        ([0.5, NAN], None, 0.5),
        ([0.499, 0.5, 0.5], None, 0.5),
        ([0.5], 0.502, 0.5),
        ([0.25, 0.5], 0.25, 0.25),
        ([0.25, 0.5], None, "0.25 to 0.5"),
        ([0.5], 0.25, "data.mpp"),
    ],
)
def test_the_scale_of_a_set(stated: list[float], told: float | None, expected: Any) -> None:
    def found() -> float | None:
        return scale_of(np.array(stated), {"96x96": len(stated)}, DataConfig(mpp=told), "set").mpp

    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            found()
    else:
        assert found() == expected


@pytest.mark.parametrize(
    ("settings", "side", "expected"),
    [
        ({}, 96, 0.972 * 96 / 64),  # all of it, resized
        ({}, 64, 0.972),
        ({}, None, None),
        ({"crop": "center"}, 96, 0.972),
        ({"crop": "center", "crop_size": 32}, 96, 0.972 / 2),
        ({"crop": "center"}, None, 0.972),
    ],
)
def test_what_a_network_of_64_px_sees(settings: dict[str, Any], side: int | None, expected: float | None) -> None:
    assert Scale(0.972, side).seen(DataConfig(**settings), 64) == (expected and pytest.approx(expected))
    assert Scale(None, side).seen(DataConfig(**settings), 64) is None


def test_shipped_models_know_their_scale() -> None:
    for name in trained_models():
        model = gan_uad.load(name)
        assert model.scale.mpp == 0.972
        assert model.scale.seen(model.config.data, model.resolution) == pytest.approx(0.972)


def patches(folder: Path, mpp: str = "0.5", side: int = 32, count: int = 36) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for k in range(count):
        pixels = np.clip(np.array([190, 90, 160]) + rng.integers(-30, 31, (side, side, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        lines.append(f"{k}.png,s{k},0,{('train', 'train', 'val')[k % 3]},{mpp}")
    (folder / "index.csv").write_text("\n".join(["image,group,label,split,mpp", *lines]) + "\n")
    return folder


def train(cli: Any, data: Path, out: Path, *more: str) -> Path:
    options = [word for setting in ("resolution=16", *more) for word in ("-o", setting)]
    result = cli("train", "mean_color", "--data", data, "--out", out, *options)
    assert result.exit_code == 0, result.output
    return Path(result.stdout.split()[-1]) if result.stdout.strip() else next(out.iterdir())


def test_score_slide_cuts_tiles_of_the_scale_and_side_of_the_patches(cli: Any, tmp_path: Path) -> None:
    run = train(cli, patches(tmp_path / "p"), tmp_path / "runs")
    assert read_model(run / "model.safetensors")[0]["patches"] == {"mpp": 0.5, "side": 32}
    slide = write_slide(tmp_path / "s.tif", 256, 256, [(0, 0, 256, 256)], mpp=0.5)
    words = ("score-slide", run, slide, "--tissue", 0)
    result = cli(*words, "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert "32 px at 0.5 µm/px" in result.stderr
    cut = json.loads((tmp_path / "a" / "s" / "slide.json").read_text())["cut"]
    assert (cut["mpp"], cut["size"]) == (0.5, 32)
    assert len(rows(tmp_path / "a" / "s" / "tiles.csv")) == 64
    for other in (("--mpp", 1), ("--size", 16), ("--mpp", 0.6)):
        fails(cli(*words, *other, "--out", tmp_path / "b"), "--other-mpp")
    assert not (tmp_path / "b").exists()
    # The same scale by other numbers, and less than 10 % beside it.
    for same in (("--mpp", 1, "--size", 16), ("--mpp", 0.52)):
        result = cli(*words, *same, "--out", tmp_path / f"c{same[1]}")
        assert result.exit_code == 0, result.output


def test_another_scale_can_be_asked_for_but_normals_must_have_it(cli: Any, tmp_path: Path) -> None:
    run = train(cli, patches(tmp_path / "p"), tmp_path / "runs")
    slide = write_slide(tmp_path / "s.tif", 256, 256, [(0, 0, 256, 256)], mpp=0.5)
    words = ("score-slide", run, slide, "--tissue", 0, "--mpp", 1, "--other-mpp", "--out", tmp_path / "a")
    fails(cli(*words), str(tmp_path / "p"), "--normals")
    result = cli(*words, "--normals", patches(tmp_path / "q", mpp="1.0"))
    assert result.exit_code == 0, result.output
    assert "not the model's" in result.stderr


def test_scores_of_patches_of_another_scale_are_warned_of(cli: Any, tmp_path: Path) -> None:
    run = train(cli, patches(tmp_path / "p"), tmp_path / "runs")
    assert "0.5 µm/px" in cli("data", "check", tmp_path / "p").stdout
    for mpp, warned in (("0.25", True), ("0.51", False), ("", False)):
        out = tmp_path / f"s{mpp}"
        result = cli("score", run, patches(tmp_path / f"q{mpp}", mpp=mpp, count=33), "--split", "all", "--out", out)
        assert result.exit_code == 0, result.output
        warnings = json.loads((out / "scores.json").read_text())["warnings"]
        assert any("µm/px" in warning for warning in warnings) == warned


def test_an_unknown_scale_is_asked_for(cli: Any, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "s.tif", 256, 256, [(0, 0, 256, 256)], mpp=0.5)
    unknown = train(cli, patches(tmp_path / "p", mpp=""), tmp_path / "runs")
    words = (slide, "--tissue", 0, "--out", tmp_path / "a")
    fails(cli("score-slide", unknown, *words), str(unknown), "--mpp")
    assert cli("score-slide", unknown, *words, "--mpp", 0.5, "--size", 32).exit_code == 0
    told = train(cli, tmp_path / "p", tmp_path / "told", "data.mpp=0.5")
    assert cli("score-slide", told, slide, "--tissue", 0, "--out", tmp_path / "b").exit_code == 0
    assert json.loads((tmp_path / "b" / "s" / "slide.json").read_text())["cut"]["mpp"] == 0.5


def test_patches_of_two_scales_are_refused(cli: Any, tmp_path: Path) -> None:
    data = patches(tmp_path / "p")
    text = (data / "index.csv").read_text()
    (data / "index.csv").write_text(text.replace("0.5\n", "0.25\n", 5))
    fails(cli("train", "mean_color", "--data", data, "--out", tmp_path / "runs", "-o", "resolution=16"), "data.mpp")
    checked = cli("data", "check", data)
    assert checked.exit_code == 1
    assert "data.mpp" in checked.stdout
    (data / "index.csv").write_text(text.replace("0.5\n", "-1\n", 1))
    fails(cli("data", "check", data), "line 2", "mpp")


def test_a_model_to_start_from_has_the_same_scale(cli: Any, tmp_path: Path) -> None:
    one, other = patches(tmp_path / "p"), patches(tmp_path / "q", mpp="1.0")
    small = [
        word
        for setting in ("resolution=32", "training.total_kimg=0.008", "training.batch=4")
        for word in ("-o", setting)
    ]
    first = cli("train", "conv_vae_64", "--data", one, "--out", tmp_path / "runs", *small)
    assert first.exit_code == 0, first.output
    run = next((tmp_path / "runs").iterdir())
    start = ("-o", f"init_from={run}")
    again = cli("train", "conv_vae_64", "--data", other, "--out", tmp_path / "more", *small, *start)
    fails(again, str(run), str(other))


@pytest.mark.parametrize(("n", "named"), [(1, "highest"), (20, "highest"), (98, "highest"), (99, "99%"), (1000, "99%")])
def test_a_limit_that_few_normals_cannot_give_is_named_for_what_it_is(n: int, named: str) -> None:
    assert named in limit_in_words(n)
    assert f"{n:,}" in limit_in_words(n)


def test_tiles_and_patches_are_decided_by_one_rule(cli: Any, tmp_path: Path) -> None:
    """The tiles of a slide, scored as patches, get the decisions of `tiles.csv`."""
    data = patches(tmp_path / "p", count=90)
    run = train(cli, data, tmp_path / "runs")
    slide = write_slide(tmp_path / "s.tif", 256, 256, [(0, 0, 256, 256)], mpp=0.5, seed=4)
    tiles = tmp_path / "tiles"
    cut = ("--size", 32, "--mpp", 0.5, "--tissue", 0, "--grid", "--out", tiles)
    assert cli("tile", slide, *cut).exit_code == 0
    for rule, decided in (("fpr:0.05", True), ("fpr:0.01", False), ("quantile:0.5", True)):
        scored, slides = tmp_path / f"a{rule[4:]}", tmp_path / f"b{rule[4:]}"
        words = ("--threshold", rule, "--out")
        result = cli("score-slide", run, slide, "--tissue", 0, *words, slides)
        assert result.exit_code == 0, result.output
        assert ("quantile:0.99" in result.stderr) == (not decided)
        assert "30 calibration normals" in result.stderr
        assert cli("score", run, tiles, "--split", "all", *words, scored).exit_code == 0
        of_tiles = {(row["x"], row["y"]): row["decision"] for row in rows(slides / "s" / "tiles.csv")}
        places = {row["image"]: (row["x"], row["y"]) for row in rows(tiles / "index.csv")}
        of_patches = {places[row["image"]]: row["decision"] for row in rows(scored / "scores.csv")}
        assert of_tiles == of_patches
        assert set(of_tiles.values()) <= ({"0", "1"} if decided else {""})


def test_the_scale_of_a_model_file_changes_no_key_of_results(tmp_path: Path) -> None:
    file, older = trained_models()["pcam_densenet_64_small"], tmp_path / "old.safetensors"
    _, tensors = read_model(file)
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["gan_uad"])
    save_file(tensors, older, metadata={"gan_uad": json.dumps({k: v for k, v in about.items() if k != "patches"})})
    assert content(file) == content(older) == older.read_bytes() != file.read_bytes()
    (tmp_path / "x").write_bytes(b"nothing")
    assert content(tmp_path / "x") == b"nothing"
