"""`gan-uad data check`: what a set of patches holds, and its problems, before training."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from gan_uad import console
from gan_uad.config import DataConfig, ScoringConfig
from gan_uad.data.images import BadImage, Pixels, preprocess
from gan_uad.data.layouts import PUT_NORMALS
from gan_uad.data.manifest import LABEL_NAMES, SPLITS, Manifest
from gan_uad.data.patches import split_manifest
from gan_uad.data.sources import Source, open_source
from gan_uad.device import cores
from gan_uad.files import make_folder
from gan_uad.metrics.detection import unmet
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
    broken: list[tuple[str, str]]  # (name, reason)
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
        samples = _samples(source, manifest, {name for name, _ in report.broken}, data, resolution)
        if samples:
            class_samples(samples, out / "class_samples.png")
    return 0 if report.ok else 1


def examine(source: Source, data: DataConfig, resolution: int) -> tuple[Report, Manifest]:
    """Read every image once; return the report, and the manifest with the splits that training would use."""
    torn = source.manifest.groups_on_two_sides()
    manifest, notes = (source.manifest, list(source.notes)) if torn else split_manifest(source, data)
    sizes, broken, hashes = _read_all(source, data, resolution)
    labelled = manifest.replace(klass=[""] * len(manifest))
    twice, across = _duplicates(manifest, hashes)
    report = Report(
        path=str(source.path),
        kind=source.kind,
        images=len(manifest),
        counts=manifest.counts(),
        labels=labelled.counts(),
        groups={s: len({manifest.group[i] for i in manifest.where(s)} - {""}) for s in SPLITS if s in manifest.split},
        without_group=manifest.group.count(""),
        sizes=dict(sizes.most_common()),
        broken=broken,
        groups_on_two_sides={group: sorted(sides) for group, sides in sorted(torn.items())},
        duplicates=twice,
        duplicates_across_splits=across,
        notes=notes,
        problems=[],
    )
    report.problems = _problems(report)
    groups = [manifest.group[i] for i in manifest.where("val", 0)]
    if report.labels.get("train", {}).get("normal") and (reason := unmet(ScoringConfig().threshold, groups)):
        report.notes.append(reason)
    if not _holds_anomalous(report) and report.labels.get("train", {}).get("normal"):
        report.notes.append(
            "no anomalous image: models can be trained on these patches, but detection cannot be evaluated"
        )
    if data.crop == "none" and (cut := sum(n for size, n in sizes.items() if not _square(size))):
        report.notes.append(f"{cut} images are not square: their centre square is used")
    return report, manifest


def _read_all(
    source: Source, data: DataConfig, resolution: int
) -> tuple[Counter[str], list[tuple[str, str]], list[str | None]]:
    """Counts of sizes and pixel types, broken images, and a hash of each image's pixels (None: broken)."""

    def read(i: int) -> tuple[str, str] | BadImage:
        try:
            width, height, mode = source.describe(i)
            image = source.read(i)
            preprocess(image, data, resolution, source.manifest.image[i])
        except BadImage as error:
            return error
        content = hashlib.blake2b(image.tobytes() + repr(image.shape).encode(), digest_size=16)
        return f"{width}x{height} {mode}", content.hexdigest()

    sizes: Counter[str] = Counter()
    broken: list[tuple[str, str]] = []
    hashes: list[str | None] = []
    total = len(source.manifest)
    with console.progress("reading images", total) as bar, ThreadPoolExecutor(cores()) as pool:
        for result in pool.map(read, range(total)):
            if isinstance(result, BadImage):
                broken.append((result.name, result.reason))
                hashes.append(None)
            else:
                sizes[result[0]] += 1
                hashes.append(result[1])
            bar.update(len(hashes))
    return sizes, broken, hashes


def _square(size: str) -> bool:
    width, height = size.split()[0].split("x")
    return width == height


def _duplicates(manifest: Manifest, hashes: list[str | None]) -> tuple[int, list[list[str]]]:
    """How many images repeat another's pixels, and the sets of equal images that lie in several splits."""
    same: dict[str, list[int]] = {}
    for i, content in enumerate(hashes):
        if content is not None:
            same.setdefault(content, []).append(i)
    repeated = [rows for rows in same.values() if len(rows) > 1]
    across = [rows for rows in repeated if len({manifest.split[i] for i in rows} - {""}) > 1]
    return sum(len(rows) - 1 for rows in repeated), [[manifest.image[i] for i in rows] for rows in across]


def _problems(report: Report) -> list[str]:
    found = []
    if report.broken:
        found.append(f"{_many(len(report.broken), 'image')} cannot be used")
    if torn := len(report.groups_on_two_sides):
        found.append(f"{_many(torn, 'group')} on two sides of the split: move each to one side")
    if equal := len(report.duplicates_across_splits):
        first = " and ".join(report.duplicates_across_splits[0][:2])
        same = f"{_many(equal, 'image')} with the same pixels in two splits"
        found.append(f"{same}, such as {first}: training images would be tested on")
    if not report.labels.get("train", {}).get("normal"):
        known = any(counts.get(name) for counts in report.labels.values() for name in ("normal", "anomalous"))
        fix = "" if known else f"; {PUT_NORMALS}"
        found.append(f"no normal image in train: there is nothing to learn normal tissue from{fix}")
    for name in ("normal", "anomalous"):
        if not report.labels.get("test", {}).get(name) and (name == "normal" or _holds_anomalous(report)):
            found.append(f"no {name} image in test: detection cannot be evaluated")
    return found


def _holds_anomalous(report: Report) -> bool:
    return any(counts.get("anomalous") for counts in report.labels.values())


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
    if report.without_group:
        lines.append(f"without group: {report.without_group}")
    if report.duplicates:
        lines.append(f"exact duplicates: {report.duplicates}")
    lines += [f"note: {note}" for note in report.notes]
    for title, found in (
        ("broken", [f"{name}: {reason}" for name, reason in report.broken]),
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


def _samples(
    source: Source, manifest: Manifest, broken: set[str], data: DataConfig, resolution: int
) -> dict[str, Pixels]:
    """Examples of each class, as the network would see them: uint8 [n, R, R, 3] by class."""
    names = [k or LABEL_NAMES[int(label)] for k, label in zip(manifest.klass, manifest.label, strict=True)]
    order = np.random.default_rng(0).permutation(len(manifest))
    chosen: dict[str, list[int]] = {}
    for i in order:
        rows = chosen.setdefault(names[i], [])
        if len(rows) < N_EXAMPLES and manifest.image[i] not in broken:
            rows.append(int(i))
    return {
        name: np.stack([preprocess(source.read(i), data, resolution, manifest.image[i]) for i in chosen[name]])
        for name in sorted(chosen)
        if chosen[name]
    }
