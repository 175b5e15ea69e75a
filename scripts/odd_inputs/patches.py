"""Odd patch sets and masks: what is right is known here, and compared with `gan-uad data check` and with what a network would get."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from odd_inputs.common import Outcome, odd, run_cli
from PIL import Image

NORMAL, TUMOUR = 7, 5  # images of each label, where a set has both
PINK, VIOLET = (220, 140, 190), (110, 70, 150)
SIDE, TOLERANCE = 32, 6


@dataclass
class Want:
    """What is right. labels: images by label. splits: labels by split. colours: mean colour of images by the end of their name. marked:
    whether the upper right quarter of the mask is marked (0: nothing). said: words that the
    output must hold."""

    path: Path
    labels: dict[str, int] = field(default_factory=lambda: {"normal": NORMAL, "anomalous": TUMOUR})
    splits: dict[str, dict[str, int]] | None = None
    groups: int | None = None
    colours: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    top: tuple[int, int, int] | None = None  # mean colour of the upper quarter of the odd image
    marked: float | None = None
    odd: str = ""  # the end of the name that a problem must hold
    said: tuple[str, ...] = ()
    args: tuple[str, ...] = ()


Maker = Callable[[Path], Want]
count = iter(range(10**6))


def patches(name: str, accept: str = "right refused") -> Callable[[Maker], Maker]:
    """Register a maker of a patch set. accept: outcomes that are not wrong."""
    return lambda maker: _register(name, "patch set", maker, accept)


def mask(name: str, accept: str = "right refused") -> Callable[[Maker], Maker]:
    """Register a maker of a set with one odd mask."""
    return lambda maker: _register(name, "mask", maker, accept)


def _register(name: str, kind: str, maker: Maker, accept: str) -> Maker:
    @odd(name, kind)
    def case(folder: Path) -> Outcome:
        found = judge(maker(folder))
        if found.verdict != "WRONG" and found.verdict not in accept.split():
            return Outcome("WRONG", f"{found.verdict}, but must be {accept}: {found.why}")
        return found

    return maker


def judge(want: Want) -> Outcome:
    """Compare what `gan-uad data check` says, and the pixels and masks that a network gets, with what is right."""
    code, text = run_cli(["data", "check", str(want.path), "--json", "--resolution", "16", *want.args])
    if "Traceback" in text or code not in (0, 1, 2):
        return Outcome("WRONG", f"exit code {code}: {text[-300:]}")
    errors = [line for line in text.splitlines() if line.startswith("Error:")]
    if code == 2 or (code == 1 and errors):
        clear = len(errors) == 1 and re.search(r"/|--|-o |'", errors[0])
        return Outcome("refused" if clear else "WRONG", errors[0] if errors else text[-300:])
    found = json.loads(text[text.index("{") : text.rindex("}") + 1])
    problems = [problem for problem in found["problems"] if "detection cannot be evaluated" not in problem]
    if problems:
        listed = [*found["broken"], *found["masks"]]
        about = [f"{name}: {reason}" for name, reason in listed if want.odd and name.endswith(want.odd)]
        clear = about if listed else problems
        return Outcome("refused" if clear else "WRONG", (clear or problems)[0])
    totals: dict[str, int] = {}
    for labels in found["labels"].values():
        for label, n in labels.items():
            totals[label] = totals.get(label, 0) + n
    wrong = [] if totals == want.labels else [f"labels {totals}, not {want.labels}"]
    if want.splits is not None and found["labels"] != want.splits:
        wrong.append(f"splits {found['labels']}, not {want.splits}")
    if want.groups is not None and sum(found["groups"].values()) != want.groups:
        wrong.append(f"{found['groups']} groups, not {want.groups}")
    said = " / ".join(found["notes"])
    wrong += [f"not said: {word}" for word in want.said if word.lower() not in said.lower()]
    wrong += _read(want)
    return Outcome("WRONG" if wrong else "right", "; ".join(wrong) or said[:200])


def _read(want: Want) -> list[str]:
    """What is wrong with the labels, images and masks that a network gets.

    An image is normal where it is pink and anomalous where it is violet; `colours` are of images that are neither.
    """
    from gan_uad.config import DataConfig
    from gan_uad.data.patches import load_patches

    classes = {"normal_classes": json.loads(want.args[1].partition("=")[2])} if want.args else {}
    loaded = load_patches(DataConfig(path=str(want.path), **classes), SIDE)
    wrong = []
    for name, label, image in zip(loaded.manifest.image, loaded.manifest.label.tolist(), loaded.images, strict=True):
        got = image.reshape(-1, 3).mean(0)
        colour = next((colour for end, colour in want.colours.items() if name.endswith(end)), None)
        if colour is None:
            if not np.abs(got - (PINK, VIOLET)[label]).max() <= 12:
                wrong.append(f"{name}, labelled {label}, is {got.round().tolist()}")
        elif not np.abs(got - colour).max() <= TOLERANCE:
            wrong.append(f"{name} is {got.round().tolist()}, not {colour}")
    missing = [end for end in want.colours if not any(name.endswith(end) for name in loaded.manifest.image)]
    wrong += [f"{end} is not in the set" for end in missing]
    if want.top is not None:
        (row,) = [i for i, name in enumerate(loaded.manifest.image) if name.endswith(tuple(want.colours))]
        if not np.abs(loaded.images[row][:8].reshape(-1, 3).mean(0) - want.top).max() <= TOLERANCE:
            wrong.append("the image lies otherwise")
    if want.marked is not None:
        found = loaded.masks()[loaded.manifest.label == 1]
        right = np.zeros((SIDE, SIDE), bool)
        right[:16, 16:] = want.marked > 0
        if len(found) != 1 or not (found[0] != right).mean() <= 0.02:
            wrong.append(f"{found.mean():.3f} of the mask is marked, or elsewhere")
    return wrong[:3]


def tissue(colour: tuple[int, ...] = PINK, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side, 3] around a colour; no two are equal."""
    noise = np.random.default_rng(next(count)).integers(-10, 11, (side, side, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def write(path: Path, image: np.ndarray | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(tissue() if image is None else image).save(path, **options)
    return path


def classes(root: Path, normal: str = "normal", tumour: str = "tumour", ending: str = "png") -> Path:
    """A folder of two class folders."""
    for name, colour, n in ((normal, PINK, NORMAL), (tumour, VIOLET, TUMOUR)):
        for k in range(n):
            write(root / name / f"{k}.{ending}", tissue(colour))
    return root


def index(root: Path, lines: list[str], text: Callable[[str], bytes] = str.encode) -> Path:
    """Twelve images with an `index.csv`."""
    for k in range(NORMAL + TUMOUR):
        write(root / f"{k}.png", tissue(VIOLET if k >= NORMAL else PINK))
    (root / "index.csv").write_bytes(text("\n".join(lines) + "\n"))
    return root


def rows(label: tuple[str, str] = ("0", "1"), split: str = "", group: str = "p{k}") -> list[str]:
    header = ["image,group,label,split"]
    return header + [f"{k}.png,{group.format(k=k)},{label[k >= NORMAL]},{split}" for k in range(NORMAL + TUMOUR)]


def one(folder: Path, name: str, content: np.ndarray | bytes, colour: tuple[int, int, int], **options: Any) -> Want:
    """Class folders with one odd image, `normal/NAME`."""
    root, path = classes(folder / "p"), folder / "p" / "normal" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        tifffile.imwrite(path, content, **options)
    return Want(root, {"normal": NORMAL + 1, "anomalous": TUMOUR}, colours={name: colour}, odd=name)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


# ------------------------------------------------------------------------------- pixels


@patches("PNG of 16-bit grey", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.png", encoded(Image.fromarray(np.full((32, 32), 120 * 257, np.uint16)), "PNG"), (120,) * 3)


@patches("PNG palette with transparency", "right")
def _(folder: Path) -> Want:
    image = Image.fromarray(np.full((32, 32), 1, np.uint8), "P")
    image.putpalette([0, 0, 0, 200, 40, 90])
    return one(folder, "odd.png", encoded(image, "PNG", transparency=0), (200, 40, 90))


@patches("PNG whose half is transparent: on white", "right")
def _(folder: Path) -> Want:
    image = np.full((32, 32, 4), (100, 50, 150, 255), np.uint8)
    image[:16, :, 3] = 0
    want = one(folder, "odd.png", encoded(Image.fromarray(image), "PNG"), (178, 152, 202))
    want.top = (255, 255, 255)
    return want


@patches("PNG of grey with alpha", "right")
def _(folder: Path) -> Want:
    image = np.dstack([np.full((32, 32), 90, np.uint8), np.full((32, 32), 255, np.uint8)])
    return one(folder, "odd.png", encoded(Image.fromarray(image, "LA"), "PNG"), (90,) * 3)


@patches("PNG of one bit", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.png", encoded(Image.new("1", (32, 32), 1), "PNG"), (255,) * 3)


@patches("JPEG of CMYK")
def _(folder: Path) -> Want:
    return one(folder, "odd.jpg", encoded(Image.new("RGB", (32, 32), PINK).convert("CMYK"), "JPEG", quality=95), PINK)


@patches("JPEG that lies on its side by EXIF", "right")
def _(folder: Path) -> Want:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.full((64, 32, 3), PINK, np.uint8)
    image[:, :8] = VIOLET  # turned by 6 (a quarter clockwise), the left edge is the upper one
    want = one(folder, "odd.jpg", encoded(Image.fromarray(image), "JPEG", exif=exif, quality=95), (192, 122, 180))
    want.said, want.top = ("not square",), VIOLET
    return want


@patches("JPEG named .png", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.png", encoded(Image.new("RGB", (32, 32), PINK), "JPEG", quality=95), PINK)


@patches("animated WebP")
def _(folder: Path) -> Want:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (PINK, VIOLET)]
    return one(
        folder, "odd.webp", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), PINK
    )


@patches("TIFF of two pages")
def _(folder: Path) -> Want:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (PINK, VIOLET)]
    return one(folder, "odd.tif", encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), PINK)


@patches("TIFF of white-is-zero grey", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32), 155, np.uint8), (100,) * 3, photometric="miniswhite")


@patches("TIFF of 16-bit white-is-zero grey", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32), 155 * 257, np.uint16), (100,) * 3, photometric="miniswhite")


@patches("TIFF of 16-bit RGB")
def _(folder: Path) -> Want:
    image = np.full((32, 32, 3), np.array(PINK) * 257, np.uint16)
    return one(folder, "odd.tif", image, PINK, photometric="rgb")


@patches("TIFF of 12 bits in 16")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32), 1930, np.uint16), (120,) * 3, photometric="minisblack")


@patches("TIFF of float grey from 0 to 1", "refused")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32), 0.5, np.float32), (128,) * 3, photometric="minisblack")


@patches("TIFF of signed bytes", "refused")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32), 60, np.int8), (188,) * 3, photometric="minisblack")


@patches("TIFF of five channels", "refused")
def _(folder: Path) -> Want:
    return one(
        folder,
        "odd.tif",
        np.full((5, 32, 32), 60, np.uint8),
        (60,) * 3,
        photometric="minisblack",
        planarconfig="separate",
    )


@patches("TIFF of CIELAB")
def _(folder: Path) -> Want:
    return one(folder, "odd.tif", np.full((32, 32, 3), (128, 0, 0), np.uint8), (119,) * 3, photometric="cielab")


@patches("image of no bytes", "refused")
def _(folder: Path) -> Want:
    return one(folder, "odd.png", b"", PINK)


@patches("truncated JPEG", "refused")
def _(folder: Path) -> Want:
    return one(folder, "odd.jpg", encoded(Image.fromarray(tissue(side=256)), "JPEG")[:900], PINK)


@patches("text named .png", "refused")
def _(folder: Path) -> Want:
    return one(folder, "odd.png", b"<html>not found</html>", PINK)


@patches("image of 1 px")
def _(folder: Path) -> Want:
    want = one(folder, "odd.png", encoded(Image.new("RGB", (1, 1), PINK), "PNG"), PINK)
    want.said = ("enlarged",)
    return want


# ------------------------------------------------------------------------------- names


@patches("classes abnormal and normal", "right")
def _(folder: Path) -> Want:
    return Want(classes(folder / "p", "normal", "abnormal"))


@patches("classes non_tumor and tumor", "right")
def _(folder: Path) -> Want:
    return Want(classes(folder / "p", "non_tumor", "tumor"))


@patches("classes 0 and 1", "refused")
def _(folder: Path) -> Want:
    return Want(classes(folder / "p", "0", "1"))


@patches("classes normal_vs_tumour and tumour", "refused")
def _(folder: Path) -> Want:
    return Want(classes(folder / "p", "normal_vs_tumour", "tumour"))


@patches("classes of NCT-CRC-HE: NORM, TUM, with the normal one given", "right")
def _(folder: Path) -> Want:
    return Want(classes(folder / "p", "NORM", "TUM"), args=("-o", 'data.normal_classes=["NORM"]'))


@patches("classes in German", "refused")
def _(folder: Path) -> Want:
    return Want(classes(folder / "p", "gesund", "krank"))


@patches("wrapper folder with the word normal", "right")
def _(folder: Path) -> Want:
    classes(folder / "p" / "normal_or_not" / "inner")
    return Want(folder / "p")


@patches("HER2_negative beside HER2_positive", "refused")
def _(folder: Path) -> Want:
    return Want(classes(folder / "p", "HER2_negative", "HER2_positive"))


@patches("splits above classes, named Training and validation", "right")
def _(folder: Path) -> Want:
    classes(folder / "p" / "Training")
    classes(folder / "p" / "validation")
    both = {"normal": NORMAL, "anomalous": TUMOUR}
    return Want(folder / "p", {name: 2 * n for name, n in both.items()}, {"train": both, "val": both})


@patches("splits below classes", "right")
def _(folder: Path) -> Want:
    splits = {split: {"normal": n, "anomalous": n + 1} for split, n in (("train", 5), ("val", 2), ("test", 3))}
    for split, labels in splits.items():
        for name, colour, n in (("normal", PINK, labels["normal"]), ("tumour", VIOLET, labels["anomalous"])):
            for k in range(n):
                write(folder / "p" / name / split / f"{k}.png", tissue(colour))
    return Want(folder / "p", {"normal": 10, "anomalous": 13}, splits)


@patches("splits in the names of class folders", "refused")
def _(folder: Path) -> Want:
    return Want(classes(folder / "p", "train_normal", "test_tumour"))


@patches("hidden files, thumbnails and a README picture", "right")
def _(folder: Path) -> Want:
    root = classes(folder / "p")
    for name in ("normal/@eaDir/0.png", "tumour/.thumbnails/1.png", "normal/._0.png", "__MACOSX/normal/0.png"):
        write(root / name)
    return Want(root, said=("hidden",))


@patches("files of endings that are not read", "right")
def _(folder: Path) -> Want:
    root = classes(folder / "p")
    for name in ("a.gif", "b.jp2", "c.heic"):
        (root / "normal" / name).write_bytes(b"x")
    return Want(root, said=(".gif", ".jp2", ".heic"))


@patches("a folder that is named like an image")
def _(folder: Path) -> Want:
    root = classes(folder / "p")
    (root / "normal" / "x.png").mkdir()
    return Want(root, odd="x.png")


@patches("a link to a file that does not exist", "refused")
def _(folder: Path) -> Want:
    root = classes(folder / "p")
    os.symlink(folder / "gone.png", root / "normal" / "gone.png")
    return Want(root, odd="gone.png")


@patches("a named pipe", "refused")
def _(folder: Path) -> Want:
    root = classes(folder / "p")
    os.mkfifo(root / "normal" / "pipe.png")
    return Want(root, odd="pipe.png")


@patches("equal images in train and test", "refused")
def _(folder: Path) -> Want:
    for split in ("train", "val", "test"):
        classes(folder / "p" / split)
    (folder / "p" / "test" / "normal" / "same.png").write_bytes(
        (folder / "p" / "train" / "normal" / "0.png").read_bytes()
    )
    return Want(folder / "p")


# ------------------------------------------------------------------------------- archives


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


# ------------------------------------------------------------------------------- index.csv, arrays


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


# ------------------------------------------------------------------------------- masks


def masked(folder: Path, content: bytes | None, name: str = "mask.png", marked: float | None = 0.25) -> Want:
    """Twelve images with an index; the one anomalous image has the mask."""
    root = folder / "p"
    lines = ["image,group,label,split,mask"]
    for k in range(NORMAL):
        write(root / f"{k}.png")
        lines.append(f"{k}.png,p{k},0,{('train', 'val', 'test')[k % 3]},")
    write(root / "a.png", tissue(VIOLET))
    lines.append(f"a.png,q,1,test,{name if content is not None else ''}")
    if content is not None:
        (root / name).write_bytes(content)
    (root / "index.csv").write_text("\n".join(lines) + "\n")
    return Want(root, {"normal": NORMAL, "anomalous": 1}, marked=marked, odd=name)


def quarter(low: Any, high: Any, kind: Any = np.uint8) -> np.ndarray:
    found = np.full((SIDE, SIDE), low, kind)
    found[:16, 16:] = high
    return found


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    return encoded(Image.fromarray(array, mode) if mode else Image.fromarray(array), "PNG")


@mask("values 0 and 1", "right")
def _(folder: Path) -> Want:
    return masked(folder, png(quarter(0, 1)))


@mask("values 0 and 255", "right")
def _(folder: Path) -> Want:
    return masked(folder, png(quarter(0, 255)))


@mask("16 bits", "right")
def _(folder: Path) -> Want:
    return masked(folder, png(quarter(0, 65535, np.uint16)))


@mask("one bit", "right")
def _(folder: Path) -> Want:
    return masked(folder, encoded(Image.fromarray(quarter(0, 255)).convert("1"), "PNG"))


@mask("transparent but for the marked quarter", "right")
def _(folder: Path) -> Want:
    return masked(folder, png(np.dstack([quarter(255, 255)] * 3 + [quarter(0, 255)])))


@mask("grey with alpha", "right")
def _(folder: Path) -> Want:
    return masked(folder, png(np.dstack([quarter(0, 255), quarter(255, 255)]), "LA"))


@mask("JPEG", "right")
def _(folder: Path) -> Want:
    return masked(folder, encoded(Image.fromarray(quarter(0, 255)), "JPEG", quality=60), "mask.jpg")


@mask("palette")
def _(folder: Path) -> Want:
    image = Image.fromarray(quarter(0, 1), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return masked(folder, encoded(image, "PNG"))


@mask("red on black")
def _(folder: Path) -> Want:
    return masked(folder, png(np.dstack([quarter(0, 255), quarter(0, 0), quarter(0, 0)])))


@mask("another size than its image", "refused")
def _(folder: Path) -> Want:
    return masked(folder, png(np.kron(quarter(0, 255), np.ones((2, 2), np.uint8))))


@mask("a map of classes 0 to 4", "refused")
def _(folder: Path) -> Want:
    return masked(folder, png(quarter(0, 1) + quarter(1, 2) + quarter(0, 2)))


@mask("faint: 0 and 40 of 255")
def _(folder: Path) -> Want:
    return masked(folder, png(quarter(0, 40)))


@mask("empty", "right refused")
def _(folder: Path) -> Want:
    want = masked(folder, png(quarter(0, 0)), marked=0)
    want.said = ("mask",)
    return want


@mask("a broken file", "refused")
def _(folder: Path) -> Want:
    return masked(folder, b"not a mask")


@mask("missing for the anomalous image")
def _(folder: Path) -> Want:
    want = masked(folder, None, marked=None)
    return want


@mask("TIFF of LZW", "right")
def _(folder: Path) -> Want:
    return masked(folder, encoded(Image.fromarray(quarter(0, 255)), "TIFF", compression="tiff_lzw"), "mask.tif")


@mask("the image itself", "refused")
def _(folder: Path) -> Want:
    want = masked(folder, png(quarter(0, 255)))
    text = (want.path / "index.csv").read_text()
    (want.path / "index.csv").write_text(text.replace("mask.png", "a.png"))
    return want


@mask("a marked quarter on a normal image")
def _(folder: Path) -> Want:
    want = masked(folder, png(quarter(0, 255)))
    text = (want.path / "index.csv").read_text()
    (want.path / "index.csv").write_text(
        text.replace("0.png,p0,0,train,", "0.png,p0,0,train,mask.png").replace("test,mask.png", "test,")
    )
    want.marked, want.said = None, ("mask",)
    return want


@mask("255 as background, 0 as marked")
def _(folder: Path) -> Want:
    """Bright is marked, by the rule that is documented: the three other quarters."""
    want = masked(folder, png(quarter(255, 0)), marked=None)
    return want


@patches("progressive JPEG", "right")
def _(folder: Path) -> Want:
    return one(folder, "odd.jpg", encoded(Image.new("RGB", (32, 32), PINK), "JPEG", quality=95, progressive=True), PINK)


@patches("classes in Chinese", "refused")
def _(folder: Path) -> Want:
    return Want(classes(folder / "p", "正常组织", "肿瘤"))


@patches("classes in Chinese, with the normal one given", "right")
def _(folder: Path) -> Want:
    return Want(classes(folder / "p", "正常组织", "肿瘤"), args=("-o", 'data.normal_classes=["正常组织"]'))


@patches("IDC names below a wrapper and splits", "right")
def _(folder: Path) -> Want:
    splits = {
        "train": {"normal": 5, "anomalous": 3},
        "val": {"normal": 2, "anomalous": 1},
        "test": {"normal": 3, "anomalous": 2},
    }
    patient = 0
    for split, labels in splits.items():
        for name, n in labels.items():
            for k in range(n):
                patient += 1
                klass = int(name == "anomalous")
                file = f"{8000 + patient}_idx5_x{50 * k + 1}_y51_class{klass}.png"
                write(folder / "p" / "IDC_normal" / split / str(klass) / file, tissue((PINK, VIOLET)[klass]))
    return Want(folder / "p", {"normal": 10, "anomalous": 6}, splits, groups=16)


@patches("splits in the names of files", "right refused")
def _(folder: Path) -> Want:
    root = classes(folder / "p")
    for k, file in enumerate(sorted(root.rglob("*.png"))):
        file.rename(file.with_name(f"{('train', 'test')[k % 2]}_{k}.png"))
    return Want(root, said=("not read as splits",))


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
