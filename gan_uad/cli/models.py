"""`gan-uad models`: what can be trained, with which presets, what can score, and which trained models are available."""

from __future__ import annotations

import json
from pathlib import Path

from gan_uad import registry
from gan_uad.config import presets, read_yaml, trained_models


def models(as_json: bool = False) -> None:
    """Print presets, trained models and everything registered by name, each with a line about it."""
    listed = {
        "presets": {name: _preset(file) for name, file in presets().items()},
        "trained": {name: _card(file) for name, file in trained_models().items()},
    }
    for kind in registry.KINDS:
        listed[kind.removesuffix("s") + "s"] = {entry.name: entry.summary for entry in registry.entries(kind)}
    if as_json:
        print(json.dumps(listed, indent=2))
        return
    for title, entries in listed.items():
        print(f"{title}:")
        for name, summary in entries.items():
            print(f"  {name:22s} {summary}")


def _card(file: Path) -> str:
    """Networks and training, from the model card."""
    card = file.with_suffix(".md")
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    return "; ".join(
        line.removeprefix("- ") for line in lines if line.startswith(("- networks:", "- trained by", "- scale:"))
    )


def _preset(file: Path) -> str:
    """What the preset trains, and its comments."""
    raw, lines = read_yaml(file), file.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
    if "task" not in raw:
        return f"{raw['scoring']['scorer']}, fitted on train normals. {comment}"
    return f"{raw['model']} by {raw['task']}, {raw['training']['total_kimg']:g} kimg. {comment}"
