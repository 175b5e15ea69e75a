"""What the benchmarks share: counting multiplications, this machine's convolution peak, and interleaved timing.

Machines are shared and noisy: everything compared is timed in turns within one process, round by round, and figures are
medians over the rounds. Ratios mean something; seconds only on the machine and day they were taken.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gan_uad import registry
from gan_uad.config import load_config
from gan_uad.training.engine import LOW_PRECISION

PEAK_SHAPES = ((16, 128, 32), (16, 256, 16), (16, 512, 16), (8, 64, 64))  # batch, channels, side of 3×3 convolutions


class FlopCount(TorchDispatchMode):
    """Counts the operations (2 a multiply-add) of convolutions and matrix products, also in double backward."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops_of(work: Callable[[], Any]) -> int:
    """Operations of one call."""
    with FlopCount() as counter:
        work()
    return counter.flops


def peak_probe(device: torch.device) -> tuple[Callable[[], Any], int]:
    """A piece of pure forward convolution work in the shape that is fastest here, and its operations."""
    best = None
    for batch, channels, side in PEAK_SHAPES:
        x = torch.randn(batch, channels, side, side, device=device).contiguous(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3, device=device).contiguous(memory_format=torch.channels_last)

        def work(x: torch.Tensor = x, w: torch.Tensor = w) -> torch.Tensor:
            with torch.no_grad():
                return F.conv2d(x, w, padding=1)

        flops = flops_of(work)
        rate = flops / min(timed(work, device) for _ in range(4))
        if best is None or rate > best[0]:
            best = (rate, work, flops)
    assert best is not None
    return best[1], best[2]


def sustained(
    work: Callable[[], Any], flops: int, device: torch.device, seconds: float
) -> tuple[Callable[[], Any], int]:
    """`work` repeated for about so many seconds, and its operations: what a machine holds out, as its other work must.

    A core that is shared, or that gets hot, does a short piece faster than a long one: 265 GFLOP/s at best in 20 ms and 195 to 230
    over 6 s on the first machine, noted by hand from single runs; no script here repeats that comparison.
    """
    times = max(1, round(seconds / min(timed(work, device) for _ in range(3))))

    def repeated() -> None:
        for _ in range(times):
            work()

    return repeated, flops * times


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleave(works: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every work in every round, all works taking turns; one untimed round first."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            spent = timed(work, device)
            if turn:
                seconds[name].append(spent)
    return seconds


def median_ratio(a: list[float], b: list[float]) -> float:
    """Median over the rounds of a / b: neighbours in time share the machine's mood."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def network_of(preset: str) -> Any:
    """The networks of a preset, not trained."""
    config = load_config(preset)
    return registry.build("network", config.model, {"resolution": config.resolution, **config.network})


def task_of(
    preset: str, batch: int, device: torch.device, generator: str = "", overrides: tuple[str, ...] = ()
) -> tuple[Any, Any]:
    """The task of a preset, and a batch of random images for its `step`. `generator`: the preset of the one that an encoder inverts."""
    config = load_config(preset, overrides)
    given: dict[str, Any] = {}
    sizes: dict[str, Any] = {}
    if generator:
        given["generator"] = network_of(generator)
        G = given["generator"].G
        sizes = {"z_dim": G.z_dim}
        if config.model == "style_encoder":
            sizes = {"w_dim": G.w_dim, "num_ws": G.synthesis.num_ws, "num_noise": len(G.synthesis.noise_shapes)}
    side = config.resolution
    model = registry.build("network", config.model, {"resolution": side, **sizes, **config.network})
    optim = {**config.optim, **({"init": "none"} if config.task in ("vae", "supervised") else {})}
    task = registry.build("task", config.task, optim, model=model, device=device, seed=0, **given)
    drawn = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    images = drawn.to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch).remainder(2).to(device)
    return task, (images, labels) if config.task == "supervised" else images


def in_precision(work: Callable[[], Any], precision: str, device: torch.device) -> Callable[[], Any]:
    """`work` under autocast, as the engine runs it."""

    def run() -> Any:
        low = LOW_PRECISION.get(precision)
        with torch.autocast(device.type, low or torch.bfloat16, enabled=low is not None):
            return work()

    return run


def header(device: torch.device) -> str:
    """One line: what this was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"
