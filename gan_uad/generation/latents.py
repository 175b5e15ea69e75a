"""Latents of a trained generator: read from a file, interpolated."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan_uad.errors import UserError
from gan_uad.networks.sampling import Latents, style_based


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation `(sin((1−t)Ω)·a + sin(tΩ)·b) / sin Ω`, Ω the angle between vectors `a` and `b` (White 2016, section 2.1).

    Raises `ValueError` for opposite vectors: no shortest path is unique.
    """
    u, v = a.double(), b.double()
    cosine = u @ v / (u.norm() * v.norm()).clamp_min(torch.finfo(torch.float64).tiny)
    omega = math.acos(max(-1.0, min(1.0, cosine.item())))
    if math.pi - omega < 1e-4:
        raise ValueError("opposite vectors")
    if omega < 1e-4:
        return u.lerp(v, t).to(a.dtype)
    return ((math.sin((1 - t) * omega) * u + math.sin(t * omega) * v) / math.sin(omega)).to(a.dtype)


def walk(keys: Latents, between: int, loop: bool = False) -> Latents:
    """Every key followed by `between` steps towards the next, then the last key; with `loop` also the steps back to the first.

    z spherically, w and ws linearly. Raises `UserError` where z and the next z are opposite.
    """
    steps = []
    for i in range(len(keys) if loop else len(keys) - 1):
        a, b = keys.values[i], keys.values[(i + 1) % len(keys)]
        steps.append(a)
        for t in (j / (between + 1) for j in range(1, between + 1)):
            try:
                steps.append(slerp(a, b, t) if keys.space == "z" else a.lerp(b, t))
            except ValueError:
                raise UserError(f"latents {i} and {(i + 1) % len(keys)} are opposite in z; use --space w") from None
    if not loop:
        steps.append(keys.values[-1])
    return Latents(keys.space, torch.stack(steps), range(len(steps)))


def read_latents(path: Path, G: Any) -> Latents:
    """Latents for `G` from an npz file: `ws [N, num_ws, w_dim]`, else `w [N, w_dim]`, else `z [N, z_dim]`; w only where `G` has a mapping.

    Includes the noise maps `noise_00`, `noise_01`, ... `[N, 1, h, w]` that `gan-uad project` found, where the file has them. Row numbers
    serve as seeds. Raises `UserError` for a file without latents, another shape, or values that are not finite.
    """
    shapes: dict[str, tuple[int, ...]] = {"z": (G.z_dim,)}
    if style_based(G):
        shapes = {"ws": (G.synthesis.num_ws, G.w_dim), "w": (G.w_dim,)} | shapes
    key, array, noise = _read_arrays(path, list(shapes))
    context = f"--latents {path}: "
    values = _checked(array, shapes[key], context + key)
    if not len(values):
        raise UserError(f"{context}{key} is empty")
    maps = None
    if noise and style_based(G):
        wanted = [f"noise_{i:02d}" for i in range(len(G.synthesis.noise_shapes))]
        if sorted(noise) != wanted:
            raise UserError(
                f"{context}this generator takes the noise maps {wanted[0]} to {wanted[-1]}, not {', '.join(noise)}"
            )
        maps = [
            _checked(noise[n], shape, context + n) for n, shape in zip(wanted, G.synthesis.noise_shapes, strict=True)
        ]
        if any(len(of_layer) != len(values) for of_layer in maps):
            raise UserError(f"{context}there are {len(values)} latents, and another number of noise maps")
    return Latents(key, values, range(len(values)), maps)


def _checked(array: np.ndarray[Any, Any], shape: tuple[int, ...], context: str) -> Tensor:
    """As float32 `[N, *shape]`. Raises `UserError`."""
    if array.dtype.kind not in "fiu":
        raise UserError(f"{context} must be numbers, not {array.dtype}")
    if array.ndim == 0 or array.shape[1:] != shape:
        wanted = ", ".join(str(size) for size in shape)
        raise UserError(f"{context} must be [N, {wanted}] for this generator, not {list(array.shape)}")
    with np.errstate(over="ignore"):
        values = torch.from_numpy(array.astype(np.float32))
    bad = (~values.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        raise UserError(f"{context} holds a value that is not finite in row {int(bad[0])}")
    return values


def _read_arrays(path: Path, keys: list[str]) -> tuple[str, np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    """The first of `keys` that the file has, its array, and all arrays whose names begin with `noise_`."""
    context, wanted = f"--latents {path}", f"an array named {' or '.join(keys)}"
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{context} is a single array; expected an npz file with {wanted}")
        with archive:
            key = next((key for key in keys if key in archive.files), None)
            if key is None:
                held = ", ".join(archive.files) or "nothing"
                raise UserError(f"{context} holds {held}; this generator takes {wanted}")
            return key, archive[key], {name: archive[name] for name in archive.files if name.startswith("noise_")}
    except FileNotFoundError:
        raise UserError(f"{context}: no such file") from None
    except (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        if "pickle" in why:
            why = "it is no npz file or holds pickled objects, which are never loaded"
        raise UserError(f"{context} cannot be read: {why}") from None
