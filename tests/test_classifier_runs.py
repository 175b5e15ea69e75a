"""Classifiers as runs: training, validation, resuming, scoring, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classify_tools import NO_MORE, both, called
from run_tools import metrics_of, same, state
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from score_tools import fails, rows

import gan_uad
from gan_uad.config import DataConfig
from gan_uad.data.patches import load_patches, to_tensor


def test_it_learns_to_separate_the_classes(classifier: Path) -> None:
    validated = [json.loads(line) for line in (classifier / "metrics.jsonl").read_text().splitlines()]
    assert [row["nimg"] for row in validated] == [128, 240, 368, 480]
    assert set(validated[0]) == {"nimg", "kimg", "best", "val_loss", "val_accuracy", "val_auroc"}
    assert max(row["val_auroc"] for row in validated) > 0.95
    best = min(validated, key=lambda row: row["val_loss"])
    model = gan_uad.load(str(classifier))
    assert model.nimg == best["nimg"], "a run folder means its best model"
    assert gan_uad.load(str(classifier / "model.safetensors")).nimg == 480
    assert list(model.networks) == ["classifier"]


def test_it_scores_and_evaluates_like_any_detector(
    cli: Any, classifier: Path, labelled_patches: Path, tmp_path: Path
) -> None:
    result = cli("score", classifier, "--out", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    found = rows(tmp_path / "scores" / "scores.csv")
    assert list(found[0]) == ["image", "group", "label", "score", "model", "threshold", "decision"]
    assert {row["model"] for row in found} == {"tiny_classifier/classifier"}
    test = load_patches(DataConfig(path=str(labelled_patches)), 32).select("test")
    assert [int(row["decision"]) for row in found] == called(classifier, to_tensor(test.images))
    assert (tmp_path / "scores" / "mean_color.csv").is_file()
    assert not (tmp_path / "scores" / "triplets.png").exists(), "no reconstructions"
    described = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert (described["scorer"], described["inverter"]) == ("classifier", None)
    result = cli("evaluate", tmp_path / "scores", "--resamples", 100)
    assert result.exit_code == 0, result.output
    accuracy = np.mean([row["decision"] == row["label"] for row in found])
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["tiny_classifier/classifier"]["decisions"]["accuracy"] == pytest.approx(accuracy)


def test_a_resumed_classifier_ends_as_an_uninterrupted_one(
    cli: Any, labelled_patches: Path, classifier_preset: Path, tmp_path: Path
) -> None:
    few = ("-o", "training.eval_kimg=0.016", "-o", "training.total_kimg=0.096", *NO_MORE)
    assert cli("train", classifier_preset, "--data", labelled_patches, "--out", tmp_path / "whole", *few).exit_code == 0
    cut = (*few, "-o", "training.total_kimg=0.048")
    assert cli("train", classifier_preset, "--data", labelled_patches, "--out", tmp_path / "parts", *cut).exit_code == 0
    run, whole = (tmp_path / name / "00000-tiny_classifier" for name in ("parts", "whole"))
    result = cli("train", run, "--resume", "-o", "training.total_kimg=0.096")
    assert result.exit_code == 0, result.output
    same(state(run), state(whole))
    assert metrics_of(run)[-1] == metrics_of(whole)[-1]
    assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    a, b = (load_file(folder / "best.safetensors") for folder in (run, whole))
    same(a, b)


def test_a_validated_run_resumes_only_with_validation(cli: Any, classifier: Path, tmp_path: Path) -> None:
    run = shutil.copytree(classifier, tmp_path / classifier.name)
    before = (run / "config.yaml").read_text()
    more = ("-o", "training.total_kimg=0.6")
    fails(
        cli("train", run, "--resume", "-o", "training.eval_kimg=null", *more),
        "training.eval_kimg",
    )
    assert (run / "config.yaml").read_text() == before


def test_imagenet_weights_are_looked_for_at_the_start_only(
    cli: Any, labelled_patches: Path, classifier_preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gan_uad.errors import UserError
    from gan_uad.training import supervised

    begun = []
    monkeypatch.setattr(supervised, "start_from_imagenet", begun.append)
    few = ("-o", "training.eval_kimg=0.032", "-o", "training.total_kimg=0.032", *NO_MORE)
    words = ("train", classifier_preset, "--data", labelled_patches, "-o", "optim.init=imagenet")
    assert cli(*words, "--out", tmp_path / "runs", *few).exit_code == 0
    assert len(begun) == 1

    def gone(model: Any) -> None:
        raise UserError("the file is gone")

    monkeypatch.setattr(supervised, "start_from_imagenet", gone)
    run = tmp_path / "runs" / "00000-tiny_classifier"
    result = cli("train", run, "--resume", "-o", "training.total_kimg=0.064")
    assert result.exit_code == 0, result.output
    assert state(run)["nimg"] == 64
    fails(cli(*words, "--out", tmp_path / "other", *few), "the file is gone")
    assert not (tmp_path / "other").exists()
    # Killed before anything was saved: a run starts at the beginning, with the weights.
    for file in run.glob("state*.pt"):
        file.unlink()
    fails(cli("train", run, "--resume"), "the file is gone")


def test_done_says_what_was_reached(cli: Any, labelled_patches: Path, classifier_preset: Path, tmp_path: Path) -> None:
    few = ("-o", "training.eval_kimg=0.016", "-o", "training.total_kimg=0.02", *NO_MORE)
    result = cli("train", classifier_preset, "--data", labelled_patches, "--out", tmp_path, *few)
    assert "(0.032 kimg; best val_loss" in result.stderr.splitlines()[-1], "batches are complete"


def test_what_a_classifier_cannot_be_trained_on(
    cli: Any, labelled_patches: Path, classifier_preset: Path, tmp_path: Path
) -> None:
    normals = tmp_path / "normals"
    normals.mkdir()
    table = [row for row in rows(labelled_patches / "index.csv") if row["label"] == "0" or row["split"] != "val"]
    for row in table:
        shutil.copy(labelled_patches / row["image"], normals)
    with open(normals / "index.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    train = ("train", classifier_preset, "--out", tmp_path / "runs")
    fails(cli(*train, "--data", normals), "no anomalous image among the 16 validation images", "training.eval_kimg")
    fails(
        cli(*train, "--data", labelled_patches, "-o", "data.label=normal"), "no anomalous image among 48 to learn from"
    )
    fails(
        cli(*train, "--data", labelled_patches, "-o", "training.batch=80"),
        "72 all train images are too few",
        "smaller -o training.batch",
    )
    assert not (tmp_path / "runs").exists()


def test_a_classifier_has_no_inverter(
    cli: Any, classifier: Path, two_generators: dict[str, Path], tmp_path: Path
) -> None:
    fails(cli("score", classifier, "--inverter", "anogan", "--out", tmp_path), "--inverter")
    fails(
        cli("score", classifier, "-o", "scoring.scorer=gan_inversion", "--out", tmp_path),
        "scoring.scorer",
    )
    result = cli("score", two_generators["normal"], "-o", "scoring.scorer=classifier", "--out", tmp_path)
    fails(result, "needs a trained classifier, not gan")


def test_a_damaged_classifier(cli: Any, classifier: Path, two_generators: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(classifier / "best.safetensors")
    tensors["classifier.net.classifier.bias"][1] = math.inf
    with safe_open(classifier / "best.safetensors", framework="pt") as file:
        save_file(tensors, tmp_path / "bad.safetensors", metadata=file.metadata())
    result = cli("classify", tmp_path / "bad.safetensors", *both(two_generators), "--num", 4, "--out", tmp_path / "out")
    fails(result, "bad.safetensors", "net.classifier.bias")
