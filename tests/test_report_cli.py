"""`gan-uad report`: one page from what other commands wrote, read with the HTML parser of the standard library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Cli = Callable[..., Any]


def test_an_empty_folder_is_refused(cli: Cli, tmp_path: Path) -> None:
    result = cli("report", tmp_path)
    assert result.exit_code == 2
    assert "nothing to report on" in result.stderr
