"""WGAN-GP training steps: images/s, share of this machine's convolution peak, and what the merged convolutions gain.

    python scripts/bench/wgan_gp_step.py [--preset wgan_gp_64_small] [--batch N] [--rounds 5]

One round = the peak probe, one cycle (n_critic critic steps and a generator step) of the preset, the same cycle with the
up- and down-convolutions computed as written (resample, then 3×3), and the input pipeline for as many images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from common import flops_of, header, interleave, median_ratio, peak_probe

from gan_uad import device as devices
from gan_uad import registry
from gan_uad.config import DataConfig, load_config
from gan_uad.data.patches import TrainStream, load_patches
from gan_uad.demo.phantom import write_phantom
from gan_uad.networks.layers import DownConv3x3, UpConv3x3


class _UpAsWritten(UpConv3x3):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2), self.weight, self.bias, padding=1)


class _DownAsWritten(DownConv3x3):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.conv2d(x, self.weight, self.bias, padding=1), 2)


def as_written(model: torch.nn.Module) -> torch.nn.Module:
    """Turn every merged convolution of `model` into its definition, in place."""
    for module in model.modules():
        if isinstance(module, UpConv3x3):
            module.__class__ = _UpAsWritten
        elif isinstance(module, DownConv3x3):
            module.__class__ = _DownAsWritten
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="wgan_gp_64_small")
    parser.add_argument("--batch", type=int, help="default: the preset's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    device = devices.prepare(args.device, args.threads)
    config = load_config(args.preset)
    batch, side = args.batch or config.training.batch, config.resolution

    def cycle(merged: bool):  # type: ignore[no-untyped-def]
        model = registry.build("network", config.model, {"resolution": side, **config.network})
        task = registry.build(
            "task", config.task, config.optim, model=model if merged else as_written(model), device=device, seed=0
        )
        real = torch.rand(batch, 3, side, side).mul(2).sub(1).contiguous(memory_format=torch.channels_last).to(device)

        def work() -> None:
            for i in range(task.n_critic):
                task.step(real, i * batch)

        return work, task.n_critic * batch

    probe, probe_flops = peak_probe(device)
    step, images = cycle(merged=True)
    written, _ = cycle(merged=False)
    flops, written_flops = flops_of(step), flops_of(written)
    with tempfile.TemporaryDirectory() as folder:
        write_phantom(Path(folder) / "patches", resolution=side, train=512, val=20, test=20)
        patches = load_patches(DataConfig(path=f"{folder}/patches"), side, cache=Path(folder)).select("train", label=0)
        stream = TrainStream(patches, images, 0, flips=True, turns=True)
        spent = interleave(
            {"peak": probe, "step": step, "written": written, "input": lambda: stream.at(0)}, args.rounds, device
        )
    rates = {name: statistics.median(values) for name, values in spent.items()}
    peak = probe_flops / rates["peak"]
    share = median_ratio(spent["peak"], spent["step"]) * flops / probe_flops
    share_written = median_ratio(spent["peak"], spent["written"]) * written_flops / probe_flops
    print(header(device))
    print(f"{args.preset}, batch {batch}, {args.rounds} interleaved rounds")
    print(f"convolution peak (fp32)     {peak / 1e9:8.0f} GFLOP/s")
    print(
        f"step, merged convolutions   {images / rates['step']:8.1f} images/s  {flops / images / 1e9:6.2f} GFLOP/image  {share:.0%} of peak"
    )
    print(
        f"step, as written            {images / rates['written']:8.1f} images/s  {written_flops / images / 1e9:6.2f} GFLOP/image"
        f"  {share_written:.0%} of peak"
    )
    print(f"merged over as written      {median_ratio(spent['written'], spent['step']):8.2f} times as fast")
    print(f"  counted in the operations of the nets as written: {share * written_flops / flops:.0%} of peak")
    print(
        f"input pipeline              {images / rates['input']:8.0f} images/s = {rates['input'] / rates['step']:.1%} of the step's time"
    )


if __name__ == "__main__":
    main()
