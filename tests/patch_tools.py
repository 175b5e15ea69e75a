"""What the tests of patch sets share."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gan_uad.config import DataConfig
from gan_uad.data.patches import PatchSet, load_patches
from gan_uad.errors import UserError


def picture(seed: int, width: int = 8, height: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array: Any, mode: str | None = None, format: str = "PNG", **options: Any) -> bytes:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def write(root: Path, names: dict[str, bytes] | list[str]) -> Path:
    contents = names if isinstance(names, dict) else {name: png(picture(k)) for k, name in enumerate(names)}
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def load(path: Path, tmp_path: Path, resolution: int = 8, **settings: Any) -> PatchSet:
    return load_patches(DataConfig(path=str(path), **settings), resolution, cache=tmp_path / "cache")


@contextmanager
def refused(*named: str, error: type[Any] = UserError) -> Iterator[None]:
    """The block ends with an error of one line that names all of these: paths, keys, options, values."""
    with pytest.raises(error) as caught:
        yield
    assert "\n" not in caught.value.message
    assert [word for word in named if word not in caught.value.message] == [], caught.value.message


def index(tmp_path: Path, *lines: str, header: str = "image,group,label,split") -> Path:
    """A folder with images a.png to d.png and the given index.csv."""
    root = write(tmp_path / "set", ["a.png", "b.png", "c.png", "d.png"])
    (root / "index.csv").write_text("\n".join([header, *lines]) + "\n")
    return root
