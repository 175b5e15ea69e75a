"""Commands for whole slides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gan_uad.cli.options import (
    PATH,
    annotations_option,
    bootstrap_options,
    class_option,
    device_option,
    inverter_option,
    out_option,
    overrides_option,
    precision_option,
    rule_option,
    seed_option,
    shard_option,
    slide_mpp_option,
    slides_csv_option,
    stain_option,
    strict_option,
    unannotated_option,
    workers_option,
)

tissue_option = click.option(
    "--tissue",
    type=click.FloatRange(0, 1),
    default=0.9,
    metavar="FRACTION",
    help="Minimum tissue fraction of a tile. Use the same value for training and scoring.",
)
MPP = click.FloatRange(0.05, 100)


class _Count(click.ParamType):
    """A number of at least 1, or `all`."""

    name = "n"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "all" or (isinstance(value, int) and value >= 1):
            return value
        if isinstance(value, str) and value.isdecimal() and int(value) >= 1:
            return int(value)
        self.fail(f"{value!r} is neither a number of tiles nor `all`", param, ctx)


@click.command()
@click.argument("slides", nargs=-1, required=True, type=PATH)
@out_option("tiles", "Folder of the patch set.")
@click.option("--size", type=click.IntRange(16, 4096), default=256, metavar="PX", help="Side of a tile.")
@click.option("--mpp", type=MPP, default=0.5, metavar="UM", help="µm/px of the tiles.")
@slide_mpp_option
@slides_csv_option
@tissue_option
@rule_option
@click.option(
    "--per-slide", type=_Count(), default=1000, help="Largest number of tiles per slide. `all` requires --grid."
)
@click.option("--grid", is_flag=True, help="Place tiles on a grid. [default: at random places, without overlap]")
@click.option(
    "--stride",
    type=click.FloatRange(0.01, 100),
    default=1.0,
    metavar="FRACTION",
    help="Step of the grid, as a fraction of the tile side.",
)
@annotations_option
@class_option
@click.option(
    "--tumour",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    metavar="FRACTION",
    help="Minimum annotated fraction of a tumour tile. A tile with less has no label; with none it is normal.",
)
@unannotated_option
@strict_option
@click.option(
    "--label", type=click.Choice(["normal", "tumour", "all"]), default="all", help="Keep only tiles of this label."
)
@click.option(
    "--group",
    metavar="REGEX",
    help="Regular expression for the patient in the name of a slide, such as 'patient_\\d+'. [default: the name]",
)
@stain_option
@click.option("--compress", is_flag=True, help="Write PNG files that are a fifth smaller, in twice the time.")
@seed_option("Random seed (tile sampling).")
@shard_option
@workers_option
def tile(
    slides: tuple[Path, ...], out: Path, annotations: Path | None, shard: str | None, workers: int | None, grid: bool,
    per_slide: int | str, slides_csv: Path | None, strict: bool, **settings: Any,
) -> None:  # fmt: skip
    """Cut whole slides into a set of patches.

    Keeps tiles with tissue and labels them by annotations. Writes the tiles, index.csv and a contact sheet per slide. Run the same command
    again to resume. A slide that fails does not stop the others.
    """
    from gan_uad.device import cores
    from gan_uad.slides.batch import parse_shard
    from gan_uad.slides.tile import check_settings
    from gan_uad.slides.tile import tile as job
    from gan_uad.slides.tile_slide import TileSettings

    count = None if isinstance(per_slide, str) else per_slide
    cut = TileSettings(per_slide=count, choice="grid" if grid else "random", **settings)
    check_settings(cut)
    print(job(slides, out, cut, annotations, parse_shard(shard), workers or cores(), slides_csv, strict))


@click.command("score-slide")
@click.argument("run")
@click.argument("slides", nargs=-1, required=True, type=PATH)
@out_option("slide_scores", "Output folder: one subfolder per slide, plus slides.csv.")
@click.option(
    "--normals",
    metavar="DATA",
    help="Normal patches to calibrate p. They must not be training patches. Required for shipped models. "
    "[default: the val split of the patches that RUN was trained on]",
)
@click.option(
    "--size",
    type=click.IntRange(16, 4096),
    metavar="PX",
    help="Side of a tile. [default: that of the patches RUN was trained on; else the resolution of RUN]",
)
@click.option(
    "--mpp",
    type=MPP,
    metavar="UM",
    help="µm/px of the tiles. [default: that of the patches RUN was trained on; required where it is unknown]",
)
@click.option("--other-mpp", is_flag=True, help="Allow tiles of another µm/px than RUN was trained on.")
@slide_mpp_option
@slides_csv_option
@click.option(
    "--stride",
    type=click.FloatRange(0.05, 1),
    default=1.0,
    metavar="FRACTION",
    help="Step between tiles, as a fraction of the tile side. Below 1, tiles overlap and the heatmap is finer.",
)
@tissue_option
@rule_option
@stain_option
@click.option(
    "--threshold",
    metavar="RULE",
    help="Rule that decides which tiles are anomalous, see `gan-uad score`. [default: that of RUN; fpr:0.05]",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    metavar="N",
    default=10,
    help="Also report the mean of the N highest tile scores.",
)
@inverter_option
@overrides_option("Override a data.* or scoring.* setting of RUN.")
@shard_option
@workers_option
@device_option
@precision_option
def score_slide(
    run: str, slides: tuple[Path, ...], out: Path, size: int | None, mpp: float | None, slide_mpp: float | None, stride: float,
    tissue: float, rule: str, stain: str | None, shard: str | None, **options: Any,
) -> None:  # fmt: skip
    """Score the tiles of whole slides, and draw heatmaps.

    Writes for each slide a heatmap, tiles.csv and tiles with measurements for QuPath, and one score per slide in slides.csv. p is the
    probability that a normal tile scores at least this high. Run the same command again to resume. A slide that fails does not stop
    the others.
    """
    from gan_uad.slides.batch import parse_shard
    from gan_uad.slides.score_slide import Cut
    from gan_uad.slides.score_slides import score_slides as job

    cut = Cut(size or 0, mpp or 0.0, stride, rule, tissue, stain or "", slide_mpp)
    print(job(run, list(slides), out, cut, shard=parse_shard(shard), **options))


@click.command("evaluate-slides")
@click.argument("scores", nargs=-1, required=True, type=PATH)
@out_option(None, "Output folder. [default: the first of SCORES]")
@annotations_option
@class_option
@unannotated_option
@strict_option
@click.option(
    "--labels",
    type=PATH,
    metavar="FILE",
    help="CSV file with columns slide and label (0 normal, 1 tumour), and patient.",
)
@bootstrap_options
def evaluate_slides(scores: tuple[Path, ...], **options: Any) -> None:
    """Compute AUROC of tiles and slides, and FROC.

    SCORES are output folders of `gan-uad score-slide`. Give --annotations or --labels.
    """
    from gan_uad.slides.evaluate import evaluate_slides as job

    job(list(scores), **options)
