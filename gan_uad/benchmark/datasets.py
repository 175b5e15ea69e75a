"""The data sets of a benchmark: found, generated or split by patch, and a key that identifies each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gan_uad import console
from gan_uad.benchmark.schema import DataEntry, Settings
from gan_uad.config import DataConfig, data_config
from gan_uad.data.arrays import digest
from gan_uad.data.manifest import Manifest
from gan_uad.data.sources import open_source
from gan_uad.errors import UserError
from gan_uad.files import alone, csv_text, make_folder, write_text

PUBLISHED = (0.6, 0.2, 0.2)  # shares of train, val and test by patch


@dataclass(frozen=True)
class BenchmarkData:
    """An existing data set: its path, and a key of its files, labels, groups and splits."""

    path: Path
    key: str
    old_key: str = ""  # as version 0.2 and before made it, by the times of the files; empty: no other


def prepare_data(
    name: str,
    entry: DataEntry,
    settings: Settings,
    root: Path | None,
    places: Mapping[str, str],
    home: Path,
    dry: bool = False,
) -> BenchmarkData:
    """The data set `name`. `root`: folder of relative paths, by default $GAN_UAD_DATA or `data`; `places` has other paths than the
    file's, by name; what is generated goes below `home`. `dry`: only to know the set, no patches are generated.

    Raises `UserError` where it is missing: the expected place, and how to get it.
    """
    if entry.phantom is not None and name not in places:
        return _phantom(entry, home, dry)
    root = root or Path(os.environ.get("GAN_UAD_DATA") or "data")
    path = Path(places.get(name) or root / str(entry.path)).expanduser()
    if not path.exists():
        how = f" How to get it: {' '.join(entry.get.split())}" if entry.get else ""
        raise UserError(
            f"data set {name}: nothing at {path}. Put it there, or name another place with --data {name}=PATH.{how}"
        )
    try:
        data = data_config(str(path), [f"{key}={value}" for key, value in settings.items() if key.startswith("data.")])
    except UserError as error:
        raise UserError(f"data set {name}: {error.message}") from None
    if entry.split == "by_patch":
        path = _by_patch(path, data, home / "data" / f"{name}-by-patch")
        data = data.model_copy(update={"path": str(path), "normal_classes": []})
    opened = open_source(path, data)
    rows = opened.manifest
    prints = (opened.fingerprint(), opened.old_fingerprint())
    key, old_key = (digest(files, rows.image, rows.label.tolist(), rows.group, rows.split) for files in prints)
    return BenchmarkData(path.resolve(), key, "" if old_key == key else old_key)


def _phantom(entry: DataEntry, home: Path, dry: bool) -> BenchmarkData:
    from gan_uad.demo.phantom import VERSION, write_phantom

    assert entry.phantom is not None
    arguments = entry.phantom.model_dump()
    if not arguments["train_anomalous"]:  # younger than keys
        del arguments["train_anomalous"]
    key = digest("phantom", VERSION, sorted(arguments.items()))
    folder = home / "data" / f"phantom-{key[:10]}"
    if dry:
        return BenchmarkData(folder, key)
    make_folder(folder.parent)
    with alone(home / "data" / ".lock"):
        try:
            write_phantom(folder, **arguments, progress=console.counter("generating patches"))
        except ValueError as error:
            raise UserError(f"phantom: {error}") from None
    return BenchmarkData(folder.resolve(), key)


def _by_patch(path: Path, data: DataConfig, folder: Path) -> Path:
    """A set of the images of the folder `path`, split by patch and without groups."""
    if not path.is_dir():
        raise UserError(f"{path}: split: by_patch needs a folder of images; unpack it")
    opened = open_source(path, data).manifest
    split = Manifest.of(opened.image, label=opened.label).with_splits(PUBLISHED, data.split_seed)
    rows = zip(split.image, split.label.tolist(), split.split, strict=True)
    text = csv_text(
        ("image", "group", "label", "split"),
        ((f"images/{image}", "", "" if label < 0 else label, side) for image, label, side in rows),
    )
    make_folder(folder)
    with alone(folder / ".lock"):
        link, target = folder / "images", path.resolve()
        if not (link.is_symlink() and link.resolve() == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)
        index = folder / "index.csv"
        if not index.is_file() or index.read_text(encoding="utf-8") != text:
            write_text(index, text)
    return folder
