"""The verbs that make figures: of scores, of generators, of classifiers; thin as those of `cli`."""

from __future__ import annotations

from pathlib import Path

import click

from gan_uad.cli_options import FOLDER, annotations_option, class_option, device_option, unannotated_option


@click.command()
@click.argument("scores", nargs=-1, required=True, metavar="SCORES...|CONFIG")
@click.option(
    "--out",
    type=FOLDER,
    help="Where figures and pictures go. [default: the first SCORES folder; folds/CONFIG]",
)
@click.option("--threshold", metavar="RULE", help="Another rule than the scored one, set on the validation scores.")
@click.option("--resamples", type=click.IntRange(min=100), default=1000, show_default=True, help="Bootstrap resamples.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the bootstrap.")
@annotations_option("Of scored slides: what is tumour, by slide name, as in tile.")
@class_option("... as in tile.")
@unannotated_option("... what slides without annotation are.")
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
    from gan_uad.jobs.evaluations import evaluations

    evaluations(
        scores, out, threshold=threshold, resamples=resamples, seed=seed, annotations=annotations, classes=classes,
        unannotated=unannotated, labels=labels, folds=folds, data=data, external=external, overrides=overrides,
    )  # fmt: skip


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
    from gan_uad.jobs.fid_table import fid as job

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
