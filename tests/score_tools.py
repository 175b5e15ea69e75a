"""What the tests of scoring and evaluation share."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

COMPONENTS = ["residual", "features", "l1", "l2", "latent", "z_shell"]
HEADER = ["image", "group", "label", "class", "score", *COMPONENTS, "model", "threshold", "decision"]
RULE = ("--threshold", "fpr:0.2")  # four validation groups can promise 0.2


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def index(folder: Path) -> list[dict[str, str]]:
    return rows(folder / "index.csv")


def copied(trained: Any, out: Path, split: str = "test", step: int = 2) -> Path:
    """Some images of one split, in a folder that tells nothing of them."""
    out.mkdir(parents=True)
    for row in [row for row in index(trained.patches) if row["split"] == split][::step]:
        shutil.copy(trained.patches / row["image"], out)
    return out


def fails(result: Any, *messages: str, code: int = 2) -> None:
    """One clear line, the right exit code, no traceback."""
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in result.output
    for message in messages:
        assert message in errors[0], errors[0]
