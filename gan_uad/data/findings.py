"""What is said of a set of patches, by `data check` and by every command that reads it: one judgement for all."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from gan_uad.config import DataConfig, ScoringConfig
from gan_uad.data.cache import Tally
from gan_uad.data.images import BadImage, Mask
from gan_uad.data.layouts import PUT_NORMALS
from gan_uad.data.manifest import ANOMALOUS, LABELS, NORMAL, UNKNOWN, Manifest
from gan_uad.data.sources import Source
from gan_uad.device import cores
from gan_uad.errors import UserError
from gan_uad.metrics.detection import unmet

LARGEST_BATCH = 64  # of the presets that train a network
N_SIZES = 3  # that a note names


def notes_of(manifest: Manifest, tally: Tally, data: DataConfig, resolution: int) -> list[str]:
    """What was left out, cut, enlarged or repeated. `manifest`: the rows that `tally` kept."""
    notes = []
    if tally.skipped:
        notes.append(f"{len(tally.skipped)} broken images skipped, the first: {': '.join(tally.skipped[0])}")
    if tally.white:
        notes.append(f"{tally.white} images left out: their share of tissue is less than {data.min_tissue}")
    if tally.cut:
        notes.append(f"{tally.cut} images are not square: their centre square is used")
    if across := repeated(manifest, tally.hashes):
        a, b = (f"{manifest.image[i]} ({manifest.split[i]})" for i in across[0][:2])
        notes.append(f"{len(across)} images have the pixels of an image in another split, the first: {b} those of {a}")
    return notes + _sizes(manifest, tally, data, resolution)


def _sizes(manifest: Manifest, tally: Tally, data: DataConfig, resolution: int) -> list[str]:
    """Notes of sizes that give unequal µm/px, and of a crop that leaves something out."""
    sides = {size: min(map(int, size.split("x"))) for size in tally.sizes}
    if data.crop == "center":
        side, first = data.crop_size or resolution, next(iter(tally.sizes), "")
        if not first or sides[first] <= side:
            return []
        used = f"only the middle {side} px of each image are used, of {first} px in {manifest.image[0]}"
        return [f"data.crop is center: {used}; with -o data.crop=none they are resized instead"]
    notes = []
    if len(set(sides.values())) > 1:
        common = sorted(tally.sizes.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{n} of {size}" for size, n in common[:N_SIZES]) + (", ..." if len(common) > N_SIZES else "")
        notes.append(f"images of several sizes ({shown} px) are all resized to {resolution} px: their µm/px may differ")
    if small := sum(n for size, n in tally.sizes.items() if sides[size] < resolution):
        least = min(tally.sizes, key=sides.__getitem__)
        notes.append(f"{small} images are smaller than {resolution} px (the smallest {least}): they are enlarged")
    return notes


def repeated(manifest: Manifest, hashes: Sequence[str]) -> list[list[int]]:
    """Rows of equal pixels in several splits: for each image that repeats one of another split, that one and itself."""
    first: dict[str, int] = {}
    pairs = [[first.setdefault(content, i), i] for i, content in enumerate(hashes)]
    return [[a, b] for a, b in pairs if "" != manifest.split[a] != manifest.split[b] != ""]


def missing(manifest: Manifest, wanted: str = "normal") -> list[str]:
    """Which images a training and an evaluation need, and are not there. `wanted`: the label to train on (`data.label`)."""
    found = []
    if not len(manifest.where("train", LABELS[wanted])):
        label = "" if wanted == "all" else f"{wanted} "
        tissue = "normal tissue " if wanted == "normal" else ""
        fix = f"; {PUT_NORMALS}" if tissue and (manifest.label == UNKNOWN).all() else ""
        found.append(f"no {label}image in train: there is nothing to learn {tissue}from{fix}")
    return found + untested(manifest)


def untested(manifest: Manifest) -> list[str]:
    """Why detection cannot be evaluated on the test split of a set with anomalies, and where a set without them cannot either."""
    labels = [("normal", NORMAL)] + ([("anomalous", ANOMALOUS)] if ANOMALOUS in manifest.label else [])
    lost = [name for name, label in labels if not len(manifest.where("test", label))]
    return [f"no {name} image in test: detection cannot be evaluated" for name in lost]


def hints(manifest: Manifest, wanted: str) -> list[str]:
    """What some trainings, the threshold and the evaluation cannot do with these images."""
    notes = []
    if ANOMALOUS not in manifest.label and len(manifest.where("train", NORMAL)):
        notes.append("no anomalous image: models can be trained on these patches, but detection cannot be evaluated")
    groups = [manifest.group[i] for i in manifest.where("val", NORMAL)]
    if len(manifest.where("train", NORMAL)) and (reason := unmet(ScoringConfig().threshold, groups)):
        notes.append(reason)
    if 0 < (count := len(manifest.where("train", LABELS[wanted]))) < LARGEST_BATCH:
        kind = "" if wanted == "all" else f"{wanted} "
        needed = f"a network needs at least training.batch of them ({LARGEST_BATCH} or less in the presets)"
        notes.append(f"{count} {kind}train images: {needed}")
    if unknown := int((manifest.label == UNKNOWN).sum()):
        notes.append(f"{unknown} images have no label: they are in no metric")
    anomalous = manifest.where("test", ANOMALOUS)
    if any(manifest.mask) and (unmasked := sum(not manifest.mask[i] for i in anomalous)):
        notes.append(f"{unmasked} of {len(anomalous)} anomalous test images have no mask: there are no pixel metrics")
    return notes


def too_few_contaminants(manifest: Manifest, data: DataConfig, context: str) -> str:
    """Why `data.contamination` cannot be had; empty where it can."""
    normals, pool = (len(manifest.where("train", label)) for label in (NORMAL, ANOMALOUS))
    try:
        contaminants(normals, pool, data.contamination, context)
    except UserError as error:
        return error.message
    return ""


def contaminants(normals: int, pool: int, share: float, context: str) -> int:
    """How many of `normals` training images `data.contamination` replaces. Raises `UserError` where `pool` anomalous ones are too few."""
    count = round(share * normals)
    if not 0 < count <= pool:
        few = f"the train split has {pool}" if count else "give more images or a larger share"
        wanted = f"data.contamination {share:g} of {normals} training images is {count} anomalous ones"
        raise UserError(f"{context}: {wanted}; {few}")
    return count


def mask_of(source: Source, i: int) -> Mask | None:
    """The mask of image i, bool [H, W]; None where there is none.

    Raises `BadImage` for a file that cannot be read, and `UserError` for a mask of another size than its image, and one that can be
    read in two ways.
    """
    mask = source.read_mask(i)
    if mask is None:
        return None
    height, width = mask.shape
    if source.describe(i)[:2] != (width, height) or height != width:  # a camera's image may be stored on its side
        image = source.read(i).shape
        if image[:2] != mask.shape:
            names = source.manifest.mask[i], source.manifest.image[i]
            problem = f"the mask {names[0]} is {width}x{height} px, its image {names[1]} {image[1]}x{image[0]} px"
            raise UserError(f"{source.path}: {problem}: they must have one size")
    return mask


def unfit_masks(source: Source, manifest: Manifest, rows: Sequence[int]) -> list[tuple[str, str]]:
    """The masks of these rows that cannot be used, as (name, reason)."""

    def fault(i: int) -> str:
        try:
            mask_of(source, i)
        except BadImage as error:
            return error.reason
        except UserError as error:
            return error.message
        return ""

    masked = [i for i in rows if manifest.mask[i]]
    with ThreadPoolExecutor(cores()) as pool:
        faults = list(pool.map(fault, masked))
    return [(manifest.mask[i], reason) for i, reason in zip(masked, faults, strict=True) if reason]
