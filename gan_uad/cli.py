"""The `gan-uad` command: one thin function a verb, which calls `jobs/`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import gan_uad
from gan_uad import console
from gan_uad.errors import Interrupted

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class _Group(click.Group):
    """Turns Ctrl-C into exit code 130, wherever it comes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("stopped by Ctrl-C; the same command goes on where it can") from None


@click.group(cls=_Group, context_settings=CONTEXT)
@click.version_option(gan_uad.__version__)
@click.option("-q", "--quiet", is_flag=True, help="Print results and errors only.")
def main(quiet: bool) -> None:
    """Model normal tissue with generative models, and find what is not normal.

    Research software, not a medical device.
    """
    console.set_quiet(quiet)


@main.command()
@click.argument("config")
@click.option("--data", metavar="PATH", help="Patches: folder, zip, .npz or .h5 (sets data.path).")
@click.option("--generator", metavar="RUN", help="Trained generator, for encoders.")
@click.option("-o", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a setting, e.g. -o training.batch=32.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where run folders go.")
@click.option("--resume", is_flag=True, help="Go on with CONFIG if it is a run folder, else with its latest run.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
def train(
    config: str, data: str | None, generator: str | None, overrides: tuple[str, ...], out: Path, resume: bool, dry_run: bool
) -> None:
    """Train what CONFIG (a preset's name, a YAML file or a run folder) describes."""
    from gan_uad.jobs.train import train as job

    job(config, overrides, data, generator, out, resume, dry_run)


if __name__ == "__main__":
    sys.exit(main())
