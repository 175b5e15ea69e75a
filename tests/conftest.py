"""What every test gets: a cache of its own, few threads, fixed seeds; and the shared data and weights where they are told of."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sharing import once

from gan_uad.device import share_cores

share_cores()
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # commands, and the processes that they start, would take all cores for each worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["classify_tools"]

if TYPE_CHECKING:
    from click.testing import Result
    from launcher import Launcher


def _shared(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    if not Path(value).is_dir():
        pytest.fail(f"{variable} is set to {value}, which is no folder")
    return Path(value)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real patch sets (`GAN_UAD_DATA`); the test is skipped, visibly, without it."""
    return _shared("GAN_UAD_DATA")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Folder of pretrained feature networks (`GAN_UAD_WEIGHTS`); the test is skipped, visibly, without it."""
    return _shared("GAN_UAD_WEIGHTS")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache folder for the whole run, so that no test reads or fills the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_UAD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """The nets of the tests are small: more threads than two only wait for each other, and each of several workers gets one."""
    from gan_uad import device

    device.prepare("cpu", threads=1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, device.cores()))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    """`gan-uad` in this process: arguments in, click's result out (`exit_code`, `stdout`, `stderr`)."""
    from click.testing import CliRunner

    from gan_uad.cli.main import main

    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


# Not presets: what those are tuned to should not move a test.
TINY = {
    "tiny_wgan_gp": """
model: wgan_gp
task: wgan_gp
resolution: 32
network: {z_dim: 64, channel_base: 64, channel_max: 64}
optim: {lr: 5.0e-4, lr_D: 1.0e-3, n_critic: 2, ema_kimg: 0.01}
training: {total_kimg: 0.32, batch: 16}
""",
    "tiny_izi_f": """
model: residual_encoder
task: izi_f
resolution: 32
network: {channel_base: 64, channel_max: 64}
optim: {lr: 1.0e-3}
training: {total_kimg: 0.32, batch: 16}
scoring: {inverter: izi_f, options: {kappa: 1.0}}
""",
}


@dataclass(frozen=True)
class Trained:
    """A phantom set at 32 px, a tiny WGAN-GP trained on it for seconds, and its izi_f encoder."""

    patches: Path
    generator: Path
    encoder: Path


@pytest.fixture(scope="session")
def trained(cache: Path, cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What the tests of scoring share; nobody may write into it."""
    from gan_uad.demo.phantom import write_phantom

    def make(root: Path) -> None:
        patches = write_phantom(root / "patches", resolution=32, train=48, val=20, test=20, groups=(8, 4, 4))
        for number, (name, text) in enumerate(TINY.items()):
            (root / f"{name}.yaml").write_text(text)
            generator = ["--generator", root / "runs" / "00000-tiny_wgan_gp"] if number else []
            result = cli("train", root / f"{name}.yaml", "--data", patches, "--out", root / "runs", *generator)
            assert result.exit_code == 0, result.output

    root = once(tmp_path_factory, "trained", make)
    return Trained(root / "patches", *(root / "runs" / f"{number:05d}-{name}" for number, name in enumerate(TINY)))


@dataclass(frozen=True)
class Tiny:
    """Random patches and one configuration a task, of nets so small that a step takes milliseconds."""

    root: Path
    run_cli: Callable[..., Any]

    @property
    def patches(self) -> Path:
        """20 normal and 4 anomalous pictures of 32 px."""
        return self.root / "patches"

    @property
    def generator(self) -> Path:
        """A WGAN-GP run of 4 steps."""
        return self.root / "generator" / "00000-wgan_gp"

    def config(self, task: str) -> Path:
        """A YAML file that trains `task` for 12 steps of 4 images."""
        return self.root / f"{task}.yaml"

    def train(self, source: object, out: Path, *words: object, **settings: object) -> Any:
        """`gan-uad train`; `settings` are those of `training`."""
        options = [word for key, value in settings.items() for word in ("-o", f"training.{key}={value}")]
        return self.run_cli("train", source, "--out", out, *words, *options)


@pytest.fixture(scope="session")
def tiny(cache: Path, cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """What the tests of training share; runs go elsewhere."""
    import numpy as np
    import yaml
    from PIL import Image

    def make(root: Path) -> None:
        made = Tiny(root, cli)
        rng = np.random.default_rng(0)
        for label, count in (("normal", 20), ("anomalous", 4)):
            folder = made.patches / label
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")
        sizes = {"channel_base": 64, "channel_max": 8}
        training = {"total_kimg": 0.048, "batch": 4, "threads": 1, "device": "cpu", "tick_kimg": 0.012}
        training |= {"snapshot_kimg": 0.048, "checkpoint_kimg": 0.02}
        common = {"resolution": 32, "data": {"path": str(made.patches)}, "training": training}
        tasks: dict[str, dict[str, Any]] = {
            "dcgan": {"model": "dcgan", "network": {**sizes, "z_dim": 4}},
            "wgan_gp": {
                "model": "wgan_gp",
                "network": {**sizes, "z_dim": 4},
                "optim": {"n_critic": 3, "ema_kimg": 0.01},
            },
            "izi_f": {"model": "residual_encoder", "network": sizes, "optim": {"lr": 1e-3}},
            "ziz": {"model": "residual_encoder", "network": sizes, "optim": {"lr": 1e-3}},
        }
        for task, settings in tasks.items():
            made.config(task).write_text(yaml.safe_dump({"task": task, **common, **settings}))
        result = made.train(made.config("wgan_gp"), made.root / "generator", total_kimg=0.016)
        assert result.exit_code == 0, result.output

    return Tiny(once(tmp_path_factory, "tiny", make), cli)


@pytest.fixture(scope="session")
def scored(cli: Any, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder run's own test split, scored once with everything there is, and evaluated. Nobody writes into it."""

    def make(root: Path) -> None:
        out = root / "scores"
        # Four validation groups can promise a rate of 0.2.
        result = cli("score", trained.encoder, "--maps", "--threshold", "fpr:0.2", "--out", out)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(out)
        result = cli("evaluate", out, "--resamples", 200)
        assert result.exit_code == 0, result.output
        (out / "printed.txt").write_text(result.stdout)

    return once(tmp_path_factory, "scored", make) / "scores"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pictures, which most of a small job's time goes into."""
    monkeypatch.setattr("gan_uad.plotting.pictures.triplets", lambda *_: None)
    for name in ("roc", "pr", "histogram", "confusion", "calibration"):
        monkeypatch.setattr(f"gan_uad.plotting.plots.{name}", lambda *_: None)


@pytest.fixture(scope="session")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs by task. Nobody writes into them."""
    tasks = ("dcgan", "wgan_gp", "izi_f")

    def make(root: Path) -> None:
        for task in tasks:
            generator = ["--generator", tiny.generator] if task == "izi_f" else []
            result = tiny.train(tiny.config(task), root / task, *generator)
            assert result.exit_code == 0, result.output

    root = once(tmp_path_factory, "whole", make)
    return {task: root / task / f"00000-{task}" for task in tasks}


@pytest.fixture(scope="session")
def launch(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Groups of processes, one at a time."""
    import distributed_driver as driver
    from launcher import ENVIRONMENT, Launcher

    command = [sys.executable, driver.__file__, "serve"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
    ) as server:
        launcher = Launcher(server, tmp_path_factory.mktemp("output"))
        yield launcher
        launcher.requests.close()
