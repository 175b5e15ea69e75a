"""Makes and judges one odd patch set or mask, by what `gan-uad data check` says and what a network would get."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
