"""`data check` finds every kind of problem, and none in a sound set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from patch_tools import picture, png, write
from PIL import Image
from score_tools import fails

from gan_uad.config import DataConfig
from gan_uad.data.check import data_check
from gan_uad.data.layouts import PUT_NORMALS

ROWS = [("a", "p1", 0, "train"), ("b", "p2", 0, "val"), ("c", "p3", 0, "test"), ("d", "p4", 1, "test")]


def make(root: Path, rows: list[tuple[str, str, int, str]]) -> Path:
    write(root, [f"{name}.png" for name, *_ in rows])
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
    assert "PROBLEM" not in text
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
    assert (code, found["broken"][0][0]) == (1, "e.png")


def test_equal_pixels_in_two_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "set", [*ROWS, ("e", "p5", 0, "test"), ("f", "p4", 1, "test")])
    Image.open(root / "d.png").save(root / "f.png")
    code, found = check(root, capsys)
    assert (code, found["duplicates"], found["duplicates_across_splits"]) == (0, 1, [])
    Image.open(root / "a.png").save(root / "e.png", compress_level=0)  # another file of the same image
    code, found = check(root, capsys)
    assert (code, found["duplicates"], found["duplicates_across_splits"]) == (1, 2, [["a.png", "e.png"]])


@pytest.mark.parametrize(
    ("lost", "label", "split"), [(0, "normal", "train"), (2, "normal", "test"), (3, "anomalous", "test")]
)
def test_a_missing_class(tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: int, label: str, split: str) -> None:
    code, found = check(make(tmp_path / "set", ROWS[:lost] + ROWS[lost + 1 :]), capsys)
    assert code == 1
    assert [p for p in found["problems"] if f" {label} " in p and split in p]


def test_a_plain_folder_can_be_fixed_as_advised(cli: Any, tmp_path: Path) -> None:
    write(tmp_path / "mucosa", {f"{k}.png": png(picture(k, 32, 32)) for k in range(10)})
    result = cli("data", "check", tmp_path / "mucosa")
    assert result.exit_code == 1
    assert PUT_NORMALS in result.stdout
    fails(cli("train", "mean_color", "--data", tmp_path / "mucosa", "--out", tmp_path / "runs"), PUT_NORMALS)
    (tmp_path / "set").mkdir()
    (tmp_path / "mucosa").rename(tmp_path / "set" / "normal")
    result = cli("train", "mean_color", "--data", tmp_path / "set", "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.output


def test_data_check_reports_problems_by_its_exit_code(cli: Any, trained: Any, tmp_path: Path) -> None:
    sound = cli("data", "check", trained.patches, "--resolution", 32, "--json")
    assert sound.exit_code == 0
    assert json.loads(sound.stdout)["ok"] is True
    write(tmp_path / "set", [f"normal/{k}.png" for k in range(6)])
    problems = cli("data", "check", tmp_path / "set")
    assert problems.exit_code == 1
    assert "PROBLEM: no anomalous image in test" in problems.stdout
    for arguments, named in (
        ((tmp_path / "nothing",), str(tmp_path / "nothing")),
        ((tmp_path / "set", "-o", "data.corp=center"), "'crop'"),
        ((tmp_path / "set", "-o", "training.batch=3"), "-o training.batch=3"),
    ):
        fails(cli("data", "check", *arguments), named)
