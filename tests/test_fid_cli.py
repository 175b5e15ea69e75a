"""`gan-uad fid` through the command line: metrics of the images, cells and features that are read back, bad input."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from feature_tools import Thumbnails
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from score_tools import copied, fails, index

import gan_uad
from gan_uad.config import DataConfig, trained_models
from gan_uad.data.patches import load_patches, to_uint8
from gan_uad.features.base import FeatureNet
from gan_uad.generation import comparison, feature_sets
from gan_uad.generation import fid as job
from gan_uad.generation.feature_sets import ImageSet, collect
from gan_uad.training import train

NUM = 30
QUICK = ("--features", "quick")


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        load = job.load_features

        def quick(name: str, **how: Any) -> FeatureNet:
            return Thumbnails() if name == "quick" else load(name, **how)

        for module in (job, train):
            patch.setattr(module, "load_features", quick)
        yield


def features(images: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Features `[N, dim]`."""
    return Thumbnails()(torch.from_numpy(images).permute(0, 3, 1, 2)).double().numpy()


def frechet(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Heusel et al. 2017, eq. 6, as it stands there."""
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


@pytest.fixture(scope="module")
def table1(cli: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny generator against its training images. Nobody writes into it."""
    out = tmp_path_factory.mktemp("fid") / "fid"
    result = cli("fid", trained.generator, "--real", trained.patches, *QUICK, "--num", NUM, "--untrained", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == (out / "fid.md").read_text()
    return out


def cells(out: Path) -> dict[str, dict[str, Any]]:
    return {cell["method"]: cell for cell in json.loads((out / "fid.json").read_text())}


@pytest.mark.numerical
def test_the_metrics_are_those_of_the_images(table1: Path, trained: Any) -> None:
    patches = load_patches(DataConfig(path=str(trained.patches)), 32)
    train, val = (features(np.array(patches.select(split, 0).images)) for split in ("train", "val"))
    generated = features(to_uint8(gan_uad.load(trained.generator).generate(range(NUM))))
    found = cells(table1)
    assert set(found) == {"real, half against half", "real, held out", "tiny_wgan_gp", "tiny_wgan_gp, untrained"}
    for method, images in (("tiny_wgan_gp", generated), ("real, held out", val)):
        assert found[method]["value"] == pytest.approx(frechet(train, images), rel=1e-4)
        assert (found[method]["n"], found[method]["n_real"]) == (len(images), len(train))
    cell = found["tiny_wgan_gp"]
    nearest, held = (np.linalg.norm(x[:, None] - train[None], axis=2).min(1) for x in (generated, val))
    assert cell["memorisation"] == pytest.approx((nearest[:, None] < held[None]).mean(), abs=1e-6)
    assert cell["pairs"][0][2] == pytest.approx(nearest.min(), rel=1e-4)
    assert (cell["kimg"], found["tiny_wgan_gp, untrained"]["kimg"]) == (0.32, 0)
    assert found["real, half against half"]["value"] < cell["value"] < found["tiny_wgan_gp, untrained"]["value"]


def test_the_tables_name_network_weights_and_limits(table1: Path) -> None:
    cell = cells(table1)["tiny_wgan_gp"]
    assert (cell["figure"], cell["features"]) == ("FD-Thumbnails", "thumbnails")
    text = (table1 / "fid.md").read_text()
    for words in ("FD-Thumbnails", "32 px", cell["weights"], "below 2048", "KID"):
        assert words in text
    assert "FID" not in text.replace("gan-uad fid", "")
    assert len((table1 / "fid.csv").read_text().splitlines()) == 5
    assert "tabular" in (table1 / "fid.tex").read_text()
    with Image.open(cell["pairs_picture"]) as image:
        assert image.size == (64 * len(cell["pairs"]), 2 * 64)


def test_the_embedded_features(cli: Any, trained: Any, tmp_path: Path) -> None:
    """The default needs neither file nor network, and is not called FID."""
    result = cli(
        "fid", trained.generator, "--real", trained.patches, "--split", "val", "--num", 6, "--no-baselines", "--out", tmp_path / "out"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (cell,) = cells(tmp_path / "out").values()
    assert (cell["figure"], cell["features"]) == ("FD-EffNetLite0", "efficientnet_lite0")
    assert "sha256:" in cell["weights"]
    assert "FID" not in result.stdout


def test_finished_cells_are_read_back(
    cli: Any, table1: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another `--num` the images are computed again, the features of the real images are not."""
    out = tmp_path / "fid"
    shutil.copytree(table1, out)
    asked: list[str] = []
    collect_all = job.collect
    monkeypatch.setattr(job, "collect", lambda images, *rest: asked.append(images.name) or collect_all(images, *rest))
    computed: list[str] = []
    compute = feature_sets.features_of
    monkeypatch.setattr(
        feature_sets, "features_of", lambda n, *rest: computed.extend(["x"] * (rest[-1] < n)) or compute(n, *rest)
    )
    command = ("fid", trained.generator, "--real", trained.patches, *QUICK, "--untrained", "--out", out)
    assert cli(*command, "--num", NUM).exit_code == 0
    assert not {"tiny_wgan_gp", "tiny_wgan_gp, untrained"} & set(asked)
    assert not computed
    assert cells(out) == cells(table1)
    assert cli(*command, "--num", 8).exit_code == 0
    assert {"tiny_wgan_gp", "tiny_wgan_gp, untrained"} <= set(asked)
    assert len(computed) == 2, "not those of the real images"


def test_an_interrupted_call_is_resumed(
    cli: Any, table1: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after 8 of 30 images, with half a row on disk."""
    from gan_uad.model import Model

    monkeypatch.setattr("gan_uad.training.fid.CHUNK", 8)
    generate, seen, stop = Model.generate, [], [True]

    def once(self: Any, seeds: list[int], *rest: Any, **how: Any) -> Any:
        if seeds[0] == 8 and stop:
            raise KeyboardInterrupt
        seen.append(seeds[0])
        return generate(self, seeds, *rest, **how)

    monkeypatch.setattr(Model, "generate", once)
    command = ("fid", trained.generator, "--real", trained.patches, *QUICK, "--num", NUM, "--out", tmp_path / "fid")
    assert cli(*command).exit_code == 130
    (partial,) = (tmp_path / "fid").glob("*.part")
    with open(partial, "ab") as file:
        file.write(b"half")
    seen.clear()
    stop.clear()
    assert cli(*command).exit_code == 0
    assert seen[:3] == [8, 16, 24]
    assert not list((tmp_path / "fid").glob("features-*")), "features of generated images are not kept"
    assert cells(tmp_path / "fid")["tiny_wgan_gp"]["value"] == cells(table1)["tiny_wgan_gp"]["value"]


def test_two_jobs_want_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One computes them, the other waits; no row is missing or repeated."""
    monkeypatch.setattr("gan_uad.training.fid.CHUNK", 8)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    asked: list[int] = []

    def get(rows: list[int]) -> Any:
        asked.extend(rows)
        time.sleep(0.02)
        return pixels[rows]

    images = ImageSet("noise", 40, "noise", get)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(collect, images, Thumbnails(), torch.device("cpu"), tmp_path) for _ in range(2)]
        for each in jobs:
            assert np.allclose(each.result(), features(pixels))
    assert asked == list(range(40))


def test_rows_of_one_name_get_distinct_names(cli: Any, table1: Path, trained: Any, tmp_path: Path) -> None:
    """Also when their cells were computed under the same name before."""
    others = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        others.append(shutil.copy(trained.generator / "model.safetensors", tmp_path / name))
    command = ("--real", trained.patches, *QUICK, "--num", 6, "--no-baselines", "--out", tmp_path / "out")
    for sources in (others[:1], others):
        assert cli("fid", *sources, *command).exit_code == 0
    assert set(cells(tmp_path / "out")) == {f"tiny_wgan_gp ({source})" for source in others}
    result = cli("fid", trained.generator, *command, "--split", "val")
    assert result.exit_code == 0
    (cell,) = cells(tmp_path / "out").values()
    assert (cell["reals"], cell["data"]["path"], cell["n"]) == ("normal, val", str(trained.patches), 6)
    assert "memorisation" not in cell, "nothing is held out from the val split"
    assert "normal, val" in result.stdout


def test_labels_of_a_compared_set(cli: Any, trained: Any, tmp_path: Path) -> None:
    """Unlabelled images are all used, and that is said; a set without the label of the real images is refused."""
    options = (*QUICK, "--resolution", 16, "--no-baselines", "--real", trained.patches, "--split", "all")
    anomalous = copied(trained, tmp_path / "bare" / "patches", step=1)
    result = cli("fid", anomalous, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (cell,) = cells(tmp_path / "out").values()
    assert cell["n"] == len(list(anomalous.iterdir()))
    assert "no labels" in result.stdout
    (tmp_path / "bare" / "patches").rename(tmp_path / "bare" / "anomalous")
    (tmp_path / "bare" / "normal").mkdir()
    shutil.move(next((tmp_path / "bare" / "anomalous").glob("*.png")), tmp_path / "bare" / "normal")
    result = cli("fid", tmp_path / "bare", *options, "--out", tmp_path / "none")
    fails(result, str(tmp_path / "bare"), "1 normal images", "--label")
    result = cli("fid", tmp_path / "bare", *options, "--label", "anomalous", "--out", tmp_path / "two")
    assert result.exit_code == 0, result.output
    assert next(iter(cells(tmp_path / "two").values()))["n"] == cell["n"] - 1


def test_a_shipped_model_keeps_the_name_that_the_user_gave(trained: Any, tmp_path: Path) -> None:
    name = "pcam_stylegan2_64_small"
    real, device = str(trained.patches), torch.device("cpu")
    rows = comparison.candidates((name,), real, (), None, True, 1.0, device)
    assert [row.name for row in rows] == [name, f"{name}, untrained"]
    file = trained_models()[name]
    assert comparison.candidates((str(file),), real, (), None, False, 1.0, device)[0].name == "pcam_stylegan2_small"


def test_two_sets_of_images(cli: Any, trained: Any, tmp_path: Path) -> None:
    """A set against itself has distance 0, and consists of copies."""
    options = (*QUICK, "--resolution", 16, "--label", "normal", "--out", tmp_path / "out", "-o", "data.resize=box")
    copy = shutil.copytree(trained.patches, tmp_path / "copy")
    result = cli("fid", copy, "--real", trained.patches, *options, "--split", "all", "--no-baselines")
    assert result.exit_code == 0, result.output
    (cell,) = cells(tmp_path / "out").values()
    assert (cell["n"], cell["value"]) == (cell["n_real"], pytest.approx(0, abs=1e-6)), "normal images on both sides"
    total = cell["n"] + len([row for row in index(trained.patches) if row["label"] == "1"])
    assert f"{total - cell['n']} of {total} images" in result.stdout
    assert "16 px (box)" in result.stdout
    result = cli(
        "fid", copy, "--real", copy, *options[:4], "--label", "all", "--split", "all", "--out", tmp_path / "same"
    )
    assert result.exit_code == 0, result.output
    cell = cells(tmp_path / "same")["copy"]
    assert cell["value"] == pytest.approx(0, abs=1e-6)
    assert (cell["precision"], cell["recall"]) == (1, 1)


def test_a_copy_of_the_training_images(cli: Any, table1: Path, trained: Any, tmp_path: Path) -> None:
    """Known by their pixels, below other names: compared with the training images alone, as at their own place."""
    for row in index(trained.patches):
        folder = tmp_path / "copy" / row["class"]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.patches / row["image"], folder / f"x{Path(row['image']).name}")
    command = ("fid", trained.generator, "--real", tmp_path / "copy", *QUICK, "--num", NUM, "--out", tmp_path / "out")
    result = cli(*command)
    assert result.exit_code == 0, result.output
    known, found = (cells(out)["tiny_wgan_gp"] for out in (table1, tmp_path / "out"))
    assert found["n_real"] == known["n_real"]
    assert found["value"] == pytest.approx(known["value"], rel=1e-6)
    assert any("was trained on" in note and str(len(index(trained.patches))) in note for note in found["notes"])


@pytest.mark.parametrize("task", ["wgan_gp", "stylegan2"])
def test_validation_in_training_agrees_with_the_command(cli: Any, tiny: Any, tmp_path: Path, task: str) -> None:
    """The metric in the log is that of `gan-uad fid`. The best model is kept; the run folder then stands for it."""
    config = tiny.config("wgan_gp")
    if task == "stylegan2":
        raw = yaml.safe_load(config.read_text()) | {"model": task, "task": task, "optim": {}}
        raw["network"] = {"z_dim": 8, "w_dim": 8, "mapping_layers": 1, "channel_base": 64, "channel_max": 8}
        config = tmp_path / "stylegan2.yaml"
        config.write_text(yaml.safe_dump(raw))
    settings = {"eval_kimg": 0.016, "eval_images": 10, "eval_features": "quick"}
    result = tiny.train(config, tmp_path / "runs", **settings)
    assert result.exit_code == 0, result.output
    (run,) = (tmp_path / "runs").glob(f"*-{task}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["nimg"] for row in rows] == [16, 32, 48]
    least = min(rows, key=lambda row: row["fd_thumbnails"])
    for model, row in ((run / "model.safetensors", rows[-1]), (run, least)):  # a run is its best model
        out = tmp_path / model.name
        result = cli("fid", model, "--real", tiny.patches, *QUICK, "--num", 10, "--no-baselines", "--out", out)
        assert result.exit_code == 0, result.output
        (cell,) = cells(out).values()
        assert (cell["kimg"], cell["n"], cell["n_real"], cell["value"]) == (
            row["kimg"],
            10,
            12,
            pytest.approx(row["fd_thumbnails"], rel=1e-5),
        )
        assert cell["kimg"] == row["kimg"]


def test_bad_input(cli: Any, trained: Any, tmp_path: Path) -> None:
    real = ("--real", trained.patches, "--out", tmp_path / "out")
    fails(cli("fid", tmp_path / "nothing", *real), "nothing")
    fails(cli("fid", trained.patches, *real, *QUICK), "--resolution")
    fails(cli("fid", trained.generator, *real, "--resolution", 64), "32 px", "--resolution 64")
    fails(cli("fid", trained.generator, *real, "--features", "vgg99"), "vgg99")
    fails(cli("fid", trained.generator, *real, "-o", "training.batch=3"), "-o training.batch", "data.*")
    fails(cli("fid", trained.generator, *real, "--features", ","), "--features", "gan-uad models")
    fails(cli("fid", trained.generator, *real, *QUICK, "--truncation", 0.7), "truncation 0.7", "StyleGAN")
    fails(cli("fid", trained.generator, *real, *QUICK, "-o", "data.split_seed=1"), "-o data.split_seed")
    fails(cli("fid", trained.generator, "--real", tmp_path / "none", "--out", tmp_path / "out"), "none")
    fails(
        cli("fid", trained.generator, *real, *QUICK, "--label", "anomalous", "--split", "train"),
        "--split",
        "--label",
    )


def test_a_generator_that_gives_nan(cli: Any, trained: Any, tmp_path: Path) -> None:
    from safetensors import safe_open

    file = trained.generator / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("gan.G.") and tensors[name].is_floating_point())
    save_file(tensors | {name: torch.full_like(tensors[name], 3e38)}, tmp_path / "broken.safetensors", metadata)
    result = cli(
        "fid", tmp_path / "broken.safetensors", "--real", trained.patches, *QUICK, "--num", 4, "--out", tmp_path / "out"
    )
    fails(result, "tiny_wgan_gp", "seed 0", code=1)
