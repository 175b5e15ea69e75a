"""Odd names of classes, splits, folders and files of a patch set."""

from __future__ import annotations

import os
from pathlib import Path

from odd_inputs.patch_frame import NORMAL, PINK, TUMOUR, VIOLET, Want, classes, patches, tissue, write


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
