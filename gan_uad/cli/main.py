"""The `gan-uad` command. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import gan_uad
from gan_uad import console
from gan_uad.cli import benchmark, data, detection, generation, slides, training
from gan_uad.cli.options import CommandGroup, out_option, seed_option
from gan_uad.device import share_cores
from gan_uad.errors import Interrupted

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True}


class _Group(CommandGroup):
    """Ends with exit code 130 on Ctrl-C, wherever it comes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("stopped by Ctrl-C; run the same command again to resume") from None


@click.group(cls=_Group, context_settings=CONTEXT)
@click.version_option(gan_uad.__version__)
@click.option("-q", "--quiet", is_flag=True, help="Print results and errors only.")
def main(quiet: bool) -> None:
    """Model normal tissue with generative models, and detect anomalies.

    Research software, not a medical device.
    """
    console.set_quiet(quiet)
    share_cores()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List presets, shipped models, networks and methods."""
    from gan_uad.cli.models import models as job

    job(as_json)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of {check, status, detail, fix}.")
def doctor(as_json: bool) -> None:
    """Check this machine and installation.

    Prints PASS, WARN or FAIL for each check, and how to fix it.
    """
    from gan_uad.cli.doctor import doctor as job

    sys.exit(job(as_json=as_json))


@click.group()
def weights() -> None:
    """List, download and verify pretrained weights."""


@weights.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_weights(as_json: bool) -> None:
    """List known weights, their licences, and where they are on this machine."""
    from gan_uad.features.fetch import list_weights as job

    job(as_json)


@weights.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Output folder. [default: torch's cache]")
def fetch(name: str, out: Path | None) -> None:
    """Download the weights of NAME, verify them, print the path."""
    from gan_uad.features.fetch import fetch as job

    job(name, out)


@weights.command()
@click.argument("what", required=False, metavar="[NAME|FILE]")
def verify(what: str | None) -> None:
    """Compare weights with their published SHA-256. [default: all that are on this machine]"""
    from gan_uad.features.fetch import verify as job

    sys.exit(job(what))


def _demo_options(function: Any) -> Any:
    quick = click.option(
        "--quick", is_flag=True, help="Train for seconds only, to test the installation. The results mean little."
    )
    return quick(seed_option("Random seed.")(function))


@click.command()
@out_option("demo", "Output folder.")
@_demo_options
def demo(**options: Any) -> None:
    """Train and score on synthetic tissue, end to end.

    Patches, WGAN-GP, izi_f encoder, scores, ROC, pictures. Takes 5 to 9 minutes on 2 CPU cores.
    """
    from gan_uad.demo.patches import demo as job

    job(**options)


@click.command("demo-slides")
@out_option("demo_slides", "Output folder.")
@_demo_options
def demo_slides(**options: Any) -> None:
    """Score synthetic whole slides, end to end.

    Tiles, detector, heatmaps, FROC. Takes a few minutes on 2 CPU cores.
    """
    from gan_uad.demo.slides import demo_slide as job

    job(**options)


COMMANDS = (
    *(data.data, data.download, training.train),
    *(generation.generate, generation.interpolate, generation.latents, generation.fid, generation.classify),
    *(generation.real_vs_synthetic, detection.score, detection.project, detection.evaluate, detection.cross_validate),
    *(slides.tile, slides.score_slide, slides.evaluate_slides, benchmark.benchmark, benchmark.report),
    *(models, doctor, weights, demo, demo_slides),
)
for command in COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
