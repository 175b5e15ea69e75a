"""The style-based families through the command line: growing and resuming in a fade, augmentation, warnings, and bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gan_uad.config import load_config, presets
from gan_uad.model import load_model

SIZES = {"z_dim": 8, "channel_base": 128, "channel_max": 16}
STYLE = SIZES | {"w_dim": 8, "mapping_layers": 2}
# 4, 8 and 16 px, a step or two each; a fade has three.
GROWTH = {"start_resolution": 4, "level_kimg": 0.016, "fade_kimg": 0.024, "batch_per_level": {4: 8, 8: 8}}
FAMILIES: dict[str, dict[str, Any]] = {
    "pgan": {"network": SIZES, "optim": GROWTH},
    "stylegan": {"network": STYLE, "optim": GROWTH},
    "stylegan2": {"network": STYLE, "optim": {"augment": "bgc", "ada_kimg": 0.1, "ada_target": -1.0}},
}
LENGTH = {"pgan": 0.08, "stylegan": 0.08, "stylegan2": 0.048}


@pytest.fixture(scope="module")
def configs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration for each family: 16 px, batches of 4."""
    folder = tmp_path_factory.mktemp("configs")
    training = {"batch": 4, "threads": 1, "device": "cpu", "tick_kimg": 0.02}
    training |= {"snapshot_kimg": 0.08, "checkpoint_kimg": 0.02}
    for family, settings in FAMILIES.items():
        training["total_kimg"] = LENGTH[family]
        raw = {"model": family, "task": family, "resolution": 16, "data": {"path": str(tiny.patches)}, **settings}
        (folder / f"{family}.yaml").write_text(yaml.safe_dump({**raw, "training": training}))
    return folder


def only_run(out: Path) -> Path:
    (run,) = out.iterdir()
    return run


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tiny: Any, configs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each family that was not broken off. Nobody writes into them."""
    runs = {}
    for family in FAMILIES:
        out = tmp_path_factory.mktemp(family)
        assert tiny.train(configs / f"{family}.yaml", out).exit_code == 0
        runs[family] = only_run(out)
    return runs


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tiny: Any, configs: Path, whole: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """Broken off at 32 images: for the growing families in the middle of the fade to 8 px."""
    assert tiny.train(configs / f"{family}.yaml", tmp_path / "broken", total_kimg=0.032).exit_code == 0
    broken = only_run(tmp_path / "broken")
    if family != "stylegan2":
        last = rows(broken)[-1]
        assert last["resolution"] > 4
        assert 0 < last["alpha"] < 1
    result = tiny.train(broken, tmp_path, "--resume", total_kimg=LENGTH[family])
    assert result.exit_code == 0, result.output
    states = [torch.load(run / "state.pt", weights_only=True) for run in (whole[family], broken)]
    assert states[0]["nimg"] == states[1]["nimg"] >= 1000 * LENGTH[family]
    assert equal(*(state["task"] for state in states))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def test_growing_is_logged_and_kept_in_the_model(tiny: Any, configs: Path, tmp_path: Path) -> None:
    result = tiny.train(configs / "stylegan.yaml", tmp_path, total_kimg=0.056)
    assert result.exit_code == 0, result.output
    run = only_run(tmp_path)
    assert [row["nimg"] for row in rows(run)][:2] == [24, 40]  # batches of 8 at 4 and 8 px
    model = load_model(run)
    assert model.networks["gan"].G.stage == (3, 1.0)
    images = model.generate([0, 1])
    assert images.shape == (2, 3, 16, 16)
    assert torch.equal(images[..., ::2, ::2], images[..., 1::2, 1::2])  # of 8 px, enlarged


def test_a_tick_that_spans_levels_logs_the_last(tiny: Any, configs: Path, tmp_path: Path) -> None:
    """Steps at 4 px, at 8 px while it fades in (alpha 1/3, 2/3), and after."""
    assert tiny.train(configs / "pgan.yaml", tmp_path, tick_kimg=1, checkpoint_kimg=1, total_kimg=0.04).exit_code == 0
    (row,) = rows(only_run(tmp_path))
    assert row["resolution"] == 8
    assert row["alpha"] == pytest.approx(2 / 3)


def test_adaptive_augmentation_is_logged(whole: dict[str, Path]) -> None:
    p = [row["ada_p"] for row in rows(whole["stylegan2"])]
    assert p == sorted(p)
    assert p[-1] == pytest.approx(0.48)  # 48 images of 100


def test_trouble_is_reported_and_logged(
    tiny: Any, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gan_uad.training.watch.WARMUP_TICKS", 2)
    monkeypatch.setattr("gan_uad.training.adversarial.diversity", lambda fake, real: torch.tensor(0.1))
    result = tiny.train(configs / "stylegan2.yaml", tmp_path, tick_kimg=0.004, total_kimg=0.04)
    assert result.exit_code == 0
    assert result.stderr.count("diversity 0.10") == 1
    found = [row["nimg"] for row in rows(only_run(tmp_path)) if "warnings" in row]
    assert found == [20]


@pytest.mark.parametrize(
    ("family", "words", "message"),
    [
        ("pgan", ["-o", "resolution=48"], "resolution .*48"),
        ("stylegan", ["-o", "resolution=48"], "resolution .*48"),
        ("stylegan2", ["-o", "resolution=48"], "resolution .*48"),
        ("stylegan2", ["-o", "training.batch=6"], "training.batch"),
        (
            "stylegan2",
            ["-o", "training.batch=8", "-o", "training.micro_batch=2"],
            r"8 images \(in passes of 2\) .*micro_batch.*network.mbstd_group",
        ),
        (
            "pgan",
            ["-o", "optim.batch_per_level={8: 7}"],
            "7 images .*optim.batch_per_level",
        ),
        ("pgan", ["-o", "optim.batch_per_level={8: 16}"], "16.*optim.batch_per_level"),
        ("stylegan2", ["-o", "training.batch=16"], "12 .*16"),
        ("stylegan2", ["-o", "training.precision=fp16"], "fp16"),
        ("stylegan2", ["-o", "optim.augment=flip"], "'flip'"),
        ("stylegan", ["-o", "optim.start_resolution=6"], r"start_resolution .*\[4, 8, 16\]"),
    ],
)
def test_bad_settings_are_one_line(
    tiny: Any, configs: Path, tmp_path: Path, family: str, words: list[str], message: str
) -> None:
    result = tiny.train(configs / f"{family}.yaml", tmp_path / "runs", *words)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr.splitlines()[-1]), result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_of_another_channel_base(tiny: Any, configs: Path, tmp_path: Path) -> None:
    config = configs / "stylegan2.yaml"
    for base in (128, 64):
        assert (
            tiny.train(config, tmp_path / str(base), "-o", f"network.channel_base={base}", total_kimg=0.004).exit_code
            == 0
        )
    narrow, wide = only_run(tmp_path / "64"), only_run(tmp_path / "128")
    (narrow / "state.pt").write_bytes((wide / "state.pt").read_bytes())
    result = tiny.train(narrow, tmp_path, "--resume", total_kimg=0.008)
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert "channel_base" in line
    result = tiny.train(narrow, tmp_path, "--resume", "-o", "network.channel_base=128")
    assert result.exit_code == 2
    assert "network=" in result.stderr.splitlines()[-1]


def test_out_of_memory_advises_only_passes_of_complete_groups(
    tiny: Any, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch 8 and minibatch-stddev groups of 4: passes of 4, and nothing smaller."""

    def failing(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("gan_uad.training.stylegan2.StyleGAN2Task.step", failing)
    result = tiny.train(configs / "stylegan2.yaml", tmp_path, batch=8)
    assert "--resume -o training.micro_batch=4 (" in result.stderr.splitlines()[-1]
    result = tiny.train(only_run(tmp_path), tmp_path, "--resume", micro_batch=4)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert "batch 8 in passes of 4 images" in line
    assert "micro_batch=" not in line
    assert "smaller network" in line


def test_out_of_memory_names_the_level_s_batch(
    tiny: Any, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 px have batches of 8, the run 4: passes must divide both."""

    def failing(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("gan_uad.training.progressive.ProgressiveTask.step", failing)
    line = tiny.train(configs / "stylegan.yaml", tmp_path).stderr.splitlines()[-1]
    assert "stylegan at 16 px, batch 8 (" in line
    assert "--resume -o training.micro_batch=4 (" in line


@pytest.mark.parametrize("name", [name for name in presets() if name.startswith(("pgan", "stylegan"))])
def test_every_style_preset_can_be_built(name: str) -> None:
    """Sizes, options and batches fit together (the widths on no device)."""
    from gan_uad import registry
    from gan_uad.training.train import build_task

    config = load_config(name)
    with torch.device("meta"):
        net = registry.build("network", config.model, {"resolution": config.resolution, **config.network})
        assert net.G.resolution == config.resolution
    narrow = config.model_copy(update={"network": {**config.network, "channel_base": 64, "channel_max": 8}})
    task = build_task(narrow, torch.device("cpu"))
    task.check_batches(config.training.batch)
    assert config.training.batch in task.batch_sizes(config.training.batch)
