"""Running out of memory, on either device, as one line that says what to try instead."""

from __future__ import annotations

import inspect
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from gan_uad import registry
from gan_uad.config import RunConfig, load_config, presets
from gan_uad.errors import JobFailed
from gan_uad.run import Run
from gan_uad.training import distributed

# torch has a class for CUDA's allocator only: the CPU's, cuBLAS, the driver and oneDNN raise plain RuntimeErrors. oneDNN does not
# say what failed: making a primitive needs memory and nothing else that can lack. (Of one that does not exist it says that it
# could not create a primitive descriptor.)
PHRASES = re.compile(
    "can't allocate memory|not enough memory|out of memory|ALLOC_FAILED|could not create a primitive(?! descriptor)"
)


@contextmanager
def explained(run: Run, kept: Callable[[], str], batch: int, allows: Callable[[int, int], bool]) -> Iterator[None]:
    """Turn running out of memory into `JobFailed`: what was tried (a batch of `batch` images), what to try, and what is `kept`.

    `allows(micro_batch, training.batch)`: whether the task can work in such passes (see `Task.allows`).
    """
    with _overrides_of(lambda: _advice(run, kept(), batch, allows), alone=distributed.world().size > 1):
        yield


@contextmanager
def explained_aside(run: Run, kept: Callable[[], str], doing: str, alone: bool) -> Iterator[None]:
    """The same for work beside the steps ("drawing a snapshot", "validation"), whose passes no setting changes.

    `alone`: every process does a part of it; else rank 0 does it, by `distributed.first`.
    """
    config = run.config
    tried = f"{config.model} at {config.resolution} px"
    alone = alone and distributed.world().size > 1
    with _overrides_of(lambda: f"out of memory in {doing}: {tried} ({kept()}). {_smaller(config)}", alone):
        yield


@contextmanager
def _overrides_of(line: Callable[[], str], alone: bool) -> Iterator[None]:
    """Raise `JobFailed(line())` in place of an error of memory; `alone`: in this one of several processes, which must tell it itself."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        if alone:
            raise distributed.OwnFailure(f"process {distributed.world().rank}: {line()}") from None
        raise JobFailed(line()) from None


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or PHRASES.search(str(error)) is not None


def _advice(run: Run, kept: str, batch: int, allows: Callable[[int, int], bool]) -> str:
    config, size = run.config, distributed.world().size
    whole = config.training.batch  # must be a multiple of the passes too, whatever `batch` is at this level
    micro_batch = min(config.training.micro_batch or batch, batch // size)
    tried = f"{config.model} at {config.resolution} px, batch {batch}"
    if micro_batch < batch:
        tried += f" in passes of {micro_batch} image{'s' if micro_batch > 1 else ''}"
    again = f"gan-uad train {run.folder} --resume"
    fewer = range(micro_batch // 2, 0, -1)
    half = next((k for k in fewer if whole // size % k == 0 and allows(k, whole)), None)
    if half is not None:
        advice = f"Go on with: {again} -o training.micro_batch={half} (gradients are accumulated: the same batch in less memory)"
    else:
        advice = _smaller(config)
    return f"out of memory in training: {tried} ({kept}). {advice}"


def _smaller(config: RunConfig) -> str:
    if smaller := smaller_presets(config):
        return f"Try a smaller network ({', '.join(smaller)}) or a lower resolution"
    return "Try a lower resolution or a smaller network (-o network.channel_base=...)"


def smaller_presets(config: RunConfig) -> list[str]:
    """Names of the shipped presets that train a narrower network of this family and task at this resolution, the widest first."""
    found = {}
    for name, path in presets().items():
        other = load_config(path)
        same = (other.model, other.task, other.resolution) == (config.model, config.task, config.resolution)
        narrower = (
            [theirs - ours for theirs, ours in zip(_widths(other), _widths(config), strict=True)] if same else [0]
        )
        if max(narrower) <= 0 and min(narrower) < 0:
            found[name] = _widths(other)
    return sorted(found, key=lambda name: found[name], reverse=True)


def _widths(config: RunConfig) -> tuple[float, ...]:
    """`channel_base` and `channel_max`, as given or by default; 0 for a family without."""
    parameters = inspect.signature(registry.find("network", config.model)).parameters
    defaults = {key: parameters[key].default if key in parameters else 0 for key in ("channel_base", "channel_max")}
    return tuple(float(config.network.get(key, default)) for key, default in defaults.items())


def peak(device: torch.device) -> float:
    """Peak memory in GB: of the device on CUDA, of the process on CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
