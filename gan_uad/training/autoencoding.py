"""Training a variational autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gan_uad import console
from gan_uad.checkpoint import build_networks, load_weights
from gan_uad.data.patches import PatchSet
from gan_uad.device import upload
from gan_uad.errors import UserError
from gan_uad.features import weights
from gan_uad.networks.cnn_vae import CNN, CNNVAE
from gan_uad.networks.sampling import draw, from_seeds
from gan_uad.networks.vae import VAE, kl_divergence, squared_error
from gan_uad.registry import register
from gan_uad.run import model_file
from gan_uad.training import distributed
from gan_uad.training.adversarial import SAMPLE_BATCH, gradient_norm, guard_gradients
from gan_uad.training.feed import Stream
from gan_uad.training.single import SingleTask, evaluating
from gan_uad.training.supervised import start_from_imagenet
from gan_uad.training.validation import per_image

PAIRS, PRIOR = 24, 16  # of a snapshot: 64 images, in rows of eight


@register("vae", kind="task")
class VAETask(SingleTask):
    """Minimise the squared error of each image, summed, plus β·KL(q(z|x) ‖ N(0, 1)), averaged over the batch (AdamW).

    β grows linearly from 0 to `beta` over the first `beta_kimg` (0: it is `beta` from the start). The defaults of lr and beta are those
    of Sikdar et al. (Adam 1e-5 with weight decay, β to 1); the weight decay and `beta_kimg` are ours.
    init, for a network with ImageNet weights: "imagenet" loads them (an error without them), "none" does not, "auto" loads them if they
    are available and prints a note if not. cnn, for a network `cnn_vae`: the run or model file of a trained `cnn`, from whose
    convolutions it starts instead; they are trained further. Validated by the negative ELBO of validation normals.
    """

    role = "vae"
    states = frozenset({"beta"})
    curves = {"reconstruction": "val_reconstruction", "kl": "val_kl"}

    def __init__(
        self,
        model: Any,
        device: torch.device,
        seed: int,
        lr: float = 1e-5,
        weight_decay: float = 1e-2,
        beta: float = 1.0,
        beta_kimg: float = 50.0,
        init: Literal["auto", "imagenet", "none"] = "auto",
        cnn: str | None = None,
    ) -> None:
        if not isinstance(model, VAE):
            raise ValueError(f"it trains autoencoders (fc_vae, conv_vae, ...), not {type(model).__name__}")
        if lr <= 0 or min(weight_decay, beta, beta_kimg) < 0:
            raise ValueError(
                f"need lr > 0 and weight_decay, beta, beta_kimg >= 0; got {lr}, {weight_decay}, {beta}, {beta_kimg}"
            )
        if cnn is not None and init == "imagenet":
            raise ValueError("optim.cnn and optim.init=imagenet exclude each other: leave one out")
        if cnn is not None and not isinstance(model, CNNVAE):
            raise ValueError("only a cnn_vae starts from a trained cnn: leave optim.cnn out")
        super().__init__(model, device, seed, torch.optim.AdamW, lr=lr, weight_decay=weight_decay, fused=True)
        self.opt.register_step_pre_hook(guard_gradients)
        self.beta, self.beta_kimg, self.init, self.cnn = beta, beta_kimg, init, cnn

    def begin(self) -> None:
        """See `Task`. Raises `UserError` for ImageNet weights that are missing, and for a `cnn` that does not fit."""
        if self.cnn is not None:
            load_weights(self.model.trunk, trained_cnn(Path(self.cnn), self.model.resolution), self.cnn)
            console.say(f"starting from the cnn of {self.cnn}")
        elif self.init == "imagenet" or (self.init == "auto" and self._has_imagenet()):
            start_from_imagenet(self.model)
        elif isinstance(self.model, CNNVAE):
            console.say("note: the cnn starts from random weights; optim.cnn=RUN starts from a trained one")

    def _has_imagenet(self) -> bool:
        """Whether the network's ImageNet weights are here or can be fetched; prints a note if not. Raises `UserError` for a broken file."""
        name, frozen = getattr(self.model, "imagenet", None), getattr(self.model, "frozen", False)
        problem = "this network has no ImageNet weights"
        if name is not None:
            known = weights.entry(name)
            if weights.here(known) is not None:
                return True
            try:
                weights.fetch(known)
                return True
            except UserError as error:
                problem = error.message
        if name is not None or frozen:
            console.say(f"note: the encoder starts from random weights{' and stays frozen' * frozen}: {problem}")
        return False

    def stream(self, patches: PatchSet, batch: int, seed: int, flips: bool, turns: bool) -> Stream:
        """See `Task`."""
        self.choose_examples(patches, PAIRS, seed)
        return super().stream(patches, batch, seed, flips, turns)

    def validator(self, patches: PatchSet) -> ElboValidator:
        """See `Task`. Raises `UserError` unless there are normal validation images."""
        return ElboValidator(self, patches)

    def beta_at(self, nimg: int) -> float:
        """β of the step that follows `nimg` images."""
        return self.beta * min(1.0, nimg / (self.beta_kimg * 1000)) if self.beta_kimg else self.beta

    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        """One step on images `[N, 3, R, R]` in [-1, 1]."""
        beta = self.beta_at(nimg)
        drawn = torch.randn(self.batch_of(real), self.model.latent_dim, generator=self.rng)
        eps = upload(distributed.share(drawn), self.device)

        def loss(part: slice) -> tuple[Tensor, dict[str, Tensor]]:
            images = real[part]
            again, mu, logvar = self.model(images, eps[part])
            error, kl = squared_error(images, again.float()).mean(), kl_divergence(mu, logvar).mean()
            return error + beta * kl, {"loss": error + beta * kl, "reconstruction": error, "kl": kl}

        metrics = self.optimise(self.opt, len(real), loss)
        return metrics | {"grad_vae": gradient_norm(self.opt), "beta": torch.tensor(beta)}

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Train images, each followed by its reconstruction; then images of z ~ N(0, 1), as from `gan-uad generate`."""
        with evaluating(self.model):
            parts = self.examples.split(SAMPLE_BATCH)
            again = torch.cat([self.model(part.to(self.device))[0].float().cpu() for part in parts])
            made = draw(self.model.G, from_seeds(range(PRIOR), self.model.latent_dim), batch=SAMPLE_BATCH).float()
        return torch.cat([torch.stack([self.examples, again], 1).flatten(0, 1), made])


class ElboValidator:
    """Validates a VAE: `val_elbo`, the negative ELBO (squared error + KL, whatever β is) of normal validation images, and its two terms.

    For the reconstruction from μ, as in scoring, with the network in evaluation mode. Processes share the images.
    """

    metric, larger = "val_elbo", False

    def __init__(self, task: VAETask, patches: PatchSet) -> None:
        self.task, self.patches = task, patches.take(np.flatnonzero(patches.manifest.label == 0))
        if not len(self.patches):
            raise UserError(
                f"{patches.source}: no normal image among the {len(patches)} validation images: training.eval_kimg needs some"
            )

    def validate(self, nimg: int) -> dict[str, float]:
        """See `Validator`."""

        def terms(images: Tensor) -> Tensor:
            again, mu, logvar = self.task.model(images)
            return torch.stack([squared_error(images, again), kl_divergence(mu, logvar)], 1)

        with evaluating(self.task.model):
            found = per_image(self.patches, self.task.device, 2, terms)
        error, kl = found.double().mean(0).tolist()
        return {"val_elbo": error + kl, "val_reconstruction": error, "val_kl": kl}


def trained_cnn(path: Path, resolution: int) -> dict[str, Tensor]:
    """The weights of the convolutions of a `cnn` in a run folder (its best model) or model file. Raises `UserError`."""
    found = build_networks(model_file(path))[1].get("classifier")
    if not isinstance(found, CNN):
        raise UserError(f"{path} holds no cnn: train one with the preset cnn_256, or leave optim.cnn out")
    if found.resolution != resolution:
        raise UserError(f"the cnn of {path} is for {found.resolution} px images, this network for {resolution} px")
    return found.trunk.state_dict()
