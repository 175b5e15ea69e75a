"""Patches that come as arrays: MedMNIST NPZ and PCam HDF5, as sources of single pictures."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gan_uad.config import DataConfig
from gan_uad.data.images import BadImage, Mask, Pixels
from gan_uad.data.layouts import labels_of
from gan_uad.data.manifest import SPLIT_NAMES, Manifest
from gan_uad.errors import UserError

H5_NAME = re.compile(r"(?P<stem>.*)_(?P<kind>[xy])\.(?:h5|hdf5)$", re.IGNORECASE)
H5_BLOCK = 256  # images read at once: the published files are compressed in chunks of many images


def digest(*parts: Any) -> str:
    """A key that changes with any of the parts (plain values, lists and tuples of them)."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class NpzSource:
    """MedMNIST: `train_images [N,H,W]` or `[N,H,W,3]` uint8, `train_labels [N,1]`, and the same for val and test."""

    kind = "MedMNIST npz"

    def __init__(self, path: Path, data: DataConfig) -> None:
        self.path = path
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._lock = threading.Lock()
        try:
            with zipfile.ZipFile(path) as archive:
                self._keys = [(i.filename, i.file_size, i.CRC) for i in archive.infolist()]
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is no readable npz file: {error}") from None
        keys = [name.removesuffix(".npy") for name, _, _ in self._keys]
        splits = [s for s in SPLIT_NAMES if f"{s}_images" in keys]
        if not splits:
            raise UserError(
                f"{path} holds {', '.join(sorted(keys)) or 'nothing'}; a MedMNIST file has train_images, train_labels, ..."
            )
        self._rows: list[tuple[str, int]] = []
        klass: list[str] = []
        for split in splits:
            if f"{split}_labels" not in keys:
                raise UserError(f"{path} has {split}_images but no {split}_labels")
            labels = self._labels(split)
            self._rows += [(f"{split}_images", k) for k in range(len(labels))]
            klass += [str(value) for value in labels]
        label, self.notes = labels_of(klass, data, str(path))
        names = [f"{key}/{k:06d}" for key, k in self._rows]
        split_column = [SPLIT_NAMES[key.removesuffix("_images")] for key, _ in self._rows]
        self.manifest = Manifest.of(names, label=label, klass=klass, split=split_column)

    def _labels(self, split: str) -> list[int]:
        images, labels = self._array(f"{split}_images"), self._array(f"{split}_labels")
        where = f"{self.path}: {split}_images"
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
            raise UserError(f"{where} must be uint8 [N,H,W] or [N,H,W,3], not {images.dtype} {list(images.shape)}")
        if labels.size != len(images) or len(labels) != len(images):
            raise UserError(
                f"{where} are {len(images)}, but the labels are {list(labels.shape)}: one label an image is needed"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{self.path}: {split}_labels must be integers, not {labels.dtype}")
        return [int(value) for value in labels.ravel()]

    def _array(self, key: str) -> np.ndarray[Any, Any]:
        with self._lock:
            if key not in self._arrays:
                try:
                    with np.load(self.path, allow_pickle=False) as archive:
                        self._arrays[key] = archive[key]
                except ValueError as error:
                    why = (
                        "holds pickled objects, which are never loaded"
                        if "allow_pickle" in str(error)
                        else f"is damaged: {error}"
                    )
                    raise UserError(f"{self.path}: {key} {why}") from None
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise UserError(f"{self.path}: {key} is damaged: {error}") from None
            return self._arrays[key]

    def read(self, i: int) -> Pixels:
        key, k = self._rows[i]
        picture = np.atleast_3d(self._array(key)[k])
        return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture.copy()

    def read_mask(self, i: int) -> Mask | None:
        return None

    def describe(self, i: int) -> tuple[int, int, str]:
        shape = self._array(self._rows[i][0]).shape
        return shape[2], shape[1], "RGB" if len(shape) == 4 and shape[3] == 3 else "L"

    def fingerprint(self) -> str:
        return digest(self.kind, self._keys)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})


def h5_siblings(path: Path) -> list[Path]:
    """The files that belong to one PCam `..._x.h5` or `..._y.h5`. Raises `UserError` for another name."""
    match = H5_NAME.match(path.name)
    if not match:
        raise UserError(
            f"{path} is no PCam file: the name must end in _x.h5 (pictures) with a _y.h5 (labels) beside it"
        )
    return [file for file in sorted(path.parent.iterdir()) if file.name.startswith(match["stem"] + "_")]


class H5Source:
    """PatchCamelyon: `<stem>_x.h5` with 'x' uint8 [N,H,W,3], `<stem>_y.h5` with 'y' [N,1,1,1], perhaps `<stem>_meta.csv` with 'wsi'."""

    kind = "PCam hdf5"

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self.notes: list[str] = []
        self._handles: tuple[int, dict[str, Any]] = (0, {})
        self._block: tuple[str, int, Pixels | None] = ("", -1, None)
        self._lock = threading.Lock()
        by_name = {file.name: file for file in files}
        stems = sorted({m["stem"] for name in by_name if (m := H5_NAME.match(name))})
        self._files = [by_name[name] for name in sorted(by_name) if name.startswith(tuple(f"{s}_" for s in stems))]
        self._rows: list[tuple[str, int]] = []
        self.manifest = self._join([self._part(stem, by_name) for stem in stems])

    def _part(self, stem: str, files: dict[str, Path]) -> dict[str, list[Any]]:
        """The columns of one pair of files."""
        pair = [
            next((files[n] for n in files if re.fullmatch(re.escape(stem) + rf"_{k}\.(h5|hdf5)", n, re.I)), None)
            for k in "xy"
        ]
        if pair[0] is None or pair[1] is None:
            have, lacks = ("_y", "_x") if pair[0] is None else ("_x", "_y")
            raise UserError(f"{self.path}: {stem}{have}.h5 needs {stem}{lacks}.h5 beside it")
        x, y = self._dataset(str(pair[0]), "x"), self._dataset(str(pair[1]), "y")
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] != 3:
            raise UserError(f"{pair[0]}: 'x' must be uint8 [N,H,W,3], not {x.dtype} {list(x.shape)}")
        labels = np.asarray(y).reshape(-1)
        if len(labels) != len(x) or not set(np.unique(labels).tolist()) <= {0, 1}:
            raise UserError(f"{pair[1]}: 'y' must hold a 0 or 1 for each of the {len(x)} pictures")
        words = re.split(r"[^a-z]+", stem.lower())
        split = next((SPLIT_NAMES[w] for w in words if w in SPLIT_NAMES), "")
        n = len(x)
        self._rows += [(str(pair[0]), k) for k in range(n)]
        group = self._slides(files.get(f"{stem}_meta.csv"), n)
        names = [f"{pair[0].stem}/{k:06d}" for k in range(n)]
        return {"image": names, "label": labels.tolist(), "split": [split] * n, "group": group, "slide": group}

    def _slides(self, meta: Path | None, n: int) -> list[str]:
        if meta is None:
            return [""] * n
        with meta.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if len(rows) != n or (rows and "wsi" not in rows[0]):
            raise UserError(f"{meta} must have a column 'wsi' and {n} rows, one a picture; it has {len(rows)}")
        return [row["wsi"] for row in rows]

    def _join(self, parts: list[dict[str, list[Any]]]) -> Manifest:
        columns = {key: [value for part in parts for value in part[key]] for key in parts[0]}
        if not any(columns["group"]):
            self.notes.append("no *_meta.csv with slide names: every picture is taken as its own group")
        return Manifest.of(**columns)

    def _dataset(self, file: str, key: str) -> Any:
        import h5py

        if self._handles[0] != os.getpid():
            self._handles = (os.getpid(), {})
        handles = self._handles[1]
        if file not in handles:
            try:
                handles[file] = h5py.File(file, "r")
            except OSError as error:
                raise UserError(f"{file} is no readable HDF5 file: {error}") from None
        if key not in handles[file]:
            raise UserError(f"{file} has no dataset {key!r}; it holds {', '.join(handles[file]) or 'nothing'}")
        return handles[file][key]

    def read(self, i: int) -> Pixels:
        file, k = self._rows[i]
        start = k - k % H5_BLOCK
        with self._lock:
            if self._block[:2] != (file, start):
                try:
                    self._block = (file, start, self._dataset(file, "x")[start : start + H5_BLOCK])
                except OSError as error:
                    raise BadImage(self.manifest.image[i], f"damaged in the HDF5 file: {error}") from None
            block = self._block[2]
        assert block is not None
        return block[k - start].copy()

    def read_mask(self, i: int) -> Mask | None:
        return None

    def describe(self, i: int) -> tuple[int, int, str]:
        file, _ = self._rows[i]
        with self._lock:
            shape = self._dataset(file, "x").shape
        return shape[2], shape[1], "RGB"

    def fingerprint(self) -> str:
        return digest(self.kind, [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in self._files])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": (0, {}), "_block": ("", -1, None), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})
