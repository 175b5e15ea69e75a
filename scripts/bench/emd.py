"""Earth mover's distance and SSIM of images: ours, a batch at once, against scipy and scikit-image, image by image, interleaved.

    python scripts/bench/emd.py [--resolution 64] [--images 64] [--rounds 5]

8-bit images and smooth copies of other values, in [-1, 1], float32 as the scorer has them. `off` is the largest difference to the
reference (which scikit-image computes in float64 here, as ours).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from skimage.metrics import structural_similarity

sys.path.insert(0, str(Path(__file__).parent))
from common import header, interleave, median_ratio

from gan_uad import device as devices
from gan_uad.metrics.emd import intensity_emd
from gan_uad.metrics.ssim import ssim

Images = NDArray[np.float32]
SSIM_SETTINGS = {"data_range": 2, "channel_axis": 0, "gaussian_weights": True, "use_sample_covariance": False}


def pairs(n: int, side: int) -> tuple[Images, Images]:
    """Images `[n, 3, side, side]` and what stands for their reconstructions."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (n, 3, side, side)) / 127.5 - 1
    b = np.tanh(0.5 * a + 0.2 * rng.standard_normal(a.shape))
    return a.astype(np.float32), b.astype(np.float32)


def works(a: Images, b: Images, results: dict[str, NDArray[np.floating]]) -> dict[str, Callable[[], None]]:
    """Each way to the figures, leaving them in `results`."""

    def scipys() -> NDArray[np.float64]:
        channels = zip(a.reshape(-1, a[0, 0].size), b.reshape(-1, b[0, 0].size), strict=True)
        return np.array([wasserstein_distance(x, y) for x, y in channels]).reshape(len(a), -1).mean(1)

    def scikit_images() -> NDArray[np.float64]:
        images = zip(a.astype(np.float64), b.astype(np.float64), strict=True)
        return np.array([structural_similarity(x, y, **SSIM_SETTINGS) for x, y in images])

    ways = {
        "emd gan_uad": lambda: intensity_emd(a, b),
        "emd scipy": scipys,
        "ssim gan_uad": lambda: ssim(a, b)[0],
        "ssim scikit-image": scikit_images,
    }
    return {name: lambda name=name, way=way: results.update({name: way()}) for name, way in ways.items()}  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    device = devices.prepare("cpu", args.threads)
    print(header(device))
    for side in args.resolution:
        results: dict[str, NDArray[np.floating]] = {}
        spent = interleave(works(*pairs(args.images, side), results), args.rounds, device)
        print(f"{args.images} images of {side} px, {args.rounds} interleaved rounds")
        for metric, reference in (("emd", "emd scipy"), ("ssim", "ssim scikit-image")):
            ours = f"{metric} gan_uad"
            off = np.abs(results[ours] - results[reference]).max()
            for name in (ours, reference):
                a_image = statistics.median(spent[name]) / args.images * 1e3
                print(f"{name:18s} {a_image:8.3f} ms an image  {median_ratio(spent[name], spent[ours]):6.1f} of ours")
            print(f"{'':18s} off {off:.0e}")


if __name__ == "__main__":
    main()
