"""A set of patches in memory-mapped uint8, and how it reaches a network: in order, or as an endless training stream.

The only file of this folder that imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gan_uad.config import CorruptionConfig, DataConfig
from gan_uad.data.arrays import digest
from gan_uad.data.cache import Prepared, Progress, prepare
from gan_uad.data.corruption import corrupt
from gan_uad.data.findings import contaminants, mask_of, notes_of
from gan_uad.data.hed import hed_jitter
from gan_uad.data.images import BadImage, Mask, Pixels, preprocess, preprocess_mask
from gan_uad.data.manifest import ANOMALOUS, NORMAL, Manifest
from gan_uad.data.scale import Scale, scale_of
from gan_uad.data.sources import Source, open_source
from gan_uad.data.splits import split_manifest
from gan_uad.errors import UserError

__all__ = [
    "BadImage", "LabelledStream", "PatchSet", "TrainStream", "batches", "contaminated", "load_patches", "preprocess", "to_tensor",
    "to_uint8",
]  # fmt: skip

CONTAMINATION = 0xC0  # the stream of its random draws, independent of other draws with the same seed
QUARTER_TURNS = np.array([0, 6, 3, 5], np.uint8)  # a quarter turn swaps the axes and flips one, a half turn flips both


class PatchSet:
    """Square uint8 RGB patches of one resolution with their manifest. A selection shares the pixels of its parent."""

    def __init__(
        self, source: Source, data: DataConfig, prepared: Prepared, manifest: Manifest, notes: list[str]
    ) -> None:
        """`manifest` has a row for each row of `source`; the set holds those that `prepared` kept."""
        self._source, self._data, self._all = source, data, prepared
        self._rows = np.array(prepared.rows, np.int64)
        self._index = np.arange(len(prepared.rows))
        self.manifest = manifest.take(self._rows)
        self.skipped = prepared.skipped  # (name, reason) of the broken images that are not in the set
        self.notes = notes  # what was guessed, made or left out
        self.source = str(source.path)
        self.resolution = int(prepared.images.shape[1])
        self._corruption = CorruptionConfig()
        self._hashes: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self._index)

    @property
    def images(self) -> Pixels:
        """uint8 [N, R, R, 3]: the memory map itself for a complete set, a copy for a selection (`gather` reads only some)."""
        if self._corruption.words:
            return self.gather(np.arange(len(self)))
        return self._all.images if len(self) == len(self._all.rows) else self._all.images[self._index]

    @property
    def hed_jitter(self) -> float:
        """How much the stains are changed in training (`data.hed_jitter`)."""
        return self._data.hed_jitter

    @property
    def fingerprint(self) -> str:
        """A key of everything that distinguishes this set from another: pixels, rows, labels, groups and splits."""
        return self._fingerprint(self._all.key)

    def _fingerprint(self, pixels: str) -> str:
        m = self.manifest
        corruption = [self._corruption.words] if self._corruption.words else []
        return digest(pixels, self._index.tolist(), m.label.tolist(), m.group, m.split, *corruption)

    @property
    def old_fingerprint(self) -> str:
        """The `fingerprint` that version 0.2 and before gave this set, by names, sizes and times of its files."""
        return self._fingerprint(self._all.old_key)

    def is_set(self, fingerprint: str) -> bool:
        """Whether a fingerprint that was stored, by this version or another, is that of this set."""
        return fingerprint in (self.fingerprint, self.old_fingerprint)

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """A hash of the pixels of each image as it was read, before crop and size: uint64 [N]."""
        if self._hashes is None:
            self._hashes = np.fromiter((int(text, 16) for text in self._all.hashes), np.uint64, len(self._all.hashes))
        return self._hashes[self._index]

    @property
    def scale(self) -> Scale:
        """µm/px and side of the patches as they are stored. Raises `UserError` where their scales contradict each other."""
        return scale_of(self._source.manifest.mpp, self._all.sizes, self._data, self.source)

    @property
    def brings_splits(self) -> bool:
        """Whether the source itself defines train, val or test (else the splits were made here)."""
        return self._data.folds is None and any(self._source.manifest.split)

    def gather(self, indices: ArrayLike, transforms: NDArray[np.uint8] | None = None) -> Pixels:
        """A copy of some patches, uint8 [n, R, R, 3], each turned by its transform.

        A transform is three bits: 4 swaps the axes, then 2 flips up-down, 1 flips left-right; 0 to 7 are all symmetries of a
        square.
        """
        return corrupt(self._gathered(indices, transforms), self._corruption)

    def _gathered(self, indices: ArrayLike, transforms: NDArray[np.uint8] | None) -> Pixels:
        rows = self._index[np.asarray(indices)]
        if transforms is None or not transforms.any():
            return np.asarray(self._all.images[rows])
        side = self.resolution
        pixel_items = self._all.images.view("V3").reshape(-1, side, side)  # a pixel as one item: twice as fast as bytes
        turned = np.empty((len(rows), side, side), "V3")
        for i, (row, code) in enumerate(zip(rows, transforms, strict=True)):
            pixels = pixel_items[row].T if code & 4 else pixel_items[row]
            turned[i] = pixels[:: -1 if code & 2 else 1, :: -1 if code & 1 else 1]
        return turned.view(np.uint8).reshape(-1, side, side, 3)

    def select(self, split: str | None = None, label: int | None = None) -> PatchSet:
        """The patches of one split and one label (0 normal, 1 anomalous, -1 unknown); None is any."""
        return self.take(self.manifest.where(split, label))

    def take(self, indices: ArrayLike) -> PatchSet:
        """The patches of the given indices, in that order."""
        chosen = np.asarray(indices, np.int64)
        new = PatchSet.__new__(PatchSet)
        new.__dict__.update(self.__dict__)
        new._index = self._index[chosen]
        new.manifest = self.manifest.take(chosen)
        return new

    def with_splits(self, split: list[str]) -> PatchSet:
        """The same patches, in other splits."""
        new = self.take(np.arange(len(self)))
        new.manifest = new.manifest.replace(split=split)
        return new

    def corrupted(self, corruption: CorruptionConfig) -> PatchSet:
        """The same patches, corrupted whenever their pixels are read."""
        new = self.take(np.arange(len(self)))
        new._corruption = corruption
        return new

    def with_contaminants(self, others: PatchSet) -> PatchSet:
        """These patches and `others` of the same set, all labelled as normal."""
        new = self.take(np.arange(len(self)))
        new._index = np.concatenate([self._index, others._index])
        order = np.argsort(new._index, kind="stable")
        both = Manifest.of(
            self.manifest.image + others.manifest.image,
            group=self.manifest.group + others.manifest.group,
            split=self.manifest.split + others.manifest.split,
            label=[NORMAL] * len(new),
        )
        new._index, new.manifest = new._index[order], both.take(order)
        return new

    def masks(self) -> Mask:
        """Ground truth, bool [n, R, R], in the geometry of the patches.

        A normal patch without a mask file is all false. Raises `BadImage` for any other patch without one and for a file that cannot be
        read, and `UserError` for a mask of another size than its image, and one that can be read in two ways.
        """
        found = np.zeros((len(self), self.resolution, self.resolution), bool)
        for i, row in enumerate(self._rows[self._index]):
            mask = mask_of(self._source, int(row))
            if mask is not None:
                found[i] = preprocess_mask(mask, self._data, self.resolution, self.manifest.mask[i])
            elif self.manifest.label[i] != 0:
                raise BadImage(f"{self.source}: {self.manifest.image[i]}", "is not normal and has no mask")
        return found


def load_patches(
    data: DataConfig, resolution: int, cache: Path | None = None, progress: Progress | None = None
) -> PatchSet:
    """All images in `data.path`, split by group, at one resolution.

    cache: folder of the pixel caches (None: $GAN_UAD_CACHE or the user's cache folder). progress: called as (done, total)
    while images are read. Raises `UserError` for a path that cannot be read, an ambiguous layout, a group on two sides, or a
    set without a single usable image.
    """
    if data.path is None:
        raise UserError("no data is given: give a folder, zip, .npz or .h5 with --data")
    source = open_source(data.path, data)
    manifest, notes = split_manifest(source, data)
    prepared = prepare(source, data, resolution, cache, progress)
    if not prepared.rows:
        little = f"all have less tissue than data.min_tissue={data.min_tissue}"
        why = ": ".join(prepared.skipped[0]) if prepared.skipped else little
        raise UserError(f"{source.path}: none of {len(manifest)} images can be used; {why}")
    notes += notes_of(manifest.take(prepared.rows), prepared, data, resolution)
    return PatchSet(source, data, prepared, manifest, notes + prepared.notes)


def contaminated(patches: PatchSet, normals: PatchSet, share: float, seed: int) -> PatchSet:
    """`normals` with a share of them replaced by anomalous images of the train split, which are labelled normal (0).

    Of n normals, round(share · n) are replaced, so that the number of images stays n. Both are drawn with `seed`; the images that a
    smaller share replaces and adds are among those of a larger one. Raises `UserError` where the train split has too few anomalous
    images, or the share is less than one image.
    """
    if not share:
        return normals
    pool = patches.select("train", ANOMALOUS)
    count = contaminants(len(normals), len(pool), share, patches.source)
    rng = np.random.default_rng((seed, CONTAMINATION))
    kept, added = rng.permutation(len(normals))[count:], rng.permutation(len(pool))[:count]
    return normals.take(np.sort(kept)).with_contaminants(pool.take(np.sort(added)))


def to_tensor(images: Pixels) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1], channels_last in memory."""
    return in_range(_wrapped(images))


def in_range(pixels: Tensor) -> Tensor:
    """`to_tensor` of uint8 [N, H, W, 3] that is a tensor already, on its device."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).sub_(127.5).mul_(1 / 127.5)


def _wrapped(images: Pixels) -> Tensor:
    return torch.from_numpy(
        images if images.flags.writeable else images.copy()
    )  # torch warns about the read-only memory map


def to_uint8(images: Tensor) -> Pixels:
    """[N, 3, H, W] in [-1, 1] (clamped) to uint8 [N, H, W, 3]; undoes `to_tensor` exactly."""
    scaled = images.detach().to("cpu", torch.float32).mul(127.5).add_(128).clamp_(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def batches(patches: PatchSet, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All patches in order as (images float32 [n, 3, R, R], labels int64 [n]); the last batch may be smaller."""
    for start in range(0, len(patches), batch):
        rows = np.arange(start, min(start + batch, len(patches)))
        yield to_tensor(patches.gather(rows)), torch.from_numpy(patches.manifest.label[rows].astype(np.int64))


class TrainStream:
    """An endless stream of training images without state: the images after `nimg` images depend on nothing else.

    Image k of the stream is element k % N of a permutation drawn for epoch k // N, so that every image is shown once per epoch; its flip,
    quarter turn and HED jitter are drawn from k. Each of `world` processes gets every `world`-th image of a batch, from its `rank` on.
    """

    def __init__(
        self, patches: PatchSet, batch: int, seed: int, flips: bool, turns: bool, rank: int = 0, world: int = 1
    ) -> None:
        if not len(patches):
            raise UserError(f"{patches.source}: this selection has no image to train on")
        if batch % world:
            raise UserError(f"training.batch {batch} cannot be shared evenly by {world} processes")
        self._patches, self._seed, self._flips, self._turns = patches, seed, flips, turns
        self._batch, self._rank, self._world = batch, rank, world
        self._orders: dict[int, NDArray[np.int64]] = {}

    def at(self, nimg: int, batch: int | None = None) -> Tensor:
        """The batch after `nimg` images: float32 [batch / world, 3, R, R] in [-1, 1]. batch: another size than the stream's."""
        return in_range(self.fetch(nimg, batch))

    def fetch(self, nimg: int, batch: int | None = None) -> Tensor:
        """The same images as uint8 [batch / world, R, R, 3], a quarter of the bytes: see `in_range`."""
        k = self._counted(nimg, batch)
        return _wrapped(self._images(k, self._chosen(k)))

    def _images(self, k: NDArray[np.int64], rows: NDArray[np.int64]) -> Pixels:
        """The patches of `rows`, augmented as images `k` of the stream."""
        found = self._patches.gather(rows, self._transforms(k))
        if not (strength := self._patches.hed_jitter):
            return found
        bits = _mixed(6 * k[:, None] + np.arange(6), self._seed, stream=2)
        return hed_jitter(found, strength * (bits / 2.0**63 - 1))

    def _counted(self, nimg: int, batch: int | None) -> NDArray[np.int64]:
        return nimg + np.arange(self._rank, batch or self._batch, self._world)

    def _chosen(self, k: NDArray[np.int64]) -> NDArray[np.int64]:
        n = self.epoch
        epochs = range(int(k[0]) // n, int(k[-1]) // n + 1)
        self._orders = {e: self._orders[e] if e in self._orders else self._order(e) for e in epochs}
        return np.concatenate([self._orders[e][k[k // n == e] % n] for e in epochs])

    @property
    def epoch(self) -> int:
        """Images of one epoch."""
        return len(self._patches)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._patches))

    def _transforms(self, k: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The transform of each image for `PatchSet.gather`, [n]; all allowed ones are equally likely."""
        bits: NDArray[np.uint8] = (_mixed(k, self._seed) >> np.uint64(61)).astype(np.uint8)
        if self._flips and self._turns:
            return bits
        if self._flips:
            return bits & np.uint8(3)
        return QUARTER_TURNS[bits & np.uint8(3)] if self._turns else np.zeros_like(bits)


class LabelledStream(TrainStream):
    """A `TrainStream` of images with their labels, in which both classes may be made equally frequent.

    `balance`: "none"; "oversample": an epoch shows every image of the larger class once, and repeats those of the smaller class equally
    often to within one; "undersample": an epoch shows every image of the smaller class once, and as many of the larger, drawn for each
    epoch. Raises `UserError` where a class is missing or an image has no label.
    """

    def __init__(
        self, patches: PatchSet, batch: int, seed: int, flips: bool, turns: bool, rank: int = 0, world: int = 1, balance: str = "none"
    ) -> None:  # fmt: skip
        super().__init__(patches, batch, seed, flips, turns, rank, world)
        labels = patches.manifest.label
        self._classes = [np.flatnonzero(labels == label) for label in (0, 1)]
        if len(patches) > sum(map(len, self._classes)):
            raise UserError(f"{patches.source}: some training images have no label")
        sizes = [len(rows) for rows in self._classes]
        for size, name in zip(sizes, ("normal", "anomalous"), strict=True):
            if not size:
                raise UserError(
                    f"{patches.source}: no {name} image among {len(patches)} to learn from; give both classes"
                )
        shown = {"none": sizes, "oversample": [max(sizes)] * 2, "undersample": [min(sizes)] * 2}
        if balance not in shown:
            raise ValueError(f"balance must be one of {', '.join(shown)}, not {balance!r}")
        self._shown = shown[balance]

    def at(self, nimg: int, batch: int | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The batch after `nimg` images, as in `TrainStream`, and its labels, int64 [batch / world]: 0 normal, 1 anomalous."""
        pixels, labels = self.fetch(nimg, batch)
        return in_range(pixels), labels

    def fetch(self, nimg: int, batch: int | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The same with images as uint8 [batch / world, R, R, 3]."""
        k = self._counted(nimg, batch)
        rows = self._chosen(k)
        labels = torch.from_numpy(self._patches.manifest.label[rows].astype(np.int64))
        return _wrapped(self._images(k, rows)), labels

    @property
    def epoch(self) -> int:
        """Images of one epoch, which depend on `balance`."""
        return sum(self._shown)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((self._seed, epoch))
        picked = []
        for rows, count in zip(self._classes, self._shown, strict=True):
            times = -(-count // len(rows))
            # The last round may be incomplete: its images are drawn.
            picked += [*[rows] * (times - 1), rng.permutation(rows)[: count - (times - 1) * len(rows)]]
        return rng.permutation(np.concatenate(picked))


def _mixed(k: NDArray[np.int64], seed: int, stream: int = 1) -> NDArray[np.uint64]:
    """Random bits of each counter value, without state: SplitMix64 (Steele, Lea & Flood, 2014) started from seed and stream."""
    start = np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0]
    z = start + (k.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def some(patches: PatchSet, limit: int | None, seed: int) -> PatchSet:
    """At most `limit` of the patches, drawn with `seed`, in their order."""
    if limit is None or len(patches) <= limit:
        return patches
    return patches.take(np.sort(np.random.default_rng(seed).choice(len(patches), limit, replace=False)))
