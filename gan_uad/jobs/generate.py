"""`gan-uad generate`: images of a trained generator as files, one a seed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from gan_uad import console, device
from gan_uad.data.patches import to_uint8
from gan_uad.errors import UserError
from gan_uad.files import atomic, make_folder
from gan_uad.jobs.load import load_model
from gan_uad.report.pictures import image_grid

CHUNK = 256
MOST = 1_000_000  # seeds of a range: more is a slip of the finger


def generate(run: str, seeds: list[int], out: Path, grid: bool = False, npz: bool = False, where: str = "auto") -> Path:
    """Write `seed000042.png` for every seed, or all in `images.npz` (uint8 `[N, R, R, 3]` and seeds), and `grid.png` if asked."""
    model = load_model(run, device.prepare(where))
    make_folder(out)
    kept = []
    with console.progress("generating", len(seeds)) as bar:
        for start in range(0, len(seeds), CHUNK):
            part = seeds[start : start + CHUNK]
            images = to_uint8(model.generate(part))
            if not npz:
                for seed, image in zip(part, images, strict=True):
                    with atomic(out / f"seed{seed:06d}.png") as temporary:
                        Image.fromarray(image).save(temporary, format="png")
            if npz or grid:
                kept.append(images)
            bar.update(start + len(part))
    if npz:
        with atomic(out / "images.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, images=np.concatenate(kept), seeds=np.array(seeds))
    if grid:
        image_grid(np.concatenate(kept), out / "grid.png")
    console.say(f"{len(seeds)} images -> {out}")
    return out


def parse_seeds(text: str) -> list[int]:
    """`"0-63"` and `"1,5,9"` and mixtures -> seeds of at most 18 digits, in that order. Raises `UserError` for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", part)
        if found is None:
            raise UserError(f"--seeds {text!r}: expected numbers and ranges such as 0-63 or 1,5,9")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise UserError(f"--seeds {text!r}: a range goes upwards, such as 0-63")
        if last - first >= MOST:
            raise UserError(f"--seeds {text!r}: a range holds at most {MOST:,} seeds; generate in several calls")
        seeds += range(first, last + 1)
    return seeds
