"""Write docs/settings.md from gan_uad/config.py: python scripts/settings_page.py. tests/test_docs.py checks that it is up to date."""

from __future__ import annotations

import argparse
import re
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gan_uad.config import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# Settings

    gan-uad train wgan_gp_64 --dry-run -o training.batch=32

prints the settings of the preset `wgan_gp_64` with the override, as YAML, and trains nothing.

The table lists every setting of a preset, a YAML file or a run. Override one with `-o key=value`. The options below `network.*` and
`optim.*` depend on the network and the task: an unknown name is an error that lists near matches. This page is made by
`python scripts/settings_page.py`.

| key | default | values | meaning |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The text of the page."""
    return HEAD + "".join(_rows(RunConfig, ""))


def _rows(model: type[BaseModel], prefix: str) -> typing.Iterator[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(inner, f"{prefix}{name}.")
            continue
        default = "" if field.is_required() else _plain(field.get_default(call_default_factory=True))
        cells = [f"`{prefix}{name}`", default, _values(field), field.description or ""]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _plain(value: Any) -> str:
    if value is None or value in ([], {}):
        return ""
    words = str(value).lower() if isinstance(value, bool) else value
    return f"`{list(words) if isinstance(words, tuple) else words}`"


def _values(field: FieldInfo) -> str:
    kind = str(field.annotation)
    if choices := re.findall(r"Literal\[(.*?)\]", kind):
        return ", ".join(f"`{choice.strip().strip(chr(39))}`" for choice in choices[0].split(","))
    bounds = {
        name: limit
        for rule in field.metadata
        for name in ("ge", "gt", "le")
        if (limit := getattr(rule, name, None)) is not None
    }
    signs = {"ge": "≥", "gt": ">", "le": "≤"}
    return ", ".join(f"{signs[name]} {limit:g}" for name, limit in bounds.items())


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
