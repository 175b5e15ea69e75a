"""The `gan-uad` command: one thin function a verb, which calls `jobs/`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import gan_uad
from gan_uad import cli_benchmark, cli_download, cli_judging, cli_report, cli_slides, console
from gan_uad.cli_options import FOLDER, device_option
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


@main.command()
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
    from gan_uad.jobs.train import train as job

    job(config, overrides, data, generator, out, resume, dry_run)


@main.command()
@click.argument("run")
@click.option("--seeds", help="Such as 0-63 or 1,5,9: one image each. [default: 0-63; 0-7 with --interpolate]")
@click.option(
    "--latents",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Instead of seeds: an array z [N,z_dim], or for StyleGAN and StyleGAN2 w [N,w_dim] or ws [N,num_ws,w_dim].",
)
@click.option(
    "--truncation",
    type=click.FloatRange(-1, 2),
    metavar="PSI",
    default=1.0,
    show_default=True,
    help="Pull w towards its mean: 0 is the average image, 1 pulls nothing (StyleGAN, StyleGAN2).",
)
@click.option(
    "--noise",
    type=click.Choice(["const", "none", "random"]),
    default="const",
    show_default=True,
    help="Noise maps: the same for all images, none, or others for each, by its seed (StyleGAN, StyleGAN2). In tissue they place nuclei "
    "and fibres: random shows the variety.",
)
@click.option("--out", type=FOLDER, help="Folder of the images. [default: generated]")
@click.option("--grid", is_flag=True, help="Also write all images as one grid.png.")
@click.option("--npz", is_flag=True, help="Write one images.npz (with z, w, seeds) instead of a PNG an image.")
@click.option(
    "--interpolate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the way from each seed to the next instead: FILE.gif (animated) or FILE.png (a row a pair).",
)
@click.option(
    "--frames-between", type=click.IntRange(0), metavar="N", help="... images between two seeds. [default: 8]"
)
@click.option(
    "--space", type=click.Choice(["w", "z"]), help="... straight in w or round in z. [default: w if there is one]"
)
@click.option("--loop", is_flag=True, help="... and back to the first seed.")
@click.option(
    "--duration", type=click.IntRange(20, 10000), metavar="MS", help="... time of a GIF's frame. [default: 100]"
)
@device_option
def generate(
    run: str, seeds: str | None, latents: Path | None, truncation: float, noise: str, out: Path | None, grid: bool, npz: bool,
    interpolate: Path | None, frames_between: int | None, space: str | None, loop: bool, duration: int | None, device: str,
) -> None:  # fmt: skip
    """Make images with the generator of RUN (a run folder or model file)."""
    from gan_uad.jobs.generate import generate as job
    from gan_uad.jobs.generate import parse_seeds, refuse

    if latents is not None:
        refuse({"--seeds": seeds}, "and --latents exclude each other")
    chosen = parse_seeds(("0-63" if interpolate is None else "0-7") if seeds is None else seeds)
    if interpolate is None:
        walk = {"--frames-between": frames_between, "--space": space, "--loop": loop, "--duration": duration}
        refuse(walk, "goes with --interpolate only")
        folder = Path("generated") if out is None else out
        job(run, chosen, folder, grid, npz, device, latents=latents, psi=truncation, noise=noise)
        return
    from gan_uad.jobs.interpolate import interpolate as job_between

    refuse({"--out": out, "--grid": grid, "--npz": npz}, "does not go with --interpolate, which writes one file")
    job_between(
        run, chosen, interpolate, latents=latents, between=8 if frames_between is None else frames_between, space=space,
        loop=loop, duration=duration or 100, psi=truncation, noise=noise, where=device,
    )  # fmt: skip


@main.command()
@click.argument("run")
@click.argument("data", required=False)
@click.option(
    "--out",
    type=FOLDER,
    help="Where results go. [default: a folder in scores/, inside a run or beside a model file; in ./scores for a shipped model]",
)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    help="Which split to score. [default: test, if DATA has splits]",
)
@click.option("--inverter", metavar="NAME", help="How the closest normal image is found; see `gan-uad models`.")
@click.option(
    "--threshold", metavar="RULE", help="fpr:A, quantile:Q, mean_std:K, youden or manual:V, set on validation images."
)
@click.option("--maps", is_flag=True, help="Write difference maps, and masks cut from them.")
@click.option(
    "--pixel-quantile",
    type=click.FloatRange(0.5, 1),
    default=0.99,
    show_default=True,
    help="Where masks are cut: this quantile of validation normals' pixels.",
)
@click.option("--max-images", type=click.IntRange(min=1), help="Score a random subset of this size.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the subset.")
@click.option(
    "-o",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override data.* or scoring.* of the run, e.g. -o scoring.options.steps=200.",
)
@device_option
def score(
    run: str, data: str | None, out: Path | None, split: str | None, inverter: str | None, threshold: str | None, maps: bool,
    pixel_quantile: float, max_images: int | None, seed: int, overrides: tuple[str, ...], device: str,
) -> None:  # fmt: skip
    """Score the patches of DATA (default: what RUN was trained on) by their distance to the closest normal image."""
    from gan_uad.jobs.score import score as job

    print(job(run, data, out, split, inverter, threshold, overrides, maps, pixel_quantile, max_images, seed, device))


@main.command()
@click.argument("run")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, default=Path("projected"), show_default=True)
@click.option(
    "--inverter",
    metavar="NAME",
    help="w, w_plus, z, hybrid, izi_f, anogan, ... [default: the run's own, or w, or anogan]",
)
@click.option(
    "-o",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option of the inverter, e.g. -o steps=200 -o perceptual=alex.",
)
@click.option("--gif", is_flag=True, help="Also write an animation of each search.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the search.")
@device_option
def project(
    run: str, images: tuple[Path, ...], out: Path, inverter: str | None, options: tuple[str, ...], gif: bool, seed: int, device: str,
) -> None:  # fmt: skip
    """Find the closest image that the generator of RUN can make to each of IMAGES (files or folders of them), and its latent."""
    from gan_uad.jobs.project import project as job

    print(job(run, list(images), out, inverter, options, gif, seed, device))


@main.command()
@click.argument("run")
@click.argument("data", required=False)
@click.option(
    "--out",
    type=FOLDER,
    help="Folder for the picture and latents.npz. [default: latents/ inside a run, beside a model file]",
)
@click.option(
    "--split", type=click.Choice(["train", "val", "test", "all"]), help="Which split to show. [default: as in score]"
)
@click.option("--max-images", type=click.IntRange(min=1), help="Show a random subset of this size.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the subset.")
@click.option("-o", "overrides", metavar="KEY=VALUE", multiple=True, help="Override data.* of the run.")
@device_option
def latents(
    run: str, data: str | None, out: Path | None, split: str | None, max_images: int | None, seed: int,
    overrides: tuple[str, ...], device: str,
) -> None:  # fmt: skip
    """Where the patches of DATA (default: what RUN was trained on) lie in the latent space of the autoencoder RUN, by label."""
    from gan_uad.jobs.latent_space import latent_space as job

    print(job(run, data, out, split, overrides, max_images, seed, device))


@main.command()
@click.option("--json", "as_json", is_flag=True)
def models(as_json: bool) -> None:
    """List presets, networks, tasks, inverters and scorers."""
    from gan_uad.jobs.models import models as job

    job(as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable: a list of {check, status, detail, mend}.")
def doctor(as_json: bool) -> None:
    """Check this machine and installation: PASS, WARN or FAIL, and the mend."""
    from gan_uad.jobs.doctor import doctor as job

    sys.exit(job(as_json=as_json))


@main.group()
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
    from gan_uad.jobs.data_check import data_check

    sys.exit(data_check(path, data_config(path, overrides), resolution, out, as_json))


@main.group()
def weights() -> None:
    """Pretrained weights of feature networks: where they are, and fetching them."""


@weights.command("list")
@click.option("--json", "as_json", is_flag=True)
def list_weights(as_json: bool) -> None:
    """Every known file, its licence, and where it is on this machine."""
    from gan_uad.jobs.weights import list_weights as job

    job(as_json)


@weights.command()
@click.argument("name")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to put it into. [default: torch's cache]"
)
def fetch(name: str, out: Path | None) -> None:
    """Download the weights of NAME and check their hash; print the path."""
    from gan_uad.jobs.weights import fetch as job

    job(name, out)


@weights.command()
@click.argument("what", required=False, metavar="[NAME|FILE]")
def verify(what: str | None) -> None:
    """Compare a file, that of a network, or all that are here with their published SHA-256."""
    from gan_uad.jobs.weights import verify as job

    sys.exit(job(what))


@main.command()
@click.option("--out", type=FOLDER, default=Path("demo"), show_default=True)
@click.option("--quick", is_flag=True, help="A reduced form of under a minute, for tests; its figures mean little.")
@click.option(
    "--slide", is_flag=True, help="The way of whole slides instead: tiles, detector, heatmaps, figures with FROC."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def demo(out: Path, quick: bool, slide: bool, seed: int) -> None:
    """The whole way on made-up tissue: patches, WGAN-GP, izi_f encoder, scores, ROC, pictures; a few minutes on 2 CPU cores."""
    if slide:
        from gan_uad.jobs.demo_slide import demo_slide

        demo_slide(out, quick, seed)
        return
    from gan_uad.jobs.demo import demo as job

    job(out, quick, seed)


for verb in (cli_judging.evaluate, cli_judging.fid, cli_judging.classify, cli_slides.tile, cli_slides.score_slide):
    main.add_command(verb)
main.add_command(cli_benchmark.benchmark)
main.add_command(cli_download.download)
main.add_command(cli_report.report)


if __name__ == "__main__":
    sys.exit(main())
