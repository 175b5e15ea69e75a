"""Choose the device, and set threads, precision and the allocator, once per process."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_uad.errors import UserError

if TYPE_CHECKING:
    import torch

# <malloc.h>; the values are part of glibc's ABI.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def prepare(device: str = "auto", threads: int | None = None, precision: str = "fp32") -> torch.device:
    """Set up this process for numeric work and return the device for its tensors.

    `device`: `auto` (CUDA if available), `cpu` or `cuda`; under torchrun the CUDA device is the process's own (`LOCAL_RANK`).
    `threads`: CPU threads; default: OMP_NUM_THREADS, else the cores that this process may use, shared with its siblings under torchrun.
    `precision`: `fp32`, `tf32`, `bf16` or `fp16`; on CUDA all but the first let float32 products use the TF32 units
    (autocast is the engine's).

    Call it before the first tensor is made. Raises `UserError` for an unknown name, and for `cuda` where CUDA is not available.
    """
    _check("device", device, ("auto", "cpu", "cuda"))
    _check("precision", precision, ("fp32", "tf32", "bf16", "fp16"))
    if threads is not None and threads < 1:
        raise UserError(f"threads must be 1 or more, not {threads}")

    keep_freed_memory()
    import torch

    torch.set_num_threads(threads or _asked_threads() or max(1, cores() // _siblings()))
    if device == "cpu" or not (device == "cuda" or torch.cuda.is_available()):
        return torch.device("cpu")
    return _cuda(precision)


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


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"no {what} is called {value!r}; known: {', '.join(known)}")


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


def _cuda(precision: str) -> torch.device:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        why = "no usable NVIDIA GPU or driver was found" if built else "this torch is built without CUDA"
        raise UserError(f"device cuda was asked for, but {why}: use device=cpu (or auto), or see `gan-uad doctor`")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise UserError(
            f"process {index} of this machine has no GPU of its own (there are {torch.cuda.device_count()}): "
            "start no more processes than GPUs (torchrun --nproc-per-node)"
        )
    torch.cuda.set_device(index)
    # cuDNN's convolutions use TF32 by default, so fp32 must be set too.
    for unit in _units():
        unit.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", index)
