"""Choose the device, and set threads, precision and the allocator, once per process."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_uad.errors import UserError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

# <malloc.h>; the values are part of glibc's ABI.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def prepare(device: str = "auto", threads: int | None = None, precision: str = "fp32") -> torch.device:
    """Set up this process for numeric work and return the device for its tensors.

    `device`: `auto` (CUDA if available), `cpu`, `cuda`, or `cuda:N`; under torchrun the CUDA device is the process's own (`LOCAL_RANK`).
    `threads`: CPU threads; default: OMP_NUM_THREADS, else the cores that this process may use, shared with its siblings under torchrun.
    `precision`: `fp32`, `tf32`, `bf16` or `fp16`: see `set_precision` (autocast is the engine's).

    Call it before the first tensor is made. Raises `UserError` for an unknown name, and for a device or precision that is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise UserError(f"no device is called {device!r}; known: auto, cpu, cuda, cuda:N (the GPU of number N, from 0)")
    if precision not in PRECISIONS:
        raise UserError(f"no precision is called {precision!r}; known: {', '.join(PRECISIONS)}")
    if threads is not None and threads < 1:
        raise UserError(f"threads must be 1 or more, not {threads}")

    keep_freed_memory()
    import torch

    torch.set_num_threads(threads or _asked_threads() or max(1, cores() // _siblings()))
    chosen = torch.device("cpu")
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        chosen = _cuda(device)
    set_precision(precision, chosen)
    return chosen


def set_precision(precision: str, device: torch.device) -> None:
    """Let float32 products use the TF32 units of a GPU, unless `precision` is `fp32`. Raises `UserError` where `device` lacks it."""
    if (lack := _lack(precision, device)) is not None:
        raise UserError(lack)
    if device.type == "cuda":
        # cuDNN's convolutions use TF32 by default, so fp32 must be set too.
        for unit in _units():
            unit.fp32_precision = "ieee" if precision == "fp32" else "tf32"


@dataclass(frozen=True)
class Precision:
    """A precision of training, and in words why it was chosen."""

    name: str
    reason: str


def choose_precision(asked: str, device: torch.device, autocast: bool, wide: bool) -> Precision:
    """The precision to train in. `asked`: `auto`, or the name of the one to use.

    `auto` takes the fastest that is tested. On a GPU with the units (compute capability 8.0): bf16 for a network that keeps its critical
    layers in float32 (`autocast`), else tf32. On a CPU with bfloat16 instructions: bf16 for such a network if it is `wide` (16384 / R
    channels at R px, as StyleGAN2's configuration E); narrow ones are faster in float32 (docs/benchmarks.md, "Precision on a CPU"). Else
    fp32. Raises `UserError` for one that the device lacks.
    """
    if asked != "auto":
        if (lack := _lack(asked, device)) is not None:
            raise UserError(f"training.precision: {lack}")
        slow = asked == "bf16" and device.type == "cpu" and not has_bf16(device)
        return Precision(asked, "asked for" + "; slow: this CPU has no bfloat16 instructions" * slow)
    if device.type == "cuda":
        if not has_bf16(device):
            return Precision("fp32", "the GPU has no units for tf32 and bf16")
        if autocast:
            return Precision("bf16", "tested for this network, and fastest on this GPU")
        return Precision("tf32", "bf16 is not tested for this network")
    if not has_bf16(device):
        return Precision("fp32", "this CPU has no bfloat16 instructions")
    if autocast and wide:
        return Precision("bf16", "this CPU has bfloat16 instructions, and the network is wide")
    return Precision("fp32", "faster than bf16 for this network")


def has_bf16(device: torch.device) -> bool:
    """Whether the processor itself computes in bfloat16 (else it is slower than float32). A GPU that does has TF32 units too."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # avx512_bf16, amx_bf16, arm_bf16
    return any("bf16" in name and there for name, there in capabilities.items())


def _lack(precision: str, device: torch.device) -> str | None:
    """Why a device cannot compute in a precision, and what to do; None if it can."""
    import torch

    if device.type == "cpu":
        return {
            "tf32": "tf32 is a unit of GPUs, and the device is the CPU: use fp32",
            "fp16": "fp16 is for GPUs, and the device is the CPU: use fp32 (or bf16)",
        }.get(precision)
    if precision in ("tf32", "bf16") and not has_bf16(device):
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) has no {precision}, which needs 8.0: use fp32"
    return None


def share_cores() -> None:
    """Make waiting OpenMP threads release their core soon. Call it before torch is imported.

    GNU OpenMP spins for milliseconds by default, which is slow on a busy machine: scoring 64 patches on 2 threads beside 2 busy
    processes took 23.7 s with the default and 0.38 s with this. Settings of the user are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def cores() -> int:
    """CPU cores that this process may use: its affinity, or its container's CPU quota if that is lower."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(affinity, _cgroup_quota() or affinity)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the system; False for another C library.

    Large tensors are otherwise mapped and unmapped at every step, and the page faults take a third of a CPU training step
    (a small convolutional net, forward and backward on 2 threads: 420 ms per step without, 300 ms with). The process then
    holds its peak memory until it ends.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Older versions of glibc reject a mapping threshold above 32 MiB.
    mapped = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    trimmed = mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(mapped and trimmed)


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a CPU tensor on `device`. A GPU takes it from pinned memory when it gets there: the host does not wait."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _asked_threads() -> int | None:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets 1 where the user set nothing.
    return int(asked) if asked.isdigit() and int(asked) > 0 and _siblings() == 1 else None


def _siblings() -> int:
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _cgroup_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return None


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products in float32 on CUDA too, without autocast, whatever the precision of `prepare`: for metrics that are compared."""
    import torch

    kept = [unit.fp32_precision for unit in _units()]
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        for unit in _units():
            unit.fp32_precision = "ieee"
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        for unit, precision in zip(_units(), kept, strict=True):
            unit.fp32_precision = precision


def _units() -> list[Any]:
    """The switches of TF32 in CUDA's matrix products and convolutions."""
    import torch

    backends: Any = torch.backends  # some attributes are missing from torch's types
    return [backends.cuda.matmul, backends.cudnn.conv]


def _cuda(name: str) -> torch.device:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        why = "no usable NVIDIA GPU or driver was found" if built else "this torch is built without CUDA"
        raise UserError(f"device {name} was asked for, but {why}: use device=cpu (or auto), or see `gan-uad doctor`")
    count = torch.cuda.device_count()
    if number := name.partition(":")[2]:
        if _siblings() > 1:
            raise UserError(
                f"device {name} is for one process, and there are {_siblings()}, each with its own GPU: use cuda"
            )
        index = int(number)
        if index >= count:
            raise UserError(f"device {name} was asked for, but the GPUs of this machine are cuda:0 to cuda:{count - 1}")
    else:
        index = int(os.environ.get("LOCAL_RANK", "0"))
        if index >= count:
            raise UserError(
                f"process {index} of this machine has no GPU of its own (there are {count}): "
                "start no more processes than GPUs (torchrun --nproc-per-node)"
            )
    torch.cuda.set_device(index)
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", index)
