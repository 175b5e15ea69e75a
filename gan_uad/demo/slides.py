"""`gan-uad demo-slides`: slides from end to end, on synthetic slides with known tumour."""

from __future__ import annotations

import time
from pathlib import Path

from gan_uad import console, device
from gan_uad.demo.phantom_slide import write_phantom_slide
from gan_uad.demo.steps import report, trained
from gan_uad.files import claim, make_folder, read_json
from gan_uad.slides.evaluate import evaluate_slides
from gan_uad.slides.score_slide import Cut
from gan_uad.slides.score_slides import score_slides
from gan_uad.slides.tile import tile
from gan_uad.slides.tile_slide import TileSettings

SIZE, MPP = 64, 1.0  # of the tiles
# Preset; width, height and µm/px of a slide; normal slides; test slides of each class.
FULL = ("knn", (4096, 3072, 0.5), 5, 3)
QUICK = ("mean_color", (1024, 1024, 1.0), 4, 1)


def demo_slide(out: Path, quick: bool = False, seed: int = 0) -> dict[str, float]:
    """Make slides, cut normal ones into tiles, fit a detector on them, score others, evaluate; returns the metrics that it prints.

    Resumes when run again into the same folder. `quick`: smaller slides, and mean colour as the detector.
    """
    start = time.monotonic()
    settings = {"quick": quick, "seed": seed}
    claim(out, "demo.json", {"slide": True, **settings}, "a demo", "*")
    preset, shape, normals, tests = QUICK if quick else FULL
    first = 1000 * seed
    normal = _slides(out / "normal", {f"normal_{k}": (first + k, False) for k in range(normals)}, shape)
    wanted = {f"test_{k}": (first + normals + k, k < tests) for k in range(2 * tests)}
    test = _slides(out / "test", wanted, shape)
    tiling = TileSettings(size=SIZE, mpp=MPP, per_slide=400, seed=seed)
    patches = tile(normal, out / "tiles", tiling, out / "normal", workers=device.cores())
    run = trained(preset, out, patches, (f"training.seed={seed}",))
    cut = Cut(SIZE, MPP, 1.0, tiling.rule, tiling.tissue, "", None)
    score_slides(str(run.folder), test, out / "scores", cut, threshold="quantile:0.99")  # of so few slides fpr has none
    evaluate_slides([out / "scores"], out / "figures", annotations=out / "test")
    (metrics,) = read_json(out / "figures" / "metrics.json").values()
    result = {
        "tile_auroc": metrics["tiles"]["auroc"]["value"],
        "slide_auroc": metrics["scores"]["top_k"]["auroc"]["value"],
        "froc": metrics["froc"]["score"]["value"],
    }
    meanings = (
        "AUROC of tiles",
        "AUROC of slides (mean of the highest tiles)",
        "FROC (mean share of lesions found at 1/4 to 8 false alarms per slide)",
    )
    title = f"{2 * tests} synthetic slides, {tests} with tumour; {preset} fitted on tiles of {normals} normal slides"
    look = (
        f"Look at {out}/scores/test_0/overlay.png and {out}/figures/froc.png. In QuPath, open {out}/test/test_0.tif and drop "
        f"{out}/scores/test_0/tiles.geojson onto it"
    )
    report(out, start, settings, result, title, dict(zip(meanings, result.values(), strict=True)), look)
    return result


def _slides(folder: Path, wanted: dict[str, tuple[int, bool]], shape: tuple[int, int, float]) -> list[Path]:
    """Phantom slides by name, of (seed, with tumour); existing ones are left as they are."""
    make_folder(folder)
    paths = [folder / f"{name}.tif" for name in wanted]
    for path, (seed, tumour) in zip(paths, wanted.values(), strict=True):
        if not path.is_file():
            counter = console.counter(f"painting {path.name}", "tiles")
            write_phantom_slide(path, *shape, seed=seed, tumour=tumour, progress=counter)
    return paths
