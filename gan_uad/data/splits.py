"""In which split each image of a source is: as the source says, made by group, or a fold of a cross-validation."""

from __future__ import annotations

from gan_uad.config import DataConfig
from gan_uad.data.manifest import Manifest
from gan_uad.data.sources import Source
from gan_uad.errors import UserError

UNGROUPED = "groups (patients or slides) are unknown: each image counts as its own group"


def split_manifest(source: Source, data: DataConfig) -> tuple[Manifest, list[str]]:
    """The manifest with every row in a split, and notes that say how.

    Splits of the source are kept, except for cross-validation (`data.folds`). Raises `UserError` when they put a group on two sides.
    """
    manifest, notes = source.manifest, list(source.notes)
    if data.folds is not None and data.fold is not None:
        return _folded(source, data.folds, data.fold, data)
    if torn := manifest.groups_on_two_sides():
        some = "; ".join(f"{group} in {' and '.join(sorted(sides))}" for group, sides in sorted(torn.items())[:3])
        raise UserError(
            f"{source.path}: {len(torn)} groups lie on two sides of the split ({some}), so that training groups would be tested on: "
            "move each group to one side"
        )
    known = any(manifest.group)
    grouped = "by group" if known else "image by image"
    shares = "/".join(f"{share:.0%}" for share in data.split_fractions)
    if missing := manifest.split.count(""):
        manifest = manifest.with_splits(data.split_fractions, data.split_seed)
        what = "no split is given" if missing == len(manifest) else f"{missing} images have no split"
        notes.append(f"{what}: train/val/test are made {shares}, {grouped}")
    elif "train" in manifest.split and "val" not in manifest.split and data.split_fractions[1] > 0:
        manifest = manifest.with_val_from_train(data.split_fractions, data.split_seed)
        moved = manifest.split.count("val")
        notes.append(f"no validation split is given: {moved} images of train are moved to val, {grouped}")
    if not known:
        notes.append(UNGROUPED)
    return manifest, notes


def _folded(source: Source, folds: int, fold: int, data: DataConfig) -> tuple[Manifest, list[str]]:
    """The splits of one fold, and notes. Raises `UserError` where there are fewer groups than folds."""
    manifest, notes = source.manifest, list(source.notes)
    groups = len({group or i for i, group in enumerate(manifest.group)})
    if groups <= folds:  # one more than folds, for a validation split
        few = f"{groups} groups (patients or slides) are too few for {folds} folds and a validation split"
        raise UserError(f"{source.path}: {few}; use fewer folds")
    ignored = "; the splits of the source are put aside" if any(manifest.split) else ""
    notes.append(f"fold {fold} of {folds} is test, val is made from the others, by group{ignored}")
    if not any(manifest.group):
        notes.append(UNGROUPED)
    return manifest.with_fold(folds, fold, data.split_fractions, data.split_seed), notes
