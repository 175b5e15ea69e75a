"""The verbs of whole slides, thin as those of `cli`."""

from __future__ import annotations

from pathlib import Path

import click

from gan_uad.cli.options import (
    FOLDER,
    annotations_option,
    class_option,
    device_option,
    rule_option,
    shard_option,
    slide_mpp_option,
    stain_option,
    unannotated_option,
)


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
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, default=Path("tiles"), show_default=True, help="Folder of the patch set.")
@click.option(
    "--size", type=click.IntRange(16, 4096), default=256, show_default=True, metavar="PX", help="Side of a tile."
)
@click.option(
    "--mpp",
    type=click.FloatRange(0.05, 100),
    default=0.5,
    show_default=True,
    metavar="UM",
    help="µm per px of the tiles.",
)
@slide_mpp_option
@click.option(
    "--tissue",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    metavar="SHARE",
    help="Least share of tissue.",
)
@rule_option
@click.option(
    "--per-slide",
    type=_Count(),
    default=1000,
    show_default=True,
    help="At most so many tiles of a slide, or all (with --grid).",
)
@click.option("--grid", is_flag=True, help="Tiles of a grid; else at random places, none overlapping another.")
@click.option(
    "--stride",
    type=click.FloatRange(0.01, 100),
    default=1.0,
    show_default=True,
    metavar="SIDES",
    help="... of the grid.",
)
@annotations_option("Annotations by slide name: ASAP XML, QuPath GeoJSON.")
@class_option("What an annotated class is: tumour, excluded (from tumour) or ignored. CAMELYON's are known.")
@click.option(
    "--tumour", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True, metavar="SHARE",
    help="Annotated share from which a tile is tumour. Normal is what touches none; between, the label stays empty.",
)  # fmt: skip
@unannotated_option("What tiles of slides without annotation are.")
@click.option(
    "--label",
    type=click.Choice(["normal", "tumour", "all"]),
    default="all",
    show_default=True,
    help="Take only such tiles.",
)
@click.option(
    "--group",
    metavar="REGEX",
    help="What in a slide's name is its patient, such as 'patient_\\d+'. [default: all of it]",
)
@stain_option
@click.option("--compress", is_flag=True, help="Smaller PNGs (by about a fifth), in about twice the time.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the choice of tiles.")
@shard_option
@click.option(
    "--workers", type=click.IntRange(1, 256), metavar="N", help="Threads that read and write. [default: the cores]"
)
def tile(
    slides: tuple[Path, ...], out: Path, size: int, mpp: float, slide_mpp: float | None, tissue: float, rule: str,
    per_slide: int | str, grid: bool, stride: float, annotations: Path | None, classes: dict[str, str], tumour: float,
    unannotated: str, label: str, group: str | None, stain: str | None, compress: bool, seed: int, shard: str | None,
    workers: int | None,
) -> None:  # fmt: skip
    """Cut SLIDES into a set of patches: tiles with tissue, labelled by annotations, index.csv and a contact sheet a slide.

    Run again, slides that are there are left as they are. A slide that fails stops no other; failures are listed last.
    """
    from gan_uad.device import cores
    from gan_uad.slides.batch import parse_shard
    from gan_uad.slides.tile import check_settings
    from gan_uad.slides.tile import tile as job
    from gan_uad.slides.tile_slide import TileSettings

    settings = TileSettings(
        size=size, mpp=mpp, tissue=tissue, rule=rule, per_slide=None if isinstance(per_slide, str) else per_slide,
        choice="grid" if grid else "random", stride=stride, label=label, tumour=tumour, unannotated=unannotated,
        classes=classes, slide_mpp=slide_mpp, group=group, stain=stain, compress=compress, seed=seed,
    )  # fmt: skip
    check_settings(settings)
    print(job(slides, out, settings, annotations, parse_shard(shard), workers or cores()))


@click.command("score-slide")
@click.argument("run")
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=FOLDER,
    default=Path("slide_scores"),
    show_default=True,
    help="A folder a slide goes there, and slides.csv.",
)
@click.option(
    "--normals",
    metavar="DATA",
    help="Patches of normal tissue that the run was not trained on, which calibrate: their val split, or all where there are no splits. "
    "[default: the val split of what it was trained on]",
)
@click.option(
    "--size", type=click.IntRange(16, 4096), metavar="PX", help="Side of a tile. [default: as the run's images]"
)
@click.option(
    "--mpp", type=click.FloatRange(0.05, 100), default=0.5, show_default=True, metavar="UM",
    help="µm per px of the tiles; that of the patches which the run was trained on.",
)  # fmt: skip
@slide_mpp_option
@click.option(
    "--stride", type=click.FloatRange(0.05, 1), default=1.0, show_default=True, metavar="SIDES",
    help="From tile to tile; below 1 they overlap, and the heatmap is finer.",
)  # fmt: skip
@click.option(
    "--tissue",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    metavar="SHARE",
    help="Least share of tissue; that of the patches which calibrate, or tiles at the rim seem rare for their glass.",
)
@rule_option
@stain_option
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Tiles whose mean is one of a slide's scores.",
)
@click.option("--inverter", metavar="NAME", help="How the closest normal image is found; see `gan-uad models`.")
@click.option(
    "-o", "overrides", metavar="KEY=VALUE", multiple=True, help="Override data.* or scoring.* of the run, as in score."
)
@shard_option
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="Threads that read. [default: the cores]")
@device_option
def score_slide(
    run: str, slides: tuple[Path, ...], out: Path, normals: str | None, size: int | None, mpp: float, slide_mpp: float | None,
    stride: float, tissue: float, rule: str, stain: str | None, top_k: int, inverter: str | None, overrides: tuple[str, ...],
    shard: str | None, workers: int | None, device: str,
) -> None:  # fmt: skip
    """Score the tiles of SLIDES by the model RUN: heatmaps, tiles for QuPath, and a score for each slide in slides.csv.

    A tile's score is calibrated on held-out normals: p is the probability that normal tissue scores as high. Run again, it goes on;
    slides that are done are left as they are. A slide that fails stops no other; failures are listed last.
    """
    from gan_uad.slides.batch import parse_shard
    from gan_uad.slides.score_slide import Cut
    from gan_uad.slides.score_slides import score_slides as job

    cut = Cut(size or 0, mpp, stride, rule, tissue, stain or "", slide_mpp)
    print(job(run, list(slides), out, cut, normals, overrides, inverter, top_k, parse_shard(shard), workers, device))
