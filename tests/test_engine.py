"""The training loop: what it writes and when, that an interrupted run ends as an uninterrupted one, and what it keeps when it fails."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gan_uad
from gan_uad.config import resolve
from gan_uad.errors import Interrupted, JobFailed
from gan_uad.run import Run
from gan_uad.training import engine

DRIVER = Path(__file__).parent / "kill_driver.py"


def same(a: Any, b: Any, where: str = "state") -> None:
    """Assert that two nested states are equal bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert a.shape == b.shape, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}.{k}")
    else:
        assert a == b, where


def state(run: Path, name: str = "state.pt") -> Any:
    return torch.load(run / name, weights_only=True)


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def figures(run: Path) -> list[dict[str, Any]]:
    """The log without what the clock and the machine say."""
    return [{k: v for k, v in row.items() if k not in {"time", "seconds_per_kimg", "memory_gb"}} for row in log(run)]


def errors(result: Any) -> list[str]:
    """The error of a failed command: exactly one line, and no traceback."""
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("Error:")] == lines[-1:], result.stderr
    return lines


# ---------------------------------------------------------------- the loop alone


class Toy(engine.Task):
    """One weight that counts images; `figure(nimg)` is what it logs."""

    def __init__(self, figure: Callable[[int], float] = float, weight: Callable[[int], float] = float) -> None:
        self.net = nn.Linear(1, 1)
        self.net.spec = {"name": "toy", "options": {}}  # type: ignore[assignment]
        self.figure, self.weight, self.steps = figure, weight, []  # type: ignore[var-annotated]
        self.after_step: Callable[[int], None] = lambda nimg: None

    def step(self, real: Tensor, nimg: int) -> dict[str, Tensor]:
        self.steps.append(nimg)
        with torch.no_grad():
            self.net.weight.fill_(self.weight(nimg + len(real)))
        self.after_step(nimg + len(real))
        sometimes = {"rare": torch.tensor(float(nimg))} if len(self.steps) % 2 == 0 else {}
        return {"figure": torch.tensor(self.figure(nimg)), **sometimes}

    def sample(self) -> Tensor:
        return torch.zeros(5, 3, 8, 8)

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])


class Blank:
    """A stream of batches of 10 grey images."""

    def at(self, nimg: int, batch: int | None = None) -> Tensor:
        return torch.zeros(batch or 10, 3, 8, 8)


def toy_run(out: Path, **training: Any) -> Run:
    settings = {"batch": 10, "total_kimg": 0.2, "tick_kimg": 0.05, "snapshot_kimg": 0.16, "checkpoint_kimg": 0.1}
    raw = {"model": "toy", "task": "toy", "training": settings | training}
    return Run.create(out, resolve(raw, default_name="toy", where="test"))


def train_toy(task: Toy, run: Run, resume: bool = False) -> None:
    engine.train(task, Blank(), run, torch.device("cpu"), {"about": "toy"}, resume)


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
def test_the_last_batch_is_whole_and_no_batch_too_many(tmp_path: Path, kimg: float, images: int) -> None:
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
def test_a_figure_that_is_not_finite_ends_it_before_anything_is_overwritten(tmp_path: Path, tick: float) -> None:
    run = toy_run(tmp_path, tick_kimg=tick)
    with pytest.raises(
        JobFailed, match=r"diverged: figure is nan.*checkpoint at 0.1 kimg is kept.*lower learning rate"
    ):
        train_toy(Toy(figure=lambda nimg: float("nan") if nimg > 120 else 1.0), run)
    assert state(run.folder)["nimg"] == 100
    assert all(row["figure"] == 1.0 for row in log(run.folder))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, bad: float) -> None:
    """The figures of a step are those before its update, so they do not see what the last update did."""
    run = toy_run(tmp_path)
    with pytest.raises(
        JobFailed, match=r"state.net.weight is not finite at 0.2 kimg \(the checkpoint at 0.1 kimg is kept"
    ):
        train_toy(Toy(weight=lambda nimg: bad if nimg >= 200 else 1.0), run)
    assert state(run.folder)["nimg"] == 100
    assert state(run.folder)["task"]["net"]["weight"].isfinite().all()
    assert json.loads(model_metadata(run.folder))["nimg"] == 100


def model_metadata(folder: Path) -> str:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return str(file.metadata()["gan_uad"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    run, task = toy_run(tmp_path), Toy()
    handlers = [signal.getsignal(k) for k in (signal.SIGTERM, signal.SIGINT)]
    task.after_step = lambda nimg: os.kill(os.getpid(), number) if nimg == 130 else None
    with pytest.raises(Interrupted, match=rf"stopped at 0.13 kimg, all saved.*train {run.folder} --resume") as caught:
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
        )  # type: ignore[func-returns-value]

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


# ---------------------------------------------------------------- a run folder


@pytest.fixture(scope="module")
def whole(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs by task."""
    runs = {}
    for task in ("dcgan", "wgan_gp", "izi_f"):
        out = tmp_path_factory.mktemp(f"whole_{task}")
        result = tiny.train(tiny.config(task), out, *generator_of(tiny, task))
        assert result.exit_code == 0, result.output
        runs[task] = out / f"00000-{task}"
    return runs


def generator_of(tiny: Any, task: str) -> list[object]:
    return ["--generator", tiny.generator] if task == "izi_f" else []


@pytest.mark.parametrize("task", ["dcgan", "wgan_gp", "izi_f"])
def test_a_run_folder_holds_what_it_should(whole: dict[str, Path], tiny: Any, task: str) -> None:
    run = whole[task]
    assert {file.name for file in run.iterdir() if not file.name.startswith("events.out.tfevents")} == {
        "config.yaml", "environment.json", "log.jsonl", "reals.png", "fakes",
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
    assert all(math.isfinite(value) for row in figures(run) for value in row.values())


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
    assert ours.networks["encoder"].z_dim == 4, "taken over from the generator"


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("task", ["dcgan", "wgan_gp", "izi_f"])
@pytest.mark.parametrize("stops", [(1, 8), (7,)])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    whole: dict[str, Path], tiny: Any, tmp_path: Path, task: str, stops: tuple[int, ...]
) -> None:
    """Stopped after `stops` steps (which n_critic 3 does not divide)."""
    run: Path | None = None
    for steps in (*stops, 12):
        words = generator_of(tiny, task) if run is None else ["--resume"]
        result = tiny.train(run or tiny.config(task), tmp_path, *words, total_kimg=0.004 * steps)
        assert result.exit_code == 0, result.output
        run = tmp_path / f"00000-{task}"
        assert state(run)["nimg"] == 4 * steps
        torch.rand(3)  # the state of the process must not matter
    assert run is not None
    same(state(run), state(whole[task]))
    mine, theirs = gan_uad.load(str(run)), gan_uad.load(str(whole[task]))
    for role, net in theirs.networks.items():
        same(dict(mine.networks[role].state_dict()), dict(net.state_dict()))


def test_an_encoder_resumes_against_the_generator_it_began_with(
    whole: dict[str, Path], tiny: Any, tmp_path: Path
) -> None:
    generator = Path(shutil.copytree(tiny.generator, tmp_path / "generator"))
    assert tiny.train(tiny.config("izi_f"), tmp_path, "--generator", generator, total_kimg=0.02).exit_code == 0
    before = (generator / "model.safetensors").read_bytes()
    assert tiny.train(generator, tmp_path, "--resume", total_kimg=0.032).exit_code == 0
    assert (generator / "model.safetensors").read_bytes() != before
    assert tiny.train(tmp_path / "00000-izi_f", tmp_path, "--resume", total_kimg=0.048).exit_code == 0
    same(state(tmp_path / "00000-izi_f"), state(whole["izi_f"]))


def test_resume_of_a_finished_run_changes_nothing(whole: dict[str, Path], tiny: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole["dcgan"], tmp_path / "00000-dcgan"))
    keep = ("state.pt", "state.prev.pt", "model.safetensors", "config.yaml", "reals.png")
    before = [(run / name).read_bytes() for name in keep]
    result = tiny.train(run, tmp_path, "--resume")
    assert result.exit_code == 0
    assert "done" in result.stderr
    assert [(run / name).read_bytes() for name in keep] == before
    assert figures(run) == figures(whole["dcgan"])


def test_resume_by_name_takes_the_latest_run_and_says_so(tiny: Any, tmp_path: Path) -> None:
    source = tmp_path / "mine.yaml"
    source.write_text("name: other_name\n" + tiny.config("dcgan").read_text())
    first = tiny.train(source, tmp_path / "runs", "--resume", total_kimg=0.008)
    assert first.exit_code == 0
    assert "nothing to resume: no run of other_name" in first.stderr
    assert tiny.train(source, tmp_path / "runs", total_kimg=0.008).exit_code == 0
    (tmp_path / "runs" / "00002-other_name").mkdir()  # killed before it was described
    (tmp_path / "runs" / "00007-something_else").mkdir()
    again = tiny.train(source, tmp_path / "runs", "--resume", total_kimg=0.016)
    assert again.exit_code == 0
    assert "going on at 0.008 kimg" in again.stderr
    assert [state(tmp_path / "runs" / f"0000{k}-other_name")["nimg"] for k in (0, 1)] == [8, 16]
    assert tiny.train(source, tmp_path / "runs", total_kimg=0.004).exit_code == 0
    assert (tmp_path / "runs" / "00008-other_name").is_dir()


# ---------------------------------------------------------------- killed


@pytest.fixture(scope="module")
def long_config(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WGAN-GP for 60 steps with a checkpoint after each: most of the time is spent in writing."""
    import yaml

    raw = yaml.safe_load(tiny.config("wgan_gp").read_text())
    raw["training"] |= {
        "total_kimg": 0.12,
        "batch": 2,
        "checkpoint_kimg": 0.002,
        "tick_kimg": 0.006,
        "snapshot_kimg": 1.0,
    }
    path = tmp_path_factory.mktemp("long") / "long.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_killed_at_ten_moments_and_more(long_config: Path, tiny: Any, tmp_path: Path) -> None:
    """kill -9 through `python -m gan_uad`, then nine in a row from a process that has imported torch once.

    Each kill is at a random moment: after the start, after a checkpoint, or while a temporary file of a checkpoint stands.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gan_uad", "train", str(long_config), "--out", str(tmp_path / "killed")]
    run = tmp_path / "killed" / "00000-long"
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as child:
        while not (run / "state.pt").exists() and child.poll() is None:
            time.sleep(0.01)
        time.sleep(random.Random(1).uniform(0, 0.05))
        child.kill()
    assert child.returncode == -signal.SIGKILL
    driven = subprocess.run(
        [sys.executable, str(DRIVER), str(run), "9"], env=environment, capture_output=True, text=True, timeout=100
    )
    assert driven.returncode == 0, driven.stderr
    kills = json.loads(driven.stdout)
    assert len(kills) >= 9
    assert any(kill["left"] for kill in kills), "no kill fell into the writing of a checkpoint"
    assert state(run)["nimg"] < 120, "the run was over before the last kill: make it longer"
    left = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(left + '{"nimg": 17')  # half a line, as a kill may leave

    resumed = tiny.train(run, tmp_path, "--resume")
    assert resumed.exit_code == 0, resumed.output
    plain = tiny.train(long_config, tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    other = tmp_path / "plain" / "00000-long"
    same(state(run), state(other))
    same(state(run, "state.prev.pt"), state(other, "state.prev.pt"))
    assert (run / "reals.png").read_bytes() == (other / "reals.png").read_bytes()
    assert figures(run) == figures(other)
    mine, theirs = gan_uad.load(str(run)), gan_uad.load(str(other))
    assert mine.nimg == 120
    assert torch.equal(mine.generate([0, 1]), theirs.generate([0, 1]))
    assert not list(run.glob(".*")), "temporary files of killed processes stay behind"


def test_killed_before_the_first_checkpoint(whole: dict[str, Path], tiny: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole["dcgan"], tmp_path / "00000-dcgan"))
    for name in ("state.pt", "state.prev.pt", "model.safetensors", "reals.png"):
        (run / name).unlink()
    result = tiny.train(run, tmp_path, "--resume")
    assert result.exit_code == 0, result.output
    assert "nothing was saved yet: starting at the beginning" in result.stderr
    same(state(run), state(whole["dcgan"]))
    assert figures(run) == figures(whole["dcgan"])
    assert (run / "reals.png").is_file()


def test_killed_between_the_two_files_of_a_checkpoint(tmp_path: Path) -> None:
    """The state must not say that all is done while the model is an old one: nothing would ever make the new one."""
    run, task = toy_run(tmp_path), Toy()
    networks = task.networks

    def dying() -> dict[str, nn.Module]:
        if task.steps[-1] == 190:
            raise RuntimeError("killed")
        return networks()

    task.networks = dying  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        train_toy(task, run)
    assert state(run.folder)["nimg"] == 100
    train_toy(Toy(), run, resume=True)
    assert state(run.folder)["nimg"] == json.loads(model_metadata(run.folder))["nimg"] == 200


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_through_the_command_line(tiny: Any, tmp_path: Path, number: int, name: str) -> None:
    run = tmp_path / "00000-dcgan"

    def send() -> None:
        while not (run / "log.jsonl").exists():  # from here on the loop catches it
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    result = tiny.train(tiny.config("dcgan"), tmp_path, total_kimg=1000)
    assert result.exit_code == 130
    assert errors(result)[-1].startswith("Error: stopped at ")
    assert f"gan-uad train {run} --resume" in errors(result)[-1]
    reached = state(run)["nimg"]
    assert gan_uad.load(str(run)).nimg == reached
    assert tiny.train(run, tmp_path, "--resume", total_kimg=(reached + 4) / 1000).exit_code == 0
    assert state(run)["nimg"] == reached + 4


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("tick", [0.004, 1])
def test_a_training_that_diverges(tiny: Any, tmp_path: Path, tick: float) -> None:
    """The first update makes the weights huge, the figures after it are no numbers: also when no tick lies between."""
    result = tiny.train(tiny.config("wgan_gp"), tmp_path, "-o", "optim.lr=1e10", checkpoint_kimg=0.004, tick_kimg=tick)
    assert result.exit_code == 1
    assert "training diverged: " in errors(result)[-1]
    assert "checkpoint at 0.004 kimg is kept" in errors(result)[-1]
    assert "lower learning rate" in errors(result)[-1]
    run = tmp_path / "00000-wgan_gp"
    assert state(run)["nimg"] == 4
    assert all(p.isfinite().all() for p in gan_uad.load(str(run)).networks["gan"].parameters())


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("free", [0, 60_000, 150_000])
def test_a_full_disk_keeps_the_last_checkpoint(whole: dict[str, Path], tiny: Any, tmp_path: Path, free: int) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk:
        assert tiny.train(tiny.config("wgan_gp"), disk, total_kimg=0.02).exit_code == 0
        run = disk / "00000-wgan_gp"
        before = state(run)
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * (shutil.disk_usage(disk).free - free))
        result = tiny.train(run, disk, "--resume", total_kimg=0.048)
        assert result.exit_code == 1, result.output
        assert "no space left to write" in errors(result)[-1]
        assert "what was there before is kept" in errors(result)[-1]
        same(state(run), before)
        assert torch.isfinite(gan_uad.load(str(run)).generate([0])).all()
        assert not list(run.glob(".*"))
        ballast.unlink()
        assert tiny.train(run, disk, "--resume", total_kimg=0.048).exit_code == 0
        same(state(run), state(whole["wgan_gp"]))


@pytest.mark.parametrize("limit", [20_000, 200])
def test_a_file_that_may_not_grow_is_a_full_disk(tiny: Any, tmp_path: Path, limit: int) -> None:
    """As a full disk, where nobody may mount one: a limit on the size of a file."""
    assert tiny.train(tiny.config("dcgan"), tmp_path, total_kimg=0.008).exit_code == 0
    run = tmp_path / "00000-dcgan"
    before, soft = state(run), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft[1]))
    try:
        result = tiny.train(run, tmp_path, "--resume", total_kimg=0.02)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert result.exit_code == 1, result.output
    assert "no space left to write" in errors(result)[-1]
    same(state(run), before)
    assert gan_uad.load(str(run)).nimg == 8


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole: dict[str, Path], tiny: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole["wgan_gp"], tmp_path / "00000-wgan_gp"))
    content = (run / "state.pt").read_bytes()
    for damaged in (content[:-1000], content[: len(content) // 2], b""):
        (run / "state.pt").write_bytes(damaged)
        result = tiny.train(run, tmp_path, "--resume")
        assert result.exit_code == 0, result.output
        assert "note: state.pt is damaged" in result.stderr
        assert "going on from state.prev.pt, the checkpoint before it" in result.stderr
        assert "going on at 0.04 kimg" in result.stderr
        same(state(run), state(whole["wgan_gp"]))
        shutil.copy(whole["wgan_gp"] / "state.prev.pt", run / "state.prev.pt")
    (run / "state.pt").unlink()
    result = tiny.train(run, tmp_path, "--resume")
    assert "note: state.pt is missing; going on from state.prev.pt" in result.stderr
    same(state(run), state(whole["wgan_gp"]))


class Evil:
    """What a pickle may do when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_checkpoints_that_are_refused(whole: dict[str, Path], tiny: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole["dcgan"], tmp_path / "00000-dcgan"))
    good, witness = state(run), tmp_path / "witness"
    (run / "state.prev.pt").unlink()

    def refused(*reasons: str) -> None:
        result = tiny.train(run, tmp_path, "--resume")
        assert result.exit_code == 2, result.output
        for reason in reasons:
            assert reason in errors(result)[-1]
        assert not witness.exists(), "code in the checkpoint ran"

    torch.save({"nimg": 4, "task": Evil(witness)}, run / "state.pt")
    refused("state.pt holds pickled code", "code in it could run", "state.prev.pt is missing", str(run))
    (run / "state.pt").write_bytes(b"this is no checkpoint at all, but longer than a few bytes")
    refused("no checkpoint to resume from", "state.pt")
    torch.save([1, 2], run / "state.pt")
    refused("state.pt is damaged (not a training state)")
    torch.save(state(whole["izi_f"]), run / "state.pt")
    refused("is of another task: it holds no 'model'")
    good["task"]["model"]["G.layers.0.weight"] = torch.zeros(4, 9, 4, 4)
    torch.save(good, run / "state.pt")
    refused("of another architecture: 'G.layers.0.weight' is [4, 9, 4, 4] in the file, [4, 8, 4, 4] in the network")
    del good["task"]["model"]["G.layers.0.weight"]
    torch.save(good, run / "state.pt")
    refused("'G.layers.0.weight' is only in the network")
