"""The verb that makes one page of all results; thin as those of `cli`."""

from __future__ import annotations

from pathlib import Path

import click


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
    from gan_uad.jobs.report import report as job

    print(job(sources, out, title))
