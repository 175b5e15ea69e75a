"""`gan-uad demo-slides`: from slides to heatmaps and figures, on made-up slides whose tumour is known."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from gan_uad import console, device
from gan_uad.demo.phantom_slide import write_phantom_slide
from gan_uad.errors import JobFailed
from gan_uad.files import claim, make_folder, write_json
from gan_uad.run import Run
from gan_uad.slides.evaluate import evaluate_slides
from gan_uad.slides.score_slide import Cut
from gan_uad.slides.score_slides import score_slides
from gan_uad.slides.tile import tile
from gan_uad.slides.tile_slide import TileSettings
from gan_uad.training.train import train

SIZE, MPP = 64, 1.0  # of the tiles
# Preset; width, height and µm/px of a slide; normal slides; test slides of a kind.
FULL = ("knn", (4096, 3072, 0.5), 5, 3)
QUICK = ("mean_color", (1024, 1024, 1.0), 4, 1)


def demo_slide(out: Path, quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Make slides, cut normal ones into tiles, fit a detector on them, score others, evaluate; returns the figures that it prints.

    Run again into the same folder, it goes on where it stopped. `quick`: smaller slides and mean colour as the detector.
    """
    start = time.monotonic()
    claim(out, "demo.json", {"slide": True, "quick": quick, "seed": seed}, "a demo", "*")
    preset, shape, normals, tests = QUICK if quick else FULL
    first = 1000 * seed
    normal = _slides(out / "normal", {f"normal_{k}": (first + k, False) for k in range(normals)}, shape)
    wanted = {f"test_{k}": (first + normals + k, k < tests) for k in range(2 * tests)}
    test = _slides(out / "test", wanted, shape)
    settings = TileSettings(size=SIZE, mpp=MPP, per_slide=400, seed=seed)
    patches = tile(normal, out / "tiles", settings, out / "normal", workers=device.cores())
    run = _fitted(preset, out, patches, seed)
    cut = Cut(SIZE, MPP, 1.0, settings.rule, settings.tissue, "", None)
    score_slides(str(run.folder), test, out / "scores", cut)
    evaluate_slides([out / "scores"], out / "figures", annotations=out / "test")
    metrics = json.loads((out / "figures" / "metrics.json").read_text(encoding="utf-8"))
    (figures,) = metrics.values()
    minutes = (time.monotonic() - start) / 60
    result = {
        "tile_auroc": figures["tiles"]["auroc"]["value"],
        "slide_auroc": figures["scores"]["top_k"]["auroc"]["value"],
        "froc": figures["froc"]["score"]["value"],
    }
    write_json(out / "result.json", {**result, "minutes": round(minutes, 2), "quick": quick, "seed": seed})
    print(
        f"\nOn {2 * tests} made-up slides, {tests} of them with tumour, by {preset} fitted on tiles of {normals} normal ones:\n"
        f"  {result['tile_auroc']:.3f}  AUROC of tiles\n  {result['slide_auroc']:.3f}  AUROC of slides (mean of the highest tiles)\n"
        f"  {result['froc']:.3f}  FROC (mean share of lesions found at 1/4 to 8 false alarms a slide)\n"
        f"{minutes:.1f} minutes. Look at {out}/scores/test_0/overlay.png and {out}/figures/froc.png; QuPath opens "
        f"{out}/test/test_0.tif and, dropped onto it, {out}/scores/test_0/tiles.geojson"
    )
    return result


def _slides(folder: Path, wanted: dict[str, tuple[int, bool]], shape: tuple[int, int, float]) -> list[Path]:
    """Phantom slides by name, of (seed, with tumour); those that are there are left as they are."""
    make_folder(folder)
    paths = []
    for name, (seed, tumour) in wanted.items():
        path = folder / f"{name}.tif"
        if not path.is_file():
            bar = console.counter(f"painting {path.name}", "tiles")
            write_phantom_slide(path, *shape, seed=seed, tumour=tumour, progress=bar)
        paths.append(path)
    return paths


def _fitted(preset: str, out: Path, patches: Path, seed: int) -> Run:
    existing = Run.latest(out / "runs", preset)
    if existing is not None and existing.model_path.is_file():
        return existing
    run = train(preset, (f"training.seed={seed}",), str(patches), None, out / "runs")
    if run is None:
        raise JobFailed(f"{preset} was not fitted")
    return run
