"""Fréchet distance: ours against torch-fidelity's, the square root of scipy, and torch's linear algebra, in one interleaved run.

    python scripts/bench/frechet.py [--dim 2048] [--images 5000 1000] [--rounds 3]

Features are made up: not negative, correlated, with a spectrum that falls as that of a network does. All start from the same means and
covariances; figures are medians over the rounds. `off` is the difference to scipy's, relative to the distance.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

sys.path.insert(0, str(Path(__file__).parent))
from common import header, interleave, median_ratio

from gan_uad import device as devices
from gan_uad.metrics.generation import Gaussian, Moments, frechet_distance


def made_up(n: int, dim: int, seed: int) -> Gaussian:
    """The Gaussian of `n` random vectors."""
    mix = np.random.default_rng(0).standard_normal((dim, dim), dtype=np.float32)
    mix *= np.exp(-np.arange(dim, dtype=np.float32) / (dim / 8))[:, None] / dim**0.5
    random, moments = np.random.default_rng(seed), Moments(dim)
    for start in range(0, n, 1000):
        noise = random.standard_normal((min(1000, n - start), dim), dtype=np.float32)
        moments.update(np.maximum(noise @ mix + 0.3 + 0.02 * seed, 0))
    return moments.gaussian()


def works(a: Gaussian, b: Gaussian, results: dict[str, float]) -> dict[str, Callable[[], None]]:
    """Each way to the distance, leaving it in `results`."""

    def scipys() -> float:
        root = scipy.linalg.sqrtm(a.cov @ b.cov)
        return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov + b.cov) - 2 * np.trace(root).real)

    def torch_fidelitys() -> float:
        sides = ({"mu": g.mean, "sigma": g.cov} for g in (a, b))
        return float(fid_statistics_to_metric(*sides, verbose=False)[KEY_METRIC_FID])

    def torchs() -> float:
        """Our formula for more images than features, by torch's linear algebra."""
        lower = torch.linalg.cholesky(torch.from_numpy(a.cov))
        eigenvalues = torch.linalg.eigvalsh(lower.T @ torch.from_numpy(b.cov) @ lower)
        difference = a.mean - b.mean
        return float(
            difference @ difference + np.trace(a.cov + b.cov) - 2 * eigenvalues.clamp_min(0).sqrt().sum().item()
        )

    ways = {"gan_uad": lambda: frechet_distance(a, b), "torch-fidelity": torch_fidelitys, "scipy sqrtm": scipys}
    if min(a.n, b.n) > a.dim:
        ways["torch.linalg"] = torchs
    return {name: lambda name=name, way=way: results.update({name: way()}) for name, way in ways.items()}  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    device = devices.prepare("cpu", args.threads)
    print(header(device))
    for n in args.images:
        results: dict[str, float] = {}
        spent = interleave(works(made_up(n, args.dim, 1), made_up(n, args.dim, 2), results), args.rounds, device)
        print(f"{n} images, {args.dim} features, {args.rounds} interleaved rounds")
        for name, seconds in spent.items():
            ratio = median_ratio(seconds, spent["gan_uad"])
            off = results[name] / results["scipy sqrtm"] - 1
            print(
                f"{name:16s} {statistics.median(seconds):8.2f} s  {ratio:5.1f} of ours  {results[name]:.10g}  off {off:.0e}"
            )


if __name__ == "__main__":
    main()
