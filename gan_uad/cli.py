"""The `gan-uad` command: one thin function a verb, which calls `jobs/`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import gan_uad
from gan_uad import cli_slides, console
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


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: CUDA where there is one.",
)


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
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where run folders go."
)
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
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the images. [default: generated]")
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
@click.option("--out", type=click.Path(path_type=Path), help="Where results go. [default: scores/ inside the run]")
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
@click.option("--out", type=click.Path(path_type=Path), default=Path("projected"), show_default=True)
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
@click.argument("scores", nargs=-1, required=True, metavar="SCORES...|CONFIG")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where figures and pictures go. [default: the first SCORES folder; folds/CONFIG]",
)
@click.option("--threshold", metavar="RULE", help="Another rule than the scored one, set on the validation scores.")
@click.option("--resamples", type=click.IntRange(min=100), default=1000, show_default=True, help="Bootstrap resamples.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the bootstrap.")
@click.option(
    "--annotations",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Of scored slides: what is tumour, by slide name, as in tile.",
)
@click.option(
    "--class", "classes", multiple=True, callback=cli_slides.classes, metavar="NAME=ROLE", help="... as in tile."
)
@click.option(
    "--unannotated", type=click.Choice(["normal", "unknown"]), default="unknown", show_default=True,
    help="... what slides without annotation are.",
)  # fmt: skip
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of scored slides: a CSV file with columns slide and label (0, 1).",
)
@click.option(
    "--folds", type=click.IntRange(min=2), metavar="K", help="Cross-validate CONFIG instead: K trainings, by group."
)
@click.option("--data", metavar="PATH", help="... on these patches, all of them, whatever splits they bring.")
@click.option("--external", metavar="PATH", help="... and score these patches too with each fold's model.")
@click.option(
    "-o", "overrides", metavar="KEY=VALUE", multiple=True, help="... with this setting; {fold} is the fold's number."
)
def evaluate(
    scores: tuple[str, ...], out: Path | None, threshold: str | None, resamples: int, seed: int, annotations: Path | None,
    classes: dict[str, str], unannotated: str, labels: Path | None, folds: int | None, data: str | None, external: str | None,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Figures with intervals, tables, ROC and more, from SCORES: folders of `gan-uad score` or `gan-uad score-slide`, or scores.csv files.

    With --folds K: of the configuration CONFIG, trained K times, each time tested on groups (patients or slides) that it has not seen.
    """
    from gan_uad.jobs.generate import refuse

    if folds is None:
        refuse({"--data": data, "--external": external, "-o": overrides or None}, "goes with --folds only")
        from gan_uad.jobs.slide_tasks import holds_slides

        folders = [Path(source) for source in scores]
        if all(map(holds_slides, folders)):
            from gan_uad.jobs.evaluate_slides import evaluate_slides

            refuse({"--threshold": threshold}, "has no use for slides, which are ranked")
            evaluate_slides(folders, out, annotations, labels, classes, unannotated, resamples, seed)
            return
        refuse({"--annotations": annotations, "--labels": labels}, "goes with folders of score-slide only")
        from gan_uad.jobs.evaluate import evaluate as job

        job(folders, out, threshold, resamples, seed)
        return
    if len(scores) > 1:
        raise click.UsageError("--folds takes one CONFIG")
    from gan_uad.jobs.cross_validate import cross_validate

    cross_validate(scores[0], folds, data, external, out, overrides, threshold, resamples, seed)


@main.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--real", required=True, metavar="DATA", help="Real patches: folder, zip, .npz or .h5.")
@click.option(
    "--num", type=click.IntRange(min=4), default=50_000, show_default=True, help="Images that each generator makes."
)
@click.option(
    "--features",
    default="efficientnet_lite0",
    show_default=True,
    metavar="NAME,...",
    help="Networks, each a table of its own: inception (the FID), vgg16, ...; see `gan-uad models`.",
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Weights file, or a folder of them; see `gan-uad weights list`."
)
@click.option(
    "--fast", is_flag=True, help="Faster features, which are not quite those of the original; named beside the figures."
)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    help="Reals of which split. [default: train where there are splits, else all]",
)
@click.option(
    "--label",
    type=click.Choice(["normal", "anomalous", "all"]),
    help="Reals of which label. [default: what was trained on]",
)
@click.option(
    "--truncation", type=click.FloatRange(-1, 2), metavar="PSI", default=1.0, show_default=True, help="As in generate."
)
@click.option(
    "--noise",
    type=click.Choice(["const", "none", "random"]),
    default="random",
    show_default=True,
    help="Noise maps of style-based generators, as in generate.",
)
@click.option(
    "--resolution", type=click.IntRange(4, 1024), metavar="PX", help="Side at which sets of images are compared."
)
@click.option("-o", "overrides", metavar="KEY=VALUE", multiple=True, help="Data settings, e.g. -o data.crop=center.")
@click.option("--untrained", is_flag=True, help="Also judge each generator's nets before any training.")
@click.option(
    "--baselines/--no-baselines", default=True, show_default=True, help="Also compare the reals with themselves."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=2020,
    show_default=True,
    help="Of the subsets of KID (2020: torch-fidelity's) and the halves.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("fid"), show_default=True)
@device_option
def fid(
    sources: tuple[str, ...], real: str, num: int, features: str, weights: Path | None, fast: bool, split: str | None,
    label: str | None, truncation: float, noise: str, resolution: int | None, overrides: tuple[str, ...], untrained: bool,
    baselines: bool, seed: int, out: Path, device: str,
) -> None:  # fmt: skip
    """Table of FID, KID, precision, recall and memorisation of SOURCES (runs, model files, sets of images) against real patches."""
    from gan_uad.jobs.fid_table import fid as job

    names = tuple(name.strip() for name in features.split(",") if name.strip())
    job(
        sources, real, out, num, names, weights=weights, fast=fast, split=split, label=label, psi=truncation, noise=noise,
        resolution=resolution, overrides=overrides, baselines=baselines, untrained=untrained, seed=seed, where=device,
    )  # fmt: skip


@main.command()
@click.argument("classifier", required=False)
@click.option("--data", metavar="PATH", help="Real patches. [default: what the classifier or generator was trained on]")
@click.option("--normal", metavar="RUN", help="Generator of normal patches.")
@click.option("--anomalous", metavar="RUN", help="Generator of anomalous patches.")
@click.option(
    "--real-vs-synthetic",
    metavar="RUN",
    help="Instead: train a classifier to tell this generator's images from real ones.",
)
@click.option(
    "--num",
    type=click.IntRange(2, 1_000_000),
    default=10_000,
    show_default=True,
    help="At most so many real patches, and as many synthesised ones (with --real-vs-synthetic: in each split).",
)
@click.option(
    "--preset", metavar="CONFIG", help="... the classifier. [default: densenet121_64, above 128 px densenet121_512]"
)
@click.option("--kimg", type=click.FloatRange(0.001), help="... how long to train it. [default: as the preset says]")
@click.option("-o", "overrides", metavar="KEY=VALUE", multiple=True, help="... other settings of its training.")
@click.option(
    "--jpeg",
    type=click.IntRange(1, 100),
    metavar="QUALITY",
    help="Pass real and synthesised images through the same JPEG encoder: real ones may have traces of one that give them away.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 10**9),
    default=0,
    show_default=True,
    help="Of the choice of images and the training.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("classify"), show_default=True)
@device_option
def classify(
    classifier: str | None, data: str | None, normal: str | None, anomalous: str | None, real_vs_synthetic: str | None, num: int,
    preset: str | None, kimg: float | None, overrides: tuple[str, ...], jpeg: int | None, seed: int, out: Path, device: str,
) -> None:  # fmt: skip
    """Accuracy of the run CLASSIFIER on real and on synthesised patches of both kinds."""
    from gan_uad.jobs.generate import refuse

    if real_vs_synthetic is not None:
        from gan_uad.jobs.real_vs_synthetic import real_vs_synthetic as job_against

        given = {"CLASSIFIER": classifier, "--normal": normal, "--anomalous": anomalous}
        refuse(given, "does not go with --real-vs-synthetic, which trains a classifier of its own")
        job_against(real_vs_synthetic, data, out, num, preset, kimg, jpeg, seed, overrides, device)
        return
    from gan_uad.jobs.classify import classify as job

    refuse({"--preset": preset, "--kimg": kimg, "-o": overrides or None}, "goes with --real-vs-synthetic only")
    if classifier is None or normal is None or anomalous is None:
        raise click.UsageError("name a CLASSIFIER, --normal RUN and --anomalous RUN, or --real-vs-synthetic RUN")
    job(classifier, data, normal, anomalous, out, num, jpeg, seed, device)


@main.command()
@click.argument("run")
@click.argument("data", required=False)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the picture and latents.npz. [default: in RUN]"
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
@click.option("--out", type=click.Path(path_type=Path), help="Folder for class_samples.png and class_balance.png.")
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
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
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


main.add_command(cli_slides.tile)
main.add_command(cli_slides.score_slide)


if __name__ == "__main__":
    sys.exit(main())
