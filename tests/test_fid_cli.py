"""`gan-uad fid` from the outside: the figures are those of the images, cells and features are found again, bad input is answered."""

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

import gan_uad
from gan_uad.config import DataConfig, trained_models
from gan_uad.data.patches import load_patches, to_uint8
from gan_uad.features.base import FeatureNet
from gan_uad.generation import comparison as fid_cells
from gan_uad.generation import fid as fid_table
from gan_uad.generation.feature_sets import ImageSet, collect
from gan_uad.training import train

NUM = 30
QUICK = ("--features", "quick")


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        load = fid_table.load_features

        def quick(name: str, **how: Any) -> FeatureNet:
            return Thumbnails() if name == "quick" else load(name, **how)

        for job in (fid_table, train):
            patch.setattr(job, "load_features", quick)
        yield


def features(images: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Features `[N, dim]`."""
    return Thumbnails()(torch.from_numpy(images).permute(0, 3, 1, 2)).double().numpy()


def frechet(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Heusel et al. 2017, eq. 6, as it stands there."""
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


def fails(result: Any, *messages: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: "), result.stderr
    for message in messages:
        assert message in error, error


@pytest.fixture(scope="module")
def judged(cli: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny generator against what it was trained on. Nobody writes into it."""
    out = tmp_path_factory.mktemp("fid") / "fid"
    result = cli("fid", trained.generator, "--real", trained.patches, *QUICK, "--num", NUM, "--untrained", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == (out / "fid.md").read_text()
    return out


def cells(out: Path) -> dict[str, dict[str, Any]]:
    return {cell["method"]: cell for cell in json.loads((out / "fid.json").read_text())}


def test_the_figures_are_those_of_the_images(judged: Path, trained: Any) -> None:
    patches = load_patches(DataConfig(path=str(trained.patches)), 32)
    train, val = (features(np.array(patches.select(split, 0).images)) for split in ("train", "val"))
    made = features(to_uint8(gan_uad.load(trained.generator).generate(range(NUM))))
    found = cells(judged)
    assert set(found) == {"real, half against half", "real, held out", "tiny_wgan_gp", "tiny_wgan_gp, untrained"}
    for method, images in (("tiny_wgan_gp", made), ("real, held out", val)):
        assert found[method]["value"] == pytest.approx(frechet(train, images), rel=1e-4)
        assert (found[method]["n"], found[method]["n_real"]) == (len(images), len(train))
    cell = found["tiny_wgan_gp"]
    nearest, held = (np.linalg.norm(x[:, None] - train[None], axis=2).min(1) for x in (made, val))
    assert cell["memorisation"] == pytest.approx((nearest[:, None] < held[None]).mean(), abs=1e-6)
    assert cell["pairs"][0][2] == pytest.approx(nearest.min(), rel=1e-4)
    assert (cell["kimg"], found["tiny_wgan_gp, untrained"]["kimg"]) == (0.32, 0)
    assert found["real, half against half"]["value"] < cell["value"] < found["tiny_wgan_gp, untrained"]["value"]


def test_what_is_written_names_everything(judged: Path) -> None:
    cell = cells(judged)["tiny_wgan_gp"]
    assert (cell["figure"], cell["features"]) == ("FD-Thumbnails", "thumbnails")
    text = (judged / "fid.md").read_text()
    for words in ("FD-Thumbnails", "32 px", cell["weights"], "below 2048", "subsets of", "KID"):
        assert words in text
    assert "FID" not in text.replace("gan-uad fid", "")
    assert len((judged / "fid.csv").read_text().splitlines()) == 5
    assert "tabular" in (judged / "fid.tex").read_text()
    with Image.open(cell["pairs_picture"]) as image:
        assert image.size == (64 * len(cell["pairs"]), 2 * 64)


def test_the_embedded_features(cli: Any, trained: Any, tmp_path: Path) -> None:
    """The default needs no file and no network, and says what it is; it is not called FID."""
    result = cli(
        "fid", trained.generator, "--real", trained.patches, "--split", "val", "--num", 6, "--no-baselines", "--out", tmp_path / "out"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (cell,) = cells(tmp_path / "out").values()
    assert (cell["figure"], cell["features"]) == ("FD-EffNetLite0", "efficientnet_lite0")
    assert "sha256:" in cell["weights"]
    assert "FID" not in result.stdout


def test_run_again_nothing_is_made_anew(
    cli: Any, judged: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished table is read; another `--num` makes its own images, and the features of the reals are found again."""
    out = tmp_path / "fid"
    shutil.copytree(judged, out)
    made: list[str] = []
    whole = fid_table.collect
    monkeypatch.setattr(fid_table, "collect", lambda images, *rest: made.append(images.name) or whole(images, *rest))
    command = ("fid", trained.generator, "--real", trained.patches, *QUICK, "--untrained", "--out", out)
    assert cli(*command, "--num", NUM).exit_code == 0
    assert not {"tiny_wgan_gp", "tiny_wgan_gp, untrained"} & set(made)
    assert cells(out) == cells(judged)
    assert cli(*command, "--num", 8).exit_code == 0
    assert {"tiny_wgan_gp", "tiny_wgan_gp, untrained"} <= set(made)


def test_interrupted_it_goes_on(
    cli: Any, judged: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after 8 of 30 images, with half a row on disk."""
    from gan_uad.model import Model
    from gan_uad.training import fid as judging

    monkeypatch.setattr(judging, "CHUNK", 8)
    whole, seen, stop = Model.generate, [], [True]

    def once(self: Any, seeds: list[int], *rest: Any, **how: Any) -> Any:
        if seeds[0] == 8 and stop:
            raise KeyboardInterrupt
        seen.append(seeds[0])
        return whole(self, seeds, *rest, **how)

    monkeypatch.setattr(Model, "generate", once)
    command = ("fid", trained.generator, "--real", trained.patches, *QUICK, "--num", NUM, "--out", tmp_path / "fid")
    assert cli(*command).exit_code == 130
    (part,) = (tmp_path / "fid").glob("*.part")
    with open(part, "ab") as file:
        file.write(b"half")
    seen.clear()
    stop.clear()
    assert cli(*command).exit_code == 0
    assert seen[:3] == [8, 16, 24]
    assert not list((tmp_path / "fid").glob("*.part")), "only figures are kept"
    assert cells(tmp_path / "fid")["tiny_wgan_gp"]["value"] == cells(judged)["tiny_wgan_gp"]["value"]


def test_two_jobs_want_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One makes them, the other waits; no row is lost or there twice."""
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
        for job in jobs:
            assert np.allclose(job.result().values, features(pixels))
    assert asked == list(range(40))


def test_rows_of_one_name_are_told_apart(cli: Any, judged: Path, trained: Any, tmp_path: Path) -> None:
    """Also when their cells were made under the same name before; reals of two kinds have rows of their own."""
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
    assert "memorisation" not in cell, "nothing is held out from what was not compared with"
    assert "Reals: normal, val" in result.stdout


def test_a_shipped_model_is_called_as_it_was_asked_for(trained: Any, tmp_path: Path) -> None:
    name = "pcam_stylegan2_64_small"
    real, on = str(trained.patches), torch.device("cpu")
    rows = fid_cells.candidates((name,), real, (), None, True, 1.0, on)
    assert [row.name for row in rows] == [name, f"{name}, untrained"]
    file = trained_models()[name]
    assert fid_cells.candidates((str(file),), real, (), None, False, 1.0, on)[0].name == "pcam_stylegan2_small"


def test_two_sets_of_images(cli: Any, trained: Any, tmp_path: Path) -> None:
    """A set against itself is at no distance, and all of it is copied."""
    options = (*QUICK, "--resolution", 16, "--label", "normal", "--out", tmp_path / "out", "-o", "data.resize=box")
    copy = shutil.copytree(trained.patches, tmp_path / "copy")
    result = cli("fid", copy, "--real", trained.patches, *options, "--split", "all", "--no-baselines")
    assert result.exit_code == 0, result.output
    (cell,) = cells(tmp_path / "out").values()
    assert cell["n"] > cell["n_real"], "anomalous images are left out of the reals alone"
    assert "are left out of the reals" in result.stdout
    assert "16 px (box)" in result.stdout
    result = cli(
        "fid", copy, "--real", copy, *options[:4], "--label", "all", "--split", "all", "--out", tmp_path / "same"
    )
    assert result.exit_code == 0, result.output
    cell = cells(tmp_path / "same")["copy"]
    assert cell["value"] == pytest.approx(0, abs=1e-6)
    assert (cell["precision"], cell["recall"]) == (1, 1)
    assert "anomalous ones are among them" in result.stdout


@pytest.mark.parametrize("task", ["wgan_gp", "stylegan2"])
def test_a_generator_is_judged_while_it_is_trained(cli: Any, tiny: Any, tmp_path: Path, task: str) -> None:
    """The figure of the log is that of `gan-uad fid`, and the model of the least is kept, for which the run stands from then on."""
    config = tiny.config("wgan_gp")
    if task == "stylegan2":
        raw = yaml.safe_load(config.read_text()) | {"model": task, "task": task, "optim": {}}
        raw["network"] = {"z_dim": 8, "w_dim": 8, "mapping_layers": 1, "channel_base": 64, "channel_max": 8}
        config = tmp_path / "stylegan2.yaml"
        config.write_text(yaml.safe_dump(raw))
    told = {"eval_kimg": 0.016, "eval_images": 10, "eval_features": "quick"}
    result = tiny.train(config, tmp_path / "runs", **told)
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
    fails(cli("fid", tmp_path / "nothing", *real), "no such run", "nothing")
    fails(cli("fid", trained.patches, *real, *QUICK), "--resolution")
    fails(cli("fid", trained.generator, *real, "--resolution", 64), "makes images of 32 px", "64")
    fails(cli("fid", trained.generator, *real, "--features", "vgg99"), "vgg99")
    fails(cli("fid", trained.generator, *real, "-o", "training.batch=3"), "only data.*")
    fails(cli("fid", trained.generator, *real, "--features", ","), "names no network")
    fails(cli("fid", trained.generator, *real, *QUICK, "--truncation", 0.7), "truncation 0.7 needs StyleGAN")
    fails(
        cli("fid", trained.generator, *real, *QUICK, "-o", "data.split_seed=1"),
        "was trained on these patches",
    )
    fails(cli("fid", trained.generator, "--real", tmp_path / "none", "--out", tmp_path / "out"), "none")
    fails(
        cli("fid", trained.generator, *real, *QUICK, "--label", "anomalous", "--split", "train"),
        "0 anomalous images",
        "train split",
    )


def test_a_generator_that_makes_nan(cli: Any, trained: Any, tmp_path: Path) -> None:
    from safetensors import safe_open

    file = trained.generator / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("gan.G.") and tensors[name].is_floating_point())
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, tmp_path / "broken.safetensors", metadata)
    result = cli(
        "fid", tmp_path / "broken.safetensors", "--real", trained.patches, *QUICK, "--num", 4, "--out", tmp_path / "out"
    )
    fails(result, "tiny_wgan_gp", "not finite", "seed 0", code=1)
