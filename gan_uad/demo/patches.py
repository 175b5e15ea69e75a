"""`gan-uad demo`: patches from end to end on synthetic tissue, in minutes on two CPU cores."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from gan_uad import console, device
from gan_uad.config import DataConfig
from gan_uad.data.patches import batches, load_patches
from gan_uad.demo.phantom import write_phantom
from gan_uad.demo.steps import report, trained
from gan_uad.detection.evaluate import evaluate
from gan_uad.detection.score import score
from gan_uad.detection.score_file import read_scores
from gan_uad.files import claim
from gan_uad.generation.generate import generate
from gan_uad.metrics.detection import auroc
from gan_uad.model import Model, load_model, make_scorer
from gan_uad.plotting.plots import training_curves
from gan_uad.run import Run
from gan_uad.training.train import build_task

FULL = (2000, 200, 300)  # train images; val and test images of each class
QUICK = (300, 100, 100)
SLIDES = (40, 20, 20)  # fewer than 19 validation slides could not guarantee 5 % false positives
QUICK_KIMG = 1.0
METHODS = {
    "izi_f": "WGAN-GP + izi_f encoder, trained",
    "untrained": "the same networks, untrained",
    "mean_color": "mean colour alone (baseline)",
}


def demo(out: Path, quick: bool = False, seed: int = 0) -> dict[str, float]:
    """Make patches, train a small WGAN-GP and its izi_f encoder, score, evaluate; returns the AUROC of each of `METHODS`.

    Resumes when run again into the same folder. `quick` trains for seconds only: its results mean little.
    """
    start = time.monotonic()
    settings = {"quick": quick, "seed": seed}
    claim(out, "demo.json", settings, "a demo", "*")
    train, val, test = QUICK if quick else FULL
    counter = console.counter("making patches")
    patches = write_phantom(
        out / "patches", resolution=32, train=train, val=val, test=test, groups=SLIDES, seed=seed, progress=counter
    )
    overrides = (f"training.seed={seed}", *([f"training.total_kimg={QUICK_KIMG}"] if quick else []))
    generator = trained("demo_wgan_gp", out, patches, overrides)
    encoder = trained("demo_izi_f", out, patches, overrides, generator)
    generate(str(generator.folder), list(range(64)), out / "samples", grid=True)
    scores = score(str(encoder.folder), str(patches), out / "scores", maps=True)
    for run, name in ((generator, "generator"), (encoder, "encoder")):
        log = run.read_log()
        keys = [key for key in log[-1] if key not in {"nimg", "kimg", "seconds_per_kimg", "memory_gb", "time"}]
        training_curves(log, keys, out / f"training_{name}.png")
    evaluate([scores], out / "figures")
    result = {
        "izi_f": _auroc(scores / "scores.csv"),
        "untrained": _untrained(encoder, patches),
        "mean_color": _auroc(scores / "mean_color.csv"),
    }
    title = "AUROC on the phantom's test set (0.5 is chance)" + (" - a quick run, so it means little" if quick else "")
    look = f"Look at {out}/scores/triplets.png, {out}/figures/roc.png and {out}/samples/grid.png"
    rows = {text: result[name] for name, text in METHODS.items()}
    report(out, start, settings, {"auroc": result}, title, rows, look)
    return result


def _auroc(file: Path) -> float:
    scores = read_scores(file)
    return auroc(scores.label, scores.score)


def _untrained(run: Run, patches: Path) -> float:
    """AUROC on the test images with generator, critic and encoder as they are initialised."""
    config = run.config
    torch.manual_seed(config.training.seed)
    generator = load_model(str(config.generator)).config
    nets = {"gan": build_task(generator, torch.device("cpu")).networks()["gan"]}
    nets["encoder"] = build_task(config, torch.device("cpu")).networks()["encoder"]
    model = Model(run.folder, {k: v.eval() for k, v in nets.items()}, config, 0, device.prepare("cpu"))
    test = load_patches(DataConfig(path=str(patches)), config.resolution).select("test")
    scorer = make_scorer(model)
    values = np.concatenate([scorer.score(images).image.numpy() for images, _ in batches(test, 64)])
    return auroc(test.manifest.label, values)
