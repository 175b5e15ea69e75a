"""`gan-uad interpolate`: the way from one seed or latent to the next, as an animated GIF or rows of a PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gan_uad import console
from gan_uad.data.patches import to_uint8
from gan_uad.errors import UserError
from gan_uad.files import make_folder
from gan_uad.generation.generate import CHUNK, GeneratorSource, open_source
from gan_uad.generation.latents import walk
from gan_uad.networks.sampling import Latents, draw, style_based, to_w
from gan_uad.plotting.pictures import Images, animation, image_grid

MOST_BYTES = 1 << 30  # of all frames
SUFFIXES = (".gif", ".png")


def interpolate(
    run: str,
    seeds: list[int],
    file: Path,
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

    `file`: .gif, `duration` ms a frame, or .png, a row from each seed to the next. `space` None: w where there is one, else z.
    `loop` adds the way from the last to the first. Raises `UserError`.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"--interpolate {file}: the name must end in {' or '.join(SUFFIXES)}")
    if noise == "random":
        raise UserError("--noise random would flicker from frame to frame; use const or none with --interpolate")
    source = open_source(run, seeds, latents, psi, noise, device)
    pairs = len(source) if loop else len(source) - 1
    if len(source) < 2:
        raise UserError("--interpolate needs at least two seeds or latents")
    side = source.model.resolution
    if (size := (pairs * (between + 1) + 1) * side * side * 3) > MOST_BYTES:
        raise UserError(
            f"--interpolate: these frames need {size / 2**30:.1f} GiB, at most 1; use fewer --seeds or frames"
        )
    if source.latents is not None and source.latents.maps is not None:
        console.say(f"note: the noise maps in {latents} are left out: all frames have the generator's own")
    make_folder(file.parent)
    frames = render(source, path_of(source, between, space, loop))
    if file.suffix.lower() == ".gif":
        animation(frames, file, duration)
    else:
        rows = np.arange(pairs)[:, None] * (between + 1) + np.arange(between + 2)
        image_grid(frames[rows.ravel() % len(frames)], file, columns=between + 2)
    console.say(f"{len(frames)} frames -> {file}")
    return file


def path_of(source: GeneratorSource, between: int, space: str | None, loop: bool) -> Latents:
    """The latents of all frames, ready for `draw`. Truncation comes before a walk in w, so that it meets the plain images exactly."""
    keys = source.get(slice(None))
    chosen = space or ("w" if style_based(source.G) else "z")
    if chosen == "w" and not style_based(source.G):
        raise UserError("--space w needs StyleGAN or StyleGAN2: this generator has no w; use --space z")
    if chosen == "z" and keys.space != "z":
        raise UserError(f"--space z cannot be had from an array of {keys.space}")
    if chosen == "z":
        return to_w(source.G, walk(keys, between, loop), source.psi)
    return walk(to_w(source.G, keys, source.psi), between, loop)


def render(source: GeneratorSource, path: Latents) -> Images:
    """Images uint8 `[N, R, R, 3]` of settled latents; progress is shown."""
    side = source.model.resolution
    frames = np.empty((len(path), side, side, 3), np.uint8)
    with console.progress("generating", len(path)) as bar:
        for start in range(0, len(path), CHUNK):
            part = path[slice(start, start + CHUNK)]
            frames[start : start + len(part)] = to_uint8(draw(source.G, part, source.noise))
            bar.update(start + len(part))
    return frames
