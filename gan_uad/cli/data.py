"""Commands that fetch and check sets of patches."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gan_uad.cli.options import FOLDER


@click.command()
@click.argument("name", required=False)
@click.option("--list", "as_list", is_flag=True, help="Only list: all sets, or the files of NAME.")
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
@click.option("--only", multiple=True, metavar="PATTERN", help="Only files of such names, e.g. --only 'tumor_00*'.")
def download(
    name: str | None, as_list: bool, out: Path | None, size: str | None, splits: tuple[str, ...], only: tuple[str, ...]
) -> None:
    """Fetch the public data set NAME (idc, pcam, camelyon16, medmnist, ...; see --list), verify it, and print where it is.

    Its licence is shown first. An interrupted download goes on when run again; files that are here and whole are left as they are.
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
    """Look at a set of patches before training on it."""


@data.command()
@click.argument("path")
@click.option(
    "--resolution", type=int, default=64, show_default=True, help="Side in px that the images would be brought to."
)
@click.option("--out", type=FOLDER, help="Folder for class_samples.png and class_balance.png.")
@click.option("-o", "overrides", metavar="KEY=VALUE", multiple=True, help="Data settings, e.g. -o data.crop=center.")
@click.option("--json", "as_json", is_flag=True)
def check(path: str, resolution: int, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Counts by label, group and split, sizes, broken files, and groups on two sides of PATH."""
    from gan_uad.config import data_config
    from gan_uad.data.check import data_check

    sys.exit(data_check(path, data_config(path, overrides), resolution, out, as_json))
