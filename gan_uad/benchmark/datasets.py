"""The data sets of a benchmark: found, made, or dealt by patch; and what tells one from another."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gan_uad import console
from gan_uad.benchmark.schema import DataEntry, Settings
from gan_uad.config import DataConfig, resolve
from gan_uad.data.arrays import digest
from gan_uad.data.manifest import Manifest
from gan_uad.data.sources import open_source
from gan_uad.errors import UserError
from gan_uad.files import alone, make_folder, write_text

PUBLISHED = (0.6, 0.2, 0.2)  # shares of train, val and test by patch


@dataclass(frozen=True)
class BenchmarkData:
    """A data set that is there: its path, and a key of its files, labels, groups and splits."""

    path: Path
    key: str


def data_root(given: Path | None) -> Path:
    """Folder below which relative paths of data sets are looked for."""
    return given or Path(os.environ.get("GAN_UAD_DATA") or "data")


def prepare_data(
    name: str, entry: DataEntry, settings: Settings, root: Path, told: Mapping[str, str], home: Path
) -> BenchmarkData:
    """The data set `name`: `told` names other paths than the file's; what is made goes below `home`.

    Raises `UserError` where it is missing: where it was expected, and how to get it.
    """
    if entry.phantom is not None and name not in told:
        return _phantom(entry, home)
    path = Path(told.get(name) or root / str(entry.path)).expanduser()
    if not path.exists():
        how = f" How to get it: {' '.join(entry.get.split())}" if entry.get else ""
        raise UserError(
            f"data set {name}: nothing at {path}. Put it there, or name another place with --data {name}=PATH.{how}"
        )
    data = _data_config(name, settings, path)
    if entry.split == "by_patch":
        path = _by_patch(path, data, home / "data" / f"{name}-by-patch")
        data = data.model_copy(update={"path": str(path), "normal_classes": []})
    opened = open_source(path, data)
    rows = opened.manifest
    return BenchmarkData(
        path.resolve(), digest(opened.fingerprint(), rows.image, rows.label.tolist(), rows.group, rows.split)
    )


def _data_config(name: str, settings: Settings, path: Path) -> DataConfig:
    raw = {"model": "", "task": "", "training": {"total_kimg": 1}, "data": {"path": str(path)}}
    told = [f"{key}={value}" for key, value in settings.items() if key.startswith("data.")]
    return resolve(raw, told, default_name=name, context=f"data set {name}").data


def _phantom(entry: DataEntry, home: Path) -> BenchmarkData:
    from gan_uad.demo.phantom import VERSION, write_phantom

    assert entry.phantom is not None
    arguments = entry.phantom.model_dump()
    if not arguments["train_anomalous"]:  # as the keys of sets that were made before there were any
        del arguments["train_anomalous"]
    key = digest("phantom", VERSION, sorted(arguments.items()))
    folder = make_folder(home / "data") / f"phantom-{key[:10]}"
    with alone(home / "data" / ".lock"):
        try:
            write_phantom(folder, **arguments, progress=console.counter("making patches"))
        except ValueError as error:
            raise UserError(f"phantom: {error}") from None
    return BenchmarkData(folder.resolve(), key)


def _by_patch(path: Path, data: DataConfig, folder: Path) -> Path:
    """A set that shows the pictures of the folder `path` with splits that were dealt patch by patch, and no groups."""
    if not path.is_dir():
        raise UserError(f"{path}: split: by_patch needs a folder of images; unpack it")
    opened = open_source(path, data).manifest
    ungrouped = Manifest.of(opened.image, label=opened.label)
    dealt = ungrouped.with_splits(PUBLISHED, data.split_seed)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "group", "label", "split"])
    for image, label, split in zip(dealt.image, dealt.label.tolist(), dealt.split, strict=True):
        writer.writerow([f"images/{image}", "", "" if label < 0 else label, split])
    make_folder(folder)
    with alone(folder / ".lock"):
        link, target = folder / "images", path.resolve()
        if not (link.is_symlink() and link.resolve() == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)
        index = folder / "index.csv"
        if not index.is_file() or index.read_text(encoding="utf-8") != text.getvalue():
            write_text(index, text.getvalue())
    return folder
