"""The way of a batch to the device: the same images, whether the next one is prepared in a thread or not."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_tools import Blank, same
from torch import Tensor

from gan_uad.config import DataConfig
from gan_uad.data.patches import LabelledStream, TrainStream, load_patches, to_tensor
from gan_uad.training import engine
from gan_uad.training.feed import Feed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def patches(tiny: Any) -> Any:
    return load_patches(DataConfig(path=str(tiny.patches)), 32)


def feed(stream: Any, total: int, batch: int = 4, ahead: int = 1) -> Feed:
    return Feed(stream, CPU, lambda nimg: batch if nimg < total else None, ahead)


def parts(batch: Any) -> list[Tensor]:
    return list(batch) if isinstance(batch, tuple) else [batch]


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("kind", [TrainStream, LabelledStream])
def test_batches_are_those_of_the_stream(patches: Any, kind: Any, ahead: int) -> None:
    """In order, with another size in between, and out of order."""
    stream, fresh = (kind(patches, 4, 7, True, True) for _ in range(2))
    with feed(stream, 40, ahead=ahead) as found:
        for nimg, batch in ((0, 4), (4, 4), (8, 2), (10, 4), (0, 4), (36, 4)):
            for mine, theirs in zip(parts(found.at(nimg, batch)), parts(fresh.at(nimg, batch)), strict=True):
                assert torch.equal(mine, theirs)


def test_pixels_become_numbers_as_ever() -> None:
    """float32 of (value − 127.5) / 127.5 by the reciprocal, channels last in memory."""
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)

    class Fixed:
        def fetch(self, nimg: int, batch: int | None = None) -> Tensor:
            return torch.from_numpy(pixels)

    with feed(Fixed(), 8) as found:
        images = found.at(0, 1)
    assert isinstance(images, Tensor)
    assert torch.equal(images, to_tensor(pixels))
    expected = (np.arange(256, dtype=np.float32) - np.float32(127.5)) * np.float32(1 / 127.5)
    assert images[0, 0].flatten().numpy() == pytest.approx(expected, abs=1e-7)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_an_error_of_the_thread_belongs_to_its_batch(patches: Any) -> None:
    class Broken(TrainStream):
        def fetch(self, nimg: int, batch: int | None = None) -> Tensor:
            if nimg == 8:
                raise OSError("gone")
            return super().fetch(nimg, batch)

    with feed(Broken(patches, 4, 7, True, True), 40) as found:
        found.at(0, 4)
        found.at(4, 4)
        with pytest.raises(OSError, match="gone"):
            found.at(8, 4)
        found.at(12, 4)


def test_nothing_is_fetched_after_the_end_and_no_thread_stays() -> None:
    asked = []

    class Noting(Blank):
        def fetch(self, nimg: int, batch: int | None = None) -> Tensor:
            asked.append(nimg)
            return super().fetch(nimg, batch)

    before = threading.active_count()

    def interrupted() -> None:
        with feed(Noting(), 12, ahead=2) as found:
            for nimg in (0, 4, 8):
                found.at(nimg, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(asked) == [0, 4, 8]
    assert threading.active_count() == before


def test_the_next_batch_is_prepared_meanwhile() -> None:
    ready = threading.Event()

    class Signalling(Blank):
        def fetch(self, nimg: int, batch: int | None = None) -> Tensor:
            if nimg:
                ready.set()
            return super().fetch(nimg, batch)

    with feed(Signalling(), 40) as found:
        found.at(0, 4)
        assert ready.wait(10)


@pytest.mark.parametrize("task", ["wgan_gp", "izi_f"])
def test_a_training_is_the_same_with_a_thread(
    tiny: Any, whole: dict[str, Path], task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To the bit, checkpoints included."""
    real = engine.Feed

    def threaded(*arguments: Any) -> Feed:
        return real(*arguments, 2)

    monkeypatch.setattr(engine, "Feed", threaded)
    generator = ["--generator", tiny.generator] if task == "izi_f" else []
    result = tiny.train(tiny.config(task), tmp_path, *generator)
    assert result.exit_code == 0, result.output
    states = [torch.load(run / "state.pt", weights_only=True) for run in (tmp_path / f"00000-{task}", whole[task])]
    same(states[0]["task"], states[1]["task"], task)
