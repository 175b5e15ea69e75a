"""`gan-uad train` and `gan-uad score` with the presets of the classical detectors: fitted once, kept, found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from score_tools import RULE, fails, rows

import gan_uad
from gan_uad import registry
from gan_uad.config import DataConfig, load_config, presets
from gan_uad.data.patches import batches, load_patches
from gan_uad.demo.phantom import write_phantom
from gan_uad.scoring.base import Scorer
from gan_uad.training import fit as fit_job
from gan_uad.training.memory import smaller_presets

PIXELS = ("-o", "scoring.options.features=pixels@4")
OPTIONS: dict[str, tuple[str, ...]] = {
    "mean_color": (),
    "mahalanobis": PIXELS,
    "knn": PIXELS,
    "one_class_svm": PIXELS,
    "isolation_forest": (*PIXELS, "-o", "scoring.options.trees=5"),
    "local_outlier_factor": PIXELS,
    "patchcore": ("-o", "scoring.options={features: efficientnet_lite0@32, memory_mb: 1, max_patches: 100}"),
}


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A phantom set at 32 px; nobody may write into it."""
    folder = tmp_path_factory.mktemp("classical") / "patches"
    return write_phantom(folder, resolution=32, train=48, val=20, test=20, groups=(8, 4, 4))


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


def trained(cli: Any, name: str, patches: Path, out: Path, *words: str) -> Any:
    return cli("train", name, "--data", patches, "--out", out, "-o", "resolution=32", *OPTIONS[name], *words)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_preset_is_fitted_kept_and_scores(cli: Any, patches: Path, tmp_path: Path, name: str) -> None:
    """The scores are those of the same scorer fitted here on the train normals; nothing is fitted when scoring."""
    result = trained(cli, name, patches, tmp_path / "runs")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith(f"{name}: ")
    run = tmp_path / "runs" / f"00000-{name}"
    files = {file.name for file in run.iterdir()}
    assert files == {
        "config.yaml",
        "environment.json",
        "log.jsonl",
        "model.safetensors",
        "reals.png",
        "images.npz",
        "fakes",
    }
    (line,) = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    assert line["nimg"] == 48

    result = cli("score", run, *RULE, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "fitting" not in result.stderr
    assert "searching" not in result.stderr
    found = rows(tmp_path / "out" / "scores.csv")
    model = gan_uad.load(str(run))
    settings = model.config.scoring
    takes = {} if name == "mean_color" else {"device": torch.device("cpu")}
    expected: Scorer = registry.build("scorer", settings.scorer, settings.options, **takes)
    known = load_patches(DataConfig(path=str(patches)), 32)
    expected.fit(batches(known.select("train", 0), 48))
    images = next(batches(known.select("test"), 100))[0]
    np.testing.assert_allclose([float(r["score"]) for r in found], expected.score(images).image, rtol=1e-5, atol=1e-6)
    assert {r["model"] for r in found} == {f"{name}/{name}"}
    assert all(r["decision"] in "01" for r in found)

    loaded = model.scorer()
    assert not loaded.learns
    torch.testing.assert_close(loaded.score(images).image, expected.score(images).image, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def knn(cli: Any, patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted run. Nobody writes into it."""
    out = tmp_path_factory.mktemp("knn")
    result = trained(cli, "knn", patches, out)
    assert result.exit_code == 0, result.output
    return out / "00000-knn"


@pytest.mark.usefixtures("fast")
def test_other_options_are_fitted_again(cli: Any, knn: Path, tmp_path: Path) -> None:
    """And another scorer: what the run holds is of use to itself alone."""
    scores = []
    for number, words in enumerate(((), ("-o", "scoring.options.k=9"), ("-o", "scoring.scorer=mean_color"))):
        result = cli("score", knn, *RULE, *words, "--out", tmp_path / f"{number}")
        assert result.exit_code == 0, result.output
        assert ("fitting" in result.stderr) == bool(words)
        scores.append([r["score"] for r in rows(tmp_path / f"{number}" / "scores.csv")])
    assert scores[0] != scores[1]
    assert scores[2] == [r["score"] for r in rows(tmp_path / "0" / "mean_color.csv")]


@pytest.mark.usefixtures("fast")
def test_patchcore_makes_maps(cli: Any, patches: Path, tmp_path: Path) -> None:
    assert trained(cli, "patchcore", patches, tmp_path / "runs").exit_code == 0
    result = cli("score", tmp_path / "runs" / "00000-patchcore", "--maps", *RULE, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "maps" / "000000.png") as image:
        assert image.size == (32, 32)
        assert len(np.unique(np.asarray(image))) > 20


def test_at_most_total_kimg_are_fitted_on(cli: Any, patches: Path, tmp_path: Path) -> None:
    """Drawn with the seed; the same again."""
    held = []
    for seed in (0, 0, 1):
        words = ("-o", "training.total_kimg=0.02", "-o", f"training.seed={seed}")
        assert trained(cli, "knn", patches, tmp_path / "runs", *words).exit_code == 0
        model = gan_uad.load(str(tmp_path / "runs" / f"{len(held):05d}-knn"))
        assert model.nimg == 20
        held.append(model.scorer().tensors()["normals"])
    assert held[0].shape == (20, 48)
    assert torch.equal(held[0], held[1])
    assert not torch.equal(held[0], held[2])


def test_a_scorer_that_draws_has_the_seed_of_the_training(cli: Any, patches: Path, tmp_path: Path) -> None:
    """Another seed is another forest (or three seeds of a benchmark would be one); its own option goes before it."""
    ways = (("training.seed=0",), ("training.seed=1",), ("training.seed=0", "scoring.options.seed=1"))
    found = []
    for number, way in enumerate(ways):
        words = [word for setting in way for word in ("-o", setting)]
        assert trained(cli, "isolation_forest", patches, tmp_path / "runs", *words).exit_code == 0
        model = gan_uad.load(str(tmp_path / "runs" / f"{number:05d}-isolation_forest"))
        images = next(batches(load_patches(DataConfig(path=str(patches)), 32).select("test"), 100))[0]
        found.append(model.scorer().score(images).image)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_an_interrupted_fit_is_resumed_and_a_complete_one_kept(
    cli: Any, patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(fit_job, "fit_on", killed)
        assert trained(cli, "knn", patches, out).exit_code == 130
    assert not (out / "00000-knn" / "model.safetensors").exists()
    fails(cli("score", out / "00000-knn"), "model.safetensors")
    assert trained(cli, "knn", patches, out, "--resume").exit_code == 0
    before = (out / "00000-knn" / "model.safetensors").read_bytes()
    assert len(list(out.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(fit_job, "fit_on", killed)
        result = cli("train", out / "00000-knn", "--resume")
        assert result.exit_code == 0, result.output
        assert "was fitted already" in result.stderr
    assert (out / "00000-knn" / "model.safetensors").read_bytes() == before
    fails(cli("train", out / "00000-knn", "--resume", "-o", "data.grayscale=true"), "data.grayscale")


def test_an_interrupted_fit_on_more_images_does_not_count_as_complete(
    cli: Any, patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "00000-knn"
    assert trained(cli, "knn", patches, tmp_path, "-o", "training.total_kimg=0.02").exit_code == 0
    more = ("train", run, "--resume", "-o", "training.total_kimg=0.04")
    with monkeypatch.context() as patch:
        patch.setattr(fit_job, "fit_on", killed)
        assert cli(*more).exit_code == 130
    assert gan_uad.load(str(run)).nimg == 20, "the model of before"
    assert cli(*more, "-o", "training.threads=1").exit_code == 0
    assert gan_uad.load(str(run)).nimg == 40
    result = cli(*more, "-o", "training.threads=2")
    assert "was fitted already" in result.stderr, "that needs no new fit"


def test_too_little_memory_is_one_line(
    cli: Any, patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(fit_job, "batches", large)
    fails(trained(cli, "knn", patches, tmp_path), "knn", "48 images", "total_kimg", code=1)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (("-o", "scoring.options.k=49"), ("at least 49", "k = 49", "got 48")),
        (("-o", "scoring.options.kk=4"), ("'kk'", "'k'")),
        (("-o", "scoring.options.features=vgg61"), ("'vgg16'",)),
        (("-o", "scoring.scorer=gan_inversion"), ("gan_inversion",)),
        (("-o", "scoring.scorer=classifier"), ("classifier",)),
        (("-o", "scoring.scorer=knnn"), ("'knn'",)),
        (("-o", "data.label=all"), ("data.label",)),
        (("-o", "training.precision=bf16"), ("training.precision",)),
        (("-o", "training.eval_kimg=1"), ("training.eval_kimg",)),
        (("-o", "network.z_dim=3"), ("network", "scoring.options")),
        (("-o", "model=dcgan"), ("'task'",)),
        (("-o", "task=dcgan"), ("'model'",)),
    ],
)
def test_bad_settings(
    cli: Any, patches: Path, tmp_path: Path, words: tuple[str, ...], messages: tuple[str, ...]
) -> None:
    fails(trained(cli, "knn", patches, tmp_path / "runs", *words), *messages)
    assert not list(tmp_path.glob("runs/*/model.safetensors"))


def test_no_normals(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "a" / "anomalous").mkdir(parents=True)
    for k in range(5):
        Image.new("RGB", (32, 32), (k, 0, 0)).save(tmp_path / "a" / "anomalous" / f"{k}.png")
    fails(trained(cli, "knn", tmp_path / "a", tmp_path / "runs"), "normal", "train split")


def test_a_fitted_scorer_is_no_generator(cli: Any, knn: Path, tmp_path: Path) -> None:
    fails(cli("generate", knn, "--out", tmp_path / "g"), str(knn))
    fails(cli("score", knn, "-o", "scoring.scorer=gan_inversion"), "scoring.scorer")
    fails(cli("score", knn, "--inverter", "anogan"), "--inverter")


def test_the_presets_are_listed_and_narrower_networks_still_found(cli: Any) -> None:
    assert set(OPTIONS) <= set(presets())
    listed = json.loads(cli("models", "--json").stdout)["presets"]
    assert all(listed[name].startswith(f"{name}, fitted on train normals. ") for name in OPTIONS)
    assert "wgan_gp_64_small" in smaller_presets(load_config("wgan_gp_64"))
