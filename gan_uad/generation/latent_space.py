"""`gan-uad latents`: the latents of a set of images in an autoencoder, as a plot and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gan_uad import console
from gan_uad.data.patches import PatchSet, batches
from gan_uad.detection.patch_sets import choose_sets, overridden_config
from gan_uad.device import prepare
from gan_uad.errors import UserError
from gan_uad.files import atomic, make_folder
from gan_uad.model import load_model

BATCH = 32
Array = np.ndarray[Any, np.dtype[np.float32]]


def latent_space(
    run: str,
    data: str | None,
    out: Path | None,
    split: str | None = None,
    overrides: tuple[str, ...] = (),
    max_images: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Write `latents.npz` and `latent_space.png` of the images that `gan-uad score` uses by default; returns the folder.

    The file has `z` (the mean μ of q(z|x)) and `logvar`, float32 `[N, latent_dim]`, and `image` and `label` `[N]`. It can be given to
    `gan-uad generate --latents`. The plot shows the first two principal components of z.
    """
    model = load_model(run, prepare(device))
    if "vae" not in model.networks:
        raise UserError(f"{run} holds {model.held}: give the run of an autoencoder")
    trained_on = model.config.data
    model.config = overridden_config(model, overrides, None)
    patches = choose_sets(model, trained_on, data, split, max_images, seed).target
    if model.networks["vae"].latent_dim < 2 or len(patches) < 3:
        raise UserError(
            f"{len(patches)} images in {model.networks['vae'].latent_dim} latent dimensions: at least 3 images and 2 dimensions are needed"
        )
    mu, logvar = _encoded(model.networks["vae"], patches, model.device)
    if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        raise UserError(f"{run} gives NaN or infinity: it diverged in training, or its file is damaged")
    folder = out or (Path(run) if Path(run).is_dir() else Path(run).parent) / "latents"
    make_folder(folder)
    _draw(mu, patches, folder)
    with atomic(folder / "latents.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, z=mu, logvar=logvar, image=np.array(patches.manifest.image), label=patches.manifest.label)
    console.say(f"{len(patches):,} images -> {folder}/latent_space.png")
    return folder


@torch.no_grad()
def _encoded(net: Any, patches: PatchSet, device: torch.device) -> tuple[Array, Array]:
    """μ and log σ², each `[N, latent_dim]`."""
    found = []
    with console.progress("encoding", len(patches)) as bar:
        for images, _ in batches(patches, BATCH):
            found.append(torch.stack(net.encode(images.to(device))).cpu())
            bar.update(sum(batch.shape[1] for batch in found))
    mu, logvar = torch.cat(found, 1).numpy()
    return mu, logvar


def _draw(z: Array, patches: PatchSet, folder: Path) -> None:
    from sklearn.decomposition import PCA

    from gan_uad.plotting.latents import scatter

    pca = PCA(2, svd_solver="full")
    points = pca.fit_transform(z.astype(np.float64))
    # Where all images have the same latent, the ratio of variances is undefined.
    first, second = np.nan_to_num(pca.explained_variance_ratio_)
    names = f"1st principal component ({first:.0%} of the variance)", f"2nd ({second:.0%})"
    scatter(points, patches.manifest.label, names, folder / "latent_space.png")
