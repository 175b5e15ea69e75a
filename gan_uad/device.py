"""Where the numbers are computed: pick the device, and set threads, precision and the allocator once per process."""

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
    """Set this process up for the numeric work and return the device to put tensors on.

    `device`: `auto` (CUDA where there is one), `cpu` or `cuda`; under torchrun the CUDA device is the process's own (`LOCAL_RANK`).
    `threads`: CPU threads; default: OMP_NUM_THREADS, else the cores that this process may use, shared with its siblings under torchrun.
    `precision`: `fp32`, `tf32`, `bf16` or `fp16`; on CUDA all but the first let float32 products use the TF32 units
    (autocast is the engine's).

    Call it before the first tensor is made. Raises `UserError` for an unknown name, and for CUDA asked for and not there.
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
    """Let OpenMP threads that wait for each other give their core away soon; must come before torch is imported.

    GNU OpenMP spins for milliseconds by default. On a machine with other work that is ruinous: scoring 64 patches on 2 threads
    beside 2 busy processes took 23.7 s with the default and 0.38 s with this. What the user has set is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def cores() -> int:
    """CPU cores that this process may use: its affinity, or its container's CPU quota where that is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(affinity, _cgroup_quota() or affinity)


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory instead of returning it to the system; False where the C library is another.

    Large tensors are otherwise mapped and unmapped at every step, and the page faults cost a third of a CPU training step
    (a small convolutional net, forward and backward on 2 threads: 420 ms a step without, 300 ms with). The price is that
    the process holds its peak memory until it ends.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Older glibc refuses a mapping threshold above 32 MiB.
    mapped = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    trimmed = mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(mapped and trimmed)


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
    """Float32 products in float32 on CUDA too, without autocast, whatever `prepare` was told: for figures that are compared."""
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
    """What decides whether CUDA's matrix products and convolutions use TF32."""
    import torch

    backends: Any = torch.backends  # some of whose parts torch's types do not know
    return [backends.cuda.matmul, backends.cudnn.conv]


def _cuda(precision: str) -> torch.device:
    import torch

    if not torch.cuda.is_available():
        why = (
            "this torch is built without CUDA"
            if torch.version.cuda is None
            else "no usable NVIDIA GPU or driver was found"
        )
        raise UserError(f"device cuda was asked for, but {why}: use device=cpu (or auto), or see `gan-uad doctor`")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise UserError(
            f"process {index} of this machine has no GPU of its own (there are {torch.cuda.device_count()}): "
            "start no more processes than GPUs (torchrun --nproc-per-node)"
        )
    torch.cuda.set_device(index)
    # cuDNN's convolutions use TF32 unless told not to, so fp32 must be said too.
    for unit in _units():
        unit.fp32_precision = "ieee" if precision == "fp32" else "tf32"
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", index)
