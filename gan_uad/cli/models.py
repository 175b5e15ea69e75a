"""`gan-uad models`: what can be trained, with which presets, what can score, and which trained models are at hand."""

from __future__ import annotations

import json
from pathlib import Path

from gan_uad import registry
from gan_uad.config import presets, read_yaml, trained_models


def models(as_json: bool = False) -> None:
    """Print what is registered by name with what it is, the presets with what they train, and the trained models."""
    listed = {
        "presets": {name: _summary(name) for name in presets()},
        "trained": {name: _card(file) for name, file in trained_models().items()},
        **{
            kind if kind.endswith("s") else f"{kind}s": {entry.name: entry.summary for entry in registry.entries(kind)}
            for kind in registry.KINDS
        },
    }
    if as_json:
        print(json.dumps(listed, indent=2))
        return
    for title, entries in listed.items():
        print(f"{title}:")
        for name, summary in entries.items():
            print(f"  {name:22s} {summary}")


def _card(file: Path) -> str:
    """What the model card says of networks and training."""
    card = file.with_suffix(".md")
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    return "; ".join(line.removeprefix("- ") for line in lines if line.startswith(("- networks:", "- trained by")))


def _summary(name: str) -> str:
    file = presets()[name]
    raw = read_yaml(file)
    comment = [
        line.removeprefix("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    if "task" not in raw:
        return f"{raw['scoring']['scorer']}, fitted on train normals. {' '.join(comment)}"
    return f"{raw['model']} by {raw['task']}, {raw['training']['total_kimg']:g} kimg. {' '.join(comment)}"
