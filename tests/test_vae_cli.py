"""Autoencoders from the outside: train, go on, score and generate through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from run_tools import errors, metrics_of, same, state
from score_tools import fails, rows

import gan_uad
from gan_uad.config import load_config
from gan_uad.plotting.latents import scatter
from gan_uad.training.train import build_task

COMPONENTS = ["reconstruction", "kl", "elbo", "l1", "emd", "ssim", "effnet_lite0"]
PRESETS = [
    "fc_vae_64",
    "conv_vae_64",
    "attn_conv_vae_64",
    "unet_vae_64",
    "unet_vae_64_frozen",
    "vae_256",
    "cnn_vae_256",
    "skin_vae_128",
]


@pytest.fixture(scope="module")
def preset(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ConvVAE of a few channels, for 12 steps of 4 images."""
    raw = yaml.safe_load(tiny.config("dcgan").read_text())
    raw |= {"model": "conv_vae", "task": "vae", "network": {"latent_dim": 4, "channels": [4, 8]}}
    raw |= {"optim": {"lr": 1e-3, "beta_kimg": 0.024}, "scoring": {"scorer": "vae"}}
    raw["training"] |= {"eval_kimg": 0.016}
    path: Path = tmp_path_factory.mktemp("presets") / "tiny_vae.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def run(preset: Path, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run. Nobody writes into it."""
    out = tmp_path_factory.mktemp("vae")
    result = tiny.train(preset, out)
    assert result.exit_code == 0, result.output
    return Path(out / "00000-tiny_vae")


@pytest.fixture(scope="module")
def scores(run: Path, cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its test split, scored."""
    out: Path = tmp_path_factory.mktemp("scored") / "scores"
    result = cli("score", run, "--maps", "--threshold", "mean_std:2", "--out", out)
    assert result.exit_code == 0, result.output
    return out


# ---------------------------------------------------------------- training


def test_it_is_validated_and_its_best_model_kept(run: Path) -> None:
    validated = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["nimg"] for row in validated] == [16, 32, 48]
    for row in validated:
        assert row["val_elbo"] == pytest.approx(row["val_reconstruction"] + row["val_kl"])
    best = min(validated, key=lambda row: row["val_elbo"])
    model = gan_uad.load(str(run))
    assert model.nimg == best["nimg"], "a run folder means its best model"
    assert list(model.networks) == ["vae"]
    for row in metrics_of(run):  # beta is that of the last step, which began 4 images before
        assert row["beta"] == pytest.approx(min(1, (row["nimg"] - 4) / 24))
    assert (run / "fakes" / "000000.png").is_file()


def test_a_resumed_run_is_an_uninterrupted_one(run: Path, preset: Path, tiny: Any, tmp_path: Path) -> None:
    assert tiny.train(preset, tmp_path, total_kimg=0.02).exit_code == 0
    resumed = tmp_path / "00000-tiny_vae"
    result = tiny.train(resumed, tmp_path, "--resume", total_kimg=0.048)
    assert result.exit_code == 0, result.output
    assert "resuming at 0.02 kimg" in result.stderr
    # The earlier end was validated and logged once more, and nothing else.
    same(state(resumed)["task"], state(run)["task"])
    assert metrics_of(resumed)[-1] == metrics_of(run)[-1]
    mine, theirs = (gan_uad.load(str(folder / "model.safetensors")).networks["vae"] for folder in (resumed, run))
    same(mine.state_dict(), theirs.state_dict())


def test_it_stops_when_nothing_gets_better(preset: Path, tiny: Any, tmp_path: Path) -> None:
    words = ("-o", "optim.lr=1e-9", "-o", "optim.beta_kimg=0", "-o", "network.channels=[4]")
    result = tiny.train(preset, tmp_path, *words, total_kimg=4, eval_kimg=0.004, patience=2)
    assert result.exit_code == 0, result.output
    assert "stopped early" in result.stderr
    assert "best val_elbo" in result.stderr


def test_the_mixed_set_may_be_trained_on(preset: Path, tiny: Any, tmp_path: Path) -> None:
    result = tiny.train(preset, tmp_path, "-o", "data.label=all", total_kimg=0.008)
    assert result.exit_code == 0, result.output
    kept = yaml.safe_load((tmp_path / "00000-tiny_vae" / "config.yaml").read_text())
    assert kept["data"]["label"] == "all"
    normal = tiny.train(preset, tmp_path, total_kimg=0.004)
    for words, count in ((result.stderr, 14), (normal.stderr, 12)):
        assert f"{count} {'all' if count == 14 else 'normal'} train images" in words


def test_a_frozen_encoder_is_frozen(preset: Path, tiny: Any, tmp_path: Path) -> None:
    """Weights and statistics of batch norm, in a run from its beginning to its model file."""
    words = ["model=unet_vae", "network={latent_dim: 4, channels: [8, 4], frozen: true, blocks: [1, 1, 1, 1]}"]
    words += ["optim={lr: 0.01, init: none}", "training.eval_kimg=null"]
    options = [word for setting in words for word in ("-o", setting)]
    result = tiny.train(preset, tmp_path, *options, total_kimg=0.008)
    assert result.exit_code == 0, result.output
    torch.manual_seed(0)  # the run's
    before = build_task(load_config(str(preset), words), torch.device("cpu")).model.state_dict()
    after = gan_uad.load(str(tmp_path / "00000-tiny_vae")).networks["vae"].state_dict()
    trunk = {key for key in before if key.startswith("E.1.")}
    assert {key for key in before if torch.equal(before[key], after[key])} - {"E.0.mean", "E.0.std"} == trunk


# ---------------------------------------------------------------- scoring


def test_the_score_file_has_every_part(scores: Path, run: Path) -> None:
    found = rows(scores / "scores.csv")
    assert [name for name in found[0] if name in COMPONENTS] == COMPONENTS
    for row in found:
        total = float(row["reconstruction"]) + float(row["kl"])
        assert float(row["score"]) == float(row["elbo"]) == pytest.approx(total, rel=1e-6)
    normals = [float(row["score"]) for row in rows(scores / "scores_validation.csv") if row["label"] == "0"]
    threshold = np.mean(normals) + 2 * np.std(normals, ddof=1)
    assert float(found[0]["threshold"]) == pytest.approx(threshold, rel=1e-6)
    assert len(list((scores / "maps").glob("*.png"))) == len(found)
    assert (scores / "triplets.png").is_file()
    model = gan_uad.load(str(run))
    with Image.open(Path(model.config.data.path or "") / found[0]["image"]) as image:
        again = model.scorer().score(model.preprocess(np.asarray(image)))
    assert float(again.components["emd"][0]) == pytest.approx(float(found[0]["emd"]), rel=1e-5)


@pytest.mark.usefixtures("fast")
def test_another_part_may_be_the_score(scores: Path, run: Path, cli: Any, tmp_path: Path) -> None:
    option = ("-o", "scoring.options={score: emd, perceptual: none}")
    result = cli("score", run, *option, "--threshold", "mean_std:2", "--out", tmp_path / "emd")
    assert result.exit_code == 0, result.output
    before, after = rows(scores / "scores.csv"), rows(tmp_path / "emd" / "scores.csv")
    assert [row["score"] for row in after] == [row["emd"] for row in before]
    assert "effnet_lite0" not in after[0]
    fails(cli("score", run, *option, "--out", scores), str(scores), "--out")
    fails(
        cli("score", run, "-o", "scoring.options.score=emb", "--out", tmp_path / "x"), "option score: input should be"
    )
    fails(cli("score", run, "--inverter", "anogan", "--out", tmp_path / "x"), "uses no inverter")


# ---------------------------------------------------------------- generating


def test_it_generates_from_the_prior(run: Path, cli: Any, tmp_path: Path) -> None:
    result = cli("generate", run, "--seeds", "0-2", "--out", tmp_path / "made", "--grid")
    assert result.exit_code == 0, result.output
    net = gan_uad.load(str(run)).networks["vae"]
    for seed in range(3):
        z = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
        pixels = ((net.decode(z)[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()
        with Image.open(tmp_path / "made" / f"seed{seed:06d}.png") as image:
            assert np.abs(np.asarray(image) - pixels).max() <= 1
    assert (tmp_path / "made" / "grid.png").is_file()
    result = cli("generate", run, "--seeds", "3,5", "--frames-between", 2, "--interpolate", tmp_path / "way.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "way.png") as image:
        assert image.width >= 4 * 32


def test_where_images_lie_and_what_is_made_of_it(
    run: Path, cli: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoded, shown, and decoded again."""
    out, given = tmp_path / "latents", []

    def kept(points: Any, labels: Any, *others: Any) -> Any:
        given.append((points, labels))
        return scatter(points, labels, *others)

    monkeypatch.setattr("gan_uad.plotting.latents.scatter", kept)
    result = cli("latents", run, "--split", "all", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    with Image.open(out / "latent_space.png") as image:
        drawn = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 24)}
    assert len(drawn) > 20
    model = gan_uad.load(str(run))
    net = model.networks["vae"]
    with np.load(out / "latents.npz") as file:
        assert {Path(name).parent.name: label for name, label in zip(file["image"], file["label"], strict=True)} == {
            "normal": 0, "anomalous": 1
        }  # fmt: skip
        assert file["z"].shape == (24, 4)
        ((points, labels),) = given
        np.testing.assert_array_equal(labels, file["label"])
        centred = file["z"] - file["z"].mean(0, dtype=np.float64)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
        np.testing.assert_allclose(np.abs(points), np.abs(centred @ axes.T), rtol=1e-3, atol=1e-5)
        with Image.open(tiny.patches / str(file["image"][5])) as image, torch.no_grad():
            mu, logvar = net.encode(model.preprocess(np.asarray(image)))
        np.testing.assert_allclose(file["z"][5], mu[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(file["logvar"][5], logvar[0], rtol=1e-4, atol=1e-5)
    assert cli("generate", run, "--latents", out / "latents.npz", "--out", tmp_path / "made").exit_code == 0
    assert len(list((tmp_path / "made").glob("latent*.png"))) == 24
    np.savez(tmp_path / "wrong.npz", z=np.ones((2, 5), np.float32))
    fails(cli("generate", run, "--latents", tmp_path / "wrong.npz", "--out", tmp_path / "made"), "[N, 4]")
    fails(cli("generate", run, "--seeds", "0", "--truncation", 0.5, "--out", tmp_path / "made"), "StyleGAN")


def test_latents_that_cannot_be_shown(run: Path, tiny: Any, cli: Any, tmp_path: Path) -> None:
    fails(cli("latents", tiny.generator, "--out", tmp_path), str(tiny.generator))
    fails(cli("latents", run, "--max-images", 2, "--out", tmp_path), "at least 3 images")
    fails(cli("latents", run, "-o", "optim.lr=1", "--out", tmp_path), "optim.lr")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["network.latent_dim=4000"], "latent_dim 4000"),
        (["optim.lr=-1"], "lr > 0"),
        (["model=dcgan", "network={}"], "DCGAN"),
        (["optim.betta=1"], "'betta'"),
        (["optim.init=imagenet"], "optim.init"),
        (["network.channels=[4, 4, 4, 4, 4, 4]"], "64 px"),
    ],
)
def test_settings_that_cannot_be(preset: Path, tiny: Any, tmp_path: Path, settings: list[str], message: str) -> None:
    options = [word for setting in settings for word in ("-o", setting)]
    result = tiny.train(preset, tmp_path, *options)
    assert result.exit_code == 2
    assert message in errors(result)[-1]
    assert not list(tmp_path.iterdir())


def test_a_training_that_diverges(preset: Path, tiny: Any, tmp_path: Path) -> None:
    result = tiny.train(preset, tmp_path, "-o", "optim.lr=1e12", eval_kimg=0.004)
    assert result.exit_code == 1
    assert "learning rate" in errors(result)[-1]


def test_no_normal_image_for_validation(preset: Path, tiny: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.patches, tmp_path / "patches"))
    names = [*(f"normal/{k}.png,,0,train" for k in range(20)), *(f"anomalous/{k}.png,,1,val" for k in range(4))]
    (folder / "index.csv").write_text("image,group,label,split\n" + "\n".join(names))
    result = tiny.train(preset, tmp_path / "runs", "--data", folder)
    assert result.exit_code == 2
    assert "no normal image among the 4 validation images" in errors(result)[-1]


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_validated_and_scored_as_autoencoders(name: str) -> None:
    config = load_config(name)
    assert (config.task, config.scoring.scorer) == ("vae", "vae")
    assert str(config.resolution) in name
    training = config.training
    assert training.eval_kimg is not None
    assert training.patience is not None
    assert training.eval_kimg * training.patience < training.total_kimg
