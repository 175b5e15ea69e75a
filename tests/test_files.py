"""Files that several processes want at once, and CSV."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patch_tools import refused

from gan_uad.files import LOCK, alone, csv_text, number, one_writer, read_csv


@pytest.mark.parametrize("moment", [1, 2])
def test_a_partial_file_that_another_process_removes_is_started_again(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waited for the lock checks that the file still has its name, which may vanish before or during that check."""
    part, look, looks = tmp_path / "net.part", os.stat, []

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if path == part:
            looks.append(path)
            if len(looks) == moment:
                part.unlink()  # the one before has finished and renames it
        return look(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    part.write_bytes(b"of another")
    with alone(part) as file:
        looks.extend([part, part])
        assert os.path.samestat(os.fstat(file.fileno()), look(part))


def test_csv_goes_to_text_and_back(tmp_path: Path) -> None:
    rows = [[" a, b", 'say "c"'], ["two\nlines", "é"]]
    (tmp_path / "t.csv").write_text(csv_text(["x", "y"], rows), encoding="utf-8")
    assert [list(row.values()) for row in read_csv(tmp_path / "t.csv", ["y"])] == rows


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"x,y\n1,2\n3\n", ("line 3",)),
        (b"x,y\n1,2,3\n", ("line 2",)),
        (b"x,label\n", ("'labels'", "'label'")),
        (b"", ("'labels'",)),
        (b"\xff", ("UTF-8",)),
        (b"x,y,x\n1,2,3\n", ("line 1", "'x'")),
        (b"labels, labels\n1,2\n", ("line 1", "'labels'")),
        (b"labels,Labels\n1,2\n", ("line 1", "'labels'")),
    ],
)
def test_csv_that_is_wrong(tmp_path: Path, content: bytes, named: tuple[str, ...]) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with refused("t.csv", *named):
        read_csv(tmp_path / "t.csv", ["labels"] if "'labels'" in named else [])
    with refused("none.csv"):
        read_csv(tmp_path / "none.csv")


def test_columns_that_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,A,surplus,,\n1,2,3,,\n")
    assert read_csv(tmp_path / "t.csv") == [{"a": "1", "A": "2", "surplus": "3", "": ""}]


@pytest.mark.parametrize("text", ["12", "-0.5", "+1", "1.", ".5", "1.5e-07", "1E3", "inf", "-inf", "9" * 300])
def test_numbers(text: str) -> None:
    assert number(text, "x") == float(text)


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "1_000", "٣", "0x10", "1,5", "1e999", "9" * 400, "Infinity", "+inf", "1e", "."]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="score") as error:
        number(text, "score")
    assert len(str(error.value)) < 100


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with one_writer(tmp_path):
        for shared in (False, True):
            with refused(str(tmp_path)), one_writer(tmp_path, shared):
                pass
    with one_writer(tmp_path, shared=True):
        with one_writer(tmp_path, shared=True):
            pass
        with refused(str(tmp_path)), one_writer(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, pathlib; from gan_uad.files import one_writer\n"
        f"with one_writer(pathlib.Path({str(tmp_path)!r})): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert (tmp_path / LOCK).is_file()
    with one_writer(tmp_path):
        pass


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", without)
    with one_writer(tmp_path):
        (tmp_path / "a").write_text("written")


def test_a_lock_that_the_one_before_removes_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take, taken = fcntl.flock, []

    def slow(*arguments: Any) -> None:
        taken.append(take(*arguments))
        if len(taken) == 1:
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr("fcntl.flock", slow)
    with one_writer(tmp_path):
        monkeypatch.undo()
        with refused(str(tmp_path)), one_writer(tmp_path):
            pass
