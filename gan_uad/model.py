"""Load a run folder or a model file, to generate and to score."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_uad import old_names, registry
from gan_uad.checkpoint import build_networks, read_model
from gan_uad.config import PREPROCESSING, DataConfig, RunConfig, resolve
from gan_uad.data.patches import preprocess, to_tensor
from gan_uad.data.scale import Scale
from gan_uad.errors import UserError, near
from gan_uad.files import sha256
from gan_uad.networks.sampling import check_style, draw, from_seeds, to_w
from gan_uad.run import Run, model_file
from gan_uad.scoring.base import Scorer, load_scorer


@dataclass
class Model:
    """Trained networks and their training. `networks` by role (`gan` with `G` and `D`, `encoder`, `vae`, ...), in evaluation mode."""

    path: Path
    networks: dict[str, Any]
    config: RunConfig
    nimg: int
    device: torch.device
    train_data: str = ""  # fingerprint of the training patches
    scale: Scale = field(default_factory=Scale)  # of the training patches
    fitted: dict[str, Any] | None = None  # `spec` of the fitted scorer that the file has instead of networks

    @property
    def name(self) -> str:
        """The run's configuration name."""
        return self.config.name

    @property
    def held(self) -> str:
        """The contents of the file, in words."""
        return ", ".join(self.networks) or "a fitted scorer"

    @property
    def resolution(self) -> int:
        """Side of the images in px."""
        return self.config.resolution

    @property
    def generator(self) -> Any:
        """The generator of a GAN, or the decoder of a VAE. Raises `UserError` when the run has none."""
        for role in ("gan", "vae"):
            if role in self.networks:
                return self.networks[role].G
        raise UserError(f"{self.path} holds no generator, only {self.held}: use the run of a GAN or VAE")

    def generate(self, seeds: Sequence[int], batch: int = 32, *, psi: float = 1.0, noise: str = "const") -> Tensor:
        """One image for each seed, `[N, 3, R, R]` in [-1, 1] on the CPU; an image does not depend on the other seeds.

        For StyleGAN and StyleGAN2: truncation `psi` (1: none, 0: the average image), `noise` "const", "none" or "random" (by the seed).
        Other generators raise `UserError` unless these are the defaults.
        """
        G = self.generator
        check_style(G, psi, noise)
        return draw(G, to_w(G, from_seeds(seeds, G.z_dim), psi, batch), noise, batch)

    def preprocess(self, image: Any) -> Tensor:
        """A uint8 `[H, W, 3]` image as this model's input `[1, 3, R, R]` in [-1, 1]."""
        return to_tensor(preprocess(image, self.config.data, self.resolution)[None])

    def scorer(self, inverter: str | None = None, **options: Any) -> Scorer:
        """The run's scorer, or one with another inverter; `options` are those of either."""
        return make_scorer(self, inverter, options)


def load_model(path: str | Path, device: torch.device | None = None) -> Model:
    """Build the networks of a run folder or model file. See `gan_uad.load`."""
    file = model_file(path)
    description, networks = build_networks(file)
    config = resolve(description["config"], default_name=file.stem, context=str(file))
    device = device or torch.device("cpu")
    for net in networks.values():
        net.to(device).to(memory_format=torch.channels_last)
    fitted = old_names.spec("scorer", description["scorer"]) if description.get("scorer") else None
    scale, trained_on = Scale.read(description.get("patches")), description.get("train_data", "")
    return Model(Path(path), networks, config, description["nimg"], device, trained_on, scale, fitted)


def inverter_of(model: Model) -> str:
    """The inverter of the run's configuration; by default the encoder that it trained, else the search in z."""
    return model.config.scoring.inverter or (model.config.task if "encoder" in model.networks else "anogan")


def make_scorer(model: Model, inverter: str | None = None, options: dict[str, Any] | None = None) -> Scorer:
    """Build the scorer of the model's configuration; `inverter` and `options` override the configured ones.

    Scorer and inverter share one set of options: each gets those that it takes (both may take `perceptual`, for example). A scorer without
    an inverter gets all options, and those of the run's networks and device that it takes. A scorer that learns from normal images
    still has to be fitted (`Scorer.learns`), unless the model is that scorer, fitted.
    """
    settings = model.config.scoring
    given = {"nets": model.networks, "device": model.device}
    takes = inspect.signature(registry.find("scorer", settings.scorer)).parameters
    if "inverter" not in takes:
        if inverter or settings.inverter:
            raise UserError(
                f"{model.path} is scored by {settings.scorer}, which uses no inverter: leave --inverter out"
            )
        inputs = {name: value for name, value in given.items() if name in takes}
        chosen_options = {**settings.options, **(options or {})}
        if model.fitted == {"name": settings.scorer, "options": chosen_options}:
            return load_scorer(model_file(model.path), **inputs)
        return registry.build("scorer", settings.scorer, chosen_options, **inputs)
    if "gan" not in model.networks:
        raise UserError(
            f"{model.path} holds {model.held} and no generator, which {settings.scorer} needs: use another -o scoring.scorer=..."
        )
    configured = inverter_of(model)
    chosen = inverter or configured
    base = settings.options if chosen == configured else {}
    merged = {**base, **(options or {})}
    ours = _options_of("scorer", settings.scorer, {"inverter"})
    theirs = _options_of("inverter", chosen, set(given))
    for name in merged:
        if name not in ours | theirs:
            raise UserError(
                f"neither scorer {settings.scorer} nor inverter {chosen} has an option {name!r}: {near(name, ours | theirs)}"
            )
    found = registry.build("inverter", chosen, {k: v for k, v in merged.items() if k in theirs}, **given)
    return registry.build("scorer", settings.scorer, {k: v for k, v in merged.items() if k in ours}, inverter=found)


def _options_of(kind: str, name: str, given: set[str]) -> set[str]:
    """The options of a registered class."""
    parameters = inspect.signature(registry.find(kind, name)).parameters.values()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - given


def inherit_preprocessing(data: DataConfig, generator: RunConfig, resolution: int) -> DataConfig:
    """The data settings of an encoder: images must be prepared as for its generator.

    Settings that the user left out are those of the generator's run. Raises `UserError` for settings that contradict it.
    """
    if resolution != generator.resolution:
        raise UserError(
            f"the generator makes {generator.resolution} px images, this configuration says resolution {resolution}"
        )
    theirs = generator.data
    changes: dict[str, Any] = {}
    for key in PREPROCESSING:
        if key not in data.model_fields_set:
            changes[key] = getattr(theirs, key)
        elif getattr(data, key) != getattr(theirs, key):
            raise UserError(
                f"data.{key} is {getattr(data, key)!r}, but the generator was trained with {getattr(theirs, key)!r}"
            )
    if data.path is None:
        keys = ("path", "normal_classes", "split_fractions", "split_seed", "folds", "fold", "min_tissue")
        changes |= {key: getattr(theirs, key) for key in keys}
    return data.model_copy(update=changes)


def file_digest(source: str) -> str:
    """SHA-256 of a run's model file."""
    return sha256(model_file(source))


def about_run(source: str, model: Model) -> dict[str, Any]:
    """What to report of a run beside its metrics: the file, how long it was trained, and whether training was cut short.

    `short` is false for a run that stopped early because validation did not improve. For an encoder's run the three counts are None:
    they would be the encoder's, not the generator's.
    """
    file = model_file(source)
    folder, nimg = file.parent, model.nimg
    stopped_early = False
    if file.name == "best.safetensors" and (folder / "model.safetensors").is_file():
        nimg = read_model(folder / "model.safetensors")[0]["nimg"]
        better = [row["best"] for row in Run(folder).read_validations()]
        patience = model.config.training.patience
        stopped_early = patience is not None and len(better) > patience and not any(better[-patience:])
    about = {
        "run": source, "file": file.name, "sha256": file_digest(source), "name": model.name, "model": model.config.model,
        "label": model.config.data.label,
    }  # fmt: skip
    if "encoder" in model.networks:
        unknown = dict.fromkeys(("kimg", "trained_kimg", "planned_kimg"))
        return {**about, **unknown, "stopped_early": False, "short": False}
    planned = model.config.training.total_kimg
    return {
        **about, "kimg": model.nimg / 1000, "trained_kimg": nimg / 1000, "planned_kimg": planned, "stopped_early": stopped_early,
        "short": not stopped_early and nimg < 990 * planned,
    }  # fmt: skip
