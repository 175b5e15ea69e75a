"""Commands that run whole comparisons and put results on one page."""

from __future__ import annotations

from pathlib import Path

import click

from gan_uad.cli.options import device_option


@click.command()
@click.argument("source", metavar="BENCHMARK")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of it all. [default: benchmarks/NAME]")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the data sets lie. [default: $GAN_UAD_DATA, else data]",
)
@click.option("--data", multiple=True, metavar="NAME=PATH", help="Where this data set of the benchmark lies instead.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Only this method or data set, or only generation or classification; may be given again.",
)
@click.option("--kimg", type=click.FloatRange(0.001), help="No training is longer; the table calls such runs short.")
@click.option("--reduced", is_flag=True, help="The reduced form that the benchmark describes, to see that all works.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Cells at a time on this machine.")
@click.option("--shard", metavar="I/N", help="This machine's part of N, all with the same --out.")
@click.option("--dry-run", is_flag=True, help="List the cells and what is finished, and stop.")
@device_option
def benchmark(
    source: str, out: Path | None, root: Path | None, data: tuple[str, ...], only: tuple[str, ...], kimg: float | None, reduced: bool,
    jobs: int, shard: str | None, dry_run: bool, device: str,
) -> None:  # fmt: skip
    """Methods x data sets x seeds x overrides in one table: train, score, evaluate whatever of BENCHMARK is not finished yet.

    BENCHMARK: phantom, colon, pcam, idc, camelyon16, bmad_camelyon16, medmnist, contamination, shift, or a YAML
    file. Run again, it goes on.
    """
    from gan_uad.benchmark.run import benchmark as job

    job(source, out, root, data, only, kimg, reduced, jobs, shard, device, dry_run)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="RUN|RESULTS...")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="The HTML file."
)
@click.option("--title", help="Heading of the page. [default: the names of the sources]")
def report(sources: tuple[str, ...], out: Path, title: str | None) -> None:
    """Write one self-contained HTML file of what other commands wrote: run folders and folders of score, evaluate, score-slide, fid,
    classify, project, generate --grid, latents, data check --out and benchmark; pictures of generate --interpolate.

    What lies inside a named folder is found. The page says what was not done. It needs no network and can be printed or sent.
    """
    from gan_uad.report.build import report as job

    print(job(sources, out, title))
