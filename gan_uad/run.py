"""A run folder: create it, describe it, log into it, find it.

runs/00003-wgan_gp_64/  config.yaml  environment.json  log.jsonl  reals.png  images.npz  fakes/  state.pt  model.safetensors
                        metrics.jsonl  best.safetensors  (of a run with validation)
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from gan_uad.config import RunConfig, read_yaml, resolve, trained_model, trained_models
from gan_uad.errors import UserError, near
from gan_uad.files import append_json_line, explained, make_folder, read_json_lines, write_json, write_text

_NAME = re.compile(r"(\d{5})-(.+)")
_PACKAGES = ("gan_uad", "torch", "torchvision", "numpy", "scipy", "pillow", "scikit-learn", "safetensors")


class Run:
    """An existing run folder and its resolved configuration. Raises `UserError` for another folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_path = folder / "state.pt"  # all that a resume needs
        self.model_path = folder / "model.safetensors"  # the networks worth keeping
        self.best_path = folder / "best.safetensors"  # the best networks by validation
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder} is not a run folder: it has no config.yaml")
        self.config: RunConfig = resolve(
            read_yaml(folder / "config.yaml"), default_name=folder.name, context=f"{folder}/config.yaml"
        )

    @classmethod
    def create(cls, out: Path, config: RunConfig) -> Run:
        """Create the next numbered folder under `out` and describe the run in it."""
        make_folder(out)
        number = 1 + max((int(m[1]) for p in out.iterdir() if (m := _NAME.fullmatch(p.name))), default=-1)
        while True:
            folder = out / f"{number:05d}-{config.name}"
            with explained(folder):
                try:
                    folder.mkdir()
                    (folder / "fakes").mkdir()
                    break
                except FileExistsError:  # another process took the number
                    number += 1
        write_json(folder / "environment.json", environment(config.training.seed))
        _write_config(folder, config)
        return cls(folder)

    @classmethod
    def latest(cls, out: Path, name: str) -> Run | None:
        """The highest-numbered run of this name under `out`, if any. A folder without config.yaml (killed too early) is skipped."""
        described = [file.parent for file in out.glob("*/config.yaml")]
        found = [p for p in described if (m := _NAME.fullmatch(p.name)) and m[2] == name]
        return cls(max(found)) if found else None

    def update_config(self, config: RunConfig) -> None:
        """Record the overridden settings of a resumed run."""
        self.config = config
        _write_config(self.folder, config)

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to `log.jsonl`."""
        append_json_line(self.folder / "log.jsonl", row)

    def read_log(self) -> list[dict[str, Any]]:
        """All complete lines of `log.jsonl`."""
        return read_json_lines(self.folder / "log.jsonl")

    def log_validation(self, row: dict[str, Any]) -> None:
        """Append one validation to `metrics.jsonl`."""
        append_json_line(self.folder / "metrics.jsonl", row)

    def read_validations(self) -> list[dict[str, Any]]:
        """All complete lines of `metrics.jsonl`; none without validation."""
        return read_json_lines(self.folder / "metrics.jsonl")

    def rewind_log(self, nimg: int) -> None:
        """Drop the lines that a killed process wrote after the checkpoint from which training resumes."""
        for name in ("log.jsonl", "metrics.jsonl"):
            kept = [row for row in read_json_lines(self.folder / name) if row["nimg"] <= nimg]
            if kept or (self.folder / name).is_file():
                write_text(self.folder / name, "".join(json.dumps(row) + "\n" for row in kept))


def _write_config(folder: Path, config: RunConfig) -> None:
    write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def environment(seed: int) -> dict[str, Any]:
    """Versions, git revision, hardware and seed of this process, for `environment.json`."""
    import torch

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git_revision(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "seed": seed,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of this code's checkout, with "+" when it has uncommitted changes; None for an installed wheel."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def model_file(path: str | Path) -> Path:
    """The model file of a run folder (the best by validation, else the last), of a path, or of the name of a shipped model.

    Raises `UserError` when there is none.
    """
    path = trained_model(path)
    if path.is_dir():
        best = path / "best.safetensors"
        file = best if best.is_file() else path / "model.safetensors"
        if not file.is_file():
            raise UserError(
                f"{path} holds no model.safetensors: the run has saved nothing yet, or this is not a run folder"
            )
        return file
    if not path.exists():
        shipped = trained_models()
        absent = "; shipped models have names only where a folder models/ of the repository is: there is none here"
        hint = f" (nor a shipped model: {near(str(path), shipped)})" if shipped else absent
        raise UserError(f"no such run folder or model file: {path}{hint}")
    return path
