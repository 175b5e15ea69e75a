"""docs/own_model.md, done as it says: one new file and one preset are enough for a model of one's own, in either place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmark_tools
import docs_tools
import pytest
import yaml
from docs_tools import ROOT
from run_tools import log
from score_tools import fails, rows

import gan_uad
from gan_uad import registry
from gan_uad.demo.phantom import write_phantom

PAGE = "docs/own_model.md"
# Only how long and how large: the page's own preset and network are used.
LESS = ["-o", "resolution=32", "-o", "network.width=4", "-o", "network.z_dim=8", "-o", "training.batch=8"]
CAPS = {
    "train": ["-o", "training.total_kimg=0.016", "-o", "training.checkpoint_kimg=0.008"],
    "resume": ["-o", "training.total_kimg=0.024"],
    "generate": ["--seeds", "0-3"],
    "fid": ["--num", "8", "--no-baselines", "--features", "pixels@8"],
    "evaluate": ["--resamples", "100"],
    "score": ["-o", "scoring.options.steps=2", "--max-images", "8"],
    "benchmark": ["--only", "small_gan", "--kimg", "0.016"],
}


@pytest.fixture(scope="module")
def page() -> str:
    return docs_tools.pages()[PAGE]


@pytest.fixture
def project(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh folder with the files of the page, "installed" with the entry point that the page's pyproject.toml declares."""
    files = docs_tools.write_files(page, tmp_path)
    about = tomllib.loads(files["pyproject.toml"].read_text())["project"]
    (group,) = about["entry-points"]
    info = tmp_path / "site" / f"small_gan-{about['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    points = {**about["entry-points"][group], "small_vae": "small_vae"}
    gone = "left_over = a_package_that_is_gone.nets"  # the tables of other packages may be out of date
    (info / "entry_points.txt").write_text(
        "\n".join([f"[{group}]", gone, *(f"{k} = {v}" for k, v in points.items()), ""])
    )
    for module in points.values():
        shutil.copy(files[f"{module}.py"], tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    registry._catalogue.cache_clear()
    yield tmp_path
    registry._catalogue.cache_clear()
    for module in points.values():
        sys.modules.pop(module, None)


@pytest.fixture
def patches(project: Path) -> Path:
    return write_phantom(project / "patches", resolution=32, train=24, val=8, test=4, groups=(4, 4, 4))


def small_benchmark(project: Path) -> None:
    """The page's file, with the patches of this test and the smaller net."""
    file = project / "small_gan_benchmark.yaml"
    raw = yaml.safe_load(file.read_text())
    raw["data"]["mine"]["path"] = str(project / raw["data"]["mine"]["path"])
    raw["methods"]["small_gan"] |= {
        "set": dict(word.split("=") for word in LESS[1::2]) | {"network.width": 4, "network.z_dim": 8},
        "score": {"own": {"set": {"scoring.options.steps": 2}}},
    }
    raw |= {"resamples": 100, "max_images": 8}
    file.write_text(yaml.safe_dump(raw))


def test_it_is_small(page: str) -> None:
    first, preset = (
        len(block.text.splitlines()) - 1 for block in docs_tools.blocks(page)[:2]
    )  # without the file's name
    assert first + preset <= 60


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of a benchmark in this process, which knows the entry point."""
    monkeypatch.setattr("gan_uad.benchmark.run.start", benchmark_tools.in_process)


@pytest.mark.usefixtures("fast", "in_process")
def test_commands_of_the_page(cli: Any, page: str, project: Path, patches: Path) -> None:
    small_benchmark(project)
    done = []

    def call(text: str) -> str:
        words = docs_tools.words(text, {}, call)[1:]
        caps = CAPS.get("resume" if "--resume" in words else words[0], [])
        less = LESS if words[0] == "train" and "--resume" not in words else []
        done.append(words[0])
        return str(docs_tools.run(cli, [*words, *less, *caps]).stdout.strip())

    shown = [call(command.text) for command in docs_tools.commands(PAGE, page) if not command.inline]
    assert done == ["models", "train", "train", "generate", "fid", "score", "evaluate", "benchmark"]
    assert "small_gan" in shown[0]
    assert gan_uad.models()["small_gan"].startswith("Residual GAN")
    run = project / "runs" / "00000-small_gan_64"
    assert [row["nimg"] for row in log(run)][-1] == 24
    assert gan_uad.load(str(run)).generate([0, 1]).shape == (2, 3, 32, 32)
    assert len(list((project / "generated").glob("seed*.png"))) == 4
    assert "small_gan_64" in (project / "fid" / "fid.md").read_text()
    scores = run / "scores"
    (folder,) = scores.iterdir()
    assert {row["model"] for row in rows(folder / "scores.csv")} == {"small_gan_64/anogan"}
    assert (folder / "metrics.json").is_file()
    (row,) = [
        row for row in rows(project / "benchmarks/small_gan_benchmark/results.csv") if row["method"] == "small_gan"
    ]
    assert (row["normal"], row["anomalous"], row["kimg"]) == ("4", "4", "0.016")


@pytest.mark.usefixtures("fast")
def test_autoencoder_of_the_page(cli: Any, project: Path, patches: Path) -> None:
    training = {"total_kimg": 0.016, "batch": 8, "eval_kimg": 0.008}
    preset = {"model": "small_vae", "task": "vae", "resolution": 32, "network": {"latent_dim": 4, "width": 4}}
    Path("small_vae_32.yaml").write_text(yaml.safe_dump({**preset, "training": training, "scoring": {"scorer": "vae"}}))
    docs_tools.run(cli, ["train", "small_vae_32.yaml", "--data", "patches"])
    run = "runs/00000-small_vae_32"
    docs_tools.run(cli, ["generate", run, "--seeds", "0-1"])
    docs_tools.run(cli, ["score", run, "-o", "scoring.options.perceptual=none"])
    docs_tools.run(cli, ["latents", run])
    assert gan_uad.load(run).scorer(perceptual="none").score(gan_uad.load(run).generate([0])).image.shape == (1,)


def test_what_the_page_says_of_errors(cli: Any, project: Path, patches: Path) -> None:
    train = ["train", "small_gan_64.yaml", "--data", "patches"]
    fails(cli(*train, "-o", "network.width=6"), "small_gan", "width in fours, got 64 and 6")
    fails(cli(*train, "-o", "network.widht=8"), "'widht'", "width")
    file = project / "site" / "small_vae.py"
    file.write_text(file.read_text().replace('"small_vae"', '"small_gan"'))
    registry._catalogue.cache_clear()
    fails(cli("models"), "two networks are called 'small_gan'")
    file.write_text("@register(\n")
    registry._catalogue.cache_clear()
    fails(cli("models"), "small_vae.py", "line 1")


def test_in_a_checkout(page: str, tmp_path: Path) -> None:
    """The other place: two files more in a copy of the repository, none changed."""
    for folder in ("gan_uad", "encoders", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = json.loads(listed(tmp_path))
    for name, file in docs_tools.write_files(page, tmp_path / "new").items():
        if (place := {"small_gan.py": "gan_uad/networks", "small_gan_64.yaml": "configs"}.get(name)) is not None:
            assert f"`{place}/{name}`" in page
            shutil.copy(file, tmp_path / place)
    after = json.loads(listed(tmp_path))
    assert after["networks"].keys() - before["networks"].keys() == {"small_gan"}
    assert after["presets"].keys() - before["presets"].keys() == {"small_gan_64"}
    assert after["presets"]["small_gan_64"].startswith("small_gan by wgan_gp, 100 kimg. A small")


def listed(checkout: Path) -> str:
    command = [sys.executable, "-m", "gan_uad", "models", "--json"]
    return subprocess.run(
        command, cwd=checkout, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=True
    ).stdout
