"""What version 0.1.0 wrote is read for good: runs, model files, scores, slides, results, benchmarks, configurations, options.

`data/written_by_0.1.0.zip` was made by that version (README.md in it has the commands); `expected.json` is what it said of its files.
"""

from __future__ import annotations

import csv
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gan_uad
from gan_uad import old_names, registry
from gan_uad.config import load_config, presets

ARCHIVE = Path(__file__).parent / "data" / "written_by_0.1.0.zip"
COMPARED = {"float": {"rtol": 2e-3, "atol": 2e-4}}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, unpacked; paths in configurations lead there, as they did where they were made."""

    def unpack(folder: Path) -> None:
        with zipfile.ZipFile(ARCHIVE) as archive:
            archive.extractall(folder)
        for config in folder.glob("oldfiles/runs/*/config.yaml"):
            config.write_text(config.read_text().replace("/tmp/oldfiles/", f"{folder}/oldfiles/"))

    folder: Path = tmp_path_factory.mktemp("old")
    unpack(folder)
    for name, time in json.loads((folder / "oldfiles" / "mtimes.json").read_text()).items():
        os.utime(folder / "oldfiles" / name, ns=(time, time))  # a set is known by the times of its files
    return folder / "oldfiles"


@pytest.fixture(scope="module")
def expected(old: Path) -> Any:
    return json.loads((old / "expected.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def with_keys(value: Any, names: set[str]) -> list[str]:
    """Those of the names that are keys anywhere inside."""
    found: list[str] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += [key] if key in names else []
            found += with_keys(inner, names)
    return found


def test_models_generate_and_score_as_they_did(old: Path, expected: Any) -> None:
    pictures = [np.asarray(Image.open(old / name).convert("RGB")) for name in expected["images"]]
    for run, said in expected["runs"].items():
        model = gan_uad.load(str(old / run))
        assert (model.nimg, model.name) == (said["nimg"], said["name"]), run
        images = torch.cat([model.preprocess(picture) for picture in pictures])
        if "generate" in said:
            made = model.generate(seeds=[0, 1])
            np.testing.assert_allclose(made.flatten()[:8], said["generate"]["first8"], **COMPARED["float"], err_msg=run)
            assert float(made.std()) == pytest.approx(said["generate"]["std"], rel=1e-3), run
        scorer = model.scorer(**said["score"]["options"])
        if scorer.spec["options"].get("combine", "own") != "own":
            continue  # rests on validation images: see the score folders
        scores = scorer.score(images)
        searched = (
            "steps" in said["score"]["options"]
        )  # Adam's first steps follow the sign of a gradient, be it rounding
        np.testing.assert_allclose(scores.image, said["score"]["image"], rtol=5e-2 if searched else 5e-3, err_msg=run)
        assert list(scores.components) == list(said["score"].get("parts", {})), run


def test_scores_are_those_of_the_score_files(old: Path, cli: Any, tmp_path: Path) -> None:
    """Of runs whose scorer or inverter has another name now."""
    for run, scored in (("00008-gaussian", "gaussian"), ("00009-gaussian_levels", "gaussian_levels")):
        result = cli("score", old / "runs" / run, old / "patches", "--out", tmp_path / scored)
        assert result.exit_code == 0, result.output
        before, after = (rows(place / "scores.csv") for place in (old / "scores" / scored, tmp_path / scored))
        assert [row["image"] for row in after] == [row["image"] for row in before]
        values = [[float(row["score"]) for row in found] for found in (after, before)]
        np.testing.assert_allclose(*values, rtol=1e-3)
    words = (
        "-o",
        "scoring.options.combine=fisher",
        "-o",
        "scoring.options.parts=[l1, w_mahalanobis]",
        "--inverter",
        "hybrid",
    )
    result = cli("score", old / "runs" / "00006-hybrid", old / "patches", *words, "--out", tmp_path / "hybrid")
    assert result.exit_code == 0, result.output
    assert "scoring.options.components" in result.stderr
    described = json.loads((tmp_path / "hybrid" / "scores.json").read_text())
    assert described["inverter"]["name"] == "style_encoder"
    assert described["options"]["components"] == ["l1", "w_mahalanobis"]


def test_score_folders_are_evaluated_as_they_were(old: Path, expected: Any, cli: Any, tmp_path: Path) -> None:
    for folder, models in expected["evaluate"].items():
        if not (old / folder / "scores.csv").is_file():
            continue
        result = cli("evaluate", old / folder, "--resamples", 100, "--out", tmp_path / folder)
        assert result.exit_code == 0, result.output
        found = json.loads((tmp_path / folder / "metrics.json").read_text())
        for name, metrics in models.items():
            for key in ("auroc", "auprc"):
                assert found[name][key]["value"] == pytest.approx(metrics[key]["value"], abs=1e-6), (folder, name)


def test_slides_are_evaluated_as_they_were(old: Path, cli: Any, tmp_path: Path) -> None:
    """tiles.csv had the column `rarity`; and slides were evaluated by `evaluate`."""
    before = json.loads((old / "slides" / "evaluation" / "metrics.json").read_text())
    places = [old / "slides" / name for name in ("patch_memory", "izi_f_fisher")]
    words = ("--annotations", old / "slides" / "slides", "--resamples", 200)
    for command in ("evaluate-slides", "evaluate"):
        result = cli(command, *places, *words, "--out", tmp_path / command)
        assert result.exit_code == 0, result.output
        after = json.loads((tmp_path / command / "metrics.json").read_text())
        assert list(after) == list(before)
        for name in before:
            assert after[name]["tiles"]["auroc"] == before[name]["tiles"]["auroc"]


def test_an_interrupted_training_ends_as_it_would_have(old: Path, expected: Any, cli: Any) -> None:
    said = expected["resumed"]["runs/00004-dcgan_long"]
    run = old / "runs" / "00004-dcgan_long"
    result = cli("train", run, "--resume")
    assert result.exit_code == 0, result.output
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(log) == said["log_rows"]
    for name, value in said["last_log_row"].items():
        assert log[-1][name] == pytest.approx(value, rel=2e-2, abs=0.2), name
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["nimg"] for row in metrics] == [row["nimg"] for row in said["judgements"]]
    assert yaml_keys(run / "config.yaml") & set(OLD_KEYS) == set()


OLD_KEYS = {key.rpartition(".")[2] for key in old_names.SETTINGS}


def yaml_keys(path: Path) -> set[str]:
    return set(re.findall(r"^ *(\w+):", path.read_text(), re.MULTILINE))


def test_configurations_of_users(old: Path) -> None:
    """Every option, setting and registered name of 0.1.0, in files of a user's own."""
    files = [*sorted((old / "configs").glob("*.yaml")), *sorted((old / "configs" / "full").glob("*.yaml"))]
    assert len(files) > 60
    for file in files:
        config = load_config(file)
        raw = config.model_dump(mode="json")
        assert with_keys(raw, OLD_KEYS) == [], file.name
        for kind, name in (
            ("scorer", config.scoring.scorer),
            ("inverter", config.scoring.inverter),
            ("task", config.task),
        ):
            if name:
                registry.find(kind, name)
                assert name not in old_names.REGISTERED[kind], file.name


def test_a_benchmark_is_finished_as_it_was(old: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(old)
    result = cli("benchmark", "benchmark.yaml", "--root", ".", "--out", "benchmark", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.count(": finished") == 7
    assert ": to do" not in result.stdout
    every_key = ("benchmark", "configs/benchmarks/every_key.yaml", "--root", ".", "--dry-run")
    for words in (every_key, (*every_key, "--reduced")):
        result = cli(*words)
        assert result.exit_code == 0, result.output


def test_a_report_of_all(old: Path, cli: Any, tmp_path: Path) -> None:
    names = (
        "runs",
        "scores",
        "slides",
        "benchmark",
        "fid",
        "classify",
        "classify_real",
        "folds",
        "evaluation",
        "project",
    )
    result = cli("report", *(old / name for name in names), "--out", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text()
    for name in ("patch_memory", "izi_f", "tiny_tumour"):
        assert name in page


@pytest.mark.parametrize(("name", "now"), old_names.PRESETS.items())
def test_presets_by_their_old_names(cli: Any, tmp_path: Path, name: str, now: str) -> None:
    assert now in presets()
    result = cli("train", name, "--data", tmp_path, "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"name: {now}" in result.stdout
    assert now in result.stderr


def test_settings_by_their_old_names(cli: Any) -> None:
    words = ("-o", "training.judge_kimg=2", "-o", "training.judge_images=64", "-o", "initial=somewhere")
    result = cli("train", "dcgan_64", "--dry-run", *words)
    assert result.exit_code == 0, result.output
    for line in ("eval_kimg: 2", "eval_images: 64", "init_from: /"):
        assert line in result.stdout
    for key in ("training.eval_kimg", "training.eval_images", "init_from"):
        assert key in result.stderr


@pytest.mark.parametrize(
    ("words", "now"),
    [
        (("evaluate", "knn", "--folds", "2", "--data", "nowhere"), "cross-validate"),
        (("evaluate", "nowhere", "--annotations", "nowhere"), "evaluate-slides"),
        (("classify", "--real-vs-synthetic", "nowhere"), "real-vs-synthetic"),
        (("generate", "nowhere", "--interpolate", "a.gif"), "interpolate"),
        (("generate", "nowhere", "--interpolate=a.gif"), "interpolate"),
    ],
)
def test_commands_by_their_old_spellings(cli: Any, words: tuple[str, ...], now: str) -> None:
    """The new command is named, and it is the one that runs: what it misses is what is not there."""
    result = cli(*words)
    assert result.exit_code == 2
    assert f"gan-uad {now}" in result.stderr
    assert "nowhere" in result.stderr
    assert "No such option" not in result.stderr


def test_old_spellings_are_not_shown(cli: Any) -> None:
    for command in ("evaluate", "classify", "generate", "demo"):
        text = cli(command, "--help").stdout
        for option in ("--folds", "--real-vs-synthetic", "--interpolate", "--slide", "--annotations"):
            assert option not in text, command
