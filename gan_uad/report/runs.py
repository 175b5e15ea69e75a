"""Sections of a report: runs of `gan-uad train`, and pictures of generators and autoencoders."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from gan_uad.report.gather import (
    Gathering,
    ResultFolder,
    hardware,
    listed,
    pairs,
    read_json,
    show_data,
    versions,
    well_formed,
)
from gan_uad.report.html import Folded
from gan_uad.run import Run

NO_CURVE = {"nimg", "kimg", "seconds_per_kimg", "memory_gb", "time"}
GENERATORS = {"dcgan", "wgan_gp", "pgan", "stylegan", "stylegan2"}  # tasks whose runs are compared by their images
MAX_CURVES = 12  # in one picture
DRAWN = "Drawn for this report from the run's log."
SNAPSHOT = re.compile(r"\d+\.png")


def add_run(g: Gathering, found: ResultFolder) -> None:
    """A run folder: settings, versions, data, curves, snapshots, and what is missing."""
    run = Run(found.path)
    config, rows = run.config, run.read_log()
    about = read_json(found.path / "environment.json")
    with well_formed(found.path / "log.jsonl"):
        kimg = float(rows[-1]["kimg"]) if rows else 0.0
        hours = _hours(rows)
    with well_formed(found.path / "environment.json"):
        g.doc.add("runs", found.name, _settings(run, about, kimg, hours))
        g.doc.add(
            "runs",
            found.name,
            Folded("The complete configuration", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)),
        )
    show_data(g, found, config.data.model_dump(mode="json"), config.resolution)
    length = f"fitted on {1000 * kimg:,.0f} normal images"
    if config.task:
        length = f"trained for {kimg:g} of {config.training.total_kimg:g} kimg (thousands of images seen)"
    g.doc.result(
        found.name,
        f"Run {config.name} ({config.task or config.scoring.scorer}, {config.resolution} px), {length}.",
        last=True,
    )
    _curves(g, found, run, rows)
    _snapshots(g, found)
    _gaps(g, found, run, kimg, about)


def _settings(run: Run, about: Mapping[str, Any], kimg: float, hours: float) -> Any:
    config, training = run.config, run.config.training
    processes = about.get("processes", 1)
    return pairs(
        f"Training of {config.name}",
        {
            "Model": f"{config.model or config.scoring.scorer} ({config.task or 'fitted scorer'}), {config.resolution} px",
            "Trained for": (
                f"{kimg:g} of {training.total_kimg:g} kimg" if config.task else f"{1000 * kimg:,.0f} images"
            )
            + (f", {hours:.2f} hours" if hours else ""),
            "Settings": listed(
                {"batch": training.batch, "seed": training.seed, "precision": training.precision, **config.optim}
            ),
            "Network": listed(config.network) or None,
            "Generator": config.generator,
            "Patches": config.data.path,
            "Command": shlex.join(map(str, about.get("command", []))),
            "Hardware": (f"{processes} processes, " if processes > 1 else "") + hardware(about),
            **versions(about),
        },
    )


def _hours(rows: list[dict[str, Any]]) -> float:
    """Hours of training, without the pauses before a resume."""
    before, seconds = 0.0, 0.0
    for row in rows:
        seconds += float(row.get("seconds_per_kimg") or 0.0) * (float(row["kimg"]) - before)
        before = float(row["kimg"])
    return seconds / 3600


def _curves(g: Gathering, found: ResultFolder, run: Run, rows: list[dict[str, Any]]) -> None:
    from gan_uad.plotting.plots import training_curves

    n = f"{len(rows)} lines of the log"
    if (
        not g.doc.picture(
            "training", found.name, found.path / "curves.png", f"Learning curves over kimg; {n}.", wide=True
        )
        and rows
    ):
        for caption, those in (("Training curves", rows), ("Validation on held-out images", run.read_validations())):
            with well_formed(found.path / "log.jsonl"):
                keys = _numbers(those)[:MAX_CURVES]
                if keys:
                    drawn = training_curves(those, keys, g.drawing("curves"))
                    text = f"{caption} over kimg (thousands of images seen); {len(those)} points. {DRAWN}"
                    g.doc.picture("training", found.name, drawn, text, wide=len(keys) > 2)


def _numbers(rows: list[dict[str, Any]]) -> list[str]:
    """Keys that are numbers in some rows, and nothing else in others."""
    names = dict.fromkeys(key for row in rows for key in row if key not in NO_CURVE)
    return [
        name for name in names
        if all(isinstance(row.get(name), int | float | None) and not isinstance(row.get(name), bool) for row in rows)
        and any(row.get(name) is not None and np.isfinite(row[name]) for row in rows)
    ]  # fmt: skip


def _snapshots(g: Gathering, found: ResultFolder) -> None:
    g.doc.picture(
        "samples", found.name, found.path / "reals.png", "Real patches of the training set, as the network sees them."
    )
    generated = sorted(path for path in found.path.glob("fakes/*.png") if SNAPSHOT.fullmatch(path.name))
    for path in dict.fromkeys([*generated[:1], *generated[-1:]]):
        when = "Last" if path == generated[-1] else "First"
        caption = (
            f"{when} of {len(generated)} snapshots of training, after {int(path.stem):,} kimg: images of the model."
        )
        g.doc.picture("samples", found.name, path, caption)


def _gaps(g: Gathering, found: ResultFolder, run: Run, kimg: float, about: Mapping[str, Any]) -> None:
    config, name = run.config, found.name
    validations = run.read_validations()
    patience = config.training.patience
    stopped = (
        patience is not None
        and len(validations) > patience
        and not any(row.get("best") for row in validations[-patience:])
    )
    if config.task and kimg < 0.99 * config.training.total_kimg and not stopped:
        g.doc.missing(
            name, f"TRUNCATED: trained for {kimg:g} of the {config.training.total_kimg:g} kimg of its configuration",
            f"gan-uad train {shlex.quote(str(found.path))} --resume",
        )  # fmt: skip
    if config.task and not validations:
        g.doc.missing(name, "it was not validated on held-out images during training (training.eval_kimg)")
    revision = about.get("git")
    if revision is None:
        g.doc.missing(name, "the revision of the program that trained it is unknown")
    elif str(revision).endswith("+"):
        g.doc.missing(name, "the program that trained it had uncommitted changes")
    g.checks.append(lambda: _not_used(g, found, run))


def _not_used(g: Gathering, found: ResultFolder, run: Run) -> None:
    """Say it where nothing was scored with the run, or its images were not compared."""
    folder, command = found.path.resolve(), shlex.quote(str(found.path))
    if run.config.task in GENERATORS:
        if folder not in g.compared:
            g.doc.missing(
                found.name, "its images were not compared with real ones (no FID)", f"gan-uad fid {command} --real DATA"
            )
    elif folder not in g.scored:
        g.doc.missing(found.name, "this report has no patches that were scored with it", f"gan-uad score {command}")


def add_generated(g: Gathering, found: ResultFolder) -> None:
    """A folder of `gan-uad generate`."""
    count = len(list(found.path.glob("seed*.png"))) + len(list(found.path.glob("latent*.png")))
    of = f" of {count:,} images" if count else ""
    g.doc.picture(
        "samples",
        found.name,
        found.path / "grid.png",
        f"Samples{of} of a generator, one per seed, not selected.",
        wide=True,
    )


def add_picture(g: Gathering, found: ResultFolder) -> None:
    """A picture file, such as `gan-uad interpolate` writes."""
    moving = found.path.suffix.lower() == ".gif"
    what = "Animated interpolation between latents." if moving else "Picture of samples or of an interpolation."
    g.doc.picture("samples", found.name, found.path, f"{what} File {found.path.name}.", wide=not moving)


def add_latents(g: Gathering, found: ResultFolder) -> None:
    """A folder of `gan-uad latents`."""
    count = ""
    if (found.path / "latents.npz").is_file():
        with well_formed(found.path / "latents.npz"), np.load(found.path / "latents.npz", allow_pickle=False) as arrays:
            count = f" n = {len(arrays['label']):,} images."
    caption = f"Patches in the latent space of the autoencoder: its first two principal components (PCA).{count}"
    g.doc.picture("latent", found.name, found.path / "latent_space.png", caption)


def add_check(g: Gathering, found: ResultFolder) -> None:
    """A folder of `gan-uad data check --out`."""
    for name, caption in (
        ("class_samples.png", "Samples of each class, as the network would see them."),
        ("class_balance.png", "Class balance: number of images by split and class."),
    ):
        g.doc.picture("data", found.name, found.path / name, caption, wide=name.startswith("class_s"))
