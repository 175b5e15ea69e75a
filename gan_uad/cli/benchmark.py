"""Commands that compare methods and gather results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gan_uad.cli.options import PATH, device_option


@click.command()
@click.argument("source", metavar="BENCHMARK")
@click.option("--out", type=PATH, help="Output folder. [default: benchmarks/NAME]")
@click.option("--root", type=PATH, metavar="DIR", help="Folder of the data sets. [default: $GAN_UAD_DATA, else data]")
@click.option("--data", multiple=True, metavar="NAME=PATH", help="Path of one data set of the benchmark.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Run only this method or data set, or only generation or classification. Can be repeated.",
)
@click.option(
    "--kimg", type=click.FloatRange(0.001), help="Maximum training length. The table marks shortened runs as truncated."
)
@click.option("--reduced", is_flag=True, help="Run a reduced version, to test the set-up.")
@click.option("--jobs", type=click.IntRange(1), metavar="N", default=1, help="Number of cells that run at a time.")
@click.option("--shard", metavar="I/N", help="Run part I of N. All parts take the same --out.")
@click.option("--dry-run", is_flag=True, help="List the cells and which are finished. Run nothing.")
@device_option
def benchmark(source: str, **options: Any) -> None:
    """Compare methods on data sets in one table.

    BENCHMARK is phantom, colon, pcam, idc, camelyon16, bmad_camelyon16, medmnist, contamination, shift, or a YAML file. Each cell trains,
    scores and evaluates one method on one data set. Run the same command again to resume.
    """
    from gan_uad.benchmark.run import benchmark as job

    job(source, **options)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="RUN|RESULTS...")
@click.option("--out", type=PATH, default=Path("report.html"), help="Output file.")
@click.option("--title", help="Heading of the page. [default: the names of the sources]")
def report(sources: tuple[str, ...], out: Path, title: str | None) -> None:
    """Gather results on one HTML page.

    Give run folders and output folders of other commands. Results inside a named folder are found. The page is one file and needs no
    network.
    """
    from gan_uad.report.build import report as job

    print(job(sources, out, title))
