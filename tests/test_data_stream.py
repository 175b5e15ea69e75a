"""The pixel cache, and how patches reach a network."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patch_tools import picture, png, refused, write
from PIL import Image

from gan_uad.config import DataConfig
from gan_uad.data import cache as cache_module
from gan_uad.data import contents, sources
from gan_uad.data.patches import PatchSet, TrainStream, batches, load_patches, to_tensor, to_uint8
from gan_uad.errors import JobFailed


def make(root: Path, n: int = 10, size: int = 8) -> Path:
    """n normal images; the first pixel of image k is k."""
    (root / "normal").mkdir(parents=True, exist_ok=True)
    for k in range(n):
        array = np.random.default_rng(k).integers(100, 256, (size, size, 3), dtype=np.uint8)
        array[0, 0] = k
        Image.fromarray(array).save(root / "normal" / f"{k:03d}.png")
    return root


def load(root: Path, cache: Path, progress: Any = None, resolution: int = 8, **settings: Any) -> PatchSet:
    return load_patches(DataConfig(path=str(root), **settings), resolution, cache=cache, progress=progress)


@pytest.fixture
def patches(tmp_path: Path) -> PatchSet:
    return load(make(tmp_path / "set"), tmp_path / "cache")


# ---------------------------------------------------------------- cache


def test_the_cache_is_reused_until_something_changes(tmp_path: Path) -> None:
    root, cache = make(tmp_path / "set"), tmp_path / "cache"
    seen: list[tuple[int, int]] = []

    def reads(**settings: Any) -> int:
        seen.clear()
        load(root, cache, progress=lambda done, total: seen.append((done, total)), **settings)
        return len(seen)

    assert reads() == 10
    assert seen[-1] == (10, 10)
    assert reads() == 0
    assert reads(split_seed=5, normal_classes=["normal"], flips=False) == 0  # the pixels are the same
    assert reads(resize="box") == 10
    assert reads(resolution=4) == 10
    assert reads(grayscale=True) == 10
    assert reads(crop="center") == 10
    assert reads(crop="center", crop_size=8) == 0  # the default, given explicitly
    Image.new("RGB", (8, 8)).save(root / "normal" / "003.png")
    assert reads() == 10
    assert isinstance(load(root, cache).images, np.memmap)
    assert not list(cache.glob(".*")), "temporary files stay behind"


def bmp(root: Path, first: int, time_ns: int = 10**18) -> Path:
    """Files of one size and one time, whatever they show."""
    write(root, {f"normal/{k}.bmp": png(picture(first + k), format="BMP") for k in range(3)})
    for file in root.glob("normal/*"):
        os.utime(file, ns=(time_ns, time_ns))
    return root


def h5(root: Path, first: int) -> Path:
    import h5py

    root.mkdir(parents=True)
    for key, values in (
        ("x", np.stack([picture(first + k) for k in range(3)])),
        ("y", np.zeros((3, 1, 1, 1), np.uint8)),
    ):
        with h5py.File(root / f"train_{key}.h5", "w") as file:
            file.create_dataset(key, data=values, track_times=False)
        os.utime(root / f"train_{key}.h5", ns=(10**18, 10**18))
    return root


@pytest.mark.parametrize("kind", [bmp, h5])
def test_sets_are_known_by_content(tmp_path: Path, kind: Any) -> None:
    """Not by names, sizes and times, which are equal here; and a copy is the same set."""
    one, other, copy = (kind(tmp_path / name / "patches", first) for name, first in (("a", 0), ("b", 9), ("c", 0)))
    sets = [load(root, tmp_path / "cache") for root in (one, other, copy)]
    for patches, first in zip(sets, (0, 9, 0), strict=True):
        np.testing.assert_array_equal(patches.images, [picture(first + k) for k in range(3)])
    prints = [patches.fingerprint for patches in sets]
    assert prints[0] == prints[2] != prints[1]
    assert sets[0].is_set(prints[2])
    assert not sets[0].is_set(prints[1])
    assert sets[0].is_set(sets[0].old_fingerprint)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_times_do_not_change_a_set_and_contents_do(tmp_path: Path) -> None:
    root, reads = bmp(tmp_path / "set", 0), list[int]()

    def opened() -> Any:
        reads.clear()
        return load(root, tmp_path / "cache", progress=lambda done, total: reads.append(done))

    before = opened().fingerprint
    bmp(root, 0, time_ns=2 * 10**18)
    assert (opened().fingerprint, reads) == (before, [])
    bmp(root, 5, time_ns=2 * 10**18)
    changed = opened()
    assert changed.fingerprint != before
    np.testing.assert_array_equal(changed.images[0], picture(5))


def test_unchanged_files_are_not_read_to_know_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = bmp(tmp_path / "set", 0)
    monkeypatch.setattr(contents, "SETTLED_S", -60)
    before = load(root, tmp_path / "cache").fingerprint

    def never(path: Path) -> str:
        raise AssertionError(path)

    with monkeypatch.context() as patch:
        patch.setattr(contents, "_hashed", never)
        assert load(root, tmp_path / "cache").fingerprint == before
    (root / "normal" / "1.bmp").write_bytes(png(picture(7), format="BMP"))
    os.utime(root / "normal" / "1.bmp", ns=(10**18, 10**18))
    assert load(root, tmp_path / "cache").fingerprint != before


ONCE = [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale"), PermissionError(13, "Denied"),
        OSError(errno.EMFILE, "Too many open files"), MemoryError()]  # fmt: skip


@pytest.mark.parametrize("error", ONCE)
@pytest.mark.parametrize("packed", [False, True])
def test_a_read_that_the_machine_failed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, packed: bool
) -> None:
    root = make(tmp_path / "set")
    kind: Any = sources.Folder
    if packed:
        kind, root = sources.Archive, Path(shutil.make_archive(str(tmp_path / "set"), "zip", root))
    read = kind.read

    def failing(self: Any, name: str) -> bytes:
        if name == "normal/003.png":
            raise error
        content: bytes = read(self, name)
        return content

    with monkeypatch.context() as patch:
        patch.setattr(kind, "read", failing)
        patches = load(root, tmp_path / "cache")
        again = load(root, tmp_path / "cache")
    for found in (patches, again):
        assert [name for name, _ in found.skipped] == ["normal/003.png"]
        assert any("again" in note for note in found.notes)
    complete = load(root, tmp_path / "cache")
    assert (len(complete), complete.skipped) == (10, [])
    assert complete.fingerprint != patches.fingerprint
    reads: list[int] = []
    load(root, tmp_path / "cache", progress=lambda done, total: reads.append(done))
    assert reads == []


def test_a_file_that_changes_while_the_set_is_read_is_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its hash and its decoding: the pixels would be kept under the hash of others."""
    root, read = make(tmp_path / "set"), sources.Folder.read
    name, later = "normal/003.png", png(picture(99))

    def changing(self: Any, wanted: str) -> bytes:
        if wanted == name:
            (root / name).write_bytes(later)
        return read(self, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(sources.Folder, "read", changing)
        patches = load(root, tmp_path / "cache")
    ((skipped, reason),) = patches.skipped
    assert (skipped, "changed" in reason) == (name, True)
    again = load(root, tmp_path / "cache")
    assert (len(again), again.skipped) == (10, [])
    np.testing.assert_array_equal(again.images[3], picture(99))


def test_a_cache_of_an_earlier_version_is_built_again_and_said_once(tmp_path: Path) -> None:
    root, cache = make(tmp_path / "set"), tmp_path / "cache"
    made = load(root, cache)
    assert not any("earlier" in note for note in made.notes)

    def rebuilt() -> bool:
        found = load(root, cache)
        np.testing.assert_array_equal(found.hashes, made.hashes)
        return any("earlier version" in note for note in found.notes)

    (array,) = cache.glob("*.npy")
    facts = json.loads(array.with_suffix(".json").read_text())
    for change in ({"format": 2}, {"format": None, "hashes": ["0" * 16] * 10}):
        array.with_suffix(".json").write_text(json.dumps(facts | change))
        assert [rebuilt(), rebuilt()] == [True, False]
    # Version 0.2 named it by names, sizes and times.
    data = DataConfig(path=str(root))
    old = cache_module.cache_key(sources.open_source(root, data), data, 8, old=True)
    for file in (array, array.with_suffix(".json")):
        file.rename(cache / f"set-8-{old[:16]}{file.suffix}")
    assert [rebuilt(), rebuilt()] == [True, False]
    assert [file.name for file in cache.glob("*.npy")] == [array.name]


def test_broken_content_is_kept_in_the_cache(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    (root / "normal" / "003.png").write_bytes(b"broken")
    reads: list[int] = []
    for _ in range(2):
        reads.clear()
        assert len(load(root, tmp_path / "cache", progress=lambda done, total: reads.append(done)).skipped) == 1
    assert reads == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "json", "no json", "header"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    root, cache = make(tmp_path / "set"), tmp_path / "cache"
    before = np.array(load(root, cache).images)
    (array,) = cache.glob("*.npy")
    content = bytearray(array.read_bytes())
    if damage == "flip":
        content[1000] ^= 1
        array.write_bytes(content)
    elif damage == "truncate":
        array.write_bytes(content[:-100])
    elif damage == "header":
        array.write_bytes(b"junk" + content[4:])
    elif damage == "json":
        array.with_suffix(".json").write_text('{"rows": [')
    else:
        array.with_suffix(".json").unlink()
    reads: list[int] = []
    after = load(root, cache, progress=lambda done, total: reads.append(done))
    assert len(reads) == 10
    np.testing.assert_array_equal(after.images, before)
    json.loads(array.with_suffix(".json").read_text())


def test_processes_that_build_the_same_cache_at_once_agree(tmp_path: Path) -> None:
    root, cache = make(tmp_path / "set", n=250), tmp_path / "cache"
    code = """
import sys, zlib
from pathlib import Path
from gan_uad.config import DataConfig
from gan_uad.data.cache import prepare
from gan_uad.data.sources import open_source
data = DataConfig(path=sys.argv[1])
made = prepare(open_source(data.path, data), data, 8, Path(sys.argv[2]))
print(len(made.rows), made.notes, zlib.crc32(made.images.tobytes()))
"""
    command = [sys.executable, "-c", code, str(root), str(cache)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert said[0].startswith("250 [] ")
    assert len(set(said)) == 1
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".npy"]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    root, cache = make(tmp_path / "set"), tmp_path / "cache"

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(root, cache, progress=stop)
    assert list(cache.iterdir()) == []
    assert len(load(root, cache)) == 10


def test_without_a_cache_folder_images_stay_in_memory(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    (tmp_path / "file").write_text("in the way")
    patches = load(root, tmp_path / "file" / "cache")
    np.testing.assert_array_equal(patches.images, load(root, tmp_path / "cache").images)
    assert any("memory" in note for note in patches.notes)


def test_a_full_disk_falls_back_to_memory_or_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    root = make(tmp_path / "set")
    monkeypatch.setattr(cache_module, "_header", full)
    patches = load(root, tmp_path / "cache")
    assert len(patches) == 10
    assert any("no space left" in note and str(tmp_path / "cache") in note for note in patches.notes)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    with refused("GAN_UAD_CACHE", error=JobFailed):
        load(root, tmp_path / "cache")


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAN_UAD_CACHE", str(tmp_path / "own"))
    load_patches(DataConfig(path=str(make(tmp_path / "set"))), 8)
    assert list((tmp_path / "own").glob("set-8-*.npy"))


# ---------------------------------------------------------------- sets


def test_a_selection_is_a_view_with_its_own_fingerprint(patches: PatchSet) -> None:
    train = patches.select("train", label=0)
    assert 0 < len(train) < len(patches)
    assert set(train.manifest.split) == {"train"}
    rows = [patches.manifest.image.index(name) for name in train.manifest.image]
    np.testing.assert_array_equal(train.images, patches.images[rows])
    np.testing.assert_array_equal(train.take([2, 0]).images, patches.images[[rows[2], rows[0]]])
    assert len({patches.fingerprint, train.fingerprint, patches.select("val").fingerprint}) == 3
    assert train.fingerprint == patches.select("train").fingerprint
    assert len(patches.select("train", label=1)) == 0


def test_uint8_goes_to_tensor_and_back_exactly() -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = to_tensor(every)
    assert (tensor.shape, tensor.dtype) == ((1, 3, 16, 16), torch.float32)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    np.testing.assert_allclose(tensor[0, 0].numpy().ravel(), np.arange(256) / 127.5 - 1, atol=1e-7)
    np.testing.assert_array_equal(to_uint8(tensor), every)
    assert to_uint8(torch.full((1, 3, 2, 2), 7.0)).max() == 255
    assert to_uint8(torch.full((1, 3, 2, 2), -7.0)).max() == 0


def test_batches_are_in_order_and_the_last_may_be_smaller(patches: PatchSet) -> None:
    with warnings.catch_warnings(action="error"):  # torch warns about read-only arrays
        assert torch.equal(to_tensor(patches.images[:4]), next(batches(patches, 4))[0])
    found = list(batches(patches, 4))
    assert [len(images) for images, _ in found] == [4, 4, 2]
    np.testing.assert_array_equal(to_uint8(torch.cat([images for images, _ in found])), patches.images)
    assert torch.cat([labels for _, labels in found]).tolist() == [0] * 10


# ---------------------------------------------------------------- stream


def shown(stream: TrainStream, nimg: int) -> list[int]:
    """Which images of `make` are in a batch that was neither flipped nor turned."""
    return to_uint8(stream.at(nimg))[:, 0, 0, 0].tolist()


def test_every_image_is_shown_once_an_epoch(patches: PatchSet) -> None:
    stream = TrainStream(patches, 4, seed=0, flips=False, turns=False)
    names = [k for nimg in range(0, 40, 4) for k in shown(stream, nimg)]
    epochs = [names[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert names != [k for nimg in range(0, 40, 4) for k in shown(TrainStream(patches, 4, 1, False, False), nimg)]


def test_a_batch_may_be_larger_than_the_set(patches: PatchSet) -> None:
    assert Counter(shown(TrainStream(patches, 25, 0, False, False), 5)).most_common()[0][1] <= 3
    assert sorted(shown(TrainStream(patches, 30, 0, False, False), 0)) == sorted(list(range(10)) * 3)


def test_the_stream_has_no_state(patches: PatchSet) -> None:
    stream = TrainStream(patches, 4, 7, True, True)
    forward = [stream.at(nimg) for nimg in range(0, 60, 4)]
    for k in (9, 2, 14, 0):
        assert torch.equal(stream.at(4 * k), forward[k])
        assert torch.equal(TrainStream(patches, 4, 7, True, True).at(4 * k), forward[k])
    assert torch.equal(torch.cat([forward[3], forward[4]]), TrainStream(patches, 8, 7, True, True).at(12))


def test_processes_share_each_batch(patches: PatchSet) -> None:
    complete = TrainStream(patches, 6, 7, True, True).at(18)
    parts = [TrainStream(patches, 6, 7, True, True, rank=rank, world=2).at(18) for rank in (0, 1)]
    assert [len(part) for part in parts] == [3, 3]
    assert all(torch.equal(part, complete[rank::2]) for rank, part in enumerate(parts))
    with refused("training.batch 6", "4"):
        TrainStream(patches, 6, 7, True, True, world=4)


@pytest.mark.parametrize(
    ("flips", "turns", "expected"),
    [
        (False, False, [(0, False)]),
        (True, False, [(0, False), (2, False), (0, True), (2, True)]),
        (False, True, [(0, False), (1, False), (2, False), (3, False)]),
        (True, True, [(k, flip) for k in range(4) for flip in (False, True)]),
    ],
)
def test_flips_and_turns(patches: PatchSet, flips: bool, turns: bool, expected: list[tuple[int, bool]]) -> None:
    """(quarter turns, mirrored) of one image: all that are allowed, equally often, and no other."""
    one = patches.take([4])
    picture = np.array(one.images[0])
    ways = {
        np.rot90(picture[:, ::-1] if flip else picture, k).tobytes(): (k, flip) for k in range(4) for flip in (0, 1)
    }
    assert len(ways) == 8
    stream = TrainStream(one, 800, 0, flips, turns)
    counts = Counter(ways[np.ascontiguousarray(image).tobytes()] for image in to_uint8(stream.at(0)))
    assert set(counts) == set(expected)
    assert all(abs(n - 800 / len(expected)) < 60 for n in counts.values())


def test_an_empty_selection_cannot_be_trained_on(patches: PatchSet) -> None:
    with refused(patches.source):
        TrainStream(patches.select("train", label=1), 4, 0, True, True)


# ---------------------------------------------------------------- real data


def test_real_sets(shared_data: Path, tmp_path: Path) -> None:
    idc = load(shared_data / "idc", tmp_path, resolution=64)
    assert (len(idc), len(set(idc.manifest.group)), idc.skipped) == (192, 6, [])
    assert not idc.manifest.groups_on_two_sides()
    colon = load_patches(DataConfig(path=str(shared_data / "colon")), 32, cache=tmp_path)
    counted = {split: tuple(len(colon.select(split, label)) for label in (0, 1)) for split in ("train", "val", "test")}
    assert counted == {"train": (563, 0), "val": (98, 101), "test": (335, 574)}
