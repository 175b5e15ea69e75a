"""Several processes: the same training as one, one voice, one folder; and what becomes of a job that loses a process."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import distributed_driver as driver
import pytest
import torch
import yaml
from launcher import ENVIRONMENT, Launcher
from PIL import Image
from run_tools import Toy, log, metrics_of, same, state
from torch import Tensor

import gan_uad
from gan_uad.config import load_config, presets
from gan_uad.training import adversarial
from gan_uad.training.memory import smaller_presets

# Sums of the same float64 numbers in another order, through two steps; relative to the largest of a tensor.
TOLERANCE = 1e-12


def torchrun(*words: object, size: int = 2) -> subprocess.Popen[str]:
    """A job of real `torchrun`, in a session of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}"]
    command += ["--master-addr=127.0.0.1", f"--master-port={driver.free_port()}", "-m", "gan_uad"]
    return subprocess.Popen(
        [*command, *map(str, words)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def options(**settings: object) -> list[str]:
    return [word for key, value in settings.items() for word in ("-o", f"training.{key}={value}")]


def spoken(outputs: list[str], *, by: int = 0) -> list[str]:
    """The lines of the one process that says anything."""
    assert [rank for rank, text in enumerate(outputs) if text] == [by], outputs
    assert "Traceback" not in outputs[by]
    return outputs[by].splitlines()


# ---------------------------------------------------------------- the same training as one process


def close(a: Any, b: Any, where: str) -> None:
    """Assert that two nested states are equal up to rounding, of values of at least 1e-3."""
    if isinstance(a, Tensor) and a.is_floating_point():
        assert a.dtype == b.dtype == torch.float64, where
        scale = max(float(b.abs().max()), 1e-3)
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE * scale, msg=lambda text: f"{where}: {text}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"diversity"}:  # a spread over the images of one pass
            close(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            close(x, y, f"{where}.{k}")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12), where
    else:
        assert a == b, where


TASKS = ("dcgan", "wgan_gp", "izi_f", "ziz")


@pytest.fixture(scope="module")
def cases(tiny: Any) -> dict[str, dict[str, Any]]:
    """By task: two steps of 8 images."""
    made = {}
    for task in TASKS:
        generator = [f"generator={tiny.generator}"] if task in {"izi_f", "ziz"} else []
        overrides = ["training.batch=8", *(["network.z_dim=4"] if generator else []), *generator]
        overrides += ["optim.n_critic=2"] if task == "wgan_gp" else []
        made[task] = {"source": str(tiny.config(task)), "overrides": overrides}
    return made


@pytest.fixture(scope="module")
def whole(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The result of one process with complete batches."""
    return {task: driver.steps(**case) for task, case in cases.items()}


def in_passes(case: dict[str, Any], images: int) -> dict[str, Any]:
    return case | {"overrides": [*case["overrides"], f"training.micro_batch={images}"]}


def test_two_processes_train_as_one(
    launch: Launcher, cases: dict[str, dict[str, Any]], whole: dict[str, Any], tmp_path: Path
) -> None:
    """Figures, gradients, weights and averages after two steps; also when each process accumulates two passes.

    With batch norm both processes still hold the same, though not the same as one process.
    """
    spec = [*cases.values(), *(in_passes(case, 2) for case in cases.values()), cases["dcgan"] | {"batch_norm": True}]
    codes, outputs = launch.run("steps", json.dumps(spec), folder=tmp_path)
    assert codes == [0, 0], outputs
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    same(first[-1], second[-1], "with batch norm")
    for k, task in enumerate([*TASKS, *TASKS]):
        theirs = copy.deepcopy(whole[task])
        for result in (first[k], second[k], theirs):
            result["state"].pop("shown", None)  # pictures for snapshots: of each process's own share
        same(first[k], second[k], f"{task} in both processes")
        close(first[k], theirs, task)
        assert any("loss_G" in row or "loss" in row for row in theirs["metrics"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("images", [1, 4])
def test_accumulated_passes_train_as_one(
    cases: dict[str, dict[str, Any]], whole: dict[str, Any], task: str, images: int
) -> None:
    mine = driver.steps(**in_passes(cases[task], images))
    close(mine, whole[task], task)


def test_stylegan2_trains_as_one_process(launch: Launcher, tmp_path: Path) -> None:
    """Its minibatch stddev looks at groups of images, which strided shares and passes keep together; lazy terms included."""
    sizes = ["resolution=32", "training.batch=16", "network.z_dim=16", "network.w_dim=16"]
    sizes += ["network.channel_base=128", "network.channel_max=16", "optim.path_weight=2", "optim.mixing=0.9"]
    case: dict[str, Any] = {"source": "stylegan2_64_small", "overrides": sizes}
    passes = in_passes(case, 4)
    codes, outputs = launch.run("steps", json.dumps([case, passes]), folder=tmp_path)
    assert codes == [0, 0], outputs
    one, *others = (driver.steps(**case), driver.steps(**passes), *torch.load(tmp_path / "0.pt", weights_only=True))
    for result in others:
        close(result, one, "stylegan2")
    assert {"path_penalty", "r1"} <= one["metrics"][0].keys()


def test_micro_batches_are_every_mth_image() -> None:
    task, x = Toy(), list(range(8))
    assert [x[part] for part in task.parts(8)] == [x]
    task.micro_batch = 2
    assert [x[part] for part in task.parts(8)] == [[0, 4], [1, 5], [2, 6], [3, 7]]


# ---------------------------------------------------------------- one voice, one folder


@pytest.fixture(scope="module")
def long(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WGAN-GP, 30 steps of 4 images, a checkpoint every 5."""
    raw = yaml.safe_load(tiny.config("wgan_gp").read_text())
    raw["training"] |= {"total_kimg": 0.12, "tick_kimg": 0.012, "checkpoint_kimg": 0.02, "snapshot_kimg": 1.0}
    path = tmp_path_factory.mktemp("long") / "long.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def uninterrupted(launch: Launcher, long: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run folder of two processes that nobody disturbed, and what they said."""
    out = tmp_path_factory.mktemp("uninterrupted")
    codes, outputs = launch.run("train", long, "--out", out)
    assert codes == [0, 0], outputs
    assert [file.name for file in out.iterdir()] == ["00000-long"]
    return out / "00000-long", spoken(outputs)


def test_rank_0_alone_writes_and_prints(uninterrupted: tuple[Path, list[str]]) -> None:
    run, lines = uninterrupted
    assert {file.name for file in run.iterdir() if not file.name.startswith("events.out.tfevents")} == {
        "config.yaml", "environment.json", "log.jsonl", "reals.png", "images.npz", "fakes",
        "state.pt", "state.prev.pt", "model.safetensors",
    }  # fmt: skip
    assert len(list(run.glob("events.out.tfevents*"))) == 1
    seen = [row["nimg"] for row in log(run)]
    assert seen == sorted({*range(12, 121, 12), *range(20, 121, 20)})
    assert state(run)["nimg"] == gan_uad.load(str(run)).nimg == 120
    first, second = state(run)["generators"]
    assert not torch.equal(first["cpu"], second["cpu"])
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    assert "2 processes" in lines[0]
    assert len([line for line in lines if "note: batch norm" in line]) == 1


def test_sigterm_saves_and_a_resumed_job_ends_bit_for_bit_as_an_uninterrupted_one(
    launch: Launcher, long: Path, uninterrupted: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """SIGTERM to one of two processes: both stop after the same step."""
    run = tmp_path / "00000-long"
    processes = launch.start("train", long, "--out", tmp_path)
    while not (run / "log.jsonl").exists():
        time.sleep(0.01)
    os.kill(processes[1], signal.SIGTERM)
    codes, outputs = launch.end()
    assert codes == [130, 130], outputs
    reached = state(run)["nimg"]
    assert 0 < reached < 120, "the job was over before the signal: make it longer"
    assert f"stopped at {reached / 1000:g} kimg, all saved" in spoken(outputs)[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["00000-long"]
    codes, outputs = launch.run("train", run, "--resume")
    assert codes == [0, 0], outputs
    assert f"resuming at {reached / 1000:g} kimg" in "\n".join(spoken(outputs))
    same(state(run), state(uninterrupted[0]))
    there = {row["nimg"]: row for row in metrics_of(uninterrupted[0])}
    logged = [row["nimg"] for row in metrics_of(run)]
    assert logged == sorted({*there, reached})
    assert [row for row in metrics_of(run) if row["nimg"] > reached + 20] == [
        row for row in metrics_of(uninterrupted[0]) if row["nimg"] > reached + 20
    ]


def test_a_process_that_is_killed_ends_the_job_and_one_process_can_resume(
    tiny: Any, long: Path, tmp_path: Path
) -> None:
    run = tmp_path / "00000-long"
    with torchrun("train", long, "--out", tmp_path, *options(total_kimg=1000)) as job:
        while not (run / "state.pt").exists() and job.poll() is None:
            time.sleep(0.01)
        os.kill(process_of(job.pid, 1), signal.SIGKILL)
        start = time.monotonic()
        _, said = job.communicate(timeout=60)
    assert job.returncode != 0
    assert time.monotonic() - start < 20
    assert said.count("Traceback") == 1, said  # torchrun's own
    assert said.count("\nError: ") <= 1  # none where torchrun ended rank 0 before it noticed
    assert said.count("\nError: ") == said.count("\nError: another process of this job ")
    reached = state(run)["nimg"]
    resumed = tiny.train(run, tmp_path, "--resume", total_kimg=reached / 1000 + 0.04)
    assert resumed.exit_code == 0, resumed.output
    assert state(run)["nimg"] == reached + 40


def process_of(job: int, rank: int) -> int:
    """The process of torchrun's `job` that is `rank`."""
    children = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    found = [int(c) for c in children if f"\0RANK={rank}\0".encode() in Path(f"/proc/{c}/environ").read_bytes()]
    assert len(found) == 1
    return found[0]


# ---------------------------------------------------------------- what cannot be done


def test_a_batch_that_cannot_be_shared(launch: Launcher, tiny: Any, tmp_path: Path) -> None:
    def refused(message: str, *words: str) -> None:
        codes, outputs = launch.run("train", tiny.config("dcgan"), "--out", tmp_path / "runs", *words)
        assert codes == [2, 2]
        (line,) = spoken(outputs)
        assert line.startswith(f"Error: {message}")
        assert not (tmp_path / "runs").exists()

    refused("training.batch 5", "-o", "training.batch=5")
    refused("training.micro_batch 3", *options(batch=8, micro_batch=3))


def test_a_micro_batch_that_does_not_divide_the_batch(tiny: Any, tmp_path: Path) -> None:
    result = tiny.train(tiny.config("dcgan"), tmp_path, micro_batch=3)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: training.micro_batch 3")
    assert result.stderr.count("\n") == 1
    assert tiny.train(tiny.config("dcgan"), tmp_path, micro_batch=0).exit_code == 2


def test_a_dry_run_prints_once(launch: Launcher, tiny: Any, tmp_path: Path) -> None:
    codes, outputs = launch.run("train", tiny.config("dcgan"), "--out", tmp_path / "runs", "--dry-run")
    assert codes == [0, 0]
    assert yaml.safe_load("\n".join(spoken(outputs)))["training"]["micro_batch"] is None
    assert not (tmp_path / "runs").exists()


def test_a_job_that_diverges_says_so_once(launch: Launcher, tiny: Any, tmp_path: Path) -> None:
    words = ["-o", "optim.lr=1e10", *options(checkpoint_kimg=0.004)]
    codes, outputs = launch.run("train", tiny.config("wgan_gp"), "--out", tmp_path, *words)
    assert codes == [1, 1]
    assert "Error: training diverged: " in spoken(outputs)[-1]
    assert state(tmp_path / "00000-wgan_gp")["nimg"] == 4


# ---------------------------------------------------------------- out of memory


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("could not create a primitive"),  # oneDNN
    MemoryError(),
]


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, limit: int) -> None:
    """Let a DCGAN step fail after the first checkpoint when it sees more than `limit` images at once."""
    step = adversarial.DCGANTask.step

    def tried(self: Any, real: Tensor, nimg: int) -> dict[str, Tensor]:
        if nimg >= 20 and (self.micro_batch or len(real)) > limit:
            raise error
        return step(self, real, nimg)

    monkeypatch.setattr(adversarial.DCGANTask, "step", tried)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:20] or "MemoryError")
def test_out_of_memory_is_one_line_and_its_advice_works(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, error, limit=2)
    result = tiny.train(tiny.config("dcgan"), tmp_path)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    run = tmp_path / "00000-dcgan"
    assert line.startswith("Error: out of memory in training: dcgan at 32 px, batch 4 (the checkpoint at 0.02 kimg")
    advice = f"gan-uad train {run} --resume -o training.micro_batch=2"
    assert f"{advice} (" in line
    resumed = tiny.run_cli(*advice.split()[1:])
    assert resumed.exit_code == 0, resumed.output
    assert state(run)["nimg"] == 48


def test_out_of_memory_with_one_image_at_a_time_names_smaller_networks(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, ERRORS[0], limit=0)
    result = tiny.train(tiny.config("dcgan"), tmp_path, micro_batch=1)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert "batch 4 in passes of 1 image (" in line
    assert "micro_batch=" not in line
    assert "network.channel_base" in line
    assert smaller_presets(load_config("wgan_gp_64")) == ["wgan_gp_64_small"]
    assert smaller_presets(load_config("wgan_gp_64_small")) == []
    assert set(smaller_presets(load_config("wgan_gp_64"))) < set(presets())


def test_out_of_memory_in_a_snapshot_is_not_blamed_on_the_batch(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images are made a few at a time, whatever the batch: fewer at once in training would not help."""

    def failing(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(adversarial.AdversarialTask, "sample", failing)
    result = tiny.train(tiny.config("dcgan"), tmp_path)
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert "snapshot" in line
    assert "network.channel_base" in line
    assert "batch" not in line


def test_other_errors_of_a_step_are_not_reported_as_out_of_memory(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("shapes do not fit", "could not create a primitive descriptor for a convolution forward propagation"):
        failing(monkeypatch, RuntimeError(text), limit=2)
        result = tiny.train(tiny.config("dcgan"), tmp_path)
        assert isinstance(result.exception, RuntimeError)
        monkeypatch.undo()


def test_processes_without_memory_report_it_themselves(launch: Launcher, tiny: Any, tmp_path: Path) -> None:
    """Really. One layer's output, 805 MB for 48 images of 512 px, is what does not fit.

    All before it takes at most 890 MB (the batch and smaller layers, by their sizes) and what threads and libraries take beside; a
    snapshot (4 images at once, no gradients) less; with that layer it were 1,490 and those. So in 1,350 it is that one allocation
    that fails, and hundreds of MB are left for libraries: where those lack, they fail anywhere, some by a segmentation fault.
    """
    patches = tmp_path / "patches"
    (patches / "train" / "normal").mkdir(parents=True)
    for k in range(128):
        Image.new("RGB", (32, 32), (k, 2 * k, 200)).save(patches / "train" / "normal" / f"{k}.png")
    words = ["--data", patches, "--out", tmp_path / "runs", "-o", "resolution=512"]
    words += ["-o", "network.channel_base=16384", "-o", "network.channel_max=64", *options(batch=96, total_kimg=100)]
    codes, outputs = launch.run("train", tiny.config("dcgan"), *words, memory=1_350_000_000)
    assert codes == [1, 1], outputs
    for rank, text in enumerate(outputs):
        assert "Traceback" not in text
        assert f"Error: process {1 - rank}" not in text
        line = text.splitlines()[-1]
        assert line.startswith(
            f"Error: process {rank}: out of memory in training: dcgan at 512 px, batch 96 in passes of 48"
        )
        assert "--resume -o training.micro_batch=24 (" in line


# ---------------------------------------------------------------- validation


def test_processes_share_the_images_of_a_table(
    launch: Launcher, cli: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features computed by two processes are those of one, and only the first prints and writes."""
    monkeypatch.setenv("GAN_UAD_CACHE", str(tmp_path / "cache"))
    words = (
        "fid",
        trained.generator,
        "--real",
        trained.patches,
        "--split",
        "val",
        "--num",
        5,
        "--no-baselines",
        "--out",
    )
    codes, outputs = launch.run(*words, tmp_path / "two", folder=tmp_path)
    assert codes == [0, 0], outputs
    spoken(outputs)
    assert cli(*words, tmp_path / "one").exit_code == 0
    (one,), (two,) = (json.loads((tmp_path / name / "fid.json").read_text()) for name in ("one", "two"))
    assert two["value"] == pytest.approx(one["value"], rel=1e-6)
    assert (two["key"], two["n"]) == (one["key"], 5)
