"""Training normals of which a share is anomalous: exactly so many, drawn by seed, the same for whatever is trained."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from score_tools import fails, index, rows

import gan_uad
from gan_uad.config import DataConfig
from gan_uad.data.patches import PatchSet, contaminated, load_patches
from gan_uad.demo.phantom import write_phantom

SHARE, SEED = 0.125, 3
VAE = {
    "model": "conv_vae", "task": "vae", "resolution": 32, "network": {"channels": [4, 8], "latent_dim": 4},
    "training": {"total_kimg": 0.048, "batch": 16}, "scoring": {"scorer": "vae"},
}  # fmt: skip


@pytest.fixture(scope="module")
def patches(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("contaminated") / "patches"
    return write_phantom(out, resolution=32, train=40, train_anomalous=9, val=20, test=10, groups=(4, 4, 4))


def drawn(folder: Path, share: float, seed: int = SEED) -> tuple[PatchSet, PatchSet]:
    complete = load_patches(DataConfig(path=str(folder)), 32)
    return complete, contaminated(complete, complete.select("train", 0), share, seed)


@pytest.fixture(scope="module")
def by_hand(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same set with an index in which the images that were drawn are normal, and the others of the train split are not there."""
    _, picked = drawn(patches, SHARE)
    out = tmp_path_factory.mktemp("by_hand") / "patches"
    shutil.copytree(patches, out)
    kept = [row for row in index(patches) if row["split"] != "train" or row["image"] in set(picked.manifest.image)]
    for row in kept:
        row["label"] = "0" if row["split"] == "train" else row["label"]
    with open(out / "index.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    return out


def test_so_many_are_replaced(patches: Path) -> None:
    label = {row["image"]: (row["split"], row["label"]) for row in index(patches)}
    complete, picked = drawn(patches, SHARE)
    found = [label[name] for name in picked.manifest.image]
    assert (found.count(("train", "0")), found.count(("train", "1"))) == (35, 5)  # 12.5 % of 40
    assert len(set(picked.manifest.image)) == 40
    assert set(picked.manifest.label.tolist()) == {0}
    order = complete.manifest.image
    assert picked.manifest.image == sorted(picked.manifest.image, key=order.index)
    at = [order.index(name) for name in picked.manifest.image]
    assert (picked.images == complete.images[at]).all()
    assert picked.manifest.group == [complete.manifest.group[i] for i in at]


def test_drawn_by_seed_and_nested(patches: Path) -> None:
    def names(share: float, seed: int = SEED) -> set[str]:
        return set(drawn(patches, share, seed)[1].manifest.image)

    normal = set(drawn(patches, 0.0)[1].manifest.image)
    assert names(SHARE) == names(SHARE)
    assert names(SHARE) != names(SHARE, 4)
    few, many = names(0.05), names(0.2)
    assert few - normal < many - normal
    assert normal - few < normal - many


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("config", ["mean_color", "vae"])
def test_trained_on_what_was_drawn(cli: Any, patches: Path, by_hand: Path, config: str, tmp_path: Path) -> None:
    """The run equals one on a set in which those images are simply called normal; thresholds and metrics depend on the same images."""
    source = tmp_path / "vae.yaml" if config == "vae" else config
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump(VAE))
    words = ["train", source, "-o", f"training.seed={SEED}", "-o", "resolution=32"]
    result = cli(*words, "--data", patches, "-o", f"data.contamination={SHARE}", "--out", tmp_path / "contaminated")
    assert result.exit_code == 0, result.output
    assert "40 normal" in result.stderr
    assert f"{SHARE:g} of them" in result.stderr
    result = cli(*words, "--data", by_hand, "--out", tmp_path / "by_hand")
    assert result.exit_code == 0, result.output
    scores = []
    for name in ("contaminated", "by_hand"):
        run = tmp_path / name / f"00000-{config}"
        assert cli("score", run, "--out", tmp_path / "scores" / name).exit_code == 0
        scores.append(
            [
                row["score"]
                for file in ("scores", "scores_validation")
                for row in rows(tmp_path / "scores" / name / f"{file}.csv")
            ]
        )
    assert scores[0] == scores[1]
    assert gan_uad.load(str(tmp_path / "contaminated" / f"00000-{config}")).config.data.contamination == SHARE
    if config == "vae":  # the baseline beside it knows clean normals
        clean = cli("train", "mean_color", "-o", "resolution=32", "--data", patches, "--out", tmp_path / "clean")
        assert clean.exit_code == 0
        assert (
            cli("score", tmp_path / "clean" / "00000-mean_color", "--out", tmp_path / "scores" / "clean").exit_code == 0
        )
        of = [tmp_path / "scores" / "contaminated" / "mean_color.csv", tmp_path / "scores" / "clean" / "scores.csv"]
        numbers = [[float(row["score"]) for row in rows(file)] for file in of]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)


@pytest.mark.usefixtures("fast")
def test_a_scorer_that_learns_when_it_scores_learns_from_the_same(cli: Any, patches: Path, tmp_path: Path) -> None:
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump(VAE))
    words = [
        "train",
        "-o",
        f"training.seed={SEED}",
        "-o",
        f"data.contamination={SHARE}",
        "--data",
        patches,
        "-o",
        "resolution=32",
    ]
    scores = []
    for source in ("mean_color", tmp_path / "vae.yaml"):
        name = Path(source).stem
        assert cli(*words, source, "--out", tmp_path).exit_code == 0
        run = next(tmp_path.glob(f"0000?-{name}"))
        result = cli("score", run, "-o", "scoring.scorer=mean_color", "--out", tmp_path / "scores" / name)
        assert result.exit_code == 0, result.output
        scores.append([float(row["score"]) for row in rows(tmp_path / "scores" / name / "scores.csv")])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize(
    ("source", "setting", "message"),
    [
        ("mean_color", "data.contamination=0.25", "0.25 of 40 training images"),
        ("mean_color", "data.contamination=0.01", "0.01 of 40 training images"),
        ("mean_color", "data.contamination=0.6", "data.contamination"),
        ("densenet_64_small", "data.contamination=0.1", "label"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    cli: Any, patches: Path, source: str, setting: str, message: str, tmp_path: Path
) -> None:
    fails(cli("train", source, "--data", patches, "-o", setting, "-o", "resolution=32", "--out", tmp_path), message)
    assert not list(tmp_path.iterdir())


def test_a_run_stays_as_it_was_contaminated(cli: Any, trained: Any, tmp_path: Path) -> None:
    result = cli("score", trained.encoder, "-o", "data.contamination=0.1", "--out", tmp_path / "out")
    fails(result, "data.contamination=0.1")


def test_phantom_train_split_may_hold_anomalies(patches: Path, tmp_path: Path) -> None:
    counted = load_patches(DataConfig(path=str(patches)), 32).manifest.counts()
    assert counted["train"]["normal"] == 40
    assert sum(counted["train"].values()) == 49
    assert json.loads((patches / "phantom.json").read_text())["train_anomalous"] == 9
    plain = write_phantom(tmp_path / "plain", resolution=32, train=3, val=1, test=1, groups=(4, 4, 4))
    assert "train_anomalous" not in json.loads((plain / "phantom.json").read_text())
    for row in index(plain):  # and those that are in both are the same
        assert (plain / row["image"]).read_bytes() == (patches / row["image"]).read_bytes()
    assert np.isin([row["image"] for row in index(plain)], [row["image"] for row in index(patches)]).all()
