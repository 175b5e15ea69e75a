"""Classifiers from the outside: training, scoring, `gan-uad classify` against figures made by hand, going on, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_tools import figures, same, state
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from score_tools import fails, rows
from torch import Tensor

import gan_uad
from gan_uad.config import DataConfig, load_config
from gan_uad.data.patches import load_patches, to_tensor, to_uint8
from gan_uad.data.phantom import render_patch

TINY = """
model: densenet121
task: supervised
resolution: 32
network: {growth_rate: 8, block_config: [2, 2], init_features: 8}
optim: {lr: 0.005, balance: oversample, augment: 0.2}
data: {label: all}
training: {total_kimg: 0.48, batch: 16, threads: 1, tick_kimg: 0.12, snapshot_kimg: 0.48, checkpoint_kimg: 0.12, judge_kimg: 0.12}
scoring: {scorer: classifier, threshold: "manual:0"}
"""
SPLITS = {"train": (48, 24), "val": (16, 16), "test": (14, 10)}
NO_MORE = ("-o", "training.tick_kimg=0.02", "-o", "training.checkpoint_kimg=0.02")  # what else a run of seconds needs


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom tissue, normal and with bleeding, of five slides a split."""
    folder = tmp_path_factory.mktemp("patches")
    table = [["image", "group", "label", "split"]]
    for number, (split, counts) in enumerate(SPLITS.items()):
        for label, count in enumerate(counts):
            for i in range(count):
                picture, _ = render_patch(
                    np.random.default_rng([number, label, i]), 32, "haemorrhage" if label else None
                )
                name = f"{split}_{label}_{i:02d}.png"
                Image.fromarray(picture).save(folder / name)
                table.append([name, f"{split}-{i % 5}", str(label), split])
    with open(folder / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows(table)
    return folder


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("presets") / "tiny_classifier.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def classifier(cli: Any, patches: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run. Nobody writes into it."""
    out = tmp_path_factory.mktemp("classifier")
    result = cli("train", preset, "--data", patches, "--out", out)
    assert result.exit_code == 0, result.output
    return out / "00000-tiny_classifier"


@pytest.fixture(scope="module")
def generators(patches: Path, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of normal and of anomalous patches: two runs of a few steps."""
    out = tmp_path_factory.mktemp("generators")
    words = ("--data", patches, "-o", "data.label=anomalous")
    result = tiny.train(tiny.config("wgan_gp"), out, *words, total_kimg=0.008)
    assert result.exit_code == 0, result.output
    return {"normal": tiny.generator, "anomalous": out / "00000-wgan_gp"}


@pytest.fixture(scope="module")
def table2(cli: Any, classifier: Path, generators: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("table2")
    result = cli("classify", classifier, *both(generators), "--num", 16, "--seed", 2, "--out", out)
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
    """What the best model of a run calls 8-bit images."""
    net = gan_uad.load(str(run / "best.safetensors")).networks["classifier"]
    with torch.no_grad():
        found: list[int] = net(to_tensor(to_uint8(images))).argmax(1).tolist()
    return found


# ---------------------------------------------------------------- training and scoring


def test_it_learns_what_can_be_told_apart(classifier: Path) -> None:
    judged = [json.loads(line) for line in (classifier / "metrics.jsonl").read_text().splitlines()]
    assert [row["nimg"] for row in judged] == [128, 240, 368, 480]
    assert set(judged[0]) == {"nimg", "kimg", "best", "val_loss", "val_accuracy", "val_auroc"}
    assert max(row["val_auroc"] for row in judged) > 0.95
    best = min(judged, key=lambda row: row["val_loss"])
    model = gan_uad.load(str(classifier))
    assert model.nimg == best["nimg"], "a run folder means its best model"
    assert gan_uad.load(str(classifier / "model.safetensors")).nimg == 480
    assert list(model.networks) == ["classifier"]


def test_it_scores_and_evaluates_like_any_detector(cli: Any, classifier: Path, patches: Path, tmp_path: Path) -> None:
    result = cli("score", classifier, "--out", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    found = rows(tmp_path / "scores" / "scores.csv")
    assert list(found[0]) == ["image", "group", "label", "score", "model", "threshold", "decision"]
    assert {row["model"] for row in found} == {"tiny_classifier/classifier"}
    test = load_patches(DataConfig(path=str(patches)), 32).select("test")
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
    cli: Any, patches: Path, preset: Path, tmp_path: Path
) -> None:
    short = ("-o", "training.judge_kimg=0.016", "-o", "training.total_kimg=0.096", *NO_MORE)
    assert cli("train", preset, "--data", patches, "--out", tmp_path / "whole", *short).exit_code == 0
    cut = (*short, "-o", "training.total_kimg=0.048")
    assert cli("train", preset, "--data", patches, "--out", tmp_path / "parts", *cut).exit_code == 0
    run, whole = (tmp_path / name / "00000-tiny_classifier" for name in ("parts", "whole"))
    result = cli("train", run, "--resume", "-o", "training.total_kimg=0.096")
    assert result.exit_code == 0, result.output
    same(state(run), state(whole))
    assert figures(run)[-1] == figures(whole)[-1]
    assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    a, b = (load_file(folder / "best.safetensors") for folder in (run, whole))
    same(a, b)


def test_a_judged_run_goes_on_only_with_judgements(cli: Any, classifier: Path, tmp_path: Path) -> None:
    run = shutil.copytree(classifier, tmp_path / classifier.name)
    before = (run / "config.yaml").read_text()
    more = ("-o", "training.total_kimg=0.6")
    fails(
        cli("train", run, "--resume", "-o", "training.judge_kimg=null", *more),
        "stands for the best model of its judgements",
        "keep training.judge_kimg",
    )
    assert (run / "config.yaml").read_text() == before


def test_imagenet_weights_are_looked_for_at_the_start_only(
    cli: Any, patches: Path, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gan_uad.errors import UserError
    from gan_uad.training import supervised

    begun = []
    monkeypatch.setattr(supervised, "start_from_imagenet", begun.append)
    short = ("-o", "training.judge_kimg=0.032", "-o", "training.total_kimg=0.032", *NO_MORE)
    words = ("train", preset, "--data", patches, "-o", "optim.init=imagenet")
    assert cli(*words, "--out", tmp_path / "runs", *short).exit_code == 0
    assert len(begun) == 1

    def gone(model: Any) -> None:
        raise UserError("the file is gone")

    monkeypatch.setattr(supervised, "start_from_imagenet", gone)
    run = tmp_path / "runs" / "00000-tiny_classifier"
    result = cli("train", run, "--resume", "-o", "training.total_kimg=0.064")
    assert result.exit_code == 0, result.output
    assert state(run)["nimg"] == 64
    fails(cli(*words, "--out", tmp_path / "other", *short), "the file is gone")
    assert not (tmp_path / "other").exists()
    # Killed before anything was saved: a run starts at the beginning, with the weights.
    for file in run.glob("state*.pt"):
        file.unlink()
    fails(cli("train", run, "--resume"), "the file is gone")


def test_done_says_what_was_reached(cli: Any, patches: Path, preset: Path, tmp_path: Path) -> None:
    short = ("-o", "training.judge_kimg=0.016", "-o", "training.total_kimg=0.02", *NO_MORE)
    result = cli("train", preset, "--data", patches, "--out", tmp_path, *short)
    assert "(0.032 kimg; best val_loss" in result.stderr.splitlines()[-1], "batches are whole"


# ---------------------------------------------------------------- Table 2


def test_the_table_is_that_of_a_count_by_hand(
    table2: Path, classifier: Path, generators: dict[str, Path], patches: Path
) -> None:
    found = json.loads((table2 / "classify.json").read_text())
    real, synthesised = found["rows"]
    seeds = range(2_000_000, 2_000_008)
    assert found["image_seeds"] == {"normal": "2000000-2000007", "anomalous": "2000000-2000007"}
    answers = [
        called(classifier, gan_uad.load(str(generators[name])).generate(seeds)) for name in ("normal", "anomalous")
    ]
    right = [answers[0].count(0), answers[1].count(1)]
    assert (synthesised["n"], synthesised["n_0"], synthesised["n_1"]) == (16, 8, 8)
    assert synthesised["confusion"] == [[right[0], 8 - right[0]], [8 - right[1], right[1]]]
    assert synthesised["accuracy"] == pytest.approx(sum(right) / 16)
    assert (synthesised["low"], synthesised["high"]) == pytest.approx(wilson(sum(right), 16))
    assert (synthesised["recall_0"], synthesised["recall_1"]) == (right[0] / 8, right[1] / 8)

    test = load_patches(DataConfig(path=str(patches)), 32).select("test")
    all_right = np.mean(np.array(called(classifier, to_tensor(test.images))) == test.manifest.label)
    assert (real["n"], real["n_0"], real["n_1"]) == (16, 8, 8), "8 of 14 and 8 of 10"
    assert abs(real["accuracy"] - all_right) <= 8 / 16
    assert real["low"] <= real["accuracy"] <= real["high"]


def test_every_file_says_what_a_reader_needs(table2: Path, classifier: Path) -> None:
    found = json.loads((table2 / "classify.json").read_text())
    runs = found["runs"]
    assert {role: run["kimg"] for role, run in runs.items() if role != "classifier"} == {
        "normal": 0.016,
        "anomalous": 0.008,
    }
    assert runs["classifier"]["file"] == "best.safetensors"
    assert runs["classifier"]["trained_kimg"] == 0.48
    assert not any(run["short"] for run in runs.values())
    assert (found["seed"], found["jpeg"], found["labels"]) == (2, None, ["normal", "anomalous"])
    assert found["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    accuracy = f"{100 * found['rows'][1]['accuracy']:.2f} ["
    for ending in ("md", "tex"):
        text = (table2 / f"classify.{ending}").read_text()
        for part in (
            accuracy,
            "16 (8 + 8)",
            "seed 2",
            "2000000-2000007",
            "--jpeg QUALITY",
            "Made by",
            "0.48 kimg",
            "gan_uad",
        ):
            assert part in text, (ending, part)
    columns = rows(table2 / "classify.csv")
    assert [row["set"] for row in columns] == ["real", "synthesised"]
    assert float(columns[1]["accuracy"]) == found["rows"][1]["accuracy"]
    assert columns[0]["normal_kimg"] == "0.016"
    assert "nan" not in (table2 / "classify.csv").read_text()


def test_finished_parts_are_not_done_again(
    cli: Any,
    table2: Path,
    classifier: Path,
    generators: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(table2 / "parts", tmp_path / "parts")
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) == 3
    # One was being written when the process was killed.
    parts[0].write_text(parts[0].read_text()[:20])
    scored = []
    from gan_uad.scoring.classifier import ClassifierScorer

    whole = ClassifierScorer.score
    monkeypatch.setattr(ClassifierScorer, "score", lambda self, x: scored.append(len(x)) or whole(self, x))
    result = cli("classify", classifier, *both(generators), "--num", 16, "--seed", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert scored in ([8], [16])
    before, after = (json.loads((folder / "classify.json").read_text())["rows"] for folder in (table2, tmp_path))
    assert before == after


@pytest.mark.parametrize("order", [(0, 0, 1, 1), (0, 1, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_lines_of_scores_that_are_repeated_or_swapped_are_not_taken(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Two processes that wrote into one file leave such: every image must still get its own score."""
    from gan_uad.jobs import classify_rows

    class Numbers:
        """Images whose score is their number."""

        name, key, scored = "numbers", "numbers", 0

        def get(self, numbers: list[int]) -> np.ndarray:
            pixels = np.zeros((len(numbers), 1, 1, 3), np.uint8)
            pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.divmod(numbers, 256)
            return pixels

        def score(self, images: Tensor) -> Any:
            self.scored += len(images)
            pixels = to_uint8(images).astype(float)[:, 0, 0]
            return type("Scores", (), {"image": torch.from_numpy(pixels[:, 0] * 256 + pixels[:, 1])})

    def scores() -> tuple[list[float], int]:
        both: Any = Numbers()
        return classify_rows.scored(both, "", both, range(600), tmp_path, None).tolist(), both.scored

    expected = [float(number) for number in range(600)]
    assert scores() == (expected, 600)
    assert scores() == (expected, 0)
    (path,) = tmp_path.glob("scores-*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[number] for number in order))
    good = next((k for k, number in enumerate(order) if number != k), len(order))
    assert scores() == (expected, 600 - 256 * good)
    assert path.read_text().splitlines(keepends=True) == lines


def test_jpeg_is_applied_to_both(cli: Any, classifier: Path, generators: dict[str, Path], tmp_path: Path) -> None:
    result = cli("classify", classifier, *both(generators), "--num", 4, "--jpeg", 5, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "all images passed through the same JPEG encoder, quality 5" in result.stdout
    assert "--jpeg QUALITY" not in result.stdout
    images = to_uint8(gan_uad.load(str(generators["normal"])).generate([0, 1]))
    coded = []
    for image in images:
        Image.fromarray(image).save(buffer := io.BytesIO(), "jpeg", quality=5)
        coded.append(np.asarray(Image.open(buffer)))
    scorer = gan_uad.load(str(classifier)).scorer()
    expected = scorer.score(to_tensor(np.stack(coded))).image
    assert not torch.allclose(expected, scorer.score(to_tensor(images)).image)
    kept = [json.loads(path.read_text())["scores"] for path in (tmp_path / "parts").iterdir()]
    assert any(values == pytest.approx(expected.tolist(), rel=1e-4) for values in kept)


# ---------------------------------------------------------------- real against synthesised


def test_real_against_synthesised(
    cli: Any, preset: Path, patches: Path, generators: dict[str, Path], tmp_path: Path
) -> None:
    words = [
        "classify",
        "--real-vs-synthetic",
        generators["normal"],
        "--data",
        patches,
        "--preset",
        preset,
        "--num",
        20,
    ]
    words += ["--kimg", 0.32, "--out", tmp_path]
    result = cli(*words)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "real_vs_synthetic.json").read_text())
    (row,) = found["rows"]
    assert found["images_of_each_kind"] == {"train": 20, "val": 16, "test": 14}
    assert found["image_seeds"] == {"train": "0-19", "val": "20-35", "test": "36-49"}
    assert (row["n_0"], row["n_1"], row["interval"][:4] in ("Wils", "boot")) == (14, 14, True)
    assert row["auroc"] > 0.9, "a generator of four steps is easily found out"

    (work,) = (path for path in tmp_path.iterdir() if path.is_dir())
    index = rows(work / "patches" / "index.csv")
    assert len(index) == 2 * (20 + 16 + 14)
    truth = {row["image"]: row for row in rows(patches / "index.csv")}
    by_pixels = {np.asarray(Image.open(patches / name)).tobytes(): row for name, row in truth.items()}
    made = gan_uad.load(str(generators["normal"]))
    for row in index:
        pixels = np.asarray(Image.open(work / "patches" / row["image"]))
        if row["label"] == "0":
            origin = by_pixels[pixels.tobytes()]
            assert (origin["split"], origin["group"], origin["label"]) == (row["split"], row["group"], "0")
    first = next(row for row in index if row["split"] == "test" and row["label"] == "1")
    assert np.array_equal(np.asarray(Image.open(work / "patches" / first["image"])), to_uint8(made.generate([36]))[0])

    config = gan_uad.load(str(work / "00000-real_vs_synthetic")).config
    assert (config.training.total_kimg, config.training.judge_kimg) == (0.32, pytest.approx(0.032))
    # Again: nothing is trained or scored anew, and the result is the same.
    before = (work / "00000-real_vs_synthetic" / "state.pt").read_bytes()
    (work / "patches" / "index.csv").unlink()
    (work / "patches" / "images" / "test_synthesised_000003.png").unlink()
    assert cli(*words).exit_code == 0
    assert (work / "00000-real_vs_synthetic" / "state.pt").read_bytes() == before
    assert json.loads((tmp_path / "real_vs_synthetic.json").read_text())["rows"] == found["rows"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [work]


def test_another_length_of_the_training_fits_the_schedule() -> None:
    from gan_uad.jobs.real_vs_synthetic import _config

    class Generator:
        resolution = 64

    config = _config(Generator(), None, 50.0, 1, ("optim.lr=0.01",), "cpu")  # type: ignore[arg-type]
    assert (config.model, config.resolution, config.data.label, config.optim["lr"]) == ("densenet121", 64, "all", 0.01)
    assert (config.optim["schedule_kimg"], config.training.total_kimg, config.training.judge_kimg) == (50, 50, 5)
    Generator.resolution = 256
    whole = _config(Generator(), None, None, 1, (), "cpu")  # type: ignore[arg-type]
    assert (whole.optim, whole.resolution) == (load_config("densenet121_512").optim, 256)


# ---------------------------------------------------------------- what is refused


def broken(source: Path, out: Path) -> Path:
    """A copy of a generator's model with a NaN in it."""
    tensors = load_file(source / "model.safetensors")
    name = next(name for name in tensors if name.startswith("gan.G") and name.endswith("weight"))
    tensors[name].view(-1)[0] = math.nan
    with safe_open(source / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, out / "broken.safetensors", metadata=metadata)
    return out / "broken.safetensors"


def test_bad_runs_are_refused(
    cli: Any, classifier: Path, generators: dict[str, Path], tiny: Any, tmp_path: Path
) -> None:
    normal, anomalous = generators["normal"], generators["anomalous"]

    def run(*words: object) -> Any:
        return cli("classify", *words, "--num", 8, "--out", tmp_path / "out")

    fails(
        run(normal, *both(generators)), "holds no classifier, only gan: train one with `gan-uad train densenet121_64`"
    )
    fails(run(classifier, "--normal", classifier, "--anomalous", anomalous), "holds no generator, only classifier")
    fails(run(classifier, "--normal", tmp_path / "none", "--anomalous", anomalous), "no such run folder or model file")
    wide = tiny.train(tiny.config("dcgan"), tmp_path / "wide", "-o", "resolution=64", total_kimg=0.004)
    assert wide.exit_code == 0, wide.output
    other = tmp_path / "wide" / "00000-dcgan"
    fails(
        run(classifier, "--normal", other, "--anomalous", anomalous),
        "makes images of 64 px, the classifier takes 32 px",
    )
    nan = broken(normal, tmp_path)
    fails(run(classifier, "--normal", nan, "--anomalous", anomalous), "images that are not finite", code=1)
    assert not (tmp_path / "out" / "classify.md").exists()


def test_a_class_that_is_missing(
    cli: Any, classifier: Path, generators: dict[str, Path], patches: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "normal"
    folder.mkdir()
    for file in sorted(patches.glob("test_0_*"))[:4]:
        shutil.copy(file, folder)
    result = cli("classify", classifier, *both(generators), "--data", tmp_path, "--out", tmp_path / "out")
    fails(result, "no patch is labelled anomalous among the")


def test_words_that_do_not_go_together(cli: Any, classifier: Path, generators: dict[str, Path]) -> None:
    normal = generators["normal"]
    for words, message in (
        ([classifier], "name a CLASSIFIER, --normal RUN and --anomalous RUN"),
        ([classifier, "--real-vs-synthetic", normal], "CLASSIFIER does not go with --real-vs-synthetic"),
        ([classifier, *both(generators), "--kimg", 3], "--kimg goes with --real-vs-synthetic only"),
        (["--real-vs-synthetic", normal, "--preset", "dcgan_64"], "trains by dcgan: name one that trains a classifier"),
        (["--real-vs-synthetic", normal, "-o", "resolution=64"], "images are of 32 px: leave -o resolution=64 out"),
    ):
        result = cli("classify", *words)
        assert result.exit_code == 2
        assert message in result.stderr


def test_torchrun_is_refused(
    cli: Any, classifier: Path, generators: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in ([classifier, *both(generators)], ["--real-vs-synthetic", generators["normal"]]):
        fails(cli("classify", *words, "--out", tmp_path), "classify runs in one process, not under torchrun")
    assert not list(tmp_path.iterdir())


def test_a_swapped_generator_is_named(cli: Any, classifier: Path, generators: dict[str, Path], tmp_path: Path) -> None:
    result = cli(
        "classify", classifier, "--normal", generators["anomalous"], "--anomalous", generators["normal"], "--num", 4, "--out", tmp_path
    )  # fmt: skip
    assert result.exit_code == 0
    assert "was trained on anomalous patches and stands for normal ones here" in result.stdout


def test_what_a_classifier_cannot_be_trained_on(cli: Any, patches: Path, preset: Path, tmp_path: Path) -> None:
    normals = tmp_path / "normals"
    normals.mkdir()
    table = [row for row in rows(patches / "index.csv") if row["label"] == "0" or row["split"] != "val"]
    for row in table:
        shutil.copy(patches / row["image"], normals)
    with open(normals / "index.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    train = ("train", preset, "--out", tmp_path / "runs")
    fails(cli(*train, "--data", normals), "no anomalous image among the 16 validation images; both are needed to judge")
    fails(cli(*train, "--data", patches, "-o", "data.label=normal"), "no anomalous image among 48 to learn from")
    fails(
        cli(*train, "--data", patches, "-o", "training.batch=80"),
        "72 all train images are too few",
        "smaller -o training.batch",
    )
    assert not (tmp_path / "runs").exists()


def test_a_classifier_has_no_inverter(cli: Any, classifier: Path, generators: dict[str, Path], tmp_path: Path) -> None:
    fails(cli("score", classifier, "--inverter", "anogan", "--out", tmp_path), "uses no inverter: leave --inverter out")
    fails(cli("score", classifier, "--maps", "--out", tmp_path / "maps"), "this scorer makes no maps; leave --maps out")
    fails(
        cli("score", classifier, "-o", "scoring.scorer=gan_inversion", "--out", tmp_path),
        "holds classifier and no generator",
    )
    result = cli("score", generators["normal"], "-o", "scoring.scorer=classifier", "--out", tmp_path)
    fails(result, "needs a trained classifier, not gan")


def test_a_damaged_classifier(cli: Any, classifier: Path, generators: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(classifier / "best.safetensors")
    tensors["classifier.net.classifier.bias"][1] = math.inf
    with safe_open(classifier / "best.safetensors", framework="pt") as file:
        save_file(tensors, tmp_path / "bad.safetensors", metadata=file.metadata())
    result = cli("classify", tmp_path / "bad.safetensors", *both(generators), "--num", 4, "--out", tmp_path / "out")
    fails(result, "the classifier gives NaN or infinity for some images")
