"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gan_uad.files import check_folder


class _Folder(click.Path):
    """A folder that is there or can be made, as far as is seen without making it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises `UserError` where a file is in the way."""
        check_folder(Path(value))
        return super().convert(value, param, ctx)


FOLDER = _Folder()
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: CUDA where there is one.",
)
slide_mpp_option = click.option(
    "--slide-mpp",
    type=click.FloatRange(0.01, 1000),
    metavar="UM",
    help="µm per px of slides that do not say, or say wrong.",
)
rule_option = click.option(
    "--rule",
    type=click.Choice(["mask", "keep_tile", "otsu"]),
    default="mask",
    show_default=True,
    help="What tissue is.",
)
stain_option = click.option(
    "--stain",
    type=click.Choice(["reinhard", "macenko"]),
    help="Normalise the stain. It can hide anomalies. [default: no]",
)
shard_option = click.option(
    "--shard", metavar="I/N", help="Do the I-th of N parts of the slides. [default: all; under torchrun, by rank]"
)


def annotations_option(help: str) -> Any:
    """A folder of annotations."""
    return click.option("--annotations", type=click.Path(path_type=Path), metavar="DIR", help=help)


def class_option(help: str) -> Any:
    """What annotated classes are, as a mapping."""
    return click.option("--class", "classes", multiple=True, callback=_classes, metavar="NAME=ROLE", help=help)


def unannotated_option(help: str) -> Any:
    """What no annotation means."""
    return click.option(
        "--unannotated", type=click.Choice(["normal", "unknown"]), default="unknown", show_default=True, help=help
    )


def _classes(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`--class NAME=ROLE`, any number of times, as a mapping."""
    from gan_uad.slides.annotations import ROLES

    pairs = [value.rpartition("=") for value in values]
    for name, _equals, role in pairs:
        if not name or role not in ROLES:
            raise click.BadParameter(f"expected NAME={'|'.join(ROLES)}, such as Stroma=ignored")
    return {name.strip(): role for name, _equals, role in pairs}
