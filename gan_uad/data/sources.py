"""Where patches come from: folders, zips, MedMNIST NPZ and PCam HDF5, each behind the same few methods.

`open_source` recognises the kind of a path, or raises `UserError`. A source may be pickled and read from many threads; its files are
opened lazily, once per process.
"""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from gan_uad.config import DataConfig
from gan_uad.data.arrays import H5_NAME, H5Source, Handles, NpzSource, digest, h5_siblings
from gan_uad.data.images import ENDINGS, BadImage, Mask, Pixels, decode, decode_mask, inspect
from gan_uad.data.layouts import labels_of, read_names
from gan_uad.data.manifest import Manifest
from gan_uad.errors import UserError

INDEX = "index.csv"
# What `gan-uad tile` writes beside the tiles of each slide.
RECORD, MASK, SHEET = "slide.json", "tissue.png", "contact_sheet.jpg"


class Source(Protocol):
    """A set of images somewhere, with its manifest (row i of the manifest is image i)."""

    kind: str
    path: Path
    manifest: Manifest
    notes: list[str]  # what was guessed or left out, one sentence each

    def read(self, i: int) -> Pixels:
        """Image i, uint8 [H, W, 3] RGB. Raises `BadImage`."""

    def read_mask(self, i: int) -> Mask | None:
        """The mask of image i, bool [H, W]; None where there is none. Raises `BadImage`."""

    def describe(self, i: int) -> tuple[int, int, str]:
        """Width, height and stored pixel type of image i, cheaply. Raises `BadImage`."""

    def fingerprint(self) -> str:
        """A key of the content that changes when a file does: from names, sizes and times or checksums, without labels."""


def open_source(path: str | Path, data: DataConfig) -> Source:
    """Recognise and open `path`. Raises `UserError` when it is missing, unreadable, empty or ambiguous."""
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    try:
        if not path.exists():
            raise UserError(f"no such file or folder: {path}")
        if path.is_dir():
            if any(H5_NAME.match(file.name) for file in path.iterdir()):
                return H5Source(path, sorted(path.iterdir()))
            return ImageSource(path, Folder(path), data)
        if suffix == ".zip":
            return ImageSource(path, Archive(path), data)
        if suffix == ".npz":
            return NpzSource(path, data)
        if suffix in {".h5", ".hdf5"}:
            return H5Source(path, h5_siblings(path))
        if suffix in ENDINGS:
            return ImageSource(path, Folder(path.parent, only=path.name), data)
        if path.name == INDEX:
            return ImageSource(path.parent, Folder(path.parent), data)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    raise UserError(f"{path} is no set of patches: give a folder, .zip, .npz, .h5 or one image ({' '.join(ENDINGS)})")


class Folder:
    """The files below a folder, links followed; `only`: a single file of it."""

    names: list[str]  # sorted, relative, forward slashes, hidden ones left out

    def __init__(self, root: Path, only: str | None = None) -> None:
        self.root = root
        self.names = [only] if only else sorted(self._walk())

    def _walk(self) -> list[str]:
        found, seen = [], set()
        for folder, below, files in os.walk(self.root, followlinks=True):
            real = os.path.realpath(folder)
            below[:] = [b for b in below if not _hidden(b)] if real not in seen else []
            seen.add(real)
            inside = Path(folder).relative_to(self.root)
            found += [(inside / file).as_posix() for file in files if not _hidden(file)]
        return found

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def keys(self, names: list[str]) -> list[tuple[Any, ...]]:
        """One tuple per file, which changes when the file does."""
        stats = ((name, (self.root / name).stat()) for name in names)
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


class Archive:
    """The files of a zip, read in place, never unpacked to disk; as `Folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handles = Handles()
        self._infos = {i.filename: (i.file_size, i.CRC) for i in self._zip().infolist() if self._usable(i)}
        self.names = sorted(self._infos)

    def _usable(self, info: zipfile.ZipInfo) -> bool:
        parts = PurePosixPath(info.filename.replace("\\", "/")).parts
        if ".." in parts or info.filename.startswith(("/", "\\")) or re.match("[A-Za-z]:", info.filename):
            raise UserError(f"{self.path} is not opened: its path {info.filename!r} leads out of the archive")
        if info.flag_bits & 1:
            raise UserError(f"{self.path} is encrypted; unpack it and give the folder")
        return not info.is_dir() and not any(_hidden(part) for part in parts)

    def _zip(self) -> zipfile.ZipFile:
        archive: zipfile.ZipFile = self._handles.get("zip", self._opened)
        return archive

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except zipfile.BadZipFile as error:
            raise UserError(f"{self.path} is no readable zip file: {error}") from None

    def read(self, name: str) -> bytes:
        try:
            return self._zip().read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise BadImage(name, f"damaged in the zip: {error}") from None

    def keys(self, names: list[str]) -> list[tuple[Any, ...]]:
        return [(name, *self._infos[name]) for name in names]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


class ImageSource:
    """Image files in a folder or zip, described by their `index.csv` or else by their names."""

    def __init__(self, path: Path, files: Folder | Archive, data: DataConfig) -> None:
        self.path, self.files = path, files
        images = [name for name in files.names if name.lower().endswith(ENDINGS)]
        if not images:
            raise UserError(f"{path} holds no images (looked for {' '.join(ENDINGS)})")
        indices = [name for name in files.names if PurePosixPath(name).name == INDEX]
        top = min(indices, key=lambda name: name.count("/"), default=None)
        if top is None:
            layout = read_names(images, data, str(path))
            self.kind, self.manifest, self.notes = layout.kind, layout.manifest, layout.notes
        else:
            if len(rivals := [name for name in indices if name.count("/") == top.count("/")]) > 1:
                shown = ", ".join(rivals[:3])
                raise UserError(f"{path} holds {len(rivals)} files {INDEX} ({shown}); give the folder of one")
            self.kind = INDEX
            self.manifest, self.notes = self._indexed(top, images, data)

    def _indexed(self, index: str, images: list[str], data: DataConfig) -> tuple[Manifest, list[str]]:
        context = f"{self.path}/{index}"
        manifest = Manifest.from_csv(self.files.read(index), context)
        root = PurePosixPath(index).parent
        image = [(root / name).as_posix() for name in manifest.image]
        mask = [(root / name).as_posix() if name else "" for name in manifest.mask]
        known = set(self.files.names)
        for given, name in zip(manifest.image + manifest.mask, image + mask, strict=True):
            if name and name not in known:
                outside = PurePosixPath(given).is_absolute() or ".." in PurePosixPath(given).parts
                why = "lies outside; names must be relative to the index" if outside else "does not exist"
                raise UserError(f"{context}, line {_line_of(self.files.read(index), given)}: {given!r} {why}")
        notes = []
        unlisted = {PurePosixPath(name) for name in set(images) - set(image) - set(mask)}
        by_tile = {p for p in unlisted if p.name in {MASK, SHEET} and (p.parent / RECORD).as_posix() in known}
        if left := len(unlisted - by_tile):
            notes.append(f"{left} images are not named in {INDEX} and are left out")
        if data.normal_classes:
            if not any(manifest.klass):
                raise UserError(
                    f"{context} has no class names: leave data.normal_classes out, its label column decides"
                )
            label, chosen = labels_of(manifest.klass, data, context)
            manifest, notes = manifest.replace(label=label), notes + chosen
        return manifest.replace(image=image, mask=mask), notes

    def read(self, i: int) -> Pixels:
        return decode(self._content(self.manifest.image[i]), self.manifest.image[i])

    def read_mask(self, i: int) -> Mask | None:
        name = self.manifest.mask[i]
        return decode_mask(self._content(name), name) if name else None

    def describe(self, i: int) -> tuple[int, int, str]:
        return inspect(self._content(self.manifest.image[i]), self.manifest.image[i])

    def _content(self, name: str) -> bytes:
        try:
            return self.files.read(name)
        except OSError as error:
            raise BadImage(name, f"cannot be read: {error.strerror or error}") from None

    def fingerprint(self) -> str:
        return digest(self.kind, self.files.keys(self.manifest.image))


def _line_of(content: bytes, name: str) -> int:
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), skipinitialspace=True)
    return next((reader.line_num for row in reader if name in (cell.strip() for cell in row)), 0)
