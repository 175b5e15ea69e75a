"""Options that several commands have, and the names that commands had before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gan_uad import console
from gan_uad.files import check_folder

Decorator = Callable[[Any], Any]
PATH = click.Path(path_type=Path)
SPLITS = ("train", "val", "test", "all")
TRAINED_ON = "[default: the patches that RUN was trained on]"

# Option of a command -> the command that does it now, and the option's new name there (None: it goes). Until version 0.3.
OLD_SPELLINGS: dict[tuple[str, str], tuple[str, str | None]] = {
    ("evaluate", "--folds"): ("cross-validate", "--folds"),
    ("evaluate", "--annotations"): ("evaluate-slides", "--annotations"),
    ("evaluate", "--labels"): ("evaluate-slides", "--labels"),
    ("classify", "--real-vs-synthetic"): ("real-vs-synthetic", None),
    ("generate", "--interpolate"): ("interpolate", "--out"),
    ("demo", "--slide"): ("demo-slides", None),
}


class _Folder(click.Path):
    """A folder that exists or can be made. The check makes nothing."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises `UserError` where a file is in the way."""
        check_folder(Path(value))
        return super().convert(value, param, ctx)


FOLDER = _Folder()


class CommandGroup(click.Group):
    """A group that still takes the old spellings of its commands, and names the new ones."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click."""
        for (command, option), (new, renamed) in OLD_SPELLINGS.items():
            place = next((k for k, word in enumerate(args) if word == option or word.startswith(f"{option}=")), None)
            if args[0] == command and place is not None:
                console.say(f"note: use gan-uad {new}; gan-uad {command} {option} will be removed in version 0.3")
                value = args[place].removeprefix(option).removeprefix("=")
                option_words = [word for word in (renamed, value) if word]
                args = [new, *args[1:place], *option_words, *args[place + 1 :]]
        return super().resolve_command(ctx, args)


def out_option(default: str | None, help: str) -> Decorator:
    """The output folder."""
    return click.option("--out", type=FOLDER, default=None if default is None else Path(default), help=help)


def overrides_option(help: str, name: str = "overrides") -> Decorator:
    """Settings, as often as wanted."""
    return click.option("-o", name, metavar="KEY=VALUE", multiple=True, help=help)


def seed_option(help: str, most: int = 2**32 - 1, default: int = 0) -> Decorator:
    """A random seed."""
    return click.option("--seed", type=click.IntRange(0, most), metavar="N", default=default, help=help)


def split_option(help: str) -> Decorator:
    """One split of a patch set, or all."""
    return click.option("--split", type=click.Choice(SPLITS), help=help)


def subset_options(function: Any) -> Any:
    """A random subset of the patches."""
    limit = click.option(
        "--max-images", type=click.IntRange(min=1), metavar="N", help="Use a random subset of N patches."
    )
    return limit(seed_option("Random seed of the subset.")(function))


def bootstrap_options(function: Any) -> Any:
    """How intervals are computed."""
    resamples = click.option(
        "--resamples", type=click.IntRange(min=100), metavar="N", default=1000, help="Number of bootstrap resamples."
    )
    return resamples(seed_option("Random seed of the bootstrap.")(function))


def style_options(noise: str) -> Decorator:
    """Truncation and noise maps of style-based generators."""

    def add(function: Any) -> Any:
        psi = click.option(
            "--truncation",
            "psi",
            type=click.FloatRange(-1, 2),
            metavar="PSI",
            default=1.0,
            help="Truncation psi (StyleGAN, StyleGAN2). 1: none. 0: the average image.",
        )
        maps = click.option(
            "--noise",
            type=click.Choice(["const", "none", "random"]),
            default=noise,
            help="Noise maps (StyleGAN, StyleGAN2). const: the same for all images. random: by the seed of each image. "
            "In tissue they determine where nuclei and fibres lie.",
        )
        return psi(maps(function))

    return add


device_option = click.option(
    "--device",
    metavar="NAME",
    default="auto",
    help="auto (CUDA where it is available), cpu, cuda, or cuda:N (the GPU of that number).",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32"]),
    default="fp32",
    help="fp32: exact. tf32: faster and rounded, on GPUs that have it. The results say which.",
)
inverter_option = click.option(
    "--inverter", metavar="NAME", help="Method that finds the closest normal image. See `gan-uad models`."
)
slide_mpp_option = click.option(
    "--slide-mpp",
    type=click.FloatRange(0.01, 1000),
    metavar="UM",
    help="µm/px of the slides. Replaces the value in the slide file, with a note.",
)
slides_csv_option = click.option(
    "--slides-csv",
    type=PATH,
    metavar="FILE",
    help="CSV file with a column slide (or wsi), and mpp, patient or label (normal, tumour, unknown) of each slide.",
)
rule_option = click.option(
    "--rule", type=click.Choice(["mask", "keep_tile", "otsu"]), default="mask", help="Tissue detection method."
)
stain_option = click.option(
    "--stain",
    type=click.Choice(["reinhard", "macenko"]),
    help="Stain normalisation. It can hide anomalies. [default: none]",
)
shard_option = click.option(
    "--shard",
    metavar="I/N",
    help="Process part I of N of the slides. [default: all; under torchrun, one part per process]",
)
workers_option = click.option(
    "--workers", type=click.IntRange(1, 256), metavar="N", help="Number of threads. [default: number of CPU cores]"
)
# A paragraph that click does not wrap.
THRESHOLD_RULES = """\b
Rules for --threshold. A score above the threshold is called anomalous.
  fpr:A       a normal patch of a new patient exceeds it with
              probability A at most. Needs validation normals of
              1/A - 1 patients: 9 for 0.1, 19 for 0.05, 99 for 0.01;
              as many images where patients are unknown.
  quantile:Q  this quantile of validation normals. No guarantee.
  mean_std:K  their mean plus K standard deviations. No guarantee.
  youden      largest sensitivity + specificity - 1. No guarantee.
              Needs validation patches of both labels.
  manual:V    the value V. No guarantee.
Where a rule cannot be met there is no threshold and no decision.
"""

annotations_option = click.option(
    "--annotations",
    type=PATH,
    metavar="DIR",
    help="Folder of annotations, named like the slides: ASAP XML or QuPath GeoJSON.",
)
unannotated_option = click.option(
    "--unannotated",
    type=click.Choice(["normal", "unknown"]),
    default="unknown",
    help="Label of slides without an annotation.",
)


strict_option = click.option(
    "--strict",
    is_flag=True,
    help="Refuse to start where a slide has no annotation or table row, or one of these is unused.",
)


def class_option(function: Any) -> Any:
    """What annotated classes mean, as a mapping."""
    help = (
        "Meaning of an annotated class: tumour, excluded (cut out of tumour) or ignored. CAMELYON's classes are known."
    )
    return click.option("--class", "classes", multiple=True, callback=_classes, metavar="NAME=ROLE", help=help)(
        function
    )


def _classes(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`--class NAME=ROLE`, any number of times, as a mapping."""
    from gan_uad.slides.annotations import ROLES

    pairs = [value.rpartition("=") for value in values]
    for name, _equals, role in pairs:
        if not name or role not in ROLES:
            raise click.BadParameter(f"expected NAME={'|'.join(ROLES)}, such as Stroma=ignored")
    return {name.strip(): role for name, _equals, role in pairs}
