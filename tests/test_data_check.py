"""`data check`: every kind of trouble is found, and nothing is found where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gan_uad.config import DataConfig
from gan_uad.data.check import data_check

ROWS = [("a", "p1", 0, "train"), ("b", "p2", 0, "val"), ("c", "p3", 0, "test"), ("d", "p4", 1, "test")]


def make(root: Path, rows: list[tuple[str, str, int, str]]) -> Path:
    root.mkdir()
    for k, (name, *_) in enumerate(rows):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / f"{name}.png")
    lines = [f"{name}.png,{group},{label},{split}" for name, group, label, split in rows]
    (root / "index.csv").write_text("\n".join(["image,group,label,split", *lines]))
    return root


def check(
    root: Path, capsys: pytest.CaptureFixture[str], resolution: int = 8, **settings: Any
) -> tuple[int, dict[str, Any]]:
    code = data_check(root, DataConfig(**settings), resolution, as_json=True)
    return code, json.loads(capsys.readouterr().out)


def test_a_sound_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "set", ROWS)
    code, found = check(root, capsys)
    assert (code, found["ok"], found["problems"], found["images"]) == (0, True, [], 4)
    assert found["counts"] == {"train": {"normal": 1}, "val": {"normal": 1}, "test": {"normal": 1, "anomalous": 1}}
    assert found["groups"] == {"train": 1, "val": 1, "test": 2}
    assert found["sizes"] == {"8x8 RGB": 4}
    assert data_check(root, DataConfig(), 8, out=tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "4 images, read as index.csv" in text
    assert "no problems found" in text
    for name in ("class_samples.png", "class_balance.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert min(image.size) > 8


def test_a_group_on_two_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = check(make(tmp_path / "set", [*ROWS, ("e", "p1", 1, "test")]), capsys)
    assert code == 1
    assert found["groups_on_two_sides"] == {"p1": ["test", "train"]}


def test_broken_and_too_small_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "set", [*ROWS, ("e", "p5", 1, "test")])
    (root / "e.png").write_bytes((root / "e.png").read_bytes()[:50])
    code, found = check(root, capsys)
    assert (code, [name for name, _ in found["broken"]]) == (1, ["e.png"])
    Image.new("L", (4, 4)).save(root / "e.png")
    assert check(root, capsys)[0] == 0
    code, found = check(root, capsys, crop="center")
    assert code == 1
    assert "smaller than the centre crop" in found["broken"][0][1]


def test_equal_pixels_in_two_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "set", [*ROWS, ("e", "p5", 0, "test"), ("f", "p4", 1, "test")])
    Image.open(root / "d.png").save(root / "f.png")
    code, found = check(root, capsys)
    assert (code, found["duplicates"], found["duplicates_across_splits"]) == (0, 1, [])
    Image.open(root / "a.png").save(root / "e.png", compress_level=0)  # another file of the same picture
    code, found = check(root, capsys)
    assert (code, found["duplicates"], found["duplicates_across_splits"]) == (1, 2, [["a.png", "e.png"]])


@pytest.mark.parametrize(
    ("lost", "problem"),
    [(0, "no normal image in train"), (2, "no normal image in test"), (3, "no anomalous image in test")],
)
def test_a_missing_class(tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: int, problem: str) -> None:
    code, found = check(make(tmp_path / "set", ROWS[:lost] + ROWS[lost + 1 :]), capsys)
    assert code == 1
    assert [p for p in found["problems"] if problem in p]


def test_a_plain_folder_is_told_what_to_do(cli: Any, tmp_path: Path) -> None:
    for seed in range(10):
        save(tmp_path / "mucosa", f"{seed}.png", seed)
    result = cli("data", "check", tmp_path / "mucosa")
    assert result.exit_code == 1
    remedy = "if all of them are normal, put them into a folder `normal`, and name the folder around it"
    assert f"no normal image in train: there is nothing to learn normal tissue from; {remedy}" in result.output
    result = cli("train", "mean_color", "--data", tmp_path / "mucosa", "--out", tmp_path / "runs")
    assert (result.exit_code, "no normal image in the train split; " + remedy in result.output) == (2, True)
    (tmp_path / "set").mkdir()
    (tmp_path / "mucosa").rename(tmp_path / "set" / "normal")
    result = cli("train", "mean_color", "--data", tmp_path / "set", "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.output


def save(folder: Path, name: str, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)


def test_data_check_says_by_its_exit_code_whether_a_set_is_sound(cli: Any, trained: Any, tmp_path: Path) -> None:
    sound = cli("data", "check", trained.patches, "--resolution", 32, "--json")
    assert sound.exit_code == 0
    assert json.loads(sound.stdout)["ok"] is True
    for seed in range(6):
        save(tmp_path / "set" / "normal", f"{seed}.png", seed)
    lacking = cli("data", "check", tmp_path / "set", "--resolution", 32)
    assert lacking.exit_code == 1
    assert "no anomalous image in test" in lacking.stdout
    for arguments, message in (
        ((tmp_path / "nothing",), "no such file or folder"),
        ((tmp_path / "set", "-o", "data.corp=center"), "did you mean 'crop'"),
        ((tmp_path / "set", "-o", "training.batch=3"), "only data.* settings"),
    ):
        result = cli("data", "check", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.output
