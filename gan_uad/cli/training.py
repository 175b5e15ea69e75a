"""`gan-uad train`."""

from __future__ import annotations

from typing import Any

import click

from gan_uad.cli.options import out_option, overrides_option


@click.command()
@click.argument("config")
@click.option(
    "--data",
    metavar="PATH",
    help="Training patches: folder, zip, .npz or .h5. [default: those of CONFIG or of the generator]",
)
@click.option("--generator", metavar="RUN", help="Run folder of a trained generator (required for encoders).")
@overrides_option("Override a setting, such as -o training.batch=32.")
@out_option("runs", "Folder in which the run folder is created.")
@click.option("--resume", is_flag=True, help="Resume this run folder; for a preset, its latest run.")
@click.option("--changed-data", is_flag=True, help="With --resume: continue although the patches have changed.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration. Train nothing.")
def train(config: str, **options: Any) -> None:
    """Train a model on patches.

    CONFIG is a preset, a YAML file or, with --resume, a run folder. `gan-uad models` lists the presets. Ctrl-C saves a checkpoint;
    --resume continues from it. Device and seed are settings: -o training.device=cpu, -o training.seed=1.
    """
    from gan_uad.training.train import train as job

    job(config, **options)
