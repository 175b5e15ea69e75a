"""What a warm training step asks of a GPU, counted without one: kernels, bytes that they read and write, waits of the host.

    python scripts/bench/gpu_counts.py [CASE ...] [--where]

A step runs on the fake device of tests/fake_gpu.py, shapes only. Lazy terms count as often as they come: R1 as 1/16 of a step. A figure
for the search is that of one step of the w search for 8 images with the distance of EfficientNet-Lite0.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from common import in_precision, network_of, task_of
from fake_gpu import fake_gpu

from gan_uad import registry

CUDA = torch.device("cuda")
Parts = list[tuple[Callable[[], Any], float]]


@dataclass
class Counts:
    """Means over warm steps. `waits`: by file:function."""

    launches: float = 0.0
    gigabytes: float = 0.0
    waits: Counter[str] = field(default_factory=Counter)


def parts_of(task: Any, real: Any, batch: int) -> Parts:
    """What a step does, each with how often it comes."""
    if hasattr(task, "r1_interval"):
        found: Parts = [
            (lambda: task.generator_step(batch), 1.0),
            (lambda: task.discriminator_step(real), 1.0),
            (lambda: task.ema.update(batch, 1_000_000), 1.0),
        ]
        if task.path_interval:
            found.append((lambda: task.path_step(batch // task.path_shrink), 1 / task.path_interval))
        return [*found, (lambda: task.r1_step(real), 1 / task.r1_interval)] if task.r1_interval else found
    cycle = getattr(task, "n_critic", 1)
    return [
        (lambda k=k: task.step(real, 2_000_000 // batch // cycle * cycle * batch + k * batch), 1 / cycle)
        for k in range(cycle)
    ]


def training(preset: str, batch: int, precision: str, *overrides: str, generator: str = "") -> Callable[[], Parts]:
    """The parts of a step of a preset."""

    def build() -> Parts:
        task, real = task_of(preset, batch, CUDA, generator, overrides)
        return [(in_precision(work, precision, CUDA), often) for work, often in parts_of(task, real, batch)]

    return build


def searching(preset: str) -> Callable[[], Parts]:
    """A step of the search in w."""

    def build() -> Parts:
        from encoders.search import Slots

        given = {"nets": {"gan": network_of(preset).to(CUDA)}, "device": CUDA}
        inverter = registry.build("inverter", "w", {"perceptual": "efficientnet_lite0"}, **given)
        side = inverter.generator.resolution
        waiting = inverter.jobs(torch.zeros(8, 3, side, side))
        slots = Slots(8, next(waiting))
        slots.fill(waiting)
        return [(lambda: inverter.step(slots), 1.0)]

    return build


CASES: dict[str, Callable[[], Parts]] = {
    "stylegan2_e_64": training("stylegan2_e_64", 32, "bf16"),
    "stylegan2_e_256": training("stylegan2_e_256", 32, "bf16"),
    "stylegan2_64_small": training("stylegan2_64_small", 32, "bf16"),
    "stylegan2_64_small_ada": training("stylegan2_64_small", 32, "bf16", "optim.augment=bgc"),
    "stylegan2_64_small_augmented": training(
        "stylegan2_64_small", 32, "bf16", "optim.augment=bgc", "optim.augment_p=0.8"
    ),
    "stylegan_64": training("stylegan_64", 32, "bf16"),
    "pgan_64": training("pgan_64", 32, "bf16"),
    "wgan_gp_64": training("wgan_gp_64", 64, "tf32"),
    "wgan_gp_64_small": training("wgan_gp_64_small", 16, "tf32"),
    "dcgan_64": training("dcgan_64", 64, "tf32"),
    "izi_f_64": training("izi_f_64", 64, "tf32", generator="wgan_gp_64"),
    "style_encoder_64": training("style_encoder_64", 32, "bf16", generator="stylegan2_e_64"),
    "conv_vae_64": training("conv_vae_64", 64, "tf32"),
    "unet_vae_64": training("unet_vae_64", 64, "tf32"),
    "densenet121_64": training("densenet121_64", 64, "tf32"),
    "efficientnet_lite0_64": training("efficientnet_lite0_64", 64, "tf32"),
    "search_w": searching("stylegan2_e_64"),
}


def count(case: str) -> Counts:
    """Counts of one case. The parts run once before they are counted."""
    torch.manual_seed(0)
    found = Counts()
    with fake_gpu(values=False) as gpu:
        parts = CASES[case]()
        for work, _ in parts:
            work()
        for work, often in parts:
            gpu.reset()
            work()
            found.launches += often * sum(gpu.launches.values())
            found.gigabytes += often * gpu.bytes / 1e9
            for place, waits in gpu.waiting_places.items():
                found.waits[place] += often * waits
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all; {', '.join(CASES)}")
    parser.add_argument("--where", action="store_true", help="also list where a step waits")
    args = parser.parse_args()
    print(f"torch {torch.__version__}\n\n| step | kernels | GB | waits |\n| --- | ---: | ---: | ---: |")
    for case in args.cases or CASES:
        found = count(case)
        print(
            f"| {case} | {found.launches:.0f} | {found.gigabytes:.1f} | {sum(found.waits.values()):.1f} |", flush=True
        )
        for place, waits in found.waits.most_common() if args.where else []:
            print(f"|   {place} | | | {waits:.1f} |")


if __name__ == "__main__":
    main()
