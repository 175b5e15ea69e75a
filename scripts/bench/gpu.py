"""Is a GPU right, and how fast is it? Each task and scorer against the CPU, then the speed of training; Markdown tables.

    python scripts/bench/gpu.py [--device auto] [--steps 16] [--reduced]

Correct: losses and gradients' norms of the first two steps in fp32, with the same weights, images and noise. A figure may be off by
`--tolerance` (5e-3) of its size: kernels of another kind sum in another order, and a second step follows weights that moved by it.
Fast: seconds for 1000 images, in steps that count lazy terms as often as they come, in two precisions. On a CPU the first table compares
the CPU with itself; `--reduced` takes small nets and few steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import header, in_precision, task_of, timed
from gpu_counts import parts_of

from gan_uad import device as devices
from gan_uad.model import load_model

CPU = torch.device("cpu")
# preset, batch, preset of the generator
TASKS = [
    ("dcgan_64", 8, ""), ("wgan_gp_64_small", 8, ""), ("pgan_64", 4, ""), ("stylegan_64", 4, ""), ("stylegan2_64_small", 8, ""),
    ("izi_f_64_small", 8, "wgan_gp_64_small"), ("style_encoder_64_small", 8, "stylegan2_64_small"), ("fc_vae_64", 8, ""),
    ("conv_vae_64", 8, ""), ("attn_conv_vae_64", 8, ""), ("unet_vae_64", 4, ""), ("densenet_64_small", 8, ""),
]  # fmt: skip
# model, inverter, options
SCORERS: list[tuple[str, str | None, dict[str, Any]]] = [
    ("pcam_izi_f_64_small", None, {}),
    ("pcam_izi_f_64_small", "anogan", {"steps": 5}),
    ("pcam_hybrid_64_small", None, {}),
    ("pcam_stylegan2_64_small", "w", {"steps": 5, "perceptual": "efficientnet_lite0"}),
    ("pcam_densenet_64_small", None, {}),
]
# preset, batch, precisions
SPEEDS = [
    ("stylegan2_e_64", 32, ("tf32", "bf16")), ("stylegan2_e_256", 32, ("tf32", "bf16")), ("stylegan_64", 32, ("tf32", "bf16")),
    ("wgan_gp_64", 64, ("fp32", "tf32")), ("densenet121_64", 64, ("tf32", "bf16")),
]  # fmt: skip
REDUCED = [("stylegan2_64_small", 8, ("fp32",)), ("wgan_gp_64_small", 16, ("fp32",))]


@contextmanager
def drawn_on_the_cpu() -> Iterator[None]:
    """Noise that is drawn on the device is drawn on the CPU, so that it is the same on both."""
    real_randn = torch.randn

    class OfTheCpu(torch.Generator):
        def __new__(cls, device: Any = None) -> OfTheCpu:
            return super().__new__(cls)

    def randn(*shape: Any, generator: Any = None, device: Any = None, **options: Any) -> torch.Tensor:
        return real_randn(*shape, generator=generator, **options).to(device or CPU)

    with mock.patch.multiple(torch, randn=randn, Generator=OfTheCpu):
        yield


def first_steps(preset: str, batch: int, generator: str, device: torch.device) -> dict[str, float]:
    """What the first two steps log."""
    torch.manual_seed(0)
    found = {}
    with drawn_on_the_cpu():
        task, real = task_of(preset, batch, device, generator)
        for k in range(2):
            for name, value in task.step(real, k * batch).items():
                found[f"{name} {k + 1}"] = float(value)
    return found


def scores_of(name: str, inverter: str | None, options: dict[str, Any], device: torch.device) -> dict[str, float]:
    """Scores of some generated images."""
    model = load_model(name, device)
    size = model.resolution
    images = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    found = model.scorer(inverter, **options).score(images)
    return {f"image {k}": float(value) for k, value in enumerate(found.image)}


def difference(a: dict[str, float], b: dict[str, float]) -> tuple[float, str]:
    """The largest relative difference, and of what."""
    scale = max(map(abs, b.values())) * 1e-3
    return max((abs(a[name] - b[name]) / max(abs(b[name]), scale), name) for name in b)


def correctness(device: torch.device, tolerance: float, reduced: bool) -> int:
    """The table of what is computed; how many rows are wrong."""
    print("| | largest relative difference | of | |\n| --- | ---: | --- | --- |")
    wrong = 0
    rows: list[tuple[str, Callable[[torch.device], dict[str, float]]]] = [
        (f"training: {preset}", lambda on, row=(preset, batch, generator): first_steps(*row, on))  # type: ignore[misc]
        for preset, batch, generator in (TASKS[:2] if reduced else TASKS)
    ]
    rows += [
        (f"scores: {name}, {inverter or 'its own way'}", lambda on, row=(name, inverter, options): scores_of(*row, on))  # type: ignore[misc]
        for name, inverter, options in (SCORERS[:1] if reduced else SCORERS)
    ]
    for title, work in rows:
        try:
            off, of = difference(work(device), work(CPU))
        except Exception as error:
            off, of = float("inf"), f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
        wrong += off > tolerance
        print(f"| {title} | {off:.1e} | {of} | {'ok' if off <= tolerance else 'WRONG'} |", flush=True)
    return wrong


def speeds(device: torch.device, steps: int, reduced: bool) -> None:
    """The table of training speeds."""
    print("| preset | batch | precision | s/kimg | images/s | memory GB |\n| --- | ---: | --- | ---: | ---: | ---: |")
    for preset, batch, precisions in REDUCED if reduced else SPEEDS:
        for precision in precisions:
            devices.set_precision(precision, device)
            task, real = task_of(preset, batch, device)
            parts = [(in_precision(work, precision, device), often) for work, often in parts_of(task, real, batch)]
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            for work, _ in parts * 2:
                work()
            spent = 0.0
            for work, often in parts:
                spent += often * statistics.median(
                    timed(work, device) for _ in range(max(2, round(steps * min(often, 1))))
                )
            memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
            print(
                f"| {preset} | {batch} | {precision} | {spent / batch * 1000:.2f} | {batch / spent:.0f} | {memory:.1f} |",
                flush=True,
            )
            del task, parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--tolerance", type=float, default=5e-3)
    parser.add_argument("--reduced", action="store_true")
    args = parser.parse_args()
    device = devices.prepare(args.device)
    print(f"{header(device)}\n\n## Correct: against the CPU, in fp32, tolerance {args.tolerance:g}\n")
    wrong = correctness(device, args.tolerance, args.reduced)
    print(f"\n{wrong} wrong\n\n## Training\n")
    speeds(device, args.steps, args.reduced)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
