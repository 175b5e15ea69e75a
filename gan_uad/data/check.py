"""`gan-uad data check`: what a set of patches holds, and its problems, before training."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from gan_uad import console
from gan_uad.config import DataConfig
from gan_uad.data.cache import Tally, usable
from gan_uad.data.findings import check_masks, hints, missing, notes_of, repeated, too_few_contaminants
from gan_uad.data.images import Pixels, preprocess
from gan_uad.data.manifest import LABEL_NAMES, SPLITS, Manifest
from gan_uad.data.scale import Scale, scale_of
from gan_uad.data.sources import Source, open_source
from gan_uad.data.splits import split_manifest
from gan_uad.device import cores
from gan_uad.errors import UserError
from gan_uad.files import make_folder
from gan_uad.plotting.pictures import class_samples
from gan_uad.plotting.plots import class_balance

N_EXAMPLES = 16  # of each class in class_samples.png
MAX_LISTED = 10  # names of each list in the text; JSON has all


@dataclass
class Report:
    """What was found. `problems` is empty when the set is ready for training and evaluation."""

    path: str
    kind: str
    images: int
    counts: dict[str, dict[str, int]]  # {split: {class: images}}
    labels: dict[str, dict[str, int]]  # {split: {'normal', 'anomalous' or 'unknown': images}}
    groups: dict[str, int]  # {split: known groups}
    without_group: int
    sizes: dict[str, int]  # {'96x96 RGB': images}, most frequent first
    mpp: float | None  # µm/px; None where unknown
    broken: list[tuple[str, str]]  # (name, reason)
    masks: list[tuple[str, str]]  # that cannot be used: (name, reason)
    groups_on_two_sides: dict[str, list[str]]
    duplicates: int  # images with the same pixels as another
    duplicates_across_splits: list[list[str]]  # names of equal images in different splits
    notes: list[str]
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def data_check(
    path: str | Path, data: DataConfig, resolution: int = 64, out: Path | None = None, as_json: bool = False
) -> int:
    """Read every image of a set, print a report, and return the exit code: 0 fine, 1 with problems.

    resolution: of the network (an image may be too small for its centre crop). out: folder for `class_samples.png`
    and `class_balance.png`. Raises `UserError` when the set cannot be opened at all.
    """
    source = open_source(path, data)
    report, manifest = examine(source, data, resolution)
    click.echo(json.dumps(asdict(report) | {"ok": report.ok}, indent=2) if as_json else as_text(report))
    if out is not None:
        make_folder(out)
        class_balance(report.counts, out / "class_balance.png")
        samples = _samples(source, manifest, data, resolution)
        if samples:
            class_samples(samples, out / "class_samples.png")
    return 0 if report.ok else 1


def examine(source: Source, data: DataConfig, resolution: int) -> tuple[Report, Manifest]:
    """Read every image and mask; return the report, and the manifest of the usable images with the splits of a training."""
    torn = source.manifest.groups_on_two_sides() if data.folds is None else {}
    manifest, notes = (source.manifest, list(source.notes)) if torn else split_manifest(source, data)
    tally = Tally()
    with console.progress("reading images", len(manifest)) as bar:
        for _ in usable(source, data, resolution, tally, lambda done, _: bar.update(done)):
            pass
    used = manifest.take(tally.rows)
    twice, across = _duplicates(used, tally.hashes)
    masks, of_masks = check_masks(source, manifest, tally.rows)
    scale, mixed = Scale(), []
    try:
        scale = scale_of(source.manifest.mpp, tally.sizes, data, str(source.path))
    except UserError as error:  # which a training refuses too
        mixed = [error.message]
    report = Report(
        path=str(source.path),
        kind=source.kind,
        images=len(manifest),
        counts=used.counts(),
        labels=used.replace(klass=[""] * len(used)).counts(),
        groups={s: len({used.group[i] for i in used.where(s)} - {""}) for s in SPLITS if s in used.split},
        without_group=used.group.count(""),
        sizes=_kinds(source, tally.rows),
        mpp=scale.mpp,
        broken=tally.skipped,
        masks=masks,
        groups_on_two_sides={group: sorted(sides) for group, sides in sorted(torn.items())},
        duplicates=twice,
        duplicates_across_splits=across,
        notes=notes + notes_of(used, tally, data, resolution) + hints(used, data.label) + of_masks,
        problems=[],
    )
    report.problems = _problems(report) + missing(used, data.label) + mixed
    if data.contamination and (few := too_few_contaminants(used, data, str(source.path))):
        report.problems.append(few)
    return report, used


def _kinds(source: Source, rows: list[int]) -> dict[str, int]:
    """How many images have each size and pixel type as stored, most frequent first."""

    def of(i: int) -> str:
        width, height, mode = source.describe(i)
        return f"{width}x{height} {mode}"

    with ThreadPoolExecutor(cores()) as pool:
        return dict(Counter(pool.map(of, rows)).most_common())


def _duplicates(manifest: Manifest, hashes: list[str]) -> tuple[int, list[list[str]]]:
    """How many images repeat another's pixels, and the sets of equal images that lie in several splits."""
    same: dict[str, list[int]] = {}
    for i, content in enumerate(hashes):
        same.setdefault(content, []).append(i)
    across = dict.fromkeys(first for first, _ in repeated(manifest, hashes))
    return len(hashes) - len(same), [[manifest.image[i] for i in same[hashes[first]]] for first in across]


def _problems(report: Report) -> list[str]:
    """What is wrong with images, masks and groups."""
    found = []
    if report.broken:
        found.append(f"{_many(len(report.broken), 'image')} cannot be used")
    if report.masks:
        found.append(f"{_many(len(report.masks), 'mask')} cannot be used: there are no pixel metrics with them")
    if torn := len(report.groups_on_two_sides):
        found.append(f"{_many(torn, 'group')} on two sides of the split: move each to one side")
    if equal := len(report.duplicates_across_splits):
        first = " and ".join(report.duplicates_across_splits[0][:2])
        same = f"{_many(equal, 'image')} with the same pixels in two splits"
        found.append(f"{same}, such as {first}: training images would be tested on")
    return found


def as_text(report: Report) -> str:
    """The report for people."""
    lines = [f"{report.path}: {_many(report.images, 'image')}, read as {report.kind}", ""]
    for split, classes in report.counts.items():
        labels = report.labels[split]
        kinds = ", ".join(f"{labels[name]} {name}" for name in LABEL_NAMES.values() if name in labels)
        named = "" if set(classes) <= set(labels) else f" ({', '.join(f'{name} {n}' for name, n in classes.items())})"
        groups = f", {_many(report.groups[split], 'group')}" if report.groups.get(split) else ""
        lines.append(f"  {split:8} {kinds}{named}{groups}")
    sizes = [f"{size}: {n}" for size, n in report.sizes.items()]
    lines += ["", f"sizes: {', '.join(_first(sizes))}"]
    if report.mpp is not None:
        lines.append(f"scale: {report.mpp:g} µm/px")
    if report.without_group:
        lines.append(f"without group: {report.without_group}")
    if report.duplicates:
        lines.append(f"exact duplicates: {report.duplicates}")
    lines += [f"note: {note}" for note in report.notes]
    for title, found in (
        ("broken", [f"{name}: {reason}" for name, reason in report.broken]),
        ("masks that cannot be used", [f"{name}: {reason}" for name, reason in report.masks]),
        (
            "groups on two sides",
            [f"{group}: {', '.join(sides)}" for group, sides in report.groups_on_two_sides.items()],
        ),
        ("equal images in different splits", [" = ".join(names) for names in report.duplicates_across_splits]),
    ):
        lines += ["", f"{title}:", *(f"  {line}" for line in _first(found))] if found else []
    problems = [f"PROBLEM: {problem}" for problem in report.problems]
    return "\n".join([*lines, "", *(problems or ["no problems found"])])


def _first(lines: list[str]) -> list[str]:
    more = [f"... and {len(lines) - MAX_LISTED} more"] if len(lines) > MAX_LISTED else []
    return lines[:MAX_LISTED] + more


def _many(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _samples(source: Source, manifest: Manifest, data: DataConfig, resolution: int) -> dict[str, Pixels]:
    """Examples of each class, as the network would see them: uint8 [n, R, R, 3] by class."""
    names = [k or LABEL_NAMES[int(label)] for k, label in zip(manifest.klass, manifest.label, strict=True)]
    row = {name: i for i, name in enumerate(source.manifest.image)}
    chosen: dict[str, list[str]] = {}
    for i in np.random.default_rng(0).permutation(len(manifest)):
        images = chosen.setdefault(names[i], [])
        if len(images) < N_EXAMPLES:
            images.append(manifest.image[i])
    return {
        name: np.stack([preprocess(source.read(row[image]), data, resolution, image) for image in chosen[name]])
        for name in sorted(chosen)
    }
