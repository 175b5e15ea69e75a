"""Inception features and the FID on them: ours, exact and fast, against torch-fidelity's, in one interleaved run.

    python scripts/bench/inception_features.py [--batch 32] [--resolution 64] [--rounds 5] [--images 64] [--weights FILE]

A round computes one batch each way. Then FID and KID of two sets of `--images` random pictures, end to end from PNG files: by
torch-fidelity's own command, and by ours in both forms. Without `--weights` (and without the file on this machine) the network is one
of random numbers, with which speed and parity are the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_fidelity
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

sys.path.insert(0, str(Path(__file__).parent))
from common import header, interleave, median_ratio

from gan_uad import device as devices
from gan_uad.features import weights
from gan_uad.features.base import FeatureNet
from gan_uad.features.extract import extract
from gan_uad.features.load import load_features
from gan_uad.metrics.generation import frechet_distance, gaussian_of, kid


def random_file(folder: Path) -> Path:
    """A file of random weights as torch-fidelity publishes them."""

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return None

    path = folder / "random.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    net = Unloaded("random", ["2048"], feature_extractor_weights_path=str(path))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    torch.save(net.state_dict(), path)
    return path


def pictures(n: int, side: int, seed: int) -> np.ndarray:
    """Smooth random uint8 `[n, side, side, 3]`: noise at an eighth of the side, made larger, of a colour that `seed` moves."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256 - 20 * seed, (n, max(1, side // 8), max(1, side // 8), 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in small]
    )


def metrics(net: FeatureNet, sets: list[np.ndarray], device: torch.device) -> tuple[float, float]:
    """FID and KID by this package."""
    a, b = (np.concatenate(list(extract(net, [images], device))) for images in sets)
    return frechet_distance(gaussian_of(a), gaussian_of(b)), kid(a, b, subsets=10, size=len(a) // 2).mean


def parity(file: Path, nets: dict[str, FeatureNet], n: int, side: int, folder: Path, device: torch.device) -> None:
    """Print FID and KID each way."""
    sets = [pictures(n, side, seed) for seed in (0, 1)]
    for k, images in enumerate(sets):
        (folder / str(k)).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / str(k) / f"{i:06d}.png")
    found = torch_fidelity.calculate_metrics(
        input1=str(folder / "0"), input2=str(folder / "1"), cuda=device.type == "cuda", fid=True, kid=True, kid_subsets=10,
        kid_subset_size=n // 2, feature_extractor_weights_path=str(file), cache=False, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    expected = found["frechet_inception_distance"], found["kernel_inception_distance_mean"]
    print(f"{n} + {n} images        FID {'':24} KID, subsets drawn by each in its own way")
    print(f"torch-fidelity     {expected[0]:14.6f} {'':18} {expected[1]:.6g}")
    for name, net in nets.items():
        ours = metrics(net, sets, device)
        print(f"{name:18} {ours[0]:14.6f} ({ours[0] / expected[0] - 1:+.1e})       {ours[1]:.6g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64, help="0: no FID")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    device = devices.prepare(args.device, args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = args.weights or weights.here(weights.entry("inception")) or random_file(folder)
        theirs = FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=str(file)).to(device)
        nets = {
            f"gan_uad {'fast' if fast else 'exact'}": load_features("inception", weights=file, device=device, fast=fast)
            for fast in (False, True)
        }
        images = torch.from_numpy(pictures(args.batch, args.resolution, 0)).permute(0, 3, 1, 2).contiguous().to(device)

        def reference() -> torch.Tensor:
            with torch.no_grad():
                features: torch.Tensor = theirs(images)[0]
            return features

        works: dict[str, Callable[[], torch.Tensor]] = {"torch-fidelity": reference}
        works |= {name: lambda net=net: net(images) for name, net in nets.items()}  # type: ignore[misc]
        spent = interleave(works, args.rounds, device)
        print(header(device))
        print(f"batch {args.batch} of {args.resolution} px, {args.rounds} interleaved rounds, {file.name}")
        expected = reference()
        for name, seconds in spent.items():
            off = float((works[name]() - expected).norm() / expected.norm())
            faster = median_ratio(spent["torch-fidelity"], seconds)
            print(
                f"{name:18} {args.batch / statistics.median(seconds):8.1f} images/s {faster:6.2f}×   features off by {off:.1e}"
            )
        print(nets["gan_uad fast"].preprocessing)
        if args.images:
            parity(file, nets, args.images, args.resolution, folder, device)


if __name__ == "__main__":
    main()
