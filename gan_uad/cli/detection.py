"""Commands that score patches and evaluate the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gan_uad import console
from gan_uad.cli.options import (
    PATH,
    THRESHOLD_RULES,
    bootstrap_options,
    device_option,
    inverter_option,
    out_option,
    overrides_option,
    precision_option,
    seed_option,
    split_option,
    subset_options,
)
from gan_uad.errors import refuse


@click.command(epilog=THRESHOLD_RULES)
@click.argument("run")
@click.argument("data", required=False)
@out_option(None, "Output folder. [default: a folder in RUN/scores; for a shipped model, in ./scores]")
@split_option("Split to score. [default: test where DATA has splits or RUN was trained on it, else all]")
@inverter_option
@click.option(
    "--threshold",
    metavar="RULE",
    help="Rule that sets the threshold on validation images, see below. [default: that of RUN; fpr:0.05, or manual:0 for classifiers]",
)
@click.option("--maps", is_flag=True, help="Write anomaly maps, and masks of the pixels above a threshold.")
@click.option(
    "--pixel-quantile",
    type=click.FloatRange(0.5, 1),
    default=0.99,
    help="Threshold of the masks: this quantile of the map values in normal validation patches.",
)
@subset_options
@overrides_option("Override a data.* or scoring.* setting of RUN, such as -o scoring.options.steps=200.")
@device_option
@precision_option
def score(run: str, data: str | None, **options: Any) -> None:
    """Score patches: how far is each from normal?

    RUN is a run folder, a model file or a shipped model. DATA is a folder, zip, .npz or .h5 of patches [default: the patches that RUN was
    trained on]. Writes scores.csv and prints its folder. `gan-uad evaluate` reads it.
    """
    from gan_uad.detection.score import score as job

    print(job(run, data, **options))


@click.command()
@click.argument("run")
@click.argument("images", nargs=-1, required=True, type=PATH)
@out_option("projected", "Output folder: one subfolder per image, plus projections.csv.")
@click.option(
    "--inverter",
    metavar="NAME",
    help="Method that finds the closest image: w, w_plus, z, style_encoder, izi_f, anogan, ... [default: that of RUN, else w or anogan]",
)
@overrides_option("Set an option of the inverter, such as -o steps=200 -o perceptual=alex.", "options")
@click.option("--gif", is_flag=True, help="Also write an animation of each search.")
@seed_option("Random seed of the search.")
@device_option
@precision_option
def project(run: str, images: tuple[Path, ...], **options: Any) -> None:
    """Find the closest image that a generator can make.

    RUN is the run of a generator or an encoder, a model file or a shipped model. IMAGES are files, or folders of them. Writes each closest
    image and its latent.
    """
    from gan_uad.detection.project import project as job

    print(job(run, list(images), **options))


@click.command(epilog=THRESHOLD_RULES)
@click.argument("scores", nargs=-1, required=True, type=PATH)
@out_option(None, "Output folder. [default: the first of SCORES]")
@click.option("--threshold", metavar="RULE", help="Set the threshold by another rule, see below.")
@click.option(
    "--baseline",
    metavar="NAME",
    help="Compare all with this model of the table. [default: mean colour, and the first of several others]",
)
@bootstrap_options
def evaluate(scores: tuple[Path, ...], **options: Any) -> None:
    """Compute AUROC and other metrics, with intervals.

    SCORES are output folders of `gan-uad score`, or scores.csv files with labels. Several are compared on the images that they share, with
    paired intervals of the differences. Writes metrics.json, tables and plots. For whole slides use `gan-uad evaluate-slides`.
    """
    from gan_uad.slides.batch import holds_slides

    if all(map(holds_slides, scores)):  # until version 0.3
        from gan_uad.slides.evaluate import evaluate_slides

        console.say("note: use gan-uad evaluate-slides; gan-uad evaluate will not take slides from version 0.3 on")
        refuse({"--threshold": options.pop("threshold")}, "does not apply to slides, which are ranked")
        refuse({"--baseline": options.pop("baseline")}, "does not apply to slides")
        evaluate_slides(list(scores), **options)
        return
    from gan_uad.detection.evaluate import evaluate as job

    job(list(scores), **options)


@click.command("cross-validate", epilog=THRESHOLD_RULES)
@click.argument("config")
@click.option("--folds", type=click.IntRange(min=2), required=True, metavar="K", help="Number of folds.")
@click.option("--data", metavar="PATH", help="Patches. Existing splits are ignored.")
@click.option("--external", metavar="PATH", help="Also score these patches with the model of each fold.")
@out_option(None, "Output folder. [default: folds/CONFIG]")
@overrides_option("Override a setting. {fold} stands for the number of the fold, as in generator=runs/fold-{fold}.")
@click.option("--threshold", metavar="RULE", help="Rule that sets the threshold, see below.")
@bootstrap_options
def cross_validate(config: str, **options: Any) -> None:
    """K-fold cross-validation by patient or slide.

    Each fold is tested on patients or slides that its model has not seen. CONFIG is a preset or a YAML file. Run the same command again to
    resume.
    """
    from gan_uad.detection.cross_validate import cross_validate as job

    job(config, **options)
