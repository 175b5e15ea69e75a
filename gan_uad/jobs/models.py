"""`gan-uad models`: what can be trained, with which presets, and what can score."""

from __future__ import annotations

import json

from gan_uad import registry
from gan_uad.config import presets, read_yaml


def models(as_json: bool = False) -> None:
    """Print networks, tasks, features, inverters and scorers by name with what they are, and the presets with what they train."""
    listed = {
        "presets": {name: _summary(name) for name in presets()},
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


def _summary(name: str) -> str:
    file = presets()[name]
    raw = read_yaml(file)
    comment = [
        line.removeprefix("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    if "task" not in raw:
        return f"{raw['scoring']['scorer']}, fitted on train normals. {' '.join(comment)}"
    return f"{raw['model']} by {raw['task']}, {raw['training']['total_kimg']:g} kimg. {' '.join(comment)}"
