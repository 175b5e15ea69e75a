"""Scoring: images/s of each detector, interleaved; and the time and memory of fitting those that are fitted.

    python scripts/bench/scorers.py [--features efficientnet_lite0] [--resolution 64] [--normals 256] [--images 64] [--rounds 5]

Images are random and networks of detectors are untrained (speed depends on neither). Features bring images to a size of their own, so
most of the classical detectors' time is the feature network's, which is timed alone too: `--features pixels` leaves it out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import header, interleave, median_ratio

from gan_uad import device as devices
from gan_uad import registry
from gan_uad.config import load_config
from gan_uad.data.patches import to_uint8
from gan_uad.features.extract import extract
from gan_uad.features.load import load_features
from gan_uad.scoring.base import Scorer
from gan_uad.training.memory import peak

FITTED = ("mean_color", "mahalanobis", "knn", "one_class_svm", "isolation_forest", "local_outlier_factor", "patchcore")


def fitted(name: str, net: Any, device: torch.device, images: torch.Tensor) -> Scorer:
    """The detector of a preset, fitted on `images`."""
    options = {key: value for key, value in load_config(name).scoring.options.items() if key != "features"}
    given = {} if name == "mean_color" else {"net": net, "device": device}
    scorer: Scorer = registry.build("scorer", name, options, **given)
    scorer.fit([(images, torch.zeros(len(images), dtype=torch.int64))])
    return scorer


def trained(name: str, resolution: int, device: torch.device) -> Scorer:
    """izi_f, a conv_vae or a densenet121, untrained."""
    if name == "classifier":
        net = registry.build("network", "densenet121", {"resolution": resolution}).to(device).eval()
        classifier: Scorer = registry.build("scorer", name, {}, nets={"classifier": net}, device=device)
        return classifier
    if name == "vae":
        shape = {"resolution": resolution, **load_config("conv_vae_64").network}
        vae = registry.build("network", "conv_vae", shape).to(device).eval()
        made: Scorer = registry.build("scorer", name, {}, nets={"vae": vae}, device=device)
        return made
    shape = {"resolution": resolution, **load_config("wgan_gp_64_small").network}
    nets = {
        "gan": registry.build("network", "wgan_gp", shape).to(device).eval(),
        "encoder": registry.build("network", "residual_encoder", shape).to(device).eval(),
    }
    inverter = registry.build("inverter", name, {}, nets=nets, device=device)
    scorer: Scorer = registry.build("scorer", "gan_inversion", {}, inverter=inverter)
    return scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="efficientnet_lite0")
    parser.add_argument("--scorers", nargs="+", default=[*FITTED, "izi_f", "vae", "classifier"])
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--normals", type=int, default=256)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    device = devices.prepare(args.device, args.threads)
    net = load_features(args.features, device=device)
    torch.manual_seed(0)
    side = args.resolution
    normals, images = (torch.rand(n, 3, side, side).mul(2).sub(1) for n in (args.normals, args.images))
    print(header(device))
    print(
        f"{args.features}, {args.images} images of {side} px, {args.normals} normals, {args.rounds} interleaved rounds"
    )
    works: dict[str, Callable[[], Any]] = {"features alone": lambda: list(extract(net, [to_uint8(images)], device))}
    for name in args.scorers:
        start = time.perf_counter()
        scorer = fitted(name, net, device, normals) if name in FITTED else trained(name, side, device)
        if name in FITTED:
            spent = time.perf_counter() - start
            print(f"{name:22s} fitted in {spent:7.2f} s, peak so far {peak(device):.2f} GB")
        works[name] = lambda scorer=scorer: scorer.score(images)
    spent_by = interleave(works, args.rounds, device)
    for name, seconds in spent_by.items():
        rate = args.images / statistics.median(seconds)
        print(
            f"{name:22s} {rate:8.1f} images/s, {median_ratio(seconds, spent_by['features alone']):5.2f} of the features' time"
        )


if __name__ == "__main__":
    main()
