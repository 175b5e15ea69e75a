"""The `gan-uad` command. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import gan_uad
from gan_uad import console
from gan_uad.cli import benchmark, data, detection, generation, slides, training
from gan_uad.cli.options import FOLDER
from gan_uad.device import share_cores
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
    share_cores()


@click.command()
@click.option("--json", "as_json", is_flag=True)
def models(as_json: bool) -> None:
    """List presets, networks, tasks, inverters and scorers."""
    from gan_uad.cli.models import models as job

    job(as_json)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: a list of {check, status, detail, mend}.")
def doctor(as_json: bool) -> None:
    """Check this machine and installation: PASS, WARN or FAIL, and the mend."""
    from gan_uad.cli.doctor import doctor as job

    sys.exit(job(as_json=as_json))


@click.group()
def weights() -> None:
    """Pretrained weights of feature networks: where they are, and fetching them."""


@weights.command("list")
@click.option("--json", "as_json", is_flag=True)
def list_weights(as_json: bool) -> None:
    """Every known file, its licence, and where it is on this machine."""
    from gan_uad.features.fetch import list_weights as job

    job(as_json)


@weights.command()
@click.argument("name")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to put it into. [default: torch's cache]"
)
def fetch(name: str, out: Path | None) -> None:
    """Download the weights of NAME and check their hash; print the path."""
    from gan_uad.features.fetch import fetch as job

    job(name, out)


@weights.command()
@click.argument("what", required=False, metavar="[NAME|FILE]")
def verify(what: str | None) -> None:
    """Compare a file, that of a network, or all that are here with their published SHA-256."""
    from gan_uad.features.fetch import verify as job

    sys.exit(job(what))


@click.command()
@click.option("--out", type=FOLDER, default=Path("demo"), show_default=True)
@click.option("--quick", is_flag=True, help="A reduced form of under a minute, for tests; its figures mean little.")
@click.option(
    "--slide", is_flag=True, help="The way of whole slides instead: tiles, detector, heatmaps, figures with FROC."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def demo(out: Path, quick: bool, slide: bool, seed: int) -> None:
    """The whole way on made-up tissue: patches, WGAN-GP, izi_f encoder, scores, ROC, pictures; a few minutes on 2 CPU cores."""
    if slide:
        from gan_uad.demo.slides import demo_slide

        demo_slide(out, quick, seed)
        return
    from gan_uad.demo.patches import demo as job

    job(out, quick, seed)


COMMANDS = (
    (
        data.data,
        data.download,
        training.train,
        generation.generate,
        generation.latents,
        detection.score,
        detection.project,
    ),
    (detection.evaluate, generation.fid, generation.classify, slides.tile, slides.score_slide),
    (benchmark.benchmark, benchmark.report, models, doctor, weights, demo),
)
for group in COMMANDS:
    for command in group:
        main.add_command(command)


if __name__ == "__main__":
    sys.exit(main())
