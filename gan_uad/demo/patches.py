"""`gan-uad demo`: the main job from nothing, on made-up tissue, in minutes on two CPU cores."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from gan_uad import console, device
from gan_uad.config import DataConfig
from gan_uad.data.patches import PatchSet, batches, load_patches
from gan_uad.demo.phantom import write_phantom
from gan_uad.detection.evaluate import evaluate
from gan_uad.detection.score import score
from gan_uad.detection.score_file import read_scores
from gan_uad.errors import Interrupted, JobFailed
from gan_uad.files import claim, write_json
from gan_uad.generation.generate import generate
from gan_uad.metrics.detection import auroc
from gan_uad.model import Model, load_model, make_scorer
from gan_uad.plotting.plots import training_curves
from gan_uad.run import Run
from gan_uad.training.train import build_task, train

PRESETS = ("demo_wgan_gp", "demo_izi_f")
FULL = (2000, 200, 300)  # train, val, test images of a kind
QUICK = (300, 100, 100)
SLIDES = (40, 20, 20)  # fewer than 19 validation slides could not promise 5 % false positives
QUICK_KIMG = 1.0


def demo(out: Path, quick: bool = False, seed: int = 0) -> dict[str, float]:
    """Make patches, train a small WGAN-GP and its izi_f encoder, score, evaluate; returns the three AUROCs it prints.

    Run again into the same folder, it goes on where it stopped. `quick` trains for seconds only: its figures mean little.
    """
    start = time.monotonic()
    claim(out, "demo.json", {"quick": quick, "seed": seed}, "a demo", "*")
    train_size, val, test = QUICK if quick else FULL
    bar = console.counter("making patches")
    patches = write_phantom(
        out / "patches", resolution=32, train=train_size, val=val, test=test, groups=SLIDES, seed=seed, progress=bar
    )
    runs: list[Run] = []
    for preset in PRESETS:
        runs.append(_train(preset, out, patches, seed, quick, runs[0] if runs else None))
    generate(str(runs[0].folder), list(range(64)), out / "samples", grid=True)
    scores = score(str(runs[1].folder), str(patches), out / "scores", maps=True)
    for run, name in zip(runs, ("generator", "encoder"), strict=True):
        _curves(run, out / f"training_{name}.png")
    evaluate([scores], out / "figures")
    result = _compare(scores, runs[1], patches)
    minutes = (time.monotonic() - start) / 60
    write_json(out / "result.json", {"auroc": result, "minutes": round(minutes, 2), "quick": quick, "seed": seed})
    _print(result, minutes, out, quick)
    return result


def _train(preset: str, out: Path, patches: Path, seed: int, quick: bool, generator: Run | None) -> Run:
    overrides = [f"training.seed={seed}"] + ([f"training.total_kimg={QUICK_KIMG}"] if quick else [])
    existing = Run.latest(out / "runs", preset)
    try:
        if existing is not None and existing.state_path.is_file():
            run = train(str(existing.folder), (), out=out / "runs", resume=True)
        else:
            given = str(generator.folder) if generator else None
            run = train(preset, tuple(overrides), str(patches), given, out / "runs")
    except Interrupted as stopped:
        raise Interrupted(stopped.what, "To go on, give the same command again") from None
    if run is None:
        raise JobFailed(f"{preset} was not trained")
    return run


def _compare(scores: Path, run: Run, patches: Path) -> dict[str, float]:
    """AUROC of the trained model, of the same networks untrained, and of mean colour, on the same test images."""
    trained, baseline = read_scores(scores / "scores.csv"), read_scores(scores / "mean_color.csv")
    return {
        "izi_f": auroc(trained.label, trained.score),
        "untrained": _untrained(run, patches),
        "mean_color": auroc(baseline.label, baseline.score),
    }


def _untrained(run: Run, patches: Path) -> float:
    """The scorer with generator, critic and encoder as they are initialised."""
    config = run.config
    torch.manual_seed(config.training.seed)
    generator = load_model(str(config.generator)).config
    nets = {"gan": build_task(generator, torch.device("cpu")).networks()["gan"]}
    nets["encoder"] = build_task(config, torch.device("cpu")).networks()["encoder"]
    model = Model(run.folder, {k: v.eval() for k, v in nets.items()}, config, 0, device.prepare("cpu"))
    test: PatchSet = load_patches(DataConfig(path=str(patches)), config.resolution).select("test")
    scorer = make_scorer(model)
    values = np.concatenate([scorer.score(images).image.numpy() for images, _ in batches(test, 64)])
    return auroc(test.manifest.label, values)


def _curves(run: Run, path: Path) -> None:
    rows = run.read_log()
    keys = [key for key in rows[-1] if key not in {"nimg", "kimg", "seconds_per_kimg", "memory_gb", "time"}]
    training_curves(rows, keys, path)


def _print(result: dict[str, float], minutes: float, out: Path, quick: bool) -> None:
    print(
        f"\nAUROC on the phantom's test set (0.5 is chance){' - a reduced run, its figures mean little' if quick else ''}:"
    )
    for name, text in (
        ("izi_f", "WGAN-GP + izi_f encoder, trained"),
        ("untrained", "the same networks, untrained"),
        ("mean_color", "mean colour alone (baseline)"),
    ):
        print(f"  {result[name]:.3f}  {text}")
    print(f"{minutes:.1f} minutes. Look at {out}/scores/triplets.png, {out}/figures/roc.png and {out}/samples/grid.png")
