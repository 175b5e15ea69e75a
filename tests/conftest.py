"""What every test gets: a cache of its own, few threads, fixed seeds; and the shared data and weights where they are told of."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest


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
