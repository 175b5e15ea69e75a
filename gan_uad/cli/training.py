"""`gan-uad train`."""

from __future__ import annotations

from pathlib import Path

import click

from gan_uad.cli.options import FOLDER


@click.command()
@click.argument("config")
@click.option("--data", metavar="PATH", help="Patches: folder, zip, .npz or .h5 (sets data.path).")
@click.option("--generator", metavar="RUN", help="Trained generator, for encoders.")
@click.option(
    "-o", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a setting, e.g. -o training.batch=32."
)
@click.option("--out", type=FOLDER, default=Path("runs"), show_default=True, help="Where run folders go.")
@click.option("--resume", is_flag=True, help="Go on with CONFIG if it is a run folder, else with its latest run.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
def train(
    config: str,
    data: str | None,
    generator: str | None,
    overrides: tuple[str, ...],
    out: Path,
    resume: bool,
    dry_run: bool,
) -> None:
    """Train what CONFIG (a preset's name, a YAML file or a run folder) describes."""
    from gan_uad.training.train import train as job

    job(config, overrides, data, generator, out, resume, dry_run)
