"""Odd archives, index.csv files and arrays of patches."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from odd_inputs.patch_frame import (
    NORMAL,
    PINK,
    TUMOUR,
    VIOLET,
    Want,
    classes,
    encoded,
    index,
    patches,
    rows,
    tissue,
    write,
)
from PIL import Image


def zipped(folder: Path, root: Path, prefix: str = "", rename: Callable[[str], str] = str) -> Path:
    with zipfile.ZipFile(folder / "p.zip", "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, rename(prefix + file.relative_to(root).as_posix()))
    return folder / "p.zip"


@patches("zip with a wrapper called benign", "right")
def _(folder: Path) -> Want:
    return Want(zipped(folder, classes(folder / "p"), "benign/"))


@patches("zip whose names have backslashes")
def _(folder: Path) -> Want:
    return Want(zipped(folder, classes(folder / "p"), rename=lambda name: name.replace("/", "\\")))


@patches("zip with a zip inside", "right")
def _(folder: Path) -> Want:
    path = zipped(folder, classes(folder / "p"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.zip", b"PK\5\6" + bytes(18))
    return Want(path, said=(".zip",))


@patches("zip with one name twice")
def _(folder: Path) -> Want:
    path = zipped(folder, classes(folder / "p"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("normal/0.png", encoded(Image.fromarray(tissue()), "PNG"))
    return Want(path, said=("name of another",))


@patches("zip that is cut off", "refused")
def _(folder: Path) -> Want:
    path = zipped(folder, classes(folder / "p"))
    path.write_bytes(path.read_bytes()[:-300])
    return Want(path)


@patches("index.csv with BOM and CRLF", "right")
def _(folder: Path) -> Want:
    return Want(index(folder / "p", rows(), lambda text: text.replace("\n", "\r\n").encode("utf-8-sig")), groups=12)


@patches("index.csv with semicolons", "refused")
def _(folder: Path) -> Want:
    return Want(index(folder / "p", [line.replace(",", ";") for line in rows()]))


@patches("index.csv in UTF-16")
def _(folder: Path) -> Want:
    return Want(index(folder / "p", rows(), lambda text: text.encode("utf-16")))


@patches("index.csv with words as labels", "right")
def _(folder: Path) -> Want:
    return Want(index(folder / "p", rows(("normal", "Anomalous"))))


@patches("index.csv with labels 1 and 2", "refused")
def _(folder: Path) -> Want:
    return Want(index(folder / "p", rows(("1", "2"))))


@patches("index.csv with one image in two rows", "refused")
def _(folder: Path) -> Want:
    return Want(index(folder / "p", [*rows(), "./0.png,p0,0,"]))


@patches("index.csv with the group NaN", "refused")
def _(folder: Path) -> Want:
    return Want(index(folder / "p", rows(group="NaN")))


@patches("index.csv that leads out of its folder", "refused")
def _(folder: Path) -> Want:
    write(folder / "x.png")
    return Want(index(folder / "p", [*rows(), "../x.png,q,0,"]))


@patches("index.csv of two scales", "refused")
def _(folder: Path) -> Want:
    lines = [f"{line},{'mpp' if not k else 0.25 if k < 4 else 0.5}" for k, line in enumerate(rows())]
    return Want(index(folder / "p", lines))


@patches("index.csv with one patient in train and test", "refused")
def _(folder: Path) -> Want:
    lines = [line + ("" if not k else ("train", "test")[k % 2]) for k, line in enumerate(rows(group="p{k}"))]
    return Want(index(folder / "p", [line.replace("p3,", "p4,") for line in lines]))


def arrays(folder: Path, name: str = "breastmnist_64.npz", **changes: Any) -> Path:
    content: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        images = np.stack([tissue(PINK if k < NORMAL else VIOLET) for k in range(12)])
        content |= {f"{split}_images": images, f"{split}_labels": np.repeat([1, 0], [NORMAL, TUMOUR])[:, None]}
    np.savez(folder / name, **content | changes)
    return folder / name


@patches("MedMNIST file whose normal class is 1", "right")
def _(folder: Path) -> Want:
    return Want(arrays(folder), {"normal": 3 * NORMAL, "anomalous": 3 * TUMOUR})


@patches("the same under another name", "refused")
def _(folder: Path) -> Want:
    return Want(arrays(folder, "mine.npz"))


@patches("npz of labels one-hot", "refused")
def _(folder: Path) -> Want:
    return Want(arrays(folder, train_labels=np.eye(2, dtype=int)[np.repeat([1, 0], [NORMAL, TUMOUR])]))


@patches("npz of float images from 0 to 1", "refused")
def _(folder: Path) -> Want:
    return Want(arrays(folder, train_images=np.random.default_rng(0).random((12, 32, 32, 3))))


@patches("npz of images with channels first", "refused")
def _(folder: Path) -> Want:
    return Want(arrays(folder, train_images=np.zeros((12, 3, 32, 32), np.uint8)))


@patches("npz of fewer labels than images", "refused")
def _(folder: Path) -> Want:
    return Want(arrays(folder, train_labels=np.ones((5, 1), int)))


@patches("npz of pickled objects", "refused")
def _(folder: Path) -> Want:
    return Want(arrays(folder, train_images=np.array([{"a": 1}] * 12, dtype=object)))


def hdf5(folder: Path, labels: np.ndarray) -> Path:
    root = folder / "p"
    root.mkdir()
    for split in ("train", "valid", "test"):
        images = np.stack([tissue(PINK if k < NORMAL else VIOLET) for k in range(12)])
        for name, values in (("x", images), ("y", labels)):
            with h5py.File(root / f"camelyonpatch_level_2_split_{split}_{name}.h5", "w") as file:
                file[name] = values
    return root


@patches("PatchCamelyon without slide names", "right")
def _(folder: Path) -> Want:
    labels = np.repeat([0, 1], [NORMAL, TUMOUR]).reshape(-1, 1, 1, 1)
    return Want(hdf5(folder, labels), {"normal": 3 * NORMAL, "anomalous": 3 * TUMOUR}, said=("groups",))


@patches("PatchCamelyon with fewer labels than images", "refused")
def _(folder: Path) -> Want:
    return Want(hdf5(folder, np.zeros((5, 1, 1, 1), np.uint8)))


@patches("PatchCamelyon with labels 1 and 2", "refused")
def _(folder: Path) -> Want:
    return Want(hdf5(folder, np.repeat([1, 2], 6).reshape(-1, 1, 1, 1)))


@patches("zip with a password", "refused")
def _(folder: Path) -> Want:
    path = zipped(folder, classes(folder / "p"))
    raw = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flag of encryption, in both headers of every file
        start = raw.find(mark)
        while start >= 0:
            raw[start + place] |= 1
            start = raw.find(mark, start + 4)
    path.write_bytes(raw)
    return Want(path, odd=".png")


@patches("zip with __MACOSX inside", "right")
def _(folder: Path) -> Want:
    path = zipped(folder, classes(folder / "p"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/normal/._0.png", b"Mac OS X")
    return Want(path)


@patches("index.csv with absolute paths", "refused")
def _(folder: Path) -> Want:
    return Want(index(folder / "p", [rows()[0], *(f"{folder}/p/{line}" for line in rows()[1:])]))


@patches("index.csv with labels 0.0 and 1.0")
def _(folder: Path) -> Want:
    return Want(index(folder / "p", rows(("0.0", "1.0"))))


@patches("index.csv with exchanged labels: what it says counts", "right")
def _(folder: Path) -> Want:
    want = Want(index(folder / "p", rows(("1", "0"))), {"normal": TUMOUR, "anomalous": NORMAL})
    want.colours = {f"{k}.png": VIOLET if k >= NORMAL else PINK for k in reversed(range(NORMAL + TUMOUR))}
    return want


@patches("npz without labels", "refused")
def _(folder: Path) -> Want:
    np.savez(folder / "x.npz", train_images=np.zeros((4, 32, 32, 3), np.uint8))
    return Want(folder / "x.npz")


@patches("PatchCamelyon of uint16 images", "refused")
def _(folder: Path) -> Want:
    root = hdf5(folder, np.repeat([0, 1], [NORMAL, TUMOUR]).reshape(-1, 1, 1, 1))
    with h5py.File(root / "camelyonpatch_level_2_split_train_x.h5", "w") as file:
        file["x"] = np.zeros((12, 32, 32, 3), np.uint16)
    return Want(root)


@patches("PatchCamelyon with channels first", "refused")
def _(folder: Path) -> Want:
    root = hdf5(folder, np.repeat([0, 1], [NORMAL, TUMOUR]).reshape(-1, 1, 1, 1))
    with h5py.File(root / "camelyonpatch_level_2_split_train_x.h5", "w") as file:
        file["x"] = np.zeros((12, 3, 32, 32), np.uint8)
    return Want(root)
