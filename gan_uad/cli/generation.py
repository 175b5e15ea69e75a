"""The verbs that make figures: of scores, of generators, of classifiers; thin as those of `cli`."""

from __future__ import annotations

from pathlib import Path

import click

from gan_uad.cli.options import FOLDER, device_option


@click.command()
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
@click.option("--out", type=FOLDER, default=Path("fid"), show_default=True)
@device_option
def fid(
    sources: tuple[str, ...], real: str, num: int, features: str, weights: Path | None, fast: bool, split: str | None,
    label: str | None, truncation: float, noise: str, resolution: int | None, overrides: tuple[str, ...], untrained: bool,
    baselines: bool, seed: int, out: Path, device: str,
) -> None:  # fmt: skip
    """Table of FID, KID, precision, recall and memorisation of SOURCES (runs, model files, sets of images) against real patches."""
    from gan_uad.generation.fid import fid as job

    names = tuple(name.strip() for name in features.split(",") if name.strip())
    job(
        sources, real, out, num, names, weights=weights, fast=fast, split=split, label=label, psi=truncation, noise=noise,
        resolution=resolution, overrides=overrides, baselines=baselines, untrained=untrained, seed=seed, where=device,
    )  # fmt: skip


@click.command()
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
@click.option("--out", type=FOLDER, default=Path("classify"), show_default=True)
@device_option
def classify(
    classifier: str | None, data: str | None, normal: str | None, anomalous: str | None, real_vs_synthetic: str | None, num: int,
    preset: str | None, kimg: float | None, overrides: tuple[str, ...], jpeg: int | None, seed: int, out: Path, device: str,
) -> None:  # fmt: skip
    """Accuracy of the run CLASSIFIER on real and on synthesised patches of both kinds."""
    from gan_uad.errors import refuse

    if real_vs_synthetic is not None:
        from gan_uad.generation.real_vs_synthetic import real_vs_synthetic as job_against

        given = {"CLASSIFIER": classifier, "--normal": normal, "--anomalous": anomalous}
        refuse(given, "does not go with --real-vs-synthetic, which trains a classifier of its own")
        job_against(real_vs_synthetic, data, out, num, preset, kimg, jpeg, seed, overrides, device)
        return
    from gan_uad.generation.classify import classify as job

    refuse({"--preset": preset, "--kimg": kimg, "-o": overrides or None}, "goes with --real-vs-synthetic only")
    if classifier is None or normal is None or anomalous is None:
        raise click.UsageError("name a CLASSIFIER, --normal RUN and --anomalous RUN, or --real-vs-synthetic RUN")
    job(classifier, data, normal, anomalous, out, num, jpeg, seed, device)


@click.command()
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
    from gan_uad.errors import refuse
    from gan_uad.generation.generate import generate as job
    from gan_uad.generation.generate import parse_seeds

    if latents is not None:
        refuse({"--seeds": seeds}, "and --latents exclude each other")
    chosen = parse_seeds(("0-63" if interpolate is None else "0-7") if seeds is None else seeds)
    if interpolate is None:
        walk = {"--frames-between": frames_between, "--space": space, "--loop": loop, "--duration": duration}
        refuse(walk, "goes with --interpolate only")
        folder = Path("generated") if out is None else out
        job(run, chosen, folder, grid, npz, device, latents=latents, psi=truncation, noise=noise)
        return
    from gan_uad.generation.interpolate import interpolate as job_between

    refuse({"--out": out, "--grid": grid, "--npz": npz}, "does not go with --interpolate, which writes one file")
    job_between(
        run, chosen, interpolate, latents=latents, between=8 if frames_between is None else frames_between, space=space,
        loop=loop, duration=duration or 100, psi=truncation, noise=noise, where=device,
    )  # fmt: skip


@click.command()
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
    from gan_uad.generation.latent_space import latent_space as job

    print(job(run, data, out, split, overrides, max_images, seed, device))
