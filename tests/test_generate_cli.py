"""`gan-uad generate`, `models` and `data check` from the outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_an_image_depends_on_its_seed_alone(cli: Any, trained: Any, tmp_path: Path) -> None:
    for out, seeds in (("a", "0-39"), ("b", "39,7"), ("c", "7")):
        result = cli("generate", trained.generator, "--seeds", seeds, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == [f"seed{seed:06d}.png" for seed in range(40)]
    first = pixels(tmp_path / "a" / "seed000007.png")
    assert first.shape == (32, 32, 3)
    for other in ("b", "c"):
        assert np.array_equal(first, pixels(tmp_path / other / "seed000007.png"))
    assert not np.array_equal(first, pixels(tmp_path / "a" / "seed000008.png"))


def test_the_generator_inside_an_encoder_run_is_the_same(cli: Any, trained: Any, tmp_path: Path) -> None:
    for out, run in (("a", trained.generator), ("b", trained.encoder / "model.safetensors")):
        assert cli("generate", run, "--seeds", "3", "--out", tmp_path / out).exit_code == 0
    assert np.array_equal(pixels(tmp_path / "a" / "seed000003.png"), pixels(tmp_path / "b" / "seed000003.png"))


def test_arrays_and_grid(cli: Any, trained: Any, tmp_path: Path) -> None:
    result = cli("generate", trained.generator, "--seeds", "5,1-3", "--npz", "--grid", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["grid.png", "images.npz"]
    with np.load(tmp_path / "images.npz") as file:
        assert file["seeds"].tolist() == [5, 1, 2, 3]
        assert file["images"].dtype == np.uint8
        assert file["images"].shape == (4, 32, 32, 3)
        assert cli("generate", trained.generator, "--seeds", "5", "--out", tmp_path / "png").exit_code == 0
        assert np.array_equal(file["images"][0], pixels(tmp_path / "png" / "seed000005.png"))
    assert min(pixels(tmp_path / "grid.png").shape[:2]) >= 64


@pytest.mark.parametrize("seeds", ["", "a", "3-1", "1,,2", "-4", "1.5", "²", "1-2-3", "9" * 30, "0-99999999999"])
def test_bad_seeds(cli: Any, trained: Any, tmp_path: Path, seeds: str) -> None:
    result = cli("generate", trained.generator, f"--seeds={seeds}", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: --seeds ")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_run(cli: Any, tmp_path: Path) -> None:
    for path, message in ((tmp_path / "nothing", "no such run folder"), (tmp_path, "holds no model.safetensors")):
        result = cli("generate", path, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert message in result.stderr


def test_models(cli: Any) -> None:
    result = cli("models", "--json")
    assert result.exit_code == 0
    listed = json.loads(result.stdout)
    assert {"wgan_gp_64", "izi_f_64", "anogan_64", "dcgan_64", "izi_64", "wgan_gp_64_small"} <= set(listed["presets"])
    assert {"wgan_gp", "dcgan", "residual_encoder"} <= set(listed["networks"])
    assert {"wgan_gp", "dcgan", "izi", "ziz", "izi_f"} <= set(listed["tasks"])
    assert {"anogan", "izi", "ziz", "izi_f"} <= set(listed["inverters"])
    assert {"gan_inversion", "mean_color"} <= set(listed["scorers"])
    for entries in listed.values():
        assert all(len(summary) > 10 for summary in entries.values())
    text = cli("models").stdout
    assert all(name in text for entries in listed.values() for name in entries)


def save(folder: Path, name: str, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)


def test_data_check_says_by_its_exit_code_whether_a_set_is_sound(cli: Any, trained: Any, tmp_path: Path) -> None:
    sound = cli("data", "check", trained.patches, "--resolution", 32, "--json")
    assert sound.exit_code == 0
    assert json.loads(sound.stdout)["ok"] is True
    for seed in range(6):
        save(tmp_path / "set" / "normal", f"{seed}.png", seed)
    lacking = cli("data", "check", tmp_path / "set", "--resolution", 32)
    assert lacking.exit_code == 1
    assert "no anomalous image in test" in lacking.stdout
    for arguments, message in (
        ((tmp_path / "nothing",), "no such file or folder"),
        ((tmp_path / "set", "-o", "data.corp=center"), "did you mean 'crop'"),
        ((tmp_path / "set", "-o", "training.batch=3"), "only data.* settings"),
    ):
        result = cli("data", "check", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.output
