"""Old names and what they are called now: one table, applied wherever files, presets and options are read.

Files written by version 0.1 are read for good. Presets and options keep their old names until version 0.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

PRESETS = {
    "gaussian": "mahalanobis",
    "gaussian_levels": "mahalanobis_multilayer",
    "hybrid_64": "style_encoder_64",
    "hybrid_64_small": "style_encoder_64_small",
    "patch_memory": "patchcore",
}
# Registered names, by kind.
REGISTERED = {
    "scorer": {"gaussian": "mahalanobis", "patch_memory": "patchcore"},
    "task": {"hybrid": "style_encoder"},
    "inverter": {"hybrid": "style_encoder"},
}
# Keys of a configuration, dotted.
SETTINGS = {
    "initial": "init_from",
    "training.judge_kimg": "training.eval_kimg",
    "training.judge_images": "training.eval_images",
    "training.judge_features": "training.eval_features",
    "scoring.options.parts": "scoring.options.components",
    "scoring.options.settle": "scoring.options.tol",
}
# Words of benchmark files, and keys and words of their results.
BENCHMARK = {"judgement": "validation", "short": "truncated", "whole": "complete"}
# Options of scorers and inverters in a `spec`.
OPTIONS = {"parts": "components", "settle": "tol"}
# Columns of CSV files and keys of JSON files and state.pt.
KEYS = {"rarity": "neg_log10_p", "parts": "components", "judging": "validation"}


def preset(name: str) -> str:
    """The name of a preset today."""
    return PRESETS.get(name, name)


def registered(kind: str, name: str) -> str:
    """The registered name of that kind today."""
    return REGISTERED.get(kind, {}).get(name, name)


def setting(key: str) -> str:
    """A dotted key of a configuration today."""
    return SETTINGS.get(key, key)


def config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, nested, with today's keys and registered names; a key that is there under both names stays as it is."""
    found = _copied(raw)
    for old, new in SETTINGS.items():
        *parents, last = old.split(".")
        node: Any = found
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        name = new.rpartition(".")[2]
        if isinstance(node, dict) and last in node and name not in node:
            place = list(node)
            renamed = {name if key == last else key: node[key] for key in place}
            node.clear()
            node.update(renamed)
    scoring = found.get("scoring")
    for section, key, kind in (
        (found, "task", "task"),
        (scoring, "scorer", "scorer"),
        (scoring, "inverter", "inverter"),
    ):
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = registered(kind, section[key])
    return found


def spec(kind: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A `spec` of something registered, `{name, options}`, with today's names."""
    options = {OPTIONS.get(key, key): value for key, value in raw["options"].items()}
    return {**raw, "name": registered(kind, raw["name"]), "options": options}


def keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a CSV file, or an object of a JSON file, with today's keys."""
    return {KEYS.get(key, key): value for key, value in row.items()}


def renamed(names: Iterable[str]) -> list[str]:
    """For each old name among presets and dotted keys, a sentence that says the new one."""
    known = {**PRESETS, **SETTINGS}
    return [
        f"{name} is now called {known[name]}; the old name will be removed in version 0.3"
        for name in names
        if name in known
    ]


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value
