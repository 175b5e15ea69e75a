"""What every test gets: a cache of its own, few threads, fixed seeds; and the shared data and weights where they are told of."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gan_uad.device import share_cores

share_cores()

if TYPE_CHECKING:
    from click.testing import Result


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
    """The nets of the tests are small: more threads than two only wait for each other."""
    from gan_uad import device

    device.prepare("cpu", threads=min(2, device.cores()))


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

    from gan_uad.cli import main

    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@dataclass(frozen=True)
class Trained:
    """A phantom set at 32 px, a tiny WGAN-GP trained on it for seconds, and its izi_f encoder."""

    patches: Path
    generator: Path
    encoder: Path


@pytest.fixture(scope="session")
def trained(cache: Path, cli: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What the tests of scoring share; nobody may write into it."""
    from gan_uad.data.phantom import write_phantom

    root = tmp_path_factory.mktemp("trained")
    patches = write_phantom(root / "patches", resolution=32, train=48, val=20, test=20, groups=(8, 4, 4))
    tiny = [f"network.channel_{what}=64" for what in ("base", "max")] + [
        "training.batch=16",
        "training.total_kimg=0.32",
    ]
    options = [word for override in tiny for word in ("-o", override)]
    folders = []
    for preset in ("demo_wgan_gp", "demo_izi_f"):
        generator = ["--generator", folders[0]] if folders else []
        result = cli("train", preset, "--data", patches, "--out", root / "runs", *generator, *options)
        assert result.exit_code == 0, result.output
        folders.append(next((root / "runs").glob(f"*-{preset}")))
    return Trained(patches, folders[0], folders[1])
