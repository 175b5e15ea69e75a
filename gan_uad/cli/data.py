"""Commands that download and check sets of patches."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gan_uad.cli.options import out_option, overrides_option


@click.command()
@click.argument("name", required=False)
@click.option("--list", "as_list", is_flag=True, help="List all data sets, or the files of NAME. Download nothing.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of all data sets. [default: $GAN_UAD_DATA, else data]",
)
@click.option(
    "--size", type=click.Choice(["28", "64", "128", "224"]), help="Side in px of a MedMNIST set. [default: 64]"
)
@click.option(
    "--split", "splits", type=click.Choice(["train", "val", "test"]), multiple=True, help="Only files of this split."
)
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Only files with such names, such as --only 'tumor_00*'."
)
def download(
    name: str | None, as_list: bool, out: Path | None, size: str | None, splits: tuple[str, ...], only: tuple[str, ...]
) -> None:
    """Download a public data set and verify it.

    NAME is idc, pcam, camelyon16, medmnist, ...; --list shows all, with their licences. Run the same command again to resume.
    """
    from gan_uad.data import download as job

    if name is None:
        if not as_list or size or splits or only:
            raise click.UsageError("name a data set, or give --list alone")
        return job.list_sets()
    side = None if size is None else int(size)
    if as_list:
        return job.list_files(name, out, side, splits, only)
    sys.exit(job.fetch(name, out, side, splits, only))


@click.group()
def data() -> None:
    """Check patches before training (data check)."""


@data.command()
@click.argument("path")
@click.option("--resolution", type=int, default=64, metavar="PX", help="Side that the images are resized to.")
@out_option(None, "Also write class_samples.png and class_balance.png into this folder.")
@overrides_option("Override a data.* setting, such as -o data.crop=center.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(path: str, resolution: int, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Count labels, groups and splits; list problems.

    DATA is a folder, zip, .npz or .h5 of patches. Exit code 1: there are problems, such as broken files or a group in two splits.
    """
    from gan_uad.config import data_config
    from gan_uad.data.check import data_check

    sys.exit(data_check(path, data_config(path, overrides), resolution, out, as_json))
