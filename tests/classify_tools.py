"""What the tests of classifiers share: labelled patches, a classifier, two generators, Table 2, and metrics by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sharing import once
from torch import Tensor

import gan_uad
from gan_uad.data.patches import to_tensor, to_uint8
from gan_uad.demo.phantom import render_patch

TINY = """
model: densenet121
task: supervised
resolution: 32
network: {growth_rate: 8, block_config: [2, 2], init_features: 8}
optim: {lr: 0.005, balance: oversample, augment: 0.2}
data: {label: all}
training: {total_kimg: 0.48, batch: 16, threads: 1, tick_kimg: 0.12, snapshot_kimg: 0.48, checkpoint_kimg: 0.12, eval_kimg: 0.12}
scoring: {scorer: classifier, threshold: "manual:0"}
"""
SPLITS = {"train": (48, 24), "val": (16, 16), "test": (14, 10)}
NO_MORE = ("-o", "training.tick_kimg=0.02", "-o", "training.checkpoint_kimg=0.02")  # what else a run of seconds needs


@pytest.fixture(scope="session")
def labelled_patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom tissue, normal and with bleeding, of five slides a split."""

    def make(folder: Path) -> None:
        table = [["image", "group", "label", "split"]]
        for number, (split, counts) in enumerate(SPLITS.items()):
            for label, count in enumerate(counts):
                for i in range(count):
                    rng = np.random.default_rng([number, label, i])
                    picture, _ = render_patch(rng, 32, "haemorrhage" if label else None)
                    name = f"{split}_{label}_{i:02d}.png"
                    Image.fromarray(picture).save(folder / name)
                    table.append([name, f"{split}-{i % 5}", str(label), split])
        with open(folder / "index.csv", "w", newline="") as file:
            csv.writer(file).writerows(table)

    return once(tmp_path_factory, "labelled_patches", make)


@pytest.fixture(scope="session")
def classifier_preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = "tiny_classifier.yaml"
    return once(tmp_path_factory, "presets", lambda folder: (folder / name).write_text(TINY)) / name


@pytest.fixture(scope="session")
def classifier(
    cli: Any, labelled_patches: Path, classifier_preset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run. Nobody writes into it."""

    def make(out: Path) -> None:
        result = cli("train", classifier_preset, "--data", labelled_patches, "--out", out)
        assert result.exit_code == 0, result.output

    return once(tmp_path_factory, "classifier", make) / "00000-tiny_classifier"


@pytest.fixture(scope="session")
def two_generators(labelled_patches: Path, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs of a few steps, on normal and on anomalous patches."""

    def make(out: Path) -> None:
        words = ("--data", labelled_patches, "-o", "data.label=anomalous")
        result = tiny.train(tiny.config("wgan_gp"), out, *words, total_kimg=0.008)
        assert result.exit_code == 0, result.output

    return {"normal": tiny.generator, "anomalous": once(tmp_path_factory, "generators", make) / "00000-wgan_gp"}


@pytest.fixture(scope="session")
def table2(
    cli: Any, classifier: Path, two_generators: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("table2")
    result = cli("classify", classifier, *both(two_generators), "--num", 16, "--seed", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == (out / "classify.md").read_text()
    return out


def both(generators: dict[str, Path]) -> list[object]:
    return ["--normal", generators["normal"], "--anomalous", generators["anomalous"]]


def wilson(right: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    centre, half = right / n + z * z / (2 * n), z * math.sqrt(right * (n - right) / n**3 + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def called(run: Path, images: Tensor) -> list[int]:
    """The classes that the best model of a run gives to 8-bit images."""
    net = gan_uad.load(str(run / "best.safetensors")).networks["classifier"]
    with torch.no_grad():
        found: list[int] = net(to_tensor(to_uint8(images))).argmax(1).tolist()
    return found
