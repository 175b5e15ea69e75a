"""The phantom: exact masks, the same bytes every time, groups in one split each, and colour that hardly separates the classes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu
from skimage.measure import label

from gan_uad.demo.phantom import ANOMALIES, SPLITS, Stain, render_patch, write_phantom

PAPER_STAIN = Stain((0.80, 1.04, 0.45), (0.12, 0.70, 0.38))


def render(seed: int, resolution: int = 64, anomaly: str | None = None, stain: Stain | None = None):
    return render_patch(np.random.default_rng(seed), resolution, anomaly, stain)


def read_index(out: Path) -> list[dict[str, str]]:
    with open(out / "index.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "set", resolution=32, train=12, val=10, test=20)


@pytest.mark.parametrize("resolution", [16, 64, 128])
@pytest.mark.parametrize("anomaly", ANOMALIES)
def test_mask_is_where_the_anomaly_changed_the_normal_tissue(anomaly: str, resolution: int) -> None:
    for seed in range(4):
        normal, empty = render(seed, resolution)
        changed, mask = render(seed, resolution, anomaly)
        assert normal.shape == (resolution, resolution, 3)
        assert normal.dtype == np.uint8
        assert mask.shape == (resolution, resolution)
        assert mask.dtype == bool
        assert not empty.any()
        differs = (normal != changed).any(-1)
        assert not differs[~mask].any()
        assert differs[mask].mean() > 0.9


@pytest.mark.parametrize("anomaly", ANOMALIES)
def test_mask_area(anomaly: str) -> None:
    areas = [render(seed, 32, anomaly)[1].mean() for seed in range(20)]
    assert min(areas) >= 0.08
    assert max(areas) <= 0.5
    assert np.ptp(areas) > 0.1


@pytest.mark.parametrize("anomaly", [None, *ANOMALIES])
def test_same_field_of_view_at_every_resolution(anomaly: str | None) -> None:
    for seed in range(3):
        large, large_mask = render(seed, 128, anomaly)
        shrunk = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
        shrunk_mask = large_mask.reshape(64, 2, 64, 2).any((1, 3))
        image, mask = render(seed, 64, anomaly)
        assert np.corrcoef(image.ravel(), shrunk.ravel())[0, 1] > 0.95
        assert (mask != shrunk_mask).mean() < 0.03
        half, half_mask = render(seed, 32, anomaly)
        assert np.abs(half - image.reshape(32, 2, 32, 2, 3).mean((1, 3))).max() <= 1
        assert np.array_equal(half_mask, mask.reshape(32, 2, 32, 2).any((1, 3)))


def dark_areas(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixel areas of the connected dark red-channel regions (nuclei) inside the mask."""
    regions = label((image[..., 0] < 140) & mask)
    areas = np.bincount(regions.ravel())[1:]
    return areas[areas >= 4]


def test_nuclei_are_six_to_eight_pixels_and_giants_larger() -> None:
    normal, giant = [], []
    for seed in range(30):
        image, _ = render(seed, 64, None, PAPER_STAIN)
        normal += dark_areas(image, np.ones((64, 64), bool)).tolist()
        giant += dark_areas(*render(seed, 64, "giant_nuclei", PAPER_STAIN)).tolist()
    diameter = 2 * np.sqrt(np.median(normal) / np.pi)
    assert 5 <= diameter <= 8
    assert np.percentile(giant, 75) > 2 * np.percentile(normal, 75)


def test_stain_sets_colour_by_optical_density() -> None:
    """Doubling both stains doubles every optical density, so the pixel goes from 240·t to 240·t²."""
    double = Stain(tuple(2 * v for v in PAPER_STAIN.haematoxylin), tuple(2 * v for v in PAPER_STAIN.eosin))
    for seed in range(3):
        once, twice = (render(seed, 64, "crowded", s)[0].astype(float) for s in (PAPER_STAIN, double))
        assert np.abs(twice - 240 * (once / 240) ** 2).max() < 2


def test_normal_patches_vary_and_are_pink_with_purple_nuclei() -> None:
    images = np.stack([render(seed, 64, None, PAPER_STAIN)[0] for seed in range(20)]).astype(float)
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20
    red, green, blue = images.mean((0, 1, 2))
    assert red > blue > green
    dark = images[images[..., 0] < 120]
    assert (dark[:, 2] > dark[:, 0]).mean() > 0.9


def test_colour_alone_hardly_separates_the_classes() -> None:
    """The baseline of the module docstring, smaller; the anomalies must be found by structure."""
    rng = np.random.default_rng(0)

    def means(slides: int, each: int, anomalous: bool) -> np.ndarray:
        rows = []
        for _ in range(slides):
            stain = Stain.draw(rng)
            kinds = [ANOMALIES[i % len(ANOMALIES)] if anomalous else None for i in range(each)]
            rows += [render_patch(rng, 32, kind, stain)[0].mean((0, 1)) for kind in kinds]
        return np.array(rows)

    train, normal, anomalous = means(40, 3, False), means(16, 5, False), means(16, 5, True)
    inverse = np.linalg.inv(np.cov(train.T))
    high, low = (np.einsum("ni,ij,nj->n", d, inverse, d) for d in (anomalous - train.mean(0), normal - train.mean(0)))
    auroc = mannwhitneyu(high, low).statistic / (len(high) * len(low))
    assert 0.4 < auroc < 0.75


def test_index_describes_the_files(small: Path) -> None:
    rows = read_index(small)
    assert list(rows[0]) == ["image", "group", "label", "split", "class", "mask"]
    count = {(split, y): sum(r["split"] == split and r["label"] == y for r in rows) for split in SPLITS for y in "01"}
    assert list(count.values()) == [12, 0, 10, 10, 20, 20]
    assert {r["image"] for r in rows} == {f"images/{f.name}" for f in (small / "images").iterdir()}
    assert {r["mask"] for r in rows} - {""} == {f"masks/{f.name}" for f in (small / "masks").iterdir()}
    for row in rows:
        assert Image.open(small / row["image"]).size == (32, 32)
        assert row["class"] in (ANOMALIES if row["label"] == "1" else ("normal",))
        assert bool(row["mask"]) == (row["label"] == "1")
        if row["mask"]:
            mask = np.asarray(Image.open(small / row["mask"]))
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) == {0, 255}
    assert {r["class"] for r in rows if r["split"] == "test"} == {"normal", *ANOMALIES}


def test_groups_stay_on_one_side_and_hold_both_labels(small: Path) -> None:
    sides: dict[str, set[str]] = {}
    labels: dict[str, set[str]] = {}
    for row in read_index(small):
        sides.setdefault(row["group"], set()).add(row["split"])
        labels.setdefault(row["group"], set()).add(row["label"])
    assert all(len(side) == 1 for side in sides.values())
    assert len(sides) == 3 + 2 + 4
    for group, side in sides.items():
        assert labels[group] == ({"0"} if side == {"train"} else {"0", "1"})


def test_same_bytes_again_whatever_the_counts(small: Path, tmp_path: Path) -> None:
    again = write_phantom(tmp_path / "again", resolution=32, train=12, val=10, test=20)
    assert (again / "index.csv").read_bytes() == (small / "index.csv").read_bytes()
    fewer = write_phantom(tmp_path / "fewer", resolution=32, train=3, val=11, test=6)
    shared = [f.relative_to(small) for f in small.glob("*/*.png") if (fewer / f.relative_to(small)).exists()]
    assert len(shared) == (3 + 2 * 10 + 2 * 6) + 10 + 6
    for name in shared:
        assert (small / name).read_bytes() == (again / name).read_bytes() == (fewer / name).read_bytes()
    other = write_phantom(tmp_path / "other", resolution=32, train=3, val=1, test=1, seed=1)
    name = "images/train_normal_00000.png"
    assert (other / name).read_bytes() != (small / name).read_bytes()


def test_complete_set_is_left_and_other_arguments_refused(tmp_path: Path) -> None:
    counts = {"resolution": 16, "train": 2, "val": 1, "test": 1}
    seen: list[tuple[int, int]] = []
    out = write_phantom(tmp_path / "set", **counts, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]
    victim = out / "images" / "train_normal_00000.png"
    content = victim.read_bytes()
    victim.write_bytes(b"touched")
    write_phantom(out, **counts)
    assert victim.read_bytes() == b"touched"
    with pytest.raises(ValueError, match=str(out)):
        write_phantom(out, **counts, seed=1)
    # Interrupted before the index: the same arguments resume, others may not add their images.
    (out / "index.csv").unlink()
    with pytest.raises(ValueError, match=str(out)):
        write_phantom(out, **{**counts, "train": 3})
    write_phantom(out, **counts)
    assert victim.read_bytes() == content
    assert len(read_index(out)) == 6
    assert not list(out.rglob("*.tmp"))


def test_foreign_index_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("image,label\n", encoding="utf-8")
    with pytest.raises(ValueError, match=str(tmp_path)):
        write_phantom(tmp_path, resolution=16, train=1, val=1, test=1)
    assert (tmp_path / "index.csv").read_text(encoding="utf-8") == "image,label\n"


@pytest.mark.parametrize("resolution", [0, -64, 8, 48, 1024])
def test_bad_resolution(resolution: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{resolution}:"):
        render(0, resolution)
    with pytest.raises(ValueError, match=f"{resolution}:"):
        write_phantom(tmp_path / "set", resolution=resolution)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("bad", [{"train": 0}, {"val": -1}, {"test": 0}, {"seed": -1}, {"groups": (1, 0, 1)}])
def test_bad_counts(bad: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        write_phantom(tmp_path / "set", **bad)
    assert not (tmp_path / "set").exists()


def test_unknown_anomaly_lists_the_known() -> None:
    with pytest.raises(ValueError, match=", ".join(ANOMALIES)):
        render(0, 64, "tumor")
