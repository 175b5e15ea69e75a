"""`gan-uad interpolate`: images between consecutive seeds or latents, as an animated GIF or rows of a PNG."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from gan_uad import console
from gan_uad.errors import UserError
from gan_uad.files import make_folder
from gan_uad.generation.generate import GeneratorSource, open_source
from gan_uad.generation.latents import walk
from gan_uad.networks.sampling import Latents, style_based, to_w
from gan_uad.plotting.pictures import Images, animation, image_grid

MAX_BYTES = 1 << 30  # of all frames
SUFFIXES = (".gif", ".png")


def interpolate(
    run: str,
    seeds: list[int],
    out: Path,
    *,
    latents: Path | None = None,
    between: int = 8,
    space: str | None = None,
    loop: bool = False,
    duration: int = 100,
    psi: float = 1.0,
    noise: str = "const",
    device: str = "auto",
) -> Path:
    """Write the images of consecutive seeds (or rows of the file `latents`) with `between` images between each two.

    `out`: a .gif file, `duration` ms per frame, or a .png file, one row per pair. `space` None: w where the generator has it, else z.
    `loop` adds the images between the last and the first. Raises `UserError`, also for a seed that
    follows itself.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out}: the name must end in {' or '.join(SUFFIXES)}")
    if noise == "random":
        raise UserError("--noise random differs from frame to frame; use --noise const or none")
    if latents is None:
        _check_seeds(seeds, loop)
    source = open_source(run, seeds, latents, psi, noise, device)
    pairs = len(source) if loop else len(source) - 1
    if len(source) < 2:
        raise UserError("--seeds or --latents must name at least two images to interpolate between")
    side = source.model.resolution
    if (size := (pairs * (between + 1) + 1) * side * side * 3) > MAX_BYTES:
        raise UserError(f"the frames need {size / 2**30:.1f} GiB, at most 1: use fewer --seeds or --frames-between")
    if source.latents is not None and source.latents.maps is not None:
        console.say(f"note: the noise maps in {latents} are left out: all frames have those of the generator")
    make_folder(out.parent)
    frames = render(source, path_of(source, between, space, loop))
    if out.suffix.lower() == ".gif":
        animation(frames, out, duration)
    else:
        rows = np.arange(pairs)[:, None] * (between + 1) + np.arange(between + 2)
        image_grid(frames[rows.ravel() % len(frames)], out, columns=between + 2)
    console.say(f"{len(frames)} frames -> {out}")
    return out


def _check_seeds(seeds: list[int], loop: bool) -> None:
    """Raise `UserError` for a seed that follows itself: all frames between the two would be one image."""
    for seed, after in pairwise(seeds):
        if seed == after:
            raise UserError(f"--seeds names seed {seed} twice in a row, and nothing lies between: name it once there")
    if loop and len(seeds) > 1 and seeds[0] == seeds[-1]:
        raise UserError(
            f"--seeds begins and ends with seed {seeds[0]}, which --loop adds by itself: leave it out at the end"
        )


def path_of(source: GeneratorSource, between: int, space: str | None, loop: bool) -> Latents:
    """The latents of all frames, ready for `draw`. In w, truncation comes first, so that the seeds' own images are met exactly."""
    keys = source.get(slice(None))
    chosen = space or ("w" if style_based(source.G) else "z")
    if chosen == "w" and not style_based(source.G):
        raise UserError("--space w needs StyleGAN or StyleGAN2: this generator has no w; use --space z")
    if chosen == "z" and keys.space != "z":
        raise UserError(f"--space z: --latents holds {keys.space}, from which z cannot be computed; use --space w")
    if chosen == "z":
        return to_w(source.G, walk(keys, between, loop), source.psi)
    return walk(to_w(source.G, keys, source.psi), between, loop)


def render(source: GeneratorSource, path: Latents) -> Images:
    """Images uint8 `[N, R, R, 3]` of the latents that `to_w` returned. Shows progress."""
    side = source.model.resolution
    frames = np.empty((len(path), side, side, 3), np.uint8)
    for start, chunk in source.chunks(path):
        frames[start : start + len(chunk)] = source.draw(chunk)
    return frames
