"""The verb that fetches public data sets; thin as those of `cli`."""

from __future__ import annotations

import sys
from pathlib import Path

import click


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
    from gan_uad.jobs import download as job

    if name is None:
        if not as_list or size or splits or only:
            raise click.UsageError("name a data set, or give --list alone")
        return job.list_sets()
    side = None if size is None else int(size)
    if as_list:
        return job.list_files(name, out, side, splits, only)
    sys.exit(job.fetch(name, out, side, splits, only))
