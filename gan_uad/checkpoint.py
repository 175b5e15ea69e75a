"""Checkpoints: `state.pt` (all that a resume needs) and `model.safetensors` (the networks worth keeping, self-describing).

No file holds pickled code; one that needs it is refused.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_uad import console, registry
from gan_uad.errors import UserError
from gan_uad.files import atomic

FORMAT = 1
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # in which weights may be stored


def content(path: Path) -> bytes:
    """A model file as keys of results are made from it: without the scale of its patches, which says nothing of its weights.

    So results of a file of version 0.2 or before stay those of the same file with a scale.
    """
    raw = path.read_bytes()
    try:
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        about = json.loads(header["__metadata__"]["gan_uad"])
        del about["patches"]
    except (ValueError, KeyError, TypeError):  # no scale, or damaged, which is for others to report
        return raw
    header["__metadata__"]["gan_uad"] = json.dumps(about)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as safetensors aligns it
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a resumable state atomically; the previous one is kept beside it as `*.prev.pt`.

    Raises `JobFailed` when the disk is full; the last good state then keeps its name.
    """
    with atomic(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
        except RuntimeError as error:  # torch's zip writer hides the file's error behind its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        if path.exists():
            before = previous(path)
            before.unlink(missing_ok=True)
            os.link(path, before)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state, or (with a note) the previous one when `path` is missing or damaged.

    Raises `UserError` when neither can be read.
    """
    problems = []
    for candidate in (path, previous(path)):
        if not candidate.is_file():
            problems.append(f"{candidate.name} is missing")
            continue
        try:
            state = torch.load(candidate, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or "nimg" not in state:
                raise ValueError("not a training state")
        except pickle.UnpicklingError:
            problems.append(
                f"{candidate.name} holds pickled code, which could run, or is no checkpoint: it is not opened"
            )
        except Exception as error:  # a damaged file may raise anything
            reason = str(error).partition("\n")[0] or type(error).__name__
            problems.append(f"{candidate.name} is damaged ({reason})")
        else:
            if broken := next(
                not_finite(state, "state"), None
            ):  # no training wrote that, so none before it is trusted either
                raise UserError(f"{candidate}: {broken} holds NaN or infinite values, which no checkpoint does")
            if problems:
                console.say(f"note: {problems[0]}; resuming from {candidate.name}, the checkpoint before it")
            return state
    raise UserError(f"no checkpoint to resume from in {path.parent}: {'; '.join(problems)}")


def has_state(path: Path) -> bool:
    """Whether `path` or its previous state exists."""
    return path.is_file() or previous(path).is_file()


def not_finite(value: Any, name: str) -> Iterator[str]:
    """Names of the tensors in a (nested) state that hold a NaN or an infinity."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and not value.isfinite().all():
            yield name
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from not_finite(inner, f"{name}.{key}")


def fault_of(value: Any, wanted: Tensor) -> str | None:
    """What is wrong with a stored value for a network's own tensor, in words: its dtype, or values that are not finite; else None.

    Where the network has floating numbers (weights, and the running statistics of batch norm) those of any width will do, as published
    files are float16; other tensors, such as batch norm's counters, must have the network's own dtype.
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return f"is no dense tensor but {type(value).__name__}"
    if value.dtype != wanted.dtype and not (value.dtype in FLOATING and wanted.is_floating_point()):
        return f"holds {dtype_name(value)} values, not {dtype_name(wanted)}"
    if wanted.is_floating_point() and not value.to(wanted.dtype).isfinite().all():
        return "holds NaN or infinite values"
    return None


def dtype_name(tensor: Tensor) -> str:
    """Such as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def previous(path: Path) -> Path:
    """The path of the previous state."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def save_model(path: Path, networks: dict[str, nn.Module], description: dict[str, Any], half: bool = False) -> None:
    """Write networks (made by `registry.build`) with all that is needed to build them again.

    The JSON metadata holds `description` unchanged. `half` stores float16, for publishing; loading gives float32.
    """
    from safetensors.torch import save

    tensors = {}
    for role, net in networks.items():
        for name, tensor in net.state_dict().items():
            dtype = torch.float16 if half and tensor.is_floating_point() else tensor.dtype
            tensors[f"{role}.{name}"] = tensor.detach().cpu().to(dtype).contiguous().clone()
    specs = {role: net.spec for role, net in networks.items()}
    text = json.dumps({"format": FORMAT, "networks": specs, **description})
    with atomic(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"gan_uad": text}))  # its `save_file` hides the errno


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of a model file. Raises `UserError` if it is missing, damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"no such model file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("gan_uad")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a safetensors file ({error}). Pickled checkpoints (.pt, .pkl, .pth) are not opened: code in them could run"
        ) from None
    if text is None:
        raise UserError(f"{path} was not written by gan_uad: it has no description of its networks")
    try:
        description = json.loads(text)
        if description["format"] != FORMAT:
            raise UserError(
                f"{path} has format {description['format']}; this program reads format {FORMAT}. Update gan_uad"
            )
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: the description of its networks cannot be read") from None
    return description, tensors


def build_networks(path: Path) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """Build the networks of a model file with its weights, in evaluation mode, float32, without gradients."""
    description, tensors = read_model(path)
    networks = {}
    for role, spec in description["networks"].items():
        net = registry.build("network", spec["name"], spec["options"])
        prefix = f"{role}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        load_weights(net, own, f"{path} ({role})")
        networks[role] = net.eval().requires_grad_(False)
    return description, networks


def load_weights(net: nn.Module, tensors: dict[str, Any], context: str) -> None:
    """`load_state_dict` with an error of one line: for another architecture which tensor, its shape, and the expected shape; and for
    weights that no training wrote (`fault_of`)."""
    expected = net.state_dict()
    if not isinstance(tensors, dict):
        raise UserError(f"{context} holds no weights, but {type(tensors).__name__}")
    for name in [*expected, *tensors]:
        if name not in tensors or name not in expected:
            place = "file" if name in tensors else "network"
            raise UserError(f"{context} is of another architecture: {name!r} is only in the {place}")
        fault = fault_of(tensors[name], expected[name])
        if fault and not isinstance(tensors[name], Tensor):
            raise UserError(f"{context}: {name} {fault}")
        if tensors[name].shape != expected[name].shape:
            raise UserError(
                f"{context} is of another architecture: {name!r} is {list(tensors[name].shape)} in the file, "
                f"{list(expected[name].shape)} in the network (another resolution or channel_base?)"
            )
        if fault:
            raise UserError(f"{context}: {name} {fault}; the file is damaged, or of a training that failed")
    net.load_state_dict(tensors)
