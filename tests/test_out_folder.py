"""`--out` where a file is in the way, and what a stopped demo says: seen from the outside, with no work done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from score_tools import fails

from gan_uad.demo import patches as job
from gan_uad.errors import Interrupted, UserError
from gan_uad.files import claim, make_folder

COMMANDS = (
    "demo",
    "demo-slides",
    "train dcgan_64 --data nowhere",
    "data check nowhere",
    "score nowhere",
    "project nowhere nowhere",
    "latents nowhere",
    "generate nowhere",
    "evaluate nowhere",
    "fid nowhere --real nowhere",
    "classify nowhere --normal nowhere --anomalous nowhere",
    "tile nowhere",
    "score-slide nowhere nowhere",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_the_way_is_seen_before_any_work(cli: Any, tmp_path: Path, command: str) -> None:
    """Before anything else that is wrong, so before anything is read."""
    file = tmp_path / "afile"
    file.write_text("mine")
    for out in (file, file / "deeper"):
        fails(cli(*command.split(), "--out", out), f"cannot write {out}: {file} is a file, not a folder", "--out")
    assert file.read_text() == "mine"


def test_a_file_in_the_way_of_the_functions(tmp_path: Path) -> None:
    file = tmp_path / "afile"
    file.touch()
    for make in (make_folder, lambda out: claim(out, "a.json", {}, "results")):
        with pytest.raises(UserError, match=f"{file} is a file, not a folder"):
            make(file)


def test_a_stopped_demo_names_its_own_way_on(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the training inside it, which would end there; and being stopped is no error."""

    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted("stopped at 1 kimg, all saved", "Go on with: gan-uad train demo/runs/00000 --resume")

    monkeypatch.setattr(job, "train", stopped)
    monkeypatch.setattr(job, "write_phantom", lambda out, **_: out)
    result = cli("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["stopped at 1 kimg, all saved. To go on, give the same command again"]
