"""Out of memory, on either device, as an error of one line that says what to try."""

from __future__ import annotations

import inspect
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from operator import le

import torch

from gan_uad import registry
from gan_uad.config import RunConfig, load_config, presets
from gan_uad.errors import JobFailed
from gan_uad.run import Run
from gan_uad.training import distributed

# torch has an error class for CUDA's allocator only; the CPU's, cuBLAS, the driver and oneDNN raise plain RuntimeErrors. oneDNN gives
# no reason: creating a primitive can fail for lack of memory only. (A missing one is "could not create a primitive descriptor".)
PHRASES = re.compile(
    "can't allocate memory|not enough memory|out of memory|ALLOC_FAILED|could not create a primitive(?! descriptor)"
)


def explained(
    run: Run, kept: Callable[[], str], batch: int, allows: Callable[[int, int], bool]
) -> AbstractContextManager[None]:
    """Turn out of memory into `JobFailed`: what was tried (a batch of `batch` images), what to try, and what is `kept`.

    `allows(micro_batch, training.batch)`: whether the task can work in such passes (see `Task.allows`).
    """
    return _failing_with(lambda: _advice(run, kept(), batch, allows), alone=True)


def explained_aside(run: Run, kept: Callable[[], str], doing: str, alone: bool) -> AbstractContextManager[None]:
    """The same for work beside the steps ("drawing a snapshot", "validation"), whose passes no setting changes.

    `alone`: every process does its share of it; else rank 0 does it, by `distributed.first`.
    """
    tried = f"{run.config.model} at {run.config.resolution} px"
    return _failing_with(lambda: f"out of memory in {doing}: {tried} ({kept()}). {_smaller(run.config)}", alone)


@contextmanager
def _failing_with(line: Callable[[], str], alone: bool) -> Iterator[None]:
    """Raise `JobFailed(line())` instead of an error of memory; `alone`: of several processes, each reports its own failure."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not PHRASES.search(str(error)):
            raise
        here = distributed.world()
        if alone and here.size > 1:
            raise distributed.OwnFailure(f"process {here.rank}: {line()}") from None
        raise JobFailed(line()) from None


def _advice(run: Run, kept: str, batch: int, allows: Callable[[int, int], bool]) -> str:
    config, size = run.config, distributed.world().size
    full = config.training.batch  # must be a multiple of the passes too, whatever `batch` is at this level
    micro_batch = min(config.training.micro_batch or batch, batch // size)
    tried = f"{config.model} at {config.resolution} px, batch {batch}"
    if micro_batch < batch:
        tried += f" in passes of {micro_batch} image{'s' if micro_batch > 1 else ''}"
    fewer = range(micro_batch // 2, 0, -1)
    half = next((k for k in fewer if full // size % k == 0 and allows(k, full)), None)
    again = f"gan-uad train {run.folder} --resume -o training.micro_batch={half}"
    advice = f"Continue with: {again} (the same batch in less memory)" if half else _smaller(config)
    return f"out of memory in training: {tried} ({kept}). {advice}"


def _smaller(config: RunConfig) -> str:
    if smaller := smaller_presets(config):
        return f"Try a smaller network ({', '.join(smaller)}) or a lower resolution"
    return "Try a lower resolution or a smaller network (-o network.channel_base=...)"


def smaller_presets(config: RunConfig) -> list[str]:
    """Names of the shipped presets that train a narrower network of this family and task at this resolution, the widest first."""
    parameters = inspect.signature(registry.find("network", config.model)).parameters

    def widths(of: RunConfig) -> list[float]:
        keys = [key for key in ("channel_base", "channel_max") if key in parameters]
        return [float(of.network.get(key, parameters[key].default)) for key in keys]

    found = {}
    for name, path in presets().items():
        other, ours = load_config(path), widths(config)
        if (other.model, other.task, other.resolution) == (config.model, config.task, config.resolution):
            theirs = widths(other)
            if theirs != ours and all(map(le, theirs, ours)):
                found[name] = theirs
    return sorted(found, key=lambda name: found[name], reverse=True)


def peak(device: torch.device) -> float:
    """Peak memory in GB: of the device on CUDA, of the process on CPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
