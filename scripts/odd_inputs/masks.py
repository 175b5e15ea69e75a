"""Odd masks: how they say where, sizes, empty and missing ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from odd_inputs.patch_frame import NORMAL, SIDE, VIOLET, Want, encoded, mask, tissue, write
from PIL import Image


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
