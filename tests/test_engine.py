"""The training loop and the run folder: what is written and when."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from run_tools import Toy, log, metrics_of, model_metadata, same, state, toy_run, train_toy

import gan_uad
from gan_uad.errors import Interrupted, JobFailed
from gan_uad.run import Run


def test_the_schedule_is_in_images(tmp_path: Path) -> None:
    run, task = toy_run(tmp_path), Toy()
    train_toy(task, run)
    assert task.steps == list(range(0, 200, 10))
    assert [row["nimg"] for row in log(run.folder)] == [50, 100, 150, 200]
    assert [row["kimg"] for row in log(run.folder)] == [0.05, 0.1, 0.15, 0.2]
    # 0, 1/16 and 1/4 of the interval, the interval, the end.
    pictures = sorted(file.name for file in (run.folder / "fakes").iterdir())
    assert pictures == ["000000.010.png", "000000.040.png", "000000.160.png", "000000.200.png", "000000.png"]
    assert state(run.folder)["nimg"] == 200
    assert state(run.folder, "state.prev.pt")["nimg"] == 100, "the two last checkpoints are kept"
    assert not [file for file in run.folder.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize(("kimg", "images"), [(0.2, 200), (0.195, 200), (0.201, 210), (0.07, 70), (0.001, 10)])
def test_the_last_batch_is_complete_and_there_is_no_further_one(tmp_path: Path, kimg: float, images: int) -> None:
    run = toy_run(tmp_path, total_kimg=kimg)
    train_toy(Toy(), run)
    assert state(run.folder)["nimg"] == images


def test_a_row_of_the_log_is_the_mean_since_the_last(tmp_path: Path) -> None:
    run = toy_run(tmp_path, checkpoint_kimg=0.07)
    train_toy(Toy(figure=lambda nimg: nimg**2), run)
    rows = log(run.folder)
    # A checkpoint has a row of its own, so that what is logged does not depend on where a run was interrupted.
    assert [row["nimg"] for row in rows] == [50, 70, 100, 140, 150, 200]
    for row, first in zip(rows, [0, 50, 70, 100, 140, 150], strict=True):
        seen = range(first, row["nimg"], 10)
        assert row["figure"] == pytest.approx(sum(k**2 for k in seen) / len(seen))
        rare = [k for k in seen if k % 20 == 10]  # logged by every second step only: its mean is over those
        assert row.get("rare") == (pytest.approx(sum(rare) / len(rare)) if rare else None)
        assert row["seconds_per_kimg"] >= 0
        assert row["memory_gb"] > 0
        assert abs(row["time"] - time.time()) < 100


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_shows_the_log_and_no_killed_future(tmp_path: Path) -> None:
    run, task = toy_run(tmp_path), Toy()

    def die(nimg: int) -> None:
        if nimg == 160:
            raise RuntimeError

    task.after_step = die
    with pytest.raises(RuntimeError):
        train_toy(task, run)
    assert [row["nimg"] for row in log(run.folder)] == [50, 100, 150]
    time.sleep(1.1)  # event files are ordered by the second in their name
    train_toy(Toy(figure=lambda nimg: -nimg), run, resume=True)
    rows = log(run.folder)
    assert [row["nimg"] for row in rows] == [50, 100, 150, 200]
    shown = events(run.folder)
    assert shown["figure"] == [(row["nimg"], pytest.approx(row["figure"])) for row in rows]
    assert rows[-1]["figure"] < 0 < rows[1]["figure"]
    assert "seconds_per_kimg" in shown


@pytest.mark.parametrize("tick", [0.01, 0.05, 10.0])
def test_a_metric_that_is_not_finite_ends_training_before_a_file_is_overwritten(tmp_path: Path, tick: float) -> None:
    run = toy_run(tmp_path, tick_kimg=tick)
    with pytest.raises(JobFailed, match=r"figure is nan.* 0.1 kimg .*learning rate"):
        train_toy(Toy(figure=lambda nimg: float("nan") if nimg > 120 else 1.0), run)
    assert state(run.folder)["nimg"] == 100
    assert all(row["figure"] == 1.0 for row in log(run.folder))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, bad: float) -> None:
    """The metrics of a step are those before its update, so they do not show what the last update did."""
    run = toy_run(tmp_path)
    with pytest.raises(JobFailed, match=r"state.net.weight .* 0.2 kimg .* 0.1 kimg"):
        train_toy(Toy(weight=lambda nimg: bad if nimg >= 200 else 1.0), run)
    assert state(run.folder)["nimg"] == 100
    assert state(run.folder)["task"]["net"]["weight"].isfinite().all()
    assert json.loads(model_metadata(run.folder))["nimg"] == 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_continue(tmp_path: Path, number: int) -> None:
    run, task = toy_run(tmp_path), Toy()
    handlers = [signal.getsignal(k) for k in (signal.SIGTERM, signal.SIGINT)]
    task.after_step = lambda nimg: os.kill(os.getpid(), number) if nimg == 130 else None
    with pytest.raises(Interrupted, match=rf"0.13 kimg.*train {run.folder} --resume") as caught:
        train_toy(task, run)
    assert caught.value.exit_code == 130
    assert state(run.folder)["nimg"] == 130
    assert json.loads(model_metadata(run.folder))["nimg"] == 130
    assert [row["nimg"] for row in log(run.folder)] == [50, 100, 130]
    assert [signal.getsignal(k) for k in (signal.SIGTERM, signal.SIGINT)] == handlers
    again = Toy()
    train_toy(again, run, resume=True)
    assert again.steps == list(range(130, 200, 10))


def test_a_second_sigterm_does_not_hurt_and_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    def twice(number: int) -> Callable[[int], None]:
        return lambda nimg: (
            [os.kill(os.getpid(), number) for _ in range(2) if nimg == 130 and not time.sleep(0.01)] and None
        )

    run, task = toy_run(tmp_path), Toy()
    task.after_step = twice(signal.SIGTERM)  # as `timeout` does: to the process, and to its group
    with pytest.raises(Interrupted):
        train_toy(task, run)
    assert state(run.folder)["nimg"] == 130
    run, task = toy_run(tmp_path), Toy()
    task.after_step = twice(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_toy(task, run)
    assert state(run.folder)["nimg"] == 100


def test_a_signal_at_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    run, task = toy_run(tmp_path), Toy()
    task.after_step = lambda nimg: os.kill(os.getpid(), signal.SIGTERM) if nimg == 200 else None
    train_toy(task, run)
    assert state(run.folder)["nimg"] == 200


@pytest.mark.parametrize("task", ["dcgan", "wgan_gp", "izi_f"])
def test_a_run_folder_holds_what_it_should(whole: dict[str, Path], tiny: Any, task: str) -> None:
    run = whole[task]
    assert {file.name for file in run.iterdir() if not file.name.startswith("events.out.tfevents")} == {
        "config.yaml", "environment.json", "log.jsonl", "reals.png", "images.npz", "fakes",
        "state.pt", "state.prev.pt", "model.safetensors",
    }  # fmt: skip
    assert len(list(run.glob("events.out.tfevents*"))) == 1
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 0
    assert torch.__version__.startswith(environment["packages"]["torch"])
    assert len(environment["git"] or "+" * 40) >= 40
    assert Run(run).config.data.path == str(tiny.patches), "the resolved configuration says everything"
    assert Image.open(run / "reals.png").size == (128, 96), "12 train normals, four a row"
    assert [row["nimg"] for row in log(run)] == [12, 20, 24, 36, 40, 48]
    assert all(math.isfinite(value) for row in metrics_of(run) for value in row.values())


@pytest.mark.parametrize("task", ["dcgan", "wgan_gp"])
def test_the_model_file_makes_the_images_of_the_averaged_generator(whole: dict[str, Path], task: str) -> None:
    from gan_uad import registry

    model = gan_uad.load(str(whole[task]))
    saved = state(whole[task])["task"]
    spec = model.networks["gan"].spec
    averaged, raw = (registry.build("network", spec["name"], spec["options"]).eval() for _ in range(2))
    averaged.G.load_state_dict(saved["ema"])
    raw.load_state_dict(saved["model"])
    z = torch.randn(3, 4)
    with torch.no_grad():
        made = model.networks["gan"].G(z)
        torch.testing.assert_close(made, averaged.G(z), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(made, raw.G(z), atol=1e-4), (
            "the average must differ here for this test to say anything"
        )
    same(dict(model.networks["gan"].D.state_dict()), dict(raw.D.state_dict()))
    assert (model.name, model.nimg, model.resolution) == (task, 48, 32)
    # Nothing else is needed: the file alone, elsewhere, makes the same images.
    single = gan_uad.load(str(shutil.copy(whole[task] / "model.safetensors", whole[task].parent / "alone.safetensors")))
    assert torch.equal(single.generate([1, 2]), model.generate([1, 2]))


def test_an_encoder_run_holds_its_generator_bit_for_bit(whole: dict[str, Path], tiny: Any) -> None:
    """Weights and batch-norm statistics of G and D are those before the training."""
    theirs, ours = gan_uad.load(str(tiny.generator)), gan_uad.load(str(whole["izi_f"]))
    same(dict(theirs.networks["gan"].state_dict()), dict(ours.networks["gan"].state_dict()))
    assert ours.networks["encoder"].z_dim == 4, "inherited from the generator"
