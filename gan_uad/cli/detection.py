"""Commands that score patches and evaluate scores."""

from __future__ import annotations

from pathlib import Path

import click

from gan_uad.cli.options import FOLDER, annotations_option, class_option, device_option, unannotated_option
from gan_uad.errors import UserError, refuse


@click.command()
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
    from gan_uad.detection.score import score as job

    print(job(run, data, out, split, inverter, threshold, overrides, maps, pixel_quantile, max_images, seed, device))


@click.command()
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
    from gan_uad.detection.project import project as job

    print(job(run, list(images), out, inverter, options, gif, seed, device))


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
    evaluations(
        scores, out, threshold=threshold, resamples=resamples, seed=seed, annotations=annotations, classes=classes,
        unannotated=unannotated, labels=labels, folds=folds, data=data, external=external, overrides=overrides,
    )  # fmt: skip


def evaluations(
    sources: tuple[str, ...], out: Path | None, *, threshold: str | None, resamples: int, seed: int, annotations: Path | None,
    classes: dict[str, str], unannotated: str, labels: Path | None, folds: int | None, data: str | None, external: str | None,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """See `cross_validate` where there are `folds`, else `evaluate_slides` or `evaluate`.

    Raises `UserError` for options of another of the three.
    """
    from gan_uad.slides.batch import holds_slides

    of_folds = {"--data": data, "--external": external, "-o": overrides or None}
    of_slides = {
        "--annotations": annotations, "--labels": labels, "--class": classes or None, "--unannotated": unannotated == "normal",
    }  # fmt: skip
    if folds is not None:
        from gan_uad.detection.cross_validate import cross_validate

        refuse(of_slides, "goes with folders of score-slide only")
        if len(sources) > 1:
            raise UserError("--folds takes one CONFIG")
        cross_validate(sources[0], folds, data, external, out, overrides, threshold, resamples, seed)
        return
    refuse(of_folds, "goes with --folds only")
    folders = [Path(source) for source in sources]
    if all(map(holds_slides, folders)):
        from gan_uad.slides.evaluate import evaluate_slides

        refuse({"--threshold": threshold}, "has no use for slides, which are ranked")
        evaluate_slides(folders, out, annotations, labels, classes, unannotated, resamples, seed)
        return
    from gan_uad.detection.evaluate import evaluate

    refuse(of_slides, "goes with folders of score-slide only")
    evaluate(folders, out, threshold, resamples, seed)
