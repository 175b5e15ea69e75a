"""Patches stored as arrays: MedMNIST NPZ and PCam HDF5, as sources of single images."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad.config import DataConfig
from gan_uad.data.catalogue import normal_class
from gan_uad.data.classes import labels_of
from gan_uad.data.contents import hashes, problem_of, stats_of
from gan_uad.data.images import BadImage, Mask, Pixels
from gan_uad.data.manifest import SPLIT_NAMES, Manifest
from gan_uad.errors import UserError
from gan_uad.files import read_csv

H5_NAME = re.compile(r"(?P<stem>.*)_(?P<kind>[xy])\.(?:h5|hdf5)$", re.IGNORECASE)
H5_BLOCK = 256  # images read at once: the published files are compressed in chunks of many images


def digest(*parts: Any) -> str:
    """A key that changes with any of the parts (plain values, lists and tuples of them)."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Handles:
    """Open files and loaded arrays by key. Each process opens its own; none is pickled. `lock` guards their use by threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._process, self._open = 0, dict[str, Any]()

    def get(self, key: str, opened: Callable[[], Any]) -> Any:
        """What is open under this key; `opened` opens it. A forked child must not share the file position of its parent."""
        with self.lock:
            if self._process != os.getpid():
                self._process, self._open = os.getpid(), {}
            if key not in self._open:
                self._open[key] = opened()
            return self._open[key]

    def __reduce__(self) -> tuple[type[Handles], tuple[()]]:
        return type(self), ()


class NpzSource:
    """MedMNIST: `train_images [N,H,W]` or `[N,H,W,3]` uint8, `train_labels [N,1]`, and the same for val and test."""

    kind = "MedMNIST npz"

    def __init__(self, path: Path, data: DataConfig) -> None:
        self.path = path
        self._handles = Handles()
        try:
            with zipfile.ZipFile(path) as archive:
                self._keys = [(i.filename, i.file_size, i.CRC) for i in archive.infolist()]
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is no readable npz file: {error}") from None
        keys = [name.removesuffix(".npy") for name, _, _ in self._keys]
        splits = [s for s in SPLIT_NAMES if f"{s}_images" in keys]
        if not splits:
            found = ", ".join(sorted(keys)) or "nothing"
            raise UserError(f"{path} holds {found}; a MedMNIST file has train_images, train_labels, ...")
        self._rows: list[tuple[str, int]] = []
        klass: list[str] = []
        for split in splits:
            if f"{split}_labels" not in keys:
                raise UserError(f"{path} has {split}_images but no {split}_labels")
            labels = self._labels(split)
            self._rows += [(f"{split}_images", k) for k in range(len(labels))]
            klass += [str(value) for value in labels]
        self.notes: list[str] = []
        if not data.normal_classes and (normal := normal_class(path.name, set(klass))):
            data = data.model_copy(update={"normal_classes": [normal]})
            self.notes = [f"class {normal} is normal, as published for files named {path.name}"]
        label, notes = labels_of(klass, data, str(path))
        self.notes += notes
        if others := sorted(set(keys) - {f"{split}_{kind}" for split in splits for kind in ("images", "labels")}):
            self.notes.append(f"{len(others)} other arrays are left out: {', '.join(others[:10])}")
        names = [f"{key}/{k:06d}" for key, k in self._rows]
        split_column = [SPLIT_NAMES[key.removesuffix("_images")] for key, _ in self._rows]
        self.manifest = Manifest.of(names, label=label, klass=klass, split=split_column)

    def _labels(self, split: str) -> list[int]:
        images, labels = self._array(f"{split}_images"), self._array(f"{split}_labels")
        context = f"{self.path}: {split}_images"
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
            raise UserError(f"{context} must be uint8 [N,H,W] or [N,H,W,3], not {images.dtype} {list(images.shape)}")
        if labels.size != len(images) or len(labels) != len(images):
            raise UserError(
                f"{context} has {len(images)} images, but {split}_labels is {list(labels.shape)}: give one each"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{self.path}: {split}_labels must be integers, not {labels.dtype}")
        if labels.size and labels.min() < 0:
            raise UserError(
                f"{self.path}: {split}_labels has the class {labels.min()}: leave out images without a class"
            )
        return [int(value) for value in labels.ravel()]

    def _array(self, key: str) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self._handles.get(key, lambda: self._loaded(key))
        return array

    def _loaded(self, key: str) -> np.ndarray[Any, Any]:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return np.asarray(archive[key])
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            pickled = "allow_pickle" in str(error)
            problem = "holds pickled objects, which are never loaded" if pickled else f"is damaged: {error}"
            raise UserError(f"{self.path}: {key} {problem}") from None
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from None

    def read(self, i: int) -> Pixels:
        key, k = self._rows[i]
        image = np.atleast_3d(self._array(key)[k])
        return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()

    def read_mask(self, i: int) -> Mask | None:
        return None

    def describe(self, i: int) -> tuple[int, int, str]:
        shape = self._array(self._rows[i][0]).shape
        return shape[2], shape[1], "RGB" if len(shape) == 4 and shape[3] == 3 else "L"

    def fingerprint(self) -> str:
        return digest(self.kind, self._keys)

    def old_fingerprint(self) -> str:
        return self.fingerprint()


def h5_siblings(path: Path) -> list[Path]:
    """The files that belong to one PCam `..._x.h5` or `..._y.h5`. Raises `UserError` for another name."""
    match = H5_NAME.match(path.name)
    if not match:
        raise UserError(f"{path} is no PCam file: the name must end in _x.h5 (images) with a _y.h5 (labels) beside it")
    return [file for file in sorted(path.parent.iterdir()) if file.name.startswith(match["stem"] + "_")]


class H5Source:
    """PatchCamelyon: `<stem>_x.h5` with 'x' uint8 [N,H,W,3], `<stem>_y.h5` with 'y' [N,1,1,1], perhaps `<stem>_meta.csv` with 'wsi'."""

    kind = "PCam hdf5"

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self._handles = Handles()
        self._block: tuple[str, int, Pixels | None] = ("", -1, None)
        pairs: dict[str, dict[str, Path]] = {}
        for file in sorted(files, key=lambda file: file.name):
            if match := H5_NAME.match(file.name):
                pairs.setdefault(match["stem"], {}).setdefault(match["kind"].lower(), file)
        by_name = {file.name: file for file in files}
        self._files = [by_name[name] for name in sorted(by_name) if name.startswith(tuple(f"{s}_" for s in pairs))]
        self._rows: list[tuple[str, int]] = []
        tables = [self._columns(stem, pairs[stem], by_name.get(f"{stem}_meta.csv")) for stem in sorted(pairs)]
        columns = {key: [value for table in tables for value in table[key]] for key in tables[0]}
        unknown = "no *_meta.csv with slide names: every image counts as its own group"
        self.notes = [] if any(columns["group"]) else [unknown]
        used = {file.name for file in self._files}
        if others := sorted(name for name in by_name if name not in used and not name.startswith(".")):
            self.notes.append(f"{len(others)} other files and folders are left out, such as {others[0]}")
        self.manifest = Manifest.of(**columns)

    def _columns(self, stem: str, pair: dict[str, Path], meta: Path | None) -> dict[str, list[Any]]:
        """The columns of one pair of files."""
        if len(pair) < 2:
            have, missing = ("x", "y") if "x" in pair else ("y", "x")
            raise UserError(f"{self.path}: {stem}_{have}.h5 needs {stem}_{missing}.h5 beside it")
        x, y = (self._dataset(str(pair[key]), key) for key in "xy")
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3:
            raise UserError(f"{pair['x']}: 'x' must be uint8 [N,H,W,3], not {x.dtype} {list(x.shape)}")
        n = len(x)
        if y.size != n:  # before it is read, as it may be of any size
            raise UserError(f"{pair['y']}: 'y' must hold a 0 or 1 for each of the {n} images, and is {list(y.shape)}")
        labels = np.asarray(y).reshape(-1)
        if not set(np.unique(labels).tolist()) <= {0, 1}:
            raise UserError(f"{pair['y']}: 'y' must hold a 0 or 1 for each of the {n} images")
        named = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", stem.lower()) if word in SPLIT_NAMES}
        if len(named) > 1:
            raise UserError(f"{pair['x']}: the name says {' and '.join(sorted(named))}: rename it to one split")
        split = next(iter(named), "")
        slides = [""] * n if meta is None else [row["wsi"] for row in read_csv(meta, ["wsi"])]
        if len(slides) != n:
            raise UserError(f"{meta} must have {n} rows, one per image; it has {len(slides)}")
        self._rows += [(str(pair["x"]), k) for k in range(n)]
        names = [f"{pair['x'].stem}/{k:06d}" for k in range(n)]
        return {"image": names, "label": labels.tolist(), "split": [split] * n, "group": slides, "slide": slides}

    def _dataset(self, file: str, key: str) -> Any:
        """The dataset of that name, with its values in the file itself: links and storage elsewhere could read any file as pixels."""
        import h5py

        opened = self._handles.get(file, lambda: self._opened(file))
        if key not in opened.keys():  # noqa: SIM118  (`in opened` would follow a link)
            raise UserError(f"{file} has no dataset {key!r}; it holds {', '.join(opened) or 'nothing'}")
        link = opened.get(key, getlink=True)
        dataset = opened[key] if isinstance(link, h5py.HardLink) else None
        if dataset is None:
            found = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
        elif not isinstance(dataset, h5py.Dataset):
            found = f"a {type(dataset).__name__.lower()}"
        elif dataset.is_virtual:
            found = "a virtual dataset"
        elif dataset.external:
            found = "a dataset with external storage"
        else:
            return dataset
        raise UserError(f"{file}: {key!r} is {found}; only datasets stored in the file itself are read")

    def _opened(self, file: str) -> Any:
        import h5py

        if problem := problem_of(Path(file)):
            raise UserError(f"{file} {problem}")
        try:
            return h5py.File(file, "r")
        except OSError as error:
            raise UserError(f"{file} is no readable HDF5 file: {error}") from None

    def read(self, i: int) -> Pixels:
        file, k = self._rows[i]
        start = k - k % H5_BLOCK
        with self._handles.lock:
            if self._block[:2] != (file, start):
                try:
                    self._block = (file, start, self._dataset(file, "x")[start : start + H5_BLOCK])
                except OSError as error:
                    passing = "errno" in str(
                        error
                    )  # HDF5 says of a read that the system refused, not of damaged content
                    raise BadImage(self.manifest.image[i], f"damaged in the HDF5 file: {error}", passing) from None
            block = self._block[2]
        assert block is not None
        return block[k - start].copy()

    def read_mask(self, i: int) -> Mask | None:
        return None

    def describe(self, i: int) -> tuple[int, int, str]:
        with self._handles.lock:
            shape = self._dataset(self._rows[i][0], "x").shape
        return shape[2], shape[1], "RGB"

    def fingerprint(self) -> str:
        names = [file.name for file in self._files]
        folder = self._files[0].parent
        return digest(self.kind, list(zip(names, hashes(folder, stats_of(folder, names)), strict=True)))

    def old_fingerprint(self) -> str:
        return digest(self.kind, [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in self._files])
