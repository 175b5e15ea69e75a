"""An interrupted or killed run ends as an uninterrupted one, and a failed one keeps what it had."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from run_tools import Toy, errors, generator_of, metrics_of, model_metadata, same, state, toy_run, train_toy
from torch import nn

import gan_uad
from gan_uad.files import LOCK, one_writer

DRIVER = Path(__file__).parent / "kill_driver.py"


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
    assert metrics_of(run) == metrics_of(whole["dcgan"])


def test_a_run_that_another_process_trains(whole: dict[str, Path], tiny: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole["dcgan"], tmp_path / "00000-dcgan"))
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    with one_writer(run):
        for source in (run, tiny.config("dcgan")):
            result = tiny.train(source, tmp_path, "--resume", total_kimg=0.08)
            assert result.exit_code == 2, result.output
            assert str(run) in errors(result)[-1]
        assert {
            file.name: file.read_bytes() for file in run.iterdir() if file.name != LOCK and file.is_file()
        } == before
    assert tiny.train(run, tmp_path, "--resume", total_kimg=0.052).exit_code == 0
    assert not (run / LOCK).exists()


def test_resume_by_name_takes_the_latest_run_and_says_so(tiny: Any, tmp_path: Path) -> None:
    source = tmp_path / "mine.yaml"
    source.write_text("name: other_name\n" + tiny.config("dcgan").read_text())
    first = tiny.train(source, tmp_path / "runs", "--resume", total_kimg=0.008)
    assert first.exit_code == 0
    assert "no run of other_name" in first.stderr
    assert tiny.train(source, tmp_path / "runs", total_kimg=0.008).exit_code == 0
    (tmp_path / "runs" / "00002-other_name").mkdir()  # killed before it was described
    (tmp_path / "runs" / "00007-something_else").mkdir()
    again = tiny.train(source, tmp_path / "runs", "--resume", total_kimg=0.016)
    assert again.exit_code == 0
    assert "resuming at 0.008 kimg" in again.stderr
    assert [state(tmp_path / "runs" / f"0000{k}-other_name")["nimg"] for k in (0, 1)] == [8, 16]
    assert tiny.train(source, tmp_path / "runs", total_kimg=0.004).exit_code == 0
    assert (tmp_path / "runs" / "00008-other_name").is_dir()


def test_a_run_does_not_continue_on_changed_patches_unless_told(tiny: Any, tmp_path: Path, cli: Any) -> None:
    patches = Path(shutil.copytree(tiny.patches, tmp_path / "patches"))
    result = tiny.train(tiny.config("dcgan"), tmp_path, "--data", patches, total_kimg=0.008)
    assert result.exit_code == 0, result.output
    run = tmp_path / "00000-dcgan"
    for file in patches.glob("*/*.png"):
        os.utime(file)  # other times are no change
    assert tiny.train(run, tmp_path, "--resume", total_kimg=0.012).exit_code == 0
    shutil.copy(patches / "normal" / "0.png", patches / "normal" / "extra.png")
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused = tiny.train(run, tmp_path, "--resume", total_kimg=0.016)
    assert refused.exit_code == 2
    (line,) = [line for line in refused.stderr.splitlines() if "Error" in line]
    for word in (str(patches), str(run), "--changed-data"):
        assert word in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    told = tiny.train(run, tmp_path, "--resume", "--changed-data", total_kimg=0.016)
    assert told.exit_code == 0, told.output
    assert tiny.train(run, tmp_path, "--resume", total_kimg=0.020).exit_code == 0  # as it was told before
    (patches / "normal" / "extra.png").unlink()
    for number, extra in enumerate((False, True)):  # the warning stays, also with the first patches again
        if extra:
            shutil.copy(patches / "normal" / "0.png", patches / "normal" / "extra.png")
        words = (
            "--inverter",
            "anogan",
            "-o",
            "scoring.options.steps=1",
            "--max-images",
            4,
            "--out",
            tmp_path / f"s{number}",
        )
        result = cli("score", run, *words)
        assert result.exit_code == 0, result.output
        warnings = json.loads((tmp_path / f"s{number}" / "scores.json").read_text())["warnings"]
        assert any(str(patches) in warning for warning in warnings)
    assert tiny.train(tiny.config("dcgan"), tmp_path, "--changed-data").exit_code == 2


# ---------------------------------------------------------------- killed


@pytest.fixture(scope="module")
def long_config(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WGAN-GP for 40 steps with a checkpoint after each: most of the time is spent in writing."""
    import yaml

    raw = yaml.safe_load(tiny.config("wgan_gp").read_text())
    raw["training"] |= {
        "total_kimg": 0.08,
        "batch": 2,
        "checkpoint_kimg": 0.002,
        "tick_kimg": 0.006,
        "snapshot_kimg": 1.0,
    }
    path = tmp_path_factory.mktemp("long") / "long.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.timeout(300)  # it writes and reads back checkpoints all the time: as slow as the disk
def test_killed_at_ten_moments_and_more(long_config: Path, tiny: Any, tmp_path: Path) -> None:
    """kill -9, ten times in a row, of what a process that has imported torch once starts as forks (`kill_driver.py`).

    Each kill is at a random moment: after the start, after a checkpoint, or while a temporary file of a checkpoint stands.
    """
    out = tmp_path / "killed"
    run = out / "00000-long"
    driven = subprocess.run(
        [sys.executable, str(DRIVER), str(long_config), str(out), str(run), "10"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert driven.returncode == 0, driven.stderr
    kills = json.loads(driven.stdout)
    assert len(kills) >= 10
    assert {kill["kind"] for kill in kills} == {"first", "start", "checkpoint", "writing"}
    assert any(kill["left"] for kill in kills), "no kill fell into the writing of a checkpoint"
    assert 0 < state(run)["nimg"] < 80, "the run was over before the last kill: make it longer"
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
    assert metrics_of(run) == metrics_of(other)
    mine, theirs = gan_uad.load(str(run)), gan_uad.load(str(other))
    assert mine.nimg == 80
    assert torch.equal(mine.generate([0, 1]), theirs.generate([0, 1]))
    assert not list(run.glob(".*")), "temporary files of killed processes stay behind"


def test_killed_before_the_first_checkpoint(whole: dict[str, Path], tiny: Any, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole["dcgan"], tmp_path / "00000-dcgan"))
    for name in ("state.pt", "state.prev.pt", "model.safetensors", "reals.png"):
        (run / name).unlink()
    result = tiny.train(run, tmp_path, "--resume")
    assert result.exit_code == 0, result.output
    assert "starting from 0 kimg" in result.stderr
    same(state(run), state(whole["dcgan"]))
    assert metrics_of(run) == metrics_of(whole["dcgan"])
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
    assert result.stderr.splitlines()[-1].startswith("stopped at ")
    assert "Error" not in result.output
    assert "Traceback" not in result.output
    assert f"gan-uad train {run} --resume" in result.stderr.splitlines()[-1]
    reached = state(run)["nimg"]
    assert gan_uad.load(str(run)).nimg == reached
    assert tiny.train(run, tmp_path, "--resume", total_kimg=(reached + 4) / 1000).exit_code == 0
    assert state(run)["nimg"] == reached + 4


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("tick", [0.004, 1])
def test_a_training_that_diverges(tiny: Any, tmp_path: Path, tick: float) -> None:
    """The first update makes the weights huge, the metrics after it are NaN: also when no tick lies between."""
    result = tiny.train(tiny.config("wgan_gp"), tmp_path, "-o", "optim.lr=1e10", checkpoint_kimg=0.004, tick_kimg=tick)
    assert result.exit_code == 1
    assert "0.004 kimg" in errors(result)[-1]
    assert "learning rate" in errors(result)[-1]
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
        assert str(run) in errors(result)[-1]
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
    assert str(run) in errors(result)[-1]
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
        assert "state.prev.pt" in result.stderr
        assert "resuming at 0.04 kimg" in result.stderr
        same(state(run), state(whole["wgan_gp"]))
        shutil.copy(whole["wgan_gp"] / "state.prev.pt", run / "state.prev.pt")
    (run / "state.pt").unlink()
    result = tiny.train(run, tmp_path, "--resume")
    assert "note: state.pt is missing" in result.stderr
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
    refused("state.pt", "state.prev.pt", str(run))
    (run / "state.pt").write_bytes(b"this is no checkpoint at all, but longer than a few bytes")
    refused("state.pt")
    torch.save([1, 2], run / "state.pt")
    refused("state.pt")
    torch.save(state(whole["izi_f"]), run / "state.pt")
    refused("state.pt", "'model'")
    weight = good["task"]["model"]["G.layers.0.weight"]
    for value in (weight * math.nan, weight > 0, weight.long(), weight.double() * 1e300, weight.tolist()):
        good["task"]["model"]["G.layers.0.weight"] = value
        torch.save(good, run / "state.pt")
        refused("state.pt", "G.layers.0.weight")
    good["task"]["model"]["G.layers.0.weight"] = torch.zeros(4, 9, 4, 4)
    torch.save(good, run / "state.pt")
    refused("'G.layers.0.weight'", "[4, 9, 4, 4]", "[4, 8, 4, 4]")
    del good["task"]["model"]["G.layers.0.weight"]
    torch.save(good, run / "state.pt")
    refused("'G.layers.0.weight'")
