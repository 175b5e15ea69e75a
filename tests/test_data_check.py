"""`data check` finds every kind of problem, and none in a sound set."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patch_tools import load, picture, png, refused, write
from PIL import Image
from score_tools import fails

from gan_uad.config import DataConfig
from gan_uad.data.check import data_check
from gan_uad.data.layouts import PUT_NORMALS
from gan_uad.data.sources import open_source
from gan_uad.errors import UserError

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


@pytest.mark.parametrize(("lost", "label", "split"), [(0, "normal", "train"), (2, "normal", "test")])
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


SPLIT_CLASSES = (("train", "normal"), ("train", "tumour"), ("val", "normal"), ("test", "normal"))


def test_data_check_reports_problems_by_its_exit_code(cli: Any, trained: Any, tmp_path: Path) -> None:
    sound = cli("data", "check", trained.patches, "--resolution", 32, "--json")
    assert sound.exit_code == 0
    assert json.loads(sound.stdout)["ok"] is True
    write(tmp_path / "set", [f"normal/{k}.png" for k in range(6)])
    normals = cli("data", "check", tmp_path / "set")  # enough to train on
    assert normals.exit_code == 0
    assert "note: no anomalous image" in normals.stdout
    write(tmp_path / "torn", [f"{split}/{name}/{split}{k}.png" for split, name in SPLIT_CLASSES for k in range(6)])
    problems = cli("data", "check", tmp_path / "torn")
    assert problems.exit_code == 1
    assert "PROBLEM: no anomalous image in test" in problems.stdout
    for arguments, named in (
        ((tmp_path / "nothing",), str(tmp_path / "nothing")),
        ((tmp_path / "set", "-o", "data.corp=center"), "'crop'"),
        ((tmp_path / "set", "-o", "training.batch=3"), "-o training.batch=3"),
    ):
        fails(cli("data", "check", *arguments), named)


def odd(root: Path) -> tuple[list[str], list[socket.socket]]:
    """What is named like an image and is none: the names, and what must stay open."""
    (root / "normal" / "annexed.png").symlink_to("/nowhere/x.png")
    (root / "normal" / "loop.png").symlink_to("loop.png")
    os.mkfifo(root / "normal" / "pipe.png")
    (root / "normal" / "folder.png").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    here = os.open(root / "normal", os.O_RDONLY)
    listening.bind(f"/proc/self/fd/{here}/socket.png")  # the path of a socket is at most 107 bytes
    os.close(here)
    return [f"normal/{name}.png" for name in ("annexed", "folder", "loop", "pipe", "socket")], [listening]


def test_what_is_no_file_is_skipped_and_listed_by_every_command(tmp_path: Path, cli: Any) -> None:
    names = [f"normal/{k}.png" for k in range(12)] + [f"tumour/{k}.png" for k in range(6)]
    root = write(tmp_path / "set", names)
    names, listening = odd(root)
    report = json.loads(cli("data", "check", root, "--json").stdout)
    assert [name for name, _ in report["broken"]] == names
    assert not report["ok"]
    result = cli("train", "knn", "--data", root, "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    assert f"{len(names)} broken images skipped" in result.output
    (run,) = (tmp_path / "runs").iterdir()
    result = cli("score", run, "--out", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    assert [name for name, _ in json.loads((tmp_path / "scores" / "scores.json").read_text())["skipped"]] == names
    for one in listening:
        one.close()


@pytest.mark.parametrize("name", ["a.zip", "a.npz", "a_x.h5"])
def test_a_pipe_is_no_archive(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with refused(name, "pipe"):
        open_source(tmp_path / name, DataConfig())


def test_what_is_left_out_is_counted_by_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "set", ROWS)
    write(
        root,
        {
            **{f"{k}.gif": b"" for k in range(3)},
            "a.JFIF": b"",
            "b.jp2": b"",
            "c.heic": b"",
            "inner.zip": b"",
            "notes.txt": b"",
        },
    )
    thumbnails = ["@eaDir/a.png/THUMB_M.png", ".thumbnails/b.png", "__MACOSX/c.png", ".hidden.png"]
    write(root, thumbnails)
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
    for place in (root, packed):
        code, found = check(place, capsys)
        assert (code, found["images"]) == (0, 4)
        (note,) = [note for note in found["notes"] if ".gif" in note]
        for word in ("3 .gif", "1 .jfif", "1 .jp2", "1 .heic", "1 .zip"):
            assert word in note
        assert ".txt" not in note
        assert any(note.startswith("4 hidden") for note in found["notes"])
    with refused("2 .gif", str(tmp_path / "gifs")):
        open_source(write(tmp_path / "gifs", {"a.gif": b"", "b.gif": b""}), DataConfig())


MASKS = {
    "sound": (png(np.pad(np.full((4, 4), 255, np.uint8), ((0, 4), (0, 4)))), ""),
    "size": (png(np.zeros((8, 6), np.uint8)), "6x8 px"),
    "classes": (png(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4), "map of classes"),
    "broken": (b"\x89PNG", "PNG"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_opened(tmp_path: Path, cli: Any, kind: str) -> None:
    """What `score --maps` refuses or leaves out is a problem here."""
    root, (content, named) = make(tmp_path / "set", ROWS), MASKS[kind]
    write(root, {"m.png": content})
    lines = [f"{name}.png,{group},{label},{split},{'m.png' if label else ''}" for name, group, label, split in ROWS]
    (root / "index.csv").write_text("\n".join(["image,group,label,split,mask", *lines]))
    result = cli("data", "check", root, "--json", "--resolution", 8)
    found = json.loads(result.stdout)
    assert result.exit_code == int(bool(named))
    assert [name for name, _ in found["masks"]] == ["m.png"] * bool(named)
    if named:
        assert named in found["masks"][0][1]
        assert any("1 mask" in problem for problem in found["problems"])
        with pytest.raises(UserError):
            load(root, tmp_path).masks()


def test_missing_masks_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ROWS, ("e", "p5", 1, "test"), ("f", "p6", 1, "test")]
    root = make(tmp_path / "set", rows)
    write(root, {"m.png": MASKS["sound"][0]})
    lines = [f"{n}.png,{g},{label},{split},{'m.png' if n == 'd' else ''}" for n, g, label, split in rows]
    (root / "index.csv").write_text("\n".join(["image,group,label,split,mask", *lines]))
    code, found = check(root, capsys)
    assert code == 0
    assert any("2 of 3 anomalous test images have no mask" in note for note in found["notes"])


def grey(value: int) -> bytes:
    return png(np.full((8, 8, 3), value, np.uint8))


def noise(folders: str, n: int = 9, **last: Any) -> dict[str, bytes]:
    """n images in each of the folders, all different; `last`: other sizes of the last of each."""
    sizes = [{} for _ in range(n - 1)] + [last]
    names = [(folder, k) for folder in folders.split() for k in range(n)]
    return {f"{folder}/{k}.png": png(picture(seed, **sizes[k])) for seed, (folder, k) in enumerate(names)}


def plain(folders: str, value: Any) -> dict[str, bytes]:
    return {f"{folder}/{k}.png": grey(value(folder, k)) for folder in folders.split() for k in range(60)}


ODD: dict[str, tuple[dict[str, bytes], dict[str, Any]]] = {
    "sound": (noise("normal tumour", 12), {}),
    "broken": (noise("good bad") | {"good/x.png": b"", "bad/x.png": b"\x89PNG"}, {}),
    "equal in two splits": (noise("train/good val/good test/good test/bad") | {"test/good/1.png": png(picture(1))}, {}),
    "white": (plain("good tumour", lambda folder, k: 250 if folder == "good" else k), {"min_tissue": 0.5}),
    "some white": (plain("good tumour", lambda folder, k: 250 - k), {"min_tissue": 0.5}),
    "normals alone": (noise("normal"), {}),
    "no test": (noise("train/good train/bad val/good val/bad"), {}),
    "tumours in test alone": (noise("train/good test/bad"), {}),
    "anomalies in train alone": (noise("train/bad test/good"), {}),
    "no label": ({f"{k}.png": png(picture(k)) for k in range(12)}, {}),
    "number classes": (noise("0 1"), {}),
    "several sizes": (noise("good bad", width=12), {}),
    "too small to crop": (noise("good bad", width=6), {"crop": "center"}),
    "too few contaminants": (noise("good") | noise("bad", 2), {"contamination": 0.4}),
    "other label": (noise("good bad"), {"label": "anomalous"}),
}


@pytest.mark.parametrize("name", ODD)
def test_data_check_and_train_judge_by_the_same_code(cli: Any, tmp_path: Path, name: str) -> None:
    """What one refuses the other does, what train says data check says too, and without a problem train warns of nothing."""
    contents, settings = ODD[name]
    root = write(tmp_path / "set", contents)
    words = [word for key, value in settings.items() for word in ("-o", f"data.{key}={value}")]
    checked = cli("data", "check", root, "--resolution", 8, "--json", *words)
    trained = cli("train", "mean_color", "--data", root, "-o", "resolution=8", "--out", tmp_path / "runs", *words)
    if checked.exit_code == 2:  # it cannot be read at all
        assert trained.exit_code == 2
        assert checked.stderr.splitlines()[-1] == trained.stderr.splitlines()[-1]
        return
    found = json.loads(checked.stdout)
    lines = trained.stderr.splitlines()
    said = [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]
    refused_by_train = trained.exit_code != 0 and settings.get("label") != "anomalous"  # this scorer has no other label
    if refused_by_train and not any("needs at least" in line for line in lines):
        assert found["problems"], lines[-1]
    if found["ok"] and name != "other label":
        assert "warning" not in trained.stderr
    assert [note for note in said if note not in found["notes"]] == [], "all that train notes"
    warned = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    assert [problem for problem in warned if problem not in found["problems"]] == []
    if trained.exit_code == 0:
        lost = [problem for problem in found["problems"] if problem.startswith("no ")]
        assert warned == lost


def test_images_that_are_not_square_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "set", ROWS)
    write(root, {"a.png": png(picture(70, 12, 8))})
    code, found = check(root, capsys)
    assert code == 0
    assert any(note.startswith("1 images are not square") for note in found["notes"])


def test_equal_images_in_two_splits_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "set", [*ROWS, ("e", "p5", 1, "test")])
    shutil.copy(root / "a.png", root / "e.png")
    code, found = check(root, capsys)
    assert code == 1
    assert any("a.png and e.png" in problem for problem in found["problems"])
    for _ in range(2):  # built, and from the cache
        (note,) = [note for note in load(root, tmp_path).notes if "another split" in note]
        assert note.startswith("1 ")
        assert "a.png (train)" in note
        assert "e.png (test)" in note
    index = (root / "index.csv").read_text().replace("e.png,p5,1,test", "e.png,p5,1,train")
    (root / "index.csv").write_text(index)
    assert not [note for note in load(root, tmp_path).notes if "another split" in note]


def test_a_folder_that_cannot_be_listed_is_never_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "set", ["normal/a.png", "tumour/b.png"])
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if str(path).endswith("tumour"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with refused(str(root / "tumour"), "Permission denied"):
        open_source(root, DataConfig())
