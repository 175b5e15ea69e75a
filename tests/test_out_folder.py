"""`--out` where a file is in the way, and the message of a stopped demo: end to end, without any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from score_tools import fails

from gan_uad.demo import patches, steps
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
    "evaluate-slides nowhere --annotations nowhere",
    "cross-validate nowhere",
    "fid nowhere --real nowhere",
    "classify nowhere --normal nowhere --anomalous nowhere",
    "real-vs-synthetic nowhere --data nowhere",
    "tile nowhere",
    "score-slide nowhere nowhere",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_the_way_is_seen_before_any_work(cli: Any, tmp_path: Path, command: str) -> None:
    """Before anything else that is wrong, so before anything is read."""
    file = tmp_path / "afile"
    file.write_text("mine")
    for out in (file, file / "deeper"):
        fails(cli(*command.split(), "--out", out), str(out), f"{file} is a file", "--out")
    assert file.read_text() == "mine"


def test_a_file_in_the_way_of_the_functions(tmp_path: Path) -> None:
    file = tmp_path / "afile"
    file.touch()
    for make in (make_folder, lambda out: claim(out, "a.json", {}, "results")):
        with pytest.raises(UserError, match=f"{file} is a file"):
            make(file)


def test_a_stopped_demo_names_its_own_command(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the training inside it, which would end there. To be stopped is no error."""

    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted("stopped at 1 kimg, all saved", "Go on with: gan-uad train demo/runs/00000 --resume")

    monkeypatch.setattr(steps, "train", stopped)
    monkeypatch.setattr(patches, "write_phantom", lambda out, **_: out)
    result = cli("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 130
    (line,) = result.stderr.splitlines()
    assert line.startswith("stopped at 1 kimg, all saved. ")
    assert "same command" in line
    assert "gan-uad train" not in line
