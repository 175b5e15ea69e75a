"""Commands that use and compare generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gan_uad.cli.options import (
    PATH,
    device_option,
    out_option,
    overrides_option,
    precision_option,
    seed_option,
    split_option,
    style_options,
    subset_options,
)
from gan_uad.errors import refuse

jpeg_option = click.option(
    "--jpeg",
    type=click.IntRange(1, 100),
    metavar="QUALITY",
    help="Compress real and generated images by the same JPEG encoder, so that traces of JPEG do not tell them apart.",
)
latents_option = click.option(
    "--latents",
    type=PATH,
    metavar="FILE.npz",
    help="Use these latents instead of seeds: z [N,z_dim], w [N,w_dim] or ws [N,num_ws,w_dim].",
)


@click.command()
@click.argument("run")
@click.option("--seeds", help="Seeds, one image each, such as 0-63 or 1,5,9. [default: 0-63]")
@latents_option
@style_options("const")
@out_option("generated", "Output folder.")
@click.option("--grid", is_flag=True, help="Also write all images as one grid.png.")
@click.option("--npz", is_flag=True, help="Write one images.npz with z, w and seeds, instead of PNG files.")
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the network first (torch.compile): for tens of thousands of images. Needs a C++ compiler; images change by rounding.",
)
@device_option
@precision_option
def generate(run: str, seeds: str | None, latents: Path | None, **options: Any) -> None:
    """Generate images.

    RUN is the run of a generator, a model file or a shipped model. An image depends on its seed alone.
    """
    from gan_uad.generation.generate import generate as job

    job(run, _seeds(seeds, latents, "0-63"), latents=latents, **options)


@click.command()
@click.argument("run")
@click.option("--seeds", help="Seeds to interpolate between, such as 0-7 or 1,5,9. [default: 0-7]")
@latents_option
@style_options("const")
@click.option(
    "--out", type=PATH, default=Path("interpolation.gif"), help="Output file: .gif, or .png with a row per pair."
)
@click.option(
    "--frames-between", "between", type=click.IntRange(0), default=8, metavar="N", help="Images between two seeds."
)
@click.option(
    "--space",
    type=click.Choice(["w", "z"]),
    help="Latent space: w (linear) or z (spherical). [default: w where there is one]",
)
@click.option("--loop", is_flag=True, help="Return to the first seed.")
@click.option("--duration", type=click.IntRange(20, 10000), default=100, metavar="MS", help="Duration of a frame.")
@device_option
def interpolate(run: str, seeds: str | None, latents: Path | None, out: Path, **options: Any) -> None:
    """Interpolate between generated images.

    Writes one animation or one picture. RUN is the run of a generator, a model file or a shipped model.
    """
    from gan_uad.generation.interpolate import interpolate as job

    job(run, _seeds(seeds, latents, "0-7"), out, latents=latents, **options)


def _seeds(seeds: str | None, latents: Path | None, default: str) -> list[int]:
    from gan_uad.generation.generate import parse_seeds

    if latents is not None:
        refuse({"--seeds": seeds}, "and --latents exclude each other")
    return parse_seeds(default if seeds is None else seeds)


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--real", required=True, metavar="DATA", help="Real patches: folder, zip, .npz or .h5.")
@click.option(
    "--num", type=click.IntRange(min=4), metavar="N", default=50_000, help="Number of images to generate per generator."
)
@click.option(
    "--features",
    default="efficientnet_lite0",
    metavar="NAME,...",
    help="Feature networks, one table each: inception gives the FID; vgg16, ... `gan-uad models` lists them.",
)
@click.option("--weights", type=PATH, help="Weights file, or a folder of them. See `gan-uad weights list`.")
@click.option("--fast", is_flag=True, help="Faster, less exact features. The table marks them.")
@split_option("Split of the real patches. [default: train where there are splits, else all]")
@click.option(
    "--label",
    type=click.Choice(["normal", "anomalous", "all"]),
    help="Label of the real patches, and of sets of images that have labels. [default: the label that the generator was trained on]",
)
@style_options("random")
@click.option(
    "--resolution", type=click.IntRange(4, 1024), metavar="PX", help="Resize sets of images to this side length."
)
@overrides_option("Override a data.* setting, such as -o data.crop=center.")
@click.option("--untrained", is_flag=True, help="Also compare each generator as it was before training.")
@click.option("--baselines/--no-baselines", default=True, help="Also compare real with real images (reference values).")
@seed_option(
    "Random seed of KID's subsets and of the halves of the real images. (2020 as in torch-fidelity)", default=2020
)
@out_option("fid", "Output folder.")
@device_option
def fid(sources: tuple[str, ...], real: str, features: str, **options: Any) -> None:
    """Compare generators: FID, KID, precision, recall, memorisation.

    SOURCES are runs, model files, shipped models or sets of images. Each is compared with real patches.
    Writes fid.md, fid.csv, fid.tex and fid.json.
    """
    from gan_uad.generation.fid import fid as job

    names = tuple(name.strip() for name in features.split(",") if name.strip())
    job(sources, real, features=names, **options)


@click.command()
@click.argument("classifier")
@click.option("--data", metavar="PATH", help="Real patches. [default: the patches that CLASSIFIER was trained on]")
@click.option("--normal", metavar="RUN", required=True, help="Generator of normal patches.")
@click.option("--anomalous", metavar="RUN", required=True, help="Generator of anomalous patches.")
@click.option(
    "--num",
    type=click.IntRange(2, 1_000_000),
    metavar="N",
    default=10_000,
    help="Largest number of real patches, and of generated patches.",
)
@jpeg_option
@seed_option("Random seed (image sampling).", most=10**9)
@out_option("classify", "Output folder.")
@device_option
def classify(classifier: str, **options: Any) -> None:
    """Test a classifier on real and on generated patches.

    CLASSIFIER is the run of a classifier of normal and anomalous patches. Writes its accuracy on both kinds.
    """
    from gan_uad.generation.classify import classify as job

    job(classifier, **options)


@click.command("real-vs-synthetic")
@click.argument("generator")
@click.option("--data", metavar="PATH", help="Real patches. [default: the patches that GENERATOR was trained on]")
@click.option(
    "--num",
    type=click.IntRange(2, 1_000_000),
    metavar="N",
    default=10_000,
    help="Largest number of real patches in each split.",
)
@click.option(
    "--preset", metavar="CONFIG", help="Classifier to train. [default: densenet121_64; above 128 px, densenet121_512]"
)
@click.option("--kimg", type=click.FloatRange(0.001), help="Length of its training. [default: that of the preset]")
@overrides_option("Override a setting of its training.")
@jpeg_option
@seed_option("Random seed (image sampling and training).", most=10**9)
@out_option("real_vs_synthetic", "Output folder.")
@device_option
def real_vs_synthetic(generator: str, **options: Any) -> None:
    """Train a classifier to tell generated from real patches.

    The closer its accuracy is to 50 %, the better the generator. GENERATOR is a run, a model file or a shipped model.
    """
    from gan_uad.generation.real_vs_synthetic import real_vs_synthetic as job

    job(generator, **options)


@click.command()
@click.argument("run")
@click.argument("data", required=False)
@out_option(
    None, "Output folder for latent_space.png and latents.npz. [default: latents/ in RUN, or beside a model file]"
)
@split_option("Split to show. [default: as in score]")
@subset_options
@overrides_option("Override a data.* setting of RUN.")
@device_option
def latents(run: str, data: str | None, **options: Any) -> None:
    """Plot the latent space of an autoencoder.

    RUN is the run of a VAE. DATA are patches [default: the patches that RUN was trained on]. Each patch is a point, coloured by its label.
    """
    from gan_uad.generation.latent_space import latent_space as job

    print(job(run, data, **options))
