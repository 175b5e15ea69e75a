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
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from gan_uad.config import DataConfig
from gan_uad.data.arrays import H5_NAME, H5Source, Handles, NpzSource, digest, h5_siblings
from gan_uad.data.classes import ANOMALOUS_WORDS, DISEASES, is_normal_name, is_unclear_name, labels_of, words_of
from gan_uad.data.contents import hash_of, hashes, problem_of, stats_of
from gan_uad.data.images import ENDINGS, BadImage, Mask, Pixels, decode, decode_mask, inspect
from gan_uad.data.layouts import read_names
from gan_uad.data.manifest import ANOMALOUS, COLUMNS, NORMAL, OF_TILES, Manifest
from gan_uad.errors import UserError

INDEX = "index.csv"
THUMBNAILS = {
    "@eadir",
    "__macosx",
    "@thumb",
    "#recycle",
    "$recycle.bin",
    "lost+found",
    "thumb",
    "thumbs",
    "thumbnail",
    "thumbnails",
}  # hidden ones (.thumbnails) are left out too
# Files that go with images and are none.
TEXTS = {".csv", ".json", ".jsonl", ".txt", ".md", ".html", ".yaml", ".yml", ".log", ".xml", ".geojson", ".pdf", ".py"}
TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".ods", ".parquet")
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
        """A key of names and contents, without labels: two sets have the same one only where their files are equal."""

    def old_fingerprint(self) -> str:
        """The key that version 0.2 and before wrote into runs and results, from names, sizes and times."""


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
        if suffix not in ENDINGS and (problem := problem_of(path)):
            raise UserError(f"{path} {problem}")
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

    names: list[str]  # sorted, relative, forward slashes, hidden ones and thumbnails left out
    hidden: int = 0  # images among those left out

    def __init__(self, root: Path, only: str | None = None) -> None:
        self.root = root
        self._stats: dict[str, os.stat_result | None] = {}
        self._hashes: dict[str, str] = {}  # of the images, once `keys` was called
        self.names = [only] if only else sorted(self._walk())

    def _walk(self) -> list[str]:
        found: list[str] = []
        folders: list[str] = []  # named like an image
        seen = set()
        for folder, below, files in os.walk(self.root, followlinks=True, onerror=_refuse_folder):
            real = os.path.realpath(folder)
            below[:] = below if real not in seen else []
            seen.add(real)
            inside = PurePosixPath(Path(folder).relative_to(self.root).as_posix())
            if any(_hidden(part) for part in inside.parts):
                self.hidden += sum(_is_image(file) for file in files)
                continue
            self.hidden += sum(_is_image(file) for file in files if _hidden(file) and not file.startswith("._"))
            found += [str(inside / file) for file in files if not _hidden(file)]
            folders += [str(inside / name) for name in below if _is_image(name) and not _hidden(name)]
        filled = {str(parent) for name in found for parent in PurePosixPath(name).parents} if folders else set()
        return found + [name for name in folders if name not in filled]

    def read(self, name: str) -> bytes:
        if problem := problem_of(self.root / name):  # a pipe would wait for ever
            raise BadImage(name, problem, passing=problem.startswith("cannot"))
        content = (self.root / name).read_bytes()
        known = self._hashes.get(name, "")
        if known and " " not in known and known != hash_of(content):  # else it has the reason why there is none
            raise BadImage(name, "changed while the set was read", passing=True)
        return content

    def keys(self, names: list[str]) -> list[tuple[Any, ...]]:
        """One tuple per file, of its name and content."""
        self._hashes = dict(zip(names, hashes(self.root, self._states(names)), strict=True))
        return list(self._hashes.items())

    def old_keys(self, names: list[str]) -> list[tuple[Any, ...]]:
        """One tuple per file, of its name, size and time."""
        stats = self._states(names).items()
        return [(name, stat.st_size, stat.st_mtime_ns) if stat else (name, -1, -1) for name, stat in stats]

    def _states(self, names: list[str]) -> dict[str, os.stat_result | None]:
        if self._stats.keys() != set(names):
            self._stats = stats_of(self.root, names)
        return self._stats


class Archive:
    """The files of a zip, read in place, never unpacked to disk; as `Folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handles = Handles()
        self._infos = {i.filename: (i.file_size, i.CRC) for i in self._zip().infolist() if self._usable(i)}
        self.names = sorted(self._infos)
        members = [PurePosixPath(i.filename.replace("\\", "/")) for i in self._zip().infolist() if not i.is_dir()]
        left = [path for path in members if any(_hidden(part) for part in path.parts)]
        self.hidden = sum(_is_image(path.name) and not path.name.startswith("._") for path in left)

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

    old_keys = keys


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in THUMBNAILS


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _refuse_folder(error: OSError) -> None:
    """A folder that cannot be listed may be a class: it is never left out."""
    if Path(str(error.filename)).name != "lost+found":  # of every ext4 disk, and empty
        raise UserError(f"cannot read {error.filename}: {error.strerror or error}")


def _left_out(files: Folder | Archive) -> list[str]:
    """A note of each kind of file that is not read."""
    endings = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in files.names if not _is_image(name))
    counts = [f"{n} {ending}" for ending, n in endings.most_common() if ending not in TEXTS]
    read = " ".join(ENDINGS)
    notes = [f"{', '.join(counts)}: these files are left out, only {read} are read"] if counts else []
    tables = [name for name in files.names if name.lower().endswith(TABLES) and PurePosixPath(name).name != INDEX]
    if tables and INDEX not in files.names:
        more = f" and {len(tables) - 1} more tables are" if len(tables) > 1 else " is"
        notes.append(f"{tables[0]}{more} not read: labels, groups and splits in a table need the name {INDEX}")
    if files.hidden:
        notes.append(f"{files.hidden} hidden images and thumbnails are left out")
    return notes


class ImageSource:
    """Image files in a folder or zip, described by their `index.csv` or else by their names."""

    def __init__(self, path: Path, files: Folder | Archive, data: DataConfig) -> None:
        self.path, self.files = path, files
        images = [name for name in files.names if _is_image(name)]
        left_out = _left_out(files)
        if not images:
            raise UserError("; ".join([f"{path} holds no images (looked for {' '.join(ENDINGS)})", *left_out]))
        indices = [name for name in files.names if PurePosixPath(name).name == INDEX]
        top = min(indices, key=lambda name: name.count("/"), default=None)
        if other := next(
            (n for n in files.names if PurePosixPath(n).name.lower() == INDEX != PurePosixPath(n).name), ""
        ):
            raise UserError(f"{path} holds {other}: rename it to {INDEX}, or remove it")
        if top is None:
            layout = read_names(images, data, str(path))
            self.kind, self.manifest, self.notes = layout.kind, layout.manifest, layout.notes
        else:
            if len(rivals := [name for name in indices if name.count("/") == top.count("/")]) > 1:
                shown = ", ".join(rivals[:3])
                raise UserError(f"{path} holds {len(rivals)} files {INDEX} ({shown}); give the folder of one")
            self.kind = INDEX
            self.manifest, self.notes = self._indexed(top, images, data)
        self.notes = self.notes + left_out

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
        if both := sorted(set(image) & set(mask)):
            raise UserError(f"{context}: {both[0]} is named as an image and as a mask")
        notes = manifest.doubts() + _columns_not_read(self.files.read(index))
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
        else:
            notes += _contradictions(manifest)
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
            raise BadImage(name, f"cannot be read: {error.strerror or error}", passing=True) from None
        except MemoryError:
            raise BadImage(name, "not enough memory to read it", passing=True) from None

    def fingerprint(self) -> str:
        return digest(self.kind, self.files.keys(self.manifest.image))

    def old_fingerprint(self) -> str:
        return digest(self.kind, self.files.old_keys(self.manifest.image))


def _line_of(content: bytes, name: str) -> int:
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), skipinitialspace=True)
    return next((reader.line_num for row in reader if name in (cell.strip() for cell in row)), 0)


def _columns_not_read(content: bytes) -> list[str]:
    """A note of the columns of an `index.csv` that nothing reads."""
    header = next(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")), [])
    names = [name.strip() for name in header]
    others = [name for name in names if name and name not in {*COLUMNS, *OF_TILES}]
    return [f"columns of {INDEX} that are not read: {', '.join(others)}"] if others else []


def _contradictions(manifest: Manifest) -> list[str]:
    """A note of classes whose names say another label than the column."""
    said = {name: NORMAL if is_normal_name(name) else ANOMALOUS for name in set(manifest.klass) if name and _says(name)}
    found = Counter(
        (name, int(label))
        for name, label in zip(manifest.klass, manifest.label, strict=True)
        if name in said and label == 1 - said[name]
    )
    words = {NORMAL: "0 (normal)", ANOMALOUS: "1 (anomalous)"}
    return [f"{n} images of class {name} have the label {words[label]}" for (name, label), n in sorted(found.items())]


def _says(name: str) -> bool:
    """Whether a class of this name is known to be normal, or to be a disease."""
    disease = bool((DISEASES | ANOMALOUS_WORDS) & set(words_of(name)))
    return is_normal_name(name) or (disease and not is_unclear_name(name))
