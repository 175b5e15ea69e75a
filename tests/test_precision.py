"""Which precision and device a command takes, by what the machine has; and what it says where there is no such thing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_gpu import fake_gpu
from PIL import Image
from run_tools import errors

from gan_uad import device
from gan_uad.config import load_config
from gan_uad.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def machine(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), bf16: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "card")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": bf16}, raising=False)


@pytest.mark.parametrize(
    ("where", "capability", "bf16", "autocast", "wide", "expected"),
    [
        (CUDA, (9, 0), False, True, False, "bf16"),
        (CUDA, (8, 0), False, False, True, "tf32"),
        (CUDA, (7, 5), True, True, True, "fp32"),
        (CPU, (9, 0), False, True, True, "fp32"),
        (CPU, (9, 0), True, True, True, "bf16"),
        (CPU, (9, 0), True, True, False, "fp32"),
        (CPU, (9, 0), True, False, True, "fp32"),
    ],
)
def test_auto_takes_the_fastest_that_is_tested(
    monkeypatch: pytest.MonkeyPatch, where: torch.device, capability: Any, bf16: bool, autocast: bool, wide: bool, expected: str
) -> None:  # fmt: skip
    machine(monkeypatch, capability, bf16)
    found = device.choose_precision("auto", where, autocast, wide)
    assert found.name == expected
    assert found.reason
    device.set_precision(found.name, where)  # can be set where it was chosen


@pytest.mark.parametrize(
    ("asked", "where", "capability"),
    [("tf32", CPU, (9, 0)), ("fp16", CPU, (9, 0)), ("tf32", CUDA, (7, 5)), ("bf16", CUDA, (7, 5))],
)
def test_what_the_device_lacks_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: str, where: torch.device, capability: tuple[int, int]
) -> None:
    machine(monkeypatch, capability)
    for refused in (device.choose_precision, lambda *words: device.set_precision(*words[:2])):
        with pytest.raises(UserError, match=asked):
            refused(asked, where, True, True)


def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    for asked in ("fp32", "tf32", "bf16", "fp16"):
        assert device.choose_precision(asked, CUDA, False, False).name == asked
    assert device.choose_precision("bf16", CPU, False, False).name == "bf16"


@pytest.mark.parametrize("name", ["cuda:1", "cuda:12"])
def test_a_gpu_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=name):
        device.prepare(name, 1)
    with fake_gpu(), pytest.raises(UserError, match=name):
        device.prepare(name, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with fake_gpu(), pytest.raises(UserError, match=name):
        device.prepare(name, 1)


def test_a_gpu_by_its_number() -> None:
    with fake_gpu():
        assert device.prepare("cuda:0", 1) == device.prepare("cuda", 1) == device.prepare("auto", 1) == CUDA


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:", "cuda:x", "cuda:-1", "CUDA", ""])
def test_names_of_no_device(name: str, tiny: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    for result in (
        cli("generate", tiny.generator, "--device", name, "--out", tmp_path / "out"),
        tiny.train(tiny.config("dcgan"), tmp_path, device=f'"{name}"'),
    ):
        assert result.exit_code == 2
        assert len(errors(result)) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [["--device", "cuda:1"], ["--device", "cuda"], ["--precision", "tf32"], ["--precision", "tf32", "--device", "cpu"]],
)
@pytest.mark.parametrize("command", ["score", "generate", "project"])
def test_commands_refuse_what_is_not_there(
    command: str, words: list[str], tiny: Any, cli: Callable[..., Any], tmp_path: Path
) -> None:
    """On a machine without a GPU: one line, and nothing written."""
    given = [tiny.patches / "normal" / "0.png"] if command == "project" else []
    result = cli(command, tiny.generator, *given, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert len(errors(result)) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_keeps_its_precision(tiny: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    """`auto` is a question of the first machine. A later one that lacks it may continue in fp32, and in nothing else."""

    def resumed(kimg: float, *words: str) -> int:
        return int(cli("train", run, "--resume", "-o", f"training.total_kimg={kimg}", *words).exit_code)

    def precision() -> str:
        return str(load_config(run / "config.yaml").training.precision)

    on_cpu, run = ["-o", "training.device=cpu"], tmp_path / "00000-dcgan"
    with fake_gpu():
        assert tiny.train(tiny.config("dcgan"), tmp_path, total_kimg=0.02, device="cuda").exit_code == 0
    assert precision() == "tf32"
    assert resumed(0.024, *on_cpu) == 2
    with fake_gpu():
        assert resumed(0.024) == 0
        assert resumed(0.028, "-o", "training.precision=bf16") == 2
    assert resumed(0.028, *on_cpu, "-o", "training.precision=fp32") == 0
    assert precision() == "fp32"
    # A run of version 0.2, where nothing meant fp32.
    stored = yaml.safe_load((run / "config.yaml").read_text())
    del stored["training"]["precision"]
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    with fake_gpu():
        assert resumed(0.032, "-o", "training.device=cuda") == 0
    assert precision() == "fp32"


def test_scores_of_another_precision_are_others(tiny: Any, cli: Callable[..., Any], fast: None, tmp_path: Path) -> None:
    """They go into a folder of their own."""
    command = [
        "score",
        tiny.generator,
        "--split",
        "all",
        "--max-images",
        2,
        "-o",
        "scoring.options.steps=1",
        "--out",
        tmp_path,
    ]
    with fake_gpu():
        assert cli(*command).exit_code == 0
        assert cli(*command, "--precision", "tf32").exit_code == 2
        assert cli(*command).exit_code == 0


def test_other_results_say_their_precision(tiny: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    """Projections of another precision are refused a folder, and images are made again."""
    project = [
        "project",
        tiny.generator,
        tiny.patches / "normal" / "0.png",
        "-o",
        "steps=1",
        "--out",
        tmp_path / "projected",
    ]
    generate = ["generate", tiny.generator, "--seeds", "0", "--out", tmp_path / "generated"]
    with fake_gpu():
        assert cli(*project).exit_code == 0
        assert cli(*project, "--precision", "tf32").exit_code == 2
        for words in ([], ["--precision", "tf32"]):
            assert cli(*generate, *words).exit_code == 0
            note = json.loads(Image.open(tmp_path / "generated" / "seed000000.png").info["gan_uad"])
            assert note.get("precision", "fp32") == ("tf32" if words else "fp32")
    assert json.loads((tmp_path / "projected" / "projections.json").read_text())["precision"] == "fp32"
