"""`gan-uad classify` and `real-vs-synthetic`: metrics against a count by hand, resuming, and bad input."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classify_tools import both, called, wilson
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from score_tools import fails, rows
from torch import Tensor

import gan_uad
from gan_uad.config import DataConfig, load_config
from gan_uad.data.patches import load_patches, to_tensor, to_uint8

# ---------------------------------------------------------------- Table 2


def test_the_table_is_that_of_a_count_by_hand(
    table2: Path, classifier: Path, two_generators: dict[str, Path], labelled_patches: Path
) -> None:
    found = json.loads((table2 / "classify.json").read_text())
    real, generated = found["rows"]
    seeds = range(2_000_000, 2_000_008)
    assert found["image_seeds"] == {"normal": "2000000-2000007", "anomalous": "2000000-2000007"}
    answers = [
        called(classifier, gan_uad.load(str(two_generators[name])).generate(seeds)) for name in ("normal", "anomalous")
    ]
    right = [answers[0].count(0), answers[1].count(1)]
    assert (generated["n"], generated["n_0"], generated["n_1"]) == (16, 8, 8)
    assert generated["confusion"] == [[right[0], 8 - right[0]], [8 - right[1], right[1]]]
    assert generated["accuracy"] == pytest.approx(sum(right) / 16)
    assert (generated["low"], generated["high"]) == pytest.approx(wilson(sum(right), 16))
    assert (generated["recall_0"], generated["recall_1"]) == (right[0] / 8, right[1] / 8)

    test = load_patches(DataConfig(path=str(labelled_patches)), 32).select("test")
    all_right = np.mean(np.array(called(classifier, to_tensor(test.images))) == test.manifest.label)
    assert (real["n"], real["n_0"], real["n_1"]) == (16, 8, 8), "8 of 14 and 8 of 10"
    assert abs(real["accuracy"] - all_right) <= 8 / 16
    assert real["low"] <= real["accuracy"] <= real["high"]


def test_every_file_names_runs_seeds_and_versions(table2: Path, classifier: Path) -> None:
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
        for words in (
            accuracy,
            "16 (8 + 8)",
            "seed 2",
            "2000000-2000007",
            "--jpeg QUALITY",
            "0.48 kimg",
            "gan_uad",
        ):
            assert words in text, (ending, words)
    columns = rows(table2 / "classify.csv")
    assert [row["set"] for row in columns] == ["real", "generated"]
    assert float(columns[1]["accuracy"]) == found["rows"][1]["accuracy"]
    assert columns[0]["normal_kimg"] == "0.016"
    assert "nan" not in (table2 / "classify.csv").read_text()


def test_finished_scores_are_read_back(
    cli: Any,
    table2: Path,
    classifier: Path,
    two_generators: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(table2 / "parts", tmp_path / "parts")
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) == 3
    # One was incomplete when the process was killed.
    parts[0].write_text(parts[0].read_text()[:20])
    scored = []
    from gan_uad.scoring.classifier import ClassifierScorer

    score = ClassifierScorer.score
    monkeypatch.setattr(ClassifierScorer, "score", lambda self, x: scored.append(len(x)) or score(self, x))
    result = cli("classify", classifier, *both(two_generators), "--num", 16, "--seed", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert scored in ([8], [16])
    before, after = (json.loads((folder / "classify.json").read_text())["rows"] for folder in (table2, tmp_path))
    assert before == after


@pytest.mark.parametrize(("kept", "lost"), [("0011", 88), ("102", 0), ("021", 0), ("01H2", 88), ("0H", 344)])
def test_scores_of_a_damaged_file_belong_to_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str, lost: int
) -> None:
    """Two processes may repeat or swap lines, a killed one leaves half a line (H): every image still gets its own score."""
    from gan_uad.generation import accuracy

    class Numbers:
        """Images whose score is their number; also the classifier and its scorer."""

        name = key = path = "numbers"
        networks, device, scored = None, torch.device("cpu"), 0

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
        monkeypatch.setattr(accuracy.registry, "build", lambda *_, **__: both)
        return accuracy.scored(both, both, range(600), tmp_path).tolist(), both.scored

    monkeypatch.setattr(accuracy, "file_digest", str)
    expected = [float(number) for number in range(600)]
    assert scores() == (expected, 600)
    assert scores() == (expected, 0)
    (path,) = tmp_path.glob("scores-*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1][:99] if number == "H" else lines[int(number)] for number in kept))
    assert scores() == (expected, lost)
    assert scores()[0] == expected


def test_jpeg_is_applied_to_both(cli: Any, classifier: Path, two_generators: dict[str, Path], tmp_path: Path) -> None:
    result = cli("classify", classifier, *both(two_generators), "--num", 4, "--jpeg", 5, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "classify.json").read_text())["jpeg"] == 5
    assert "--jpeg QUALITY" not in result.stdout
    images = to_uint8(gan_uad.load(str(two_generators["normal"])).generate([0, 1]))
    coded = []
    for image in images:
        Image.fromarray(image).save(buffer := io.BytesIO(), "jpeg", quality=5)
        coded.append(np.asarray(Image.open(buffer)))
    scorer = gan_uad.load(str(classifier)).scorer()
    expected = scorer.score(to_tensor(np.stack(coded))).image
    assert not torch.allclose(expected, scorer.score(to_tensor(images)).image)
    kept = [json.loads(path.read_text())["scores"] for path in (tmp_path / "parts").iterdir()]
    assert any(values == pytest.approx(expected.tolist(), rel=1e-4) for values in kept)


# ---------------------------------------------------------------- real against generated


def test_real_against_generated(
    cli: Any, classifier_preset: Path, labelled_patches: Path, two_generators: dict[str, Path], tmp_path: Path
) -> None:
    words = ("real-vs-synthetic", two_generators["normal"], "--data", labelled_patches, "--preset", classifier_preset)
    words = (*words, "--num", 20, "--kimg", 0.32, "--out", tmp_path)
    result = cli(*words)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "real_vs_synthetic.json").read_text())
    (row,) = found["rows"]
    assert found["images_of_each_kind"] == {"train": 20, "val": 16, "test": 14}
    assert found["image_seeds"] == {"train": "0-19", "val": "20-35", "test": "36-49"}
    assert (row["n_0"], row["n_1"], row["interval"][:4] in ("Wils", "boot")) == (14, 14, True)
    assert row["auroc"] > 0.9, "images of a generator of four steps are easily recognised"

    (work,) = (path for path in tmp_path.iterdir() if path.is_dir())
    index = rows(work / "patches" / "index.csv")
    assert len(index) == 2 * (20 + 16 + 14)
    truth = {row["image"]: row for row in rows(labelled_patches / "index.csv")}
    by_pixels = {np.asarray(Image.open(labelled_patches / name)).tobytes(): row for name, row in truth.items()}
    generator = gan_uad.load(str(two_generators["normal"]))
    for row in index:
        pixels = np.asarray(Image.open(work / "patches" / row["image"]))
        if row["label"] == "0":
            origin = by_pixels[pixels.tobytes()]
            assert (origin["split"], origin["group"], origin["label"]) == (row["split"], row["group"], "0")
    first = next(row for row in index if row["split"] == "test" and row["label"] == "1")
    assert np.array_equal(
        np.asarray(Image.open(work / "patches" / first["image"])), to_uint8(generator.generate([36]))[0]
    )

    config = gan_uad.load(str(work / "00000-real_vs_synthetic")).config
    assert (config.training.total_kimg, config.training.eval_kimg) == (0.32, pytest.approx(0.032))
    # Called again, nothing is trained or scored, and the result is the same.
    before = (work / "00000-real_vs_synthetic" / "state.pt").read_bytes()
    (work / "patches" / "index.csv").unlink()
    (work / "patches" / "images" / "test_synthesised_000003.png").unlink()
    assert cli(*words).exit_code == 0
    assert (work / "00000-real_vs_synthetic" / "state.pt").read_bytes() == before
    assert json.loads((tmp_path / "real_vs_synthetic.json").read_text())["rows"] == found["rows"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [work]


def test_the_schedule_is_scaled_to_the_length_of_the_training() -> None:
    from gan_uad.generation.real_vs_synthetic import _config

    class Generator:
        resolution = 64

    config = _config(Generator(), None, 50.0, 1, ("optim.lr=0.01",), "cpu")  # type: ignore[arg-type]
    assert (config.model, config.resolution, config.data.label, config.optim["lr"]) == ("densenet121", 64, "all", 0.01)
    assert (config.optim["schedule_kimg"], config.training.total_kimg, config.training.eval_kimg) == (50, 50, 5)
    Generator.resolution = 256
    large = _config(Generator(), None, None, 1, (), "cpu")  # type: ignore[arg-type]
    assert (large.optim, large.resolution) == (load_config("densenet121_512").optim, 256)


# ---------------------------------------------------------------- bad input


def broken(source: Path, out: Path) -> Path:
    """A copy of a generator's model whose images are NaN."""
    tensors = load_file(source / "model.safetensors")
    name = next(name for name in tensors if name.startswith("gan.G") and name.endswith("weight"))
    tensors[name].fill_(3e38)
    with safe_open(source / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, out / "broken.safetensors", metadata=metadata)
    return out / "broken.safetensors"


def test_bad_runs_are_refused(
    cli: Any, classifier: Path, two_generators: dict[str, Path], tiny: Any, tmp_path: Path
) -> None:
    normal, anomalous = two_generators["normal"], two_generators["anomalous"]

    def run(*words: object) -> Any:
        return cli("classify", *words, "--num", 8, "--out", tmp_path / "out")

    fails(run(normal, *both(two_generators)), str(normal), "gan-uad train densenet121_64")
    fails(run(classifier, "--normal", classifier, "--anomalous", anomalous), str(classifier))
    fails(run(classifier, "--normal", tmp_path / "none", "--anomalous", anomalous), str(tmp_path / "none"))
    wide = tiny.train(tiny.config("dcgan"), tmp_path / "wide", "-o", "resolution=64", total_kimg=0.004)
    assert wide.exit_code == 0, wide.output
    other = tmp_path / "wide" / "00000-dcgan"
    fails(run(classifier, "--normal", other, "--anomalous", anomalous), str(other), "64 px", "32 px")
    nan = broken(normal, tmp_path)
    fails(run(classifier, "--normal", nan, "--anomalous", anomalous), str(nan), "seed 0", code=1)
    assert not (tmp_path / "out" / "classify.md").exists()


def test_a_model_file_without_patches(
    cli: Any, classifier: Path, two_generators: dict[str, Path], tmp_path: Path
) -> None:
    """As a shipped one: the advice is an option of this command."""
    with safe_open(classifier / "model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["gan_uad"])
    about["config"]["data"]["path"] = None
    alone = tmp_path / "alone.safetensors"
    save_file(load_file(classifier / "model.safetensors"), alone, {"gan_uad": json.dumps(about)})
    fails(cli("classify", alone, *both(two_generators), "--out", tmp_path / "out"), str(alone), "--data")


def test_a_class_that_is_missing(
    cli: Any, classifier: Path, two_generators: dict[str, Path], labelled_patches: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "normal"
    folder.mkdir()
    for file in sorted(labelled_patches.glob("test_0_*"))[:4]:
        shutil.copy(file, folder)
    result = cli("classify", classifier, *both(two_generators), "--data", tmp_path, "--out", tmp_path / "out")
    fails(result, str(tmp_path), "anomalous")


def test_bad_options(cli: Any, classifier: Path, two_generators: dict[str, Path]) -> None:
    generator = two_generators["normal"]
    fails(cli("real-vs-synthetic", generator, "--preset", "dcgan_64"), "--preset dcgan_64", "task supervised")
    fails(cli("real-vs-synthetic", generator, "-o", "resolution=64"), "32 px", "-o resolution=64")
    fails(cli("classify", classifier, *both(two_generators), "--num", 1), "--num")
    fails(cli("classify", classifier, "--normal", generator), "--anomalous")


def test_torchrun_is_refused(
    cli: Any, classifier: Path, two_generators: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in (["classify", classifier, *both(two_generators)], ["real-vs-synthetic", two_generators["normal"]]):
        fails(cli(*words, "--out", tmp_path), f"gan-uad {words[0]}", "torchrun")
    assert not list(tmp_path.iterdir())


def test_a_swapped_generator_is_named(
    cli: Any, classifier: Path, two_generators: dict[str, Path], tmp_path: Path
) -> None:
    swapped = {"normal": two_generators["anomalous"], "anomalous": two_generators["normal"]}
    result = cli("classify", classifier, *both(swapped), "--num", 4, "--out", tmp_path)
    assert result.exit_code == 0
    notes = json.loads((tmp_path / "classify.json").read_text())["notes"]
    assert sum(note.startswith(str(swapped["normal"])) and "anomalous" in note for note in notes) == 1


def test_the_training_length_of_a_generator_inside_an_encoders_run_is_unknown(
    cli: Any, classifier: Path, two_generators: dict[str, Path], trained: Any, tmp_path: Path
) -> None:
    pair = ("--normal", trained.encoder, "--anomalous", two_generators["anomalous"])
    result = cli("classify", classifier, *pair, "--num", 4, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("- normal: ")]
    assert "kimg" not in line
    run = json.loads((tmp_path / "classify.json").read_text())["runs"]["normal"]
    assert (run["kimg"], run["trained_kimg"], run["planned_kimg"], run["short"]) == (None, None, None, False)
